"""Speed of campaigns: `python -m benchmarks.campaign MODEL NETWORKS.PY:FACTORY > docs/results/campaign-speed.md`.

Drawing faults for 14 million and a thousand million weights, and whole trials beside PyTorchFI's weight injection on
the same network at the same rate, interleaved in one run, medians. PyTorchFI is skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from ckptguard.campaign.faults import make
from ckptguard.campaign.shells import draw
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant

RATES = (1e-6, 1e-3, 1e-2)
TENSOR = 1 << 27
"""A thousand million weights are eight tensors of this many."""


def median(function: Callable[[], object], rounds: int) -> float:
    """Seconds of a call, the first (which compiles) left out."""
    function()
    return statistics.median(timed(function) for _ in range(rounds))


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def drawing(subject: Subject) -> list[str]:
    """Rows: seconds to draw the flips of one trial."""
    rows = []
    prepared = Prepared(subject, Variant("none"))
    weights = sum(tensor.elements for tensor in subject.tensors.values())
    planes = list(range(32))
    shifts = [31 - plane for plane in planes]
    for rate in RATES:
        fault = make(f"bsc:{rate!r}")
        few = median(lambda fault=fault: prepared.draw(fault, 0, 1), 5)
        flips = prepared.draw(fault, 0, 1).count
        one = median(lambda rate=rate: draw(np.uint64(5), TENSOR, planes, shifts, rate, rate), 1)
        rows.append(f"| {rate:g} | {weights / 1e6:.1f} M | {flips:,} | {1e3 * few:.1f} ms |")
        rows.append(f"| {rate:g} | {8 * TENSOR / 1e6:.0f} M | {8 * TENSOR * 32 * rate:,.0f} | {1e3 * 8 * one:.0f} ms |")
    return rows


def networks(path: Path) -> ModuleType:
    """The module of a file."""
    spec = importlib.util.spec_from_file_location("networks", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer(net: torch.nn.Module, shape: list[int], rate: float) -> Callable[[], object] | None:
    """One trial of PyTorchFI: as many flips of single bits, at random places, as this rate gives; injected, not run."""
    if importlib.util.find_spec("pytorchfi") is None:
        return None
    from pytorchfi.core import FaultInjection

    injector = FaultInjection(net, 1, input_shape=shape, layer_types=[torch.nn.Conv2d, torch.nn.Linear])
    sizes = [list(size) for size in injector.weights_size]
    counts = np.array([int(np.prod(size)) for size in sizes])
    generator = np.random.default_rng(0)

    def flip(weight: torch.Tensor, place: Any) -> torch.Tensor:
        word = np.array(weight[place].item(), np.float32).view(np.uint32) ^ np.uint32(1 << int(generator.integers(32)))
        return torch.tensor(word.view(np.float32).item())

    def trial() -> object:
        flips = int(generator.binomial(32 * counts.sum(), rate))
        layers = generator.choice(len(sizes), flips, p=counts / counts.sum())
        places = [[int(generator.integers(n)) for n in sizes[layer]] + [None] * 4 for layer in layers]
        columns = [[place[i] for place in places] for i in range(4)]
        return injector.declare_weight_fi(
            function=flip, layer_num=layers.tolist(), k=columns[0], dim1=columns[1], dim2=columns[2], dim3=columns[3]
        )

    return trial


def injecting(subject: Subject, net: torch.nn.Module, shape: list[int]) -> list[str]:
    """Rows: seconds to put the faults of one trial into a network, and to take them out."""
    prepared = Prepared(subject, Variant("none"))
    live = {name: tensor.detach().view(-1).numpy() for name, tensor in net.state_dict().items()}

    def ours(fault: Any, trial: int) -> None:
        patches = prepared.trial(fault, 0, trial).patches
        for name, patch in patches.items():
            words = live[name].view(patch.words.dtype)
            before = words[patch.elements]
            words[patch.elements] = patch.words
            words[patch.elements] = before

    rows = []
    for rate in (1e-7, 1e-6, 1e-5):
        fault, theirs = make(f"bsc:{rate!r}"), peer(net, shape, rate)
        ours(fault, 0)
        mine, others = [], []
        for trial in range(1, 6):
            mine.append(timed(lambda fault=fault, trial=trial: ours(fault, trial)))
            if theirs is not None:
                others.append(timed(theirs))
        first = statistics.median(mine)
        cells = f"{statistics.median(others):.3f} s | {statistics.median(others) / first:,.0f}" if others else "- | -"
        rows.append(f"| {rate:g} | {prepared.draw(fault, 0, 1).count:,} | {1e3 * first:.2f} ms | {cells} |")
    return rows


def main() -> None:
    """Print the page."""
    big, small, factory = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    print("# Speed of campaigns\n")
    print(f"`python -m benchmarks.campaign {big.name} {small.name} {Path(factory).name}`, one thread;")
    facts = describe()
    print(f"{facts['processor']}, commit {facts['commit']}.\n")
    print("Drawing the flips of one trial, float32, every bit; medians of 5 (14 million weights) and one tensor of a")
    print("thousand million weights, times eight.\n\n| bit error rate | weights | flips | time |\n|---|---|---|---|")
    print("\n".join(drawing(Subject.open(big))))
    path, _, name = factory.partition(":")
    net = getattr(networks(Path(path)), name)().eval()
    print(f"\nPutting the faults of one trial into {small.name} and taking them out again, medians of 5, interleaved.")
    print("PyTorchFI copies the network for every trial, sets weight after weight in Python, and is given places and")
    print("bit flips by a function of ours, since it has no random bit flips of weights; only convolutions and linear")
    print("layers, as it finds them.\n\n| bit error rate | flips | here | PyTorchFI | times |\n|---|---|---|---|---|")
    print("\n".join(injecting(Subject.open(small), net, [3, 32, 32])))


if __name__ == "__main__":
    main()
