"""Bit planes: the masked bits of words as rows of lanes, and rows cut to another width.

A tile is 512 words. Its plane j is 512 bits, bit j of every word, held as 8 words: word w of the tile in bit w % 64 of
column w // 64. That is eight 64x64 bit transposes.
Source: Hacker's Delight, 2nd ed., section 7-3 (transposing a bit matrix by swapping ever smaller blocks).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

U64 = npt.NDArray[np.uint64]
Eight = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]

_TILE = 512


@njit(cache=True, nogil=True, inline="always")
def _swap(high: np.uint64, low: np.uint64, shift: np.uint64, mask: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the high halves of `high` (fields of `shift` bits) with the low halves of `low`."""
    moved = ((high >> shift) ^ low) & mask
    return high ^ (moved << shift), low ^ moved


@njit(cache=True, nogil=True, inline="always")
def _swap_three(
    a: np.uint64,
    b: np.uint64,
    c: np.uint64,
    d: np.uint64,
    e: np.uint64,
    f: np.uint64,
    g: np.uint64,
    h: np.uint64,
    far: np.uint64,
    mid: np.uint64,
    near: np.uint64,
    far_mask: np.uint64,
    mid_mask: np.uint64,
    near_mask: np.uint64,
) -> Eight:
    """Three rounds of swaps on eight words, at distances 4, 2 and 1 among them."""
    a, e = _swap(a, e, far, far_mask)
    b, f = _swap(b, f, far, far_mask)
    c, g = _swap(c, g, far, far_mask)
    d, h = _swap(d, h, far, far_mask)
    a, c = _swap(a, c, mid, mid_mask)
    b, d = _swap(b, d, mid, mid_mask)
    e, g = _swap(e, g, mid, mid_mask)
    f, h = _swap(f, h, mid, mid_mask)
    a, b = _swap(a, b, near, near_mask)
    c, d = _swap(c, d, near, near_mask)
    e, f = _swap(e, f, near, near_mask)
    g, h = _swap(g, h, near, near_mask)
    return a, b, c, d, e, f, g, h


@njit(cache=True, nogil=True)
def _bytes_apart(words: U64, start: int, out: U64) -> None:
    """Swaps at distances 32, 16 and 8 in each of the eight blocks of 64 words from `start`; `out` is (512,) uint64."""
    for block in range(8):
        source = start + 64 * block
        target = 64 * block
        for r in range(8):
            a, b, c, d, e, f, g, h = _swap_three(
                words[source + r],
                words[source + 8 + r],
                words[source + 16 + r],
                words[source + 24 + r],
                words[source + 32 + r],
                words[source + 40 + r],
                words[source + 48 + r],
                words[source + 56 + r],
                np.uint64(32),
                np.uint64(16),
                np.uint64(8),
                np.uint64(0x00000000FFFFFFFF),
                np.uint64(0x0000FFFF0000FFFF),
                np.uint64(0x00FF00FF00FF00FF),
            )
            out[target + r] = a
            out[target + 8 + r] = b
            out[target + 16 + r] = c
            out[target + 24 + r] = d
            out[target + 32 + r] = e
            out[target + 40 + r] = f
            out[target + 48 + r] = g
            out[target + 56 + r] = h


@njit(cache=True, nogil=True)
def _bits_apart(rows: U64) -> None:
    """Swaps at distances 4, 2 and 1 among eight rows of eight columns, `rows` (64,) uint64, in place."""
    for column in range(8):
        a, b, c, d, e, f, g, h = _swap_three(
            rows[column],
            rows[8 + column],
            rows[16 + column],
            rows[24 + column],
            rows[32 + column],
            rows[40 + column],
            rows[48 + column],
            rows[56 + column],
            np.uint64(4),
            np.uint64(2),
            np.uint64(1),
            np.uint64(0x0F0F0F0F0F0F0F0F),
            np.uint64(0x3333333333333333),
            np.uint64(0x5555555555555555),
        )
        rows[column] = a
        rows[8 + column] = b
        rows[16 + column] = c
        rows[24 + column] = d
        rows[32 + column] = e
        rows[40 + column] = f
        rows[48 + column] = g
        rows[56 + column] = h


