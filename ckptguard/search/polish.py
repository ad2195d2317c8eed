"""Polish: swaps around the threshold of a frontier, kept where fewer losses are measured on the same draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ckptguard.errors import UsageError
from ckptguard.masks import MaskSet
from ckptguard.pipeline.work import Progress, silent
from ckptguard.search.frontier import Choice, Frontier
from ckptguard.search.trials import Trials

DRAWS = 8
"""Of every mask set that is compared."""
FIRST_DRAW = 100_000
"""Draws that no calibration meets."""


@dataclass(frozen=True)
class Swap:
    """One step of one tensor taken back for a step of another.

    Attributes:
        taken, given: names of the tensors with less, and with more protection than before.
        gain: mean over draws of the loss before less that after.
        error: standard error of it.
        kept: whether the gain is more than its error.
    """

    taken: str
    given: str
    gain: float
    error: float
    kept: bool


class Polished:
    """A frontier of which one vertex has other masks, of no more parity than was allowed. A `MaskPath`.

    Attributes:
        swaps: tried, in order.
        evaluations: that it took.
    """

    def __init__(
        self, frontier: Frontier, vertex: int, chosen: Sequence[Choice], swaps: Sequence[Swap], evaluations: int
    ) -> None:
        self._frontier, self._vertex, self._chosen = frontier, vertex, tuple(chosen)
        self.swaps, self.evaluations = tuple(swaps), evaluations
        damage = list(frontier.damage)
        if any(swap.kept for swap in swaps):
            damage[vertex] = math.fsum(choice.damage for choice in chosen)
        self.damage: Sequence[float] = tuple(damage)

    def __len__(self) -> int:
        return len(self._frontier)

    def redundancy(self, vertex: int) -> float:
        """Parity bits over bits that represent the weights."""
        if vertex != self._vertex or not self._frontier.stored_bits:
            return self._frontier.redundancy(vertex)
        return math.fsum(choice.parity for choice in self._chosen) / self._frontier.stored_bits

    def charged(self, vertex: int) -> float:
        """The same, with the metadata that protection needs."""
        return self.redundancy(vertex) + self._frontier.charged(0)

    def within(self, budget: float) -> int:
        """As of the frontier."""
        return self._frontier.within(budget)

    def masks(self, vertex: int, provenance: Mapping[str, object] | None = None) -> MaskSet:
        """As of the frontier, but for the one vertex."""
        if vertex != self._vertex:
            return self._frontier.masks(vertex, provenance)
        return self._frontier.masks_of(self._chosen, provenance)

    def provenance(self) -> dict[str, Any]:
        """What a mask file says of it."""
        kept = [asdict(swap) for swap in self.swaps if swap.kept]
        for swap in kept:
            del swap["kept"]
        return {"evaluations": self.evaluations, "tried": len(self.swaps), "kept": kept}


def polish(
    frontier: Frontier,
    vertex: int,
    trials: Trials,
    allowed: float,
    evaluations: int,
    ceiling: float,
    progress: Progress = silent,
) -> Polished:
    """Try swaps at a vertex, those that the damage table thinks least of a loss first.

    A swap takes the last step of one tensor back and takes the next of another. Masks before and after meet the same
    draws; a swap is kept if the mean of the paired differences is above its standard error.

    Args:
        allowed: parity bits that no mask set exceeds.
        evaluations: at most so many.
        ceiling: what a failed trial counts as.
    """
    if evaluations < 2 * DRAWS:
        raise UsageError(f"polishing compares mask sets on {DRAWS} draws each; allow at least {2 * DRAWS} evaluations")
    ways, at = frontier.ways(vertex)

    def losses(places: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        masks = frontier.masks_of([ways[i][place] for i, place in enumerate(places)])
        return np.minimum(trials.drops(masks, FIRST_DRAW, DRAWS), ceiling)

    before, spent = losses(at), DRAWS
    swaps: list[Swap] = []
    seen = {tuple(at)}
    while spent + DRAWS <= evaluations:
        found = next((places for places in _neighbours(ways, at, allowed) if tuple(places) not in seen), None)
        if found is None:
            break
        seen.add(tuple(found))
        after = losses(found)
        spent += DRAWS
        gain, error = float(np.mean(before - after)), float(np.std(before - after, ddof=1) / math.sqrt(DRAWS))
        taken, given = (next(i for i, (a, b) in enumerate(zip(at, found, strict=True)) if b - a == s) for s in (-1, 1))
        swaps.append(Swap(frontier.tensors[taken].name, frontier.tensors[given].name, gain, error, gain > error))
        if swaps[-1].kept:
            at, before = found, after
        progress("polish", spent, evaluations)
    return Polished(frontier, vertex, [ways[i][place] for i, place in enumerate(at)], swaps, spent)


def _neighbours(ways: Sequence[Sequence[Choice]], at: Sequence[int], allowed: float) -> Iterator[list[int]]:
    """Places one swap away that cost no more than is allowed, by rising predicted damage."""
    parity = math.fsum(way[place].parity for way, place in zip(ways, at, strict=True))
    back = [(i, way[at[i]], way[at[i] - 1]) for i, way in enumerate(ways) if at[i]]
    on = [(i, way[at[i]], way[at[i] + 1]) for i, way in enumerate(ways) if at[i] + 1 < len(way)]
    pairs = []
    for i, last, previous in back:
        for j, present, following in on:
            cost = parity - last.parity + previous.parity - present.parity + following.parity
            harm = previous.damage - last.damage + following.damage - present.damage
            if i != j and cost <= allowed * (1 + 1e-12) and math.isfinite(harm):
                pairs.append((harm, i, j))
    for _, i, j in sorted(pairs):
        places = list(at)
        places[i] -= 1
        places[j] += 1
        yield places
