"""Roots of locators by an additive FFT on bytes, for x86 processors with GFNI, AVX-512 and VBMI: twin of `bitsliced`.

An element of GF(2^m), m <= 16, is two bytes, and a product with a constant is four 8 x 8 bit matrices. Codewords are
taken in *octets*: a vector holds one byte of eight codewords at eight neighbouring points.

An unsupported instruction ends the process at compile time, so `available` must be asked first.

Sources: additive FFT: S. Gao, T. Mateer, IEEE Trans. Inf. Theory 56 (2010); affine instructions: Intel, Galois Field
New Instructions (GFNI) Technology Guide, 2021.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from functools import cache
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
    _I64,
    _VECTOR,
    WORDS,
    _fill,
    _get,
    _or,
    _pointer,
    _put,
    _splat,
    _vector,
    _xor,
    intrinsic,
)

config: Any = numba_config  # its attributes are made at run time

SHALLOWEST = 3  # depth of a transform: the first stage and the last have kernels of their own
OCTETS = 64  # of codewords in 512 lanes
_BYTES = ir.VectorType(_I8, 64)


@cache
def available() -> bool:
    """Whether the processor that numba compiles for is known to have the instructions."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vbmi", "gfni"))


def _transform(builder: Any, value: Any, matrix: Any) -> Any:
    kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES, _I8])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.vgf2p8affineqb.512")
    return builder.bitcast(
        builder.call(function, [builder.bitcast(value, _BYTES), builder.bitcast(matrix, _BYTES), ir.Constant(_I8, 0)]),
        _VECTOR,
    )


@intrinsic
def _affine(context, value, matrix):
    """Every byte of a word times the matrix in the same word of `matrix`."""

    def generate(context, builder, signature, arguments):
        return _transform(builder, *arguments)

    return _vector(_vector, _vector), generate


@intrinsic
def _flip_matrices(context, value):
    """Every word as a matrix of eight bytes, last byte first, transposed: bit 7 - i of byte j <- bit j of byte i."""

    def generate(context, builder, signature, arguments):
        unit = ir.Constant(_VECTOR, [0x8040201008040201] * WORDS)
        return _transform(builder, unit, arguments[0])

    return _vector(_vector), generate


