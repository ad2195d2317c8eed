"""How a number is written: two's complement, sign and magnitude, and an oracle that protects the sign (Pyne et al.).

    python -m reproductions.number_formats RUNS > docs/results/number-formats.md

Six instances of SmallNet, which RUNS holds (`python -m reproductions.train small --out RUNS`), ResNet-20 and ResNet-18
on CIFAR-10. All parameters (weights, biases, scales and shifts of normalisation) are 12-bit fixed point with as many
integer bits per tensor as its largest magnitude needs, at least 2; running statistics stay float32 and are not hit.
RUNS receives a folder per network; campaigns that are there already are not run again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ckptguard
from benchmarks.machine import describe
from ckptguard.campaign.faults import Scope, make
from ckptguard.campaign.shells import Drawn
from ckptguard.campaign.statistics import geometric_deviation, threshold
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.masks import MaskSet
from ckptguard.masks import Rule as MaskRule
from ckptguard.report import figures
from ckptguard.report.plots import Curves, Line, Rule, rate_axis, value_axis
from reproductions import data, networks

PAGES = Path(__file__).resolve().parents[1] / "docs" / "results"
BITS = 12
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
INCREASES = (0.005, 0.01, 0.05, 0.10)
INSTANCES = 6
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
        for seed in range(INSTANCES)
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
    sign = MaskSet((MaskRule(tuple(name for name, _ in plain), "1" + "0" * (BITS - 1)), MaskRule(("*",), "none")))
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
    return np.asarray(result, np.float32)


def measure(network: Network, runs: Path) -> dict[str, Any]:
    """Clean error, and mean error by format and rate."""
    folder = runs / network.name.replace(" ", "-").lower()
    subject = Subject.open(network.path, None)
    if not (folder / "summary.csv").exists():
        ckptguard.sweep(
            network.path, folder, evaluator=network.evaluator(), ber=RATES, variants=variants(subject),
            tensors=parameters(subject), trials=network.trials, metric="error", ranges=("error=0:100",),
            directions=("error=lower",), golden=False, jobs=1, resume=(folder / "campaign.json").exists(),
        )  # fmt: skip
    campaign = json.loads((folder / "campaign.json").read_text())
    found: dict[str, Any] = {
        "clean": campaign["clean"][FORMATS[0]]["error"],
        "formats": {},
        "trials": of_trials(folder),
        "images": network.images,
    }
    for record in campaign["analysis"]["summary"]:
        if record["metric"] == "error":
            found["formats"].setdefault(record["variant"], {})[record["ber"]] = record["mean"]
    if network.name.startswith("SmallNet"):
        found["formats"] |= emulated(network, subject, runs)
    return found


Results = Mapping[str, Mapping[str, Any]]


def crossing(clean: float, means: Mapping[float, float], increase: float) -> float:
    """The threshold error rate, between two rates of the grid; 0 or infinity where it lies below or above all."""
    rates = sorted(means)
    found = threshold(rates, [means[rate] for rate in rates], clean, increase)
    if found.crossing is not None:
        return found.crossing
    return 0.0 if found.rate is None else math.inf


def crossings(results: Results, increase: float) -> dict[str, dict[str, float]]:
    """Threshold error rates by network and format."""
    return {
        name: {kind: crossing(found["clean"], means, increase) for kind, means in found["formats"].items()}
        for name, found in results.items()
    }


def resampled(found: Mapping[str, Any], kind: str, increase: float) -> float:
    """Geometric deviation of a network's threshold over 200 resamples of its trials: the noise of the estimate."""
    trials = found["trials"][kind]
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        chosen = generator.integers(trials.shape[1], size=trials.shape[1])
        rates.append(crossing(found["clean"], dict(zip(RATES, trials[:, chosen].mean(1), strict=True)), increase))
    return geometric_deviation(_within(rates))


def of_trials(folder: Path) -> dict[str, np.ndarray]:
    """(rates, trials) errors by format, of a campaign."""
    points = {
        point["id"]: RATES.index(point["ber"]) for point in json.loads((folder / "campaign.json").read_text())["points"]
    }
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    count = 1 + max(row["trial"] for row in rows)
    found = {kind: np.full((len(RATES), count), np.nan) for kind in FORMATS}
    for row in rows:
        found[row["variant"]][points[row["point"]], row["trial"]] = float(row["metrics"]["error"])
    return found


