"""What is known of a metric: which direction is better, and how bad and how good it can be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptguard.errors import UsageError
from ckptguard.spec import suggestion

HIGHER, LOWER = "higher", "lower"

_SHARES = (
    "accuracy",
    "acc",
    "top1",
    "top5",
    "agreement",
    "precision",
    "recall",
    "f1",
    "auc",
    "auroc",
    "map",
    "iou",
    "top2diff",
)
_CORRELATIONS = ("cosine", "spearman", "pearson", "mcc")
_ERRORS = ("error", "mismatch", "wer", "cer", "sdc")
_UNBOUNDED_LOWER = {
    "loss": 0.0,
    "nll": 0.0,
    "cross_entropy": 0.0,
    "perplexity": 1.0,
    "ppl": 1.0,
    "kl": 0.0,
    "mse": 0.0,
    "rmse": 0.0,
    "mae": 0.0,
    "max_difference": 0.0,
    "mean_difference": 0.0,
    "relative_error": 0.0,
    "changed_elements": 0.0,
    "non_finite": 0.0,
    "wrong_bits": 0.0,
}


@dataclass(frozen=True)
class Metric:
    """One metric of an evaluator.

    Attributes:
        higher_is_better: its direction.
        low, high: the least and the largest value it can have; infinite where none is known.
        known: whether direction and range come from its name or the user; else higher is taken to be better.
    """

    name: str
    higher_is_better: bool
    low: float = -math.inf
    high: float = math.inf
    known: bool = True

    @property
    def worst(self) -> float:
        """The worst value there is; infinite where none is known."""
        return self.low if self.higher_is_better else self.high

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high) where both are known."""
        return (self.low, self.high) if math.isfinite(self.low) and math.isfinite(self.high) else None

    def goodness(self, value: float) -> float:
        """The value, so signed that higher is better; -inf for NaN and infinities, which are failures."""
        return -math.inf if not math.isfinite(value) else value if self.higher_is_better else -value

    def to_json(self) -> dict[str, object]:
        """A JSON object; bounds that are not known are null."""
        return {
            "direction": HIGHER if self.higher_is_better else LOWER,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "known": self.known,
        }

    @classmethod
    def from_json(cls, name: str, record: Mapping[str, Any]) -> Metric:
        """Inverse of `to_json`."""
        low, high = (math.inf if record[side] is None else float(record[side]) for side in ("low", "high"))
        return cls(name, record["direction"] == HIGHER, -math.inf if low == math.inf else low, high, record["known"])


def describe(name: str, percent: bool = False) -> Metric:
    """What the name of a metric says of it. A name is taken apart at `_`, `-`, `.`, `/`, `:` and blanks.

    Args:
        percent: shares lie in 0 .. 100, not in 0 .. 1.
    """
    parts = _parts(name)
    unbounded = next((low for key, low in _UNBOUNDED_LOWER.items() if key in parts), None)
    if "non_finite_outputs" in parts:
        return Metric(name, False, 0.0, 100.0)
    if unbounded is not None:
        return Metric(name, False, unbounded)
    if parts & set(_ERRORS):
        return Metric(name, False, 0.0, 100.0 if percent else 1.0)
    if parts & set(_CORRELATIONS):
        return Metric(name, True, -1.0, 1.0)
    if parts & set(_SHARES):
        return Metric(name, True, 0.0, 100.0 if percent else 1.0)
    return Metric(name, True, known=False)


def _parts(name: str) -> set[str]:
    lowered = name.lower()
    for separator in "-./: @":
        lowered = lowered.replace(separator, "_")
    return {lowered, *lowered.split("_")}


def describe_all(
    clean: Mapping[str, Mapping[str, float]], ranges: Iterable[str] = (), directions: Iterable[str] = ()
) -> dict[str, Metric]:
    """What is known of every metric that an evaluator gave for the clean variants.

    Shares (accuracy, top1, agreement, mismatch, ...) lie in 0 .. 1, or, where one of the evaluator's has more than 1
    for a clean model, all in 0 .. 100.

    Args:
        clean: variant -> metrics.
        ranges: `accuracy=0:100`; a side left out is not bounded.
        directions: `score=lower`.
    """
    names = dict.fromkeys(name for metrics in clean.values() for name in metrics)
    shares = {name for name in names if describe(name).bounds == (0.0, 1.0)}
    percent = any(metrics[name] > 1 for metrics in clean.values() for name in shares & metrics.keys())
    found = {name: describe(name, percent) for name in names}
    for text in directions:
        name, value = _setting(text, "--direction", found, "NAME=higher or NAME=lower")
        if value not in (HIGHER, LOWER):
            raise UsageError(f"--direction {text!r}: expected NAME=higher or NAME=lower")
        higher = value == HIGHER
        if higher != found[name].higher_is_better or not found[name].known:
            found[name] = Metric(name, higher, found[name].low, found[name].high)
    for text in ranges:
        name, value = _setting(text, "--range", found, "NAME=LOW:HIGH")
        low, _, high = value.partition(":")
        bounds = _bound(low, -math.inf, text), _bound(high, math.inf, text)
        if not bounds[0] < bounds[1]:
            raise UsageError(f"--range {text!r}: LOW is not below HIGH")
        for variant, metrics in clean.items():
            if not bounds[0] <= metrics.get(name, bounds[0]) <= bounds[1]:
                raise UsageError(f"--range {text!r}: the clean model ({variant}) has {metrics[name]:g}")
        found[name] = replace(found[name], low=bounds[0], high=bounds[1])
    return found


def _setting(text: str, option: str, known: Mapping[str, Metric], form: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"{option} {text!r}: expected {form}")
    return require(name, known, option), value


def refuse_beyond(metric: Metric, values: Iterable[float]) -> None:
    """Refuse values outside the range that the metric was taken to have, as bounds and means rest on it."""
    for value in values:
        if math.isfinite(value) and not metric.low <= value <= metric.high:
            raise UsageError(
                f"a trial has {metric.name} {value:g}, beyond the {metric.low:g} .. {metric.high:g} that its name "
                f"stands for; say --range {metric.name}=LOW:HIGH and --resume (`:` alone where there are no bounds)"
            )


def require(name: str, known: Iterable[str], option: str) -> str:
    """A name among the metrics that the evaluator gives."""
    names = list(known)
    if name not in names:
        raise UsageError(
            f"{option}: the evaluator has no metric {name!r}{suggestion(name, names)}; it has: {', '.join(names)}"
        )
    return name


def _bound(text: str, default: float, whole: str) -> float:
    if not text.strip():
        return default
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--range {whole!r}: {text!r} is no number; expected NAME=LOW:HIGH") from None
