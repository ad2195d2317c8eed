"""Numbers as people read them."""

from __future__ import annotations

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: float) -> str:
    """Bytes with a binary unit, one digit after the point: `213.4 KiB`, `7 B`."""
    if count < 1024:
        return f"{count:.0f} B"
    exponent = min(int(math.log2(count)) // 10, len(_UNITS) - 1)
    if round(count / 1024**exponent, 1) >= 1024 and exponent < len(_UNITS) - 1:
        exponent += 1
    return f"{count / 1024**exponent:.1f} {_UNITS[exponent]}"


def count(number: int, noun: str = "", plural: str = "") -> str:
    """A whole number with separators, and its noun: `1,234 codewords`."""
    text = f"{number:,}"
    if not noun:
        return text
    return f"{text} {noun if number == 1 else plural or noun + 's'}"


def rate(probability: float) -> str:
    """A probability or error rate in scientific notation: `2.08e-04`, `0`."""
    return "0" if probability == 0 else f"{probability:.2e}"


def percent(share: float, digits: int = 2) -> str:
    """A share in percent: `6.15 %`."""
    return f"{100 * share:.{digits}f} %"


def value(number: float) -> str:
    """A measured value with four significant digits, whatever its magnitude; `nan` and `inf` as they are."""
    return f"{number:.4g}"
