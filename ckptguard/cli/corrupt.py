"""corrupt: what storage does to a container."""

from __future__ import annotations

from pathlib import Path

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output, to_json
from ckptguard.errors import UsageError


@click.command(short_help="Send a container through simulated storage.")
@click.argument("container", type=options.FILE)
@click.option("-o", "--output", "destination", type=options.FILE, required=True, help="The corrupted copy.")
@click.option("--seed", type=int, required=True, help="Decides which bits flip; any number of jobs flips the same.")
@click.option("--ber", metavar="P", help="Flip every stored bit with probability P.")
@click.option("--channel", metavar="SPEC", help="A channel, such as bsc:1e-2 or burst:..., instead of the devices'.")
@options.device
@options.at
@click.option("--report", type=options.FILE, help="Write what was flipped where to this file, as JSON.")
@options.force
@options.jobs
@options.prints
def corrupt(
    output: Output,
    *,
    container: Path,
    destination: Path,
    seed: int,
    ber: str | None,
    channel: str | None,
    device: str | None,
    at: tuple[str, ...],
    report: Path | None,
    force: bool,
    jobs: int | None,
) -> int:
    """Send every stored byte of CONTAINER through a channel and write the result.

    Without --ber, --channel or --device each shard goes through the channel of the device recorded in it. Superblock,
    metadata and parity are hit like the rest. Any other file can be corrupted too.
    """
    from ckptguard.pipeline.corrupt import corrupt as run
    from ckptguard.report import damage

    options.at_most_one({"--ber": ber, "--channel": channel, "--device": device})
    profile = options.device_of(device, at)
    if report is not None:
        _refuse_report(report, container, destination, force)
    files = run(
        container,
        destination,
        seed=seed,
        channel=f"bsc:{ber}" if ber is not None else channel,
        device=profile,
        overwrite=force,
        jobs=jobs,
        progress=output.progress,
    )
    if report is not None:
        from ckptguard.files import atomic_writer

        with atomic_writer(report, overwrite=force) as file:
            file.write(to_json({"files": [flips.to_json() for flips in files]}).encode("utf-8") + b"\n")
    record = {"command": "corrupt", "exit_status": 0, "output": str(destination)}
    output.result(record | damage.flips_record(files), lambda: damage.flips_text(destination, files))
    return 0


def _refuse_report(report: Path, container: Path, destination: Path, force: bool) -> None:
    """Refuse, before anything is written, a report that would replace the container, its copy, or unasked a file."""
    from ckptguard.files import refuse_overlap

    read = [container, *container.glob("*")] if container.is_dir() else [container, container.with_suffix("")]
    refuse_overlap(report, read, "choose another name for the report")
    if report.resolve() in (destination.resolve(), destination.with_suffix("").resolve()):
        raise UsageError(f"{report}: is where the corrupted copy goes; choose another name for the report")
    if report.exists() and not force:
        raise UsageError(f"{report}: exists already; choose another name, or ask to replace it (--force)")
