"""Masks learned by agents: from a problem to layers, from trials to an objective, from episodes to one mask set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ckptguard.campaign import design
from ckptguard.campaign.encodings import Encoding
from ckptguard.dtypes import DType
from ckptguard.errors import UsageError
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search.agents import AgentSettings, Episode, Layer, Learned, learn
from ckptguard.search.frontier import exactly
from ckptguard.search.paths import Listed
from ckptguard.search.problem import Problem
from ckptguard.search.trials import Ask, Trials

CANDIDATES = 20
"""Mask sets that are tried again: the different ones of the largest mean reward, and that of the trained agent."""

DRAWS = 10
"""Common draws that candidates are compared on."""

_LINEAR, _EMBEDDING, _NORM, _CONVOLUTION, _OTHER = 0, 2, 3, 4, 5


@dataclass(frozen=True)
class Plan:
    """How masks are learned.

    Attributes:
        share: of all bits that may be protected; None: what the budget of redundancy pays for.
        reward: `published` or `original`, see `AgentSettings`.
    """

    episodes: int = 5000
    share: float | None = None
    reward: str = "published"


@dataclass(frozen=True)
class Outcome:
    """The masks that were chosen, and how.

    Attributes:
        path: one vertex.
        chosen: which candidate it was.
        selection: mean accuracy (0 .. 1) of every candidate on the common draws.
    """

    path: Listed
    chosen: str
    selection: Mapping[str, float]
    learned: Learned

    def provenance(self) -> dict[str, object]:
        """What a mask file says of it."""
        best = max(self.learned.episodes, key=lambda episode: episode.reward)
        return {
            "episodes": len(self.learned.episodes),
            "evaluations": self.learned.evaluations,
            "seconds": round(self.learned.seconds, 1),
            "chosen": self.chosen,
            "selection_accuracy": self.selection[self.chosen],
            "best_single_draw": best.accuracy,
        }


def learned_path(
    problem: Problem,
    trials: Trials,
    selection: Trials,
    method: str,
    budget: float | None,
    plan: Plan,
    seed: int,
    progress: Progress = silent,
) -> Outcome:
    """Let an agent play, and keep of its best masks those that are best on common draws of other data.

    Args:
        trials: what episodes are evaluated with; episode e meets draw e.
        selection: what candidates are compared with.
        budget: redundancy with metadata, where the plan names no share.
    """
    layers, members = layers_of(problem.encodings, trials)
    share = plan.share if plan.share is not None else _affordable(problem, budget)
    settings = AgentSettings(
        method,
        share,
        plan.episodes,
        seed,
        fixed_point=problem.stored.representation.startswith(("fixed", "q")),
        reward=plan.reward,
        progress=lambda done, total, accuracy: progress("episodes", done, total),
    )
    scale = _scale(trials)

    def accuracy(of: Trials, drop: float) -> float:
        return scale(of.metric.goodness(of.clean[of.metric.name]) - drop)

    def reward(masks: Mapping[str, str], draw: int) -> float:
        return accuracy(trials, trials.drops(mask_set(masks, members), draw, 1)[0])

    learned = learn(layers, reward, accuracy(trials, 0.0), settings)
    candidates = {f"episode {one.index}": one.masks for one in candidates_of(learned.episodes)}
    candidates["agent"] = learned.policy
    drops = selection.measure(
        [Ask(mask_set(masks, members), 0, DRAWS) for masks in candidates.values()],
        lambda done, total: progress("select", done, total),
    )
    means = {
        name: math.fsum(accuracy(selection, drop) for drop in found) / DRAWS
        for name, found in zip(candidates, drops, strict=True)
    }
    cost = {name: _protected(layers, masks) for name, masks in candidates.items()}
    chosen = max(candidates, key=lambda name: (means[name], -cost[name]))
    masks = masks_by_tensor(candidates[chosen], members)
    vertex = tuple(masks.get(tensor.name, "1" * tensor.bits) for tensor in problem.tensors)
    return Outcome(Listed(problem.tensors, [vertex], problem.metadata_bits), chosen, means, learned)


def candidates_of(episodes: Sequence[Episode]) -> list[Episode]:
    """The first episode of each mask set worth trying again: the sets of the largest reward in the mean.

    An agent that has converged plays one set again and again; by the largest reward its luckiest draws alone would be
    left.
    """
    played: dict[tuple[tuple[str, str], ...], list[Episode]] = {}
    for episode in episodes:
        played.setdefault(tuple(sorted(episode.masks.items())), []).append(episode)
    mean = {same[0].index: math.fsum(one.reward for one in same) / len(same) for same in played.values()}
    firsts = sorted((same[0] for same in played.values()), key=lambda one: (-mean[one.index], one.index))
    return firsts[:CANDIDATES]


def layers_of(
    encodings: Mapping[str, Encoding], trials: Trials
) -> tuple[tuple[Layer, ...], dict[str, tuple[str, ...]]]:
    """The layers that agents decide on, and the floating-point tensors of each; all others are protected wholly.

    A layer is a module with all its tensors (weights, biases, running statistics), or a parameter by itself.
    """
    floats = [name for name, one in encodings.items() if is_float(one.dtype) and one.elements]
    if not floats:
        raise UsageError("no tensor holds floating-point numbers; there is nothing to learn masks for")
    members = design.layers(floats)
    classes = trials.session.layer_types()
    layers = [_layer(name, names, encodings, trials, classes.get(names[0], "")) for name, names in members.items()]
    return tuple(layers), members


def _layer(name: str, names: Sequence[str], encodings: Mapping[str, Encoding], trials: Trials, of_class: str) -> Layer:
    widths = {encodings[one].bits for one in names}
    if len(widths) > 1:
        raise UsageError(f"layer {name!r} has words of {sorted(widths)} bits; agents need one length within a layer")
    bits = widths.pop()
    largest = max(names, key=lambda one: encodings[one].elements)
    shape = trials.subject.tensors[largest].shape
    words = sum(encodings[one].elements for one in names)
    ones = np.zeros(bits)
    for one in names:
        values = encodings[one].words
        for position in range(bits):
            shift = values.dtype.type(bits - 1 - position)
            ones[position] += float(np.count_nonzero(values >> shift & values.dtype.type(1)))
    outputs = shape[0] if shape else 1
    inputs = shape[1] if len(shape) > 1 else outputs
    return Layer(
        name, words, bits, _kind(of_class, shape), int(inputs), int(outputs), int(len(shape) > 2),
        int(shape[-1]) if len(shape) > 2 else 1, 0, tuple((ones / words).tolist()),
    )  # fmt: skip


def _kind(of_class: str, shape: Sequence[int]) -> int:
    """By the class of the module where the evaluator knows it, else by the shape."""
    if "Embedding" in of_class:
        return _EMBEDDING
    if "Norm" in of_class or (not of_class and len(shape) == 1):
        return _NORM
    if "Conv" in of_class or (not of_class and len(shape) > 2):
        return _CONVOLUTION
    if "Linear" in of_class or (not of_class and len(shape) == 2):
        return _LINEAR
    return _OTHER


def is_float(dtype: DType) -> bool:
    """Whether elements are floating-point numbers."""
    return dtype.name.startswith(("F", "BF", "C"))


def masks_by_tensor(masks: Mapping[str, str], members: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """From masks of layers."""
    return {name: masks[layer] for layer, names in members.items() for name in names}


def mask_set(masks: Mapping[str, str], members: Mapping[str, Sequence[str]]) -> MaskSet:
    """Rules for the layers; what is no layer is protected wholly."""
    rules = [Rule(tuple(map(exactly, members[layer])), mask) for layer, mask in masks.items()]
    return MaskSet((*rules, Rule(("*",), "all")))


def halves(spec: object) -> tuple[object, object] | None:
    """Two evaluators that share no input, from one; None where its data cannot be cut."""
    if not isinstance(spec, str) or spec.partition(":")[0] != "classification":
        return None
    settings = spec.split(",")
    index, parts = 1, 1
    for place, setting in enumerate(settings):
        if setting.startswith("part="):
            index, parts = map(int, setting.removeprefix("part=").split("/"))
            del settings[place]
            break
    plain = ",".join(settings)
    return f"{plain},part={2 * index - 1}/{2 * parts}", f"{plain},part={2 * index}/{2 * parts}"


def _affordable(problem: Problem, budget: float | None) -> float:
    """The share of bits that a budget of redundancy pays for, after metadata and what is protected anyhow."""
    if budget is None:
        raise UsageError("agents need a budget: --budget R (redundancy) or --protected-share F (of the bits)")
    stored = sum(tensor.words * tensor.bits for tensor in problem.tensors)
    parity = max(tensor.strengths[0].parity for tensor in problem.tensors)
    share = (budget - problem.metadata_bits / stored) / parity
    if share <= 0:
        raise UsageError(f"a budget of {budget:g} is taken up by metadata, {problem.metadata_bits / stored:.3g}")
    return min(share, 1.0)


def _scale(trials: Trials) -> Callable[[float], float]:
    """From a metric to accuracy in 0 .. 1, as rewards need it."""
    metric = trials.metric
    if metric.bounds is None:
        raise UsageError(f"agents are rewarded by a metric with a known range, such as accuracy, not {metric.name!r}")
    low, high = metric.bounds
    shift = low if metric.higher_is_better else -high
    return lambda goodness: min(max((goodness - shift) / (high - low), 0.0), 1.0)


def _protected(layers: Sequence[Layer], masks: Mapping[str, str]) -> int:
    return sum(layer.words * masks[layer.name].count("1") for layer in layers)
