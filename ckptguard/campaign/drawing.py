"""Drawing the flips of a trial, whatever the kind of fault: sparse, keyed by seed, trial, tensor, plane and block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ckptguard import channels
from ckptguard.campaign import analog
from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.faults import ANALOG, CHANNEL, COUNT, GAUSSIAN, RATES, ZERO, Fault
from ckptguard.campaign.shells import Drawn, draw
from ckptguard.channels import Channel, NoiseKey
from ckptguard.channels.noise import stream_key
from ckptguard.errors import UsageError

Bytes = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
ParityKey = tuple[int, int]

WHOLE_WORD = 64
"""What flips of whole words (`zero`) are keyed by instead of a plane."""

_NORMAL_CHUNK = 1 << 20


@dataclass(frozen=True)
class Target:
    """Stored words that a fault may hit.

    Attributes:
        name: of the tensor.
        planes: positions in the words, 0 = most significant.
    """

    name: str
    encoding: Encoding
    planes: tuple[int, ...]

    @property
    def bits(self) -> int:
        """That may be hit."""
        return self.encoding.elements * len(self.planes)


@dataclass(frozen=True)
class ParityTarget:
    """Parity of a stream that a fault may hit.

    Attributes:
        key: (shard, stream).
        bytes: of all its units.
        image: what is stored, asked for by faults that look at it.
    """

    key: ParityKey
    bytes: int
    image: Callable[[], Bytes]


@dataclass
class Flips:
    """What a trial flips before any decoding.

    Attributes:
        tensors: by name.
        parity: (count,) positions of flipped bits in the parity of a stream, ascending; bit b is bit b % 8 (least
            significant = 0) of byte b // 8.
        stored_bits, parity_bits: in scope.
        expected: mean number of flips of the message and of parity; of channels as `flip_probability` says, which
            averages over what it does not know; None for noise on values.
        by_bit: flips of the message by position in the word.
        set_back: elements of tensors with flips that range guards took back already; counts above hold them still.
    """

    tensors: dict[str, Drawn] = field(default_factory=dict)
    parity: dict[ParityKey, I64] = field(default_factory=dict)
    stored_bits: int = 0
    parity_bits: int = 0
    expected: tuple[float, float] | None = (0.0, 0.0)
    by_bit: dict[int, int] = field(default_factory=dict)
    set_back: dict[str, I64] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Flips of the message."""
        return sum(self.by_bit.values())

    @property
    def parity_count(self) -> int:
        """Flips of parity."""
        return sum(positions.size for positions in self.parity.values())

    def _add(self, target: Target, drawn: Drawn, planes: Sequence[int]) -> None:
        if drawn.elements.size:
            self.tensors[target.name] = drawn
            for plane, count in zip(planes, drawn.by_plane.tolist(), strict=True):
                if count:
                    self.by_bit[plane] = self.by_bit.get(plane, 0) + count

    def _expect(self, message: float | None, parity: float = 0.0) -> None:
        if message is None or self.expected is None:
            self.expected = None
        else:
            self.expected = (self.expected[0] + message, self.expected[1] + parity)


def trial_key(seed: int, trial: int, what: str) -> np.uint64:
    """Key of what is drawn for one tensor or stream in one trial."""
    if not 0 <= trial < 1 << 63:
        raise UsageError(f"a trial is a number of at least 0, not {trial}")
    return stream_key(NoiseKey(seed, what), f"campaign trial {trial}")


def draw_flips(jobs: Sequence[tuple[Fault, Sequence[Target], Sequence[ParityTarget]]], seed: int, trial: int) -> Flips:
    """The flips of a trial, each fault on its own targets."""
    flips = Flips()
    for fault, targets, parities in jobs:
        flips.stored_bits += sum(target.bits for target in targets)
        flips.parity_bits += sum(8 * parity.bytes for parity in parities)
        if fault.kind == COUNT:
            _draw_count(flips, fault, targets, parities, seed, trial)
            continue
        for target in targets:
            if target.bits:
                key = trial_key(seed, trial, f"tensor {target.name}")
                _MESSAGE[fault.kind](flips, fault, target, key)
        for parity in parities:
            if parity.bytes and fault.kind in _PARITY:
                key = trial_key(seed, trial, f"parity {parity.key[0]} {parity.key[1]}")
                positions, expected = _PARITY[fault.kind](fault, parity, key)
                flips.parity[parity.key] = positions
                flips._expect(expected if expected is None else 0.0, expected or 0.0)
    return flips


def _rates(flips: Flips, fault: Fault, target: Target, key: np.uint64) -> None:
    encoding = target.encoding
    shifts = [encoding.bits - 1 - plane for plane in target.planes]
    size = encoding.words.dtype.itemsize
    drawn = draw(key, encoding.elements, target.planes, shifts, fault.of_0, fault.of_1, encoding.stored_bytes, size)
    flips._add(target, drawn, target.planes)
    if fault.of_0 == fault.of_1:
        flips._expect(fault.of_0 * target.bits)
    else:
        ones = encoding.ones(target.planes)
        flips._expect(fault.of_0 * (target.bits - ones) + fault.of_1 * ones)


