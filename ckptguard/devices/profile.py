"""Device profiles: what is known of a kind of device, as data with units, source and confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any

from ckptguard import channels
from ckptguard.devices.device import Device, require_keys
from ckptguard.devices.expression import Expression
from ckptguard.devices.sheet import Parameter, Sheet, operating_point, sheets
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

FOLDER = "profiles"


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


def profiles() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    return tuple(sorted(sheets(FOLDER)))


@lru_cache(maxsize=64)
def load_profile(name: str) -> Profile:
    """Return a profile by its name; an unknown name lists the known ones."""
    return parse_profile(name, look_up(sheets(FOLDER), name, "device profile"))


def parse_profile(name: str, text: str) -> Profile:
    """Read a profile from TOML text; raise SpecError where it is not one."""
    sheet = Sheet.parse(name, text, "profile", ("summary", "group", "channel"), ("quantities",))
    look_up(GROUPS, sheet.data["group"], f"group of {sheet.what}")
    made = Profile(
        name,
        sheet.data["summary"],
        sheet.data["group"],
        sheet.data["channel"],
        sheet.parameters,
        _quantities(sheet.data.get("quantities", {}), sheet.parameters, sheet.what),
        sheet.presets,
        sheet.data["source"],
        sheet.data["confidence"],
        sheet.notes,
    )
    needed = {field for _, field, _, _ in Formatter().parse(made.channel) if field is not None}
    require_keys(dict.fromkeys(sorted(needed)), (*made.parameters, *made.quantities), f"the channel of {sheet.what}")
    return made


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
