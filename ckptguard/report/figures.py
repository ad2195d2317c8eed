"""The figures of a run as files, drawn by matplotlib with the colours and markers of the page (extra `figures`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptguard.errors import MissingExtraError, UsageError
from ckptguard.files import atomic_writer
from ckptguard.report import palette, ticks, views
from ckptguard.report.plots import Axis, Column, Curves, Dots, Heat, Line, Plot, Rule, Strips
from ckptguard.report.run import read
from ckptguard.report.shapes import fit
from ckptguard.report.svg import thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "figures"
FORMATS = ("pdf", "png", "svg")
DPI = 200

_INK, _SOFT, _GRID = "#16191d", "#545b66", "#e7eaee"
_MARKERS = dict(zip(palette.MARKERS, ("o", "s", "^", "D", "P", "X", "v", "p", "h"), strict=True))
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "ckptguard",
    "path.simplify": False,
}


def write(folder: Path | str, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write every figure of a run into its folder `figures/` and return their paths; the same run gives the same bytes
    with the same version of matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the folder holds no finished run, or a format is unknown.
    """
    run = read(Path(folder))
    target = Path(folder) / FOLDER
    target.mkdir(exist_ok=True)
    return [path for plot in views.all_plots(run) for path in save(plot, target / _file_name(plot.name), formats)]


def save(plot: Plot, path: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write one plot as `path` with the ending of every format; files of these names are replaced.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: a format is unknown.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"unknown format {unknown[0]!r} of figures; known: {', '.join(FORMATS)}")
    matplotlib = _matplotlib()
    written = []
    with matplotlib.rc_context(_STYLE):
        figure = draw(plot)
        for name in formats:
            place = path.with_name(f"{path.name}.{name}")
            with atomic_writer(place, overwrite=True) as file:
                figure.savefig(file, format=name, dpi=DPI, bbox_inches="tight", metadata=_undated(name))
            written.append(place)
    return written


def _undated(name: str) -> dict[str, None]:
    """What a format would write of time and program, left out, so that equal figures are equal files."""
    return {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}.get(
        name, {"Date": None, "Creator": None}
    )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'ckptguard[figures]'") from error
    return matplotlib


def draw(plot: Plot) -> Figure:
    """The plot as a matplotlib figure without a window. Raises MissingExtraError without matplotlib."""
    _matplotlib()
    if isinstance(plot, Curves):
        return _curves(plot)
    if isinstance(plot, Heat):
        return _heat(plot)
    if isinstance(plot, Strips):
        return _strips(plot)
    return _dots(plot)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colour(series: int | None) -> str:
    return _SOFT if series is None else palette.LIGHT[series % len(palette.LIGHT)]


def _marker(series: int) -> str:
    return _MARKERS[palette.MARKERS[series % len(palette.MARKERS)]]


def _scale(axes: Axes, axis: Axis, which: str) -> None:
    """Ends, marks and label of an axis, as the page has them."""
    side = axes.xaxis if which == "x" else axes.yaxis
    if axis.log:
        axes.set(**{f"{which}scale": "log"})
    axes.set(**{f"{which}lim": (axis.low, axis.high), f"{which}label": axis.label})
    marks = axis.marks(9 if which == "x" else 7)
    side.set_ticks([value for value, _ in marks], [text for _, text in marks])
    side.set_ticks(ticks.minor(axis.low, axis.high) if axis.log and axis.high / axis.low < 1e9 else [], minor=True)
    side.set_tick_params(which="minor", labelbottom=False, labelleft=False)


def _curves(plot: Curves) -> Figure:
    figure = _figure(6.4, 3.8)
    axes = figure.add_subplot()
    _scale(axes, plot.x, "x")
    _scale(axes, plot.y, "y")
    axes.grid(False, axis="x")
    for i, span in enumerate(plot.spans):
        if i % 2 == 0:
            axes.axvspan(span.low, span.high, color="#f5f6f8", zorder=0)
        if span.high - span.low > 0.08 * (plot.x.high - plot.x.low):
            place, above = (span.low + span.high) / 2, axes.get_xaxis_transform()
            axes.text(place, 1.01, span.label, transform=above, ha="center", va="bottom", color=_SOFT, size=8)
    for rule in plot.rules:
        _rule(axes, rule)
    for line in reversed(plot.lines):
        _line(axes, line, plot)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="best", fontsize=8)
    axes.set_title(plot.title, pad=16 if plot.spans else 6)
    return figure


