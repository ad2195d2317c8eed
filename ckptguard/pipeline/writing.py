"""Writing the shards of a container whose plan is decided: payload, parity, metadata."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import plan, representations
from ckptguard.codes.base import Words
from ckptguard.container.shard_file import ShardWriter
from ckptguard.container.superblock import Superblock
from ckptguard.errors import CheckpointError, UsageError
from ckptguard.files import read_exactly_into
from ckptguard.guards import NONE as NO_GUARD
from ckptguard.guards import Builder, Measured, TensorGuard, group_words
from ckptguard.outliers import ENTRY_BYTES
from ckptguard.pipeline import guarding, work
from ckptguard.pipeline.posteriors import Restorers, measure
from ckptguard.pipeline.shard import Digests, pack_metadata
from ckptguard.pipeline.units import gather_words, protected_digests, raw_digests, runs, unit_bytes
from ckptguard.pipeline.wanted import Pair
from ckptguard.plan import Part, ShardPlan, Unit, lay_out
from ckptguard.representations.base import Losses

CHUNK_BYTES = 8 << 20
_WRITE_BYTES = 16 << 20

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """A shard to be written.

    Attributes:
        files: where the bytes of its sources come from.
        rates: of the parts that get posterior restorers, by index; `summed` of them carry row sums.
        measured: these restorers, and what is extra, at the end of the payload; before, the plan has as much room
            as that can take.
    """

    plan: ShardPlan
    files: tuple[Path, ...]
    rates: Mapping[int, Pair] = field(default_factory=dict)
    summed: tuple[int, ...] = ()
    measured: Restorers = field(default_factory=Restorers.none)

    @property
    def is_image(self) -> bool:
        """Whether the payload is one whole source file, byte for byte, and what is extra behind it."""
        sources, parts = self.plan.sources, self.plan.parts
        return (
            len(sources) == 1
            and self.plan.payload_bytes - self.plan.extra_bytes == sources[0].bytes
            and all(p.offset == p.stored_offset and p.representation == "native" for p in parts if p.kind != plan.EXTRA)
        )


def with_restorers(job: Job, jobs: int | None) -> Job:
    """With its restorers measured, and its plan made for the row sums and outliers that there are."""
    if not job.rates:
        return job
    shard, parts = job.plan, job.plan.parts
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(path.open("rb")) for path in job.files]

        def read(part: Part, begin: int, end: int) -> Bytes:
            return _read(sources[part.source], part, (begin, end))

        measured = measure(shard, job.rates, job.summed, read, jobs)
    size, name = measured.extra.size, shard.sources[0].name
    if size and shard.extra is None:
        raise UsageError(
            f"{name}: restorers need {size // ENTRY_BYTES} outliers, for which a sidecar has no place; write a "
            "container (-o), or leave restorers out (--restorer none)"
        )
    if shard.extra is not None:
        parts = parts[:-1] + ((replace(parts[-1], bytes=size, stored_bytes=size),) if size else ())
        shard = lay_out(shard.name, shard.sources, parts, device=shard.device, beside=shard.beside)
    return replace(job, plan=shard, measured=measured)


def write_set(
    jobs_to_do: Sequence[Job],
    targets: Sequence[tuple[Path, int]],
    info: dict[str, Any],
    granularity: str,
    jobs: int | None,
    progress: work.Progress,
) -> dict[tuple[int, int], Losses]:
    """Write payload and parity of all shards, then their metadata, which names the set by all of it."""
    written = []
    losses: dict[tuple[int, int], Losses] = {}
    for index, (job, (_, descriptor)) in enumerate(zip(jobs_to_do, targets, strict=True)):
        empty = Digests.empty(job.plan)
        magnitudes = _magnitudes(job, jobs)
        guards = _guards(job, granularity, magnitudes, jobs)
        restorers = job.measured.posteriors
        size = len(pack_metadata(info, job.plan, empty, magnitudes, {}, guards, restorers))
        superblock = Superblock(
            index, len(jobs_to_do), size, job.plan.payload_bytes, job.plan.parity_bytes, 0, 0, job.plan.beside
        )
        writer = ShardWriter(descriptor, superblock)
        digests, lost = _write_shard(job, writer, magnitudes, jobs, progress)
        losses |= {(index, part): loss for part, loss in lost.items()}
        metadata = pack_metadata(info, job.plan, digests, magnitudes, lost, guards, restorers)
        written.append((writer, superblock, metadata))
    set_id = xxhash.xxh3_64()
    for _, _, metadata in written:
        set_id.update(metadata)
    for writer, superblock, metadata in written:
        digest = xxhash.xxh3_64_intdigest(metadata)
        writer.finish(replace(superblock, set_id=set_id.intdigest(), metadata_digest=digest), metadata)
    for _, descriptor in targets:
        os.fsync(descriptor)
    return losses


def _write_shard(
    job: Job,
    writer: ShardWriter,
    magnitudes: npt.NDArray[np.float64],
    jobs: int | None,
    progress: work.Progress,
) -> tuple[Digests, dict[int, Losses]]:
    """Payload and parity of one shard."""
    shard = job.plan
    digests = Digests.empty(shard)
    losses: dict[int, Losses] = {}
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(path.open("rb")) for path in job.files]
        extra = job.measured.extra
        if not (job.is_image or shard.beside):
            for index, part in enumerate(shard.parts):
                if part.kind == plan.EXTRA:
                    writer.write_payload(part.stored_offset, extra)
                    continue
                loss = _store_part(sources[part.source], part, float(magnitudes[index]), writer, jobs)
                if part.representation != "native":
                    losses[index] = loss

        room = work.Room()
        whole = sources[0] if job.is_image or shard.beside else None

        def read(offset: int, target: Bytes) -> None:
            if whole is None:
                target[:] = writer.read_payload(offset, target.size)
                return
            border = shard.payload_bytes - extra.size  # between the source and what is behind it
            inside = min(max(border - offset, 0), target.size)
            read_exactly_into(whole, offset, target[:inside])
            target[inside:] = extra[offset + inside - border :][: target.size - inside]

        def write(places: Sequence[tuple[int, int]]) -> None:
            units = [shard.unit(*place) for place in places]
            ends = list(accumulate((unit_bytes(unit) for unit in units), initial=0))
            data = room.take(ends[-1])
            for offset, where in runs(piece for unit in units for piece in unit.pieces):
                read(offset, data[where])
                if whole is not None and not shard.beside:
                    writer.write_payload(offset, data[where])
            for unit, (begin, end) in zip(units, pairwise(ends), strict=True):
                encode(unit, data[begin:end])
            room.give(data)

        def encode(unit: Unit, data: Bytes) -> None:
            stream = shard.streams[unit.stream]
            words: Words = gather_words(unit, data)
            first = unit.pieces[0].index
            here = slice(first, first + len(unit.pieces))
            digests.raw[here] = raw_digests(unit, data)
            digests.protected[here] = protected_digests(unit, words, stream.mask)
            if unit.parity_digest >= 0:
                parity = stream.code.encode(words, stream.mask)
                digests.parity[unit.parity_digest] = xxhash.xxh3_64_intdigest(parity.data)
                writer.write_parity(unit.parity_offset, parity)

        batches = list(_batches(shard))
        step = f"protect {shard.name}"
        for _ in work.run(write, batches, jobs=jobs, step=step, total=len(batches), progress=progress):
            pass
    return digests, losses


def _batches(shard: ShardPlan) -> Iterator[list[tuple[int, int]]]:
    """(stream, unit) of all units, several neighbours of a stream at a time.

    What is written in large stretches lies in large pages of the cache, and reading it through a map is twice as fast.
    """
    for index, stream in enumerate(shard.streams):
        count = max(1, _WRITE_BYTES // (8 * stream.unit_words))
        for first in range(0, stream.units, count):
            yield [(index, unit) for unit in range(first, min(first + count, stream.units))]


def _chunks(part: Part) -> Iterator[tuple[int, int]]:
    """(begin, end) of the pieces of a part's source bytes that are stored together."""
    group = representations.make(part.representation).group * max(8, part.dtype.bits) // 8
    step = max(CHUNK_BYTES // group, 1) * group
    for begin in range(0, part.bytes, step):
        yield begin, min(begin + step, part.bytes)


def _magnitudes(job: Job, jobs: int | None) -> npt.NDArray[np.float64]:
    """(parts,) the largest magnitude of each part that is not stored as it is; zero for the others."""
    magnitudes = np.zeros(len(job.plan.parts))
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(path.open("rb")) for path in job.files]
        for index, part in enumerate(job.plan.parts):
            if part.representation != "native":
                magnitudes[index] = _magnitude(sources[part.source], part, jobs)
    return magnitudes


