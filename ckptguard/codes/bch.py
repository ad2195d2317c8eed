"""Primitive narrow-sense binary BCH codes, named by length and message bits: `bch:8191,6722`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.codes.lanes import LaneCode, Rows
from ckptguard.errors import SpecError, UsageError
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
    def from_settings(cls, settings: tuple[str, ...]) -> Bch:
        """The code of `bch:n,k`."""
        if len(settings) != 2 or not all(setting.isascii() and setting.isdigit() for setting in settings):
            raise SpecError(
                f"bch takes two whole numbers, the codeword bits n and the message bits k, as in 'bch:8191,6722'; "
                f"found {','.join(settings)!r}"
            )
        return cls(int(settings[0]), int(settings[1]))

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
        return binomial_tail(codeword_bits, self.t, bit_error_rate)

    def _tables(self) -> Tables:
        from ckptguard.kernels import bch

        return bch.bch_tables(self.n.bit_length(), self.t)


def _correctable(n: int, k: int) -> int:
    m = n.bit_length()
    if n != (1 << m) - 1 or not algebra.MIN_M <= m <= algebra.MAX_M:
        lengths = [(1 << i) - 1 for i in range(algebra.MIN_M, algebra.MAX_M + 1)]
        nearest = min(lengths, key=lambda length: abs(length - n))
        raise SpecError(
            f"bch:{n},{k}: n must be 2^m - 1, one of {', '.join(map(str, lengths))}; "
            f"the nearest with about as many parity bits: {_listed(nearest, k + nearest - n)}"
        )
    table = algebra.codes(m)
    if k not in table:
        raise SpecError(f"bch:{n},{k}: there is no such code; the nearest: {_listed(n, k)}")
    return table[k]


def _listed(n: int, k: int) -> str:
    return ", ".join(f"bch:{n},{other} (t = {t})" for other, t in algebra.nearest_codes(n.bit_length(), k))


def binomial_tail(trials: int, most: int, probability: float) -> float:
    """P(X > most) for binomial X, to about 12 digits wherever the result is a normal float.

    Raises:
        UsageError: `probability` is not within 0..1.
    """
    if not 0.0 <= probability <= 1.0:
        raise UsageError(f"a bit error rate is a probability, 0 to 1; found {probability}")
    if most >= trials or probability == 0.0:
        return 0.0
    if probability == 1.0:
        return 1.0
    if most + 1 >= trials * probability:
        return _sum_away(trials, most + 1, probability)
    return 1.0 - _sum_away(trials, trials - most, 1.0 - probability)


def _sum_away(trials: int, first: int, probability: float) -> float:
    """P(X >= first) where first is not below the mean, so that the terms fall."""
    odds = probability / (1.0 - probability)
    log_first = (
        math.log(math.comb(trials, first)) + first * math.log(probability) + (trials - first) * math.log1p(-probability)
    )
    total = term = 1.0
    for i in range(first, trials):
        term *= (trials - i) / (i + 1) * odds
        if term < 1e-18 * total:
            break
        total += term
    return math.exp(log_first + math.log(total)) if log_first > -800.0 else 0.0
