"""What agents are given and what they give: layers, an objective, settings, and the episodes they played."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ckptguard.errors import UsageError

Masks = Mapping[str, str]
Objective = Callable[[Masks, int], float]
"""Accuracy (0 .. 1) of the model with these masks under the faults of this draw. Draws are numbered; the same number
gives the same faults, whatever the masks."""

METHODS = ("topbits-ddpg", "bitmask-ddpg", "topbits-sac", "bitmask-sac", "topbits-ppo", "bitmask-ppo")

PAPER_EPISODES = 5000
"""Schedules of the paper are stated for so many episodes; for fewer they are compressed."""


@dataclass(frozen=True)
class Layer:
    """One tensor with trainable weights.

    Attributes:
        words: elements; `bits` of each.
        kind: 0 = linear, 1 = depthwise convolution, 2 = embedding, 3 = normalisation, 4 = convolution, 5 = other.
        inputs, outputs, stride, kernel, size: channels, stride and kernel (1 where there is none), input positions.
        ones: share of the words in which bit j (0 = most significant) is 1.
    """

    name: str
    words: int
    bits: int
    kind: int = 0
    inputs: int = 1
    outputs: int = 1
    stride: int = 0
    kernel: int = 1
    size: int = 0
    ones: tuple[float, ...] = ()


@dataclass(frozen=True)
class AgentSettings:
    """Hyper-parameters; the defaults are the paper's, as its published code has them.

    Attributes:
        method: one of METHODS.
        budget: largest share of all bits that may be protected.
        episodes: each one mask set and one noisy evaluation.
        fixed_point: the reward for fixed-point weights (squashed by sigmoids) instead of that for floats.
        reward: `published`, or `original`: as the authors' code has it, which for fixed-point weights rewards
            protecting less than the budget.
        warmup: episodes of random actions.
        scale: of rewards. decay: of the exploration per episode, None: 0.995 for TopBits and 0.992 for BitMask.
        hidden, learning_rate, batch, tau, discount: of the networks and their updates.
        replay: transitions kept per layer, None: 128 for TopBits and 256 for BitMask.
        pace: PAPER_EPISODES / episodes by default: schedules run so much faster.
    """

    method: str = "topbits-ddpg"
    budget: float = 0.25
    episodes: int = PAPER_EPISODES
    seed: int = 0
    fixed_point: bool = False
    reward: str = "published"
    warmup: int = 30
    scale: float = 0.2
    weight: float = 3.0
    deviation: float = 0.5
    decay: float | None = None
    hidden: int = 300
    learning_rate: float = 1e-4
    batch: int = 128
    tau: float = 0.01
    discount: float = 1.0
    replay: int | None = None
    pace: float | None = None
    progress: Callable[[int, int, float], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if self.reward not in ("published", "original"):
            raise UsageError(f"unknown reward {self.reward!r}; known: original, published")
        if not 0 < self.budget <= 1:
            raise UsageError(f"a budget is a share of the bits above 0 and up to 1, not {self.budget!r}")
        if self.episodes <= self.warmup:
            raise UsageError(f"{self.episodes} episodes end before learning begins; more than {self.warmup} are needed")

    @property
    def top(self) -> bool:
        """Whether actions are numbers of leading bits; else they are whole masks."""
        return self.method.startswith("topbits")

    @property
    def algorithm(self) -> str:
        """ddpg, sac or ppo."""
        return self.method.partition("-")[2]

    @property
    def speed(self) -> float:
        """How many episodes of the paper one episode here stands for."""
        return self.pace if self.pace is not None else max(1.0, PAPER_EPISODES / self.episodes)

    def sigma(self, episode: int) -> float:
        """Deviation of the exploration in an episode (from 0); BitMask starts afresh at 750 and 1500."""
        since = max(0.0, (episode - self.warmup) * self.speed)
        if not self.top:
            since -= max((start for start in (0.0, 750.0, 1500.0) if since >= start), default=0.0)
        decay = self.decay if self.decay is not None else (0.995 if self.top else 0.992)
        return float(self.deviation * decay**since)


@dataclass(frozen=True)
class Episode:
    """One mask set that was tried.

    Attributes:
        share: of all bits that it protects.
        accuracy: under one draw of faults. It is noisy: the best of many episodes is the luckiest, not the best.
    """

    index: int
    masks: Masks
    share: float
    accuracy: float
    reward: float


@dataclass(frozen=True)
class Learned:
    """All episodes, and what the trained agent does without exploring.

    Attributes:
        hint: positions that BitMask's warm-up favours; empty for TopBits.
        policy: the masks of the final actor.
    """

    episodes: tuple[Episode, ...]
    policy: Masks
    hint: tuple[int, ...]
    evaluations: int
    seconds: float
