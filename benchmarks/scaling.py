"""What a second thread brings."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.codes import LONG, TOP_NINE
from benchmarks.machine import Limits, wall
from benchmarks.measure import ROUNDS, Contender, Row, interleaved
from ckptguard import codes
from ckptguard.channels import make as make_channel
from ckptguard.channels.base import NoiseKey

GROUP = "scaling"


def rows(limits: Limits, rounds: int = ROUNDS) -> list[Row]:
    """Two threads on units of their own over one thread on the same units, on the clock."""
    code = codes.make(LONG)
    rng = np.random.default_rng(20)
    units = [rng.integers(0, 1 << 64, 512 * code.unit_tiles(18), np.uint64) for _ in range(8)]
    parities = [code.encode(unit, TOP_NINE) for unit in units]
    channel = make_channel("bsc:0.001")
    bad = [(unit.copy(), parity.copy()) for unit, parity in zip(units, parities, strict=True)]
    for pair in bad:
        for array in pair:
            channel.corrupt(array.view(np.uint8), 0, NoiseKey(21))

    def encode(given: tuple[Any, Any]) -> object:
        return code.encode(given[0], TOP_NINE)

    def decode(given: tuple[Any, Any]) -> object:
        return code.decode(given[0], TOP_NINE, given[1])

    result = []
    with ThreadPoolExecutor(2) as pool:
        for name, function in (("encode", encode), ("decode at 0.001", decode)):

            def fresh() -> list[tuple[Any, Any]]:
                return [(words.copy(), parity.copy()) for words, parity in bad]

            def alone(tasks: Any, function: Any = function) -> None:
                for task in tasks:
                    function(task)

            def together(tasks: Any, function: Any = function) -> None:
                for _ in pool.map(function, tasks):
                    pass

            timings = interleaved(
                [Contender("1", alone, 1, fresh, wall), Contender("2", together, 1, fresh, wall)], rounds
            )
            ratios = [one / two for one, two in zip(timings["1"].seconds, timings["2"].seconds, strict=True)]
            result.append(
                Row(
                    GROUP,
                    f"BCH(8191,6722) {name} of whole units, two threads over one",
                    "x",
                    timings["2"].times(timings["1"]),
                    max(ratios),
                    bound="kernels hold no lock and share nothing: 2, less what else the machine does",
                    threads=2,
                    note=f"load average {os.getloadavg()[0]:.1f}",
                )
            )
    return result
