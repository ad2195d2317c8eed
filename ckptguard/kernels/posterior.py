"""Posterior restorers: words of float32 by a table of their exponents, and the sums of runs of numbers.

Additions are done one after the other, so that sums do not depend on a processor's vectors.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.kernels.jit import njit

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


@njit(cache=True, nogil=True)
def restore(
    words: npt.NDArray[np.uint32], scale: npt.NDArray[np.float64], sign: int, largest: float, result: Floats
) -> None:
    """Read words of float32 by what their exponents stand for.

    Args:
        scale: (256,) magnitude of a word with fraction zero, by exponent field.
        sign: of all words, 0 or 1; otherwise each keeps its own.
        largest: finite number.
        result: (words,) float32; may lie where the words lie.
    """
    for i in range(words.size):
        word = words[i]
        value = (1.0 + np.float64(word & np.uint32(0x7FFFFF)) * 2.0**-23) * scale[word >> np.uint32(23) & 255]
        value = min(value, largest)
        negative = (word >> np.uint32(31)) != 0 if sign > 1 else sign != 0
        result[i] = -value if negative else value


@njit(cache=True, nogil=True)
def sums(values: Floats, starts: Indices, stops: Indices, result: npt.NDArray[np.float64]) -> None:
    """Sums of the runs [start, stop) of numbers."""
    for place in range(starts.size):
        total = 0.0
        for i in range(starts[place], stops[place]):
            total += np.float64(values[i])
        result[place] = total


@njit(cache=True, nogil=True)
def correct(values: Floats, starts: Indices, stops: Indices, wanted: npt.NDArray[np.float64], largest: float) -> None:
    """Move all numbers of a run alike, in place, so that it has the sum that is wanted; no further than `largest`."""
    for place in range(starts.size):
        total = 0.0
        for i in range(starts[place], stops[place]):
            total += np.float64(values[i])
        step = (wanted[place] - total) / (stops[place] - starts[place])
        for i in range(starts[place], stops[place]):
            values[i] = min(max(np.float64(values[i]) + step, -largest), largest)
