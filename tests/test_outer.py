"""The outer erasure code: against its definition in plain Python, and against loss."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ckptguard import codes
from ckptguard.codes.outer import Outer
from ckptguard.errors import SpecError, UsageError

FLOAT32 = 0xFF800000FF800000
SPECS = ["bch:8191,6722,outer=10", "bch:255,131,outer=6", "bch:1023,513,outer=4"]
CASES = [(spec, mask, words) for spec in SPECS for mask in (FLOAT32, (1 << 64) - 1) for words in (3, 700, 20_000)]

Words = npt.NDArray[np.uint64]


def unit(spec: str, mask: int, words: int) -> tuple[Outer, Words, npt.NDArray[np.uint8]]:
    code = codes.make(spec)
    assert isinstance(code, Outer)
    words = min(words, 512 * code.unit_tiles(mask.bit_count()))
    data = np.random.default_rng(words).integers(0, 1 << 64, words, np.uint64)
    return code, data, code.encode(data, mask)


def flat_bits(words: Words, mask: int) -> npt.NDArray[np.uint8]:
    """Protected bits in flat order, straight from the format document."""
    positions = [bit for bit in range(64) if mask >> bit & 1]
    tiles = [words[i : i + 512] for i in range(0, len(words), 512)]
    return np.concatenate(
        [(tile >> np.uint64(bit) & np.uint64(1)).astype(np.uint8) for tile in tiles for bit in positions]
    )


def multiply(a: int, b: int) -> int:
    """In GF(2^10) with alpha^10 = alpha^3 + 1, bit by bit."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x409 if a & 0x200 else 0)
        b >>= 1
    return product


def invert(a: int) -> int:
    power = 1
    for _ in range(1022):
        power = multiply(power, a)
    return power


def ruin(code: Outer, data: Words, mask: int, lanes: list[int]) -> None:
    """Flip more than t bits of every chosen lane."""
    layout = code.unit_layout(len(data), mask.bit_count())
    rng = np.random.default_rng(1)
    for lane in lanes:
        chosen = np.zeros(layout.codewords, np.bool_)
        chosen[lane] = True
        data ^= code.cover(chosen, len(data), mask) & rng.integers(0, 1 << 64, len(data), np.uint64)


