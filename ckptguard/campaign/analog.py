"""Analog arrays as faults: `analog:NAME[,@PRESET][,key=value...]`, which change values and not stored bits."""

from __future__ import annotations

from functools import lru_cache

from ckptguard.devices import AnalogProfile, Device, load_analog_profile
from ckptguard.errors import SpecError
from ckptguard.spec import Spec

NAME = "analog"


@lru_cache(maxsize=64)
def read_spec(spec: str) -> tuple[AnalogProfile, tuple[tuple[str, float], ...]]:
    """The profile and its whole operating point. Raises SpecError."""
    name, *settings = Spec.parse(spec).settings or ("",)
    if not name:
        raise SpecError(f"{spec!r}: an analog array is written analog:NAME[,@PRESET][,key=value...]")
    preset: str | None = None
    point: dict[str, float] = {}
    for text in settings:
        key, equals, value = (part.strip() for part in text.partition("="))
        if text.startswith("@") and preset is None:
            preset = text[1:]
            continue
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or key in point or number != number:
            raise SpecError(f"{spec!r}: {text!r} is not of the form key=number or @PRESET, each once")
        point[key] = number
    profile = load_analog_profile(name)
    return profile, tuple(profile.point(point, preset).items())


def canonical(spec: str) -> str:
    """The spec with every parameter named."""
    profile, point = read_spec(spec)
    return ",".join([f"{NAME}:{profile.name}", *(f"{key}={value!r}" for key, value in sorted(point))])


def device(name: str, preset: str | None, point: dict[str, float]) -> Device:
    """An analog array at an operating point as a device of a campaign."""
    profile = load_analog_profile(name)
    whole = profile.point(point, preset)
    settings = [f"{key}={value!r}" for key, value in sorted(whole.items())]
    spec = canonical(",".join([f"{NAME}:{name}", *settings]))
    return Device(name, name, whole, spec, profile.source, profile.confidence)
