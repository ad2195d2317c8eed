"""check, repair, restore: what damage did, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output

if TYPE_CHECKING:
    from ckptguard.pipeline.reports import Report


@click.command(short_help="Say what is damaged and what can be corrected.")
@click.argument("container", type=options.FILE)
@options.jobs
@options.prints
def check(output: Output, *, container: Path, jobs: int | None) -> int:
    """Read all of CONTAINER, decode what is damaged, say what can be corrected. Nothing is written.

    Exit status: 0 intact, 10 damaged but correctable, 11 protected bits lost, 12 metadata lost, 13 shards missing or of
    another set.
    """
    from ckptguard.pipeline.check import check as run
    from ckptguard.report import damage

    report = run(container, jobs=jobs, progress=output.progress)
    record = {"command": "check", "exit_status": report.status, "container": str(container)}
    output.result(record | report.to_json(), lambda: damage.check_text(container, report))
    return report.status


@click.command(short_help="Correct a damaged container.")
@click.argument("container", type=options.FILE)
@click.option("-o", "--output", "destination", type=options.FILE, help="Where the healed container goes.")
@click.option("--in-place", is_flag=True, help="Change the damaged files themselves; safe against interruption.")
@options.policy
@options.guard
@options.strict
@options.force
@options.jobs
@options.prints
def repair(
    output: Output,
    *,
    container: Path,
    destination: Path | None,
    in_place: bool,
    policy: str,
    guard: str,
    strict: bool,
    force: bool,
    jobs: int | None,
) -> int:
    """Correct payload, parity and metadata of CONTAINER. Bits that no code protects stay as they were read.

    Exit status: 0 if every protected bit is exact, 11 if some are lost; the best there is has been written then.
    """
    from ckptguard.pipeline.repair import repair as run

    report = run(
        container,
        destination,
        in_place=in_place,
        policy=policy,
        guard=guard == "on",
        strict=strict,
        overwrite=force,
        jobs=jobs,
        progress=output.progress,
    )
    return _tell(output, "repair", container, destination or container, report)


@click.command(short_help="Write the checkpoint that a container holds.")
@click.argument("container", type=options.FILE)
@click.option(
    "-o", "--output", "destination", type=options.FILE, required=True, help="The checkpoint; a folder if it was one."
)
@options.policy
@options.guard
@options.estimate
@options.strict
@options.force
@options.jobs
@options.prints
def restore(
    output: Output,
    *,
    container: Path,
    destination: Path,
    policy: str,
    guard: str,
    estimate: str,
    strict: bool,
    force: bool,
    jobs: int | None,
) -> int:
    """Write the checkpoint that CONTAINER holds, decoding what is damaged.

    Exit status: 0 if every protected bit is exact, 11 if some are lost; the best there is has been written then.
    """
    from ckptguard.pipeline.restore import restore as run

    report = run(
        container,
        destination,
        policy=policy,
        guard=guard == "on",
        estimate=estimate == "on",
        strict=strict,
        overwrite=force,
        jobs=jobs,
        progress=output.progress,
    )
    return _tell(output, "restore", container, destination, report)


def _tell(output: Output, command: str, container: Path, destination: Path, report: Report) -> int:
    """Print what a verb that writes has found; 0, or 11 where protected bits are lost."""
    from ckptguard.pipeline.reports import UNCORRECTABLE
    from ckptguard.report import damage

    status = UNCORRECTABLE if report.lost else 0
    record = {"command": command, "exit_status": status, "container": str(container), "output": str(destination)}
    output.result(record | report.to_json(), lambda: damage.written_text(command, destination, report))
    return status
