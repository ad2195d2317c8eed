"""Parts of a page: sections, figures with their data, tables, lists of facts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

from ckptguard.report import palette, svg, ticks
from ckptguard.report.markup import Child, Markup, element, join
from ckptguard.report.plots import Curves, Dots, Heat, Plot, Strips

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the page may load: nothing. Its own style is inline."""


def document(title: str, *body: Child) -> str:
    """A whole page, well-formed XML as well, that loads nothing from anywhere."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'),
        element("title", title),
        element("style", Markup(style())),
    )
    page = element("html", head, "\n", element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def style() -> str:
    """The style sheet with the colours of the palette; no `<` or `&` in it, so that it is text for XML too."""
    sheet = files("ckptguard.report").joinpath("page.css").read_text("utf-8")
    series = "".join(f".s{i}{{--c:var(--s{i})}}" for i in range(len(palette.LIGHT)))
    heat = "".join(f".h{i}{{fill:var(--h{i})}}svg .on{i}{{fill:var(--o{i})}}" for i in range(palette.STEPS))
    light = _variables(palette.LIGHT, palette.HEAT_LIGHT)
    dark = _variables(palette.DARK, palette.HEAT_DARK)
    return sheet.replace("/*LIGHT*/", light).replace("/*DARK*/", dark).replace("/*SERIES*/", series + heat)


def _variables(series: Sequence[str], heat: Sequence[str]) -> str:
    parts = [f"--s{i}:{colour};" for i, colour in enumerate(series)]
    parts += [f"--h{i}:{colour};--o{i}:{ink(colour)};" for i, colour in enumerate(heat)]
    return "".join(parts)


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1, of `#rrggbb`. Source: WCAG 2.2."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21. Source: WCAG 2.2."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def ink(background: str) -> str:
    """Black or white, whichever is read more easily on a colour."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, background))


def section(title: str, *children: Child) -> Markup | None:
    """A section, or nothing if there is nothing in it."""
    kept = [child for child in children if child]
    return element("section", element("h2", title), *kept) if kept else None


def facts(rows: Iterable[tuple[str, Child]]) -> Markup | None:
    """Names and values; empty values are left out."""
    kept = [(name, value) for name, value in rows if value]
    if not kept:
        return None
    return element("dl", *(join(element("dt", name), element("dd", value)) for name, value in kept))


def table(
    heading: Sequence[str], rows: Sequence[Sequence[Child]], *, about: str, numeric: Iterable[int] = ()
) -> Markup | None:
    """A table that scrolls by itself where it is wider than the screen; the first column heads its row.

    Args:
        about: what it holds, for those who do not see it.
        numeric: columns aligned to the right.
    """
    return grouped(heading, [[row] for row in rows], about=about, numeric=numeric, spanned=False)


def grouped(
    heading: Sequence[str],
    groups: Sequence[Sequence[Sequence[Child]]],
    *,
    about: str,
    numeric: Iterable[int] = (),
    spanned: bool = True,
) -> Markup | None:
    """As `table`; rows of a group have one first cell together, and groups are set apart."""
    right = set(numeric)
    if not any(groups):
        return None

    def cells(row: Sequence[Child]) -> list[Markup]:
        return [element("td", cell, class_="n" if i in right else _whole(cell)) for i, cell in enumerate(row[1:], 1)]

    head = [element("th", name, scope="col", class_="n" if i in right else None) for i, name in enumerate(heading)]
    body = []
    for group in groups:
        for number, row in enumerate(group):
            rows = len(group) if len(group) > 1 else None
            first = (
                None
                if number
                else element("th", row[0], scope="rowgroup" if rows else "row", rowspan=rows, class_=_whole(row[0]))
            )
            body.append(element("tr", first, *cells(row), class_="start" if spanned and not number else None))
    whole = element("table", element("thead", element("tr", *head)), "\n", element("tbody", join(*body, between="\n")))
    return element("div", whole, class_="scroll", role="region", aria_label=about, tabindex="0")


def _whole(cell: Child) -> str | None:
    """The class of short texts, which are not broken into lines."""
    return "w" if cell is not None and len(cell) <= 24 else None


def figure(plot: Plot, caption: Child = None) -> Markup:
    """A figure: title, legend, the plot for wide and for narrow screens, a caption, and its data as a table."""
    heading, rows, right = data(plot)
    values = table(heading, rows, about=f"data: {plot.title}", numeric=right)
    return element(
        "figure",
        element("h3", plot.title),
        legend(plot),
        element("div", svg.draw(plot, svg.WIDE), class_="wide"),
        element("div", svg.draw(plot, svg.NARROW), class_="narrow"),
        element("figcaption", caption) if caption else None,
        element("details", element("summary", "The data of this figure"), values) if values else None,
    )


def legend(plot: Plot) -> Markup | None:
    """The series of a plot and, for curves, what its strokes mean."""
    if isinstance(plot, Curves):
        series = [(line.series, line.name) for line in plot.lines]
    elif isinstance(plot, Dots):
        series = list(plot.series)
    else:
        return None
    if not series:
        return None
    items = [
        element("li", svg.swatch(number, line=isinstance(plot, Curves)), element("span", name))
        for number, name in series
    ]
    return element("ul", *items, class_="legend")


def data(plot: Plot) -> tuple[list[str], list[list[str]], list[int]]:
    """Heading, rows and numeric columns of what a plot shows."""
    if isinstance(plot, Heat):
        return _heat_data(plot)
    if isinstance(plot, Strips):
        return _strips_data(plot)
    if isinstance(plot, Dots):
        names = dict(plot.series)
        rows = [
            [entry.name, names.get(number, ""), *map(say, values)]
            for entry in plot.entries
            for number, *values in entry.points
        ]
        return ["row", "variant", "mean", "low", "high"], rows, [2, 3, 4]
    rows = []
    for line in plot.lines:
        for i, x in enumerate(line.x):
            extra = [
                column[i] if column else math.nan
                for column in (line.y, line.low, line.high, line.near_worst, line.worst)
            ]
            failed = f"{100 * line.failed[i]:.3g} %" if line.failed and line.failed[i] else "0 %"
            rows.append([line.name, f"{x:.4g}", *map(say, extra), failed])
    return ["series", plot.x.label, "mean", "low", "high", "5 %", "worst", "failed"], rows, [1, 2, 3, 4, 5, 6, 7]


def _heat_data(plot: Heat) -> tuple[list[str], list[list[str]], list[int]]:
    rows = [
        [name, *("all failed" if math.isinf(value) else say(value) for value in values)]
        for name, values in zip(plot.rows, plot.values, strict=True)
    ]
    return [plot.row_label or "row", *plot.columns], rows, list(range(1, len(plot.columns) + 1))


def _strips_data(plot: Strips) -> tuple[list[str], list[list[str]], list[int]]:
    rows = []
    for panel in plot.panels:
        for name, column in zip(plot.x.names, panel.columns, strict=True):
            ordered = sorted(column.values)
            least, most = (ordered[0], ordered[-1]) if ordered else (math.nan, math.nan)
            rows.append(
                [panel.name, name, str(len(ordered)), say(least), say(column.mean), say(most), str(column.failed)]
            )
    return ["variant", plot.x.label, "trials", "least", "mean", "most", "failed"], rows, [2, 3, 4, 5, 6]


def say(value: float) -> str:
    """A number, or a dash where there is none."""
    return "–" if math.isnan(value) else ticks.short(value)
