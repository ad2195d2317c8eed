"""Compiled kernels of the BCH decoder that take lanes one by one, where few of them are damaged, or little.

They know nothing of the field but its tables, so they are compiled once for all codes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from ckptguard.kernels.jit import njit
from ckptguard.kernels.vectors import WORDS, _get, _lowest, _put, _transpose


@njit(cache=True, nogil=True)
def _bit(rows, row, lane):
    return np.int64(rows[row, lane >> 6] >> np.uint64(lane & 63)) & 1


@njit(cache=True, nogil=True)
def _coefficient(locator, power, lane):
    value = np.int64(0)
    for plane in range(locator.shape[1]):
        value |= _bit(locator[power], plane, lane) << plane
    return value


@njit(cache=True, nogil=True)
def _solve(locator, lane, length, field):
    """The powers of x that a locator of length 1 or 2 names; (-1, -1) if fewer."""
    order = field.log.shape[0] - 1
    first = _coefficient(locator, 1, lane)
    if first == 0:
        return -1, -1
    if length == 1:
        return field.log[first], -1
    second = _coefficient(locator, 2, lane)
    if second == 0:
        return -1, -1
    # With z = first * y, z^2 + first * z + second = 0 becomes y^2 + y = second / first^2.
    power = field.log[first]
    quotient = field.log[second] - power
    quotient += order if quotient < 0 else 0
    y = field.halves[field.exp[quotient - power + order]]
    if y < 0:
        return -1, -1
    one, other = power + field.log[y], power + field.log[y ^ 1]
    return one - (order if one >= order else 0), other - (order if other >= order else 0)


@njit(cache=True, nogil=True)
def solve_short(locator, lengths, hopeful, field, powers, found, lanes):
    """Find the errors of lanes with one or two by tables; list the other hopeful lanes.

    Args:
        locator, lengths: of `berlekamp_massey`.
        hopeful: (8,) uint64, lanes to look at; those that are left remain.
        field: `bch.FieldTables`.
        powers: (512, most) int64 receives the powers of x to flip.
        found: (512,) int64 receives how many those are; 0 for lanes that are not solved.
        lanes: (512,) int64 receives the lanes that are left, in order.
    Returns:
        How many are left.
    """
    left = 0
    found[:] = 0
    for word in range(WORDS):
        some, many = hopeful[word], np.uint64(0)
        for j in range(2, lengths.shape[0]):
            many |= lengths[j, word]
        if lengths.shape[0] > 1:
            many |= lengths[0, word] & lengths[1, word]
        hopeful[word] = some & many
        while some:
            lowest = some & (~some + np.uint64(1))
            some ^= lowest
            lane = 64 * word + _lowest(lowest)
            if many & lowest:
                lanes[left] = lane
                left += 1
                continue
            length = 1 if lengths[0, word] & lowest else 2
            powers[lane, 0], powers[lane, 1] = _solve(locator, lane, length, field)
            if powers[lane, length - 1] >= 0:
                found[lane] = length
    return left


@njit(cache=True, nogil=True)
def move_lanes(rows, lanes):
    """Lane i of every row becomes what lane lanes[i] was; lanes[i] >= i."""
    for row in range(rows.shape[0]):
        for first in range(0, lanes.shape[0], 64):
            taken = np.uint64(0)
            for i in range(first, min(first + 64, lanes.shape[0])):
                taken |= np.uint64(_bit(rows, row, lanes[i])) << np.uint64(i - first)
            rows[row, first >> 6] = taken


@njit(cache=True, nogil=True)
def list_roots(roots, points, lanes, wanted, lengths, powers, found):
    """The powers of x that roots name.

    Args:
        roots: (points, 8) uint64 of `find_roots`.
        points: (n,) int64, the point for every power of x.
        lanes: lane i of the roots stands for lane lanes[i].
        wanted: (8,) uint64, lanes of the roots to look at.
        lengths: (counter_bits, 8), of the lanes before they were moved.
        powers, found: as in `solve_short`; lanes with fewer roots than their locator is long are not solved.
    """
    for power in range(points.shape[0]):
        for word in range((lanes.shape[0] + 63) >> 6):
            left = roots[points[power], word] & wanted[word]
            while left:
                lane = lanes[64 * word + _lowest(left)]
                powers[lane, found[lane]] = power
                found[lane] += 1
                left &= left - np.uint64(1)
    for i in range(lanes.shape[0]):
        if not (wanted[i >> 6] >> np.uint64(i & 63)) & np.uint64(1):
            continue
        lane, length = lanes[i], 0
        for j in range(lengths.shape[0]):
            length |= _bit(lengths, j, lane) << j
        if found[lane] != length:
            found[lane] = 0


@njit(cache=True, nogil=True)
def flip_listed(powers, found, remainders, tails, message, parity, column, flips):
    """Flip the bits of lanes whose errors are listed.

    Args:
        powers, found: of `solve_short` and `list_roots`.
        remainders: (64 * words, 8) uint64 of `lane_words`, or (0, 8) if listed errors need no proof: a lane is left
            alone unless the remainders of its errors add up to its own.
        tails: (n, words) uint64, the remainder of every power of x.
        message, parity: rows of lanes, corrected in words column..column+7.
        flips: (512,) int32 receives the number of flips of lanes that were corrected.
    """
    length = message.shape[0] + parity.shape[0]
    own = np.zeros(remainders.shape[0] >> 6, np.uint64)
    for lane in range(64 * WORDS):
        count = found[lane]
        fits = count > 0
        for i in range(count):
            fits = fits and powers[lane, i] < length
        if not fits:
            continue
        rest = np.uint64(0)
        if remainders.shape[0]:
            for word in range(own.shape[0]):
                own[word] = remainders[64 * word + (lane & 63), lane >> 6]
            for i in range(count):
                tail = tails[powers[lane, i]]
                for word in range(own.shape[0]):
                    own[word] ^= tail[word]
            for word in range(own.shape[0]):
                rest |= own[word]
        if rest:
            continue
        flips[lane] = count
        mask = np.uint64(1) << np.uint64(lane & 63)
        for i in range(count):
            row = length - 1 - powers[lane, i]
            if row < message.shape[0]:
                message[row, column + (lane >> 6)] ^= mask
            else:
                parity[row - message.shape[0], column + (lane >> 6)] ^= mask


@njit(cache=True, nogil=True)
def lane_words(rows, out):
    """Row 64 w + i of lane 64 c + l becomes bit i of out[64 w + l, c]; rows and out (64 * words, 8) uint64."""
    source, target = np.intp(rows.ctypes.data), np.intp(out.ctypes.data)
    for i in range(0, 64 * out.shape[0], 64):
        _put(target + i, _get(source + i))
    for i in range(0, 64 * out.shape[0], 64 * 64):
        _transpose(target + i)


@njit(cache=True, nogil=True)
def tails_of(leading, out):
    """out[p] = x^p modulo the generator, (n, words) uint64: bit i of word w is the coefficient of x^(r - 1 - 64 w - i).

    Args:
        leading: (words,) uint64, x^r modulo the generator.
        out: out[0] is given, the others are zero.
    """
    for power in range(1, out.shape[0]):
        top = np.uint64(0) - (out[power - 1, 0] & np.uint64(1))
        for word in range(out.shape[1]):
            value = out[power - 1, word] >> np.uint64(1)
            if word + 1 < out.shape[1]:
                value |= out[power - 1, word + 1] << np.uint64(63)
            out[power, word] = value ^ (leading[word] & top)
