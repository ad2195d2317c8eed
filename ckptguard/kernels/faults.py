"""Sparse flips that are nested across error rates, and where in codewords they fall.

Every bit has a virtual number u in [0, 1), and is flipped at rate p iff u < p. No number is drawn per bit: u is drawn
by shells, (0, 2^-20), [2^-20, 2^-19), ..., [1/2, 1), from the lowest up. Of the bits without a u below the shell's
lower end a, each has one in the shell [a, 2a) with probability a / (1 - a). As many candidates as that says are drawn
among *all* bits of a block, and those that have a u already are passed over, which is the same distribution. Of the
shell that contains p, the candidates with u < p are flipped; their numbers come from a stream of their own, so that the
same bit has the same u whatever p is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckptguard.kernels.jit import njit
from ckptguard.kernels.sampling import _count, _draw, _mix, _start

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

BLOCK = 1 << 16
SHELLS = 21
"""Shell 0 is (0, 2^-20), shell s is [2^(s - 21), 2^(s - 20)); the last one ends at 1."""

_SWEPT = 4096  # from so many changed elements on, a block is read through instead of sorting them
_LISTED = 512  # up to so many marks are taken back one by one
_THINNING = np.uint64(0x6A09E667F3BCC909)


@njit(cache=True, nogil=True)
def _candidates(stream: U64, wanted: int, places: int, marks: U8, drawn: I32) -> None:
    """List `wanted` different ones of `places` (a power of two up to 65536) in `drawn`; `marks` is all zero again."""
    within = np.uint64(places - 1)
    count = 0
    while count < wanted:
        r = _draw(stream)
        for _ in range(4):
            place = np.int64(r & within)
            r >>= np.uint64(16)
            mark = np.uint8(1 << (place & 7))
            if count < wanted and marks[place >> 3] & mark == np.uint8(0):
                marks[place >> 3] |= mark
                drawn[count] = place
                count += 1
    _clear(marks, drawn, count)


@njit(cache=True, nogil=True)
def _clear(marks: U8, listed: I32, count: int) -> None:
    """Take back the marks of the listed places; there are no others."""
    if count > _LISTED:
        marks[:] = np.uint8(0)
        return
    for i in range(count):
        marks[listed[i] >> 3] = np.uint8(0)


@njit(cache=True, nogil=True)
def _unmarked(places: int, marks: U8, drawn: I32) -> int:
    """List the places without a mark in `drawn`."""
    count = 0
    for place in range(places):
        if marks[place >> 3] & np.uint8(1 << (place & 7)) == np.uint8(0):
            drawn[count] = place
            count += 1
    return count


@njit(cache=True, nogil=True)
def _write_out(changes: U64, changed: I32, touched: int, base: int, elements: I64, flips: U64, total: int) -> int:
    """Append the changed elements of a block in ascending order and forget them; how many are written now."""
    if touched > _SWEPT:
        for place in range(changes.size):
            if changes[place] != np.uint64(0):
                elements[total] = base + place
                flips[total] = changes[place]
                changes[place] = np.uint64(0)
                total += 1
        return total
    for place in np.sort(changed[:touched]):
        elements[total] = base + place
        flips[total] = changes[place]
        changes[place] = np.uint64(0)
        total += 1
    return total


@njit(cache=True, nogil=True)
def draw_blocks(
    key: np.uint64,
    first_block: int,
    blocks: int,
    places: int,
    valid: int,
    planes: I64,
    shifts: I64,
    thresholds: U64,
    starts: I64,
    least: I64,
    shells: int,
    top_of_0: int,
    thin_of_0: np.uint64,
    top_of_1: int,
    thin_of_1: np.uint64,
    stored: U8,
    word_bytes: int,
    elements: I64,
    flips: U64,
    by_plane: I64,
) -> tuple[int, int]:
    """Draw the flips of blocks of elements, plane by plane; stop early where there is no room for another block.

    Args:
        key: of the tensor and the trial.
        first_block, blocks: which; block b has elements 65536 b and on.
        places: of a block, a power of two up to 65536, that counts are drawn for.
        valid: how many of them are elements.
        planes: of the words, named by their numbers in the stream of random numbers (0 = most significant).
        shifts: of their bits in a word, 0 = least significant.
        thresholds, starts, least: of shell s, thresholds[starts[s]:starts[s + 1]] and least[s] give the count.
        shells: to be drawn.
        top_of_0, thin_of_0: a bit that is stored as 0 is flipped if its u lies in a shell below the top one, or in the
            top one with a share of the shell below it that is less than thin / 2^64.
        top_of_1, thin_of_1: the same for one that is stored as 1.
        stored: words of the elements, `word_bytes` each, little endian; read where the two differ.
        elements, flips: receive the elements with flips, ascending, and the bits to flip.
        by_plane: (planes,) the flips of each plane are added.
    Returns:
        how many elements were written, and how many blocks were drawn.
    """
    stream, thinning = np.empty(2, np.uint64), np.empty(2, np.uint64)
    changes, changed = np.zeros(places, np.uint64), np.empty(places, np.int32)
    taken, marks = np.zeros((places + 7) >> 3, np.uint8), np.zeros((places + 7) >> 3, np.uint8)
    takers, drawn = np.empty(places, np.int32), np.empty(places, np.int32)
    by_value = top_of_0 != top_of_1 or thin_of_0 != thin_of_1
    total = 0
    for number in range(blocks):
        if elements.size - total < valid:
            return total, number
        base = (first_block + number) << 16
        touched = 0
        for k in range(planes.size):
            index = (planes[k] << 40) | (first_block + number)
            _start(stream, key, index)
            bit = np.uint64(1) << np.uint64(shifts[k])
            taken_count = 0
            for shell in range(shells):
                if shell == SHELLS - 1:
                    count = _unmarked(places, taken, drawn)
                else:
                    count = _count(stream, thresholds[starts[shell] : starts[shell + 1]], least[shell])
                    if count == 0:  # as in almost every block at low rates
                        continue
                    _candidates(stream, count, places, marks, drawn)
                thins = shell in (top_of_0, top_of_1)
                if thins:
                    _start(thinning, _mix(key ^ _THINNING), index * 32 + shell)
                share = np.uint64(0)
                for i in range(count):
                    if thins:
                        share = _draw(thinning)
                    place = np.int64(drawn[i])
                    mark = np.uint8(1 << (place & 7))
                    if place >= valid or taken[place >> 3] & mark:
                        continue
                    taken[place >> 3] |= mark
                    takers[taken_count] = place
                    taken_count += 1
                    top, thin = top_of_0, thin_of_0
                    if by_value:
                        at = (base + place) * word_bytes + (shifts[k] >> 3)
                        if (stored[at] >> np.uint8(shifts[k] & 7)) & np.uint8(1):
                            top, thin = top_of_1, thin_of_1
                    if shell > top or (shell == top and share >= thin):
                        continue
                    if changes[place] == np.uint64(0):
                        changed[touched] = place
                        touched += 1
                    changes[place] |= bit
                    by_plane[k] += 1
            if taken_count:
                _clear(taken, takers, taken_count)
        if touched:
            total = _write_out(changes, changed, touched, base, elements, flips, total)
    return total, blocks


@njit(cache=True, nogil=True)
def count_planes(stored: U8, word_bytes: int, elements: int, shifts: I64, ones: I64) -> None:
    """Add to ones[k] in how many elements the bit shifts[k] (0 = least significant) is 1."""
    for element in range(elements):
        for k in range(shifts.size):
            at = element * word_bytes + (shifts[k] >> 3)
            ones[k] += np.int64((stored[at] >> np.uint8(shifts[k] & 7)) & np.uint8(1))


@njit(cache=True, nogil=True)
def count_bits(words: U64, ones: I64) -> None:
    """Add to ones[i] how many words have a 1 in bit i, 0 = least significant."""
    for word in words:
        left = word
        while left:
            lowest = left & (~left + np.uint64(1))
            left ^= lowest
            place = 0
            for width in (32, 16, 8, 4, 2, 1):
                if lowest >> np.uint64(width):
                    lowest >>= np.uint64(width)
                    place += width
            ones[place] += 1


@njit(cache=True, nogil=True)
def normal_numbers(key: np.uint64, first: int, out: npt.NDArray[np.float64]) -> None:
    """Independent standard normal numbers; out[i] depends on key and first + i only.

    Source: G. E. P. Box, M. E. Muller, A Note on the Generation of Random Normal Deviates, Ann. Math. Stat. 29, 1958.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    for i in range(out.size):
        state = _mix(key ^ _mix(np.uint64(first + i + 1) * golden))
        radius = (np.float64(state >> np.uint64(11)) + 1.0) * 2.0**-53
        angle = np.float64(_mix(state + golden) >> np.uint64(11)) * 2.0**-53
        out[i] = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)


@njit(cache=True, nogil=True)
def random_words(key: np.uint64, first: int, out: U64) -> None:
    """Uniform 64-bit numbers; out[i] depends on key and first + i only."""
    for i in range(out.size):
        out[i] = _mix(key ^ _mix(np.uint64(first + i + 1) * np.uint64(0x9E3779B97F4A7C15)))
