"""SEC-DED on rows of lanes: vertical XOR networks, and the match of every column of the check matrix at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

U64 = npt.NDArray[np.uint64]
CHECKS = 8
"""Check rows of the working arrays; codes with fewer leave the rest zero."""


@njit(cache=True, nogil=True)
def check_sums(message: U64, columns: npt.NDArray[np.uint8], sums: U64) -> None:
    """XOR into check row r every message row whose column has bit r.

    Args:
        message: (bits, lane_words) uint64, lane_words a multiple of 8.
        columns: (bits,) uint8.
        sums: (8, lane_words) uint64, changed in place.
    """
    chosen = np.empty(message.shape[0] + 4, np.int64)
    for r in range(CHECKS):
        count = 0
        for i in range(message.shape[0]):
            if (columns[i] >> np.uint8(r)) & np.uint8(1):
                chosen[count] = i
                count += 1
        target = sums[r]
        j = 0
        while j + 4 <= count:
            a = message[chosen[j]]
            b = message[chosen[j + 1]]
            c = message[chosen[j + 2]]
            d = message[chosen[j + 3]]
            for column in range(target.size):
                target[column] ^= (a[column] ^ b[column]) ^ (c[column] ^ d[column])
            j += 4
        while j < count:
            a = message[chosen[j]]
            for column in range(target.size):
                target[column] ^= a[column]
            j += 1


@njit(cache=True, nogil=True)
def correct(
    message: U64, parity: U64, syndrome: U64, columns: npt.NDArray[np.uint8], flips: npt.NDArray[np.int32]
) -> None:
    """Flip the one bit a syndrome points at; a syndrome that is no column is uncorrectable.

    Args:
        message: (bits, lane_words) uint64, corrected in place.
        parity: (checks <= 8, lane_words) uint64, corrected in place.
        syndrome: (8, lane_words) uint64.
        columns: (bits,) uint8, all different and of odd weight of at least 3.
        flips: (64 * lane_words,) int32 of zeros; 1 and -1 are written.
    """
    bits = message.shape[0]
    dirty = np.empty(8, np.uint64)
    found = np.empty(8, np.uint64)
    match = np.empty(8, np.uint64)
    for begin in range(0, syndrome.shape[1], 8):
        seen = np.uint64(0)
        for column in range(8):
            some = np.uint64(0)
            for r in range(CHECKS):
                some |= syndrome[r, begin + column]
            dirty[column] = some
            found[column] = np.uint64(0)
            seen |= some
        if seen == np.uint64(0):
            continue
        for i in range(bits + parity.shape[0]):
            pattern = np.int64(columns[i]) if i < bits else np.int64(1) << np.int64(i - bits)
            for column in range(8):
                match[column] = dirty[column]
            for r in range(CHECKS):
                wrong = np.uint64(0) if (pattern >> r) & 1 else ~np.uint64(0)
                for column in range(8):
                    match[column] &= syndrome[r, begin + column] ^ wrong
            target = message[i] if i < bits else parity[i - bits]
            for column in range(8):
                target[begin + column] ^= match[column]
                found[column] |= match[column]
        for column in range(8):
            if dirty[column] == np.uint64(0):
                continue
            lane = 64 * (begin + column)
            for bit in range(64):
                here = np.uint64(1) << np.uint64(bit)
                if found[column] & here:
                    flips[lane + bit] = 1
                elif dirty[column] & here:
                    flips[lane + bit] = -1
