"""Settings of an evaluator, as users write them: `key=value,key=value`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckptguard.errors import SpecError
from ckptguard.spec import suggestion

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True)
class Settings:
    """The settings of one evaluator.

    Attributes:
        kind: whose they are.
        values: by key, as written.
        keys: the keys there are, each with its meaning.
    """

    kind: str
    values: Mapping[str, str]
    keys: Mapping[str, str]

    @classmethod
    def parse(cls, kind: str, text: str, keys: Mapping[str, str]) -> Settings:
        """Read `key=value,key=value`; a comma inside a value is written `\\,`.

        Raises SpecError: a part has no `=`, a key is unknown or given twice, a value is empty.
        """
        values: dict[str, str] = {}
        parts = re.split(r"(?<!\\),", text) if text.strip() else []
        for part in parts:
            key, equals, value = part.replace(r"\,", ",").partition("=")
            key, value = key.strip(), value.strip()
            if not equals or not value:
                raise SpecError(f"evaluator {kind!r}: {part.strip()!r} is not of the form key=value; {_known(keys)}")
            if key not in keys:
                raise SpecError(f"evaluator {kind!r} has no key {key!r}{suggestion(key, keys)}; {_known(keys)}")
            if key in values:
                raise SpecError(f"evaluator {kind!r}: {key!r} is given twice")
            values[key] = value
        return cls(kind, values, keys)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str, default: str | None = None) -> str:
        """The value of a key; SpecError where it is missing and has no default."""
        if key in self.values:
            return self.values[key]
        if default is None:
            raise SpecError(f"evaluator {self.kind!r} needs {key}=...: {self.keys[key]}")
        return default

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number not below `least`."""
        text = self.text(key, None if default is None else str(default))
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least:
            raise SpecError(f"evaluator {self.kind!r}: {key}={text} is no whole number of at least {least}")
        return int(text)

    def optional_integer(self, key: str, least: int = 1) -> int | None:
        """A whole number, or None where the key is not given."""
        return self.integer(key, least=least) if key in self else None

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        """One of some words."""
        text, choices = self.text(key, default), list(choices)
        if text not in choices:
            raise SpecError(
                f"evaluator {self.kind!r}: {key}={text}{suggestion(text, choices)}; known: {', '.join(choices)}"
            )
        return text

    def yes(self, key: str, default: bool = False) -> bool:
        """True for `yes`, False for `no`."""
        return self.choice(key, "yes" if default else "no", ("yes", "no")) == "yes"

    def shape(self, key: str) -> tuple[int, ...]:
        """A shape written `1x3x32x32`."""
        text = self.text(key)
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
            raise SpecError(f"evaluator {self.kind!r}: {key}={text} is no shape such as 1x3x32x32")
        return tuple(int(part) for part in text.split("x"))

    def size(self, key: str, default: str) -> int:
        """A number of bytes written `512MiB`, `2GB` or `1024`."""
        text = self.text(key, default)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
        if match is None or match[2].lower() not in _UNITS:
            raise SpecError(f"evaluator {self.kind!r}: {key}={text} is no size such as 512MiB")
        return int(float(match[1]) * _UNITS[match[2].lower()])


def _known(keys: Mapping[str, str]) -> str:
    return f"its keys are {', '.join(keys)}" if keys else "it takes no keys"
