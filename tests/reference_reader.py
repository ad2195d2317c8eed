"""A reader of undamaged containers written from docs/format.md alone: plain Python, slow, no code of the product.

`read_set` takes the shard files of a set and gives the files of the checkpoint. On the way it holds every byte of every
shard file against what the document says should be there: gaps, armour, parity, digests.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
import struct
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import xxhash
import zstandard

POLYNOMIALS = {3: 0xB, 4: 0x13, 5: 0x25, 6: 0x43, 7: 0x89, 8: 0x11D, 9: 0x211, 10: 0x409, 11: 0x805, 12: 0x1053,
               13: 0x201B, 14: 0x4443}  # fmt: skip
WORD_BITS = {"BOOL": 8, "F4": 8, "F6_E2M3": 8, "F6_E3M2": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16,
             "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 32, "F64": 64, "I64": 64, "U64": 64}  # fmt: skip


def align(offset: int, to: int) -> int:
    return to * -(-offset // to)


def digest(data: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(data))


@cache
def generator(n: int, k: int) -> int:
    """The generator polynomial of degree n - k, coefficients as bits."""
    m = n.bit_length()
    powers = [1]
    for _ in range(n - 1):
        doubled = powers[-1] << 1
        powers.append(doubled ^ POLYNOMIALS[m] if doubled >> m else doubled)
    logarithm = {value: exponent for exponent, value in enumerate(powers)}
    result, covered = 1, set[int]()
    for exponent in range(1, n, 2):
        if result.bit_length() - 1 == n - k:
            return result
        if exponent in covered:
            continue
        coset = [exponent]
        while (following := coset[-1] * 2 % n) != exponent:
            coset.append(following)
        covered.update(coset)
        minimal = [1]  # coefficients in the field, the constant one first
        for root in coset:
            scaled = [powers[(logarithm[c] + root) % n] if c else 0 for c in minimal]
            minimal = [a ^ b for a, b in zip([*scaled, 0], [0, *minimal], strict=True)]
        product = 0
        for degree, coefficient in enumerate(minimal):
            assert coefficient in (0, 1)
            product ^= (result << degree) * coefficient
        result = product
    raise AssertionError(f"no code ({n}, {k})")


def bch_parity(message: int, n: int, k: int) -> int:
    divisor, rest = generator(n, k), message << (n - k)
    while rest.bit_length() >= divisor.bit_length():
        rest ^= divisor << (rest.bit_length() - divisor.bit_length())
    return rest


def secded_parity(message: list[int], n: int, k: int) -> int:
    """Parity bit j in bit j."""
    r = n - k
    columns = sorted(
        (v for v in range(1 << r) if v.bit_count() % 2 and v.bit_count() >= 3), key=lambda v: (v.bit_count(), v)
    )
    parity = 0
    for bit, column in zip(message, columns[:k][k - len(message) :], strict=True):
        parity ^= column * bit
    return parity


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def armour(content: bytes) -> bytes:
    count = -(-len(content) // 64)
    padded = content.ljust(64 * count, b"\0")
    words = []
    for start in range(0, len(padded), 64):
        message = padded[start : start + 64]
        words.append(message + (bch_parity(int.from_bytes(message, "big"), 1023, 513) << 2).to_bytes(64, "big"))
    return bytes(word[j] for j in range(128) for word in words)


def read_superblock(data: bytes) -> dict[str, int]:
    plain = data[:64]
    assert data[:128] == armour(plain) == data[-128:]
    assert plain[:8] == bytes.fromhex("93434B5054475244")
    names = ("version", "flags", "shard", "shards", "metadata", "payload", "parity", "set_id", "digest", "own")
    block = dict(zip(names, struct.unpack_from("<HHHHQQQQQQ", plain, 8), strict=True))
    assert block["own"] == digest(plain[:56])
    assert (block["version"], block["flags"] & ~1) == (1, 0)
    return block


def read_sections(metadata: bytes) -> dict[str, bytes]:
    found, offset = {}, 0
    while offset < len(metadata):
        tag, version, flags, stored, size = struct.unpack_from("<4sHHQQ", metadata, offset)
        assert version == 0
        content = metadata[offset + 24 : offset + 24 + stored]
        found[tag.decode()] = zstandard.ZstdDecompressor().decompress(content) if flags & 1 else content
        assert len(found[tag.decode()]) == size
        offset = align(offset + 24 + stored, 8)
    return found


def unit_tiles(code: str, planes: int) -> int:
    if code in ("none", "crc"):
        return 64
    k = used_bits(code)
    best: tuple[Fraction, int] | None = None
    for tiles in range(1, max(64, k // planes) + 1):
        waste = -(-planes * tiles // k) * k - planes * tiles
        if 256 * waste <= planes * tiles:
            return align(64, tiles)
        share = Fraction(waste, planes * tiles)
        best = min(best, (share, tiles)) if best else (share, tiles)
    assert best is not None
    return align(64, best[1])


def unit_parity(code: str, mask: int, words: list[int], full: bool) -> bytes:
    kind, _, settings = code.partition(":")
    positions = [bit for bit in range(64) if mask >> bit & 1]
    if kind == "none" or not mask:
        return b""
    tiles = [words[start : start + 512] for start in range(0, len(words), 512)]
    if kind == "crc":
        crcs = [crc32c(b"".join((word & mask).to_bytes(8, "little") for word in tile)) for tile in tiles]
        data = b"".join(crc.to_bytes(4, "little") for crc in crcs)
        return data.ljust(align(len(data), 8), b"\0")
    n, k = map(int, settings.split(",")[:2])
    used = used_bits(code)
    flat = [word >> bit & 1 for tile in tiles for bit in positions for word in tile]
    count = 512 * -(-len(flat) // (512 * used)) if full else -(-len(flat) // used)
    size = -(-len(flat) // count)
    messages = [flat[c::count] + [0] * (size - len(flat[c::count])) for c in range(count)]
    data = laid_out([word_parity(kind, message, n, k) for message in messages])
    if "outer=" in settings:
        words = outer_words(messages, int(settings.rpartition("=")[2]))
        data += laid_out(words) + laid_out([word_parity(kind, word, n, k) for word in words])
    return data


def used_bits(code: str) -> int:
    """Message bits of a codeword that are put to use."""
    k = int(code.split(",")[1])
    return k - k % 10 if "outer=" in code else k


def word_parity(kind: str, message: list[int], n: int, k: int) -> list[int]:
    """Parity bits of a codeword, in the order in which they are stored."""
    if kind == "bch":
        value = bch_parity(int("".join(map(str, message)), 2), n, k)
        return [value >> (n - k - 1 - i) & 1 for i in range(n - k)]
    value = secded_parity(message, n, k)
    return [value >> i & 1 for i in range(n - k)]


def laid_out(words: list[list[int]]) -> bytes:
    """Bit i of word c of C at bit c + C*i, padded to 8 bytes."""
    bits = [word[i] for i in range(len(words[0])) for word in words]
    bits += [0] * (align(len(bits), 64) - len(bits))
    return bytes(sum(bit << i for i, bit in enumerate(bits[b : b + 8])) for b in range(0, len(bits), 8))


def outer_words(messages: list[list[int]], r: int) -> list[list[int]]:
    """Outer words of all groups of 512 lanes, one after the other (section 8.2)."""
    powers = [1]
    for _ in range(1022):
        powers.append(powers[-1] << 1 ^ (0x409 if powers[-1] & 0x200 else 0))
    logarithm = {value: exponent for exponent, value in enumerate(powers)}
    symbols = -(-len(messages[0]) // 10)
    words = []
    for first in range(0, len(messages), 512):
        lanes = [lane + [0] * (10 * symbols - len(lane)) for lane in messages[first : first + 512]]
        values = [[sum(lane[10 * s + j] << j for j in range(10)) for s in range(symbols)] for lane in lanes]
        for p in range(min(r, 4 + len(lanes).bit_length() - 1)):
            total = [0] * symbols
            for c, value in enumerate(values):
                divisor = logarithm[c ^ (512 + p)]
                total = [
                    t ^ (powers[(logarithm[v] - divisor) % 1023] if v else 0) for t, v in zip(total, value, strict=True)
                ]
            words.append([t >> j & 1 for t in total for j in range(10)])
    return words


def part_words(part: dict[str, Any], stored: bytes) -> tuple[list[int], list[int]]:
    """The words of a part that are in its stream, and where in its stored words they are."""
    padded = stored.ljust(align(len(stored), 8), b"\0")
    words = [int.from_bytes(padded[start : start + 8], "little") for start in range(0, len(padded), 8)]
    places = list(range(len(words)))
    if part["representation"] != "native" and "1" in part["mask"]:
        places = [place for place in places if part["mask"][place % len(part["mask"])] == "1"]
    return [words[place] for place in places], places


def word_mask(part: dict[str, Any]) -> int:
    mask = part["mask"]
    if "1" not in mask:
        return 0
    if part["representation"] != "native":
        return (1 << 64) - 1
    width = WORD_BITS.get(part["dtype"], 8)
    assert len(mask) == width
    return sum(1 << (width * e + width - 1 - j) for e in range(64 // width) for j in range(width) if mask[j] == "1")


def to_original(part: dict[str, Any], stored: bytes, magnitude: float) -> bytes:
    """The bytes of a part in its source."""
    if part["representation"] == "native":
        return stored
    settings = part["representation"].partition(":")[2].split(",")
    m = int(settings[0])
    scale = magnitude / (2 ** (m - 1) - 1)
    count = part["bytes"] * 8 // WORD_BITS[part["dtype"]]
    words = struct.unpack(f"<{len(stored) // 8}Q", stored)
    values = []
    for element in range(count):
        group, place = divmod(element, 64)
        bits = [words[group * m + j] >> place & 1 for j in range(m)]
        number = int("".join(map(str, bits)), 2)
        if bits[0] and "sign-magnitude" in settings:
            number = -(number - 2 ** (m - 1))
        elif bits[0]:
            number -= 2**m
        values.append(scale * number)
    floats = np.array(values, np.float64)
    if part["dtype"] == "BF16":
        return b"".join(to_bfloat16(value) for value in values)
    return floats.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[part["dtype"]]).tobytes()


def to_bfloat16(value: float) -> bytes:
    """The nearest of the two neighbours, the even one where both are as near, by exact fractions."""
    low = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    candidates = [candidate for candidate in (low - 1, low, low + 1) if 0 <= candidate < 1 << 16]

    def error(candidate: int) -> tuple[Fraction, int]:
        number = struct.unpack("<f", struct.pack("<I", candidate << 16))[0]
        return abs(Fraction(number) - Fraction(value)), candidate & 1

    best = min((c for c in candidates if (c << 16 & 0x7F800000) != 0x7F800000), key=error)
    return best.to_bytes(2, "little")


def read_shard(data: bytes, beside: bytes | None) -> tuple[dict[str, Any], list[tuple[str, int, int, bytes]], bytes]:
    """(INFO, [(source, its bytes, offset, bytes there)], metadata) of one shard file, everything in it checked."""
    block = read_superblock(data)
    copy = 128 * -(-block["metadata"] // 64)
    payload_offset = align(128 + copy, 4096)
    parity_offset = align(payload_offset + block["payload"], 64)
    if block["flags"] & 1:
        parity_offset = align(128 + copy, 64)
    tail_offset = align(parity_offset + block["parity"], 64)
    assert len(data) == tail_offset + copy + 128
    count = copy // 128
    metadata = bytes(data[128 + count * j + c] for c in range(count) for j in range(64))[: block["metadata"]]
    assert digest(metadata) == block["digest"]
    assert data[128 : 128 + copy] == armour(metadata) == data[tail_offset : tail_offset + copy]
    payload = beside if block["flags"] & 1 else data[payload_offset : payload_offset + block["payload"]]
    assert payload is not None
    assert len(payload) == block["payload"]
    end = parity_offset if block["flags"] & 1 else payload_offset
    gaps = [data[128 + copy : end], data[parity_offset + block["parity"] : tail_offset]]
    gaps += [] if block["flags"] & 1 else [data[payload_offset + block["payload"] : parity_offset]]
    assert not any(map(any, gaps))
    sections = read_sections(metadata)
    record = json.loads(sections["PLAN"])
    parity = data[parity_offset : parity_offset + block["parity"]]
    check_payload(record, payload, parity, sections["DGST"])
    if "POST" in sections:
        check_restorers(record, payload, sections["POST"])
    else:
        assert all(part["kind"] != "extra" for part in record["parts"])
    if "GRDS" in sections:
        check_guards(record, payload, sections["GRDS"])
    scales = struct.unpack(f"<{len(record['parts'])}d", sections["SCAL"]) if "SCAL" in sections else None
    written, start = [], 0
    for place, part in enumerate(record["parts"]):
        stored = payload[start : start + part["stored"]]
        start += part["stored"]
        if part["kind"] == "extra":
            continue
        source = record["sources"][part["source"]]
        original = to_original(part, stored, scales[place] if scales else 0.0)
        written.append((source["name"], source["bytes"], part["offset"], original))
    start = 0
    for source in record["sources"]:
        header = sections["HEAD"][start : start + source["header"]]
        start += source["header"]
        written.append((source["name"], source["bytes"], 0, header))
    assert start == len(sections["HEAD"])
    info = json.loads(sections["INFO"])
    assert (block["shards"], info["shards"][block["shard"]]) == (len(info["shards"]), info["shards"][block["shard"]])
    return info | {"shard": block["shard"], "set_id": block["set_id"]}, written, metadata


def check_restorers(record: dict[str, Any], payload: bytes, section: bytes) -> None:
    """Hold spreads, row sums and outliers against the words of the parts (section 5.2)."""
    formats = {"F32": (8, 23), "BF16": (8, 7), "F16": (5, 10)}
    (count,) = struct.unpack_from("<I", section)
    rates = struct.unpack_from(f"<{2 * count}f", section, 4)
    assert all(0 <= rate <= 1 for rate in rates)
    offset = 4 + 8 * count
    codes = struct.unpack_from(f"<{len(record['parts'])}H", section, offset)
    offset += 2 * len(codes)
    numbers = len(section) - 4 * sum(code >> 14 & 1 for code in codes)
    levels = end = numbers - 8 * sum(code >> 15 for code in codes)
    entries = struct.unpack_from(f"<{(len(section) - numbers) // 4}I", section, numbers)
    outlying = dict(zip((place for place, code in enumerate(codes) if code >> 14 & 1), entries, strict=True))
    assert all(entries)
    behind = len(payload) - 6 * sum(entries)
    start, sums = 0, b""
    for place, (part, code) in enumerate(zip(record["parts"], codes, strict=True)):
        stored = payload[start : start + part["stored"]]
        start += part["stored"]
        if part["kind"] == "extra":
            assert (place, stored) == (len(codes) - 1, sums + payload[len(payload) - 6 * sum(entries) :])
        if not code:
            continue
        assert part["kind"] == "tensor"
        assert part["representation"] == "native"
        assert 1 <= code % 2**14 <= count
        e, f = formats[part["dtype"]]
        _, size, words = guarded_words(part, stored)
        behind, outliers = read_outliers(payload, behind, outlying.get(place, 0))
        assert all(words[element] >> (e + f - 15) == upper for element, upper in outliers.items())
        assert list(outliers) == sorted(outliers)
        fields = [word >> f & ((1 << e) - 1) for word in words]
        assert not {fields[at] for at in outliers} & {one for at, one in enumerate(fields) if at not in outliers}
        fields = [field for at, field in enumerate(fields) if at not in outliers]
        assert max(fields) < (1 << e) - 1
        first, listed, last = section[offset : offset + 3]
        nibbles = [byte >> shift & 15 for byte in section[offset + 3 :][: -(-listed // 2)] for shift in (0, 4)]
        offset += 3 + -(-listed // 2)
        said = {0: last & 15} | dict(enumerate(nibbles[:listed], first))
        most = max(fields.count(field) for field in set(fields))
        for field in set(fields) | set(said):
            share = Fraction(fields.count(field), most)
            if said.get(field, 15) < 15:  # within half a power of two
                assert Fraction(1, 2) <= (share * 2 ** said[field]) ** 2 <= 2
            else:
                assert share**2 * 2**29 <= 1
        signs = {word >> (e + f) for at, word in enumerate(words) if at not in outliers}
        assert last >> 4 == (2 if len(signs) == 2 else signs.pop())
        if code >> 15:
            low, step = struct.unpack_from("<2f", section, levels)
            levels += 8
            sums += row_sums(part, stored, size, low, step)
    assert (offset, behind) == (end, len(payload))
    assert (record["parts"][-1]["kind"] == "extra") == bool(sums or entries)


def read_outliers(payload: bytes, start: int, entries: int) -> tuple[int, dict[int, int]]:
    """(where they end, upper 16 bits by element)."""
    end, element, found = start + 6 * entries, 0, {}
    for gap, upper in struct.iter_unpack("<IH", payload[start:end]):
        element += gap
        if gap < 2**32 - 1:
            found[element] = upper
    return end, found


def row_sums(part: dict[str, Any], stored: bytes, size: int, low: float, step: float) -> bytes:
    """Levels of a tensor that is one piece."""
    kinds = {"F32": "<f4", "F16": "<f2"}
    data = np.frombuffer(stored, "<u2").astype("<u4") << 16 if part["dtype"] == "BF16" else stored
    values = np.frombuffer(data, kinds.get(part["dtype"], "<f4")).astype(float).tolist()
    columns = len(stored) // size // part["shape"][0]
    assert columns >= 16
    totals = [sum(values[row : row + columns]) for row in range(0, len(values), columns)]
    return bytes(max(0, min(255, round((total - low) / step))) if step > 0 else 0 for total in totals)


def guarded_words(part: dict[str, Any], stored: bytes) -> tuple[int, int, list[int]]:
    """(bits of a word, bytes of it, the words) as range guards see a part (section 5.1)."""
    if part["representation"] == "native":
        size = WORD_BITS.get(part["dtype"], 8) // 8
        return 8 * size, size, [int.from_bytes(stored[i : i + size], "little") for i in range(0, len(stored), size)]
    m = len(part["mask"])
    words = struct.unpack(f"<{len(stored) // 8}Q", stored)
    count = part["bytes"] * 8 // WORD_BITS[part["dtype"]]
    codes = [sum((words[e // 64 * m + j] >> e % 64 & 1) << (m - 1 - j) for j in range(m)) for e in range(count)]
    return m, 2, codes


def guard_key(part: dict[str, Any], bits: int, word: int) -> int | None:
    """Where a word stands in the order of values; None where there is none."""
    half, dtype = 1 << (bits - 1), part["dtype"]
    if part["representation"] != "native":
        by_magnitude, unsigned = "sign-magnitude" in part["representation"], False
    else:
        by_magnitude = (dtype[0] == "F" or dtype in ("BF16", "C64")) and dtype != "F8_E8M0"
        unsigned = dtype[0] == "U" or dtype in ("BOOL", "F8_E8M0")
        if dtype in ("F4", "F6_E2M3", "F6_E3M2"):
            return None
    if unsigned:
        return word
    if by_magnitude:
        return word + half if word < half else (1 << bits) - 1 - word
    return (word + half) % (1 << bits)


def check_guards(record: dict[str, Any], payload: bytes, content: bytes) -> None:
    """Guards say of every group what its words are, and nothing follows them."""
    count, start, by_width = len(record["parts"]), 0, dict[int, list[tuple[dict[str, Any], int, list[int]]]]()
    sizes = struct.unpack_from(f"<{count}I", content)
    for part, size in zip(record["parts"], sizes, strict=True):
        stored = payload[start : start + part["stored"]]
        start += part["stored"]
        if size:
            assert part["kind"] == "tensor"
            bits, width, words = guarded_words(part, stored)
            step = len(words) if size == 0xFFFFFFFF else size
            groups = [(part, bits, words[i : i + step]) for i in range(0, len(words), step)]
            by_width.setdefault(width, []).extend(groups)
    at = 4 * count
    for width in sorted(by_width):
        groups, columns = by_width[width], []
        for _ in range(4):
            planes = [content[at + i * len(groups) : at + (i + 1) * len(groups)] for i in range(width)]
            columns.append([int.from_bytes(entry, "big") for entry in zip(*planes, strict=True)])
            at += width * len(groups)
        for (part, bits, words), ever, always, low, high in zip(groups, *columns, strict=True):
            assert ever == functools.reduce(operator.or_, words)
            assert always == functools.reduce(operator.and_, words)
            keys = [guard_key(part, bits, word) for word in words]
            if None in keys or (part["dtype"].endswith("FNUZ") and 0x80 in words):
                assert (low, high) == (0, (1 << bits) - 1)
                continue
            slack = (1 << max(bits - 16, 0)) - 1 if part["dtype"] in ("F32", "F64", "C64") else 0
            numbers = [key for key in keys if key is not None]
            assert (low, high) == (min(numbers) & ~slack, max(numbers) | slack)
    assert at == len(content)


def check_payload(record: dict[str, Any], payload: bytes, parity: bytes, digests: bytes) -> None:
    """Streams, units, pieces, parity and digests are those that the parts make."""
    starts = [0]
    for part in record["parts"]:
        starts.append(starts[-1] + part["stored"])
    assert starts[-1] == len(payload)
    streams: dict[tuple[str, int], list[int]] = {}
    for index, part in enumerate(record["parts"]):
        if part["stored"]:
            mask = word_mask(part)
            streams.setdefault((part["code"], mask) if mask else ("none", 0), []).append(index)
    raw, protected, of_parity, rebuilt = [], [], [], b""
    stated = [(s["code"], int(s["mask"], 16)) for s in record["streams"]]
    assert stated == list(streams)
    for ((code, mask), members), stream in zip(streams.items(), record["streams"], strict=True):
        size = 512 * unit_tiles(code, max(mask.bit_count(), 1))
        words: list[int] = []
        before = len(rebuilt)
        for index in members:
            part = record["parts"][index]
            stored = payload[starts[index] : starts[index + 1]]
            mine, places = part_words(part, stored)
            first = len(words)
            cuts = [c - first for c in range(align(first + 1, size), first + len(mine), size)] if mine else []
            edges = [0, *cuts, len(mine)]
            for low, high in itertools.pairwise(edges):
                begin = 8 * places[low] if low else 0
                end = 8 * places[high] if high < len(mine) else len(stored)
                raw.append(digest(stored[begin:end]))
                protected.append(digest(b"".join((word & mask).to_bytes(8, "little") for word in mine[low:high])))
            words += mine
        for start in range(0, len(words), size):
            unit = words[start : start + size]
            data = unit_parity(code, mask, unit, len(unit) == size)
            of_parity += [digest(data)] if data else []
            rebuilt += data
        assert (stream["unit_tiles"] * 512, stream["words"]) == (size, len(words))
        assert stream["parity"] == len(rebuilt) - before
        assert all(record["parts"][index]["stream"] == stated.index((code, mask)) for index in members)
    assert rebuilt == parity
    assert [*raw, *protected, *of_parity] == list(struct.unpack(f"<{len(digests) // 8}Q", digests))


def read_set(shards: dict[str, bytes], others: dict[str, bytes]) -> dict[str, bytes]:
    """name -> bytes of the files of the checkpoint.

    Args:
        shards: name -> bytes of the shard files.
        others: the files beside them.
    """
    found: dict[str, bytearray] = {}
    read = []
    for name, data in shards.items():
        beside = bool(data[10] & 1)
        read.append((name, *read_shard(data, others[name.removesuffix(".ckg")] if beside else None)))
    read.sort(key=lambda each: each[1]["shard"])
    assert len(read) == 1 or [name for name, *_ in read] == read[0][1]["shards"]
    whole = b"".join(metadata for *_, metadata in read)
    assert all(info["set_id"] == digest(whole) for _, info, _, _ in read)
    for _, _, written, _ in read:
        for source, size, offset, data in written:
            file = found.setdefault(source, bytearray(size))
            file[offset : offset + len(data)] = data
            assert len(file) == size
    return {name: bytes(data) for name, data in found.items()}