@intrinsic
def _everywhere(context, address):
    """The word at an address, in all eight places."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, builder.load(_pointer(builder, arguments[0], 0, _I64), align=8))

    return _vector(types.intp), generate


@intrinsic
def _zero_bytes(context, address, value):
    """Store a word with a bit set for every byte of `value` that is zero."""

    def generate(context, builder, signature, arguments):
        zero = builder.icmp_signed("==", builder.bitcast(arguments[1], _BYTES), ir.Constant(_BYTES, [0] * 64))
        builder.store(builder.bitcast(zero, _I64), _pointer(builder, arguments[0], 0, _I64), align=8)
        return context.get_dummy_value()

    return types.void(types.intp, _vector), generate


def _shuffle(order: list[int], size: int) -> Any:
    """Units of `size` bytes of a pair of vectors in a given order."""
    kind = ir.VectorType(ir.IntType(8 * size), 64 // size)

    @intrinsic
    def shuffle(context, a, b):
        def generate(context, builder, signature, arguments):
            a, b = (builder.bitcast(argument, kind) for argument in arguments)
            chosen = ir.Constant(ir.VectorType(_I32, len(order)), order)
            return builder.bitcast(builder.shuffle_vector(a, b, chosen), _VECTOR)

        return _vector(_vector, _vector), generate

    return shuffle


def _zip(size: int, half: int) -> Any:
    """Units of two vectors in turn; the first or the second half of them."""
    units = 64 // size
    first = half * units // 2
    return _shuffle([i + second * units for i in range(first, first + units // 2) for second in (0, 1)], size)


def _unzip(odd: int) -> Any:
    """The even or the odd bytes of two vectors, one after the other."""
    return _shuffle(list(range(odd, 128, 2)), 1)


_low_1, _high_1, _low_2, _high_2, _low_4, _high_4 = (_zip(size, half) for size in (1, 2, 4) for half in (0, 1))
_even, _odd = _unzip(0), _unzip(1)


@njit(cache=True, nogil=True)
def _to_bytes(planes, count, out):
    """Up to eight planes of 512 lanes become a byte per lane, plane b in bit b."""
    zero = _fill(0)
    a = _get(planes + 448) if count > 7 else zero
    b = _get(planes + 384) if count > 6 else zero
    c = _get(planes + 320) if count > 5 else zero
    d = _get(planes + 256) if count > 4 else zero
    e = _get(planes + 192) if count > 3 else zero
    f = _get(planes + 128) if count > 2 else zero
    g = _get(planes + 64) if count > 1 else zero
    h = _get(planes) if count > 0 else zero
    for half in range(2):
        ab, cd = (_high_1(a, b), _high_1(c, d)) if half else (_low_1(a, b), _low_1(c, d))
        ef, gh = (_high_1(e, f), _high_1(g, h)) if half else (_low_1(e, f), _low_1(g, h))
        left, right = _low_2(ab, cd), _low_2(ef, gh)
        _put(out + 256 * half, _flip_matrices(_low_4(left, right)))
        _put(out + 256 * half + 64, _flip_matrices(_high_4(left, right)))
        left, right = _high_2(ab, cd), _high_2(ef, gh)
        _put(out + 256 * half + 128, _flip_matrices(_low_4(left, right)))
        _put(out + 256 * half + 192, _flip_matrices(_high_4(left, right)))


@njit(cache=True, nogil=True)
def _to_rows(masks, rows):
    """64 words, byte p of word j being octet j at point p, become eight rows of 512 lanes."""
    for odd in range(2):
        a, b = _get(masks), _get(masks + 64)
        c, d = _get(masks + 128), _get(masks + 192)
        e, f = _get(masks + 256), _get(masks + 320)
        g, h = _get(masks + 384), _get(masks + 448)
        ab, cd = (_odd(a, b), _odd(c, d)) if odd else (_even(a, b), _even(c, d))
        ef, gh = (_odd(e, f), _odd(g, h)) if odd else (_even(e, f), _even(g, h))
        left, right = _even(ab, cd), _even(ef, gh)
        _put(rows + 64 * odd, _even(left, right))
        _put(rows + 64 * odd + 256, _odd(left, right))
        left, right = _odd(ab, cd), _odd(ef, gh)
        _put(rows + 64 * odd + 128, _even(left, right))
        _put(rows + 64 * odd + 384, _odd(left, right))


@njit(inline="always")
def _split(depth, twists, source, other):
    """`bitsliced._split` of 64 codewords in bytes: elements of 128 bytes, low bytes first; returns where they are."""
    count = 1 << depth
    for level in range(depth):
        length = count >> level
        if level:
            for i in range(1, length):
                matrix = twists + 32 * (count - 2 * length + i)
                p, q = _everywhere(matrix), _everywhere(matrix + 8)
                r, s = _everywhere(matrix + 16), _everywhere(matrix + 24)
                for at in range(source + 128 * i, source + 128 * count, 128 * length):
                    low, high = _get(at), _get(at + 64)
                    _put(at, _xor(_affine(low, p), _affine(high, q)))
                    _put(at + 64, _xor(_affine(low, r), _affine(high, s)))
        block = length
        while block > 2:
            quarter = 32 * block
            for start in range(source, source + 128 * count, 128 * block):
                for into in range(start + 2 * quarter, start + 3 * quarter, 64):
                    third = _xor(_get(into), _get(into + quarter))
                    _put(into, third)
                    _put(into - quarter, _xor(_get(into - quarter), third))
            block >>= 1
        for start in range(0, count, length):
            for i in range(length):
                here = source + 128 * (start + i)
                there = other + 128 * (start + (i >> 1) + (i & 1) * (length >> 1))
                _put(there, _get(here))
                _put(there + 64, _get(here + 64))
        source, other = other, source
    return source


@njit(inline="always")
def _leaves_2(depth, leaves, work, constants):
    """The first level: an octet's constants at the leaves, spread over eight points."""
    table = constants + 256 * ((1 << depth) - 2)
    p, q, r, s = _get(table), _get(table + 64), _get(table + 128), _get(table + 192)
    for e in range(0, 128 << depth, 256):
        u, U = _everywhere(leaves + e), _everywhere(leaves + e + 64)
        v, V = _everywhere(leaves + e + 128), _everywhere(leaves + e + 192)
        u, U = _xor(u, _xor(_affine(v, p), _affine(V, q))), _xor(U, _xor(_affine(v, r), _affine(V, s)))
        _put(work + e, u)
        _put(work + e + 64, U)
        _put(work + e + 128, _xor(u, v))
        _put(work + e + 192, _xor(U, V))


