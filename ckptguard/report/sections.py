"""Sections of a page about what a campaign found. Each gives nothing where there is nothing to say."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckptguard.report import findings, html, plots, ticks, views
from ckptguard.report.markup import Child, Markup, element, join
from ckptguard.report.plots import Curves, Plot
from ckptguard.report.run import Cell, Point, Run, mapping, number, records

MOST_ATTRIBUTED = 10
MOST_OPEN_ROWS = 40
"""Longer tables are folded away; those of second rank at half as many rows."""

_CLASSES = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "open"}


def verdict(run: Run) -> Markup:
    """The verdict, or without a limit what was found; and what a reader has to know beside it."""
    outcome, said = findings.outcome(run), findings.verdict(run)
    sentence = findings.headline(run)
    if outcome is None:
        head = element("div", element("p", sentence), class_="verdict none", role="status")
    else:
        asked = element("p", findings.sentence(findings.limit(run)), class_="soft")
        first = element("p", element("span", outcome, class_="outcome"), f" {said}")
        head = join(
            element("div", first, asked, class_=f"verdict {_CLASSES[outcome]}", role="status"), element("p", sentence)
        )
    notes = [element("p", f"Note: {note}.", class_="soft") for note in run.analysis.get("notes", ())]
    return join(head, *notes)


def tiles(run: Run) -> Markup | None:
    """The numbers to know first."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    clean = [value for variant in run.variants if math.isfinite(value := run.clean(variant, metric))]
    cells = [cell for cell in run.cells.values() if cell.metric == metric]
    items = []
    if clean:
        ends = dict.fromkeys(run.say(metric, value) for value in (min(clean), max(clean)))
        items.append((" – ".join(ends), f"{metric} undamaged"))
    items.append((f"{sum(cell.trials for cell in cells):,}", f"trials: {findings.size_of(run)}"))
    items.append((f"{sum(cell.failures for cell in cells):,}", "of them failed"))
    items += _threshold_tile(run)
    return element(
        "ul", *(element("li", element("b", value), element("span", what)) for value, what in items), class_="tiles"
    )


def _threshold_tile(run: Run) -> list[tuple[str, str]]:
    """The threshold error rate of the first judged variant, at 1 % more error where that was computed."""
    names = run.analysis.get("judged") or list(run.variants)
    found = [r for r in _threshold_records(run) if r.get("group", "all") == "all" and r.get("variant") in names]
    if not found:
        return []
    best = min(found, key=lambda record: abs(number(record.get("increase")) - 0.01))
    rate = number(best.get("rate"))
    said = ticks.power(rate) if math.isfinite(rate) else "below all"
    more = 100 * number(best.get("increase"))
    return [
        (said, f"highest error rate with under {more:g} % more error ({best.get('variant')})"),
    ]


def results(run: Run) -> Markup | None:
    """The main figure, the table of all points, the verdicts and the trials."""
    if not run.metrics:
        return None
    metric, points = run.metrics[0], run.of_kind("all")
    plot = views.main(run, metric)
    parts: list[Child] = [html.figure(plot, _caption(run, plot)) if plot else None]
    if points:
        parts += [points_table(run, metric, points), tolerances(run, metric)]
    parts.append(_verdicts(run))
    strips = views.trials(run, metric)
    parts.append(html.figure(strips, _strips_caption(run)) if strips else None)
    return html.section("Function under faults", *parts)


def _strips_caption(run: Run) -> str:
    text = "One dot per trial, a bar at the mean, a broken line at the undamaged model."
    if any(cell.failures for cell in run.cells.values()):
        text += " Numbers beside ✕ count the trials that failed."
    if any(len(rows) > plots.MOST_DOTS for rows in run.rows.values()):
        text += f" Where there are more than {plots.MOST_DOTS} trials, so many of them are drawn, evenly by rank."
    if len(run.variants) > views.MOST_PANELS:
        text += f" The first {views.MOST_PANELS} variants are shown."
    return text


