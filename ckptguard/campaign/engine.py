"""Runs the trials of a campaign: in rounds, on any number of workers, with a journal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ckptguard.campaign import worker
from ckptguard.campaign.backends import Pool
from ckptguard.campaign.design import ROUND, Stop, encodings
from ckptguard.campaign.journal import Journal
from ckptguard.campaign.metrics import Metric
from ckptguard.campaign.results import Clean, column
from ckptguard.campaign.statistics import mean_sequence
from ckptguard.campaign.variants import Variant
from ckptguard.campaign.verdict import INCONCLUSIVE, Limit, judge
from ckptguard.errors import UsageError
from ckptguard.pipeline.work import Progress


@dataclass(frozen=True)
class Part:
    """The share of a campaign that one of several independent runs does: number `index` of `count`, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `2/4`."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise UsageError(f"--part {text!r}: expected I/N with 1 <= I <= N, such as 2/4")
        return cls(int(first), int(second))

    def has(self, number: int) -> bool:
        """Whether the task of a number is of this part."""
        return number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class Rule:
    """When to stop, and what is needed to decide it.

    Attributes:
        trials: of every point; with `stop` the most.
        stop: None for a fixed number.
        metric: the one that decides.
        limit: for `verdict`.
        judged: the variant that the verdict is about.
        confidence: of the intervals.
    """

    trials: int
    stop: Stop | None
    metric: Metric
    limit: Limit | None
    judged: str
    confidence: float


def planned(points: int, variants: Sequence[Variant], trials: range) -> Iterator[tuple[int, int, int]]:
    """(point, encoding, trial) of all tasks, in the order that parts count them: by blocks of trials, so that all
    points advance together, and within a block by encoding, as loading one costs a worker time."""
    for start in range(trials.start, trials.stop, ROUND):
        for encoding in range(len(encodings(variants))):
            for trial in range(start, min(start + ROUND, trials.stop)):
                for point in range(points):
                    yield point, encoding, trial


class Engine:
    """The trials of one campaign.

    Attributes:
        seconds: of work in all workers together, by what they measured.
        evaluations: of the model, by this run.
    """

    def __init__(
        self, packed: worker.Packed, work: worker.Work, clean: Clean, pool: Pool, journal: Journal, progress: Progress
    ) -> None:
        self.seconds, self.evaluations, self.trials_done = 0.0, 0, 0
        self._packed, self._work, self._clean = packed, work, clean
        self._pool, self._journal, self._progress = pool, journal, progress
        self._groups = encodings(work.variants)
        self._names = [variant.name for variant in work.variants]
        self._stopped_at = [0] * len(work.points)

    def run(self, rule: Rule, part: Part | None = None) -> dict[str, int]:
        """Do what is missing in the journal. Returns the number of trials per point.

        With a stopping rule, decisions fall only at the ends of rounds of `ROUND` trials, in the order of the trials.
        """
        begin = time.perf_counter()
        ids = [point.id for point in self._work.points]
        active = list(range(len(ids)))
        step = rule.trials if rule.stop is None else ROUND
        done = 0
        while active and done < rule.trials:
            upto = min(done + step, rule.trials)
            self._do(active, range(done, upto), part, rule.trials)
            done = upto
            for point in active:
                self._stopped_at[point] = done
            if rule.stop is not None:
                active = [point for point in active if not self._decided(ids[point], done, rule)]
        self._journal.sync()
        self.elapsed = time.perf_counter() - begin
        return dict(zip(ids, self._stopped_at, strict=True))

    def _do(self, active: Sequence[int], trials: range, part: Part | None, most: int) -> None:
        tasks = self._missing(active, trials, part)
        total = len(tasks) if trials.start == 0 and trials.stop == most else most * len(active) * len(self._groups)
        before = trials.start * len(active) * len(self._groups)
        for count, done in enumerate(self._pool.map(partial(worker.run, self._packed), tasks), 1):
            self._journal.append(done.rows)
            self.seconds += done.seconds
            self.evaluations += done.evaluations
            self.trials_done += 1
            self._progress("trials", before + count, total)

    def _missing(self, active: Sequence[int], trials: range, part: Part | None) -> list[worker.Task]:
        """Tasks with at least one row that the journal does not have."""
        tasks, active_set = [], set(active)
        points = self._work.points
        for number, (point, encoding, trial) in enumerate(planned(len(points), self._work.variants, trials)):
            if point not in active_set or (part is not None and not part.has(number)):
                continue
            group = self._groups[encoding]
            left = tuple(v for v in group if (points[point].id, self._names[v], trial) not in self._journal.rows)
            if left:
                tasks.append(worker.Task(point, encoding, left, trial, self._clean[self._names[group[0]]]))
        return tasks

    def _decided(self, point: str, trials: int, rule: Rule) -> bool:
        if rule.stop is not None and rule.stop.rule == "verdict":
            if rule.limit is None:
                raise UsageError("--until verdict needs a --limit to judge")
            values = column(self._journal.rows, point, rule.judged, trials, rule.limit.metric)
            clean = self._clean[rule.judged][rule.limit.metric]
            verdict = judge(values, clean, rule.limit, peeking=True, bounds=rule.metric.bounds)
            return verdict.outcome != INCONCLUSIVE
        return all(self._narrow(point, name, trials, rule) for name in self._names)

    def _narrow(self, point: str, variant: str, trials: int, rule: Rule) -> bool:
        found = watched_mean(column(self._journal.rows, point, variant, trials, rule.metric.name), rule)
        return (found[1] - found[0]) / 2 <= (rule.stop.width or 0.0 if rule.stop else 0.0)


def watched_mean(values: Sequence[float], rule: Rule) -> tuple[float, float]:
    """Bounds of the mean that hold although it was looked at after every round; failed trials count as the worst."""
    bounds = rule.metric.bounds
    if bounds is None:
        raise UsageError(
            f"--until halfwidth: the range of {rule.metric.name!r} is not known, and a bound that may be watched needs "
            f"it; give --range {rule.metric.name}=LOW:HIGH"
        )
    worst = rule.metric.worst
    kept = [value if rule.metric.goodness(value) > float("-inf") else worst for value in values]
    found = mean_sequence(kept, *bounds, rule.confidence)
    return found.low, found.high
