"""Flips of independent bits, drawn block by block; the Python side of `kernels.faults`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from ckptguard.channels.noise import binomial

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_BLOCK = 1 << 16
_SHELLS = 21
_LEAST_PLACES = 64
_NO_BYTES = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Drawn:
    """Words with flips.

    Attributes:
        elements: (count,) int64, ascending.
        flips: (count,) uint64, the bits to flip; none is zero.
        by_plane: (planes asked for,) flips of each.
    """

    elements: I64
    flips: U64
    by_plane: I64

    @property
    def bits(self) -> int:
        """Flips in all."""
        return int(np.bitwise_count(self.flips).sum())

    @classmethod
    def nothing(cls, planes: int = 0) -> Drawn:
        """No flips."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(planes, np.int64))


def draw(
    key: np.uint64,
    elements: int,
    planes: Sequence[int],
    shifts: Sequence[int],
    of_0: float,
    of_1: float,
    stored: Bytes = _NO_BYTES,
    word_bytes: int = 1,
) -> Drawn:
    """Flip bits of words independently, exactly, and nested in the probabilities.

    Args:
        key: that the flips depend on, beside plane and block of 65,536 elements.
        elements: words.
        planes: numbers that the flips of a bit are keyed by.
        shifts: where in the word that bit is, 0 = least significant.
        of_0, of_1: probabilities for bits stored as 0 and as 1.
        stored: the words, `word_bytes` each, little endian; needed where the two differ.
    """
    from ckptguard.kernels import faults

    by_plane = np.zeros(len(planes), np.int64)
    tops = (*_top(of_0), *_top(of_1))
    shells = max(top + (thin > 0) for top, thin in (tops[:2], tops[2:]))
    if not shells or not len(planes) or not elements:
        return Drawn.nothing(len(planes))
    plane_array, shift_array = np.array(planes, np.int64), np.array(shifts, np.int64)
    chunks: list[tuple[I64, U64]] = []
    for first, blocks, places, valid in _blocks(elements):
        thresholds, starts, least = _tables(places, min(shells, _SHELLS - 1))
        expected = max(of_0, of_1) * len(planes) * blocks * valid
        room = int(min(blocks * valid, expected + 8 * expected**0.5 + valid))
        done = 0
        while done < blocks:
            found, flips = np.empty(room, np.int64), np.empty(room, np.uint64)
            count, more = faults.draw_blocks(
                key,
                first + done,
                blocks - done,
                places,
                valid,
                plane_array,
                shift_array,
                thresholds,
                starts,
                least,
                shells,
                tops[0],
                np.uint64(tops[1]),
                tops[2],
                np.uint64(tops[3]),
                stored,
                word_bytes,
                found,
                flips,
                by_plane,
            )
            done += more
            spare = count < room // 2
            chunks.append(
                (found[:count].copy() if spare else found[:count], flips[:count].copy() if spare else flips[:count])
            )
    if len(chunks) == 1:
        return Drawn(*chunks[0], by_plane)
    return Drawn(np.concatenate([one for one, _ in chunks]), np.concatenate([one for _, one in chunks]), by_plane)


def _blocks(elements: int) -> Iterator[tuple[int, int, int, int]]:
    """(first block, blocks, places, valid) of the full blocks, and of the last one, drawn as for a power of two."""
    full, rest = divmod(elements, _BLOCK)
    if full:
        yield 0, full, _BLOCK, _BLOCK
    if rest:
        yield full, 1, max(_LEAST_PLACES, 1 << (rest - 1).bit_length()), rest


@lru_cache(maxsize=256)
def _top(p: float) -> tuple[int, int]:
    """The shell that contains p, and what share of it (of 2^64) lies below p; (s, 0) where p is its lower end."""
    rate = Fraction(p)
    top = 0
    while top < _SHELLS and rate >= Fraction(1, 1 << (20 - top)):
        top += 1
    if top == _SHELLS:
        return top, 0
    low = Fraction(0) if top == 0 else Fraction(1, 1 << (21 - top))
    width = Fraction(1, 1 << (20 - top)) - low
    share = round((rate - low) / width * (1 << 64))
    return (top + 1, 0) if share >> 64 else (top, share)


@lru_cache(maxsize=64)
def _tables(places: int, shells: int) -> tuple[U64, I64, I64]:
    """Distributions of the counts of the first shells, as the kernel takes them."""
    found = [_shell_count(places, shell) for shell in range(shells)]
    starts = np.cumsum([0, *(thresholds.size for thresholds, _ in found)])
    return np.concatenate([thresholds for thresholds, _ in found]), starts, np.array([least for _, least in found])


@cache
def _shell_count(places: int, shell: int) -> tuple[U64, int]:
    low = 0.0 if shell == 0 else 2.0 ** (shell - 21)
    return binomial(places, (2.0 ** (shell - 20) - low) / (1.0 - low))