def _zero(flips: Flips, fault: Fault, target: Target, key: np.uint64) -> None:
    encoding = target.encoding
    _need_whole_words(fault, target)
    chosen = draw(key, encoding.elements, [WHOLE_WORD], [0], fault.of_0, fault.of_1).elements
    _add_words(flips, target, chosen, encoding.words[chosen].astype(np.uint64))
    flips._expect(fault.of_0 * encoding.ones(target.planes))


def _gaussian(flips: Flips, fault: Fault, target: Target, key: np.uint64) -> None:
    from ckptguard.kernels import faults

    encoding = target.encoding
    _need_whole_words(fault, target)
    flips._expect(None)
    largest = 0.0
    for first in range(0, encoding.elements, _NORMAL_CHUNK):
        values = encoding.values(encoding.words[first : first + _NORMAL_CHUNK])
        if values is None:
            return
        finite = np.abs(values[np.isfinite(values)])
        largest = max(largest, float(finite.max(initial=0.0)))
    found, changes = [], []
    for first in range(0, encoding.elements, _NORMAL_CHUNK):
        words = encoding.words[first : first + _NORMAL_CHUNK]
        values = encoding.values(words)
        assert values is not None
        noise = np.empty(words.size)
        faults.normal_numbers(key, first, noise)
        change = np.where(
            np.isfinite(values), encoding.encode(np.nan_to_num(values + fault.sigma * largest * noise)), words
        )
        change = change.astype(words.dtype) ^ words
        where = np.flatnonzero(change)
        found.append(where + first)
        changes.append(change[where].astype(np.uint64))
    _add_words(flips, target, np.concatenate(found), np.concatenate(changes))


def _analog(flips: Flips, fault: Fault, target: Target, key: np.uint64) -> None:
    encoding = target.encoding
    _need_whole_words(fault, target)
    flips._expect(None)
    values = encoding.values(encoding.words)
    if values is None:
        return
    profile, point = analog.read_spec(fault.spec)
    read = profile.read(values, dict(point), NoiseKey(int(key), target.name))
    words = np.where(np.isfinite(values), encoding.encode(np.nan_to_num(read)), encoding.words)
    changes = words.astype(encoding.words.dtype) ^ encoding.words
    where = np.flatnonzero(changes)
    _add_words(flips, target, where, changes[where].astype(np.uint64))


def _channel(flips: Flips, fault: Fault, target: Target, key: np.uint64) -> None:
    encoding, channel = target.encoding, channels.make(fault.spec)
    image = np.array(encoding.image(encoding.words), np.uint8)
    before = image.copy()
    channel.corrupt(image, 0, NoiseKey(int(key), target.name))  # a die's own map is drawn by the shard's name alone
    changes = encoding.of_image(image ^ before).astype(np.uint64)
    changes &= np.uint64(sum(1 << (encoding.bits - 1 - plane) for plane in target.planes))
    chosen = np.flatnonzero(changes)
    _add_words(flips, target, chosen, changes[chosen])
    flips._expect(_expected(channel, encoding, target.planes))


def _expected(channel: Channel, encoding: Encoding, planes: Sequence[int]) -> float:
    """Mean number of flips, as `Channel.flip_probability` says; over the places in a 64-bit word for bit planes."""
    rates = channel.flip_probability(64 if encoding.planar else encoding.bits)
    if encoding.planar:
        rates = np.broadcast_to(rates.mean(axis=0), (encoding.bits, 2))
    ones = np.array([encoding.ones([plane]) for plane in planes], np.float64)
    chosen = rates[list(planes)]
    return float(((encoding.elements - ones) * chosen[:, 0] + ones * chosen[:, 1]).sum())


def _need_whole_words(fault: Fault, target: Target) -> None:
    if len(target.planes) != target.encoding.bits:
        raise UsageError(f"{fault.spec} changes whole words; it goes with no choice of bits or fields")


def _add_words(flips: Flips, target: Target, elements: I64, changes: npt.NDArray[np.uint64]) -> None:
    """Add words that change as a whole."""
    elements, changes = elements[changes != 0], changes[changes != 0]
    bits = target.encoding.bits
    by_plane = [int(np.count_nonzero(changes >> np.uint64(bits - 1 - plane) & np.uint64(1))) for plane in range(bits)]
    flips._add(target, Drawn(elements, changes, np.array(by_plane, np.int64)), range(bits))


