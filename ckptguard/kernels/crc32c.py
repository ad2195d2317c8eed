"""CRC32C of masked words, tile by tile, and the correction of the one flip a syndrome names.

Castagnoli polynomial 0x1EDC6F41 (reflected 0x82F63B78), register preset to and inverted with 0xFFFFFFFF; bytes of a
word little endian, each byte least significant bit first.
Sources: Castagnoli, Braeuer, Herrmann, IEEE Trans. Commun. 41(6), 1993; RFC 3720, section 12.1; Kounavis and Berry, A
Systematic Approach to Building High Performance Software-based CRC Generators, ISCC 2005 (slicing by 8).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckptguard.kernels.jit import njit

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]

_TILE = 512
_QUARTER = 128
_REFLECTED = 0x82F63B78


@lru_cache(maxsize=1)
def tables() -> tuple[U32, U32]:
    """Remainders that are looked up.

    Returns:
        (8, 256) for one word at a time, byte 0 of the word first; (4, 256) for a register that 128 zero words follow.
    """
    by_byte = np.zeros((8, 256), np.uint32)
    register = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        register = np.where(register & 1, (register >> 1) ^ np.uint32(_REFLECTED), register >> 1)
    by_byte[7] = register
    for i in range(6, -1, -1):
        by_byte[i] = zero_byte(by_byte[i + 1], by_byte)
    ahead = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(8 * _QUARTER):
        ahead = zero_byte(ahead, by_byte)
    return by_byte, ahead


def zero_byte(register: U32, by_byte: U32) -> U32:
    """Every register after one more zero byte."""
    result: U32 = (register >> 8) ^ by_byte[7][register & 255]
    return result


@lru_cache(maxsize=1)
def syndromes() -> tuple[U32, npt.NDArray[np.int32]]:
    """What one flipped message bit adds to the CRC of a tile, sorted, and where that bit is.

    Returns:
        (32768,) uint32 ascending and (32768,) int32, 64 * (words behind the flipped one) + bit of the word.
    """
    by_byte, _ = tables()
    register = np.array([by_byte[bit // 8, 1 << bit % 8] for bit in range(64)], np.uint32)
    found = np.empty((_TILE, 64), np.uint32)
    for behind in range(_TILE):
        found[behind] = register
        for _ in range(8):
            register = zero_byte(register, by_byte)
    order = np.argsort(found.reshape(-1), kind="stable").astype(np.int32)
    return found.reshape(-1)[order], order


@njit(cache=True, nogil=True, inline="always")
def _step(register: np.uint64, word: np.uint64, by_byte: U32) -> np.uint64:
    word ^= register
    return np.uint64(
        by_byte[0, word & np.uint64(255)]
        ^ by_byte[1, (word >> np.uint64(8)) & np.uint64(255)]
        ^ by_byte[2, (word >> np.uint64(16)) & np.uint64(255)]
        ^ by_byte[3, (word >> np.uint64(24)) & np.uint64(255)]
        ^ by_byte[4, (word >> np.uint64(32)) & np.uint64(255)]
        ^ by_byte[5, (word >> np.uint64(40)) & np.uint64(255)]
        ^ by_byte[6, (word >> np.uint64(48)) & np.uint64(255)]
        ^ by_byte[7, word >> np.uint64(56)]
    )


@njit(cache=True, nogil=True, inline="always")
def _skip(register: np.uint64, ahead: U32) -> np.uint64:
    return np.uint64(
        ahead[0, register & np.uint64(255)]
        ^ ahead[1, (register >> np.uint64(8)) & np.uint64(255)]
        ^ ahead[2, (register >> np.uint64(16)) & np.uint64(255)]
        ^ ahead[3, (register >> np.uint64(24)) & np.uint64(255)]
    )


@njit(cache=True, nogil=True)
def _tile(words: U64, start: int, stop: int, mask: np.uint64, by_byte: U32, ahead: U32) -> np.uint32:
    """CRC32C of `words[start:stop] & mask`; a full tile goes in four quarters side by side."""
    a = np.uint64(0xFFFFFFFF)
    if stop - start == _TILE:
        b = np.uint64(0)
        c = np.uint64(0)
        d = np.uint64(0)
        for i in range(start, start + _QUARTER):
            a = _step(a, words[i] & mask, by_byte)
            b = _step(b, words[i + _QUARTER] & mask, by_byte)
            c = _step(c, words[i + 2 * _QUARTER] & mask, by_byte)
            d = _step(d, words[i + 3 * _QUARTER] & mask, by_byte)
        a = _skip(_skip(_skip(a, ahead) ^ b, ahead) ^ c, ahead) ^ d
    else:
        for i in range(start, stop):
            a = _step(a, words[i] & mask, by_byte)
    return np.uint32(a ^ np.uint64(0xFFFFFFFF))


@njit(cache=True, nogil=True)
def crc_tiles(words: U64, mask: np.uint64, by_byte: U32, ahead: U32, crcs: U32) -> None:
    """CRC32C of the masked words of every tile.

    Args:
        words: (count,) uint64; the last tile may be short.
        by_byte, ahead: of `tables`.
        crcs: (ceil(count / 512),) uint32, overwritten.
    """
    for tile in range(crcs.size):
        start = _TILE * tile
        crcs[tile] = _tile(words, start, min(start + _TILE, words.size), mask, by_byte, ahead)


@njit(cache=True, nogil=True)
def correct_tiles(
    words: U64,
    mask: np.uint64,
    by_byte: U32,
    ahead: U32,
    known: U32,
    places: npt.NDArray[np.int32],
    crcs: U32,
    flips: npt.NDArray[np.int32],
) -> None:
    """Flip the one masked message bit or CRC bit that explains a tile's syndrome.

    Args:
        words: (count,) uint64, corrected in place.
        known, places: of `syndromes`.
        crcs: (ceil(count / 512),) uint32 as read, corrected in place.
        flips: (ceil(count / 512),) int32, overwritten with 0, 1 or -1.
    """
    for tile in range(crcs.size):
        start = _TILE * tile
        stop = min(start + _TILE, words.size)
        syndrome = _tile(words, start, stop, mask, by_byte, ahead) ^ crcs[tile]
        if syndrome == np.uint32(0):
            flips[tile] = 0
            continue
        if syndrome & (syndrome - np.uint32(1)) == np.uint32(0):
            crcs[tile] ^= syndrome
            flips[tile] = 1
            continue
        flips[tile] = -1
        at = np.searchsorted(known, syndrome)
        if at < known.size and known[at] == syndrome:
            word = stop - 1 - (places[at] >> 6)
            bit = np.uint64(1) << np.uint64(places[at] & 63)
            if word >= start and mask & bit:
                words[word] ^= bit
                flips[tile] = 1
