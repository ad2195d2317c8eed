"""One contract over the table of representations, and fixed point against a slow twin and numbers done by hand."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from ckptguard.dtypes import DTYPES, DType
from ckptguard.errors import CheckpointError, MaskError, SpecError
from ckptguard.representations import KINDS, FixedPoint, Losses, Native, Representation, Selection, make, register

Bytes = npt.NDArray[np.uint8]

SPECS = [
    "native",
    "fixed:2",
    "fixed:4,c=0.75",
    "fixed:8",
    "fixed:8,sign-magnitude",
    "fixed:9,sign-magnitude,c=1.5",
    "fixed:13",
    "fixed:16",
    "fixed:16,sign-magnitude",
]
CASES = [
    pytest.param(make(spec), dtype, id=f"{spec}-{dtype.name}")
    for spec in SPECS
    for dtype in DTYPES.values()
    if make(spec).applies(dtype)
]
SHORT_CASES = [case for case in CASES if case.values[1].name in ("F32", "BF16", "I8", "F6_E3M2", "C64", "F64")]


def elements(dtype: DType, count: int, seed: int = 5) -> Bytes:
    """`count` random elements; finite ones, of magnitudes around 1, where they are floats that fixed point takes."""
    generator = np.random.Generator(np.random.Philox(seed))
    if not make("fixed:8").applies(dtype):
        return generator.integers(0, 256, size=count * dtype.bits // 8, dtype=np.uint8)
    values = generator.normal(size=count)
    if dtype.name == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    return values.astype(dtype.numpy).view(np.uint8)


def selected(selection: Selection, size: int) -> Bytes:
    """The stored bits that a selection protects, as a bitmap of `size` bytes; word by word, as its definition reads."""
    words = bytearray()
    for index in range(-(-size // 8)):
        kept = selection.keep >> index % selection.period & 1
        words += (selection.mask if kept else 0).to_bytes(8, "little")
    return np.frombuffer(bytes(words[:size]), dtype=np.uint8).copy()


def stored_with(representation: Representation, dtype: DType, data: Bytes) -> tuple[Bytes, float, Losses]:
    magnitude = representation.magnitude(dtype, data)
    stored, losses = representation.store(dtype, data, magnitude)
    return stored, magnitude, losses


@pytest.mark.parametrize("spec", [*SPECS, "fixed:8,twos-complement", "fixed: 8 , c=2 ,sign-magnitude"])
def test_a_canonical_spec_makes_an_equal_representation(spec: str) -> None:
    representation = make(spec)
    assert make(representation.spec) == representation
    assert make(representation.spec).spec == representation.spec
    assert hash(make(spec)) == hash(representation)
    assert representation.spec.startswith(representation.name)


@pytest.mark.parametrize(("representation", "dtype"), CASES)
@pytest.mark.parametrize("count", [0, 4, 64, 200])
def test_stored_bytes_are_as_many_as_told_and_restore_to_the_size(
    representation: Representation, dtype: DType, count: int
) -> None:
    data = elements(dtype, count)
    before = data.copy()
    stored, magnitude, _ = stored_with(representation, dtype, data)
    assert stored.dtype == np.uint8
    assert len(stored) == representation.stored_bytes(dtype, len(data))
    untouched = stored.copy()
    restored = representation.restore(dtype, stored, magnitude, len(data))
    assert (restored.dtype, len(restored)) == (np.uint8, len(data))
    assert np.array_equal(data, before)
    assert np.array_equal(stored, untouched)
    assert not np.shares_memory(stored, data) or not len(data)
    assert not np.shares_memory(restored, stored) or not len(data)


@pytest.mark.parametrize(("representation", "dtype"), SHORT_CASES)
def test_chunks_of_whole_groups_store_as_the_whole_does(representation: Representation, dtype: DType) -> None:
    data = elements(dtype, 40_000)
    stored, magnitude, losses = stored_with(representation, dtype, data)
    step = 64 * 130 * dtype.bits // 8
    chunks = [data[start : start + step] for start in range(0, len(data), step)]
    assert magnitude == max(representation.magnitude(dtype, chunk) for chunk in chunks)
    parts = [representation.store(dtype, chunk, magnitude) for chunk in chunks]
    assert np.array_equal(np.concatenate([part for part, _ in parts]), stored)
    assert losses.rounded == sum(part.rounded for _, part in parts)
    assert losses.clipped == sum(part.clipped for _, part in parts)
    assert losses.max_error == max(part.max_error for _, part in parts)


@pytest.mark.parametrize(("representation", "dtype"), CASES)
def test_the_masks_of_single_bits_share_no_stored_bit_and_cover_all(
    representation: Representation, dtype: DType
) -> None:
    width = representation.word_bits(dtype)
    size = representation.stored_bytes(dtype, 256 * dtype.bits // 8)
    union = np.zeros(size, dtype=np.uint8)
    for bit in range(width):
        bits = selected(representation.select(dtype, "0" * bit + "1" + "0" * (width - 1 - bit)), size)
        assert not (union & bits).any()
        union |= bits
        assert np.unpackbits(bits).sum() == size * 8 // width
    assert (union == 255).all()
    assert np.array_equal(selected(representation.select(dtype, "1" * width), size), union)
    assert not selected(representation.select(dtype, "0" * width), size).any()
    mixed = "10" * (width // 2) + "1" * (width % 2)
    parts = [selected(representation.select(dtype, "0" * j + "1" + "0" * (width - 1 - j)), size) for j in range(width)]
    expected = np.bitwise_or.reduce([part for part, kept in zip(parts, mixed, strict=True) if kept == "1"])
    assert np.array_equal(selected(representation.select(dtype, mixed), size), expected)


@pytest.mark.parametrize(("representation", "dtype"), CASES)
def test_a_flipped_bit_reaches_only_the_element_that_touched_names(
    representation: Representation, dtype: DType
) -> None:
    data = elements(dtype, 100)
    stored, magnitude, _ = stored_with(representation, dtype, data)
    word_bytes = dtype.word_bits // 8
    clean = representation.restore(dtype, stored, magnitude, len(data)).reshape(-1, word_bytes)
    generator = np.random.Generator(np.random.Philox(9))
    for place in generator.choice(len(stored) * 8, size=40, replace=False):
        bits = np.zeros(len(stored), dtype=np.uint8)
        bits[place // 8] = 1 << place % 8
        touched = representation.touched(dtype, bits, len(data))
        assert touched.dtype == np.bool_
        assert len(touched) == dtype.words(len(data))
        assert touched.sum() <= 1
        flipped = representation.restore(dtype, stored ^ bits, magnitude, len(data)).reshape(-1, word_bytes)
        changed = (flipped != clean).any(axis=1)
        assert not (changed & ~touched).any()
        if representation.name == "native":
            assert (changed == touched).all()


@pytest.mark.parametrize(("representation", "dtype"), CASES)
def test_touched_names_the_elements_of_a_whole_bitmap(representation: Representation, dtype: DType) -> None:
    data = elements(dtype, 200)
    size = representation.stored_bytes(dtype, len(data))
    assert not representation.touched(dtype, np.zeros(size, dtype=np.uint8), len(data)).any()
    assert representation.touched(dtype, np.full(size, 255, dtype=np.uint8), len(data)).all()
    first = representation.select(dtype, "1" + "0" * (representation.word_bits(dtype) - 1))
    assert representation.touched(dtype, selected(first, size), len(data)).all()


@pytest.mark.parametrize(("representation", "dtype"), CASES)
def test_nulled_elements_restore_to_zero_and_the_others_as_before(representation: Representation, dtype: DType) -> None:
    data = elements(dtype, 100)
    stored, magnitude, _ = stored_with(representation, dtype, data)
    words = dtype.words(len(data))
    clean = representation.restore(dtype, stored, magnitude, len(data)).reshape(words, -1)
    chosen = np.zeros(words, dtype=np.bool_)
    chosen[[0, 3, words - 1]] = True
    representation.null(dtype, stored, chosen)
    restored = representation.restore(dtype, stored, magnitude, len(data)).reshape(words, -1)
    assert not restored[chosen].any()
    assert np.array_equal(restored[~chosen], clean[~chosen])
    representation.null(dtype, stored, np.zeros(words, dtype=np.bool_))
    assert np.array_equal(representation.restore(dtype, stored, magnitude, len(data)).reshape(words, -1), restored)


@pytest.mark.parametrize(("representation", "dtype"), CASES)
@pytest.mark.parametrize("kind", ["short", "long", "other"])
def test_masks_that_do_not_fit_are_refused(representation: Representation, dtype: DType, kind: str) -> None:
    width = representation.word_bits(dtype)
    mask = {"short": "1" * (width - 1), "long": "1" * (width + 1), "other": "2" * width}[kind]
    with pytest.raises(MaskError, match=f"expected {width} characters"):
        representation.select(dtype, mask)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("nativ", "did you mean 'native'"),
        ("native:8", "takes no settings"),
        ("fixed", "number of bits first"),
        ("fixed:x", "number of bits first"),
        ("fixed:٨", "number of bits first"),
        ("fixed:-8", "number of bits first"),
        ("fixed:1", "2 to 16 bits"),
        ("fixed:17", "2 to 16 bits"),
        ("fixed:8,offset", "unknown encoding 'offset'"),
        ("fixed:8,c=0", "no largest magnitude"),
        ("fixed:8,c=-1", "no largest magnitude"),
        ("fixed:8,c=nan", "no largest magnitude"),
        ("fixed:8,c=inf", "no largest magnitude"),
        ("fixed:8,c=one", "is no number"),
        ("fixed:8,c=1,c=2", "sets again"),
        ("fixed:8,sign-magnitude,twos-complement", "sets again"),
    ],
)
def test_a_wrong_spec_is_refused(spec: str, word: str) -> None:
    with pytest.raises(SpecError) as caught:
        make(spec)
    assert word in str(caught.value)


def test_a_representation_can_be_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptguard.representations.KINDS", dict(KINDS))
    register("own", Native.from_settings)
    assert make("own") == Native()
    with pytest.raises(SpecError, match="exists already"):
        register("native", Native.from_settings)


# Native ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_native_keeps_every_dtype_bit_for_bit(dtype: DType) -> None:
    data = elements(dtype, 64)
    stored, magnitude, losses = stored_with(Native(), dtype, data)
    assert np.array_equal(stored, data)
    assert magnitude == 0.0
    assert losses == Losses()
    assert np.array_equal(Native().restore(dtype, stored, magnitude, len(data)), data)


def test_native_masks_repeat_over_the_elements_of_a_word() -> None:
    sign = "1" + "0" * 31
    assert Native().select(DTYPES["F32"], sign) == Selection(0x8000_0000_8000_0000)
    assert Native().select(DTYPES["F32"], "0" * 31 + "1") == Selection(0x0000_0001_0000_0001)
    assert Native().select(DTYPES["BF16"], "1" * 9 + "0" * 7) == Selection(0xFF80_FF80_FF80_FF80)
    assert Native().select(DTYPES["I8"], "11000000") == Selection(0xC0C0_C0C0_C0C0_C0C0)
    assert Native().select(DTYPES["F64"], "1" + "0" * 62 + "1") == Selection(0x8000_0000_0000_0001)


def test_a_native_sign_mask_flips_the_signs() -> None:
    values = np.array([1.5, -2.0, 0.25], dtype="<f4")
    bits = selected(Native().select(DTYPES["F32"], "1" + "0" * 31), 12)
    assert (values.view(np.uint8) ^ bits).view("<f4").tolist() == [-1.5, 2.0, -0.25]


# Fixed point -------------------------------------------------------------------------------------------------------


def nearest(dtype: str, value: float) -> float:
    """`value` rounded once to the dtype, half to even, held within its finite range; in plain Python."""
    if dtype == "F64":
        return value
    if dtype in ("F32", "F16"):
        largest = {"F32": (2 - 2**-23) * 2.0**127, "F16": 65504.0}[dtype]
        letter = {"F32": "<f", "F16": "<e"}[dtype]
        value = min(max(value, -largest), largest)
        return float(struct.unpack(letter, struct.pack(letter, value))[0])
    value = min(max(value, -3.3895313892515355e38), 3.3895313892515355e38)
    word = struct.unpack("<I", struct.pack("<f", abs(value)))[0] >> 16
    near = [
        (struct.unpack("<f", struct.pack("<I", w << 16))[0], w) for w in (word - 1, word, word + 1) if 0 <= w < 0x7F80
    ]
    best = min(near, key=lambda item: (abs(Fraction(item[0]) - Fraction(abs(value))), item[1] & 1))
    return math.copysign(best[0], value)


def twin(dtype: str, bits: int, encoding: str, limit: float, values: list[float]) -> tuple[bytes, list[float]]:
    """Stored bytes and restored values of fixed point, number by number in plain Python."""
    largest = 2 ** (bits - 1) - 1
    scale = limit / largest
    numbers = [max(-largest, min(largest, round(value / scale))) for value in values]
    if encoding == "sign-magnitude":
        codes = [abs(number) + (2 ** (bits - 1) if number < 0 else 0) for number in numbers]
    else:
        codes = [number % 2**bits for number in numbers]
    codes += [0] * (-len(codes) % 64)
    stored = b""
    for group in range(0, len(codes), 64):
        for bit in range(bits):
            word = sum((code >> (bits - 1 - bit) & 1) << place for place, code in enumerate(codes[group : group + 64]))
            stored += word.to_bytes(8, "little")
    return stored, [nearest(dtype, scale * number) for number in numbers]


def floats(dtype: str, data: Bytes) -> list[float]:
    if dtype == "BF16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4").astype(float).tolist()
    return data.view(DTYPES[dtype].numpy).astype(float).tolist()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "native"])
def test_fixed_point_does_what_its_slow_twin_does(spec: str, dtype: str) -> None:
    fixed = make(spec)
    assert isinstance(fixed, FixedPoint)
    data = elements(DTYPES[dtype], 150)
    values = floats(dtype, data)
    stored, magnitude, losses = stored_with(fixed, DTYPES[dtype], data)
    assert magnitude == (fixed.limit or max(abs(value) for value in values))
    expected, restored = twin(dtype, fixed.bits, fixed.encoding, magnitude, values)
    assert stored.tobytes() == expected
    assert floats(dtype, fixed.restore(DTYPES[dtype], stored, magnitude, len(data))) == restored
    errors = [abs(a - b) for a, b in zip(values, restored, strict=True)]
    assert losses.rounded == sum(error > 0 for error in errors)
    assert losses.clipped == sum(abs(value) > magnitude for value in values)
    assert losses.max_error == max(errors)


def test_half_is_rounded_to_even_and_extremes_are_kept() -> None:
    fixed = make("fixed:8")
    data = np.array([127, -127, 0.5, 1.5, 2.5, -0.5, -1.5, 100.6], dtype="<f4").view(np.uint8)
    stored, magnitude, losses = stored_with(fixed, DTYPES["F32"], data)
    assert magnitude == 127.0
    restored = fixed.restore(DTYPES["F32"], stored, magnitude, len(data)).view("<f4")
    assert restored.tolist() == [127, -127, 0, 2, 2, 0, -2, 101]
    assert (losses.rounded, losses.clipped, losses.max_error) == (6, 0, 0.5)


def test_the_planes_of_one_number_lie_as_described() -> None:
    # -3 of 4 bits is 1101 in two's complement and 1011 as sign and magnitude; it is element 2, so bit 2 of each word.
    data = np.array([0, 0, -3, 0], dtype="<f8").view(np.uint8)
    for spec, bits in {"fixed:4,c=7": [1, 1, 0, 1], "fixed:4,sign-magnitude,c=7": [1, 0, 1, 1]}.items():
        stored = make(spec).store(DTYPES["F64"], data, 7.0)[0]
        assert stored.view("<u8").tolist() == [4 * bit for bit in bits]


def test_planes_are_selected_from_the_sign_on() -> None:
    assert make("fixed:8").select(DTYPES["F32"], "11010000") == Selection(2**64 - 1, 8, 0b00001011)
    assert make("fixed:3").select(DTYPES["F32"], "001") == Selection(2**64 - 1, 3, 0b100)
    assert make("fixed:3").select(DTYPES["F32"], "000").mask == 0


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("spec", ["fixed:2", "fixed:8", "fixed:8,sign-magnitude", "fixed:16", "fixed:8,c=1e308"])
@pytest.mark.parametrize("magnitude", [0.0, 5e-324, 1.0, 65504.0, 3e38, 1.7976931348623157e308])
def test_whatever_is_stored_restores_to_finite_values(dtype: str, spec: str, magnitude: float) -> None:
    fixed = make(spec)
    size = 256 * DTYPES[dtype].bits // 8
    generator = np.random.Generator(np.random.Philox(3))
    worn = generator.integers(0, 256, size=fixed.stored_bytes(DTYPES[dtype], size), dtype=np.uint8)
    restored = floats(dtype, fixed.restore(DTYPES[dtype], worn, magnitude, size))
    assert all(math.isfinite(value) for value in restored)


def test_codes_that_only_corruption_makes_restore_next_to_the_others() -> None:
    sign_plane = np.array([1, 0, 0, 0, 0, 0, 0, 0], dtype="<u8").view(np.uint8)
    size = 4 * 4
    lowest = make("fixed:8").restore(DTYPES["F32"], sign_plane, 127.0, size).view("<f4")
    assert lowest.tolist() == [-128, 0, 0, 0]
    negative_zero = make("fixed:8,sign-magnitude").restore(DTYPES["F32"], sign_plane, 127.0, size).view("<f4")
    assert negative_zero.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("spec", ["fixed:8", "fixed:16,sign-magnitude"])
def test_zeros_and_the_smallest_and_largest_numbers_are_stored(dtype: str, spec: str) -> None:
    fixed = make(spec)
    width = DTYPES[dtype].bits // 8
    largest = {"F64": 0x7FEF << 48 | 2**48 - 1, "F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}[dtype]
    for word in (0, 1, largest):
        words = np.array([word, 0, word | 1 << (8 * width - 1)], dtype=f"<u{width}")
        stored, magnitude, losses = stored_with(fixed, DTYPES[dtype], words.view(np.uint8))
        restored = fixed.restore(DTYPES[dtype], stored, magnitude, 3 * width)
        values = floats(dtype, words.view(np.uint8))
        found = floats(dtype, restored)
        assert all(math.isfinite(value) for value in found)
        assert losses.max_error == max(abs(a - b) for a, b in zip(found, values, strict=True))
        assert losses.max_error <= 1e-15 * magnitude or magnitude < 1e-300


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("spec", ["fixed:8", "fixed:8,c=2"])
def test_elements_that_are_no_finite_numbers_are_refused_with_their_count(dtype: str, spec: str) -> None:
    width = DTYPES[dtype].bits // 8
    infinity = {"F64": 0x7FF0 << 48, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype]
    words = np.zeros(100_000, dtype=f"<u{width}")
    words[[5, 70_000, 99_999]] = infinity, infinity | 1, infinity | 1 << (8 * width - 1)
    for attempt in (
        lambda: make(spec).magnitude(DTYPES[dtype], words.view(np.uint8)),
        lambda: make(spec).store(DTYPES[dtype], words.view(np.uint8), 1.0),
    ):
        with pytest.raises(CheckpointError, match="3 of 100000 elements are NaN or infinite"):
            attempt()


@pytest.mark.parametrize("magnitude", [math.nan, math.inf, -1.0])
def test_a_magnitude_that_cannot_be_is_refused(magnitude: float) -> None:
    with pytest.raises(CheckpointError, match="no largest magnitude"):
        make("fixed:8").restore(DTYPES["F32"], np.zeros(64, dtype=np.uint8), magnitude, 4)


def test_fixed_point_leaves_other_dtypes_native() -> None:
    assert {name for name, dtype in DTYPES.items() if make("fixed:8").applies(dtype)} == {"F64", "F32", "F16", "BF16"}


def test_every_tie_between_neighbouring_bfloat16_is_rounded_to_even() -> None:
    # q / 256 has 15 significant bits, bfloat16 8: the numbers include many exact ties and near ones.
    fixed = FixedPoint(16, limit=32767 / 256)
    numbers = np.arange(-32767, 32768, dtype=np.float64) / 256
    stored = fixed.store(DTYPES["F64"], numbers.view(np.uint8), 0.0)[0]
    restored = floats("BF16", fixed.restore(DTYPES["BF16"], stored, 0.0, 2 * len(numbers)))
    assert restored == [nearest("BF16", value) for value in numbers.tolist()]


@pytest.mark.parametrize("offset", [2.0**-60, -(2.0**-60), 0.0])
def test_bfloat16_is_rounded_once_not_twice(offset: float) -> None:
    # 1 + 2^-8 lies midway between two bfloat16; what decides is far below the precision of float32.
    limit = (1 + 2.0**-8) * (1 + offset * 2**8)
    restored = make("fixed:2").restore(DTYPES["BF16"], np.array([0, 1], "<u8").view(np.uint8), limit, 2)
    assert floats("BF16", restored) == [nearest("BF16", limit)]


def test_a_q_format_is_the_fixed_point_format_with_its_step() -> None:
    assert make("q:2.6") == make("fixed:8,c=1.984375")
    assert make("q:1.15,sign-magnitude").spec == "fixed:16,sign-magnitude,c=0.999969482421875"
    assert make(make("q:3.4").spec) == make("q:3.4")


@pytest.mark.parametrize(
    "spec", ["q", "q:8", "q:0.8", "q:1.0", "q:9.8", "q:2.6,odd", "q:2.6,sign-magnitude,c=1", "q:²._"]
)
def test_q_formats_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        make(spec)
