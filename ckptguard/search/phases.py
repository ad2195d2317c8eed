"""The phases of a search, each a function of what is asked and what is opened."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckptguard.errors import UsageError
from ckptguard.pipeline.work import Progress
from ckptguard.search import learning
from ckptguard.search import polish as polishing
from ckptguard.search.calibrate import Calibration, calibrate_path, ceiling, drop_to, least
from ckptguard.search.certify import Certificate, Claim, Tested, certification_order, walk
from ckptguard.search.curvature import Curvature
from ckptguard.search.frontier import Frontier
from ckptguard.search.paths import MaskPath
from ckptguard.search.problem import Problem
from ckptguard.search.request import Material, Request
from ckptguard.search.result import Compared, SearchResult, Vertex, thinned
from ckptguard.search.sources import find_curvature
from ckptguard.search.trials import Ask, Trials, mean_drop

COMPARED, FIRST_COMPARED = 8, 200_000
"""Draws that guards are compared on, and the first of them, which nothing else uses."""


@dataclass
class Clock:
    """Seconds by phase, in the order that phases ended in."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def phase(self, name: str) -> None:
        """What passed since the last phase was of this one."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True)
class Chosen:
    """A vertex of a path, and why.

    Attributes:
        calibration: None where a budget says what is wanted.
        learned: what the path itself says of how it came about, for the provenance.
    """

    path: MaskPath
    vertex: int
    calibration: Calibration | None = None
    learned: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Way:
    """A guard, and what was chosen for it.

    Attributes:
        compared: this guard and the others that were tried; nothing where there were none.
    """

    material: Material
    problem: Problem
    tune: Trials
    chosen: Chosen
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True)
class Certified:
    """What a certificate's walk came to.

    Attributes:
        vertex: the one to write: certified, or as it was chosen.
        clean: the metric of the undamaged model on the data that this is about.
        evaluations: that it took.
    """

    vertex: int
    clean: float
    certificate: Certificate | None = None
    tests: tuple[Tested, ...] = ()
    evaluations: int = 0


def perform(request: Request, material: Material, clock: Clock, progress: Progress) -> SearchResult:
    """All phases, one after another."""
    tune = material.tuning()
    clock.phase("loading")
    found = find_curvature(request.how.curvature, tune, request.gradients, request.samples, request.seed, progress)
    clock.phase("curvature")
    tunes = {guard: tune.guarded(guard) for guard in request.guards}
    way = _best(request, material, tunes, found, clock, progress)
    material, chosen = way.material, way.chosen
    if request.polish:
        chosen = polished(chosen, request, way.tune, progress)
        clock.phase("polish")
    certified = Certified(chosen.vertex, tune.clean[tune.metric.name])
    if request.claim is not None:
        certified = certify(chosen, request.claim, not request.limited, material, progress)
        clock.phase("certificate")
    tuning = tune.evaluations + sum(one.evaluations for one in tunes.values())
    return _result(request, replace(way, chosen=chosen), tuning + certified.evaluations, certified, clock)


def _best(
    request: Request,
    material: Material,
    tunes: Mapping[str, Trials],
    curvature: Curvature,
    clock: Clock,
    progress: Progress,
) -> Way:
    """With the best of the guards. Raises UsageError where a budget or a limit can be met with none."""
    ways: list[Way] = []
    errors: list[UsageError] = []
    for guard, tune in tunes.items():
        try:
            ways.append(_way(request, material.guarded(guard), tune, curvature, clock, progress))
        except UsageError as error:
            errors.append(error)
    if not ways:
        raise errors[0]
    return better(ways, request, clock, progress) if len(tunes) > 1 else ways[0]


def _way(
    request: Request, material: Material, tune: Trials, curvature: Curvature, clock: Clock, progress: Progress
) -> Way:
    """What is chosen with the guard of the material. Raises UsageError where a budget or a limit cannot be met."""
    problem = problem_of(material, tune, curvature, request.codes)
    if request.how.path is None:
        chosen = learned(request, material, problem, tune, progress)
        clock.phase("learning")
    else:
        chosen = chosen_on(request.how.path(problem, tune, request.seed), request, tune, clock, progress)
    return Way(material, problem, tune, chosen)


def better(ways: Sequence[Way], request: Request, clock: Clock, progress: Progress) -> Way:
    """The way of the least loss for a budget, on common draws of the data that choose; of the least cost for a loss.

    Of equal ones the other decides.
    """
    rows = []
    for way in ways:
        path, vertex, calibration = way.chosen.path, way.chosen.vertex, way.chosen.calibration
        if calibration is not None:
            loss = calibration.loss(path.damage[vertex])
        else:
            ask = Ask(path.masks(vertex), FIRST_COMPARED, COMPARED)
            drops = way.tune.measure([ask], lambda done, total: progress("comparison of guards", done, total))[0]
            loss = mean_drop(drops, ceiling(way.tune))
        draws = 0 if calibration is not None else COMPARED
        rows.append(Compared(way.material.stored.guard, loss, path.charged(vertex), draws))
    clock.phase("comparison")
    best = min(range(len(ways)), key=lambda at: (rows[at].cost, rows[at].loss)[:: 1 if request.limited else -1])
    return replace(ways[best], compared=tuple(rows))


def problem_of(material: Material, trials: Trials, curvature: Curvature, codes: tuple[str, ...]) -> Problem:
    """Everything that masks are chosen from."""
    subject = material.subject
    shapes = {name: tensor.shape for name, tensor in subject.tensors.items()}
    return Problem(trials.bare.encodings, material.faults, material.stored, codes, curvature, shapes, subject.shards)


def learned(request: Request, material: Material, problem: Problem, tune: Trials, progress: Progress) -> Chosen:
    """The masks of an agent."""
    found = learning.learned_path(
        problem, tune, material.selection(), request.method, request.budget, request.plan, request.seed, progress
    )
    return Chosen(found.path, 0, None, {"learning": found.provenance()})


def chosen_on(path: MaskPath, request: Request, tune: Trials, clock: Clock, progress: Progress) -> Chosen:
    """The vertex that a budget pays for, or the cheapest that is expected to keep the limit."""
    clock.phase("frontier")
    if request.budget is not None:
        return Chosen(path, path.within(request.budget))
    calibration = calibrate_path(path, tune, request.trials, progress)
    if request.max_drop is not None:
        limit = request.max_drop
    elif request.target is not None:
        limit = drop_to(tune, request.target)
    else:
        raise UsageError("a search needs one of a budget, a largest drop and a target, and only one")
    vertex = least(path, calibration, limit)
    clock.phase("calibration")
    return Chosen(path, vertex, calibration)


def polished(chosen: Chosen, request: Request, tune: Trials, progress: Progress) -> Chosen:
    """Swaps around the threshold, within the budget where there is one, else with no more parity than the vertex."""
    path = chosen.path
    if not isinstance(path, Frontier):
        raise UsageError("--polish swaps steps of a frontier: it belongs to the methods fisher and measured")
    allowed = path.parity_bits[chosen.vertex]
    if request.budget is not None:
        allowed = request.budget * path.stored_bits - path.metadata_bits
    found = polishing.polish(path, chosen.vertex, tune, allowed, request.polish, ceiling(tune), progress)
    return Chosen(found, chosen.vertex, chosen.calibration, {"polish": found.provenance()})


def certify(chosen: Chosen, claim: Claim, fixed: bool, material: Material, progress: Progress) -> Certified:
    """Test vertices on held-out data; the last that passes is the one to write."""
    report = material.reporting()
    path, name = chosen.path, report.metric.name
    order = certification_order(path, chosen.vertex, fixed)
    results, passed = walk(
        [(v, path.charged(v)) for v in order], claim, lambda v, n: fresh_drops(report, path, v, n, claim, progress)
    )
    tests, clean = tuple(results), report.clean[name]
    if passed is None:
        return Certified(chosen.vertex, clean, None, tests, report.evaluations)
    certificate = Certificate(claim, name, clean, "held-out data", material.fault_text, passed, tests)
    return Certified(passed, clean, certificate, tests, report.evaluations)


def fresh_drops(
    trials: Trials, path: MaskPath, vertex: int, number: int, claim: Claim, progress: Progress
) -> list[float]:
    """Drops of devices that no test before has drawn.

    Args:
        number: of the test, from 0.
    """
    devices = Ask(path.masks(vertex), number * claim.trials, claim.trials)
    return trials.measure([devices], lambda done, total: progress(f"certificate, test {number + 1}", done, total))[0]


def _result(request: Request, way: Way, evaluations: int, certified: Certified, clock: Clock) -> SearchResult:
    path, calibration, metric = way.chosen.path, way.chosen.calibration, way.tune.metric.name
    return SearchResult(
        method=request.method,
        masks=path.masks(certified.vertex, _provenance(request, way, certified)),
        chosen=Vertex.of(path, certified.vertex, calibration),
        path=tuple(Vertex.of(path, v, calibration) for v in thinned(len(path))),
        table=way.problem.table,
        metric=metric,
        clean=certified.clean,
        faults=way.material.fault_text,
        calibration=calibration,
        certificate=certified.certificate,
        asked_certificate=request.claim is not None,
        walk=certified.tests,
        seconds=clock.seconds,
        evaluations=evaluations,
        unknown=way.problem.curvature.unknown,
        guard=way.material.stored.guard,
        compared=way.compared,
    )


def _provenance(request: Request, way: Way, certified: Certified) -> dict[str, object]:
    """What the mask file says of how its masks were found."""
    material, problem, chosen = way.material, way.problem, way.chosen
    path, vertex = chosen.path, certified.vertex
    record: dict[str, object] = {
        "tool": "ckptguard search",
        "method": request.method,
        "subject": material.subject.digest,
        "faults": material.fault_text,
        "representation": material.stored.representation,
        "codes": list(request.codes),
        "guard": material.stored.guard,
        "seed": request.seed,
        "curvature": problem.curvature.source,
        "redundancy": path.redundancy(vertex),
        "charged_redundancy": path.charged(vertex),
        "metric": way.tune.metric.name,
        **problem.restorers,
        **chosen.learned,
    }
    if way.compared:
        record["compared_guards"] = [one.to_json() for one in way.compared]
    if math.isfinite(path.damage[vertex]):
        record["predicted_damage"] = path.damage[vertex]
    if chosen.calibration is not None:
        record["calibration"] = chosen.calibration.to_json()
    if certified.certificate is not None:
        record["certificate"] = certified.certificate.to_json()
    return record
