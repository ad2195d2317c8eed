"""Which figures a run has, and what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckptguard.report import ticks
from ckptguard.report.plots import (
    Axis,
    Column,
    Curves,
    Dots,
    Entry,
    Heat,
    Line,
    Panel,
    Plot,
    Rule,
    Span,
    Strips,
    frontier,
    rate_axis,
    value_axis,
)
from ckptguard.report.run import Cell, Point, Run, differences, mapping, number, records

RATE = "bit error rate (per stored bit)"
MOST_ROWS = 48
"""Layers in a heat map; those that lose most are shown where there are more."""

MOST_PANELS = 6


def main(run: Run, metric: str) -> Plot | None:
    """The figure the run is about: curves over the error rate, or where there is no rate one row per point."""
    points = run.of_kind("all")
    if len({point.ber for point in points if point.ber}) >= 2 and not any(point.device for point in points):
        return over_rate(
            run, [point for point in points if point.ber], metric, f"rate-{metric}", f"{metric} against error rate"
        )
    return rows(run, points, metric, f"points-{metric}", f"{metric} of every point") if points else None


def over_rate(run: Run, points: Sequence[Point], metric: str, name: str, title: str) -> Curves:
    """Mean with interval, 5 % quantile and worst of every variant over the error rate."""
    points = sorted(points, key=lambda point: point.ber or 0.0)
    lines = [_line(run, i, variant, points, metric) for i, variant in enumerate(run.variants)]
    rules = _clean_rules(run, metric)
    seen = [
        value for line in lines for part in (line.y, line.worst, line.near_worst, line.low, line.high) for value in part
    ]
    y = value_axis(metric, [*_clip(seen), *(rule.value for rule in rules)])
    x = rate_axis(RATE, [point.ber or math.nan for point in points])
    about = f"{metric} of {len(lines)} variants at {len(points)} error rates; the same numbers are in the table below."
    return Curves(name, title, about, x, y, tuple(lines), tuple(rules))


def _line(run: Run, series: int, variant: str, points: Sequence[Point], metric: str) -> Line:
    cells = [run.cell(point, variant, metric) for point in points]

    def all_of(part: str) -> tuple[float, ...]:
        return tuple(getattr(cell, part) if cell else math.nan for cell in cells)

    return Line(
        variant,
        series,
        tuple(point.ber or math.nan for point in points),
        all_of("mean"),
        all_of("low"),
        all_of("high"),
        all_of("q05"),
        all_of("worst"),
        tuple(cell.failures / cell.trials if cell and cell.trials else 0.0 for cell in cells),
        tuple(note(run, point, variant, cell) for point, cell in zip(points, cells, strict=True)),
    )


def note(run: Run, point: Point, variant: str, cell: Cell | None) -> str:
    """One line about a point of a figure."""
    if cell is None:
        return f"{variant} at {place(point)}: no trials"
    metric = cell.metric
    parts = [f"{variant} at {place(point)}: mean {run.say(metric, cell.mean)}"]
    if math.isfinite(cell.low) and math.isfinite(cell.high):
        parts.append(f"({run.say(metric, cell.low)} to {run.say(metric, cell.high)}),")
    parts.append(f"worst {run.say(metric, cell.worst)}, {cell.trials} trials")
    if cell.failures:
        parts.append(f"{cell.failures} failed")
    return " ".join(parts)


def place(point: Point) -> str:
    """A point in a few words: how strong its faults are, and where."""
    parts = [part for part in (point.layer, f"bit {point.bit}" if point.bit else "") if part]
    return ", ".join([*parts, ticks.power(point.ber) if point.ber and not point.device else point.label])


def _clean_rules(run: Run, metric: str) -> list[Rule]:
    """One neutral line if all variants are equal undamaged, else one per variant in its colour; and the limit."""
    clean = [run.clean(variant, metric) for variant in run.variants]
    finite = [value for value in clean if math.isfinite(value)]
    rules = []
    if finite and max(finite) - min(finite) <= 1e-9 * max(1.0, abs(finite[0])):
        rules.append(Rule(finite[0], f"clean {run.say(metric, finite[0])}"))
    else:
        rules += [Rule(value, "", i) for i, value in enumerate(clean) if math.isfinite(value)]
    limit = mapping(run.campaign.get("limit"))
    if finite and limit.get("metric") == metric and math.isfinite(number(limit.get("change"))):
        value = finite[0] + number(limit["change"])
        rules.append(Rule(value, f"limit {run.say(metric, value)}", below=True))
    return rules


def _clip(values: Sequence[float]) -> list[float]:
    """Finite values without explosions: a metric that may grow without bound would flatten all others."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return []
    middle = finite[len(finite) // 2]
    spread = max(abs(finite[int(0.9 * (len(finite) - 1))] - middle), abs(middle), 1e-12)
    return [value for value in finite if abs(value - middle) <= 20 * spread]


def rows(run: Run, points: Sequence[Point], metric: str, name: str, title: str) -> Dots:
    """One row per point, one value with interval per variant."""
    entries = []
    for point in points:
        cells = [run.cell(point, variant, metric) for variant in run.variants]
        marks = tuple((i, c.mean, c.low, c.high) for i, c in enumerate(cells) if c)
        notes = tuple(note(run, point, v, c) for v, c in zip(run.variants, cells, strict=True) if c)
        entries.append(Entry(point.part or point.label, marks, notes))
    rules = [rule for rule in _clean_rules(run, metric) if rule.series is None]
    numbers = [v for entry in entries for _, *values in entry.points for v in values]
    x = value_axis(metric, [*_clip(numbers), *(rule.value for rule in rules)])
    about = f"Mean {metric} with its interval, one row for each of {len(entries)} points."
    return Dots(name, title, about, x, tuple(entries), tuple(enumerate(run.variants)), tuple(rules))


def trials(run: Run, metric: str) -> Strips | None:
    """Every trial of the points about all weights."""
    points = run.of_kind("all")
    panels = []
    for i, variant in enumerate(run.variants[:MOST_PANELS]):
        columns = tuple(_column(run, point, variant, metric) for point in points)
        clean = run.clean(variant, metric)
        rules = (Rule(clean, ""),) if math.isfinite(clean) else ()
        if any(column.values or column.failed for column in columns):
            panels.append(Panel(variant, i, columns, rules))
    if not panels:
        return None
    seen = [v for panel in panels for column in panel.columns for v in column.values]
    seen += [column.mean for panel in panels for column in panel.columns]
    y = value_axis(metric, [*_clip(seen), *(rule.value for panel in panels for rule in panel.rules)])
    with_rate = all(point.ber and not point.device for point in points)
    names = tuple(place(point) for point in points)
    x = Axis(RATE if with_rate else "point", -0.6, len(points) - 0.4, names=names)
    about = f"One dot per trial: {metric} of {len(panels)} variants at {len(points)} points; a bar is the mean."
    return Strips(f"trials-{metric}", f"{metric} of every trial", about, x, y, tuple(panels))


def _column(run: Run, point: Point, variant: str, metric: str) -> Column:
    values = run.values(point, variant, metric)
    finite = tuple(value for value in values if math.isfinite(value))
    cell = run.cell(point, variant, metric)
    ends = (cell.mean, cell.low, cell.high) if cell else (math.nan,) * 3
    return Column(finite, len(values) - len(finite), *ends)


def parts(run: Run, kind: str, metric: str) -> list[Plot]:
    """Layer by layer (`layer`) or bit by bit (`bit`): a heat map per variant over several rates, else one figure."""
    points = run.of_kind(kind)
    if not points:
        return []
    strengths = list(dict.fromkeys(strength(point) for point in points))
    if kind == "layer bit":
        maps = [_layers_by_bits(run, i, s, points, metric) for s in strengths for i in range(len(run.variants))]
        return [found for found in maps if found is not None]
    if len(strengths) > 1:
        maps = [_loss_map(run, i, kind, points, strengths, metric) for i in range(len(run.variants))]
        return [found for found in maps if found is not None]
    if kind == "bit":
        return [_by_bit(run, points, metric)]
    return [rows(run, points, metric, f"layers-{metric}", f"{metric} with faults in one layer at {strengths[0]}")]


def strength(point: Point) -> str:
    """How strong the faults of a point are, without where they are."""
    if point.device:
        return point.label
    if point.ber is not None:
        return ticks.power(point.ber)
    return ", ".join(dict.fromkeys(point.faults.values())) or point.label


def _loss_map(
    run: Run, series: int, kind: str, points: Sequence[Point], strengths: Sequence[str], metric: str
) -> Heat | None:
    variant, higher = run.variants[series], run.better_is_higher(metric)
    found: dict[tuple[str, str], float] = {}
    for point in points:
        cell = run.cell(point, variant, metric)
        if cell is not None:
            lost = differences(cell.clean, cell.mean, higher)
            found[point.part, strength(point)] = lost if math.isfinite(lost) else math.inf
    if not found:
        return None
    names = list(dict.fromkeys(point.part for point in points))
    what, label = kind, "bit (0 = most significant)"
    if kind == "bit":
        names.sort(key=_bit_order)
        grid = tuple(tuple(found.get((name, s), math.nan) for name in names) for s in strengths)
        side, top, spans = tuple(strengths), tuple(names), fields(run, names)
    else:
        names = _most_lost(names, strengths, found)
        grid = tuple(tuple(found.get((name, s), math.nan) for s in strengths) for name in names)
        side, top, spans, label = tuple(names), tuple(strengths), (), RATE
    title = f"{variant}: {metric} lost with faults in one {what}"
    about = f"Rows and columns: {what}s and error rates; colour: mean loss of {metric} against the clean model."
    return Heat(
        f"{what}s-{metric}-{series}", title, about, side, top, grid, f"mean loss of {metric}", what, label, spans=spans
    )


def _layers_by_bits(run: Run, series: int, at: str, points: Sequence[Point], metric: str) -> Heat | None:
    """Layers x bits at one strength of faults."""
    variant, found = run.variants[series], dict[tuple[str, str], float]()
    for point in points:
        cell = run.cell(point, variant, metric)
        if cell is not None and strength(point) == at:
            lost = differences(cell.clean, cell.mean, run.better_is_higher(metric))
            found[point.layer, point.bit] = lost if math.isfinite(lost) else math.inf
    if not found:
        return None
    bits = sorted({bit for _, bit in found}, key=_bit_order)
    layers = _most_lost(list(dict.fromkeys(layer for layer, _ in found)), bits, found)
    grid = tuple(tuple(found.get((layer, bit), math.nan) for bit in bits) for layer in layers)
    title = f"{variant}: {metric} lost with faults in one bit position of one layer at {at}"
    about = f"Rows: layers, columns: bit positions; colour: mean loss of {metric} against the clean model."
    label, name = "bit (0 = most significant)", f"layer-bits-{metric}-{series}-{at}"
    return Heat(
        name,
        title,
        about,
        tuple(layers),
        tuple(bits),
        grid,
        f"mean loss of {metric}",
        "layer",
        label,
        spans=fields(run, bits),
    )


def _most_lost(names: list[str], strengths: Sequence[str], found: dict[tuple[str, str], float]) -> list[str]:
    if len(names) <= MOST_ROWS:
        return names
    worst = {name: max(found.get((name, s), -math.inf) for s in strengths) for name in names}
    kept = set(sorted(names, key=lambda name: -worst[name])[:MOST_ROWS])
    return [name for name in names if name in kept]


def _bit_order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 30, name)


