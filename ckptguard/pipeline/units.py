"""One unit at a time: read it, compare digests, decode what is damaged, say what became of every piece."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import plan, representations
from ckptguard.pipeline.shard import Shard
from ckptguard.plan import Part, Piece, ShardPlan, Unit

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
ReadPayload = Callable[[int, int], Bytes]


class State(IntEnum):
    """What is known of a piece. Only digests make these claims.

    EXACT: every stored byte is as it was written.
    PROTECTED: every protected bit is as it was written, some unprotected bit is not.
    LOST: some protected bit differs from what was written.
    """

    EXACT = 0
    PROTECTED = 1
    LOST = 2


@dataclass(frozen=True)
class PieceOutcome:
    """What became of a piece.

    Attributes:
        part: index into the shard's parts.
        found: its state as read.
        state: its state after decoding.
        corrected: bits the decoder flipped back in it.
        uncorrectable: codewords of the unit that the decoder gave up on, where elements are affected.
        affected: elements that have bits in such codewords, unless the piece's digest proves them right.
    """

    part: int
    found: State
    state: State
    corrected: int = 0
    uncorrectable: int = 0
    affected: int = 0


@dataclass
class Examined:
    """A unit after examination. `bytes` and `parity` are the best there is; digests say how good.

    Attributes:
        unit: which.
        pieces: outcomes, as `unit.pieces`.
        bytes: (sum of piece sizes,) stored bytes, piece after piece, after decoding.
        read: the same as read, before decoding; the same object where nothing was decoded.
        parity: (parity_bytes,) as it should be where it was asked for and the message is known, else as decoded; None
            unless asked for or needed.
        parity_damaged: the parity read differs from what was written; False where it was not looked at.
        decoded: whether the decoder ran.
        codewords: in the unit.
        flips: (codewords,) the decoder's word, empty where it did not run.
        lost_bits: (as bytes) bitmap of stored bits that belong to uncorrectable codewords, but for pieces whose digest
            proves them right; None where no codeword is uncorrectable.
    """

    unit: Unit
    pieces: tuple[PieceOutcome, ...]
    bytes: Bytes
    read: Bytes
    parity: Bytes | None
    parity_damaged: bool
    decoded: bool
    codewords: int
    flips: npt.NDArray[np.int32]
    lost_bits: Bytes | None


def read_pieces(read_payload: ReadPayload, unit: Unit) -> Bytes:
    """Stored bytes of all pieces of a unit, one after the other; neighbours are read together."""
    data = np.empty(sum(piece.bytes for piece in unit.pieces), np.uint8)
    filled = 0
    run_offset = run_bytes = 0
    for piece in (*unit.pieces, None):
        if piece is not None and run_bytes and piece.offset == run_offset + run_bytes:
            run_bytes += piece.bytes
            continue
        if run_bytes:
            data[filled : filled + run_bytes] = read_payload(run_offset, run_bytes)
            filled += run_bytes
        if piece is not None:
            run_offset, run_bytes = piece.offset, piece.bytes
    return data


def _read_runs(shard: Shard, pieces: Sequence[Piece], targets: Sequence[Bytes]) -> None:
    """Read pieces into arrays of their sizes; neighbours in the payload are read together."""
    start = 0
    for stop in range(1, len(pieces) + 1):
        before = pieces[stop - 1]
        if stop == len(pieces) or pieces[stop].offset != before.offset + before.bytes:
            shard.file.read_payload_into(pieces[start].offset, targets[start:stop])
            start = stop


def piece_slices(unit: Unit) -> list[slice]:
    """Where each piece lies in the unit's bytes."""
    starts = np.cumsum([0, *(piece.bytes for piece in unit.pieces)])
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(starts)]


def gather_words(unit: Unit, data: Bytes) -> Words:
    """(unit.words,) uint64 stream words of the unit; a fresh array."""
    words = np.zeros(unit.words, "<u8")
    for piece, where in zip(unit.pieces, piece_slices(unit), strict=True):
        target = words[piece.first_word : piece.first_word + piece.words]
        if piece.positions is None:
            target.view(np.uint8)[: piece.bytes] = data[where]
        else:
            target[:] = _padded_words(data[where])[piece.positions]
    return words.astype(np.uint64, copy=False)


