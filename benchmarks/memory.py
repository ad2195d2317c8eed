"""Largest memory of the commands at two sizes of checkpoint: `python -m benchmarks.memory [--sizes 1024,4096]`.

Prints a table in Markdown. The checkpoints are random float32 weights, written in chunks into a temporary folder, which
is removed; every command is a process of its own, and its largest resident size is what the system says of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.checkpoints import write
from benchmarks.commands import Run, ckptguard

DAMAGED = (0, 10, 11)


def runs(folder: Path, size: int, code: str, rate: str, jobs: int) -> Iterator[tuple[str, Run]]:
    """What every command took."""
    plain, container, worn = folder / "a.safetensors", folder / "a.ckg", folder / "worn.ckg"
    write(plain, size)
    options = ["--code", code, "--bits", "9"]
    yield "protect", ckptguard("protect", plain, "-o", container, *options, jobs=jobs)
    yield "check, intact", ckptguard("check", container, jobs=jobs)
    yield "restore, intact", ckptguard("restore", container, "-o", folder / "out", jobs=jobs)
    (folder / "out").unlink()
    plain.unlink()
    yield "corrupt", ckptguard("corrupt", container, "-o", worn, "--ber", rate, "--seed", "1", jobs=jobs)
    container.unlink()
    yield "check, damaged", ckptguard("check", worn, jobs=jobs, allowed=DAMAGED)
    yield "restore, damaged", ckptguard("restore", worn, "-o", folder / "out", jobs=jobs, allowed=DAMAGED)
    (folder / "out").unlink()
    yield "repair, damaged", ckptguard("repair", worn, "-o", folder / "healed.ckg", jobs=jobs, allowed=DAMAGED)
    (folder / "healed.ckg").unlink()
    yield "repair in place", ckptguard("repair", worn, "--in-place", jobs=jobs, allowed=DAMAGED)


def table(sizes: list[int], code: str, rate: str, jobs: int) -> list[str]:
    """Lines of a table in Markdown, a row for each command."""
    found: dict[str, list[Run]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ckptguard-memory-") as name:
            for command, run in runs(Path(name), size, code, rate, jobs):
                found.setdefault(command, []).append(run)
    heads = " | ".join(f"{size >> 20} MiB" for size in sizes)
    lines = [f"| command | {heads} | growth |", f"|---|{'---|' * len(sizes)}---|"]
    for command, row in found.items():
        cells = " | ".join(f"{run.memory / 2**20:.0f} MiB, {run.wall:.1f} s" for run in row)
        lines.append(f"| {command} | {cells} | {(row[-1].memory - row[0].memory) / 2**20:+.0f} MiB |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1024,4096", help="MiB, with commas between them")
    parser.add_argument("--code", default="secded:72,64")
    parser.add_argument("--ber", default="1e-5", help="bit error rate of the damage")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    sizes = [int(size) << 20 for size in arguments.sizes.split(",")]
    print(
        f"{arguments.code}, top nine bits of float32, bit error rate {arguments.ber}, {arguments.jobs} threads; ",
        end="",
    )
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, {os.cpu_count()} CPUs\n")
    print("\n".join(table(sizes, arguments.code, arguments.ber, arguments.jobs)))


if __name__ == "__main__":
    main()
