"""Tensors stored as they are, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.errors import MaskError, SpecError
from ckptguard.representations.base import Bytes, Losses, Representation, Selection, Words


@dataclass(frozen=True)
class Native(Representation):
    """The elements' own bytes: any dtype, nothing lost, and a container's payload is the original file."""

    name: ClassVar[str] = "native"
    spec: str = "native"
    group: int = 1

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Native:
        """Raises SpecError: `native` takes no settings."""
        if settings:
            raise SpecError(f"native takes no settings, found {','.join(settings)!r}")
        return cls()

    def applies(self, dtype: DType) -> bool:
        return True

    def word_bits(self, dtype: DType) -> int:
        return dtype.word_bits

    def stored_bytes(self, dtype: DType, size: int) -> int:
        return size

    def select(self, dtype: DType, mask: str) -> Selection:
        """The mask, repeated for every element of a 64-bit word: bit j of element e is bit w * e + w - 1 - j."""
        check_mask(mask, dtype.word_bits, dtype)
        return Selection(int(mask * (64 // dtype.word_bits), 2))

    def magnitude(self, dtype: DType, data: Bytes) -> float:
        return 0.0

    def store(self, dtype: DType, data: Bytes, magnitude: float) -> tuple[Bytes, Losses]:
        return data.copy(), Losses()

    def restore(self, dtype: DType, stored: Bytes, magnitude: float, size: int) -> Bytes:
        return stored[:size].copy()

    def order(self, dtype: DType) -> str:
        return dtype.order

    def words(self, dtype: DType, stored: Bytes, size: int) -> Words:
        return _words(dtype, stored, size)

    def from_words(self, dtype: DType, words: Words) -> Bytes:
        return words.view(np.uint8)

    def touched(self, dtype: DType, bits: Bytes, size: int) -> npt.NDArray[np.bool_]:
        touched: npt.NDArray[np.bool_] = _words(dtype, bits, size) != 0
        return touched

    def null(self, dtype: DType, stored: Bytes, elements: npt.NDArray[np.bool_]) -> None:
        """Clear the words; of the dtypes only F8_E8M0 has no zero, its smallest value, 2^-127, stands in for it."""
        _words(dtype, stored, len(elements) * dtype.word_bits // 8)[elements] = 0


def check_mask(mask: str, word_bits: int, dtype: DType) -> None:
    """Raise MaskError unless `mask` is `word_bits` characters '0' and '1'."""
    if len(mask) != word_bits or not set(mask) <= {"0", "1"}:
        raise MaskError(
            f"{mask!r} is no mask for the words of {dtype.name}: expected {word_bits} characters '0' and '1', "
            "most significant bit first"
        )


def _words(dtype: DType, stored: Bytes, size: int) -> Words:
    """View of the first `size` bytes as mask words; only of memory without gaps, so that writing reaches it."""
    return stored[:size].view(f"<u{dtype.word_bits // 8}")
