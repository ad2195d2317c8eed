"""Tier 0: a CRC32C per tile, which detects almost everything and corrects the one flipped bit.

CRC32C has Hamming distance 4 at the length of a tile (32768 message bits and 32 CRC bits), so that the syndromes of
single flips are all different and no double flip has one of them.
Source: P. Koopman, 32-Bit Cyclic Redundancy Codes for Internet Applications, DSN 2002 (distances of 0x8F6E37A0).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.codes.base import LEAST_UNIT_TILES, TILE_WORDS, Bytes, Code, Decoded, UnitLayout, Words
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError, UsageError

CRC_BITS = 32


class Crc(Code):
    """CRC32C of the protected bits of every tile of 4 KiB; corrects one flip per tile.

    The CRC is that of the masked words (`word & mask`, bytes little endian); every tile is a codeword.
    Parity is the CRCs, four bytes little endian each, followed by zero bytes up to a multiple of 8.

    Attributes:
        n, k: nominal, of a full tile all of whose bits are protected. Fewer protected bits share the same 32 bits of
            CRC; `unit_layout` says how many there are.
    """

    name: ClassVar[str] = "crc"

    def __init__(self) -> None:
        self.spec = self.name
        self.k = 64 * TILE_WORDS
        self.n = self.k + CRC_BITS
        self.t = 1

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> Crc:
        """The code of the spec `crc`."""
        if settings:
            raise SpecError(f"code 'crc' takes no settings, not {','.join(settings)!r}")
        return cls()

    def unit_tiles(self, planes: int) -> int:
        """The least there is; every tile is a codeword."""
        if not 1 <= planes <= 64:
            raise UsageError(f"a word has 1 to 64 protected bits, not {planes}")
        return LEAST_UNIT_TILES

    def unit_layout(self, words: int, planes: int) -> UnitLayout:
        """One codeword per tile."""
        full = TILE_WORDS * self.unit_tiles(planes)
        if not 0 <= words <= full:
            raise UsageError(f"a unit of crc has 0 to {full} words, not {words}")
        tiles = -(-words // TILE_WORDS)
        return UnitLayout(tiles, min(words, TILE_WORDS) * planes, CRC_BITS, 8 * -(-tiles // 2))

    def encode(self, words: Words, mask: int) -> Bytes:
        """Parity of a unit: (parity_bytes,) uint8."""
        layout = self._layout_of(words, mask)
        parity = np.zeros(layout.parity_bytes // 4, np.uint32)
        parity[: layout.codewords] = self._crcs(words, mask, layout)
        return parity.view(np.uint8)

    def check(self, words: Words, mask: int, parity: Bytes) -> npt.NDArray[np.bool_]:
        """(codewords,) True where what was read is not a codeword. Nothing is changed."""
        layout = self._layout_of(words, mask)
        differs: npt.NDArray[np.bool_] = self._crcs(words, mask, layout) != _stored(parity, layout)
        return differs

    def decode(self, words: Words, mask: int, parity: Bytes) -> Decoded:
        """Correct one flip per tile in `words` (masked bits only) or `parity`; the parity's zero bytes are restored."""
        from ckptguard.kernels import crc32c

        layout = self._layout_of(words, mask)
        crcs = _stored(parity, layout)
        flips = np.empty(layout.codewords, np.int32)
        crc32c.correct_tiles(words, np.uint64(mask), *crc32c.tables(), *crc32c.syndromes(), crcs, flips)
        parity[: 4 * layout.codewords] = crcs.view(np.uint8)
        parity[4 * layout.codewords :] = 0
        return Decoded(flips)

    def cover(self, codewords: npt.NDArray[np.bool_], words: int, mask: int) -> Words:
        """(words,) uint64 with every protected bit set that belongs to one of the chosen codewords."""
        layout = self.unit_layout(words, mask.bit_count())
        if codewords.shape != (layout.codewords,):
            raise UsageError(f"the unit has {layout.codewords} codewords, the choice has shape {codewords.shape}")
        chosen = np.repeat(codewords, TILE_WORDS)[:words]
        return np.where(chosen, np.uint64(mask), np.uint64(0))

    def failure_probability(self, bit_error_rate: float, codeword_bits: int) -> float:
        """Probability of two or more flips among `codeword_bits` bits."""
        return binomial_tail(codeword_bits, bit_error_rate, 1)

    def _layout_of(self, words: Words, mask: int) -> UnitLayout:
        if words.dtype != np.uint64 or words.ndim != 1 or not words.flags.c_contiguous:
            raise UsageError(f"words are a contiguous row of uint64, not {words.dtype} of shape {words.shape}")
        if not 0 < mask < 1 << 64:
            raise UsageError(f"a mask has 1 to 64 of the bits 0..63 set, not {mask:#x}")
        return self.unit_layout(words.size, mask.bit_count())

    def _crcs(self, words: Words, mask: int, layout: UnitLayout) -> npt.NDArray[np.uint32]:
        from ckptguard.kernels import crc32c

        crcs = np.empty(layout.codewords, np.uint32)
        crc32c.crc_tiles(words, np.uint64(mask), *crc32c.tables(), crcs)
        return crcs


def _stored(parity: Bytes, layout: UnitLayout) -> npt.NDArray[np.uint32]:
    """A copy of the CRCs in the parity of a unit."""
    if parity.dtype != np.uint8 or parity.shape != (layout.parity_bytes,):
        raise UsageError(
            f"the unit has {layout.parity_bytes} bytes of parity, not {parity.dtype} of shape {parity.shape}"
        )
    return np.array(parity[: 4 * layout.codewords], order="C").view(np.uint32)
