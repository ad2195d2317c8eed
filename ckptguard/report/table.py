"""Plain-text tables: a heading, rows, columns aligned, nothing drawn."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MOST_ROWS = 20
"""Rows of a long table that are shown; `--json` has them all."""

GAP = "  "
_LONGEST_CELL = 60


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, hidden: int = 0) -> str:
    """Rows below their heading, indented by two blanks; columns that hold only numbers are aligned to the right.

    Args:
        rows: each as long as the heading.
        hidden: rows left out by the caller; a last line says so.
    """
    lines = [[_plain(cell) for cell in row] for row in (heading, *rows)]
    right = [bool(rows) and all(_is_number(row[column]) for row in lines[1:]) for column in range(len(heading))]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(heading))]
    text = [GAP + GAP.join(_pad(*cell) for cell in zip(line, widths, right, strict=True)).rstrip() for line in lines]
    if hidden:
        text.append(f"{GAP}... and {hidden:,} more (--json has all)")
    return "\n".join(text)


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max((_width(name) for name, _ in rows), default=0)
    return "\n".join(f"{GAP}{_pad(name, width, False)}{GAP}{_plain(value)}".rstrip() for name, value in rows)


def _plain(cell: str) -> str:
    """A cell without control characters (names in files may hold any), shortened in its middle."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cell)
    half = _LONGEST_CELL // 2
    return text if len(text) <= _LONGEST_CELL else f"{text[: half - 2]}...{text[1 - half :]}"


def _is_number(cell: str) -> bool:
    return cell in ("", "-", "nan", "inf") or cell.lstrip("+-≤")[:1].isdigit()


def _width(cell: str) -> int:
    """Terminal columns: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in cell)


def _pad(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(cell))
    return blanks + cell if right else cell + blanks