def _line(axes: Axes, line: Line, plot: Curves) -> None:
    colour = _colour(line.series)
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "marker": _marker(line.series), "markersize": 5}
    axes.plot(line.x, line.y, label=line.name, markeredgecolor="white", markeredgewidth=0.6, zorder=3, **style)
    if plot.bars and line.low:
        axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.4, alpha=0.8)
    elif line.low:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    if line.near_worst:
        axes.plot(line.x, line.near_worst, color=colour, linewidth=0.9, linestyle=(0, (5, 3)))
    if line.worst:
        worst = [value if math.isfinite(value) else math.nan for value in line.worst]
        axes.plot(line.x, worst, linestyle="none", marker="v", markersize=4, markerfacecolor="none", color=colour)
    failing = [x for x, share in zip(line.x, line.failed, strict=False) if share > 0]
    if failing:
        low = plot.y.low + 0.025 * (plot.y.high - plot.y.low)
        axes.plot(failing, [low] * len(failing), linestyle="none", marker="x", markersize=5, color=colour)


def _rule(axes: Axes, rule: Rule) -> None:
    colour = _colour(rule.series)
    axes.axhline(rule.value, color=colour, linewidth=0.9, linestyle=(0, (8, 3)) if rule.below else (0, (2, 3)))
    if rule.label:
        shift, side = ((0, -2), "top") if rule.below else ((0, 2), "bottom")
        axes.annotate(
            rule.label, (1, rule.value), xycoords=axes.get_yaxis_transform(), xytext=shift, textcoords="offset points",
            ha="right", va=side, size=8, color=_INK,
        )  # fmt: skip


