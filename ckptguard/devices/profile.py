"""Device profiles: what is known of a kind of device, as data with units, source and confidence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from string import Formatter
from typing import Any

from ckptguard import channels
from ckptguard.devices.device import Device, number, require_keys
from ckptguard.devices.expression import Expression
from ckptguard.errors import SpecError
from ckptguard.spec import look_up, suggestion

GROUPS = {
    "flash": "Flash memory and drives",
    "dram": "DRAM, of hosts and accelerators",
    "sram": "SRAM below its rated voltage",
    "resistive": "Resistive, phase-change, ferroelectric and magnetic memory",
    "disk": "Magnetic disks",
    "transport": "Networks",
    "radiation": "Radiation",
    "fixture": "Fixed points of comparison",
}
"""Kinds of media, in the order lists are in."""

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
class Profile:
    """A channel whose parameters follow from an operating point.

    Attributes:
        name, summary, notes: what it is, and what it is not.
        group: what kind of medium it is, as lists of profiles are ordered by; one of `GROUPS`.
        channel: spec with a parameter or quantity in braces for each number or list of numbers, `bsc:{rate}`.
        parameters: by name.
        quantities: by name, in order; a formula, or several for a list of numbers, of parameters and of the single
            quantities before it.
        presets: named operating points, possibly incomplete.
        source, confidence: see `Device`.
    """

    name: str
    summary: str
    group: str
    channel: str
    parameters: Mapping[str, Parameter]
    quantities: Mapping[str, tuple[Expression, ...]]
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
        point = operating_point(self.name, self.parameters, self.presets, values, preset)
        try:
            spec = channels.make(self.channel.format_map(self._texts(point))).spec
        except SpecError as error:
            raise SpecError(f"profile {self.name!r} does not hold at {point}: {error}") from error
        return Device(self.name, self.name, point, spec, self.source, self.confidence)

    def _texts(self, point: Mapping[str, float]) -> dict[str, str]:
        """Every parameter and quantity at a point, as the channel's spec has it."""
        known = dict(point)
        texts = {name: f"{value:.12g}" for name, value in point.items()}
        for name, formulas in self.quantities.items():
            values = [formula.at(known) for formula in formulas]
            if len(values) == 1:
                known[name] = values[0]
            texts[name] = "/".join(f"{value:.12g}" for value in values)
        return texts


def operating_point(
    name: str,
    parameters: Mapping[str, Parameter],
    presets: Mapping[str, Mapping[str, float]],
    values: Mapping[str, float],
    preset: str | None = None,
) -> dict[str, float]:
    """All parameters of profile `name`: defaults, then the preset's values, then the given ones, in their ranges."""
    point = {key: parameter.default for key, parameter in parameters.items()}
    if preset is not None:
        point |= look_up(presets, preset, f"preset of profile {name!r}")
    return point | {key: _within(name, parameters, key, value) for key, value in values.items()}


def _within(profile: str, parameters: Mapping[str, Parameter], name: str, value: float) -> float:
    if name not in parameters:
        known = ", ".join(sorted(parameters)) or "none"
        raise SpecError(f"profile {profile!r} has no parameter {name!r}{suggestion(name, parameters)}; known: {known}")
    parameter = parameters[name]
    value = number(value, f"{name} of profile {profile!r}")
    if not parameter.least <= value <= parameter.most:
        raise SpecError(
            f"{name} = {value:g} {parameter.unit} is outside the range {parameter.least:g} .. {parameter.most:g} "
            f"that profile {profile!r} holds in"
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
    texts = ("summary", "group", "channel", "source", "confidence")
    require_keys(data, (*texts, "notes", "parameters", "quantities", "presets"), what)
    for key in texts:
        if not isinstance(data.get(key), str) or not data[key]:
            raise SpecError(f"{what} needs a text {key!r}")
    look_up(GROUPS, data["group"], f"group of {what}")
    if data["confidence"] not in ("A", "B", "C", "D"):
        raise SpecError(f"confidence of {what} is A, B, C or D, not {data['confidence']!r}")
    parameters = {key: read_parameter(key, entry, what) for key, entry in data.get("parameters", {}).items()}
    plain = Profile(
        name,
        data["summary"],
        data["group"],
        data["channel"],
        parameters,
        _quantities(data.get("quantities", {}), parameters, what),
        {},
        data["source"],
        data["confidence"],
        data.get("notes", "").strip(),
    )
    needed = {field for _, field, _, _ in Formatter().parse(plain.channel) if field is not None}
    require_keys(dict.fromkeys(sorted(needed)), (*parameters, *plain.quantities), f"the channel of {what}")
    presets = read_presets(name, parameters, data.get("presets", {}))
    return replace(plain, presets=presets)


def read_presets(
    name: str, parameters: Mapping[str, Parameter], entries: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Named operating points of profile `name`, held to the ranges of its parameters."""
    return {
        preset: {key: _within(name, parameters, key, value) for key, value in entry.items()}
        for preset, entry in entries.items()
    }


def read_parameter(name: str, entry: dict[str, Any], what: str) -> Parameter:
    """Read one `[parameters.name]` table."""
    require_keys(entry, ("meaning", "unit", "default", "range"), f"parameter {name!r} of {what}")
    least, most = (number(value, f"range of {name!r} of {what}") for value in entry["range"])
    default = number(entry["default"], f"default of {name!r} of {what}")
    if not least <= default <= most:
        raise SpecError(f"default of {name!r} of {what} is outside its range")
    return Parameter(name, entry["meaning"], entry["unit"], default, least, most)


def _quantities(
    entries: dict[str, Any], parameters: Mapping[str, Parameter], what: str
) -> dict[str, tuple[Expression, ...]]:
    known = list(parameters)
    quantities = {}
    for name, entry in entries.items():
        formulas = entry if isinstance(entry, list) else [entry]
        if not formulas or not all(isinstance(formula, str) for formula in formulas):
            raise SpecError(f"{name} of {what} is a formula, as a string, or a list of formulas, not {entry!r}")
        if name in parameters:
            raise SpecError(f"{name} of {what} is a parameter already")
        quantities[name] = tuple(Expression.parse(formula) for formula in formulas)
        for needed in sorted(frozenset().union(*(formula.names for formula in quantities[name]))):
            if needed not in known:
                raise SpecError(f"{name} of {what}: unknown name {needed!r}{suggestion(needed, known)}")
        if len(formulas) == 1:
            known.append(name)
    return quantities


@lru_cache(maxsize=1)
def _texts() -> Mapping[str, str]:
    folder = files("ckptguard.devices") / "profiles"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)]
    return {entry.name.removesuffix(_SUFFIX): entry.read_text(encoding="utf-8") for entry in found}
