"""What a worker does: it builds the model once, then draws, decodes, patches, evaluates and undoes, trial by trial.

A result is a function of the work and the task alone: of no order, no neighbour, no number of workers.
"""

from __future__ import annotations

import importlib
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from ckptguard.campaign.backends import let_worker_grow, limit_threads
from ckptguard.campaign.damage import Damage
from ckptguard.campaign.design import Point, encodings, name_of
from ckptguard.campaign.faults import Fault, make
from ckptguard.campaign.results import COUNTS, TALLIES, Row
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.errors import CkptGuardError, MissingExtraError, UsageError
from ckptguard.evaluate.session import Session, TensorSpec, open_session

Metrics = dict[str, float]

_EVALUATOR_ERRORS = (ArithmeticError, ValueError, RuntimeError, LookupError, TypeError, CkptGuardError)
"""What evaluators raise on weights they cannot digest (scikit-learn on NaN, LAPACK, an assertion of torch)."""


@dataclass(frozen=True)
class Work:
    """A campaign, as workers need it.

    Attributes:
        key: digest of everything that decides a result.
        evaluator: a spec, or what `open_session` takes.
        threads: of torch and of BLAS, in each worker.
        decoder: see `Prepared.trial`.
    """

    key: str
    variants: tuple[Variant, ...]
    points: tuple[Point, ...]
    evaluator: str | Callable[..., Any] | object
    framework: str
    threads: int
    seed: int
    decoder: str = "exact"


@dataclass(frozen=True)
class Task:
    """One trial at one point, for variants of one encoding.

    Attributes:
        point, encoding, variants: indices into those of the work.
        clean: metrics of the undamaged encoding, which this worker must find, too.
    """

    point: int
    encoding: int
    variants: tuple[int, ...]
    trial: int
    clean: Mapping[str, float]


@dataclass(frozen=True)
class Done:
    """The rows of a task, and how long it took."""

    rows: tuple[Row, ...]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Packed:
    """Work that costs little to send with every task: it is unpacked once per worker.

    Attributes:
        subject: a path, or an open subject; joblib puts large arrays where all workers of a machine can map them.
        select: which state dict of a torch file.
        work: the pickled `Work`.
    """

    key: str
    subject: str | Subject
    select: str | None
    work: bytes

    @classmethod
    def pack(cls, work: Work, subject: str | Subject, select: str | None) -> Packed:
        """Raises UsageError for an evaluator that cannot be sent to a process."""
        return cls(work.key, subject, select, pickled(work, work.evaluator))


def pickled(work: object, evaluator: object) -> bytes:
    """Work for other processes, with functions of the caller's main module by value, as joblib does.

    Raises UsageError, which names the evaluator, where that cannot be done.
    """
    try:
        cloudpickle: Any = importlib.import_module("cloudpickle")  # joblib 1.6 and later need it
    except ImportError:
        cloudpickle = importlib.import_module("joblib.externals.cloudpickle")
    try:
        content: bytes = cloudpickle.dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the evaluator {name_of(evaluator)} cannot be sent to worker processes ({error}); give it as "
            "FILE.py:NAME, which every worker opens for itself"
        ) from error
    return content


def run(packed: Packed, task: Task) -> Done:
    """Do one task."""
    return state(packed).run(task)


