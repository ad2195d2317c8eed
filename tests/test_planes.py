"""The plane kernels against slow twins in numpy and plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from ckptguard.kernels import planes

MASKS = [1, 1 << 63, 0xFF80_0000_FF80_0000, 0x9F0A_1005_0000_0300, 2**64 - 1]


def bits_of(words: np.ndarray) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8), bitorder="little")


def slow_gather(words: np.ndarray, mask: int) -> np.ndarray:
    """(tiles * planes * 512,) bits, tile by tile, position by position, word by word."""
    positions = [j for j in range(64) if mask >> j & 1]
    tiles = bits_of(words).reshape(-1, 512, 64)
    return tiles[:, :, positions].transpose(0, 2, 1).reshape(-1)


def slow_rows(bits: np.ndarray, lanes: int, columns: int) -> np.ndarray:
    rows = np.zeros((-(-bits.size // lanes), 64 * columns), np.uint8)
    for b, bit in enumerate(bits):
        rows[b // lanes, b % lanes] = bit
    return rows


@pytest.mark.parametrize("mask", MASKS)
def test_gather_collects_the_masked_planes_of_every_tile(mask):
    words = np.random.default_rng(1).integers(0, 2**64, 3 * 512, dtype=np.uint64)
    rows = np.empty(3 * mask.bit_count() * 8, np.uint64)
    planes.gather_tiles(words, np.uint64(mask), rows)
    assert np.array_equal(bits_of(rows), slow_gather(words, mask))


@pytest.mark.parametrize("mask", MASKS)
def test_scatter_flips_the_masked_bits_that_gather_collects_and_no_others(mask):
    rng = np.random.default_rng(2)
    words = rng.integers(0, 2**64, 4 * 512, dtype=np.uint64)
    difference = rng.integers(0, 2**64, 4 * 512, dtype=np.uint64)
    difference[512:1024] = 0
    rows = np.empty(4 * mask.bit_count() * 8, np.uint64)
    planes.gather_tiles(difference, np.uint64(mask), rows)
    changed = words.copy()
    planes.scatter_tiles(rows, np.uint64(mask), changed)
    assert np.array_equal(changed, words ^ (difference & np.uint64(mask)))


@pytest.mark.parametrize(
    ("bits", "lanes"),
    [(1, 1), (63, 7), (64, 64), (1000, 1), (1000, 63), (1000, 65), (1024, 128), (3000, 700), (5, 600)],
)
def test_rows_are_consecutive_pieces_of_the_string(bits, lanes):
    rng = np.random.default_rng(bits)
    flat = rng.integers(0, 2**64, -(-bits // 64), dtype=np.uint64)
    columns = 8 * -(-lanes // 512)
    rows = rng.integers(0, 2**64, (-(-bits // lanes), columns), dtype=np.uint64)
    planes.slice_rows(flat, bits, lanes, rows)
    expected = slow_rows(bits_of(flat)[:bits], lanes, columns)
    assert np.array_equal(bits_of(rows).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("bits", "lanes"),
    [(1, 1), (63, 7), (64, 64), (1000, 1), (1000, 63), (1000, 65), (1024, 128), (3000, 700), (5, 600)],
)
def test_joining_rows_gives_the_string_back_with_zeros_behind_it(bits, lanes):
    rng = np.random.default_rng(bits)
    flat = rng.integers(0, 2**64, -(-bits // 64), dtype=np.uint64)
    rows = np.zeros((-(-bits // lanes), 8 * -(-lanes // 512)), np.uint64)
    planes.slice_rows(flat, bits, lanes, rows)
    rows |= rng.integers(0, 2**64, rows.shape, dtype=np.uint64) & ~lane_mask(lanes, rows.shape[1])
    joined = rng.integers(0, 2**64, flat.size, dtype=np.uint64)
    planes.join_rows(rows, bits, lanes, joined)
    expected = bits_of(flat)
    expected[bits:] = 0
    assert np.array_equal(bits_of(joined), expected)


def lane_mask(lanes: int, columns: int) -> np.ndarray:
    bits = np.zeros(64 * columns, np.uint8)
    bits[:lanes] = 1
    return np.packbits(bits, bitorder="little").view(np.uint64)
