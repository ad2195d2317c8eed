"""Speed of campaigns.

    python -m benchmarks.campaign BIG SMALL NETWORKS.PY:FACTORY > docs/results/campaign-speed.md

Drawing faults for 14 million and a thousand million weights, and whole trials beside PyTorchFI's weight injection on
the same network at the same rate, interleaved in one run, medians. PyTorchFI is skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from ckptguard.campaign.faults import Fault, Scope, make
from ckptguard.campaign.shells import draw
from ckptguard.campaign.subject import Subject, SubjectTensor
from ckptguard.campaign.variants import Prepared, Variant

RATES = (1e-6, 1e-3, 1e-2)
TENSOR, MANY = 1 << 27, 8
"""A thousand million weights are so many tensors of this many."""
IMAGES = 100


def median(function: Callable[[], object], rounds: int) -> float:
    """CPU seconds of a call, the first (which compiles) left out."""
    function()
    return statistics.median(timed(function) for _ in range(rounds))


def timed(function: Callable[[], object]) -> float:
    """CPU seconds of one call; they depend less than a clock does on what else the machine does."""
    start = time.process_time()
    function()
    return time.process_time() - start


def drawing(subject: Subject) -> list[str]:
    """Rows: seconds to draw the flips of one trial."""
    rows = []
    prepared = Prepared(subject, Variant("none"))
    large, weights = MANY * TENSOR, sum(tensor.elements for tensor in subject.tensors.values())
    planes = list(range(32))
    shifts = [31 - plane for plane in planes]
    for rate in RATES:
        fault = make(f"bsc:{rate!r}")
        few = median(partial(prepared.draw, fault, 0, 1), 5)
        flips = prepared.draw(fault, 0, 1).count
        one = median(partial(draw, np.uint64(5), TENSOR, planes, shifts, rate, rate), 3)
        rows.append(f"| {rate:g} | {weights / 1e6:.1f} M | {flips:,} | {1e3 * few:.1f} ms |")
        rows.append(f"| {rate:g} | {large / 1e6:.0f} M | {large * 32 * rate:,.0f} | {1e3 * MANY * one:.0f} ms |")
    return rows


def networks(path: Path) -> ModuleType:
    """The module of a file."""
    spec = importlib.util.spec_from_file_location("networks", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Injector = Callable[[], torch.nn.Module]


def peer(net: torch.nn.Module, shape: list[int], rate: float) -> Injector | None:
    """One trial of PyTorchFI: as many flips of single bits, at random places, as this rate gives."""
    if importlib.util.find_spec("pytorchfi") is None:
        return None
    injection: Any = importlib.import_module("pytorchfi.core").fault_injection
    injector = injection(net, 1, input_shape=shape, layer_types=[torch.nn.Conv2d, torch.nn.Linear])
    sizes = [tuple(size) for size in injector.weights_size]
    counts = np.array([int(np.prod(size)) for size in sizes])
    generator = np.random.default_rng(0)

    def trial() -> torch.nn.Module:
        flips = int(generator.binomial(32 * counts.sum(), rate))
        layers = np.sort(generator.choice(len(sizes), flips, p=counts / counts.sum()))
        bits = iter((1 << generator.integers(32, size=flips)).astype(np.uint32))
        columns: list[list[int | None]] = [[], [], [], []]
        for layer, size in enumerate(sizes):
            places = np.unravel_index(generator.integers(counts[layer], size=int((layers == layer).sum())), size)
            for column, place in zip(columns, [*places, None, None], strict=False):
                column += [None] * len(places[0]) if place is None else place.tolist()

        def flip(weight: torch.Tensor, place: Any) -> float:
            return float((np.float32(weight[place].item()).view(np.uint32) ^ next(bits)).view(np.float32))

        damaged = injector.declare_weight_fi(
            function=flip, layer_num=layers.tolist(), k=columns[0], dim1=columns[1], dim2=columns[2], dim3=columns[3]
        )
        if not isinstance(damaged, torch.nn.Module):
            raise TypeError(f"PyTorchFI gave {type(damaged).__name__}")
        return damaged

    return trial


class Here:
    """Trials of a campaign on a network whose parameters are patched in place."""

    def __init__(self, subject: Subject, net: torch.nn.Module) -> None:
        self.prepared, self.net = Prepared(subject, Variant("none")), net
        self.live = {name: tensor.detach().view(-1).numpy() for name, tensor in net.state_dict().items()}
        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        layers = [name for name, layer in net.named_modules() if isinstance(layer, kinds)]
        self.scope = Scope(tuple(f"{layer}.weight" for layer in layers))

    def trial(self, fault: Fault, number: int, score: Callable[[torch.nn.Module], object]) -> None:
        """Draw, patch, score, put back."""
        patches = self.prepared.trial(fault, 0, number, self.scope).patches
        before = {}
        for name, patch in patches.items():
            words = self.live[name].view(patch.words.dtype)
            before[name] = words[patch.elements]
            words[patch.elements] = patch.words
        score(self.net)
        for name, patch in patches.items():
            self.live[name].view(patch.words.dtype)[patch.elements] = before[name]


def injecting(subject: Subject, net: torch.nn.Module, shape: list[int]) -> list[str]:
    """Rows: CPU seconds of a trial without and with evaluation, and trials in a CPU second."""
    here, inputs = Here(subject, net), torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))

    def score(damaged: torch.nn.Module) -> None:
        with torch.inference_mode():
            damaged(inputs)

    rows = []
    for rate, rounds in ((1e-6, 7), (1e-5, 7), (1e-4, 5), (1e-3, 3)):
        fault, theirs = make(f"bsc:{rate!r}"), peer(net, shape, rate)
        here.trial(fault, 0, score)
        times: list[list[float]] = [[], [], [], []]
        for trial in range(1, rounds + 1):
            for column, scored in enumerate((_nothing, score)):
                times[column].append(timed(partial(here.trial, fault, trial, scored)))
                if theirs is not None:
                    times[2 + column].append(timed(partial(_injected, theirs, scored)))
        flips = here.prepared.draw(fault, 0, 1, here.scope).count
        ours, whole, peers, peers_whole = (statistics.median(column) if column else None for column in times)
        cells = [f"{rate:g}", f"{flips:,}", _milliseconds(ours), _milliseconds(peers), _ratio(peers, ours)]
        cells += [_per_second(whole), _per_second(peers_whole), _ratio(peers_whole, whole)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _injected(injector: Injector, score: Callable[[torch.nn.Module], object]) -> None:
    score(injector())


def _nothing(damaged: torch.nn.Module) -> None:
    return None


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _per_second(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1 / seconds:.2f}"


def _ratio(first: float | None, second: float | None) -> str:
    return "-" if first is None or second is None else f"{first / second:,.3g}"


def main() -> None:
    """Print the page."""
    big, small, factory = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    path, _, name = factory.partition(":")
    subject = Subject.open(small)
    net: torch.nn.Module = getattr(networks(Path(path)), name)().eval()
    net.load_state_dict({key: _tensor(tensor) for key, tensor in subject.tensors.items()})
    facts = describe()
    load = facts["load_average"][0]
    print(f"""# Speed of campaigns

