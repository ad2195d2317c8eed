"""Bit planes: the masked bits of words as rows of lanes, and rows cut to another width.

A tile is 512 words. Its plane j is 512 bits, bit j of every word, held as 8 words: word w of the tile in bit w % 64 of
column w // 64. That is eight 64x64 bit transposes, each done on eight vectors of eight words, in plain LLVM vector IR
that runs on any processor: bytes are sorted within a vector, 8x8 bits are transposed within every word, and the bytes
of the eight vectors are dealt out to the planes.
Source: Hacker's Delight, 2nd ed., section 7-3 (transposing a bit matrix by swapping ever smaller blocks).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from ckptguard.kernels.jit import njit

U64 = npt.NDArray[np.uint64]

_TILE = 512
_BLOCK = 64  # words of one transpose, and planes

intrinsic: Any = numba_intrinsic  # an intrinsic is called without its first parameter

_I64 = ir.IntType(64)
_BYTES = ir.VectorType(ir.IntType(8), 64)
_WORDS = ir.VectorType(_I64, 8)
_BYTES_SORTED = [8 * word + byte for byte in range(8) for word in range(8)]
_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))


def _shuffle(builder: Any, a: Any, b: Any, picks: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), picks))


def _transposed(builder: Any, words: Any) -> Any:
    """8x8 bits of every word transposed: bit i of byte b becomes bit b of byte i."""
    for distance, mask in _SWAPS:
        shift, low = (ir.Constant(_WORDS, [value] * 8) for value in (distance, mask))
        moved = builder.and_(builder.xor(words, builder.lshr(words, shift)), low)
        words = builder.xor(builder.xor(words, moved), builder.shl(moved, shift))
    return words


def _dealt(builder: Any, vectors: list[Any]) -> list[Any]:
    """Byte p of vector v becomes byte v of word p, of 64 words in eight vectors; three perfect shuffles."""
    first = [i // 2 + 64 * (i % 2) for i in range(64)]
    for _ in range(3):
        pairs = zip(vectors[:4], vectors[4:], strict=True)
        vectors = [_shuffle(builder, a, b, [pick + start for pick in first]) for a, b in pairs for start in (0, 32)]
    return vectors


def _collected(builder: Any, vectors: list[Any]) -> list[Any]:
    """Undo `_dealt`."""
    for _ in range(3):
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        vectors = [_shuffle(builder, a, b, list(range(start, 128, 2))) for start in (0, 1) for a, b in pairs]
    return vectors


def _places(builder: Any, address: Any) -> list[Any]:
    """Pointers to the eight vectors from an address on."""
    pointer = builder.inttoptr(address, _BYTES.as_pointer())
    return [builder.gep(pointer, [ir.Constant(_I64, vector)]) for vector in range(8)]


@intrinsic
def _to_planes(context, words, planes):
    """Write the 64 planes (one word each) of the 64 words at an address to another."""

    def generate(context, builder, signature, arguments):
        vectors = []
        for place in _places(builder, arguments[0]):
            read = builder.load(place, align=1)
            ordered = builder.bitcast(_shuffle(builder, read, read, _BYTES_SORTED), _WORDS)
            vectors.append(builder.bitcast(_transposed(builder, ordered), _BYTES))
        for place, vector in zip(_places(builder, arguments[1]), _dealt(builder, vectors), strict=True):
            builder.store(vector, place, align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def _add_planes(context, planes, words):
    """XOR 64 planes (one word each) at an address into the 64 words at another."""

    def generate(context, builder, signature, arguments):
        vectors = [builder.load(place, align=1) for place in _places(builder, arguments[0])]
        for place, vector in zip(_places(builder, arguments[1]), _collected(builder, vectors), strict=True):
            bits = builder.bitcast(_transposed(builder, builder.bitcast(vector, _WORDS)), _BYTES)
            ordered = _shuffle(builder, bits, bits, _BYTES_SORTED)
            builder.store(builder.xor(builder.load(place, align=1), ordered), place, align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@njit(cache=True, nogil=True)
def _chosen(mask: np.uint64) -> npt.NDArray[np.int64]:
    """Positions of the ones of a mask, least significant first."""
    positions = np.empty(64, np.int64)
    count = 0
    for j in range(64):
        if (mask >> np.uint64(j)) & np.uint64(1):
            positions[count] = j
            count += 1
    return positions[:count]


@njit(cache=True, nogil=True)
def gather_tiles(words: U64, mask: np.uint64, rows: U64) -> None:
    """Write the masked planes of whole tiles, tile by tile, least significant bit position first.

    Args:
        words: (512 * tiles,) uint64, contiguous.
        mask: uint64, bit 0 = least significant bit of a word.
        rows: (tiles * popcount(mask) * 8,) uint64, overwritten; eight words per plane.
    """
    chosen = _chosen(mask)
    planes = np.empty((8, _BLOCK), np.uint64)
    source, scratch = words.ctypes.data, planes.ctypes.data
    at = 0
    for start in range(0, words.size, _TILE):
        for block in range(8):
            _to_planes(source + 8 * (start + _BLOCK * block), scratch + 8 * _BLOCK * block)
        for j in chosen:
            for column in range(8):
                rows[at + column] = planes[column, j]
            at += 8


@njit(cache=True, nogil=True)
def scatter_tiles(rows: U64, mask: np.uint64, words: U64) -> None:
    """XOR planes (laid out as by `gather_tiles`) into the masked bits of whole tiles of words.

    Args:
        rows: (tiles * popcount(mask) * 8,) uint64; a tile whose rows are all zero is not touched.
        mask: uint64.
        words: (512 * tiles,) uint64, contiguous, changed in place.
    """
    chosen = _chosen(mask)
    planes = np.zeros((8, _BLOCK), np.uint64)
    target, scratch = words.ctypes.data, planes.ctypes.data
    tile_rows = 8 * chosen.size
    for tile in range(words.size // _TILE):
        at = tile * tile_rows
        seen = np.uint64(0)
        for i in range(tile_rows):
            seen |= rows[at + i]
        if seen == np.uint64(0):
            continue
        for j in chosen:
            for column in range(8):
                planes[column, j] = rows[at + column]
            at += 8
        for block in range(8):
            _add_planes(scratch + 8 * _BLOCK * block, target + 8 * (_TILE * tile + _BLOCK * block))


@njit(cache=True, nogil=True)
def slice_rows(flat: U64, bits: int, lanes: int, rows: U64) -> None:
    """Cut a string of bits to rows: bit c of row i is bit c + lanes * i of the string, zero from `bits` on.

    Args:
        flat: (at least ceil(bits / 64),) uint64; bit b in bit b % 64 of word b // 64.
        bits: length of the string.
        lanes: bits of a row.
        rows: (ceil(bits / lanes), at least ceil(lanes / 64)) uint64, overwritten; columns beyond the lanes are zero.
    """
    used = (lanes + 63) // 64
    for i in range(rows.shape[0]):
        begin = lanes * i
        count = min(lanes, bits - begin)
        for column in range(rows.shape[1]):
            left = count - 64 * column
            if column >= used or left <= 0:
                rows[i, column] = np.uint64(0)
                continue
            bit = begin + 64 * column
            word = bit >> 6
            shift = np.uint64(bit & 63)
            value = flat[word] >> shift
            if shift != np.uint64(0) and np.int64(shift) + min(left, 64) > 64:
                value |= flat[word + 1] << (np.uint64(64) - shift)
            if left < 64:
                value &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
            rows[i, column] = value


@njit(cache=True, nogil=True)
def join_rows(rows: U64, bits: int, lanes: int, flat: U64) -> None:
    """Undo `slice_rows`: string the first `lanes` bits of every row together, `bits` in all.

    Args:
        rows: (ceil(bits / lanes), at least ceil(lanes / 64)) uint64.
        flat: (at least ceil(bits / 64),) uint64, overwritten as far as the string reaches; bits behind it are zero.
    """
    for word in range((bits + 63) // 64):
        flat[word] = np.uint64(0)
    for i in range(rows.shape[0]):
        begin = lanes * i
        count = min(lanes, bits - begin)
        for column in range((count + 63) // 64):
            left = count - 64 * column
            value = rows[i, column]
            if left < 64:
                value &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
            bit = begin + 64 * column
            word = bit >> 6
            shift = np.uint64(bit & 63)
            flat[word] |= value << shift
            if shift != np.uint64(0) and np.int64(shift) + min(left, 64) > 64:
                flat[word + 1] |= value >> (np.uint64(64) - shift)