def _caption(run: Run, plot: Plot) -> str:
    said = number(run.analysis.get("confidence", run.campaign.get("confidence")))
    percent = f"{100 * said:g} % " if math.isfinite(said) else ""
    if isinstance(plot, Curves):
        low = "broken lines the 5 % quantile, " if any(line.near_worst for line in plot.lines) else ""
        crosses = (
            ", crosses at the base points with failed trials" if any(any(line.failed) for line in plot.lines) else ""
        )
        worst = f"open arrowheads the worst trial{crosses}"
        return f"Lines are means over trials, bands their {percent}intervals, {low}{worst}."
    return f"Marks are means over trials, bars their {percent}intervals; a cross means that there is no finite mean."


def points_table(run: Run, metric: str, points: Sequence[Point]) -> Markup | None:
    """One row per point and variant; a long table is folded."""
    groups: list[list[Sequence[Child]]] = []
    for point in points:
        cells = [cell for variant in run.variants if (cell := run.cell(point, variant, metric))]
        groups.append([[views.place(point), *_cell_row(run, cell)] for cell in cells])
    heading = ("point", "variant", "mean", "interval", "5 %", "median", "worst", "clean", "trials", "failed")
    found = html.grouped(heading, groups, about=f"{metric} of every point", numeric=range(2, 10))
    return _folded(f"Every point: {metric}", found, groups)


def _folded(
    title: str, table: Markup | None, groups: Sequence[Sequence[object]], most: int = MOST_OPEN_ROWS
) -> Markup | None:
    if table is None:
        return None
    rows = sum(map(len, groups))
    if rows > most:
        return element("details", element("summary", f"{title} ({rows:,} rows)"), table)
    return join(element("h3", title), table)


def _half(title: str, table: Markup | None, groups: Sequence[Sequence[object]]) -> Markup | None:
    """A table of second rank: without its title where it is short."""
    if table is None or sum(map(len, groups)) <= MOST_OPEN_ROWS // 2:
        return table
    return _folded(title, table, groups, 0)


def _cell_row(run: Run, cell: Cell) -> list[Child]:
    say = functools.partial(run.say, cell.metric)
    failed = element("b", str(cell.failures), class_="bad") if cell.failures else "0"
    mean = "failed" if not math.isfinite(cell.mean) and cell.failures else say(cell.mean)
    values = [say(value) for value in (cell.q05, cell.median, cell.worst, cell.clean)]
    return [cell.variant, mean, findings.interval(run, cell) or "–", *values, str(cell.trials), failed]


def tolerances(run: Run, metric: str) -> Markup | None:
    """The distribution-free statements, word for word."""
    groups: list[list[Sequence[Child]]] = [
        [
            [views.place(point), variant, cell.tolerance]
            for variant in run.variants
            if (cell := run.cell(point, variant, metric)) and cell.tolerance
        ]
        for point in run.of_kind("all")
    ]
    found = html.grouped(("point", "variant", "what the trials prove"), groups, about="tolerance statements")
    title = element("summary", "What most devices keep (distribution-free tolerance statements)")
    return element("details", title, found) if found else None


