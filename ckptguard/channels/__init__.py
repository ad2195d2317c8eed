"""Channels: what media do to stored bytes between writing and reading."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Protocol, cast

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey
from ckptguard.spec import Spec, look_up

__all__ = ["BLOCK_BYTES", "KINDS", "Channel", "NoiseKey", "make"]

KINDS = {
    "asymmetric": "ckptguard.channels.asymmetric:Asymmetric",
    "bsc": "ckptguard.channels.bsc:Bsc",
    "burst": "ckptguard.channels.burst:Burst",
    "cluster": "ckptguard.channels.cluster:Cluster",
    "erasure": "ckptguard.channels.erasure:Erasure",
    "levelmap": "ckptguard.channels.levelmap:LevelMap",
    "stuck": "ckptguard.channels.stuck:Stuck",
}
"""Every kind of channel and where its class is."""


class _Kind(Protocol):
    def from_settings(self, settings: tuple[str, ...]) -> Channel: ...


_BETWEEN_PARTS = re.compile(r"\+(?=\s*[A-Za-z])")  # the plus of a number is followed by a digit


def make(spec: str) -> Channel:
    """Return the channel of a spec such as `bsc:1e-4` or `erasure:4096,1e-3,zeros`; raise SpecError.

    Specs joined by `+`, as in `bsc:1e-6+cluster:1e-7,2,8`, make one channel of all of them, the first one first.
    """
    parts = _BETWEEN_PARTS.split(spec)
    if len(parts) == 1:
        return _one(spec)
    from ckptguard.channels.composite import Composite

    return Composite(tuple(_one(part) for part in parts))


def _one(spec: str) -> Channel:
    parsed = Spec.parse(spec)
    module, _, name = look_up(KINDS, parsed.name, "channel").partition(":")
    kind = cast(_Kind, getattr(import_module(module), name))
    return kind.from_settings(parsed.settings)
