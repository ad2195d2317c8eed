"""Faults as users name them, and the part of the stored bits that they may hit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ckptguard import channels
from ckptguard.campaign import analog
from ckptguard.campaign.encodings import Encoding
from ckptguard.channels.asymmetric import Asymmetric
from ckptguard.channels.bsc import Bsc
from ckptguard.channels.noise import probability
from ckptguard.devices import Device
from ckptguard.errors import SpecError, UsageError
from ckptguard.spec import Spec, suggestion

RATES, COUNT, ZERO, GAUSSIAN, CHANNEL = "rates", "count", "zero", "gaussian", "channel"
ANALOG = analog.NAME

FIELDS = ("sign", "exponent", "fraction")

_OWN = (ANALOG, "flips", "gaussian", "single", "stuck0", "stuck1", "zero")


@dataclass(frozen=True)
class Fault:
    """What happens to stored bits.

    Attributes:
        spec: canonical; `make(spec)` gives an equal fault.
        kind: `rates`: bits are flipped independently, with one probability for a stored 0 and one for a stored 1;
            `count`: so many bits of all in scope; `zero`: stored words become zero; `gaussian`: noise on values;
            `analog`: what an analog array reads instead of values; `channel`: any other channel, on the stored bytes of
            every tensor.
        of_0, of_1: the probabilities of `rates`; both that of a word for `zero`.
        count: of flips, for `count`.
        sigma: for `gaussian`, of the tensor's largest magnitude.
    """

    spec: str
    kind: str
    of_0: float = 0.0
    of_1: float = 0.0
    count: int = 0
    sigma: float = 0.0

    @property
    def bit_error_rate(self) -> float | None:
        """Probability of a flip of a stored bit, the worse of 0 and 1; None for faults that are no rate of bits."""
        if self.kind == CHANNEL:
            return channels.make(self.spec).bit_error_rate
        return max(self.of_0, self.of_1) if self.kind == RATES else None


def make(spec: str) -> Fault:
    """The fault that `spec` names: every channel (`bsc:1e-3`, `asymmetric:p01,p10`, `burst:...`, `erasure:...`, ...),
    `flips:k` (exactly k), `single` (one), `stuck0:p` and `stuck1:p` (cells that only read 0, or 1), `zero:p` (words
    read as zero), `gaussian:sigma` (noise of sigma times the tensor's largest magnitude) and
    `analog:NAME[,@PRESET][,key=value...]` (what an analog array reads of values). Raises SpecError.
    """
    parsed = Spec.parse(spec)
    name, settings = parsed.name, parsed.settings
    if name not in _OWN:
        if name not in channels.KINDS:
            known = (*_OWN, *channels.KINDS)
            raise SpecError(f"unknown fault {name!r}{suggestion(name, known)}; known: {', '.join(sorted(known))}")
        return _of_channel(spec)
    if name == ANALOG:
        return Fault(analog.canonical(spec), ANALOG)
    if name == "single":
        _require(not settings, spec, "single")
        return Fault("single", COUNT, count=1)
    _require(len(settings) == 1, spec, f"{name}:{'k' if name == 'flips' else 'p' if name != 'gaussian' else 'sigma'}")
    if name == "flips":
        _require(settings[0].isascii() and settings[0].isdecimal(), spec, "flips:k with a whole number k")
        return Fault(f"flips:{int(settings[0])}", COUNT, count=int(settings[0]))
    if name == "gaussian":
        sigma = _number(settings[0], spec)
        return Fault(f"gaussian:{sigma!r}", GAUSSIAN, sigma=sigma)
    p = probability(settings[0], f"p of fault {name!r}")
    if name == "zero":
        return Fault(f"zero:{p!r}", ZERO, p, p)
    of_0, of_1 = (0.0, p) if name == "stuck0" else (p, 0.0)
    return Fault(f"{name}:{p!r}", RATES, of_0, of_1)


def of_devices(devices: Mapping[str, Device]) -> dict[str, Fault]:
    """By tensor, what the device does that it lies on. Raises UsageError for a device without a channel."""
    found = {}
    for name, device in devices.items():
        if device.channel is None:
            raise UsageError(
                f"nothing is known of the device {device.name!r} that {name!r} lies on; name a fault for it"
            )
        found[name] = make(device.channel)
    return found


def _of_channel(spec: str) -> Fault:
    channel = channels.make(spec)
    if isinstance(channel, Bsc):
        return Fault(channel.spec, RATES, channel.p, channel.p)
    if isinstance(channel, Asymmetric):
        return Fault(channel.spec, RATES, channel.p01, channel.p10)
    return Fault(channel.spec, CHANNEL)


def _require(holds: bool, spec: str, form: str) -> None:
    if not holds:
        raise SpecError(f"{spec!r}: this fault is written {form}")


def _number(text: str, spec: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    _require(0.0 <= value < math.inf, spec, "gaussian:sigma with a number of at least 0")
    return value


@dataclass(frozen=True)
class Scope:
    """Which stored bits faults may hit; those that pass all three conditions.

    Parity is hit only where no bits and no fields are named, and then that of streams with a tensor in scope.

    Attributes:
        tensors: globs.
        bits: positions in the words, 0 = most significant; None = all.
        fields: of the words: `sign`, `exponent`, `fraction`; None = all. Unsigned integers are fraction only; bytes of
            packed 4- and 6-bit floats have none of them.
    """

    tensors: tuple[str, ...] = ("*",)
    bits: tuple[int, ...] | None = None
    fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for one in self.fields or ():
            if one not in FIELDS:
                raise UsageError(f"unknown field {one!r}{suggestion(one, FIELDS)}; known: {', '.join(FIELDS)}")
        for bit in self.bits or ():
            if not 0 <= bit < 64:
                raise UsageError(f"bit positions are 0 (most significant) to 63, not {bit}")

    @property
    def whole_words(self) -> bool:
        """Whether every bit of a tensor in scope may be hit."""
        return self.bits is None and self.fields is None

    def holds(self, tensor: str) -> bool:
        """Whether a tensor is in scope."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.tensors)

    def planes(self, encoding: Encoding) -> tuple[int, ...]:
        """Positions of the bits of a tensor's words that are in scope, ascending."""
        planes = set(range(encoding.bits))
        if self.bits is not None:
            planes &= set(self.bits)
        if self.fields is not None:
            sign, exponent = encoding.fields()
            kinds = {
                "sign": range(sign),
                "exponent": range(sign, sign + exponent),
                "fraction": range(sign + exponent, encoding.bits if sign >= 0 else 0),
            }
            planes &= {plane for one in self.fields for plane in kinds[one]}
        return tuple(sorted(planes))

    def to_json(self) -> dict[str, Any]:
        """A record that `from_json` gives an equal scope for."""
        return {
            "tensors": list(self.tensors),
            "bits": None if self.bits is None else list(self.bits),
            "fields": None if self.fields is None else list(self.fields),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scope:
        """Inverse of `to_json`."""
        bits, fields = record["bits"], record["fields"]
        return cls(
            tuple(record["tensors"]), None if bits is None else tuple(bits), None if fields is None else tuple(fields)
        )


def assign(faults: Fault | Mapping[str, Fault], tensors: Sequence[str], scope: Scope) -> dict[str, Fault]:
    """The fault of every tensor in scope that has one, in the order given.

    Args:
        faults: one for all, or by tensor: names, or globs of which the first that matches counts.
    Raises:
        UsageError: a name or glob of `faults` or of the scope matches no tensor.
    """
    given = {"*": faults} if isinstance(faults, Fault) else faults
    globs = [pattern for pattern in given if set(pattern) & set("*?[")]
    found: dict[str, Fault] = {}
    for name in tensors:
        if scope.holds(name):
            pattern = name if name in given else next((one for one in globs if fnmatchcase(name, one)), None)
            if pattern is not None:
                found[name] = given[pattern]
    known = set(tensors)
    for pattern in (*given, *scope.tensors):
        if known and pattern not in known and not any(fnmatchcase(name, pattern) for name in tensors):
            raise UsageError(f"{pattern!r} matches no tensor{suggestion(pattern, tensors)}")
    return found
