"""What a figure shows, apart from how it is drawn: `svg` draws these for pages, `figures` as PNG and PDF."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckptguard.report import ticks

MOST_DOTS = 120
"""Trials of one point that are drawn."""


@dataclass(frozen=True)
class Axis:
    """A scale and its words.

    Attributes:
        label: quantity and unit.
        low, high: ends; with `log` both positive.
        names: words at the positions 0, 1, 2, ... instead of numbers.
        whole: the numbers are whole, as bit positions are.
        extra: further positions with words, for what has no place on the scale: 0 on a logarithmic one.
    """

    label: str
    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()
    whole: bool = False
    extra: tuple[tuple[float, str], ...] = ()

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def marks(self, most: int) -> list[tuple[float, str]]:
        """At most about so many positions with what is written there."""
        if self.names:
            stride = max(1, math.ceil(len(self.names) / most))
            return [(float(i), name) for i, name in enumerate(self.names) if i % stride == 0]
        if self.log:
            values = ticks.logarithmic(self.low, self.high, most)
            return [*self.extra, *zip(values, ticks.powers(values), strict=True)]
        values = (ticks.whole if self.whole else ticks.linear)(self.low, self.high, most)
        return list(zip(values, ticks.labels(values), strict=True))


@dataclass(frozen=True)
class Line:
    """One treatment. All sequences have one value per x; NaN is a gap.

    Attributes:
        series: number of its colour and marker.
        low, high: interval around `y`, drawn as a band or as bars.
        near_worst: a low quantile, a thin broken line.
        worst: the worst trial, small marks.
        failed: share of the trials that failed, written where it is not 0.
        notes: one per x, shown when a mark is pointed at.
    """

    name: str
    series: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    near_worst: tuple[float, ...] = ()
    worst: tuple[float, ...] = ()
    failed: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A line across the plot: the clean value, a limit. `series` None is neutral."""

    value: float
    label: str
    series: int | None = None
    below: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the x axis with a name: the exponent's bits."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Curves:
    """Lines over one axis; `bars` draws intervals as bars (few, unequal points) instead of bands."""

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    rules: tuple[Rule, ...] = ()
    spans: tuple[Span, ...] = ()
    bars: bool = False


