"""Whole commands, each a process of its own, beside what their kernels and one read and one write of the file take."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from benchmarks import checkpoints, peers
from benchmarks.codes import LONG, TOP_NINE
from benchmarks.machine import ROOT, Limits
from benchmarks.measure import Contender, Peer, Row, interleaved
from ckptguard import codes
from ckptguard.channels import make as make_channel
from ckptguard.channels.base import NoiseKey
from ckptguard.kernels import planes

GROUP = "commands"
RATE = "1e-3"
GOAL = 1.5


@dataclass(frozen=True)
class Run:
    """What a process took.

    Attributes:
        wall, cpu: seconds; CPU time is that of user and system, over all threads.
        memory: largest resident size in bytes.
        user: CPU seconds without those of the system.
    """

    wall: float
    cpu: float
    memory: int
    user: float = 0.0


def run(command: Sequence[str | Path], allowed: tuple[int, ...] = (0,)) -> Run:
    """Run a process, silently; refuse exit statuses that were not expected."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is not compiled anew at every start
    launched = [sys.executable, "-I", "-S", Path(__file__).with_name("launch.py"), *command]
    done = subprocess.run([str(part) for part in launched], env=environment, check=True, stdout=subprocess.PIPE)
    record = json.loads(done.stdout)
    if record["status"] not in allowed:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {record['status']}\n{record['errors']}")
    return Run(record["wall"], record["cpu"], record["memory"], record["user"])


def ckptguard(*arguments: str | Path, jobs: int = 1, allowed: tuple[int, ...] = (0,)) -> Run:
    """Run a command of ckptguard, quietly."""
    return run([sys.executable, "-m", "ckptguard", *arguments, "--quiet", "--jobs", str(jobs)], allowed)


