"""Channels: what media do to stored bytes between writing and reading."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey
from ckptguard.spec import Spec, look_up

__all__ = ["BLOCK_BYTES", "KINDS", "Channel", "NoiseKey", "make"]

KINDS = {
    "asymmetric": "ckptguard.channels.asymmetric:Asymmetric",
    "bsc": "ckptguard.channels.bsc:Bsc",
    "burst": "ckptguard.channels.burst:Burst",
    "erasure": "ckptguard.channels.erasure:Erasure",
}
"""Every kind of channel and where its class is."""


class _Kind(Protocol):
    def from_settings(self, settings: tuple[str, ...]) -> Channel: ...


def make(spec: str) -> Channel:
    """Return the channel of a spec such as `bsc:1e-4` or `erasure:4096,1e-3,zeros`; raise SpecError."""
    parsed = Spec.parse(spec)
    module, _, name = look_up(KINDS, parsed.name, "channel").partition(":")
    kind = cast(_Kind, getattr(import_module(module), name))
    return kind.from_settings(parsed.settings)
