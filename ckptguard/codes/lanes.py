"""Codes whose codewords lie side by side, bit by bit, in lanes.

Flat order of a unit's protected bits: tile by tile; within a tile, protected bit position by position (least significant
first); within a position, word by word (512 words in a full tile, fewer in the last tile of a stream). With B such bits
and C codewords, message bit i of codeword c is flat bit c + C*i (zero where that is beyond B), i = 0 .. ceil(B/C) - 1.
A full unit has C a multiple of 512, so that consecutive words belong to different codewords; a shorter unit has
C = ceil(B / k), the fewest codewords that hold it. Parity is stored in the same order: parity bit i of codeword c is bit
c + C*i of the unit's parity, bit b of it being bit b % 8 (least significant = 0) of byte b // 8.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from ckptguard.codes.base import Code

Rows = npt.NDArray[np.uint64]


class LaneCode(Code):
    """A block code applied to many lanes at once; a kind supplies three functions on rows of lanes.

    Rows are (bits, lane_words) uint64: row i holds bit i of every codeword, codeword c in bit c % 64 of column c // 64.
    lane_words is a multiple of 8 (so 512, 1024, ... lanes); lanes beyond the unit's codewords are zero.
    Bit 0 of a message is the coefficient of the highest power; shortened messages lack leading (zero) bits.
    """

    @abstractmethod
    def encode_rows(self, message: Rows) -> Rows:
        """(n - k, lane_words) parity rows of (message_bits <= k, lane_words) message rows."""

    @abstractmethod
    def check_rows(self, message: Rows, parity: Rows) -> Rows:
        """(lane_words,) uint64 with a bit set for every lane that is not a codeword."""

    @abstractmethod
    def decode_rows(self, message: Rows, parity: Rows) -> npt.NDArray[np.int32]:
        """Correct both in place; (64 * lane_words,) flips per lane, -1 = uncorrectable."""
