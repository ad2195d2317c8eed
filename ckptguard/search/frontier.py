"""The frontier: for every redundancy the masks that cost the least damage, where damages add up.

Every tensor offers choices: which of its bits are protected, by which code, at what price and with what damage left.
Only choices on the lower convex hull of a tensor can be optimal for a Lagrangian; taking the hulls' steps of all
tensors in the order of damage saved per parity bit visits every vertex of the frontier once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ckptguard.errors import UsageError
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline.wanted import ROW_SUMS

BITS, TOP = "bits", "top"


@dataclass(frozen=True)
class Strength:
    """A code at the error rate of a tensor's device.

    Attributes:
        code: its spec, or None for the one that the caller takes by default.
        parity: bits spent on one protected bit, (n - k) / k.
        left: share of a protected bit's damage that remains, since decoding fails now and then.
    """

    code: str | None
    parity: float
    left: float = 0.0


@dataclass(frozen=True)
class TensorDamage:
    """What the bits of one tensor's words can do.

    Attributes:
        words: how many.
        damage: expected damage by bit position (0 = most significant) while it is not protected; infinite where it is
            not known, which protects the bit first.
        strengths: codes to choose from; one for all protected bits of the tensor.
        joint: masks with the damage that each leaves, where bits do not add up; they are chosen from instead.
        sum_bits: that row sums take, coded like the weights by the first of the strengths; 0 = none can be had.
        level_bits: of metadata, for the levels of these sums.
        common: share of the damage that row sums take away.
    """

    name: str
    words: int
    damage: tuple[float, ...]
    strengths: tuple[Strength, ...]
    joint: tuple[tuple[str, float], ...] = ()
    sum_bits: int = 0
    level_bits: int = 0
    common: float = 0.0

    @property
    def bits(self) -> int:
        """Of a word."""
        return len(self.damage)


@dataclass(frozen=True)
class Choice:
    """One way to protect a tensor.

    Attributes:
        parity: bits it costs.
        damage: expected, what is left.
        mask: as '0' and '1', most significant bit first.
        code: spec, None = default or nothing protected.
        sums: whether it carries row sums.
    """

    parity: float
    damage: float
    mask: str
    code: str | None
    sums: bool = False


@dataclass(frozen=True)
class Step:
    """From one vertex of the frontier to the next: a tensor's next choice."""

    tensor: int
    choice: Choice
    parity: float
    saved: float


class Frontier:
    """All vertices, from nothing protected (0) to the last step that saves anything.

    Attributes:
        tensors: in the order given.
        steps: vertex v is what the first v steps come to.
        stored_bits: that represent the weights.
        metadata_bits: charged whatever is protected, such as those of range guards.
    """

    def __init__(self, tensors: Sequence[TensorDamage], order: str = BITS, metadata_bits: int = 0) -> None:
        """Work out all vertices.

        Args:
            order: `bits`: any bits of a word; `top`: only leading ones, as the papers' TopBits.
        """
        if order not in (BITS, TOP):
            raise UsageError(f"unknown order {order!r}; known: {BITS}, {TOP}")
        self.tensors = tuple(tensors)
        self.stored_bits = sum(tensor.words * tensor.bits for tensor in tensors)
        self.metadata_bits = metadata_bits
        hulls = [lower_hull(choices(tensor, order)) for tensor in tensors]
        self._start = [hull[0] for hull in hulls]
        steps = []
        for index, hull in enumerate(hulls):
            for before, after in pairwise(hull):
                steps.append(Step(index, after, after.parity - before.parity, _saved(before, after)))
        steps.sort(key=_gain, reverse=True)  # stable: equal gains stay in the order of tensors, hulls in their own
        self.steps = tuple(steps)

    def __len__(self) -> int:
        """Number of vertices."""
        return len(self.steps) + 1

    @cached_property
    def parity_bits(self) -> tuple[float, ...]:
        """By vertex."""
        sums = [0.0]
        for step in self.steps:
            sums.append(sums[-1] + step.parity)
        return tuple(sums)

    @cached_property
    def damage(self) -> tuple[float, ...]:
        """Expected damage left, by vertex; infinite until every bit of unknown damage is protected."""
        last = list(self._start)
        for step in self.steps:
            last[step.tensor] = step.choice
        sums = [math.fsum(choice.damage for choice in last)]
        for step in reversed(self.steps):  # from the small to the large: differences of large ones would be rounded
            sums.append(sums[-1] + step.saved)
        return tuple(reversed(sums))

    def redundancy(self, vertex: int) -> float:
        """Parity bits over bits that represent the weights."""
        return self.parity_bits[vertex] / self.stored_bits if self.stored_bits else 0.0

    def charged(self, vertex: int) -> float:
        """The same, with the metadata that protection needs."""
        return self.redundancy(vertex) + (self.metadata_bits / self.stored_bits if self.stored_bits else 0.0)

    def within(self, budget: float) -> int:
        """The last vertex whose charged redundancy is no more than a budget. Raises UsageError where there is none."""
        if self.charged(0) > budget:
            raise UsageError(
                f"a budget of {budget:g} does not pay for the metadata of range guards alone ({self.charged(0):.2g}); "
                "raise it or search without guard"
            )
        allowed = (budget - self.charged(0)) * self.stored_bits * (1 + 1e-12)
        return bisect_right(self.parity_bits, allowed) - 1

    def choices(self, vertex: int) -> list[Choice]:
        """Of every tensor."""
        if not 0 <= vertex < len(self):
            raise UsageError(f"vertex {vertex} is none of the {len(self)} of this frontier")
        chosen = list(self._start)
        for step in self.steps[:vertex]:
            chosen[step.tensor] = step.choice
        return chosen

    def masks(self, vertex: int, provenance: Mapping[str, object] | None = None) -> MaskSet:
        """One rule per group of tensors with equal mask and code, in the order of tensors, and `none` for others."""
        return self.masks_of(self.choices(vertex), provenance)

    def masks_of(self, chosen: Sequence[Choice], provenance: Mapping[str, object] | None = None) -> MaskSet:
        """The same, for a choice of every tensor."""
        groups: dict[tuple[str, str | None], list[str]] = {}
        for tensor, choice in zip(self.tensors, chosen, strict=True):
            if "1" in choice.mask:
                groups.setdefault((choice.mask, choice.code), []).append(exactly(tensor.name))
        rules = [Rule(tuple(names), mask, code) for (mask, code), names in groups.items()]
        said = dict(provenance or {})
        summed = [tensor.name for tensor, choice in zip(self.tensors, chosen, strict=True) if choice.sums]
        said |= {ROW_SUMS: summed} if summed else {}
        return MaskSet((*rules, Rule(("*",), "none")), said)

    def ways(self, vertex: int) -> tuple[list[list[Choice]], list[int]]:
        """Of every tensor its choices on the hull, by rising parity, and which of them a vertex has."""
        found = [[choice] for choice in self._start]
        at = [0] * len(found)
        for number, step in enumerate(self.steps):
            found[step.tensor].append(step.choice)
            at[step.tensor] += number < vertex
        return found, at