`python -m benchmarks.campaign {big.name} {small.name} {factory}`,
commit {facts["commit"]}, one thread; {facts["processor"]}, {facts["threads"]} cores shared with other work
(load average {load}), therefore CPU seconds.

## Drawing the flips of one trial

float32, every bit; medians of 5 for 14 million weights. A thousand million weights are one tensor of {TENSOR:,}
times {MANY}, median of 3. No random number is drawn for a bit that does not flip: time follows the flips.

| bit error rate | weights | flips | CPU time |
|---|---|---|---|""")
    print("\n".join(drawing(Subject.open(big))))
    print(f"""
## Whole trials, beside PyTorchFI

{small.name}, convolutions and linear layers: draw the flips, put them into the network, run
{IMAGES} images or none, and have the undamaged network again. Medians, both in turn. PyTorchFI {_version()} copies the
network for every trial and sets one weight after another. It has no bit flips of stored weights, so their places are
drawn with numpy and the bit is flipped by a function of ours that it calls. Where few bits flip a trial is little more
than its evaluation, which is the same for both; `prefix-reuse.md` says how much of that campaigns save.

| bit error rate | flips | here, no images | PyTorchFI | times | here, trials a second | PyTorchFI | times |
|---|---|---|---|---|---|---|---|""")
    print("\n".join(injecting(subject, net, [3, 32, 32])))


def _version() -> str:
    try:
        return metadata.version("pytorchfi")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _tensor(tensor: SubjectTensor) -> torch.Tensor:
    kind = {"F32": "<f4", "I64": "<i8"}[tensor.dtype.name]
    return torch.from_numpy(tensor.data.view(kind).copy()).reshape(tensor.shape)


if __name__ == "__main__":
    main()