def threshold_table(results: Results, increase: float) -> None:
    """Threshold error rates of the three formats, their ratios, and their spread over the instances."""
    found = crossings(results, increase)
    print(f"\n### x = {100 * increase:g} %\n")
    print("| network | clean error | 2c | SM | sign protected | SM / 2c | sign protected / 2c |")
    print("|---|---|---|---|---|---|---|")
    for name, rates in found.items():
        if increase * results[name]["clean"] < 100 / results[name]["images"]:
            print(f"| {name} | {results[name]['clean']:.2f} | less than one image | | | | |")
            continue
        cells = [_rate(rates[kind]) for kind in FORMATS]
        cells += [_ratio(rates[kind], rates[FORMATS[0]]) for kind in FORMATS[1:]]
        print(f"| {name} | {results[name]['clean']:.2f} | {' | '.join(cells)} |")
    columns = [_within(_of_instances(found, kind)) for kind in FORMATS]
    for what, function in (("geometric deviation", geometric_deviation), ("largest / smallest", _spread)):
        print(f"| SmallNet, {what} | | {' | '.join(f'{function(column):.2f}' for column in columns)} | | |")
    instances = [results[name] for name in results if name.startswith("SmallNet")]
    noise = [float(np.median([resampled(one, kind, increase) for one in instances])) for kind in FORMATS]
    print(f"| geometric deviation of resampled trials | | {' | '.join(f'{value:.2f}' for value in noise)} | | |")


def emulation_table(results: Results) -> None:
    """How far the emulations move the thresholds of two's complement."""
    print("| x | 2c | emulated sign | and counts | SM / 2c | SM / emulated sign | SM / and counts |")
    print("|---|---|---|---|---|---|---|")
    kinds = (FORMATS[0], *EMULATIONS)
    for increase in INCREASES:
        found = crossings(results, increase)
        means = {kind: _geometric_mean(_of_instances(found, kind)) for kind in (*kinds, FORMATS[1])}
        cells = [_rate(means[kind]) for kind in kinds] + [_ratio(means[FORMATS[1]], means[kind]) for kind in kinds]
        print(f"| {100 * increase:g} % | {' | '.join(cells)} |")


def reading(results: Results) -> None:
    """What the tables say, in sentences; numbers are computed."""
    means = {
        increase: {
            kind: _geometric_mean(_of_instances(crossings(results, increase), kind)) for kind in (*FORMATS, *EMULATIONS)
        }
        for increase in INCREASES
    }
    two, signed, oracle = FORMATS
    gains = _listed(means[x][signed] / means[x][two] for x in INCREASES)
    apparent = _listed(means[x][signed] / means[x][EMULATIONS[0]] for x in INCREASES)
    counted = _listed(means[x][EMULATIONS[1]] / means[x][EMULATIONS[0]] for x in INCREASES)
    same = [means[x][oracle] / means[x][signed] for x in INCREASES]
    print(f"""
- Sign and magnitude tolerates {gains} times the bit error rate that two's complement does, at x =
  {_listed((100 * x for x in INCREASES), "g")} % (geometric means of the six instances); Pyne et al. report up to 10.
  On them an oracle for the sign bits adds nothing: {min(same):.2f} to {max(same):.2f} times the rate of SM (theirs:
  equal, or within 20 %). On ResNet-20 it adds something at x = 10 %.
- The emulated sign flip makes two's complement look worse than it is: SM would seem to tolerate
  {apparent} times its rate.
- Truncated counts move the emulated threshold by a further factor of {counted}: at low rates
  (small x) tensors of few weights are never hit and the network seems to last longer; at higher ones that is gone.
- At 0.5 and 1 % a threshold rests on one to three images; instances then differ by more than at 5 and 10 %, and so do
  resamples of one instance's own trials. Part of the spread between instances that Pyne et al. report there (up to 4)
  is to be expected from the noise of the estimate; at 5 and 10 % all of what is seen here is.""")


def _listed(numbers: Iterable[float], digits: str = ".2g") -> str:
    *first, last = (f"{number:{digits}}" for number in numbers)
    return f"{', '.join(first)} and {last}"


