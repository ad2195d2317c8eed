"""Trials that draw only the codewords which fail, exactly as often and in the same way as if every flip were drawn.

Of N codewords of one length, Bin(N, P(X > t)) have more flips X than their code corrects; which ones is uniform, X
follows the binomial distribution beyond t, and the flips lie anywhere. Bits that range guards set back do not count in
the length. All of them are taken to be given up on: of all words, about n^t / t! / 2^(m t), or one in t!, lie within t
flips of a codeword, which for t of at least 8 is rare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.coding import StreamCoder
from ckptguard.campaign.decoding import Decoding
from ckptguard.campaign.drawing import Flips, Target, distinct, draw_flips, trial_key
from ckptguard.campaign.faults import RATES, Fault, Scope, assign
from ckptguard.campaign.guarding import Guards
from ckptguard.campaign.streams import NONE, Member
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
Bytes = npt.NDArray[np.uint8]


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

    @property
    def total(self) -> int:
        """Codewords of the class."""
        return self.units * self.count

    def locate(self, place: int) -> tuple[int, int]:
        """(unit, lane) of a codeword of the class."""
        return self.first_unit + place // self.count, self.first_lane + place % self.count

    def flat(self, unit: int, lane: int, bits: I64) -> I64:
        """Where message bits of a codeword stand in the flat order of its unit."""
        return bits * self.lanes + lane


class OpenBits:
    """Where range guards leave it open what the protected bits of a stream are; all others are set back.

    Attributes:
        counts: (codewords,) of open message bits.
    """

    def __init__(self, coder: StreamCoder, guards: Guards) -> None:
        from ckptguard.kernels import codewords

        self._coder = coder
        self._images = {part: _varying(member, guards) for part, member in coder.members.items()}
        counts = np.zeros(coder.codewords, np.int32)
        for index in range(coder.stream.units):
            first = index * coder.full.codewords
            here = counts[first : first + coder.layout(index).codewords]
            codewords.count_words(self.words(index), index, coder.ranks, coder.geometry, here)
        self.counts: I64 = counts.astype(np.int64)

    def words(self, unit: int) -> U64:
        """Stream words of a unit whose ones are the open bits."""
        found = self._coder.message_of(self._coder.unit(unit), self._images.__getitem__)
        return found & np.uint64(self._coder.stream.mask)

    def flat(self, unit: int, lane: int) -> I64:
        """Where the open bits of a codeword stand in the flat order of its unit."""
        words = self.words(unit)
        bits = np.arange(lane, words.size * self._coder.stream.planes, self._coder.lanes(words.size))
        word, bit = _places(self._coder, words.size, bits)
        found: I64 = bits[(words[word] >> bit & np.uint64(1)) != 0]
        return found


def _varying(member: Member, guards: Guards) -> Bytes:
    """Stored bytes of a tensor with ones where bits may vary."""
    encoding = member.encoding
    varying = guards.varying(member.name, np.arange(encoding.elements))
    everything = np.full(1, (1 << encoding.bits) - 1, np.uint64)
    wide = np.broadcast_to(everything if varying is None else varying, encoding.elements)
    return encoding.image(wide.astype(encoding.words.dtype))


@dataclass(frozen=True)
class _Open:
    """Codewords with equally many open message bits, as `_Class`; `chosen` are those of the stream."""

    open_bits: OpenBits
    chosen: I64
    per_unit: int
    message_bits: int
    parity_bits: int

    @property
    def total(self) -> int:
        return int(self.chosen.size)

    def locate(self, place: int) -> tuple[int, int]:
        return divmod(int(self.chosen[place]), self.per_unit)

    def flat(self, unit: int, lane: int, bits: I64) -> I64:
        return self.open_bits.flat(unit, lane)[bits]


def sample(
    prepared: Prepared, faults: Mapping[str, Fault] | Fault, seed: int, trial: int, scope: Scope
) -> tuple[Flips, Decoding]:
    """Flips of unprotected bits, drawn as always, and what failing codewords leave of the protected ones.

    Flips of bits that a code protects are not counted, nor are those bits among the stored ones. Bits that range guards
    set back before decoding are none that make a codeword fail.

    Raises:
        UsageError: a fault that is not one rate for all bits, a scope that leaves out bits, or a code other than BCH
            with t of at least 8.
    """
    assigned = assign(faults, list(prepared.encodings), scope)
    _refuse(prepared, assigned, scope)
    jobs: dict[Fault, list[Target]] = {}
    for name, fault in assigned.items():
        mask, code = prepared.masks[name]
        planes = tuple(plane for plane, chosen in enumerate(mask) if chosen == "0" or code == NONE)
        jobs.setdefault(fault, []).append(Target(name, prepared.encodings[name], planes))
    flips = prepared.guards.set_back(draw_flips([(fault, targets, ()) for fault, targets in jobs.items()], seed, trial))
    result = prepared.judged(flips)
    for (shard, stream), coder in prepared.coders.items():
        rates = {assigned[member.name].of_0 for member in coder.members.values() if member.name in assigned}
        result.codewords += coder.codewords
        if rates:
            classes = (
                _open_classes(coder, prepared.open_bits[shard, stream]) if prepared.variant.guard else _classes(coder)
            )
            key = trial_key(seed, trial, f"failing {shard} {stream}")
            _sample_stream(coder, classes, rates.pop(), key, result)
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


def _open_classes(coder: StreamCoder, open_bits: OpenBits) -> Iterator[_Open]:
    for count in np.unique(open_bits.counts).tolist():
        chosen = np.flatnonzero(open_bits.counts == count)
        yield _Open(open_bits, chosen, coder.full.codewords, count, coder.full.parity_bits)


def _sample_stream(
    coder: StreamCoder, classes: Iterator[_Class | _Open], p: float, key: np.uint64, result: Decoding
) -> None:
    failed: dict[int, list[tuple[int, I64]]] = {}
    for number, one in enumerate(classes):
        draws = _Numbers(key, number)
        length, total = one.message_bits + one.parity_bits, one.total
        beyond = binomial_tail(length, p, coder.code.t)
        count = draws.binomial(total, beyond)
        damaged = (binomial_tail(length, p, 0) - beyond) / (1.0 - beyond) if beyond < 1.0 else 0.0
        result.corrected += draws.binomial(total - count, damaged)
        result.uncorrectable += count
        sizes = draws.beyond(length, p, coder.code.t, count)
        for place, size in zip(draws.distinct(count, total).tolist(), sizes, strict=True):
            index, lane = one.locate(place)
            bits = draws.distinct(size, length)
            failed.setdefault(index, []).append((lane, one.flat(index, lane, bits[bits < one.message_bits])))
    for index in sorted(failed):
        unit = coder.unit(index)
        errors, lost = np.zeros(unit.words, np.uint64), np.zeros(coder.layout(index).codewords, np.bool_)
        for lane, flat in failed[index]:
            lost[lane] = True
            _flip(coder, errors, flat)
        coder.settle(unit, errors.copy(), errors, lost, result)


def _flip(coder: StreamCoder, words: U64, flat: I64) -> None:
    """Flip bits of a unit's words that are given by their place in the unit's flat order (see `codes.lanes`)."""
    word, bit = _places(coder, words.size, flat)
    np.bitwise_xor.at(words, word, np.uint64(1) << bit)


def _places(coder: StreamCoder, words: int, flat: I64) -> tuple[I64, U64]:
    """(word, bit of it) of bits that are given by their place in the flat order of a unit of so many words."""
    planes = coder.stream.planes
    positions = np.flatnonzero([coder.stream.mask >> bit & 1 for bit in range(64)])
    tile, rest = np.divmod(flat, TILE_WORDS * planes)
    of_tile = np.minimum(TILE_WORDS, words - TILE_WORDS * tile)
    place, word = np.divmod(rest, of_tile)
    return TILE_WORDS * tile + word, positions[place].astype(np.uint64)


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
