"""Error-correcting codes over the protected bits of a stream."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Protocol, cast

from ckptguard.codes.base import TILE_BYTES, TILE_WORDS, Code, Decoded, UnitLayout
from ckptguard.spec import Spec, look_up

__all__ = ["KINDS", "TILE_BYTES", "TILE_WORDS", "Code", "Decoded", "UnitLayout", "make"]

KINDS = {
    "bch": "ckptguard.codes.bch:Bch",
    "crc": "ckptguard.codes.crc:Crc",
    "none": "ckptguard.codes.none:NoCode",
    "secded": "ckptguard.codes.secded:SecDed",
}
"""Every kind of code and where its class is."""


class _Kind(Protocol):
    def from_settings(self, settings: tuple[str, ...]) -> Code: ...


@lru_cache(maxsize=256)
def make(spec: str) -> Code:
    """Return the code of a spec such as `bch:8191,6722`, `secded:72,64`, `crc` or `none`; raise SpecError."""
    parsed = Spec.parse(spec)
    module, _, name = look_up(KINDS, parsed.name, "code").partition(":")
    kind = cast(_Kind, getattr(import_module(module), name))
    return kind.from_settings(parsed.settings)
