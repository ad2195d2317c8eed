"""A vector of 512 bits for numba, and operations on it.

All of it is plain LLVM vector IR, which runs on any processor. numba's file cache does not notice a change here in the
kernels that are compiled from these primitives: their meaning must not change.

Transposition: H. S. Warren, Hacker's Delight, 2nd ed., section 7-3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

from ckptguard.kernels.jit import njit

WORDS = 8  # of 64 lanes in a vector

intrinsic: Any = numba_intrinsic  # an intrinsic is called without its first parameter

_I8, _I32, _I64 = (ir.IntType(width) for width in (8, 32, 64))
_VECTOR = ir.VectorType(_I64, WORDS)
_ZERO = ir.Constant(_VECTOR, [0] * WORDS)
_ONES = ir.Constant(_VECTOR, [-1] * WORDS)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Vector512")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _pointer(builder: Any, address: Any, offset: int, pointee: Any) -> Any:
    moved = builder.add(address, ir.Constant(_I64, offset)) if offset else address
    return builder.inttoptr(moved, pointee.as_pointer())


def _load(builder: Any, address: Any, offset: int = 0) -> Any:
    return builder.load(_pointer(builder, address, offset, _VECTOR), align=8)


def _store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    builder.store(value, _pointer(builder, address, offset, _VECTOR), align=8)


def _splat(builder: Any, word: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), word, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, WORDS), [0] * WORDS))


# Vector operations, as used inside the kernels below. Addresses are integers, in bytes.


@intrinsic
def _get(context, address):
    def generate(context, builder, signature, arguments):
        return _load(builder, arguments[0])

    return _vector(types.intp), generate


@intrinsic
def _put(context, address, value):
    def generate(context, builder, signature, arguments):
        _store(builder, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp, _vector), generate


@intrinsic
def _fill(context, bit):
    """All lanes 0 or all lanes 1."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.icmp_signed("!=", arguments[0], ir.Constant(_I64, 0)), _ONES, _ZERO)

    return _vector(types.intp), generate


def _binary(name: str) -> Any:
    @intrinsic
    def operation(context, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(arguments[0], arguments[1])

        return _vector(_vector, _vector), generate

    return operation


_xor, _and, _or = _binary("xor"), _binary("and_"), _binary("or_")


@intrinsic
def _not(context, value):
    def generate(context, builder, signature, arguments):
        return builder.xor(arguments[0], _ONES)

    return _vector(_vector), generate


@intrinsic
def _any(context, value):
    """Whether any lane is 1."""

    def generate(context, builder, signature, arguments):
        return builder.icmp_signed(
            "!=", builder.bitcast(arguments[0], ir.IntType(512)), ir.Constant(ir.IntType(512), 0)
        )

    return types.boolean(_vector), generate


@intrinsic
def _lowest(context, word):
    """The number of the lowest bit that is 1, of a word that is not zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), generate


def _shift(name: str) -> Any:
    @intrinsic
    def shift(context, a, count):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(arguments[0], _splat(builder, arguments[1]))

        return _vector(_vector, types.intp), generate

    return shift


_left, _right = _shift("shl"), _shift("lshr")


@intrinsic
def _every(context, word):
    """The word in all eight places."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0])

    return _vector(types.intp), generate


@njit(cache=True, nogil=True)
def _transpose(rows):
    """Transpose eight 64 x 64 bit matrices in place: word c of vector i, for all i, is matrix c."""
    step = 32
    mask = np.int64(0xFFFFFFFF)
    while step:
        lanes = _every(mask)
        first = 0
        while first < 64:
            for i in range(first, first + step):
                a, b = rows + 64 * i, rows + 64 * (i + step)
                swap = _and(_xor(_right(_get(a), step), _get(b)), lanes)
                _put(b, _xor(_get(b), swap))
                _put(a, _xor(_get(a), _left(swap, step)))
            first += 2 * step
        step >>= 1
        mask ^= mask << step
