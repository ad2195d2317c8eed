"""Trials of a search: what masks keep of a metric, on given faults and given data, draw by draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ckptguard import __version__
from ckptguard.campaign.design import file_digests, name_of
from ckptguard.campaign.faults import RATES, Fault
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

_EVALUATOR_ERRORS = (ArithmeticError, ValueError, RuntimeError, LookupError, TypeError, CkptGuardError)


NONE, RANGE, POSTERIOR = "none", "tensor", "posterior"
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
class Ready:
    """Masks that were prepared for draws; `restoring` is None without posterior restorers."""

    prepared: Prepared
    restoring: Restoring | None = None

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What decides the draws of these masks, but for the model."""
        record = self.prepared.variant.to_json()
        provenance = record["masks"].pop("provenance", None) or {} if record["masks"] else {}
        return record | {"restoring": self.restoring is not None, ROW_SUMS: provenance.get(ROW_SUMS)}


class Trials:
    """A model with its data in memory, damaged again and again. Same seed and number: same faults, whatever the masks.

    Attributes:
        session: with the stored (rounded, where the representation does) weights loaded.
        clean: metrics of those.
        metric: the one that losses are of.
        evaluations: so far.
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
    ) -> None:
        """Open the evaluator and load the weights.

        Args:
            journal: where losses are kept, and looked up before they are measured.
        """
        self.journal = journal
        self.decoder = decoder
        self.subject, self.faults, self.stored, self.seed = subject, faults, stored, seed
        specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in subject.tensors.items()}
        self.session: Session = open_session(evaluator, specs, framework=framework, threads=threads)
        self.bare = Prepared(subject, replace(stored, guard=NONE).variant(None))
        self.session.load(self.bare.base)
        self.clean = self.session.metrics()
        self.evaluations = 1
        self.metric = self._metric(metric)
        self.conditions: dict[str, Any] = {
            "tool": __version__,
            "subject": subject.digest,
            "evaluator": name_of(evaluator),
            "files": file_digests(evaluator) if isinstance(evaluator, str) else {},
            "clean": {name: repr(value) for name, value in self.clean.items()},
            "metric": self.metric.name,
            "framework": framework,
            "threads": threads,
            "seed": seed,
            "representation": stored.representation,
        }

    def _metric(self, name: str | None) -> Metric:
        name = name or next(iter(self.clean))
        if name not in self.clean:
            raise UsageError(f"the evaluator has no metric {name!r}; it has {', '.join(self.clean)}")
        if not math.isfinite(self.clean[name]):
            raise UsageError(f"{name} of the undamaged model is {self.clean[name]}; there is nothing to protect")
        return describe_all({"clean": self.clean})[name]

    def drops(self, masks: MaskSet | None, first: int, count: int) -> list[float]:
        """Losses of the metric, positive = worse, of draws `first` to `first + count - 1`; infinite for failures."""
        return self.drops_of(self.prepare(masks), self.faults, first, count)

    def prepare(self, masks: MaskSet | None) -> Ready:
        """What draws of these masks need."""
        prepared = Prepared(self.subject, self.stored.variant(masks))
        if self.stored.guard != POSTERIOR:
            return Ready(prepared, None)
        summed = masks.provenance.get(ROW_SUMS, ()) if masks is not None else ()
        shapes = {name: tensor.shape for name, tensor in self.subject.tensors.items()}
        chosen = {name: mask for name, (mask, _) in prepared.masks.items()}
        rates = {name: Rates.of(fault) for name, fault in self.faults.items()}
        return Ready(prepared, Restoring(prepared.encodings, shapes, chosen, rates, summed))

    def drops_of(
        self, ready: Ready, faults: Mapping[str, Fault], first: int, count: int, scope: Any = None
    ) -> list[float]:
        """The same, with masks that were prepared before, other faults, or less in scope."""
        key = None if self.journal is None else self._key(ready, faults, scope)
        return [self._drop(ready, faults, trial, scope, key) for trial in range(first, first + count)]

    def _drop(self, ready: Ready, faults: Mapping[str, Fault], trial: int, scope: Any, key: str | None) -> float:
        if self.journal is not None and key is not None:
            known = self.journal.drop(key, trial)
            if known is not None:
                return known
        drop = self.metric.goodness(self.clean[self.metric.name]) - self._goodness(ready, faults, trial, scope)
        if self.journal is not None and key is not None:
            self.journal.add(key, trial, drop)
        return drop

    def _key(self, ready: Ready, faults: Mapping[str, Fault], scope: Any) -> str:
        specs = {name: fault.spec for name, fault in faults.items()}
        more = {"masks": ready.conditions, "faults": specs, "scope": repr(scope), "decoder": self.decoder}
        return digest_of(self.conditions | more)

    def _goodness(self, ready: Ready, faults: Mapping[str, Fault], trial: int, scope: Any) -> float:
        damage = ready.prepared.trial(faults, self.seed, trial, scope, self._decoder(ready.prepared, faults))
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
