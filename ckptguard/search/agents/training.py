"""Training agents of stable-baselines3 on the search, with the exploration and the replay of the papers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import truncnorm
from stable_baselines3 import DDPG, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from ckptguard.search.agents.contract import AgentSettings, Layer, Learned, Objective
from ckptguard.search.agents.environment import LayerEnvironment

PPO_EPISODES = 8
"""Episodes that PPO plays before it learns from them."""


class EpisodeReplay(ReplayBuffer):
    """Gives the reward of an episode to all of its steps, and to the learner less a moving average.

    Source: Peng et al. after HAQ (Wang et al. 2019): the average moves half way to the mean of each batch.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._steps: list[tuple[Any, ...]] = []
        self._baseline: float | None = None

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """Keep the step until its episode has ended."""
        self._steps.append((obs, next_obs, action, done, infos))
        if bool(done[0]):
            for before, after, taken, ended, info in self._steps:
                super().add(before, after, taken, reward, ended, info)
            self._steps = []

    def _get_samples(self, batch_inds: npt.NDArray[Any], env: Any = None) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        mean = float(samples.rewards.mean())
        self._baseline = mean if self._baseline is None else 0.5 * (self._baseline + mean)
        return samples._replace(rewards=samples.rewards - self._baseline)


class ExploringDDPG(DDPG):
    """DDPG that explores by normal numbers truncated to 0 .. 1, and warms up as the papers do."""

    search: AgentSettings
    hint: tuple[int, ...] = ()
    draws: np.random.Generator

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        shape = (n_envs, *self.action_space.shape)  # type: ignore[misc]
        if self.num_timesteps < learning_starts:
            action = self.draws.random(shape)
            if not self.search.top:
                favoured = np.zeros(shape)
                favoured[:, list(self.hint)] = 1.0
                action = action / 2 + favoured / 2
        else:
            mean = self.predict(self._last_obs, deterministic=True)[0]  # type: ignore[arg-type]
            sigma = self.search.sigma(self._episode_num)
            action = truncnorm.rvs(
                -mean / sigma, (1 - mean) / sigma, loc=mean, scale=sigma, size=shape, random_state=self.draws
            )
        action = action.astype(np.float32)
        return action, self.policy.scale_action(action)


def learn(layers: tuple[Layer, ...], objective: Objective, clean: float, settings: AgentSettings) -> Learned:
    """Play the episodes and train on them.

    Args:
        clean: accuracy without faults, 0 .. 1.
    """
    started = time.perf_counter()
    environment = LayerEnvironment(layers, objective, clean, settings)
    hint: tuple[int, ...] = ()
    if settings.algorithm == "ddpg" and not settings.top:
        hint = harmful_bits(layers, objective)
    agent = _agent(environment, settings, hint)
    agent.learn(settings.episodes * len(layers), log_interval=settings.episodes + 1)
    episodes = tuple(environment.episodes[: settings.episodes])
    policy = _greedy(agent, environment)
    evaluations = len(environment.episodes) + (layers[0].bits if hint else 0)
    return Learned(episodes, policy, hint, evaluations, time.perf_counter() - started)


def harmful_bits(layers: tuple[Layer, ...], objective: Objective) -> tuple[int, ...]:
    """The quarter of the bit positions whose lone exposure, all others protected, costs most."""
    bits = layers[0].bits
    losses = []
    for position in range(bits):
        mask = "1" * position + "0" + "1" * (bits - position - 1)
        losses.append(objective({layer.name: mask for layer in layers}, 0))
    order = sorted(range(bits), key=lambda position: (losses[position], position))
    return tuple(sorted(order[: bits // 4]))


def _agent(environment: LayerEnvironment, settings: AgentSettings, hint: tuple[int, ...]) -> BaseAlgorithm:
    steps = len(environment.layers)
    hidden = [settings.hidden, settings.hidden]
    shared: dict[str, Any] = {"learning_rate": settings.learning_rate, "seed": settings.seed, "device": "cpu"}
    shared |= {"policy_kwargs": {"net_arch": hidden}, "gamma": settings.discount}
    if settings.algorithm == "ppo":
        together = max(size for size in (1, 2, 4, PPO_EPISODES) if size == 1 or size * steps <= settings.batch)
        return PPO("MlpPolicy", environment, n_steps=steps * PPO_EPISODES, batch_size=steps * together, **shared)
    shared |= {
        "buffer_size": steps * (settings.replay or (128 if settings.top else 256)),
        "learning_starts": settings.warmup * steps,
        "batch_size": settings.batch,
        "tau": settings.tau,
        "train_freq": (1, "episode"),
        "gradient_steps": -1,
        "replay_buffer_class": EpisodeReplay,
    }
    if settings.algorithm == "sac":
        return SAC("MlpPolicy", environment, **shared)
    agent = ExploringDDPG("MlpPolicy", environment, **shared)
    agent.search, agent.hint = settings, hint
    agent.draws = np.random.default_rng(settings.seed)
    for network in (agent.actor, agent.critic):
        last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
        torch.nn.init.uniform_(last.weight, -0.003, 0.003)
        torch.nn.init.uniform_(last.bias, -0.003, 0.003)
    agent.actor_target.load_state_dict(agent.actor.state_dict())
    agent.critic_target.load_state_dict(agent.critic.state_dict())
    return agent


def _greedy(agent: BaseAlgorithm, environment: LayerEnvironment) -> dict[str, str]:
    """The masks that the agent chooses without exploring; nothing is evaluated."""
    environment.recording = False
    state, done = environment.reset()[0], False
    masks: dict[str, str] = {}
    while not done:
        state, _, done, _, info = environment.step(agent.predict(state, deterministic=True)[0])
        masks = info.get("masks", {})
    environment.recording = True
    return masks