def choices(tensor: TensorDamage, order: str = BITS) -> list[Choice]:
    """Every way worth a look: more and more bits, the most damaging first (or from the top), under every code."""
    if tensor.joint:
        return _joint(tensor, order)
    bits = range(tensor.bits)
    ranked = list(bits) if order == TOP else sorted(bits, key=lambda bit: -tensor.damage[bit])
    found = [Choice(0.0, math.fsum(tensor.damage), "0" * tensor.bits, None)]
    for strength in tensor.strengths:
        chosen: set[int] = set()
        for bit in ranked:
            chosen.add(bit)
            left = [_protected(tensor.damage[j], strength) if j in chosen else tensor.damage[j] for j in bits]
            mask = "".join("1" if j in chosen else "0" for j in bits)
            parity = tensor.words * len(chosen) * strength.parity
            found.append(Choice(parity, math.fsum(left), mask, strength.code))
    return found


def _joint(tensor: TensorDamage, order: str) -> list[Choice]:
    """The masks that were weighed as a whole, under every code, without row sums and with them.

    What a code leaves of a mask's worth is that share of what the mask saves.
    """
    bare = max(damage for _, damage in tensor.joint)
    sums = tensor.sum_bits * (1 + tensor.strengths[0].parity) + tensor.level_bits
    found = []
    for strength in tensor.strengths:
        for mask, damage in tensor.joint:
            if order == TOP and "01" in mask:
                continue
            left = damage + (bare - damage) * strength.left
            parity = tensor.words * mask.count("1") * strength.parity
            found.append(Choice(parity, left, mask, strength.code if "1" in mask else None))
            if tensor.sum_bits:
                found.append(Choice(parity + sums, left * (1 - tensor.common), mask, found[-1].code, True))
    return found


def lower_hull(points: Iterable[Choice]) -> list[Choice]:
    """The vertices of the lower convex hull, by rising parity and falling damage.

    Points of infinite damage count as higher than all others.
    """
    ordered = sorted(points, key=lambda point: (point.parity, point.damage))
    hull: list[Choice] = []
    for point in ordered:
        if hull and not point.damage < hull[-1].damage:
            continue
        while len(hull) >= 2 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def exactly(name: str) -> str:
    """A glob that matches this name only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _protected(damage: float, strength: Strength) -> float:
    """What is left of a damage; of an unknown one nothing that can be told."""
    return damage * strength.left if math.isfinite(damage) else 0.0


def _saved(before: Choice, after: Choice) -> float:
    return before.damage - after.damage if math.isfinite(before.damage) else math.inf


def _above(first: Choice, middle: Choice, last: Choice) -> bool:
    """Whether the middle one lies on or above the line through its neighbours; nothing does where that falls from
    infinity."""
    return math.isfinite(first.damage) and _slope(first, last) >= _slope(first, middle)


def _slope(before: Choice, after: Choice) -> float:
    if after.parity == before.parity:
        return math.inf
    return _saved(before, after) / (after.parity - before.parity)


def _gain(step: Step) -> float:
    return step.saved / step.parity if step.parity else math.inf
