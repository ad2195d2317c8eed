"""sweep and merge: what faults cost a model, measured over many damaged copies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output
from ckptguard.errors import UsageError

if TYPE_CHECKING:
    from ckptguard.campaign.record import Run
    from ckptguard.devices import Device

_BACKENDS = ("loky", "threading", "ray", "dask")
_FIGURES = ("png", "pdf", "svg")


_faults = options.together(
    click.option("--ber", metavar="RATES", help="Bit error rates: LO:HI, LO:HI:N or a,b,c."),
    click.option("--fault", "faults", metavar="SPEC", multiple=True, help="A fault; see below. Repeatable."),
    click.option("--device", metavar="NAME", help="A profile, also an analog one; see `ckptguard devices list`."),
    click.option(
        "--operating-point",
        "operating_points",
        metavar="KEY=VALUE,...",
        multiple=True,
        help="Of the device, one point each: pe=1000,days=90, or @PRESET. Repeatable.",
    ),
    options.device_map,
    click.option("--tensors", metavar="GLOB", multiple=True, help="Only these tensors are hit. Repeatable."),
    click.option("--layer-types", metavar="A,B", help="Only layers of these classes: Linear,Conv."),
    click.option("--bits", metavar="LIST", help="Only these bit positions, such as 0-8; 0 is the most significant."),
    click.option("--fields", metavar="LIST", help="Only these fields: sign,exponent,fraction."),
    click.option("--per-layer", is_flag=True, help="One layer at a time."),
    click.option("--per-tensor", is_flag=True, help="One tensor at a time."),
    click.option("--per-bit", is_flag=True, help="One bit position at a time."),
)
"""Options that say what happens to stored bits, and where."""


_variants = options.together(
    click.option(
        "--variant",
        "variants",
        metavar="KEY=VALUE;...",
        multiple=True,
        help="name=...;masks=...;code=...;representation=...;policy=...;guard=tensor. Repeatable.",
    ),
    click.option("--masks", metavar="FILE", help="Protected bits: a mask file, top:N or all."),
    click.option("--code", metavar="SPEC", help="The code of protected bits; see `ckptguard codes`, or ideal."),
    click.option(
        "--representation",
        "representations",
        metavar="SPEC",
        multiple=True,
        help="native, fixed:8, fixed:8,sign-magnitude, q:2.6, cast:bfloat16. Repeatable: they are compared.",
    ),
    click.option(
        "--policy",
        "policies",
        type=click.Choice(["raw", "null", "raise"]),
        multiple=True,
        help="For what cannot be corrected. Repeatable: they are compared.",
    ),
    click.option(
        "--guard",
        metavar="GRANULARITY",
        help="Range guards as of `protect`: one per tensor, channel or group:N, or none. Default: none.",
    ),
    click.option(
        "--decoder",
        type=click.Choice(["exact", "sampled"]),
        default="exact",
        show_default=True,
        help="sampled: of long BCH codes only the codewords that fail are drawn.",
    ),
    click.option("--controls", is_flag=True, help="Add no protection, guards only, full protection and an ideal code."),
)
"""Options that say how the tensors are stored."""


_statistics = options.together(
    options.evaluator,
    options.framework,
    options.metric,
    click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Of every point. Default: 59."),
    click.option("--until", metavar="RULE", help="Stop a point early: halfwidth=0.5 or verdict."),
    click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="With --until. Default: 1000."),
    click.option("--limit", metavar="METRIC=CHANGE", help="What may be lost, such as accuracy=-0.5: a verdict."),
    click.option(
        "--claim",
        type=click.Choice(["share", "mean"]),
        default="share",
        show_default=True,
        help="Whether a share of all devices keeps the limit, or their mean.",
    ),
    click.option("--judge", "judged", metavar="VARIANT", multiple=True, help="Default: the first. Repeatable."),
    click.option("--share", type=float, default=0.95, show_default=True, help="Of devices, in statements."),
    click.option("--confidence", type=float, default=0.95, show_default=True, help="Of statements, intervals."),
    click.option(
        "--range", "ranges", metavar="METRIC=LOW:HIGH", multiple=True, help="Worst and best values. Repeatable."
    ),
    click.option("--direction", "directions", metavar="METRIC=higher|lower", multiple=True, help="Which is better."),
    click.option("--fleet", type=click.IntRange(min=1), default=1, metavar="N", help="Devices, for times to failure."),
)
"""Options about the evaluator, how many trials there are, and what is asked of them."""


_work = options.together(
    click.option("--seed", type=int, default=0, show_default=True, help="Decides which bits flip."),
    click.option("-j", "--jobs", type=click.IntRange(min=1), help="Workers. Default: one per processor."),
    options.threads,
    click.option("--backend", type=click.Choice(_BACKENDS), help="Where workers run. Default: loky (processes)."),
    click.option("--part", metavar="I/N", help="Do the I-th of N shares of the trials; see `ckptguard merge`."),
    click.option("--resume", is_flag=True, help="Go on with a folder that is there."),
    click.option("--figures", metavar="LIST", help="Also draw figures as files: png,pdf,svg."),
    click.option("--no-report", is_flag=True, help="Write no report.html."),
    click.option("--no-golden", is_flag=True, help="Leave out the check through a real container."),
)
"""Options about where and how far the work is done."""


@click.command(short_help="Measure what faults cost, over many damaged copies.")
@click.argument("subject", type=options.FILE)
@click.option("-o", "--output", "folder", type=options.FILE, required=True, help="Folder of the run.")
@_faults
@_variants
@_statistics
@_work
@options.select
@options.prints
def sweep(
    output: Output,
    *,
    subject: Path,
    folder: Path,
    operating_points: tuple[str, ...],
    device: str | None,
    layer_types: str | None,
    fields: str | None,
    per_layer: bool,
    per_tensor: bool,
    trials: int | None,
    max_trials: int | None,
    until: str | None,
    figures: str | None,
    no_report: bool,
    no_golden: bool,
    **request: Any,
) -> int:
    """Damage SUBJECT (a checkpoint or a container) in memory many times, evaluate each copy, and judge.

    All variants meet the same flips, and the results do not depend on the number of workers. A killed run goes on with
    --resume. Faults: every channel (bsc:1e-3, asymmetric:p01,p10, burst:..., ...), flips:K, single, stuck0:P,
    stuck1:P, zero:P, gaussian:SIGMA, analog:NAME,.... Evaluators: weights, logits:..., classification:...,
    perplexity:..., file.py:function.

    Exit status: 0 done, 14 if --limit is not kept (FAIL).
    """
    from ckptguard.campaign.sweep import sweep as run

    formats = _formats(figures)
    per = options.at_most_one({"--per-layer": per_layer or None, "--per-tensor": per_tensor or None})
    if until is None and max_trials is not None:
        raise UsageError("--max-trials belongs to --until; without it --trials says how many")
    if until is not None and trials is not None:
        raise UsageError("--trials and --until exclude each other; --max-trials bounds --until")
    found = run(
        subject,
        folder,
        devices=_devices(device, operating_points),
        layer_types=_listed(layer_types),
        fields=_listed(fields),
        per=None if per is None else per.removeprefix("--per-"),
        trials=trials if until is None else max_trials,
        until=until,
        golden=not no_golden,
        command=["ckptguard", *sys.argv[1:]],
        progress=output.progress,
        note=output.note,
        **request,
    )
    return _tell(output, "sweep", found, formats, no_report)


@click.command(short_help="Put the parts of a campaign together.")
@click.argument("folders", type=options.FILE, nargs=-1, required=True)
@click.option("-o", "--output", "folder", type=options.FILE, required=True, help="Folder of the whole run.")
@click.option("--figures", metavar="LIST", help="Also draw figures as files: png,pdf,svg.")
@click.option("--no-report", is_flag=True, help="Write no report.html.")
@options.prints
def merge(output: Output, *, folders: tuple[Path, ...], folder: Path, figures: str | None, no_report: bool) -> int:
    """Put FOLDERS, all parts of one campaign (`ckptguard sweep --part I/N`), together as if it had been run whole.

    Exit status: 0 done, 13 if they do not belong together or one is missing, 14 if the limit is not kept (FAIL).
    """
    from ckptguard.campaign.merge import merge as run

    formats = _formats(figures)
    return _tell(output, "merge", run(folders, folder), formats, no_report)


def _tell(output: Output, command: str, found: Run, formats: tuple[str, ...], no_report: bool) -> int:
    """Write report and figures of a whole run, and print what it found."""
    from ckptguard.masks import MaskSet
    from ckptguard.pipeline.wanted import counts_on_restorers
    from ckptguard.report import campaign, figures, page

    for variant in found.campaign["variants"]:
        if variant["masks"] is not None and counts_on_restorers(MaskSet.parse(variant["masks"])):
            output.note(
                f"note: variant {variant['name']!r} counts on posterior restorers, which campaigns do without; "
                "restore copies that were corrupted, or `search --certify`, to see what it keeps with them"
            )
    files = [str(found.folder / name) for name in ("campaign.json", "results.jsonl")]
    if found.complete:
        files.append(str(found.folder / "summary.csv"))
        if not no_report:
            files.append(str(page.write(found.folder)))
        files += [str(path) for path in figures.write(found.folder, formats)] if formats else []
    record = {"command": command, "exit_status": found.exit_status, "output": str(found.folder), "files": files}
    kept = ("subject", "metric", "metrics", "clean", "points", "variants", "checks", "run", "part", "analysis")
    record |= {key: found.campaign.get(key) for key in kept}

    def text() -> str:
        if not found.complete:
            return (
                f"part {found.campaign['part']}: {len(found.rows)} results in {found.folder}; `ckptguard merge` is next"
            )
        rows = [row.to_json() for row in found.rows]
        return f"{campaign.text(found.campaign, rows)}\n\n{_footer(found, files)}"

    output.result(record, text)
    return found.exit_status


def _footer(found: Run, files: list[str]) -> str:
    run, checks = found.campaign["run"], found.campaign["checks"]
    speed = f", {run['trials'] / run['seconds']:.3g} a second" if run["trials"] and run["seconds"] else ""
    golden = sum(said == "passed" for said in checks["golden"].values())
    lines = [
        f"checks passed: null, golden ({golden} of {len(checks['golden'])} variants), "
        f"{checks['flips']['counts']} counts of flips",
        f"{run['trials']} trials now ({run['evaluations']} evaluations) in {run['seconds']:.1f} s{speed}",
        *files[-1:],
    ]
    return "\n".join(lines)


def _devices(name: str | None, points: tuple[str, ...]) -> list[tuple[str, Device]]:
    """One device per operating point; without any the profile's default."""
    from ckptguard.campaign import analog
    from ckptguard.devices import analog_profiles

    if name is None:
        if points:
            raise UsageError("--operating-point belongs to --device")
        return []
    texts = [point if not point.startswith("@") else f"preset={point[1:]}" for point in points] or [""]
    labels = list(points) or [name]
    if name in analog_profiles():
        parsed = [options.operating_point((text,) if text else ()) for text in texts]
        return [(label, analog.device(name, *point)) for label, point in zip(labels, parsed, strict=True)]
    return [
        (label, options.device_at(name, (text,) if text else ())) for label, text in zip(labels, texts, strict=True)
    ]


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _formats(text: str | None) -> tuple[str, ...]:
    found = _listed(text)
    for name in found:
        if name not in _FIGURES:
            raise UsageError(f"--figures: {name!r} is not known; known: {', '.join(_FIGURES)}")
    return found
