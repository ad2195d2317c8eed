"""The verdict: does the model stay within a stated loss, on how many devices, and with what confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptguard.campaign.statistics import (
    clopper_pearson,
    mean_interval,
    mean_sequence,
    probability,
    proportion_sequence,
)
from ckptguard.errors import UsageError

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
CLAIMS = ("share", "mean")
_FAR = 1_000_000


@dataclass(frozen=True)
class Limit:
    """What a model may lose.

    Attributes:
        metric: of the evaluator.
        change: allowed change from the clean value, in the metric's units. Negative: the metric may fall by so much
            (higher is better). Positive: it may rise by so much (lower is better).
        claim: `share`: at least `share` of all devices stay within the limit; `mean`: the mean over devices does.
    """

    metric: str
    change: float
    claim: str = "share"
    share: float = 0.95
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.claim not in CLAIMS:
            raise UsageError(f"unknown claim {self.claim!r}; known: {', '.join(CLAIMS)}")
        if not math.isfinite(self.change):
            raise UsageError(f"a limit is a finite change, not {self.change!r}")
        probability(self.share, "share")
        probability(self.confidence, "confidence")

    @classmethod
    def parse(cls, text: str, claim: str = "share", share: float = 0.95, confidence: float = 0.95) -> Limit:
        """From `metric=-0.5`."""
        metric, equals, number = text.rpartition("=")
        try:
            change = float(number)
        except ValueError:
            change = math.nan
        if not equals or not metric or not math.isfinite(change):
            raise UsageError(f"{text!r} is no limit; expected a metric and its allowed change, as in accuracy=-0.5")
        return cls(metric, change, claim, share, confidence)

    @property
    def higher_is_better(self) -> bool:
        """By the sign of the allowed change."""
        return self.change <= 0

    def holds(self, value: float, clean: float) -> bool:
        """Whether a trial stays within the limit; NaN does not. A rounding error of 1e-9 of clean is forgiven."""
        slack = 1e-9 * max(1.0, abs(clean))
        change = value - clean
        return bool(change >= self.change - slack if self.higher_is_better else change <= self.change + slack)


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or INCONCLUSIVE.

    Attributes:
        trials, within: trials so far, and how many stayed within the limit.
        low, high: bounds that decided: of the share of devices within the limit, or of the mean change.
        trials_needed: further trials after which it passes if all stay within the limit (claim `share`), 0 where
            decided, None where that cannot be said.
        text: one sentence.
    """

    outcome: str
    trials: int
    within: int
    low: float
    high: float
    trials_needed: int | None
    text: str


def judge(
    values: Sequence[float],
    clean: float,
    limit: Limit,
    *,
    peeking: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Verdict:
    """Judge trials against a limit.

    Each of PASS and FAIL is wrong with probability at most 1 - confidence.

    Args:
        values: the metric of every trial, in order; NaN for trials that failed altogether.
        peeking: the number of trials was not fixed beforehand; then sequences that allow it are used.
        bounds: least and largest value of the metric; the claim `mean` needs them with peeking, and where trials
            failed, which then count as the worse of the two.
    """
    if not len(values):
        raise UsageError("a verdict needs at least one trial")
    return (
        _share(values, clean, limit, peeking)
        if limit.claim == "share"
        else _mean(values, clean, limit, peeking, bounds)
    )


def _share(values: Sequence[float], clean: float, limit: Limit, peeking: bool) -> Verdict:
    trials, within = len(values), sum(limit.holds(value, clean) for value in values)
    low, high = _share_bounds(within, trials, limit, peeking)
    outcome = PASS if low >= limit.share else FAIL if high < limit.share else INCONCLUSIVE
    needed: int | None = 0
    if outcome == INCONCLUSIVE:
        needed = _further(within, trials, limit, peeking)
    kept = f"{limit.metric} within {limit.change:+g} of clean"
    claim = f"with {limit.confidence:.4g} confidence, {{}} a share {limit.share:.4g} of devices keep {kept}"
    rest = f"{needed} more without a loss beyond it would pass" if needed else "how many more would decide is not known"
    text = {
        PASS: claim.format("at least"),
        FAIL: claim.format("less than"),
        INCONCLUSIVE: f"not decided: {within} of {trials} trials keep {kept}; {rest}",
    }[outcome]
    return Verdict(outcome, trials, within, low, high, needed, text)


def _share_bounds(within: int, trials: int, limit: Limit, peeking: bool) -> tuple[float, float]:
    both = 2 * limit.confidence - 1  # two one-sided statements, each at the confidence asked for
    if both <= 0:
        raise UsageError(f"a verdict needs a confidence above 0.5, not {limit.confidence:g}")
    found = proportion_sequence(within, trials, limit.confidence) if peeking else clopper_pearson(within, trials, both)
    return found.low, found.high


def _further(within: int, trials: int, limit: Limit, peeking: bool) -> int | None:
    """The smallest number of further trials, all within the limit, that would pass."""

    def passes(more: int) -> bool:
        return _share_bounds(within + more, trials + more, limit, peeking)[0] >= limit.share

    high = 1
    while not passes(high):
        high *= 2
        if high > _FAR:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _mean(
    values: Sequence[float], clean: float, limit: Limit, peeking: bool, bounds: tuple[float, float] | None
) -> Verdict:
    array = np.asarray(values, np.float64)
    failed = ~np.isfinite(array)
    if bounds is None and (peeking or failed.any()):
        why = "is watched while it runs" if peeking else f"has {int(failed.sum())} failed trials"
        raise UsageError(f"the mean of {limit.metric} {why}: its least and largest value must be known")
    if bounds is not None:
        array = np.where(failed, bounds[0] if limit.higher_is_better else bounds[1], array)
    if peeking and bounds is not None:
        found = mean_sequence(array, *bounds, limit.confidence)
    else:
        found = mean_interval(array, 2 * limit.confidence - 1)
    low, high = found.low - clean, found.high - clean
    inside, outside = (
        (low >= limit.change, high < limit.change)
        if limit.higher_is_better
        else (high <= limit.change, low > limit.change)
    )
    outcome = PASS if inside else FAIL if outside else INCONCLUSIVE
    within = sum(limit.holds(value, clean) for value in values)
    needed: int | None = 0
    if outcome == INCONCLUSIVE:
        needed = _narrower(array, clean, limit)
    text = (
        f"with {limit.confidence:.4g} confidence the mean change of {limit.metric} lies in {low:+.4g} .. {high:+.4g}; "
        f"allowed is {limit.change:+g}"
    )
    if needed:
        text += f"; about {needed} more trials would decide"
    return Verdict(outcome, len(array), within, low, high, needed, text)


def _narrower(array: np.ndarray, clean: float, limit: Limit) -> int | None:
    """About how many more trials shrink the interval, as the root of their number, to the distance from the limit."""
    distance = abs(float(array.mean()) - clean - limit.change)
    deviation = float(array.std(ddof=1)) if array.size > 1 else math.inf
    if not distance or not math.isfinite(deviation):
        return None
    whole = (1.645 * deviation / distance) ** 2
    return max(1, math.ceil(whole) - array.size) if whole < _FAR else None