@njit(inline="always")
def _quarters(depth, half, work, octets, size, constants):
    """The levels of `half` and of twice that, in place, of several octets of codewords that are `size` bytes apart."""
    count = 1 << depth
    step = 128 * half
    for e in range(half):
        below = constants + 256 * (count - 2 * half + e)
        p, q, r, s = _get(below), _get(below + 64), _get(below + 128), _get(below + 192)
        above = constants + 256 * (count - 4 * half + e)
        for at in range(work + 128 * e, work + octets * size, 4 * step):
            a, A, b, B = _get(at), _get(at + 64), _get(at + step), _get(at + step + 64)
            c, C, d, D = _get(at + 2 * step), _get(at + 2 * step + 64), _get(at + 3 * step), _get(at + 3 * step + 64)
            a, A = _xor(a, _xor(_affine(b, p), _affine(B, q))), _xor(A, _xor(_affine(b, r), _affine(B, s)))
            c, C = _xor(c, _xor(_affine(d, p), _affine(D, q))), _xor(C, _xor(_affine(d, r), _affine(D, s)))
            b, B, d, D = _xor(b, a), _xor(B, A), _xor(d, c), _xor(D, C)
            w, x, y, z = _get(above), _get(above + 64), _get(above + 128), _get(above + 192)
            a, A = _xor(a, _xor(_affine(c, w), _affine(C, x))), _xor(A, _xor(_affine(c, y), _affine(C, z)))
            above_b = above + 256 * half
            w, x, y, z = _get(above_b), _get(above_b + 64), _get(above_b + 128), _get(above_b + 192)
            b, B = _xor(b, _xor(_affine(d, w), _affine(D, x))), _xor(B, _xor(_affine(d, y), _affine(D, z)))
            _put(at, a)
            _put(at + 64, A)
            _put(at + step, b)
            _put(at + step + 64, B)
            _put(at + 2 * step, _xor(a, c))
            _put(at + 2 * step + 64, _xor(A, C))
            _put(at + 3 * step, _xor(b, d))
            _put(at + 3 * step + 64, _xor(B, D))


