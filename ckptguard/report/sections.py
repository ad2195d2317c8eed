"""The sections of a campaign's page. Each gives nothing where the campaign has nothing to say about it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckptguard.report import html, numbers, ticks, views
from ckptguard.report.markup import Child, Markup, element, join
from ckptguard.report.run import Cell, Point, Run, mapping, number, records

_OUTCOMES = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "open"}
MOST_ATTRIBUTED = 12
MOST_OPEN_ROWS = 60
"""Longer tables are folded away."""


def headline(run: Run) -> str:
    """What was found, in one sentence, without a verdict."""
    if not run.metrics or not run.cells:
        return "No trial has been evaluated."
    metric, points = run.metrics[0], run.of_kind("all")
    found = [(point, cell) for point in points or run.points for v in run.variants if (cell := run.cell(point, v, metric))]
    if not found:
        return "No trial has been evaluated."
    if not points:
        return _weakest(run, found)
    real = [name for name in run.variants if name not in _oracles(run)] or list(run.variants)
    last = found[-1][0]
    cells = [cell for point, cell in found if point is last and cell.variant in real] or [found[-1][1]]
    best = max(cells, key=lambda cell: _goodness(run, cell))
    bare = next((c for c in cells if c.variant in _unprotected(run) and c is not best), None)
    return _sentence(run, last, best) + (f" Unprotected ({bare.variant}) it is {_mean(run, bare)}." if bare else "")


def _oracles(run: Run) -> set[str]:
    """Variants that no device can have."""
    return {str(v.get("name")) for v in records(run.campaign.get("variants")) if str(v.get("code")) == "ideal"}


def _unprotected(run: Run) -> set[str]:
    every = records(run.campaign.get("variants"))
    return {str(v.get("name")) for v in every if v.get("code", "none") == "none" and not v.get("guard") and not v.get("masks")}


def _weakest(run: Run, found: Sequence[tuple[Point, Cell]]) -> str:
    """The part of the model whose faults cost most."""
    point, cell = min(found, key=lambda pair: _goodness(run, pair[1]))
    where = " of ".join(part for part in (f"bit {point.bit}" if point.bit else "", point.layer) if part)
    return f"Faults in {where} alone cost most. {_sentence(run, point, cell)}"


def _goodness(run: Run, cell: Cell) -> float:
    if not math.isfinite(cell.mean):
        return -math.inf
    return cell.mean if run.better_is_higher(cell.metric) else -cell.mean


def _mean(run: Run, cell: Cell) -> str:
    if math.isfinite(cell.mean):
        return run.say(cell.metric, cell.mean)
    return "failed in every trial" if cell.failures == cell.trials else f"failed in {cell.failures} of {cell.trials} trials"


def _sentence(run: Run, point: Point, cell: Cell) -> str:
    """A sentence about one cell."""
    say = functools.partial(run.say, cell.metric)
    if not math.isfinite(cell.mean):
        return f"At {point_name(point)} {cell.variant} {_mean(run, cell)}; undamaged it has a {cell.metric} of {say(cell.clean)}."
    interval = interval_text(run, cell)
    return (
        f"At {point_name(point)} {cell.variant} has a mean {cell.metric} of {say(cell.mean)}"
        f"{f' ({interval})' if interval else ''}, {say(cell.worst)} in the worst of {cell.trials} trials, "
        f"and {say(cell.clean)} undamaged."
    )


def interval_text(run: Run, cell: Cell) -> str:
    """`80.1 – 80.9`, or nothing where no interval is known."""
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return ""
    return f"{run.say(cell.metric, cell.low)} – {run.say(cell.metric, cell.high)}"


def point_name(point: Point) -> str:
    """A point in a sentence."""
    if point.device:
        return f"{point.device.get('name', 'the device')}, {point.label}" if point.label != point.device.get("name") else point.label
    return f"error rate {ticks.power(point.ber)}" if point.ber else point.label


def verdict(run: Run) -> Markup:
    """The verdict on every variant that was judged, or what was found."""
    found = [*records(run.analysis.get("verdicts")), *records([run.analysis.get("verdict")])]
    if not found:
        return element("div", element("p", headline(run)), class_="verdict none", role="status")
    labels = {point.id: point_name(point) for point in run.points}
    blocks = []
    for record in found:
        outcome = str(record.get("outcome", "INCONCLUSIVE"))
        at = labels.get(str(record.get("point")), "")
        who = " at ".join(part for part in (str(record.get("variant") or ""), at) if part)
        blocks.append(
            element(
                "div",
                element("p", element("span", outcome, class_="outcome"), f" {who}" if who else None),
                element("p", _upper(str(record.get("text", "")))),
                class_=f"verdict {_OUTCOMES.get(outcome, 'open')}",
                role="status",
            )
        )
    return join(*blocks, element("p", headline(run)))


def _upper(sentence: str) -> str:
    text = sentence[:1].upper() + sentence[1:]
    return text if not text or text.endswith(".") else f"{text}."


def size_of(run: Run) -> str:
    """`9 points × 3 variants`."""
    return f"{numbers.count(len(run.points), 'point')} × {numbers.count(len(run.variants), 'variant')}"


def tiles(run: Run) -> Markup | None:
    """The numbers to know first."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    clean = [value for variant in run.variants if math.isfinite(value := run.clean(variant, metric))]
    cells = [cell for cell in run.cells.values() if cell.metric == metric]
    failures = sum(cell.failures for cell in cells)
    trials = sum(cell.trials for cell in cells)
    items = []
    if clean:
        ends = dict.fromkeys(run.say(metric, value) for value in (min(clean), max(clean)))
        span = " – ".join(ends)
        items.append((span, f"{metric} undamaged"))
    items.append((f"{trials:,}", f"trials: {size_of(run)}"))
    items.append((f"{failures:,}", "failed (NaN, infinite or refused)"))
    thresholds = [r for r in records(run.analysis.get("thresholds")) if math.isfinite(number(r.get("rate")))]
    if thresholds:
        best = max(thresholds, key=lambda r: number(r.get("rate")))
        increase = 100 * number(best.get("increase"))
        items.append((ticks.power(number(best["rate"])), f"highest error rate with under {increase:g} % more error ({best.get('variant')})"))
    return element("ul", *(element("li", element("b", value), element("span", what)) for value, what in items), class_="tiles")


