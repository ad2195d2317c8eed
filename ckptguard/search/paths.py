"""Baselines as paths of mask sets: the same leading bits everywhere, and random bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ckptguard.errors import UsageError
from ckptguard.masks import MaskSet, Rule
from ckptguard.search.frontier import TensorDamage, exactly


class MaskPath(Protocol):
    """Mask sets in the order of what they cost; `frontier.Frontier` is one.

    Attributes:
        damage: expected, what is left, by vertex.
    """

    @property
    def damage(self) -> Sequence[float]: ...

    def __len__(self) -> int: ...

    def redundancy(self, vertex: int) -> float: ...

    def charged(self, vertex: int) -> float: ...

    def within(self, budget: float) -> int: ...

    def masks(self, vertex: int, provenance: Mapping[str, object] | None = None) -> MaskSet: ...


class Listed:
    """A path of given masks, one tuple of masks (by tensor) per vertex, of rising cost.

    Damages that are not known are left out of the sums: such paths do not care for them.
    """

    def __init__(
        self, tensors: Sequence[TensorDamage], vertices: Sequence[tuple[str, ...]], metadata_bits: int = 0
    ) -> None:
        self.tensors, self.vertices = tuple(tensors), tuple(vertices)
        self.stored_bits = sum(tensor.words * tensor.bits for tensor in tensors)
        self.metadata_bits = metadata_bits
        self.damage = tuple(self._damage(masks) for masks in self.vertices)

    def _damage(self, masks: Sequence[str]) -> float:
        left = 0.0
        for tensor, mask in zip(self.tensors, masks, strict=True):
            share = tensor.strengths[0].left
            for bit, damage in zip(mask, tensor.damage, strict=True):
                if math.isfinite(damage):
                    left += damage if bit == "0" else damage * share
        return left

    def __len__(self) -> int:
        return len(self.vertices)

    def redundancy(self, vertex: int) -> float:
        """Parity bits over bits that represent the weights."""
        parity = sum(
            tensor.words * mask.count("1") * tensor.strengths[0].parity
            for tensor, mask in zip(self.tensors, self.vertices[vertex], strict=True)
        )
        return parity / self.stored_bits if self.stored_bits else 0.0

    def charged(self, vertex: int) -> float:
        """The same, with the metadata that protection needs."""
        return self.redundancy(vertex) + (self.metadata_bits / self.stored_bits if self.stored_bits else 0.0)

    def within(self, budget: float) -> int:
        """The last vertex whose charged redundancy is no more than a budget. Raises UsageError where there is none."""
        found = [vertex for vertex in range(len(self)) if self.charged(vertex) <= budget * (1 + 1e-12)]
        if not found:
            raise UsageError(f"a budget of {budget:g} is below the cheapest mask set, {self.charged(0):.3g}")
        return max(found)

    def masks(self, vertex: int, provenance: Mapping[str, object] | None = None) -> MaskSet:
        """One rule per group of tensors with equal masks, and `none` for the rest."""
        groups: dict[tuple[str, str | None], list[str]] = {}
        for tensor, mask in zip(self.tensors, self.vertices[vertex], strict=True):
            if "1" in mask:
                groups.setdefault((mask, tensor.strengths[0].code), []).append(exactly(tensor.name))
        rules = [Rule(tuple(names), mask, code) for (mask, code), names in groups.items()]
        return MaskSet((*rules, Rule(("*",), "none")), dict(provenance or {}))


def uniform(tensors: Sequence[TensorDamage], metadata_bits: int = 0) -> Listed:
    """The first bits of every word, from none to all; shorter words are protected wholly."""
    widest = max((tensor.bits for tensor in tensors), default=0)
    vertices = [
        tuple("1" * min(top, tensor.bits) + "0" * max(tensor.bits - top, 0) for tensor in tensors)
        for top in range(widest + 1)
    ]
    return Listed(tensors, vertices, metadata_bits)


def at_random(tensors: Sequence[TensorDamage], seed: int, metadata_bits: int = 0) -> Listed:
    """Bits of tensors in a random order: what the same parity buys without knowing anything."""
    items = [(index, bit) for index, tensor in enumerate(tensors) for bit in range(tensor.bits)]
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(items))
    chosen = [["0"] * tensor.bits for tensor in tensors]
    vertices = [tuple("".join(mask) for mask in chosen)]
    for place in order.tolist():
        index, bit = items[place]
        chosen[index][bit] = "1"
        vertices.append(tuple("".join(mask) for mask in chosen))
    return Listed(tensors, vertices, metadata_bits)