def _by_bit(run: Run, points: Sequence[Point], metric: str) -> Curves:
    """The metric over the bit position at one error rate."""
    points = sorted(points, key=lambda point: _bit_order(point.part))
    bits = [float(point.part) if point.part.isdecimal() else float(i) for i, point in enumerate(points)]
    base = over_rate(
        run, points, metric, f"bits-{metric}", f"{metric} with faults in one bit position at {strength(points[0])}"
    )
    lines = []
    for i, variant in enumerate(run.variants):
        line = _line(run, i, variant, points, metric)
        lines.append(
            Line(variant, i, tuple(bits), line.y, line.low, line.high, (), line.worst, line.failed, line.notes)
        )
    x = Axis("bit position (0 = most significant)", min(bits) - 0.6, max(bits) + 0.6, whole=True)
    names = [str(int(bit)) for bit in bits]
    spans = tuple(Span(s.low - 0.5, s.high - 0.5, s.label) for s in fields(run, names))
    return Curves(base.name, base.title, base.description, x, base.y, tuple(lines), base.rules, spans)


_FIELDS = {"F64": 11, "F32": 8, "F16": 5, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 5}


def fields(run: Run, names: Sequence[str]) -> tuple[Span, ...]:
    """Sign, exponent and fraction where all weights that were hit are of one floating format."""
    subject = mapping(run.campaign.get("subject"))
    dtypes = set(subject.get("dtypes", ())) or {str(t.get("dtype")) for t in mapping(subject.get("tensors")).values()}
    if len(dtypes) != 1 or [str(i) for i in range(len(names))] != list(names):
        return ()
    exponent = _FIELDS.get(str(next(iter(dtypes))), 0)
    if not exponent:
        return ()
    return (Span(0, 1, "sign"), Span(1, 1 + exponent, "exponent"), Span(1 + exponent, len(names), "fraction"))


