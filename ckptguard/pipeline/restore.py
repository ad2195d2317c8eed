"""restore: a container becomes the checkpoint again, the best there is."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckptguard import plan, representations
from ckptguard.container.shard_file import write_at
from ckptguard.errors import UncorrectableError, UsageError
from ckptguard.files import atomic_folder, atomic_writer, refuse_overlap
from ckptguard.guards import Applied, Counts, TensorGuard
from ckptguard.pipeline import guarding, work
from ckptguard.pipeline.check import examine_all
from ckptguard.pipeline.estimating import Estimator
from ckptguard.pipeline.reports import Report, Tally
from ckptguard.pipeline.shard import Shard, open_set, set_files
from ckptguard.pipeline.units import (
    Examined,
    State,
    group_source_bytes,
    piece_slices,
    stored_group_bytes,
    touched_elements,
)
from ckptguard.plan import Part, Piece

POLICIES = ("raw", "null")
NOT_WRITTEN = "nothing was written (without --strict, the best there is would be)"
CHUNK_BYTES = 8 << 20

Bytes = npt.NDArray[np.uint8]
Damage = tuple[int, int, State]  # stored bytes [begin, end) of a part, and what is known of them


def restore(
    path: Path | str,
    destination: Path | str,
    *,
    policy: str = "raw",
    guard: bool = True,
    estimate: bool = True,
    strict: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: work.Progress = work.silent,
) -> Report:
    """Write the checkpoint that a container holds: a file, or a folder where there was more than one.

    Args:
        policy: for elements with bits in codewords that could not be decoded: `raw` keeps the bits as read, `null`
            makes the element zero.
        guard: set back bits that never vary, and replace elements that cannot be, where the container has range
            guards. Off: bits that no code brings back stay as read.
        estimate: where the container has posterior restorers, read damaged pieces as what they most likely were. Off:
            guards do what they do without restorers.
        strict: write nothing when protected bits are lost.

    Raises:
        UncorrectableError: `strict`, and protected bits are lost; its `report` says which.
    """
    if policy not in POLICIES:
        raise UsageError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    with open_set(path) as shards, contextlib.ExitStack() as stack:
        refuse_overlap(Path(destination), set_files(shards))
        sources = {source.name: source for shard in shards for source in shard.plan.sources}
        opened = _open_targets(sources, bool(shards[0].info.get("folder")), Path(destination), overwrite, stack)
        tally = Tally(shards)
        estimators = [Estimator(shard, guard=guard, estimate=estimate) for shard in shards]
        sinks = [
            _Sink(shard, opened, policy, estimator, stack, Path(destination).parent)
            for shard, estimator in zip(shards, estimators, strict=True)
        ]
        examining = examine_all(shards, parity=False, jobs=jobs, step="restore", progress=progress, guard=guard)
        for index, examined in examining:
            tally.add(index, examined)
            for part, counts in sinks[index].write(examined):
                tally.add_guarded(index, part, counts)
        if strict:
            refuse_losses(tally.report, NOT_WRITTEN)
        for index, sink in enumerate(sinks):
            for part, counts in sink.finish(jobs):
                tally.add_guarded(index, part, counts)
        tally.report.notes += _rounded(shards)
        return tally.report


def _rounded(shards: Sequence[Shard]) -> list[str]:
    """That tensors do not come back as they were where their representation is coarser than their dtype."""
    coarse = [part.representation for shard in shards for part in shard.plan.parts if part.representation != "native"]
    if not coarse:
        return []
    kinds = ", ".join(sorted(set(coarse)))
    return [f"{len(coarse)} tensors were stored as {kinds} and come back as rounded by that, not as in the original"]


def refuse_losses(report: Report, consequence: str) -> None:
    """Raise UncorrectableError, the report attached, if protected bits are lost. `consequence` ends the message."""
    if report.lost:
        names = ", ".join(tensor.name for tensor in report.lost[:5])
        more = f" and {len(report.lost) - 5} more" if len(report.lost) > 5 else ""
        raise UncorrectableError(f"protected bits are lost in {names}{more}; {consequence}", report.to_json())


def _open_targets(
    sources: dict[str, plan.Source], folder: bool, destination: Path, overwrite: bool, stack: contextlib.ExitStack
) -> dict[str, int]:
    """A descriptor of a temporary file for every source, sized, with its safetensors header in place.

    Names stay inside the folder: `plan.check_source_names` has held when the set was opened.
    """
    opened = {}
    if len(sources) == 1 and not folder:
        (name,) = sources
        opened[name] = stack.enter_context(atomic_writer(destination, overwrite=overwrite)).fileno()
    else:
        parent = stack.enter_context(atomic_folder(destination, overwrite=overwrite))
        for name in sources:
            target = parent / name
            target.parent.mkdir(parents=True, exist_ok=True)
            opened[name] = stack.enter_context(target.open("xb")).fileno()
    for name, source in sources.items():
        os.ftruncate(opened[name], source.bytes)
        write_at(opened[name], 0, source.header)
    return opened


class _Sink:
    """Takes the examined units of a shard and puts their bytes where they belong."""

    def __init__(
        self,
        shard: Shard,
        targets: dict[str, int],
        policy: str,
        estimator: Estimator,
        stack: contextlib.ExitStack,
        folder: Path,
    ) -> None:
        self._shard = shard
        self._targets = targets
        self._policy = policy
        self._estimator = estimator
        self._damaged: dict[int, list[Damage]] = {}
        self._stored: int | None = None
        self._lost: int | None = None
        if any(part.representation != "native" for part in shard.plan.parts):
            self._stored, self._lost = (_scratch(stack, folder, shard.plan.payload_bytes) for _ in range(2))
        self._any_lost = False

    def write(self, examined: Examined) -> list[tuple[int, Counts]]:
        """Write one unit's pieces; what guards and restorers changed, by part."""
        changed = self._estimator.apply(examined)
        for piece, outcome, where in zip(
            examined.unit.pieces, examined.pieces, piece_slices(examined.unit), strict=True
        ):
            part = self._shard.plan.parts[piece.part]
            if part.kind == plan.EXTRA:
                continue
            lost = examined.lost_bits[where] if examined.lost_bits is not None else None
            if part.representation == "native":
                self._write_native(part, piece, examined.bytes[where], lost)
                continue
            self._write_stored(piece, examined.bytes[where], lost)
            if outcome.state != State.EXACT and piece.part in self._estimator.guards:
                begin = piece.offset - part.stored_offset
                self._damaged.setdefault(piece.part, []).append((begin, begin + piece.bytes, outcome.state))
        return changed

    def _write_native(self, part: Part, piece: Piece, data: Bytes, lost: Bytes | None) -> None:
        if self._policy == "null" and lost is not None and lost.any():
            data = null_elements(part, piece, data, lost, self._estimator.guards.get(piece.part))
        position = part.offset + piece.offset - part.stored_offset
        write_at(self._target(part), position, data, early=True)

    def _write_stored(self, piece: Piece, data: Bytes, lost: Bytes | None) -> None:
        assert self._stored is not None
        assert self._lost is not None
        write_at(self._stored, piece.offset, data)
        if lost is not None and lost.any():
            self._any_lost = True
            write_at(self._lost, piece.offset, lost)

    def finish(self, jobs: int | None) -> list[tuple[int, Counts]]:
        """Turn what is stored in coarser representations into elements of the dtype; what guards changed, by part."""
        if self._stored is None:
            return []
        return [
            (index, counts)
            for index, part in enumerate(self._shard.plan.parts)
            if part.representation != "native"
            for counts in work.run(partial(self._convert, index), _spans(part), jobs=jobs)
        ]

    def _convert(self, index: int, span: tuple[int, int]) -> Counts:
        assert self._stored is not None
        assert self._lost is not None
        part = self._shard.plan.parts[index]
        begin, end = span
        stored = np.frombuffer(os.pread(self._stored, end - begin, part.stored_offset + begin), np.uint8).copy()
        lost = None
        if self._policy == "null" and self._any_lost:
            lost = np.frombuffer(os.pread(self._lost, end - begin, part.stored_offset + begin), np.uint8)
        counts = Counts()
        damaged = [one for one in self._damaged.get(index, ()) if one[0] < end and begin < one[1]]
        guard = self._estimator.guards.get(index) if damaged else None
        if guard is not None:
            for _, applied in restrict_stored(part, stored, begin, guard, damaged):
                counts += applied.counts
        data = from_stored(part, stored, begin, float(self._shard.magnitudes[index]), lost, guard)
        first = group_source_bytes(part, 0, begin)
        write_at(self._target(part), part.offset + first, data, early=True)
        return counts

    def _target(self, part: Part) -> int:
        return self._targets[self._shard.plan.sources[part.source].name]


