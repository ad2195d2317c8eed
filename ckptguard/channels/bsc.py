"""The binary symmetric channel: every stored bit is read flipped with one probability, independently."""

from __future__ import annotations

import sys
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey, alike
from ckptguard.channels.noise import PART_BYTES, binomial, of_2_to_63, probability, require_bytes, stream_key
from ckptguard.errors import SpecError


def flip(
    data: npt.NDArray[np.uint8], first_block: int, key: np.uint64, p: float, rarer: int = -1, share: float = 0.0
) -> None:
    """Make every bit a candidate with probability p and flip the candidates.

    Args:
        rarer: 0 or 1: a candidate that holds this value is flipped with probability `share` only.
    """
    from ckptguard.kernels import sampling

    if p == 0.0:
        return
    first_part = first_block * (BLOCK_BYTES // PART_BYTES)
    whole = data.size - data.size % PART_BYTES
    few, complement = (1.0 - p, True) if p > 0.5 else (p, False)
    for piece, part_bytes, part in (
        (data[:whole], PART_BYTES, first_part),
        (data[whole:], data.size - whole, first_part + whole // PART_BYTES),
    ):
        if not piece.size:
            continue
        thresholds, least = binomial(8 * part_bytes, few)
        if rarer < 0 and _is_words(piece, part_bytes):
            sampling.flip_words(piece.view(np.uint64), part, key, thresholds, least, complement)
        else:
            sampling.flip_bits(piece, part_bytes, part, key, thresholds, least, complement, rarer, of_2_to_63(share))


def _is_words(piece: npt.NDArray[np.uint8], part_bytes: int) -> bool:
    """Whether parts are whole and can be taken as this machine's words."""
    return part_bytes == PART_BYTES and sys.byteorder == "little" and piece.ctypes.data % 8 == 0


class Bsc(Channel):
    """Flips every bit with probability p, independently.

    The number of flips of each 8192 bytes is binomial (exact to 2**-64), every set of places equally likely.
    """

    name: ClassVar[str] = "bsc"

    def __init__(self, p: float) -> None:
        self.p = p
        self.spec = f"{self.name}:{p!r}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Bsc:
        """The channel of the spec `bsc:p`."""
        if len(settings) != 1:
            raise SpecError(f"channel 'bsc' is written bsc:p, as in bsc:1e-4, not {','.join(settings)!r}")
        return cls(probability(settings[0], "p of channel 'bsc'"))

    @property
    def bit_error_rate(self) -> float:
        """p."""
        return self.p

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`."""
        return alike(word_bits, self.p, self.p)

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Flip bits of `data` in place; see `Channel.corrupt`."""
        require_bytes(data, first_block)
        flip(data, first_block, stream_key(key, self.spec), self.p)
