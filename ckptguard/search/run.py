"""search: masks for a model, from a request in the words of a user."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckptguard.campaign.design import file_digests, name_of
from ckptguard.campaign.record import digest_of
from ckptguard.campaign.subject import Subject
from ckptguard.devices import Device, DeviceMap
from ckptguard.errors import UsageError
from ckptguard.evaluate.frameworks import tensor_from_bytes
from ckptguard.masks import MaskSet
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search import curvature as curvatures
from ckptguard.search import learning, measured
from ckptguard.search import polish as polishing
from ckptguard.search.calibrate import Calibration
from ckptguard.search.certify import Certificate, Claim, Tested, walk
from ckptguard.search.curvature import Curvature, Losses
from ckptguard.search.frontier import Frontier
from ckptguard.search.journal import Journal
from ckptguard.search.methods import GRADIENTS, MEASURED, METHODS, NOTHING
from ckptguard.search.paths import MaskPath
from ckptguard.search.problem import Problem, faults_of
from ckptguard.search.trials import RANGE, Stored, Trials, mean_drop
from ckptguard.spec import look_up

DEFAULT_CODE = "ideal"
CALIBRATION_POINTS = 6
NO_DAMAGE = 1e-2
"""Of the least damage that was measured: what counts as none at all."""
STEP = math.sqrt(0.5)
"""From one certified vertex to the next, parity falls by about this factor."""


@dataclass(frozen=True)
class Vertex:
    """One mask set on the way from nothing to all.

    Attributes:
        predicted: damage left, in units of the loss that was differentiated.
        expected: loss of the metric by the calibration; None without one.
    """

    vertex: int
    redundancy: float
    charged: float
    predicted: float
    expected: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        masks: with their provenance.
        chosen: where they lie on the path.
        path: vertices, thinned to a few hundred.
        table: damage by tensor and bit position.
        calibration: (predicted damage, mean loss of the metric) as measured, and the map; None without one.
        certificate: None where none was asked for, or the first test failed.
        walk: all tests of the certificate's walk.
        seconds: by phase.
        evaluations: of the model.
    """

    method: str
    masks: MaskSet
    chosen: Vertex
    path: tuple[Vertex, ...]
    table: dict[str, tuple[float, ...]]
    metric: str
    clean: float
    faults: str
    calibration: Calibration | None
    certificate: Certificate | None
    asked_certificate: bool
    walk: tuple[Tested, ...]
    seconds: dict[str, float]
    evaluations: int
    unknown: tuple[str, ...] = ()


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def phase(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def search(
    model: Path | str | Subject,
    *,
    evaluator: str | Callable[..., Any] | object,
    calibrate: str | Callable[..., Any] | object | None = None,
    gradients: str | Losses | None = None,
    ber: float | None = None,
    faults: str | None = None,
    device: Device | None = None,
    devices: DeviceMap | None = None,
    budget: float | None = None,
    max_drop: float | None = None,
    target: float | None = None,
    method: str = "fisher",
    representation: str = "native",
    codes: str | Sequence[str] = DEFAULT_CODE,
    guard: str = RANGE,
    metric: str | None = None,
    certify: Claim | str | None = None,
    episodes: int = 5000,
    protected_share: float | None = None,
    reward: str = "published",
    selection: str | Callable[..., Any] | object | None = None,
    samples: int = 128,
    trials: int = 4,
    seed: int = 0,
    framework: str = "pt",
    threads: int = 1,
    select: str | None = None,
    polish: int = 0,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Find the masks that keep most of a model for a budget of parity, or the least parity that keeps enough.

    Exactly one of `budget` (parity and metadata over bits of the weights), `max_drop` (mean loss of the metric) and
    `target` (mean of the metric) is given. Curvature and calibration use `calibrate`, the certificate uses
    `evaluator`; the two never share an input where the spec is `classification:` and `calibrate` is left out: then its
    data are halved.

    Args:
        gradients: `FILE.py:losses` or such a function, where the evaluator has no gradients of its own.
        codes: specs to choose from; the first is that of `protect --code`.
        certify: a claim such as `drop=1.0,trials=59`.
        episodes, protected_share, reward: of agents: mask sets they try, the share of bits they may protect (instead
            of `budget`), and `published` or `original`.
        selection: an evaluator on data that neither `calibrate` nor `evaluator` uses, which chooses among an agent's
            masks; data of `classification:` are halved once more without it.
        samples: calibration inputs that gradients are taken of.
        trials: draws per point of the calibration.
        polish: evaluations that swaps around the threshold may take; 0 = none are tried.
        journal: keeps losses and curvature as they are measured, and answers what it knows. It is left open.

    Raises:
        UsageError, SpecError, MaskError: the request cannot be met.
    """
    chosen_method = look_up(METHODS, method, "method")
    wants = [budget, max_drop, target, protected_share]
    if sum(value is not None for value in wants) != 1:
        raise UsageError("a search needs one of a budget, a largest drop and a target, and only one")
    if chosen_method.path is None and (max_drop is not None or target is not None):
        raise UsageError(f"{method} learns masks for a budget (--budget or --protected-share), not for a loss")
    if chosen_method.path is not None and protected_share is not None:
        raise UsageError(f"--protected-share is a budget of agents; {method} takes --budget, --max-drop, ...")
    claim = Claim.parse(certify) if isinstance(certify, str) else certify
    clock = _Clock()
    subject = model if isinstance(model, Subject) else Subject.open(model, select)
    by_tensor, fault_text = faults_of(subject, ber, faults, device, devices)
    listed = (codes,) if isinstance(codes, str) else tuple(codes)
    stored = Stored(representation, listed[0], guard=guard)
    tuning, reporting = split(evaluator, calibrate)
    if chosen_method.path is None:
        tuning, selection = _selection(tuning, selection)
    options: dict[str, Any] = {"metric": metric, "framework": framework, "threads": threads, "journal": journal}
    tune = Trials(subject, tuning, by_tensor, stored, seed=seed, decoder="sampled", **options)
    clock.phase("loading")
    found = find_curvature(chosen_method.curvature, tune, gradients, samples, seed, progress)
    clock.phase("curvature")
    shapes = {name: tensor.shape for name, tensor in subject.tensors.items()}
    problem = Problem(tune.bare.encodings, by_tensor, stored, listed, found, shapes, subject.shards)
    more: dict[str, object] = {}
    path: MaskPath
    if chosen_method.path is None:
        choosing = Trials(subject, selection, by_tensor, stored, seed=seed + 2, decoder="sampled", **options)
        plan = learning.Plan(episodes, protected_share, reward)
        learned = learning.learned_path(problem, tune, choosing, method, budget, plan, seed, progress)
        path, more = learned.path, {"learning": learned.provenance()}
        clock.phase("learning")
    else:
        path = chosen_method.path(problem, tune, seed)
        clock.phase("frontier")
    calibration = None
    if chosen_method.path is None:
        vertex = 0
    elif budget is None:
        calibration = calibrate_path(path, tune, trials, progress)
        limit = max_drop if max_drop is not None else _drop_to(tune, target)
        vertex = least(path, calibration, limit)
        clock.phase("calibration")
    else:
        vertex = path.within(budget)
    if polish:
        path = _polished(path, vertex, tune, budget, polish, progress)
        more = {"polish": path.provenance()}
        clock.phase("polish")
    certificate: Certificate | None = None
    tests: tuple[Tested, ...] = ()
    evaluations = tune.evaluations
    clean = tune.clean[tune.metric.name]
    if claim is not None:
        report = Trials(subject, reporting, by_tensor, stored, seed=seed + 1, **options)
        order = certification_order(path, vertex, fixed=max_drop is None and target is None)
        results, passed = walk(
            [(v, path.charged(v)) for v in order], claim, lambda v, n: _fresh(report, path, v, n, claim, progress)
        )
        tests = tuple(results)
        clean = report.clean[report.metric.name]
        evaluations += report.evaluations
        if passed is not None:
            vertex = passed
            data = "held-out data" if calibrate is not None or tuning is not evaluator else "the evaluator's data"
            certificate = Certificate(claim, report.metric.name, clean, data, fault_text, vertex, tests)
        clock.phase("certificate")
    provenance = {
        "tool": "ckptguard search",
        "method": method,
        "subject": subject.digest,
        "faults": fault_text,
        "representation": representation,
        "codes": list(listed),
        "guard": guard,
        "seed": seed,
        "curvature": found.source,
        "redundancy": path.redundancy(vertex),
        "charged_redundancy": path.charged(vertex),
        "metric": tune.metric.name,
    }
    provenance |= problem.restorers | more
    if math.isfinite(path.damage[vertex]):
        provenance["predicted_damage"] = path.damage[vertex]
    if calibration is not None:
        provenance["calibration"] = calibration.to_json()
    if certificate is not None:
        provenance["certificate"] = certificate.to_json()
    return SearchResult(
        method=method,
        masks=path.masks(vertex, provenance),
        chosen=_vertex(path, vertex, calibration),
        path=tuple(_vertex(path, v, calibration) for v in thinned(len(path))),
        table=problem.table,
        metric=tune.metric.name,
        clean=clean,
        faults=fault_text,
        calibration=calibration,
        certificate=certificate,
        asked_certificate=claim is not None,
        walk=tests,
        seconds=clock.seconds,
        evaluations=evaluations,
        unknown=found.unknown,
    )


@dataclass(frozen=True)
class Sensitivity:
    """The damage table of a model.

    Attributes:
        table: expected damage by tensor and bit position, 0 = most significant; infinite where it is not known.
        source: of the curvature.
        metadata_bits: that masks and guards cost.
    """

    table: dict[str, tuple[float, ...]]
    words: dict[str, int]
    faults: str
    source: str
    metadata_bits: int
    unknown: tuple[str, ...]


def sensitivity(
    model: Path | str | Subject,
    *,
    evaluator: str | Callable[..., Any] | object,
    gradients: str | Losses | None = None,
    ber: float | None = None,
    faults: str | None = None,
    device: Device | None = None,
    devices: DeviceMap | None = None,
    method: str = "fisher",
    representation: str = "native",
    guard: str = RANGE,
    metric: str | None = None,
    samples: int = 128,
    seed: int = 0,
    framework: str = "pt",
    threads: int = 1,
    select: str | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """What a flip of every bit position of every tensor is expected to cost, without choosing masks."""
    source = look_up(METHODS, method, "method").curvature
    subject = model if isinstance(model, Subject) else Subject.open(model, select)
    by_tensor, fault_text = faults_of(subject, ber, faults, device, devices)
    stored = Stored(representation, DEFAULT_CODE, guard=guard)
    trials = Trials(
        subject, evaluator, by_tensor, stored, metric=metric, seed=seed, framework=framework, threads=threads
    )
    found = find_curvature(source, trials, gradients, samples, seed, progress)
    shapes = {name: tensor.shape for name, tensor in subject.tensors.items()}
    problem = Problem(trials.bare.encodings, by_tensor, stored, (DEFAULT_CODE,), found, shapes, subject.shards)
    words = {name: encoding.elements for name, encoding in trials.bare.encodings.items()}
    return Sensitivity(problem.table, words, fault_text, found.source, problem.metadata_bits, found.unknown)


def _selection(tuning: Any, selection: Any) -> tuple[Any, Any]:
    """What episodes are evaluated with, and what chooses among their masks."""
    if selection is not None:
        return tuning, selection
    found = learning.halves(tuning)
    if found is None:
        raise UsageError(
            "give --selection SPEC, an evaluator on third data: the best of many episodes is the luckiest, so masks "
            "are chosen on data that they were not found with. Data of `classification:` are halved without it."
        )
    return found


def split(evaluator: Any, calibrate: Any) -> tuple[Any, Any]:
    """What tunes and what reports: two evaluators that share no input.

    Raises UsageError where the data of an evaluator cannot be halved.
    """
    if calibrate is not None:
        return calibrate, evaluator
    if isinstance(evaluator, str) and evaluator.partition(":")[0] == "classification" and "part=" not in evaluator:
        return f"{evaluator},part=1/2", f"{evaluator},part=2/2"
    raise UsageError(
        "give --calibrate SPEC, an evaluator on data that --eval does not use: a search that is judged on the data it "
        "chose by reports luck. Data of `classification:` are halved without it."
    )


def _polished(
    path: MaskPath, vertex: int, trials: Trials, budget: float | None, evaluations: int, progress: Progress
) -> polishing.Polished:
    """Within the budget where there is one, else with no more parity than the vertex."""
    if not isinstance(path, Frontier):
        raise UsageError("--polish swaps steps of a frontier: it belongs to the methods fisher and measured")
    allowed = path.parity_bits[vertex] if budget is None else budget * path.stored_bits - path.metadata_bits
    return polishing.polish(path, vertex, trials, allowed, evaluations, _ceiling(trials), progress)


def find_curvature(
    source: str, trials: Trials, gradients: str | Losses | None, samples: int, seed: int, progress: Progress
) -> Curvature:
    """From gradients of the evaluator or of the user's losses, or measured, where the journal has none."""
    if trials.journal is None or source == MEASURED:  # whose draws are in the journal
        return _find_curvature(source, trials, gradients, samples, seed, progress)
    files = file_digests(gradients) if isinstance(gradients, str) else {}
    asked = {"curvature": source, "gradients": gradients and name_of(gradients), "files": files, "samples": samples}
    key = digest_of({"trials": trials.conditions, "asked": asked, "seed": seed})
    found = trials.journal.curvature(key)
    if found is None:
        found = _find_curvature(source, trials, gradients, samples, seed, progress)
        trials.journal.add_curvature(key, found)
    return found


def _find_curvature(
    source: str, trials: Trials, gradients: str | Losses | None, samples: int, seed: int, progress: Progress
) -> Curvature:
    if source == MEASURED:
        return measured.curvature(trials, progress=progress)
    if gradients is not None:
        state = {
            name: tensor_from_bytes("pt", tensor.dtype, tensor.shape, np.array(trials.bare.base[name]))
            for name, tensor in trials.subject.tensors.items()
        }
        return curvatures.of_losses(gradients, state, progress)
    if source == NOTHING and not hasattr(trials.session, "calibration"):
        ones = {name: 1.0 for name in trials.bare.encodings}
        return Curvature(ones, 0, "none: every element counts the same")
    assert source in (GRADIENTS, NOTHING)
    return curvatures.of_session(trials.session, samples, seed, progress)


def calibrate_path(path: MaskPath, trials: Trials, draws: int, progress: Progress = silent) -> Calibration:
    """Measure the mean loss at a few vertices between no loss and chance, on the same draws for all.

    The places follow the predicted damage, evenly in its logarithm. Far below the last one nothing is lost.
    """
    ceiling = _ceiling(trials)
    damages = np.array([d if math.isfinite(d) else np.inf for d in path.damage])
    finite = np.flatnonzero(np.isfinite(damages))
    top = min(float(damages[finite].max()), 10.0)
    bottom = max(float(damages[finite].min()), top * 1e-5, 1e-12)
    wanted = np.geomspace(max(top, bottom), bottom, CALIBRATION_POINTS)
    vertices = sorted({int(finite[np.argmin(np.abs(np.log(damages[finite] + 1e-30) - np.log(w)))]) for w in wanted})
    predicted, losses = [], []
    for number, vertex in enumerate(vertices, 1):
        drops = trials.drops(path.masks(vertex), 0, draws)
        predicted.append(float(damages[vertex]))
        losses.append(mean_drop(drops, ceiling))
        progress("calibration", number, len(vertices))
    return Calibration.fit([bottom * NO_DAMAGE, *predicted], [0.0, *losses])


def least(path: MaskPath, calibration: Calibration, limit: float) -> int:
    """The cheapest vertex whose expected loss is within a limit, and so is that of all that cost more."""
    worst = [calibration.loss(damage) for damage in path.damage]
    for vertex in range(len(path)):
        if worst[vertex] <= limit:
            return vertex
    raise UsageError(
        f"even with every worthwhile bit protected a loss of {worst[-1]:.3g} is expected, above the limit of "
        f"{limit:g}; take a stronger code or allow more"
    )


def certification_order(path: MaskPath, vertex: int, fixed: bool) -> list[int]:
    """Vertices to test, the strongest protection first; set before any held-out datum is seen.

    From twice the parity of the chosen vertex down to a quarter; only the chosen one where a budget fixed it.
    """
    if fixed:
        return [vertex]
    parity = path.redundancy(vertex)
    order: list[int] = []
    for power in range(-2, 5):
        wanted = parity * STEP**power
        found = min(range(len(path)), key=lambda v: abs(path.redundancy(v) - wanted))
        if not order or found < order[-1]:
            order.append(found)
    return order


def thinned(count: int, most: int = 300) -> list[int]:
    """Indices of at most `most` of `count` places, first and last among them."""
    return sorted({round(i * (count - 1) / max(min(count, most) - 1, 1)) for i in range(min(count, most))})


def _fresh(trials: Trials, path: MaskPath, vertex: int, number: int, claim: Claim, progress: Progress) -> list[float]:
    """Drops of devices that no test before has drawn."""
    ready = trials.prepare(path.masks(vertex))
    drops = []
    for trial in range(claim.trials):
        drops += trials.drops_of(ready, trials.faults, number * claim.trials + trial, 1)
        progress(f"certificate, test {number + 1}", trial + 1, claim.trials)
    return drops


def _ceiling(trials: Trials) -> float:
    bounds = trials.metric.bounds
    clean = trials.clean[trials.metric.name]
    if bounds is None:
        return max(abs(clean), 1.0) * 10
    return clean - bounds[0] if trials.metric.higher_is_better else bounds[1] - clean


def _drop_to(trials: Trials, target: float | None) -> float:
    assert target is not None
    clean = trials.metric.goodness(trials.clean[trials.metric.name])
    drop = clean - trials.metric.goodness(target)
    if drop < 0:
        raise UsageError(f"the target {target:g} is better than the undamaged model, {abs(clean):g}")
    return drop


def _vertex(path: MaskPath, vertex: int, calibration: Calibration | None) -> Vertex:
    damage = path.damage[vertex]
    expected = None if calibration is None else calibration.loss(damage)
    return Vertex(vertex, path.redundancy(vertex), path.charged(vertex), damage, expected)
