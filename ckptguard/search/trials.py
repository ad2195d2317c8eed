"""Trials of a search: what masks keep of a metric, on given faults and given data, draw by draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckptguard import __version__
from ckptguard.campaign.design import file_digests, name_of
from ckptguard.campaign.faults import RATES, Fault, Scope
from ckptguard.campaign.metrics import Metric, describe_all
from ckptguard.campaign.record import digest_of
from ckptguard.campaign.sampler import LEAST_T
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.codes.bch import Bch
from ckptguard.errors import CkptGuardError, MissingExtraError, UsageError
from ckptguard.evaluate.session import Session, TensorSpec, open_session
from ckptguard.masks import MaskSet
from ckptguard.pipeline.wanted import ROW_SUMS
from ckptguard.search.damage import Rates
from ckptguard.search.journal import Journal
from ckptguard.search.restoring import Restoring
from ckptguard.spec import suggestion

if TYPE_CHECKING:
    from ckptguard.search.workers import Workers

_EVALUATOR_ERRORS = (ArithmeticError, ValueError, RuntimeError, LookupError, TypeError, CkptGuardError)


NONE, RANGE, POSTERIOR = "none", "tensor", "posterior"
AUTO = "auto"
"""Of a search, no guard but the choice between range guards and restorers."""
GUARDS = (NONE, RANGE, POSTERIOR)


@dataclass(frozen=True)
class Stored:
    """How the model is stored but for its masks.

    Attributes:
        representation: spec, as in `Variant`.
        code: `ideal`, `ideal:p` or a code's spec: that of tensors whose rule names none.
        policy: for the uncorrectable.
        guard: `none`; `tensor`: range guards; `posterior`: restorers of `ckptguard.posterior`.
    """

    representation: str = "native"
    code: str = "ideal"
    policy: str = "raw"
    guard: str = RANGE

    def __post_init__(self) -> None:
        if self.guard not in GUARDS:
            raise UsageError(
                f"unknown guard {self.guard!r}{suggestion(self.guard, GUARDS)}; known: {', '.join(GUARDS)}"
            )

    def variant(self, masks: MaskSet | None, name: str = "search") -> Variant:
        """With masks; None = nothing is protected."""
        return Variant(
            name, self.representation, masks, self.code if masks else "none", self.policy, self.guard == RANGE
        )


@dataclass(frozen=True, eq=False)
class Ask:
    """Draws `first` to `first + count - 1` of faults on a model with masks.

    Attributes:
        masks: None = nothing is protected.
        faults: by tensor; None = those of the storage.
        scope: what they may hit; None = everything.
        guarded: whether readers have the guards of the storage.
    """

    masks: MaskSet | None
    first: int
    count: int
    faults: Mapping[str, Fault] | None = None
    scope: Scope | None = None
    guarded: bool = True

    @property
    def draws(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, eq=False)
class Ready:
    """Masks on a model as it is stored. What draws need is worked out when the first is made."""

    subject: Subject
    stored: Stored
    masks: MaskSet | None
    faults: Mapping[str, Fault]

    @cached_property
    def prepared(self) -> Prepared:
        """The model encoded, with its codes and range guards."""
        return Prepared(self.subject, self.stored.variant(self.masks))

    @cached_property
    def restoring(self) -> Restoring | None:
        """Posterior restorers, where the model is stored with them."""
        if self.stored.guard != POSTERIOR:
            return None
        summed = self.masks.provenance.get(ROW_SUMS, ()) if self.masks is not None else ()
        shapes = {name: tensor.shape for name, tensor in self.subject.tensors.items()}
        chosen = {name: mask for name, (mask, _) in self.prepared.masks.items()}
        rates = {name: Rates.of(fault) for name, fault in self.faults.items()}
        return Restoring(self.prepared.encodings, shapes, chosen, rates, summed)

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What decides the draws of these masks, but for the model."""
        record = self.stored.variant(self.masks).to_json()
        provenance = record["masks"].pop("provenance", None) or {} if record["masks"] else {}
        return record | {"restoring": self.stored.guard == POSTERIOR, ROW_SUMS: provenance.get(ROW_SUMS)}


