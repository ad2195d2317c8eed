"""Where every bit goes: sizes, places and codes of a container, worked out from metadata alone.

A *source* is a file of the checkpoint. A *part* is a contiguous piece of a source that is stored together: a tensor, a
safetensors header, or an auxiliary file. The parts of a shard, one after the other, are its payload. Parts whose words
have the same protected bits and the same code form a *stream*: their 64-bit words in payload order. A stream is cut
into *units* (see `codes.base`), and the run of a part's bytes that falls into one unit is a *piece*: the grain of
digests and of reports.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard import codes, representations
from ckptguard.checkpoint.safetensors import Spelled, spells, tensors_of
from ckptguard.codes.base import TILE_WORDS, Code, UnitLayout
from ckptguard.container.parts import PartColumns, check_counts, check_text
from ckptguard.dtypes import DTYPES, DType
from ckptguard.errors import CkptGuardError, ContainerError, SpecError
from ckptguard.representations.base import Representation, Selection

FILES_CODE = "bch:8191,6176"
"""Auxiliary files (index, config, tokenizer) are wholly protected by this code: t = 163, and 1e-2 is survived with
probability 1 - 1e-15 per codeword."""

HEADER, TENSOR, FILE = "header", "tensor", "file"

_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes of a file's name and of its path, less than systems allow

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
        kind: `header`, `tensor` or `file`.
        name: of the tensor; of the source for the other kinds.
        dtype: of a tensor; U8 for the other kinds.
        shape: of a tensor.
        offset, bytes: in the source.
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
        first_unit = min(word + _stream_words(selection, begin // 8), last) // stream.unit_words
        last_unit = min(word + _stream_words(selection, -(-end // 8)), last) // stream.unit_words
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
        """Parity bits of its tensors as the papers count them: protected bits times (n - k) / k."""
        return sum(part.protected_bits * codes.make(part.code).redundancy for part in self.parts if part.kind == TENSOR)

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


def _stream_words(selection: Selection, stored_word: int) -> int:
    """How many stream words lie before a stored word of a part."""
    if selection.period == 1:
        return stored_word
    groups, rest = divmod(stored_word, selection.period)
    return groups * selection.keep.bit_count() + (selection.keep & ((1 << rest) - 1)).bit_count()


def lay_out(
    name: str,
    sources: Sequence[Source],
    parts: Sequence[Part],
    *,
    device: Mapping[str, Any] | None = None,
    beside: bool = False,
    bit_error_rate: float | None = None,
    target: float | None = None,
) -> ShardPlan:
    """Put parts one after the other, pool them into streams, choose the codes left to choice, and place the parity.

    Args:
        parts: with `stored_bytes`, mask and code decided; their `stored_offset` is set here. A code `auto` or `auto:n`
            is resolved for all parts of the shard that name it.
        bit_error_rate, target: of the device and of the whole shard, for `auto`.
    """
    placed: list[Part] = []
    offset = 0
    for part in parts:
        placed.append(replace(part, stored_offset=offset))
        offset += part.stored_bytes
    placed = _resolve_auto(placed, bit_error_rate, target)
    streams, parity = _streams(placed)
    return ShardPlan(name, device, tuple(sources), tuple(placed), tuple(streams), offset, parity, beside)


def _streams(parts: Sequence[Part]) -> tuple[list[Stream], int]:
    members: dict[tuple[str, int], list[int]] = {}
    joined: dict[tuple[str, str, str, str], tuple[Selection, list[int]]] = {}
    words = [-(-part.stored_bytes // 8) for part in parts]
    for index, part in enumerate(parts):
        if part.stored_bytes:
            like = (part.representation, part.dtype.name, part.mask, part.code)
            if (known := joined.get(like)) is None:
                selection = part.selection
                key = (part.code, selection.mask) if selection.mask else ("none", 0)
                known = joined[like] = (selection, members.setdefault(key, []))
            if known[0].period > 1:
                words[index] = _stream_words(known[0], words[index])
            known[1].append(index)
    streams: list[Stream] = []
    parity = pieces = digests = 0
    for (spec, mask), indices in members.items():
        stream = _stream(codes.make(spec), mask, [(i, words[i]) for i in indices], parity, pieces, digests)
        streams.append(stream)
        parity += stream.parity_bytes
        pieces += len(stream.cuts) - 1
        digests += stream.units if stream.parity_bytes else 0
    return streams, parity


def _stream(
    code: Code, mask: int, parts: Sequence[tuple[int, int]], parity: int, first_piece: int, first_digest: int
) -> Stream:
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([words for _, words in parts], out=starts[1:])
    words = int(starts[-1])
    planes = mask.bit_count()
    unit_tiles = code.unit_tiles(max(planes, 1))
    unit_words = unit_tiles * TILE_WORDS
    cuts = np.union1d(starts, np.append(np.arange(0, words, unit_words, dtype=np.int64), words))
    full, rest = divmod(words, unit_words)
    parity_bytes = 0
    if planes:
        parity_bytes = full * code.unit_layout(unit_words, planes).parity_bytes if full else 0
        parity_bytes += code.unit_layout(rest, planes).parity_bytes if rest else 0
    indices = tuple(index for index, _ in parts)
    return Stream(code, mask, unit_tiles, indices, words, parity, parity_bytes, first_piece, first_digest, starts, cuts)


def _resolve_auto(parts: Sequence[Part], bit_error_rate: float | None, target: float | None) -> list[Part]:
    """Replace the codes `auto` and `auto:n` by the cheapest BCH code that reaches the target."""
    asked = sorted({part.code for part in parts if part.code.partition(":")[0] == "auto"})
    result = list(parts)
    for spec in asked:
        if bit_error_rate is None:
            raise SpecError("--code auto needs the device's error rate; name a device (--devices, --device) or a code")
        chosen = _smallest_code(spec, [p for p in parts if p.code == spec], bit_error_rate, target or 1e-9)
        result = [replace(part, code=chosen) if part.code == spec else part for part in result]
    return result


def _smallest_code(spec: str, parts: Sequence[Part], bit_error_rate: float, target: float) -> str:
    from ckptguard.codes.bch import dimensions

    _, _, setting = spec.partition(":")
    try:
        n = int(setting or "8191")
        candidates = dimensions(n)
    except ValueError as error:
        raise SpecError(f"{spec!r}: `auto` takes one setting, the codeword length n = 2^m - 1") from error
    best = ""
    low, high = 0, len(candidates) - 1
    while low <= high:  # failure falls as t grows; candidates are sorted by falling k
        middle = (low + high) // 2
        trial = f"bch:{n},{candidates[middle]}"
        if _failure(trial, parts, bit_error_rate) <= target:
            best, high = trial, middle - 1
        else:
            low = middle + 1
    if not best:
        raise SpecError(
            f"no BCH code of length {n} decodes this shard with probability 1 - {target:g} at a bit error rate of "
            f"{bit_error_rate:g}; allow more failures (--target), or a shorter code (auto:1023)"
        )
    return best


def _failure(spec: str, parts: Sequence[Part], bit_error_rate: float) -> float:
    """Expected number of codewords of the parts that fail, which bounds the probability that any does."""
    total = 0.0
    streams, _ = _streams([replace(part, code=spec) for part in parts])
    for stream in streams:
        if not stream.planes:
            continue
        for unit, count in ((0, stream.units - 1), (stream.units - 1, 1)):
            layout = stream.layout(unit)
            length = layout.message_bits + layout.parity_bits
            total += count * layout.codewords * stream.code.failure_probability(bit_error_rate, length)
    return total


def from_json(name: str, record: Any, headers: Sequence[bytes], payload_bytes: int, beside: bool) -> ShardPlan:
    """Rebuild a shard's plan from its metadata; whatever contradicts itself raises ContainerError."""
    try:
        return _from_json(name, record, headers, payload_bytes, beside)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, CkptGuardError) as error:
        raise ContainerError(f"{name}: the plan in the metadata does not fit the format: {error}") from error


