"""Time to load 256 MB into numpy arrays, page cache warm: from a plain file, and from containers clean and worn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import ckptguard

pytestmark = pytest.mark.benchmark(group="load 256 MB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading")
    rng = np.random.default_rng(0)
    shapes = {"attention": (1024, 4096), "up": (2048, 1024), "down": (1024, 2048), "norm": (1024,), "bias": (2048,)}
    arrays = {
        f"{layer}.{name}": rng.standard_normal(shape, dtype=np.float32)
        for layer in range(8)
        for name, shape in shapes.items()
    }
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    ckptguard.protect(path / "model.safetensors", path / "clean.ckg", code="bch:8191,6176")
    for rate in ("1e-6", "1e-4", "1e-2"):
        ckptguard.corrupt(path / "clean.ckg", path / f"{rate}.ckg", seed=1, channel=f"bsc:{rate}")
    return path


def test_safetensors(benchmark: Any, folder: Path) -> None:
    benchmark.pedantic(safetensors.numpy.load_file, (folder / "model.safetensors",), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("damage", ["clean", "1e-6", "1e-4", "1e-2"])
def test_ckptguard(benchmark: Any, folder: Path, damage: str, jobs: int) -> None:
    options = {"framework": "np", "jobs": jobs}
    benchmark.pedantic(ckptguard.load_file, (folder / f"{damage}.ckg",), options, rounds=5, warmup_rounds=1)
