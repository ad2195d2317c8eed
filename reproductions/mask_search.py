"""Searching masks: what parity buys, method by method. `python -m reproductions.mask_search PART [--out FOLDER]`.

PART is `vdcnn`, `vdcnn-fixed`, `resnets`, `transformer`, `transfer`, `towers` or `certificate`; each prints a table and
keeps its numbers as JSON in the folder. Masks are searched on training data and reported on test data, each mask set on
the same draws of faults at 1e-2 on every parameter. Redundancies: r = parity over bits of the weights, as the papers
count it; charged = with masks and restorers, armoured at both ends of the container.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptguard.campaign.statistics import mean_interval
from ckptguard.campaign.subject import Subject
from ckptguard.devices import Device, DeviceMap
from ckptguard.masks import MaskSet, Rule, similarity
from ckptguard.pipeline.work import silent
from ckptguard.search.frontier import exactly
from ckptguard.search.learning import is_float
from ckptguard.search.methods import METHODS
from ckptguard.search.paths import MaskPath
from ckptguard.search.problem import Problem, faults_of
from ckptguard.search.run import find_curvature, search
from ckptguard.search.trials import Stored, Trials
from reproductions import data

HERE = Path(__file__).parent
BCH = {"native": "bch:8191,6722", "fixed:8": "bch:8191,6787"}
DRAWS = 10
SAMPLES = 128


@dataclass(frozen=True)
class Network:
    """A checkpoint with its test data, and training data for the search.

    Attributes:
        factory, test, train: names in networks.py and data.py.
        images: test inputs used.
    """

    path: Path
    factory: str
    test: str
    train: str
    images: int
    more: str = ""
    gradients: str | None = None

    def evaluator(self, images: int | None = None) -> str:
        """On test data."""
        if self.gradients:
            return f"{HERE}/{self.test}"
        return f"{self._spec(self.test)},limit={images or self.images}"

    def calibrate(self) -> str:
        """On a part of the training data."""
        if self.gradients:
            return f"{HERE}/{self.train}"
        return self.training(1, 20)

    def training(self, part: int, parts: int) -> str:
        """A part of the training data; two of them share no input."""
        return f"{self._spec(self.train)},part={part}/{parts}"

    def _spec(self, source: str) -> str:
        return (
            f"classification:model={HERE}/networks.py:{self.factory},data={HERE}/data.py:{source},batch=250{self.more}"
        )


def network(name: str, models: Path) -> Network:
    """By its name."""
    root = data.folder()
    return {
        "vdcnn": Network(root / "vdcnn-agnews.safetensors", "vdcnn", "agnews", "agnews_train", 1000),
        "thucnews": Network(
            models / "vdcnn-thucnews.safetensors", "vdcnn_thucnews", "thucnews", "thucnews_train", 1000
        ),
        "resnet20": Network(
            root / "resnet20-12fca82f.th", "resnet20", "cifar10_imagenet", "cifar10_imagenet_train", 1000,
            ",strip=module.",
        ),
        "resnet18": Network(root / "resnet18-cifar10.safetensors", "resnet18", "cifar10", "cifar10_train", 250),
        "towers": Network(models / "two-tower.safetensors", "TwoTower", "cifar10", "cifar10_train", 1000),
    }[name]  # fmt: skip


class Bench:
    """Mask sets of one network, stored in one way, tried on common draws."""

    def __init__(self, net: Network, representation: str, code: str, devices: DeviceMap | None = None) -> None:
        self.net, self.representation, self.code, self.devices = net, representation, code, devices
        self.subject = Subject.open(net.path)
        self.faults, _ = faults_of(self.subject, None if devices else 1e-2, devices=devices)
        self.rows: list[dict[str, Any]] = []
        self._trials: dict[str, Trials] = {}
        self._paths: dict[tuple[str, str], tuple[MaskPath, float]] = {}

    def trials(self, guard: str) -> Trials:
        """With a guard; models are opened once."""
        if guard not in self._trials:
            stored = Stored(self.representation, self.code, guard=guard)
            self._trials[guard] = Trials(
                self.subject, self.net.evaluator(), self.faults, stored, seed=100, decoder="sampled"
            )
        return self._trials[guard]

    def find(self, method: str, budget: float, guard: str) -> tuple[MaskSet, float]:
        """Masks for a budget of charged redundancy at most, and the seconds that the whole frontier took."""
        if (method, guard) not in self._paths:
            start = time.perf_counter()
            stored = Stored(self.representation, self.code, guard=guard)
            tune = Trials(self.subject, self.net.calibrate(), self.faults, stored)
            curvature = find_curvature(METHODS[method].curvature, tune, self.net.gradients, SAMPLES, 0, silent)
            shapes = {name: tensor.shape for name, tensor in self.subject.tensors.items()}
            problem = Problem(
                tune.bare.encodings, self.faults, stored, (self.code,), curvature, shapes, self.subject.shards
            )
            make = METHODS[method].path
            assert make is not None
            self._paths[method, guard] = make(problem, tune, 0), time.perf_counter() - start
        path, seconds = self._paths[method, guard]
        vertex = path.within(budget)
        told = {"codes": [self.code], "redundancy": path.redundancy(vertex), "charged_redundancy": path.charged(vertex)}
        return path.masks(vertex, told), seconds

    def add(self, name: str, masks: MaskSet, guard: str, seconds: float, draws: int = DRAWS) -> dict[str, Any]:
        """Try a mask set; the row of the table."""
        trials = self.trials(guard)
        drops = [min(drop, trials.clean["accuracy"]) for drop in trials.drops(masks, 0, draws)]
        clean = trials.clean["accuracy"]
        interval = mean_interval(drops)
        row = {
            "method": name, "guard": guard, "redundancy": self.redundancy(masks, guard),
            "charged": self.told(masks, "charged_redundancy"), "clean": clean, "drop": float(np.mean(drops)),
            "low": interval.low, "high": interval.high, "worst": max(drops), "draws": draws, "seconds": seconds,
        }  # fmt: skip
        self.rows.append(row)
        print(line(row), flush=True)
        return row

    def told(self, masks: MaskSet, name: str) -> Any:
        """What the masks say of themselves, if it is about the code of the bench."""
        return masks.provenance.get(name) if masks.provenance.get("codes") == [self.code] else None

    def redundancy(self, masks: MaskSet, guard: str) -> float:
        """Parity over bits of the weights, for the code of the bench."""
        told = self.told(masks, "redundancy")
        if told is not None:
            return float(told)
        from ckptguard.campaign.variants import Prepared

        return Prepared(
            self.subject, Stored(self.representation, self.code, guard="none").variant(masks)
        ).redundancy_at(1e-2)


def line(row: Mapping[str, Any]) -> str:
    """A row of a table."""
    charged = row["charged"]
    cells = (
        row["method"], row["guard"], f"{row['redundancy']:.5f}", "-" if charged is None else f"{charged:.5f}",
        f"{row['drop']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", f"{row['worst']:.2f}", str(row["draws"]),
        "-" if not row["seconds"] else f"{row['seconds']:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| method | guard | r | charged | mean drop | 95 % interval | worst drop | draws | search, s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def compare(
    bench: Bench, agents: Sequence[Path], top: Sequence[int], budgets: Mapping[str, Sequence[float]], draws: int = DRAWS
) -> None:
    """Uniform, agents, Fisher without and with restorers, at several budgets."""
    print(HEAD, flush=True)
    for bits in top:
        bench.add(f"uniform, top {bits}", uniform(bench, bits), "none", 0, draws)
    for path in agents:
        masks = MaskSet.load(path)
        note = masks.provenance
        learning = note["learning"]
        bench.add(f"{note['method']}, {learning['episodes']} episodes", masks, "none", learning["seconds"], draws)
    for guard, several in budgets.items():
        for budget in several:
            masks, seconds = bench.find("fisher", budget, guard)
            bench.add("fisher", masks, guard, seconds, draws)


def uniform(bench: Bench, bits: int) -> MaskSet:
    """The same top bits of all numbers; whole integers, as in every other row: a wrong index is no inaccuracy."""
    floats = tuple(exactly(name) for name, one in bench.subject.tensors.items() if is_float(one.dtype))
    return MaskSet((Rule(floats, f"top:{bits}"), Rule(("*",), "all")))


def masks_of_agent(models: Path, method: str, name: str, representation: str) -> Path:
    """Where `reproductions.agents` keeps the masks."""
    return models / f"{method}-{name}-{representation.replace(':', '')}.json"


def masks_of_agents(models: Path, name: str, representation: str) -> list[Path]:
    """Of those that have learned."""
    return [path for one in METHODS if (path := masks_of_agent(models, one, name, representation)).exists()]


def vdcnn(models: Path) -> dict[str, Any]:
    """Float32, ideal and BCH."""
    budgets = {
        "none": (0.004, 0.006, 0.008),
        "tensor": (0.0003, 0.0005, 0.001),
        "posterior": (0.00025, 0.00035, 0.0005),
    }
    return on_both_codes(models, "native", 2.2, (8, 9), budgets)


def vdcnn_fixed(models: Path) -> dict[str, Any]:
    """8-bit fixed point, ideal and BCH."""
    return on_both_codes(models, "fixed:8", 2.35, (1, 2, 3), dict.fromkeys(("none", "tensor"), (0.001, 0.002, 0.004)))


def on_both_codes(
    models: Path, representation: str, dearer: float, top: Sequence[int], budgets: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """VDCNN under the ideal code, and under BCH within budgets that are so many times as large."""
    found = {}
    agents = masks_of_agents(models, "vdcnn", representation)
    for code, scale in (("ideal", 1.0), (BCH[representation], dearer)):
        print(f"\n### {representation}, {code}\n", flush=True)
        bench = Bench(network("vdcnn", models), representation, code)
        scaled = {guard: [scale * budget for budget in several] for guard, several in budgets.items()}
        compare(bench, agents, top, scaled)
        found[code] = bench.rows
    return found


def resnets(models: Path) -> dict[str, Any]:
    """ResNet-20 and ResNet-18."""
    found = {}
    for name in ("resnet18", "resnet20"):
        print(f"\n### {name}, float32, ideal\n", flush=True)
        bench = Bench(network(name, models), "native", "ideal")
        budgets = {"none": (0.014, 0.018), "tensor": (0.007, 0.01, 0.014), "posterior": (0.007, 0.01, 0.014)}
        if name == "resnet18":
            budgets = {"none": (0.004, 0.008), "tensor": (0.0005, 0.001, 0.002), "posterior": (0.0005, 0.001, 0.002)}
        compare(bench, masks_of_agents(models, name, "native"), (8, 9), budgets, 10 if name == "resnet20" else 6)
        found[name] = bench.rows
    return found


def transformer(models: Path) -> dict[str, Any]:
    """all-MiniLM-L6-v2."""
    from reproductions import minilm

    net = Network(
        minilm.folder() / "model.safetensors", "", "minilm.py:retrieval", "minilm.py:choosing", minilm.PAIRS,
        gradients=f"{HERE}/minilm.py:losses",
    )  # fmt: skip
    print("\n### all-MiniLM-L6-v2, float32, ideal\n", flush=True)
    bench = Bench(net, "native", "ideal")
    budgets = {"none": (0.008, 0.016), "tensor": (0.002, 0.004), "posterior": (0.001, 0.0015, 0.002)}
    compare(bench, [], (8, 9), budgets, 6)
    return {"minilm": bench.rows}


def transfer(models: Path) -> dict[str, Any]:
    """Masks learned on one text set, used on a network of another."""
    nets = {name: network(name, models) for name in ("vdcnn", "thucnews")}
    benches = {name: Bench(net, "native", "ideal") for name, net in nets.items()}
    found: dict[str, Any] = {"rows": []}
    for guard, budget in (("none", 0.008), ("tensor", 0.0008)):
        masks = {name: bench.find("fisher", budget, guard) for name, bench in benches.items()}
        print(f"\n### guard {guard}, budget {budget:g}\n\n{HEAD}", flush=True)
        for name, bench in benches.items():
            for other, (one, seconds) in masks.items():
                row = bench.add(f"masks of {other} on {name}", one, guard, seconds if other == name else 0)
                found["rows"].append(row | {"budget": budget})
        tensors = [
            (name, tensor.dtype.word_bits)
            for name, tensor in benches["vdcnn"].subject.tensors.items()
            if tensor.dtype.name == "F32"
        ]
        resolved = [{one.name: one.mask for one in m.resolve(tensors).tensors} for m, _ in masks.values()]
        found[f"similarity {guard}"] = similarity(*resolved).mean
        print(f"\nsimilarity of the masks: {found[f'similarity {guard}']:.4f}", flush=True)
    return found


def towers(models: Path) -> dict[str, Any]:
    """Image and text tower on devices of 1e-2 and 1e-6, and swapped."""
    found = {}
    for good in ("text", "vision"):
        bad = "vision" if good == "text" else "text"
        devices = DeviceMap(
            (Device("bad", channel="bsc:0.01"), Device("good", channel="bsc:1e-06")), ((f"{bad}.*",), ("*",))
        )
        bench = Bench(network("towers", models), "native", "ideal", devices)
        print(f"\n### {bad} on 1e-2, {good} on 1e-6\n\n{HEAD}", flush=True)
        for guard, several in (("none", (0.003, 0.005, 0.01, 0.02)), ("tensor", (0.007, 0.009, 0.013))):
            for budget in several:
                masks, seconds = bench.find("fisher", budget, guard)
                row = bench.add("fisher", masks, guard, seconds)
                row["bits"] = shares(bench, masks)
                print(f"protected bits per weight: {row['bits']}", flush=True)
        for bits in (4, 8):
            bench.add(f"uniform, top {bits}", uniform(bench, bits), "none", 0)
        found[f"{bad} on 1e-2"] = bench.rows
    return found


def shares(bench: Bench, masks: MaskSet) -> dict[str, float]:
    """Protected bits per weight of each tower."""
    tensors = [(name, tensor.dtype.word_bits) for name, tensor in bench.subject.tensors.items()]
    totals: dict[str, list[int]] = {}
    for one in masks.resolve(tensors).tensors:
        if bench.subject.tensors[one.name].dtype.name == "F32":
            row = totals.setdefault(one.name.partition(".")[0], [0, 0])
            words = bench.subject.tensors[one.name].elements
            row[0] += words * one.protected_bits
            row[1] += words
    return {name: round(bits / words, 3) for name, (bits, words) in totals.items()}


def certificate(models: Path) -> dict[str, Any]:
    """A certificate for VDCNN on 59 devices, then a hundred fresh ones."""
    net = network("vdcnn", models)
    start = time.perf_counter()
    found = search(
        net.path, evaluator=net.evaluator(500), calibrate=net.calibrate(), ber=1e-2, max_drop=0.4, guard="tensor",
        codes="ideal", certify="drop=1.0,trials=59,share=0.95,confidence=0.95", samples=SAMPLES, trials=6,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    claim = found.masks.provenance.get("certificate")
    print(json.dumps(claim, indent=1), f"\n{seconds:.0f} s, {found.seconds}", flush=True)
    subject = Subject.open(net.path)
    faults, _ = faults_of(subject, 1e-2)
    trials = Trials(subject, net.evaluator(), faults, Stored(guard="tensor"), seed=4242)
    drops = trials.drops(found.masks, 0, 100)
    kept = sum(drop <= 1.0 for drop in drops)
    print(
        f"{kept} of 100 fresh devices lose at most 1 point; mean {np.mean(drops):.2f}, worst {max(drops):.2f}",
        flush=True,
    )
    return {
        "certificate": claim,
        "kept": kept,
        "drops": drops,
        "seconds": found.seconds,
        "charged": found.chosen.charged,
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "vdcnn": vdcnn, "vdcnn-fixed": vdcnn_fixed, "resnets": resnets, "transformer": transformer, "transfer": transfer,
    "towers": towers, "certificate": certificate,
}  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("build/reproductions"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = PARTS[arguments.part](arguments.out)
    text = json.dumps(
        found, default=lambda value: None if isinstance(value, float) and math.isnan(value) else str(value)
    )
    (arguments.out / f"search-{arguments.part}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
