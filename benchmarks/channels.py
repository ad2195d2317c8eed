"""The binary symmetric channel in place."""

from __future__ import annotations

import numpy as np

from benchmarks.machine import Limits
from benchmarks.measure import ROUNDS, Contender, Row, interleaved, speed_row
from ckptguard.channels import make
from ckptguard.channels.base import NoiseKey

GROUP = "channels"


def rows(limits: Limits, rounds: int = ROUNDS) -> list[Row]:
    """BSC at three rates, and numpy's way to do it."""
    data = np.zeros(64 << 20, np.uint8)
    few = np.zeros(1 << 20, np.uint8)
    rng = np.random.default_rng(12)
    result = []
    for p, goal in ((1e-2, 2.0), (1e-3, 6.0), (1e-4, None)):
        channel = make(f"bsc:{p!r}")
        part = data[: 16 << 20] if p > 5e-3 else data

        def numpy(_: None, p: float = p) -> None:
            few[:] ^= np.packbits(rng.random(8 * few.size) < p)

        timings = interleaved(
            [
                Contender("ours", lambda _, c=channel, d=part: c.corrupt(d, 0, NoiseKey(1)), part.size),  # type: ignore[misc]
                Contender("numpy", numpy, few.size),
            ],
            rounds,
        )
        flips = 8 * p
        result.append(
            speed_row(
                GROUP,
                f"BSC sampling at {p:g}",
                timings["ours"],
                goal,
                [(timings["numpy"], 200.0 if goal else None)],
                bound=f"{1 / flips:.0f} bytes per flip; at one flip in 12 cycles: {limits.cycles(12, 1 / flips)}; "
                f"RAM {limits.memcpy / 1e9:.1f} GB/s",
            )
        )
    return result
