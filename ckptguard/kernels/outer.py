"""The outer erasure code over the codewords of a unit: sums of lanes over GF(2^10), on bit-sliced rows.

Ten successive rows of a lane are a symbol, row j of them the coefficient of alpha^j. An outer word is a sum of the
symbols of all lanes with the factors of a Cauchy matrix, any square part of which is invertible; so r outer words make
good any r lanes that are known to be lost.

Source: J. Bloemer et al., An XOR-Based Erasure-Resilient Coding Scheme, ICSI TR-95-048, 1995 (Cauchy matrices as bits).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numba import njit

from ckptguard.kernels import algebra

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
def _tables(words: int) -> Rows:
    """(w, 10, 128, 16) uint64: what four lanes of input row j add to output bit i of word p, at bit i * words + p."""
    field = algebra.field(M)
    products = field.multiply(factors(words)[:, :, None], field.exp[:M])  # (words, lanes, j)
    bits = (products[..., None] >> np.arange(M)) & 1  # (words, lanes, j, i)
    flat = bits.transpose(2, 1, 3, 0).reshape(M, GROUP_LANES, M * words)
    size = -(-M * words // 64)
    packed = np.zeros((M, GROUP_LANES, 8 * size), np.uint8)
    some = np.packbits(flat.astype(np.uint8), axis=-1, bitorder="little")
    packed[..., : some.shape[-1]] = some
    lanes = packed.view("<u8").astype(np.uint64).reshape(M, GROUP_LANES // 4, 4, size)
    tables = np.zeros((M, GROUP_LANES // 4, 16, size), np.uint64)
    for lane in range(4):
        chosen = np.arange(16) >> lane & 1 == 1
        tables[:, :, chosen] ^= lanes[:, :, lane, None]
    return np.ascontiguousarray(np.moveaxis(tables, -1, 0))


@njit(cache=True, nogil=True)
def _sum_lanes(message: Rows, tables: Rows, words: int, out: Rows) -> None:
    """Outer words of one group of 512 lanes.

    Args:
        message: (rows, 8) uint64, rows a multiple of 10.
        tables: (w, 10, 128, 16) uint64, of `_tables`.
        out: (rows,) uint64; bit p of a row becomes that row of outer word p.
    """
    size = tables.shape[0]
    total = np.zeros(size + 1, np.uint64)
    keep = ~np.uint64(0) >> np.uint64(64 - words)
    for first in range(0, message.shape[0], 10):
        for w in range(size):
            sums = np.uint64(0)
            for j in range(10):
                for word in range(8):
                    lanes = message[first + j, word]
                    for nibble in range(0, 16, 4):
                        part = lanes >> np.uint64(4 * nibble)
                        place = 16 * word + nibble
                        sums ^= tables[w, j, place, part & np.uint64(15)]
                        sums ^= tables[w, j, place + 1, (part >> np.uint64(4)) & np.uint64(15)]
                        sums ^= tables[w, j, place + 2, (part >> np.uint64(8)) & np.uint64(15)]
                        sums ^= tables[w, j, place + 3, (part >> np.uint64(12)) & np.uint64(15)]
            total[w] = sums
        for i in range(10):
            low, shift = (i * words) >> 6, np.uint64((i * words) & 63)
            value = total[low] >> shift
            if shift > 0:
                value |= total[low + 1] << (np.uint64(64) - shift)
            out[first + i] = value & keep


def sum_lanes(message: Rows, words: int) -> Rows:
    """(rows, groups) uint64 outer words of (rows, 8 * groups) message rows, rows a multiple of 10.

    Bit p of [row, group] is that row of outer word p of the group; words <= 64.
    """
    out = np.zeros((message.shape[1] // 8, message.shape[0]), np.uint64)
    for group in range(len(out)):
        _sum_lanes(np.ascontiguousarray(message[:, 8 * group : 8 * group + 8]), _tables(words), words, out[group])
    return np.ascontiguousarray(out.T)


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
