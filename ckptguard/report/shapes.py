"""What all plots are made of as SVG: the frame inside the axes, axes, texts, markers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckptguard.report import palette, ticks
from ckptguard.report.markup import Markup, element
from ckptguard.report.plots import Axis

WIDE, NARROW = 820, 352
"""Widths in pixels at which text has its natural size."""

CHARACTER = 7.3
"""Mean advance of a 12 px digit or letter in the widest of the usual fonts."""


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


def name_room(names: Sequence[str], width: int) -> float:
    """Pixels for names at the left: as much as the longest needs, at most 38 % of the width."""
    return min(0.38 * width, 12 + CHARACTER * max((len(name) for name in names), default=1))


def left_of(axis: Axis, width: int) -> float:
    """Pixels for the numbers of a vertical axis."""
    most = 7 if width >= WIDE else 5
    return 12 + CHARACTER * max((len(text) for _, text in axis.marks(most)), default=1)


def vertical(axis: Axis, frame: Frame, above: float | None) -> list[Markup]:
    """Grid lines, their numbers, and the axis' label so far above the frame, or none."""
    most = 7 if frame.height >= 260 else 5 if frame.height >= 150 else 4
    parts = [] if above is None else [label(axis.label, 2, frame.top - above, class_="label")]
    for value, text in axis.marks(most):
        y = frame.y(axis, value)
        parts.append(element("path", d=f"M{n(frame.left)} {n(y)}H{n(frame.right)}", class_="grid"))
        parts.append(label(text, frame.left - 6, y + 4, "end"))
    return parts


def horizontal(axis: Axis, frame: Frame, *, named: bool = True, numbered: bool = True) -> list[Markup]:
    """The base line, its marks, their numbers, and the label below."""
    parts = [element("path", d=f"M{n(frame.left)} {n(frame.bottom)}H{n(frame.right)}", class_="axis")]
    room = max(1, int(frame.width // 58))
    marks = axis.marks(room)
    widest = max((len(text) for _, text in marks), default=1) * CHARACTER + 10
    if widest * len(marks) > frame.width and len(marks) > 1:
        marks = axis.marks(max(1, int(frame.width // widest)))
    small = "".join(f"M{n(frame.x(axis, v))} {n(frame.bottom)}v3" for v in _minor(axis, frame))
    parts += [element("path", d=small, class_="axis")] if small else []
    for value, text in marks:
        x = frame.x(axis, value)
        parts.append(element("path", d=f"M{n(x)} {n(frame.bottom)}v6", class_="axis"))
        if numbered:
            half = len(text) * CHARACTER / 2
            parts.append(label(text, min(max(x, half), frame.right + 12 - half), frame.bottom + 19, "middle"))
    if named:
        parts.append(label(axis.label, frame.left + frame.width / 2, frame.bottom + 39, "middle", "label"))
    return parts


def _minor(axis: Axis, frame: Frame) -> Iterable[float]:
    if not axis.log or math.log10(axis.high / axis.low) * 40 > frame.width:
        return ()
    least = max((1.5 * value for value, _ in axis.extra), default=axis.low)
    return ticks.minor(max(least, axis.low), axis.high)


def kept(*parts: Markup | None) -> list[Markup]:
    """All that are there."""
    return [part for part in parts if part is not None]


def mark(series: int, x: float, y: float, r: float) -> Markup:
    """The marker of a series around a place."""
    return element(
        "path", d=f"M{n(x)} {n(y)}{_marker(palette.MARKERS[series % len(palette.MARKERS)], r)}", class_="mark"
    )


def _marker(kind: str, r: float) -> str:
    """A closed path around the current place, of about equal area for every kind."""
    if kind == "circle":
        return f"m{n(-r)} 0a{n(r)} {n(r)} 0 1 0 {n(2 * r)} 0a{n(r)} {n(r)} 0 1 0 {n(-2 * r)} 0z"
    if kind in ("plus", "cross"):
        a, b = 0.42 * r, 1.15 * r
        corners = [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
        turn = math.pi / 4 if kind == "cross" else 0.0
        corners = [
            (math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y) for x, y in corners
        ]
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
    steps = [f"m{n(corners[0][0])} {n(corners[0][1])}"]
    for (x, y), (u, v) in pairwise(corners):
        steps.append(f"l{n(u - x)} {n(v - y)}")
    return "".join([*steps, "z"])


def n(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    short = f"{value:.1f}"
    short = short.removesuffix(".0")
    return "0" if short == "-0" else short