def _from_json(name: str, record: Any, headers: Sequence[bytes], payload_bytes: int, beside: bool) -> ShardPlan:
    sources = tuple(
        Source(item["name"], item["bytes"], header) for item, header in zip(record["sources"], headers, strict=True)
    )
    check_counts([source.bytes for source in sources])
    for source in sources:
        check_text(source.name)
    check_source_names([source.name for source in sources])
    columns = record["parts"]
    parts = _parts(columns if isinstance(columns, PartColumns) else PartColumns.of(columns), sources)
    offset = parts[-1].stored_offset + parts[-1].stored_bytes if parts else 0
    if offset != payload_bytes:
        raise ValueError(f"the parts fill {offset} bytes, the payload has {payload_bytes}")
    streams, parity = _streams(parts)
    described = [(s.code.spec, f"{s.mask:016x}", s.unit_tiles, s.words, s.parity_bytes) for s in streams]
    stated = [(s["code"], s["mask"], s["unit_tiles"], s["words"], s["parity"]) for s in record["streams"]]
    if described != stated:
        raise ValueError("the streams in the metadata are not those that its parts make")
    device = record["device"]
    if device is not None and not all(isinstance(device.get(key), str | None) for key in ("name", "channel")):
        raise ValueError("the device is not the record it should be")
    return ShardPlan(name, device, sources, tuple(parts), tuple(streams), offset, parity, beside)


