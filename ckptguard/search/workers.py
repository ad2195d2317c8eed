"""Draws of a search on worker processes: each opens the model once, then damages and scores its own copy.

A loss is a function of the trials and the draw alone: of no order and no number of workers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ckptguard.campaign.backends import Pool, fixed_threads, let_worker_grow, limit_threads
from ckptguard.campaign.faults import Fault
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.worker import pickled, refuse_other_clean
from ckptguard.search.trials import Ask, Ready, Stored, Trials


@dataclass(frozen=True)
class Opening:
    """What trials are opened with, but for the model.

    Attributes:
        clean: metrics of the undamaged model, which a worker must find, too.
    """

    evaluator: str | Callable[..., Any] | object
    faults: Mapping[str, Fault]
    stored: Stored
    metric: str
    seed: int
    framework: str
    threads: int
    decoder: str
    clean: Mapping[str, float]


@dataclass(frozen=True)
class Packed:
    """Trials that cost little to send with every draw: they are opened once per worker.

    Attributes:
        key: of these trials and no others.
        subject: a path, or an open subject; joblib puts large arrays where all workers of a machine can map them.
        select: which state dict of a torch file.
        opening: a pickled `Opening`.
    """

    key: str
    subject: str | Subject
    select: str | None
    opening: bytes


@dataclass(frozen=True)
class Task:
    """One draw of an ask; `key` is that of the ask."""

    key: str
    ask: Ask
    trial: int


@dataclass(frozen=True)
class Done:
    """The loss of a draw, and how many evaluations it took."""

    key: str
    trial: int
    drop: float
    evaluations: int


class Workers:
    """Workers that stay for the length of a search."""

    def __init__(self, pool: Pool, place: str | Subject, select: str | None) -> None:
        """For a model at a place that every worker can read."""
        self._pool, self._place, self._select = pool, place, select
        self._packed: dict[Trials, Packed] = {}

    def draw(self, trials: Trials, asked: Mapping[tuple[str, int], Ask]) -> Iterator[Done]:
        """Make draws, given by the key of their ask and their number; in any order.

        Raises UsageError for an evaluator that cannot be sent to a process.
        """
        if trials not in self._packed:
            self._packed[trials] = self._pack(trials)
        tasks = [Task(key, ask, trial) for (key, trial), ask in asked.items()]
        yield from self._pool.map(partial(_run, self._packed[trials]), tasks)

    def _pack(self, trials: Trials) -> Packed:
        opening = Opening(
            trials.evaluator,
            trials.faults,
            trials.stored,
            trials.metric.name,
            trials.seed,
            trials.framework,
            trials.threads,
            trials.decoder,
            trials.clean,
        )
        return Packed(uuid.uuid4().hex, self._place, self._select, pickled(opening, trials.evaluator))


@contextlib.contextmanager
def workers(jobs: int, threads: int, model: Path | str | Subject, select: str | None) -> Iterator[Workers | None]:
    """Workers for a search of a model; None for one job.

    Sums are rounded by how BLAS splits them. So BLAS of this process, too, has the number of threads that workers have;
    of a single job only where threadpoolctl is installed, without which there is no second one to agree with.

    Raises:
        MissingExtraError: joblib or threadpoolctl is not installed, and there is more than one job.
    """
    if jobs == 1 and importlib.util.find_spec("threadpoolctl") is None:
        yield None
        return
    with fixed_threads(threads):
        if jobs == 1:
            yield None
            return
        place = model if isinstance(model, Subject) else str(Path(model).resolve())
        with Pool(jobs, None) as pool:
            try:
                yield Workers(pool, place, select)
            finally:
                _local.state = None  # of backends whose workers are threads


class State:
    """The trials of a worker, and the masks that it drew for last."""

    def __init__(self, packed: Packed) -> None:
        opening: Opening = pickle.loads(packed.opening)
        self.key = packed.key
        limit_threads(opening.threads)
        let_worker_grow()
        subject = packed.subject
        self.trials = Trials(
            Subject.open(subject, packed.select) if isinstance(subject, str) else subject,
            opening.evaluator,
            opening.faults,
            opening.stored,
            metric=opening.metric,
            seed=opening.seed,
            framework=opening.framework,
            threads=opening.threads,
            decoder=opening.decoder,
        )
        refuse_other_clean(self.trials.clean, opening.clean)
        self._ready: tuple[str, Ready] | None = None

    def run(self, task: Task) -> Done:
        """Make a draw."""
        if self._ready is None or self._ready[0] != task.key:
            self._ready = task.key, self.trials.ready(task.ask)
        before = self.trials.evaluations
        drop = self.trials.drop(self._ready[1], task.ask, task.trial)
        return Done(task.key, task.trial, drop, self.trials.evaluations - before)


_local = threading.local()


def _run(packed: Packed, task: Task) -> Done:
    found: State | None = getattr(_local, "state", None)
    if found is None or found.key != packed.key:
        _local.state = None  # frees the model of before
        found = _local.state = State(packed)
    return found.run(task)
