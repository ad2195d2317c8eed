"""The search as an environment of gymnasium: one step per layer, one evaluation per episode."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ckptguard.errors import UsageError
from ckptguard.search.agents.contract import AgentSettings, Episode, Layer, Objective

Floats = npt.NDArray[np.float32]


def features(layers: tuple[Layer, ...], top: bool) -> npt.NDArray[np.float64]:
    """(layers, 8 or 8 + bits) states without the previous action, each column scaled to 0 .. 1 over the layers.

    Source: Peng et al.; their kind, channels, stride, kernel, weights, input size and index, for BitMask with the share
    of ones at each bit position.
    """
    rows = []
    for index, layer in enumerate(layers):
        row = [layer.kind, layer.inputs, layer.outputs, layer.stride, layer.kernel, layer.words, layer.size, index]
        rows.append([*row, *(() if top else layer.ones)])
    table = np.array(rows, np.float64)
    low, spread = table.min(axis=0), np.ptp(table, axis=0)
    scaled: npt.NDArray[np.float64] = (table - low) / np.where(spread > 0, spread, 1.0)
    return scaled


def reward(settings: AgentSettings, episode: int, accuracy: float, clean: float, share: float) -> float:
    """What an episode earns.

    TopBits: the change in accuracy, scaled. BitMask: the same, less a penalty for protecting more or, half as dear,
    less than the budget; the penalty grows with the episodes. Source: Peng et al.
    """
    change, excess = accuracy - clean, share - settings.budget
    if settings.top:
        return settings.scale * change
    beta = min(max((episode * settings.speed - 750) / 750, 0.1), 1.0)
    if not settings.fixed_point:
        penalty = excess if excess > 0 else 0.5 * abs(excess)
        return settings.scale * (change - settings.weight * beta * penalty)
    if excess > 0:
        penalty = _squash(excess, 2)
    else:
        penalty = _squash(abs(excess) if settings.reward == "published" else excess, 1) / 2
    return settings.scale * (_squash(change, 2) - settings.weight * beta * penalty)


def _squash(x: float, steepness: float) -> float:
    """A sigmoid through the origin that is 1 at x = 1."""
    return (1 / (1 + math.exp(-steepness * x)) - 0.5) / abs(0.5 - 1 / (1 + math.exp(-steepness)))


def within_budget(counts: list[int], layers: tuple[Layer, ...], budget: float) -> list[int]:
    """Take one bit after the other from the last layer to the first, round and round, until the budget is met."""
    total = sum(layer.words * layer.bits for layer in layers)
    counts = list(counts)
    used = sum(count * layer.words for count, layer in zip(counts, layers, strict=True))
    while used > budget * total:
        for index in reversed(range(len(layers))):
            if counts[index] > 0:
                counts[index] -= 1
                used -= layers[index].words
            if used <= budget * total:
                break
    return counts


class LayerEnvironment(gymnasium.Env[Floats, Floats]):
    """One step decides one layer; after the last the masks are evaluated under one draw of faults.

    Actions lie in 0 .. 1: one number, the share of leading bits (TopBits), or one per bit, which is protected from 0.5
    on (BitMask). The reward of the episode comes with its last step; `replay` spreads it over all of them.
    """

    def __init__(self, layers: tuple[Layer, ...], objective: Objective, clean: float, settings: AgentSettings) -> None:
        if not layers:
            raise UsageError("there are no layers to protect")
        if not settings.top and len({layer.bits for layer in layers}) > 1:
            raise UsageError("BitMask needs layers with words of one length; choose TopBits")
        self.layers, self.settings, self.clean = layers, settings, clean
        self._objective = objective
        self._features = features(layers, settings.top)
        width = 1 if settings.top else layers[0].bits
        self.action_space = spaces.Box(0.0, 1.0, (width,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self._features.shape[1] + width,), np.float32)
        self.episodes: list[Episode] = []
        self.recording = True
        self._actions: list[Floats] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin at the first layer."""
        super().reset(seed=seed)
        self._actions = []
        return self._state(), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Decide one layer."""
        self._actions.append(np.clip(np.asarray(action, np.float32), 0.0, 1.0))
        done = len(self._actions) == len(self.layers)
        if not done:
            return self._state(), 0.0, False, False, {}
        masks = self.masks()
        if not self.recording:
            return self._state(), 0.0, True, False, {"masks": masks}
        index = len(self.episodes)
        accuracy, share = self._objective(masks, index), self.share(masks)
        value = reward(self.settings, index, accuracy, self.clean, share)
        self.episodes.append(Episode(index, masks, share, accuracy, value))
        if self.settings.progress is not None:
            self.settings.progress(index + 1, self.settings.episodes, accuracy)
        return self._state(), value, True, False, {"masks": masks}

    def masks(self) -> dict[str, str]:
        """Masks that the actions of this episode stand for."""
        names = [layer.name for layer in self.layers]
        if not self.settings.top:
            rows = ["".join("1" if value >= 0.5 else "0" for value in action) for action in self._actions]
            return dict(zip(names, rows, strict=True))
        counts = [
            min(max(round((layer.bits + 1) * float(action[0]) - 0.5), 0), layer.bits)
            for layer, action in zip(self.layers, self._actions, strict=True)
        ]
        counts = within_budget(counts, self.layers, self.settings.budget)
        return {
            layer.name: "1" * count + "0" * (layer.bits - count)
            for layer, count in zip(self.layers, counts, strict=True)
        }

    def share(self, masks: dict[str, str]) -> float:
        """Protected bits of all bits."""
        total = sum(layer.words * layer.bits for layer in self.layers)
        return sum(layer.words * masks[layer.name].count("1") for layer in self.layers) / total

    def _state(self) -> Floats:
        """Features of the layer to decide, with the previous action: a count of bits, or a vector."""
        index = min(len(self._actions), len(self.layers) - 1)
        if self.settings.top:
            bits = self.layers[index].bits
            count = bits if not self._actions else round(float(self._actions[-1][0]) * bits)
            previous = np.array([count], np.float32)
        else:
            previous = self._actions[-1] if self._actions else np.ones(self.layers[0].bits, np.float32)
        return np.concatenate([self._features[index].astype(np.float32), previous])
