"""Encoding, checking and decoding of binary BCH codes on rows of lanes.

Rows are (bits, lane_words) uint64: row i holds bit i of every codeword, highest power first, and a codeword is its
message rows followed by its parity rows. A shortened message has fewer rows. Lanes are taken 512 at a time:

    remainder -> syndromes of the coset leaders -> Berlekamp-Massey -> additive FFT over all points -> flips
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckptguard.errors import UsageError
from ckptguard.kernels import affine, bitsliced, clmul, sparse
from ckptguard.kernels.algebra import coset_leaders, field, generator_polynomial, inverse_modulo_power, powers_modulo
from ckptguard.kernels.bitsliced import BITS, TABLES, WINDOW
from ckptguard.kernels.vectors import WORDS

Rows = npt.NDArray[np.uint64]
LANES = 64 * WORDS
FEW = 8  # errors that are tried for first where many lanes are clean
CLEAN = 8  # so many lanes
SPARSE = 64  # lanes at most that are corrected one by one in the end
MOVED = 192  # lanes at most that are moved together before their roots are looked for
MOST_TAILS = 1 << 19  # words
AFFINE_GROUP = 2  # octets of codewords that share the constants of a transform; more do not fit the first-level cache


class Transform(NamedTuple):
    """Constants of the additive FFT of one depth.

    Attributes:
        depth: it evaluates polynomials of fewer than 2^depth coefficients.
        twists: int8, 0 or -1; per level from the second, per coefficient, the m bits of its factor, eight times.
        constants: (2^depth - 1, octets, m, 8) int8, 0 or -1: the m bits of the factors of eight neighbouring points.
        positions: (points,) int64, the power of x located by a root at that point; n where there is none.
        points: (n,) int64, the point for every power of x.
    """

    depth: int
    twists: npt.NDArray[np.int8]
    constants: npt.NDArray[np.int8]
    positions: npt.NDArray[np.int64]
    points: npt.NDArray[np.int64]


class FieldTables(NamedTuple):
    """What the kernels need of a field: exp, log, and halves[c] = a y with y^2 + y = c, or -1; all (...,) int64."""

    exp: npt.NDArray[np.int64]
    log: npt.NDArray[np.int64]
    halves: npt.NDArray[np.int64]


class ByteTransform(NamedTuple):
    """The same constants for `affine`.

    Attributes:
        twists: (.., 4) uint64, the factors as matrices.
        constants: (octets, 2^depth - 1, 4, 8) uint64, starting at a cache line.
    """

    twists: Rows
    constants: Rows


@dataclass(frozen=True, eq=False)
class Equations:
    """What it takes to correct up to t errors.

    Attributes:
        t: errors.
        syndromes: (passes, leaders * m) uint64, picks that turn a remainder into syndromes.
        slots, squarings: (2t + 1,) int64; S_i is the syndrome of leader slots[i], squared squarings[i] times (odd i).
    """

    t: int
    syndromes: Rows
    slots: npt.NDArray[np.int64]
    squarings: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tables:
    """Everything about a code that is computed once.

    Attributes:
        m, n, t: the code; n = 2^m - 1.
        parity_bits: n - k.
        division: (parity_bits,) uint64, picks for the remainder.
        equations: for up to t errors.
    """

    m: int
    n: int
    t: int
    parity_bits: int
    division: Rows
    equations: Equations

    @property
    def planes(self) -> tuple[int, ...]:
        """m in the form that the kernels take it."""
        return (0,) * self.m

    @property
    def lane_words(self) -> int:
        """64-bit words of a codeword's remainder."""
        return -(-self.parity_bits // 64)

    @cached_property
    def few(self) -> Equations | None:
        """For up to FEW errors, where that is much less work; what they find has to be proven by `tails`."""
        if self.t < 2 * FEW or self.n * self.lane_words > MOST_TAILS:
            return None
        return _equations(self.m, self.parity_bits, FEW)

    @cached_property
    def tails(self) -> Rows:
        """(n, lane_words) uint64, the remainder of every power of x as `sparse.tails_of` makes it."""
        leading = powers_modulo(generator_polynomial(self.m, self.t), 1)
        bits = np.zeros((2, 64 * self.lane_words), np.uint8)
        bits[0, : self.parity_bits] = _bits(leading, self.parity_bits)[0]
        bits[1, self.parity_bits - 1] = 1
        packed = np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)
        tails = np.zeros((self.n, self.lane_words), np.uint64)
        tails[0] = packed[1]
        sparse.tails_of(packed[0], tails)
        return tails


