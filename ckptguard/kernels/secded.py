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
    near = np.empty((CHECKS, 8), np.uint64)
    dirty = np.empty(8, np.uint64)
    found = np.empty(8, np.uint64)
    match = np.empty(8, np.uint64)
    wrong = np.empty(CHECKS, np.uint64)
    for begin in range(0, syndrome.shape[1], 8):
        seen = np.uint64(0)
        for column in range(8):
            some = np.uint64(0)
            for r in range(CHECKS):
                near[r, column] = syndrome[r, begin + column]
                some |= near[r, column]
            dirty[column] = some
            found[column] = np.uint64(0)
            seen |= some
        if seen == np.uint64(0):
            continue
        for i in range(bits + parity.shape[0]):
            pattern = np.int64(columns[i]) if i < bits else np.int64(1) << np.int64(i - bits)
            for r in range(CHECKS):
                wrong[r] = np.uint64(0) if (pattern >> r) & 1 else ~np.uint64(0)
            a, b, c, d = wrong[0], wrong[1], wrong[2], wrong[3]
            e, f, g, h = wrong[4], wrong[5], wrong[6], wrong[7]
            for column in range(8):
                match[column] = (
                    dirty[column]
                    & (near[0, column] ^ a)
                    & (near[1, column] ^ b)
                    & (near[2, column] ^ c)
                    & (near[3, column] ^ d)
                    & (near[4, column] ^ e)
                    & (near[5, column] ^ f)
                    & (near[6, column] ^ g)
                    & (near[7, column] ^ h)
                )
            target = message[i] if i < bits else parity[i - bits]
            for column in range(8):
                target[begin + column] ^= match[column]
            for column in range(8):
                found[column] |= match[column]
        for column in range(8):
            lane = 64 * (begin + column)
            some = dirty[column]
            one = found[column]
            for bit in range(64):
                flips[lane + bit] = np.int32((one >> np.uint64(bit)) & np.uint64(1)) * np.int32(2) - np.int32(
                    (some >> np.uint64(bit)) & np.uint64(1)
                )
