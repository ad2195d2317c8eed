"""Composites: several channels, one after the other."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import Channel, NoiseKey


class Composite(Channel):
    """Sends data through each of its channels in turn.

    A part draws what it would draw alone; where equal parts come twice, the later ones draw anew.
    """

    name: ClassVar[str] = "composite"

    def __init__(self, parts: tuple[Channel, ...]) -> None:
        self.parts = parts
        self.spec = "+".join(part.spec for part in parts)

    @property
    def bit_error_rate(self) -> float:
        """Probability that an odd number of parts flip a bit; the mean over positions, the worse of 0 and 1."""
        return float(self.flip_probability(64).mean(axis=0).max())

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`; parts count as independent."""
        total = np.zeros((word_bits, 2))
        for part in self.parts:
            later = part.flip_probability(word_bits)
            total = total * (1.0 - later[:, ::-1]) + (1.0 - total) * later
        return total

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Corrupt `data` in place, part by part; see `Channel.corrupt`."""
        seen: list[str] = []
        for part in self.parts:
            again = seen.count(part.spec)
            part.corrupt(data, first_block, NoiseKey(key.seed, f"{key.shard}\0again {again}") if again else key)
            seen.append(part.spec)
