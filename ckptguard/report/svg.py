"""Plots as inline SVG, coloured by the classes and variables of the page's style sheet (`page.css`).

Every plot can be drawn for any width: a page holds it twice, for wide and for narrow screens, and shows one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckptguard.report.markup import Markup, element
from ckptguard.report.plots import MOST_DOTS, Axis, Curves, Dots, Line, Panel, Plot, Rule, Strips
from ckptguard.report.shapes import (
    CHARACTER,
    NARROW,
    WIDE,
    Frame,
    colour,
    fit,
    horizontal,
    kept,
    label,
    left_of,
    mark,
    n,
    vertical,
)
from ckptguard.report.svg_rows import dots, heat

__all__ = ["NARROW", "WIDE", "draw", "swatch"]

_DOT = 4.4


def draw(plot: Plot, width: int = WIDE) -> Markup:
    """The plot as one `svg` element with a title and a description, `width` pixels wide."""
    parts, height = _parts(plot, width)
    name = f"{plot.name}-{width}"
    return element(
        "svg",
        element("title", plot.title, id=f"{name}-title"),
        element("desc", plot.description or plot.title, id=f"{name}-desc"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {math.ceil(height)}",
        width=width,
        height=math.ceil(height),
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="plot",
    )


def _parts(plot: Plot, width: int) -> tuple[list[Markup], float]:
    """The elements of a plot and its height."""
    if isinstance(plot, Curves):
        return _curves(plot, width)
    if isinstance(plot, Strips):
        return _strips(plot, width)
    return dots(plot, width) if isinstance(plot, Dots) else heat(plot, width)


def swatch(series: int, *, line: bool = True) -> Markup:
    """The sign of a series for a legend."""
    stroke = [element("path", d="M1 7H27", class_="line")] if line else []
    group = element("g", *stroke, mark(series, 14, 7, 4.5), class_=colour(series))
    return element("svg", group, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true", class_="swatch")


def _curves(plot: Curves, width: int) -> tuple[list[Markup], float]:
    left = left_of(plot.y, width)
    frame = Frame(left, 46 if plot.spans else 30, width - left - 14, 300 if width >= WIDE else 230)
    parts: list[Markup | None] = [
        *_spans(plot, frame),
        *vertical(plot.y, frame, 30 if plot.spans else 14),
        *horizontal(plot.x, frame),
    ]
    parts += [_rule(rule, plot.y, frame) for rule in plot.rules]
    draw_line = _bars if plot.bars else _band
    parts += [draw_line(line, plot, frame) for line in plot.lines]
    parts += [_path_and_marks(line, plot, frame, i) for i, line in reversed(list(enumerate(plot.lines)))]
    parts += [_rule_label(rule, plot.y, frame) for rule in plot.rules]
    return kept(*parts), frame.bottom + 46


def _spans(plot: Curves, frame: Frame) -> list[Markup]:
    parts = []
    for i, span in enumerate(plot.spans):
        low, high = (frame.x(plot.x, min(max(v, plot.x.low), plot.x.high)) for v in (span.low, span.high))
        if i % 2 == 0:
            parts.append(element("rect", x=low, y=frame.top, width=high - low, height=frame.height, class_="span"))
        if high - low >= CHARACTER * len(span.label):
            parts.append(label(span.label, (low + high) / 2, frame.top - 6, "middle", "faint"))
    return parts


def _rule(rule: Rule, axis: Axis, frame: Frame) -> Markup:
    y = frame.y(axis, rule.value)
    style = "rule limit" if rule.below else "rule"
    line = element("path", d=f"M{n(frame.left)} {n(y)}H{n(frame.right)}", class_=style)
    return element("g", line, class_=colour(rule.series))


def _rule_label(rule: Rule, axis: Axis, frame: Frame) -> Markup | None:
    if not rule.label:
        return None
    y = frame.y(axis, rule.value) + (14 if rule.below else -5)
    return label(rule.label, frame.right - 2, y, "end", "halo")


def _band(line: Line, plot: Curves, frame: Frame) -> Markup | None:
    """The interval around the mean as an area, one piece per stretch without gaps."""
    pieces = []
    for stretch in _stretches(line.x, line.low, line.high):
        upper = [f"{n(frame.x(plot.x, x))} {n(frame.y(plot.y, high))}" for x, _, high in stretch]
        lower = [f"{n(frame.x(plot.x, x))} {n(frame.y(plot.y, low))}" for x, low, _ in reversed(stretch)]
        pieces.append(f"M{'L'.join(upper + lower)}Z")
    return element("path", d="".join(pieces), class_=f"band {colour(line.series)}") if pieces else None


def _bars(line: Line, plot: Curves, frame: Frame) -> Markup | None:
    """The interval around every point as a bar."""
    pieces = [
        f"M{n(frame.x(plot.x, x))} {n(frame.y(plot.y, high))}V{n(frame.y(plot.y, low))}"
        for stretch in _stretches(line.x, line.low, line.high)
        for x, low, high in stretch
    ]
    return element("path", d="".join(pieces), class_=f"bar {colour(line.series)}") if pieces else None


def _path_and_marks(line: Line, plot: Curves, frame: Frame, place: int) -> Markup:
    parts = []
    if line.near_worst:
        parts.append(element("path", d=_polyline(line.x, line.near_worst, plot, frame), class_="line near-worst"))
    parts.append(element("path", d=_polyline(line.x, line.y, plot, frame), class_="line"))
    for x, y in zip(line.x, line.worst, strict=False):
        if math.isfinite(y):
            start = f"M{n(frame.x(plot.x, x))} {n(frame.y(plot.y, y))}"
            parts.append(element("path", d=f"{start}m-4 -3l4 6 4 -6", class_="worst"))
    for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        note = element("title", line.notes[i]) if line.notes else None
        px = frame.x(plot.x, x)
        if math.isfinite(y):
            parts.append(element("g", *kept(note), mark(line.series, px, frame.y(plot.y, y), 4.5)))
        if line.failed and line.failed[i] > 0:
            cross = f"M{n(px + 9 * place - 4 * (len(plot.lines) - 1))} {n(frame.bottom - 7)}m-3 -3l6 6m0 -6l-6 6"
            parts.append(element("g", *kept(note), element("path", d=cross, class_="failed")))
    return element("g", *parts, class_=colour(line.series))


def _stretches(*columns: Sequence[float]) -> list[list[tuple[float, ...]]]:
    """Runs of rows in which every value is finite."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for row in zip(*columns, strict=False):
        if all(map(math.isfinite, row)):
            runs[-1].append(row)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _polyline(xs: Sequence[float], ys: Sequence[float], plot: Curves, frame: Frame) -> str:
    runs = _stretches(xs, ys)
    return "".join("M" + "L".join(f"{n(frame.x(plot.x, x))} {n(frame.y(plot.y, y))}" for x, y in run) for run in runs)


