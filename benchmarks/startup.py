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
    """`--help` and `inspect`, processes of their own, files in the page cache."""
    with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as name:
        container = Path(name, "a.ckg")
        protect(checkpoints.write(Path(name, "a.safetensors"), 64 << 20), container, bits=9)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "ckptguard --help": [sys.executable, "-m", "ckptguard", "--help"],
            "ckptguard inspect": [sys.executable, "-m", "ckptguard", "inspect", container],
        }
        seconds: dict[str, list[float]] = {}
        for round_ in range(rounds + 1):
            for key, command in commands.items():
                taken = run(command).wall
                if round_:
                    seconds.setdefault(key, []).append(taken)
    python = statistics.median(seconds["python -c pass"])
    return [
        Row(
            GROUP,
            key,
            "s",
            statistics.median(seconds[key]),
            min(seconds[key]),
            goal,
            bound=f"python itself {python:.3f} s" + (", and importing numpy" if "inspect" in key else ""),
            at_most=True,
        )
        for key, goal in (("ckptguard --help", 0.25), ("ckptguard inspect", 0.5))
    ]
