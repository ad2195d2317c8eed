"""corrupt: send every stored byte of a container, or of any file, through its device's channel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.channels import make as make_channel
from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey
from ckptguard.container.armour import CODEWORD_BYTES
from ckptguard.container.shard_file import SUFFIX, write_at
from ckptguard.devices import Device
from ckptguard.errors import UsageError
from ckptguard.files import atomic_folder, atomic_writer, read_exactly_into, refuse_overlap
from ckptguard.pipeline import work
from ckptguard.pipeline.shard import Shard, open_set

_TASK_BLOCKS = 16
MAX_POSITIONS = 10_000

Bytes = npt.NDArray[np.uint8]


@dataclass
class RegionFlips:
    """Flips in one region of a file: a tensor, the parity, the metadata, ...

    Attributes:
        name: of the region.
        bits: it has.
        rises, falls: 0 read as 1, and 1 read as 0.
    """

    name: str
    bits: int
    rises: int = 0
    falls: int = 0


@dataclass
class FileFlips:
    """What was done to one file.

    Attributes:
        name: of the file.
        channel: spec of the channel it went through.
        device: its name, where known.
        seed: of the run.
        bits, rises, falls: of the whole file.
        regions: in file order.
        positions: (byte, bit) of the first flips, bit 0 = least significant; `truncated` if there were more.
        truncated: see there.
    """

    name: str
    channel: str
    device: str | None
    seed: int
    bits: int = 0
    rises: int = 0
    falls: int = 0
    regions: list[RegionFlips] = field(default_factory=list)
    positions: list[tuple[int, int]] = field(default_factory=list)
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        """A record for machines."""
        return asdict(self)


@dataclass(frozen=True)
class _Stored:
    """One file of a container as the medium sees it."""

    path: Path
    name: str
    shard_key: str
    device: str | None
    channel: str | None
    regions: tuple[tuple[str, int], ...]


def corrupt(
    path: Path | str,
    destination: Path | str,
    *,
    seed: int,
    channel: str | None = None,
    device: Device | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: work.Progress = work.silent,
) -> list[FileFlips]:
    """Write a corrupted copy: every byte of every shard file (and of a sidecar's payload) through its channel.

    Args:
        path: a container, or any other file.
        seed: 0 .. 2**64 - 1; the same seed gives the same flips, for any number of jobs.
        channel: spec that overrides the devices of the container.
        device: the same, as a device.
    """
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"the seed {seed} does not fit 64 bits")
    given = channel or (device.channel if device else None)
    path, destination = Path(path), Path(destination)
    stored, is_folder = _stored_files(path)
    refuse_overlap(destination, [one.path for one in stored], "a corrupted copy needs a place of its own")
    missing = [one.name for one in stored if not (given or one.channel)]
    if missing:
        raise UsageError(
            f"{missing[0]}: no device is recorded in it; say what happens to it with --ber, --channel or --device"
        )
    flips = []
    with contextlib.ExitStack() as stack:
        targets = _open_targets(stored, is_folder, destination, overwrite, stack)
        for one, target in zip(stored, targets, strict=True):
            spec = given or one.channel
            assert spec is not None
            row = FileFlips(one.name, spec, device.name if device else None if channel else one.device, seed)
            _corrupt_file(one, target, make_channel(spec), row, jobs, progress)
            flips.append(row)
    return flips


def _stored_files(path: Path) -> tuple[list[_Stored], bool]:
    """The files of a container, or the one file that `path` is; and whether they stand in a folder."""
    if not path.is_dir() and path.suffix != SUFFIX:
        size = path.stat().st_size if path.exists() else _refuse_missing(path)
        return [_Stored(path, path.name, "0", None, None, (("file", size),))], False
    with open_set(path) as shards:
        files = [file for index, shard in enumerate(shards) for file in _files_of(shard, index)]
        return files, len(shards) > 1


def _refuse_missing(path: Path) -> int:
    raise UsageError(f"{path}: there is no such file")


def _files_of(shard: Shard, index: int) -> list[_Stored]:
    record = shard.plan.device or {}
    name, channel = record.get("name"), record.get("channel")
    payload = tuple((part.name, part.stored_bytes) for part in shard.plan.parts)
    block = shard.file.superblock
    front = (("superblock", CODEWORD_BYTES), ("metadata", block.metadata_stored))
    used = CODEWORD_BYTES + block.metadata_stored
    back = (
        ("parity", block.parity_bytes),
        ("padding", block.tail_offset - block.parity_offset - block.parity_bytes),
        ("metadata", block.metadata_stored),
        ("superblock", CODEWORD_BYTES),
    )
    regions: tuple[tuple[str, int], ...]
    if block.beside:
        regions = (*front, ("padding", block.parity_offset - used), *back)
        return [
            _Stored(shard.file.path, shard.file.path.name, str(index), name, channel, regions),
            _Stored(shard.file.payload_path, shard.file.payload_path.name, f"{index}.payload", name, channel, payload),
        ]
    gap = block.parity_offset - block.payload_offset - block.payload_bytes
    regions = (*front, ("padding", block.payload_offset - used), *payload, ("padding", gap), *back)
    return [_Stored(shard.file.path, shard.file.path.name, str(index), name, channel, regions)]


def _open_targets(
    stored: Sequence[_Stored], is_folder: bool, destination: Path, overwrite: bool, stack: contextlib.ExitStack
) -> list[int]:
    if is_folder:
        folder = stack.enter_context(atomic_folder(destination, overwrite=overwrite))
        return [stack.enter_context((folder / one.name).open("xb")).fileno() for one in stored]
    paths = [destination]
    if len(stored) == 2:
        if destination.suffix != SUFFIX:
            raise UsageError(
                f"{destination}: a sidecar's copy must end in {SUFFIX}; its payload is written without it, beside"
            )
        paths.append(destination.with_suffix(""))
    return [stack.enter_context(atomic_writer(path, overwrite=overwrite)).fileno() for path in paths]


def _corrupt_file(
    one: _Stored, target: int, channel: Channel, row: FileFlips, jobs: int | None, progress: work.Progress
) -> None:
    """Copy a file through a channel, 1 MiB at a time, and count what changed."""
    key = NoiseKey(row.seed, one.shard_key)
    room = work.Room()
    with one.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        known = np.cumsum([length for _, length in one.regions], dtype=np.int64)
        ends = np.append(known, max(size, known[-1]))  # what is foreign counts for the file alone
        counts = np.zeros((len(ends), 2), np.int64)
        step = _TASK_BLOCKS * BLOCK_BYTES

        def task(offset: int) -> _Changes:
            length = min(step, size - offset)
            whole = length + -length % 8
            before, after = room.take(whole), room.take(whole)
            before[length:] = 0
            read_exactly_into(file, offset, before[:length])
            after[:] = before
            stored = after[:length]
            channel.corrupt(stored, offset // BLOCK_BYTES, key)
            write_at(target, offset, stored, early=True)
            found = _changes(
                offset,
                before.view(np.uint64),
                after.view(np.uint64),
                ends,
                positions=len(row.positions) < MAX_POSITIONS,
            )
            room.give(before, after)
            return found

        offsets = range(0, size, step)
        for found in work.run(
            task, offsets, jobs=jobs, step=f"corrupt {one.name}", total=len(offsets), progress=progress
        ):
            counts[found.region : found.region + len(found.counts)] += found.counts
            _note_positions(row, found)
    row.bits = 8 * size
    row.rises, row.falls = (int(total) for total in counts.sum(axis=0))
    row.regions = [
        RegionFlips(name, 8 * int(length), int(rises), int(falls))
        for (name, length), (rises, falls) in zip(one.regions, counts, strict=False)
        if length
    ]


@dataclass(frozen=True)
class _Changes:
    """What changed in a stretch of a file.

    Attributes:
        region: the first that it reaches into.
        counts: (regions, 2) bits that rose and that fell, in this region and the following.
        positions, bits: the bytes that changed and the bits in which they did; empty where nobody asks any more.
    """

    region: int
    counts: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    bits: Bytes


def _changes(
    offset: int,
    before: npt.NDArray[np.uint64],
    after: npt.NDArray[np.uint64],
    ends: npt.NDArray[np.int64],
    *,
    positions: bool,
) -> _Changes:
    """Compare a stretch of a file that starts at `offset`, in regions with these `ends`."""
    from ckptguard.kernels import differences

    last = offset + before.nbytes
    region, stop = int(np.searchsorted(ends, offset, "right")), int(np.searchsorted(ends, last, "left")) + 1
    bounds = np.concatenate([[offset], np.minimum(ends[region:stop], last)]) - offset
    counts = np.zeros((len(bounds) - 1, 2), np.int64)
    differences.count_changes(before.astype("<u8", copy=False), after.astype("<u8", copy=False), bounds, counts)
    bits = before.view(np.uint8) ^ after.view(np.uint8) if positions else np.zeros(0, np.uint8)
    where = np.flatnonzero(bits)
    return _Changes(region, counts, where + offset, bits[where])


def _note_positions(row: FileFlips, found: _Changes) -> None:
    if len(row.positions) == MAX_POSITIONS:
        row.truncated = row.truncated or bool(found.counts.any())
        return
    for position, bits in zip(found.positions.tolist(), found.bits.tolist(), strict=True):
        for bit in range(8):
            if bits >> bit & 1:
                if len(row.positions) == MAX_POSITIONS:
                    row.truncated = True
                    return
                row.positions.append((position, bit))
