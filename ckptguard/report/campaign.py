"""What `sweep` prints when it is done: the verdict, then a short table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckptguard.report import findings, numbers, ticks
from ckptguard.report.run import Cell, Point, Row, Run, build
from ckptguard.report.table import MOST_ROWS, table


def text(campaign: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """The outcome, one row per point and variant, what was compared, and notes.

    Args:
        campaign: as campaign.json holds it, with its analysis.
        rows: as results.jsonl holds them; their statistics are those of the analysis.
    """
    run = build(campaign, rows)
    said = [part for part in (findings.outcome(run), findings.verdict(run) or findings.headline(run)) if part]
    blocks = [": ".join(said)]
    if run.metrics and run.cells:
        blocks.append(_points(run, run.metrics[0]))
    notes = [str(note) for note in run.analysis.get("notes", ())]
    return ticks.keyboard("\n\n".join([*blocks, *(f"note: {note}" for note in notes)]))


def _points(run: Run, metric: str) -> str:
    """A row per point and variant; the worst layers or bits where there are more than fit."""
    found = [(p, cell) for p in run.points for v in run.variants if (cell := run.cell(p, v, metric))]
    shown = _kept(run, found)
    failing = any(cell.failures for _, cell in shown)
    single = len(run.variants) == 1
    heading = ["point", "variant", f"mean {metric}", "interval", "5 %", "worst", "trials", "failed", "redundancy"]
    body, before = [], ""
    for point, cell in shown:
        place = ", ".join(filter(None, [point.layer, f"bit {point.bit}" if point.bit else "", point.label]))
        ends = ticks.keyboard(findings.interval(run, cell)) or "-"
        cells = [
            place if place != before else "",
            cell.variant,
            run.say(metric, cell.mean),
            ends,
        ]
        cells += [run.say(metric, cell.q05), run.say(metric, cell.worst), numbers.count(cell.trials)]
        cells += [numbers.count(cell.failures), numbers.value(cell.redundancy)]
        body.append(cells)
        before = place
    left_out = {1} if single else set()
    left_out |= set() if failing else {7}
    keep = [i for i in range(len(heading)) if i not in left_out]
    clean = dict.fromkeys(run.say(metric, run.clean(variant, metric)) for variant in run.variants)
    lines = [[row[i] for i in keep] for row in body]
    more = table([heading[i] for i in keep], lines, hidden=len(found) - len(shown))
    return f"{more}\n\n  clean {metric}: {', '.join(clean)}"


def _kept(run: Run, found: Sequence[tuple[Point, Cell]]) -> Sequence[tuple[Point, Cell]]:
    """All that fit; of more, those of the judged variants and then those that lose most, in their order."""
    if len(found) <= MOST_ROWS:
        return found
    names = run.analysis.get("judged") or run.variants
    worst = sorted(found, key=lambda pair: (pair[1].variant not in names, findings.goodness(run, pair[1])))[:MOST_ROWS]
    chosen = {(point.id, cell.variant) for point, cell in worst}
    return [(point, cell) for point, cell in found if (point.id, cell.variant) in chosen]
