"""Remainders by carry-less multiplication, for x86 processors with VPCLMULQDQ and AVX-512.

Rows of lanes are transposed, 64 rows at a time, into words of single codewords, eight codewords side by side in a
vector. Words are reflected: bit 0 is the highest power. From the leading word on, q = word / g mod x^64 is found by one
multiplication, and q * g is added, which makes the word zero.

An unsupported instruction ends the process at compile time, so `available` must be asked first. The vector primitives
come from `vectors`: single instructions, whose meaning must not change (numba's file cache would not notice).

Sources: V. Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009;
transposition: H. S. Warren, Hacker's Delight, 2nd ed., section 7-3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import njit, types
from numba.core import cgutils

from ckptguard.kernels.vectors import (
    _I8,
    _I32,
    _VECTOR,
    WORDS,
    _and,
    _fill,
    _get,
    _put,
    _splat,
    _vector,
    _xor,
    intrinsic,
)

config: Any = numba_config  # its attributes are made at run time


@cache
def available() -> bool:
    """Whether the processor that numba compiles for is known to have the instructions."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "pclmul", "vpclmulqdq"))


def _product(half: int) -> Any:
    """Carry-less products of the low (0) or high (1) words of each pair in `a` with the low word of the pair in `b`."""

    @intrinsic
    def product(context, a, b):
        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _I8])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.pclmulqdq.512")
            return builder.call(function, [*arguments, ir.Constant(_I8, half)])

        return _vector(_vector, _vector), generate

    return product


def _interleave(half: int) -> Any:
    """The low (0) or high (1) words of each pair in `a` and `b`, paired."""

    @intrinsic
    def interleave(context, a, b):
        def generate(context, builder, signature, arguments):
            order = [i + half + WORDS * second for i in range(0, WORDS, 2) for second in (0, 1)]
            return builder.shuffle_vector(*arguments, ir.Constant(ir.VectorType(_I32, WORDS), order))

        return _vector(_vector, _vector), generate

    return interleave


def _shift(name: str) -> Any:
    @intrinsic
    def shift(context, a, count):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(arguments[0], _splat(builder, arguments[1]))

        return _vector(_vector, types.intp), generate

    return shift


_low_product, _high_product = _product(0), _product(1)
_low_words, _high_words = _interleave(0), _interleave(1)
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


@njit(cache=True, nogil=True)
def remainder(message, column, generator, inverse, state, words, even, odd):
    """Divide 512 messages, followed by r zero bits, by the generator polynomial: the same as `bitsliced.remainder`.

    Args:
        message: (bits, lane_words) uint64 rows, highest power first; words column..column+7 are used.
        column: multiple of 8.
        generator: (r // 64 + 1, 8) uint64, the reflected polynomial, each word eight times.
        inverse: (8,) uint64, its inverse modulo x^64, eight times.
        state: (64 * ceil(r / 64), 8) uint64; rows 0..r-1 receive the remainder, the others become zero.
        words: (64 * at least ceil(bits / 64), 8) uint64 scratch.
        even, odd: (r // 64 + 2, 8) uint64 scratch, each.
    """
    bits, terms = message.shape[0], generator.shape[0]
    blocks, stride = -(-bits // 64), 8 * message.shape[1]
    source = np.intp(message.ctypes.data) + 8 * column
    rows, spread = np.intp(state.ctypes.data), np.intp(words.ctypes.data)
    E, U, G = np.intp(even.ctypes.data), np.intp(odd.ctypes.data), np.intp(generator.ctypes.data)
    zero, reciprocal = _fill(0), _get(np.intp(inverse.ctypes.data))
    for block in range(blocks):
        for i in range(64):
            row = 64 * block + i - (64 * blocks - bits)
            _put(rows + 64 * i, _get(source + stride * row) if row >= 0 else zero)
        _transpose(rows)
        for i in range(64):
            _put(spread + 64 * (blocks * i + block), _get(rows + 64 * i))
    # even[1 + j] and odd[1 + j] hold 128-bit sums at word j from the current one, even[0] and odd[0] those before it.
    for group in range(64):
        for j in range(terms + 1):
            _put(E + 64 * j, zero)
            _put(U + 64 * j, zero)
        for block in range(blocks):
            word = _xor(_low_words(_get(E + 64), _get(U + 64)), _high_words(_get(E), _get(U)))
            word = _xor(word, _get(spread + 64 * (blocks * group + block)))
            quotient = _low_words(_low_product(word, reciprocal), _high_product(word, reciprocal))
            for j in range(terms):
                factor = _get(G + 64 * j)
                _put(E + 64 * j, _xor(_get(E + 64 * (j + 1)), _low_product(quotient, factor)))
                _put(U + 64 * j, _xor(_get(U + 64 * (j + 1)), _high_product(quotient, factor)))
        for j in range(state.shape[0] >> 6):
            low = _low_words(_get(E + 64 * (j + 1)), _get(U + 64 * (j + 1)))
            _put(rows + 64 * (64 * j + group), _xor(low, _high_words(_get(E + 64 * j), _get(U + 64 * j))))
    for j in range(state.shape[0] >> 6):
        _transpose(rows + 64 * 64 * j)
