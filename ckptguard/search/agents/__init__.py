"""Reinforcement learning of masks, as the papers do it; agents are stable-baselines3's.

`learn` is the entry; it needs the extra `rl`. Nothing here is imported before it is asked for.
"""

from __future__ import annotations

from ckptguard.errors import MissingExtraError
from ckptguard.search.agents.contract import METHODS, AgentSettings, Episode, Layer, Learned, Objective

__all__ = ["METHODS", "AgentSettings", "Episode", "Layer", "Learned", "Objective", "learn"]


def learn(layers: tuple[Layer, ...], objective: Objective, clean: float, settings: AgentSettings) -> Learned:
    """Learn a mask for every layer by trying masks; see `training.learn`."""
    try:
        from ckptguard.search.agents import training
    except ImportError as error:
        raise MissingExtraError(
            f"reinforcement learning needs stable-baselines3 and gymnasium: pip install 'ckptguard[rl]' ({error})"
        ) from error
    return training.learn(layers, objective, clean, settings)
