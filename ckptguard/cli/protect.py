"""protect, inspect, convert: from a checkpoint to a container, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output
from ckptguard.errors import UsageError

if TYPE_CHECKING:
    from ckptguard.devices import DeviceMap


@click.command(short_help="Write a container for a checkpoint.")
@click.argument("checkpoint", type=options.FILE)
@click.option("-o", "--output", "destination", type=options.FILE, help="The container; a folder for several shards.")
@click.option("--masks", type=options.FILE, help="Mask file: which bits of which tensors to protect.")
@click.option("--bits", type=click.IntRange(1, 64), help="Protect the N most significant bits of every word.")
@click.option("--code", metavar="SPEC", help="Code, see `ckptguard codes`; or auto. Default: bch:8191,6722.")
@click.option("--representation", metavar="SPEC", default="native", show_default=True, help="How floats are stored.")
@click.option("--devices", type=options.FILE, help="Device map: which tensors lie on which device.")
@options.device
@options.at
@click.option("--target", type=float, metavar="P", help="With --code auto: highest probability that a shard is lost.")
@click.option(
    "--guard",
    metavar="GRANULARITY",
    help="Range guards, one per tensor, channel or group:N (elements), or none. Default: tensor.",
)
@click.option(
    "--restorer",
    type=click.Choice(["posterior", "none"]),
    help="What readers need to estimate damaged floats. Default: as the masks were searched.",
)
@click.option("--ber", type=float, metavar="P", help="Error rate that restorers are made for. Default: the device's.")
@click.option("--sidecar", is_flag=True, help="Leave the checkpoint as it is; write parity beside it.")
@options.select
@options.force
@options.jobs
@options.prints
def protect(
    output: Output,
    *,
    checkpoint: Path,
    destination: Path | None,
    masks: Path | None,
    bits: int | None,
    code: str | None,
    representation: str,
    devices: Path | None,
    device: str | None,
    at: tuple[str, ...],
    target: float | None,
    guard: str | None,
    restorer: str | None,
    ber: float | None,
    sidecar: bool,
    select: str | None,
    force: bool,
    jobs: int | None,
) -> int:
    """Write a container for CHECKPOINT: a safetensors file, a folder with some, or a torch file.

    Without --masks or --bits every bit is protected. The checkpoint itself is only read.
    """
    from ckptguard.pipeline.inspect import inspect as describe
    from ckptguard.pipeline.protect import DEFAULT_CODE, DEFAULT_TARGET
    from ckptguard.pipeline.protect import protect as run
    from ckptguard.report import containers

    options.at_most_one({"--masks": masks, "--bits": bits})
    if target is not None and not (code or "").startswith("auto"):
        raise UsageError("--target is for --code auto; a named code already decides")
    if target is not None and not 0 < target < 1:
        raise UsageError(f"--target: {target:g} is no probability between 0 and 1")
    made = run(
        checkpoint,
        destination,
        masks=masks,
        bits=bits,
        code=code or DEFAULT_CODE,
        representation=representation,
        devices=_device_map(devices, device, at),
        target=target or DEFAULT_TARGET,
        guard=guard,
        restorer=restorer,
        bit_error_rate=ber,
        sidecar=sidecar,
        select=select,
        overwrite=force,
        jobs=jobs,
        progress=output.progress,
    )
    for warning in made.warnings:
        output.note(f"note: {warning}")
    summary = describe(made.path if not sidecar else made.files[0])
    record = {"command": "protect", "exit_status": 0, "files": [str(file) for file in made.files]}
    output.result(
        record | {"warnings": list(made.warnings)} | summary.to_json(),
        lambda: containers.protected_text(made, summary),
    )
    return 0


def _device_map(devices: Path | None, device: str | None, at: tuple[str, ...]) -> DeviceMap | None:
    """The device map of a file, or one that puts everything on one device."""
    options.at_most_one({"--devices": devices, "--device": device})
    if at and device is None:
        raise UsageError("--at belongs to --device; a device map states operating points itself")
    if devices is None and device is None:
        return None
    from ckptguard.devices import DeviceMap

    if devices is not None:
        return DeviceMap.load(devices)
    assert device is not None
    return DeviceMap((options.device_at(device, at),), (("*",),))


@click.command(short_help="Show what a container holds and costs.")
@click.argument("container", type=options.FILE)
@options.prints
def inspect(output: Output, *, container: Path) -> int:
    """Show what CONTAINER holds, how it is protected and what that costs, from its metadata alone."""
    from ckptguard.pipeline.inspect import inspect as run
    from ckptguard.report import containers

    summary = run(container)
    record = {"command": "inspect", "exit_status": 0}
    output.result(record | summary.to_json(), lambda: containers.summary_text(summary))
    return 0


@click.command(short_help="Turn a torch file into a safetensors file.")
@click.argument("checkpoint", type=options.FILE)
@click.option("-o", "--output", "destination", type=options.FILE, required=True, help="The safetensors file.")
@options.select
@options.force
@options.prints
def convert(output: Output, *, checkpoint: Path, destination: Path, select: str | None, force: bool) -> int:
    """Write the tensors of a torch file (.pt, .pth, .th, .bin, .ckpt) as a safetensors file.

    Nothing in the torch file is executed; names stay as they are. Needs the extra `torch`.
    """
    from ckptguard.checkpoint.torch_file import convert as run
    from ckptguard.report import containers

    conversion = run(checkpoint, destination, select, overwrite=force)
    record = {"command": "convert", "exit_status": 0} | containers.conversion_record(conversion)
    output.result(record, lambda: containers.conversion_text(conversion))
    return 0
