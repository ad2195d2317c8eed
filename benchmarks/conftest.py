"""Data that the benchmarks of single functions share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import checkpoints
from benchmarks.codes import LONG, TOP_NINE, Words
from ckptguard import codes
from ckptguard.codes.base import Words as Stream
from ckptguard.pipeline.protect import protect


@pytest.fixture(scope="session")
def long_words() -> Words:
    """512 codewords of BCH(8191,6722)."""
    return Words(LONG, 1)


@pytest.fixture(scope="session")
def unit() -> Stream:
    """One unit of float32 with its top 9 bits protected."""
    size = 512 * codes.make(LONG).unit_tiles(TOP_NINE.bit_count())
    return np.random.default_rng(1).integers(0, 1 << 64, size, np.uint64)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of 64 MiB."""
    return checkpoints.write(tmp_path_factory.mktemp("benchmark") / "plain.safetensors", 64 << 20)


@pytest.fixture(scope="session")
def container(plain: Path) -> Path:
    """The same, protected."""
    path = plain.with_suffix(".ckg")
    protect(plain, path, bits=9)
    return path
