"""From predicted damage to measured loss: the best monotone map through a few measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptguard.errors import UsageError


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