def _verdicts(run: Run) -> Markup | None:
    """Every verdict with what decided it, where there is more than the one in the head."""
    every = records(run.analysis.get("verdicts"))
    if len(every) < 2:
        return None
    names = {point.id: views.place(point) for point in run.points}
    groups: list[list[Sequence[Child]]] = []
    for point in run.points:
        group: list[Sequence[Child]] = []
        for record in every:
            if record.get("point") == point.id:
                outcome = str(record.get("outcome"))
                bounds = f"{ticks.short(number(record.get('low')), 3)} – {ticks.short(number(record.get('high')), 3)}"
                needed = record.get("trials_needed")
                counts = [f"{record.get('within')} of {record.get('trials')}", bounds, str(needed) if needed else "–"]
                strong = element("b", outcome, class_=_CLASSES.get(outcome))
                group.append([names[point.id], str(record.get("variant")), strong, *counts])
        groups.append(group)
    claim = mapping(run.campaign.get("limit")).get("claim")
    bounds_of = "mean change" if claim == "mean" else "share of devices"
    heading = ("point", "variant", "verdict", "trials within", bounds_of, "more trials needed")
    found = html.grouped(heading, groups, about="verdicts", numeric=(3, 4, 5))
    return _folded("Verdicts", found, groups, MOST_OPEN_ROWS // 2)


_COUNTS = (
    ("flips", "flips"),
    ("expected_flips", "expected"),
    ("parity_flips", "in parity"),
    ("codewords", "codewords"),
    ("corrected", "corrected"),
    ("uncorrectable", "uncorrectable"),
    ("miscorrected", "miscorrected"),
    ("residual_bits", "wrong bits left"),
    ("changed_elements", "weights changed"),
    ("nulled", "nulled"),
    ("guarded", "guarded"),
    ("non_finite", "non-finite"),
)


def channel(run: Run) -> Markup | None:
    """What the channel did and what decoding made of it: means per trial, per point and variant."""
    used = [pair for pair in _COUNTS if any(number(row.get(pair[0])) > 0 for rows in run.rows.values() for row in rows)]
    groups: list[list[Sequence[Child]]] = []
    for point in run.points:
        group: list[Sequence[Child]] = []
        for variant in run.variants:
            rows = run.rows.get((point.id, variant), ())
            if rows:
                means = [sum(number(row.get(name, 0)) for row in rows) / len(rows) for name, _ in used]
                group.append([views.place(point), variant, *map(_mean_count, means)])
        groups.append(group)
    heading = ("point", "variant", *(name for _, name in used))
    found = html.grouped(heading, groups, about="flips and decoding, means per trial", numeric=range(2, len(heading)))
    about = (
        "Means per trial. Flips are of weight bits, protected or not; expected is their number by the channel's rate."
    )
    if found is None:
        return None
    return html.section("What the channel did", element("p", about, class_="soft"), _half("Every point", found, groups))


def _mean_count(value: float) -> str:
    if math.isnan(value):
        return "–"
    return (
        f"{value:,.0f}"
        if value >= 1000 or value == round(value)
        else f"{value:,.1f}"
        if value >= 10
        else f"{value:.3g}"
    )


def comparison(run: Run) -> Markup | None:
    """Variants against each other, on the same faults."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    parts: list[Child] = []
    plot = views.comparisons(run, metric)
    if plot:
        better = "right" if run.better_is_higher(metric) else "left"
        about = f"Differences are taken trial by trial, on the same flips; {better} of 0 the first variant is better."
        parts += [html.figure(plot, about), _paired_table(run, metric)]
    cost = views.redundancy(run, metric)
    if cost:
        about = "Redundancy is parity bits over the bits that represent the weights."
        parts.append(html.figure(cost, about))
    return html.section("Variants compared", *parts)


def _paired_table(run: Run, metric: str) -> Markup | None:
    labels = {point.id: views.place(point) for point in run.points}
    rows: list[list[Child]] = []
    for record in records(run.analysis.get("paired")):
        if record.get("metric") == metric:
            interval = mapping(record.get("interval")) or record
            ends = f"{html.say(number(interval.get('low')))} – {html.say(number(interval.get('high')))}"
            counts = [str(record.get(name, "")) for name in ("better", "equal", "worse")]
            names = [
                labels.get(str(record.get("point")), ""),
                f"{record.get('first')} {ticks.MINUS} {record.get('second')}",
            ]
            split, ratio = number(record.get("sign_test")), number(record.get("variance_ratio"))
            rows.append(
                [*names, html.say(number(record.get("mean"))), ends, *counts, html.say(split), ticks.short(ratio, 2)]
            )
    heading = ("point", "difference", "mean", "interval", "above", "equal", "below", "sign test p", "variance ratio")
    found = html.table(heading, rows, about="paired differences", numeric=range(2, 9))
    return (
        element("details", element("summary", "Trials above, equal and below, and the sign test"), found)
        if found
        else None
    )


def _threshold_records(run: Run) -> list[Mapping[str, Any]]:
    metric = run.metrics[0] if run.metrics else None
    return [record for record in records(run.analysis.get("thresholds")) if record.get("metric", metric) == metric]


def thresholds(run: Run) -> Markup | None:
    """Threshold error rates, one row per variant and place, one column per increase of the error."""
    found = _threshold_records(run)
    increases = sorted({number(record.get("increase")) for record in found})
    rows: dict[tuple[str, str], dict[float, str]] = {}
    for record in found:
        key = str(record.get("variant")), str(record.get("group", "all"))
        rows.setdefault(key, {})[number(record.get("increase"))] = _threshold(record)
    body: list[list[Child]] = [
        [
            variant,
            *(["all weights" if group == "all" else group.replace(":", " ")]),
            *(cells.get(i, "–") for i in increases),
        ]
        for (variant, group), cells in rows.items()
    ]
    heading = ("variant", "faults in", *(f"{100 * increase:g} % more error" for increase in increases))
    table = html.table(heading, body, about="threshold error rates", numeric=range(2, len(heading)))
    about = (
        "The largest rate tried up to which the mean error stays within the increase; in brackets where a line to the "
        "next rate meets it."
    )
    rows_shown = _half("Every variant", table, [body])
    return html.section("Threshold error rates", element("p", about, class_="soft"), rows_shown) if body else None


def _threshold(record: Mapping[str, Any]) -> str:
    rate, crossing = number(record.get("rate")), number(record.get("crossing"))
    if not math.isfinite(rate):
        return "below all"
    beyond = "" if math.isfinite(number(record.get("next_rate"))) else "≥ "
    return f"{beyond}{ticks.power(rate)}" + (f" ({ticks.power(crossing)})" if math.isfinite(crossing) else "")


def layers_and_bits(run: Run) -> Markup | None:
    """Layer by layer and bit by bit."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    drawn = [plot for kind in ("layer", "bit", "layer bit") for plot in views.parts(run, kind, metric)]
    count = len({point.layer for point in run.points if point.layer})
    note = f" The {views.MOST_ROWS} of {count} layers that lose most are shown." if count > views.MOST_ROWS else ""
    figures = [
        html.figure(plot, f"Faults hit only the named part; point at a cell or mark for its numbers.{note}")
        for plot in drawn
    ]
    single = [point for point in run.points if point.kind != "all"]
    return html.section("Layer by layer, bit by bit", *figures, points_table(run, metric, single) if single else None)


def attribution(run: Run) -> Markup | None:
    """Which tensors and bit positions cost most, per variant."""
    blocks = []
    for variant, record in mapping(run.analysis.get("attribution")).items():
        parts = [
            _attributed(title, mapping(mapping(record).get(kind)))
            for kind, title in (("tensors", "tensor"), ("bits", "bit"))
        ]
        if any(parts):
            blocks.append(join(element("h3", str(variant)), *parts))
    return html.section("What cost most", *blocks)


_METHODS = {
    "measured": "Mean loss with faults in that part alone, the largest over all rates.",
    "regressed": "Loss of a trial as a sum over parts of wrong bits times a loss per wrong bit that is not negative.",
}


def _attributed(title: str, record: Mapping[str, Any]) -> Markup | None:
    entries = records(record.get("entries"))
    about = _METHODS.get(str(record.get("method")), str(record.get("note") or ""))
    explained = number(record.get("explained"))
    if math.isfinite(explained):
        about += f" It explains {100 * explained:.1f} % of the variance of {record.get('trials')} trials."
    if not entries:
        return element("p", findings.sentence(f"by {title}: {about}"), class_="soft") if about else None
    keys = [key for key in ("share", "loss", "loss_per_flip", "flips") if key in entries[0]]
    body: list[list[Child]] = [
        [
            str(entry.get("name")),
            *(
                _share(number(entry.get(key))) if key == "share" else ticks.short(number(entry.get(key)), 3)
                for key in keys
            ),
        ]
        for entry in entries[:MOST_ATTRIBUTED]
    ]
    names = {
        "share": "share of the loss",
        "loss": "loss",
        "loss_per_flip": "loss per wrong bit",
        "flips": "wrong bits per trial",
    }
    table = html.table(
        [title, *(names[key] for key in keys)],
        body,
        about=f"what cost most, by {title}",
        numeric=range(1, len(keys) + 1),
    )
    more = f" The first {MOST_ATTRIBUTED} of {len(entries)}." if len(entries) > MOST_ATTRIBUTED else ""
    return join(table, element("p", about + more, class_="soft"))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def other_metrics(run: Run) -> Markup | None:
    """The other metrics of the evaluator, folded away."""
    blocks = []
    for metric in run.metrics[1:]:
        plot = views.main(run, metric)
        found = points_table(run, metric, run.points)
        if plot or found:
            figure = html.figure(plot, _caption(run, plot)) if plot else None
            blocks.append(element("details", element("summary", metric), figure, found))
    return html.section("Other metrics", *blocks)
