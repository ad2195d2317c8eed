"""How time and memory grow with the size of the checkpoint."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.commands import Run, ckptguard
from benchmarks.machine import Limits
from benchmarks.measure import Row

GROUP = "growth"
SIZES = (64 << 20, 256 << 20, 1 << 30, 4 << 30)
RUNS = {64 << 20: 5, 256 << 20: 3, 1 << 30: 4}  # more where the start of the process, which varies, is most of a run


def rows(limits: Limits, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Seconds and largest memory of four commands at growing sizes, all threads; the quickest of several runs."""
    found: dict[str, list[tuple[int, Run]]] = {}
    threads = len(os.sched_getaffinity(0))
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as name:
            folder = Path(name)
            plain, container, bad = folder / "a.safetensors", folder / "a.ckg", folder / "bad.ckg"
            checkpoints.write(plain, size)
            steps: list[tuple[str, list[str | Path]]] = [
                ("protect", ["protect", plain, "-o", container, "--bits", "9", "--force"]),
                ("corrupt", ["corrupt", container, "-o", bad, "--ber", "1e-4", "--seed", "1", "--force"]),
                ("check", ["check", container]),
                ("restore", ["restore", bad, "-o", folder / "out.safetensors", "--force"]),
            ]
            for key, arguments in steps:
                several = [ckptguard(*arguments, jobs=threads) for _ in range(RUNS.get(size, 2))]
                found.setdefault(key, []).append((size, min(several, key=lambda run: run.user)))
    result = []
    for key, runs in found.items():
        (small, first), (middle, second), (large, last) = runs[0], runs[-2], runs[-1]
        grown = (last.user - second.user) / (large - middle) / ((second.user - first.user) / (middle - small))
        listed = "; ".join(
            f"{size / 2**20:.0f} MiB: {run.wall:.2f} s on the clock, {run.user:.2f} s of user time, "
            f"{run.memory / 2**20:.0f} MiB of memory"
            for size, run in runs
        )
        result.append(
            Row(
                GROUP,
                f"{key}: user time of a byte between {middle / 2**30:.0f} and {large / 2**30:.0f} GiB over one before",
                "x",
                grown,
                grown,
                1.25,
                bound="linear: 1",
                threads=threads,
                note=listed,
                at_most=True,
            )
        )
    return result
