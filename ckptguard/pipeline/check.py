"""check: read everything, change nothing, say what is intact, correctable, lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptguard.container.journal import journal_path
from ckptguard.pipeline import work
from ckptguard.pipeline.reports import Report, Tally
from ckptguard.pipeline.shard import Shard, open_set, set_files
from ckptguard.pipeline.units import Examined, examine


def check(path: Path | str, *, jobs: int | None = None, progress: work.Progress = work.silent) -> Report:
    """Compare every digest of a container and try to decode whatever is damaged. Nothing is written.

    Raises:
        MetadataLostError, ContainerError, MismatchError: as `open_set`.
    """
    with open_set(path) as shards:
        tally = Tally(shards)
        for index, examined in examine_all(shards, parity=True, jobs=jobs, step="check", progress=progress):
            tally.add(index, examined)
        add_metadata(tally.report, shards)
        tally.report.notes += [
            f"{journal_path(path)} is the journal of an interrupted repair; `ckptguard repair --in-place` completes it"
            for path in set_files(shards)
            if journal_path(path).exists()
        ]
        return tally.report


def examine_all(
    shards: Sequence[Shard],
    *,
    parity: bool,
    jobs: int | None,
    step: str,
    progress: work.Progress,
    guard: bool = True,
) -> Iterator[tuple[int, Examined]]:
    """(shard index, examined unit) for every unit of a set; its bytes are overwritten once the next is asked for."""
    room = work.Room()
    places = [(i, place) for i, shard in enumerate(shards) for place in shard.plan.all_units()]

    def one(task: tuple[int, tuple[int, int]]) -> tuple[int, Examined]:
        index, (stream, unit) = task
        return index, examine(shards[index], stream, unit, parity=parity, guard=guard, room=room)

    for index, examined in work.run(one, places, jobs=jobs, step=step, total=len(places), progress=progress):
        yield index, examined
        room.give(examined.read)
        if examined.bytes is not examined.read:
            room.give(examined.bytes)


def add_metadata(report: Report, shards: Sequence[Shard]) -> None:
    """Add the damage of superblocks and metadata copies to a report."""
    for row, shard in zip(report.shards, shards, strict=True):
        row.metadata = shard.file.metadata_damage()
