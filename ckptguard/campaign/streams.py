"""Streams of protected bits in memory: where flips fall in a stream's words, and what is left of them in elements.

As in `pipeline.units`, digests are judges: what was read right in its protected bits is never spoilt by a wrong
codeword, and is not counted as lost. They judge protected bits that no code corrects (`none`), too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckptguard import plan, representations
from ckptguard.campaign.decoding import Decoding
from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.shells import Drawn
from ckptguard.codes.base import TILE_WORDS, Code
from ckptguard.pipeline.units import stored_group_bytes
from ckptguard.plan import Part, Piece, ShardPlan, Source, Stream, Unit

NONE = "none"

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Masks = Mapping[str, tuple[str, str]]
"""Mask and code of every tensor."""


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


class ShardStream:
    """One stream of protected bits of a shard.

    Attributes:
        members: by index of the part.
        geometry, ranks: see `kernels.codewords`.
    """

    geometry: I64

    def __init__(self, shard: ShardPlan, index: int, members: Mapping[int, Member]) -> None:
        self.stream: Stream = shard.streams[index]
        self.code: Code = self.stream.code
        self._shard, self._index = shard, index
        self.members = {part: members[part] for part in self.stream.parts}
        mask = self.stream.mask
        self.ranks = np.array([(mask & ((1 << bit) - 1)).bit_count() for bit in range(64)], np.int64)

    def unit(self, index: int) -> Unit:
        """A unit of the stream."""
        return self._shard.unit(self._index, index)

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

    def errors(self, unit: Unit, failing: npt.NDArray[np.bool_], flips: Mapping[str, Drawn]) -> tuple[U64, U64]:
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


class JudgedStream(ShardStream):
    """Protected bits of code `none`: nothing corrects them, but a digest says of every piece whether they are right."""

    def __init__(self, shard: ShardPlan, index: int, members: Mapping[int, Member]) -> None:
        super().__init__(shard, index, members)
        stream = self.stream
        by_tile = 1  # where codewords are, does not matter: all are looked at
        self.geometry = np.array([stream.unit_words, stream.words, stream.planes, 0, 0, 0, by_tile], np.int64)

    def judge(self, flips: Mapping[str, Drawn], result: Decoding) -> None:
        """Add what is wrong in pieces to `result`.

        Args:
            flips: by tensor, of any of its bits.
        """
        if not any(member.name in flips for member in self.members.values()):
            return
        for index in range(self.stream.units):
            unit = self.unit(index)
            everywhere = np.ones(-(-unit.words // TILE_WORDS), np.bool_)
            read, errors = self.errors(unit, everywhere, flips)
            if read.any():
                self.settle(unit, read, errors, ~everywhere, result)


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


def streams_of(
    shards: Sequence[Sequence[str]], encodings: Mapping[str, Encoding], masks: Masks
) -> Iterator[tuple[int, int, ShardPlan, dict[int, Member]]]:
    """(shard, stream, plan of the shard, members) of all streams with protected bits, as `protect` lays them out.

    Args:
        shards: names of the tensors of every shard.
    """
    for number, names in enumerate(shards):
        parts = [_part(name, encodings[name], *masks[name]) for name in names]
        shard = plan.lay_out(str(number), [Source(str(number), 0)], parts)
        for index, stream in enumerate(shard.streams):
            if stream.planes:
                yield (
                    number,
                    index,
                    shard,
                    {
                        part: _member(shard.parts[part], encodings[shard.parts[part].name], int(start))
                        for part, start in zip(stream.parts, stream.word_starts[:-1], strict=True)
                    },
                )


def judged_of(
    shards: Sequence[Sequence[str]], encodings: Mapping[str, Encoding], masks: Masks
) -> tuple[JudgedStream, ...]:
    """The streams of protected bits that no code corrects."""
    if not any(code == NONE and "1" in mask for mask, code in masks.values()):
        return ()
    return tuple(
        JudgedStream(shard, index, members)
        for _, index, shard, members in streams_of(shards, encodings, masks)
        if shard.streams[index].code.spec == NONE
    )


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