class State:
    """A subject, its prepared variants and a session; of one thread."""

    def __init__(self, packed: Packed) -> None:
        work: Work = pickle.loads(packed.work)
        self.work = work
        limit_threads(work.threads)
        let_worker_grow()
        self.subject = (
            Subject.open(packed.subject, packed.select) if isinstance(packed.subject, str) else packed.subject
        )
        specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in self.subject.tensors.items()}
        self.session: Session = open_session(work.evaluator, specs, framework=work.framework, threads=work.threads)
        self.session.load({name: tensor.data for name, tensor in self.subject.tensors.items()}, reference=True)
        self.groups = encodings(work.variants)
        self._prepared: dict[int, Prepared] = {}
        self._clean: dict[int, Metrics] = {}
        self._loaded: int | None = None
        self._faults: dict[int, dict[str, Fault]] = {}

    def prepared(self, variant: int) -> Prepared:
        """A variant, encoded once."""
        if variant not in self._prepared:
            self._prepared[variant] = Prepared(self.subject, self.work.variants[variant])
        return self._prepared[variant]

    def clean(self, encoding: int) -> Metrics:
        """Load an encoding and score it undamaged; scored once."""
        first = self.groups[encoding][0]
        if self._loaded != encoding:
            native = self.work.variants[first].representation == "native"
            self.session.load(self.prepared(first).base, reference=native)
            self._loaded = encoding
        if encoding not in self._clean:
            self._clean[encoding] = self.session.metrics()
        return self._clean[encoding]

    def faults(self, point: int) -> dict[str, Fault]:
        """The faults of a point, by glob or name of tensors."""
        if point not in self._faults:
            self._faults[point] = {glob: make(spec) for glob, spec in self.work.points[point].faults.items()}
        return self._faults[point]

    def run(self, task: Task) -> Done:
        """Rows of a task; equal damage of several variants is evaluated once, none at all not at all."""
        begin = time.perf_counter()
        clean = self.clean(task.encoding)
        refuse_other_clean(clean, task.clean)
        point = self.work.points[task.point]
        seen: dict[str, tuple[Metrics, str | None]] = {"": (clean, None)}
        rows, evaluations = [], 0
        for variant in task.variants:
            damage = self.prepared(variant).trial(
                self.faults(task.point), self.work.seed, task.trial, point.scope, self.work.decoder
            )
            metrics: Metrics = {}
            error = None
            if not damage.raised:
                fingerprint = _fingerprint(damage)
                if fingerprint not in seen:
                    seen[fingerprint] = self.score(damage, clean)
                    evaluations += 1
                metrics, error = seen[fingerprint]
            rows.append(row_of(point.id, self.work.variants[variant].name, task.trial, damage, metrics, error))
        return Done(tuple(rows), time.perf_counter() - begin, evaluations)

    def score(self, damage: Damage, clean: Mapping[str, float]) -> tuple[Metrics, str | None]:
        """Metrics of damaged weights; where the evaluator raises, none and what it said.

        What it raises is a result only if it still scores the undamaged weights as before; else it is broken.
        """
        self.session.patch(damage.patches)
        try:
            metrics = self.session.metrics()
        except MissingExtraError:
            raise
        except _EVALUATOR_ERRORS as error:
            self.session.undo()
            if not same(self.session.metrics(), clean):
                raise CkptGuardError(
                    f"the evaluator raised {error!r} and then no longer scores the undamaged model as before"
                ) from error
            return {}, f"{type(error).__name__}: {error}"[:200]
        self.session.undo()
        return metrics, None


def same(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """Whether metrics are equal to the last bit; NaN equals NaN."""
    return first.keys() == second.keys() and all(
        value == second[name] or (value != value and second[name] != second[name]) for name, value in first.items()
    )


def refuse_other_clean(found: Mapping[str, float], first: Mapping[str, float]) -> None:
    """Refuse to go on where a worker scores the undamaged model otherwise than the first process did."""
    if not same(found, first):
        raise CkptGuardError(
            f"a worker finds {_show(found)} for the undamaged model where the first found {_show(first)}; the "
            "evaluator depends on the machine or is not deterministic, so trials cannot be compared"
        )


_local = threading.local()


def state(packed: Packed) -> State:
    """The state of this thread for a campaign; only the latest campaign's is kept."""
    found: State | None = getattr(_local, "state", None)
    if found is None or found.work.key != packed.key:
        forget()
        found = _local.state = State(packed)
    return found


def forget() -> None:
    """Free what this thread holds."""
    _local.state = None


def _fingerprint(damage: Damage) -> str:
    """Equal for equal patches, empty for none."""
    patches = {name: patch for name, patch in damage.patches.items() if patch.elements.size}
    if not patches:
        return ""
    state = xxhash.xxh3_128()
    for name in sorted(patches):
        state.update(f"{name}\0{patches[name].elements.size}\0".encode())
        state.update(patches[name].elements.tobytes())
        state.update(patches[name].words.tobytes())
    return state.hexdigest()


def row_of(
    point: str, variant: str, trial: int, damage: Damage, metrics: Mapping[str, float], error: str | None
) -> Row:
    """What a trial gave for a variant."""
    counts = {name: int(getattr(damage, name)) for name in COUNTS}
    tallies = {
        name: {str(key): int(value) for key, value in getattr(damage, name).items() if value} for name in TALLIES
    }
    expected = damage.expected_flips, damage.expected_parity_flips
    return Row(point, variant, trial, metrics, damage.raised, error, *expected, counts, tallies)


def _show(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in metrics.items())
