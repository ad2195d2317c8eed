"""Whole steps on 64 MiB, for those who change the pipeline: `python -m pytest benchmarks/bench_pipeline.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ckptguard.numpy
from ckptguard.pipeline.check import check
from ckptguard.pipeline.corrupt import corrupt
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore


def test_protect(benchmark: Any, plain: Path, tmp_path: Path) -> None:
    benchmark(protect, plain, tmp_path / "a.ckg", bits=9, overwrite=True, jobs=1)


def test_corrupt(benchmark: Any, container: Path, tmp_path: Path) -> None:
    benchmark(corrupt, container, tmp_path / "a.ckg", channel="bsc:1e-3", seed=1, overwrite=True, jobs=1)


def test_check(benchmark: Any, container: Path) -> None:
    benchmark(check, container, jobs=1)


def test_restore(benchmark: Any, container: Path, tmp_path: Path) -> None:
    benchmark(restore, container, tmp_path / "a.safetensors", overwrite=True, jobs=1)


def test_restore_damaged(benchmark: Any, container: Path, tmp_path: Path) -> None:
    corrupt(container, tmp_path / "bad.ckg", channel="bsc:1e-3", seed=1)
    benchmark(restore, tmp_path / "bad.ckg", tmp_path / "a.safetensors", overwrite=True, jobs=1)


def test_load_file(benchmark: Any, container: Path) -> None:
    benchmark(ckptguard.numpy.load_file, container)
