"""What a plan is made of: sources, parts, streams, units, pieces, and the shard that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard import codes, representations
from ckptguard.codes.base import TILE_WORDS, Code, UnitLayout
from ckptguard.dtypes import DType
from ckptguard.representations.base import Selection

HEADER, TENSOR, FILE, EXTRA = "header", "tensor", "file", "extra"

RawHeader = bytes


@dataclass(frozen=True)
class Source:
    """A file of the checkpoint.

    Attributes:
        name: relative POSIX path.
        bytes: its size.
        header: of a safetensors file, the eight length bytes and the JSON exactly as they were; empty otherwise.
    """

    name: str
    bytes: int
    header: RawHeader = b""


@lru_cache(maxsize=4096)
def _selection(representation: str, dtype: DType, mask: str) -> Selection:
    selection = representations.make(representation).select(dtype, mask)
    return selection if selection.mask and selection.keep else Selection(0)


@dataclass(frozen=True)
class Part:
    """A piece of a source that is stored together.

    Attributes:
        source: index into the shard's sources.
        kind: `header`, `tensor`, `file`, or `extra`: row sums and outliers of tensors, which are in no source.
        name: of the tensor; of the source for the other kinds.
        dtype: of a tensor; U8 for the other kinds.
        shape: of a tensor.
        offset, bytes: in the source; of `extra` 0 and what it takes.
        stored_offset, stored_bytes: in the payload.
        representation: spec.
        mask: protected bits of a word, most significant first, as a string of 0 and 1.
        code: spec; `none` where nothing is protected.
    """

    source: int
    kind: str
    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    bytes: int
    stored_offset: int
    stored_bytes: int
    representation: str
    mask: str
    code: str

    @property
    def elements(self) -> int:
        """Mask words in the part."""
        return self.dtype.words(self.bytes)

    @property
    def protected_bits(self) -> int:
        """Bits of the part that are protected."""
        return self.elements * self.mask.count("1")

    @property
    def weight_bits(self) -> int:
        """Bits that represent the part's elements."""
        return self.elements * len(self.mask)

    @cached_property
    def selection(self) -> Selection:
        """The protected bits of its stored words; all words count where nothing is protected."""
        return _selection(self.representation, self.dtype, self.mask)


@dataclass(frozen=True)
class Piece:
    """The run of one part's stored bytes that falls into one unit.

    Attributes:
        index: of the piece in the shard; digests are listed in this order.
        part: index into the shard's parts.
        offset, bytes: in the payload.
        first_word, words: which words of the unit it holds.
        positions: for a part of which not every stored word is in the stream, where in the piece (in 64-bit words) the
            stream's words lie; None where every word is.
    """

    index: int
    part: int
    offset: int
    bytes: int
    first_word: int
    words: int
    positions: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class Pieces:
    """All pieces of a shard as columns, in the order of their indices.

    Attributes:
        part, stream, unit: (pieces,) indices; of the unit within its stream.
        offset, bytes: (pieces,) in the payload.
        starts, stops: (parts,) the pieces of part p are those from starts[p] to before stops[p].
    """

    part: npt.NDArray[np.int32]
    stream: npt.NDArray[np.int32]
    unit: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Unit:
    """One independently coded stretch of a stream.

    Attributes:
        stream: index into the shard's streams.
        index: within the stream.
        words: in it.
        pieces: in word order.
        layout: its codewords.
        parity_offset: of its parity in the parity region.
        parity_digest: index of its parity's digest; -1 where there is no parity.
    """

    stream: int
    index: int
    words: int
    pieces: tuple[Piece, ...]
    layout: UnitLayout
    parity_offset: int
    parity_digest: int


