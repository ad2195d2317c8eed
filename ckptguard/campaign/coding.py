"""Decoding in memory: flips are laid into the codewords a container would have, and only those in doubt are decoded.

All codes are linear (the CRC up to a constant), so that a decoder does with an error pattern over zero words what it
does with the same errors over any message. A codeword with no more flips than its code always corrects is not decoded.
As in `pipeline.units`, digests are judges: what was read right in its protected bits is never spoilt by a wrong
codeword, and is not counted as lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.decoding import Decoding
from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.shells import Drawn
from ckptguard.campaign.streams import NONE, Member, ShardStream, streams_of
from ckptguard.codes.base import UnitLayout
from ckptguard.codes.crc import CRC_BITS, Crc
from ckptguard.codes.lanes import LaneCode, words_of
from ckptguard.errors import UsageError
from ckptguard.plan import ShardPlan, Unit

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class StreamCoder(ShardStream):
    """The codewords of one stream of protected bits of a shard."""

    def __init__(self, shard: ShardPlan, index: int, members: Mapping[int, Member]) -> None:
        """`members`: by index of the part. Raises UsageError for a code whose codewords are laid out unknown to us."""
        super().__init__(shard, index, members)
        stream = self.stream
        if not isinstance(self.code, LaneCode | Crc):
            raise UsageError(f"campaigns do not know how the code {self.code.spec!r} lays out its codewords")
        self.full, self.last = stream.layout(0), stream.layout(stream.units - 1)
        self.unit_parity = self.full.parity_bytes
        geometry = (
            stream.unit_words,
            stream.words,
            stream.planes,
            self.lanes(stream.unit_size(0)),
            self.lanes(stream.unit_size(stream.units - 1)),
            self.full.codewords,
            int(isinstance(self.code, Crc)),
        )
        self.geometry = np.array(geometry, np.int64)

    @property
    def codewords(self) -> int:
        """Of the whole stream."""
        return (self.stream.units - 1) * self.full.codewords + self.last.codewords

    def layout(self, unit: int) -> UnitLayout:
        """The codewords of a unit."""
        return self.last if unit == self.stream.units - 1 else self.full

    def lanes(self, words: int) -> int:
        """Codewords with message bits in a unit of so many words; outer words come behind them."""
        if isinstance(self.code, LaneCode):
            return LaneCode.unit_layout(self.code, words, self.stream.planes).codewords
        return self.code.unit_layout(words, self.stream.planes).codewords

    def codeword_of_parity(self, layout: UnitLayout, lanes: int, bits: I64) -> I64:
        """The codeword that each bit of a unit's parity is in; -1 for padding."""
        if isinstance(self.code, Crc):
            found = bits // CRC_BITS
            return np.where(found < layout.codewords, found, -1)
        check = layout.parity_bits
        found = np.where(bits < lanes * check, bits % max(lanes, 1), -1)
        extra = layout.codewords - lanes
        if extra:
            start = 64 * words_of(lanes * check)
            rest = 8 * layout.parity_bytes - start - 64 * words_of(extra * check)
            symbols = -(-layout.message_bits // 10) * 10
            for begin, size in ((start, extra * symbols), (start + rest, extra * check)):
                here = (bits >= begin) & (bits < begin + size)
                found[here] = lanes + (bits[here] - begin) % extra
        return found

    @cached_property
    def _blank_parity(self) -> dict[int, Bytes]:
        """Parity of zero words, by number of words."""
        sizes = {self.stream.unit_words, self.stream.unit_size(self.stream.units - 1)}
        if isinstance(self.code, LaneCode):
            return {
                size: np.zeros(self.code.unit_layout(size, self.stream.planes).parity_bytes, np.uint8) for size in sizes
            }
        return {size: self.code.encode(np.zeros(size, np.uint64), self.stream.mask) for size in sizes}

    def parity_image(self) -> Bytes:
        """The parity of all units, as a container stores it."""
        pieces = []
        for index in range(self.stream.units):
            unit = self.unit(index)
            pieces.append(self.code.encode(self._message(unit), self.stream.mask))
        return np.concatenate(pieces)

    def _message(self, unit: Unit) -> U64:
        return self.message_of(unit, lambda part: self.members[part].encoding.image(self.members[part].encoding.words))

    def decode(self, flips: Mapping[str, Drawn], parity: I64, result: Decoding) -> None:
        """Add to `result` what becomes of flips of the stream's protected bits.

        Args:
            flips: by tensor, of any of its bits.
            parity: positions of flipped bits in the parity of the stream.
        """
        from ckptguard.kernels import codewords

        result.codewords += self.codewords
        counts, by_unit = np.zeros(self.codewords, np.int32), np.zeros(self.stream.units, np.int64)
        for member in self.members.values():
            if (drawn := flips.get(member.name)) is not None:
                codewords.count_errors(
                    drawn.elements,
                    drawn.flips,
                    member.protected,
                    member.place,
                    member.kept,
                    self.ranks,
                    self.geometry,
                    counts,
                    by_unit,
                )
        units, bits, found = self._parity_codewords(parity)
        inside = found >= 0
        counts += np.bincount(units[inside] * self.full.codewords + found[inside], minlength=counts.size).astype(
            np.int32
        )
        counts[np.repeat(by_unit == 0, self._sizes)] = 0  # what no flip reached is not decoded
        failing = counts > self.code.t
        result.corrected += int(np.count_nonzero(counts)) - int(np.count_nonzero(failing))
        doubtful = np.unique(np.flatnonzero(failing) // self.full.codewords)
        for index in doubtful.tolist():
            first = index * self.full.codewords
            here = failing[first : first + self.layout(index).codewords]
            mine = (units == index) & inside
            mine[mine] = here[found[mine]]
            self._decode_unit(index, here, flips, bits[mine], result)

    @cached_property
    def _sizes(self) -> I64:
        """(units,) codewords of each."""
        sizes = np.full(self.stream.units, self.full.codewords)
        sizes[-1] = self.last.codewords
        return sizes

    def _parity_codewords(self, parity: I64) -> tuple[I64, I64, I64]:
        """(unit, bit in the unit's parity, codeword in the unit or -1) of flipped bits of the stream's parity."""
        size = 8 * self.unit_parity
        units = parity // size if size else parity
        bits = parity - units * size
        found = np.empty(parity.size, np.int64)
        last = units == self.stream.units - 1
        found[~last] = self.codeword_of_parity(self.full, int(self.geometry[3]), bits[~last])
        found[last] = self.codeword_of_parity(self.last, int(self.geometry[4]), bits[last])
        return units, bits, found

    def _decode_unit(
        self, index: int, failing: npt.NDArray[np.bool_], flips: Mapping[str, Drawn], parity: I64, result: Decoding
    ) -> None:
        """Run the decoder on the failing codewords of a unit."""
        from ckptguard.kernels import codewords

        unit = self.unit(index)
        read, errors = self.errors(unit, failing, flips)
        stored = self._blank_parity[unit.words].copy()
        np.bitwise_xor.at(stored, parity >> 3, (1 << (parity & 7)).astype(np.uint8))
        outcome = self.code.decode(errors, self.stream.mask, stored).flips
        lost = outcome < 0
        left = np.zeros(failing.size, np.int32)
        codewords.count_words(errors, index, self.ranks, self.geometry, left)
        wrong = failing & ~lost & (left > 0)
        result.uncorrectable += int(np.count_nonzero(lost))
        result.miscorrected += int(np.count_nonzero(wrong))
        result.corrected += int(np.count_nonzero(failing & ~lost & ~wrong))
        self.settle(unit, read, errors, lost, result)


def coders_of(
    shards: Sequence[Sequence[str]], encodings: Mapping[str, Encoding], masks: Mapping[str, tuple[str, str]]
) -> dict[tuple[int, int], StreamCoder]:
    """By shard and stream, the codewords of tensors as `protect` lays them out.

    Args:
        shards: names of the tensors of every shard.
        masks: mask and code of every tensor; those of code `none` are in no codeword.
    """
    return {
        (number, index): StreamCoder(shard, index, members)
        for number, index, shard, members in streams_of(shards, encodings, masks)
        if shard.streams[index].code.spec != NONE
    }
