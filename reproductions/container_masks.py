"""Masks in a real container: `python -m reproductions.container_masks [--seeds N] [--out FOLDER]`.

VDCNN on AG News, float32, with real BCH(8191,6722). Masks are searched for posterior restorers and for range guards
within the same budget on a twentieth of the training data, `protect` writes a container with each, `corrupt` sends
every stored byte of it (metadata, parity, row sums, gaps) through a bit error rate of 1e-2, `restore` writes the
checkpoint, and that is scored on test texts. Beside it what the campaign says of the same masks.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptguard.campaign.statistics import mean_interval
from ckptguard.campaign.subject import Subject
from ckptguard.evaluate.session import TensorSpec, open_session
from ckptguard.pipeline.corrupt import corrupt
from ckptguard.pipeline.inspect import ARMOUR_GROWTH, inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore
from ckptguard.search.problem import faults_of
from ckptguard.search.run import search
from ckptguard.search.trials import Stored, Trials
from reproductions.mask_search import BCH, SAMPLES, network

CODE, RATE = BCH["native"], 1e-2


def container(masks: Path, model: Path, target: Path) -> dict[str, Any]:
    """Write it; what it takes."""
    made = protect(model, target, masks=masks, code=CODE, overwrite=True)
    summary = inspect(target)
    bare = inspect(protect(model, target.with_suffix(".bare.ckg"), code="none", guard="none", overwrite=True).path)
    weight_bits = sum(tensor.weight_bits for tensor in summary.tensors if tensor.kind == "tensor")
    shard = summary.shards[0]
    return {
        "warnings": list(made.warnings),
        "original bytes": summary.original_bytes,
        "container bytes": summary.stored_bytes,
        "parity bytes": shard.parity_bytes,
        "row sum bytes": shard.sum_bytes,
        "outlier bytes": shard.outlier_bytes,
        "row sums of tensors": sum(tensor.row_sums for tensor in summary.tensors),
        "metadata bytes, stored": ARMOUR_GROWTH * shard.metadata_bytes,
        "of these restorers": ARMOUR_GROWTH * shard.restorer_bytes,
        "of these guards": ARMOUR_GROWTH * shard.guard_bytes,
        "redundancy, nominal": summary.redundancy,
        "redundancy, stored": summary.stored_redundancy,
        "stored parity, restorers and guards": summary.stored_redundancy
        + 8 * ARMOUR_GROWTH * (shard.restorer_bytes + shard.guard_bytes) / weight_bits,
        "bytes over those without any protection": summary.stored_bytes - bare.stored_bytes,
        "the same over the weights": 8 * (summary.stored_bytes - bare.stored_bytes) / weight_bits,
    }


class Scores:
    """Accuracy of checkpoints on test texts."""

    def __init__(self, evaluator: str, subject: Subject) -> None:
        self._subject = subject
        specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in subject.tensors.items()}
        self._session = open_session(evaluator, specs, framework="pt", threads=1)
        self.clean = self._score({name: tensor.data for name, tensor in subject.tensors.items()})

    def of(self, path: Path) -> float:
        """A safetensors file's."""
        return self._score({name: tensor.data for name, tensor in Subject.open(path).tensors.items()})

    def _score(self, data: dict[str, Any]) -> float:
        self._session.load(data, reference=not hasattr(self, "clean"))
        return float(self._session.metrics()["accuracy"])


def worn(target: Path, scores: Scores, seeds: int) -> dict[str, list[Any]]:
    """Accuracy after 1e-2 on every stored byte, device by device, and what reading took."""
    found: dict[str, list[Any]] = {"accuracy": [], "lost tensors": [], "estimated elements": [], "restore seconds": []}
    bad, back = target.with_suffix(".worn.ckg"), target.with_suffix(".back.safetensors")
    for seed in range(seeds):
        corrupt(target, bad, seed=seed, channel=f"bsc:{RATE:g}", overwrite=True, jobs=1)
        start = time.perf_counter()
        report = restore(bad, back, overwrite=True, jobs=1)
        found["restore seconds"].append(round(time.perf_counter() - start, 2))
        found["accuracy"].append(scores.of(back))
        found["lost tensors"].append(len(report.lost))
        found["estimated elements"].append(sum(tensor.estimated_elements for tensor in report.tensors))
    return found


def main() -> None:
    """Search, protect, corrupt, restore, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=0.0012)
    parser.add_argument("--guards", default="posterior,tensor")
    parser.add_argument("--out", type=Path, default=Path("build/reproductions"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    net = network("vdcnn", arguments.out)
    subject = Subject.open(net.path)
    scores = Scores(net.evaluator(), subject)
    faults, _ = faults_of(subject, RATE)
    result: dict[str, Any] = {"clean": scores.clean, "budget": arguments.budget}
    for guard in arguments.guards.split(","):
        start = time.perf_counter()
        found = search(
            subject, evaluator=net.evaluator(), calibrate=net.calibrate(), ber=RATE, budget=arguments.budget,
            codes=CODE, guard=guard, samples=SAMPLES,
        )  # fmt: skip
        masks, target = arguments.out / f"vdcnn-{guard}.json", arguments.out / f"vdcnn-{guard}.ckg"
        masks.write_text(found.masks.to_json(), encoding="utf-8")
        row = {"search seconds": time.perf_counter() - start, "r": found.chosen.redundancy,
               "charged": found.chosen.charged} | container(masks, net.path, target)  # fmt: skip
        row |= worn(target, scores, arguments.seeds)
        drops = [scores.clean - accuracy for accuracy in row["accuracy"]]
        trials = Trials(subject, net.evaluator(), faults, Stored("native", CODE, guard=guard), seed=100)
        campaign = trials.drops(found.masks, 0, arguments.seeds)
        for name, values in (("container", drops), ("campaign", campaign)):
            interval = mean_interval(values)
            row |= {f"{name} drop": float(np.mean(values)), f"{name} interval": [interval.low, interval.high],
                    f"{name} worst": max(values)}  # fmt: skip
        result[guard] = row
        print(guard, json.dumps(row, indent=1), flush=True)
    (arguments.out / "container-masks.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
