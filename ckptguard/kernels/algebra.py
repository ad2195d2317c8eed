"""Binary BCH codes on paper: fields, cyclotomic cosets, generator polynomials and the table of codes that exist.

Polynomials over GF(2) are Python integers, bit i the coefficient of x^i; elements of GF(2^m) are integers below 2^m in
the basis 1, alpha, alpha^2, ... All codes are primitive (n = 2^m - 1) and narrow-sense (first root alpha).

Source: S. Lin, D. J. Costello, Error Control Coding, 2nd ed., Pearson 2004, chapter 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

MIN_M, MAX_M = 3, 14

#: The primitive polynomial behind the field, by m: Lin and Costello, table 2.7, which Matlab and galois.BCH share.
PRIMITIVE_POLYNOMIALS = {
    3: 0xB,
    4: 0x13,
    5: 0x25,
    6: 0x43,
    7: 0x89,
    8: 0x11D,
    9: 0x211,
    10: 0x409,
    11: 0x805,
    12: 0x1053,
    13: 0x201B,
    14: 0x4443,
    15: 0x8003,
    16: 0x1100B,
}


@dataclass(frozen=True)
class Field:
    """GF(2^m) by logarithms.

    Attributes:
        m: the degree.
        exp: (2 * order,) int64, exp[i] = alpha^i; twice the period, so that a sum of two logarithms needs no reduction.
        log: (2^m,) int64, log[exp[i]] = i for i below the order; log[0] = 0 means nothing.
    """

    m: int
    exp: npt.NDArray[np.int64]
    log: npt.NDArray[np.int64]

    @property
    def order(self) -> int:
        """Of the multiplicative group, 2^m - 1."""
        return (1 << self.m) - 1

    def multiply(self, a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Elementwise product, broadcast."""
        x, y = np.asarray(a, np.int64), np.asarray(b, np.int64)
        product: npt.NDArray[np.int64] = np.where((x == 0) | (y == 0), 0, self.exp[self.log[x] + self.log[y]])
        return product

    def inverse(self, a: int) -> int:
        """1 / a for a nonzero element."""
        return int(self.exp[self.order - self.log[a]])


@cache
def field(m: int) -> Field:
    """The field of 2^m elements, m = 3..16."""
    order, polynomial = (1 << m) - 1, PRIMITIVE_POLYNOMIALS[m]
    exp, log = np.zeros(2 * order, np.int64), np.zeros(order + 1, np.int64)
    element = 1
    for power in range(order):
        exp[power] = exp[power + order] = element
        log[element] = power
        element <<= 1
        if element > order:
            element ^= polynomial
    return Field(m, exp, log)


@cache
def coset_leaders(m: int) -> npt.NDArray[np.int64]:
    """(2^m - 1,) the least member of every exponent's cyclotomic coset {i, 2i, 4i, ...} modulo 2^m - 1."""
    order = (1 << m) - 1
    leaders = exponents = np.arange(order, dtype=np.int64)
    for _ in range(m - 1):
        exponents = 2 * exponents % order
        leaders = np.minimum(leaders, exponents)
    return leaders


@cache
def codes(m: int) -> dict[int, int]:
    """Every BCH code of length 2^m - 1: k -> t, largest k first.

    t is that of the Bose distance: where alpha^1..alpha^(d-1) are all roots for a greater d than the one that was asked
    for, the greater one counts. (8191, 6722) has t = 115, although 115 * 13 is more than its 1469 parity bits.
    """
    order = (1 << m) - 1
    leaders = coset_leaders(m)
    sizes = np.bincount(leaders, minlength=order)
    table: dict[int, int] = {}
    k = order
    for root in range(1, order):
        if leaders[root] == root:
            k -= int(sizes[root])
        if k < 1:
            break
        table[k] = root // 2
    return {k: t for k, t in table.items() if t > 0}


@cache
def generator_polynomial(m: int, t: int) -> int:
    """Product of the minimal polynomials of alpha^1, alpha^3, ..., alpha^(2t-1); its degree is n - k."""
    leaders = coset_leaders(m)
    product = 1
    for leader in sorted({int(leaders[i]) for i in range(1, 2 * t, 2)}):
        product = carryless_multiply(product, minimal_polynomial(m, leader))
    return product


def minimal_polynomial(m: int, exponent: int) -> int:
    """The polynomial over GF(2) of least degree with root alpha^exponent."""
    gf = field(m)
    exp, log = gf.exp.data, gf.log.data  # these polynomials are so short that an array operation costs more
    coefficients = [1]  # over GF(2^m), constant first
    power = exponent
    while True:
        scaled = [exp[log[c] + power] if c else 0 for c in coefficients]
        coefficients = [a ^ b for a, b in zip([0, *coefficients], [*scaled, 0], strict=True)]
        power = 2 * power % gf.order
        if power == exponent:
            return sum(c << i for i, c in enumerate(coefficients))


def carryless_multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2)."""
    product = 0
    while b:
        low = b & -b
        product ^= a * low
        b ^= low
    return product


def powers_modulo(generator: int, count: int) -> list[int]:
    """x^r, x^(r+1), ..., x^(r+count-1) modulo a generator of degree r."""
    degree = generator.bit_length() - 1
    remainder = generator ^ (1 << degree)
    powers = []
    for _ in range(count):
        powers.append(remainder)
        remainder <<= 1
        if remainder >> degree:
            remainder ^= generator
    return powers


def inverse_modulo_power(polynomial: int, power: int) -> int:
    """The inverse of a polynomial with constant term 1, modulo x^power."""
    inverse, product = 1, polynomial
    for i in range(1, power):
        if product >> i & 1:
            inverse ^= 1 << i
            product ^= polynomial << i
    return inverse


def nearest_codes(m: int, k: int) -> list[tuple[int, int]]:
    """(k, t) of the codes next to k: two with more, then two with fewer message bits, where they exist."""
    table = codes(m)
    above = sorted(other for other in table if other > k)[:2]
    below = sorted((other for other in table if other < k), reverse=True)[:2]
    return [(other, table[other]) for other in [*reversed(above), *below]]
