"""replay: the damaged model of one trial of a campaign."""

from __future__ import annotations

from pathlib import Path

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output
from ckptguard.errors import UsageError


@click.command(short_help="Write the damaged model of one trial.")
@click.argument("run", type=options.FILE)
@click.argument("subject", type=options.FILE)
@click.option("-o", "--output", "target", type=options.FILE, required=True, help="The safetensors file to write.")
@click.option("--point", metavar="ID", help="Such as p03; see campaign.json. Default: the only one.")
@click.option("--variant", metavar="NAME", help="Default: the first that the campaign judges.")
@click.option("--trial", metavar="N|worst", default="worst", show_default=True, help="Worst: of the main metric.")
@options.force
@options.select
@options.prints
def replay(
    output: Output,
    *,
    run: Path,
    subject: Path,
    target: Path,
    point: str | None,
    variant: str | None,
    trial: str,
    force: bool,
    select: str | None,
) -> int:
    """Write the weights that one trial of the campaign RUN was evaluated with, to look at a bad case.

    SUBJECT is what the campaign damaged. The weights are those after decoding and range guards.

    Exit status: 0 done, 13 if SUBJECT is another, or the trial does not come out as the campaign has it.
    """
    from ckptguard.campaign.replay import WORST
    from ckptguard.campaign.replay import replay as make
    from ckptguard.report import numbers
    from ckptguard.report.table import pairs

    if trial != WORST and not trial.isdecimal():
        raise UsageError(f"--trial {trial!r}: expected a number or {WORST}")
    number = WORST if trial == WORST else int(trial)
    found = make(run, subject, target, point=point, variant=variant, trial=number, select=select, overwrite=force)
    row = found.row
    record = {"command": "replay", "exit_status": 0, "output": str(target), "label": found.point.label}
    output.result(
        record | row.to_json(),
        lambda: (
            pairs(
                [
                    ("point", f"{row.point} ({found.point.label}, {found.point.group})"),
                    ("variant", row.variant),
                    ("trial", str(row.trial)),
                    *((name, numbers.value(value)) for name, value in row.metrics.items()),
                    ("flips", f"{row.counts['flips']:,}, of parity {row.counts['parity_flips']:,}"),
                    ("wrong after decoding", f"{row.counts['residual_bits']:,} bits"),
                    ("changed", f"{row.counts['changed_elements']:,} elements"),
                ]
            )
            + f"\n\nwrote {target}"
        ),
    )
    return 0
