"""Range guards of parts: where they come from, where they are kept, what they do to pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard import representations
from ckptguard.container import sections
from ckptguard.container.sections import Section
from ckptguard.guards import Counts, TensorGuard, WordForm, pack, unpack
from ckptguard.plan import TENSOR, Part, Piece, ShardPlan

TAG = "GRDS"

Bytes = npt.NDArray[np.uint8]


def form_of(part: Part) -> WordForm | None:
    """The words of a part as guards see them; None for parts that are no tensors."""
    if part.kind != TENSOR:
        return None
    if part.representation == "native":
        return WordForm.of(part.dtype)
    representation = representations.make(part.representation)
    return WordForm.of_codes(representation.word_bits(part.dtype), representation.order(part.dtype))


def section(guards: Mapping[int, TensorGuard], parts: int) -> list[Section]:
    """The section that holds the guards, by part index, of a shard; none where there are none."""
    if not guards:
        return []
    return [Section(TAG, pack([guards.get(index) for index in range(parts)]), compressed=True, optional=True)]


def stored_bytes(guards: Mapping[int, TensorGuard], parts: int) -> int:
    """Bytes that the guards of a shard take in its metadata, before it is armoured."""
    return len(sections.pack(section(guards, parts)))


def read(found: Section | None, shard: ShardPlan) -> dict[int, TensorGuard]:
    """The guards in a section, by part index. Raises ContainerError where they do not fit the plan."""
    if found is None:
        return {}
    guards = unpack(found.data, [form_of(part) for part in shard.parts], [part.elements for part in shard.parts])
    return {index: guard for index, guard in enumerate(guards) if guard is not None}


def force(part: Part, piece: Piece, guard: TensorGuard, data: Bytes) -> int:
    """Set back the bits of a piece that never vary, in place; how many differed."""
    begin = piece.offset - part.stored_offset
    if part.representation == "native":
        words, apart = _words(data, guard)
        forced = guard.force_in_place(words, begin // guard.form.bytes)
        if apart:
            data[:] = words.view(np.uint8)
        return forced
    representation = representations.make(part.representation)
    stored_group = representation.stored_bytes(part.dtype, representation.group * part.dtype.bits // 8)
    low, high = begin // stored_group, -(-(begin + piece.bytes) // stored_group)
    first = low * representation.group
    fixed = guard.fixed_bits(first, min(high * representation.group, part.elements) - first)
    here = slice(begin - low * stored_group, begin - low * stored_group + piece.bytes)
    ever, always = (representation.from_words(part.dtype, bits)[here] for bits in fixed)
    right = (data | always) & ever
    forced = int(np.bitwise_count(right ^ data).sum(dtype=np.int64))
    data[:] = right
    return forced


def restrict(part: Part, begin: int, guard: TensorGuard, data: Bytes, proven: bool) -> Counts:
    """Set back bits and replace words that are impossible, in place, in native stored bytes from `begin` on.

    Args:
        proven: protected bits are known to be right; replaced words keep them.
    """
    words, apart = _words(data, guard)
    counts = guard.apply_in_place(words, begin // guard.form.bytes, kept=int(part.mask, 2) if proven else 0)
    if apart:
        data[:] = words.view(np.uint8)
    return counts


def null(begin: int, guard: TensorGuard, data: Bytes, chosen: npt.NDArray[np.bool_]) -> None:
    """Make the chosen words zero, or what comes nearest to it, in native stored bytes from `begin` on, in place."""
    guard.null_in_place(data.view(guard.form.type), chosen, begin // guard.form.bytes)


def _words(data: Bytes, guard: TensorGuard) -> tuple[npt.NDArray[np.unsignedinteger[Any]], bool]:
    """The bytes as words, and whether these are a copy, since the bytes lie at no place for words."""
    words = data.view(guard.form.type)
    return (words, False) if words.flags.aligned else (words.copy(), True)
