"""Primitive narrow-sense binary BCH codes, named by length and message bits: `bch:8191,6722`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.codes.lanes import LaneCode, Rows
from ckptguard.codes.outer import Outer
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError
from ckptguard.kernels import algebra

if TYPE_CHECKING:
    from ckptguard.kernels.bch import Tables


class Bch(LaneCode):
    """The BCH code of length n = 2^m - 1 (m = 3..14) with k message bits; it corrects up to t flips.

    t is that of the Bose distance, which can be more than (n - k) / m: 115 for (8191, 6722).
    Generator and field are those of Lin and Costello, Error Control Coding, 2nd ed., table 2.7 and section 6.1.
    """

    name: ClassVar[str] = "bch"

    def __init__(self, n: int, k: int) -> None:
        """Raises SpecError, naming the codes nearby, if there is no such code."""
        self.n, self.k, self.t = n, k, _correctable(n, k)
        self.spec = f"bch:{n},{k}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> LaneCode:
        """The code of `bch:n,k`, or of `bch:n,k,outer=r` with r outer words per group of 512 codewords."""
        outer = [setting.removeprefix("outer=") for setting in settings[2:]]
        numbers = [*settings[:2], *outer]
        if (
            len(settings) not in (2, 3)
            or any(setting == kept for setting, kept in zip(settings[2:], outer, strict=True))
            or not all(number.isascii() and number.isdigit() for number in numbers)
        ):
            raise SpecError(
                f"bch takes two whole numbers, the codeword bits n and the message bits k, as in 'bch:8191,6722', and "
                f"the outer words if there are any, as in 'bch:8191,6722,outer=10'; found {','.join(settings)!r}"
            )
        inner = cls(int(settings[0]), int(settings[1]))
        return Outer(inner, int(outer[0])) if outer else inner

    def encode_rows(self, message: Rows) -> Rows:
        """(n - k, lane_words) parity rows of (message_bits <= k, lane_words) message rows."""
        from ckptguard.kernels import bch

        return bch.encode(self._tables(), message)

    def check_rows(self, message: Rows, parity: Rows) -> Rows:
        """(lane_words,) uint64 with a bit set for every lane that is not a codeword."""
        from ckptguard.kernels import bch

        return bch.check(self._tables(), message, parity)

    def decode_rows(self, message: Rows, parity: Rows) -> npt.NDArray[np.int32]:
        """Correct both in place; (64 * lane_words,) flips per lane, -1 = uncorrectable.

        A corrected lane is a codeword at most t flips away from what was read. For short codes with small t that
        codeword is often not the one stored: half of the words beyond t = 2 of (255, 239) are taken for another.
        """
        from ckptguard.kernels import bch

        return bch.decode(self._tables(), message, parity)

    def failure_probability(self, bit_error_rate: float, codeword_bits: int) -> float:
        """Probability of more than t flips among `codeword_bits` (at most n) independent ones; exact, not a bound.

        Raises:
            UsageError: the rate is no probability.
        """
        return binomial_tail(codeword_bits, bit_error_rate, self.t)

    def _tables(self) -> Tables:
        from ckptguard.kernels import bch

        return bch.bch_tables(self.n.bit_length(), self.t)


def _correctable(n: int, k: int) -> int:
    m = n.bit_length()
    if n != (1 << m) - 1 or not algebra.MIN_M <= m <= algebra.MAX_M:
        lengths = [(1 << i) - 1 for i in range(algebra.MIN_M, algebra.MAX_M + 1)]
        nearest = min(lengths, key=lambda length: abs(length - n))
        raise SpecError(
            f"bch:{n},{k}: n must be 2^m - 1, one of {_lengths()}; "
            f"the nearest with about as many parity bits: {_listed(nearest, k + nearest - n)}"
        )
    table = algebra.codes(m)
    if k not in table:
        raise SpecError(f"bch:{n},{k}: there is no such code; the nearest: {_listed(n, k)}")
    return table[k]


def _listed(n: int, k: int) -> str:
    return ", ".join(f"bch:{n},{other} (t = {t})" for other, t in algebra.nearest_codes(n.bit_length(), k))


def dimensions(n: int) -> list[int]:
    """Every k for which there is a BCH code of length n, largest first. Raises SpecError for no such length."""
    m = n.bit_length()
    if n != (1 << m) - 1 or not algebra.MIN_M <= m <= algebra.MAX_M:
        raise SpecError(f"there are no BCH codes of length {n}; lengths are {_lengths()}")
    return list(algebra.codes(m))


def _lengths() -> str:
    return ", ".join(str((1 << m) - 1) for m in range(algebra.MIN_M, algebra.MAX_M + 1))
