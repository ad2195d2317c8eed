"""Failures in time: what a failure probability over a stretch of time means for one device and for a fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptguard.campaign.statistics import clopper_pearson
from ckptguard.errors import UsageError

HOURS = {
    "s": 1 / 3600,
    "seconds": 1 / 3600,
    "minutes": 1 / 60,
    "hours": 1.0,
    "days": 24.0,
    "months": 730.5,
    "years": 8766.0,
}
"""Hours in a unit of time, by the names that device profiles use."""

BILLION = 1e9


@dataclass(frozen=True)
class FailureRate:
    """Failures of a model in time, from trials that each stand for one device over one stretch of time.

    Attributes:
        failures, trials: trials beyond the limit, of all.
        hours: the stretch that a trial stands for, after which stored data is written afresh.
        fit, fit_low, fit_high: failures per 10^9 device hours; bounds from Clopper and Pearson's.
        mean_hours, mean_hours_low: mean time to failure of one device, inf where no trial failed; and its lower bound.
        fleet_hours: mean time to the first failure among `devices`, lower bound.
        assumptions: what has to hold for these numbers; to be printed with them.
    """

    failures: int
    trials: int
    hours: float
    devices: int
    confidence: float
    fit: float
    fit_low: float
    fit_high: float
    mean_hours: float
    mean_hours_low: float
    fleet_hours: float
    assumptions: tuple[str, ...]


def hours_of(value: float, unit: str) -> float:
    """A stretch of time in hours."""
    if unit not in HOURS:
        raise UsageError(f"unknown unit of time {unit!r}; known: {', '.join(HOURS)}")
    return value * HOURS[unit]


def failure_rate(
    failures: int, trials: int, hours: float, *, devices: int = 1, confidence: float = 0.95, device: str = "the device"
) -> FailureRate:
    """FIT and mean time to failure.

    A stretch of `hours` fails with probability q; after it stored data is written afresh, so stretches are independent
    and the rate is -ln(1 - q) / hours.

    Args:
        failures, trials: of trials that each lasted `hours`.
        devices: of the fleet.
        device: named in the assumptions.
    """
    if not hours > 0 or not math.isfinite(hours):
        raise UsageError(f"a trial stands for a stretch of time above 0 hours, not {hours!r}")
    if devices < 1:
        raise UsageError(f"a fleet has at least one device, not {devices}")
    found = clopper_pearson(failures, trials, confidence)

    def rate(q: float) -> float:
        return -math.log1p(-q) / hours if q < 1 else math.inf

    def wait(per_hour: float) -> float:
        return 1 / per_hour if per_hour else math.inf

    point, low, high = rate(failures / trials), rate(found.low), rate(found.high)
    assumptions = (
        f"{device} behaves as its profile at the stated operating point says",
        f"a failure is a trial beyond the stated limit: {failures} of {trials}",
        f"stored data is written afresh, or scrubbed and repaired, every {hours:g} hours",
        "stretches and devices fail independently; faults within a stretch are drawn at its end",
        f"bounds are {confidence:.4g} Clopper-Pearson for the probability of a failure in one stretch",
    )
    return FailureRate(
        failures, trials, hours, devices, confidence,
        BILLION * point, BILLION * low, BILLION * high, wait(point), wait(high), wait(high) / devices, assumptions,
    )  # fmt: skip


@dataclass(frozen=True)
class Endurance:
    """How long a device keeps the model within the limit.

    Attributes:
        parameter, unit: of the profile that was varied, such as days since writing.
        last_pass, first_fail: the largest value up to which every point passed, and the smallest that failed; None
            where there is none.
    """

    parameter: str
    unit: str
    last_pass: float | None
    first_fail: float | None


def endurance(parameter: str, unit: str, values: Sequence[float], outcomes: Sequence[str]) -> Endurance:
    """Up to which value of a profile's parameter the verdict is PASS, and from which on it is FAIL."""
    if len(values) != len(outcomes):
        raise UsageError(f"{len(values)} operating points have {len(outcomes)} verdicts")
    last, failing = None, None
    for value, outcome in sorted(zip(values, outcomes, strict=True)):
        if outcome == "FAIL":
            failing = value
            break
        if outcome != "PASS":
            break
        last = value
    if failing is None:
        failing = next((v for v, outcome in sorted(zip(values, outcomes, strict=True)) if outcome == "FAIL"), None)
    return Endurance(parameter, unit, last, failing)
