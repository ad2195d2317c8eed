"""One interval around zero per tensor, for estimates of damage. Campaigns use `campaign.guarding`, as readers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType

Words = npt.NDArray[np.unsignedinteger[Any]]

_INFINITE = {
    "F64": 0x7FF << 52,
    "F32": 0xFF << 23,
    "C64": 0xFF << 23,
    "F16": 0x1F << 10,
    "BF16": 0xFF << 7,
    "F8_E5M2": 0x7C,
}
"""By sign-and-magnitude dtype, the word of infinity: magnitudes from there on are not finite."""


@dataclass(frozen=True)
class TensorGuard:
    """What the words of a tensor have in common.

    Attributes:
        dtype: of the tensor.
        ones: bits that are 1 in every word.
        zeros: bits that are 0 in every word.
        largest: the largest word without its sign; None for dtypes whose order that is not.
    """

    dtype: DType
    ones: int
    zeros: int
    largest: int | None

    @classmethod
    def of(cls, dtype: DType, data: npt.NDArray[np.uint8]) -> TensorGuard:
        """The guard of a tensor from its raw little-endian bytes; that of an empty one changes nothing."""
        words = data.view(f"<u{dtype.word_bits // 8}")
        full = (1 << dtype.word_bits) - 1
        if not words.size:
            return cls(dtype, 0, 0, None)
        ones, some = int(np.bitwise_and.reduce(words)), int(np.bitwise_or.reduce(words))
        largest = None
        if dtype.name in _INFINITE:
            largest = int((words & words.dtype.type(full >> 1)).max())
        return cls(dtype, ones, full & ~some, largest)

    def apply(self, words: Words) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Words as the guard leaves them, and which of them it made zero; words of the tensor itself stay."""
        kind = words.dtype.type
        forced = (words | kind(self.ones)) & ~kind(self.zeros)
        nulled = np.zeros(words.size, np.bool_)
        if self.largest is not None:
            nulled = (forced & kind((1 << (self.dtype.word_bits - 1)) - 1)) > kind(self.largest)
            forced[nulled] = 0
        return forced, nulled
