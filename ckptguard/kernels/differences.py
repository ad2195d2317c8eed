"""Counting the bits in which two arrays of words differ."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from ckptguard.kernels.jit import njit

U64 = npt.NDArray[np.uint64]

intrinsic: Any = numba_intrinsic  # an intrinsic is called without its first parameter


@intrinsic
def _ones(context, word):
    """How many bits of a word are 1."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True)
def count_differences(before: U64, after: U64) -> int:
    """Bits in which two arrays of as many words differ."""
    total = np.uint64(0)
    for i in range(before.size):
        total += _ones(before[i] ^ after[i])
    return int(total)


@njit(cache=True, nogil=True)
def count_changes(before: U64, after: U64, bounds: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
    """Count, region by region, the bits that went from 0 to 1 and from 1 to 0.

    Args:
        before, after: uint64, bytes in little-endian order.
        bounds: (regions + 1,) int64, not falling: region r is bytes bounds[r] .. bounds[r + 1] - 1.
        counts: (regions, 2) int64; the bits that rose and those that fell are added.
    """
    everything = ~np.uint64(0)
    for region in range(counts.shape[0]):
        begin, end = bounds[region], bounds[region + 1]
        if begin == end:
            continue
        first, last = begin >> 3, (end - 1) >> 3
        rises = falls = np.uint64(0)
        for i in range(first, last + 1):
            rises += _ones(after[i] & ~before[i])
            falls += _ones(before[i] & ~after[i])
        below = ~(everything << np.uint64(8 * (begin - 8 * first)))
        above = (everything << np.uint64(8 * (end - 1 - 8 * last))) << np.uint64(8)
        for i, outside in ((first, below), (last, above)):
            rises -= _ones(after[i] & ~before[i] & outside)
            falls -= _ones(before[i] & ~after[i] & outside)
        counts[region, 0] += np.int64(rises)
        counts[region, 1] += np.int64(falls)
