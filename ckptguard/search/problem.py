"""What a search is given: a model, its devices, how it is stored, and what the flips of its bits do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ckptguard import codes
from ckptguard.campaign import design
from ckptguard.campaign.encodings import Encoding
from ckptguard.campaign.faults import Fault, Scope, assign, make
from ckptguard.campaign.guarding import Guards
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import capacity_redundancy
from ckptguard.container.armour import CODEWORD_BYTES, MESSAGE_BYTES
from ckptguard.devices import Device, DeviceMap
from ckptguard.errors import UsageError
from ckptguard.guards import NONE as NO_GUARD
from ckptguard.guards import TENSOR
from ckptguard.outliers import ENTRY_BYTES, Outliers
from ckptguard.pipeline import posteriors
from ckptguard.pipeline.posteriors import Posterior
from ckptguard.pipeline.wanted import RESTORER, recorded
from ckptguard.search.curvature import Curvature
from ckptguard.search.damage import Rates, damage_table
from ckptguard.search.frontier import Strength, TensorDamage
from ckptguard.search.restoring import LEVEL_BYTES, Known, joint_damage, sum_bits
from ckptguard.search.trials import POSTERIOR, RANGE, Stored
from ckptguard.spec import Spec

METADATA_COPIES = 2
WORST = 100.0
"""What one flip can cost at most, in units of the loss; the models of most are at chance with less.

