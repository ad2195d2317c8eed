"""Single tensors, slices and whole checkpoints out of a container, decoding only what is damaged and asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    stored_group_bytes,
)
from ckptguard.plan import Part
from ckptguard.spec import suggestion

ON_ERROR = ("raise", "raw", "null")
_CACHED_UNITS = 8

Bytes = npt.NDArray[np.uint8]


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
    """Reads tensors of an open set. Thread-safe; every unit is counted once in `report`."""

    def __init__(self, shards: Sequence[Shard], on_error: str = "raise") -> None:
        if on_error not in ON_ERROR:
            raise UsageError(f"unknown on_error {on_error!r}; known: {', '.join(ON_ERROR)}")
        self._shards = shards
        self._on_error = on_error
        self._tally = Tally(shards)
        self._seen: set[tuple[int, int, int]] = set()
        self._cache: OrderedDict[tuple[int, int, int], Examined] = OrderedDict()
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
        """What has been found so far, in the units that were looked at."""
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
        """Bytes [begin, end) of a tensor in its original dtype, decoded where needed.

        Raises UncorrectableError where `on_error` is `raise` and a codeword of these bytes' units is lost.
        """
        shard, index = self.place(name)
        part = self._shards[shard].plan.parts[index]
        if begin >= end:
            return np.zeros(0, np.uint8)
        if part.representation == "native":
            element = max(1, part.dtype.word_bits // 8)
            first, last = begin // element * element, min(-(-end // element) * element, part.bytes)
            stored = self.stored(shard, index, first, last)
            data = stored.decoded
            if self._on_error == "null" and stored.lost_bits is not None:
                representations.make("native").null(
                    part.dtype,
                    data,
                    representations.make("native").touched(part.dtype, stored.lost_bits, last - first),
                )
            return data[begin - first : end - first]
        return self._converted(shard, index, begin, end)

    def _converted(self, shard: int, index: int, begin: int, end: int) -> Bytes:
        part = self._shards[shard].plan.parts[index]
        group = stored_group_bytes(part)
        source_group = group_source_bytes(part, 0, group) if part.stored_bytes > group else part.bytes
        first = begin // source_group * group
        last = min(-(-end // source_group) * group, part.stored_bytes)
        stored = self.stored(shard, index, first, last)
        lost = stored.lost_bits if self._on_error == "null" else None
        magnitude = float(self._shards[shard].magnitudes[index])
        data = from_stored(part, stored.decoded, first, magnitude, lost)
        offset = group_source_bytes(part, 0, first)
        return data[begin - offset : end - offset]

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
        key = (shard, stream, unit)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        examined = examine(self._shards[shard], stream, unit)
        self._count(key, examined)
        with self._lock:
            self._cache[key] = examined
            while len(self._cache) > _CACHED_UNITS:
                self._cache.popitem(last=False)
        return examined

    def _count(self, key: tuple[int, int, int], examined: Examined) -> None:
        with self._lock:
            if key not in self._seen:
                self._seen.add(key)
                self._tally.add(key[0], examined)

    def _refuse(self, piece: PieceOutcome) -> None:
        if self._on_error == "raise" and piece.state == State.LOST:
            refuse_losses(self.report, 'load with on_error="raw" or "null" to go on without them')

    def load(
        self,
        allocate: Callable[[Part], Bytes],
        *,
        jobs: int | None = None,
        progress: work.Progress = work.silent,
    ) -> None:
        """Fill a buffer for every tensor, unit by unit on several threads.

        Args:
            allocate: called once per tensor; gives `part.bytes` writable bytes.
        """
        buffers = {name: allocate(part) for name, part in self.tensors.items()}
        coarse = [name for name, part in self.tensors.items() if part.representation != "native"]
        places = [(s, stream, unit) for s, shard in enumerate(self._shards) for stream, unit in shard.plan.all_units()]

        def fill(key: tuple[int, int, int]) -> None:
            shard = self._shards[key[0]]
            if all(
                shard.plan.parts[p].kind != plan.TENSOR or shard.plan.parts[p].representation != "native"
                for p in shard.plan.streams[key[1]].parts
            ):
                return
            examined = examine(shard, key[1], key[2])
            self._count(key, examined)
            for piece, outcome, where in zip(
                examined.unit.pieces, examined.pieces, piece_slices(examined.unit), strict=True
            ):
                part = shard.plan.parts[piece.part]
                if part.kind != plan.TENSOR or part.representation != "native":
                    continue
                self._refuse(outcome)
                data = examined.bytes[where]
                if self._on_error == "null" and examined.lost_bits is not None:
                    data = null_elements(part, piece, data, examined.lost_bits[where])
                start = piece.offset - part.stored_offset
                buffers[part.name][start : start + piece.bytes] = data

        for _ in work.run(fill, places, jobs=jobs, step="load", total=len(places), progress=progress):
            pass
        for name in coarse:
            buffers[name][:] = self.elements(name, 0, self.tensors[name].bytes)


def tensor_file(path: Path | str) -> bool:
    """Whether a path is a container rather than a checkpoint: a `.ckg` file, or a folder with some."""
    path = Path(path)
    return path.suffix == ".ckg" or (path.is_dir() and any(path.glob("*.ckg")))