def _draw_count(
    flips: Flips, fault: Fault, targets: Sequence[Target], parities: Sequence[ParityTarget], seed: int, trial: int
) -> None:
    """Exactly so many different bits of all, each set equally likely; the first of more flips are those of fewer."""
    sizes = [*(target.bits for target in targets), *(8 * parity.bytes for parity in parities)]
    total = sum(sizes)
    if fault.count > total:
        raise UsageError(f"{fault.spec}: there are only {total} bits in scope")
    names = [*(target.name for target in targets), *(str(parity.key) for parity in parities)]
    key = trial_key(seed, trial, "flips")
    places = np.sort(distinct(key, fault.count, total))
    edges = np.cumsum([0, *sizes], dtype=np.int64)
    cuts = np.searchsorted(places, edges)
    for index in range(len(names)):
        here = places[cuts[index] : cuts[index + 1]] - edges[index]
        if index >= len(targets):
            flips.parity[parities[index - len(targets)].key] = here
        elif here.size:
            _add_bits(flips, targets[index], here)
    message = int(edges[len(targets)])
    flips._expect(fault.count * message / max(total, 1), fault.count * (total - message) / max(total, 1))


def _add_bits(flips: Flips, target: Target, places: I64) -> None:
    """Add single bits: place p is bit planes[p % planes] of word p // planes."""
    planes = np.array(target.planes, np.int64)
    elements, chosen = places // planes.size, places % planes.size
    by_plane = np.bincount(chosen, minlength=planes.size)
    bits = np.uint64(1) << (target.encoding.bits - 1 - planes[chosen]).astype(np.uint64)
    words, starts = np.unique(elements, return_index=True)
    flips._add(target, Drawn(words, np.bitwise_or.reduceat(bits, starts), by_plane), target.planes)


def distinct(key: np.uint64, count: int, total: int) -> I64:
    """(count,) different numbers below `total`, in random order; those of a smaller count come first."""
    from ckptguard.kernels import faults

    kept = np.zeros(0, np.int64)
    drawn = 0
    # Numbers of 64 bits are taken modulo the total; the few that would favour small remainders are passed over.
    limit = np.uint64((1 << 64) // total * total - 1) if total else np.uint64(0)
    while kept.size < count:
        numbers = np.empty(2 * (count - kept.size) + 64, np.uint64)
        faults.random_words(key, drawn, numbers)
        drawn += numbers.size
        fresh = (numbers[numbers <= limit] % np.uint64(total)).astype(np.int64)
        together = np.concatenate([kept, fresh])
        _, first = np.unique(together, return_index=True)
        kept = together[np.sort(first)]
    return kept[:count]


def _parity_rates(fault: Fault, parity: ParityTarget, key: np.uint64) -> tuple[I64, float | None]:
    if fault.of_0 == fault.of_1:
        drawn = draw(key, 8 * parity.bytes, [0], [0], fault.of_0, fault.of_1)
        return drawn.elements, fault.of_0 * 8 * parity.bytes
    bits = np.unpackbits(parity.image(), bitorder="little")
    ones = int(bits.sum())
    drawn = draw(key, bits.size, [0], [0], fault.of_0, fault.of_1, bits, 1)
    return drawn.elements, fault.of_0 * (bits.size - ones) + fault.of_1 * ones


def _parity_zero(fault: Fault, parity: ParityTarget, key: np.uint64) -> tuple[I64, float | None]:
    """Of parity, whole 64-bit words become zero."""
    image = parity.image()
    words = draw(key, image.size // 8, [WHOLE_WORD], [0], fault.of_0, fault.of_1).elements
    lost = np.zeros_like(image).view(np.uint64)
    lost[words] = image.view(np.uint64)[words]
    ones = int(np.bitwise_count(image).sum(dtype=np.int64))
    return np.flatnonzero(np.unpackbits(lost.view(np.uint8), bitorder="little")), fault.of_0 * ones


def _parity_channel(fault: Fault, parity: ParityTarget, key: np.uint64) -> tuple[I64, float | None]:
    image, channel = parity.image(), channels.make(fault.spec)
    after = image.copy()
    channel.corrupt(after, 0, NoiseKey(int(key), f"parity {parity.key[0]} {parity.key[1]}"))
    ones = np.unpackbits(image.view("<u8").byteswap().view(np.uint8)).reshape(-1, 64).sum(axis=0, dtype=np.int64)
    rates = channel.flip_probability(64)  # row 0 is the most significant bit
    expected = float(((image.size // 8 - ones) * rates[:, 0] + ones * rates[:, 1]).sum())
    return np.flatnonzero(np.unpackbits(after ^ image, bitorder="little")), expected


_MESSAGE: Mapping[str, Callable[[Flips, Fault, Target, np.uint64], None]] = {
    RATES: _rates,
    ZERO: _zero,
    GAUSSIAN: _gaussian,
    ANALOG: _analog,
    CHANNEL: _channel,
}
_PARITY: Mapping[str, Callable[[Fault, ParityTarget, np.uint64], tuple[I64, float | None]]] = {
    RATES: _parity_rates,
    ZERO: _parity_zero,
    CHANNEL: _parity_channel,
}
