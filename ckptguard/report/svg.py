"""Plots as inline SVG, coloured by the classes and variables of the page's style sheet (`page.css`).

Every plot can be drawn for any width: a page holds it twice, for wide and for narrow screens, and shows one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptguard.report import palette, ticks
from ckptguard.report.markup import Markup, element, join
from ckptguard.report.plots import Axis, Curves, Dots, Heat, Line, Panel, Plot, Rule, Strips

WIDE, NARROW = 760, 352
"""Widths in pixels at which text has its natural size."""

_CHARACTER = 6.7  # mean advance of a 12 px digit or letter, on the wide side
_DOT = 4.4
_MOST_DOTS = 120


@dataclass(frozen=True)
class Frame:
    """The rectangle inside the axes."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right side."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Its lower side."""
        return self.top + self.height

    def x(self, axis: Axis, value: float) -> float:
        """Where a value of the horizontal axis lies."""
        return self.left + axis.share(value) * self.width

    def y(self, axis: Axis, value: float) -> float:
        """Where a value of the vertical axis lies, never outside by more than a line's width."""
        return self.bottom - min(1.0, max(0.0, axis.share(value))) * self.height


def draw(plot: Plot, width: int = WIDE) -> Markup:
    """The plot as one `svg` element with a title and a description, `width` pixels wide."""
    parts, height = _DRAWERS[type(plot)](plot, width)  # type: ignore[operator]
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


