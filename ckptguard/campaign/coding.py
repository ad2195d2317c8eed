"""Decoding in memory: flips are laid into the codewords a container would have, and only those in doubt are decoded.

All codes are linear (the CRC up to a constant), so that a decoder does with an error pattern over zero words what it
does with the same errors over any message. A codeword with no more flips than its code always corrects is not decoded.
As in `pipeline.units`, digests are judges: what was read right in its protected bits is never spoilt by a wrong
codeword, and is not counted as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ckptguard import plan, representations
from ckptguard.campaign.decoding import Decoding
from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.shells import Drawn
from ckptguard.codes.base import Code, UnitLayout
from ckptguard.codes.crc import CRC_BITS, Crc
from ckptguard.codes.lanes import LaneCode, words_of
from ckptguard.errors import UsageError
from ckptguard.pipeline.units import stored_group_bytes
from ckptguard.plan import Part, Piece, ShardPlan, Source, Stream, Unit

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Member:
    """A tensor in a stream.

    Attributes:
        name: of the tensor.
        protected: bits of its words.
        place, kept: see `kernels.codewords`.
    """

    name: str
    encoding: Encoding
    protected: np.uint64
    place: I64
    kept: I64

    def element_range(self, first: int, words: int) -> tuple[int, int]:
        """The elements with bits in so many words of the stream, counted from the tensor's first."""
        if self.place[3]:
            planes = int(self.place[3])
            return first // planes * 64, -(-(first + words) // planes) * 64
        per_word = 1 << int(self.place[2])
        return first * per_word, (first + words) * per_word


