"""SEC-DED on rows of lanes: sums of the check rows, and the match of every column of the check matrix at once.

For the match lanes are taken 512 at a time, as one vector, with the check rows in registers; a column of the matrix is
eight words, all ones or all zeros. Plain LLVM vector IR, which runs on any processor.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from ckptguard.kernels.jit import njit

U64 = npt.NDArray[np.uint64]
CHECKS = 8
"""Check rows of the working arrays; codes with fewer leave the rest zero."""

intrinsic: Any = numba_intrinsic  # an intrinsic is called without its first parameter

_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, 8)


def _place(builder: Any, address: Any, row: Any, stride: Any) -> Any:
    """Pointer to the vector in a row of a matrix."""
    return builder.inttoptr(builder.add(address, builder.mul(row, stride)), _VECTOR.as_pointer())


def _pattern(builder: Any, patterns: Any, row: Any) -> list[Any]:
    """The eight words of a column of the check matrix, each in all words of a vector."""
    first = builder.mul(row, ir.Constant(_I64, CHECKS))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
    vectors = []
    for r in range(CHECKS):
        address = builder.add(patterns, builder.mul(builder.add(first, ir.Constant(_I64, r)), ir.Constant(_I64, 8)))
        word = builder.load(builder.inttoptr(address, _I64.as_pointer()), align=8)
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), word, ir.Constant(ir.IntType(32), 0))
        vectors.append(builder.shuffle_vector(one, one, zeros))
    return vectors


@intrinsic
def _match(context, rows, patterns, syndrome, stride, dirty, matches):
    """For every column, the dirty ones of 512 lanes whose syndrome it is: (rows, 8) words at `matches`."""

    def generate(context, builder, signature, arguments):
        rows, patterns, syndrome, stride, dirty, matches = arguments
        near = [builder.load(_place(builder, syndrome, ir.Constant(_I64, r), stride), align=8) for r in range(CHECKS)]
        wrong = builder.load(builder.inttoptr(dirty, _VECTOR.as_pointer()), align=8)

        with cgutils.for_range(builder, rows) as loop:
            lanes = wrong
            for value, pattern in zip(near, _pattern(builder, patterns, loop.index), strict=True):
                lanes = builder.and_(lanes, builder.not_(builder.xor(value, pattern)))
            builder.store(lanes, _place(builder, matches, loop.index, ir.Constant(_I64, 64)), align=8)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@njit(cache=True, nogil=True)
def _patterns(columns: npt.NDArray[np.uint8]) -> U64:
    """(columns, 8) uint64, all ones where a column has the bit."""
    words = np.zeros((columns.size, CHECKS), np.uint64)
    for i in range(columns.size):
        for r in range(CHECKS):
            if (columns[i] >> np.uint8(r)) & np.uint8(1):
                words[i, r] = ~np.uint64(0)
    return words


@njit(cache=True, nogil=True)
def check_sums(message: U64, columns: npt.NDArray[np.uint8], sums: U64) -> None:
    """XOR into check row r every message row whose column has bit r.

    Args:
        message: (bits, lane_words) uint64, lane_words a multiple of 8.
        columns: (bits,) uint8.
        sums: (8, lane_words) uint64, changed in place.
    """
    chosen = np.empty(message.shape[0] + 4, np.int64)
    for r in range(CHECKS):
        count = 0
        for i in range(message.shape[0]):
            if (columns[i] >> np.uint8(r)) & np.uint8(1):
                chosen[count] = i
                count += 1
        target = sums[r]
        j = 0
        while j + 4 <= count:
            a = message[chosen[j]]
            b = message[chosen[j + 1]]
            c = message[chosen[j + 2]]
            d = message[chosen[j + 3]]
            for column in range(target.size):
                target[column] ^= (a[column] ^ b[column]) ^ (c[column] ^ d[column])
            j += 4
        while j < count:
            a = message[chosen[j]]
            for column in range(target.size):
                target[column] ^= a[column]
            j += 1


@njit(cache=True, nogil=True)
def any_of(rows: U64, result: U64) -> None:
    """OR rows (count, lane_words) into `result` (lane_words,)."""
    for r in range(rows.shape[0]):
        for column in range(result.size):
            result[column] |= rows[r, column]


@njit(cache=True, nogil=True)
def correct(
    message: U64, parity: U64, syndrome: U64, columns: npt.NDArray[np.uint8], flips: npt.NDArray[np.int32]
) -> None:
    """Flip the one bit a syndrome points at; a syndrome that is no column is uncorrectable.

    Args:
        message: (bits, lane_words) uint64, contiguous, corrected in place.
        parity: (checks <= 8, lane_words) uint64, contiguous, corrected in place.
        syndrome: (8, lane_words) uint64, contiguous.
        columns: (bits,) uint8, all different and of odd weight of at least 3.
        flips: (64 * lane_words,) int32 of zeros; 1 and -1 are written.
    """
    bits, checks = columns.size, parity.shape[0]
    patterns = _patterns(np.append(columns, np.array([1 << r for r in range(checks)], np.uint8)))
    matches = np.empty((bits + checks, 8), np.uint64)
    dirty = np.zeros(syndrome.shape[1], np.uint64)
    found = np.empty(8, np.uint64)
    any_of(syndrome, dirty)
    for begin in range(0, dirty.size, 8):
        if not dirty[begin : begin + 8].any():
            continue
        _match(
            bits + checks,
            patterns.ctypes.data,
            syndrome.ctypes.data + 8 * begin,
            8 * dirty.size,
            dirty.ctypes.data + 8 * begin,
            matches.ctypes.data,
        )
        found[:] = np.uint64(0)
        for i in range(bits + checks):
            some = np.uint64(0)
            for column in range(8):
                some |= matches[i, column]
            if some == np.uint64(0):
                continue
            for column in range(8):
                found[column] |= matches[i, column]
                if i < bits:
                    message[i, begin + column] ^= matches[i, column]
                else:
                    parity[i - bits, begin + column] ^= matches[i, column]
        for column in range(8):
            lane, wrong, one = 64 * (begin + column), dirty[begin + column], found[column]
            for bit in range(64):
                flips[lane + bit] = np.int32((one >> np.uint64(bit)) & np.uint64(1)) * np.int32(2) - np.int32(
                    (wrong >> np.uint64(bit)) & np.uint64(1)
                )