@dataclass(frozen=True)
class Stream:
    """Parts with equal protected bits and code, and how their words are cut.

    Attributes:
        code: spec.
        mask: of the 64-bit words; bit 0 = least significant.
        unit_tiles: tiles of a full unit.
        parts: indices into the shard's parts, in payload order; none of them is empty.
        words: in the stream.
        parity_offset, parity_bytes: in the parity region.
        first_piece, first_digest: where its pieces and its parity digests start in the shard's lists.
        word_starts: (len(parts) + 1,) first word of each part, and the total.
        cuts: (pieces + 1,) first word of each piece, and the total.
    """

    code: Code
    mask: int
    unit_tiles: int
    parts: tuple[int, ...]
    words: int
    parity_offset: int
    parity_bytes: int
    first_piece: int
    first_digest: int
    word_starts: npt.NDArray[np.int64] = field(compare=False)
    cuts: npt.NDArray[np.int64] = field(compare=False)

    @property
    def planes(self) -> int:
        """Protected bits of a word."""
        return self.mask.bit_count()

    @property
    def unit_words(self) -> int:
        """Words of a full unit."""
        return self.unit_tiles * TILE_WORDS

    @property
    def units(self) -> int:
        """How many units it has."""
        return -(-self.words // self.unit_words)

    @property
    def protected_bits(self) -> int:
        """Bits its code covers, the padding of parts to whole words included."""
        return self.words * self.planes

    def layout(self, unit: int) -> UnitLayout:
        """The codewords of a unit."""
        return self.code.unit_layout(self.unit_size(unit), self.planes)

    def unit_size(self, unit: int) -> int:
        """Words of a unit; only the last is shorter than `unit_words`."""
        return min(self.unit_words, self.words - unit * self.unit_words)


@dataclass(frozen=True)
class ShardPlan:
    """One shard file: what lies in it and where.

    Attributes:
        name: of the shard file.
        device: the device's record (see `devices`), None where none is known.
        sources, parts, streams: in order.
        payload_bytes, parity_bytes: of the two regions.
        beside: the payload is the untouched source file next to the shard file.
    """

    name: str
    device: Mapping[str, Any] | None
    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    streams: tuple[Stream, ...]
    payload_bytes: int
    parity_bytes: int
    beside: bool

    @property
    def pieces(self) -> int:
        """How many pieces, over all streams."""
        return sum(len(stream.cuts) - 1 for stream in self.streams)

    @property
    def parity_digests(self) -> int:
        """How many units have parity."""
        return sum(stream.units for stream in self.streams if stream.parity_bytes)

    def unit(self, stream_index: int, index: int) -> Unit:
        """Work out one unit."""
        stream = self.streams[stream_index]
        start = index * stream.unit_words
        size = stream.unit_size(index)
        first, last = np.searchsorted(stream.cuts, [start, start + size]).tolist()
        full = stream.code.unit_layout(stream.unit_words, stream.planes).parity_bytes if index else 0
        return Unit(
            stream_index,
            index,
            size,
            self._pieces_between(stream, first, last, start),
            stream.layout(index),
            stream.parity_offset + index * full,
            stream.first_digest + index if stream.parity_bytes else -1,
        )

    def _pieces_between(self, stream: Stream, first: int, last: int, unit_start: int) -> tuple[Piece, ...]:
        """Pieces that lie between two cuts of a stream."""
        cuts = stream.cuts[first : last + 1].tolist()
        here = slice(stream.first_piece + first, stream.first_piece + last)
        table = self.table
        pieces = []
        for number, (part, offset, size) in enumerate(
            zip(table.part[here].tolist(), table.offset[here].tolist(), table.bytes[here].tolist(), strict=True)
        ):
            begin, end = cuts[number], cuts[number + 1]
            positions, selection = None, self.parts[part].selection
            if selection.period > 1:
                word = int(stream.word_starts[self._places[part][1]])
                stored = (offset - self.parts[part].stored_offset) // 8
                positions = _stored_words(selection, begin - word, end - word) - stored
            pieces.append(Piece(here.start + number, part, offset, size, begin - unit_start, end - begin, positions))
        return tuple(pieces)

    @cached_property
    def table(self) -> Pieces:
        """All pieces, worked out together."""
        columns = [self._stream_table(index, stream) for index, stream in enumerate(self.streams)]
        columns = columns or [(np.zeros(0, np.int64),) * 5]
        part, stream, unit, offset, size = (np.concatenate(column) for column in zip(*columns, strict=True))
        starts, stops = np.zeros((2, len(self.parts)), np.int64)
        for one in self.streams:
            edges = one.first_piece + np.searchsorted(one.cuts, one.word_starts)
            starts[list(one.parts)], stops[list(one.parts)] = edges[:-1], edges[1:]
        return Pieces(part.astype(np.int32), stream.astype(np.int32), unit, offset, size, starts, stops)

    def _stream_table(self, index: int, stream: Stream) -> tuple[npt.NDArray[np.int64], ...]:
        """Part, stream, unit, offset and bytes of the pieces of a stream."""
        members = [self.parts[part] for part in stream.parts]
        begins = stream.cuts[:-1]
        place = np.searchsorted(stream.word_starts, begins, "right") - 1
        first = begins - stream.word_starts[place]  # word of the part
        for piece in np.flatnonzero(np.array([part.representation != "native" for part in members])[place]).tolist():
            first[piece] = _stored_word(members[place[piece]].selection, int(first[piece])) if first[piece] else 0
        offset = np.array([part.stored_offset for part in members])[place] + 8 * first
        ends = np.array([part.stored_offset + part.stored_bytes for part in members])[place]
        goes_on = place[1:] == place[:-1]
        ends[:-1][goes_on] = offset[1:][goes_on]
        part = np.array(stream.parts)[place]
        return part, np.full(len(part), index), begins // stream.unit_words, offset, ends - offset

    def units_of_part(self, part_index: int, begin: int, end: int) -> list[tuple[int, int]]:
        """(stream, unit) pairs that hold stored bytes [begin, end) of a part."""
        if part_index not in self._places:
            return []
        stream_index, place = self._places[part_index]
        stream, selection = self.streams[stream_index], self.parts[part_index].selection
        word = int(stream.word_starts[place])
        last = int(stream.word_starts[place + 1]) - 1
        first_unit = min(word + stream_words(selection, begin // 8), last) // stream.unit_words
        last_unit = min(word + stream_words(selection, -(-end // 8)), last) // stream.unit_words
        return [(stream_index, unit) for unit in range(first_unit, last_unit + 1)]

    def pieces_of_part(self, part: int, begin: int, end: int) -> range:
        """Indices of the pieces that hold stored bytes [begin, end) of a part, in the order of these bytes."""
        first, stop = int(self.table.starts[part]), int(self.table.stops[part])
        if begin >= end or first == stop:
            return range(0)
        offsets = self.table.offset[first:stop] - self.parts[part].stored_offset
        low, high = int(np.searchsorted(offsets, begin, "right")) - 1, int(np.searchsorted(offsets, end))
        return range(first + low, first + high)

    @cached_property
    def stored_offsets(self) -> npt.NDArray[np.int64]:
        """(parts,) where in the payload each part begins."""
        return np.array([part.stored_offset for part in self.parts], np.int64)

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Part index -> (stream, place in it)."""
        return {
            part: (index, place) for index, stream in enumerate(self.streams) for place, part in enumerate(stream.parts)
        }

    def all_units(self) -> list[tuple[int, int]]:
        """(stream, unit) pairs of the whole shard."""
        return [(s, u) for s, stream in enumerate(self.streams) for u in range(stream.units)]

    @property
    def weight_bits(self) -> int:
        """Bits that represent the elements of its tensors."""
        return sum(part.weight_bits for part in self.parts if part.kind == TENSOR)

    @property
    def protected_bits(self) -> int:
        """Protected bits of its tensors."""
        return sum(part.protected_bits for part in self.parts if part.kind == TENSOR)

    @property
    def nominal_parity(self) -> float:
        """Parity bits of its tensors as the papers count them, protected bits times (n - k) / k, and what is extra."""
        parity = sum(part.protected_bits * codes.make(part.code).redundancy for part in self.parts if _counts(part))
        return parity + 8 * self.extra_bytes

    @cached_property
    def extra(self) -> int | None:
        """Index of the part that holds row sums and outliers; None where there is none."""
        return next((index for index, part in enumerate(self.parts) if part.kind == EXTRA), None)

    @property
    def extra_bytes(self) -> int:
        """Bytes of row sums and outliers."""
        return 0 if self.extra is None else self.parts[self.extra].stored_bytes

    @property
    def stored_parity(self) -> int:
        """Bytes stored for the sake of its tensors: the parity of their streams, and what is extra with its own."""
        parity = (s.parity_bytes for s in self.streams if any(_counts(self.parts[index]) for index in s.parts))
        return sum(parity) + self.extra_bytes

    def to_json(self) -> dict[str, Any]:
        """The record that goes into the metadata; headers are kept in a section of their own."""
        stream_of = {part: index for index, stream in enumerate(self.streams) for part in stream.parts}
        return {
            "device": self.device,
            "sources": [{"name": s.name, "bytes": s.bytes, "header": len(s.header)} for s in self.sources],
            "parts": [
                {
                    "source": p.source,
                    "kind": p.kind,
                    "name": p.name,
                    "dtype": p.dtype.name,
                    "shape": list(p.shape),
                    "offset": p.offset,
                    "bytes": p.bytes,
                    "stored": p.stored_bytes,
                    "representation": p.representation,
                    "mask": p.mask,
                    "code": p.code,
                    "stream": stream_of.get(index, -1),
                }
                for index, p in enumerate(self.parts)
            ],
            "streams": [
                {
                    "code": s.code.spec,
                    "mask": f"{s.mask:016x}",
                    "unit_tiles": s.unit_tiles,
                    "words": s.words,
                    "parity": s.parity_bytes,
                }
                for s in self.streams
            ],
        }


def _counts(part: Part) -> bool:
    """Whether the parity of a part is spent for tensors."""
    return part.kind in (TENSOR, EXTRA)


@lru_cache(maxsize=256)
def _kept(selection: Selection) -> tuple[int, ...]:
    return tuple(bit for bit in range(selection.period) if selection.keep >> bit & 1)


def _stored_words(selection: Selection, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Positions, in stored words of a part, of its stream words begin .. end - 1."""
    kept = np.array(_kept(selection), np.int64)
    words = np.arange(begin, end, dtype=np.int64)
    result: npt.NDArray[np.int64] = words // len(kept) * selection.period + kept[words % len(kept)]
    return result


def _stored_word(selection: Selection, word: int) -> int:
    if selection.period == 1:
        return word
    kept = _kept(selection)
    return word // len(kept) * selection.period + kept[word % len(kept)]


def stream_words(selection: Selection, stored_word: int) -> int:
    """How many stream words lie before a stored word of a part."""
    if selection.period == 1:
        return stored_word
    groups, rest = divmod(stored_word, selection.period)
    return groups * selection.keep.bit_count() + (selection.keep & ((1 << rest) - 1)).bit_count()
