"""The record of a plan in a container's metadata: read nowhere else, and believed only after it was checked."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

from ckptguard import codes, representations
from ckptguard.checkpoint.safetensors import Spelled, spells, tensors_of
from ckptguard.dtypes import DTYPES
from ckptguard.errors import CkptGuardError, ContainerError
from ckptguard.plan.columns import PartColumns, check_counts, check_text
from ckptguard.plan.layout import pool
from ckptguard.plan.model import EXTRA, FILE, HEADER, TENSOR, Part, ShardPlan, Source
from ckptguard.representations.base import Representation

_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes of a file's name and of its path, less than systems allow


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
    if beside and any(part.kind == EXTRA for part in parts):
        raise ValueError("a payload beside has no place for row sums and outliers")
    streams, parity = pool(parts)
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
        elif part.kind == EXTRA:
            _check_extra(part, sources[part.source], last=part is parts[-1])
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
            if part.kind not in (HEADER, EXTRA):
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


def _check_extra(part: Part, source: Source, last: bool) -> None:
    """What is extra is the last part of a shard, belongs to no source, and is wholly protected."""
    form = (part.name, part.dtype.name, part.shape, part.representation, part.offset, part.mask)
    if form != (source.name, "U8", (), "native", 0, "1" * 8) or part.stored_bytes != part.bytes or not last:
        raise ValueError(f"the part of kind {EXTRA!r} is not as row sums and outliers are stored")
    if not source.header or not part.bytes:
        raise ValueError("there are row sums or outliers of no tensor")


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