@njit(inline="always")
def _last_quarters(depth, work, octets, size, constants, masks):
    """The last two levels: word j of masks[e] says which of eight codewords are zero at which of eight points."""
    half = 1 << (depth - 2)
    step = 128 * half
    for e in range(half):
        below = constants + 256 * (2 * half + e)
        p, q, r, s = _get(below), _get(below + 64), _get(below + 128), _get(below + 192)
        above = constants + 256 * e
        for octet in range(octets):
            at, mask = work + octet * size + 128 * e, masks + 8 * octet + 512 * e
            a, A, b, B = _get(at), _get(at + 64), _get(at + step), _get(at + step + 64)
            c, C, d, D = _get(at + 2 * step), _get(at + 2 * step + 64), _get(at + 3 * step), _get(at + 3 * step + 64)
            a, A = _xor(a, _xor(_affine(b, p), _affine(B, q))), _xor(A, _xor(_affine(b, r), _affine(B, s)))
            c, C = _xor(c, _xor(_affine(d, p), _affine(D, q))), _xor(C, _xor(_affine(d, r), _affine(D, s)))
            b, B, d, D = _xor(b, a), _xor(B, A), _xor(d, c), _xor(D, C)
            w, x, y, z = _get(above), _get(above + 64), _get(above + 128), _get(above + 192)
            a, A = _xor(a, _xor(_affine(c, w), _affine(C, x))), _xor(A, _xor(_affine(c, y), _affine(C, z)))
            above_b = above + 256 * half
            w, x, y, z = _get(above_b), _get(above_b + 64), _get(above_b + 128), _get(above_b + 192)
            b, B = _xor(b, _xor(_affine(d, w), _affine(D, x))), _xor(B, _xor(_affine(d, y), _affine(D, z)))
            _zero_bytes(mask, _or(a, A))
            _zero_bytes(mask + 512 * half, _or(b, B))
            _zero_bytes(mask + 1024 * half, _or(_xor(a, c), _xor(A, C)))
            _zero_bytes(mask + 1536 * half, _or(_xor(b, d), _xor(B, D)))


@njit(cache=True, nogil=True)
def find_roots(locator, depth, octets, twists, constants, leaves, work, masks, roots):
    """Evaluate locators at all points; row p of `roots` says of which lanes point p is a root.

    Args:
        locator: (2^depth, m, 8) uint64 coefficients, bit-sliced, constant first; depth >= 3, m > 8.
        octets: of lanes to look at, from the first on; roots of other lanes mean nothing.
        twists: (.., 4) uint64 from `bch.byte_transform`.
        constants: (neighbourhoods, 2^depth - 1, 4, 8) uint64 from `bch.byte_transform`.
        leaves: (9 * 2^depth * 16,) uint64 scratch.
        work: (group, 2^depth * 16) uint64 scratch for `group` octets of codewords.
        masks: (2^depth, 64) uint64 scratch.
        roots: (2^depth * 8 * neighbourhoods, 8) uint64.
    """
    count, m = 1 << depth, locator.shape[1]
    size, group, neighbourhoods = 128 << depth, work.shape[0], constants.shape[0]
    source, spread, buffer = np.intp(locator.ctypes.data), np.intp(leaves.ctypes.data), np.intp(work.ctypes.data)
    tables, found, out = np.intp(constants.ctypes.data), np.intp(masks.ctypes.data), np.intp(roots.ctypes.data)
    for i in range(count):
        _to_bytes(source + 64 * m * i, 8, buffer)
        _to_bytes(source + 64 * m * i + 512, m - 8, buffer + 512)
        for word in range(8):
            _put(spread + word * size + 128 * i, _get(buffer + 64 * word))
            _put(spread + word * size + 128 * i + 64, _get(buffer + 512 + 64 * word))
    for word in range((octets + 7) >> 3):
        here, other = spread + word * size, spread + 8 * size
        at = _split(depth, np.intp(twists.ctypes.data), here, other)
        if at != here:
            for i in range(0, size, 64):
                _put(here + i, _get(other + i))
    for neighbourhood in range(neighbourhoods):
        table = tables + 256 * (count - 1) * neighbourhood
        for start in range(0, octets, group):
            some = min(group, octets - start)
            for i in range(some):
                octet = start + i
                origin = spread + (octet >> 3) * size + 8 * (octet & 7)
                if depth & 1:
                    _leaves_2(depth, origin, buffer + size * i, table)
                else:
                    for at in range(0, size, 64):
                        _put(buffer + size * i + at, _everywhere(origin + at))
            half = 2 if depth & 1 else 1
            while 4 * half < count:
                _quarters(depth, half, buffer, some, size, table)
                half *= 4
            _last_quarters(depth, buffer, some, size, table, found + 8 * start)
        for e in range(count):
            _to_rows(found + 512 * e, out + 512 * (neighbourhoods * e + neighbourhood))
