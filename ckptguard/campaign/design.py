"""What a campaign tries: points (faults at a place), variants (encodings and protections), when it stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import xxhash

from ckptguard.campaign.faults import Scope, make
from ckptguard.campaign.variants import Variant
from ckptguard.devices import Device
from ckptguard.errors import UsageError

DEFAULT_TRIALS = 59
"""As many as the statement "95 % of devices keep at least the worst seen, with 95 % confidence" needs (Wilks)."""
MAX_TRIALS = 1000
ROUND = 8
"""Trials between two looks at a stopping rule; fixed, so that the number of workers decides nothing."""


@dataclass(frozen=True)
class Point:
    """Faults of one kind and rate, at one place.

    Attributes:
        id: `p00`, `p01`, ...: sorts as the points do.
        label: of the faults, for people: `1e-03`, or an operating point.
        ber: probability that a stored bit flips, where one number says it all, else None.
        faults: glob or name of tensors -> spec of their fault; a name counts before globs, then the first that matches.
        device: as `Device.to_json()` gives it, where the faults are those of a device profile.
        scope: which tensors and bits may be hit.
        group: `all`, `layer:NAME`, `bit:J`, or both, joined by a blank.
    """

    id: str
    label: str
    ber: float | None
    faults: Mapping[str, str]
    device: Mapping[str, Any] | None = None
    scope: Scope = field(default_factory=Scope)
    group: str = "all"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "id": self.id,
            "label": self.label,
            "ber": self.ber,
            "faults": dict(self.faults),
            "device": None if self.device is None else dict(self.device),
            "scope": self.scope.to_json(),
            "group": self.group,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Point:
        """Inverse of `to_json`."""
        scope = Scope.from_json(record["scope"])
        head = record["id"], record["label"], record["ber"], record["faults"], record["device"]
        return cls(*head, scope, record["group"])


@dataclass(frozen=True)
class Source:
    """Faults without a place: what one rate, one spec or one operating point says."""

    label: str
    faults: Mapping[str, str]
    ber: float | None = None
    device: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Stop:
    """When a point needs no more trials: the interval of its mean is narrow enough, or the verdict is there.

    Attributes:
        rule: `halfwidth` or `verdict`.
        width: for `halfwidth`, in the units of the metric.
    """

    rule: str
    width: float | None = None

    @classmethod
    def parse(cls, text: str) -> Stop:
        """Read `halfwidth=0.5` or `verdict`."""
        name, equals, value = text.partition("=")
        if name == "verdict" and not equals:
            return cls("verdict")
        if name == "halfwidth" and equals:
            return cls("halfwidth", _positive(value, "--until halfwidth"))
        raise UsageError(f"--until {text!r}: expected halfwidth=WIDTH (in the metric's units) or verdict")

    def __str__(self) -> str:
        return self.rule if self.width is None else f"{self.rule}={self.width:g}"


def rates(text: str) -> tuple[float, ...]:
    """Error rates from `LO:HI`, `LO:HI:N` (equal steps of the logarithm, rounded) or `a,b,c`.

    Without N there is one rate per half decade, with one significant digit: 1e-6:1e-4 is 1e-6, 3e-6, 1e-5, 3e-5, 1e-4.
    """
    if ":" not in text:
        found = tuple(_rate(part) for part in text.split(","))
        if len(set(found)) < len(found):
            raise UsageError(f"--ber {text!r}: names a rate twice")
        return found
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise UsageError(f"--ber {text!r}: expected LO:HI, LO:HI:N or a list a,b,c")
    low, high = _rate(parts[0]), _rate(parts[1])
    if not 0 < low < high:
        raise UsageError(f"--ber {text!r}: expected 0 < LO < HI; a list (0,{high:g}) may hold 0")
    decades = math.log10(high / low)
    if len(parts) == 3:
        if not parts[2].strip().isdecimal() or int(parts[2]) < 2:
            raise UsageError(f"--ber {text!r}: N is {parts[2]!r}, expected a whole number of rates, at least 2")
        steps, digits = int(parts[2]) - 1, 2
        between = [low * 10 ** (decades * step / steps) for step in range(1, steps)]
    else:
        digits = 1
        between = [low * 10 ** (step / 2) for step in range(1, math.ceil(2 * decades - 1e-9))]
    inner = [rounded for rate in between if low < (rounded := float(f"{rate:.{digits - 1}e}")) < high]
    return (low, *dict.fromkeys(inner), high)


def rate_sources(values: Iterable[float]) -> list[Source]:
    """One source of flips per rate, every stored bit alike."""
    return [Source(_rate_label(rate), {"*": make(f"bsc:{rate!r}").spec}, ber=rate) for rate in values]


def fault_sources(specs: Iterable[str]) -> list[Source]:
    """One source per spec of a fault; for `bsc` its rate is known."""
    found = []
    for text in specs:
        spec = make(text).spec
        name, _, value = spec.partition(":")
        found.append(Source(spec, {"*": spec}, ber=float(value) if name == "bsc" else None))
    return found


def device_source(device: Device, label: str) -> Source:
    """The faults of a device at its operating point."""
    if device.channel is None:
        raise UsageError(f"device {device.name!r}: its channel is not known, so there is nothing to simulate")
    spec = make(device.channel).spec
    name, _, value = spec.partition(":")
    return Source(label, {"*": spec}, ber=float(value) if name == "bsc" else None, device=device.to_json())


def map_source(assign: Callable[[str], Device], tensors: Iterable[str], label: str) -> Source:
    """Faults per tensor, each those of the device it lies on."""
    assigned = {name: assign(name) for name in tensors}
    unknown = sorted({device.name for device in assigned.values() if device.channel is None})
    if unknown:
        raise UsageError(f"device {unknown[0]!r}: its channel is not known, so there is nothing to simulate")
    faults = {name: make(str(device.channel)).spec for name, device in assigned.items()}
    used = {device.name: device.to_json() for device in assigned.values()}
    return Source(label, faults, device={"name": label, "devices": list(used.values())})


def make_points(
    sources: Sequence[Source],
    tensors: Sequence[str],
    *,
    scope: Scope,
    groups: Mapping[str, Sequence[str]] | None = None,
    bits: Sequence[int] | None = None,
) -> tuple[Point, ...]:
    """Every source at every place.

    Args:
        tensors: names of those that `scope` and the campaign leave, for the check that there are some.
        scope: of all points.
        groups: name -> tensors; one place each (`--per-layer`).
        bits: positions; one place each (`--per-bit`).
    """
    if not sources:
        raise UsageError(
            "there are no faults to try: give --ber (1e-6:1e-2), --fault, --device with --operating-point, or --devices"
        )
    if not tensors:
        raise UsageError(f"no tensor matches {', '.join(scope.tensors)}, so there is nothing to hit")
    places: list[tuple[str, Scope]] = []
    for layer, names in (groups or {"": ()}).items():
        for bit in bits if bits is not None else (None,):
            label = " ".join([f"layer:{layer}"] * (groups is not None) + [f"bit:{bit}"] * (bit is not None))
            place = Scope(
                tuple(exactly(name) for name in names) if groups is not None else scope.tensors,
                scope.bits if bit is None else (bit,),
                scope.fields,
            )
            places.append((label or "all", place))
    width = max(2, len(str(len(sources) * len(places) - 1)))
    pairs = [(source, *place) for place in places for source in sources]
    return tuple(
        Point(f"p{index:0{width}d}", source.label, source.ber, source.faults, source.device, place, group)
        for index, (source, group, place) in enumerate(pairs)
    )


def layers(tensors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Tensors by layer: the name up to its last dot (`layer1.0.conv1` has weight and bias); in the order given."""
    found: dict[str, tuple[str, ...]] = {}
    for name in tensors:
        layer = name.rpartition(".")[0] or name
        found[layer] = (*found.get(layer, ()), name)
    return found