The squared error of a flip in a leading exponent bit is 1e70 and more. Of what a code that can fail leaves of that, no
other bit would be seen.
"""

_BITS_PER_METADATA_BYTE = 8 * METADATA_COPIES * CODEWORD_BYTES // MESSAGE_BYTES
"""Metadata lies armoured at both ends of a container."""
_ENTRY_BITS = 8 * ENTRY_BYTES


@dataclass(frozen=True)
class Problem:
    """Everything that methods choose masks from.

    Attributes:
        encodings: stored words by tensor.
        faults: by tensor.
        codes: specs to choose from; the first is the default of the mask set.
        shards: names of the tensors of every file, as a container stores them.
    """

    encodings: Mapping[str, Encoding]
    faults: Mapping[str, Fault]
    stored: Stored
    codes: tuple[str, ...]
    curvature: Curvature
    shapes: Mapping[str, tuple[int, ...]]
    shards: Sequence[Sequence[str]]

    @cached_property
    def guards(self) -> Guards:
        """The range guards that readers have; without entries where the model is stored without."""
        return Guards(self.encodings, self.shapes, TENSOR if self.stored.guard == RANGE else NO_GUARD)

    @cached_property
    def rates(self) -> dict[str, Rates]:
        """By tensor."""
        return {name: Rates.of(self.faults[name]) for name in self.encodings}

    @cached_property
    def table(self) -> dict[str, tuple[float, ...]]:
        """Damage by tensor and bit position."""
        return damage_table(self.encodings, self.rates, self.curvature, self.guards)

    @cached_property
    def tensors(self) -> tuple[TensorDamage, ...]:
        """The same with what protection costs, in the order of the checkpoint."""
        return tuple(self._tensor(name, encoding) for name, encoding in self.encodings.items() if encoding.elements)

    def _tensor(self, name: str, encoding: Encoding) -> TensorDamage:
        rate = self.rates[name].worst
        worst = WORST * rate * encoding.elements
        damage = tuple(min(one, worst) if math.isfinite(one) else one for one in self.table[name])
        bare = TensorDamage(name, encoding.elements, damage, self.strengths(rate))
        weights, known = self.curvature.of(name, encoding.elements), self.known.get(name)
        if weights is None or known is None:
            return bare
        joint = joint_damage(encoding, known, self.rates[name], weights, self.table[name])
        common = min(self.curvature.common.get(name, 0.0), 1.0)
        levels = LEVEL_BYTES * _BITS_PER_METADATA_BYTE
        return replace(
            bare, joint=joint, sum_bits=sum_bits(encoding, self.shapes[name]), level_bits=levels, common=common
        )

    @cached_property
    def known(self) -> dict[str, Known]:
        """Of the tensors that have restorers, where the model is stored with them."""
        if self.stored.guard != POSTERIOR:
            return {}
        found = {name: Known.of(encoding, self.rates[name]) for name, encoding in self.encodings.items()}
        return {name: known for name, known in found.items() if known is not None}

    @cached_property
    def outliers(self) -> dict[str, Outliers]:
        """Of the tensors that have some, where the model is stored with restorers."""
        found = {name: known.outliers(self.encodings[name]) for name, known in self.known.items()}
        return {name: outliers for name, outliers in found.items() if outliers is not None}

    @property
    def restorers(self) -> dict[str, object]:
        """What the provenance of masks says of restorers; empty without them."""
        if self.stored.guard != POSTERIOR:
            return {}
        return {RESTORER: recorded({name: (self.rates[name].of_0, self.rates[name].of_1) for name in self.known})}

    @property
    def metadata_bits(self) -> int:
        """Stored bits of a mask per tensor, and of range guards, or of restorers, as a container has them.

        Row sums are no metadata, but coded as the weights are; their levels are paid for with them. Nor are outliers,
        but a restorer is never without, so they count here.
        """
        plain = sum(-(-encoding.bits // 8) for encoding in self.encodings.values())
        for names in self.shards:  # part 0 is the header of the safetensors file
            found = {index: self._posterior(name) for index, name in enumerate(names, 1) if name in self.known}
            plain += posteriors.stored_bytes(found, len(names) + 1)
        return plain * _BITS_PER_METADATA_BYTE + self.guards.bits(self.shards).stored + self._outlier_bits

    @property
    def _outlier_bits(self) -> int:
        """Of all outliers, coded by the default code."""
        coded = {name: 1 + self.strengths(self.rates[name].worst)[0].parity for name in self.outliers}
        return math.ceil(math.fsum(_ENTRY_BITS * one.entries * coded[name] for name, one in self.outliers.items()))

    def _posterior(self, name: str) -> Posterior:
        rates, outliers = self.rates[name], self.outliers.get(name)
        spread = self.known[name].spread
        return Posterior(rates.of_0, rates.of_1, spread, None, 0 if outliers is None else outliers.entries)

    def strengths(self, rate: float) -> tuple[Strength, ...]:
        """What the codes cost, and leave, at a bit error rate."""
        found = []
        for number, spec in enumerate(self.codes):
            named = None if number == 0 else spec
            parsed = Spec.parse(spec)
            if parsed.name == "ideal":
                priced = float(parsed.settings[0]) if parsed.settings else rate
                found.append(Strength(named, capacity_redundancy(priced)))
                continue
            code = codes.make(spec)
            if not code.redundancy:
                raise UsageError(f"code {spec!r} has no parity that corrects; a search needs one such as bch:8191,6722")
            found.append(Strength(named, code.redundancy, left_by(code, rate)))
        return tuple(found)


def left_by(code: codes.Code, rate: float) -> float:
    """Share of the flips of protected bits that a code leaves: those in codewords with more than t."""
    if rate <= 0:
        return 0.0
    failing = code.failure_probability(rate, code.n)
    flips = max(code.t + 1, code.n * rate)  # of a word that failed, about
    return min(1.0, failing * flips / (code.n * rate))


def faults_of(
    subject: Subject,
    ber: float | None = None,
    faults: str | None = None,
    device: Device | None = None,
    devices: DeviceMap | None = None,
) -> tuple[dict[str, Fault], str]:
    """The fault of every tensor, and in words; exactly one source, or the devices of a container itself."""
    names = list(subject.tensors)
    sources: list[design.Source] = []
    if ber is not None:
        sources += design.rate_sources([ber])
    if faults is not None:
        sources += design.fault_sources([faults])
    if device is not None:
        sources.append(design.device_source(device, device.name))
    if devices is not None:
        sources.append(design.map_source(devices.assign, subject.tensors, "devices"))
    if not sources and subject.devices and set(subject.devices) == set(names):
        sources.append(design.map_source(subject.devices.__getitem__, subject.tensors, "own devices"))
    if len(sources) != 1:
        raise UsageError("a search is for one storage: give a bit error rate, a device, or a device map")
    made = {glob: make(spec) for glob, spec in sources[0].faults.items()}
    found = assign(made, names, Scope())
    silent = [name for name in names if name not in found]
    if silent:
        raise UsageError(f"no fault is given for {silent[0]!r} and {len(silent) - 1} more tensors")
    specs = sorted({fault.spec for fault in found.values()})
    return found, ", ".join(specs[:3]) + (f" and {len(specs) - 3} more" if len(specs) > 3 else "")


def finite_total(damages: Sequence[float]) -> float:
    """Their sum, without those that are not known."""
    return math.fsum(damage for damage in damages if math.isfinite(damage))
