"""Compiled kernels of the BCH decoder: 512 codewords side by side, one bit of each in a 512-bit vector.

An *element* is 512 members of GF(2^m), one per lane: m vectors ("planes") of 8 words, plane b holding the coefficients
of alpha^b. Arrays of elements are (count, m, 8) uint64. Field operations are straight-line code per m: the argument
`planes`, a tuple of m integers, carries m in its type, so every m is compiled once, when first used, and kept in
numba's file cache.

All vector operations are plain LLVM vector IR and run on any processor. Everything that is compiled stays in this one
file, because the file cache does not notice changes in other files, but for the single instructions of `vectors`.

Sources: method of four Russians on bit planes: M. Albrecht, G. Bard, W. Hart, Algorithm 898, ACM TOMS 37 (2010);
bit-sliced decoding: D. J. Bernstein, T. Chou, P. Schwabe, McBits, CHES 2013; Berlekamp-Massey: R. E. Blahut, Algebraic
Codes for Data Transmission, Cambridge 2003, chapter 7; additive FFT: S. Gao, T. Mateer, IEEE Trans. Inf. Theory 56
(2010); inverse: T. Itoh, S. Tsujii, Information and Computation 78 (1988).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ckptguard.kernels.algebra import PRIMITIVE_POLYNOMIALS
from ckptguard.kernels.jit import njit
from ckptguard.kernels.vectors import (
    _I8,
    _I64,
    _ONES,
    _VECTOR,
    _ZERO,
    WORDS,
    _and,
    _any,
    _fill,
    _get,
    _load,
    _not,
    _or,
    _pointer,
    _put,
    _splat,
    _store,
    _xor,
    intrinsic,
)

BITS = 6  # rows combined by one table of the method of four Russians
TABLES = 8  # one byte of a 64-bit word names an entry of each
WINDOW = BITS * TABLES  # rows taken in at a time


def _load_element(builder: Any, address: Any, m: int) -> list[Any]:
    return [_load(builder, address, 64 * plane) for plane in range(m)]


def _store_element(builder: Any, element: list[Any], address: Any) -> None:
    for plane, value in enumerate(element):
        _store(builder, value, address, 64 * plane)


def _load_broadcast(builder: Any, address: Any, m: int) -> list[Any]:
    """The same 64 lanes of every plane in all words."""
    return [_splat(builder, builder.load(_pointer(builder, address, 64 * plane, _I64), align=8)) for plane in range(m)]


def _load_constants(builder: Any, address: Any, plane: int) -> Any:
    """Eight bytes, 0 or -1, as eight words: one coefficient of eight constants."""
    small = ir.VectorType(_I8, WORDS)
    return builder.sext(builder.load(_pointer(builder, address, WORDS * plane, small), align=8), _VECTOR)


def _times_x(builder: Any, element: list[Any]) -> list[Any]:
    m, top = len(element), element[-1]
    product = [top, *element[:-1]]
    for plane in range(1, m):
        if PRIMITIVE_POLYNOMIALS[m] >> plane & 1:
            product[plane] = builder.xor(product[plane], top)
    return product


def _multiply_add(builder: Any, total: list[Any], element: list[Any], factor: Any) -> list[Any]:
    """total + element * factor, plane by plane of the factor (Horner): few values live at a time."""
    m = len(element)
    total, power = list(total), list(element)
    for plane in range(m):
        coefficient = factor(plane)
        total = [builder.xor(total[i], builder.and_(power[i], coefficient)) for i in range(m)]
        if plane < m - 1:
            power = _times_x(builder, power)
    return total


# Field operations on elements; `planes` is a tuple of m integers.


@intrinsic
def _square(context, planes, out, a):
    """out = a^2."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        element = _load_element(builder, arguments[2], m)
        wide = [_ZERO] * (2 * m - 1)
        for plane in range(m):
            wide[2 * plane] = element[plane]
        for plane in range(2 * m - 2, m - 1, -1):
            for tap in range(m):
                if PRIMITIVE_POLYNOMIALS[m] >> tap & 1:
                    wide[plane - m + tap] = builder.xor(wide[plane - m + tap], wide[plane])
        _store_element(builder, wide[:m], arguments[1])
        return context.get_dummy_value()

    return types.void(planes, types.intp, types.intp), generate


