"""SEC-DED on rows of lanes: sums of the check rows, and the match of every column of the check matrix at once.

To be matched, 512 lanes are taken at a time, as one vector; a column of the matrix is eight words, all ones or all
zeros. Plain LLVM vector IR, which runs on any processor.
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


def _vector(builder: Any, address: Any, offset: Any) -> Any:
    """Pointer to the vector so many bytes behind an address."""
    return builder.inttoptr(builder.add(address, offset), _VECTOR.as_pointer())


def _pattern(builder: Any, pattern: Any) -> list[Any]:
    """The eight words of a column of the check matrix, each in all words of a vector."""
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
    vectors = []
    for r in range(CHECKS):
        address = builder.add(pattern, ir.Constant(_I64, 8 * r))
        word = builder.load(builder.inttoptr(address, _I64.as_pointer()), align=8)
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), word, ir.Constant(ir.IntType(32), 0))
        vectors.append(builder.shuffle_vector(one, one, zeros))
    return vectors


@intrinsic
def _flip(context, size, pattern, syndrome, dirty, row, found):
    """Flip in a row those dirty lanes whose syndrome is the row's column; they are added to `found`.

    A row has `size` bytes, a multiple of 64; so have the eight of the syndrome, one behind the other.
    """

    def generate(context, builder, signature, arguments):
        size, pattern, syndrome, dirty, row, found = arguments
        column = _pattern(builder, pattern)
        with cgutils.for_range(builder, builder.udiv(size, ir.Constant(_I64, 64))) as loop:
            offset = builder.mul(loop.index, ir.Constant(_I64, 64))
            lanes = builder.load(_vector(builder, dirty, offset), align=8)
            for r, pattern_word in enumerate(column):
                near = builder.add(offset, builder.mul(size, ir.Constant(_I64, r)))
                value = builder.load(_vector(builder, syndrome, near), align=8)
                lanes = builder.and_(lanes, builder.not_(builder.xor(value, pattern_word)))
            for address, combine in ((row, builder.xor), (found, builder.or_)):
                place = _vector(builder, address, offset)
                builder.store(combine(builder.load(place, align=8), lanes), place, align=8)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def _tell(context, found, dirty, flips):
    """Of 64 lanes: 1 where a flip was found, -1 where a lane is dirty and none was, else 0; int32 at `flips`."""

    def generate(context, builder, signature, arguments):
        found, dirty, flips = arguments
        masks, numbers = ir.VectorType(ir.IntType(1), 64), ir.VectorType(ir.IntType(32), 64)
        wrong = builder.sext(builder.bitcast(dirty, masks), numbers)
        told = builder.select(builder.bitcast(found, masks), ir.Constant(numbers, [1] * 64), wrong)
        builder.store(told, builder.inttoptr(flips, numbers.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.intp), generate


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
    dirty = np.zeros(syndrome.shape[1], np.uint64)
    any_of(syndrome, dirty)
    if not dirty.any():
        return
    found = np.zeros(dirty.size, np.uint64)
    own = np.array([1 << r for r in range(parity.shape[0])], np.uint8)
    # Row by row: the rows lie 4 KiB apart, so that a load from one waits for a store to another at the same place.
    for rows, patterns in ((message, _patterns(columns)), (parity, _patterns(own))):
        for i in range(rows.shape[0]):
            _flip(
                8 * dirty.size,
                patterns[i].ctypes.data,
                syndrome.ctypes.data,
                dirty.ctypes.data,
                rows[i].ctypes.data,
                found.ctypes.data,
            )
    for word in range(dirty.size):
        _tell(found[word], dirty[word], flips.ctypes.data + 256 * word)
