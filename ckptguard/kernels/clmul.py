"""Remainders by carry-less multiplication, for x86 processors with VPCLMULQDQ and AVX-512.

Rows of lanes are transposed, 64 rows at a time, into words of single codewords, eight codewords side by side in a
vector. Words are reflected: bit 0 is the highest power. From the leading words on, four at a time, q = words / g mod
x^256 is found by a multiplication, and q * g is added, which makes the words zero. Products of four words by four take
nine multiplications each (Karatsuba, twice).

An unsupported instruction ends the process at compile time, so `available` must be asked first. The vector primitives
come from `vectors`: single instructions, whose meaning must not change (numba's file cache would not notice).

Sources: V. Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009;
transposition: H. S. Warren, Hacker's Delight, 2nd ed., section 7-3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from functools import cache, reduce
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils

from ckptguard.kernels.jit import njit
from ckptguard.kernels.vectors import (
    _I8,
    _I32,
    _VECTOR,
    WORDS,
    _fill,
    _get,
    _load,
    _put,
    _store,
    _transpose,
    _vector,
    intrinsic,
)

_AHEAD = 1  # blocks of 64 rows: what the processor fetches by itself ends with a page, which a block is

config: Any = numba_config  # its attributes are made at run time


@cache
def available() -> bool:
    """Whether the processor that numba compiles for is known to have the instructions."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "pclmul", "vpclmulqdq"))


def _load_all(builder: Any, address: Any, count: int) -> list[Any]:
    return [_load(builder, address, 64 * i) for i in range(count)]


def _interleaved(builder: Any, a: Any, b: Any, half: int) -> Any:
    """The low (0) or high (1) words of each pair in `a` and `b`, paired."""
    order = [i + half + WORDS * second for i in range(0, WORDS, 2) for second in (0, 1)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, WORDS), order))


def _word(builder: Any, even: list[Any], odd: list[Any], i: int) -> Any:
    """Word i of products 0, 1, .. that lie one word apart, the high word of a product -1 not counted."""
    low = _interleaved(builder, even[i], odd[i], 0)
    return builder.xor(low, _interleaved(builder, even[i - 1], odd[i - 1], 1)) if i else low


def _nine_sums(builder: Any, word: list[Any]) -> list[Any]:
    """The factors of Karatsuba's products of four words; as `nine_sums` in `bch`."""
    first, second = builder.xor(word[0], word[1]), builder.xor(word[2], word[3])
    even, odd = builder.xor(word[0], word[2]), builder.xor(word[1], word[3])
    return [word[0], word[1], first, word[2], word[3], second, even, odd, builder.xor(first, second)]