@intrinsic
def _multiply(context, planes, out, a, b):
    """out = a * b."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, out, a, b = arguments
        product = _multiply_add(
            builder, [_ZERO] * m, _load_element(builder, a, m), lambda plane: _load(builder, b, 64 * plane)
        )
        _store_element(builder, product, out)
        return context.get_dummy_value()

    return types.void(planes, types.intp, types.intp, types.intp), generate


@intrinsic
def _scale(context, planes, a, constant):
    """a = a * constant, one constant for all lanes (eight equal bytes per plane)."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, a, constant = arguments
        product = _multiply_add(
            builder,
            [_ZERO] * m,
            _load_element(builder, a, m),
            lambda plane: _load_constants(builder, constant, plane),
        )
        _store_element(builder, product, a)
        return context.get_dummy_value()

    return types.void(planes, types.intp, types.intp), generate


def _loop(builder: Any, count: Any, body: Any, carried: list[Any]) -> list[Any]:
    """Emit `for i in range(count)`, at least once; `body(i, values)` returns the carried values of the next turn."""
    before = builder.block
    turn, after = builder.append_basic_block("turn"), builder.append_basic_block("after")
    builder.branch(turn)
    builder.position_at_end(turn)
    i = builder.phi(_I64)
    values = [builder.phi(_VECTOR) for _ in carried]
    results = body(i, values)
    following = builder.add(i, ir.Constant(_I64, 1))
    i.add_incoming(ir.Constant(_I64, 0), before)
    i.add_incoming(following, builder.block)
    for value, start, result in zip(values, carried, results, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), turn, after)
    builder.position_at_end(after)
    return list(results)


