"""What flips of every bit of float32 words change, after a range guard, weighted and squared."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.kernels.jit import njit

F64 = npt.NDArray[np.float64]
U32 = npt.NDArray[np.uint32]


_LEADS = np.array([0.0] + [1.0] * 255)
_SCALES = np.array([2.0**-126, *(2.0 ** (exponent - 127) for exponent in range(1, 255)), np.inf])
"""By exponent field: a word stands for (lead + fraction) * scale; infinite where it is not finite."""


@njit(cache=True, nogil=True)
def _number(word: Any) -> float:
    exponent = np.int64(word >> np.uint32(23)) & 255
    fraction = np.float64(word & np.uint32(0x7FFFFF)) / 8388608.0
    magnitude = float((_LEADS[exponent] + fraction) * _SCALES[exponent])
    return -magnitude if word >> np.uint32(31) else magnitude


@njit(cache=True, nogil=True)
def of_float32(
    words: U32,
    weights: npt.NDArray[np.floating[Any]],
    of_0: float,
    of_1: float,
    limits: U32,
    result: F64,
) -> None:
    """Add to `result` (32 numbers, by position from the most significant bit) 1/2 P F (change)^2 of all words.

    Args:
        weights: F, one per word or one for all.
        of_0, of_1: probabilities that a stored 0, a stored 1 is read wrong.
        limits: (5,) of a guard: bits that it sets; bits that it leaves; keys of the smallest and of the largest word
            that it leaves; the word that takes the place of others.
    Twin: `search.damage._sums` with `guards.TensorGuard.apply`.
    """
    always, ever, low, high, instead = limits[0], limits[1], limits[2], limits[3], limits[4]
    replacement = _number(instead)
    for i in range(words.size):
        word = words[i]
        weight = 0.5 * (weights[i] if weights.size > 1 else weights[0])
        if weight == 0.0:
            continue
        value = _number(word)
        for bit in range(32):
            place = np.uint32(1) << np.uint32(31 - bit)
            chance = of_1 if word & place else of_0
            if chance == 0.0:
                continue
            read = ((word ^ place) | always) & ever
            if read == word:
                continue
            key = read ^ np.uint32(0xFFFFFFFF if read >> np.uint32(31) else 0x80000000)
            change = (_number(read) if low <= key <= high else replacement) - value
            result[bit] += chance * weight * change * change