@njit(cache=True, nogil=True)
def gather_tiles(words: U64, mask: np.uint64, rows: U64) -> None:
    """Write the masked planes of whole tiles, tile by tile, least significant bit position first.

    Args:
        words: (512 * tiles,) uint64.
        mask: uint64, bit 0 = least significant bit of a word.
        rows: (tiles * popcount(mask) * 8,) uint64, overwritten; eight words per plane.
    """
    swapped = np.empty(_TILE, np.uint64)
    eight = np.empty(64, np.uint64)
    at = 0
    for start in range(0, words.size, _TILE):
        _bytes_apart(words, start, swapped)
        for group in range(8):
            wanted = (mask >> np.uint64(8 * group)) & np.uint64(255)
            if wanted == np.uint64(0):
                continue
            for i in range(8):
                for column in range(8):
                    eight[8 * i + column] = swapped[64 * column + 8 * group + i]
            _bits_apart(eight)
            for i in range(8):
                if (wanted >> np.uint64(i)) & np.uint64(1):
                    for column in range(8):
                        rows[at + column] = eight[8 * i + column]
                    at += 8


@njit(cache=True, nogil=True)
def scatter_tiles(rows: U64, mask: np.uint64, words: U64) -> None:
    """XOR planes (laid out as by `gather_tiles`) into the masked bits of whole tiles of words.

    Args:
        rows: (tiles * popcount(mask) * 8,) uint64; a tile whose rows are all zero is not touched.
        mask: uint64.
        words: (512 * tiles,) uint64, changed in place.
    """
    planes = 0
    for j in range(64):
        if (mask >> np.uint64(j)) & np.uint64(1):
            planes += 1
    swapped = np.empty(_TILE, np.uint64)
    eight = np.empty(64, np.uint64)
    last = np.empty(_TILE, np.uint64)
    tile_rows = 8 * planes
    for tile in range(words.size // _TILE):
        at = tile * tile_rows
        seen = np.uint64(0)
        for i in range(tile_rows):
            seen |= rows[at + i]
        if seen == np.uint64(0):
            continue
        for group in range(8):
            wanted = (mask >> np.uint64(8 * group)) & np.uint64(255)
            for i in range(8):
                if (wanted >> np.uint64(i)) & np.uint64(1):
                    for column in range(8):
                        eight[8 * i + column] = rows[at + column]
                    at += 8
                else:
                    for column in range(8):
                        eight[8 * i + column] = np.uint64(0)
            if wanted != np.uint64(0):
                _bits_apart(eight)
            for i in range(8):
                for column in range(8):
                    swapped[64 * column + 8 * group + i] = eight[8 * i + column]
        _bytes_apart(swapped, 0, last)
        start = tile * _TILE
        for i in range(_TILE):
            words[start + i] ^= last[i]


@njit(cache=True, nogil=True)
def slice_rows(flat: U64, bits: int, lanes: int, rows: U64) -> None:
    """Cut a string of bits to rows: bit c of row i is bit c + lanes * i of the string, zero from `bits` on.

    Args:
        flat: (at least ceil(bits / 64),) uint64; bit b in bit b % 64 of word b // 64.
        bits: length of the string.
        lanes: bits of a row.
        rows: (ceil(bits / lanes), at least ceil(lanes / 64)) uint64, overwritten; columns beyond the lanes are zero.
    """
    used = (lanes + 63) // 64
    for i in range(rows.shape[0]):
        begin = lanes * i
        count = min(lanes, bits - begin)
        for column in range(rows.shape[1]):
            left = count - 64 * column
            if column >= used or left <= 0:
                rows[i, column] = np.uint64(0)
                continue
            bit = begin + 64 * column
            word = bit >> 6
            shift = np.uint64(bit & 63)
            value = flat[word] >> shift
            if shift != np.uint64(0) and np.int64(shift) + min(left, 64) > 64:
                value |= flat[word + 1] << (np.uint64(64) - shift)
            if left < 64:
                value &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
            rows[i, column] = value


@njit(cache=True, nogil=True)
def join_rows(rows: U64, bits: int, lanes: int, flat: U64) -> None:
    """Undo `slice_rows`: string the first `lanes` bits of every row together, `bits` in all.

    Args:
        rows: (ceil(bits / lanes), at least ceil(lanes / 64)) uint64.
        flat: (at least ceil(bits / 64),) uint64, overwritten as far as the string reaches; bits behind it are zero.
    """
    for word in range((bits + 63) // 64):
        flat[word] = np.uint64(0)
    for i in range(rows.shape[0]):
        begin = lanes * i
        count = min(lanes, bits - begin)
        for column in range((count + 63) // 64):
            left = count - 64 * column
            value = rows[i, column]
            if left < 64:
                value &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
            bit = begin + 64 * column
            word = bit >> 6
            shift = np.uint64(bit & 63)
            flat[word] |= value << shift
            if shift != np.uint64(0) and np.int64(shift) + min(left, 64) > 64:
                flat[word + 1] |= value >> (np.uint64(64) - shift)
