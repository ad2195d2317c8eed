"""Where the marks of an axis stand, and what is written at them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_POWER = re.compile(r"(?:([0-9.]+)·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
MINUS = "\N{MINUS SIGN}"


def linear(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """At most `most` round numbers between two bounds, at equal distances of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return (low,)
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (*_STEPS, 20.0) if _inside(low, high, power * part) <= most)
    first = math.ceil(low / step - 1e-9)
    return tuple(_clean((first + i) * step, step) for i in range(_inside(low, high, step)))


def _inside(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1


def _clean(value: float, step: float) -> float:
    return round(value, max(0, 2 - math.floor(math.log10(step))))


def whole(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Whole numbers between two bounds, at distances of a power of two: bit positions."""
    first, last = math.ceil(low), math.floor(high)
    stride = next(2**i for i in range(64) if last // 2**i - (first - 1) // 2**i <= max(1, most))
    return tuple(float(i) for i in range(first, last + 1) if i % stride == 0)


def logarithmic(low: float, high: float, most: int = 8) -> tuple[float, ...]:
    """Powers of ten between two positive bounds, every second or third one where there are many; 1, 2 and 5 times a
    power where there are fewer than two of them."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 1:
        near = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = tuple(
            float(f"{part}e{power}")
            for power in near
            for part in (1, 2, 5)
            if low * (1 - 1e-9) <= float(f"{part}e{power}") <= high * (1 + 1e-9)
        )
        if len(fine) > 1:
            return fine
        return linear(low, high, 4)
    stride = math.ceil((last - first + 1) / most)
    return tuple(float(f"1e{power}") for power in range(last, first - 1, -stride))[::-1]


def minor(low: float, high: float) -> tuple[float, ...]:
    """2 to 9 times every power of ten between two bounds, for short marks without a number."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{part}e{power}") for power in powers for part in range(1, 10)]
    return tuple(value for value in every if low <= value <= high)


def labels(values: Sequence[float]) -> list[str]:
    """Equal numbers of digits after the point, as many as the smallest distance needs."""
    if len(values) < 2:
        return [short(value) for value in values]
    step = min(abs(b - a) for a, b in pairwise(values))
    largest = max(abs(value) for value in values)
    if largest >= 1e6 or step < 1e-5:
        return [f"{value:.3g}".replace("-", MINUS) for value in values]
    digits = next(d for d in range(9) if all(abs(v - round(v, d)) <= step * 1e-6 for v in values))
    return [f"{value:,.{digits}f}".replace("-", MINUS) for value in values]


def power(value: float) -> str:
    """A rate as a power of ten: `10⁻³`, `2·10⁻³`; plain numbers from 0.1 to 9999."""
    if value <= 0 or not math.isfinite(value):
        return short(value)
    exponent = math.floor(math.log10(value) + 1e-12)
    if -1 <= exponent <= 3:
        return f"{value:g}"
    part = f"{value / 10.0**exponent:.3g}"
    raised = f"10{str(exponent).translate(_RAISED)}"
    return raised if part == "1" else f"{part}·{raised}"


def powers(values: Sequence[float]) -> list[str]:
    """Marks of a logarithmic axis: plain numbers if all are near 1, else powers of ten for all but 1."""
    if all(1e-3 <= value < 1e5 for value in values):
        return [f"{value:g}" for value in values]
    return [power(value) if value < 0.1 or value >= 1e4 else _raised(value) for value in values]


def _raised(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-12)
    part = f"{value / 10.0**exponent:.3g}"
    return part if exponent == 0 else f"{'' if part == '1' else part + '·'}10{str(exponent).translate(_RAISED)}"


def fixed(value: float, digits: int) -> str:
    """So many digits after the point; beyond a million as `short` has it."""
    if not math.isfinite(value) or abs(value) >= 1e6:
        return short(value)
    return f"{value:,.{digits}f}".replace("-", MINUS)


def digits_for(size: float) -> int:
    """Digits after the point that show about four significant digits of a value, at most four."""
    return 4 if size < 1 else max(0, 3 - math.floor(math.log10(size)))


def keyboard(text: str) -> str:
    """A text with the signs of a keyboard: `3e-05` for `3·10⁻⁵`, hyphens for minus signs, `to` for dashes."""
    for sign, plain in ((MINUS, "-"), ("–", "to"), ("×", "x"), ("≥", ">=")):
        text = text.replace(sign, plain)
    return _POWER.sub(lambda found: f"{found[1] or '1'}e{int(found[2].translate(_LOWERED)):+03d}", text)


def short(value: float, digits: int = 4) -> str:
    """A number with so many significant digits and a true minus sign; large and tiny ones as powers of ten."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value and not 1e-4 <= abs(value) < 1e6:
        part, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
        part = part.rstrip("0").rstrip(".") if "." in part else part
        return f"{part}·10{str(int(exponent)).translate(_RAISED)}".replace("-", MINUS)
    if abs(value) >= 10**digits:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)
