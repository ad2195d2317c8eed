"""The contract of a channel: what a medium does to stored bytes between writing and reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 16
"""Channels draw per block of this many stored bytes, so that any partition of the work gives the same flips."""


@dataclass(frozen=True)
class NoiseKey:
    """What the random numbers of a block are keyed by, beside the block's index in its file.

    Attributes:
        seed: of the run, 0 .. 2**64 - 1.
        shard: which file of a container set; a name or number, hashed.
    """

    seed: int
    shard: str = ""


class Channel(ABC):
    """A medium's effect on stored bits.

    Attributes:
        name: the kind, as in specs.
        spec: canonical, parameters included; `channels.make(channel.spec)` gives an equal channel.
    """

    name: ClassVar[str]
    spec: str

    @property
    @abstractmethod
    def bit_error_rate(self) -> float:
        """Probability that a stored bit is read flipped, over all positions; the worse of 0 and 1 where they differ."""

    @abstractmethod
    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """Probability that a stored 0 and a stored 1 at each bit position of a word flips.

        Everything that is not known is averaged over: where in the file the word lies, and its other bits, taken as
        equally likely zeros and ones. Positions of one word may flip together; that is not in these numbers.

        Args:
            word_bits: of a stored word; its bytes are little endian.
        Returns:
            (word_bits, 2) float64; row 0 is the most significant bit, column 0 a stored 0.
        """

    @abstractmethod
    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Flip bits of `data` in place.

        Args:
            data: contiguous bytes of one stored file, starting at byte `first_block * BLOCK_BYTES` of it; only the
                file's last block may be short.
            key: with the block index it determines every flip; calling this block by block or all at once, in any
                order and from any thread, gives the same bytes.
        """


def alike(word_bits: int, p01: float, p10: float) -> npt.NDArray[np.float64]:
    """The flip probabilities of a medium to which all positions of a word are alike."""
    return np.tile(np.array([p01, p10]), (word_bits, 1))