def redundancy(run: Run, metric: str) -> Curves | None:
    """What each variant costs against what it keeps, at the point that tells the variants apart most."""
    points = [p for p in run.of_kind("all") if all(run.cell(p, v, metric) for v in run.variants)]
    if not points:
        return None
    point = max(points, key=lambda p: _spread([c.mean for v in run.variants if (c := run.cell(p, v, metric))]))
    cells = [run.cell(point, v, metric) for v in run.variants]
    known = [cell for cell in cells if cell and math.isfinite(cell.redundancy) and math.isfinite(cell.mean)]
    if len({cell.redundancy for cell in known}) < 2:
        return None
    methods = [(cell.variant, [(cell.redundancy, cell.mean, cell.low, cell.high)]) for cell in known]
    clean = {run.clean(cell.variant, metric) for cell in known}
    return frontier(
        methods,
        name=f"redundancy-{metric}",
        title=f"Redundancy against {metric} at {place(point)}",
        y_label=metric,
        clean=clean.pop() if len(clean) == 1 else None,
        description=f"Each variant once: its redundancy and its mean {metric} with interval at {place(point)}.",
    )


def _spread(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return max(finite) - min(finite) if finite else -1.0


def comparisons(run: Run, metric: str) -> Dots | None:
    """Paired differences between variants, one row per point, one mark per pair."""
    pairs: dict[str, int] = {}
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for record in records(run.analysis.get("paired")):
        if record.get("metric") == metric:
            interval = mapping(record.get("interval")) or record
            name = f"{record.get('first')} {ticks.MINUS} {record.get('second')}"
            numbers = number(record.get("mean")), number(interval.get("low")), number(interval.get("high"))
            found.setdefault(str(record.get("point")), []).append((pairs.setdefault(name, len(pairs)), *numbers))
    if not found:
        return None
    series = tuple((i, name) for name, i in pairs.items())
    entries = []
    for point in run.points:
        marks = tuple(found.get(point.id, ()))
        notes = tuple(
            f"{series[i][1]} at {place(point)}: {ticks.short(mean)} ({ticks.short(low)} to {ticks.short(high)})"
            for i, mean, low, high in marks
        )
        if marks:
            entries.append(Entry(place(point), marks, notes))
    x = value_axis(f"difference of {metric}", [0.0, *(v for e in entries for _, *n in e.points for v in n)])
    about = f"{len(entries)} points: mean difference of {metric} between variants, trial by trial, with its interval."
    title = "Variants compared on the same faults"
    return Dots(f"paired-{metric}", title, about, x, tuple(entries), series, (Rule(0.0, "equal"),))


def all_plots(run: Run) -> list[Plot]:
    """Every figure of a run, the most important first."""
    found: list[Plot | None] = []
    for metric in run.metrics[:1]:
        found += [main(run, metric), trials(run, metric), redundancy(run, metric), comparisons(run, metric)]
        found += [*parts(run, "layer", metric), *parts(run, "bit", metric), *parts(run, "layer bit", metric)]
    for metric in run.metrics[1:]:
        found.append(main(run, metric))
    return [plot for plot in found if plot is not None]
