"""Device profiles: what is known of a kind of device, as data with units, source and confidence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import prod
from typing import Any

from ckptguard import channels
from ckptguard.devices.device import Device, number, require_keys
from ckptguard.errors import SpecError
from ckptguard.spec import look_up, suggestion

_SUFFIX = ".toml"


@dataclass(frozen=True)
class Parameter:
    """One coordinate of an operating point.

    Attributes:
        name, meaning, unit: what it is.
        default: taken where nothing is said.
        least, most: between which the profile holds.
    """

    name: str
    meaning: str
    unit: str
    default: float
    least: float
    most: float


@dataclass(frozen=True)
class Term:
    """coefficient * product of parameter ** power."""

    coefficient: float
    powers: Mapping[str, float]

    def at(self, point: Mapping[str, float]) -> float:
        """Its value at an operating point; 0 ** 0 is 1."""
        return float(self.coefficient * prod(point[name] ** power for name, power in self.powers.items()))


@dataclass(frozen=True)
class Profile:
    """A channel whose parameters follow from an operating point.

    Attributes:
        name, summary, notes: what it is, and what it is not.
        channel: spec with a quantity in braces for each number, `bsc:{rate}`.
        parameters: by name.
        quantities: by name, each the sum of its terms.
        presets: named operating points, possibly incomplete.
        source, confidence: see `Device`.
    """

    name: str
    summary: str
    channel: str
    parameters: Mapping[str, Parameter]
    quantities: Mapping[str, tuple[Term, ...]]
    presets: Mapping[str, Mapping[str, float]]
    source: str
    confidence: str
    notes: str

    def at(self, preset: str | None = None, **values: float) -> Device:
        """The device at an operating point, as in `profile.at(pe=3000, days=365)`; see `at_point`."""
        return self.at_point(values, preset)

    def at_point(self, values: Mapping[str, float], preset: str | None = None) -> Device:
        """The device at an operating point: defaults, then the preset's values, then the given ones.

        Numbers in the channel's spec are rounded to 12 digits, so that they do not depend on the mathematics library.

        Raises:
            SpecError: for an unknown preset or parameter, or a value outside the range the profile holds in.
        """
        point = {name: parameter.default for name, parameter in self.parameters.items()}
        if preset is not None:
            point |= look_up(self.presets, preset, f"preset of profile {self.name!r}")
        for name, value in values.items():
            point[name] = self._within(name, value)
        numbers = {name: sum(term.at(point) for term in terms) for name, terms in self.quantities.items()}
        try:
            spec = channels.make(
                self.channel.format_map({name: f"{value:.12g}" for name, value in numbers.items()})
            ).spec
        except SpecError as error:
            raise SpecError(f"profile {self.name!r} does not hold at {point}: {error}") from error
        return Device(self.name, self.name, point, spec, self.source, self.confidence)

    def _within(self, name: str, value: float) -> float:
        if name not in self.parameters:
            known = ", ".join(sorted(self.parameters)) or "none"
            raise SpecError(
                f"profile {self.name!r} has no parameter {name!r}{suggestion(name, self.parameters)}; known: {known}"
            )
        parameter = self.parameters[name]
        value = number(value, f"{name} of profile {self.name!r}")
        if not parameter.least <= value <= parameter.most:
            raise SpecError(
                f"{name} = {value:g} {parameter.unit} is outside the range {parameter.least:g} .. {parameter.most:g} "
                f"that profile {self.name!r} holds in"
            )
        return value


def profiles() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    return tuple(sorted(_texts()))


@lru_cache(maxsize=64)
def load_profile(name: str) -> Profile:
    """Return a profile by its name; an unknown name lists the known ones."""
    return parse_profile(name, look_up(_texts(), name, "device profile"))


def parse_profile(name: str, text: str) -> Profile:
    """Read a profile from TOML text; raise SpecError where it is not one."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"profile {name!r} is not TOML: {error}") from error
    what = f"profile {name!r}"
    texts = ("summary", "channel", "source", "confidence")
    require_keys(data, (*texts, "notes", "parameters", "quantities", "presets"), what)
    for key in texts:
        if not isinstance(data.get(key), str) or not data[key]:
            raise SpecError(f"{what} needs a text {key!r}")
    if data["confidence"] not in ("A", "B", "C", "D"):
        raise SpecError(f"confidence of {what} is A, B, C or D, not {data['confidence']!r}")
    parameters = {key: _parameter(key, entry, what) for key, entry in data.get("parameters", {}).items()}
    quantities = {
        key: tuple(_term(entry, parameters, f"{key} of {what}") for entry in entries)
        for key, entries in data.get("quantities", {}).items()
    }
    plain = Profile(
        name, data["summary"], data["channel"], parameters, quantities, {}, data["source"], data["confidence"], ""
    )
    presets = {
        key: {parameter: plain._within(parameter, value) for parameter, value in entry.items()}
        for key, entry in data.get("presets", {}).items()
    }
    return Profile(
        name,
        data["summary"],
        data["channel"],
        parameters,
        quantities,
        presets,
        data["source"],
        data["confidence"],
        data.get("notes", "").strip(),
    )


def _parameter(name: str, entry: dict[str, Any], what: str) -> Parameter:
    require_keys(entry, ("meaning", "unit", "default", "range"), f"parameter {name!r} of {what}")
    least, most = (number(value, f"range of {name!r} of {what}") for value in entry["range"])
    default = number(entry["default"], f"default of {name!r} of {what}")
    if not least <= default <= most:
        raise SpecError(f"default of {name!r} of {what} is outside its range")
    return Parameter(name, entry["meaning"], entry["unit"], default, least, most)


def _term(entry: dict[str, Any], parameters: Mapping[str, Parameter], what: str) -> Term:
    require_keys(entry, ("coefficient", "powers"), what)
    powers = {name: number(power, f"power of {name!r} in {what}") for name, power in entry.get("powers", {}).items()}
    require_keys(powers, tuple(parameters), f"a term of {what}")
    return Term(number(entry["coefficient"], f"a coefficient of {what}"), powers)


@lru_cache(maxsize=1)
def _texts() -> Mapping[str, str]:
    folder = files("ckptguard.devices") / "profiles"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)]
    return {entry.name.removesuffix(_SUFFIX): entry.read_text(encoding="utf-8") for entry in found}