@pytest.mark.parametrize(("spec", "mask", "words"), CASES)
def test_parity_is_what_the_format_document_says(spec: str, mask: int, words: int) -> None:
    code, data, parity = unit(spec, mask, words)
    used, check = code.k - code.k % 10, code.n - code.k
    bits = flat_bits(data, mask)
    full = len(data) == 512 * code.unit_tiles(mask.bit_count())
    lanes = 512 * -(-len(bits) // (512 * used)) if full else -(-len(bits) // used)
    message_bits = -(-len(bits) // lanes)
    message = np.zeros(message_bits * lanes, np.uint8)
    message[: len(bits)] = bits
    message = message.reshape(message_bits, lanes)
    counts = [min(code.words, 4 + int(np.log2(min(512, lanes - i)))) for i in range(0, lanes, 512)]
    extra, rows = sum(counts), -(-message_bits // 10) * 10
    sizes = [8 * -(-count // 64) for count in (lanes * check, extra * rows, extra * check)]
    assert len(parity) == sum(sizes) == code.unit_layout(len(data), mask.bit_count()).parity_bytes
    assert code.unit_layout(len(data), mask.bit_count()).codewords == lanes + extra
    stored = np.unpackbits(parity[sizes[0] : sizes[0] + sizes[1]], bitorder="little")[: extra * rows].reshape(
        rows, extra
    )
    padded = np.zeros((rows, lanes), np.int64)
    padded[:message_bits] = message
    for word in {0, counts[0] - 1}:
        for symbol in {0, rows // 10 - 1}:
            total = 0
            for lane in range(min(512, lanes)):
                value = sum(int(padded[10 * symbol + j, lane]) << j for j in range(10))
                total ^= multiply(value, invert(lane ^ (512 + word)))
            assert total == sum(int(stored[10 * symbol + j, word]) << j for j in range(10))


@pytest.mark.parametrize(("spec", "mask", "words"), CASES)
def test_as_many_lost_lanes_as_there_are_outer_words_are_made_good(spec: str, mask: int, words: int) -> None:
    code, data, parity = unit(spec, mask, words)
    first_group = code.outer_words(code.inner.unit_layout(len(data), mask.bit_count()).codewords)[0]
    lanes = min(512, code.inner.unit_layout(len(data), mask.bit_count()).codewords)
    worn, read = data.copy(), parity.copy()
    lost = list(range(0, lanes, max(1, lanes // first_group)))[:first_group]
    ruin(code, worn, mask, lost)
    unprotected = np.uint64(~mask & ((1 << 64) - 1))
    worn ^= unprotected
    decoded = code.decode(worn, mask, read)
    assert not decoded.uncorrectable.any()
    assert (decoded.flips[lost] > 0).all()
    assert np.array_equal(worn ^ unprotected, data)
    assert np.array_equal(read, parity)


def test_what_is_beyond_the_outer_words_stays_as_read_and_is_told() -> None:
    code, data, parity = unit(SPECS[0], FLOAT32, 20_000)
    worn = data.copy()
    lost = list(range(code.words + 1))
    ruin(code, worn, FLOAT32, lost)
    before = worn.copy()
    decoded = code.decode(worn, FLOAT32, parity.copy())
    assert np.flatnonzero(decoded.uncorrectable).tolist() == lost
    assert np.array_equal(worn, before)


def test_lost_outer_words_count_against_the_lanes_and_are_computed_anew() -> None:
    code, data, parity = unit(SPECS[0], FLOAT32, 20_000)
    layout = code.inner.unit_layout(len(data), 18)
    worn, read = data.copy(), parity.copy()
    ruin(code, worn, FLOAT32, [5])
    outer = read[layout.parity_bytes :]
    outer ^= np.random.default_rng(2).integers(0, 256, len(outer), np.uint8)  # all outer words are lost
    assert (
        code.decode(worn.copy(), FLOAT32, read.copy()).uncorrectable.sum() == 1 + code.outer_words(layout.codewords)[0]
    )
    decoded = code.decode(data.copy(), FLOAT32, read)
    assert (decoded.flips[layout.codewords :] > 0).all()
    assert np.array_equal(read, parity)


def test_a_lane_that_was_decoded_wrongly_does_not_spoil_others_in_silence() -> None:
    code, data, parity = unit("bch:255,239,outer=6", FLOAT32, 20_000)
    worn = data.copy()
    rng = np.random.default_rng(3)
    flips = rng.random((len(worn), 64)) < 0.006
    worn ^= np.packbits(flips, axis=1, bitorder="little").view(np.uint64)[:, 0] & np.uint64(FLOAT32)
    before = worn.copy()
    decoded = code.decode(worn, FLOAT32, parity.copy())
    assert decoded.uncorrectable.any()
    covered = code.cover(decoded.uncorrectable, len(worn), FLOAT32)
    assert not ((worn ^ before) & covered).any()


def test_check_finds_damaged_lanes_and_damaged_outer_words() -> None:
    code, data, parity = unit(SPECS[1], FLOAT32, 700)
    layout = code.inner.unit_layout(len(data), 18)
    assert not code.check(data, FLOAT32, parity).any()
    data[0] ^= np.uint64(1 << 63)
    parity[layout.parity_bytes] ^= 1
    dirty = np.flatnonzero(code.check(data, FLOAT32, parity))
    assert len(dirty) == 2
    assert dirty[1] == layout.codewords


def test_outer_words_make_1e_2_lossless_for_a_gigabyte() -> None:
    code = codes.make("bch:8191,6722,outer=12")
    per_codeword = code.failure_probability(1e-2, 6714 + 1469)
    codewords = 8e9 / 6714
    assert per_codeword * codewords < 1e-15
    assert codes.make("bch:8191,6722").failure_probability(1e-2, 8191) == pytest.approx(2.0759e-4, rel=1e-4)


@pytest.mark.parametrize(
    "spec",
    [
        "bch:8191,6722,outer=3",
        "bch:8191,6722,outer=65",
        "bch:8191,6722,outer=x",
        "bch:8191,6722,10",
        "bch:15,7,outer=4",
    ],
)
def test_impossible_outer_codes_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        codes.make(spec)


def test_parity_of_another_size_is_refused() -> None:
    code, data, parity = unit(SPECS[0], FLOAT32, 700)
    with pytest.raises(UsageError, match="bytes of parity"):
        code.decode(data, FLOAT32, parity[:-8])