class Trials:
    """A model with its data in memory, damaged again and again. Same seed and number: same faults, whatever the masks.

    Attributes:
        session: with the stored (rounded, where the representation does) weights loaded.
        clean: metrics of those.
        metric: the one that losses are of.
        evaluations: so far, those of workers among them.
        decoder: of real codes; `sampled` draws failing codewords in distribution, and is faster, where it can.
    """

    def __init__(
        self,
        subject: Subject,
        evaluator: str | Callable[..., Any] | object,
        faults: Mapping[str, Fault],
        stored: Stored,
        *,
        metric: str | None = None,
        seed: int = 0,
        framework: str = "pt",
        threads: int = 1,
        decoder: str = "exact",
        journal: Journal | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Open the evaluator and load the weights.

        Args:
            journal: where losses are kept, and looked up before they are measured.
            workers: make the draws wherever several are asked for at once; None = this process makes all.
        """
        self.journal, self.workers = journal, workers
        self.subject, self.faults, self.stored, self.seed = subject, faults, stored, seed
        self.evaluator, self.framework, self.threads, self.decoder = evaluator, framework, threads, decoder
        specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in subject.tensors.items()}
        self.session: Session = open_session(evaluator, specs, framework=framework, threads=threads)
        self._bare = Ready(subject, replace(stored, guard=NONE), None, faults)
        self.session.load(self.bare.base)
        self.clean = self.session.metrics()
        self.evaluations = 1
        self.metric = self._metric(metric)

    @property
    def bare(self) -> Prepared:
        """The model without any protection."""
        return self._bare.prepared

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What decides a draw, but for masks and faults."""
        return {
            "tool": __version__,
            "subject": self.subject.digest,
            "evaluator": name_of(self.evaluator),
            "files": file_digests(self.evaluator) if isinstance(self.evaluator, str) else {},
            "clean": {name: repr(value) for name, value in self.clean.items()},
            "metric": self.metric.name,
            "framework": self.framework,
            "threads": self.threads,
            "seed": self.seed,
            "representation": self.stored.representation,
        }

    def guarded(self, guard: str) -> Trials:
        """The same model and data, read with a guard; evaluations are counted anew."""
        found = copy(self)
        found.stored, found.evaluations = replace(self.stored, guard=guard), 0
        return found

    def _metric(self, name: str | None) -> Metric:
        name = name or next(iter(self.clean))
        if name not in self.clean:
            raise UsageError(f"the evaluator has no metric {name!r}; it has {', '.join(self.clean)}")
        if not math.isfinite(self.clean[name]):
            raise UsageError(f"{name} of the undamaged model is {self.clean[name]}; there is nothing to protect")
        return describe_all({"clean": self.clean})[name]

    def drops(self, masks: MaskSet | None, first: int, count: int) -> list[float]:
        """Losses of the metric, positive = worse, of draws `first` to `first + count - 1`; infinite for failures."""
        return self.measure([Ask(masks, first, count)])[0]

    def measure(
        self, asks: Sequence[Ask], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[list[float]]:
        """The losses of every ask. Equal draws, and those that the journal knows, are not made twice.

        Args:
            progress: gets how many draws are known, and how many there are.
        """
        keys = [self._key(ask) for ask in asks]
        known: dict[tuple[str, int], float] = {}
        missing: dict[tuple[str, int], Ask] = {}
        for key, ask in zip(keys, asks, strict=True):
            for place in ((key, trial) for trial in ask.draws):
                if place in known or place in missing:
                    continue
                drop = self.journal.drop(*place) if self.journal is not None else None
                if drop is None:
                    missing[place] = ask
                else:
                    known[place] = drop
        total = len(known) + len(missing)
        for place, drop in self._made(missing):
            if self.journal is not None:
                self.journal.add(*place, drop)
            known[place] = drop
            progress(len(known), total)
        return [[known[key, trial] for trial in ask.draws] for key, ask in zip(keys, asks, strict=True)]

    def _made(self, missing: Mapping[tuple[str, int], Ask]) -> Iterator[tuple[tuple[str, int], float]]:
        """Draws as they are made, here or by workers."""
        if self.workers is not None and len(missing) > 1:
            for done in self.workers.draw(self, missing):
                self.evaluations += done.evaluations
                yield (done.key, done.trial), done.drop
            return
        latest: tuple[Ask, Ready] | None = None
        for (key, trial), ask in missing.items():
            if latest is None or latest[0] is not ask:
                latest = ask, self.ready(ask)
            yield (key, trial), self.drop(latest[1], ask, trial)

    def ready(self, ask: Ask) -> Ready:
        """The masks of an ask on the model."""
        if ask.masks is None and not ask.guarded:
            return self._bare
        stored = self.stored if ask.guarded else replace(self.stored, guard=NONE)
        return Ready(self.subject, stored, ask.masks, self.faults)

    def _key(self, ask: Ask) -> str:
        faults = self.faults if ask.faults is None else ask.faults
        specs = {name: fault.spec for name, fault in faults.items()}
        masks = self.ready(ask).conditions
        more = {"masks": masks, "faults": specs, "scope": repr(ask.scope), "decoder": self.decoder}
        return digest_of(self.conditions | more)

    def drop(self, ready: Ready, ask: Ask, trial: int) -> float:
        """The loss of one draw, made here."""
        clean = self.metric.goodness(self.clean[self.metric.name])
        return clean - self._goodness(ready, ask, trial)

    def _goodness(self, ready: Ready, ask: Ask, trial: int) -> float:
        faults = self.faults if ask.faults is None else ask.faults
        decoder = self._decoder(ready.prepared, faults)
        damage = ready.prepared.trial(faults, self.seed, trial, ask.scope, decoder)
        if damage.raised:
            return -math.inf
        self.session.patch(damage.patches if ready.restoring is None else ready.restoring.restore(damage.patches))
        try:
            metrics = self.session.metrics()
        except MissingExtraError:
            raise
        except _EVALUATOR_ERRORS:
            metrics = {}
        finally:
            self.session.undo()
        self.evaluations += 1
        return self.metric.goodness(metrics.get(self.metric.name, math.nan))

    def _decoder(self, prepared: Prepared, faults: Mapping[str, Fault]) -> str:
        """The sampler knows independent flips of one rate, and long BCH codes; without codes it has no work."""
        plain = all(fault.kind == RATES and fault.of_0 == fault.of_1 for fault in faults.values())
        used = [coder.code for coder in prepared.coders.values()]
        long = all(isinstance(code, Bch) and code.t >= LEAST_T for code in used)
        return self.decoder if plain and used and long else "exact"


def mean_drop(drops: Sequence[float], ceiling: float) -> float:
    """Mean loss, failures (and what is worse than a ceiling) counted as the ceiling."""
    return math.fsum(min(drop, ceiling) for drop in drops) / len(drops)
