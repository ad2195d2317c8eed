"""Certificates: what a mask set promises of devices it has not met, with a stated confidence.

A device is one draw of faults; its drop is what it costs of the metric on held-out data. Vertices of a frontier are
tested from the strongest protection downwards, each on fresh draws, each at the full level; the first that fails ends
the walk. So no correction for many tests is due, and the last one that passed is certified.
Source: fixed-sequence testing (Maurer, Hothorn, Lehmacher 1995); Learn then Test (Angelopoulos et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ckptguard.campaign.statistics import clopper_pearson, tolerance_trials
from ckptguard.errors import UsageError
from ckptguard.search.paths import MaskPath
from ckptguard.spec import Spec

STEP = math.sqrt(0.5)
"""From one certified vertex to the next, parity falls by about this factor."""


@dataclass(frozen=True)
class Claim:
    """What is to be shown: with confidence `confidence`, a share of at least `share` of devices loses at most `drop`.

    Attributes:
        drop: in the units of the metric.
        trials: per test; with as many as `tolerance_trials(share, confidence)` no device may lose more, with more
            trials some may.
    """

    drop: float
    share: float = 0.95
    confidence: float = 0.95
    trials: int = 59

    def __post_init__(self) -> None:
        if not (self.drop >= 0 and 0 < self.share < 1 and 0 < self.confidence < 1):
            raise UsageError(
                f"a claim has a drop of at least 0, and a share and a confidence between 0 and 1; got {self}"
            )
        needed = tolerance_trials(self.share, self.confidence)
        if self.trials < needed:
            raise UsageError(
                f"{self.trials} trials cannot show that {self.share:.0%} of devices keep the limit with "
                f"{self.confidence:.0%} confidence; at least {needed} are needed"
            )

    @classmethod
    def parse(cls, text: str) -> Claim:
        """Read `drop=1.0`, with `trials=59`, `share=0.95` and `confidence=0.95` where they differ."""
        values: dict[str, float] = {}
        for part in Spec.parse(f"certify:{text}").settings:
            key, equals, value = part.partition("=")
            if not equals or key not in ("drop", "share", "confidence", "trials") or key in values:
                raise UsageError(f"--certify {text!r}: expected drop=X,trials=N,share=B,confidence=A, each once")
            try:
                values[key] = int(value) if key == "trials" else float(value)
            except ValueError as error:
                raise UsageError(f"--certify {text!r}: {value!r} is no number") from error
        if "drop" not in values:
            raise UsageError(f"--certify {text!r}: says no drop=X, the largest loss of the metric that is allowed")
        if "trials" not in values:
            values["trials"] = tolerance_trials(values.get("share", 0.95), values.get("confidence", 0.95))
        return cls(values["drop"], values.get("share", 0.95), values.get("confidence", 0.95), int(values["trials"]))

    def shown_by(self, drops: Sequence[float]) -> bool:
        """Whether these devices reject that more than 1 - `share` of all lose more than `drop`."""
        over = sum(not drop <= self.drop for drop in drops)
        if over == len(drops):
            return False
        level = 1 - 2 * (1 - self.confidence)  # Clopper-Pearson is two-sided, the claim is one-sided
        if level <= 0:
            raise UsageError(f"a confidence of {self.confidence} certifies nothing; take one above 0.5")
        return clopper_pearson(over, len(drops), level).high <= 1 - self.share + 1e-12


@dataclass(frozen=True)
class Tested:
    """One step of the walk: drops sorted, the worst last; a failed trial is infinite."""

    vertex: int
    redundancy: float
    mean: float
    worst: float
    over: int
    trials: int
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """What was shown, and how.

    Attributes:
        vertex: of the frontier, that the statement is about.
        walk: every test, in order.
    """

    claim: Claim
    metric: str
    clean: float
    data: str
    faults: str
    vertex: int
    walk: tuple[Tested, ...]

    @property
    def text(self) -> str:
        """The statement."""
        last = next(test for test in self.walk if test.vertex == self.vertex)
        return (
            f"with {self.claim.confidence:.0%} confidence, {self.claim.share:.0%} of devices lose at most "
            f"{self.claim.drop:g} of {self.metric} ({self.clean:g} clean) under {self.faults}: {last.trials} devices "
            f"drawn, {last.over} above, worst loss {last.worst:.3g}, mean {last.mean:.3g}, on {self.data}"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object, for the provenance of a mask file."""
        record = {"statement": self.text} | asdict(self)
        for test in record["walk"]:
            for key in ("mean", "worst"):
                test[key] = test[key] if test[key] < float("inf") else "inf"
        return record


Trials = Callable[[int, int], Sequence[float]]
"""(vertex, number of the test) -> drops of the claim's number of fresh devices, on held-out data."""


def walk(vertices: Sequence[tuple[int, float]], claim: Claim, trials: Trials) -> tuple[list[Tested], int | None]:
    """Test vertices (with their redundancies) in the order given, the strongest protection first, until one fails.

    Returns all tests and the last vertex that passed, None where the first failed.
    """
    tests: list[Tested] = []
    passed: int | None = None
    for number, (vertex, redundancy) in enumerate(vertices):
        drops = [drop if drop == drop else float("inf") for drop in trials(vertex, number)]
        if len(drops) != claim.trials:
            raise UsageError(f"the claim is tested on {claim.trials} devices, got {len(drops)}")
        over = sum(drop > claim.drop for drop in drops)
        good = claim.shown_by(drops)
        tests.append(Tested(vertex, redundancy, sum(drops) / len(drops), max(drops), over, len(drops), good))
        if not good:
            break
        passed = vertex
    return tests, passed


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
