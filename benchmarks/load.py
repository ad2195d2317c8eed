"""Loading clean containers from a warm page cache, beside safetensors on the plain file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.numpy
import xxhash

import ckptguard
import ckptguard.numpy
from benchmarks import checkpoints, peers
from benchmarks.machine import Limits, wall
from benchmarks.measure import ROUNDS, Contender, Row, interleaved, speed_row
from ckptguard.pipeline.protect import protect

GROUP = "load"


def rows(limits: Limits, rounds: int = ROUNDS, sizes: tuple[int, ...] = (512 << 20,)) -> list[Row]:
    """Rows for every size."""
    result = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as folder:
            plain = checkpoints.write(Path(folder, "plain.safetensors"), size)
            container = Path(folder, "plain.ckg")
            protect(plain, container, bits=9)
            few = rounds if size < 2 << 30 else max(3, rounds // 2)
            result += _eager(plain, container, limits, few)
            result += _lazy(plain, container, few)
    return result


def _eager(plain: Path, container: Path, limits: Limits, rounds: int) -> list[Row]:
    size = plain.stat().st_size
    timings = interleaved(
        [
            Contender("1", lambda _: ckptguard.numpy.load_file(container, jobs=1), size, clock=wall),
            Contender("all", lambda _: ckptguard.numpy.load_file(container), size, clock=wall),
            Contender("safetensors", lambda _: safetensors.numpy.load_file(plain), size, clock=wall),
        ],
        rounds,
    )
    bound = (
        f"one copy out of the page cache into new pages, and XXH3 at {limits.digest / 1e9:.0f} GB/s of what is in cache"
    )
    peer = timings["safetensors"]
    return [
        speed_row(
            GROUP,
            f"load_file, {size / 2**20:.0f} MiB, numpy{text}",
            timings[key],
            None,
            [(peer, goal)],
            bound=bound,
            threads=threads,
        )
        for key, text, threads, goal in (("all", "", 2, 0.95), ("1", ", one thread", 1, None))
    ]


def _lazy(plain: Path, container: Path, rounds: int) -> list[Row]:
    torch = peers.module("safetensors.torch", "lazy loading")
    if torch is None:
        return []
    size = plain.stat().st_size

    def ours(backend: str) -> Callable[[None], None]:
        def read(_: None) -> None:
            with ckptguard.safe_open(container, "pt", backend=backend) as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    opened.get_tensor(name)

        return read

    def theirs(_: None) -> None:
        for tensor in torch.load_file(plain).values():
            xxhash.xxh3_64_intdigest(tensor.numpy().data)

    peer = Contender("safetensors.torch and XXH3", theirs, size, clock=wall)
    own = [Contender(backend, ours(backend), size, clock=wall) for backend in ("mmap", "pread")]
    timings = interleaved([*own, peer], rounds)
    bounds = {
        "mmap": "the peer maps the file and hashes the mapped pages, too: no copy is made",
        "pread": "a copy into new pages, which may not change after they were checked",
    }
    return [
        speed_row(
            GROUP,
            f"safe_open, backend {backend}, every tensor of {size / 2**20:.0f} MiB, torch",
            timings[backend],
            None,
            [(timings[peer.name], 1 / 1.1 if backend == "mmap" else None)],
            bound=bound,
            threads=2,
        )
        for backend, bound in bounds.items()
    ]
