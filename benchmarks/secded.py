"""SEC-DED(72,64) against memcpy of the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.machine import Limits
from benchmarks.measure import ROUNDS, Contender, Row, interleaved, speed_row
from ckptguard import codes
from ckptguard.channels import make as make_channel
from ckptguard.channels.base import NoiseKey
from ckptguard.codes.lanes import LaneCode

GROUP = "SEC-DED"
ALL = (1 << 64) - 1


def rows(limits: Limits, rounds: int = ROUNDS, size: int = 64 << 20) -> list[Row]:
    """Rows of the group; `size` bytes of data, beyond the caches."""
    code = codes.make("secded:72,64")
    assert isinstance(code, LaneCode)
    unit = 512 * code.unit_tiles(64)
    rng = np.random.default_rng(8)
    data = rng.integers(0, 1 << 64, (size // 8 // unit, 64, unit // 64), np.uint64)
    parity = np.stack([code.encode_rows(one) for one in data])
    target = np.empty_like(data)
    channel = make_channel("bsc:0.001")
    bad = data.copy(), parity.copy()
    for place, array in enumerate(bad):
        channel.corrupt(array.reshape(-1).view(np.uint8), 0, NoiseKey(9, str(place)))

    def encode(_: None) -> None:
        for one in data:
            code.encode_rows(one)

    def check(_: None) -> None:
        for one, checks in zip(data, parity, strict=True):
            code.check_rows(one, checks)

    def decode(given: Any) -> None:
        for one, checks in zip(*given, strict=True):
            code.decode_rows(one, checks)

    timings = interleaved(
        [
            Contender("memcpy", lambda _: np.copyto(target, data), data.nbytes),
            Contender("encode", encode, data.nbytes),
            Contender("check", check, data.nbytes),
            Contender("decode", decode, data.nbytes, lambda: (bad[0].copy(), bad[1].copy())),
        ],
        rounds,
    )
    copy = timings["memcpy"]
    return [
        speed_row(
            GROUP,
            f"SEC-DED(72,64) {kind}",
            timings[kind],
            peers=[(copy, 0.9)],
            bound=f"26 row additions per 8 checks: one read of the data from RAM, {limits.read / 1e9:.1f} GB/s",
        )
        for kind in ("encode", "check")
    ] + [
        speed_row(
            GROUP,
            "SEC-DED(72,64) decode at 1e-3",
            timings["decode"],
            5.0,
            [(copy, None)],
            bound="the sums, and every row once more: 72 columns matched with 8 syndrome rows, 9 operations each",
        )
    ]