@intrinsic
def _dot(context, planes, out, a, b, count):
    """out = a[0] * b[0] + a[1] * b[-1] + ... + a[count-1] * b[1-count]."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, out, a, b, count = arguments

        def body(i, total):
            step = builder.mul(i, ir.Constant(_I64, 64 * m))
            left, right = builder.add(a, step), builder.sub(b, step)
            return _multiply_add(
                builder, total, _load_element(builder, left, m), lambda plane: _load(builder, right, 64 * plane)
            )

        _store_element(builder, _loop(builder, count, body, [_ZERO] * m), out)
        return context.get_dummy_value()

    return types.void(planes, types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def _update(context, planes, locator, previous, factor, chosen, count):
    """Per i < count: locator[i] += factor * previous[i], and previous[i] = the old locator[i] in the chosen lanes."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, locator, previous, factor, chosen, count = arguments
        lanes = _load(builder, chosen)

        def body(i, _):
            step = builder.mul(i, ir.Constant(_I64, 64 * m))
            here, there = builder.add(locator, step), builder.add(previous, step)
            old, other = _load_element(builder, here, m), _load_element(builder, there, m)
            new = _multiply_add(builder, old, other, lambda plane: _load(builder, factor, 64 * plane))
            for plane in range(m):
                change = builder.and_(lanes, builder.xor(old[plane], other[plane]))
                _store(builder, builder.xor(other[plane], change), there, 64 * plane)
            _store_element(builder, new, here)
            return []

        _loop(builder, count, body, [])
        return context.get_dummy_value()

    return types.void(planes, types.intp, types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def _butterfly_spread(context, planes, u, v, constants, low, high):
    """low = u + c * v, high = low + v, 64 lanes of u and v spread over eight points with a constant c each."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, u, v, constants, low, high = arguments
        factor = _load_broadcast(builder, v, m)
        total = _multiply_add(
            builder,
            _load_broadcast(builder, u, m),
            factor,
            lambda plane: _load_constants(builder, constants, plane),
        )
        _store_element(builder, total, low)
        _store_element(builder, [builder.xor(total[i], factor[i]) for i in range(m)], high)
        return context.get_dummy_value()

    return types.void(planes, *[types.intp] * 5), generate


@intrinsic
def _butterfly(context, planes, u, v, constants):
    """u, v = u + c * v, u + c * v + v in place."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, u, v, constants = arguments
        factor = _load_element(builder, v, m)
        total = _multiply_add(
            builder, _load_element(builder, u, m), factor, lambda plane: _load_constants(builder, constants, plane)
        )
        _store_element(builder, total, u)
        _store_element(builder, [builder.xor(total[i], factor[i]) for i in range(m)], v)
        return context.get_dummy_value()

    return types.void(planes, *[types.intp] * 3), generate


@intrinsic
def _butterfly_zeros(context, planes, u, v, constants, low, high):
    """Lanes where u + c * v is zero to low, those where u + c * v + v is zero to high."""
    m = planes.count

    def generate(context, builder, signature, arguments):
        _, u, v, constants, low, high = arguments
        factor = _load_element(builder, v, m)
        total = _multiply_add(
            builder, _load_element(builder, u, m), factor, lambda plane: _load_constants(builder, constants, plane)
        )
        first = second = _ZERO
        for plane in range(m):
            first = builder.or_(first, total[plane])
            second = builder.or_(second, builder.xor(total[plane], factor[plane]))
        _store(builder, builder.xor(first, _ONES), low)
        _store(builder, builder.xor(second, _ONES), high)
        return context.get_dummy_value()

    return types.void(planes, *[types.intp] * 5), generate


# Kernels.


@njit(cache=True, nogil=True)
def _fill_table(table, group, bit, row):
    """Double table `group`: entries with `bit` set are those without it plus `row`."""
    start = table + 64 * (group << BITS)
    for i in range(1 << bit):
        _put(start + 64 * ((1 << bit) + i), _xor(row, _get(start + 64 * i)))


@njit(cache=True, nogil=True)
def _gather(table, picks, total):
    """total + the rows that the eight bytes of `picks` name, one of each table."""
    for group in range(TABLES):
        entry = (picks >> np.uint64(8 * group)) & np.uint64(255)
        total = _xor(total, _get(table + 64 * (group << BITS) + np.intp(entry << np.uint64(6))))
    return total


@njit(cache=True, nogil=True)
def remainder(message, column, picks, state, table):
    """Divide 512 messages, followed by r zero bits, by the generator polynomial.

    Args:
        message: (bits, lane_words) uint64 rows, highest power first; words column..column+7 are used.
        column: multiple of 8.
        picks: (r,) uint64 from `bch.picks_of`: the sums of WINDOW leading rows that fall on each row.
        state: (r + WINDOW, 8) uint64; rows 0..r-1 receive the remainder.
        table: (TABLES << BITS, 8) uint64 scratch, 64-byte aligned.
    """
    bits, parity_bits = message.shape[0], picks.shape[0]
    stride, source = 8 * message.shape[1], np.intp(message.ctypes.data) + 8 * column
    rows, sums = np.intp(state.ctypes.data), np.intp(table.ctypes.data)
    zero = _fill(0)
    for i in range(parity_bits + WINDOW):
        _put(rows + 64 * i, zero)
    first = -(-bits // WINDOW) * -WINDOW + bits
    for start in range(first, bits, WINDOW):
        for group in range(TABLES):
            _put(sums + 64 * (group << BITS), zero)
            for bit in range(BITS):
                i = group * BITS + bit
                row = _get(rows + 64 * i) if i < parity_bits else zero
                if start + i >= 0:
                    row = _xor(row, _get(source + stride * (start + i)))
                _fill_table(sums, group, bit, row)
        for i in range(parity_bits):
            _put(rows + 64 * i, _gather(sums, picks[i], _get(rows + 64 * (i + WINDOW))))


@njit(cache=True, nogil=True)
def combine(rows, picks, out, table):
    """out[o] = sum of the rows a binary matrix names, 512 lanes at once.

    Args:
        rows: (passes * WINDOW, 8) uint64; rows beyond the matrix must be zero.
        picks: (passes, outputs) uint64 from `bch.picks_of`.
        out: (outputs, 8) uint64.
        table: (TABLES << BITS, 8) uint64 scratch, 64-byte aligned.
    """
    source, target, sums = np.intp(rows.ctypes.data), np.intp(out.ctypes.data), np.intp(table.ctypes.data)
    zero = _fill(0)
    for o in range(out.shape[0]):
        _put(target + 64 * o, zero)
    for step in range(picks.shape[0]):
        for group in range(TABLES):
            _put(sums + 64 * (group << BITS), zero)
            for bit in range(BITS):
                _fill_table(sums, group, bit, _get(source + 64 * (step * WINDOW + group * BITS + bit)))
        for o in range(out.shape[0]):
            _put(target + 64 * o, _gather(sums, picks[step, o], _get(target + 64 * o)))


@njit(cache=True, nogil=True)
def _invert(planes, out, a, scratch):
    """out = 1 / a (0 for 0): a^(2^m - 2) by Itoh and Tsujii. out, a and scratch must differ."""
    m = len(planes)
    for plane in range(m):
        _put(out + 64 * plane, _get(a + 64 * plane))
    done = 1  # out = a^(2^done - 1)
    top = 0
    while (m - 1) >> (top + 1):
        top += 1
    for bit in range(top - 1, -1, -1):
        _square(planes, scratch, out)
        for _ in range(done - 1):
            _square(planes, scratch, scratch)
        _times(planes, out, out, scratch)
        done *= 2
        if (m - 1) >> bit & 1:
            _square(planes, scratch, out)
            _times(planes, out, scratch, a)
            done += 1
    _square(planes, out, out)


@njit(cache=True, nogil=True)
def _times(planes, out, a, b):
    _multiply(planes, out, a, b)


@njit(inline="always")
def _spread_syndromes(planes, leaders, slots, squarings, syndromes):
    """S_1 .. S_2t from those of the coset leaders: S_2i = S_i^2."""
    size = 64 * len(planes)
    source, target = np.intp(leaders.ctypes.data), np.intp(syndromes.ctypes.data)
    for i in range(1, syndromes.shape[0]):
        here = target + size * i
        if i & 1:
            for plane in range(len(planes)):
                _put(here + 64 * plane, _get(source + size * slots[i] + 64 * plane))
            for _ in range(squarings[i]):
                _square(planes, here, here)
        else:
            _square(planes, here, target + size * (i >> 1))


@njit(cache=True, nogil=True)
def berlekamp_massey(planes, leaders, slots, squarings, syndromes, locator, previous, lengths, scratch):
    """Error locators of 512 codewords.

    The two steps of the binary algorithm are taken as one. Coefficients beyond t are dropped: they belong to lanes
    whose length exceeds t, and a length never shrinks. Every discrepancy up to S_(2t-1) is computed, so a locator of
    length L <= t that has L different roots is proven to explain all 2t syndromes.

    Args:
        planes: tuple of m integers.
        leaders: (leaders, m, 8) syndromes S_i for the coset leaders i.
        slots: (2t + 1,) int64; for odd i, the index in `leaders` of the leader of i's coset.
        squarings: (2t + 1,) int64; S_i is that leader's syndrome squared so often.
        syndromes: (2t + 1, m, 8) scratch.
        locator: (at least t + 1, m, 8) receives the coefficients, constant first; zero beyond its length.
        previous: (3t + 2, m, 8) scratch.
        lengths: (counter_bits, 8) receives the length per lane as a bit-sliced number; lengths > t: more than t errors.
        scratch: (5, m, 8) scratch.
    Returns:
        The greatest length that is not beyond t.
    """
    m, t = len(planes), syndromes.shape[0] >> 1
    size = 64 * m
    counters = lengths.shape[0]
    S, Λ, B, L = (
        np.intp(syndromes.ctypes.data),
        np.intp(locator.ctypes.data),
        np.intp(previous.ctypes.data),
        np.intp(lengths.ctypes.data),
    )
    delta = np.intp(scratch.ctypes.data)
    inverse, factor, power, change = delta + size, delta + 2 * size, delta + 3 * size, delta + 4 * size
    _spread_syndromes(planes, leaders, slots, squarings, syndromes)
    locator[:] = 0
    previous[:] = 0
    lengths[:] = 0
    scratch[:] = 0
    ones, alive = _fill(1), _fill(1)
    _put(Λ, ones)
    _put(inverse, ones)
    base = B + 2 * t * size  # the coefficient of x^0 of the previous locator, shifted; it moves down two per turn
    _put(base + size, ones)
    longest = 0
    for k in range(t):
        _dot(planes, delta, Λ, S + (2 * k + 1) * size, min(longest, 2 * k) + 1)
        wrong = _fill(0)
        for plane in range(m):
            value = _and(alive, _get(delta + 64 * plane))
            _put(delta + 64 * plane, value)
            wrong = _or(wrong, value)
        if _any(wrong):
            less, equal = _fill(0), ones
            for j in range(counters - 1, -1, -1):
                length, bound = _get(L + 64 * j), _fill((k >> j) & 1)
                less = _or(less, _and(equal, _and(_not(length), bound)))
                equal = _and(equal, _not(_xor(length, bound)))
            longer = _and(wrong, _or(less, equal))
            _put(change, longer)
            borrow, candidates = _fill(0), alive
            for j in range(counters):
                length, total = _get(L + 64 * j), _fill(((2 * k + 1) >> j) & 1)
                unequal = _xor(total, length)
                difference = _xor(unequal, borrow)
                borrow = _or(_and(_not(total), length), _and(_not(unequal), borrow))
                _put(L + 64 * j, _xor(length, _and(longer, _xor(length, difference))))
            more, equal = _fill(0), ones
            for j in range(counters - 1, -1, -1):
                length, bound = _get(L + 64 * j), _fill((t >> j) & 1)
                more = _or(more, _and(equal, _and(length, _not(bound))))
                equal = _and(equal, _not(_xor(length, bound)))
            alive = _and(alive, _not(more))
            candidates = alive
            longest = 0
            for j in range(counters - 1, -1, -1):
                among = _and(candidates, _get(L + 64 * j))
                if _any(among):
                    longest |= 1 << j
                    candidates = among
            _times(planes, factor, delta, inverse)
            _update(planes, Λ, base, factor, change, longest + 1)
            if _any(longer):
                _invert(planes, factor, delta, power)
                for plane in range(m):
                    old = _get(inverse + 64 * plane)
                    _put(inverse + 64 * plane, _xor(old, _and(longer, _xor(old, _get(factor + 64 * plane)))))
        base -= 2 * size
    return longest


@njit(inline="always")
def _split(planes, depth, twists, source, other):
    """Turn 2^depth coefficients into the constants at the leaves of the additive FFT; returns the address they are at.

    Per level: substitute so that the last basis element is 1, expand in powers of x^2 + x, part even from odd terms.
    """
    size = 64 * len(planes)
    count = 1 << depth
    for level in range(depth):
        length = count >> level
        if level:
            for i in range(count):
                if i & (length - 1):
                    _scale(
                        planes, source + size * i, twists + 8 * len(planes) * (count - 2 * length + (i & (length - 1)))
                    )
        block = length
        while block > 2:
            quarter = block >> 2
            for start in range(0, count, block):
                for step in range(2, 0, -1):
                    into = source + size * (start + step * quarter)
                    for i in range(0, size * quarter, 64):
                        _put(into + i, _xor(_get(into + i), _get(into + i + size * quarter)))
            block >>= 1
        for start in range(0, count, length):
            for i in range(length):
                target = other + size * (start + (i >> 1) + (i & 1) * (length >> 1))
                for plane in range(0, size, 64):
                    _put(target + plane, _get(source + size * (start + i) + plane))
        source, other = other, source
    return source


@njit(inline="always")
def _find_roots(planes, leaves, word, depth, constants, octets, work, roots):
    """Evaluate 64 locators at all points; bit c of roots[p] says that point p is a root of locator 64 * word + c.

    The points are taken in groups of 8 * 2^depth: 8 neighbours side by side in a vector, and 2^depth along a transform.
    Its deepest levels run on blocks of up to 16 elements, the others on every 16th element, so that most of the work is
    done in the first-level cache. `constants` holds, level by level from the root, (2^(depth-1-level), octets, m, 8)
    bytes.
    """
    m = len(planes)
    size, count = 64 * m, 1 << depth
    row = 8 * m * octets
    block = min(count >> 1, 16)
    for octet in range(octets):
        here = constants + 8 * m * octet
        for start in range(0, count, block):
            for node in range(start, start + block, 2):
                u = leaves + size * node + 8 * word
                low = work + size * node
                _butterfly_spread(planes, u, u + size, here + row * (count - 2), low, low + size)
            half = 2
            while half < block:
                _level(planes, work, start, start + block, 1, half, here + row * (count - 2 * half), row)
                half *= 2
        for column in range(block):
            half = block
            while half < count >> 1:
                table = here + row * (count - 2 * half + column)
                _level(planes, work, column, count, block, half, table, row)
                half *= 2
            for e in range(column, half, block):
                low = roots + 64 * (octets * e + octet)
                u = work + size * e
                _butterfly_zeros(planes, u, u + size * half, here + row * e, low, low + 64 * octets * half)


@njit(cache=True, nogil=True)
def _level(planes, work, first, last, step, half, table, row):
    """Butterflies between elements first, first + step, ... < last and their partners `half` further."""
    size = 64 * len(planes)
    for start in range(first, last, 2 * half):
        for e in range(0, half, step):
            u = work + size * (start + e)
            _butterfly(planes, u, u + size * half, table + row * e)


@njit(cache=True, nogil=True)
def find_roots(planes, locator, depth, octets, twists, constants, work, column, roots):
    """Evaluate 512 locators at all points; row p of `roots` says of which lanes point p is a root.

    Args:
        planes: tuple of m integers.
        locator: (2^depth, m, 8) coefficients, constant first; overwritten.
        depth: at least 2.
        octets: of lanes to look at, from the first on; roots of other lanes mean nothing.
        twists, constants: from `bch.Transform`.
        work: (2^depth, m, 8) scratch.
        column: (points,) uint64 scratch.
        roots: (points, 8) uint64.
    """
    ours, theirs = np.intp(locator.ctypes.data), np.intp(work.ctypes.data)
    leaves = _split(planes, depth, np.intp(twists.ctypes.data), ours, theirs)
    other = theirs if leaves == ours else ours
    neighbourhoods = roots.shape[0] >> (depth + 3)
    for word in range((octets + 7) >> 3):
        table, found = np.intp(constants.ctypes.data), np.intp(column.ctypes.data)
        _find_roots(planes, leaves, word, depth, table, neighbourhoods, other, found)
        for point in range(roots.shape[0]):
            roots[point, word] = column[point]


@njit(cache=True, nogil=True)
def difference(remainder, parity, column, out, dirty):
    """out = remainder + parity rows; `dirty` (8,) receives the lanes in which that is not zero."""
    source, target = np.intp(remainder.ctypes.data), np.intp(out.ctypes.data)
    other, stride = np.intp(parity.ctypes.data) + 8 * column, 8 * parity.shape[1]
    unequal = _fill(0)
    for i in range(parity.shape[0]):
        row = _xor(_get(source + 64 * i), _get(other + stride * i))
        unequal = _or(unequal, row)
        _put(target + 64 * i, row)
    _put(np.intp(dirty.ctypes.data), unequal)


@njit(cache=True, nogil=True)
def plausible(lengths, t, pending, hopeful):
    """Lanes of `pending` whose length is 1..t to `hopeful`, both (8,) uint64; returns how many."""
    count = np.int64(0)
    for word in range(WORDS):
        some, more, equal = np.uint64(0), np.uint64(0), ~np.uint64(0)
        for j in range(lengths.shape[0] - 1, -1, -1):
            bound = ~np.uint64(0) if (t >> j) & 1 else np.uint64(0)
            some |= lengths[j, word]
            more |= equal & lengths[j, word] & ~bound
            equal &= ~(lengths[j, word] ^ bound)
        chosen = pending[word] & some & ~more
        hopeful[word] = chosen
        for bit in range(64):
            count += np.int64(chosen >> np.uint64(bit)) & 1
    return count


@njit(inline="always")
def _toggle(rows, stride, count, points, roots, keep, totals, planes):
    """Add root rows to `count` rows, and count the roots of every lane; row i is that of points[-i]."""
    ones, twos, zero = _get(totals), _get(totals + 64), _fill(0)
    for i in range(0, count, 4):
        at, left = rows + stride * i, count - i
        a = _and(keep, _get(roots + 64 * points[count - 1 - i]))
        _put(at, _xor(_get(at), a))
        b = c = d = zero
        if left > 1:
            b = _and(keep, _get(roots + 64 * points[count - 2 - i]))
            _put(at + stride, _xor(_get(at + stride), b))
        if left > 2:
            c = _and(keep, _get(roots + 64 * points[count - 3 - i]))
            _put(at + 2 * stride, _xor(_get(at + 2 * stride), c))
        if left > 3:
            d = _and(keep, _get(roots + 64 * points[count - 4 - i]))
            _put(at + 3 * stride, _xor(_get(at + 3 * stride), d))
        first = _or(_and(ones, a), _and(b, _xor(ones, a)))
        ones = _xor(ones, _xor(a, b))
        second = _or(_and(ones, c), _and(d, _xor(ones, c)))
        ones = _xor(ones, _xor(c, d))
        carry = _or(_and(twos, first), _and(second, _xor(twos, first)))
        twos = _xor(twos, _xor(first, second))
        for plane in range(128, 64 * planes, 64):
            total = _get(totals + plane)
            _put(totals + plane, _xor(total, carry))
            carry = _and(total, carry)
    _put(totals, ones)
    _put(totals + 64, twos)


@njit(cache=True, nogil=True)
def _bit(rows, row, lane):
    return np.int64(rows[row, lane >> 6] >> np.uint64(lane & 63)) & 1


@njit(cache=True, nogil=True)
def flip_roots(roots, points, lengths, hopeful, message, parity, column, counts, flips):
    """Flip the bits that roots name, in lanes that have as many of them as their locator is long.

    Args:
        roots: (points, 8) uint64 of `find_roots`.
        points: (n,) int64, the point for every power of x.
        lengths: (counter_bits, 8) the locators' lengths, bit-sliced.
        hopeful: (8,) uint64, lanes to look at.
        message, parity: rows of lanes, corrected in words column..column+7.
        counts: (planes, 8) uint64 scratch; numbers of roots have so many bits, at least 2.
        flips: (512,) int32 receives the length in lanes that were corrected.
    """
    planes = counts.shape[0]
    counts[:] = 0
    bits, check = message.shape[0], parity.shape[0]
    stride, step = 8 * message.shape[1], 8 * parity.shape[1]
    rows, ends = np.intp(message.ctypes.data) + 8 * column, np.intp(parity.ctypes.data) + 8 * column
    found, totals = np.intp(roots.ctypes.data), np.intp(counts.ctypes.data)
    keep = _get(np.intp(hopeful.ctypes.data))
    _toggle(rows, stride, bits, points[check:], found, keep, totals, planes)
    _toggle(ends, step, check, points, found, keep, totals, planes)
    wrong = _fill(0)
    for j in range(planes):
        length = _get(np.intp(lengths.ctypes.data) + 64 * j) if j < lengths.shape[0] else _fill(0)
        wrong = _or(wrong, _xor(length, _get(totals + 64 * j)))
    wrong = _and(wrong, keep)
    agree = counts[0]
    _put(np.intp(agree.ctypes.data), _and(keep, _not(wrong)))
    if _any(wrong):
        for i in range(bits + check):
            at = rows + stride * i if i < bits else ends + step * (i - bits)
            row = _get(found + 64 * points[bits + check - 1 - i])
            _put(at, _xor(_get(at), _and(wrong, row)))
    for lane in range(64 * WORDS):
        if (agree[lane >> 6] >> np.uint64(lane & 63)) & np.uint64(1):
            length = 0
            for j in range(lengths.shape[0]):
                length |= _bit(lengths, j, lane) << j
            flips[lane] = length
