"""Single tensors, slices and whole checkpoints out of a container, decoding only what is damaged and asked for."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import plan, representations
from ckptguard.errors import CheckpointError, UsageError
from ckptguard.guards import Counts, TensorGuard
from ckptguard.pipeline import guarding, work
from ckptguard.pipeline.estimating import Estimator
from ckptguard.pipeline.reports import Report, Tally
from ckptguard.pipeline.restore import (
    Damage,
    from_stored,
    null_elements,
    refuse_losses,
    restrict_stored,
)
from ckptguard.pipeline.shard import Shard
from ckptguard.pipeline.units import (
    Examined,
    PieceOutcome,
    State,
    examine,
    group_source_bytes,
    piece_slices,
    stored_group_bytes,
)
from ckptguard.plan import Part
from ckptguard.spec import suggestion

ON_ERROR = ("raise", "raw", "null")
_CACHED_UNITS = 8
_SPAN_BYTES = 4 << 20
_MAP_BYTES = 16 << 20  # looked at in one task where nothing is read into buffers
_MAP_MANY = 8  # fewer such tasks take no longer than threads take to start
_READ_BYTES = 1 << 20  # so much is read before it is hashed: it is still in the cache then

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
_Key = tuple[int, int, int]
_Batch = tuple[int, Indices]
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stored:
    """Stored bytes of a part, as read and as decoded.

    Attributes:
        read: before decoding.
        decoded: after it, and after range guards and restorers where they are used; other unprotected bits as read.
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

    def __init__(
        self,
        shards: Sequence[Shard],
        on_error: str = "raise",
        *,
        guard: bool = True,
        estimate: bool = True,
        jobs: int | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise UsageError(f"unknown on_error {on_error!r}; known: {', '.join(ON_ERROR)}")
        self._shards = shards
        self._on_error = on_error
        self._guard = guard
        self._estimators = [Estimator(shard, guard=guard, estimate=estimate) for shard in shards]
        self._restricted: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}
        self._jobs = jobs
        self._tally = Tally(shards)
        self._counted_units: set[_Key] = set()
        self._counted_changes: set[_Key] = set()
        self._counted = [np.zeros(shard.plan.pieces, np.bool_) for shard in shards]
        self._settled = [np.zeros(shard.plan.pieces, np.bool_) for shard in shards]
        self._maps: dict[int, Bytes] = {}
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

    def guards(self, shard: int) -> Mapping[int, TensorGuard]:
        """The range guards in use, by part index."""
        return self._estimators[shard].guards

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
        lost = self._stored_into(shard, index, begin, out, jobs)[0]
        if self._on_error == "null" and lost is not None:
            native = representations.make("native")
            touched, guard = native.touched(part.dtype, lost, out.size), self.guards(shard).get(index)
            if guard is not None:
                guarding.null(begin, guard, out, touched)
            else:
                native.null(part.dtype, out, touched)

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
            lost, damaged = self._stored_into(shard, index, span[0], stored, 1 if len(spans) > 1 else jobs)
            lost, guard = lost if self._on_error == "null" else None, self.guards(shard).get(index)
            if damaged and guard is not None:
                self._restrict_stored(shard, index, span[0], stored, damaged)
            data = from_stored(part, stored, span[0], magnitude, lost, guard)
            offset = group_source_bytes(part, 0, span[0]) - begin
            low, high = max(offset, 0), min(offset + data.size, out.size)
            out[low:high] = data[low - offset : high - offset]

        _each(convert, spans, jobs)

    def _restrict_stored(self, shard: int, index: int, begin: int, stored: Bytes, damaged: Sequence[Damage]) -> None:
        """Replace what is impossible in stored bytes in another representation, in place, and count it once."""
        part, guard = self._shards[shard].plan.parts[index], self.guards(shard)[index]
        for first, applied in restrict_stored(part, stored, begin, guard, damaged):
            with self._lock:
                seen = self._restricted.setdefault((shard, index), np.zeros(part.elements, np.bool_))
                here = seen[first : first + applied.words.size]
                counts = Counts(int(applied.forced[~here].sum(dtype=np.int64)), int(applied.replaced[~here].sum()))
                here[:] = True
                self._tally.add_guarded(shard, index, counts)

    def _stored_into(
        self, shard: int, index: int, begin: int, out: Bytes, jobs: int | None
    ) -> tuple[Bytes | None, list[Damage]]:
        """Fill `out` with the stored bytes of a part from `begin` on, decoded where needed.

        Returns:
            bitmap of those bits of `out` that lie in uncorrectable codewords, None where there are none; and the
            pieces that are not exact.
        """
        shard_plan = self._shards[shard].plan
        pieces = shard_plan.pieces_of_part(index, begin, begin + out.size)
        starts = shard_plan.table.offset[pieces.start : pieces.stop] - shard_plan.parts[index].stored_offset - begin
        sizes = shard_plan.table.bytes[pieces.start : pieces.stop].tolist()
        places = dict(zip(pieces, zip(starts.tolist(), sizes, strict=True), strict=True))

        def target(piece: int) -> Bytes:
            start, size = places[piece]
            whole = start >= 0 and start + size <= out.size
            return out[start : start + size] if whole else np.empty(size, np.uint8)

        def read(batch: Indices) -> list[int]:
            targets = [target(piece) for piece in batch.tolist()]
            damaged = self._read(shard, batch, targets)
            for piece, data in zip(batch.tolist(), targets, strict=True):
                start, size = places[piece]
                low, high = max(start, 0), min(start + size, out.size)
                if high - low < size:
                    out[low:high] = data[low - start : high - start]
            return damaged

        batches = [batch for _, batch in self._batches(shard, np.arange(pieces.start, pieces.stop))]
        damaged = [piece for found in _each(read, batches, jobs) for piece in found]
        lost: list[tuple[slice, Bytes]] = []
        worse: list[Damage] = []

        def decode(piece: int) -> None:
            examined, where, state = self._decoded(shard, piece)
            start, size = places[piece]
            if state != State.EXACT:
                worse.append((begin + start, begin + start + size, state))
            low, high = max(start, 0), min(start + size, out.size)
            source = slice(where.start + low - start, where.start + high - start)
            out[low:high] = examined.bytes[source]
            if examined.lost_bits is not None:
                lost.append((slice(low, high), examined.lost_bits[source]))

        _each(decode, damaged, jobs)
        if not lost:
            return None, worse
        bits = np.zeros(out.size, np.uint8)
        for where, found in lost:
            bits[where] = found
        return bits, worse

    def _batches(self, shard: int, pieces: Indices, span: int = _SPAN_BYTES) -> list[_Batch]:
        """(shard, pieces), in the order of the payload, `span` bytes at a time."""
        table = self._shards[shard].plan.table
        ordered = pieces[np.argsort(table.offset[pieces], kind="stable")]
        number = np.cumsum(table.bytes[ordered]) // span
        parts = np.split(ordered, np.flatnonzero(np.diff(number)) + 1) if ordered.size else []
        return [(shard, part) for part in parts]

    def _pieces_of(self, places: Iterable[tuple[int, int]], span: int = _SPAN_BYTES) -> list[_Batch]:
        """All pieces of some parts, in batches."""
        chosen = {shard: np.zeros(len(one.plan.parts), np.bool_) for shard, one in enumerate(self._shards)}
        for shard, part in places:
            chosen[shard][part] = True
        pieces = {s: np.flatnonzero(parts[self._shards[s].plan.table.part]) for s, parts in chosen.items()}
        return [batch for shard, indices in pieces.items() for batch in self._batches(shard, indices, span)]

    def _read(self, shard: int, pieces: Indices, targets: Sequence[Bytes]) -> list[int]:
        """Read pieces, in the order of the payload, into arrays of their sizes; those that are not as written."""
        table, file = self._shards[shard].plan.table, self._shards[shard].file
        offset, size = table.offset[pieces], table.bytes[pieces]
        apart = offset[1:] != offset[:-1] + size[:-1]
        number = np.cumsum(size) // _READ_BYTES
        edges = [0, *(np.flatnonzero(apart | (np.diff(number) > 0)) + 1).tolist(), len(targets)]
        differs: list[bool] = []
        digests = self._shards[shard].digests.raw[pieces].tolist()
        for start, stop in pairwise(edges):
            file.read_payload_into(int(offset[start]), targets[start:stop])
            differs += [
                xxhash.xxh3_64_intdigest(target.data) != digest
                for target, digest in zip(targets[start:stop], digests[start:stop], strict=True)
            ]
        return self._sort_out(shard, pieces, differs)

    def _sort_out(self, shard: int, pieces: Indices, differs: Sequence[bool]) -> list[int]:
        """Count the pieces that are as they were written; the others."""
        damaged = np.array(differs, np.bool_)
        counted = self._counted[shard]
        with self._lock:
            new = pieces[~damaged & ~counted[pieces]]
            counted[new] = True
            self._tally.add_exact(shard, self._shards[shard].plan.table.part[new].tolist())
        found: list[int] = pieces[damaged].tolist()
        return found

    def _decoded(self, shard: int, piece: int) -> tuple[Examined, slice, State]:
        """The unit of a piece, decoded, where in its bytes the piece lies, and what it is; refuses what is lost."""
        table = self._shards[shard].plan.table
        examined = self._examine(shard, int(table.stream[piece]), int(table.unit[piece]))
        number = piece - examined.unit.pieces[0].index
        self._refuse(examined.pieces[number])
        return examined, piece_slices(examined.unit)[number], examined.pieces[number].state

    def stored(self, shard: int, index: int, begin: int, end: int) -> Stored:
        """Stored bytes [begin, end) of a part, on borders of groups of elements; fresh arrays."""
        shard_plan = self._shards[shard].plan
        part = shard_plan.parts[index]
        read, decoded = np.empty(end - begin, np.uint8), np.empty(end - begin, np.uint8)
        lost: Bytes | None = None
        worse: list[Damage] = []
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
                if outcome.state != State.EXACT:
                    worse.append((start, start + piece.bytes, outcome.state))
                source = slice(where.start + low - start, where.start + high - start)
                target = slice(low - begin, high - begin)
                read[target], decoded[target] = examined.read[source], examined.bytes[source]
                if examined.lost_bits is not None:
                    lost = np.zeros(end - begin, np.uint8) if lost is None else lost
                    lost[target] = examined.lost_bits[source]
        if worse and part.representation != "native" and index in self.guards(shard):
            self._restrict_stored(shard, index, begin, decoded, worse)
        return Stored(read, decoded, lost)

    def _examine(self, shard: int, stream: int, unit: int) -> Examined:
        """Examine a unit, or take it from the cache; threads that want the same unit wait for the first of them."""
        key = (shard, stream, unit)
        with self._lock:
            under_way = self._under_way.setdefault(key, threading.Lock())
        with under_way:
            if (cached := self._cached(key)) is not None:
                return cached
            examined = examine(self._shards[shard], stream, unit, guard=self._guard)
            changed = self._restrict(shard, examined)
            self._count_unit(*key, examined)
            self._count_changes(key, changed)
            with self._lock:
                self._cache[key] = examined
                self._under_way.pop(key, None)
                while len(self._cache) > _CACHED_UNITS:
                    self._cache.popitem(last=False)
            return examined

    def _restrict(self, shard: int, examined: Examined) -> list[tuple[int, Counts]]:
        """Estimate the damaged pieces of a unit, as decoded but not as read; what changed, by part."""
        estimator = self._estimators[shard]
        if not estimator.concerns(examined):
            return []
        if examined.bytes is examined.read:
            examined.bytes = examined.read.copy()
        return estimator.apply(examined, partial(self._count_unit, shard))

    def _cached(self, key: _Key) -> Examined | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _count_unit(self, shard: int, stream: int, unit: int, examined: Examined) -> None:
        indices = [piece.index for piece in examined.unit.pieces]
        counted = self._counted[shard]
        with self._lock:
            if (shard, stream, unit) not in self._counted_units:
                self._counted_units.add((shard, stream, unit))
                self._tally.add(shard, examined, {index for index in indices if counted[index]})
                counted[indices] = True

    def _count_changes(self, key: _Key, changed: Sequence[tuple[int, Counts]]) -> None:
        with self._lock:
            if key not in self._counted_changes:
                self._counted_changes.add(key)
                for part, counts in changed:
                    self._tally.add_guarded(key[0], part, counts)

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
        """Fill a buffer for every tensor, in the order of the payload on several threads; then decode what is damaged.

        Args:
            allocate: called once per tensor; gives `part.bytes` writable bytes.
            names: of the tensors wanted; default: all.
        """
        places = [self.place(name) for name in (self._places if names is None else names)]
        buffers = {place: allocate(self._part(place)) for place in places}
        native = [place for place in buffers if self._part(place).representation == "native"]

        def targets(shard: int, pieces: Indices) -> list[Bytes]:
            shard_plan = self._shards[shard].plan
            parts = shard_plan.table.part[pieces]
            starts = (shard_plan.table.offset[pieces] - shard_plan.stored_offsets[parts]).tolist()
            rows = zip(parts.tolist(), starts, shard_plan.table.bytes[pieces].tolist(), strict=True)
            return [buffers[shard, part][start : start + size] for part, start, size in rows]

        def read(batch: _Batch) -> list[int]:
            return self._read(*batch, targets(*batch))

        def write(shard: int, piece: int, data: Bytes) -> None:
            targets(shard, np.array([piece]))[0][:] = data

        self._look(read, self._pieces_of(native), write, jobs, progress)
        for place in buffers.keys() - native:
            if buffers[place].size:
                self._converted_into(*place, 0, buffers[place], jobs)

    def _look(
        self,
        read: Callable[[_Batch], list[int]],
        batches: Sequence[_Batch],
        write: Callable[[int, int, Bytes], None],
        jobs: int | None,
        progress: work.Progress = work.silent,
    ) -> None:
        """Look at pieces, batch by batch; then decode the units of those that are damaged, each unit once.

        Args:
            read: looks at a batch; tells which of its pieces are damaged.
            write: puts the bytes of a damaged piece of a shard in place, as decoded.
        """
        units: dict[_Key, list[int]] = {}
        for (shard, _), damaged in zip(batches, _each(read, batches, jobs, "load", progress), strict=True):
            table = self._shards[shard].plan.table
            for piece in damaged:
                units.setdefault((shard, int(table.stream[piece]), int(table.unit[piece])), []).append(piece)

        def decode(key: _Key) -> None:
            examined = self._examine(*key)
            slices = piece_slices(examined.unit)
            for piece in units[key]:
                number = piece - examined.unit.pieces[0].index
                self._refuse(examined.pieces[number])
                data = examined.bytes[slices[number]]
                if self._on_error == "null" and examined.lost_bits is not None:
                    place = examined.unit.pieces[number]
                    lost = examined.lost_bits[slices[number]]
                    guard = self.guards(key[0]).get(place.part)
                    data = null_elements(self._part((key[0], place.part)), place, data, lost, guard)
                write(key[0], piece, data)

        _each(decode, sorted(units), jobs, "decode", progress)

    def views(self, names: Iterable[str], *, jobs: int | None = None) -> dict[str, Bytes]:
        """Bytes of those tensors that can be used where they lie in the mapped file, checked and corrected there.

        What is written to them is seen in all views of the same tensor, and never reaches the file.
        """
        places = {name: self.place(name) for name in names}
        views = {name: view for name, place in places.items() if (view := self._view(*place)) is not None}
        self._look(self._check, self._pieces_of((places[name] for name in views), _MAP_BYTES), self._correct, jobs)
        return views

    def view(self, name: str, stretches: Iterable[tuple[int, int]]) -> Bytes | None:
        """As `views` for one tensor, of which only the pieces that hold these (begin, end) stretches are checked."""
        shard, index = self.place(name)
        if (view := self._view(shard, index)) is None:
            return None
        touched = [self._shards[shard].plan.pieces_of_part(index, begin, end) for begin, end in stretches]
        indices = np.unique(np.concatenate([np.arange(one.start, one.stop) for one in touched or [range(0)]]))
        batches = self._batches(shard, indices[~self._settled[shard][indices]], _MAP_BYTES)
        self._look(self._check, batches, self._correct, self._jobs if len(batches) >= _MAP_MANY else 1)
        return view

    def _view(self, shard: int, index: int) -> Bytes | None:
        """A tensor's place in the map, unchecked; None where its elements cannot be used there."""
        part, file = self._part((shard, index)), self._shards[shard].file
        begin = file.payload_position(part.stored_offset)
        aligned = begin % max(1, part.dtype.word_bits // 8) == 0
        if part.representation != "native" or begin < 0 or not aligned or sys.byteorder != "little":
            return None
        mapped = self._map(shard)
        return mapped[begin : begin + part.bytes] if begin + part.bytes <= mapped.size else None

    def _map(self, shard: int) -> Bytes:
        with self._lock:
            if shard not in self._maps:
                self._maps[shard] = self._shards[shard].file.map_payload()
            return self._maps[shard]

    def _check(self, batch: _Batch) -> list[int]:
        """Compare pieces with their digests where they are mapped, unless that was done; those that are damaged."""
        shard, settled = batch[0], self._settled[batch[0]]
        pieces = batch[1][~settled[batch[1]]]
        one, mapped = self._shards[shard], self._map(shard).data
        begins = one.plan.table.offset[pieces] + one.file.payload_position(0)
        ends = begins + one.plan.table.bytes[pieces]
        differs = [
            xxhash.xxh3_64_intdigest(mapped[begin:end]) != digest
            for begin, end, digest in zip(begins.tolist(), ends.tolist(), one.digests.raw[pieces].tolist(), strict=True)
        ]
        damaged = self._sort_out(shard, pieces, differs)
        settled[pieces[~np.array(differs, np.bool_)]] = True
        return damaged

    def _correct(self, shard: int, piece: int, data: Bytes) -> None:
        """Write a piece into the map, unless another thread has, and whoever asked for it may have changed it since."""
        begin = self._shards[shard].file.payload_position(int(self._shards[shard].plan.table.offset[piece]))
        with self._lock:
            if not self._settled[shard][piece]:
                self._maps[shard][begin : begin + data.size] = data
                self._settled[shard][piece] = True

    def _part(self, place: tuple[int, int]) -> Part:
        return self._shards[place[0]].plan.parts[place[1]]


def _each(
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    jobs: int | None,
    step: str = "",
    progress: work.Progress = work.silent,
) -> list[_Result]:
    """Results of `function` for all tasks, on several threads where there are several."""
    jobs = 1 if len(tasks) < 2 else jobs
    return list(work.run(function, tasks, jobs=jobs, step=step, total=len(tasks), progress=progress))
