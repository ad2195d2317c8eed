"""What profiles of every kind have: TOML text with a summary, parameters with units, presets, source, confidence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from ckptguard.devices.device import number, require_keys
from ckptguard.errors import SpecError
from ckptguard.spec import look_up, suggestion

CONFIDENCES = ("A", "B", "C", "D")
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
class Sheet:
    """A profile as it was read.

    Attributes:
        what: kind and name, for messages.
        data: the whole table; its texts are there and not empty.
        parameters, presets: by name.
    """

    what: str
    data: Mapping[str, Any]
    parameters: Mapping[str, Parameter]
    presets: Mapping[str, Mapping[str, float]]

    @classmethod
    def parse(cls, name: str, text: str, kind: str, texts: tuple[str, ...], more: tuple[str, ...]) -> Sheet:
        """Read a profile.

        Args:
            texts: keys of texts that this kind has besides source and confidence; more: its other keys.
        Raises:
            SpecError: it is not TOML, or a key is unknown, missing, or not what it should be.
        """
        what = f"{kind} {name!r}"
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{what} is not TOML: {error}") from error
        texts = (*texts, "source", "confidence")
        require_keys(data, (*texts, *more, "notes", "parameters", "presets"), what)
        for key in texts:
            if not isinstance(data.get(key), str) or not data[key]:
                raise SpecError(f"{what} needs a text {key!r}")
        if data["confidence"] not in CONFIDENCES:
            raise SpecError(f"confidence of {what} is A, B, C or D, not {data['confidence']!r}")
        parameters = {key: _parameter(key, entry, what) for key, entry in data.get("parameters", {}).items()}
        return cls(what, data, parameters, _presets(name, parameters, data.get("presets", {})))

    @property
    def notes(self) -> str:
        """What else is to be said; may be empty."""
        return str(self.data.get("notes", "")).strip()


@lru_cache(maxsize=4)
def sheets(folder: str) -> Mapping[str, str]:
    """The texts of all profiles in a folder of this package, by name."""
    found = [entry for entry in (files("ckptguard.devices") / folder).iterdir() if entry.name.endswith(_SUFFIX)]
    return {entry.name.removesuffix(_SUFFIX): entry.read_text(encoding="utf-8") for entry in found}


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


def _presets(
    name: str, parameters: Mapping[str, Parameter], entries: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Named operating points of profile `name`, held to the ranges of its parameters."""
    return {
        preset: {key: _within(name, parameters, key, value) for key, value in entry.items()}
        for preset, entry in entries.items()
    }


def _parameter(name: str, entry: dict[str, Any], what: str) -> Parameter:
    """Read one `[parameters.name]` table."""
    require_keys(entry, ("meaning", "unit", "default", "range"), f"parameter {name!r} of {what}")
    least, most = (number(value, f"range of {name!r} of {what}") for value in entry["range"])
    default = number(entry["default"], f"default of {name!r} of {what}")
    if not least <= default <= most:
        raise SpecError(f"default of {name!r} of {what} is outside its range")
    return Parameter(name, entry["meaning"], entry["unit"], default, least, most)
