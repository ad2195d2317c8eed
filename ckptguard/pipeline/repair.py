"""repair: a damaged container becomes whole again, in a new place or, with a journal, in its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckptguard.container.journal import Journal, replay
from ckptguard.container.shard_file import SUFFIX, payload_beside, write_at
from ckptguard.errors import UsageError
from ckptguard.files import atomic_folder, atomic_writer, refuse_overlap
from ckptguard.pipeline import work
from ckptguard.pipeline.check import add_metadata, examine_all
from ckptguard.pipeline.reports import Report, Tally
from ckptguard.pipeline.restore import NOT_WRITTEN, POLICIES, null_elements, refuse_losses
from ckptguard.pipeline.shard import Shard, open_set, set_files
from ckptguard.pipeline.units import Examined, piece_slices

Bytes = npt.NDArray[np.uint8]


def repair(
    path: Path | str,
    destination: Path | str | None = None,
    *,
    in_place: bool = False,
    policy: str = "raw",
    guard: bool = True,
    strict: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: work.Progress = work.silent,
) -> Report:
    """Correct payload and parity, and write both copies of the metadata afresh.

    Bits that no code protects stay as they were read; digests keep telling that they differ from what was written.

    Args:
        destination: where the healed container goes; left out with `in_place`.
        in_place: change the damaged files themselves. Every change is first written to a journal beside the file; if
            the work is interrupted, calling this again completes it.
        guard: set back bits that never vary, where the container has range guards; that is certainly right. Nothing is
            replaced that is only likely to be wrong: that is left to those who read.
        policy, strict: as for `restore`, but that `null` leaves coarser representations as read, which a note tells:
            `restore` makes their lost elements zero when they are turned back.

    Raises:
        UncorrectableError: `strict`, and protected bits are lost.
    """
    path = Path(path)
    if in_place == (destination is not None):
        raise UsageError("name either a place for the healed container (-o) or --in-place")
    if policy not in POLICIES:
        raise UsageError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    if in_place:
        return _in_place(path, policy, guard, strict, jobs, progress)
    assert destination is not None
    with open_set(path) as shards, contextlib.ExitStack() as stack:
        refuse_overlap(Path(destination), set_files(shards), "choose another name, or --in-place to change the files")
        targets = _open_targets(shards, Path(destination), overwrite, stack)
        tally = Tally(shards)
        for shard, (target, payload) in zip(shards, targets, strict=True):
            _size(shard, target, payload)
        examining = examine_all(shards, parity=True, jobs=jobs, step="repair", progress=progress, guard=guard)
        for index, examined in examining:
            target, payload = targets[index]
            tally.add(index, examined)
            for in_payload, offset, data in _corrected(shards[index], examined, policy, guard):
                write_at(payload if in_payload else target, offset, data)
        add_metadata(tally.report, shards)
        _tell_of_policy(tally.report, shards, policy)
        if strict:
            refuse_losses(tally.report, NOT_WRITTEN)
        for shard, (target, _) in zip(shards, targets, strict=True):
            for position, image in shard.file.metadata_images():
                write_at(target, position + shard.file.missing_front, image)
        return tally.report


def _tell_of_policy(report: Report, shards: Sequence[Shard], policy: str) -> None:
    """Note the tensors that the policy `null` could not be applied to."""
    coarse = {part.name for shard in shards for part in shard.plan.parts if part.representation != "native"}
    left = [tensor.name for tensor in report.lost if tensor.name in coarse and policy == "null"]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        report.notes.append(
            f"lost elements of {', '.join(left[:5])}{more} are left as read, since they are stored in a coarser "
            "representation; `restore --policy null` makes them zero"
        )


def _corrected(shard: Shard, examined: Examined, policy: str, guard: bool) -> Iterator[tuple[bool, int, Bytes]]:
    """(whether it lies in the payload file, offset in a whole file, bytes) of a unit after correction."""
    block = shard.file.superblock
    for piece, where in zip(examined.unit.pieces, piece_slices(examined.unit), strict=True):
        data = examined.bytes[where]
        part = shard.plan.parts[piece.part]
        if policy == "null" and examined.lost_bits is not None and part.representation == "native":
            found = shard.guards.get(piece.part) if guard else None
            data = null_elements(part, piece, data, examined.lost_bits[where], found)
        yield True, block.payload_offset + piece.offset, data
    if examined.parity is not None:
        yield False, block.parity_offset + examined.unit.parity_offset, examined.parity


def _open_targets(
    shards: Sequence[Shard], destination: Path, overwrite: bool, stack: contextlib.ExitStack
) -> list[tuple[int, int]]:
    """(descriptor of the shard file, descriptor its payload goes to) for every shard."""
    opened = []
    if len(shards) > 1:
        folder = stack.enter_context(atomic_folder(destination, overwrite=overwrite))
        for shard in shards:
            target = stack.enter_context((folder / shard.plan.name).open("xb")).fileno()
            payload = target
            if shard.plan.beside:
                payload = stack.enter_context((folder / shard.file.payload_path.name).open("xb")).fileno()
            opened.append((target, payload))
        return opened
    if shards[0].plan.beside and destination.suffix != SUFFIX:
        raise UsageError(
            f"{destination}: a sidecar's copy must end in {SUFFIX}; its payload is written without it, beside"
        )
    target = payload = stack.enter_context(atomic_writer(destination, overwrite=overwrite)).fileno()
    if shards[0].plan.beside:
        beside = payload_beside(destination)
        payload = stack.enter_context(atomic_writer(beside, overwrite=overwrite)).fileno()
    return [(target, payload)]


def _size(shard: Shard, target: int, payload: int) -> None:
    os.ftruncate(target, shard.file.superblock.file_bytes)
    if shard.plan.beside:
        os.ftruncate(payload, shard.plan.payload_bytes)


def _in_place(path: Path, policy: str, guard: bool, strict: bool, jobs: int | None, progress: work.Progress) -> Report:
    """Collect all changes in journals, make the journals durable, apply them, remove them."""
    with open_set(path) as shards:
        _replay(shards)
    with open_set(path) as shards:
        for shard in shards:
            if shard.file.missing_bytes or shard.file.foreign_bytes:
                raise UsageError(
                    f"{shard.file.path}: its size is not what it was; it cannot be repaired in place, use -o"
                )
        tally = Tally(shards)
        with contextlib.ExitStack() as stack:
            journals = [_journals(shard, stack) for shard in shards]
            examining = examine_all(shards, parity=True, jobs=jobs, step="repair", progress=progress, guard=guard)
            for index, examined in examining:
                tally.add(index, examined)
                _record(shards[index], examined, policy, guard, journals[index])
            add_metadata(tally.report, shards)
            _tell_of_policy(tally.report, shards, policy)
            if strict:
                refuse_losses(tally.report, NOT_WRITTEN)
            for shard, (own, _) in zip(shards, journals, strict=True):
                for position, image in (*shard.file.metadata_images(), *shard.file.gap_images()):
                    own.add_changes(position, shard.file.read(position, len(image)), np.frombuffer(image, np.uint8))
            for pair in journals:
                for journal in dict.fromkeys(pair):
                    if journal.changes:
                        journal.commit()
        _replay(shards)
        return tally.report


def _replay(shards: Sequence[Shard]) -> None:
    """Complete the repair that the journals of a set hold, if any."""
    for shard in shards:
        for target in dict.fromkeys((shard.file.payload_path, shard.file.path)):
            replay(target, shard.file.superblock.metadata_digest)


def _journals(shard: Shard, stack: contextlib.ExitStack) -> tuple[Journal, Journal]:
    """Journals of the shard file and of the file its payload lies in (the same one where it is embedded)."""
    identity = shard.file.superblock.metadata_digest
    own = stack.enter_context(Journal(shard.file.path, identity))
    return own, (stack.enter_context(Journal(shard.file.payload_path, identity)) if shard.plan.beside else own)


def _record(shard: Shard, examined: Examined, policy: str, guard: bool, journals: tuple[Journal, Journal]) -> None:
    """Note the bytes of a unit that change."""
    own, beside = journals
    block = shard.file.superblock
    for in_payload, offset, data in _corrected(shard, examined, policy, guard):
        if in_payload:
            stored = shard.file.read_payload(offset - block.payload_offset, len(data))
        else:
            stored = shard.file.read_parity(offset - block.parity_offset, len(data))
        (beside if in_payload else own).add_changes(offset, stored, data)