def identity(run: Run) -> Markup | None:
    """What was tested, with what, so that anyone can tell whether two reports speak of the same."""
    campaign = run.campaign
    subject, said = mapping(campaign.get("subject")), mapping(campaign.get("identity"))
    rows: list[tuple[str, Child]] = [
        ("checkpoint", str(subject.get("name") or "")),
        ("digest", code(said.get("digest") or subject.get("digest"))),
        ("size", _size(subject)),
        ("evaluator", code(_flat(campaign.get("evaluator")))),
        ("metric", _metric(run)),
        ("seed", _flat(campaign.get("seed"))),
        ("trials", _trials(run)),
        ("tool", _flat(campaign.get("tool"))),
    ]
    known = {"digest"}
    rows += [(name.replace("_", " "), _flat(value)) for name, value in said.items() if name not in known and _flat(value)]
    return html.section("What was tested", html.facts(rows), variants(run), devices(run))


def _size(subject: Mapping[str, Any]) -> str:
    parts = []
    for name, unit in (("tensor_count", "tensors"), ("elements", "weights"), ("bits", "bits")):
        value = subject.get(name)
        if isinstance(value, int):
            parts.append(f"{value:,} {unit}")
    tensors = subject.get("tensors")
    if isinstance(tensors, (list, tuple, Mapping)) and "tensor_count" not in subject:
        parts.insert(0, f"{len(tensors):,} tensors")
    return ", ".join(parts)


def _metric(run: Run) -> str:
    if not run.metrics:
        return ""
    better = "higher" if run.better_is_higher(run.metrics[0]) else "lower"
    others = f"; also {', '.join(run.metrics[1:])}" if run.metrics[1:] else ""
    return f"{run.metrics[0]} ({better} is better){others}"


def _trials(run: Run) -> str:
    counts = sorted({cell.trials for cell in run.cells.values()})
    if not counts:
        return _flat(run.campaign.get("trials"))
    return f"{counts[0]} per point and variant" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} per point and variant"


def code(value: object) -> Markup | None:
    """Text as code, or nothing."""
    return element("code", str(value)) if value not in (None, "") else None