def _parts(columns: PartColumns, sources: Sequence[Source]) -> list[Part]:
    """The parts of a shard, each held against the header of its source; column by column, since they may be many."""
    parts = _make_parts(
        columns.source,
        columns.kind,
        columns.name,
        [DTYPES[name] for name in columns.dtype],
        columns.shape,
        columns.offset,
        columns.bytes,
        accumulate(columns.stored, initial=0),
        columns.stored,
        columns.representation,
        columns.mask,
        columns.code,
    )
    if _spelled_plainly(columns, sources):
        if parts[0].kind != TENSOR:
            _check_whole(parts[0], sources[0])
    else:
        _check_places(parts, sources)
    codings = zip(columns.dtype, columns.representation, columns.mask, columns.code, strict=True)
    for part in dict(zip(codings, parts, strict=True)).values():
        _check_coding(part)
    if set(columns.representation) != {"native"} or columns.stored != columns.bytes:
        for part in parts:
            _check_stored(part)
    return parts


def _spelled_plainly(columns: PartColumns, sources: Sequence[Source]) -> bool:
    """Whether the parts are tensors, but for the first, and the only source's header spells just these, in this order.

    False is no verdict: the parts may still be what they should be.
    """
    if columns.extents is None or len(sources) != 1 or set(columns.source) - {0}:
        return False
    source = sources[0]
    here = slice(0 if columns.kind[0] == TENSOR else 1, None)
    if set(columns.kind[here]) != {TENSOR} or not source.header or not _states_its_size(source):
        return False
    header = len(source.header)
    begins = [offset - header for offset in columns.offset[here]]
    ends = list(accumulate(columns.bytes[here], initial=0))
    if begins != ends[:-1] or ends[-1] != source.bytes - header:
        return False
    bits = [
        math.prod(shape) * DTYPES[dtype].bits
        for shape, dtype in zip(columns.shape[here], columns.dtype[here], strict=True)
    ]
    if 0 in bits or bits != [8 * size for size in columns.bytes[here]]:
        return False
    return spells(source.header[8:], columns.name[here], columns.dtype[here], columns.extents[here], begins, ends[1:])


def _make_parts(*columns: Iterable[Any]) -> list[Part]:
    """Parts from their fields' columns; the generated constructor of a frozen class takes twice as long."""
    names = [one.name for one in fields(Part)]
    parts = []
    for row in zip(*columns, strict=False):
        part = object.__new__(Part)
        part.__dict__.update(zip(names, row, strict=True))
        parts.append(part)
    return parts