def _products(builder: Any, sums: list[Any], factors: list[Any], half: int) -> list[Any]:
    """Seven sums of 128-bit products, one word apart, of the low (0) or high (1) words of each pair in `sums`."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _I8])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.pclmulqdq.512")
    product = [builder.call(function, [a, b, ir.Constant(_I8, half)]) for a, b in zip(sums, factors, strict=True)]

    def total(*terms: Any) -> Any:
        return reduce(builder.xor, terms)

    def three(first: int, outer: tuple[int, int]) -> list[Any]:
        return [product[outer[0]], total(*product[first : first + 3]), product[outer[1]]]

    low, high, middle = three(0, (0, 1)), three(3, (3, 4)), three(6, (6, 7))
    return [
        low[0],
        low[1],
        total(low[2], middle[0], low[0], high[0]),
        total(middle[1], low[1], high[1]),
        total(high[0], middle[2], low[2], high[2]),
        high[1],
        high[2],
    ]


@intrinsic
def _quotient(context, words, even, odd, inverse, sums):
    """The quotient of the four leading words, as nine sums."""

    def generate(context, builder, signature, arguments):
        words, even, odd, inverse, sums = arguments
        E, U = _load_all(builder, even, 5), _load_all(builder, odd, 5)
        leading = [
            builder.xor(_load(builder, words, 64 * i), _word(builder, E[i : i + 2], U[i : i + 2], 1)) for i in range(4)
        ]
        factors, spread = _load_all(builder, inverse, 9), _nine_sums(builder, leading)
        products = [_products(builder, spread, factors, half) for half in (0, 1)]
        quotient = [_word(builder, products[0], products[1], i) for i in range(4)]
        for i, value in enumerate(_nine_sums(builder, quotient)):
            _store(builder, value, sums, 64 * i)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def _add_products(first: bool) -> Any:
    """Add the quotient times four words of the generator to the sums of one half, moved to the front by four words."""

    @intrinsic
    def add(context, factors, even, odd, a, b, c, d, e, f, g, h, i):
        def generate(context, builder, signature, arguments):
            factors, *places = arguments[:3]
            words = _load_all(builder, factors, 9)
            for half, place in enumerate(places):
                product = _products(builder, arguments[3:], words, half)
                for j in range(3 if first else 0, 4):
                    value = builder.xor(product[j], _load(builder, place, 64 * j))
                    if j < 3:
                        value = builder.xor(value, _load(builder, place, 64 * (j - 4)))
                    _store(builder, value, place, 64 * (j - 4))
                for j in range(4, 7):
                    _store(builder, product[j], place, 64 * (j - 4))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 3, *[_vector] * 9), generate

    return add


_add_first_products, _add_next_products = _add_products(True), _add_products(False)


@intrinsic
def _result(context, even, odd):
    """The word at this place."""

    def generate(context, builder, signature, arguments):
        E, U = ([_load(builder, argument, -64), _load(builder, argument)] for argument in arguments)
        return _word(builder, E, U, 1)

    return _vector(types.intp, types.intp), generate


@intrinsic
def _prefetch(context, address):
    """Ask for the cache line of an address, of any address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, *(ir.Constant(_I32, value) for value in (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return types.void(types.intp), generate


@njit(cache=True, nogil=True)
def remainder(message, column, generator, inverse, state, words, even, odd):
    """Divide 512 messages, followed by r zero bits, by the generator polynomial: the same as `bitsliced.remainder`.

    Args:
        message: (bits, lane_words) uint64 rows, highest power first; words column..column+7 are used.
        column: multiple of 8.
        generator: (quads, 9, 8) uint64 from `bch.nine_sums`: the reflected polynomial.
        inverse: (2, 9, 8) uint64 with its inverse modulo x^256 first, then scratch.
        state: (64 * ceil(r / 64), 8) uint64; rows 0..r-1 receive the remainder, the others become zero.
        words: (64 * at least 4 * ceil(bits / 256), 8) uint64 scratch.
        even, odd: (4 * quads + 2, 8) uint64 scratch, each.
    """
    bits, quads = message.shape[0], generator.shape[0]
    blocks = -(-bits // 256) * 4
    rows, spread = np.intp(state.ctypes.data), np.intp(words.ctypes.data)
    G, N = np.intp(generator.ctypes.data), np.intp(inverse.ctypes.data)
    _spread(message, column, blocks, rows, spread)
    # E and U are the places of the leading word in even and odd, which hold 128-bit sums that start at every word; the
    # sum that starts at the word before counts too.
    E, U, sums = np.intp(even.ctypes.data) + 64, np.intp(odd.ctypes.data) + 64, N + 64 * 9
    for group in range(64):
        even[:] = 0
        odd[:] = 0
        for block in range(0, blocks, 4):
            _quotient(spread + 64 * (blocks * group + block), E - 64, U - 64, N, sums)
            a, b, c = _get(sums), _get(sums + 64), _get(sums + 128)
            d, e, f = _get(sums + 192), _get(sums + 256), _get(sums + 320)
            g, h, i = _get(sums + 384), _get(sums + 448), _get(sums + 512)
            _add_first_products(G, E, U, a, b, c, d, e, f, g, h, i)
            for quad in range(1, quads):
                at = 256 * quad
                _add_next_products(G + 64 * 9 * quad, E + at, U + at, a, b, c, d, e, f, g, h, i)
        for j in range(state.shape[0] >> 6):
            _put(rows + 64 * (64 * j + group), _result(E + 64 * j, U + 64 * j))
    for j in range(state.shape[0] >> 6):
        _transpose(rows + 64 * 64 * j)


@njit(inline="always")
def _spread(message, column, blocks, rows, spread):
    """Words of codewords: word i of the message of codeword 64 * c + l goes to place c of vector blocks * l + i."""
    stride, source = 8 * message.shape[1], np.intp(message.ctypes.data) + 8 * column
    zero = _fill(0)
    for block in range(blocks):
        for i in range(64):
            row = 64 * (block - blocks) + i + message.shape[0]
            _prefetch(source + stride * (row + 64 * _AHEAD))
            _put(rows + 64 * i, _get(source + stride * row) if row >= 0 else zero)
        _transpose(rows)
        for i in range(64):
            _put(spread + 64 * (blocks * i + block), _get(rows + 64 * i))