def _magnitude(source: Any, part: Part, jobs: int | None) -> float:
    """The largest magnitude of a part. Raises CheckpointError where an element cannot be represented."""
    representation = representations.make(part.representation)

    def magnitude_of(chunk: tuple[int, int]) -> float:
        try:
            return representation.magnitude(part.dtype, _read(source, part, chunk))
        except CheckpointError as error:
            raise CheckpointError(f"{part.name}: {error}") from error

    return max(work.run(magnitude_of, _chunks(part), jobs=jobs), default=0.0)


def _read(source: Any, part: Part, chunk: tuple[int, int]) -> Bytes:
    """Bytes [begin, end) of a part of an open source."""
    data = np.empty(chunk[1] - chunk[0], np.uint8)
    read_exactly_into(source, part.offset + chunk[0], data)
    return data


def _guards(
    job: Job, granularity: str, magnitudes: npt.NDArray[np.float64], jobs: int | None
) -> dict[int, TensorGuard]:
    """The range guards of a shard's tensors, by part index; needed before anything is written, for their size."""
    if granularity == NO_GUARD:
        return {}
    parts = job.plan.parts
    builders: dict[int, Builder] = {}
    for index, part in enumerate(parts):
        form = guarding.form_of(part)
        if form is not None and part.elements:
            builders[index] = Builder(form, part.elements, group_words(granularity, part.elements, part.shape))
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(path.open("rb")) for path in job.files]

        def measure(task: tuple[int, tuple[int, int]]) -> tuple[int, Measured]:
            index, chunk = task
            part = parts[index]
            data, representation = _read(sources[part.source], part, chunk), representations.make(part.representation)
            size = data.size
            if part.representation != "native":
                data = representation.store(part.dtype, data, float(magnitudes[index]))[0]
            words = representation.words(part.dtype, data, size)
            return index, builders[index].measure(words, part.dtype.words(chunk[0]))

        tasks = ((index, chunk) for index in builders for chunk in _chunks(parts[index]))
        for index, measured in work.run(measure, tasks, jobs=jobs):
            builders[index].add(measured)
    return {index: builder.guard() for index, builder in builders.items()}


def _store_part(source: Any, part: Part, magnitude: float, writer: ShardWriter, jobs: int | None) -> Losses:
    """Write a part into the payload in its representation; what that cost."""
    representation = representations.make(part.representation)

    def store(chunk: tuple[int, int]) -> Losses:
        stored, loss = representation.store(part.dtype, _read(source, part, chunk), magnitude)
        begin = representation.stored_bytes(part.dtype, chunk[0])
        writer.write_payload(part.stored_offset + begin, stored)
        return loss

    rounded = clipped = 0
    max_error = 0.0
    for loss in work.run(store, _chunks(part), jobs=jobs):
        rounded, clipped = rounded + loss.rounded, clipped + loss.clipped
        max_error = max(max_error, loss.max_error)
    return Losses(rounded, clipped, max_error)
