"""An outer erasure code over the codewords of a unit: what the inner code gives up on, its neighbours make good.

A codeword that the inner decoder cannot decode is a known erasure. Every group of 512 lanes of a unit (fewer in a short
unit) has up to r *outer words*: lanes of parity over the others (see `kernels.outer`), coded by the inner code like any
message. Any lanes of a group can be lost, as long as as many outer words can be read.

Source: the construction is that of product codes with an erasure-correcting second dimension, S. Lin, D. J. Costello,
Error Control Coding, 2nd ed., section 15.1; the outer code is a Cauchy Reed-Solomon code.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.codes.base import Bytes, Decoded, UnitLayout, Words
from ckptguard.codes.lanes import (
    LaneCode,
    Rows,
    gather_rows,
    lanes_of,
    pack_rows,
    scatter_rows,
    unpack_rows,
    words_of,
)
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError, UsageError

GROUP_LANES = 512
SYMBOL_BITS = 10
LEAST_WORDS, MOST_WORDS = 4, 64


class Outer(LaneCode):
    """A lane code with outer words; its spec is the inner one with `,outer=r` behind it.

    A group of C lanes has min(r, 4 + floor(log2 C)) outer words, so that short units do not pay for many.
    Message bits are used in whole symbols of ten. The codewords of a unit are its lanes, then the outer words, group
    after group. Parity is stored as the lanes' parity, the outer words, the outer words' parity, each padded to 8
    bytes.
    """

    name: ClassVar[str] = "outer"

    def __init__(self, inner: LaneCode, words: int) -> None:
        if not LEAST_WORDS <= words <= MOST_WORDS:
            raise SpecError(f"an outer code has {LEAST_WORDS} to {MOST_WORDS} words per group, not {words}")
        if inner.k < SYMBOL_BITS:
            raise SpecError(f"an outer code needs at least {SYMBOL_BITS} message bits, {inner.spec} has {inner.k}")
        self.inner, self.words = inner, words
        self.n, self.k, self.t = inner.n, inner.k, inner.t
        self.spec = f"{inner.spec},outer={words}"

    @property
    def redundancy(self) -> float:
        """Parity bits per protected bit of a full group, outer words included."""
        return self.inner.redundancy + self.words / GROUP_LANES * self.n / self.k

    @property
    def used_bits(self) -> int:
        """Whole symbols of a message."""
        return self.k - self.k % SYMBOL_BITS

    def encode_rows(self, message: Rows) -> Rows:
        """As the inner code."""
        return self.inner.encode_rows(message)

    def check_rows(self, message: Rows, parity: Rows) -> Rows:
        """As the inner code."""
        return self.inner.check_rows(message, parity)

    def decode_rows(self, message: Rows, parity: Rows) -> npt.NDArray[np.int32]:
        """As the inner code."""
        return self.inner.decode_rows(message, parity)

    def outer_words(self, lanes: int) -> list[int]:
        """Outer words of each group of a unit of so many lanes."""
        sizes = [min(GROUP_LANES, lanes - first) for first in range(0, lanes, GROUP_LANES)]
        return [min(self.words, LEAST_WORDS + size.bit_length() - 1) for size in sizes]

    def unit_layout(self, words: int, planes: int) -> UnitLayout:
        """The inner layout, with the outer words as further codewords."""
        inner = super().unit_layout(words, planes)
        extra = sum(self.outer_words(inner.codewords))
        bits = _symbol_rows(inner.message_bits)
        return UnitLayout(
            inner.codewords + extra,
            inner.message_bits,
            inner.parity_bits,
            inner.parity_bytes + 8 * (words_of(extra * bits) + words_of(extra * inner.parity_bits)),
        )

    def encode(self, words: Words, mask: int) -> Bytes:
        """Parity of a unit: the lanes', the outer words, the outer words'."""
        cut = self._cut_of(words, mask)
        message = gather_rows(words, mask, cut)
        outer, extra = self._outer_rows(message, cut.codewords)
        pieces = [
            pack_rows(self.encode_rows(message), cut.codewords),
            pack_rows(outer, extra),
            pack_rows(self.encode_rows(outer), extra),
        ]
        return np.concatenate(pieces).view(np.uint8)

    def check(self, words: Words, mask: int, parity: Bytes) -> npt.NDArray[np.bool_]:
        """(codewords,) True where lane or outer word is not a codeword of the inner code."""
        cut = self._cut_of(words, mask)
        message = gather_rows(words, mask, cut)
        lanes, outer, outer_parity, extra = self._split(parity, cut.codewords, message.shape[0])
        return np.concatenate(
            [
                lanes_of(self.check_rows(message, lanes), cut.codewords),
                lanes_of(self.check_rows(outer, outer_parity), extra),
            ]
        )

    def decode(self, words: Words, mask: int, parity: Bytes) -> Decoded:
        """Decode lanes and outer words by the inner code, then make the lost ones good, group by group.

        Flips of a codeword that was made good are all its bits that differ from what was read.
        """
        cut = self._cut_of(words, mask)
        message = gather_rows(words, mask, cut).copy()
        lanes, outer, outer_parity, extra = self._split(parity, cut.codewords, message.shape[0])
        read, lanes_read = message.copy(), lanes.copy()
        outer_read, outer_parity_read = outer.copy(), outer_parity.copy()
        flips = self._decode_lanes(message, lanes, read, cut)
        outer_flips = self.decode_rows(outer, outer_parity)[:extra]
        if (flips < 0).any() or (outer_flips < 0).any():
            solved, outer_solved = self._make_good(message, outer, flips, outer_flips)
            _replace_lanes(lanes, self.encode_rows(message), solved)
            _replace_lanes(outer_parity, self.encode_rows(outer), outer_solved)
            flips[solved] = _changed(message ^ read, lanes ^ lanes_read, solved)
            outer_flips[outer_solved] = _changed(outer ^ outer_read, outer_parity ^ outer_parity_read, outer_solved)
        if flips.any():
            scatter_rows(message ^ read, mask, words, cut)
        pieces = [pack_rows(lanes, cut.codewords), pack_rows(outer, extra), pack_rows(outer_parity, extra)]
        parity[:] = np.concatenate(pieces).view(np.uint8)
        return Decoded(np.concatenate([flips, outer_flips]))

    def cover(self, codewords: npt.NDArray[np.bool_], words: int, mask: int) -> Words:
        """As for lane codes; outer words cover no bit of the stream."""
        lanes = super().unit_layout(words, mask.bit_count()).codewords
        return super().cover(codewords[:lanes], words, mask)

    def failure_probability(self, bit_error_rate: float, codeword_bits: int) -> float:
        """Probability that a lane of a full group is lost: it fails, and with it r of its 511 + r companions."""
        alone = self.inner.failure_probability(bit_error_rate, codeword_bits)
        return alone * binomial_tail(GROUP_LANES - 1 + self.words, alone, self.words - 1)

    def _outer_rows(self, message: Rows, lanes: int) -> tuple[Rows, int]:
        """(symbol rows, lane words) outer words of all groups side by side, and how many they are."""
        from ckptguard.kernels import outer

        counts = self.outer_words(lanes)
        sums = outer.sum_lanes(_padded(message), self.words)
        extra = sum(counts)
        bits = np.zeros((sums.shape[0], 512 * -(-extra // 512)), np.uint8)
        first = 0
        for group, count in enumerate(counts):
            bits[:, first : first + count] = sums[:, group, None] >> np.arange(count, dtype=np.uint64) & np.uint64(1)
            first += count
        return np.packbits(bits, axis=1, bitorder="little").view(np.uint64), extra

    def _split(self, parity: Bytes, lanes: int, message_bits: int) -> tuple[Rows, Rows, Rows, int]:
        """Rows of the lanes' parity, of the outer words and of their parity, and the number of outer words."""
        check, extra = self.n - self.k, sum(self.outer_words(lanes))
        shapes = ((lanes, check), (extra, _symbol_rows(message_bits)), (extra, check))
        expected = 8 * sum(words_of(count * bits) for count, bits in shapes)
        if parity.dtype != np.uint8 or parity.shape != (expected,):
            raise UsageError(f"the unit has {expected} bytes of parity, not {parity.dtype} of shape {parity.shape}")
        flat = np.array(parity, order="C").view(np.uint64)
        rows = []
        for count, bits in shapes:
            size = words_of(count * bits)
            rows.append(unpack_rows(flat[:size], count, bits))
            flat = flat[size:]
        return rows[0], rows[1], rows[2], extra

    def _make_good(
        self, message: Rows, outer: Rows, flips: npt.NDArray[np.int32], outer_flips: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Fill in lost lanes and outer words, in place; which of each were filled in."""
        from ckptguard.kernels import outer as kernel

        solved, outer_solved = np.zeros(len(flips), np.bool_), np.zeros(len(outer_flips), np.bool_)
        first = 0
        for group, count in enumerate(self.outer_words(len(flips))):
            here = slice(group * GROUP_LANES, min((group + 1) * GROUP_LANES, len(flips)))
            there = slice(first, first + count)
            columns = slice(8 * group, 8 * group + 8)
            first += count
            lost, lost_words = flips[here] < 0, outer_flips[there] < 0
            if not (lost.any() or lost_words.any()):
                continue
            words = _lane_bits(outer, there)
            result = kernel.fill_in(_padded(message[:, columns]), words, lost, lost_words, self.words)
            if result is None:
                continue
            message[:, columns] = result[0][: message.shape[0]]
            _set_lane_bits(outer, there, result[1])
            solved[here], outer_solved[there] = lost, lost_words
        return solved, outer_solved


def _symbol_rows(message_bits: int) -> int:
    return -(-message_bits // SYMBOL_BITS) * SYMBOL_BITS


def _padded(message: Rows) -> Rows:
    rows = np.zeros((_symbol_rows(message.shape[0]), message.shape[1]), np.uint64)
    rows[: message.shape[0]] = message
    return rows


def _lane_bits(rows: Rows, lanes: slice) -> npt.NDArray[np.uint8]:
    """(rows, lanes) bits of some lanes."""
    bits: npt.NDArray[np.uint8] = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")[:, lanes]
    return bits


def _set_lane_bits(rows: Rows, lanes: slice, bits: npt.NDArray[np.uint8]) -> None:
    every = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
    every[:, lanes] = bits
    rows[:] = np.packbits(every, axis=1, bitorder="little").view(np.uint64)


def _replace_lanes(rows: Rows, others: Rows, lanes: npt.NDArray[np.bool_]) -> None:
    """Take the chosen lanes from other rows, in place."""
    chosen = np.zeros(64 * rows.shape[1], np.bool_)
    chosen[: len(lanes)] = lanes
    rows ^= (rows ^ others) & np.packbits(chosen, bitorder="little").view(np.uint64)


def _changed(message: Rows, parity: Rows, lanes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Bits set in the chosen lanes of two differences."""
    total = np.zeros(int(lanes.sum()), np.int32)
    for rows in (message, parity):
        total += _lane_bits(rows, slice(0, len(lanes)))[:, lanes].sum(axis=0, dtype=np.int32)
    return total