class StreamCoder:
    """The codewords of one stream of protected bits of a shard."""

    def __init__(self, shard: ShardPlan, index: int, members: Mapping[int, Member]) -> None:
        """`members`: by index of the part. Raises UsageError for a code whose codewords are laid out unknown to us."""
        self.stream: Stream = shard.streams[index]
        self.code: Code = self.stream.code
        if not isinstance(self.code, LaneCode | Crc):
            raise UsageError(f"campaigns do not know how the code {self.code.spec!r} lays out its codewords")
        self._shard, self._index = shard, index
        self.members = {part: members[part] for part in self.stream.parts}
        stream = self.stream
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
        self.ranks = np.array([(stream.mask & ((1 << bit) - 1)).bit_count() for bit in range(64)], np.int64)

    @property
    def codewords(self) -> int:
        """Of the whole stream."""
        return (self.stream.units - 1) * self.full.codewords + self.last.codewords

    def layout(self, unit: int) -> UnitLayout:
        """The codewords of a unit."""
        return self.last if unit == self.stream.units - 1 else self.full

    def unit(self, index: int) -> Unit:
        """A unit of the stream."""
        return self._shard.unit(self._index, index)

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

    def message_of(self, unit: Unit, image_of: Callable[[int], Bytes]) -> U64:
        """(unit.words,) stream words of a unit, were the stored bytes of its parts those that are given."""
        words = np.zeros(unit.words, "<u8")
        for piece in unit.pieces:
            part, image = self._shard.parts[piece.part], image_of(piece.part)
            data = np.zeros(-(-piece.bytes // 8), "<u8")
            begin = piece.offset - part.stored_offset
            data.view(np.uint8)[: piece.bytes] = image[begin : begin + piece.bytes]
            words[piece.first_word : piece.first_word + piece.words] = (
                data if piece.positions is None else data[piece.positions]
            )
        return words.astype(np.uint64, copy=False)

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
        read, errors = self._errors(unit, failing, flips)
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

    def _errors(self, unit: Unit, failing: npt.NDArray[np.bool_], flips: Mapping[str, Drawn]) -> tuple[U64, U64]:
        """Flips in the words of a unit: all, and those of failing codewords."""
        from ckptguard.kernels import codewords

        read, errors = np.zeros(unit.words, np.uint64), np.zeros(unit.words, np.uint64)
        for piece in unit.pieces:
            member = self.members[piece.part]
            if (drawn := flips.get(member.name)) is None:
                continue
            start = unit.index * self.stream.unit_words + piece.first_word - int(member.place[0])
            begin, end = np.searchsorted(drawn.elements, member.element_range(start, piece.words))
            codewords.collect_errors(
                drawn.elements[begin:end],
                drawn.flips[begin:end],
                member.protected,
                member.place,
                member.kept,
                self.ranks,
                self.geometry,
                unit.index,
                failing,
                read,
                errors,
            )
        return read, errors

    def settle(self, unit: Unit, read: U64, errors: U64, lost: npt.NDArray[np.bool_], result: Decoding) -> None:
        """Add what is wrong in a unit after decoding, piece by piece, to `result`.

        Args:
            read: flips before decoding; a piece without any is kept as read.
            errors: after it; changed in place.
            lost: (codewords,) those given up on.
        """
        cover = self.code.cover(lost, unit.words, self.stream.mask) if lost.any() else None
        for piece in unit.pieces:
            here = slice(piece.first_word, piece.first_word + piece.words)
            if not read[here].any():
                errors[here] = 0
            if not errors[here].any():
                continue
            member = self.members[piece.part]
            first = unit.index * self.stream.unit_words + piece.first_word - int(member.place[0])
            given_up = None
            if cover is not None and cover[here].any():
                given_up = _touched(member, first, cover[here])
            reach = _reach(self._shard.parts[piece.part], piece)
            result.add(member.name, _elements(member, first, errors[here]), given_up, reach)


def _reach(part: Part, piece: Piece) -> tuple[int, int]:
    """(begin, end) of the elements with stored bits in a piece."""
    size, group = stored_group_bytes(part), representations.make(part.representation).group
    begin = piece.offset - part.stored_offset
    return begin // size * group, -(-(begin + piece.bytes) // size) * group


def _elements(member: Member, first: int, words: U64) -> Drawn:
    """Bits of stream words, which start at word `first` of a tensor, as bits of the tensor's elements."""
    total = member.encoding.elements
    at = np.flatnonzero(words)
    none = np.zeros(0, np.int64)
    if not member.place[3]:
        width, per_word = int(member.place[1]), 1 << int(member.place[2])
        split = np.ascontiguousarray(words[at]).astype("<u8").view(f"<u{width // 8}").reshape(-1, per_word)
        rows, columns = np.nonzero(split)
        elements = (first + at[rows]) * per_word + columns
        inside = elements < total  # the padding of the tensor's last word
        return Drawn(elements[inside], split[rows, columns].astype(np.uint64)[inside], none)
    kept = int(member.place[3])
    shift_of = {int(rank): shift for shift, rank in enumerate(member.kept[: member.encoding.bits]) if rank >= 0}
    shifts = np.array([shift_of[rank] for rank in range(kept)], np.uint64)
    bits = np.unpackbits(words[at].astype("<u8").view(np.uint8), bitorder="little").reshape(-1, 64)
    rows, columns = np.nonzero(bits)
    place = first + at[rows]
    elements = place // kept * 64 + columns
    marks = np.uint64(1) << shifts[place % kept]
    order = np.argsort(elements, kind="stable")
    elements, marks = elements[order], marks[order]
    inside = elements < total
    found, starts = np.unique(elements[inside], return_index=True)
    return Drawn(found, np.bitwise_or.reduceat(marks[inside], starts) if found.size else marks[:0], none)


def _touched(member: Member, first: int, words: U64) -> I64:
    """The elements, ascending, that have one of the bits of stream words, as in `_elements`."""
    if not member.place[3]:
        return _elements(member, first, words).elements
    at = np.flatnonzero(words)
    groups, starts = np.unique((first + at) // int(member.place[3]), return_index=True)
    together = np.bitwise_or.reduceat(words[at], starts)
    rows, columns = np.nonzero(np.unpackbits(together.astype("<u8").view(np.uint8), bitorder="little").reshape(-1, 64))
    elements = groups[rows] * 64 + columns
    inside: I64 = elements[elements < member.encoding.elements]
    return inside


def coders_of(
    shards: Sequence[Sequence[str]], encodings: Mapping[str, Encoding], masks: Mapping[str, tuple[str, str]]
) -> dict[tuple[int, int], StreamCoder]:
    """By shard and stream, the codewords of tensors as `protect` lays them out.

    Args:
        shards: names of the tensors of every shard.
        masks: mask and code of every tensor; code `none` leaves it alone.
    """
    coders = {}
    for number, names in enumerate(shards):
        parts = [_part(name, encodings[name], *masks[name]) for name in names]
        shard = plan.lay_out(str(number), [Source(str(number), 0)], parts)
        for index, stream in enumerate(shard.streams):
            if stream.planes and stream.code.spec != "none":
                members = {
                    part: _member(shard.parts[part], encodings[shard.parts[part].name], int(start))
                    for part, start in zip(stream.parts, stream.word_starts[:-1], strict=True)
                }
                coders[number, index] = StreamCoder(shard, index, members)
    return coders


def _part(name: str, encoding: Encoding, mask: str, code: str) -> Part:
    size = encoding.part_dtype.word_bits // 8 * encoding.elements
    stored = representations.make(encoding.part_representation).stored_bytes(encoding.part_dtype, size)
    protection = code if "1" in mask else "none"
    return Part(
        0,
        plan.TENSOR,
        name,
        encoding.part_dtype,
        (),
        0,
        size,
        0,
        stored,
        encoding.part_representation,
        mask,
        protection,
    )


def _member(part: Part, encoding: Encoding, start: int) -> Member:
    kept = np.full(64, -1, np.int64)
    planes = 0
    if encoding.planar:
        for plane, chosen in enumerate(part.mask):
            if chosen == "1":
                kept[encoding.bits - 1 - plane] = planes
                planes += 1
    width = encoding.bits if not encoding.planar else 64
    place = np.array([start, width, (64 // width).bit_length() - 1, planes], np.int64)
    return Member(part.name, encoding, np.uint64(int(part.mask, 2)), place, kept)
