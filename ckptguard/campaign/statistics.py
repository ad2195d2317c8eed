"""What trials prove: intervals, tolerance statements, sequences that allow peeking, paired comparisons, thresholds.

The unit is the trial, one corrupted checkpoint; images or texts inside a trial are never counted as trials. Lower and
upper bounds are two-sided at the confidence named unless a function says otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.errors import MissingExtraError, UsageError

Floats = npt.NDArray[np.float64]

FEW = 10
"""Below this many trials an interval of the mean is Student's; a bootstrap of so few is too narrow."""


@dataclass(frozen=True)
class Interval:
    """Bounds, the confidence they hold with, and the method that gave them."""

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Tolerance:
    """A distribution-free lower bound for most devices.

    Attributes:
        bound: at least `share` of all devices have a value of `bound` or more; None where there are too few trials.
        rank: the bound is the rank-th smallest value seen (1 = the worst); 0 where there are too few trials.
        trials_needed: for the worst value seen to be such a bound.
    """

    share: float
    confidence: float
    bound: float | None
    rank: int
    trials: int
    trials_needed: int


@dataclass(frozen=True)
class Paired:
    """The same faults with two treatments: `first - second`, trial by trial.

    Attributes:
        mean, interval: of the differences.
        better, equal, worse: trials in which the first is above, at or below the second.
        sign_test: two-sided probability of a split at least this uneven if neither were better.
        variance_ratio: variance of the difference over the sum of both variances; below 1 the pairing paid.
    """

    trials: int
    mean: float
    interval: Interval
    better: int
    equal: int
    worse: int
    sign_test: float
    variance_ratio: float


@dataclass(frozen=True)
class Threshold:
    """The largest error rate at which the mean error stays within a relative increase.

    Attributes:
        rate: the largest rate of the grid up to which every mean error is within the limit; None if not even the first.
        next_rate: the first rate beyond the limit; None if none of the grid is.
        crossing: where a straight line in log(rate) between the two meets the limit; None unless both are there.
        limit: (1 + increase) * clean error.
    """

    increase: float
    limit: float
    rate: float | None
    next_rate: float | None
    crossing: float | None


def stats() -> Any:
    """scipy.stats, or MissingExtraError."""
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingExtraError("statistics need scipy: pip install 'ckptguard[campaign]'") from error
    return scipy.stats


def sample(values: Sequence[float] | Floats) -> Floats:
    """The values as float64. Raises UsageError for none at all and for NaN or infinity, which callers count apart."""
    array = np.asarray(values, np.float64).reshape(-1)
    if not array.size:
        raise UsageError("statistics need at least one trial")
    if not np.isfinite(array).all():
        raise UsageError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite; count failures first"
        )
    return array


def probability(value: float, what: str) -> float:
    """A probability strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise UsageError(f"{what} lies between 0 and 1, not {value!r}")
    return value


def mean_interval(
    values: Sequence[float] | Floats,
    confidence: float = 0.95,
    *,
    method: str | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Interval for the mean over trials.

    Args:
        method: `t` (Student), `bca` (bias-corrected accelerated bootstrap over trials), or None: `t` below 10 trials.
        resamples, seed: of the bootstrap; the same values and seed give the same interval.
    Returns:
        For one trial the whole line; for values that are all equal that value, said in the method.
    Source: B. Efron, Better Bootstrap Confidence Intervals, JASA 82 (1987).
    """
    array = sample(values)
    probability(confidence, "confidence")
    method = method or ("t" if array.size < FEW else "bca")
    if method not in ("t", "bca"):
        raise UsageError(f"unknown method {method!r} for an interval of a mean; known: bca, t")
    if array.size == 1:
        return Interval(-math.inf, math.inf, confidence, "one trial")
    mean = float(array.mean())
    if np.ptp(array) == 0.0:
        return Interval(mean, mean, confidence, "all trials equal")
    if method == "t":
        half = (
            float(stats().t.ppf((1 + confidence) / 2, array.size - 1))
            * float(array.std(ddof=1))
            / math.sqrt(array.size)
        )
        return Interval(mean - half, mean + half, confidence, "t")
    return Interval(*_bca(array, confidence, resamples, seed), confidence, "bca")


