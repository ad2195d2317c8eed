"""Time to load checkpoints, page cache warm: plain files by safetensors, containers clean and worn by ckptguard.

`mapped` is to be held against `safetensors_torch_and_hash`: a plain file mapped, and one XXH3 pass over its bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash

import ckptguard

RATES = ("1e-6", "1e-4", "1e-2")
Load = Callable[[Path], object]


def read_afresh(path: Path) -> None:
    """Leave a file in the page cache as reading it does; pages just written are mapped in smaller runs."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(descriptor, 8 << 20):
        pass
    os.close(descriptor)


def protected(path: Path, arrays: dict[str, np.ndarray], rates: tuple[str, ...] = ()) -> Path:
    """A folder with a plain file, a clean container and worn ones."""
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    ckptguard.protect(path / "model.safetensors", path / "clean.ckg", code="bch:8191,6176")
    for rate in rates:
        ckptguard.corrupt(path / "clean.ckg", path / f"{rate}.ckg", seed=1, channel=f"bsc:{rate}")
    for file in path.iterdir():
        read_afresh(file)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 MB in tensors of 8 to 32 MB, and some small ones."""
    rng = np.random.default_rng(0)
    shapes = {"attention": (2048, 4096), "up": (2048, 2048), "down": (2048, 2048), "norm": (1024,), "bias": (2048,)}
    arrays = {
        f"{layer}.{name}": rng.standard_normal(shape, dtype=np.float32)
        for layer in range(8)
        for name, shape in shapes.items()
    }
    return protected(tmp_path_factory.mktemp("large"), arrays, RATES)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 tensors of up to 20 kB, 41 MB together."""
    rng = np.random.default_rng(0)
    arrays = {f"{i}.weight": rng.standard_normal(int(rng.integers(1, 5121)), dtype=np.float32) for i in range(4000)}
    return protected(tmp_path_factory.mktemp("many"), arrays)


def plain(folder: Path) -> object:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def mapped_and_hashed(folder: Path) -> object:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    for tensor in tensors.values():
        xxhash.xxh3_64_intdigest(tensor.numpy())
    return tensors


def lazily(folder: Path) -> object:
    with ckptguard.safe_open(folder / "clean.ckg", "pt", backend="mmap") as opened:
        return [opened.get_tensor(name) for name in opened.offset_keys()]


def load(name: str, **options: Any) -> Load:
    def call(folder: Path) -> object:
        return ckptguard.load_file(folder / f"{name}.ckg", framework="np", **options)

    return call


def measure(benchmark: Any, call: Load, folder: Path) -> None:
    benchmark.pedantic(call, (folder,), rounds=9, warmup_rounds=1)


CLEAN: dict[str, Load] = {
    "safetensors_numpy": plain,
    "safetensors_torch_and_hash": mapped_and_hashed,
    "read_1_thread": load("clean", jobs=1),
    "read": load("clean"),
    "mapped_1_thread": load("clean", backend="mmap", jobs=1),
    "mapped": load("clean", backend="mmap"),
    "mapped_tensor_by_tensor": lazily,
}


@pytest.mark.benchmark(group="load 512 MB")
@pytest.mark.parametrize("how", CLEAN)
def test_large_tensors(benchmark: Any, large: Path, how: str) -> None:
    if "torch" in how or "tensor" in how:
        pytest.importorskip("torch")
    measure(benchmark, CLEAN[how], large)


@pytest.mark.benchmark(group="load 512 MB, worn")
@pytest.mark.parametrize("backend", ["pread", "mmap"])
@pytest.mark.parametrize("rate", RATES)
def test_worn(benchmark: Any, large: Path, rate: str, backend: str) -> None:
    measure(benchmark, load(rate, backend=backend), large)


@pytest.mark.benchmark(group="load 4,000 tensors, 41 MB")
@pytest.mark.parametrize("how", ["safetensors_numpy", "read_1_thread", "read", "mapped_1_thread", "mapped"])
def test_many_tensors(benchmark: Any, many: Path, how: str) -> None:
    measure(benchmark, CLEAN[how], many)


@pytest.mark.benchmark(group="open 4,000 tensors")
def test_opening(benchmark: Any, many: Path) -> None:
    measure(benchmark, lambda folder: ckptguard.safe_open(folder / "clean.ckg", "np"), many)


@pytest.mark.benchmark(group="start-up")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "clean.ckg", "--quiet"]])
def test_start_up(benchmark: Any, many: Path, arguments: list[str]) -> None:
    def call(folder: Path) -> object:
        return subprocess.run(
            [sys.executable, "-m", "ckptguard", *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL
        )

    measure(benchmark, call, many)
