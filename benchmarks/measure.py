"""Contenders timed in turn, round after round, so that a busy minute slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

ROUNDS = 7
_LEAST_SECONDS = 0.02


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        name: shown in the table.
        run: does the work; gets what `prepare` gave.
        amount: of work one call does, in bytes (or 1 for things that are timed only).
        prepare: gives fresh input, untimed; without it `run` is called with None, many times where it is short.
        clock: seconds; CPU time of the thread, for what runs on one, is blind to other work on the machine.
    """

    name: str
    run: Callable[[Any], object]
    amount: float = 1.0
    prepare: Callable[[], Any] | None = None
    clock: Callable[[], float] = time.thread_time


@dataclass(frozen=True)
class Timing:
    """Amount per second, and seconds, of one contender, round by round."""

    name: str
    amount: float
    seconds: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Amount per second of every round."""
        return [self.amount / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float:
        """Median amount per second."""
        return statistics.median(self.rates)

    @property
    def best(self) -> float:
        """Best amount per second."""
        return max(self.rates)

    @property
    def time(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def times(self, other: Timing) -> float:
        """How many times faster than another this was: median over the rounds they shared."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


def interleaved(contenders: Sequence[Contender], rounds: int = ROUNDS) -> dict[str, Timing]:
    """Time every contender once per round, after one untimed call each (which compiles and fills caches)."""
    repeats = {}
    for one in contenders:
        _once(one, 1)
        repeats[one.name] = 1 if one.prepare else max(1, round(_LEAST_SECONDS / max(_once(one, 1), 1e-6)))
    timings = {one.name: Timing(one.name, one.amount) for one in contenders}
    for _ in range(rounds):
        for one in contenders:
            timings[one.name].seconds.append(_once(one, repeats[one.name]))
    return timings


def _once(one: Contender, repeats: int) -> float:
    given = one.prepare() if one.prepare else None
    start = one.clock()
    for _ in range(repeats):
        one.run(given)
    return (one.clock() - start) / repeats


@dataclass(frozen=True)
class Peer:
    """Another program at the same work.

    Attributes:
        name: of it.
        rate: median, in the unit of the row.
        ratio: how many times faster ckptguard was, median over the rounds; for times, how many times shorter.
        goal: the ratio wanted; None where none is.
    """

    name: str
    rate: float
    ratio: float
    goal: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the ratio is what was wanted."""
        return self.goal is None or self.ratio >= self.goal


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: of operations, in the table and in the plot.
        operation: what was measured.
        unit: of the figures: "GB/s", "s", "x", ...
        median, best: over the rounds.
        goal: in the same unit; None where there is none. For units of time, at most; otherwise, at least.
        peers: measured in the same rounds.
        bound: what limits it, with the figures of this run.
        threads: it ran on.
        note: what else is to be known.
    """

    group: str
    operation: str
    unit: str
    median: float
    best: float
    goal: float | None = None
    peers: tuple[Peer, ...] = ()
    bound: str = ""
    threads: int = 1
    note: str = ""
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether all goals of the row are reached; None where there are none."""
        if self.goal is None and all(peer.goal is None for peer in self.peers):
            return None
        own = self.goal is None or (self.median <= self.goal if self.at_most else self.median >= self.goal)
        return own and all(peer.reached for peer in self.peers)


def speed_row(
    group: str,
    operation: str,
    ours: Timing,
    goal: float | None = None,
    peers: Sequence[tuple[Timing, float | None]] = (),
    **more: Any,
) -> Row:
    """A row in GB/s of timings whose amounts are bytes; peers may have worked on other amounts."""
    shown = tuple(Peer(peer.name, peer.rate / 1e9, ours.times(peer), wanted) for peer, wanted in peers)
    return Row(group, operation, "GB/s", ours.rate / 1e9, ours.best / 1e9, goal, shown, **more)
