"""No code: bits are stored as they are and whatever is read is believed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.codes.base import LEAST_UNIT_TILES, Bytes, Code, Decoded, UnitLayout, Words
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError


class NoCode(Code):
    """No parity and no codewords; every read is accepted."""

    name: ClassVar[str] = "none"

    def __init__(self) -> None:
        self.spec = self.name
        self.n = self.k = self.t = 0

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> NoCode:
        """The code of the spec `none`."""
        if settings:
            raise SpecError(f"code 'none' takes no settings, not {','.join(settings)!r}")
        return cls()

    def unit_tiles(self, planes: int) -> int:
        """The least there is; units are grains of digest only."""
        return LEAST_UNIT_TILES

    def unit_layout(self, words: int, planes: int) -> UnitLayout:
        """No codewords and no parity."""
        return UnitLayout(codewords=0, message_bits=0, parity_bits=0, parity_bytes=0)

    def encode(self, words: Words, mask: int) -> Bytes:
        """(0,) uint8."""
        return np.zeros(0, np.uint8)

    def check(self, words: Words, mask: int, parity: Bytes) -> npt.NDArray[np.bool_]:
        """(0,) bool."""
        return np.zeros(0, np.bool_)

    def decode(self, words: Words, mask: int, parity: Bytes) -> Decoded:
        """(0,) flips; nothing is changed."""
        return Decoded(np.zeros(0, np.int32))

    def cover(self, codewords: npt.NDArray[np.bool_], words: int, mask: int) -> Words:
        """(words,) zeros."""
        return np.zeros(words, np.uint64)

    def failure_probability(self, bit_error_rate: float, codeword_bits: int) -> float:
        """Probability of any flip among `codeword_bits` bits."""
        return binomial_tail(codeword_bits, bit_error_rate, 0)
