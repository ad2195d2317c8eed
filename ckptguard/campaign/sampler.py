"""Trials that draw only the codewords which fail, exactly as often and in the same way as if every flip were drawn.

Of N codewords of one length, Bin(N, P(X > t)) have more flips X than their code corrects; which ones is uniform, X
follows the binomial distribution beyond t, and the flips lie anywhere. All of them are taken to be given up on: of all
words, about n^t / t! / 2^(m t), or one in t!, lie within t flips of a codeword, which for t of at least 8 is rare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.coding import Decoding, StreamCoder
from ckptguard.campaign.drawing import Flips, Target, distinct, draw_flips, trial_key
from ckptguard.campaign.faults import RATES, Fault, Scope, assign
from ckptguard.channels.noise import binomial
from ckptguard.codes.base import TILE_WORDS
from ckptguard.codes.bch import Bch
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import UsageError

if TYPE_CHECKING:
    from ckptguard.campaign.variants import Prepared

LEAST_T = 8

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class _Class:
    """Codewords of equal length in units of equal size.

    Attributes:
        first_unit, units: whose they are.
        lanes: of such a unit.
        first_lane, count: which of its lanes are of this class.
        message_bits, parity_bits: of each codeword, padding left out.
    """

    first_unit: int
    units: int
    lanes: int
    first_lane: int
    count: int
    message_bits: int
    parity_bits: int


def sample(
    prepared: Prepared, faults: Mapping[str, Fault] | Fault, seed: int, trial: int, scope: Scope
) -> tuple[Flips, Decoding]:
    """Flips of unprotected bits, drawn as always, and what failing codewords leave of the protected ones.

    Flips of protected bits are not counted, nor are those bits among the stored ones.

    Raises:
        UsageError: a fault that is not one rate for all bits, a scope that leaves out bits, or a code other than BCH
            with t of at least 8.
    """
    assigned = assign(faults, list(prepared.encodings), scope)
    _refuse(prepared, assigned, scope)
    jobs: dict[Fault, list[Target]] = {}
    for name, fault in assigned.items():
        mask = prepared.masks[name][0]
        planes = tuple(plane for plane, chosen in enumerate(mask) if chosen == "0")
        jobs.setdefault(fault, []).append(Target(name, prepared.encodings[name], planes))
    flips = draw_flips([(fault, targets, ()) for fault, targets in jobs.items()], seed, trial)
    result = Decoding()
    for (shard, stream), coder in prepared.coders.items():
        rates = {assigned[member.name].of_0 for member in coder.members.values() if member.name in assigned}
        result.codewords += coder.codewords
        if rates:
            _sample_stream(coder, rates.pop(), trial_key(seed, trial, f"failing {shard} {stream}"), result)
    return flips, result


def _refuse(prepared: Prepared, assigned: Mapping[str, Fault], scope: Scope) -> None:
    for fault in assigned.values():
        if fault.kind != RATES or fault.of_0 != fault.of_1:
            raise UsageError(f"only flips of one rate (bsc:p) can be sampled by failing codewords, not {fault.spec}")
    if not scope.whole_words:
        raise UsageError("a choice of bits or fields goes with the exact decoder only")
    for coder in prepared.coders.values():
        if not isinstance(coder.code, Bch) or coder.code.t < LEAST_T:
            raise UsageError(
                f"only BCH codes that correct at least {LEAST_T} flips can be sampled, not {coder.code.spec}; take the "
                "exact decoder"
            )
        hit = [assigned.get(member.name) for member in coder.members.values()]
        if len(set(hit)) > 1:
            raise UsageError("tensors that share codewords have different faults; take the exact decoder")


def _classes(coder: StreamCoder) -> Iterator[_Class]:
    stream = coder.stream
    for first, units in ((0, stream.units - 1), (stream.units - 1, 1)):
        words = stream.unit_size(first)
        layout, lanes = coder.layout(first), coder.lanes(words)
        short = layout.message_bits * lanes - words * stream.planes
        for begin, count, bits in (
            (0, lanes - short, layout.message_bits),
            (lanes - short, short, layout.message_bits - 1),
        ):
            if units and count:
                yield _Class(first, units, lanes, begin, count, bits, layout.parity_bits)


def _sample_stream(coder: StreamCoder, p: float, key: np.uint64, result: Decoding) -> None:
    failed: dict[int, list[tuple[int, I64]]] = {}
    for number, one in enumerate(_classes(coder)):
        draws = _Numbers(key, number)
        length, total = one.message_bits + one.parity_bits, one.units * one.count
        beyond = binomial_tail(length, p, coder.code.t)
        count = draws.binomial(total, beyond)
        damaged = (binomial_tail(length, p, 0) - beyond) / (1.0 - beyond) if beyond < 1.0 else 0.0
        result.corrected += draws.binomial(total - count, damaged)
        result.uncorrectable += count
        sizes = draws.beyond(length, p, coder.code.t, count)
        for place, size in zip(draws.distinct(count, total).tolist(), sizes, strict=True):
            unit, lane = one.first_unit + place // one.count, one.first_lane + place % one.count
            bits = draws.distinct(size, length)
            failed.setdefault(unit, []).append((lane, bits[bits < one.message_bits] * one.lanes + lane))
    for index in sorted(failed):
        unit = coder.unit(index)
        errors, lost = np.zeros(unit.words, np.uint64), np.zeros(coder.layout(index).codewords, np.bool_)
        for lane, flat in failed[index]:
            lost[lane] = True
            _flip(coder, errors, flat)
        coder.settle(unit, errors.copy(), errors, lost, result)


def _flip(coder: StreamCoder, words: U64, flat: I64) -> None:
    """Flip bits of a unit's words that are given by their place in the unit's flat order (see `codes.lanes`)."""
    planes = coder.stream.planes
    positions = np.flatnonzero([coder.stream.mask >> bit & 1 for bit in range(64)])
    tile, rest = np.divmod(flat, TILE_WORDS * planes)
    of_tile = np.minimum(TILE_WORDS, words.size - TILE_WORDS * tile)
    place, word = np.divmod(rest, of_tile)
    np.bitwise_xor.at(words, TILE_WORDS * tile + word, np.uint64(1) << positions[place].astype(np.uint64))


class _Numbers:
    """Random numbers of one class of codewords in one trial."""

    def __init__(self, key: np.uint64, number: int) -> None:
        self._key, self._drawn = key, number << 48

    def _words(self, count: int) -> U64:
        from ckptguard.kernels import faults

        numbers = np.empty(count, np.uint64)
        faults.random_words(self._key, self._drawn, numbers)
        self._drawn += count
        return numbers

    def binomial(self, count: int, p: float) -> int:
        """How many of `count` happen, each with probability p."""
        if p > 0.5:
            return count - self.binomial(count, 1.0 - p)
        if not count or p < 2.0**-200:
            return 0
        thresholds, least = binomial(count, p)
        return least + int(np.searchsorted(thresholds, self._words(1)[0], "right"))

    def beyond(self, count: int, p: float, above: int, times: int) -> list[int]:
        """Numbers of Bin(count, p), given that they are above `above`."""
        if not times:
            return []
        sizes = np.arange(above + 1, count + 1, dtype=np.float64)
        ratios = (
            (count - sizes[:-1]) / (sizes[:-1] + 1.0) * (p / (1.0 - p)) if p < 1.0 else np.full(sizes.size - 1, 2.0)
        )
        logarithms = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
        shares = np.cumsum(np.exp(logarithms - logarithms.max()))
        uniform = (self._words(times) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        found = np.searchsorted(shares, uniform * shares[-1], "right")
        return (found + above + 1).tolist() if p < 1.0 else [count] * times

    def distinct(self, count: int, total: int) -> I64:
        """Different numbers below `total`, in random order."""
        return distinct(self._words(1)[0], count, total)