def _flat(value: Any) -> str:
    """Any JSON value on one line."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return ticks.short(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(item)}" for name, item in value.items() if _flat(item))
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(item) for item in value)
    return str(value)


def variants(run: Run) -> Markup | None:
    """How each variant stores and protects the weights."""
    rows = []
    for variant in records(run.campaign.get("variants")):
        name = str(variant.get("name"))
        costs = {cell.redundancy for cell in run.cells.values() if cell.variant == name and math.isfinite(cell.redundancy)}
        masks = variant.get("masks")
        rows.append(
            [
                name,
                str(variant.get("representation", "")),
                "–" if not masks else masks if isinstance(masks, str) else str(mapping(masks).get("digest") or "mask set"),
                str(variant.get("code", "")),
                str(variant.get("policy", "")),
                "yes" if variant.get("guard") else "no",
                ticks.short(costs.pop()) if len(costs) == 1 else "–",
            ]
        )
    heading = ("variant", "stored as", "mask", "code", "uncorrectable", "range guard", "redundancy r")
    found = html.table(heading, rows, about="variants", numeric=(6,))
    return join(element("h3", "Variants"), found) if found else None


def devices(run: Run) -> Markup | None:
    """The devices and their operating points, with where the numbers come from."""
    seen: dict[str, list[Child]] = {}
    for point in run.points:
        found = point.device or {}
        for device in found.values() if found and all(isinstance(v, Mapping) for v in found.values()) else [found]:
            if device:
                seen.setdefault(
                    _flat(device),
                    [
                        str(device.get("name") or device.get("profile") or ""),
                        _flat(device.get("operating_point") or device.get("point")),
                        _flat(device.get("channel")),
                        _flat(device.get("confidence")),
                        _flat(device.get("source")),
                    ],
                )
    heading = ("device", "operating point", "channel", "confidence", "source")
    found_table = html.table(heading, list(seen.values()), about="devices")
    return join(element("h3", "Devices"), found_table) if found_table else None


def results(run: Run) -> Markup | None:
    """The main figure and the table of all points."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    plot = views.main(run, metric)
    parts: list[Child] = [html.figure(plot, _caption(run, plot)) if plot else None]
    if run.of_kind("all"):
        parts += [points_table(run, metric, run.of_kind("all")), tolerances(run, metric)]
    strips = views.trials(run, metric)
    if strips:
        more = " Where a point has more than 120 trials, 120 of them are drawn, evenly by rank." if _many(run) else ""
        shown = f" The first {views.MOST_PANELS} variants are shown." if len(run.variants) > views.MOST_PANELS else ""
        text = f"One dot per trial, a bar at the mean, a broken line at the undamaged model; ✕ counts trials that failed.{more}{shown}"
        parts.append(html.figure(strips, text))
    return html.section("Function under faults", *parts)


def _many(run: Run) -> bool:
    return any(len(rows) > 120 for rows in run.rows.values())


def _caption(run: Run, plot: Any) -> str:
    confidence = number(mapping(run.campaign.get("statistics")).get("confidence", run.campaign.get("confidence", 0.95)))
    percent = f"{100 * confidence:g} %"
    if isinstance(plot, views.Curves):
        low = "broken lines the 5 % quantile, " if any(line.near_worst for line in plot.lines) else ""
        return f"Lines are means over trials, bands their {percent} intervals, {low}open arrowheads the worst trial, crosses at the base points with failed trials."
    return f"Marks are means over trials, bars their {percent} intervals; a cross means that there is no finite mean."


def points_table(run: Run, metric: str, points: Sequence[Point]) -> Markup | None:
    """One row per point and variant; a long table is folded."""
    groups: list[list[Sequence[Child]]] = []
    for point in points:
        cells = [cell for variant in run.variants if (cell := run.cell(point, variant, metric))]
        groups.append([[views.place(point), *_cell_row(run, cell)] for cell in cells])
    heading = ("point", "variant", "mean", "interval", "5 %", "median", "worst", "clean", "trials", "failed")
    return _folded(f"Every point: {metric}", html.grouped(heading, groups, about=f"{metric} of every point", numeric=range(2, 10)), groups)


def _folded(title: str, table: Markup | None, groups: Sequence[Sequence[object]]) -> Markup | None:
    if table is None:
        return None
    if sum(map(len, groups)) > MOST_OPEN_ROWS:
        return element("details", element("summary", f"{title} ({sum(map(len, groups)):,} rows)"), table)
    return join(element("h3", title), table)


def _cell_row(run: Run, cell: Cell) -> list[Child]:
    say = functools.partial(run.say, cell.metric)
    failed = element("b", str(cell.failures), class_="bad") if cell.failures else "0"
    mean = "failed" if not math.isfinite(cell.mean) and cell.failures else say(cell.mean)
    numbers = [say(value) for value in (cell.q05, cell.median, cell.worst, cell.clean)]
    return [cell.variant, mean, interval_text(run, cell) or "–", *numbers, str(cell.trials), failed]


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
    found = html.grouped(("point", "variant", "what holds for most devices"), groups, about="tolerance statements")
    title = element("summary", "What the trials prove about most devices (distribution-free tolerance statements)")
    return element("details", title, found) if found else None


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
    about = "Means per trial. Flips are those of protected and unprotected weight bits; expected is their number by the channel's rate."
    return html.section("What the channel did", element("p", about, class_="soft"), _folded("Every point", found, groups))


