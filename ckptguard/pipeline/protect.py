"""protect: a checkpoint becomes a container."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import codes, plan, representations
from ckptguard.channels import make as make_channel
from ckptguard.checkpoint.folder import Checkpoint, SourceFile
from ckptguard.checkpoint.safetensors import Header, TensorInfo
from ckptguard.codes.base import Words
from ckptguard.container.shard_file import SUFFIX, ShardWriter
from ckptguard.container.superblock import Superblock
from ckptguard.devices import Device, DeviceMap
from ckptguard.dtypes import DTYPES
from ckptguard.errors import CheckpointError, UsageError
from ckptguard.files import atomic_folder, atomic_writer, read_exactly_into, refuse_overlap
from ckptguard.guards import NONE as NO_GUARD
from ckptguard.guards import Builder, Measured, TensorGuard, check_granularity, group_words
from ckptguard.masks import MaskSet, TensorMask
from ckptguard.pipeline import guarding, work
from ckptguard.pipeline.inputs import is_torch_file, open_checkpoint
from ckptguard.pipeline.posteriors import Restorers, can_have, columns_of, measure, most_sums
from ckptguard.pipeline.shard import Digests, make_info, pack_metadata
from ckptguard.pipeline.units import gather_words, protected_digests, raw_digests, runs, unit_bytes
from ckptguard.pipeline.wanted import POSTERIOR, Pair, Wanted, counts_on_restorers, wanted
from ckptguard.plan import FILES_CODE, Part, ShardPlan, Source, Unit, lay_out
from ckptguard.representations.base import Losses

DEFAULT_CODE = "bch:8191,6722"
DEFAULT_TARGET = 1e-9
DEFAULT_GUARD = "tensor"
FILES_SHARD = "files" + SUFFIX
CHUNK_BYTES = 8 << 20
_WRITE_BYTES = 16 << 20

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Protected:
    """What protect made.

    Attributes:
        path: of the container: a file, or the folder of its shard files.
        plans: of its shards.
        files: the shard files.
        warnings: what the user should know: rules that match nothing, losses of a representation, ...
        losses: (shard, part) -> what a coarser representation cost.
    """

    path: Path
    plans: tuple[ShardPlan, ...]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    losses: dict[tuple[int, int], Losses]


@dataclass(frozen=True)
class _Job:
    """A shard to be written.

    Attributes:
        files: where the bytes of its sources come from.
        rates: of the parts that get posterior restorers, by index; `summed` of them carry row sums.
        measured: these restorers, and the row sums that end the payload; until they are measured the plan holds as much
            room as these can take.
    """

    plan: ShardPlan
    files: tuple[Path, ...]
    rates: Mapping[int, Pair] = field(default_factory=dict)
    summed: tuple[int, ...] = ()
    measured: Restorers = field(default_factory=Restorers.none)

    @property
    def is_image(self) -> bool:
        """Whether the payload is one whole source file, byte for byte, and row sums behind it."""
        sources, parts = self.plan.sources, self.plan.parts
        return (
            len(sources) == 1
            and self.plan.payload_bytes - self.plan.sum_bytes == sources[0].bytes
            and all(p.offset == p.stored_offset and p.representation == "native" for p in parts if p.kind != plan.SUMS)
        )


def protect(
    source: Path | str,
    destination: Path | str | None = None,
    *,
    masks: MaskSet | Path | str | None = None,
    bits: int | None = None,
    code: str = DEFAULT_CODE,
    representation: str = "native",
    devices: DeviceMap | Path | str | None = None,
    target: float = DEFAULT_TARGET,
    guard: str | None = None,
    restorer: str | None = None,
    bit_error_rate: float | None = None,
    sidecar: bool = False,
    select: str | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: work.Progress = work.silent,
) -> Protected:
    """Write a container for a checkpoint. The checkpoint is only read.

    Args:
        source: a safetensors file, a folder with one or more of them, or a torch file.
        destination: the container; a folder where the checkpoint is one or lies on several devices. Left out with
            `sidecar`, where `<file>.ckg` lies beside each file.
        masks: which bits to protect; default: all, or the `bits` most significant of every word.
        code: spec for tensors whose rule names none; `auto` needs devices and a `target`.
        representation: spec for floating-point tensors.
        devices: which tensors lie on which device.
        target: for `auto`: highest probability that a shard is not decoded wholly.
        guard: granularity of range guards: one per `tensor`, per `channel` (index of the first axis), per `group:N`
            (N elements), or `none`. Left out: `tensor`; `none` where masks were searched for restorers and get them.
        restorer: `posterior`: what readers need to read damaged elements as what they most likely were, in metadata
            and, for tensors that the masks name for it, in sums of rows; or `none`. Left out, as the masks were
            searched.
        bit_error_rate: that restorers are made for; left out, those of the devices, or that of the masks' search.
        sidecar: leave the checkpoint where it is and write only parity and metadata beside it.
        select: which state dict of a torch file.

    Raises:
        CheckpointError, MaskError, SpecError, UsageError: as their messages say, before anything is written.
    """
    source = Path(source)
    if guard is not None:
        check_granularity(guard)
    with contextlib.ExitStack() as stack:
        notes: list[str] = []
        if sidecar and is_torch_file(source):
            raise UsageError(f"{source}: a sidecar stands beside a safetensors file; `ckptguard convert` makes one")
        scratch = Path(destination).parent if destination else None
        if scratch is not None and not scratch.is_dir():
            raise UsageError(f"{destination}: the folder {scratch} does not exist; create it first")
        checkpoint = stack.enter_context(open_checkpoint(source, select, notes, scratch))
        mask_set = _mask_set(masks, bits)
        device_map = devices if isinstance(devices, DeviceMap) else DeviceMap.load(Path(devices)) if devices else None
        restorers = wanted(restorer, bit_error_rate, mask_set)
        guard = guard or (NO_GUARD if restorers and counts_on_restorers(mask_set) else DEFAULT_GUARD)
        jobs_to_do, warnings = _plan(
            checkpoint, mask_set, code, representation, device_map, target, sidecar, source.name, restorers
        )
        if restorers is None and restorer is None and counts_on_restorers(mask_set):
            warnings.append(
                "the masks were searched for readers with posterior restorers, which they do not describe; give "
                "--restorer posterior --ber P"
            )
        folder = len(jobs_to_do) > 1
        path, shard_paths = _targets(source, destination, jobs_to_do, sidecar, folder, overwrite, stack)
        settings = {
            "code": code,
            "representation": representation,
            "masks": json.loads(mask_set.to_json()),
            "target": target if code.startswith("auto") else None,
            "guard": guard,
        } | ({"restorer": POSTERIOR} if restorers else {})
        info = make_info([job.plan.name for job in jobs_to_do], source.is_dir(), settings)
        jobs_to_do = [_measured(job, jobs) for job in jobs_to_do]
        losses = _write_set(jobs_to_do, shard_paths, info, guard, jobs, progress)
    final = tuple(
        (path / job.plan.name) if (folder and not sidecar) else Path(shard_paths[i][0])
        for i, job in enumerate(jobs_to_do)
    )
    return Protected(path, tuple(j.plan for j in jobs_to_do), final, (*notes, *warnings), losses)


def _mask_set(masks: MaskSet | Path | str | None, bits: int | None) -> MaskSet:
    if masks is not None and bits is not None:
        raise UsageError("--masks and --bits exclude each other")
    if isinstance(masks, MaskSet):
        return masks
    if masks is not None:
        return MaskSet.load(Path(masks))
    return MaskSet.all() if bits is None else MaskSet.top(bits)


def _plan(
    checkpoint: Checkpoint,
    mask_set: MaskSet,
    code: str,
    representation: str,
    device_map: DeviceMap | None,
    target: float,
    sidecar: bool,
    title: str,
    restorers: Wanted | None,
) -> tuple[list[_Job], list[str]]:
    """Decide shards, parts, masks and codes."""
    if not code.startswith("auto"):
        codes.make(code)
    if sidecar and representation != "native":
        raise UsageError("a sidecar leaves the checkpoint as it is; it cannot have another representation")
    wanted = representations.make(representation)
    tensors = [
        (file.name, tensor, wanted.spec if wanted.applies(tensor.dtype) else "native")
        for file in checkpoint.files
        if file.header is not None
        for tensor in file.header.tensors
    ]
    try:
        plan.check_source_names([file.name for file in checkpoint.files])
    except ValueError as error:
        raise CheckpointError(f"{title}: {error}; rename it") from error
    if not tensors:
        raise CheckpointError(f"{title}: holds no tensors, there is nothing to protect")
    resolution = mask_set.resolve([(t.name, representations.make(spec).word_bits(t.dtype)) for _, t, spec in tensors])
    parts: dict[str, list[Part]] = {}
    for (file_name, tensor, spec), mask in zip(tensors, resolution.tensors, strict=True):
        parts.setdefault(file_name, []).append(_tensor_part(tensor, spec, mask, code))
    shards: list[_Job] = []
    for file in checkpoint.files:
        if file.header is not None:
            members = parts.get(file.name, [])
            shards += _tensor_shards(file, file.header, members, device_map, target, sidecar, restorers, code)
    auxiliary = [file for file in checkpoint.files if file.header is None]
    if auxiliary:
        shards.append(_files_shard(auxiliary, device_map))
    _check_names([job.plan.name for job in shards], sidecar, checkpoint)
    return shards, [str(pattern) for pattern in resolution.unused] + _unsummed(shards, restorers)


def _unsummed(jobs: Sequence[_Job], restorers: Wanted | None) -> list[str]:
    """What of the tensors that are to carry row sums does not."""
    can = {part.name for job in jobs for index in job.rates if columns_of(part := job.plan.parts[index])}
    missing = sorted(restorers.summed - can) if restorers else []
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return [f"no row sums for {', '.join(missing[:5])}{more}: no tensor of rows of floats"] if missing else []


def _check_names(names: Sequence[str], sidecar: bool, checkpoint: Checkpoint) -> None:
    """Shard files stand side by side; their names must differ."""
    if sidecar and any("/" in file.name for file in checkpoint.files if file.header is not None):
        raise UsageError("sidecars stand in one folder; this checkpoint has safetensors files in folders below it")
    doubled = sorted({name for name in names if list(names).count(name) > 1})
    if doubled:
        raise UsageError(f"two shard files would be named {doubled[0]!r}; rename a file or a device")


def _tensor_part(tensor: TensorInfo, spec: str, mask: TensorMask, code: str) -> Part:
    """A tensor as a part; its offset is still that in the data section."""
    size = tensor.end - tensor.begin
    stored = representations.make(spec).stored_bytes(tensor.dtype, size)
    chosen = (mask.code or code) if mask.protected_bits else "none"
    return Part(
        0, plan.TENSOR, tensor.name, tensor.dtype, tensor.shape, tensor.begin, size, 0, stored, spec, mask.mask, chosen
    )


def _tensor_shards(
    file: SourceFile,
    header: Header,
    parts: Sequence[Part],
    device_map: DeviceMap | None,
    target: float,
    sidecar: bool,
    restorers: Wanted | None,
    code: str,
) -> list[_Job]:
    """One shard for every device that tensors of a file lie on."""
    source = Source(file.name, file.bytes, header.raw)
    by_device: dict[str | None, list[Part]] = {}
    devices: dict[str | None, Device] = {}
    for part in parts:
        device = device_map.assign(part.name) if device_map else None
        key = device.name if device else None
        if device:
            devices[key] = device
        by_device.setdefault(key, []).append(replace(part, offset=header.data_offset + part.offset))
    if sidecar and len(by_device) > 1:
        raise UsageError(
            f"{file.name}: a sidecar needs the whole file on one device, the device map spreads it over "
            f"{', '.join(sorted(map(str, by_device)))}"
        )
    jobs = []
    for key, members in (by_device or {None: []}).items():
        if len(by_device) < 2 and all(part.representation == "native" for part in members):
            members = [_whole(0, plan.HEADER, file.name, len(header.raw), "none"), *members]
        found = devices.get(key)
        rate = make_channel(found.channel).bit_error_rate if found and found.channel else None
        record = found.to_json() if found else None
        name = _shard_name(file, key if len(by_device) > 1 else None, sidecar)
        rates = _rates(members, restorers, found.channel if found else None)
        summed = tuple(index for index in rates if _is_summed(members[index], restorers))
        members = [*members, *_sums(file.name, [members[index] for index in summed], code, sidecar)]
        laid = lay_out(name, [source], members, device=record, beside=sidecar, bit_error_rate=rate, target=target)
        jobs.append(_Job(laid, (file.path,), rates, summed))
    return jobs


def _rates(members: Sequence[Part], restorers: Wanted | None, channel: str | None) -> dict[int, Pair]:
    """By index, of the parts that get restorers."""
    if restorers is None:
        return {}
    return {index: restorers.pair_of(part.name, channel) for index, part in enumerate(members) if can_have(part)}


def _is_summed(part: Part, restorers: Wanted | None) -> bool:
    return restorers is not None and part.name in restorers.summed and columns_of(part) > 0


def _sums(name: str, summed: Sequence[Part], code: str, sidecar: bool) -> list[Part]:
    """The part for the row sums of a shard, as large as it can become; none where no tensor carries any."""
    most = sum(most_sums(part) for part in summed)
    if most and sidecar:
        raise UsageError(
            f"{name}: the masks count on sums of rows, which a sidecar has no place for; write a container (-o), or "
            "leave restorers out (--restorer none)"
        )
    return [replace(_whole(0, plan.SUMS, name, most, code), mask="1" * 8)] if most else []


def _measured(job: _Job, jobs: int | None) -> _Job:
    """With its restorers measured, and its plan made for the row sums that there are."""
    if not job.rates:
        return job
    shard, parts = job.plan, job.plan.parts
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(path.open("rb")) for path in job.files]

        def read(part: Part, begin: int, end: int) -> Bytes:
            return _read(sources[part.source], part, (begin, end))

        measured = measure(shard, job.rates, job.summed, read, jobs)
    if shard.sums is not None:
        size = measured.sums.size
        parts = parts[:-1] + ((replace(parts[-1], bytes=size, stored_bytes=size),) if size else ())
        shard = lay_out(shard.name, shard.sources, parts, device=shard.device, beside=shard.beside)
    return replace(job, plan=shard, measured=measured)


def _shard_name(file: SourceFile, device: str | None, sidecar: bool) -> str:
    if sidecar:
        return file.path.name + SUFFIX
    stem = file.name.removesuffix(".safetensors").replace("/", "__")
    return f"{stem}.{device}{SUFFIX}" if device else stem + SUFFIX


def _whole(source: int, kind: str, name: str, size: int, code: str) -> Part:
    """A part that is no tensor: bytes, wholly protected unless the code is `none`."""
    mask = "0" * 8 if code == "none" else "1" * 8
    return Part(source, kind, name, DTYPES["U8"], (), 0, size, 0, size, "native", mask, code)


def _files_shard(files: Sequence[SourceFile], device_map: DeviceMap | None) -> _Job:
    device = device_map.devices[0] if device_map else None
    sources = [Source(file.name, file.bytes) for file in files]
    parts = [_whole(i, plan.FILE, file.name, file.bytes, FILES_CODE) for i, file in enumerate(files)]
    record = device.to_json() if device else None
    return _Job(lay_out(FILES_SHARD, sources, parts, device=record), tuple(file.path for file in files))


def _targets(
    source: Path,
    destination: Path | str | None,
    jobs: Sequence[_Job],
    sidecar: bool,
    folder: bool,
    overwrite: bool,
    stack: contextlib.ExitStack,
) -> tuple[Path, list[tuple[Path, int]]]:
    """Open a temporary file for every shard; (final path or path in the temporary folder, descriptor)."""
    if sidecar:
        if destination is not None:
            raise UsageError("a sidecar's place is beside its file; leave the destination out")
        opened = []
        for job in jobs:
            beside = source if source.is_dir() else source.parent
            final = beside / job.plan.name if job.plan.name == FILES_SHARD else _beside(job.files[0])
            opened.append((final, stack.enter_context(atomic_writer(final, overwrite=overwrite)).fileno()))
        return (source if source.is_dir() else opened[0][0]), opened
    if destination is None:
        raise UsageError("name the container to write (-o), or ask for a sidecar")
    path = Path(destination)
    refuse_overlap(path, [source, *(file for job in jobs for file in job.files)], "choose another name")
    if not folder:
        return path, [(path, stack.enter_context(atomic_writer(path, overwrite=overwrite)).fileno())]
    parent = stack.enter_context(atomic_folder(path, overwrite=overwrite))
    opened = []
    for job in jobs:
        file = stack.enter_context((parent / job.plan.name).open("x+b"))
        opened.append((parent / job.plan.name, file.fileno()))
    return path, opened


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _write_set(
    jobs_to_do: Sequence[_Job],
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
    job: _Job,
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
        sums = job.measured.sums
        if not (job.is_image or shard.beside):
            for index, part in enumerate(shard.parts):
                if part.kind == plan.SUMS:
                    writer.write_payload(part.stored_offset, sums)
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
            border = shard.payload_bytes - sums.size  # between the source and the sums behind it
            inside = min(max(border - offset, 0), target.size)
            read_exactly_into(whole, offset, target[:inside])
            target[inside:] = sums[offset + inside - border :][: target.size - inside]

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


def _magnitudes(job: _Job, jobs: int | None) -> npt.NDArray[np.float64]:
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
    job: _Job, granularity: str, magnitudes: npt.NDArray[np.float64], jobs: int | None
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