def _strips(plot: Strips, width: int) -> tuple[list[Markup], float]:
    left, each = left_of(plot.y, width), 130 if width >= WIDE else 110
    lane = 18 if any(column.failed for panel in plot.panels for column in panel.columns) else 0
    parts, top = [label(plot.y.label, 2, 14, class_="label")], 24.0
    for panel in plot.panels:
        frame = Frame(left, top + 22, width - left - 14, each)
        base = Frame(left, top + 22, frame.width, each + lane)
        parts.append(label(fit(panel.name, int((width - left) / 8)), left, top + 15, class_="panel"))
        parts += vertical(plot.y, frame, None)
        parts += horizontal(plot.x, base, named=panel is plot.panels[-1])
        if lane:
            parts.append(label("✕", left - 6, base.bottom - 5, "end"))
        parts += [_rule(rule, plot.y, frame) for rule in panel.rules]
        parts.append(_panel(panel, plot, frame, base.bottom - 5))
        top = base.bottom + 24
    return parts, top + 24


def _panel(panel: Panel, plot: Strips, frame: Frame, base: float) -> Markup:
    room = frame.width / max(1, len(panel.columns))
    dots, means, failed = [], [], []
    for i, column in enumerate(panel.columns):
        middle = frame.x(plot.x, i)
        heights = [frame.y(plot.y, value) for value in thinned(column.values)]
        dots += [f"M{n(middle + shift)} {n(y)}h0" for shift, y in _swarm(heights, 0.42 * room)]
        if math.isfinite(column.mean):
            y, half = frame.y(plot.y, column.mean), min(16.0, 0.45 * room)
            means.append(f"M{n(middle - half)} {n(y)}h{n(2 * half)}")
        if column.failed:
            failed.append(label(str(column.failed), middle, base, "middle", "halo"))
    return element(
        "g",
        element("path", d="".join(dots), class_="dots") if dots else None,
        element("path", d="".join(means), class_="mean") if means else None,
        *failed,
        class_=colour(panel.series),
    )


def thinned(values: Sequence[float], most: int = MOST_DOTS) -> list[float]:
    """At most `most` of the values, evenly by rank; the least and the largest are always among them."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def _swarm(heights: Sequence[float], half_width: float) -> list[tuple[float, float]]:
    """Dots moved aside where they would hide each other: bins as high as a dot, filled from the middle outwards."""
    bins: dict[int, list[float]] = {}
    for y in heights:
        bins.setdefault(math.floor(y / _DOT), []).append(y)
    placed = []
    for _, members in sorted(bins.items()):
        step = min(_DOT + 0.2, 2 * half_width / max(1, len(members) - 1))
        for i, y in enumerate(members):
            placed.append((step * ((i + 1) // 2) * (1 if i % 2 else -1), y))
    return placed
