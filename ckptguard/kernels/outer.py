"""The outer erasure code over the codewords of a unit: sums of lanes over GF(2^10), on bit-sliced rows.

Ten successive rows of a lane are a symbol, row j of them the coefficient of alpha^j. An outer word is a sum of the
symbols of all lanes with the factors of a Cauchy matrix, any square part of which is invertible; so r outer words make
good any r lanes that are known to be lost.

The sums are a binary matrix times the symbols, 512 of them side by side, by the method of four Russians.

Source: J. Bloemer et al., An XOR-Based Erasure-Resilient Coding Scheme, ICSI TR-95-048, 1995 (Cauchy matrices as bits).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckptguard.kernels import algebra
from ckptguard.kernels.bch import picks_of
from ckptguard.kernels.bitsliced import BITS, TABLES, WINDOW, combine
from ckptguard.kernels.jit import njit
from ckptguard.kernels.vectors import _fill, _get, _put, _transpose

Rows = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.uint8]
Elements = npt.NDArray[np.int64]

M = 10
GROUP_LANES = 512


@lru_cache(maxsize=8)
def factors(words: int) -> Elements:
    """(words, 512) elements: 1 / (c + (512 + p)) for lane c in outer word p, the sum being that of the field."""
    field = algebra.field(M)
    sums = np.arange(GROUP_LANES)[None, :] ^ (GROUP_LANES + np.arange(words))[:, None]
    result: Elements = field.exp[field.order - field.log[sums]]
    return result


@lru_cache(maxsize=8)
def _picks(words: int) -> Rows:
    """For `bitsliced.combine`: bit j of lane c, row 512 * j + c, adds to bit i of outer word p, row words * i + p."""
    field = algebra.field(M)
    products = field.multiply(factors(words)[:, :, None], field.exp[:M])  # (words, lanes, j)
    bits = (products[..., None] >> np.arange(M)) & 1  # (words, lanes, j, i)
    return picks_of(bits.transpose(3, 0, 2, 1).reshape(M * words, M * GROUP_LANES).astype(np.uint8))


@njit(cache=True, nogil=True)
def _take_symbols(message, first, square, rows):
    """Bit j of symbol first + 64 * w + s of lane c becomes bit s of rows[512 * j + c, w]; the symbols of all groups are
    counted through, those beyond the last are zero.

    Args:
        message: (rows, 8 * groups) uint64, rows a multiple of 10.
        square: (64, 8) uint64 scratch.
    """
    stride, source = 8 * message.shape[1], np.intp(message.ctypes.data)
    length, buffer, zero = message.shape[0] // 10, np.intp(square.ctypes.data), _fill(0)
    count = length * (message.shape[1] >> 3)
    places = np.empty(64, np.intp)
    for place in range(min(8, -(-(count - first) // 64))):
        for i in range(64):
            symbol = first + 64 * place + i
            places[i] = source + 64 * (symbol // length) + 10 * stride * (symbol % length) if symbol < count else 0
        for j in range(10):
            for i in range(64):
                _put(buffer + 64 * i, _get(places[i] + stride * j) if places[i] else zero)
            _transpose(buffer)
            for word in range(8):
                for i in range(64):
                    rows[512 * j + 64 * word + i, place] = square[i, word]


@njit(cache=True, nogil=True)
def _give_symbols(sums, words, first, square, out):
    """Bit p of out[10 * (first + 64 * w + s) + j] becomes bit s of sums[words * j + p, w]; `out` is flat."""
    source, buffer = np.intp(sums.ctypes.data), np.intp(square.ctypes.data)
    for j in range(10):
        for i in range(64):
            _put(buffer + 64 * i, _get(source + 64 * (words * j + i)) if i < words else _fill(0))
        _transpose(buffer)
        for place in range(8):
            for i in range(64):
                row = 10 * (first + 64 * place + i) + j
                if row < out.shape[0]:
                    out[row] = square[i, place]


def sum_lanes(message: Rows, words: int) -> Rows:
    """(rows, groups) uint64 outer words of (rows, 8 * groups) message rows, rows a multiple of 10.

    Bit p of [row, group] is that row of outer word p of the group; words <= 64.
    """
    message, picks = np.ascontiguousarray(message), _picks(words)
    groups, size = message.shape[1] // 8, message.shape[0]
    out = np.zeros(groups * size, np.uint64)
    rows, sums = np.zeros((len(picks) * WINDOW, 8), np.uint64), np.zeros((M * words, 8), np.uint64)
    square, table = np.zeros((64, 8), np.uint64), np.zeros((TABLES << BITS, 8), np.uint64)
    for first in range(0, len(out) // M, 512):
        _take_symbols(message, first, square, rows)
        combine(rows, picks, sums, table)
        _give_symbols(sums, words, first, square, out)
    return np.ascontiguousarray(out.reshape(groups, size).T)


def fill_in(
    message: Rows, outer: Bits, lost: npt.NDArray[np.bool_], lost_words: npt.NDArray[np.bool_], words: int
) -> tuple[Rows, Bits] | None:
    """Solve for the lost lanes of a group, and the lost outer words with them.

    Args:
        message: (rows, 8) uint64, rows a multiple of 10; what lost lanes hold does not matter. Overwritten.
        outer: (rows, count) bits of the group's outer words, the first `count` of `words`.
        lost: (lanes,) which of the group's lanes are lost.
        lost_words: (count,) which of its outer words are.
        words: outer words that a full group has.

    Returns:
        message rows and outer words, complete; None where more is lost than can be solved for, or where outer words
        that were not needed contradict the solution (a lane was decoded wrongly).
    """
    erased, usable = np.flatnonzero(lost), np.flatnonzero(~lost_words)
    if len(erased) > len(usable):
        return None
    if len(erased):
        gone = np.zeros(GROUP_LANES, np.bool_)
        gone[erased] = True
        message &= ~np.packbits(gone, bitorder="little").view(np.uint64)
        chosen = usable[: len(erased)]
        syndromes = _symbols(_unpacked(sum_lanes(message, words), words)[:, chosen] ^ outer[:, chosen])
        matrix = factors(words)[np.ix_(chosen, erased)]
        solution = _bits(_product(_inverse(matrix), syndromes))  # (rows, erased)
        lanes = np.zeros((message.shape[0], GROUP_LANES), np.uint8)
        lanes[:, erased] = solution
        message |= np.packbits(lanes, axis=1, bitorder="little").view(np.uint64)
    complete = _unpacked(sum_lanes(message, words), words)[:, : outer.shape[1]]
    if (complete[:, usable] != outer[:, usable]).any():
        return None
    return message, complete


def _unpacked(sums: Rows, words: int) -> Bits:
    """(rows, words) bits of the sums of one group."""
    return (sums[:, :1] >> np.arange(words, dtype=np.uint64) & np.uint64(1)).astype(np.uint8)


def _symbols(bits: Bits) -> Elements:
    """(columns, rows / 10) elements of (rows, columns) bits."""
    groups = bits.T.reshape(bits.shape[1], -1, M).astype(np.int64)
    result: Elements = (groups << np.arange(M)).sum(axis=-1)
    return result


def _bits(symbols: Elements) -> Bits:
    """The inverse of `_symbols`."""
    bits = (symbols[..., None] >> np.arange(M) & 1).astype(np.uint8)
    return bits.reshape(len(symbols), -1).T


def _product(matrix: Elements, symbols: Elements) -> Elements:
    field = algebra.field(M)
    result = np.zeros((len(matrix), symbols.shape[1]), np.int64)
    for column in range(matrix.shape[1]):
        result ^= field.multiply(matrix[:, column, None], symbols[column][None, :])
    return result


def _inverse(matrix: Elements) -> Elements:
    """Gauss and Jordan; every square part of a Cauchy matrix has an inverse."""
    field, size = algebra.field(M), len(matrix)
    work = np.concatenate([matrix, np.eye(size, dtype=np.int64)], axis=1)
    for column in range(size):
        pivot = column + int(np.flatnonzero(work[column:, column])[0])
        work[[column, pivot]] = work[[pivot, column]]
        work[column] = field.multiply(work[column], field.inverse(int(work[column, column])))
        others = work[:, column].copy()
        others[column] = 0
        work ^= field.multiply(others[:, None], work[column][None, :])
    return work[:, size:]
