"""Every stored byte has its one place: pieces tile the payload, units tile streams, words and bytes map both ways."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from containers import ELEMENT_BITS, safetensors_bytes, tensors

from ckptguard import codes, plan, representations
from ckptguard.codes.base import TILE_WORDS
from ckptguard.container import sections
from ckptguard.container.sections import Section
from ckptguard.dtypes import DTYPES
from ckptguard.errors import ContainerError, SpecError
from ckptguard.pipeline.units import gather_words, piece_slices, scatter_words
from ckptguard.plan import HEADER, TENSOR, Part, ShardPlan, Source, check_source_names, from_json, lay_out
from ckptguard.plan.columns import PartColumns, read_plan

CODES = ("secded:72,64", "secded:32,26", "crc", "none")
SPECS = ("native", "fixed:2", "fixed:5", "fixed:9,sign-magnitude", "fixed:16")
FLOATS = ("F64", "F32", "F16", "BF16")


def random_plan(seed: int) -> ShardPlan:
    """A shard with random parts: dtypes, odd sizes, empty ones, masks with and without bits, several codes."""
    generator = np.random.default_rng(seed)
    spec = SPECS[seed % len(SPECS)]
    sizes = [0, 1, 3, 63, 64, 65, 1000, TILE_WORDS, 16_383, 40_000, 70_001]
    layout = {}
    for index in range(generator.integers(1, 14)):
        dtype = str(generator.choice(list(ELEMENT_BITS)))
        size = int(generator.choice(sizes))
        layout[f"t{index}"] = (dtype, (size * (2 if dtype == "F4" else 1),))
    header = header_of(layout)
    parts, offset = [], len(header)
    masks: dict[tuple[str, str], list[str]] = {}
    for name, (dtype, shape) in layout.items():
        kind = DTYPES[dtype]
        chosen = spec if dtype in FLOATS else "native"
        representation = representations.make(chosen)
        size = shape[0] * ELEMENT_BITS[dtype] // 8
        bits = representation.word_bits(kind)
        options = masks.setdefault(
            (chosen, dtype), ["".join(map(str, generator.integers(0, 2, bits))) for _ in range(2)]
        )
        mask = str(generator.choice([*options, "0" * bits, "1" * bits]))
        code = str(generator.choice(CODES)) if "1" in mask else "none"
        stored = representation.stored_bytes(kind, size)
        parts.append(Part(0, TENSOR, name, kind, shape, offset, size, 0, stored, chosen, mask, code))
        offset += size
    if spec == "native":
        size = len(header)
        first = Part(0, HEADER, "m", DTYPES["U8"], (), 0, size, 0, size, "native", "0" * 8, "none")
        parts.insert(0, first)
    return lay_out("m.ckg", [Source("m", offset, header)], parts)


def header_of(layout: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    data = safetensors_bytes(tensors(0, **layout))
    return data[: 8 + int.from_bytes(data[:8], "little")]


def units(shard: ShardPlan) -> list[plan.Unit]:
    return [shard.unit(*place) for place in shard.all_units()]


@pytest.mark.parametrize("seed", range(40))
def test_pieces_tile_the_payload_exactly(seed: int) -> None:
    shard = random_plan(seed)
    covered = np.zeros(shard.payload_bytes, np.int64)
    indices = []
    for unit in units(shard):
        for piece in unit.pieces:
            part = shard.parts[piece.part]
            assert part.stored_offset <= piece.offset
            assert piece.offset + piece.bytes <= part.stored_offset + part.stored_bytes
            covered[piece.offset : piece.offset + piece.bytes] += 1
            indices.append(piece.index)
    assert (covered == 1).all()
    assert indices == list(range(shard.pieces))


@pytest.mark.parametrize("seed", range(40))
def test_units_tile_their_streams_and_parity_tiles_its_region(seed: int) -> None:
    shard = random_plan(seed)
    parity, digests = 0, 0
    for number, stream in enumerate(shard.streams):
        members = [unit for unit in units(shard) if unit.stream == number]
        assert sum(unit.words for unit in members) == stream.words == stream.word_starts[-1]
        assert all(unit.words == stream.unit_tiles * TILE_WORDS for unit in members[:-1])
        assert [unit.index for unit in members] == list(range(stream.units))
        for unit in members:
            assert [piece.first_word for piece in unit.pieces] == np.cumsum(
                [0, *(piece.words for piece in unit.pieces[:-1])]
            ).tolist()
            assert sum(piece.words for piece in unit.pieces) == unit.words
            assert unit.parity_offset == parity
            assert (unit.layout.parity_bytes > 0) == (unit.parity_digest >= 0)
            if unit.parity_digest >= 0:
                assert unit.parity_digest == digests
                digests += 1
            parity += unit.layout.parity_bytes
    assert (parity, digests) == (shard.parity_bytes, shard.parity_digests)


def expected_words(part: Part, stored: bytes) -> list[int]:
    """The words of a part that are in its stream, by the words of docs/format.md, one at a time."""
    padded = stored + bytes(-len(stored) % 8)
    words = [int.from_bytes(padded[start : start + 8], "little") for start in range(0, len(padded), 8)]
    if part.representation == "native" or "1" not in part.mask:
        return words
    bits = len(part.mask)
    return [word for place, word in enumerate(words) if part.mask[place % bits] == "1"]


def expected_mask(part: Part) -> int:
    if "1" not in part.mask:
        return 0
    if part.representation != "native":
        return 2**64 - 1
    width = part.dtype.word_bits
    return sum(
        1 << (width * element + width - 1 - j)
        for element in range(64 // width)
        for j, bit in enumerate(part.mask)
        if bit == "1"
    )


@pytest.mark.parametrize("seed", range(30))
def test_words_are_those_that_the_format_describes(seed: int) -> None:
    shard = random_plan(seed)
    payload = np.random.default_rng(seed).integers(0, 256, shard.payload_bytes, np.uint8)
    for number, stream in enumerate(shard.streams):
        expected: list[int] = []
        for index in stream.parts:
            part = shard.parts[index]
            assert expected_mask(part) == stream.mask
            expected += expected_words(part, payload[part.stored_offset :][: part.stored_bytes].tobytes())
        found = []
        for unit in units(shard):
            if unit.stream == number:
                data = np.concatenate([payload[piece.offset :][: piece.bytes] for piece in unit.pieces])
                found.append(gather_words(unit, data))
        assert np.concatenate(found).tolist() == expected


@pytest.mark.parametrize("seed", range(30))
def test_scatter_is_the_inverse_of_gather(seed: int) -> None:
    shard = random_plan(seed)
    generator = np.random.default_rng(seed)
    for unit in units(shard):
        size = sum(piece.bytes for piece in unit.pieces)
        data = generator.integers(0, 256, size, np.uint8)
        words = gather_words(unit, data)
        again = data.copy()
        scatter_words(unit, words, again)
        assert (again == data).all()
        other = generator.integers(0, 256, size, np.uint8)
        kept = other.copy()
        scatter_words(unit, words, other)
        assert (gather_words(unit, other) == words).all()
        for piece, where in zip(unit.pieces, piece_slices(unit), strict=True):
            if piece.positions is None:
                assert (other[where] == data[where]).all()
            else:
                untouched = np.ones(piece.bytes // 8, bool)
                untouched[piece.positions] = False
                assert (other[where].reshape(-1, 8)[untouched] == kept[where].reshape(-1, 8)[untouched]).all()


@pytest.mark.parametrize("seed", range(30))
def test_units_of_part_are_those_that_hold_the_bytes(seed: int) -> None:
    shard = random_plan(seed)
    generator = np.random.default_rng(seed)
    holders: dict[int, list[tuple[tuple[int, int], int, int]]] = {}
    for place in shard.all_units():
        for piece in shard.unit(*place).pieces:
            start = piece.offset - shard.parts[piece.part].stored_offset
            holders.setdefault(piece.part, []).append((place, start, start + piece.bytes))
    for index, part in enumerate(shard.parts):
        for _ in range(10 if part.stored_bytes else 1):
            begin, end = np.sort(generator.integers(0, part.stored_bytes + 1, 2)).tolist()
            expected = {place for place, low, high in holders.get(index, []) if low < end and begin < high}
            found = shard.units_of_part(index, begin, end)
            assert expected <= set(found)
            assert len(found) == len(set(found)) <= len(expected) + 1
        whole = shard.units_of_part(index, 0, part.stored_bytes)
        assert whole == [place for place, _, _ in holders.get(index, [])]


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_the_same_after_json(seed: int) -> None:
    shard = random_plan(seed)
    record = json.loads(json.dumps(shard.to_json()))
    headers = [source.header for source in shard.sources]
    again = from_json(shard.name, record, headers, shard.payload_bytes, shard.beside)
    assert again == shard
    for one, other in zip(again.streams, shard.streams, strict=True):
        assert (one.cuts == other.cuts).all()
        assert (one.word_starts == other.word_starts).all()
    with pytest.raises(ContainerError, match=r"m\.ckg"):
        from_json(shard.name, record, headers, shard.payload_bytes + 1, shard.beside)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_read_the_same_by_columns_and_by_records(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = random_plan(seed)
    section = Section("PLAN", sections.to_json(shard.to_json()))
    record, headers = read_plan(section), [source.header for source in shard.sources]
    assert isinstance(record["parts"], PartColumns)
    assert from_json(shard.name, record, headers, shard.payload_bytes, shard.beside) == shard
    monkeypatch.setattr("ckptguard.plan.record.spells", lambda *columns: False)
    assert from_json(shard.name, record, headers, shard.payload_bytes, shard.beside) == shard


def judged(record: object, shard: ShardPlan) -> ShardPlan | None:
    try:
        return from_json(
            shard.name, record, [source.header for source in shard.sources], shard.payload_bytes, shard.beside
        )
    except ContainerError:
        return None


def test_columns_and_records_are_judged_alike_whatever_a_random_edit_does() -> None:
    choose = random.Random(22)
    pieces = [b"", b",", b'"', b"}", b"{", b"]", b"\\", b"0", b"1", b" ", b"-", b'"parts":[', b'],"sources":[', b"\xff"]
    quick = accepted = 0
    for round_ in range(3000):
        shard = random_plan(round_ % 40)
        text = bytearray(sections.to_json(shard.to_json() | {"device": {"name": "x", "channel": None}}))
        for _ in range(choose.randint(0, 2)):
            place = choose.randrange(len(text))
            if choose.random() < 0.6:
                text[place] ^= 1 << choose.randrange(7)
            else:
                text[place : place + choose.randrange(3)] = choose.choice(pieces)
        section = Section("PLAN", bytes(text))
        try:
            plain = sections.from_json(section)
        except ContainerError:
            with pytest.raises(ContainerError):
                read_plan(section)
            continue
        record = read_plan(section)
        quick += isinstance(record, dict) and isinstance(record.get("parts"), PartColumns)
        one = judged(plain, shard)
        accepted += one is not None
        assert judged(record, shard) == one, bytes(text)
    assert quick > 500
    assert accepted > 300


def test_a_header_that_says_something_else_than_the_parts_is_refused_by_columns_too() -> None:
    for edit in ({}, {"dtype": "I32"}, {"shape": [2, 3]}, {"data_offsets": [0, 23]}):
        told = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]} | edit
        text = json.dumps({"t": told}, separators=(",", ":")).encode().ljust(64)
        header = (64).to_bytes(8, "little") + text
        part = replace(tensor_part(6, "crc"), offset=72)
        shard = lay_out("m", [Source("m", 96, header)], [part])
        record = read_plan(Section("PLAN", sections.to_json(shard.to_json())))
        assert isinstance(record["parts"], PartColumns)
        assert (judged(record, shard) == shard) == (not edit)


@pytest.mark.parametrize("code", ["secded:72,64", "secded:39,32", "crc"])
@pytest.mark.parametrize("words", [1, 63, 512, 513, 64 * 512, 64 * 512 + 1, 200_000])
@pytest.mark.parametrize("planes", [1, 9, 64])
def test_parity_has_the_size_that_the_format_gives(code: str, words: int, planes: int) -> None:
    part = Part(0, TENSOR, "t", DTYPES["U64"], (words,), 0, 8 * words, 0, 8 * words, "native", "1" * planes + "0" * (64 - planes), code)  # fmt: skip  # noqa: E501
    shard = lay_out("m.ckg", [Source("m", 8 * words)], [part])
    kind = codes.make(code)
    unit_words = kind.unit_tiles(planes) * TILE_WORDS
    total = 0
    for start in range(0, words, unit_words):
        size = min(unit_words, words - start)
        if code == "crc":
            total += 8 * -(-4 * -(-size // TILE_WORDS) // 8)
            continue
        full = size == unit_words
        count = 512 * -(-(planes * kind.unit_tiles(planes)) // kind.k) if full else -(-size * planes // kind.k)
        total += 8 * -(-count * (kind.n - kind.k) // 64)
    assert shard.parity_bytes == total
    assert shard.protected_bits == words * planes
    assert shard.nominal_parity == pytest.approx(words * planes * (kind.n - kind.k) / kind.k)


def tensor_part(count: int, code: str) -> Part:
    return Part(0, TENSOR, "t", DTYPES["F32"], (count,), 0, 4 * count, 0, 4 * count, "native", "1" * 9 + "0" * 23, code)


@pytest.mark.parametrize("n", [127, 255, 511])
@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("count", [50, 1500, 90_000])
@pytest.mark.parametrize("target", [1e-3, 1e-9])
def test_auto_takes_the_code_of_smallest_t_that_reaches_the_target(
    n: int, rate: float, count: int, target: float
) -> None:
    from ckptguard.kernels import algebra

    expected = None
    for k, _ in sorted(algebra.codes(n.bit_length()).items(), reverse=True):
        shard = lay_out("m", [Source("m", 4 * count)], [tensor_part(count, f"bch:{n},{k}")])
        stream = shard.streams[0]
        failure = sum(
            layout.codewords * stream.code.failure_probability(rate, layout.message_bits + layout.parity_bits)
            for layout in map(stream.layout, range(stream.units))
        )
        if failure <= target:
            expected = f"bch:{n},{k}"
            break
    parts = [tensor_part(count, f"auto:{n}")]
    if expected is None:
        with pytest.raises(SpecError, match=f"no BCH code of length {n}"):
            lay_out("m", [Source("m", 4 * count)], parts, bit_error_rate=rate, target=target)
    else:
        shard = lay_out("m", [Source("m", 4 * count)], parts, bit_error_rate=rate, target=target)
        assert shard.parts[0].code == expected


def test_auto_needs_an_error_rate_and_one_length() -> None:
    with pytest.raises(SpecError, match="needs the device's error rate"):
        lay_out("m", [Source("m", 4000)], [tensor_part(1000, "auto")])
    for spec in ("auto:x", "auto:8190", "auto:255,131"):
        with pytest.raises(SpecError):
            lay_out("m", [Source("m", 4000)], [tensor_part(1000, spec)], bit_error_rate=1e-3, target=1e-9)


def test_auto_chooses_once_for_all_parts_and_leaves_others_alone() -> None:
    parts = [tensor_part(1000, "auto:255"), replace(tensor_part(1000, "crc"), name="u", offset=4000)]
    shard = lay_out("m", [Source("m", 8000)], parts, bit_error_rate=1e-3, target=1e-9)
    assert shard.parts[0].code.startswith("bch:255,")
    assert shard.parts[1].code == "crc"


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b/c", "a/b"], ["x", "x"], ["a/./b"], ["/a"], ["a\0"], [""]])
def test_names_that_cannot_stand_side_by_side_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"path|folder|same name"):
        check_source_names(names)


def test_names_in_any_script_and_folder_are_taken() -> None:
    check_source_names(["a", "b/a", "b/c/a", "名/é", "a.b", "...", "-", "x" * 255])
