"""Plots with one row per name: dot plots and heat maps, as SVG."""

from __future__ import annotations

import math

from ckptguard.report import palette
from ckptguard.report.markup import Markup, element
from ckptguard.report.plots import Axis, Dots, Heat, Rule
from ckptguard.report.shapes import CHARACTER, Frame, colour, fit, horizontal, kept, label, mark, n, name_room


def dots(plot: Dots, width: int) -> tuple[list[Markup], float]:
    """The elements of a dot plot and its height."""
    series = max((len(entry.points) for entry in plot.entries), default=1)
    each = max(22.0, 10.0 + 9.0 * series)
    left = name_room([entry.name for entry in plot.entries], width)
    frame = Frame(left, 8 + 14.0 * max(1, len(plot.rules)), width - left - 16, each * len(plot.entries))
    parts = horizontal(plot.x, frame)
    for value, _ in plot.x.marks(max(1, int(frame.width // 58))):
        x = frame.x(plot.x, value)
        parts.append(element("path", d=f"M{n(x)} {n(frame.top)}V{n(frame.bottom)}", class_="grid"))
    parts += [_upright(rule, plot.x, frame, 14.0 * i) for i, rule in enumerate(plot.rules)]
    for i, entry in enumerate(plot.entries):
        middle = frame.top + each * (i + 0.5)
        name = fit(entry.name, int((left - 8) / CHARACTER))
        parts.append(element("text", element("title", entry.name), name, x=left - 8, y=middle + 4, text_anchor="end"))
        for j, (number, value, low, high) in enumerate(entry.points):
            note = element("title", entry.notes[j]) if entry.notes else None
            y = middle + 9 * (j - (len(entry.points) - 1) / 2)
            parts += _dot(plot.x, frame, y, number, (value, low, high), note)
    return parts, frame.bottom + 46


def _dot(
    axis: Axis, frame: Frame, y: float, series: int, numbers: tuple[float, float, float], note: Markup | None
) -> list[Markup]:
    value, low, high = numbers
    if not math.isfinite(value):
        cross = element("path", d=f"M{n(frame.left + 8)} {n(y)}m-3 -3l6 6m0 -6l-6 6", class_="failed")
        return [element("g", *kept(note), cross, class_=colour(series))]
    bar = None
    if math.isfinite(low) and math.isfinite(high):
        ends = [min(max(frame.x(axis, end), frame.left), frame.right) for end in (low, high)]
        bar = element("path", d=f"M{n(ends[0])} {n(y)}H{n(ends[1])}", class_="bar")
    sign = mark(series, min(max(frame.x(axis, value), frame.left), frame.right), y, 4.2)
    return [element("g", *kept(note, bar), sign, class_=colour(series))]


def _upright(rule: Rule, axis: Axis, frame: Frame, above: float) -> Markup:
    """A line from base to top with its label, so far above the frame."""
    x = frame.x(axis, rule.value)
    line = element("path", d=f"M{n(x)} {n(frame.top - 4 - above)}V{n(frame.bottom)}", class_="rule")
    half = len(rule.label) * CHARACTER / 2
    text = label(rule.label, min(max(x, half), frame.right + 14 - half), frame.top - 8 - above, "middle", "halo")
    return element("g", line, text, class_=colour(rule.series))


def heat(plot: Heat, width: int) -> tuple[list[Markup], float]:
    """The elements of a heat map and its height."""
    left = name_room(plot.rows, width)
    cell = max(7.0, (width - left - 2) / max(1, len(plot.columns)))
    each = 22.0 if len(plot.rows) <= 40 else 15.0
    top = 74.0 if plot.spans else 62.0
    parts = _key(plot, width)
    for i, span in enumerate(plot.spans):
        start, end = left + cell * span.low, left + cell * span.high
        parts.append(element("path", d=f"M{n(start + 1)} {n(top - 20)}H{n(end - 1)}", class_="axis"))
        room = int((end - start) / CHARACTER)
        if room >= 1 and (room >= len(span.label) or i):
            parts.append(label(fit(span.label, max(2, room)), (start + end) / 2, top - 25, "middle", "faint"))
    shown_widest = max((len(plot.say(v)) for row in plot.values for v in row if math.isfinite(v)), default=0)
    numbered = each >= 16 and cell >= 8 + CHARACTER * shown_widest
    stride = math.ceil((6 + CHARACTER * max(map(len, plot.columns), default=1)) / cell)
    for j in range(0, len(plot.columns), stride):
        parts.append(label(plot.columns[j], left + cell * (j + 0.5), top - 6, "middle"))
    for i, (name, values) in enumerate(zip(plot.rows, plot.values, strict=True)):
        y = top + each * i
        shown = fit(name, int((left - 8) / CHARACTER))
        parts.append(element("text", element("title", name), shown, x=left - 8, y=y + each / 2 + 4, text_anchor="end"))
        parts += [
            _cell(plot, i, j, value, left + cell * j, y, (cell, each), numbered) for j, value in enumerate(values)
        ]
    bottom = top + each * len(plot.rows)
    if plot.column_label:
        parts.append(label(plot.column_label, left + cell * len(plot.columns) / 2, bottom + 18, "middle", "label"))
    return parts, bottom + 26


def _key(plot: Heat, width: int) -> list[Markup]:
    """The colours and what the first, the middle and the last of them stand for."""
    low, high = plot.scale()
    parts = [label(plot.unit, 2, 12, class_="label")]
    step = 18.0
    begin, end = plot.say(low), plot.say(high)
    start = 8 + CHARACTER * len(begin)
    parts.append(label(begin, 2, 30))
    for i in range(palette.STEPS):
        parts.append(element("rect", x=start + step * i, y=20, width=step, height=12, class_=f"h{i}"))
    parts.append(label(end, start + step * palette.STEPS + 6, 30))
    if any(math.isinf(value) for row in plot.values for value in row):
        parts.append(label("✕ all trials failed", min(start + 240, width - 130), 30))
    return parts


def _cell(
    plot: Heat, row: int, column: int, value: float, x: float, y: float, size: tuple[float, float], numbered: bool
) -> Markup:
    """One value: a rectangle, its number where there is room, and both names when pointed at."""
    width, height = size
    if math.isnan(value):
        return element("rect", x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1, class_="empty")
    step = palette.heat_step(plot.share(value))
    says = "all trials failed" if math.isinf(value) else plot.say(value)
    title = element("title", f"{plot.rows[row]}, {plot.columns[column]}: {says}")
    box = element("rect", x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1, class_=f"h{step}")
    number = None
    if numbered or (math.isinf(value) and width >= 12):
        number = label("✕" if math.isinf(value) else says, x + width / 2, y + height / 2 + 4, "middle", f"on{step}")
    return element("g", title, box, number)
