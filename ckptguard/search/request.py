"""What a search is asked for, and what it opens for that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ckptguard.campaign.faults import Fault
from ckptguard.campaign.subject import Subject
from ckptguard.errors import UsageError
from ckptguard.search import learning
from ckptguard.search.certify import Claim
from ckptguard.search.curvature import Losses
from ckptguard.search.journal import Journal
from ckptguard.search.methods import METHODS, Method
from ckptguard.search.trials import AUTO, Stored, Trials
from ckptguard.search.workers import Workers
from ckptguard.spec import look_up


@dataclass(frozen=True)
class Request:
    """What is wanted of masks, and how they are found. Arguments of `run.search`, checked against each other.

    Attributes:
        codes: specs; the first is that of tensors whose rule names none.
        claim: what the certificate is to say; None = no certificate.
        guards: that are tried, the best of which is kept.
        plan: of agents; its share is the fourth way to say what is wanted.
    """

    method: str
    codes: tuple[str, ...]
    budget: float | None
    max_drop: float | None
    target: float | None
    claim: Claim | None
    plan: learning.Plan
    gradients: str | Losses | None
    samples: int
    trials: int
    polish: int
    seed: int
    guards: tuple[str, ...]

    def __post_init__(self) -> None:
        method = self.how
        wants = [self.budget, self.max_drop, self.target, self.plan.share]
        if sum(value is not None for value in wants) != 1:
            raise UsageError("a search needs one of a budget, a largest drop and a target, and only one")
        if method.path is None and self.limited:
            raise UsageError(f"{self.method} learns masks for a budget (--budget or --protected-share), not for a loss")
        if method.path is None and len(self.guards) > 1:
            raise UsageError(f"{self.method} learns masks for one guard; --guard {AUTO} is for methods with a frontier")
        if method.path is not None and self.plan.share is not None:
            raise UsageError(f"--protected-share is a budget of agents; {self.method} takes --budget, --max-drop, ...")

    @property
    def how(self) -> Method:
        """The method behind its name. Raises SpecError for a name that is not known."""
        return look_up(METHODS, self.method, "method")

    @property
    def limited(self) -> bool:
        """Whether a loss is given, and parity is looked for."""
        return self.max_drop is not None or self.target is not None


@dataclass(frozen=True)
class Data:
    """Evaluators that share no input.

    Attributes:
        tuning: gives curvature and calibration, and scores an agent's episodes.
        reporting: the certificate's.
        selection: chooses among an agent's masks; None for other methods.
    """

    tuning: Any
    reporting: Any
    selection: Any = None

    @classmethod
    def of(cls, evaluator: Any, calibrate: Any, selection: Any, learns: bool) -> Data:
        """From what a user gave; data of `classification:` are halved where that was less.

        Raises UsageError where the data of an evaluator cannot be halved.
        """
        tuning, reporting = split(evaluator, calibrate)
        if not learns:
            return cls(tuning, reporting)
        if selection is None:
            halved = learning.halves(tuning)
            if halved is None:
                raise UsageError(
                    "give --selection SPEC, an evaluator on third data: the best of many episodes is the luckiest, so "
                    "masks are chosen on data that they were not found with. Data of `classification:` are halved "
                    "without it."
                )
            tuning, selection = halved
        return cls(tuning, reporting, selection)


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


@dataclass(frozen=True, eq=False)
class Material:
    """What a search works on, opened.

    Attributes:
        faults: by tensor. fault_text: the same in words.
        metric: of the evaluators; None = their first.
        journal: of what is measured; None = nothing is kept.
        workers: that make draws; None = this process does.
    """

    subject: Subject
    faults: dict[str, Fault]
    fault_text: str
    stored: Stored
    data: Data
    seed: int
    metric: str | None
    framework: str
    threads: int
    journal: Journal | None = None
    workers: Workers | None = None

    def guarded(self, guard: str) -> Material:
        """The same, read with a guard."""
        return replace(self, stored=replace(self.stored, guard=guard))

    def tuning(self) -> Trials:
        """On the data that choose."""
        return self._trials(self.data.tuning, self.seed, "sampled")

    def selection(self) -> Trials:
        """On the data that choose among an agent's masks."""
        return self._trials(self.data.selection, self.seed + 2, "sampled")

    def reporting(self) -> Trials:
        """On the data that certify, every flip decoded."""
        return self._trials(self.data.reporting, self.seed + 1, "exact")

    def _trials(self, evaluator: Any, seed: int, decoder: str) -> Trials:
        return Trials(
            self.subject,
            evaluator,
            self.faults,
            self.stored,
            metric=self.metric,
            seed=seed,
            framework=self.framework,
            threads=self.threads,
            decoder=decoder,
            journal=self.journal,
            workers=self.workers,
        )
