"""From predicted damage to measured loss: the best monotone map through a few measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptguard.errors import UsageError
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search.paths import MaskPath
from ckptguard.search.trials import Ask, Trials, mean_drop

CALIBRATION_POINTS = 6
NO_DAMAGE = 1e-2
"""Of the least damage that was measured: what counts as none at all."""


@dataclass(frozen=True)
class Calibration:
    """A monotone map: linear between its points, in the logarithm of the prediction, level outside of them.

    Attributes:
        predicted: damages, ascending.
        measured: losses of the metric, not falling.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    @classmethod
    def fit(
        cls, predicted: Sequence[float], measured: Sequence[float], weights: Sequence[float] | None = None
    ) -> Calibration:
        """The non-decreasing map with the least weighted squared error at the points.

        Source: pool adjacent violators (Ayer et al. 1955); points of equal prediction are pooled first.
        """
        weights = [1.0] * len(predicted) if weights is None else weights
        if not len(predicted) == len(measured) == len(weights) or not predicted:
            raise UsageError(
                f"a calibration needs as many measured losses as predictions, at least one; got {len(predicted)} and "
                f"{len(measured)}"
            )
        rows = sorted(zip(predicted, measured, weights, strict=True))
        if not all(math.isfinite(x) and math.isfinite(y) and w > 0 for x, y, w in rows):
            raise UsageError("a calibration needs finite predictions and losses, and weights above zero")
        blocks: list[list[Any]] = []  # predictions, mean, weight
        for x, y, w in rows:
            blocks.append([[x], y, w])
            while len(blocks) > 1 and (blocks[-2][1] >= blocks[-1][1] or blocks[-2][0][-1] == blocks[-1][0][0]):
                xs, mean, weight = blocks.pop()
                both = blocks[-1][2] + weight
                blocks[-1][1] = (blocks[-1][1] * blocks[-1][2] + mean * weight) / both
                blocks[-1][2] = both
                blocks[-1][0] += xs
        fitted = [(x, mean) for xs, mean, _ in blocks for x in sorted(set(xs))]
        return cls(tuple(x for x, _ in fitted), tuple(y for _, y in fitted))

    def loss(self, predicted: float) -> float:
        """Expected loss of the metric at a predicted damage; infinite where the damage is."""
        if not math.isfinite(predicted):
            return math.inf
        return float(np.interp(_scale(predicted), [_scale(x) for x in self.predicted], self.measured))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"predicted": list(self.predicted), "measured": list(self.measured)}


def _scale(damage: float) -> float:
    return math.log(max(damage, 1e-30))


def calibrate_path(path: MaskPath, trials: Trials, draws: int, progress: Progress = silent) -> Calibration:
    """Measure the mean loss at a few vertices between no loss and chance, on the same draws for all.

    The places follow the predicted damage, evenly in its logarithm. Far below the last one nothing is lost.
    """
    most = ceiling(trials)
    damages = np.array([d if math.isfinite(d) else np.inf for d in path.damage])
    finite = np.flatnonzero(np.isfinite(damages))
    top = min(float(damages[finite].max()), 10.0)
    bottom = max(float(damages[finite].min()), top * 1e-5, 1e-12)
    wanted = np.geomspace(max(top, bottom), bottom, CALIBRATION_POINTS)
    vertices = sorted({int(finite[np.argmin(np.abs(np.log(damages[finite] + 1e-30) - np.log(w)))]) for w in wanted})
    drops = trials.measure(
        [Ask(path.masks(vertex), 0, draws) for vertex in vertices],
        lambda done, total: progress("calibration", done, total),
    )
    predicted = [float(damages[vertex]) for vertex in vertices]
    losses = [mean_drop(one, most) for one in drops]
    return Calibration.fit([bottom * NO_DAMAGE, *predicted], [0.0, *losses])


def least(path: MaskPath, calibration: Calibration, limit: float) -> int:
    """The cheapest vertex whose expected loss is within a limit, and so is that of all that cost more."""
    worst = [calibration.loss(damage) for damage in path.damage]
    for vertex in range(len(path)):
        if worst[vertex] <= limit:
            return vertex
    raise UsageError(
        f"even with every worthwhile bit protected a loss of {worst[-1]:.3g} is expected, above the limit of "
        f"{limit:g}; take a stronger code or allow more"
    )


def ceiling(trials: Trials) -> float:
    """The most that a trial counts as: down to the worst value of the metric, or ten times its size."""
    bounds = trials.metric.bounds
    clean = trials.clean[trials.metric.name]
    if bounds is None:
        return max(abs(clean), 1.0) * 10
    return clean - bounds[0] if trials.metric.higher_is_better else bounds[1] - clean


def drop_to(trials: Trials, target: float) -> float:
    """The loss that leaves a value of the metric. Raises UsageError for one better than the undamaged model's."""
    clean = trials.metric.goodness(trials.clean[trials.metric.name])
    drop = clean - trials.metric.goodness(target)
    if drop < 0:
        raise UsageError(f"the target {target:g} is better than the undamaged model, {abs(clean):g}")
    return drop
