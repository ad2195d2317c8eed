"""What is done against faults, and what a trial leaves of it: draw, decode, restore, guard, patch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ckptguard import codes, guards, masks
from ckptguard.campaign.coding import StreamCoder, coders_of
from ckptguard.campaign.damage import Damage, Totals
from ckptguard.campaign.decoding import Decoding, combined
from ckptguard.campaign.drawing import Flips, ParityKey, ParityTarget, Target, draw_flips
from ckptguard.campaign.encodings import Encoding, check_representation, encode_tensor, not_finite
from ckptguard.campaign.faults import Fault, Scope, assign
from ckptguard.campaign.guarding import GuardBits, Guards, granularity_of
from ckptguard.campaign.shells import Drawn
from ckptguard.campaign.streams import NONE, judged_of
from ckptguard.campaign.subject import Subject
from ckptguard.channels.noise import probability
from ckptguard.errors import SpecError, UsageError
from ckptguard.evaluate.session import Patch
from ckptguard.masks import MaskSet
from ckptguard.spec import Spec, suggestion

if TYPE_CHECKING:
    from ckptguard.campaign.sampler import OpenBits

Bytes = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

POLICIES = ("raw", "null", "raise")
IDEAL = "ideal"


@dataclass(frozen=True)
class Variant:
    """One way to store the tensors.

    Attributes:
        name: for tables.
        representation: spec for floating-point tensors (`native`, `fixed:m`, `q:i.f`, `cast:bfloat16`,
            `cast:float16`), or pairs of a glob and a spec, of which the first that matches a tensor's name counts;
            tensors that none matches, and dtypes a spec is not for, stay native.
        masks: protected bits; None = all of them.
        code: `none`: nothing is corrected, whatever masks say; `ideal`: protected bits are never wrong, at the price of
            capacity, for the rate of the faults or that of `ideal:p`; else a code's spec, for tensors whose mask names
            none. Bits of rules that name `none` themselves are judged by digests, as in a container: guards keep those
            that are right, `raise` refuses what is wrong.
        policy: for elements with bits in codewords that were given up on and did not come out right: `raw` keeps what
            was read, `null` makes them zero, `raise` refuses the checkpoint.
        guard: range guards as `protect` records them: False or None, `none`; True, `tensor`; `channel`; `group:N`. What
            was given is kept as False or the granularity.
    """

    name: str
    representation: str | tuple[tuple[str, str], ...] = "native"
    masks: MaskSet | None = None
    code: str = NONE
    policy: str = "raw"
    guard: str | bool | None = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UsageError(
                f"unknown policy {self.policy!r}{suggestion(self.policy, POLICIES)}; known: {', '.join(POLICIES)}"
            )
        granularity = granularity_of(self.guard)
        object.__setattr__(self, "guard", False if granularity == guards.NONE else granularity)
        for _, spec in self._representations():
            check_representation(spec)
        if self.is_ideal:
            _ideal_rate(self.code)
        else:
            codes.make(self.code)

    @property
    def granularity(self) -> str:
        """Of its range guards, as `protect` takes it."""
        return granularity_of(self.guard)

    @property
    def is_ideal(self) -> bool:
        """Whether its code exists in simulation only."""
        return Spec.parse(self.code).name == IDEAL

    def _representations(self) -> tuple[tuple[str, str], ...]:
        if isinstance(self.representation, str):
            return (("*", self.representation),)
        return self.representation

    def representation_of(self, tensor: str) -> str:
        """The spec for a tensor of this name."""
        found = (spec for glob, spec in self._representations() if fnmatchcase(tensor, glob))
        return check_representation(next(found, "native"))

    def to_json(self) -> dict[str, Any]:
        """A record that `from_json` gives an equal variant for."""
        spoken: Any = self.representation
        if not isinstance(spoken, str):
            spoken = [list(pair) for pair in spoken]
        return {
            "name": self.name,
            "representation": spoken,
            "masks": None if self.masks is None else json.loads(self.masks.to_json()),
            "code": self.code,
            "policy": self.policy,
            "guard": self.guard,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Variant:
        """Inverse of `to_json`."""
        spoken = record["representation"]
        representation = spoken if isinstance(spoken, str) else tuple((glob, spec) for glob, spec in spoken)
        chosen = None if record["masks"] is None else MaskSet.parse(record["masks"])
        return cls(record["name"], representation, chosen, record["code"], record["policy"], record["guard"])


class Prepared:
    """A subject stored as a variant says: what trials need of it, worked out once."""

    def __init__(self, subject: Subject, variant: Variant) -> None:
        """Raises MaskError, SpecError, CheckpointError where the variant does not fit the tensors."""
        self.subject, self.variant = subject, variant
        self.encodings: dict[str, Encoding] = {
            name: encode_tensor(name, tensor, variant.representation_of(name))
            for name, tensor in subject.tensors.items()
        }
        self.masks: dict[str, tuple[str, str]] = self._resolve()
        self.coders: dict[tuple[int, int], StreamCoder] = {}
        if not variant.is_ideal:
            self.coders = coders_of(subject.shards, self.encodings, self.masks)
        self._judges = judged_of(subject.shards, self.encodings, self.masks)
        self._protected = {name: np.uint64(int(mask or "0", 2)) for name, (mask, _) in self.masks.items()}
        self._parity: dict[ParityKey, Bytes] = {}
        self.base: dict[str, Bytes] = {name: _base(one) for name, one in self.encodings.items()}
        shapes = {name: tensor.shape for name, tensor in subject.tensors.items()}
        self.guards = Guards(self.encodings, shapes, variant.granularity)

    def _resolve(self) -> dict[str, tuple[str, str]]:
        """Mask and code of every tensor; the mask is all zeros where nothing is protected."""
        variant = self.variant
        if variant.masks is None and variant.code == NONE:
            return {name: ("0" * one.bits, NONE) for name, one in self.encodings.items()}
        asked = [(name, one.bits) for name, one in self.encodings.items()]
        chosen = {mask.name: mask for mask in (variant.masks or MaskSet.all()).resolve(asked).tensors}
        if variant.is_ideal:
            return {name: (chosen[name].mask, IDEAL) for name in chosen}
        resolved = {}
        for name, mask in chosen.items():
            code = (mask.code or variant.code) if mask.protected_bits and variant.code != NONE else NONE
            judged = code != NONE or mask.code == NONE
            resolved[name] = (mask.mask if judged else "0" * len(mask.mask), codes.make(code).spec)
        return resolved

    @property
    def redundancy(self) -> float:
        """Parity bits over stored bits of the weights, as papers count; NaN for `ideal` without a rate."""
        return self.redundancy_at(None)

    @cached_property
    def open_bits(self) -> dict[tuple[int, int], OpenBits]:
        """By stream, the protected bits that range guards do not set back; for sampling failing codewords."""
        from ckptguard.campaign.sampler import OpenBits

        return {key: OpenBits(coder, self.guards) for key, coder in self.coders.items()}

    @property
    def guard_bits(self) -> GuardBits:
        """What the range guards take, which `redundancy` leaves out."""
        return self.guards.bits(self.subject.shards)

    def redundancy_at(self, bit_error_rate: float | None) -> float:
        """The same, an ideal code that names no rate priced for this one: H(p) / (1 - H(p)) of what it protects."""
        parity = math.nan
        if self.variant.is_ideal:
            rate = _ideal_rate(self.variant.code)
            rate = bit_error_rate if rate is None else rate
            parity = math.nan if rate is None else capacity_redundancy(rate)
        return masks.redundancy(
            (
                self.encodings[name].elements,
                mask,
                parity if code == IDEAL else codes.make(code).redundancy,
            )
            for name, (mask, code) in self.masks.items()
        )

    def draw(self, faults: Mapping[str, Fault] | Fault, seed: int, trial: int, scope: Scope | None = None) -> Flips:
        """The flips of a trial, before decoding."""
        scope = scope or Scope()
        assigned = assign(faults, list(self.encodings), scope)
        groups: dict[Fault, tuple[list[Target], list[ParityTarget]]] = {}
        for name, fault in assigned.items():
            planes = scope.planes(self.encodings[name])
            groups.setdefault(fault, ([], []))[0].append(Target(name, self.encodings[name], planes))
        for key, coder in self.coders.items():
            hit = [assigned[member.name] for member in coder.members.values() if member.name in assigned]
            if hit and scope.whole_words:
                groups[hit[0]][1].append(ParityTarget(key, coder.stream.parity_bytes, self._parity_image(key)))
        return draw_flips([(fault, *targets) for fault, targets in groups.items()], seed, trial)

    def trial(
        self,
        faults: Mapping[str, Fault] | Fault,
        seed: int,
        trial: int,
        scope: Scope | None = None,
        decoder: str = "exact",
    ) -> Damage:
        """Draw the flips of a trial, decode them, and say what is left.

        Args:
            faults: one for all tensors, or by tensor (names or globs), as where they lie on several devices.
            seed, trial: the same ones give the same flips, whatever the variant.
            scope: default: everything.
            decoder: `exact` draws every flip and decodes; `sampled` draws the codewords that fail, in distribution.
        """
        if decoder == "sampled":
            from ckptguard.campaign.sampler import sample

            return self.outcome(*sample(self, faults, seed, trial, scope or Scope()))
        if decoder != "exact":
            raise UsageError(f"unknown decoder {decoder!r}; known: exact, sampled")
        flips = self.guards.set_back(self.draw(faults, seed, trial, scope))
        return self.outcome(flips, self.decode(flips))

    def decode(self, flips: Flips) -> Decoding:
        """What the code leaves of flips of protected bits, those that guards set back left out."""
        result = self.judged(flips)
        none = np.zeros(0, np.int64)
        for key, coder in self.coders.items():
            coder.decode(flips.tensors, flips.parity.get(key, none), result)
        return result

    def judged(self, flips: Flips) -> Decoding:
        """What digests say of flips of protected bits that no code corrects."""
        result = Decoding()
        for stream in self._judges:
            stream.judge(flips.tensors, result)
        return result

    def outcome(self, flips: Flips, decoding: Decoding) -> Damage:
        """What flips and their decoding come to in the tensors."""
        raised = decoding.lost and self.variant.policy == "raise"
        patches: dict[str, Patch] = {}
        totals = Totals()
        for name in self.encodings:
            drawn, residual = flips.tensors.get(name), decoding.wrong(name)
            if drawn is None and residual is None:
                continue
            left = self._left(name, drawn, residual)
            patch = self._patch(name, left, decoding, flips.set_back.get(name), totals)
            if patch.elements.size and not raised:
                patches[name] = patch
        return Damage(
            patches=patches,
            raised=raised,
            stored_bits=flips.stored_bits,
            parity_bits=flips.parity_bits,
            expected_flips=None if flips.expected is None else flips.expected[0],
            expected_parity_flips=None if flips.expected is None else flips.expected[1],
            flips=flips.count,
            parity_flips=flips.parity_count,
            codewords=decoding.codewords,
            corrected=decoding.corrected,
            uncorrectable=decoding.uncorrectable,
            miscorrected=decoding.miscorrected,
            residual_bits=sum(totals.by_bit.values()),
            changed_elements=sum(patch.elements.size for patch in patches.values()),
            nulled=totals.nulled,
            guarded=totals.guarded,
            non_finite=totals.non_finite,
            flips_by_bit=dict(sorted(flips.by_bit.items())),
            residual_by_bit=dict(sorted(totals.by_bit.items())),
            residual_by_tensor=totals.by_tensor,
        )

    def _left(self, name: str, drawn: Drawn | None, residual: Drawn | None) -> Drawn:
        """Flips that decoding left: those of bits that are not protected, and the residual ones of those that are."""
        protected = self._protected[name]
        residual = None if residual is None else self.guards.left_of(name, residual)
        if drawn is None:
            assert residual is not None
            return residual
        if protected:
            flips = drawn.flips & ~protected
            open_ones = flips != 0
            drawn = Drawn(drawn.elements[open_ones], flips[open_ones], drawn.by_plane)
        return drawn if residual is None else combined(drawn, residual)

    def _patch(self, name: str, left: Drawn, decoding: Decoding, set_back: I64 | None, totals: Totals) -> Patch:
        encoding = self.encodings[name]
        lost = decoding.given_up(name) if self.variant.policy == "null" else None
        kind = encoding.words.dtype.type
        elements, flips = left.elements, left.flips
        if lost is not None:
            kept = ~np.isin(elements, lost, assume_unique=True)
            elements, flips = elements[kept], flips[kept]
            totals.nulled += lost.size
        totals.count(name, flips, encoding.bits)
        words = encoding.words[elements] ^ flips.astype(kind)
        protected = int(self._protected[name])
        words, guarded = self.guards.apply(name, words, elements, protected, decoding.unproven(name))
        totals.guarded += guarded.size if set_back is None else np.union1d(guarded, set_back).size
        if lost is not None:
            nothing = self.guards.nothing(name, lost, kind)
            elements, words = np.concatenate([elements, lost]), np.concatenate([words, nothing])
            order = np.argsort(elements, kind="stable")
            elements, words = elements[order], words[order]
        restored = encoding.restore(words)
        differs = restored != self._base_words(name)[elements]
        patch = Patch(elements[differs], restored[differs])
        totals.non_finite += not_finite(encoding.dtype, patch.words)
        return patch

    def _base_words(self, name: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        return self.base[name].view(f"<u{self.encodings[name].dtype.word_bits // 8}")

    def _parity_image(self, key: ParityKey) -> Callable[[], Bytes]:
        def image() -> Bytes:
            if key not in self._parity:
                self._parity[key] = self.coders[key].parity_image()
            return self._parity[key]

        return image


def _base(encoding: Encoding) -> Bytes:
    data = encoding.restore(encoding.words).view(np.uint8)
    data.setflags(write=False)
    return data


def _ideal_rate(spec: str) -> float | None:
    parsed = Spec.parse(spec)
    if len(parsed.settings) > 1:
        raise SpecError(f"an ideal code is written 'ideal', or 'ideal:p' with the rate it is priced for, not {spec!r}")
    return probability(parsed.settings[0], "p of code 'ideal'") if parsed.settings else None


def capacity_redundancy(p: float) -> float:
    """Parity bits per protected bit of a code that reaches the capacity of the binary symmetric channel with rate p."""
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"a bit error rate is a probability, 0 to 1; found {p}")
    if p in (0.0, 1.0):
        return 0.0
    entropy = -p * math.log2(p) - (1.0 - p) * math.log2(1.0 - p)
    return entropy / (1.0 - entropy) if entropy < 1.0 else math.inf