def error_table(results: Results) -> None:
    """Mean error over the instances, by rate."""
    kinds = (*FORMATS, *EMULATIONS)
    print(f"| bit error rate | {' | '.join(kinds)} |")
    print("|" + "---|" * (len(kinds) + 1))
    for rate in RATES:
        print(f"| {rate:g} | {' | '.join(f'{_mean_error(results, kind, rate):.2f}' for kind in kinds)} |")


def picture(results: Results) -> None:
    """Mean error of the instances against the rate, beside the page."""
    kinds = (*FORMATS, *EMULATIONS)
    lines = tuple(
        Line(kind, i, RATES, tuple(_mean_error(results, kind, rate) for rate in RATES)) for i, kind in enumerate(kinds)
    )
    clean = float(np.mean([found["clean"] for name, found in results.items() if name.startswith("SmallNet")]))
    y = value_axis("error in %", [clean, *(value for line in lines for value in line.y)])
    title = "SmallNet: mean error of six instances"
    x = rate_axis("bit error rate (per stored bit)", RATES)
    plot = Curves("number-formats", title, title, x, y, lines, (Rule(clean, f"clean {clean:.1f}"),))
    figures.save(plot, PAGES / "number-formats", ("png",))


def _mean_error(results: Results, kind: str, rate: float) -> float:
    return float(np.mean([found["formats"][kind][rate] for name, found in results.items() if "SmallNet" in name]))


def _of_instances(found: Mapping[str, Mapping[str, float]], kind: str) -> list[float]:
    return [rates[kind] for name, rates in found.items() if name.startswith("SmallNet")]


def _within(rates: list[float]) -> list[float]:
    """Rates outside of the grid at its ends."""
    return [min(max(rate, RATES[0]), RATES[-1]) for rate in rates]


def _geometric_mean(rates: list[float]) -> float:
    return math.exp(float(np.mean(np.log(_within(rates)))))


def _spread(rates: list[float]) -> float:
    return max(rates) / min(rates)


def _rate(rate: float) -> str:
    return f"< {RATES[0]:.0e}" if rate == 0 else f"> {RATES[-1]:.0e}" if math.isinf(rate) else f"{rate:.1e}"


def _ratio(first: float, second: float) -> str:
    inside = all(0 < rate < math.inf for rate in (first, second))
    return f"{first / second:.1f}" if inside else "-"


def main() -> None:
    """Measure and print the page."""
    runs = Path(sys.argv[1])
    runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    networks_ = all_networks(runs)
    results = {network.name: measure(network, runs) for network in networks_}
    facts = describe()
    used = ", ".join(
        f"{network.name.removesuffix(' 5')} {network.images} images and {network.trials} trials"
        for network in networks_[INSTANCES - 1 :]
    )
    print(f"""# {(__doc__ or "").splitlines()[0]}

`python -m reproductions.number_formats RUNS`, commit {facts["commit"]}, {facts["processor"]},
{facts["threads"]} cores, one thread. Six instances of SmallNet (153 thousand parameters, seeds 0 to 5, trained by
`python -m reproductions.train small --out RUNS`), ResNet-20 (published weights) and ResNet-18 on CIFAR-10. All
parameters, also biases and batch normalisation, are 12-bit fixed point, Q2.10, with more integer bits for a tensor that
needs them; running statistics stay float32 and are not hit. All formats meet the same flips.
{used}.

2c: two's complement. SM: sign and magnitude. Sign protected: two's complement with an oracle that keeps sign bits.

## Threshold error rates

The bit error rate at which the mean error reaches (1 + x) times the clean error, on a line between two rates of the
grid in log(rate); in means and deviations those outside of the grid stand at its end. Of resampled trials: the median
over the instances of how much the threshold of one varies if its trials are drawn again from those seen; what is not
larger than that is noise of the estimate, not a difference between instances.""")
    for increase in INCREASES:
        threshold_table(results, increase)
    print("""
## Mean error of the six SmallNets

![error against bit error rate](number-formats.png)
""")
    error_table(results)
    print("""
## What the peers' emulation changes

Public code for such campaigns (Ares v2) flips bits of the magnitude whatever the format, and for two's complement moves
a value by 1 + 2^(i-1) where a sign bit flips: 3 instead of 2 in Q2.10. It gives every tensor int(bits * rate) faults.
Geometric means of the thresholds of the six instances, on the same flips:
""")
    emulation_table(results)
    reading(results)
    picture(results)


if __name__ == "__main__":
    main()
