"""Plain-text tables: a heading, rows, columns aligned, nothing drawn."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MOST_ROWS = 20
"""Rows of a long table that are shown; `--json` has them all."""

GAP = "  "
_LONGEST_CELL = 60
_LONGEST_LAST_CELL = 100
_NUMBER = re.compile(r"-|nan|-?inf|[≤+-]? ?[0-9][0-9,]*(\.[0-9]+)?(e[+-]?[0-9]+)?( (%|B|[KMGTPE]iB))?|")


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, hidden: int = 0) -> str:
    """Rows below their heading, indented by two blanks; columns that hold only numbers are aligned to the right,
    the first one never.

    Args:
        rows: each as long as the heading.
        hidden: rows left out by the caller; a last line says so.
    """
    lines = [[*(_plain(cell) for cell in row[:-1]), _plain(row[-1], _LONGEST_LAST_CELL)] for row in (heading, *rows)]
    right = [bool(rows) and all(_NUMBER.fullmatch(row[column]) for row in lines[1:]) for column in range(len(heading))]
    right[0] = False
    widths = [max(_width(line[column]) for line in lines) for column in range(len(heading))]
    text = [GAP + GAP.join(_pad(*cell) for cell in zip(line, widths, right, strict=True)).rstrip() for line in lines]
    if hidden:
        text.append(f"{GAP}... and {hidden:,} more (--json has all)")
    return "\n".join(text)


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max((_width(name) for name, _ in rows), default=0)
    return "\n".join(
        f"{GAP}{_pad(name, width, False)}{GAP}{_plain(value, _LONGEST_LAST_CELL)}".rstrip() for name, value in rows
    )


def _plain(cell: str, longest: int = _LONGEST_CELL) -> str:
    """A cell without control characters (names in files may hold any), shortened in its middle."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cell)
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 2]}...{text[1 - half :]}"


def _width(cell: str) -> int:
    """Terminal columns: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in cell)


def _pad(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(cell))
    return blanks + cell if right else cell + blanks
