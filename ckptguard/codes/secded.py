"""Single-error-correcting, double-error-detecting codes of one memory word, laid out in lanes.

The columns of the check matrix are odd-weight (Hsiao): message bit i of a full codeword has the i-th of the words of
n - k bits that have odd weight of at least 3, ordered by weight, then by value; parity bit r has the column 2**r. Two
flips add up to an even weight, which is no column, so that every double error is detected; three or more may be taken
for one.
Source: M. Y. Hsiao, A Class of Optimal Minimum Odd-weight-column SEC-DED Codes, IBM J. Res. Dev. 14(4), 1970.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.codes.lanes import LaneCode, Rows
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError

SIZES = ((72, 64), (64, 57), (39, 32), (32, 26))
"""(n, k) of the kinds on offer."""


class SecDed(LaneCode):
    """Extended Hamming code with odd-weight columns; corrects one flip per codeword and detects two."""

    name: ClassVar[str] = "secded"

    def __init__(self, n: int, k: int) -> None:
        if (n, k) not in SIZES:
            known = ", ".join(f"{n},{k}" for n, k in SIZES)
            raise SpecError(f"code 'secded' has no size {n},{k}; known: {known}")
        self.spec = f"{self.name}:{n},{k}"
        self.n, self.k, self.t = n, k, 1
        self.columns = _odd_columns(n - k)[:k]

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> SecDed:
        """The code of the spec `secded:n,k`."""
        if len(settings) != 2 or not all(part.isascii() and part.isdecimal() for part in settings):
            raise SpecError(f"code 'secded' is written secded:n,k, as in secded:72,64, not {','.join(settings)!r}")
        return cls(int(settings[0]), int(settings[1]))

    def encode_rows(self, message: Rows) -> Rows:
        """(n - k, lane_words) parity rows of (message_bits <= k, lane_words) message rows."""
        return self._sums(message)[: self.n - self.k]

    def check_rows(self, message: Rows, parity: Rows) -> Rows:
        """(lane_words,) uint64 with a bit set for every lane that is not a codeword."""
        from ckptguard.kernels import secded

        dirty = np.zeros(message.shape[1], np.uint64)
        secded.any_of(self._sums(message, parity), dirty)
        return dirty

    def decode_rows(self, message: Rows, parity: Rows) -> npt.NDArray[np.int32]:
        """Correct both in place; (64 * lane_words,) flips per lane, -1 = uncorrectable."""
        from ckptguard.kernels import secded

        flips = np.zeros(64 * message.shape[1], np.int32)
        secded.correct(message, parity, self._sums(message, parity), self._of(message), flips)
        return flips

    def failure_probability(self, bit_error_rate: float, codeword_bits: int) -> float:
        """Probability of two or more flips among `codeword_bits` bits."""
        return binomial_tail(codeword_bits, bit_error_rate, 1)

    def _of(self, message: Rows) -> npt.NDArray[np.uint8]:
        """Columns of a shortened message, which lacks leading bits."""
        return self.columns[self.k - message.shape[0] :]

    def _sums(self, message: Rows, parity: Rows | None = None) -> Rows:
        """(8, lane_words) check rows of the message, with the parity added."""
        from ckptguard.kernels import secded

        sums = np.zeros((secded.CHECKS, message.shape[1]), np.uint64)
        if parity is not None:
            sums[: self.n - self.k] = parity
        secded.check_sums(message, self._of(message), sums)
        return sums


def _odd_columns(checks: int) -> npt.NDArray[np.uint8]:
    """Words of `checks` bits that have odd weight of at least 3, by weight, then by value."""
    words = [word for word in range(1 << checks) if word.bit_count() % 2 and word.bit_count() > 1]
    return np.array(sorted(words, key=lambda word: (word.bit_count(), word)), np.uint8)
