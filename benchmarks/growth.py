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


def rows(limits: Limits, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Seconds and largest memory of four commands at growing sizes, all threads."""
    found: dict[str, list[tuple[int, Run]]] = {}
    threads = len(os.sched_getaffinity(0))
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as name:
            folder = Path(name)
            plain, container, bad = folder / "a.safetensors", folder / "a.ckg", folder / "bad.ckg"
            checkpoints.write(plain, size)
            steps: list[tuple[str, list[str | Path]]] = [
                ("protect", ["protect", plain, "-o", container, "--bits", "9"]),
                ("corrupt", ["corrupt", container, "-o", bad, "--ber", "1e-4", "--seed", "1"]),
                ("check", ["check", container]),
                ("restore", ["restore", bad, "-o", folder / "out.safetensors"]),
            ]
            for key, arguments in steps:
                found.setdefault(key, []).append((size, ckptguard(*arguments, jobs=threads)))
    result = []
    for key, runs in found.items():
        (small, first), (large, last) = runs[-2], runs[-1]
        grown = (last.wall / first.wall) / (large / small)
        listed = "; ".join(
            f"{size / 2**20:.0f} MiB: {run.wall:.2f} s, {run.memory / 2**20:.0f} MiB" for size, run in runs
        )
        result.append(
            Row(
                GROUP,
                f"{key}: time per byte at {large / 2**30:.0f} GiB over that at {small / 2**30:.0f} GiB",
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