def _scratch(stack: contextlib.ExitStack, folder: Path, size: int) -> int:
    """Descriptor of an unnamed, sparse file of `size` zero bytes that goes with the stack."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the stack
    os.ftruncate(stack.enter_context(file).fileno(), size)
    return file.fileno()


def _spans(part: Part) -> list[tuple[int, int]]:
    """(begin, end) of stored bytes of a part, on group borders."""
    group = stored_group_bytes(part)
    step = max(1, CHUNK_BYTES // group) * group
    return [(begin, min(begin + step, part.stored_bytes)) for begin in range(0, part.stored_bytes, step)]


def restrict_stored(
    part: Part, stored: Bytes, begin: int, guard: TensorGuard, damaged: Iterable[Damage]
) -> list[tuple[int, Applied]]:
    """Replace what is impossible in elements in another representation, stored from byte `begin` on, in place.

    Args:
        damaged: pieces that are not exact.

    Returns:
        (first element, what a guard made of the elements) of every run of elements that these pieces hold bits of.
    """
    representation, size = representations.make(part.representation), stored_group_bytes(part)
    words = representation.words(part.dtype, stored, group_source_bytes(part, begin, begin + len(stored)))
    states = np.zeros(-(-len(stored) // size), np.uint8)
    for low, high, state in damaged:
        reached = states[max(low - begin, 0) // size : max(-(-(high - begin) // size), 0)]
        np.maximum(reached, np.uint8(state), out=reached)
    results = []
    edges = [0, *(np.flatnonzero(np.diff(states)) + 1).tolist(), len(states)]
    for start, stop in pairwise(edges):
        if states[start] != State.EXACT:
            kept = int(part.mask, 2) if states[start] == State.PROTECTED else 0
            run = words[start * representation.group : stop * representation.group]
            first = first_element(part, begin) + start * representation.group
            applied = guard.apply(run, np.arange(first, first + run.size), kept=kept)
            run[:] = applied.words
            results.append((first, applied))
    stored[:] = representation.from_words(part.dtype, words)
    return results


def first_element(part: Part, begin: int) -> int:
    """Which element the stored bytes from `begin` (a group border) on start with."""
    return begin // stored_group_bytes(part) * representations.make(part.representation).group


def null_elements(part: Part, piece: Piece, data: Bytes, lost: Bytes, guard: TensorGuard | None) -> Bytes:
    """A copy of a native piece's bytes; elements with a bit in `lost` become zero, or what a guard says is nearest."""
    result = data.copy()
    touched = touched_elements(part, piece, lost)
    if guard is not None:
        guarding.null(piece.offset - part.stored_offset, guard, result, touched)
    else:
        representations.make(part.representation).null(part.dtype, result, touched)
    return result


def from_stored(
    part: Part, stored: Bytes, begin: int, magnitude: float, lost: Bytes | None, guard: TensorGuard | None = None
) -> Bytes:
    """Elements in the original dtype from stored bytes that start at `begin` (a group border) of a part.

    Args:
        stored: changed in place where elements are nulled.
        lost: bitmap of lost stored bits; their elements become zero. None keeps what was read.
        guard: says what comes nearest to zero.
    """
    representation = representations.make(part.representation)
    size = group_source_bytes(part, begin, begin + len(stored))
    if lost is not None and lost.any():
        touched = representation.touched(part.dtype, lost, size)
        if guard is not None:
            words = representation.words(part.dtype, stored, size)
            guard.null_in_place(words, touched, first_element(part, begin))
            stored[:] = representation.from_words(part.dtype, words)
        else:
            representation.null(part.dtype, stored, touched)
    return representation.restore(part.dtype, stored, magnitude, size)
