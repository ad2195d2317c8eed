"""How time and memory grow with the size of the checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.commands import Run, ckptguard
from benchmarks.machine import Limits
from benchmarks.measure import Row

GROUP = "growth"
SIZES = (64 << 20, 256 << 20, 1 << 30, 4 << 30, 8 << 30)
RUNS = {64 << 20: 5, 256 << 20: 5, 1 << 30: 5}  # more where the start of the process, which varies, is much of a run


def rows(limits: Limits, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Seconds and largest memory of four commands at growing sizes, one thread; of several runs that of least time.

    A GiB between the two largest sizes is held against one between the third largest and the second: both differences
    are free of the start of the process. User time is free of the disk, and of pages that the system has to find.
    """
    found: dict[str, list[tuple[int, Run]]] = {}
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
                several = [ckptguard(*arguments, jobs=1) for _ in range(RUNS.get(size, 3))]
                found.setdefault(key, []).append((size, min(several, key=lambda run: run.user)))
    result = []
    for key, runs in found.items():
        (small, first), (middle, second), (large, last) = runs[-3:]
        grown = (last.user - second.user) / (large - middle) / ((second.user - first.user) / (middle - small))
        listed = "; ".join(
            f"{size / 2**20:.0f} MiB: {run.wall:.2f} s on the clock, {run.user:.2f} s of user time, "
            f"{run.memory / 2**20:.0f} MiB of memory"
            for size, run in runs
        )
        result.append(
            Row(
                GROUP,
                f"{key}: user time of a GiB from {middle / 2**30:.0f} to {large / 2**30:.0f} over one from "
                f"{small / 2**30:.0f} to {middle / 2**30:.0f}",
                "x",
                grown,
                grown,
                1.25,
                bound="linear: 1",
                note=listed,
                at_most=True,
            )
        )
    return result
