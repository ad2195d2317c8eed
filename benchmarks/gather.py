"""Gathering the masked bit planes of words."""

from __future__ import annotations

import numpy as np

from benchmarks.codes import TOP_NINE
from benchmarks.machine import Limits
from benchmarks.measure import ROUNDS, Contender, Row, interleaved, speed_row
from ckptguard.kernels import planes

GROUP = "gather"


def rows(limits: Limits, rounds: int = ROUNDS) -> list[Row]:
    """Top 9 bits of float32, from RAM and from the second-level cache, and numpy's way to do it."""
    rng = np.random.default_rng(10)
    large = rng.integers(0, 1 << 64, 16 << 20, np.uint64)
    small = large[: 1 << 16]
    wide, narrow = (np.empty(words.size // 64 * 18, np.uint64) for words in (large, small))
    mask = np.uint64(TOP_NINE)
    chosen = [bit for bit in range(64) if TOP_NINE >> bit & 1]
    few = small.view(np.uint8).reshape(-1, 8)

    def numpy(_: None) -> object:
        bits = np.unpackbits(few, axis=1, bitorder="little")
        return np.packbits(np.ascontiguousarray(bits[:, chosen].T), axis=1, bitorder="little")

    timings = interleaved(
        [
            Contender("RAM", lambda _: planes.gather_tiles(large, mask, wide), large.nbytes),
            Contender("L2", lambda _: planes.gather_tiles(small, mask, narrow), small.nbytes),
            Contender("numpy", numpy, few.nbytes),
        ],
        rounds,
    )
    bound = f"one read from RAM at {limits.read / 1e9:.1f} GB/s; 12 + 6 words of transposing per 8 words in cache"
    return [
        speed_row(GROUP, f"gather of 9 of 32 bits, {kind}", timings[key], 7.0, [(timings["numpy"], 40.0)], bound=bound)
        for kind, key in (("128 MB from RAM", "RAM"), ("512 KB in cache", "L2"))
    ]