def _strips(plot: Strips) -> Figure:
    count = len(plot.panels)
    figure = _figure(6.4, 0.9 + 1.5 * count)
    failing = any(column.failed for panel in plot.panels for column in panel.columns)
    every = figure.subplots(count, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, panel in zip(every, plot.panels, strict=True):
        _scale(axes, plot.x, "x")
        _scale(axes, plot.y, "y")
        axes.set_xlabel(plot.x.label if panel is plot.panels[-1] else "")
        if failing:
            axes.set_ylim(plot.y.low - 0.14 * (plot.y.high - plot.y.low), plot.y.high)
        axes.grid(False, axis="x")
        axes.set_title(fit(panel.name, 70), fontsize=9)
        for rule in panel.rules:
            axes.axhline(rule.value, color=_SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        for i, column in enumerate(panel.columns):
            _column(axes, i, column, _colour(panel.series), plot.y)
    figure.suptitle(plot.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _column(axes: Axes, place: int, column: Column, colour: str, axis: Axis) -> None:
    """The trials of a point: dots side by side where they would hide each other, a bar at the mean."""
    values = thinned(column.values)
    bins: dict[int, int] = {}
    xs = []
    for value in values:
        key = math.floor(40 * axis.share(value))
        index = bins[key] = bins.get(key, -1) + 1
        xs.append(place + 0.035 * ((index + 1) // 2) * (1 if index % 2 else -1))
    widest = max([0.4, *(abs(x - place) for x in xs)])
    xs = [place + (x - place) * 0.4 / widest for x in xs]
    axes.plot(xs, values, linestyle="none", marker="o", markersize=2.4, markeredgewidth=0, color=colour, alpha=0.6)
    if math.isfinite(column.mean):
        axes.hlines(column.mean, place - 0.28, place + 0.28, color=_INK, linewidth=1.4, zorder=3)
    if column.failed:
        axes.annotate(
            f"\N{MULTIPLICATION SIGN}{column.failed}", (place, 0.02), xycoords=axes.get_xaxis_transform(), ha="center",
            va="bottom", size=7.5, color=_INK,
        )  # fmt: skip


def _dots(plot: Dots) -> Figure:
    series = max((len(entry.points) for entry in plot.entries), default=1)
    each = 0.17 + 0.09 * series
    figure = _figure(6.4, 1.1 + each * len(plot.entries))
    axes = figure.add_subplot()
    _scale(axes, plot.x, "x")
    axes.set_ylim(len(plot.entries) - 0.5, -0.5)
    axes.set_yticks(range(len(plot.entries)), [fit(entry.name, 38) for entry in plot.entries])
    axes.grid(False, axis="y")
    for i, rule in enumerate(plot.rules):
        axes.axvline(rule.value, color=_colour(rule.series), linewidth=0.9, linestyle=(0, (2, 3)))
        axes.annotate(
            rule.label, (rule.value, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 2 + 9 * i),
            textcoords="offset points", ha="center", va="bottom", size=8, color=_INK,
        )  # fmt: skip
    for i, entry in enumerate(plot.entries):
        for j, (number, value, low, high) in enumerate(entry.points):
            y = i + (j - (len(entry.points) - 1) / 2) * 0.6 / max(1, series)
            if math.isfinite(low) and math.isfinite(high):
                axes.hlines(y, low, high, color=_colour(number), linewidth=1.4, alpha=0.8)
            axes.plot([value], [y], color=_colour(number), marker=_marker(number), markersize=5, linestyle="none")
    if len(plot.series) > 1:
        handles = [_handle(number, name) for number, name in plot.series]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    axes.set_title(plot.title, pad=8 + 9 * len(plot.rules))
    return figure


def _handle(series: int, name: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=_colour(series), marker=_marker(series), linestyle="none", markersize=5, label=name)


def _heat(plot: Heat) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

    high, wide = 0.24 * len(plot.rows), max(3.2, 0.46 * len(plot.columns)) if len(plot.columns) < 16 else 6.0
    figure = _figure(min(9.5, 1.6 + wide), 1.5 + high)
    axes = figure.add_subplot()
    low, most = plot.scale()
    norm = LogNorm(low, most) if plot.log else Normalize(low, most)
    colours = LinearSegmentedColormap.from_list("loss", palette.HEAT_LIGHT)
    edges = [range(len(plot.columns) + 1), range(len(plot.rows) + 1)]
    shares = [[most if math.isinf(v) else max(v, low) if v == v else math.nan for v in row] for row in plot.values]
    axes.pcolormesh(*edges, shares, norm=norm, cmap=colours, edgecolors="white", linewidth=0.5)
    axes.set_ylim(len(plot.rows), 0)
    axes.grid(False)
    stride = max(1, math.ceil(len(plot.columns) / (32 if max(map(len, plot.columns), default=1) < 3 else 12)))
    shown = range(0, len(plot.columns), stride)
    axes.set_xticks([j + 0.5 for j in shown], [plot.columns[j] for j in shown], fontsize=7.5)
    axes.set_yticks([i + 0.5 for i in range(len(plot.rows))], [fit(name, 34) for name in plot.rows], fontsize=7.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for span in plot.spans[1:]:
        axes.axvline(span.low, color=_INK, linewidth=0.8)
    _numbers(axes, plot)
    axes.set_xlabel(plot.column_label)
    axes.set_title(plot.title)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(plot.unit, color=_INK)
    bar.outline.set_visible(False)
    return figure


def _numbers(axes: Axes, plot: Heat) -> None:
    """The value in every cell where there is room, a cross where all trials failed."""
    room = len(plot.columns) < 16
    for i, row in enumerate(plot.values):
        for j, value in enumerate(row):
            text = "\N{MULTIPLICATION SIGN}" if math.isinf(value) else plot.say(value) if room else ""
            if text and not math.isnan(value):
                dark = palette.heat_step(plot.share(value)) >= 5
                axes.text(
                    j + 0.5, i + 0.5, text, ha="center", va="center", size=6.5, color="white" if dark else "black"
                )
