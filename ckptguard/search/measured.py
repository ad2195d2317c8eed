"""Curvature of models that cannot be differentiated, from what noise on one tensor at a time costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.faults import Scope, make
from ckptguard.errors import UsageError
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search.curvature import Curvature
from ckptguard.search.frontier import exactly
from ckptguard.search.trials import Ask, Trials, mean_drop

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
    tensors = {name: _Tensor.of(encoding) for name, encoding in trials.bare.encodings.items()}
    losses = _losses(trials, [name for name, one in tensors.items() if one.largest], draws, level, scale, progress)
    values: dict[str, np.ndarray | float | None] = {
        name: losses[name].curvature(one, level) if one.largest else None for name, one in tensors.items()
    }
    return Curvature(values, draws, f"measured: Gaussian noise on one tensor at a time, {draws} draws each")


@dataclass(frozen=True)
class _Tensor:
    """How many numbers a tensor has, and the largest magnitude; 0 where it has none."""

    elements: int
    largest: float

    @classmethod
    def of(cls, encoding: Encoding) -> _Tensor:
        found = encoding.values(encoding.words)
        if found is None or not found.size:
            return cls(0, 0.0)
        return cls(found.size, float(np.abs(found[np.isfinite(found)]).max(initial=0.0)))


@dataclass(frozen=True)
class _Loss:
    """What noise of a size costs."""

    sigma: float
    loss: float

    def curvature(self, tensor: _Tensor, level: float) -> float:
        if not math.isfinite(self.loss):
            return math.inf
        return 2 * max(self.loss, level) / (tensor.elements * (self.sigma * tensor.largest) ** 2)


def _losses(
    trials: Trials, names: Sequence[str], draws: int, level: float, scale: float, progress: Progress
) -> dict[str, _Loss]:
    """By tensor, the first loss that is visible, or that of the largest noise. A size is tried on all that are left."""
    found: dict[str, _Loss] = {}
    left = list(names)
    for sigma in SIGMAS:
        faults = {"*": make(f"gaussian:{sigma}")}
        asks = [Ask(None, 0, draws, faults, Scope((exactly(name),)), guarded=False) for name in left]
        drops = trials.measure(
            asks, lambda done, total: progress("sensitivities", len(names) * draws - total + done, len(names) * draws)
        )
        found |= {name: _Loss(sigma, mean_drop(one, scale)) for name, one in zip(left, drops, strict=True)}
        left = [name for name in left if not found[name].loss >= level]
    return found