@dataclass(frozen=True)
class Heat:
    """A table of rows x columns as colours.

    Attributes:
        values: one tuple per row; NaN is no data, infinity is a failure.
        unit: of the values, with what is compared.
        log: colours follow the logarithm (damage over many orders of magnitude).
        spans: stretches of columns with names.
    """

    name: str
    title: str
    description: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    unit: str
    row_label: str = ""
    column_label: str = ""
    log: bool = False
    spans: tuple[Span, ...] = ()

    def scale(self) -> tuple[float, float]:
        """The least and the most that the colours show."""
        finite = [value for row in self.values for value in row if math.isfinite(value)]
        if self.log:
            finite = [value for value in finite if value > 0] or [1.0]
            most = max(finite)
            return max(min(finite), most * 1e-9) / (1 if min(finite) < most else 10), most
        most = max([0.0, *finite])
        return 0.0, most or 1.0

    def say(self, value: float) -> str:
        """A value as it is written: equal digits on a linear scale, a power of ten on a logarithmic one."""
        if value == 0.0:
            return "0"
        return ticks.short(value, 2) if self.log else ticks.fixed(value, max(0, ticks.digits_for(self.scale()[1]) - 1))

    def share(self, value: float) -> float:
        """The place of a value between the least and the most, 0 to 1; failures are the most."""
        low, high = self.scale()
        if math.isinf(value):
            return 1.0 if value > 0 else 0.0
        if self.log:
            return 0.0 if value <= low else (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return min(1.0, max(0.0, (value - low) / (high - low)))


@dataclass(frozen=True)
class Column:
    """The trials of one point: finite values, how many failed, and their mean with its interval (NaN: not known)."""

    values: tuple[float, ...]
    failed: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """The trials of one treatment at every point."""

    name: str
    series: int
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Strips:
    """Every trial as a dot, one panel per treatment, one column per point."""

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Entry:
    """A row of a dot plot: one value with interval per series (NaN: none), and what is said of it."""

    name: str
    points: tuple[tuple[int, float, float, float], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dots:
    """Values with intervals, one row each: layers, devices, differences between treatments."""

    name: str
    title: str
    description: str
    x: Axis
    entries: tuple[Entry, ...]
    series: tuple[tuple[int, str], ...] = ()
    rules: tuple[Rule, ...] = ()


Plot = Curves | Heat | Strips | Dots


def frontier(
    methods: Sequence[tuple[str, Sequence[tuple[float, float, float, float]]]],
    *,
    name: str = "frontier",
    title: str = "Redundancy against accuracy",
    x_label: str = "redundancy r (parity bits per bit of the weights)",
    y_label: str,
    clean: float | None = None,
    limit: float | None = None,
    description: str = "",
) -> Curves:
    """The trade of every method: what it costs against what it keeps.

    Args:
        methods: name and points (redundancy, value, low, high) each, in any order; redundancies of 0 stand at the left
            end, as a logarithmic axis has no 0.
    """
    sorted_points = [(method, sorted(points)) for method, points in methods]
    positive = [x for _, points in sorted_points for x, *_ in points if x > 0] or [1e-3, 1e-1]
    zero = min(positive) / 3 if any(x <= 0 for _, points in sorted_points for x, *_ in points) else None
    lines = tuple(_method(i, method, points, zero) for i, (method, points) in enumerate(sorted_points))
    rules = [Rule(clean, f"clean {ticks.short(clean)}")] if clean is not None else []
    rules += [Rule(limit, f"limit {ticks.short(limit)}", below=True)] if limit is not None else []
    heights = [value for line in lines for part in (line.y, line.low, line.high) for value in part]
    ends = min([*positive, zero or math.inf]) / 1.25, max(positive) * 1.25
    x = Axis(x_label, *ends, log=True, extra=((zero, "0"),) if zero else ())
    y = value_axis(y_label, [*heights, *(rule.value for rule in rules)])
    return Curves(name, title, description, x, y, lines, tuple(rules), bars=True)


def _method(series: int, method: str, points: Sequence[tuple[float, float, float, float]], zero: float | None) -> Line:
    """The points of a method, those of no redundancy at `zero`."""
    xs, ys, lows, highs = (tuple(map(float, column)) for column in zip(*points, strict=True)) if points else ((),) * 4
    notes = tuple(
        f"{method}: r = {ticks.short(x)}, {ticks.short(y)} ({ticks.short(low)} to {ticks.short(high)})"
        for x, y, low, high in points
    )
    return Line(method, series, tuple(x if x > 0 else zero or x for x in xs), ys, lows, highs, notes=notes)


def damage(
    tensors: Sequence[str],
    table: Sequence[Sequence[float]],
    *,
    name: str = "damage",
    title: str = "Expected damage of a flip, by tensor and bit",
    unit: str,
    fields: Sequence[Span] = (),
    description: str = "",
) -> Heat:
    """A damage table (tensors x bits, bit 0 = most significant first) as a heat map on a logarithmic scale."""
    width = max((len(row) for row in table), default=0)
    values = tuple((*map(float, row), *[math.nan] * (width - len(row))) for row in table)
    columns = tuple(str(bit) for bit in range(width))
    return Heat(
        name, title, description, tuple(tensors), columns, values, unit, "tensor", "bit (0 = most significant)",
        log=True, spans=tuple(fields),
    )  # fmt: skip


def value_axis(label: str, values: Iterable[float]) -> Axis:
    """A linear axis around all finite values, with room at both ends; equal values get a range of their size."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) if high > low else max(abs(high), 1e-3) * 0.02
    return Axis(label, low - margin, high + margin)


def rate_axis(label: str, rates: Iterable[float]) -> Axis:
    """A logarithmic axis around all positive rates."""
    positive = [rate for rate in rates if rate > 0 and math.isfinite(rate)] or [1e-4, 1e-2]
    low, high = min(positive), max(positive)
    if high <= low:
        return Axis(label, low / 2, high * 2, log=True)
    room = (high / low) ** 0.03
    return Axis(label, low / room, high * room, log=True)
