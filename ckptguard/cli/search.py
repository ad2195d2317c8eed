"""search and sensitivity: which bits are worth their parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output
from ckptguard.errors import UsageError

BELOW_LIMIT = 14

_TABLES = ("fisher", "fisher-topbits", "measured", "measured-topbits", "uniform", "random")
_AGENTS = ("topbits-ddpg", "bitmask-ddpg", "topbits-sac", "bitmask-sac", "topbits-ppo", "bitmask-ppo")


def _method(*methods: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--method", type=click.Choice(methods), default="fisher", show_default=True, help="How masks are found."
    )


def _guard(*more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = "What readers know of damaged words: range guards, or posterior restorers"
    return click.option(
        "--guard",
        type=click.Choice(["tensor", "posterior", *more, "none"]),
        default="tensor",
        show_default=True,
        help=f"{text}; auto: the better of both." if more else f"{text}.",
    )


_storage = options.together(
    options.evaluator,
    options.metric,
    click.option("--ber", type=float, metavar="P", help="Every stored bit flips with this probability."),
    click.option("--fault", "faults", metavar="SPEC", help="A channel such as asymmetric:1e-3,1e-5."),
    options.device,
    options.at,
    options.device_map,
    click.option(
        "--gradients", metavar="FILE.py:NAME", help="A function of the state dict that gives a loss per sample."
    ),
    click.option("--representation", metavar="SPEC", default="native", show_default=True, help="How words are stored."),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        help="Calibration inputs that gradients are taken of.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of labels, draws and random masks."),
    options.framework,
    options.threads,
    click.option("-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that draw."),
)
"""Options that say what flips, and how the model is stored and scored."""


@click.command(short_help="Find which bits of which tensors are worth protecting.")
@click.argument("model", type=options.FILE)
@click.option("-o", "--output", "target_file", type=options.FILE, required=True, help="The mask file to write.")
@click.option("--budget", type=float, metavar="R", help="Parity and metadata over bits of the weights, such as 0.001.")
@click.option("--max-drop", type=float, metavar="X", help="The mean loss of the metric that is allowed.")
@click.option("--target-accuracy", "target", type=float, metavar="Y", help="The mean of the metric that is wanted.")
@click.option("--calibrate", metavar="SPEC", help="An evaluator on other data than --eval's; it chooses the masks.")
@click.option(
    "--code", "codes", metavar="SPEC", multiple=True, help="Codes to choose from. Default: ideal. Repeatable."
)
@click.option("--certify", metavar="drop=X,...", help="Prove it: drop=1.0,trials=59,share=0.95,confidence=0.95.")
@click.option("--trials", type=click.IntRange(min=1), default=4, show_default=True, help="Draws per calibration point.")
@click.option("--report", "report_folder", type=options.FILE, metavar="FOLDER", help="Write tables and a page there.")
@click.option("--resume", is_flag=True, help="Go on with what a search that was stopped has left.")
@click.option(
    "--polish",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Try swaps around the threshold with at most N evaluations.",
)
@_method(*_TABLES, *_AGENTS)
@click.option(
    "--episodes", type=click.IntRange(min=31), default=5000, show_default=True, help="Mask sets that an agent tries."
)
@click.option("--protected-share", type=float, metavar="F", help="Of all bits: an agent's budget, instead of --budget.")
@click.option(
    "--reward",
    type=click.Choice(["published", "original"]),
    default="published",
    show_default=True,
    help="Of an agent: as in the paper, or as in its authors' code.",
)
@click.option("--selection", metavar="SPEC", help="An evaluator on third data, which chooses among an agent's masks.")
@_guard("auto")
@_storage
@options.force
@options.select
@options.prints
def search(
    output: Output,
    *,
    model: Path,
    target_file: Path,
    codes: tuple[str, ...],
    report_folder: Path | None,
    resume: bool,
    force: bool,
    device: str | None,
    at: tuple[str, ...],
    device_map: Path | None,
    **request: Any,
) -> int:
    """Find masks for MODEL and write them as a mask file for `protect --masks`.

    One of --budget, --max-drop and --target-accuracy says what is wanted. Masks are chosen on data that the certificate
    does not see: --calibrate names them, or the data of `classification:` are halved.

    Exit status: 0 done, 14 if --certify was asked for and not even the strongest masks passed.
    """
    from ckptguard.files import atomic_writer
    from ckptguard.report import search as report
    from ckptguard.search.journal import Journal
    from ckptguard.search.run import search as run

    if target_file.exists() and not force:
        raise UsageError(f"{target_file}: is there already; --force replaces it")
    request["codes"] = codes or ("ideal",)
    journal = Journal(report_folder / "journal" if report_folder else _beside(target_file), resume)
    with journal:
        found = run(model, progress=output.progress, journal=journal, **_devices(device, at, device_map), **request)
        with atomic_writer(target_file, overwrite=force) as file:
            file.write(found.masks.to_json().encode("utf-8"))
        files = [str(target_file)]
        if report_folder is not None:
            files += [str(path) for path in report.write(found, report_folder)]
        journal.remove()
    status = BELOW_LIMIT if found.asked_certificate and found.certificate is None else 0
    record = {"command": "search", "exit_status": status, "files": files, "remembered": journal.remembered}
    record |= report.record(found)
    output.result(record, lambda: f"{report.text(found)}\n\nwrote {', '.join(files)}")
    return status


@click.command(short_help="Show what a flip of every bit is expected to cost.")
@click.argument("model", type=options.FILE)
@click.option("--report", "report_folder", type=options.FILE, metavar="FOLDER", help="Write a table and a page there.")
@_method(*_TABLES)
@_guard()
@_storage
@options.select
@options.prints
def sensitivity(
    output: Output,
    *,
    model: Path,
    report_folder: Path | None,
    device: str | None,
    at: tuple[str, ...],
    device_map: Path | None,
    **request: Any,
) -> int:
    """Print the damage table of MODEL: which tensors and which bit positions cost most."""
    from ckptguard.report import search as report
    from ckptguard.search.run import sensitivity as run

    found = run(model, progress=output.progress, **_devices(device, at, device_map), **request)
    files = [str(path) for path in report.write_sensitivity(found, report_folder)] if report_folder else []
    record = {
        "command": "sensitivity",
        "exit_status": 0,
        "files": files,
        "faults": found.faults,
        "curvature": found.source,
        "unknown": list(found.unknown),
        "damage": {name: list(values) for name, values in found.table.items()},
    }
    output.result(record, lambda: report.sensitivity_text(found))
    return 0


def _beside(target: Path) -> Path:
    """Where a search keeps what it has measured so far."""
    return target.with_name(f".{target.name}.search")


def _devices(device: str | None, at: tuple[str, ...], device_map: Path | None) -> dict[str, Any]:
    from ckptguard.devices import DeviceMap

    found = DeviceMap.load(device_map) if device_map is not None else None
    return {"device": options.device_of(device, at), "devices": found}
