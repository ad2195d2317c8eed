"""One unit at a time: read it, compare digests, decode what is damaged, say what became of every piece."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import plan, representations
from ckptguard.pipeline import guarding, work
from ckptguard.pipeline.shard import Shard
from ckptguard.plan import Part, Piece, ShardPlan, Unit

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


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
        affected: elements that have bits in codewords that the decoder gave up on, unless the piece's digest proves
            them right.
        forced: bits that never vary and were set back.
    """

    part: int
    found: State
    state: State
    corrected: int = 0
    affected: int = 0
    forced: int = 0


@dataclass
class Examined:
    """A unit after examination. `bytes` and `parity` are the best there is; digests say how good.

    Attributes:
        unit: which.
        pieces: outcomes, as `unit.pieces`.
        bytes: (sum of piece sizes,) stored bytes, piece after piece, after decoding.
        read: the same as read, before decoding; the same object where nothing was decoded or set back.
        parity: (parity_bytes,) as it should be where it was asked for and the message is known, else as decoded; None
            unless asked for or needed.
        parity_damaged: the parity read differs from what was written; False where it was not looked at.
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
    flips: npt.NDArray[np.int32]
    lost_bits: Bytes | None


def runs(pieces: Iterable[Piece]) -> Iterator[tuple[int, slice]]:
    """(offset in the payload, place in the bytes of all) of every run of pieces that are neighbours in both."""
    start = stop = offset = 0
    for piece in pieces:
        if start < stop and piece.offset != offset + stop - start:
            yield offset, slice(start, stop)
            start = stop
        if start == stop:
            offset = piece.offset
        stop += piece.bytes
    if start < stop:
        yield offset, slice(start, stop)


def piece_slices(unit: Unit) -> list[slice]:
    """Where each piece lies in the unit's bytes."""
    starts = itertools.accumulate((piece.bytes for piece in unit.pieces), initial=0)
    return [slice(a, b) for a, b in itertools.pairwise(starts)]


def unit_bytes(unit: Unit) -> int:
    """Stored bytes of all its pieces."""
    return sum(piece.bytes for piece in unit.pieces)


def _bytes_are_words(unit: Unit) -> bool:
    """Whether a unit's bytes, piece after piece, are its words as they stand."""
    return unit_bytes(unit) == 8 * unit.words and all(piece.positions is None for piece in unit.pieces)


def gather_words(unit: Unit, data: Bytes) -> Words:
    """(unit.words,) uint64 stream words of the unit; a view where its bytes are its words, else a fresh array."""
    if _bytes_are_words(unit):
        words = data.view("<u8")
        return words.astype(np.uint64, copy=not words.flags.aligned)
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


def with_words(unit: Unit, words: Words, data: Bytes) -> Bytes:
    """The unit's bytes with stream words put back: those of the words where they are all there is, else a copy."""
    if _bytes_are_words(unit):
        return words.astype("<u8", copy=False).view(np.uint8)
    result = data.copy()
    scatter_words(unit, words, result)
    return result


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


def examine(
    shard: Shard,
    stream_index: int,
    unit_index: int,
    *,
    parity: bool = False,
    guard: bool = True,
    room: work.Room | None = None,
) -> Examined:
    """Read a unit, and decode it if its protected bits are not what was written.

    Args:
        parity: look at the unit's parity even where the message needs none of it.
        guard: before that, set back the bits that never vary of pieces that are damaged.
        room: where memory for the bytes is taken from.
    """
    room = room or work.Room()
    unit = shard.plan.unit(stream_index, unit_index)
    data = room.take(unit_bytes(unit))
    for offset, where in runs(unit.pieces):
        shard.file.read_payload_into(offset, [data[where]])
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
    forced, better = _force(shard, unit, data, found, room) if guard else ([], data)
    if any(forced):
        words = gather_words(unit, better)
    known = _proven(shard, unit, better, words, forced, found, indices)
    if State.LOST not in known:
        examined = _without_decoding(shard, unit, better, found, parity, restored, known)
    else:
        fresh = room.take(words.nbytes).view(np.uint64)
        fresh[:] = words
        examined = _decode(shard, unit, better, words, fresh, known, indices, parity)
        outcomes = zip(examined.pieces, found, strict=True)
        examined.pieces = tuple(replace(outcome, found=state) for outcome, state in outcomes)
    if not any(forced):
        return examined
    examined.pieces = tuple(
        replace(outcome, forced=count) for outcome, count in zip(examined.pieces, forced, strict=True)
    )
    examined.read = data
    return examined


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


