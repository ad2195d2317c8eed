"""What the rows of a campaign say: computed once, here; reports only render it.

The unit is the trial. A failed trial (the metric is NaN or infinite, the load was refused by the policy `raise`, or the
evaluator raised) is never left out: it counts as the worst value the metric can have, where that is known; else it
stands below every other trial in the order statistics, and the mean is that of the others and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ckptguard.campaign.design import Point, Stop
from ckptguard.campaign.metrics import Metric, refuse_beyond
from ckptguard.campaign.results import COUNTS, Clean, Key, Row, column
from ckptguard.campaign.statistics import (
    clopper_pearson,
    mean_interval,
    mean_sequence,
    paired,
    proportion_sequence,
    threshold,
    tolerance,
    wilson,
)
from ckptguard.campaign.verdict import FAIL, INCONCLUSIVE, PASS, Limit, judge
from ckptguard.errors import UsageError

INCREASES = (0.005, 0.01, 0.05, 0.10)
"""Relative increases of the mean error at which threshold error rates are stated (those of Pyne et al.)."""


@dataclass(frozen=True)
class Question:
    """What is asked of the rows.

    Attributes:
        variants: names, the reference of comparisons first.
        judged: the variants that the verdict is about.
        metrics: by name; `metric` is the main one.
        trials: of every point.
        redundancy: by variant and point.
        share: of devices in tolerance statements.
    """

    points: Sequence[Point]
    variants: Sequence[str]
    judged: Sequence[str]
    metrics: Mapping[str, Metric]
    metric: str
    clean: Clean
    trials: Mapping[str, int]
    redundancy: Mapping[str, Mapping[str, float]]
    stop: Stop | None = None
    limit: Limit | None = None
    share: float = 0.95
    confidence: float = 0.95


def analyse(rows: Mapping[Key, Row], asked: Question) -> dict[str, Any]:
    """Everything that is computed from the rows; see docs/campaigns.md for its fields."""
    for metric in asked.metrics.values():
        refuse_beyond(metric, (row.value(metric.name) for row in rows.values()))
    summary = [
        summarise(rows, asked, point, variant, metric)
        for point in asked.points
        for variant in asked.variants
        for metric in asked.metrics.values()
        if metric.name in asked.clean[variant]
    ]
    verdicts = [
        verdict for point in asked.points for name in asked.variants for verdict in _verdict(rows, asked, point, name)
    ]
    judged = [verdict["outcome"] for verdict in verdicts if verdict["variant"] in asked.judged]
    return {
        "confidence": asked.confidence,
        "share": asked.share,
        "summary": summary,
        "paired": _comparisons(rows, asked),
        "verdicts": verdicts,
        "verdict": overall(judged),
        "judged": list(asked.judged),
        "thresholds": _thresholds(summary, asked),
        "notes": _notes(summary, asked),
    }


def summarise(rows: Mapping[Key, Row], asked: Question, point: Point, variant: str, metric: Metric) -> dict[str, Any]:
    """One record of the summary: a metric of one variant at one point."""
    trials = asked.trials[point.id]
    values = column(rows, point.id, variant, trials, metric.name)
    goodness = [metric.goodness(value) for value in values]
    failures = sum(value == -math.inf for value in goodness)
    filled = _filled(values, metric)
    used = [value for value in filled if math.isfinite(value)]
    ordered = sorted(filled, key=lambda value: -value if not metric.higher_is_better else value)
    clean = asked.clean[variant][metric.name]
    record: dict[str, Any] = {
        "point": point.id,
        "label": point.label,
        "ber": point.ber,
        "group": point.group,
        "variant": variant,
        "metric": metric.name,
        "redundancy": asked.redundancy[variant][point.id],
        "clean": clean,
        "trials": trials,
        "failures": failures,
        "raised": sum(rows[point.id, variant, trial].raised for trial in range(trials)),
        "failures_in_mean": "none"
        if not failures
        else "as the worst value"
        if math.isfinite(metric.worst)
        else "left out",
    }
    record |= _mean(values, used, metric, asked)
    record |= {
        "change": record["mean"] - clean,
        "worst": ordered[0],
        "q05": ordered[max(0, math.ceil(0.05 * trials) - 1)],
        "median": _median(ordered),
        "best": ordered[-1],
        "standard_deviation": _deviation(used),
    }
    record |= _tolerance(goodness, metric, asked)
    if asked.limit is not None and asked.limit.metric == metric.name:
        record |= _within(values, clean, asked.limit, watched=asked.stop is not None)
    if metric.name == asked.metric:
        record |= _means(rows, point.id, variant, trials)
    return record


def _filled(values: Iterable[float], metric: Metric) -> list[float]:
    """Failed trials as the worst value; infinitely bad where none is known."""
    return [value if math.isfinite(value) else metric.worst for value in values]


def _mean(values: Sequence[float], used: Sequence[float], metric: Metric, asked: Question) -> dict[str, Any]:
    if not used:
        return {"mean": math.nan, "mean_low": math.nan, "mean_high": math.nan, "mean_method": "no trial gave a value"}
    found = mean_interval(used, asked.confidence)
    watched = asked.stop is not None and metric.name == asked.metric and metric.bounds is not None
    if watched and metric.bounds is not None:
        found = mean_sequence(_filled(values, metric), *metric.bounds, asked.confidence)
    low, high = found.low, found.high
    if metric.bounds is not None:
        low, high = max(low, metric.bounds[0]), min(high, metric.bounds[1])
    return {"mean": math.fsum(used) / len(used), "mean_low": low, "mean_high": high, "mean_method": found.method}


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    below, above = ordered[middle - 1], ordered[middle]
    return below if below == above else (below + above) / 2


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _tolerance(goodness: Sequence[float], metric: Metric, asked: Question) -> dict[str, Any]:
    """The bound that most devices keep, as a number and as a sentence; it holds for a number of trials fixed before."""
    found = tolerance(goodness, asked.share, asked.confidence)
    if asked.stop is not None:
        text = "not stated, as the results decided how many trials there are"
        return {"tolerance": text, "tolerance_bound": None, "tolerance_trials_needed": found.trials_needed}
    if found.bound is None:
        text = f"needs {found.trials_needed} trials, has {found.trials}"
        return {"tolerance": text, "tolerance_bound": None, "tolerance_trials_needed": found.trials_needed}
    bound = found.bound if metric.higher_is_better else -found.bound
    if not math.isfinite(bound) and math.isfinite(metric.worst):
        bound = metric.worst
    if math.isfinite(bound):
        side = "at least" if metric.higher_is_better else "at most"
        text = (
            f"{100 * asked.share:g} % of devices keep {side} {bound:.6g}, with {100 * asked.confidence:g} % confidence"
        )
    else:
        text = "failed trials leave nothing to state"
    return {"tolerance": text, "tolerance_bound": bound, "tolerance_trials_needed": found.trials_needed}


def _within(values: Sequence[float], clean: float, limit: Limit, watched: bool) -> dict[str, Any]:
    """How many trials keep a limit; bounds of the share on all devices, that allow watching where it was watched."""
    count = sum(limit.holds(value, clean) for value in values)
    if watched:
        found = proportion_sequence(count, len(values), limit.confidence)
        return {"within": count, "within_share": count / len(values), "within_sequence": [found.low, found.high]}
    reported = wilson(count, len(values), limit.confidence)
    claimed = clopper_pearson(count, len(values), limit.confidence)
    return {
        "within": count,
        "within_share": count / len(values),
        "within_wilson": [reported.low, reported.high],
        "within_clopper_pearson": [claimed.low, claimed.high],
    }


def _means(rows: Mapping[Key, Row], point: str, variant: str, trials: int) -> dict[str, Any]:
    """What happened to the stored bits, per trial."""
    found = [rows[point, variant, trial] for trial in range(trials)]
    counts = {f"mean_{name}": sum(row.counts[name] for row in found) / trials for name in COUNTS}
    expected = [row.expected_flips for row in found if row.expected_flips is not None]
    return {"mean_expected_flips": math.fsum(expected) / trials if len(expected) == trials else None} | counts


def _comparisons(rows: Mapping[Key, Row], asked: Question) -> list[dict[str, Any]]:
    """Every variant against the first, on the same faults; of the main metric."""
    metric = asked.metrics[asked.metric]
    reference = asked.variants[0]
    found = []
    for point in asked.points:
        trials = asked.trials[point.id]
        second = _filled(column(rows, point.id, reference, trials, metric.name), metric)
        for variant in asked.variants[1:]:
            first = _filled(column(rows, point.id, variant, trials, metric.name), metric)
            pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
            if not pairs:
                continue
            result = paired([a for a, _ in pairs], [b for _, b in pairs], asked.confidence)
            record = {"point": point.id, "metric": metric.name, "first": variant, "second": reference}
            found.append(record | asdict(result) | {"left_out": trials - len(pairs)})
    return found


def _verdict(rows: Mapping[Key, Row], asked: Question, point: Point, variant: str) -> list[dict[str, Any]]:
    if asked.limit is None or asked.limit.metric not in asked.clean[variant]:
        return []
    metric = asked.metrics[asked.limit.metric]
    values = column(rows, point.id, variant, asked.trials[point.id], metric.name)
    clean = asked.clean[variant][metric.name]
    try:
        found = judge(values, clean, asked.limit, peeking=asked.stop is not None, bounds=metric.bounds)
    except UsageError as error:
        raise UsageError(f"{error}; give --range {metric.name}=LOW:HIGH") from error
    return [{"point": point.id, "variant": variant, "metric": metric.name} | asdict(found)]


def overall(outcomes: Sequence[str]) -> str | None:
    """FAIL if one is, else INCONCLUSIVE if one is, else PASS; None where nothing was judged."""
    return next((outcome for outcome in (FAIL, INCONCLUSIVE, PASS) if outcome in outcomes), None)


def _thresholds(summary: Sequence[Mapping[str, Any]], asked: Question) -> list[dict[str, Any]]:
    """Threshold error rates of the main metric, per variant and place, where the faults are a series of rates."""
    metric = asked.metrics[asked.metric]
    series: dict[tuple[str, str], dict[float, float]] = {}
    for record in summary:
        if record["metric"] == metric.name and record["ber"] and math.isfinite(record["mean"]):
            series.setdefault((record["group"], record["variant"]), {})[record["ber"]] = record["mean"]
    found = []
    for (group, variant), means in series.items():
        clean = _error(asked.clean[variant][metric.name], metric)
        if len(means) < 2 or clean is None or clean <= 0:
            continue
        rates = sorted(means)
        errors = [_error(means[rate], metric) for rate in rates]
        for increase in INCREASES:
            result = threshold(rates, [error for error in errors if error is not None], clean, increase)
            found.append({"group": group, "variant": variant, "metric": metric.name} | asdict(result))
    return found


def _error(value: float, metric: Metric) -> float | None:
    """The error that a value is: itself where lower is better, what is missing to the best where that is known."""
    if not metric.higher_is_better:
        return value
    return metric.high - value if math.isfinite(metric.high) else None


def _notes(summary: Sequence[Mapping[str, Any]], asked: Question) -> list[str]:
    notes = []
    if asked.stop is not None:
        notes.append(
            f"the results decided how many trials there are (until {asked.stop}): intervals of {asked.metric} and "
            "verdicts allow that; those of other metrics and of comparisons do not, and tolerance and times to failure "
            "are not stated"
        )
    for metric in asked.metrics.values():
        failures = sum(record["failures"] for record in summary if record["metric"] == metric.name)
        if not metric.known:
            notes.append(
                f"{metric.name}: that higher is better is assumed; say --direction {metric.name}=lower if it is not"
            )
        if failures and math.isfinite(metric.worst):
            notes.append(f"{metric.name}: {failures} failed trials count as its worst value, {metric.worst:g}")
        elif failures:
            notes.append(
                f"{metric.name}: {failures} failed trials are left out of its means, which therefore look better than "
                f"they are; --range {metric.name}=LOW:HIGH gives them a value"
            )
    return notes