def exactly(name: str) -> str:
    """A glob that matches one name only."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def matching(tensors: Iterable[str], globs: Sequence[str]) -> tuple[str, ...]:
    """The names that match one of the globs; a glob that matches none is refused."""
    names = tuple(tensors)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            listed = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise UsageError(f"--tensors {glob!r}: matches no tensor; there are {listed}")
    return tuple(name for name in names if any(fnmatchcase(name, glob) for glob in globs))


def positions(text: str) -> tuple[int, ...]:
    """Bit positions from `0-8` or `0,1,5-7`; 0 is the most significant."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"--bits {text!r}: expected positions such as 0-8 or 0,1,5-7 (0 is the most significant)")
        found |= set(range(int(first), int(last or first) + 1))
    if max(found) > 63:
        raise UsageError(f"--bits {text!r}: words have at most 64 bits, 0 to 63")
    return tuple(sorted(found))


def refuse_equal_names(variants: Iterable[Variant]) -> None:
    """Refuse variants that could not be told apart in the results."""
    seen: set[str] = set()
    for variant in variants:
        if variant.name in seen:
            raise UsageError(f"two variants are named {variant.name!r}; give each a name=... of its own")
        seen.add(variant.name)


def encodings(variants: Sequence[Variant]) -> tuple[tuple[int, ...], ...]:
    """Indices of variants by representation: those of one share the weights that a session loads."""
    found: dict[str | tuple[tuple[str, str], ...], tuple[int, ...]] = {}
    for index, variant in enumerate(variants):
        found[variant.representation] = (*found.get(variant.representation, ()), index)
    return tuple(found.values())


def name_of(evaluator: object) -> str:
    """A spec, or the name of a function, of a class, or of that of an object."""
    if isinstance(evaluator, str):
        return evaluator
    kind: Any = evaluator if hasattr(evaluator, "__qualname__") else type(evaluator)
    return f"{kind.__module__}:{kind.__qualname__}"


def file_digests(evaluator: str) -> dict[str, str]:
    """The digests (XXH3-128, hex) of the files that an evaluator's spec names: its code, its data."""
    values = [value for piece in evaluator.split(",") for value in (piece, piece.rpartition("=")[2])]
    parts = [part for value in values for part in (value, value.rpartition(":")[0])]
    paths = dict.fromkeys(part for part in parts if part and Path(part).is_file())
    return {path: xxhash.xxh3_128_hexdigest(Path(path).read_bytes()) for path in paths}


def _rate(text: str) -> float:
    rate = _number(text, "--ber")
    if not 0 <= rate <= 1:
        raise UsageError(f"--ber {text.strip()}: a bit error rate lies between 0 and 1")
    return rate


def _rate_label(rate: float) -> str:
    return next(label for digits in range(17) if float(label := f"{rate:.{digits}e}") == rate)


def _positive(text: str, what: str) -> float:
    number = _number(text, what)
    if number <= 0:
        raise UsageError(f"{what} is {text!r}, expected a number above 0")
    return number


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{what} is {text.strip()!r}, expected a number")
    return number
