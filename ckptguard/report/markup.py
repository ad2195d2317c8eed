"""HTML and SVG text that is well-formed XML, whatever the names in it are."""

from __future__ import annotations

import re
from html import escape

_NUMBER = re.compile(r"(?<=[0-9]) (?=%)")

VOID = frozenset({"br", "hr", "meta", "link"})


class Markup(str):
    """Text that is markup already; every other string is escaped when it is put into an element."""

    __slots__ = ()


Child = str | Markup | None
Attribute = str | int | float | bool | None


def plain(text: str) -> str:
    """Text as people may see it: control characters and direction marks as their escapes (XML forbids most of them)."""
    return "".join(
        c
        if c.isprintable() or c in "\n\N{NO-BREAK SPACE}"
        else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in _NUMBER.sub("\N{NO-BREAK SPACE}", text)
    )


def text(child: str) -> Markup:
    """One string, escaped unless it is markup."""
    return child if isinstance(child, Markup) else Markup(escape(plain(child), quote=False))


def join(*children: Child, between: str = "") -> Markup:
    """All children one after the other; None is left out."""
    return Markup(between.join(text(child) for child in children if child is not None))


def element(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element. Attributes of value None or False are left out, True repeats the name; `class_` is `class`, and an
    underscore inside a name a hyphen."""
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(f'{key}="{escape(plain(key if value is True else _number(value)))}"')
    head = " ".join(parts)
    if tag in VOID or (not children and tag in ("path", "line", "rect", "circle", "use")):
        return Markup(f"<{head}/>")
    return Markup(f"<{head}>{join(*children)}</{tag}>")


def _number(value: str | int | float) -> str:
    """Attribute text; coordinates with at most two digits after the point, so that files stay small and equal."""
    if isinstance(value, float):
        short = f"{value:.2f}".rstrip("0").rstrip(".")
        return "0" if short == "-0" else short
    return str(value)
