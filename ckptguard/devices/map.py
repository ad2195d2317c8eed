"""Which tensors lie on which device, as a user writes it down."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckptguard import channels
from ckptguard.devices.device import Device, require_keys
from ckptguard.devices.profile import load_profile
from ckptguard.errors import SpecError


@dataclass(frozen=True)
class DeviceMap:
    """Devices in order, each with the globs of its tensors; the first device that matches a tensor has it.

    Attributes:
        devices: names are all different.
        patterns: one tuple of globs per device (`fnmatch`, case matters).
    """

    devices: tuple[Device, ...]
    patterns: tuple[tuple[str, ...], ...]

    @classmethod
    def load(cls, path: str | Path) -> DeviceMap:
        """Read a TOML file of `[[device]]` tables; raise SpecError naming the file and what is wrong in it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: the device map cannot be read: {error}") from error
        try:
            return cls.parse(text)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> DeviceMap:
        """Read the text of a device map.

        Each `[[device]]` has `name`, `tensors` (a list of globs) and either `channel` (a spec) or `profile` (a name)
        with, optionally, `at` (a table of the profile's parameters, or `preset`).
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"not TOML: {error}") from error
        require_keys(data, ("device",), "a device map")
        entries = data.get("device")
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise SpecError("a device map has at least one [[device]] table")
        devices = tuple(_device(entry, f"device {place}") for place, entry in enumerate(entries, 1))
        names = [device.name for device in devices]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(f"two devices are named {name!r}; give each a name of its own")
        return cls(devices, tuple(tuple(entry["tensors"]) for entry in entries))

    def assign(self, tensor: str) -> Device:
        """The device a tensor lies on; a tensor that matches none is refused."""
        for device, patterns in zip(self.devices, self.patterns, strict=True):
            if any(fnmatchcase(tensor, pattern) for pattern in patterns):
                return device
        raise SpecError(f'tensor {tensor!r} matches no device; add one with tensors = ["*"] at the end for the rest')


def _device(entry: dict[str, Any], place: str) -> Device:
    require_keys(entry, ("name", "tensors", "profile", "channel", "at"), place)
    name, tensors = entry.get("name"), entry.get("tensors")
    if not isinstance(name, str):
        raise SpecError(f"{place} needs a name, a string of letters, digits, '.', '_' and '-'")
    if not isinstance(tensors, list) or not tensors or not all(isinstance(glob, str) and glob for glob in tensors):
        raise SpecError(f'device {name!r} needs tensors, a list of globs such as ["vision.*"]')
    if ("profile" in entry) == ("channel" in entry):
        raise SpecError(f"device {name!r} needs either a profile or a channel")
    if "channel" in entry:
        if "at" in entry:
            raise SpecError(f"device {name!r} has a channel, which has no operating point; 'at' goes with a profile")
        return Device(name, channel=channels.make(_text(entry, "channel", name)).spec)
    return replace(_at(entry, name), name=name)


def _at(entry: dict[str, Any], name: str) -> Device:
    values = entry.get("at", {})
    if not isinstance(values, dict):
        raise SpecError(f"'at' of device {name!r} is a table such as {{ days = 365 }}, not {values!r}")
    values = dict(values)
    preset = values.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise SpecError(f"preset of device {name!r} is a string, not {preset!r}")
    return load_profile(_text(entry, "profile", name)).at_point(values, preset)


def _text(entry: dict[str, Any], key: str, name: str) -> str:
    if not isinstance(entry[key], str):
        raise SpecError(f"{key} of device {name!r} is a string, not {entry[key]!r}")
    return str(entry[key])