def _check_places(parts: Sequence[Part], sources: Sequence[Source]) -> None:
    """What parts say of their places must be what the headers say, and no tensor may be there twice."""
    tensors = [_tensors_of(source) for source in sources]
    begins = [len(source.header) for source in sources]
    for part in parts:
        if part.kind == TENSOR:
            begin = part.offset - begins[part.source]
            spelled = (part.dtype, part.shape, begin, begin + part.bytes)
            if tensors[part.source].pop(part.name, None) != spelled:
                raise ValueError(f"{reprlib.repr(part.name)} is not a tensor as the header of its source has it")
        else:
            _check_whole(part, sources[part.source])


def _states_its_size(source: Source) -> bool:
    return int.from_bytes(source.header[:8], "little") == len(source.header) - 8 <= source.bytes - 8


def check_source_names(names: Sequence[str]) -> None:
    """Raise ValueError unless files of these names can stand in one folder, each at a relative path of its own."""
    known = set(names)
    for name in names:
        folders = name.split("/")
        if (
            "\\" in name
            or "\0" in name
            or any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_NAME for part in folders)
            or len(name.encode()) > _LONGEST_PATH
        ):
            raise ValueError(f"{reprlib.repr(name)} is no path of a file inside a folder")
        if any("/".join(folders[:depth]) in known for depth in range(1, len(folders))):
            raise ValueError(f"{reprlib.repr(name)} lies in a folder that is a file, too")
    if len(known) < len(names):
        raise ValueError("two sources have the same name")


def check_whole(shards: Sequence[ShardPlan]) -> None:
    """Raise ValueError unless the shards together hold every source, each of its bytes but the header's once."""
    sources: dict[str, Source] = {}
    held: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for shard in shards:
        for source in shard.sources:
            if sources.setdefault(source.name, source) != source:
                raise ValueError(f"the shards disagree about {reprlib.repr(source.name)}")
        for part in shard.parts:
            if part.kind != HEADER:
                name = shard.sources[part.source].name
                if (name, part.name) in seen:
                    raise ValueError(f"the shards hold {reprlib.repr(part.name)} of {reprlib.repr(name)} twice")
                seen.add((name, part.name))
                held[name] = held.get(name, 0) + part.bytes
    check_source_names(list(sources))
    for name, source in sources.items():
        if held.get(name, 0) != source.bytes - len(source.header):
            raise ValueError(f"the shards do not hold {reprlib.repr(name)} wholly and once")


def _tensors_of(source: Source) -> dict[str, Spelled]:
    """The tensors of a source, by name, as its safetensors header tells them."""
    if not source.header:
        return {}
    if not _states_its_size(source):
        raise ValueError(f"the header of {reprlib.repr(source.name)} does not have the size it states")
    return tensors_of(source.header[8:], source.bytes - len(source.header), where=reprlib.repr(source.name))


def _check_whole(part: Part, source: Source) -> None:
    """A part that is no tensor must be a whole header or a whole file."""
    whole = {HEADER: len(source.header), FILE: source.bytes}
    if part.kind not in whole or (part.kind == HEADER) != bool(source.header):
        raise ValueError(f"{reprlib.repr(part.kind)} is no kind of part of this source")
    if (part.dtype.name, part.representation, part.offset, part.bytes) != ("U8", "native", 0, whole[part.kind]):
        raise ValueError(f"{reprlib.repr(part.name)} is not the whole of what it should be")


def _check_coding(part: Part) -> None:
    """Representation, mask and code must be spelled as the writer does, and fit the dtype."""
    representation: Representation = representations.make(part.representation)
    native = part.representation == "native"
    if representation.spec != part.representation or not (native or representation.applies(part.dtype)):
        raise ValueError(f"{reprlib.repr(part.representation)} is no representation of {part.dtype.name}")
    if len(part.mask) != representation.word_bits(part.dtype) or set(part.mask) - {"0", "1"}:
        raise ValueError(f"{reprlib.repr(part.name)} has a mask that does not fit its words")
    if codes.make(part.code).spec != part.code:
        raise ValueError(f"{reprlib.repr(part.code)} is no code as containers name them")


def _check_stored(part: Part) -> None:
    if part.stored_bytes != representations.make(part.representation).stored_bytes(part.dtype, part.bytes):
        raise ValueError(f"{reprlib.repr(part.name)} has not the stored bytes that its representation makes")