@lru_cache(maxsize=16)
def bch_tables(m: int, t: int) -> Tables:
    """Tables of the narrow-sense BCH code of length 2^m - 1 whose roots include alpha^1 .. alpha^2t."""
    generator = generator_polynomial(m, t)
    parity_bits = generator.bit_length() - 1
    powers = powers_modulo(generator, WINDOW)[::-1]  # of the leading row first
    return Tables(
        m=m,
        n=(1 << m) - 1,
        t=t,
        parity_bits=parity_bits,
        division=picks_of(_bits(powers, parity_bits).T)[0],
        equations=_equations(m, parity_bits, t),
    )


def _equations(m: int, parity_bits: int, t: int) -> Equations:
    gf, leaders = field(m), coset_leaders(m)
    roots = np.unique(leaders[1 : 2 * t : 2])
    slots, squarings = np.zeros(2 * t + 1, np.int64), np.zeros(2 * t + 1, np.int64)
    odd = np.arange(1, 2 * t, 2)
    slots[odd] = np.searchsorted(roots, leaders[odd])
    conjugates = leaders[odd, None] << np.arange(m)  # leader * 2^s; the first s that gives i counts
    squarings[odd] = np.argmax(conjugates % gf.order == odd[:, None] % gf.order, axis=1)
    exponents = np.arange(parity_bits - 1, -1, -1)
    values = gf.exp.astype(np.uint16)[roots[:, None] * exponents % gf.order]
    matrix = (values[:, None, :] >> np.arange(m, dtype=np.uint16)[:, None]).astype(np.uint8) & np.uint8(1)
    return Equations(t, picks_of(matrix.reshape(len(roots) * m, parity_bits)), slots, squarings)


