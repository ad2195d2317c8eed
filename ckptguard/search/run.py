"""search: masks for a model, from a request in the words of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptguard.campaign.subject import Subject
from ckptguard.devices import Device, DeviceMap
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search import learning
from ckptguard.search.certify import Claim
from ckptguard.search.curvature import Losses
from ckptguard.search.journal import Journal
from ckptguard.search.methods import METHODS
from ckptguard.search.phases import Clock, perform, problem_of
from ckptguard.search.problem import faults_of
from ckptguard.search.request import Data, Material, Request
from ckptguard.search.result import SearchResult, Sensitivity
from ckptguard.search.sources import find_curvature
from ckptguard.search.trials import AUTO, POSTERIOR, RANGE, Stored
from ckptguard.search.workers import workers
from ckptguard.spec import look_up

DEFAULT_CODE = "ideal"


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
    jobs: int = 1,
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
        guard: `tensor`, `posterior` or `none`; `auto`: the better of the first two, on common draws of the data that
            choose for a budget, by what it costs for a loss.
        certify: a claim such as `drop=1.0,trials=59`.
        episodes, protected_share, reward: of agents: mask sets they try, the share of bits they may protect (instead
            of `budget`), and `published` or `original`.
        selection: an evaluator on data that neither `calibrate` nor `evaluator` uses, which chooses among an agent's
            masks; data of `classification:` are halved once more without it.
        samples: calibration inputs that gradients are taken of.
        trials: draws per point of the calibration.
        threads: of torch and BLAS, in this process and in every worker.
        jobs: worker processes; they change nothing but the time. An agent's episodes, which depend on each other, and
            gradients stay in this process.
        polish: evaluations that swaps around the threshold may take; 0 = none are tried.
        journal: keeps losses and curvature as they are measured, and answers what it knows. It is left open.

    Raises:
        UsageError, SpecError, MaskError: the request cannot be met.
    """
    claim = Claim.parse(certify) if isinstance(certify, str) else certify
    listed = (codes,) if isinstance(codes, str) else tuple(codes)
    plan = learning.Plan(episodes, protected_share, reward)
    guards = (RANGE, POSTERIOR) if guard == AUTO else (guard,)
    request = Request(
        method, listed, budget, max_drop, target, claim, plan, gradients, samples, trials, polish, seed, guards
    )  # fmt: skip
    clock = Clock()
    subject = model if isinstance(model, Subject) else Subject.open(model, select)
    by_tensor, text = faults_of(subject, ber, faults, device, devices)
    stored = Stored(representation, listed[0], guard=guards[0])
    data = Data.of(evaluator, calibrate, selection, learns=request.how.path is None)
    with workers(jobs, threads, model, select) as made:
        material = Material(subject, by_tensor, text, stored, data, seed, metric, framework, threads, journal, made)
        return perform(request, material, clock, progress)


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
    jobs: int = 1,
    select: str | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """What a flip of every bit position of every tensor is expected to cost, without choosing masks."""
    source = look_up(METHODS, method, "method").curvature
    subject = model if isinstance(model, Subject) else Subject.open(model, select)
    by_tensor, text = faults_of(subject, ber, faults, device, devices)
    stored = Stored(representation, DEFAULT_CODE, guard=guard)
    with workers(jobs, threads, model, select) as made:
        material = Material(
            subject, by_tensor, text, stored, Data(evaluator, None), seed, metric, framework, threads, None, made
        )
        trials = material.tuning()
        found = find_curvature(source, trials, gradients, samples, seed, progress)
    problem = problem_of(material, trials, found, (DEFAULT_CODE,))
    words = {name: encoding.elements for name, encoding in trials.bare.encodings.items()}
    return Sensitivity(problem.table, words, text, found.source, problem.metadata_bits, found.unknown)
