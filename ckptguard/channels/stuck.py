"""Stuck cells: a map of bits that read the same value whatever was written.

Source of the nesting (a cell that fails at one supply voltage fails at every lower one): D. Stutz, N. Chandramoorthy,
M. Hein, B. Schiele, Bit Error Robustness for Energy-Efficient DNN Accelerators, MLSys 2021.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey, alike
from ckptguard.channels.noise import PART_BYTES, binomial, of_2_to_63, probability, require_bytes, stream_key
from ckptguard.errors import SpecError

_LOWEST = 20  # the first shell ends at 2**-20, each next one at twice that, the last at 1/2


class Stuck(Channel):
    """Reads a share p of all bits as stuck, at 1 with the probability `ones` and else at 0.

    Every bit has a number u, uniform in 0 .. 1, and is stuck if u < p: what is stuck at p is stuck, at the same value,
    at every larger p. A stuck bit errs in this reading with the probability `access`. The map follows from the seed and
    the shard; or, where `die` is given, from that number and the shard alone, so that seeds differ in nothing but which
    readings err.
    """

    name: ClassVar[str] = "stuck"

    def __init__(self, p: float, ones: float = 0.5, access: float = 1.0, die: int | None = None) -> None:
        if p > 0.5:
            raise SpecError(f"p of channel 'stuck' is at most 0.5, not {p!r}")
        if die is not None and not 0 <= die < 1 << 64:
            raise SpecError(f"die of channel 'stuck' is a whole number in 0 .. 2**64 - 1, not {die}")
        self.p, self.ones, self.access, self.die = p, ones, access, die
        shown = [repr(p)]
        if (ones, access, die) != (0.5, 1.0, None):
            shown.append(repr(ones))
        if (access, die) != (1.0, None):
            shown.append(repr(access))
        if die is not None:
            shown.append(str(die))
        self.spec = f"{self.name}:{','.join(shown)}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Stuck:
        """The channel of the spec `stuck:p[,ones[,access[,die]]]`."""
        if not 1 <= len(settings) <= 4:
            raise SpecError(
                "channel 'stuck' is written stuck:p[,share stuck at 1[,probability to err per access[,die]]], "
                f"as in stuck:1e-3,0.5, not {','.join(settings)!r}"
            )
        names = ("p", "the share stuck at 1", "the probability per access")
        given = (*settings[:3], *("", "0.5", "1")[len(settings) :])
        p, ones, access = (
            probability(text, f"{what} of channel 'stuck'") for text, what in zip(given, names, strict=True)
        )
        die = None
        if len(settings) == 4:
            if not (settings[3].isascii() and settings[3].isdecimal()):
                raise SpecError(f"die of channel 'stuck' is a whole number, not {settings[3]!r}")
            die = int(settings[3])
        return cls(p, ones, access, die)

    @property
    def bit_error_rate(self) -> float:
        """p times the share stuck at 1 (of a stored 0) or at 0 (of a stored 1), the larger one, times access."""
        return self.p * max(self.ones, 1.0 - self.ones) * self.access

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`; a map that is not known counts as drawn anew."""
        errs = self.p * self.access
        return alike(word_bits, errs * self.ones, errs * (1.0 - self.ones))

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Overwrite stuck bits of `data` in place; see `Channel.corrupt`."""
        from ckptguard.kernels import sampling

        require_bytes(data, first_block)
        cells = stream_key(key if self.die is None else NoiseKey(self.die, key.shard), self.name)
        reading = stream_key(key, f"{self.name} access")
        if self.p == 0.0:
            return
        last = next(shell for shell in range(_LOWEST) if self.p <= 2.0 ** (shell - _LOWEST))
        low = 0.0 if last == 0 else 2.0 ** (last - _LOWEST - 1)
        kept = of_2_to_63((self.p - low) / (2.0 ** (last - _LOWEST) - low))
        first_part = first_block * (BLOCK_BYTES // PART_BYTES)
        whole = data.size - data.size % PART_BYTES
        for piece, part_bytes, part in (
            (data[:whole], PART_BYTES, first_part),
            (data[whole:], data.size - whole, first_part + whole // PART_BYTES),
        ):
            if piece.size:
                tables = _shells(8 * part_bytes, last + 1)
                share = of_2_to_63(self.ones), of_2_to_63(self.access)
                sampling.stick(piece, part_bytes, part, cells, reading, *tables, kept, *share)


@lru_cache(maxsize=64)
def _shells(bits: int, count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distribution of how many of `bits` bits each of the first `count` shells chooses; see `sampling.stick`.

    A shell from a to b chooses each bit with probability (b - a) / (1 - a), whether or not an earlier one has.
    """
    tables = []
    for shell in range(count):
        low = 0.0 if shell == 0 else 2.0 ** (shell - _LOWEST - 1)
        tables.append(binomial(bits, (2.0 ** (shell - _LOWEST) - low) / (1.0 - low)))
    starts = np.cumsum([0, *(len(thresholds) for thresholds, _ in tables)], dtype=np.int64)
    return np.concatenate([thresholds for thresholds, _ in tables]), starts, np.array([least for _, least in tables])
