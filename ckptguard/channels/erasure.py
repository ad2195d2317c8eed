"""Erasure: whole pages, sectors or packets are lost and read as something else."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey, alike
from ckptguard.channels.noise import binomial, geometric, of_2_to_63, probability, require_bytes, stream_key
from ckptguard.errors import SpecError
from ckptguard.spec import look_up

FILLS = {"random": -1, "zeros": 0, "ones": 255}
"""What lost content reads as; random bits, or every byte of one value."""

MOST_BYTES = 1 << 40

_GROUP_UNITS = 4096


class Erasure(Channel):
    """Loses every aligned unit of a file with probability p: independently, or in runs.

    Units are counted from the start of the file and may be smaller or larger than the 64 KiB blocks of the contract, or
    cross them. A lost unit reads as random bits (so half of them are still right), or as all zeros or ones. With a
    mean length of runs, lost units follow one another: a chain of two states, stationary, that starts afresh every 4096
    units; the length of a run is geometric.
    """

    name: ClassVar[str] = "erasure"

    def __init__(self, unit_bytes: int, p: float, fill: str = "random", run: float | None = None) -> None:
        if not 1 <= unit_bytes <= MOST_BYTES:
            raise SpecError(f"a unit of channel 'erasure' has 1 to 2**40 bytes, not {unit_bytes}")
        if run is not None and not (1.0 <= run <= _GROUP_UNITS and p <= run * (1.0 - p)):
            raise SpecError(
                f"the mean run of channel 'erasure' is 1 to {_GROUP_UNITS} units and at least p / (1 - p), not {run!r}"
            )
        self.unit_bytes, self.p, self.fill, self.run = unit_bytes, p, fill, run
        self._filled = look_up(FILLS, fill, "fill of channel 'erasure'")
        shown = [] if (fill, run) == ("random", None) else [fill] if run is None else [fill, repr(run)]
        self.spec = f"{self.name}:{','.join((str(unit_bytes), repr(p), *shown))}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Erasure:
        """The channel of the spec `erasure:bytes,p[,fill[,mean run]]`."""
        if not 2 <= len(settings) <= 4 or not (settings[0].isascii() and settings[0].isdecimal()):
            raise SpecError(
                f"channel 'erasure' is written erasure:bytes,p[,{'|'.join(FILLS)}[,mean run]], "
                f"as in erasure:4096,1e-3, not {','.join(settings)!r}"
            )
        run = _length(settings[3]) if len(settings) == 4 else None
        fill = settings[2] if len(settings) > 2 else "random"
        return cls(int(settings[0]), probability(settings[1], "p of channel 'erasure'"), fill, run)

    @property
    def bit_error_rate(self) -> float:
        """p / 2 for random content; p for zeros (of a stored 1) and ones (of a stored 0)."""
        return self.p / 2 if self.fill == "random" else self.p

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`."""
        if self.fill == "random":
            return alike(word_bits, self.p / 2, self.p / 2)
        return alike(word_bits, *((0.0, self.p) if self.fill == "zeros" else (self.p, 0.0)))

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Overwrite lost units of `data` in place; see `Channel.corrupt`."""
        from ckptguard.kernels import sampling

        require_bytes(data, first_block)
        if self.p == 0.0:
            return
        if self.run is not None:
            self._erase_runs(data, first_block, key)
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

    def _erase_runs(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        from ckptguard.kernels import sampling

        assert self.run is not None
        leave = 1.0 / self.run
        sampling.erase_runs(
            data,
            first_block * BLOCK_BYTES,
            self.unit_bytes,
            _GROUP_UNITS,
            stream_key(key, self.spec),
            stream_key(key, self.spec + " fill"),
            of_2_to_63(self.p),
            geometric(min(1.0, leave * self.p / (1.0 - self.p))),
            geometric(leave),
            self._filled,
        )


def _length(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"the mean run of channel 'erasure' is a number of units, not {text!r}") from None