def _bits(polynomials: list[int], count: int) -> npt.NDArray[np.uint8]:
    """(polynomials, count) their coefficients, highest power first."""
    size = -(-count // 8)
    raw = b"".join((polynomial << (8 * size - count)).to_bytes(size, "big") for polynomial in polynomials)
    return np.unpackbits(np.frombuffer(raw, np.uint8).reshape(len(polynomials), size), axis=1)[:, :count]


def picks_of(matrix: npt.NDArray[np.uint8]) -> Rows:
    """(passes, outputs) uint64: byte g of a word is the entry of table g that goes into that output in that pass.

    Args:
        matrix: (outputs, inputs) of 0 and 1.
    """
    outputs, inputs = matrix.shape
    passes = -(-inputs // WINDOW)
    padded = np.zeros((outputs, passes * WINDOW), np.uint8)
    padded[:, :inputs] = matrix
    entries = np.packbits(padded.reshape(outputs, passes, TABLES, BITS), axis=3, bitorder="little")[..., 0]
    return np.ascontiguousarray(entries.transpose(1, 0, 2)).view("<u8")[:, :, 0].astype(np.uint64)


@lru_cache(maxsize=16)
def field_tables(m: int) -> FieldTables:
    """For GF(2^m)."""
    gf = field(m)
    elements = np.arange(gf.order + 1)
    halves = np.full(gf.order + 1, -1, np.int64)
    halves[gf.multiply(elements, elements) ^ elements] = elements
    return FieldTables(gf.exp, gf.log, halves)


@lru_cache(maxsize=32)
def transform_tables(m: int, depth: int) -> Transform:
    """The additive FFT of Gao and Mateer over all of GF(2^m), for the basis alpha, alpha^2, .., alpha^(m-1), 1."""
    gf = field(m)
    basis = [*(int(gf.exp[i]) for i in range(1, m)), 1]
    points = _span(basis)
    octets, period = max(1, 1 << (m - depth) >> 3), 1 << (m - depth)
    constants, twists = [], []
    for level in range(depth):
        last = basis.pop()
        if level:
            twists.append(gf.exp[np.arange(1 << (depth - level)) * gf.log[last] % gf.order])
        basis = [int(gf.multiply(element, gf.inverse(last))) for element in basis]
        factors = _span(basis).reshape(-1, period)
        constants.append(np.pad(factors, ((0, 0), (0, 8 * octets - period))))
        basis = [int(gf.multiply(element, element)) ^ element for element in basis]
    powers = np.where(points == 0, gf.order, -gf.log[points] % gf.order).reshape(-1, period)
    positions = np.pad(powers, ((0, 0), (0, 8 * octets - period)), constant_values=gf.order).ravel()
    bit = np.arange(m)[:, None]
    stacked = np.concatenate(constants).reshape(-1, octets, 1, 8)
    return Transform(
        depth=depth,
        twists=-np.repeat(np.concatenate(twists)[:, None, None] >> bit & 1, 8, axis=2).astype(np.int8),
        constants=-(stacked >> bit & 1).astype(np.int8),
        positions=positions,
        points=np.argsort(positions, kind="stable")[: gf.order],
    )


@lru_cache(maxsize=32)
def byte_transform(m: int, depth: int) -> ByteTransform:
    """The constants of `transform_tables` as matrices."""
    transform = transform_tables(m, depth)
    bits = (transform.constants & 1).astype(np.int64)  # (nodes, octets, m, 8)
    factors = (bits << np.arange(m)[:, None]).sum(axis=2)
    constants = np.moveaxis(_matrices(m, factors), (0, 1, 2, 3), (1, 0, 3, 2))
    aligned = _aligned(*constants.shape)
    aligned[:] = constants
    twists = ((transform.twists & 1).reshape(-1, m, 8)[:, :, 0].astype(np.int64) << np.arange(m)).sum(axis=1)
    return ByteTransform(_matrices(m, twists), aligned)


def _matrices(m: int, factors: npt.NDArray[np.int64]) -> Rows:
    """(..., 4) uint64 of (...) elements: low to low, high to low, low to high, high to high byte of the product.

    Byte 7 - i of a matrix has bit k set where bit k of a byte goes into bit i of the result.
    """
    gf = field(m)
    products = np.zeros((*factors.shape, 16), np.int64)
    products[..., :m] = gf.multiply(factors[..., None], gf.exp[:m])
    bits = (products[..., None, :] >> np.arange(16)[:, None] & 1).astype(np.uint8)  # (..., to, from)
    blocks = np.packbits(bits, axis=-1, bitorder="little").reshape(*factors.shape, 2, 8, 2)[..., ::-1, :]
    words = np.ascontiguousarray(np.moveaxis(blocks, -1, -2)).view("<u8")[..., 0]
    return words.reshape(*factors.shape, 4).astype(np.uint64)


def _span(basis: list[int]) -> npt.NDArray[np.int64]:
    """Element i is the sum of the basis elements at the ones of i."""
    span = np.zeros(1, np.int64)
    for element in basis:
        span = np.concatenate([span, span ^ element])
    return span


def _aligned(*shape: int) -> Rows:
    """Zeroed words that start at a cache line."""
    size = int(np.prod(shape))
    space = np.zeros(size + 8, np.uint64)
    start = -(space.ctypes.data // 8) % 8
    return space[start : start + size].reshape(shape)


class PortableRemainder:
    """Scratch for the remainders of many batches, portable."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.state = _aligned(tables.parity_bits + WINDOW, WORDS)
        self.sums = _aligned(TABLES << BITS, WORDS)

    def of(self, message: Rows, column: int) -> Rows:
        """(parity_bits, 8) view, valid until the next call."""
        bitsliced.remainder(message, column, self.tables.division, self.state, self.sums)
        return self.state[: self.tables.parity_bits]


class CarrylessRemainder:
    """The same by carry-less multiplication, where the processor has it."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.state = _aligned(-(-tables.parity_bits // 64) * 64, WORDS)
        self.words = _aligned(64 * -(-tables.n // 256) * 4, WORDS)
        reflected = int(f"{generator_polynomial(tables.m, tables.t):b}"[::-1], 2)
        self.generator = nine_sums(reflected, tables.parity_bits // 256 + 1)
        self.even, self.odd = (_aligned(4 * len(self.generator) + 2, WORDS) for _ in range(2))
        self.inverse = _aligned(2, 9, WORDS)
        self.inverse[:1] = nine_sums(inverse_modulo_power(reflected, 256), 1)

    def of(self, message: Rows, column: int) -> Rows:
        """(parity_bits, 8) view, valid until the next call."""
        clmul.remainder(message, column, self.generator, self.inverse, self.state, self.words, self.even, self.odd)
        return self.state[: self.tables.parity_bits]


def nine_sums(polynomial: int, quads: int) -> Rows:
    """(quads, 9, 8) uint64, eight times the factors of Karatsuba's products, twice, of four words of a polynomial each.

    Of words a, b, c, d: a, b, a + b, c, d, c + d, a + c, b + d, a + b + c + d.
    """
    words = np.array([polynomial >> 64 * i & 0xFFFFFFFFFFFFFFFF for i in range(4 * quads)], np.uint64)
    a, b, c, d = words.reshape(quads, 4).T
    sums = _aligned(quads, 9, WORDS)
    sums[:] = np.stack([a, b, a ^ b, c, d, c ^ d, a ^ c, b ^ d, a ^ b ^ c ^ d], axis=1)[:, :, None]
    return sums


def _require_fit(tables: Tables, message: Rows, parity: Rows | None = None) -> None:
    """The kernels do not look at bounds, so what they are given is looked at here."""
    k = tables.n - tables.parity_bits
    fits = message.ndim == 2 and message.dtype == np.uint64 and message.shape[0] <= k and message.shape[1] % WORDS == 0
    if parity is not None:
        fits = fits and parity.dtype == np.uint64 and parity.shape == (tables.parity_bits, message.shape[1])
    if not fits:
        found = " and ".join(f"{rows.dtype} {rows.shape}" for rows in (message, parity) if rows is not None)
        raise UsageError(
            f"rows of {found} do not fit the code: at most {k} message bits, exactly {tables.parity_bits} parity bits, "
            f"each a row of uint64 words whose number is a multiple of {WORDS}"
        )


def encode(tables: Tables, message: Rows) -> Rows:
    """(parity_bits, lane_words) parity rows of (bits <= k, lane_words) message rows; lane_words a multiple of 8."""
    _require_fit(tables, message)
    message = np.ascontiguousarray(message)
    parity = np.empty((tables.parity_bits, message.shape[1]), np.uint64)
    remainder = _scratch(tables).remainder
    for column in range(0, message.shape[1], WORDS):
        parity[:, column : column + WORDS] = remainder.of(message, column)
    return parity


def check(tables: Tables, message: Rows, parity: Rows) -> Rows:
    """(lane_words,) uint64 with a bit set for every lane that is not a codeword."""
    _require_fit(tables, message, parity)
    message = np.ascontiguousarray(message)
    dirty = np.empty(message.shape[1], np.uint64)
    scratch, parity = _scratch(tables), np.ascontiguousarray(parity)
    for column in range(0, message.shape[1], WORDS):
        dirty[column : column + WORDS] = scratch.difference(message, parity, column)[1]
    return dirty


def decode(tables: Tables, message: Rows, parity: Rows) -> npt.NDArray[np.int32]:
    """Correct message and parity rows in place.

    Returns:
        (64 * lane_words,) the number of bits flipped per lane; 0 = was a codeword; -1 = uncorrectable, left as read.
    """
    _require_fit(tables, message, parity)
    if not (message.flags.c_contiguous and parity.flags.c_contiguous):
        return _decode_copies(tables, message, parity)
    flips = np.zeros(64 * message.shape[1], np.int32)
    scratch = _scratch(tables)
    for column in range(0, message.shape[1], WORDS):
        difference, dirty = scratch.difference(message, parity, column)
        if dirty.any():
            batch = _Batch(message, parity, column, flips[64 * column : 64 * column + LANES])
            scratch.solver.solve(difference, dirty, batch)
    return flips


def _decode_copies(tables: Tables, message: Rows, parity: Rows) -> npt.NDArray[np.int32]:
    copies = np.ascontiguousarray(message), np.ascontiguousarray(parity)
    flips = decode(tables, *copies)
    message[:], parity[:] = copies
    return flips


class _Batch(NamedTuple):
    """512 lanes of rows to correct, and (512,) flips to fill in."""

    message: Rows
    parity: Rows
    column: int
    flips: npt.NDArray[np.int32]


class PortableRoots:
    """Scratch for finding the roots of many locators, portable."""

    shallowest = 2  # depth of a transform; its first and its last level have kernels of their own

    def __init__(self, tables: Tables, depth: int, points: int) -> None:
        self.planes = tables.planes
        self.work, self.column = _aligned(1 << depth, tables.m, WORDS), _aligned(points)

    def find(self, locator: Rows, transform: Transform, octets: int, roots: Rows) -> None:
        """Row p of `roots` says of which lanes below 8 * octets point p is a root. The locator is overwritten."""
        depth, twists, constants = transform.depth, transform.twists, transform.constants
        bitsliced.find_roots(self.planes, locator, depth, octets, twists, constants, self.work, self.column, roots)


class AffineRoots:
    """The same by affine instructions, where the processor has them; m > 8."""

    shallowest = affine.SHALLOWEST

    def __init__(self, tables: Tables, depth: int, points: int) -> None:
        self.m = tables.m
        self.leaves = _aligned(9 * 16 << depth)
        self.work = _aligned(AFFINE_GROUP * 16 << depth)
        self.masks = _aligned(1 << depth, LANES // 8)

    def find(self, locator: Rows, transform: Transform, octets: int, roots: Rows) -> None:
        """As `PortableRoots.find`."""
        depth, tables = transform.depth, byte_transform(self.m, transform.depth)
        work = self.work[: AFFINE_GROUP * 16 << depth].reshape(AFFINE_GROUP, -1)
        affine.find_roots(locator, depth, octets, *tables, self.leaves, work, self.masks, roots)


class _Solver:
    """Scratch for decoding many batches, and the decoding of one."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        m, t = tables.m, tables.t
        self.leaders = _aligned(tables.equations.syndromes.shape[1], WORDS)
        self.syndromes = _aligned(2 * t + 1, m, WORDS)
        kind = AffineRoots if m > 8 and affine.available() else PortableRoots
        depth = max(kind.shallowest, t.bit_length())
        points = max(8 << depth, 1 << m)
        self.finder = kind(tables, depth, points)
        self.locator = _aligned(1 << depth, m, WORDS)
        self.previous = _aligned(3 * t + 2, m, WORDS)
        self.all_lengths = _aligned((2 * t).bit_length(), WORDS)
        self.scratch = _aligned(5, m, WORDS)
        self.roots = _aligned(points, WORDS)
        self.counts = _aligned(depth, WORDS)
        self.sums = _aligned(TABLES << BITS, WORDS)
        self.words = _aligned(64 * tables.lane_words, WORDS)
        self.hopeful = _aligned(WORDS)
        self.powers = np.zeros((LANES, t + 1), np.int64)
        self.found, self.lanes = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)

    def solve(self, remainder: Rows, dirty: Rows, batch: _Batch) -> None:
        """Correct 512 lanes whose remainders these are."""
        few = self.tables.few
        if few is not None and LANES - _ones(dirty) >= CLEAN:
            self._locate(few, remainder, dirty)
            sparse.lane_words(remainder, self.words)
            self._correct_listed(few, batch, self.words, self.tables.tails)
            dirty = dirty & ~np.packbits(batch.flips > 0, bitorder="little").view(np.uint64)
        if dirty.any():
            hopeful = self._locate(self.tables.equations, remainder, dirty)
            if hopeful <= SPARSE:
                self._correct_listed(self.tables.equations, batch, self.words[:0], _NO_TAILS)
            else:
                self._correct_all(batch)
            wrong = np.unpackbits(dirty.view(np.uint8), bitorder="little").astype(np.bool_)
            batch.flips[wrong & (batch.flips == 0)] = -1

    def _locate(self, equations: Equations, remainder: Rows, pending: Rows) -> int:
        """Find the locators, their lengths and the pending lanes that may be corrected by them; how many these are."""
        tables, t = self.tables, equations.t
        leaders = self.leaders[: equations.syndromes.shape[1]]
        bitsliced.combine(remainder, equations.syndromes, leaders, self.sums)
        self.lengths = self.all_lengths[: (2 * t).bit_length()]
        self.longest = bitsliced.berlekamp_massey(
            tables.planes,
            leaders.reshape(-1, tables.m, WORDS),
            equations.slots,
            equations.squarings,
            self.syndromes[: 2 * t + 1],
            self.locator,
            self.previous,
            self.lengths,
            self.scratch,
        )
        return int(bitsliced.plausible(self.lengths, t, pending, self.hopeful))

    def _find_roots(self, octets: int) -> Transform:
        transform = transform_tables(self.tables.m, max(self.finder.shallowest, self.longest.bit_length()))
        self.used_roots = self.roots[: len(transform.positions)]
        self.finder.find(self.locator[: 1 << transform.depth], transform, octets, self.used_roots)
        return transform

    def _correct_all(self, batch: _Batch) -> None:
        transform = self._find_roots(LANES // 8)
        counts = self.counts[: transform.depth]
        arguments = self.used_roots, transform.points, self.lengths, self.hopeful
        bitsliced.flip_roots(*arguments, batch.message, batch.parity, batch.column, counts, batch.flips)

    def _correct_listed(self, equations: Equations, batch: _Batch, words: Rows, tails: Rows) -> None:
        gf, locator, listed = field_tables(self.tables.m), self.locator, (self.powers, self.found)
        left = sparse.solve_short(locator, self.lengths, self.hopeful, gf, *listed, self.lanes)
        if left:
            lanes, wanted = np.arange(LANES), self.hopeful
            if left <= MOVED:
                wanted = np.packbits(lanes < left, bitorder="little").view(np.uint64)
                lanes = self.lanes[:left]
                sparse.move_lanes(locator[: self.longest + 1].reshape(-1, WORDS), lanes)
            transform = self._find_roots(-(-len(lanes) // 8))
            sparse.list_roots(self.used_roots, transform.points, lanes, wanted, self.lengths, *listed)
        sparse.flip_listed(*listed, words, tails, batch.message, batch.parity, batch.column, batch.flips)


def _ones(bitmap: Rows) -> int:
    return int.from_bytes(bitmap.tobytes(), "little").bit_count()


_NO_TAILS = np.zeros((0, 0), np.uint64)


class _Scratch:
    """Everything the calls of one thread write to, for one code."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.remainder = CarrylessRemainder(tables) if clmul.available() else PortableRemainder(tables)
        rows = max(len(tables.equations.syndromes) * WINDOW, 64 * tables.lane_words)
        self.rows, self.dirty = _aligned(rows, WORDS), _aligned(WORDS)

    def difference(self, message: Rows, parity: Rows, column: int) -> tuple[Rows, Rows]:
        """Remainder minus parity, (at least parity_bits, 8), and (8,) the lanes where it is not zero."""
        bitsliced.difference(self.remainder.of(message, column), parity, column, self.rows, self.dirty)
        return self.rows, self.dirty

    @cached_property
    def solver(self) -> _Solver:
        return _Solver(self.tables)


_local = threading.local()


def _scratch(tables: Tables) -> _Scratch:
    """This thread's scratch, kept for the code that it used last: fresh memory costs more than a short decode."""
    scratch: _Scratch | None = getattr(_local, "scratch", None)
    if scratch is None or scratch.tables is not tables:
        scratch = _local.scratch = _Scratch(tables)
    return scratch
