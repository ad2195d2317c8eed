"""protect: a checkpoint becomes a container."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptguard import codes, plan, representations
from ckptguard.channels import make as make_channel
from ckptguard.checkpoint.folder import Checkpoint, SourceFile
from ckptguard.checkpoint.safetensors import Header, TensorInfo
from ckptguard.container.shard_file import SUFFIX
from ckptguard.devices import Device, DeviceMap
from ckptguard.dtypes import DTYPES
from ckptguard.errors import CheckpointError, UsageError
from ckptguard.files import atomic_folder, atomic_writer, refuse_overlap
from ckptguard.guards import NONE as NO_GUARD
from ckptguard.guards import check_granularity
from ckptguard.masks import MaskSet, TensorMask
from ckptguard.pipeline import work
from ckptguard.pipeline.inputs import is_torch_file, open_checkpoint
from ckptguard.pipeline.posteriors import can_have, columns_of, most_extra
from ckptguard.pipeline.shard import make_info
from ckptguard.pipeline.wanted import POSTERIOR, Pair, Wanted, counts_on_restorers, wanted
from ckptguard.pipeline.writing import Job, with_restorers, write_set
from ckptguard.plan import FILES_CODE, Part, ShardPlan, Source, lay_out
from ckptguard.representations.base import Losses

DEFAULT_CODE = "bch:8191,6722"
DEFAULT_TARGET = 1e-9
DEFAULT_GUARD = "tensor"
FILES_SHARD = "files" + SUFFIX


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
        jobs_to_do = [with_restorers(job, jobs) for job in jobs_to_do]
        warnings += _unsummed(jobs_to_do, restorers)
        losses = write_set(jobs_to_do, shard_paths, info, guard, jobs, progress)
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
) -> tuple[list[Job], list[str]]:
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
    shards: list[Job] = []
    for file in checkpoint.files:
        if file.header is not None:
            members = parts.get(file.name, [])
            shards += _tensor_shards(file, file.header, members, device_map, target, sidecar, restorers, code)
    auxiliary = [file for file in checkpoint.files if file.header is None]
    if auxiliary:
        shards.append(_files_shard(auxiliary, device_map))
    _check_names([job.plan.name for job in shards], sidecar, checkpoint)
    return shards, [str(pattern) for pattern in resolution.unused]


def _unsummed(jobs: Sequence[Job], restorers: Wanted | None) -> list[str]:
    """What of the tensors that are to carry row sums does not."""
    posteriors = [(job.plan.parts[index], one) for job in jobs for index, one in job.measured.posteriors.items()]
    missing = sorted(restorers.summed - {part.name for part, one in posteriors if one.levels}) if restorers else []
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return (
        [f"no row sums for {', '.join(missing[:5])}{more}: no tensor of rows of finite floats, of 16 at least"]
        if missing
        else []
    )


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
) -> list[Job]:
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
        _refuse_sums_beside(file.name, [members[index] for index in summed], sidecar)
        if rates and not sidecar:
            most = sum(most_extra(members[index], index in summed) for index in rates)
            members = [*members, replace(_whole(0, plan.EXTRA, file.name, most, code), mask="1" * 8)]
        laid = lay_out(name, [source], members, device=record, beside=sidecar, bit_error_rate=rate, target=target)
        jobs.append(Job(laid, (file.path,), rates, summed))
    return jobs


def _rates(members: Sequence[Part], restorers: Wanted | None, channel: str | None) -> dict[int, Pair]:
    """By index, of the parts that get restorers."""
    if restorers is None:
        return {}
    return {index: restorers.pair_of(part.name, channel) for index, part in enumerate(members) if can_have(part)}


def _is_summed(part: Part, restorers: Wanted | None) -> bool:
    return restorers is not None and part.name in restorers.summed and columns_of(part) > 0


def _refuse_sums_beside(name: str, summed: Sequence[Part], sidecar: bool) -> None:
    if sidecar and summed:
        raise UsageError(
            f"{name}: the masks count on sums of rows, which a sidecar has no place for; write a container (-o), or "
            "leave restorers out (--restorer none)"
        )


def _shard_name(file: SourceFile, device: str | None, sidecar: bool) -> str:
    if sidecar:
        return file.path.name + SUFFIX
    stem = file.name.removesuffix(".safetensors").replace("/", "__")
    return f"{stem}.{device}{SUFFIX}" if device else stem + SUFFIX


def _whole(source: int, kind: str, name: str, size: int, code: str) -> Part:
    """A part that is no tensor: bytes, wholly protected unless the code is `none`."""
    mask = "0" * 8 if code == "none" else "1" * 8
    return Part(source, kind, name, DTYPES["U8"], (), 0, size, 0, size, "native", mask, code)


def _files_shard(files: Sequence[SourceFile], device_map: DeviceMap | None) -> Job:
    device = device_map.devices[0] if device_map else None
    sources = [Source(file.name, file.bytes) for file in files]
    parts = [_whole(i, plan.FILE, file.name, file.bytes, FILES_CODE) for i, file in enumerate(files)]
    record = device.to_json() if device else None
    return Job(lay_out(FILES_SHARD, sources, parts, device=record), tuple(file.path for file in files))


def _targets(
    source: Path,
    destination: Path | str | None,
    jobs: Sequence[Job],
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
