"""Exact tails of the binomial distribution, in log space."""

from __future__ import annotations

import math

from ckptguard.errors import UsageError

_NEGLIGIBLE = 1e-17
_EXACT = 4200


def binomial_tail(count: int, p: float, above: int) -> float:
    """P(X > above) for X ~ Bin(count, p), to about 12 digits down to 1e-300.

    The first term comes from the exact binomial coefficient (from the gamma function, and so to count * 1e-15 only,
    where it has thousands of digits), the others from the ratios of neighbours; beyond the mean the upper tail is
    summed, below it the lower one. Raises UsageError where p is no probability.
    """
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"a bit error rate is a probability, 0 to 1; found {p}")
    if above < 0:
        return 1.0
    if above >= count or p <= 0.0:
        return 0.0
    if p >= 1.0:
        return 1.0
    if above + 1 > count * p:
        return _sum(count, p, above + 1, +1)
    return 1.0 - _sum(count, p, above, -1)


def _sum(count: int, p: float, start: int, step: int) -> float:
    """P(X = start) + P(X = start + step) + ... as far as terms matter; they must fall from `start` on."""
    log_first = _log_choose(count, start) + start * math.log(p) + (count - start) * math.log1p(-p)
    odds = p / (1.0 - p)
    total = term = 1.0
    j = start
    while (j if step < 0 else count - j) > 0:
        term *= (count - j) / (j + 1) * odds if step > 0 else j / (count - j + 1) / odds
        j += step
        total += term
        if term < _NEGLIGIBLE * total:
            break
    return math.exp(log_first + math.log(total))


def _log_choose(count: int, chosen: int) -> float:
    if min(chosen, count - chosen) <= _EXACT:
        return math.log(math.comb(count, chosen))
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)
