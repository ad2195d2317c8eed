"""How tensors are stored: their own bits, or coarser numbers with fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ckptguard.errors import SpecError
from ckptguard.representations.base import Losses, Representation, Selection
from ckptguard.representations.fixed import FixedPoint
from ckptguard.representations.native import Native
from ckptguard.spec import Spec, look_up

__all__ = ["KINDS", "FixedPoint", "Losses", "Native", "Representation", "Selection", "make", "register"]

KINDS: dict[str, Callable[[tuple[str, ...]], Representation]] = {
    "native": Native.from_settings,
    "fixed": FixedPoint.from_settings,
    "q": FixedPoint.from_q_settings,
}
"""Constructors by name, each called with the settings of a spec."""


@lru_cache(maxsize=256)
def make(spec: str) -> Representation:
    """The representation that `spec` names, such as `native` or `fixed:8,sign-magnitude`. Raises SpecError."""
    parsed = Spec.parse(spec)
    return look_up(KINDS, parsed.name, "representation")(parsed.settings)


def register(name: str, kind: Callable[[tuple[str, ...]], Representation]) -> None:
    """Add a representation of one's own to those `make` knows. Raises SpecError where the name is taken."""
    if name in KINDS:
        raise SpecError(f"the representation {name!r} exists already; choose another name")
    KINDS[name] = kind
