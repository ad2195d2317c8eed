"""Where flipped bits of tensors fall in the codewords of a stream.

A tensor's place is an int64 array: first word in the stream, bits of an element's word, log2 of the elements of a
64-bit word, and, for tensors stored plane by plane, how many planes of a group are in the stream (0 for all others).
A stream's geometry is an int64 array: words of a full unit, words in all, protected bits of a word, lanes of a full
unit and of the last one, codewords of a full unit, and 1 where every tile is a codeword, 0 where every lane is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckptguard.kernels.jit import njit

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


@njit(cache=True, nogil=True, inline="always")
def _word(element: int, shift: int, place: I64, kept: I64) -> tuple[int, int]:
    """The stream word of a bit, and its position there."""
    if place[3]:
        return place[0] + (element >> 6) * place[3] + kept[shift], element & 63
    below = element & ((1 << place[2]) - 1)
    return place[0] + (element >> place[2]), int(below * place[1] + shift)


@njit(cache=True, nogil=True, inline="always")
def _codeword(unit: int, word: int, bit: int, ranks: I64, geometry: I64) -> int:
    """The codeword, within its unit, of a bit of word `word` of a unit."""
    tile = word >> 9
    if geometry[6]:
        return tile
    left = geometry[1] - unit * geometry[0]
    words = min(geometry[0], left)
    lanes = geometry[4] if left <= geometry[0] else geometry[3]
    of_tile = min(512, words - (tile << 9))
    codeword: int = ((tile << 9) * geometry[2] + ranks[bit] * of_tile + (word & 511)) % lanes
    return codeword


@njit(cache=True, nogil=True, inline="always")
def _lowest(word: np.uint64) -> int:
    """Position of the lowest one of a word that is not zero."""
    place = 0
    for width in (32, 16, 8, 4, 2, 1):
        if word & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)) == np.uint64(0):
            word >>= np.uint64(width)
            place += width
    return place


@njit(cache=True, nogil=True)
def count_errors(
    elements: I64,
    flips: U64,
    protected: np.uint64,
    place: I64,
    kept: I64,
    ranks: I64,
    geometry: I64,
    counts: I32,
    by_unit: I64,
) -> None:
    """Add the flips of protected bits to the codewords and units they are in.

    Args:
        elements, flips: of a tensor; bits as in its words.
        protected: bits of its words.
        kept: (64,) for tensors stored plane by plane, which of the planes of a group the bit is in.
        ranks: (64,) how many protected bits of a stream word lie below each.
        counts: (codewords,) of the whole stream.
        by_unit: (units,).
    """
    for i in range(elements.size):
        left = flips[i] & protected
        while left:
            shift = _lowest(left)
            left &= left - np.uint64(1)
            word, bit = _word(elements[i], shift, place, kept)
            unit = word // geometry[0]
            counts[unit * geometry[5] + _codeword(unit, word - unit * geometry[0], bit, ranks, geometry)] += 1
            by_unit[unit] += 1


@njit(cache=True, nogil=True)
def collect_errors(
    elements: I64,
    flips: U64,
    protected: np.uint64,
    place: I64,
    kept: I64,
    ranks: I64,
    geometry: I64,
    unit: int,
    failing: npt.NDArray[np.bool_],
    read: U64,
    errors: U64,
) -> None:
    """XOR the flips of protected bits in one unit into its words: all of them, and those in failing codewords.

    Args:
        failing: (codewords of the unit,) bool.
        read, errors: (words of the unit,) uint64.
    """
    start = unit * geometry[0]
    for i in range(elements.size):
        left = flips[i] & protected
        while left:
            shift = _lowest(left)
            left &= left - np.uint64(1)
            word, bit = _word(elements[i], shift, place, kept)
            local = word - start
            if local < 0 or local >= read.size:
                continue
            mark = np.uint64(1) << np.uint64(bit)
            read[local] ^= mark
            if failing[_codeword(unit, local, bit, ranks, geometry)]:
                errors[local] ^= mark


@njit(cache=True, nogil=True)
def count_words(words: U64, unit: int, ranks: I64, geometry: I64, counts: I32) -> None:
    """Count the ones of a unit's words by codeword; all of them lie in protected positions."""
    for word in range(words.size):
        left = words[word]
        while left:
            bit = _lowest(left)
            left &= left - np.uint64(1)
            counts[_codeword(unit, word, bit, ranks, geometry)] += 1
