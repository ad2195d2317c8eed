"""Reinforcement learning of masks: schedules, rewards and budget by hand, and agents that learn a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from ckptguard.errors import UsageError
from ckptguard.search.agents import AgentSettings, Episode, Layer, learn
from ckptguard.search.learning import candidates_of

pytest.importorskip("stable_baselines3")

from ckptguard.search.agents.environment import LayerEnvironment, features, reward, within_budget

LAYERS = (
    Layer("a", 100, 8, 4, 3, 10, 1, 3, 1024, (0.5, 0.1) + (0.4,) * 6),
    Layer("b", 300, 8, 0, 10, 30, 0, 1, 10, (0.5, 0.2) + (0.4,) * 6),
    Layer("c", 50, 8, 3, 30, 30, 0, 1, 0, (0.0, 0.0) + (0.9,) * 6),
)


def worth(masks, draw):
    """Accuracy that only the two leading bits of every layer matter for."""
    return 0.9 - 0.1 * sum((mask[0] == "0") + 0.5 * (mask[1] == "0") for mask in masks.values())


def test_states_are_scaled_over_the_layers():
    table = features(LAYERS, top=False)
    assert table.shape == (3, 16)
    assert (table.min(axis=0) == 0).all()
    assert set(np.ptp(table, axis=0).tolist()) <= {0.0, 1.0}
    assert features(LAYERS, top=True).shape == (3, 8)


def test_the_budget_takes_bits_from_the_last_layer_first():
    """3,600 bits; 8 of each is all of them; a budget of 0.5 leaves 1,800."""
    assert within_budget([8, 8, 8], LAYERS, 1.0) == [8, 8, 8]
    assert within_budget([4, 5, 4], LAYERS, 0.5) == [4, 4, 3]
    counts = within_budget([8, 8, 8], LAYERS, 0.5)
    assert sum(c * layer.words for c, layer in zip(counts, LAYERS, strict=True)) <= 1800
    assert within_budget([8, 8, 8], LAYERS, 1e-9) == [0, 0, 0]


def test_rewards_are_those_of_the_paper():
    top = AgentSettings("topbits-ddpg")
    assert reward(top, 0, 0.7, 0.9, 0.1) == pytest.approx(0.2 * -0.2)
    mask = AgentSettings("bitmask-ddpg", budget=0.25)
    assert reward(mask, 0, 0.9, 0.9, 0.35) == pytest.approx(-0.2 * 3 * 0.1 * 0.1)
    assert reward(mask, 1500, 0.9, 0.9, 0.35) == pytest.approx(-0.2 * 3 * 1.0 * 0.1)
    assert reward(mask, 1500, 0.9, 0.9, 0.15) == pytest.approx(-0.2 * 3 * 1.0 * 0.05)


def test_the_original_reward_pays_for_protecting_less_than_the_budget():
    """At a share of 0.03 of a budget of 0.25 it earns 0.2 * 3 * 0.118 = +0.071, as found in the authors' code."""
    published = AgentSettings("bitmask-ddpg", fixed_point=True)
    original = AgentSettings("bitmask-ddpg", fixed_point=True, reward="original")
    assert reward(original, 5000, 0.9, 0.9, 0.03) == pytest.approx(0.071, abs=5e-4)
    assert reward(published, 5000, 0.9, 0.9, 0.03) == pytest.approx(-0.071, abs=5e-4)


def test_exploration_decays_and_bitmask_starts_afresh():
    top, mask = AgentSettings("topbits-ddpg"), AgentSettings("bitmask-ddpg")
    assert top.sigma(30) == 0.5
    assert top.sigma(130) == pytest.approx(0.5 * 0.995**100)
    assert mask.sigma(30 + 749) == pytest.approx(0.5 * 0.992**749)
    assert mask.sigma(30 + 750) == 0.5
    assert mask.sigma(30 + 1500) == 0.5
    assert AgentSettings("topbits-ddpg", episodes=500).sigma(40) == pytest.approx(0.5 * 0.995**100)


