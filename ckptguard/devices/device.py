"""A device: a place where part of a checkpoint is stored, and what it does to bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptguard import channels
from ckptguard.errors import SpecError
from ckptguard.spec import suggestion

_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Device:
    """One device at one operating point.

    Attributes:
        name: of letters, digits, dots, underscores and hyphens.
        profile: the profile it was made from, or None.
        operating_point: parameters of the profile, in its units.
        channel: canonical spec of a channel, or None where nothing is known of the device.
        source: where its numbers come from; empty where the user gave the channel.
        confidence: A = read in primary code or data, B = read in an abstract or excerpt, C = from the literature, not
            read again, D = an engineering default; empty where the user gave the channel.
    """

    name: str
    profile: str | None = None
    operating_point: Mapping[str, float] = field(default_factory=dict, hash=False)
    channel: str | None = None
    source: str = ""
    confidence: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise SpecError(f"a device's name has letters, digits, '.', '_' and '-' only, not {self.name!r}")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` gives an equal device for."""
        return {
            "name": self.name,
            "profile": self.profile,
            "operating_point": dict(self.operating_point),
            "channel": self.channel,
            "source": self.source,
            "confidence": self.confidence,
        }

    @classmethod
    def from_json(cls, value: object) -> Device:
        """Read what `to_json` gave, holding every key and type against it; raise SpecError."""
        if not isinstance(value, dict):
            raise SpecError(f"a device is a JSON object, not {type(value).__name__}")
        require_keys(value, ("name", "profile", "operating_point", "channel", "source", "confidence"), "a device")
        name, source, confidence = (_text(value, key) for key in ("name", "source", "confidence"))
        profile, channel = (None if value.get(key) is None else _text(value, key) for key in ("profile", "channel"))
        point = value.get("operating_point", {})
        if not isinstance(point, dict):
            raise SpecError(f"operating_point of device {name!r} is an object, not {type(point).__name__}")
        numbers = {str(key): number(entry, f"{key} of device {name!r}") for key, entry in point.items()}
        spec = None if channel is None else channels.make(channel).spec
        return cls(name, profile, numbers, spec, source, confidence)


def require_keys(value: Mapping[str, object], known: tuple[str, ...], what: str) -> None:
    """Refuse keys that are not known."""
    for key in value:
        if key not in known:
            raise SpecError(f"{what} has no key {key!r}{suggestion(str(key), known)}; known: {', '.join(known)}")


def number(value: object, what: str) -> float:
    """Read a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise SpecError(f"{what} is a finite number, not {value!r}")
    return float(value)


def _text(value: Mapping[str, object], key: str) -> str:
    text = value.get(key, "")
    if not isinstance(text, str):
        raise SpecError(f"{key} of a device is a string, not {text!r}")
    return text