def swatch(series: int, *, line: bool = True) -> Markup:
    """The sign of a series for a legend."""
    stroke = [element("path", d="M1 7H27", class_="line")] if line else []
    group = element("g", *stroke, _mark(series, 14, 7, 4.5), class_=colour(series))
    return element("svg", group, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true", class_="swatch")


def colour(series: int | None) -> str:
    """The class that sets the colour of a series; None is neutral."""
    return "neutral" if series is None else f"s{series % len(palette.LIGHT)}"


def fit(name: str, characters: int) -> str:
    """A name shortened in its middle."""
    if len(name) <= characters:
        return name
    tail = (characters - 1) // 2 + 1
    return f"{name[: characters - 1 - tail]}…{name[-tail:]}"


def label(content: str, x: float, y: float, anchor: str = "start", class_: str | None = None) -> Markup:
    """A text whose base line starts, is centred or ends at a place."""
    return element("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def _curves(plot: Curves, width: int) -> tuple[list[Markup], float]:
    frame = Frame(_left(plot.y, width), 30, 0, 300 if width >= WIDE else 230)
    frame = Frame(frame.left, frame.top, width - frame.left - 14, frame.height)
    parts = [*_spans(plot, frame), *_vertical(plot.y, frame), *_horizontal(plot.x, frame)]
    parts += [_rule(rule, plot.y, frame) for rule in plot.rules]
    draw_line = _bars if plot.bars else _band
    parts += [draw_line(line, plot, frame) for line in plot.lines]
    parts += [_path_and_marks(line, plot, frame, i) for i, line in enumerate(plot.lines)]
    parts += [_rule_label(rule, plot.y, frame) for rule in plot.rules]
    return parts, frame.bottom + 46


def _left(axis: Axis, width: int) -> float:
    most = 7 if width >= WIDE else 5
    return 12 + _CHARACTER * max((len(text) for _, text in axis.marks(most)), default=1)


def _vertical(axis: Axis, frame: Frame, *, named: bool = True) -> list[Markup]:
    """Grid lines, their numbers, and the axis' label above them."""
    most = 7 if frame.height >= 260 else 5 if frame.height >= 150 else 4
    parts = [label(axis.label, 2, frame.top - 14, class_="label")] if named else []
    for value, text in axis.marks(most):
        y = frame.y(axis, value)
        parts.append(element("path", d=f"M{_n(frame.left)} {_n(y)}H{_n(frame.right)}", class_="grid"))
        parts.append(label(text, frame.left - 6, y + 4, "end"))
    return parts


def _horizontal(axis: Axis, frame: Frame, *, named: bool = True, numbered: bool = True) -> list[Markup]:
    """The base line, its marks, their numbers, and the label below."""
    parts = [element("path", d=f"M{_n(frame.left)} {_n(frame.bottom)}H{_n(frame.right)}", class_="axis")]
    room = max(1, int(frame.width // 58))
    marks = axis.marks(room)
    widest = max((len(text) for _, text in marks), default=1) * _CHARACTER + 10
    if widest * len(marks) > frame.width and len(marks) > 1:
        marks = axis.marks(max(1, int(frame.width // widest)))
    small = "".join(f"M{_n(frame.x(axis, v))} {_n(frame.bottom)}v3" for v in _minor(axis, frame))
    parts += [element("path", d=small, class_="axis")] if small else []
    for value, text in marks:
        x = frame.x(axis, value)
        parts.append(element("path", d=f"M{_n(x)} {_n(frame.bottom)}v6", class_="axis"))
        if numbered:
            half = len(text) * _CHARACTER / 2
            parts.append(label(text, min(max(x, half), frame.right + 12 - half), frame.bottom + 19, "middle"))
    if named:
        parts.append(label(axis.label, frame.left + frame.width / 2, frame.bottom + 39, "middle", "label"))
    return parts


def _minor(axis: Axis, frame: Frame) -> Iterable[float]:
    if not axis.log or math.log10(axis.high / axis.low) * 40 > frame.width:
        return ()
    return ticks.minor(axis.low, axis.high)


def _spans(plot: Curves, frame: Frame) -> list[Markup]:
    parts = []
    for i, span in enumerate(plot.spans):
        low, high = (frame.x(plot.x, min(max(v, plot.x.low), plot.x.high)) for v in (span.low, span.high))
        if i % 2 == 0:
            parts.append(
                element("rect", x=low, y=frame.top, width=high - low, height=frame.height, class_="span")
            )
        room = int((high - low) / _CHARACTER)
        if room >= 3:
            parts.append(label(fit(span.label, room), (low + high) / 2, frame.top + 13, "middle", "faint"))
    return parts


def _rule(rule: Rule, axis: Axis, frame: Frame) -> Markup:
    y = frame.y(axis, rule.value)
    style = "rule limit" if rule.below else "rule"
    line = element("path", d=f"M{_n(frame.left)} {_n(y)}H{_n(frame.right)}", class_=style)
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
        upper = [f"{_n(frame.x(plot.x, x))} {_n(frame.y(plot.y, high))}" for x, _, high in stretch]
        lower = [f"{_n(frame.x(plot.x, x))} {_n(frame.y(plot.y, low))}" for x, low, _ in reversed(stretch)]
        pieces.append(f"M{'L'.join(upper + lower)}Z")
    return element("path", d="".join(pieces), class_=f"band {colour(line.series)}") if pieces else None


def _bars(line: Line, plot: Curves, frame: Frame) -> Markup | None:
    """The interval around every point as a bar."""
    pieces = [
        f"M{_n(frame.x(plot.x, x))} {_n(frame.y(plot.y, high))}V{_n(frame.y(plot.y, low))}"
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
            px, py = _n(frame.x(plot.x, x)), _n(frame.y(plot.y, y))
            parts.append(element("path", d=f"M{px} {py}m-4 -3l4 6 4 -6", class_="worst"))
    for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        note = element("title", line.notes[i]) if line.notes else None
        px = frame.x(plot.x, x)
        if math.isfinite(y):
            parts.append(element("g", *_kept(note), _mark(line.series, px, frame.y(plot.y, y), 4.5)))
        if line.failed and line.failed[i] > 0:
            cross = f"M{_n(px + 9 * place - 4 * (len(plot.lines) - 1))} {_n(frame.bottom - 7)}m-3 -3l6 6m0 -6l-6 6"
            parts.append(element("g", *_kept(note), element("path", d=cross, class_="failed")))
    return element("g", *parts, class_=colour(line.series))


def _kept(*parts: Markup | None) -> list[Markup]:
    return [part for part in parts if part is not None]


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
    return "".join("M" + "L".join(f"{_n(frame.x(plot.x, x))} {_n(frame.y(plot.y, y))}" for x, y in run) for run in runs)


def _mark(series: int, x: float, y: float, r: float) -> Markup:
    """The marker of a series around a place."""
    return element("path", d=f"M{_n(x)} {_n(y)}{_marker(palette.MARKERS[series % len(palette.MARKERS)], r)}", class_="mark")


def _marker(kind: str, r: float) -> str:
    """A closed path around the current place, of about equal area for every kind."""
    if kind == "circle":
        return f"m{_n(-r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(2 * r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(-2 * r)} 0z"
    if kind in ("plus", "cross"):
        a, b = 0.42 * r, 1.15 * r
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        turn = math.pi / 4 if kind == "cross" else 0.0
        corners = [(math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y) for x, y in corners]
        return _relative(corners)
    corner_count, first, size = {
        "square": (4, 45, 1.2),
        "triangle": (3, -90, 1.3),
        "diamond": (4, 0, 1.2),
        "inverted": (3, 90, 1.3),
        "pentagon": (5, -90, 1.1),
        "hexagon": (6, 0, 1.1),
    }[kind]
    angles = [math.radians(first + 360 * i / corner_count) for i in range(corner_count)]
    return _relative([(size * r * math.cos(angle), size * r * math.sin(angle)) for angle in angles])


def _relative(corners: Sequence[tuple[float, float]]) -> str:
    steps = [f"m{_n(corners[0][0])} {_n(corners[0][1])}"]
    for (x, y), (u, v) in zip(corners, corners[1:], strict=False):
        steps.append(f"l{_n(u - x)} {_n(v - y)}")
    return "".join([*steps, "z"])


def _n(value: float) -> str:
    short = f"{value:.1f}"
    short = short.removesuffix(".0")
    return "0" if short == "-0" else short


def _strips(plot: Strips, width: int) -> tuple[list[Markup], float]:
    left, each = _left(plot.y, width), 150 if width >= WIDE else 130
    parts, top = [label(plot.y.label, 2, 14, class_="label")], 24.0
    for i, panel in enumerate(plot.panels):
        frame = Frame(left, top + 22, width - left - 14, each)
        last = i == len(plot.panels) - 1
        parts.append(label(fit(panel.name, int((width - left) / 7)), left, top + 15, class_="panel"))
        parts += _vertical(plot.y, frame, named=False)
        parts += _horizontal(plot.x, frame, named=last)
        parts += [_rule(rule, plot.y, frame) for rule in panel.rules]
        parts.append(_panel(panel, plot, frame))
        top = frame.bottom + 24
    return parts, top + 24


def _panel(panel: Panel, plot: Strips, frame: Frame) -> Markup:
    room = frame.width / max(1, len(panel.columns))
    dots, means, failed = [], [], []
    for i, column in enumerate(panel.columns):
        middle = frame.x(plot.x, i)
        heights = [frame.y(plot.y, value) for value in thinned(column.values)]
        dots += [f"M{_n(middle + shift)} {_n(y)}h0" for shift, y in _swarm(heights, 0.42 * room)]
        if math.isfinite(column.mean):
            y, half = frame.y(plot.y, column.mean), min(16.0, 0.45 * room)
            means.append(f"M{_n(middle - half)} {_n(y)}h{_n(2 * half)}")
        if column.failed:
            failed.append(label(f"✕{column.failed}", middle, frame.bottom - 5, "middle", "halo"))
    return element(
        "g",
        element("path", d="".join(dots), class_="dots") if dots else None,
        element("path", d="".join(means), class_="mean") if means else None,
        *failed,
        class_=colour(panel.series),
    )


def thinned(values: Sequence[float], most: int = _MOST_DOTS) -> list[float]:
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


def _dots(plot: Dots, width: int) -> tuple[list[Markup], float]:
    series = max((len(entry.points) for entry in plot.entries), default=1)
    each = max(22.0, 10.0 + 9.0 * series)
    left = name_room([entry.name for entry in plot.entries], width)
    frame = Frame(left, 20, width - left - 16, each * len(plot.entries))
    parts = _horizontal(plot.x, frame)
    for value, _ in plot.x.marks(max(1, int(frame.width // 58))):
        x = frame.x(plot.x, value)
        parts.append(element("path", d=f"M{_n(x)} {_n(frame.top)}V{_n(frame.bottom)}", class_="grid"))
    parts += [_upright(rule, plot.x, frame) for rule in plot.rules]
    for i, entry in enumerate(plot.entries):
        middle = frame.top + each * (i + 0.5)
        name = fit(entry.name, int((left - 8) / _CHARACTER))
        parts.append(
            element("text", element("title", entry.name), name, x=left - 8, y=middle + 4, text_anchor="end")
        )
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
        cross = element("path", d=f"M{_n(frame.left + 8)} {_n(y)}m-3 -3l6 6m0 -6l-6 6", class_="failed")
        return [element("g", *_kept(note), cross, class_=colour(series))]
    bar = None
    if math.isfinite(low) and math.isfinite(high):
        ends = [min(max(frame.x(axis, end), frame.left), frame.right) for end in (low, high)]
        bar = element("path", d=f"M{_n(ends[0])} {_n(y)}H{_n(ends[1])}", class_="bar")
    mark = _mark(series, min(max(frame.x(axis, value), frame.left), frame.right), y, 4.2)
    return [element("g", *_kept(note, bar), mark, class_=colour(series))]


def _upright(rule: Rule, axis: Axis, frame: Frame) -> Markup:
    x = frame.x(axis, rule.value)
    line = element("path", d=f"M{_n(x)} {_n(frame.top - 4)}V{_n(frame.bottom)}", class_="rule")
    half = len(rule.label) * _CHARACTER / 2
    text = label(rule.label, min(max(x, half), frame.right + 14 - half), frame.top - 8, "middle", "halo")
    return element("g", line, text, class_=colour(rule.series))


def name_room(names: Sequence[str], width: int) -> float:
    """Pixels for names at the left: as much as the longest needs, at most 38 % of the width."""
    return min(0.38 * width, 12 + _CHARACTER * max((len(name) for name in names), default=1))


def _heat(plot: Heat, width: int) -> tuple[list[Markup], float]:
    left = name_room(plot.rows, width)
    cell = max(7.0, (width - left - 2) / max(1, len(plot.columns)))
    each = 22.0 if len(plot.rows) <= 40 else 15.0
    top = 74.0 if plot.spans else 62.0
    parts = _key(plot, width)
    for i, span in enumerate(plot.spans):
        start, end = left + cell * span.low, left + cell * span.high
        parts.append(element("path", d=f"M{_n(start + 1)} {_n(top - 20)}H{_n(end - 1)}", class_="axis"))
        room = int((end - start) / _CHARACTER)
        if room >= 1 and (room >= len(span.label) or i):
            parts.append(label(fit(span.label, max(2, room)), (start + end) / 2, top - 25, "middle", "faint"))
    stride = math.ceil((6 + _CHARACTER * max(map(len, plot.columns), default=1)) / cell)
    for j in range(0, len(plot.columns), stride):
        parts.append(label(plot.columns[j], left + cell * (j + 0.5), top - 6, "middle"))
    for i, (name, values) in enumerate(zip(plot.rows, plot.values, strict=True)):
        y = top + each * i
        shown = fit(name, int((left - 8) / _CHARACTER))
        parts.append(
            element("text", element("title", name), shown, x=left - 8, y=y + each / 2 + 4, text_anchor="end")
        )
        parts += [_cell(plot, i, j, value, left + cell * j, y, cell, each) for j, value in enumerate(values)]
    bottom = top + each * len(plot.rows)
    if plot.column_label:
        parts.append(label(plot.column_label, left + cell * len(plot.columns) / 2, bottom + 18, "middle", "label"))
    return parts, bottom + 26


def _key(plot: Heat, width: int) -> list[Markup]:
    """The colours and what the first, the middle and the last of them stand for."""
    low, high = plot.scale()
    parts = [label(plot.unit, 2, 12, class_="label")]
    step = 18.0
    begin, end = ticks.short(low, 3), ticks.short(high, 3)
    start = 8 + _CHARACTER * len(begin)
    parts.append(label(begin, 2, 30))
    for i in range(palette.STEPS):
        parts.append(element("rect", x=start + step * i, y=20, width=step, height=12, class_=f"h{i}"))
    parts.append(label(end, start + step * palette.STEPS + 6, 30))
    if any(math.isinf(value) for row in plot.values for value in row):
        parts.append(label("✕ all trials failed", min(start + 240, width - 130), 30))
    return parts


def _cell(
    plot: Heat, row: int, column: int, value: float, x: float, y: float, width: float, height: float
) -> Markup:
    """One value: a rectangle, its number where there is room, and both names when pointed at."""
    if math.isnan(value):
        return element("rect", x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1, class_="empty")
    step = palette.heat_step(plot.share(value))
    says = "all trials failed" if math.isinf(value) else ticks.short(value, 3)
    title = element("title", f"{plot.rows[row]}, {plot.columns[column]}: {says}")
    box = element("rect", x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1, class_=f"h{step}")
    shown = "✕" if math.isinf(value) else says
    number = None
    if width >= 8 + _CHARACTER * len(shown) and height >= 16:
        number = label(shown, x + width / 2, y + height / 2 + 4, "middle", f"on{step}")
    return element("g", title, box, number)


_DRAWERS = {Curves: _curves, Heat: _heat, Strips: _strips, Dots: _dots}
