"""The binary asymmetric channel: stored zeros and stored ones are read wrong with probabilities of their own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import Channel, NoiseKey, alike
from ckptguard.channels.bsc import flip
from ckptguard.channels.noise import probability, require_bytes, stream_key
from ckptguard.errors import SpecError


class Asymmetric(Channel):
    """Reads a stored 0 as 1 with probability p01 and a stored 1 as 0 with probability p10, independently.

    Every bit is a candidate with the larger probability; a candidate of the value that errs more rarely is flipped with
    the ratio of the two. That is the exact distribution, whatever is stored.
    """

    name: ClassVar[str] = "asymmetric"

    def __init__(self, p01: float, p10: float) -> None:
        self.p01, self.p10 = p01, p10
        self.spec = f"{self.name}:{p01!r},{p10!r}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Asymmetric:
        """The channel of the spec `asymmetric:p01,p10`."""
        if len(settings) != 2:
            raise SpecError(
                "channel 'asymmetric' is written asymmetric:p01,p10 (0 read as 1, 1 read as 0), "
                f"as in asymmetric:1e-6,1e-4, not {','.join(settings)!r}"
            )
        p01, p10 = (
            probability(text, f"{what} of channel 'asymmetric'")
            for text, what in zip(settings, ("p01", "p10"), strict=True)
        )
        return cls(p01, p10)

    @property
    def bit_error_rate(self) -> float:
        """The larger of both."""
        return max(self.p01, self.p10)

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`."""
        return alike(word_bits, self.p01, self.p10)

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Flip bits of `data` in place; see `Channel.corrupt`."""
        require_bytes(data, first_block)
        most, least = max(self.p01, self.p10), min(self.p01, self.p10)
        rarer = 0 if self.p01 < self.p10 else 1
        share = least / most if most else 0.0
        flip(data, first_block, stream_key(key, self.spec), most, rarer, share)
