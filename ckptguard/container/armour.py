"""Armour: the code under which superblock and metadata outlive the data they describe.

64 bytes become a 128-byte codeword of the binary primitive BCH code (1023, 513), t = 57, shortened by one bit, its
parity (510 bits) followed by two zero bits. At a bit error rate of 1e-2 such a word fails with probability 2e-25, at
2e-2 with 4e-12. The codewords of one area are interleaved byte by byte, so that a burst spreads over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ckptguard.kernels import algebra

if TYPE_CHECKING:
    from ckptguard.kernels.bch import Tables

MESSAGE_BYTES = 64
CODEWORD_BYTES = 128
FIELD_DEGREE = 10
CORRECTS = 57
_PARITY_BITS = 510
_CACHED = 4096  # codewords whose parity is held in cache
_AT_ONCE = 1024  # codewords whose bits are spread out as bytes at one time

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Unarmoured:
    """What came out of an armoured area.

    Attributes:
        message: (codewords, 64) uint8.
        flips: (codewords,) int32 flipped bits corrected; -1 = uncorrectable, the row holds the bytes as read.
    """

    message: Bytes
    flips: npt.NDArray[np.int32]


def armoured_bytes(size: int) -> int:
    """Stored bytes for `size` bytes of message."""
    return -(-size // MESSAGE_BYTES) * CODEWORD_BYTES


def armour(message: bytes) -> bytes:
    """Code and interleave `message`, zero-padded to a multiple of 64 bytes."""
    count = -(-len(message) // MESSAGE_BYTES)
    rows = np.zeros((count, MESSAGE_BYTES), np.uint8)
    rows.reshape(-1)[: len(message)] = np.frombuffer(message, np.uint8)
    codewords = np.concatenate([rows, _parity(rows)], axis=1)
    return np.ascontiguousarray(codewords.T).tobytes()


def plain_message(stored: bytes, size: int) -> bytes:
    """The first `size` message bytes as stored, without decoding; right iff a digest says so."""
    codewords = np.frombuffer(stored, np.uint8).reshape(CODEWORD_BYTES, -1).T
    return np.ascontiguousarray(codewords[:, :MESSAGE_BYTES]).tobytes()[:size]


def unarmour(stored: bytes) -> Unarmoured:
    """Deinterleave and decode an armoured area, as many codewords as it holds."""
    codewords = np.ascontiguousarray(np.frombuffer(stored, np.uint8).reshape(CODEWORD_BYTES, -1).T)
    return _decode(codewords)


@lru_cache(maxsize=1)
def _code() -> Tables:
    from ckptguard.kernels import bch

    return bch.bch_tables(FIELD_DEGREE, CORRECTS)


def _to_rows(codewords: Bytes, bits: int) -> npt.NDArray[np.uint64]:
    """(bits, lane_words) lanes from (count, bytes) codewords, most significant bit of byte 0 first."""
    lanes = -(-len(codewords) // 512) * 512
    planes = np.zeros((bits, lanes), np.uint8)
    planes[:, : len(codewords)] = np.unpackbits(codewords, axis=1).T[:bits]
    return np.packbits(planes, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def _from_rows(rows: npt.NDArray[np.uint64], count: int, size: int) -> Bytes:
    planes = np.unpackbits(rows.astype("<u8").view(np.uint8), axis=1, bitorder="little")[:, :count]
    codewords = np.zeros((count, size * 8), np.uint8)
    codewords[:, : len(planes)] = planes.T
    return np.packbits(codewords, axis=1)


def _parity(messages: Bytes) -> Bytes:
    """(count, 64) parity of (count, 64) messages, from tables: a clean container is read without compiled kernels."""
    tables = _parity_of_bytes()
    parity = np.zeros((len(messages), (CODEWORD_BYTES - MESSAGE_BYTES) // 8), np.uint64)
    for begin in range(0, len(messages), _CACHED):
        total = parity[begin : begin + _CACHED]
        for table, values in zip(tables, messages[begin : begin + _CACHED].T, strict=True):
            total ^= table[values]
    return parity.view(np.uint8)


@lru_cache(maxsize=1)
def _parity_of_bytes() -> npt.NDArray[np.uint64]:
    """(64, 256, 8): the parity of the message that has one byte, by its place and its value."""
    bits = 8 * MESSAGE_BYTES
    remainders = algebra.powers_modulo(algebra.generator_polynomial(FIELD_DEGREE, CORRECTS), bits)[::-1]
    parity_bytes = CODEWORD_BYTES - MESSAGE_BYTES
    padded = [
        (remainder << (8 * parity_bytes - _PARITY_BITS)).to_bytes(parity_bytes, "big") for remainder in remainders
    ]
    of_bit = np.frombuffer(b"".join(padded), np.uint64).reshape(MESSAGE_BYTES, 8, 1, parity_bytes // 8)
    table = np.zeros((MESSAGE_BYTES, 1, parity_bytes // 8), np.uint64)
    for bit in range(8):
        table = np.concatenate([table, table ^ of_bit[:, 7 - bit]], axis=1)
    return table


def _decode(codewords: Bytes) -> Unarmoured:
    from ckptguard.kernels import bch

    result = Unarmoured(np.empty((len(codewords), MESSAGE_BYTES), np.uint8), np.empty(len(codewords), np.int32))
    for start in range(0, len(codewords), _AT_ONCE):
        some = codewords[start : start + _AT_ONCE]
        message = _to_rows(some[:, :MESSAGE_BYTES], 8 * MESSAGE_BYTES)
        parity = _to_rows(some[:, MESSAGE_BYTES:], _PARITY_BITS)
        result.flips[start : start + _AT_ONCE] = bch.decode(_code(), message, parity)[: len(some)]
        result.message[start : start + _AT_ONCE] = _from_rows(message, len(some), MESSAGE_BYTES)
    return result
