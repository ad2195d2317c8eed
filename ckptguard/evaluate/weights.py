"""The evaluator `weights`: how a tensor differs from the original, in bits and in values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.evaluate.values import to_float64
from ckptguard.representations.base import Selection

Bytes = npt.NDArray[np.uint8]


@dataclass
class WeightDifference:
    """Differences of one tensor, summed over its chunks.

    Attributes:
        elements: of the tensor.
        wrong_protected_bits, wrong_unprotected_bits: stored bits that differ, by the mask.
        changed_elements: whose bytes differ.
        max_difference, sum_difference: of |value - original| over elements finite on both sides.
        compared: elements finite on both sides (C64 counts components).
        non_finite: elements that are NaN or infinite and were not so in the original.
    """

    elements: int = 0
    wrong_protected_bits: int = 0
    wrong_unprotected_bits: int = 0
    changed_elements: int = 0
    max_difference: float = 0.0
    sum_difference: float = 0.0
    compared: int = 0
    non_finite: int = 0

    @property
    def mean_difference(self) -> float:
        """Mean of |value - original| over elements finite on both sides."""
        return self.sum_difference / self.compared if self.compared else 0.0

    def add_bits(self, selection: Selection, expected: Bytes, found: Bytes, first_word: int) -> None:
        """Count stored bits that differ.

        Args:
            expected, found: stored bytes from a 64-bit word border of the tensor on.
            first_word: index of that word.
        """
        difference = np.zeros(-(-expected.size // 8), "<u8")
        difference.view(np.uint8)[: expected.size] = expected ^ found
        protected = _protected_bits(selection, len(difference), first_word)
        self.wrong_protected_bits += int(np.bitwise_count(difference & protected).sum())
        self.wrong_unprotected_bits += int(np.bitwise_count(difference & ~protected).sum())

    def add_values(self, dtype: DType, expected: Bytes, found: Bytes) -> None:
        """Compare elements in the original dtype; both arrays hold whole elements."""
        width = max(1, dtype.bits // 8)
        self.elements += expected.size // width
        self.changed_elements += int((expected != found).reshape(-1, width).any(axis=1).sum())
        before, after = to_float64(dtype, expected), to_float64(dtype, found)
        if before is None or after is None:
            return
        finite = np.isfinite(before) & np.isfinite(after)
        self.non_finite += int((np.isfinite(before) & ~np.isfinite(after)).sum())
        self.compared += int(finite.sum())
        with np.errstate(over="ignore"):
            difference = np.abs(after[finite] - before[finite])
            self.sum_difference += float(difference.sum())
        self.max_difference = max(self.max_difference, float(difference.max(initial=0.0)))


def _protected_bits(selection: Selection, words: int, first_word: int) -> npt.NDArray[np.uint64]:
    pattern = np.array([selection.mask if selection.keep >> i & 1 else 0 for i in range(selection.period)], np.uint64)
    result: npt.NDArray[np.uint64] = pattern[(np.arange(words) + first_word) % selection.period]
    return result
