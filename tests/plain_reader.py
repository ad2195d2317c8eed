"""A reader of containers in plain Python, written from docs/format.md alone: the proof that the document suffices.

It uses none of the code under test and no compiled kernels; numpy serves for bits, XXH3 and zstandard for what the
document names.

    files = read(Path("model.ckg").read_bytes())                         # {source name: bytes}
    files = read(sidecar.read_bytes(), payload.read_bytes())             # payload beside
    files = read_set(path.read_bytes() for path in folder.glob("*.ckg")) # shards of a set
"""

from __future__ import annotations

import json
import struct

import numpy as np
import xxhash
import zstandard

POLYNOMIALS = {4: 0x13, 5: 0x25, 6: 0x43, 7: 0x89, 8: 0x11D, 9: 0x211, 10: 0x409, 11: 0x805, 12: 0x1053, 13: 0x201B}


def align(offset, to):
    return -(-offset // to) * to


class Bch:
    """Berlekamp-Massey and trial of every position, one codeword after another (sections 3 and 8)."""

    def __init__(self, m, check_bits):
        self.n, self.exp, self.log = (1 << m) - 1, [1], {1: 0}
        for power in range(1, self.n):
            value = self.exp[-1] << 1
            self.exp.append(value ^ POLYNOMIALS[m] if value > self.n else value)
            self.log[self.exp[-1]] = power
        roots, t = set(), 0
        while True:  # t as large as the roots of a generator of that degree allow
            more = roots | {(2 * t + 1) * 2**i % self.n for i in range(m)}
            if len(more) > check_bits:
                break
            roots, t = more, t + 1
        self.t = t
        self.powers = np.array(self.exp)

    def decode(self, word):
        """(word, flips) of an array of bits, highest power first; flips is -1 where it cannot be decoded."""
        ones = len(word) - 1 - np.flatnonzero(word)
        S = [int(np.bitwise_xor.reduce(self.powers[ones * j % self.n], initial=0)) for j in range(1, 2 * self.t + 1)]
        locator, length = self.massey(S)
        if length > self.t:
            return word, -1
        positions = np.arange(len(word))
        total = np.zeros(len(word), np.int64)
        for power, value in enumerate(locator):
            if value:
                total ^= self.powers[(self.log[value] - positions * power) % self.n]
        found = np.flatnonzero(total == 0)
        if len(found) != length:
            return word, -1
        word = word.copy()
        word[len(word) - 1 - found] ^= 1
        return word, length

    def massey(self, S):
        C, B, length, shift, last = [1], [1], 0, 1, 1
        for step in range(len(S)):
            gap = S[step]
            for i in range(1, length + 1):
                gap ^= self.times(C[i] if i < len(C) else 0, S[step - i])
            if gap:
                factor = self.exp[(self.log[gap] - self.log[last]) % self.n]
                new = C + [0] * (len(B) + shift - len(C))
                for i, value in enumerate(B):
                    new[i + shift] ^= self.times(factor, value)
                if 2 * length <= step:
                    B, length, last, shift = C, step + 1 - length, gap, 0
                C = new
            shift += 1
        return C, length

    def times(self, a, b):
        return self.exp[(self.log[a] + self.log[b]) % self.n] if a and b else 0


def secded_decode(word, columns, check_bits):
    bits = len(word) - check_bits
    every = columns[len(columns) - bits :] + [1 << j for j in range(check_bits)]
    syndrome = 0
    for bit in np.flatnonzero(word):
        syndrome ^= every[bit]
    if syndrome == 0:
        return word, 0
    if syndrome not in every:
        return word, -1
    word = word.copy()
    word[every.index(syndrome)] ^= 1
    return word, 1


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unarmour(area, size):
    """Section 3."""
    words = np.frombuffer(area, np.uint8).reshape(128, -1).T
    code, out = Bch(10, 510), []
    for word in words:
        bits, flips = code.decode(np.unpackbits(word)[:1022])
        if flips < 0:
            raise ValueError("metadata is lost")
        out.append(np.packbits(bits[:512]).tobytes())
    return b"".join(out)[:size]


def superblock(data):
    """Section 4: (shard, shards, metadata bytes, payload bytes, parity bytes, payload beside)."""
    for area in (data[:128], data[-128:]):
        try:
            block = unarmour(area, 64)
        except ValueError:
            continue
        magic, version, flags, shard, shards, *sizes, own = struct.unpack("<8sHHHHQQQQQQ", block)
        if magic == b"\x93CKPTGRD" and own == xxhash.xxh3_64_intdigest(block[:56]) and version == VERSION:
            return shard, shards, *sizes[:3], bool(flags & 1)
    raise ValueError("no superblock")


VERSION = 1


def sections(metadata):
    """Section 5."""
    found, offset = {}, 0
    while offset < len(metadata):
        tag, _, flags, stored, _ = struct.unpack_from("<4sHHQQ", metadata, offset)
        content = metadata[offset + 24 : offset + 24 + stored]
        found[tag.decode()] = zstandard.decompress(content) if flags & 1 else content
        offset += 24 + align(stored, 8)
    return found


def selection(part):
    """(64-bit mask, which words of a period belong to the stream) of a part (sections 6 and 7)."""
    mask, width = part["mask"], len(part["mask"])
    if "1" not in mask:
        return 0, [True]
    if part["representation"].startswith("fixed"):
        return (1 << 64) - 1, [bit == "1" for bit in mask]
    return sum(int(mask[j]) << (width * e + width - 1 - j) for e in range(64 // width) for j in range(width)), [True]


def read_set(shards):
    """Sources of which every shard holds a part; parts do not overlap."""
    files = {}
    for data in shards:
        for name, content in read(data).items():
            old = np.frombuffer(files.get(name, bytes(len(content))), np.uint8)
            files[name] = (old | np.frombuffer(content, np.uint8)).tobytes()
    return files


def read(data, payload=None, estimate=False):
    """Every source of a shard file, decoded: {name: bytes}; parts in other shards are zero.

    With `estimate` damaged pieces are read through their posterior restorers (section 5.2); guards are not used.
    """
    _, _, metadata_bytes, payload_bytes, parity_bytes, beside = superblock(data)
    assert beside == (payload is not None)
    stored = 128 * -(-metadata_bytes // 64)
    payload_offset = align(128 + stored, 4096)
    parity_offset = align(128 + stored, 64) if beside else align(payload_offset + payload_bytes, 64)
    found = sections(unarmour(data[128 : 128 + stored], metadata_bytes))
    plan = json.loads(found["PLAN"])
    payload = payload if beside else data[payload_offset : payload_offset + payload_bytes]
    payload = np.frombuffer(payload, np.uint8).copy()
    parity = np.frombuffer(data[parity_offset : parity_offset + parity_bytes], np.uint8)
    correct(plan, payload, parity)
    if estimate and "POST" in found:
        estimate_pieces(plan, payload, found)
    return assemble(plan, payload, found)


def correct(plan, payload, parity):
    """Decode every unit of every stream, in place."""
    begin, places = 0, []
    for part in plan["parts"]:
        places.append(begin)
        begin += part["stored"]
    at = 0
    for index, stream in enumerate(plan["streams"]):
        mask, where = int(stream["mask"], 16), []
        for part, place in zip(plan["parts"], places, strict=True):
            if part["stream"] == index:
                keep = selection(part)[1]
                count = -(-part["stored"] // 8)
                where += [(place + 8 * i, min(8, part["stored"] - 8 * i)) for i in range(count) if keep[i % len(keep)]]
        size = 512 * stream["unit_tiles"]
        for first in range(0, len(where), size):
            unit = where[first : first + size]
            words = np.array([int.from_bytes(payload[a : a + n].tobytes(), "little") for a, n in unit], np.uint64)
            at += decode_unit(stream["code"], words, mask, len(unit) == size, parity[at:])
            for (a, n), word in zip(unit, words.tolist(), strict=True):
                payload[a : a + n] = list(word.to_bytes(8, "little")[:n])


def decode_unit(spec, words, mask, full, parity):
    """Correct the words of a unit in place; how many bytes of parity it has (section 8)."""
    name, _, settings = spec.partition(":")
    if name == "none":
        return 0
    if name == "crc":
        for tile in range(0, len(words), 512):
            bytes_ = (words[tile : tile + 512] & np.uint64(mask)).astype("<u8").tobytes()
            stored = int.from_bytes(parity[tile // 128 : tile // 128 + 4].tobytes(), "little")
            assert crc32c(bytes_) == stored, "this reader does not correct by CRC"
        return align(-(-len(words) // 512) * 4, 8)
    n, k, *rest = settings.split(",")
    n, k, r = int(n), int(k), int(rest[0].removeprefix("outer=")) if rest else 0
    used, check = k - k % 10 if r else k, n - k
    planes = [bit for bit in range(64) if mask >> bit & 1]
    tiles = [words[i : i + 512] for i in range(0, len(words), 512)]
    flat = np.concatenate([tile >> np.uint64(bit) & np.uint64(1) for tile in tiles for bit in planes]).astype(np.uint8)
    lanes = 512 * -(-len(flat) // (512 * used)) if full else -(-len(flat) // used)
    rows = -(-len(flat) // lanes)
    message = np.zeros(rows * lanes, np.uint8)
    message[: len(flat)] = flat
    parity_rows, size = bits_of(parity, check, lanes)
    if name == "bch":
        code = Bch((n + 1).bit_length() - 1, check)
        decode = code.decode
    else:
        odd = [v for v in range(1 << check) if v.bit_count() % 2 and v.bit_count() >= 3]
        columns = sorted(odd, key=lambda v: (v.bit_count(), v))[:k]
        decode = lambda word: secded_decode(word, columns, check)  # noqa: E731
    decoded, lost = [], []
    for lane, word in enumerate(np.concatenate([message.reshape(rows, lanes), parity_rows]).T):
        word, flips = decode(word)
        decoded.append(word[:rows])
        lost += [lane] if flips < 0 else []
    if r:
        size += outer_words(decoded, lost, r, rows, lanes, check, decode, parity[size:])
    assert not lost, "codewords are lost"
    flat = np.array(decoded).T.reshape(-1)[: len(flat)]
    at = 0
    for tile in tiles:
        for bit in planes:
            tile &= ~np.uint64(1 << bit)
            tile |= flat[at : at + len(tile)].astype(np.uint64) << np.uint64(bit)
            at += len(tile)
    return size


def bits_of(parity, rows, lanes):
    size = 8 * -(-rows * lanes // 64)
    return np.unpackbits(parity[:size], bitorder="little")[: rows * lanes].reshape(rows, lanes), size


def outer_words(decoded, lost, r, rows, lanes, check, decode, parity):
    """Section 8.2, for units of one group: make lost lanes good; bytes of outer words and their parity."""
    assert lanes <= 512
    count, symbols = min(r, 4 + lanes.bit_length() - 1), -(-rows // 10)
    words, size = bits_of(parity, 10 * symbols, count)
    their_parity, more = bits_of(parity[size:], check, count)
    field, good = Bch(10, 0), {}
    for p, word in enumerate(np.concatenate([words, their_parity]).T):
        fixed, flips = decode(word)
        if flips >= 0:
            good[p] = to_symbols(fixed[: 10 * symbols])
    inverse = lambda a: field.exp[-field.log[a] % field.n]  # noqa: E731
    chosen = list(good)[: len(lost)]
    if lost:
        system = [[inverse(c ^ (512 + p)) for c in lost] for p in chosen]
        sums = [good[p] for p in chosen]
        for lane in set(range(lanes)) - set(lost):
            values = to_symbols(np.concatenate([decoded[lane], np.zeros(10 * symbols - rows, np.uint8)]))
            for row, p in enumerate(chosen):
                factor = inverse(lane ^ (512 + p))
                sums[row] = [s ^ field.times(factor, v) for s, v in zip(sums[row], values, strict=True)]
        for c in range(len(lost)):  # Gauss and Jordan
            pivot = next(i for i in range(c, len(lost)) if system[i][c])
            system[c], system[pivot], sums[c], sums[pivot] = system[pivot], system[c], sums[pivot], sums[c]
            factor = inverse(system[c][c])
            system[c], sums[c] = [field.times(factor, v) for v in system[c]], [field.times(factor, v) for v in sums[c]]
            for i in range(len(lost)):
                if i != c and (factor := system[i][c]):
                    system[i] = [a ^ field.times(factor, b) for a, b in zip(system[i], system[c], strict=True)]
                    sums[i] = [a ^ field.times(factor, b) for a, b in zip(sums[i], sums[c], strict=True)]
        for lane, values in zip(lost, sums, strict=True):
            decoded[lane] = np.array([v >> j & 1 for v in values for j in range(10)], np.uint8)[:rows]
        lost.clear()
    return size + more


def to_symbols(bits):
    return [sum(int(b) << j for j, b in enumerate(bits[i : i + 10])) for i in range(0, len(bits), 10)]


FIELDS = {"F32": (8, 23), "BF16": (8, 7), "F16": (5, 10)}


def restorers(plan, data):
    """Section `POST`: {part: (pair of rates, sign, weights by field, (low, step) or None, entries of outliers)}."""
    (count,) = struct.unpack_from("<I", data)
    pairs = [struct.unpack_from("<2f", data, 4 + 8 * i) for i in range(count)]
    offset = 4 + 8 * count
    codes = struct.unpack_from(f"<{len(plan['parts'])}H", data, offset)
    offset += 2 * len(codes)
    found = {}
    for index, code in enumerate(codes):
        if code:
            first, listed, last = data[offset : offset + 3]
            nibbles = [b >> s & 15 for b in data[offset + 3 : offset + 3 + -(-listed // 2)] for s in (0, 4)][:listed]
            weights = np.zeros(1 << FIELDS[plan["parts"][index]["dtype"]][0])
            for field, level in [(0, last & 15), *enumerate(nibbles, first)]:
                weights[field] = 2.0**-level if level < 15 else 0
            found[index] = [pairs[code % 2**14 - 1], last >> 4, weights, None, 0]
            offset += 3 + -(-listed // 2)
    for index in found:
        if codes[index] >> 15:
            found[index][3] = struct.unpack_from("<2f", data, offset)
            offset += 8
    for index in found:
        if codes[index] >> 14 & 1:
            (found[index][4],) = struct.unpack_from("<I", data, offset)
            offset += 4
    assert offset == len(data)
    return found


def pieces_of(plan):
    """(part, first byte, end) of all pieces of a shard of native parts (section 6)."""
    for index, stream in enumerate(plan["streams"]):
        at, size = 0, 512 * stream["unit_tiles"]
        for number, part in enumerate(plan["parts"]):
            begin = 0
            while part["stream"] == index and begin < part["stored"]:
                end = min(part["stored"], begin + 8 * (size - at % size))
                yield number, begin, end
                at += -(-(end - begin) // 8)
                begin = end


def segments(part, begin, end):
    """(first, end) element of the row segments of a piece, counted from its first one."""
    size = (len(part["mask"])) // 8
    columns = part["bytes"] // size // part["shape"][0]
    first, last = begin // size, end // size
    cuts = [first, *range(-(-(first + 1) // columns) * columns, last, columns), last]
    return [(a - first, b - first) for a, b in zip(cuts, cuts[1:]) if b - a >= 16]  # noqa: B905, RUF007


def estimate_pieces(plan, payload, found):
    """Section 5.2, where no codeword is lost, in place."""
    known, pieces = restorers(plan, found["POST"]), list(pieces_of(plan))
    starts = np.cumsum([0] + [part["stored"] for part in plan["parts"]])
    sums, places = payload[starts[-2] :].copy(), {}
    outliers, end = {}, len(sums) - 6 * sum(one[4] for one in known.values())
    for number in sorted(known):
        outliers[number], element = [], 0
        for gap, upper in struct.iter_unpack("<IH", sums[end : end + 6 * known[number][4]].tobytes()):
            element += gap
            outliers[number] += [(element, upper)] if gap < 2**32 - 1 else []
        end += 6 * known[number][4]
    for piece in sorted(piece for piece in pieces if piece[0] in known and known[piece[0]][3]):
        taken = sum(len(segments(plan["parts"][other[0]], *other[1:])) for other in places)
        places[piece] = sums[taken:][: len(segments(plan["parts"][piece[0]], *piece[1:]))]
    for piece, digest in zip(pieces, np.frombuffer(found["DGST"], "<u8").tolist(), strict=False):
        number, begin, end = piece
        data = payload[starts[number] + begin : starts[number] + end]
        if number in known and xxhash.xxh3_64_intdigest(data.tobytes()) != digest:
            part = plan["parts"][number]
            values = estimated(part, data, *known[number][:3])
            size = len(part["mask"]) // 8
            for element, upper in outliers[number]:
                if begin <= element * size < end:
                    word = data[element * size - begin :][:size].copy()
                    word[size - 2 :] = [upper & 255, upper >> 8]
                    values[element - begin // size] = number_of(part["dtype"], word)
            if known[number][3]:
                low, step = known[number][3]
                for (a, b), level in zip(segments(part, begin, end), places[piece].tolist(), strict=True):
                    total = 0.0
                    for value in values[a:b].tolist():
                        total += value
                    values[a:b] += (low + step * level - total) / (b - a)
            data[:] = rounded(part["dtype"], values)


def estimated(part, data, pair, sign, w):
    """Steps 1 to 3 for the words of a piece; as float64."""
    e, f = FIELDS[part["dtype"]]
    x = np.arange(1 << e)
    T = np.ones((1 << e, 1 << e))
    for bit in range(e):
        wrong = np.array(pair) if part["mask"][e - bit] == "0" else np.zeros(2)
        was, read = x[:, None] >> bit & 1, x[None, :] >> bit & 1
        T *= np.where(was == read, 1 - wrong[was], wrong[was])
    M = 2.0 ** (x - (1 << (e - 1)) + 1.0)
    M[[0, -1]] = 0
    s = sum(pair) / 2 if part["mask"][0] == "0" and sign == 2 else 0
    total = w @ T
    E = (1 - 2 * s) * (w * M) @ T / np.where(total > 0, total, 1)
    back = (1 - 2 * s) * ((w * M) @ T @ E)
    E *= (w * M**2).sum() / back if back > 0 else 1
    words = data.view("<u4" if e + f == 31 else "<u2").astype(np.int64)
    values = (1 + (words & (1 << f) - 1) / 2**f) * E[words >> f & (1 << e) - 1]
    negative = words >> (e + f) == 1 if sign == 2 else np.full(words.size, sign == 1)
    numbers = rounded(part["dtype"], np.where(negative, -values, values))
    if part["dtype"] == "BF16":
        return (numbers.view("<u2").astype("<u4") << 16).view("<f4").astype(float)
    return numbers.view("<f4" if part["dtype"] == "F32" else "<f2").astype(float)


def number_of(dtype, word):
    if dtype == "BF16":
        word = np.concatenate([np.zeros(2, np.uint8), word])
    return float(word.view("<f2" if dtype == "F16" else "<f4")[0])


def rounded(dtype, values):
    """Bytes of numbers, rounded half to even; BF16 by way of float32."""
    if dtype != "BF16":
        return values.astype("<f4" if dtype == "F32" else "<f2").view(np.uint8)
    wide = values.astype("<f4").view("<u4").astype(np.int64)
    return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)


def assemble(plan, payload, found):
    """Sources from parts; safetensors headers come from HEAD, other representations are turned back (section 7)."""
    out = [bytearray(source["bytes"]) for source in plan["sources"]]
    begin = header = 0
    for index, source in enumerate(plan["sources"]):
        out[index][: source["header"]] = found["HEAD"][header : header + source["header"]]
        header += source["header"]
    scales = np.frombuffer(found["SCAL"], "<f8") if "SCAL" in found else []
    for index, part in enumerate(plan["parts"]):
        data = payload[begin : begin + part["stored"]]
        begin += part["stored"]
        if part["kind"] in ("header", "extra"):
            continue
        if part["representation"] != "native":
            data = from_fixed(part, data, float(scales[index]))
        out[part["source"]][part["offset"] : part["offset"] + part["bytes"]] = data.tobytes()
    return {source["name"]: bytes(content) for source, content in zip(plan["sources"], out, strict=True)}


def from_fixed(part, data, c):
    m, encoding = int(part["representation"].split(":")[1].split(",")[0]), part["representation"]
    planes = np.unpackbits(data, bitorder="little").reshape(-1, m, 64)
    q = sum(planes[:, j].astype(np.int64) << (m - 1 - j) for j in range(m)).reshape(-1)
    top = 1 << (m - 1)
    q = np.where(q & top, -(q & (top - 1)), q) if "sign-magnitude" in encoding else q - ((q & top) << 1)
    values = c / (top - 1) * q
    dtype = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[part["dtype"]]
    return values.astype(dtype)[: part["bytes"] // int(dtype[2])].view(np.uint8)
