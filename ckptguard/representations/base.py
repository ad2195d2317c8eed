"""The contract of a representation: how a tensor's numbers become stored 64-bit words with a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Selection:
    """Which bits of the stored words of a tensor a mask protects.

    The stored bytes of a tensor are read as little-endian 64-bit words (the last one zero-padded). Word i belongs to
    the stream iff bit i % period of `keep` is set; of a word that belongs, the bits of `mask` are protected.

    Attributes:
        mask: 64-bit mask, bit 0 = least significant bit of the little-endian word; 0 = nothing is protected.
        period: of the word pattern; 1 where every word counts.
        keep: bitmap of the kept words of a period.
    """

    mask: int
    period: int = 1
    keep: int = 1


@dataclass(frozen=True)
class Losses:
    """What storing a tensor in a coarser representation cost.

    Attributes:
        rounded: elements whose restored value differs from the original.
        clipped: elements beyond the largest magnitude that can be represented.
        max_error: largest |restored - original|.
    """

    rounded: int = 0
    clipped: int = 0
    max_error: float = 0.0


class Representation(ABC):
    """How tensors of a dtype are stored. Works on chunks so that tensors larger than memory pass through.

    Attributes:
        name: the kind, as in specs.
        spec: canonical; `representations.make(representation.spec)` gives an equal one.
        group: elements that are stored together; chunks handed to `store` hold a multiple of it, except the last.
    """

    name: ClassVar[str]
    spec: str
    group: int

    @abstractmethod
    def applies(self, dtype: DType) -> bool:
        """Whether tensors of this dtype can be stored so; others stay native."""

    @abstractmethod
    def word_bits(self, dtype: DType) -> int:
        """Bits of the words that masks for this dtype speak of."""

    @abstractmethod
    def stored_bytes(self, dtype: DType, size: int) -> int:
        """Stored bytes for `size` bytes of elements of `dtype`."""

    @abstractmethod
    def select(self, dtype: DType, mask: str) -> Selection:
        """The selection for a mask string of '0' and '1', `word_bits` long, most significant bit first."""

    @abstractmethod
    def magnitude(self, dtype: DType, data: Bytes) -> float:
        """Largest magnitude of the elements in `data` (raw little-endian bytes); 0.0 where no scale is needed.

        Raises CheckpointError where an element cannot be represented (NaN, infinity)."""

    @abstractmethod
    def store(self, dtype: DType, data: Bytes, magnitude: float) -> tuple[Bytes, Losses]:
        """Stored bytes of a chunk of elements, `magnitude` being the tensor's."""

    @abstractmethod
    def restore(self, dtype: DType, stored: Bytes, magnitude: float, size: int) -> Bytes:
        """`size` bytes of elements in the original dtype from their stored bytes."""

    @abstractmethod
    def order(self, dtype: DType) -> str:
        """How the values of the words are ordered, one of those in `dtypes`."""

    @abstractmethod
    def words(self, dtype: DType, stored: Bytes, size: int) -> Words:
        """(elements,) words as masks speak of them, of `size` bytes of elements; a view of `stored` where it can be."""

    @abstractmethod
    def from_words(self, dtype: DType, words: Words) -> Bytes:
        """Stored bytes of words; a view of them where it can be."""

    @abstractmethod
    def touched(self, dtype: DType, bits: Bytes, size: int) -> npt.NDArray[np.bool_]:
        """Which elements (mask words, size * 8 // dtype.word_bits of them) have one of the given stored `bits` set.

        Args:
            bits: the stored bytes of the elements, as a bitmap.
        """

    @abstractmethod
    def null(self, dtype: DType, stored: Bytes, elements: npt.NDArray[np.bool_]) -> None:
        """Set the chosen elements (as in `touched`) to the word that restores to zero, in place."""
