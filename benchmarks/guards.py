"""What range guards cost and how fast they are: `python -m benchmarks.guards MODEL.safetensors ...`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ckptguard.dtypes import DTYPES
from ckptguard.guards import TensorGuard
from ckptguard.pipeline.inspect import ARMOUR_GROWTH, inspect
from ckptguard.pipeline.protect import protect

GRANULARITIES = ("tensor", "channel", "group:512", "group:256")
REPRESENTATIONS = ("native", "fixed:8")


def sizes(model: Path) -> None:
    """Groups, and bytes in the metadata and in the file, by granularity and representation."""
    print(f"\n{model.name}, {model.stat().st_size:,} bytes\n")
    print("| stored as | guards per | groups | bytes of metadata | per group | bytes in the file | of the original |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for representation in REPRESENTATIONS:
            for granularity in GRANULARITIES:
                target = Path(folder) / "m.ckg"
                settings = {"code": "none", "bits": 1, "representation": representation, "overwrite": True}
                protect(model, target, guard=granularity, **settings)
                summary = inspect(target)
                groups = sum(tensor.guard_groups for tensor in summary.tensors)
                taken = sum(shard.guard_bytes for shard in summary.shards)
                stored = ARMOUR_GROWTH * taken
                cells = [representation, granularity, f"{groups:,}", f"{taken:,}", f"{taken / groups:.2f}"]
                cells += [f"{stored:,}", f"{stored / summary.original_bytes:.4%}"]
                print("| " + " | ".join(cells) + " |")


def speeds(count: int = 1 << 24, repeats: int = 5) -> None:
    """GB/s of the kernels on weights of a normal distribution, one thread; the best of some runs."""
    generator = np.random.default_rng(0)
    floats = generator.standard_normal(count).astype("<f4") * np.float32(0.05)
    kinds = {"F32": floats.view("<u4"), "BF16": (floats.view("<u4") >> 16).astype("<u2")}
    print("\n| dtype | guards per | measure | apply, clean | apply, BER 1e-4 | apply, 1e-2 | force, 1e-2 |")
    print("|---|---|---|---|---|---|---|")
    for name, words in kinds.items():
        worn = {}
        for rate in (1e-4, 1e-2):
            worn[rate] = words.copy()
            data = worn[rate].view(np.uint8)
            bits = generator.integers(0, 8 * data.size, int(rate * 8 * data.size))
            np.bitwise_xor.at(data, bits >> 3, (1 << (bits & 7)).astype(np.uint8))
        for granularity in ("tensor", "group:512"):
            guard = TensorGuard.of(DTYPES[name], words.view(np.uint8), granularity)
            cells = [_best(lambda: TensorGuard.of(DTYPES[name], words.view(np.uint8), granularity), repeats)]  # noqa: B023
            for given in (words, worn[1e-4], worn[1e-2]):
                cells.append(_best_in_place(guard.apply_in_place, given, repeats))
            cells.append(_best_in_place(guard.force_in_place, worn[1e-2], repeats))
            rates = " | ".join(f"{words.nbytes / seconds / 1e9:.1f} GB/s" for seconds in cells)
            print(f"| {name} | {granularity} | {rates} |")


def _best(work, repeats):  # type: ignore[no-untyped-def]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _best_in_place(work, given, repeats):  # type: ignore[no-untyped-def]
    seconds = []
    for _ in range(repeats):
        words = given.copy()
        start = time.perf_counter()
        work(words)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sizes(Path(argument))
    speeds()
