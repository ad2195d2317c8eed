"""How a number is written: two's complement, sign and magnitude, and an oracle that protects the sign (Pyne et al.).

    python -m reproductions.number_formats RUNS > docs/results/number-formats.md

Six instances of SmallNet that differ in their seed, ResNet-20 and ResNet-18 on CIFAR-10. All parameters (weights,
biases, scales and shifts of normalisation) are 12-bit fixed point with as many integer bits per tensor as its largest
magnitude needs, Q2.10 where that is below 2; running statistics stay float32 and are not hit. RUNS receives a folder
per network; campaigns that are there already are resumed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ckptguard
from ckptguard.campaign.faults import Scope, make
from ckptguard.campaign.shells import Drawn
from ckptguard.campaign.statistics import geometric_deviation, threshold
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.masks import MaskSet, Rule
from reproductions import data, networks

BITS = 12
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
INCREASES = (0.005, 0.01, 0.05, 0.10)
FORMATS = ("two's complement", "sign and magnitude", "sign protected")
EMULATIONS = ("2c, sign worth 2^(i-1) + 1", "2c, and truncated counts")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Network:
    """A network with its checkpoint and test images."""

    def __init__(self, name: str, build: Callable[[], torch.nn.Module], path: Path, images: int, trials: int) -> None:
        self.name, self.build, self.path, self.images, self.trials = name, build, path, images, trials
        self.imagenet = name == "ResNet-20"

    def evaluator(self) -> Callable[[Mapping[str, torch.Tensor]], dict[str, float]]:
        """Error in per cent of a state dict."""
        net = self.build().eval()
        x, y = data.cifar10("test", 0, self.images, self.imagenet)

        def error(state: Mapping[str, torch.Tensor]) -> dict[str, float]:
            net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()}, strict=True)
            with torch.inference_mode():
                logits = torch.cat([net(x[i : i + 250]) for i in range(0, len(x), 250)])
            right = logits.isfinite().all(1) & (logits.argmax(1) == y)
            return {"error": 100 * (1 - float(right.double().mean()))}

        return error


def all_networks(models: Path) -> list[Network]:
    """In the order of the tables."""
    found = [
        Network(f"SmallNet {seed}", networks.SmallNet, models / f"small-{seed}.safetensors", 1000, 12)
        for seed in range(6)
    ]
    found.append(Network("ResNet-20", networks.resnet20, data.folder() / "resnet20-12fca82f.th", 500, 10))
    found.append(Network("ResNet-18", networks.resnet18, data.folder() / "resnet18-cifar10.safetensors", 250, 5))
    return found


def formats(subject: Subject) -> tuple[tuple[str, str], ...]:
    """For every parameter Qi.f with i + f = 12 and 2^(i-1) at least its largest magnitude, i at least 2."""
    pairs = []
    for name in parameters(subject):
        largest = float(np.abs(subject.tensors[name].data.view("<f4")).max(initial=0.0))
        whole = max(2, 1 + math.ceil(math.log2(largest))) if largest > 0 else 2
        pairs.append((name, f"q:{whole}.{BITS - whole}"))
    return tuple(pairs)


def parameters(subject: Subject) -> list[str]:
    """Names of what is trained."""
    return [name for name in subject.tensors if not name.endswith(STATISTICS)]


def variants(subject: Subject) -> list[Variant]:
    """The same formats, written in three ways."""
    plain = formats(subject)
    signed = tuple((name, f"{spec},sign-magnitude") for name, spec in plain)
    sign = MaskSet((Rule(tuple(name for name, _ in plain), "1" + "0" * (BITS - 1)), Rule(("*",), "none")))
    return [
        Variant(FORMATS[0], (*plain, ("*", "native"))),
        Variant(FORMATS[1], (*signed, ("*", "native"))),
        Variant(FORMATS[2], (*plain, ("*", "native")), sign, "ideal"),
    ]


def emulated(network: Network, subject: Subject, runs: Path) -> dict[str, dict[float, float]]:
    """Mean error by rate as the peers' emulation of two's complement has it, on the same flips as the exact one.

    The emulation: a flipped sign moves a value by 1 + 2^(i-1) towards the other sign instead of by 2^(i-1), magnitude
    bits flip in |w|, values may leave the range of the format; in the second one every tensor also gets
    int(bits * rate) faults, neither more nor less.
    """
    kept = runs / f"emulated-{network.path.stem}-{network.images}-{network.trials}.json"
    if kept.exists():
        return {kind: {float(r): e for r, e in row.items()} for kind, row in json.loads(kept.read_text()).items()}
    chosen = variants(subject)[0]
    prepared = Prepared(subject, chosen)
    error, scope = network.evaluator(), Scope(tuple(parameters(subject)))
    rows: dict[str, dict[float, float]] = {kind: {} for kind in EMULATIONS}
    formats_of = dict(formats(subject))
    base = {name: torch.from_numpy(data_.view(_dtype(subject, name)).copy()) for name, data_ in prepared.base.items()}
    for rate in RATES:
        totals = dict.fromkeys(rows, 0.0)
        for trial in range(network.trials):
            exact, more = (prepared.draw(make(f"bsc:{p!r}"), 0, trial, scope).tensors for p in (rate, 4 * rate))
            for kind in rows:
                state = {name: tensor.reshape(subject.tensors[name].shape) for name, tensor in base.items()}
                for name in more:
                    drawn = exact.get(name, Drawn.nothing())
                    elements, masks = drawn.elements, drawn.flips
                    if kind == EMULATIONS[1]:
                        count = int(base[name].numel() * BITS * rate)
                        elements, masks = _exactly(count, drawn, more[name], trial)
                    values = base[name].clone()
                    moved = _emulate(values.numpy()[elements], masks, formats_of[name])
                    values[torch.from_numpy(elements)] = torch.from_numpy(moved)
                    state[name] = values.reshape(subject.tensors[name].shape)
                totals[kind] += error(state)["error"]
        for kind in rows:
            rows[kind][rate] = totals[kind] / network.trials
    kept.write_text(json.dumps(rows))
    return rows


def _dtype(subject: Subject, name: str) -> str:
    return "<f4" if subject.tensors[name].dtype.name == "F32" else "<i8"


def _exactly(count: int, drawn: Drawn, more: Drawn, trial: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` words that are hit: some of those drawn, or all of them and some of those of a higher rate."""
    random = np.random.default_rng(trial)
    chosen = random.permutation(len(drawn.elements))[:count]
    others = np.flatnonzero(~np.isin(more.elements, drawn.elements, assume_unique=True))
    others = random.permutation(others)[: count - len(chosen)]
    elements = np.concatenate([drawn.elements[chosen], more.elements[others]])
    return elements, np.concatenate([drawn.flips[chosen], more.flips[others]])


