"""Erasure: whole pages, sectors or packets are lost and read as something else."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey
from ckptguard.channels.noise import binomial, probability, require_bytes, stream_key
from ckptguard.errors import SpecError
from ckptguard.spec import look_up

FILLS = {"random": -1, "zeros": 0, "ones": 255}
"""What lost content reads as; random bits, or every byte of one value."""

MOST_BYTES = 1 << 40


class Erasure(Channel):
    """Loses every aligned unit of a file with probability p, independently.

    Units are counted from the start of the file and may be smaller or larger than the 64 KiB blocks of the contract, or
    cross them. A lost unit reads as random bits (so half of them are still right), or as all zeros or ones.
    """

    name: ClassVar[str] = "erasure"

    def __init__(self, unit_bytes: int, p: float, fill: str = "random") -> None:
        if not 1 <= unit_bytes <= MOST_BYTES:
            raise SpecError(f"a unit of channel 'erasure' has 1 to 2**40 bytes, not {unit_bytes}")
        self.unit_bytes, self.p, self.fill = unit_bytes, p, fill
        self._filled = look_up(FILLS, fill, "fill of channel 'erasure'")
        self.spec = f"{self.name}:{unit_bytes},{p!r}" + ("" if fill == "random" else f",{fill}")

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Erasure:
        """The channel of the spec `erasure:bytes,p[,fill]`."""
        if len(settings) not in (2, 3) or not (settings[0].isascii() and settings[0].isdecimal()):
            raise SpecError(
                f"channel 'erasure' is written erasure:bytes,p[,{'|'.join(FILLS)}], "
                f"as in erasure:4096,1e-3, not {','.join(settings)!r}"
            )
        return cls(int(settings[0]), probability(settings[1], "p of channel 'erasure'"), *settings[2:])

    @property
    def bit_error_rate(self) -> float:
        """p / 2 for random content; p for zeros (of a stored 1) and ones (of a stored 0)."""
        return self.p / 2 if self.fill == "random" else self.p

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Overwrite lost units of `data` in place; see `Channel.corrupt`."""
        from ckptguard.kernels import sampling

        require_bytes(data, first_block)
        if self.p == 0.0:
            return
        group_units = max(1, BLOCK_BYTES // self.unit_bytes)
        few, complement = (1.0 - self.p, True) if self.p > 0.5 else (self.p, False)
        thresholds, least = binomial(group_units, few)
        sampling.erase_units(
            data,
            first_block * BLOCK_BYTES,
            self.unit_bytes,
            group_units,
            stream_key(key, self.spec),
            stream_key(key, self.spec + " fill"),
            thresholds,
            least,
            complement,
            self._filled,
        )