class Kernels:
    """Seconds of CPU time per unit of 1.5 MB that the kernels of a command take, without reading and writing."""

    def __init__(self, rate: float, rounds: int = 5) -> None:
        code = codes.make(LONG)
        self.unit_words = 512 * code.unit_tiles(18)
        rng = np.random.default_rng(16)
        words = rng.integers(0, 1 << 64, self.unit_words, np.uint64)
        parity = code.encode(words, TOP_NINE)
        flat = np.empty(words.size // 64 * 18, np.uint64)
        rows, lanes = flat.reshape(-1, 8), parity.view(np.uint64).reshape(-1, 8)
        channel = make_channel(f"bsc:{rate!r}")
        bad = words.copy(), parity.copy()
        for place, array in enumerate(bad):
            channel.corrupt(array.view(np.uint8), 0, NoiseKey(1, str(place)))
        bad_rows = np.empty_like(rows)
        planes.gather_tiles(bad[0], np.uint64(TOP_NINE), bad_rows.reshape(-1))
        scratch, masked = words.copy(), np.empty_like(words)

        def digest(data: np.ndarray) -> int:
            return int(xxhash.xxh3_64_intdigest(data.data))

        contenders = {
            "gather": lambda _: planes.gather_tiles(words, np.uint64(TOP_NINE), flat),
            "scatter": lambda _: planes.scatter_tiles(flat, np.uint64(TOP_NINE), scratch),
            "encode": lambda _: code.encode_rows(rows),  # type: ignore[attr-defined]
            "digest": lambda _: digest(words),
            "masked digest": lambda _: digest(np.bitwise_and(words, np.uint64(TOP_NINE), masked)),
            "parity digest": lambda _: digest(parity),
            "channel": lambda _: channel.corrupt(scratch.view(np.uint8), 0, NoiseKey(1)),
        }
        runs = [Contender(name, call) for name, call in contenders.items()]
        runs.append(
            Contender(
                "decode",
                lambda pair: code.decode_rows(*pair),  # type: ignore[attr-defined]
                prepare=lambda: (bad_rows.copy(), bad[1].view(np.uint64).reshape(lanes.shape).copy()),
            )
        )
        self.seconds = {name: timing.time for name, timing in interleaved(runs, rounds).items()}

    def total(self, size: int, names: Sequence[str]) -> float:
        """Seconds for `size` bytes of payload."""
        return size / (8 * self.unit_words) * sum(self.seconds[name] for name in names)


PARTS = {
    "protect": ("digest", "masked digest", "gather", "encode", "parity digest"),
    "corrupt": ("channel",),
    "check, clean": ("digest", "parity digest"),
    "check, damaged": ("digest", "masked digest", "gather", "decode", "scatter", "digest", "masked digest"),
    "restore, clean": ("digest",),
    "restore, damaged": ("digest", "masked digest", "gather", "decode", "scatter", "digest", "masked digest"),
}
"""Kernels that a command cannot do without, per unit."""


class Files:
    """Reading and writing the file itself, 8 MiB at a time, as the commands do; the page cache is warm."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray(8 << 20)

    def read(self, path: Path) -> Run:
        """Read a file to its end."""
        return _timed(lambda: self._read(path))

    def write(self, size: int) -> Run:
        """Write and make durable a new file of the size."""
        target = self._folder / "written"
        target.unlink(missing_ok=True)  # as before the commands: pages that were just given back are quick to get
        return _timed(lambda: self._write(target, size))

    def _read(self, path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(self._buffer):
                pass

    def _write(self, path: Path, size: int) -> None:
        with path.open("xb", buffering=0) as file:
            file.truncate(size)
            left = size
            while left:
                left -= file.write(memoryview(self._buffer)[:left])
            os.fsync(file.fileno())


def _timed(call: Callable[[], None]) -> Run:
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return Run(time.perf_counter() - start, time.process_time() - cpu, 0)


def rows(limits: Limits, rounds: int = 5, size: int = 1 << 30) -> Iterator[Row]:
    """All commands on a checkpoint of `size` bytes, one thread and all threads, and par2."""
    with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as name:
        folder = Path(name)
        plain = checkpoints.write(folder / "plain.safetensors", size)
        kernels = Kernels(float(RATE))
        Files(folder).write(size)
        measured: dict[str, list[tuple[Run, Run, float, float]]] = {}
        for _ in range(rounds):
            for key, row in _round(folder, plain, kernels, size).items():
                measured.setdefault(key, []).append(row)
        for key, runs in measured.items():
            yield _row(key, runs, size)
        yield from _par2(folder, plain, measured)


def _round(folder: Path, plain: Path, kernels: Kernels, size: int) -> dict[str, tuple[Run, Run, float, float]]:
    """(one thread, all threads, wall and CPU seconds needed) of every command, once."""
    container, bad, out = folder / "plain.ckg", folder / "bad.ckg", folder / "out.safetensors"
    files = Files(folder)
    results: dict[str, tuple[Run, Run, float, float]] = {}
    threads = len(os.sched_getaffinity(0))

    def measure(key: str, arguments: list[str | Path], source: Path, target: Path | None, status: int = 0) -> None:
        runs = []
        for jobs in (threads, 1):
            if target is not None:
                target.unlink(missing_ok=True)
            runs.append(ckptguard(*arguments, jobs=jobs, allowed=(status,)))
        read = files.read(source)
        write = files.write(target.stat().st_size) if target else Run(0, 0, 0)
        kernel = kernels.total(size, PARTS[key])
        results[key] = runs[1], runs[0], kernel + read.wall + write.wall, kernel + read.cpu + write.cpu

    measure("protect", ["protect", plain, "-o", container, "--bits", "9"], plain, container)
    measure("corrupt", ["corrupt", container, "-o", bad, "--ber", RATE, "--seed", "1"], container, bad)
    measure("check, clean", ["check", container], container, None)
    measure("check, damaged", ["check", bad], bad, None, 10)
    measure("restore, clean", ["restore", container, "-o", out], container, out)
    measure("restore, damaged", ["restore", bad, "-o", out], bad, out)
    return results


def _row(key: str, runs: list[tuple[Run, Run, float, float]], size: int) -> Row:
    ratios = [one.wall / need for one, _, need, _ in runs]
    cpu = statistics.median(one.cpu / need for one, _, _, need in runs)
    need = statistics.median(need for _, _, need, _ in runs)
    both = statistics.median(many.wall for _, many, _, _ in runs)
    one = statistics.median(one.wall for one, _, _, _ in runs)
    memory = max(many.memory for _, many, _, _ in runs) / 2**20
    written = ", one write made durable" if key.startswith(("protect", "corrupt", "restore")) else ""
    return Row(
        GROUP,
        f"{key.replace('damaged', f'damaged at {RATE}')}, {size / 2**30:.2g} GiB float32, top 9 bits, one thread",
        "x",
        statistics.median(ratios),
        min(ratios),
        GOAL,
        bound=f"kernels ({' + '.join(PARTS[key])}), one read{written}: {need:.2f} s",
        note=f"{one:.2f} s with start-up; by CPU time {cpu:.2f} x; all threads {both:.2f} s, "
        f"largest memory {memory:.0f} MiB",
        at_most=True,
    )


def _par2(folder: Path, plain: Path, measured: dict[str, list[tuple[Run, Run, float, float]]]) -> list[Row]:
    """par2 at as much parity; it repairs lost blocks, so the damage is pages that are overwritten."""
    par2 = peers.program("par2", "commands protect, check and repair")
    if par2 is None:
        return []
    container = folder / "plain.ckg"
    parity = 100 * (container.stat().st_size / plain.stat().st_size - 1)
    blocks = 2000
    subject = shutil.copy(plain, folder / "par2.safetensors")
    index = folder / "par2.par2"
    made = run([par2, "create", "-q", "-q", f"-b{blocks}", f"-r{round(parity)}", "-n1", index, subject])
    verified = run([par2, "verify", "-q", "-q", index])
    damage(Path(subject), 64)
    repaired = run([par2, "repair", "-q", "-q", index])
    bad, out = folder / "pages.ckg", folder / "repaired.ckg"
    shutil.copy(container, bad)
    damage(bad, 64)
    ours = [ckptguard("repair", bad, "-o", out, "--force", jobs=len(os.sched_getaffinity(0))) for _ in range(3)]
    pairs = {
        "protect": (statistics.median(many.wall for _, many, _, _ in measured["protect"]), made),
        "check": (statistics.median(many.wall for _, many, _, _ in measured["check, clean"]), verified),
        "repair": (statistics.median(one.wall for one in ours), repaired),
    }
    return [
        Row(
            GROUP,
            f"{name}, all threads, beside par2",
            "s",
            mine,
            mine,
            peers=(Peer(f"par2, {round(parity)} % of parity, {blocks} blocks", theirs.wall, theirs.wall / mine),),
            threads=len(os.sched_getaffinity(0)),
            note="64 overwritten pages; of these bytes par2 brings back all, ckptguard the protected bits"
            if name == "repair"
            else "par2 protects every byte against few lost blocks, ckptguard 9 of 32 bits against flips anywhere",
            at_most=True,
        )
        for name, (mine, theirs) in pairs.items()
    ]


def damage(path: Path, pages: int) -> None:
    """Overwrite pages of 4 KiB, spread over the file, with random bytes."""
    rng = np.random.default_rng(18)
    size = path.stat().st_size
    with path.open("r+b") as file:
        for place in range(pages):
            file.seek((place * 2 + 1) * size // (2 * pages) // 4096 * 4096)
            file.write(rng.bytes(4096))
