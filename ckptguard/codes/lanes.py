"""Codes whose codewords lie side by side, bit by bit, in lanes.

Flat order of a unit's protected bits: tile by tile; within a tile, protected bit position by position (least
significant first); within a position, word by word (512 words in a full tile, fewer in the last tile of a stream). With
B such bits and C codewords, message bit i of codeword c is flat bit c + C*i (zero where that is beyond B),
i = 0 .. ceil(B/C) - 1. A full unit has C a multiple of 512, so that consecutive words belong to different codewords; a
shorter unit has C = ceil(B / k), the fewest codewords that hold it. Parity is stored in the same order: parity bit i of
codeword c is bit c + C*i of the unit's parity, bit b of it being bit b % 8 (least significant = 0) of byte b // 8.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckptguard.codes.base import LEAST_UNIT_TILES, TILE_WORDS, Bytes, Code, Decoded, UnitLayout, Words
from ckptguard.errors import UsageError

Rows = npt.NDArray[np.uint64]

_LEAST_CHOICE = 64  # unit sizes up to so many tiles are always weighed, however short the code
_FINE = 256  # a unit that wastes at most 1/256 of its bits is good enough


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

    def unit_tiles(self, planes: int) -> int:
        """Tiles whose protected bits fill whole groups of 512 codewords but for 1/256 of padding, 256 KiB at least.

        With P planes: the smallest T in 1 .. max(64, k // P) for which ceil(P * T / k) groups are padded by at most
        P * T / 256 planes; where there is none, the T of least relative padding (the smallest among equals). Then the
        smallest multiple of T that is at least 64.
        """
        _require(1 <= planes <= 64, f"a word has 1 to 64 protected bits, not {planes}")
        tiles = _fitting_tiles(self.used_bits, planes)
        return tiles * -(-LEAST_UNIT_TILES // tiles)

    def unit_layout(self, words: int, planes: int) -> UnitLayout:
        """512 codewords per group of a full unit; the fewest codewords that hold a shorter one."""
        cut = self._cut(words, planes)
        return UnitLayout(
            codewords=cut.codewords,
            message_bits=cut.message_bits,
            parity_bits=self.n - self.k,
            parity_bytes=8 * words_of(cut.codewords * (self.n - self.k)),
        )

    def encode(self, words: Words, mask: int) -> Bytes:
        """Parity of a unit: (parity_bytes,) uint8; bits behind the last codeword's parity are zero."""
        cut = self._cut_of(words, mask)
        return pack_rows(self.encode_rows(gather_rows(words, mask, cut)), cut.codewords).view(np.uint8)

    def check(self, words: Words, mask: int, parity: Bytes) -> npt.NDArray[np.bool_]:
        """(codewords,) True where what was read is not a codeword. Nothing is changed."""
        cut = self._cut_of(words, mask)
        dirty = self.check_rows(gather_rows(words, mask, cut), self._parity_rows(parity, cut))
        return lanes_of(dirty, cut.codewords)

    def decode(self, words: Words, mask: int, parity: Bytes) -> Decoded:
        """Correct `words` (masked bits only) and `parity` in place, codeword by codeword; say what was done.

        A codeword whose correction would reach into the padding is uncorrectable. Bits behind the last codeword's
        parity are set to zero.
        """
        cut = self._cut_of(words, mask)
        message = gather_rows(words, mask, cut)
        parity_rows = self._parity_rows(parity, cut)
        read = message.copy()
        flips = self._decode_lanes(message, parity_rows, read, cut)
        if flips.any():
            scatter_rows(message ^ read, mask, words, cut)
        parity[:] = pack_rows(parity_rows, cut.codewords).view(np.uint8)
        return Decoded(flips)

    def _decode_lanes(self, message: Rows, parity: Rows, read: Rows, cut: Cut) -> npt.NDArray[np.int32]:
        """(codewords,) flips; corrections that reach into the padding are taken back. `read` is a copy of `message`."""
        parity_read = None if cut.padding is None else parity.copy()
        flips = self.decode_rows(message, parity)[: cut.codewords]
        if cut.padding is not None and parity_read is not None:
            wrong = (message[-1] ^ read[-1]) & cut.padding
            if wrong.any():
                message ^= (message ^ read) & wrong
                parity ^= (parity ^ parity_read) & wrong
                flips[lanes_of(wrong, cut.codewords)] = -1
        return flips

    def cover(self, codewords: npt.NDArray[np.bool_], words: int, mask: int) -> Words:
        """(words,) uint64 with every protected bit set that belongs to one of the chosen codewords."""
        cut = self._cut(words, _planes(mask))
        if codewords.shape != (cut.codewords,):
            raise UsageError(f"the unit has {cut.codewords} codewords, the choice has shape {codewords.shape}")
        chosen = np.zeros(8 * cut.lane_words, np.uint8)
        packed = np.packbits(codewords, bitorder="little")
        chosen[: packed.size] = packed
        message = np.tile(chosen.view(np.uint64), (cut.message_bits, 1))
        if cut.padding is not None:
            message[-1] &= ~cut.padding
        result = np.zeros(words, np.uint64)
        scatter_rows(message, mask, result, cut)
        return result

    def _cut(self, words: int, planes: int) -> Cut:
        full = TILE_WORDS * self.unit_tiles(planes)
        _require(0 <= words <= full, f"a unit of {self.spec} with {planes} planes has 0 to {full} words, not {words}")
        return _cut(self.used_bits, words, planes, words == full)

    @property
    def used_bits(self) -> int:
        """Message bits of a codeword that are put to use; k, unless a kind needs them in whole symbols."""
        return self.k

    def _cut_of(self, words: Words, mask: int) -> Cut:
        if words.dtype != np.uint64 or words.ndim != 1 or not words.flags.c_contiguous:
            raise UsageError(f"words are a contiguous row of uint64, not {words.dtype} of shape {words.shape}")
        return self._cut(words.size, _planes(mask))

    def _parity_rows(self, parity: Bytes, cut: Cut) -> Rows:
        bits = cut.codewords * (self.n - self.k)
        if parity.dtype != np.uint8 or parity.shape != (8 * words_of(bits),):
            raise UsageError(
                f"the unit has {8 * words_of(bits)} bytes of parity, not {parity.dtype} of shape {parity.shape}"
            )
        return unpack_rows(np.array(parity, order="C").view(np.uint64), cut.codewords, self.n - self.k)


@dataclass(frozen=True)
class Cut:
    """How the flat bits of one unit become rows.

    Attributes:
        words, planes: what the unit holds.
        bits: B of the flat order.
        codewords: C of the flat order.
        full: True where the planes themselves, put together, are the rows.
        message_bits, lane_words: shape of the message rows.
        padding: (lane_words,) uint64, the codewords whose last message bit is padding; None where none is.
    """

    words: int
    planes: int
    bits: int
    codewords: int
    full: bool
    message_bits: int
    lane_words: int
    padding: Rows | None


@lru_cache(maxsize=256)
def _cut(k: int, words: int, planes: int, full: bool) -> Cut:
    bits = words * planes
    codewords = TILE_WORDS * -(-bits // (TILE_WORDS * k)) if full else -(-bits // k)
    message_bits = -(-bits // codewords) if codewords else 0
    lane_words = 8 * -(-codewords // 512)
    short = message_bits * codewords - bits
    padding = None
    if short:
        lanes = np.zeros(64 * lane_words, np.bool_)
        lanes[codewords - short : codewords] = True
        padding = np.packbits(lanes, bitorder="little").view(np.uint64)
        padding.setflags(write=False)
    return Cut(words, planes, bits, codewords, full, message_bits, lane_words, padding)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _planes(mask: int) -> int:
    _require(0 < mask < 1 << 64, f"a mask has 1 to 64 of the bits 0..63 set, not {mask:#x}")
    return mask.bit_count()


def words_of(bits: int) -> int:
    """64-bit words that hold so many bits."""
    return -(-bits // 64)


@lru_cache(maxsize=1024)
def _fitting_tiles(k: int, planes: int) -> int:
    best, least = 1, Fraction(-(-planes // k), 1)
    for tiles in range(1, max(_LEAST_CHOICE, k // planes) + 1):
        groups = -(-planes * tiles // k)
        if (groups * k - planes * tiles) * _FINE <= planes * tiles:
            return tiles
        share = Fraction(groups, tiles)
        if share < least:
            best, least = tiles, share
    return best


def _gather(words: Words, mask: int, cut: Cut) -> npt.NDArray[np.uint64]:
    """The unit's flat bits, with zero words behind them up to a whole number of rows."""
    from ckptguard.kernels import planes

    if cut.full and cut.padding is None:
        flat = np.empty(cut.words // 64 * cut.planes, np.uint64)
        planes.gather_tiles(words, np.uint64(mask), flat)
        return flat
    whole = cut.words - cut.words % TILE_WORDS
    flat = np.zeros(cut.message_bits * cut.lane_words if cut.full else words_of(cut.bits), np.uint64)
    at = whole // 64 * cut.planes
    planes.gather_tiles(words[:whole], np.uint64(mask), flat[:at])
    rest = cut.words - whole
    if rest:
        tile = np.zeros(TILE_WORDS, np.uint64)
        tile[:rest] = words[whole:]
        rows = np.empty((cut.planes, 8), np.uint64)
        planes.gather_tiles(tile, np.uint64(mask), rows.reshape(-1))
        planes.join_rows(rows, rest * cut.planes, rest, flat[at:])
    return flat


def _scatter(flat: npt.NDArray[np.uint64], mask: int, words: Words, cut: Cut) -> None:
    """XOR the unit's flat bits into the masked bits of `words`."""
    from ckptguard.kernels import planes

    whole = cut.words - cut.words % TILE_WORDS
    at = whole // 64 * cut.planes
    planes.scatter_tiles(flat[:at], np.uint64(mask), words[:whole])
    rest = cut.words - whole
    if rest:
        rows = np.empty((cut.planes, 8), np.uint64)
        planes.slice_rows(flat[at:], rest * cut.planes, rest, rows)
        tile = np.zeros(TILE_WORDS, np.uint64)
        planes.scatter_tiles(rows.reshape(-1), np.uint64(mask), tile)
        words[whole:] ^= tile[:rest]


def gather_rows(words: Words, mask: int, cut: Cut) -> Rows:
    """(message_bits, lane_words) message rows of a unit's words."""
    flat = _gather(words, mask, cut)
    if cut.full:
        return flat.reshape(cut.message_bits, cut.lane_words)
    return _sliced(flat, cut.bits, cut.codewords, cut.message_bits, cut.lane_words)


def scatter_rows(message: Rows, mask: int, words: Words, cut: Cut) -> None:
    """XOR message rows into the masked bits of a unit's words, in place."""
    _scatter(_flat_of(message, cut), mask, words, cut)


def _flat_of(message: Rows, cut: Cut) -> npt.NDArray[np.uint64]:
    """The flat bits of message rows; for a full unit a view of them."""
    return message.reshape(-1) if cut.full else _joined(message, cut.bits, cut.codewords)


def _sliced(flat: npt.NDArray[np.uint64], bits: int, lanes: int, rows: int, lane_words: int) -> Rows:
    from ckptguard.kernels import planes

    if lanes == 64 * lane_words and bits == rows * lanes:
        return flat.reshape(rows, lane_words)
    result = np.zeros((rows, lane_words), np.uint64)
    planes.slice_rows(flat, bits, lanes, result)
    return result


def _joined(rows: Rows, bits: int, lanes: int) -> npt.NDArray[np.uint64]:
    from ckptguard.kernels import planes

    if lanes == 64 * rows.shape[1] and bits == rows.shape[0] * lanes:
        return rows.reshape(-1)
    flat = np.empty(words_of(bits), np.uint64)
    planes.join_rows(rows, bits, lanes, flat)
    return flat


def pack_rows(parity: Rows, lanes: int) -> npt.NDArray[np.uint64]:
    """Rows as stored: bit i of codeword c is bit c + lanes * i."""
    return _joined(np.ascontiguousarray(parity), parity.shape[0] * lanes, lanes)


def unpack_rows(flat: npt.NDArray[np.uint64], lanes: int, rows: int) -> Rows:
    """Inverse of `pack_rows`: (rows, lane_words), in words of 512 lanes."""
    return _sliced(flat, rows * lanes, lanes, rows, 8 * -(-lanes // 512))


def lanes_of(rows: Rows, codewords: int) -> npt.NDArray[np.bool_]:
    """(codewords,) bool of one row of lanes."""
    bits = np.unpackbits(rows.view(np.uint8), count=codewords, bitorder="little")
    return bits.view(np.bool_)
