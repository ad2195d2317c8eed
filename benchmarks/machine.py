"""The machine, the versions and the limits that figures are to be read against."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
import numpy as np

from benchmarks.measure import Contender, interleaved

RELEVANT_FLAGS = ("avx2", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512_vbmi", "gfni", "pclmulqdq", "vpclmulqdq")
PACKAGES = ("numpy", "numba", "llvmlite", "safetensors", "torch", "xxhash", "bchlib", "galois")
ROOT = Path(__file__).parent.parent


def describe() -> dict[str, Any]:
    """What is known of the machine and of the software."""
    facts = _processor()
    flags = facts.get("flags", facts.get("Features", "")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "family": facts.get("cpu family", ""),
        "model": facts.get("model", ""),
        "flags": [flag for flag in RELEVANT_FLAGS if flag in flags],
        "threads": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "caches": {path.name: size for path, size in _caches()},
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def slug(facts: dict[str, Any]) -> str:
    """A name for files: processor, family, model and threads."""
    parts = [facts["processor"], facts["family"], facts["model"], f"{facts['threads']}threads"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(filter(None, parts)).lower()).strip("-")


def _processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> list[tuple[Path, str]]:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (index / "type").read_text().strip()
        if kind != "Instruction":
            found.append((Path(f"L{(index / 'level').read_text().strip()}"), (index / "size").read_text().strip()))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + (" with uncommitted changes" if _git("status", "--porcelain", "ckptguard") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@numba.njit(nogil=True)
def _chain(count: int, x: np.uint64) -> np.uint64:
    """Six dependent single-cycle instructions per turn; nothing in it can be foreseen by a compiler."""
    for _ in range(count):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
    return x


class Limits:
    """What no kernel can outrun, measured in this run.

    Attributes:
        clock: cycles per second of one core, from a chain of dependent instructions.
        memcpy: bytes per second copied from RAM to RAM by one thread (as many are read and as many written).
        read: bytes per second read from RAM by one thread.
        digest: bytes per second of XXH3 over 1.5 MB at a time, in cache.
    """

    def __init__(self) -> None:
        import xxhash

        count = 2_000_000
        source = np.random.default_rng(1).integers(0, 1 << 63, 32 << 20, np.uint64)
        target = np.empty_like(source)
        small = source[: 3 << 16]
        timings = interleaved(
            [
                Contender("clock", lambda _: _chain(count, np.uint64(88172645463325252)), 6.0 * count),
                Contender("memcpy", lambda _: np.copyto(target, source), source.nbytes),
                Contender("read", lambda _: np.bitwise_or.reduce(source), source.nbytes),
                Contender("digest", lambda _: xxhash.xxh3_64_intdigest(small.data), small.nbytes),
            ]
        )
        self.clock = timings["clock"].best
        self.memcpy = timings["memcpy"].rate
        self.read = timings["read"].rate
        self.digest = timings["digest"].rate

    def to_json(self) -> dict[str, float]:
        """In GHz and GB/s."""
        return {
            "core clock, GHz": self.clock / 1e9,
            "memcpy RAM to RAM, GB/s": self.memcpy / 1e9,
            "read from RAM, GB/s": self.read / 1e9,
            "XXH3 in cache, GB/s": self.digest / 1e9,
        }

    def cycles(self, count: float, payload: float) -> str:
        """The speed that `count` cycles for `payload` bytes allow."""
        return f"{payload * self.clock / count / 1e9:.2g} GB/s at {self.clock / 1e9:.1f} GHz"


def wall() -> float:
    """Seconds on the clock; for what runs on several threads or waits for the disk."""
    return time.perf_counter()
