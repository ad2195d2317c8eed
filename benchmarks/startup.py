"""How long the command line takes before it does anything."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.commands import run
from benchmarks.machine import Limits
from benchmarks.measure import ROUNDS, Row
from ckptguard.pipeline.protect import protect

GROUP = "start-up"


def rows(limits: Limits, rounds: int = ROUNDS) -> list[Row]:
    """Processes of their own, files in the page cache; what `check` and `protect` do of 1 MiB is their start."""
    with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as name:
        container = Path(name, "a.ckg")
        plain = checkpoints.write(Path(name, "a.safetensors"), 1 << 20)
        protect(plain, container, bits=9)
        commands: dict[str, list[str | Path]] = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "ckptguard --help": [sys.executable, "-m", "ckptguard", "--help"],
            "ckptguard inspect": [sys.executable, "-m", "ckptguard", "inspect", container],
            "check of 1 MiB": [sys.executable, "-m", "ckptguard", "check", container],
            "protect of 1 MiB": [
                *(sys.executable, "-m", "ckptguard", "protect", plain),
                *("-o", Path(name, "b.ckg"), "--bits", "9", "--force"),
            ],
        }
        seconds: dict[str, list[float]] = {}
        for round_ in range(rounds + 1):
            for key, command in commands.items():
                taken = run(command).wall
                if round_:
                    seconds.setdefault(key, []).append(taken)
    python = statistics.median(seconds["python -c pass"])
    loaded = {
        "ckptguard inspect": "numpy",
        "check of 1 MiB": "numpy",
        "protect of 1 MiB": "numpy, numba, compiled kernels",
    }
    return [
        Row(
            GROUP,
            key,
            "s",
            statistics.median(seconds[key]),
            min(seconds[key]),
            {"ckptguard --help": 0.25, "ckptguard inspect": 0.5}.get(key),
            bound=f"python itself {python:.3f} s" + (f"; loads {loaded[key]}" if key in loaded else ""),
            at_most=True,
        )
        for key in list(commands)[1:]
    ]
