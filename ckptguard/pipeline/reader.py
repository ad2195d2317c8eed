"""Single tensors, slices and whole checkpoints out of a container, decoding only what is damaged and asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ckptguard import plan, representations
from ckptguard.errors import CheckpointError, UsageError
from ckptguard.pipeline import work
from ckptguard.pipeline.reports import Report, Tally
from ckptguard.pipeline.restore import from_stored, null_elements, refuse_losses
from ckptguard.pipeline.shard import Shard
from ckptguard.pipeline.units import (
    Examined,
    PieceOutcome,
    State,
    examine,
    group_source_bytes,
    piece_slices,
    read_straight,
    stored_group_bytes,
)
from ckptguard.plan import Part, Piece
from ckptguard.spec import suggestion

ON_ERROR = ("raise", "raw", "null")
_CACHED_UNITS = 8
_SPAN_BYTES = 4 << 20
_FEW_TASKS = 8

Bytes = npt.NDArray[np.uint8]
_Key = tuple[int, int, int]
_Task = TypeVar("_Task")


@dataclass(frozen=True)
class Stored:
    """Stored bytes of a part, as read and as decoded.

    Attributes:
        read: before decoding.
        decoded: after it; unprotected bits as read.
        lost_bits: bitmap of bits in uncorrectable codewords; None where there are none.
    """

    read: Bytes
    decoded: Bytes
    lost_bits: Bytes | None


class Reader:
    """Reads tensors of an open set, on as many threads as ask. Every piece and every unit is counted once in `report`.

    A piece that is as it was written is read alone and straight to where it is wanted; only where one is not, its
    whole unit is read and decoded.
    """

    def __init__(self, shards: Sequence[Shard], on_error: str = "raise", *, jobs: int | None = None) -> None:
        if on_error not in ON_ERROR:
            raise UsageError(f"unknown on_error {on_error!r}; known: {', '.join(ON_ERROR)}")
        self._shards = shards
        self._on_error = on_error
        self._jobs = jobs
        self._tally = Tally(shards)
        self._counted_units: set[_Key] = set()
        self._counted_pieces: list[set[int]] = [set() for _ in shards]
        self._cache: OrderedDict[_Key, Examined] = OrderedDict()
        self._under_way: dict[_Key, threading.Lock] = {}
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        for s, shard in enumerate(shards):
            for p, part in enumerate(shard.plan.parts):
                if part.kind == plan.TENSOR and self._places.setdefault(part.name, (s, p)) != (s, p):
                    raise CheckpointError(
                        f"the container holds several tensors named {part.name!r}, in different files; restore it "
                        "and load the file you mean"
                    )

    @property
    def report(self) -> Report:
        """What has been found so far, in the pieces and units that were looked at."""
        return self._tally.report

    @property
    def tensors(self) -> dict[str, Part]:
        """Tensors by name, shard after shard in payload order."""
        return {name: self._shards[s].plan.parts[p] for name, (s, p) in self._places.items()}

    def place(self, name: str) -> tuple[int, int]:
        """(shard, part) of a tensor."""
        try:
            return self._places[name]
        except KeyError:
            raise CheckpointError(f"the container holds no tensor {name!r}{suggestion(name, self._places)}") from None

    def elements(self, name: str, begin: int, end: int) -> Bytes:
        """Bytes [begin, end) of a tensor, as a fresh array; see `read_into`."""
        data = np.empty(max(0, end - begin), np.uint8)
        self.read_into(name, begin, data)
        return data

    def read_into(self, name: str, begin: int, out: Bytes) -> None:
        """Fill `out` with the bytes of a tensor from `begin` on, in its original dtype, decoded where needed.

        Raises UncorrectableError where `on_error` is `raise` and protected bits are lost in the pieces that hold them.
        """
        shard, index = self.place(name)
        if not out.size:
            return
        if self._shards[shard].plan.parts[index].representation == "native":
            self._native_into(shard, index, begin, out, self._jobs)
        else:
            self._converted_into(shard, index, begin, out, self._jobs)

    def _native_into(self, shard: int, index: int, begin: int, out: Bytes, jobs: int | None) -> None:
        part = self._shards[shard].plan.parts[index]
        element = part.dtype.word_bits // 8
        end = begin + out.size
        if self._on_error == "null" and (begin % element or end % element):
            first, last = begin // element * element, -(-end // element) * element
            whole = np.empty(last - first, np.uint8)
            self._native_into(shard, index, first, whole, jobs)
            out[:] = whole[begin - first : end - first]
            return
        lost = self._stored_into(shard, index, begin, out, jobs)
        if self._on_error == "null" and lost is not None:
            native = representations.make("native")
            native.null(part.dtype, out, native.touched(part.dtype, lost, out.size))

    def _converted_into(self, shard: int, index: int, begin: int, out: Bytes, jobs: int | None) -> None:
        """Convert span by span, each on a thread of its own."""
        part = self._shards[shard].plan.parts[index]
        magnitude = float(self._shards[shard].magnitudes[index])
        group = stored_group_bytes(part)
        source_group = representations.make(part.representation).group * part.dtype.bits // 8
        first = begin // source_group * group
        last = min(-(-(begin + out.size) // source_group) * group, part.stored_bytes)
        step = max(1, _SPAN_BYTES // group) * group
        spans = [(low, min(low + step, last)) for low in range(first, last, step)]

        def convert(span: tuple[int, int]) -> None:
            stored = np.empty(span[1] - span[0], np.uint8)
            lost = self._stored_into(shard, index, span[0], stored, 1 if len(spans) > 1 else jobs)
            lost = lost if self._on_error == "null" else None
            data = from_stored(part, stored, span[0], magnitude, lost)
            offset = group_source_bytes(part, 0, span[0]) - begin
            low, high = max(offset, 0), min(offset + data.size, out.size)
            out[low:high] = data[low - offset : high - offset]

        _each(convert, spans, jobs)

    def _stored_into(self, shard: int, index: int, begin: int, out: Bytes, jobs: int | None) -> Bytes | None:
        """Fill `out` with the stored bytes of a part from `begin` on, decoded where needed.

        Returns:
            bitmap of those bits of `out` that lie in uncorrectable codewords; None where there are none.
        """
        shard_plan = self._shards[shard].plan
        lost: list[tuple[slice, Bytes]] = []

        def fill(place: tuple[int, int]) -> None:
            piece = shard_plan.piece(*place, index)
            start = piece.offset - shard_plan.parts[index].stored_offset - begin
            low, high = max(start, 0), min(start + piece.bytes, out.size)
            if low >= high:
                return
            target, whole = out[low:high], high - low == piece.bytes
            examined = self._cached((shard, *place))
            if examined is None:
                read = target if whole else np.empty(piece.bytes, np.uint8)
                if read_straight(self._shards[shard], [piece], [read]):
                    self._count_exact(shard, [piece])
                    if not whole:
                        target[:] = read[low - start : high - start]
                    return
                examined = self._examine(shard, *place)
            number = piece.index - examined.unit.pieces[0].index
            self._refuse(examined.pieces[number])
            where = piece_slices(examined.unit)[number]
            source = slice(where.start + low - start, where.start + high - start)
            target[:] = examined.bytes[source]
            if examined.lost_bits is not None:
                lost.append((slice(low, high), examined.lost_bits[source]))

        _each(fill, shard_plan.units_of_part(index, begin, begin + out.size), jobs)
        if not lost:
            return None
        bits = np.zeros(out.size, np.uint8)
        for where, found in lost:
            bits[where] = found
        return bits

    def stored(self, shard: int, index: int, begin: int, end: int) -> Stored:
        """Stored bytes [begin, end) of a part; fresh arrays."""
        shard_plan = self._shards[shard].plan
        part = shard_plan.parts[index]
        read, decoded = np.empty(end - begin, np.uint8), np.empty(end - begin, np.uint8)
        lost: Bytes | None = None
        for stream, unit in shard_plan.units_of_part(index, begin, end):
            examined = self._examine(shard, stream, unit)
            for piece, outcome, where in zip(
                examined.unit.pieces, examined.pieces, piece_slices(examined.unit), strict=True
            ):
                if piece.part != index:
                    continue
                self._refuse(outcome)
                start = piece.offset - part.stored_offset
                low, high = max(begin, start), min(end, start + piece.bytes)
                if low >= high:
                    continue
                source = slice(where.start + low - start, where.start + high - start)
                target = slice(low - begin, high - begin)
                read[target], decoded[target] = examined.read[source], examined.bytes[source]
                if examined.lost_bits is not None:
                    lost = np.zeros(end - begin, np.uint8) if lost is None else lost
                    lost[target] = examined.lost_bits[source]
        return Stored(read, decoded, lost)

    def _examine(self, shard: int, stream: int, unit: int) -> Examined:
        """Examine a unit, or take it from the cache; threads that want the same unit wait for the first of them."""
        key = (shard, stream, unit)
        with self._lock:
            under_way = self._under_way.setdefault(key, threading.Lock())
        with under_way:
            if (cached := self._cached(key)) is not None:
                return cached
            examined = examine(self._shards[shard], stream, unit)
            self._count(key, examined)
            with self._lock:
                self._cache[key] = examined
                self._under_way.pop(key, None)
                while len(self._cache) > _CACHED_UNITS:
                    self._cache.popitem(last=False)
            return examined

    def _cached(self, key: _Key) -> Examined | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _count(self, key: _Key, examined: Examined) -> None:
        counted = self._counted_pieces[key[0]]
        with self._lock:
            if key not in self._counted_units:
                self._counted_units.add(key)
                self._tally.add(key[0], examined, counted)
                counted.update(piece.index for piece in examined.unit.pieces)

    def _count_exact(self, shard: int, pieces: Sequence[Piece]) -> None:
        counted = self._counted_pieces[shard]
        with self._lock:
            for piece in pieces:
                if piece.index not in counted:
                    counted.add(piece.index)
                    self._tally.add_exact(shard, piece.part)

    def _refuse(self, piece: PieceOutcome) -> None:
        if self._on_error == "raise" and piece.state == State.LOST:
            refuse_losses(self.report, 'load with on_error="raw" or "null" to go on without them')

    def load(
        self,
        allocate: Callable[[Part], Bytes],
        *,
        names: Collection[str] | None = None,
        jobs: int | None = None,
        progress: work.Progress = work.silent,
    ) -> None:
        """Fill a buffer for every tensor, unit by unit on several threads.

        Args:
            allocate: called once per tensor; gives `part.bytes` writable bytes.
            names: of the tensors wanted; default: all.
        """
        places = {name: self.place(name) for name in (self._places if names is None else names)}
        buffers = {place: allocate(self._part(place)) for place in places.values()}
        native = {place for place in buffers if self._part(place).representation == "native"}
        units = sorted(
            {
                (shard, *unit)
                for shard, index in native
                for unit in self._shards[shard].plan.units_of_part(index, 0, self._part((shard, index)).bytes)
            }
        )

        def fill(key: _Key) -> None:
            unit = self._shards[key[0]].plan.unit(key[1], key[2])
            wanted = [number for number, piece in enumerate(unit.pieces) if (key[0], piece.part) in native]
            pieces = [unit.pieces[number] for number in wanted]
            targets = []
            for piece in pieces:
                start = piece.offset - self._part((key[0], piece.part)).stored_offset
                targets.append(buffers[key[0], piece.part][start : start + piece.bytes])
            if read_straight(self._shards[key[0]], pieces, targets):
                self._count_exact(key[0], pieces)
                return
            examined = examine(self._shards[key[0]], key[1], key[2])
            self._count(key, examined)
            slices = piece_slices(unit)
            for number, target in zip(wanted, targets, strict=True):
                self._refuse(examined.pieces[number])
                data = examined.bytes[slices[number]]
                if self._on_error == "null" and examined.lost_bits is not None:
                    part = self._part((key[0], unit.pieces[number].part))
                    data = null_elements(part, unit.pieces[number], data, examined.lost_bits[slices[number]])
                target[:] = data

        for _ in work.run(fill, units, jobs=jobs, step="load", total=len(units), progress=progress):
            pass
        for place, buffer in buffers.items():
            if place not in native and buffer.size:
                self._converted_into(*place, 0, buffer, jobs)

    def _part(self, place: tuple[int, int]) -> Part:
        return self._shards[place[0]].plan.parts[place[1]]


def _each(function: Callable[[_Task], None], tasks: Sequence[_Task], jobs: int | None) -> None:
    """Call `function` on all tasks, on several threads where they are many."""
    if len(tasks) < _FEW_TASKS or jobs == 1:
        for task in tasks:
            function(task)
        return
    for _ in work.run(function, tasks, jobs=jobs):
        pass


def tensor_file(path: Path | str) -> bool:
    """Whether a path is a container rather than a checkpoint: a `.ckg` file, or a folder with some."""
    path = Path(path)
    return path.suffix == ".ckg" or (path.is_dir() and any(path.glob("*.ckg")))
