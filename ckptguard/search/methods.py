"""The table of methods: what turns a problem into mask sets, cheapest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckptguard.search import frontier, paths
from ckptguard.search.problem import Problem
from ckptguard.search.trials import Trials

GRADIENTS, MEASURED, NOTHING = "gradients", "measured", "nothing"


@dataclass(frozen=True)
class Method:
    """One way to find masks.

    Attributes:
        summary: one line.
        curvature: where it comes from: `gradients`, `measured`, or `nothing` where it is used for predictions only, if
            it is there.
        path: from a problem, trials on the data that choose, and a seed to mask sets, by rising cost. None for agents,
            which learn one mask set (`learning.learned_path`).
    """

    summary: str
    curvature: str
    path: Callable[[Problem, Trials, int], paths.MaskPath] | None


def _fisher(problem: Problem, trials: Trials, seed: int) -> paths.MaskPath:
    return frontier.Frontier(problem.tensors, frontier.BITS, problem.metadata_bits)


def _top(problem: Problem, trials: Trials, seed: int) -> paths.MaskPath:
    return frontier.Frontier(problem.tensors, frontier.TOP, problem.metadata_bits)


def _uniform(problem: Problem, trials: Trials, seed: int) -> paths.MaskPath:
    return paths.uniform(problem.tensors, problem.metadata_bits)


def _random(problem: Problem, trials: Trials, seed: int) -> paths.MaskPath:
    return paths.at_random(problem.tensors, seed, problem.metadata_bits)


METHODS: dict[str, Method] = {
    "fisher": Method("any bits, by Fisher damage per parity bit", GRADIENTS, _fisher),
    "fisher-topbits": Method("leading bits of each tensor, by Fisher damage per parity bit", GRADIENTS, _top),
    "measured": Method("any bits, by measured sensitivities; needs no gradients", MEASURED, _fisher),
    "measured-topbits": Method("leading bits, by measured sensitivities", MEASURED, _top),
    "uniform": Method("the same leading bits of every tensor", NOTHING, _uniform),
    "random": Method("random bits of random tensors", NOTHING, _random),
    "topbits-ddpg": Method("leading bits of each layer, learned by DDPG (Peng et al.)", NOTHING, None),
    "bitmask-ddpg": Method("any bits of each layer, learned by DDPG (Peng et al.)", NOTHING, None),
    "topbits-sac": Method("leading bits of each layer, learned by SAC", NOTHING, None),
    "bitmask-sac": Method("any bits of each layer, learned by SAC", NOTHING, None),
    "topbits-ppo": Method("leading bits of each layer, learned by PPO", NOTHING, None),
    "bitmask-ppo": Method("any bits of each layer, learned by PPO", NOTHING, None),
}
