"""Bursts: a chain of a good and a bad state, bit after bit.

Sources: E. N. Gilbert, Capacity of a Burst-Noise Channel, Bell Syst. Tech. J. 39, 1960; E. O. Elliott, Estimates of
Error Rates for Codes on Burst-Noise Channels, Bell Syst. Tech. J. 42, 1963.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey, alike
from ckptguard.channels.noise import geometric, of_2_to_63, probability, require_bytes, stream_key
from ckptguard.errors import SpecError

_SETTINGS = ("p_enter", "p_leave", "p_bad", "p_good")


class Burst(Channel):
    """Gilbert-Elliott channel on bits; bits of a byte follow one another from the least significant on.

    After each bit the good state becomes bad with probability p_enter and the bad one good with p_leave, so that bad
    stretches are 1 / p_leave bits long in the mean. A bit is read flipped with probability p_bad or p_good. The chain
    starts afresh, in its stationary distribution, every 64 KiB of the file: no burst crosses such a border.
    """

    name: ClassVar[str] = "burst"

    def __init__(self, p_enter: float, p_leave: float, p_bad: float, p_good: float = 0.0) -> None:
        if p_enter + p_leave == 0.0:
            raise SpecError("p_enter and p_leave of channel 'burst' cannot both be 0: no state would ever change")
        self.p_enter, self.p_leave, self.p_bad, self.p_good = p_enter, p_leave, p_bad, p_good
        shown = (p_enter, p_leave, p_bad) if p_good == 0.0 else (p_enter, p_leave, p_bad, p_good)
        self.spec = f"{self.name}:{','.join(map(repr, shown))}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Burst:
        """The channel of the spec `burst:p_enter,p_leave,p_bad[,p_good]`."""
        if len(settings) not in (3, 4):
            raise SpecError(
                "channel 'burst' is written burst:p_enter,p_leave,p_bad[,p_good], "
                f"as in burst:1e-6,1e-2,0.5, not {','.join(settings)!r}"
            )
        return cls(
            *(probability(text, f"{what} of channel 'burst'") for text, what in zip(settings, _SETTINGS, strict=False))
        )

    @property
    def bad_share(self) -> float:
        """Stationary probability of the bad state."""
        return self.p_enter / (self.p_enter + self.p_leave)

    @property
    def bit_error_rate(self) -> float:
        """Mean over both states."""
        return self.bad_share * self.p_bad + (1.0 - self.bad_share) * self.p_good

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`."""
        return alike(word_bits, self.bit_error_rate, self.bit_error_rate)

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Flip bits of `data` in place; see `Channel.corrupt`."""
        from ckptguard.kernels import sampling

        require_bytes(data, first_block)
        none = np.zeros(0, np.uint64)
        sampling.flip_bursts(
            data,
            BLOCK_BYTES,
            first_block,
            stream_key(key, self.spec),
            of_2_to_63(self.bad_share),
            geometric(self.p_enter),
            geometric(self.p_leave),
            geometric(self.p_bad) if self.p_bad else none,
            geometric(self.p_good) if self.p_good else none,
        )