def _force(shard: Shard, unit: Unit, data: Bytes, found: list[State], room: work.Room) -> tuple[list[int], Bytes]:
    """Set back the bits that never vary of damaged pieces; (how many in each piece, the bytes, a copy if any)."""
    forced = [0] * len(found)
    better = data
    for place, (piece, where, state) in enumerate(zip(unit.pieces, piece_slices(unit), found, strict=True)):
        guard = shard.guards.get(piece.part)
        if guard is None or state == State.EXACT:
            continue
        if better is data:
            better = room.take(data.size)
            better[:] = data
        forced[place] = guarding.force(shard.plan.parts[piece.part], piece, guard, better[where])
    if better is not data and not any(forced):
        room.give(better)
        return forced, data
    return forced, better


def _proven(
    shard: Shard, unit: Unit, data: Bytes, words: Words, forced: list[int], found: list[State], indices: slice
) -> list[State]:
    """What is known of the pieces after bits were set back."""
    if not any(forced):
        return found
    exact = raw_digests(unit, data) == shard.digests.raw[indices]
    mask = shard.plan.streams[unit.stream].mask
    intact = protected_digests(unit, words, mask) == shard.digests.protected[indices]
    return [State.EXACT if e else State.PROTECTED if i else State.LOST for e, i in zip(exact, intact, strict=True)]


def _without_decoding(
    shard: Shard,
    unit: Unit,
    data: Bytes,
    found: list[State],
    parity: bool,
    restored: dict[int, int],
    known: list[State] | None = None,
) -> Examined:
    """The outcome where no codeword is needed; `known` is what the pieces are, if not as they were found."""
    outcomes = tuple(
        PieceOutcome(piece.part, State.PROTECTED if restored.get(i) else before, after, restored.get(i, 0))
        for i, (piece, before, after) in enumerate(zip(unit.pieces, found, known or found, strict=True))
    )
    stored, damaged = None, False
    if parity and unit.layout.parity_bytes:
        stored = shard.file.read_parity(unit.parity_offset, unit.layout.parity_bytes)
        damaged = not _parity_is_exact(shard, unit, stored)
        if damaged:
            stream = shard.plan.streams[unit.stream]
            stored = stream.code.encode(gather_words(unit, data), stream.mask)
    none = np.zeros(0, np.int32)
    return Examined(unit, outcomes, data, data, stored, damaged, none, None)


def _parity_is_exact(shard: Shard, unit: Unit, parity: Bytes) -> bool:
    """Whether the parity of a unit, if it has some, is as it was written."""
    return unit.parity_digest < 0 or xxhash.xxh3_64_intdigest(parity.data) == int(
        shard.digests.parity[unit.parity_digest]
    )


def _decode(
    shard: Shard,
    unit: Unit,
    data: Bytes,
    before: Words,
    words: Words,
    found: list[State],
    indices: slice,
    parity: bool,
) -> Examined:
    """Decode `words`, a copy of `before`, in place."""
    from ckptguard.kernels import differences

    stream = shard.plan.streams[unit.stream]
    stored = shard.file.read_parity(unit.parity_offset, unit.layout.parity_bytes)
    damaged = not _parity_is_exact(shard, unit, stored)
    flips = stream.code.decode(words, stream.mask, stored).flips
    for piece, state in zip(unit.pieces, found, strict=True):
        if state != State.LOST:  # what a digest has proved, no wrong codeword shall spoil
            known = slice(piece.first_word, piece.first_word + piece.words)
            words[known] = before[known]
    fixed = with_words(unit, words, data)
    exact = raw_digests(unit, fixed) == shard.digests.raw[indices]
    intact = protected_digests(unit, words, stream.mask) == shard.digests.protected[indices]
    if parity and intact.all() and not _parity_is_exact(shard, unit, stored):
        stored = stream.code.encode(words, stream.mask)
    lost_bits, failed = None, flips < 0
    if failed.any():
        lost_bits = with_words(unit, stream.code.cover(failed, unit.words, stream.mask), np.zeros_like(data))
        for where, proven in zip(piece_slices(unit), intact, strict=True):
            if proven:  # the codeword failed, but not for what it holds of this piece
                lost_bits[where] = 0
    outcomes = []
    for place, (piece, where) in enumerate(zip(unit.pieces, piece_slices(unit), strict=True)):
        state = State.EXACT if exact[place] else State.PROTECTED if intact[place] else State.LOST
        own = slice(piece.first_word, piece.first_word + piece.words)
        corrected = differences.count_differences(before[own], words[own])
        affected = 0
        if lost_bits is not None:
            affected = int(touched_elements(shard.plan.parts[piece.part], piece, lost_bits[where]).sum())
        outcomes.append(PieceOutcome(piece.part, found[place], state, corrected, affected))
    return Examined(unit, tuple(outcomes), fixed, data, stored, damaged, flips, lost_bits)


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