def test_an_episode_evaluates_once_and_its_reward_comes_last():
    seen = []

    def objective(masks, draw):
        seen.append((dict(masks), draw))
        return 0.5

    environment = LayerEnvironment(LAYERS, objective, 0.9, AgentSettings("topbits-ddpg", budget=1.0))
    environment.reset()
    rewards = [environment.step(np.array([action], np.float32))[1] for action in (1.0, 0.0, 0.5)]
    assert rewards == [0.0, 0.0, pytest.approx(0.2 * -0.4)]
    assert seen == [({"a": "11111111", "b": "00000000", "c": "11110000"}, 0)]


def test_a_state_ends_with_the_previous_action():
    environment = LayerEnvironment(LAYERS, worth, 0.9, AgentSettings("bitmask-ddpg"))
    first, _ = environment.reset()
    action = np.linspace(0, 1, 8, dtype=np.float32)
    second = environment.step(action)[0]
    assert (first[-8:] == 1.0).all()
    assert (second[-8:] == action).all()


@pytest.mark.parametrize("method", ["topbits-ddpg", "bitmask-ddpg", "bitmask-sac", "topbits-ppo"])
def test_agents_play_the_episodes_asked_for_and_repeat_them_with_the_same_seed(method):
    settings = AgentSettings(method, episodes=36, warmup=30, batch=16, hidden=16, seed=3)
    once, again = learn(LAYERS, worth, 0.9, settings), learn(LAYERS, worth, 0.9, settings)
    assert len(once.episodes) == 36
    assert [episode.masks for episode in once.episodes] == [episode.masks for episode in again.episodes]
    assert once.policy == again.policy
    assert set(once.policy) == {"a", "b", "c"}
    if method.startswith("topbits"):
        assert all(episode.share <= 0.25 for episode in once.episodes)


def test_bitmask_is_hinted_at_the_bits_that_hurt():
    learned = learn(LAYERS, worth, 0.9, AgentSettings("bitmask-ddpg", episodes=31, batch=16, hidden=16))
    assert learned.hint == (0, 1)
    assert learned.evaluations == 31 + 8


@pytest.mark.slow
def test_ddpg_learns_which_layer_is_worth_its_bits():
    """Only bits of `a` are worth something, and those of `b` crowd them out."""

    def objective(masks, draw):
        return 0.5 + 0.05 * masks["a"].count("1") - 0.05 * masks["b"].count("1")

    settings = AgentSettings("topbits-ddpg", episodes=300, budget=1.0, hidden=64, seed=1)
    learned = learn(LAYERS, objective, 0.9, settings)
    assert learned.policy["b"].count("1") <= 1
    assert objective(learned.policy, 0) > 0.65  # random masks are worth 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "topbits-dqn"},
        {"budget": 0.0},
        {"episodes": 30},
        {"reward": "best"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError):
        AgentSettings(**settings)


def test_bitmask_refuses_words_of_several_lengths():
    layers = (LAYERS[0], Layer("d", 10, 16))
    with pytest.raises(UsageError, match="one length"):
        learn(layers, worth, 0.9, AgentSettings("bitmask-ddpg"))
    with pytest.raises(UsageError, match="no layers"):
        learn((), worth, 0.9, AgentSettings("topbits-ddpg"))


def test_a_mask_set_that_was_played_often_counts_once_and_by_its_mean(monkeypatch):
    """Lucky draws of one set do not crowd out sets that are better in the mean."""
    monkeypatch.setattr("ckptguard.search.learning.CANDIDATES", 2)
    often, good, fair = ({"a": mask} for mask in ("10", "11", "01"))
    rewards = [(often, 0.9), (good, 0.5), (often, 0.0), (often, 0.0), (fair, 0.4)]
    played = [Episode(index, masks, 0.5, 0.0, reward) for index, (masks, reward) in enumerate(rewards)]
    assert [one.index for one in candidates_of(played)] == [1, 4]