def _mean_count(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def comparison(run: Run) -> Markup | None:
    """Variants against each other, on the same faults."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    parts: list[Child] = []
    plot = views.comparisons(run, metric)
    if plot:
        parts.append(html.figure(plot, "Differences are taken trial by trial between variants that met the same flips; right of 0 the first has the larger value."))
        parts.append(_paired_table(run, metric))
    cost = views.redundancy(run, metric)
    if cost:
        parts.append(html.figure(cost, "Redundancy is parity bits over the bits that represent the weights; variants without parity stand at the left end."))
    parts.append(_thresholds(run))
    return html.section("Variants compared", *parts)


def _paired_table(run: Run, metric: str) -> Markup | None:
    labels = {point.id: views.place(point) for point in run.points}
    rows: list[list[Child]] = []
    for record in records(run.analysis.get("paired")):
        if record.get("metric") == metric:
            interval = mapping(record.get("interval")) or record
            ends = f"{html.say(number(interval.get('low')))} to {html.say(number(interval.get('high')))}"
            counts = [_flat(record.get(name)) for name in ("better", "equal", "worse")]
            names = [labels.get(str(record.get("point")), ""), f"{record.get('first')} − {record.get('second')}"]
            rows.append([*names, html.say(number(record.get("mean"))), ends, *counts, html.say(number(record.get("sign_test")))])
    heading = ("point", "difference", "mean", "interval", "above", "equal", "below", "sign test p")
    found = html.table(heading, rows, about="paired differences", numeric=range(2, 8))
    return element("details", element("summary", "Trials above, equal and below, and the sign test"), found) if found else None


def _thresholds(run: Run) -> Markup | None:
    rows: list[list[Child]] = []
    for record in records(run.analysis.get("thresholds")):
        rate, following, crossing = (number(record.get(name)) for name in ("rate", "next_rate", "crossing"))
        rows.append(
            [
                str(record.get("variant", "")),
                f"{100 * number(record.get('increase')):g} %",
                ticks.power(rate) if math.isfinite(rate) else "below the grid",
                ticks.power(following) if math.isfinite(following) else "beyond the grid",
                ticks.power(crossing) if math.isfinite(crossing) else "–",
            ]
        )
    heading = ("variant", "more error than clean", "holds up to", "fails at", "interpolated")
    found = html.table(heading, rows, about="threshold error rates", numeric=(1, 2, 3, 4))
    return join(element("h3", "Threshold error rates"), found) if found else None


def layers_and_bits(run: Run) -> Markup | None:
    """Layer by layer and bit by bit."""
    if not run.metrics:
        return None
    metric = run.metrics[0]
    plots = [plot for kind in ("layer", "bit", "layer bit") for plot in views.parts(run, kind, metric)]
    count = len({point.layer for point in run.of_kind("layer")})
    note = f" The {views.MOST_ROWS} of {count} layers that lose most are shown." if count > views.MOST_ROWS else ""
    captions = [f"Faults hit only the named part; point at a cell or mark for its numbers.{note}" for _ in plots]
    figures = [html.figure(*pair) for pair in zip(plots, captions, strict=True)]
    single = [point for point in run.points if point.kind != "all"]
    return html.section("Layer by layer, bit by bit", *figures, points_table(run, metric, single) if single else None)


def attribution(run: Run) -> Markup | None:
    """Which tensors and bit positions cost most."""
    found = mapping(run.analysis.get("attribution"))
    parts: list[Child] = []
    for name, title in (("tensors", "Tensors"), ("bits", "Bit positions"), ("items", "Tensor and bit")):
        rows = records(found.get(name))[:MOST_ATTRIBUTED]
        keys = [key for key in (rows[0] if rows else {}) if any(_flat(row.get(key)) for row in rows)]
        body: list[list[Child]] = [[_flat(row.get(key)) for key in keys] for row in rows]
        numeric = [i for i, key in enumerate(keys) if i and all(isinstance(row.get(key), (int, float)) for row in rows)]
        shown = html.table([key.replace("_", " ") for key in keys], body, about=title, numeric=numeric)
        parts.append(join(element("h3", title), shown) if shown else None)
    text = str(found.get("text") or "")
    return html.section("What cost most", element("p", text, class_="soft") if text and any(parts) else None, *parts)


def checks(run: Run) -> Markup | None:
    """What was checked before any number was printed."""
    items = []
    found = run.campaign.get("checks")
    pairs: Sequence[tuple[str, Any]] = (
        list(found.items()) if isinstance(found, Mapping) else [(str(r.get("name", "")), r) for r in records(found)]
    )
    for name, value in pairs:
        record = mapping(value)
        passed = record.get("passed", value if isinstance(value, bool) else None)
        said = str(record.get("text") or record.get("detail") or ("" if isinstance(value, bool) else "" if record else _flat(value)))
        state = {True: "passed", False: "missed"}.get(passed, "skipped") if isinstance(passed, bool) else "skipped"
        word = {"passed": "passed", "missed": "FAILED", "skipped": "not run"}[state]
        label = name.replace("_", " ")
        items.append(element("li", element("b", label), f": {said or word}", class_=state))
    if not items:
        return None
    return html.section("Checks before any number was printed", element("ul", *items, class_="checks"))


def rates(run: Run) -> Markup | None:
    """Failures in time, with every assumption."""
    found = run.analysis.get("rates")
    blocks: list[Child] = []
    for record in records(found) or records([found]):
        name = " at ".join(str(record[key]) for key in ("variant", "label") if record.get(key))
        fit = _with_bounds(record, "fit")
        rows: list[tuple[str, Child]] = [
            ("failures", f"{_flat(record.get('failures'))} of {_flat(record.get('trials'))} trials" if "trials" in record else ""),
            ("FIT", f"{fit} failures per 10⁹ device hours" if fit else ""),
            ("mean time to failure", _hours(record.get("mean_hours"), record.get("mean_hours_low"))),
            ("first failure in fleet", f"at least {_duration(number(record.get('fleet_hours')))} among {record.get('devices')} devices" if record.get("devices") else ""),
        ]
        assumptions = [element("li", str(line)) for line in record.get("assumptions", ()) if line]
        blocks.append(join(element("h3", name) if name else None, html.facts(rows)))
        blocks.append(join(element("p", "This holds if:", class_="soft"), element("ul", *assumptions)) if assumptions else None)
    return html.section("Failures in time", *blocks)


def _with_bounds(record: Mapping[str, Any], name: str) -> str:
    value, low, high = (number(record.get(key)) for key in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return ""
    return ticks.short(value) + (f" ({ticks.short(low)} to {ticks.short(high)})" if not math.isnan(low + high) else "")


def _hours(mean: Any, low: Any) -> str:
    if math.isnan(number(mean)):
        return ""
    least = f", at least {_duration(number(low))}" if math.isfinite(number(low)) else ""
    return f"{_duration(number(mean)) if math.isfinite(number(mean)) else 'no failure seen'}{least}"


def _duration(hours: float) -> str:
    for unit, size in (("years", 8766.0), ("days", 24.0), ("hours", 1.0)):
        if hours >= 2 * size or unit == "hours":
            return f"{ticks.short(hours / size, 3)} {unit}"
    return ""


def other_metrics(run: Run) -> Markup | None:
    """The other metrics of the evaluator, folded away."""
    blocks = []
    for metric in run.metrics[1:]:
        plot = views.main(run, metric)
        found = points_table(run, metric, run.points)
        if plot or found:
            figure = html.figure(plot) if plot else None
            blocks.append(element("details", element("summary", metric), figure, found))
    return html.section("Other metrics", *blocks)


def reproduce(run: Run) -> Markup | None:
    """The command that gives the same numbers again."""
    command = run.campaign.get("command") or mapping(run.campaign.get("identity")).get("command")
    if not command:
        return None
    text = command if isinstance(command, str) else " ".join(map(str, command))
    note = "The same command gives the same results.jsonl, byte for byte, for any number of workers."
    return html.section("To reproduce", element("pre", element("code", text)), element("p", note, class_="soft"))


def words() -> Markup:
    """What the words of the page mean."""
    return element(
        "footer",
        element(
            "p",
            "A trial is one corrupted checkpoint, evaluated whole; intervals are over trials, never over inputs. "
            "A trial fails if the metric is NaN or infinite, or if the policy refused the checkpoint. "
            "The 5 % quantile is of the trials seen. Variants at one point meet the same flips.",
        ),
    )
