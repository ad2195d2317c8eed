"""Clusters: several flips inside one small aligned unit, as one particle or one failing line leaves them.

Source of the shape (multi-bit upsets of HBM2 keep within a byte or a word): M. B. Sullivan et al., Characterizing and
Mitigating Soft Errors in GPU DRAM, MICRO 2021.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey, alike
from ckptguard.channels.noise import binomial, probability, require_bytes, stream_key
from ckptguard.errors import SpecError

MOST_FLIPS = 64
MOST_BYTES = 8192


class Cluster(Channel):
    """Hits every aligned unit with probability p, independently, and flips `least` to `most` of its bits.

    Each number of flips and each set of places is equally likely. Units are counted from the start of the file.
    """

    name: ClassVar[str] = "cluster"

    def __init__(self, p: float, least: int, most: int, unit_bytes: int = 1) -> None:
        if not 1 <= unit_bytes <= MOST_BYTES or unit_bytes & (unit_bytes - 1):
            raise SpecError(f"a unit of channel 'cluster' has 1, 2, 4 ... {MOST_BYTES} bytes, not {unit_bytes}")
        if not 1 <= least <= most <= min(MOST_FLIPS, 8 * unit_bytes):
            raise SpecError(
                f"flips of channel 'cluster' are 1 <= least <= most <= {min(MOST_FLIPS, 8 * unit_bytes)} "
                f"in units of {unit_bytes} bytes, not {least} and {most}"
            )
        self.p, self.least, self.most, self.unit_bytes = p, least, most, unit_bytes
        self.spec = f"{self.name}:{p!r},{least},{most}" + ("" if unit_bytes == 1 else f",{unit_bytes}")

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Cluster:
        """The channel of the spec `cluster:p,least,most[,bytes]`."""
        whole = all(text.isascii() and text.isdecimal() for text in settings[1:])
        if len(settings) not in (3, 4) or not whole:
            raise SpecError(
                "channel 'cluster' is written cluster:p,least flips,most flips[,bytes of a unit], "
                f"as in cluster:1e-6,2,8, not {','.join(settings)!r}"
            )
        return cls(probability(settings[0], "p of channel 'cluster'"), *map(int, settings[1:]))

    @property
    def bit_error_rate(self) -> float:
        """p times the mean number of flips per bit of a unit."""
        return self.p * (self.least + self.most) / (16 * self.unit_bytes)

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`."""
        return alike(word_bits, self.bit_error_rate, self.bit_error_rate)

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Flip bits of `data` in place; see `Channel.corrupt`."""
        from ckptguard.kernels import sampling

        require_bytes(data, first_block)
        stream = stream_key(key, self.spec)
        if self.p == 0.0:
            return
        few, complement = (1.0 - self.p, True) if self.p > 0.5 else (self.p, False)
        sampling.flip_clusters(
            data,
            BLOCK_BYTES,
            first_block,
            self.unit_bytes,
            stream,
            *binomial(BLOCK_BYTES // self.unit_bytes, few),
            complement,
            self.least,
            self.most,
        )
