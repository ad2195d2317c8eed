"""Single kernels, for those who change them: `python -m pytest benchmarks/bench_kernels.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.codes import TOP_NINE, Words
from ckptguard.channels import make as make_channel
from ckptguard.channels.base import NoiseKey
from ckptguard.codes.base import Words as Stream
from ckptguard.kernels import planes


def test_encode(benchmark: Any, long_words: Words) -> None:
    benchmark(long_words.encode, None)


def test_check(benchmark: Any, long_words: Words) -> None:
    benchmark(long_words.check, None)


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_decode(benchmark: Any, long_words: Words, rate: float) -> None:
    fresh = long_words.damaged(rate)
    benchmark.pedantic(long_words.decode, setup=lambda: ((fresh(),), {}), rounds=20, warmup_rounds=1)


@pytest.mark.parametrize("spec", ["bch:1023,838", "bch:511,340", "secded:72,64"])
def test_decode_short_codes(benchmark: Any, spec: str) -> None:
    words = Words(spec, 1 << 20)
    fresh = words.damaged(1e-3)
    benchmark.pedantic(words.decode, setup=lambda: ((fresh(),), {}), rounds=20, warmup_rounds=1)


def test_gather(benchmark: Any, unit: Stream) -> None:
    rows = np.empty(unit.size // 64 * TOP_NINE.bit_count(), np.uint64)
    benchmark(planes.gather_tiles, unit, np.uint64(TOP_NINE), rows)


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_bsc(benchmark: Any, rate: float) -> None:
    channel = make_channel(f"bsc:{rate!r}")
    data = np.zeros(4 << 20, np.uint8)
    benchmark(channel.corrupt, data, 0, NoiseKey(1))
