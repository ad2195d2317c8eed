"""The contract of a code: how the protected bits of a stream become codewords, and what a decoder says.

A stream is a sequence of 64-bit words (little endian) of which one mask, the same for every word, says which bits are
protected. It is cut into *units* of a fixed number of *tiles* (512 words, 4 KiB); only the last unit is shorter. Units
are coded independently of each other. Everything here works on one unit.

Bit 0 of a 64-bit mask is the least significant bit of the little-endian word (masks of elements, most significant bit
first, are turned into these by the representation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

TILE_WORDS = 512
TILE_BYTES = 8 * TILE_WORDS
LEAST_UNIT_TILES = 64
"""A full unit has at least so many tiles (256 KiB of a native stream), since every unit costs digests."""

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class UnitLayout:
    """How one unit is cut into codewords.

    Attributes:
        codewords: in the unit.
        message_bits: of each codeword, zero-padded where the unit's bits do not divide evenly.
        parity_bits: of each codeword.
        parity_bytes: stored for the whole unit; a multiple of 8.
    """

    codewords: int
    message_bits: int
    parity_bits: int
    parity_bytes: int


@dataclass(frozen=True)
class Decoded:
    """What the decoder says of every codeword of a unit; never a claim of exactness.

    Attributes:
        flips: (codewords,) int32; the number of bits it flipped back, message and parity together; 0 = the word
            was a codeword as read; -1 = uncorrectable, the word was left as read.
    """

    flips: npt.NDArray[np.int32]

    @property
    def uncorrectable(self) -> npt.NDArray[np.bool_]:
        """(codewords,) True where the decoder gave up."""
        result: npt.NDArray[np.bool_] = self.flips < 0
        return result


class Code(ABC):
    """A systematic code over the masked bits of a stream.

    Attributes:
        name: the kind, as in specs.
        spec: the canonical spec, parameters included; `codes.make(code.spec)` gives an equal code.
        n, k: codeword and message bits (0 and 0 for a code without parity).
        t: flips per codeword it always corrects.
    """

    name: ClassVar[str]
    spec: str
    n: int
    k: int
    t: int

    @property
    def redundancy(self) -> float:
        """Parity bits per protected bit, (n - k) / k."""
        return (self.n - self.k) / self.k if self.k else 0.0

    @abstractmethod
    def unit_tiles(self, planes: int) -> int:
        """Tiles in a full unit of a stream with `planes` protected bits (1..64) per word."""

    @abstractmethod
    def unit_layout(self, words: int, planes: int) -> UnitLayout:
        """Layout of a unit of `words` words (at most `unit_tiles(planes) * 512`) with `planes` protected bits each."""

    @abstractmethod
    def encode(self, words: Words, mask: int) -> Bytes:
        """Parity of a unit: (parity_bytes,) uint8. `words` is not changed."""

    @abstractmethod
    def check(self, words: Words, mask: int, parity: Bytes) -> npt.NDArray[np.bool_]:
        """(codewords,) True where what was read is not a codeword. Nothing is changed."""

    @abstractmethod
    def decode(self, words: Words, mask: int, parity: Bytes) -> Decoded:
        """Correct `words` (masked bits only) and `parity` in place, codeword by codeword; say what was done."""

    @abstractmethod
    def cover(self, codewords: npt.NDArray[np.bool_], words: int, mask: int) -> Words:
        """(words,) uint64, every protected bit set that belongs to a chosen one of the `codewords` (bool for each)."""

    @abstractmethod
    def failure_probability(self, bit_error_rate: float, codeword_bits: int) -> float:
        """Probability that a codeword of `codeword_bits` stored bits, flipped independently, is not decoded rightly."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    def __repr__(self) -> str:
        return f"<code {self.spec}>"
