"""The papers' search on VDCNN: `python -m reproductions.agents_vdcnn METHOD [--episodes N] [--representation fixed:8]`.

Layers are the modules with weights, each with all its floating-point tensors (weights, biases, running statistics), so
that every parameter is exposed. An episode is one draw of faults at 1e-2 and COUNT training texts; the masks kept are
those of SELECTED episodes with the largest reward that are best on DRAWS common draws of other training texts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptguard.campaign.faults import make
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.masks import MaskSet, Rule
from ckptguard.search.agents import AgentSettings, Layer, learn
from reproductions import data, networks

COUNT, SELECTED, DRAWS = 160, 20, 8
KINDS = {"Linear": 0, "Embedding": 2, "BatchNorm1d": 3, "BatchNorm2d": 3, "Conv1d": 4, "Conv2d": 4}


class Scorer:
    """Accuracy of VDCNN under masks and a draw of faults, with ideal decoding."""

    def __init__(self, subject: Subject, representation: str, first: int, count: int, seed: int) -> None:
        self.subject, self.representation, self.seed = subject, representation, seed
        self.net = networks.vdcnn().eval()
        self.inputs, self.labels = data.agnews("train", first, count)
        self.live = {name: tensor.detach().view(-1).numpy() for name, tensor in self.net.state_dict().items()}
        self.fault = make("bsc:0.01")

    def __call__(self, masks: dict[str, str], draw: int) -> float:
        """0 .. 1."""
        prepared = Prepared(self.subject, Variant("trial", self.representation, mask_set(self.subject, masks), "ideal"))
        damage = prepared.trial(self.fault, self.seed, draw)
        for name, words in self.live.items():
            words.view(np.uint8)[:] = prepared.base[name]
            if name in damage.patches:
                patch = damage.patches[name]
                words.view(patch.words.dtype)[patch.elements] = patch.words
        return self.accuracy()

    def accuracy(self) -> float:
        """Of the weights as they are."""
        with torch.inference_mode():
            logits = torch.cat([self.net(self.inputs[i : i + 80]) for i in range(0, len(self.inputs), 80)])
        return float((logits.isfinite().all(1) & (logits.argmax(1) == self.labels)).float().mean())


def mask_set(subject: Subject, masks: Mapping[str, str], provenance: Mapping[str, Any] | None = None) -> MaskSet:
    """Masks of modules as rules for their floating-point tensors; counters are protected wholly."""
    named = [name for name, tensor in subject.tensors.items() if tensor.dtype.name == "F32"]
    rules = [
        Rule(tuple(name for name in named if name.rpartition(".")[0] == layer), mask) for layer, mask in masks.items()
    ]
    return MaskSet((*rules, Rule(("*",), "all")), provenance or {})


def layers(subject: Subject, representation: str) -> tuple[Layer, ...]:
    """The modules with weights, in the order of the forward pass."""
    net, found = networks.vdcnn(), []
    for name, module in net.named_modules():
        kind = type(module).__name__
        if kind not in KINDS:
            continue
        tensors = [key for key in subject.tensors if key.rpartition(".")[0] == name]
        words = sum(subject.tensors[key].elements for key in tensors if subject.tensors[key].dtype.name == "F32")
        bits = 8 if representation.startswith("fixed") else 32
        weight = module.weight
        inputs, outputs = (weight.shape[1], weight.shape[0]) if weight.ndim > 1 else (weight.shape[0],) * 2
        raw = np.unpackbits(weight.detach().numpy().view(np.uint8).reshape(-1, 4)[:, ::-1], axis=1)
        found.append(
            Layer(
                name, words, bits, KINDS[kind], int(inputs), int(outputs), 1 if kind.startswith("Conv") else 0,
                int(weight.shape[2]) if weight.ndim > 2 else 1, 256, tuple(raw.mean(axis=0)[:bits].tolist()),
            )
        )  # fmt: skip
    return tuple(found)


def main() -> None:
    """Learn, select, and write the masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--representation", default="native")
    parser.add_argument("--reward", default="published")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/reproductions"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject.open(data.folder() / "vdcnn-agnews.safetensors")
    representation = arguments.representation
    score = Scorer(subject, representation, 0, COUNT, 1)
    searched = layers(subject, representation)
    clean = score({layer.name: "1" * layer.bits for layer in searched}, 0)
    started = time.perf_counter()

    def progress(done: int, total: int, accuracy: float) -> None:
        if done % 25 == 0:
            seconds = time.perf_counter() - started
            print(f"{arguments.method} {done}/{total} accuracy {accuracy:.3f}, {seconds:.0f} s", flush=True)

    settings = AgentSettings(
        arguments.method, arguments.budget, arguments.episodes, arguments.seed, representation.startswith("fixed"),
        arguments.reward, progress=progress,
    )  # fmt: skip
    learned = learn(searched, score, clean, settings)
    best = sorted(learned.episodes, key=lambda episode: -episode.reward)[:SELECTED]
    candidates = {f"episode {one.index}": dict(one.masks) for one in best} | {"policy": dict(learned.policy)}
    chooser = Scorer(subject, representation, 1000, COUNT, 2)
    means = {name: float(np.mean([chooser(masks, d) for d in range(DRAWS)])) for name, masks in candidates.items()}
    # Among masks that are equally good on the common draws the one that protects less is kept.
    total = sum(layer.words * layer.bits for layer in searched)
    share = {n: sum(la.words * m[la.name].count("1") for la in searched) / total for n, m in candidates.items()}
    chosen = max(candidates, key=lambda name: (round(means[name], 4), -share[name]))
    seconds = time.perf_counter() - started
    provenance = {
        "method": arguments.method, "episodes": arguments.episodes, "evaluations": learned.evaluations,
        "seconds": round(seconds), "chosen": chosen, "share": share[chosen], "selection_accuracy": means[chosen],
        "best_single_draw": best[0].accuracy, "clean": clean, "budget": arguments.budget, "seed": arguments.seed,
        "reward": arguments.reward, "representation": representation,
    }  # fmt: skip
    name = f"{arguments.method}-{representation.replace(':', '')}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(
        mask_set(subject, candidates[chosen], provenance).to_json(), encoding="utf-8"
    )
    rewards = [asdict(one) | {"masks": None} for one in learned.episodes]
    (arguments.out / f"{name}-episodes.json").write_text(json.dumps(rewards), encoding="utf-8")
    print(json.dumps(provenance), flush=True)


if __name__ == "__main__":
    main()
