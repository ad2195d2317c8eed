"""Curvature of models that cannot be differentiated, from what noise on one tensor at a time costs."""

from __future__ import annotations

import math

import numpy as np

from ckptguard.campaign.faults import Scope, make
from ckptguard.errors import UsageError
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search.curvature import Curvature
from ckptguard.search.frontier import exactly
from ckptguard.search.trials import Ready, Trials, mean_drop

SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Noise that is tried on a tensor, as shares of its largest magnitude, until the loss can be told from nothing."""


def curvature(trials: Trials, draws: int = 4, visible: float | None = None, progress: Progress = silent) -> Curvature:
    """One number per tensor: F = 2 loss / (elements * variance of the noise), since a loss is 1/2 F sum of delta^2.

    Noise is Gaussian and grows until the mean loss of the metric is visible, or the largest was tried; a tensor whose
    loss is never visible counts with what would just have been. The draws are the same for every tensor and size.

    Args:
        visible: loss of the metric that is clearly more than its grain; default: one hundredth of its range, or of
            its clean value.
    """
    bounds = trials.metric.bounds
    scale = bounds[1] - bounds[0] if bounds else abs(trials.clean[trials.metric.name])
    if not scale > 0:
        raise UsageError(f"{trials.metric.name} has neither a range nor a value above 0 to measure losses by")
    level = visible if visible is not None else scale / 100
    values: dict[str, np.ndarray | float | None] = {}
    for number, (name, encoding) in enumerate(trials.bare.encodings.items(), 1):
        found = encoding.values(encoding.words)
        progress("sensitivities", number, len(trials.bare.encodings))
        if found is None or not found.size:
            values[name] = None
            continue
        largest = float(np.abs(found[np.isfinite(found)]).max(initial=0.0))
        values[name] = _of_tensor(trials, name, found.size, largest, draws, level, scale) if largest else None
    return Curvature(values, draws, f"measured: Gaussian noise on one tensor at a time, {draws} draws each")


def _of_tensor(
    trials: Trials, name: str, elements: int, largest: float, draws: int, level: float, scale: float
) -> float:
    scope = Scope((exactly(name),))
    loss, sigma = 0.0, SIGMAS[-1]
    for sigma in SIGMAS:
        drops = trials.drops_of(Ready(trials.bare), {"*": make(f"gaussian:{sigma}")}, 0, draws, scope)
        loss = mean_drop(drops, scale)
        if loss >= level:
            break
    return 2 * max(loss, level) / (elements * (sigma * largest) ** 2) if math.isfinite(loss) else math.inf