def _bca(array: Floats, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    normal = stats().norm
    generator = np.random.Generator(np.random.Philox(key=seed))
    rows = max(1, (1 << 22) // array.size)
    means = np.concatenate(
        [
            array[generator.integers(0, array.size, (min(rows, resamples - start), array.size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    mean = array.mean()
    below = (np.count_nonzero(means < mean) + 0.5 * np.count_nonzero(means == mean)) / resamples
    bias = normal.ppf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    left_out = mean + (mean - array) / (array.size - 1)  # means without one trial
    away = left_out.mean() - left_out
    acceleration = float((away**3).sum() / (6.0 * (away**2).sum() ** 1.5))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.ppf(tail)
        ends.append(float(normal.cdf(bias + z / (1 - acceleration * z))))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def wilson(count: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval for a proportion: the one to report. Source: E. B. Wilson, JASA 22 (1927)."""
    return _proportion(count, trials, confidence, "wilson")


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact interval for a proportion: the one to claim with. Source: Clopper, Pearson, Biometrika 26 (1934)."""
    return _proportion(count, trials, confidence, "exact")


def _proportion(count: int, trials: int, confidence: float, method: str) -> Interval:
    if not 0 <= count <= trials or trials < 1:
        raise UsageError(f"{count} of {trials} is no proportion")
    probability(confidence, "confidence")
    found = stats().binomtest(count, trials).proportion_ci(confidence, method=method)
    return Interval(float(found.low), float(found.high), confidence, "clopper-pearson" if method == "exact" else method)


def tolerance_trials(share: float, confidence: float, rank: int = 1) -> int:
    """Trials after which the rank-th smallest value bounds at least `share` of all devices from below.

    Source: S. S. Wilks, Annals of Mathematical Statistics 12 (1941); 59 for 95 % at 95 % confidence and rank 1.
    """
    probability(share, "share")
    probability(confidence, "confidence")
    if rank < 1:
        raise UsageError(f"a rank is at least 1, not {rank}")
    high = rank
    while _covered(high, share, rank) < confidence:
        high *= 2
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle >= rank and _covered(middle, share, rank) >= confidence else (middle, high)
    return high


def _covered(trials: int, share: float, rank: int) -> float:
    """P(at least `rank` of the trials fall into the worst 1 - share)."""
    below, term = 0.0, share**trials
    for i in range(rank):
        below += term
        term *= (trials - i) / (i + 1) * (1 - share) / share
    return 1.0 - below


def tolerance(values: Sequence[float] | Floats, share: float = 0.95, confidence: float = 0.95) -> Tolerance:
    """The largest of the values seen that bounds at least `share` of all devices from below; nothing is assumed.

    Args:
        values: higher is better; NaN is not allowed, -inf stands for a failed trial.
    """
    array = np.sort(np.asarray(values, np.float64).reshape(-1))
    if not array.size or np.isnan(array).any():
        raise UsageError("a tolerance statement needs at least one trial and no NaN; failed trials count as -inf")
    needed = tolerance_trials(share, confidence)
    rank = 0
    while rank < array.size and _covered(array.size, share, rank + 1) >= confidence:
        rank += 1
    return Tolerance(share, confidence, float(array[rank - 1]) if rank else None, rank, array.size, needed)


def mean_sequence(values: Sequence[float] | Floats, low: float, high: float, confidence: float = 0.95) -> Interval:
    """Interval for the mean of values in [low, high] that stays valid when looked at after every trial.

    The mean may be watched, and the campaign stopped as soon as the interval is narrow enough.

    Args:
        values: in the order of the trials.
    Source: I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024),
        hedged capital with predictable plug-in bets.
    """
    array = sample(values)
    probability(confidence, "confidence")
    if not low < high or array.min() < low or array.max() > high:
        raise UsageError(
            f"values lie in {array.min():g} .. {array.max():g}, not in the {low:g} .. {high:g} they were said to"
        )
    grid, refuted = np.linspace(0.0, 1.0, 4001), np.zeros(4001, np.bool_)
    up, down = np.zeros(4001), np.zeros(4001)
    total, squares, variance = 0.5, 0.25, 0.25
    alpha = 1 - confidence
    for t, x in enumerate((array - low) / (high - low), 1):
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t)))
        with np.errstate(divide="ignore"):
            up += np.log1p(np.minimum(bet, 0.5 / grid) * (x - grid))
            down += np.log1p(-np.minimum(bet, 0.5 / (1 - grid)) * (x - grid))
        refuted |= np.maximum(up, down) + math.log(0.5) >= math.log(1 / alpha)
        total += x
        squares += (x - total / (t + 1)) ** 2
        variance = squares / (t + 1)
    left = np.flatnonzero(~refuted)
    first, last = (int(left[0]), int(left[-1])) if left.size else (0, 4000)
    ends = grid[max(0, first - 1)], grid[min(4000, last + 1)]
    return Interval(
        low + float(ends[0]) * (high - low), low + float(ends[1]) * (high - low), confidence, "betting sequence"
    )


def proportion_sequence(count: int, trials: int, confidence: float = 0.95) -> Interval:
    """Interval for a proportion that stays valid when looked at after every trial.

    The proportions against which a bet by a Beta(1/2, 1/2) mixture has not won 1 / (1 - confidence) fold.
    Source: H. Robbins, Statistical methods related to the law of the iterated logarithm, Ann. Math. Stat. 41 (1970).
    """
    if not 0 <= count <= trials or trials < 1:
        raise UsageError(f"{count} of {trials} is no proportion")
    probability(confidence, "confidence")
    mixture = math.lgamma(count + 0.5) + math.lgamma(trials - count + 0.5) - math.lgamma(trials + 1) - math.log(math.pi)

    def wins(p: float) -> bool:
        likelihood = 0.0
        for times, chance in ((count, p), (trials - count, 1 - p)):
            if times:
                likelihood += times * math.log(chance) if chance > 0 else -math.inf
        return mixture - likelihood >= -math.log(1 - confidence)

    share = count / trials
    return Interval(
        _border(0.0, share, wins) if wins(0.0) else 0.0,
        _border(1.0, share, wins) if wins(1.0) else 1.0,
        confidence,
        "mixture sequence",
    )


def _border(outside: float, inside: float, wins: Any) -> float:
    """Between a point that is refuted and one that is not: the last refuted one, to 2**-60 of the distance."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if wins(middle) else (outside, middle)
    return outside


def paired(
    first: Sequence[float] | Floats, second: Sequence[float] | Floats, confidence: float = 0.95, *, seed: int = 0
) -> Paired:
    """Compare two treatments of the same faults, trial by trial; see `Paired`."""
    a, b = sample(first), sample(second)
    if a.size != b.size:
        raise UsageError(f"paired trials are as many on both sides, not {a.size} and {b.size}")
    difference = a - b
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    decided = better + worse
    sign = float(stats().binomtest(better, decided).pvalue) if decided else 1.0
    spread = float(a.var() + b.var())
    return Paired(
        a.size,
        float(difference.mean()),
        mean_interval(difference, confidence, seed=seed),
        better,
        a.size - decided,
        worse,
        sign,
        float(difference.var()) / spread if spread else 1.0,
    )


def threshold(
    rates: Sequence[float], errors: Sequence[float], clean_error: float, increase: float = 0.005
) -> Threshold:
    """The largest error rate whose mean error is less than (1 + increase) times the clean one.

    Args:
        rates: ascending, positive.
        errors: mean error (not accuracy) at each.
    Source: Pyne et al., who take 0.5, 1, 5 and 10 % relative.
    """
    if len(rates) != len(errors) or not len(rates) or any(b <= a for a, b in itertools.pairwise(rates)):
        raise UsageError("a threshold needs ascending error rates, each with its mean error")
    limit = (1 + increase) * clean_error
    within = next((i for i, error in enumerate(errors) if not error < limit), len(errors))
    rate = rates[within - 1] if within else None
    following = rates[within] if within < len(rates) else None
    crossing = None
    if rate is not None and following is not None:
        before, after = errors[within - 1], errors[within]
        part = (limit - before) / (after - before) if after > before else 0.0
        crossing = math.exp(math.log(rate) + min(max(part, 0.0), 1.0) * (math.log(following) - math.log(rate)))
    return Threshold(increase, limit, rate, following, crossing)


def geometric_deviation(rates: Sequence[float]) -> float:
    """exp of the sample standard deviation of ln(rate): 2 means a factor of two either way. At least two rates."""
    if len(rates) < 2 or min(rates) <= 0:
        raise UsageError("a geometric deviation needs at least two positive rates")
    return math.exp(float(np.log(np.asarray(rates, np.float64)).std(ddof=1)))