def scatter_words(unit: Unit, words: Words, data: Bytes) -> None:
    """Put stream words back into the unit's bytes, in place; the inverse of `gather_words`."""
    stored = words.astype("<u8", copy=False)
    for piece, where in zip(unit.pieces, piece_slices(unit), strict=True):
        source = stored[piece.first_word : piece.first_word + piece.words]
        if piece.positions is None:
            data[where] = source.view(np.uint8)[: piece.bytes]
        else:
            padded = _padded_words(data[where])
            padded[piece.positions] = source
            data[where] = padded.view(np.uint8)[: piece.bytes]


def _padded_words(data: Bytes) -> Words:
    words = np.zeros(-(-data.size // 8), "<u8")
    words.view(np.uint8)[: data.size] = data
    return words.astype(np.uint64, copy=False)


def raw_digests(unit: Unit, data: Bytes) -> npt.NDArray[np.uint64]:
    """(pieces,) digests of the pieces' stored bytes."""
    return np.array([xxhash.xxh3_64_intdigest(data[where].data) for where in piece_slices(unit)], np.uint64)


def protected_digests(unit: Unit, words: Words, mask: int) -> npt.NDArray[np.uint64]:
    """(pieces,) digests of the pieces' words with the unprotected bits cleared."""
    masked = (words & np.uint64(mask)).astype("<u8", copy=False)
    return np.array(
        [xxhash.xxh3_64_intdigest(masked[p.first_word : p.first_word + p.words].data) for p in unit.pieces], np.uint64
    )


def examine(shard: Shard, stream_index: int, unit_index: int, *, parity: bool = False) -> Examined:
    """Read a unit, and decode it if its protected bits are not what was written.

    Args:
        parity: look at the unit's parity even where the message needs none of it.
    """
    unit = shard.plan.unit(stream_index, unit_index)
    slices = piece_slices(unit)
    data = np.empty(slices[-1].stop, np.uint8)
    _read_runs(shard, unit.pieces, [data[where] for where in slices])
    restored = _replace_headers(shard.plan, unit, data)
    first = unit.pieces[0].index
    indices = slice(first, first + len(unit.pieces))
    exact = raw_digests(unit, data) == shard.digests.raw[indices]
    if exact.all():
        found = [State.EXACT] * len(exact)
        return _without_decoding(shard, unit, data, found, parity, restored)
    words = gather_words(unit, data)
    mask = shard.plan.streams[stream_index].mask
    intact = protected_digests(unit, words, mask) == shard.digests.protected[indices]
    found = [State.EXACT if e else State.PROTECTED if i else State.LOST for e, i in zip(exact, intact, strict=True)]
    if intact.all():
        return _without_decoding(shard, unit, data, found, parity, restored)
    return _decode(shard, unit, data, words, found, indices, parity)


def _replace_headers(shard: ShardPlan, unit: Unit, data: Bytes) -> dict[int, int]:
    """Put the replica's bytes where the payload repeats a safetensors header; flipped bits by piece."""
    restored: dict[int, int] = {}
    for place, (piece, where) in enumerate(zip(unit.pieces, piece_slices(unit), strict=True)):
        part = shard.parts[piece.part]
        if part.kind == plan.HEADER:
            start = part.offset + piece.offset - part.stored_offset
            replica = np.frombuffer(shard.sources[part.source].header, np.uint8)[start : start + piece.bytes]
            restored[place] = int(np.bitwise_count(replica ^ data[where]).sum())
            data[where] = replica
    return restored


def _without_decoding(
    shard: Shard, unit: Unit, data: Bytes, found: list[State], parity: bool, restored: dict[int, int]
) -> Examined:
    outcomes = tuple(
        PieceOutcome(piece.part, State.PROTECTED if restored.get(i) else state, state, restored.get(i, 0))
        for i, (piece, state) in enumerate(zip(unit.pieces, found, strict=True))
    )
    stored, damaged = None, False
    if parity and unit.layout.parity_bytes:
        stored = shard.file.read_parity(unit.parity_offset, unit.layout.parity_bytes)
        damaged = xxhash.xxh3_64_intdigest(stored.data) != int(shard.digests.parity[unit.parity_digest])
        if damaged:
            stream = shard.plan.streams[unit.stream]
            stored = stream.code.encode(gather_words(unit, data), stream.mask)
    none = np.zeros(0, np.int32)
    return Examined(unit, outcomes, data, data, stored, damaged, False, unit.layout.codewords, none, None)


def _decode(
    shard: Shard, unit: Unit, data: Bytes, words: Words, found: list[State], indices: slice, parity: bool
) -> Examined:
    stream = shard.plan.streams[unit.stream]
    stored = shard.file.read_parity(unit.parity_offset, unit.layout.parity_bytes)
    damaged = unit.parity_digest >= 0 and xxhash.xxh3_64_intdigest(stored.data) != int(
        shard.digests.parity[unit.parity_digest]
    )
    before = words.copy()
    flips = stream.code.decode(words, stream.mask, stored).flips
    for piece, state in zip(unit.pieces, found, strict=True):
        if state != State.LOST:  # what a digest has proved, no wrong codeword shall spoil
            known = slice(piece.first_word, piece.first_word + piece.words)
            words[known] = before[known]
    fixed = data.copy()
    scatter_words(unit, words, fixed)
    exact = raw_digests(unit, fixed) == shard.digests.raw[indices]
    intact = protected_digests(unit, words, stream.mask) == shard.digests.protected[indices]
    if parity and intact.all() and unit.layout.parity_bytes:
        stored = stream.code.encode(words, stream.mask)
    changed = np.bitwise_count(before ^ words)
    lost_bits, failed = None, flips < 0
    if failed.any():
        lost_bits = np.zeros_like(data)
        scatter_words(unit, stream.code.cover(failed, unit.words, stream.mask), lost_bits)
        for where, proven in zip(piece_slices(unit), intact, strict=True):
            if proven:  # the codeword failed, but not for what it holds of this piece
                lost_bits[where] = 0
    outcomes = []
    for place, (piece, where) in enumerate(zip(unit.pieces, piece_slices(unit), strict=True)):
        state = State.EXACT if exact[place] else State.PROTECTED if intact[place] else State.LOST
        corrected = int(changed[piece.first_word : piece.first_word + piece.words].sum())
        affected = 0
        if lost_bits is not None:
            affected = int(touched_elements(shard.plan.parts[piece.part], piece, lost_bits[where]).sum())
        given_up = int(failed.sum()) if affected else 0
        outcomes.append(PieceOutcome(piece.part, found[place], state, corrected, given_up, affected))
    return Examined(
        unit, tuple(outcomes), fixed, data, stored, bool(damaged), True, unit.layout.codewords, flips, lost_bits
    )


def touched_elements(part: Part, piece: Piece, bits: Bytes) -> npt.NDArray[np.bool_]:
    """Which elements have a stored bit set in `bits`, a bitmap of the piece.

    Returns:
        one bool per element of the stored groups that the piece reaches into.
    """
    representation = representations.make(part.representation)
    group = stored_group_bytes(part)
    begin = piece.offset - part.stored_offset
    first = begin // group * group
    last = min(-(-(begin + piece.bytes) // group) * group, part.stored_bytes)
    padded = np.zeros(last - first, np.uint8)
    padded[begin - first : begin - first + piece.bytes] = bits
    return representation.touched(part.dtype, padded, group_source_bytes(part, first, last))


def stored_group_bytes(part: Part) -> int:
    """Stored bytes of one group of elements of a part."""
    representation = representations.make(part.representation)
    if part.representation == "native":
        return max(1, part.dtype.word_bits // 8)
    return representation.stored_bytes(part.dtype, representation.group * part.dtype.bits // 8)


def group_source_bytes(part: Part, first: int, last: int) -> int:
    """Bytes in the original dtype of the elements stored in bytes first .. last of a part, both on group borders."""
    if part.representation == "native":
        return last - first
    group = stored_group_bytes(part)
    elements = representations.make(part.representation).group * part.dtype.bits // 8
    return min(last // group * elements, part.bytes) - first // group * elements
