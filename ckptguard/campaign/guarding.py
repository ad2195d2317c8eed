"""Range guards in memory: what `protect --guard` records of tensors, and what reading makes of their damage with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard import representations
from ckptguard.campaign.drawing import Flips
from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.shells import Drawn
from ckptguard.errors import CheckpointError
from ckptguard.guards import CHANNEL, GROUP, NONE, TENSOR, TensorGuard, WordForm, check_granularity, group_words
from ckptguard.pipeline import guarding
from ckptguard.pipeline.inspect import ARMOUR_GROWTH

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Words = npt.NDArray[np.unsignedinteger[Any]]
Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class GuardBits:
    """What the range guards of all tensors take.

    Attributes:
        plain: bits of their entries.
        stored: bits of a container: compressed, armoured, in both copies of the metadata.
    """

    plain: int = 0
    stored: int = 0


def granularity_of(setting: str | bool | None) -> str:
    """`none`, `tensor`, `channel` or `group:N`; True is `tensor`, False and None are `none`. Raises SpecError."""
    found = setting if isinstance(setting, str) else TENSOR if setting else NONE
    check_granularity(found)
    return found


class Guards:
    """The range guards of tensors as they are stored."""

    def __init__(
        self, encodings: Mapping[str, Encoding], shapes: Mapping[str, tuple[int, ...]], granularity: str
    ) -> None:
        self._guards: dict[str, TensorGuard] = {}
        if granularity != NONE:
            for name, encoding in encodings.items():
                if encoding.elements:
                    group = group_words(granularity, encoding.elements, shapes[name])
                    self._guards[name] = TensorGuard.of_words(_form(encoding), encoding.words, group)

    def of(self, name: str) -> TensorGuard | None:
        """The guard of a tensor."""
        return self._guards.get(name)

    def bits(self, shards: Sequence[Sequence[str]]) -> GuardBits:
        """What they take in a container whose shards hold these tensors."""
        plain = sum(guard.stored_bytes for guard in self._guards.values())
        stored = 0
        for names in shards:  # part 0 is the header of the safetensors file
            guards = {index: self._guards[name] for index, name in enumerate(names, 1) if name in self._guards}
            stored += guarding.stored_bytes(guards, len(names) + 1)
        return GuardBits(8 * plain, 8 * ARMOUR_GROWTH * stored)

    def varying(self, name: str, elements: I64) -> U64 | None:
        """(count,) or (1,) bits that vary among the words that share a guard with these; None without a guard."""
        guard = self._guards.get(name)
        if guard is None:
            return None
        varying = (guard.ever ^ guard.always).astype(np.uint64)
        return varying if guard.groups == 1 else varying[elements // guard.group]

    def left_of(self, name: str, drawn: Drawn) -> Drawn:
        """Flips without those of bits that never vary."""
        varying = self.varying(name, drawn.elements)
        if varying is None:
            return drawn
        flips = drawn.flips & varying
        left = flips != 0
        return Drawn(drawn.elements[left], flips[left], drawn.by_plane)

    def set_back(self, flips: Flips) -> Flips:
        """What is left of flips before decoding: reading sets back the bits that never vary."""
        if not self._guards:
            return flips
        left, forced = {}, {}
        for name, drawn in flips.tensors.items():
            varying = self.varying(name, drawn.elements)
            if varying is not None:
                forced[name] = drawn.elements[(drawn.flips & ~varying) != 0]
            left[name] = self.left_of(name, drawn)
        return replace(flips, tensors=left, set_back=forced)

    def apply(self, name: str, words: Words, elements: I64, protected: int, lost: Ranges) -> tuple[Words, I64]:
        """Words as reading leaves them, and which elements that changed.

        Args:
            words: (count,) after decoding, those of the `elements`.
            protected: bits that words outside of the `lost` ranges keep, since a digest proves them.
            lost: (begin, end) of elements, in any order.
        """
        guard = self._guards.get(name)
        if guard is None:
            return words, elements[:0]
        begins, ends = (np.sort(np.array([one[side] for one in lost], np.int64)) for side in (0, 1))
        unproven = np.searchsorted(begins, elements, "right") > np.searchsorted(ends, elements, "right")
        result, changed = words.copy(), np.zeros(words.size, np.bool_)
        for chosen, kept in ((unproven, 0), (~unproven, protected)):
            if chosen.any():
                applied = guard.apply(words[chosen], elements[chosen], kept=kept)
                result[chosen], changed[chosen] = applied.words, applied.changed
        return result, elements[changed]

    def nothing(self, name: str, elements: I64, kind: type[Any]) -> Words:
        """(count,) what takes the place of elements that are given up: zero, or what is nearest to it."""
        guard = self._guards.get(name)
        if guard is None:
            return np.zeros(elements.size, kind)
        return guard.nearest_to_zero[elements // guard.group].astype(kind, copy=False)


def _form(encoding: Encoding) -> WordForm:
    if not encoding.planar:
        return WordForm.of(encoding.part_dtype)
    representation = representations.make(encoding.part_representation)
    return WordForm.of_codes(encoding.bits, representation.order(encoding.part_dtype))


def granularity_found(guards: Sequence[tuple[TensorGuard | None, tuple[int, ...]]]) -> str:
    """The granularity that gives tensors of these shapes the guards that they have.

    Raises:
        CheckpointError: none does, so that no setting describes the guards.
    """
    present = [(guard, shape) for guard, shape in guards if guard is not None]
    if not present:
        return NONE
    largest = max((guard.group for guard, _ in present if guard.groups > 1), default=1)
    for granularity in (TENSOR, CHANNEL, f"{GROUP}:{largest}"):
        if all(guard.group == group_words(granularity, guard.words, shape) for guard, shape in present):
            return granularity
    raise CheckpointError(
        "the range guards of the container divide its tensors in a way that has no name; give the campaign a variant "
        "of your own, with guard=tensor, channel, group:N or none"
    )