def _emulate(values: np.ndarray, masks: np.ndarray, spec: str) -> np.ndarray:
    whole, fraction = map(int, spec.removeprefix("q:").split("."))
    step = 2.0**-fraction
    magnitude = np.round(np.abs(values.astype(np.float64)) / step).astype(np.int64)
    changed = (magnitude ^ (masks.astype(np.int64) & ((1 << (BITS - 1)) - 1))) * step
    sign = np.where(values < 0, -1.0, 1.0)
    result = sign * changed
    flipped = (masks >> np.uint64(BITS - 1)) & np.uint64(1) == 1
    result = np.where(flipped, result - sign * (1 + 2.0 ** (whole - 1)), result)
    return result.astype(np.float32)


def measure(network: Network, runs: Path) -> dict[str, Any]:
    """Clean error, and mean error by format and rate."""
    folder = runs / network.name.replace(" ", "-").lower()
    subject = Subject.open(network.path, None)
    run = ckptguard.sweep(
        network.path, folder, evaluator=network.evaluator(), ber=RATES, variants=variants(subject),
        tensors=parameters(subject), trials=network.trials, metric="error", ranges=("error=0:100",),
        directions=("error=lower",), golden=False, jobs=1, resume=(folder / "campaign.json").exists(),
    )  # fmt: skip
    found: dict[str, Any] = {"clean": run.campaign["clean"][FORMATS[0]]["error"], "formats": {}}
    for record in run.campaign["analysis"]["summary"]:
        if record["metric"] == "error":
            found["formats"].setdefault(record["variant"], {})[record["ber"]] = record["mean"]
    if network.name.startswith("SmallNet"):
        found["formats"] |= emulated(network, subject, runs)
    return found


def crossing(clean: float, means: Mapping[float, float], increase: float) -> float | None:
    """The threshold error rate, between two rates of the grid."""
    rates = sorted(means)
    found = threshold(rates, [means[rate] for rate in rates], clean, increase)
    return found.crossing if found.crossing is not None else found.rate


def main() -> None:
    """Measure and print the page."""
    runs = Path(sys.argv[1])
    runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = {network.name: measure(network, runs) for network in all_networks(runs)}
    print((__doc__ or "").splitlines()[0].join(("# ", "\n")))
    print("Threshold error rates: the bit error rate at which the mean error reaches (1 + x) times the clean error,")
    print("on a straight line between two rates of the grid in log(rate).\n")
    for increase in INCREASES:
        print(f"## x = {100 * increase:g} %\n")
        kinds = list(next(iter(results.values()))["formats"])
        print(f"| network | clean error | {' | '.join(kinds)} | SM / 2c | sign protected / 2c |")
        print("|" + "---|" * (len(kinds) + 4))
        columns: dict[str, list[float]] = {kind: [] for kind in kinds}
        for name, found in results.items():
            cells, values = [], {}
            for kind in kinds:
                value = crossing(found["clean"], found["formats"][kind], increase) if kind in found["formats"] else None
                values[kind] = value
                cells.append("-" if value is None else f"{value:.1e}")
                if value is not None and name.startswith("SmallNet"):
                    columns[kind].append(value)
            first = values[FORMATS[0]]
            ratios = [f"{v / first:.1f}" if first and (v := values[kind]) else "-" for kind in FORMATS[1:]]
            print(f"| {name} | {found['clean']:.2f} | {' | '.join(cells)} | {' | '.join(ratios)} |")
        spread = [f"{geometric_deviation(column):.2f}" if len(column) > 1 else "-" for column in columns.values()]
        print(f"| geometric deviation over SmallNet | | {' | '.join(spread)} | | |\n")


if __name__ == "__main__":
    main()
