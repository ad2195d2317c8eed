"""Laying out: parts get their places, pool into streams, and get the codes that were left to choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ckptguard import codes
from ckptguard.codes.base import TILE_WORDS, Code
from ckptguard.errors import SpecError
from ckptguard.plan.model import Part, ShardPlan, Source, Stream, stream_words
from ckptguard.representations.base import Selection

FILES_CODE = "bch:8191,6176"
"""Auxiliary files (index, config, tokenizer) are wholly protected by this code: t = 163, and 1e-2 is survived with
probability 1 - 1e-15 per codeword."""


def lay_out(
    name: str,
    sources: Sequence[Source],
    parts: Sequence[Part],
    *,
    device: Mapping[str, Any] | None = None,
    beside: bool = False,
    bit_error_rate: float | None = None,
    target: float | None = None,
) -> ShardPlan:
    """Put parts one after the other, pool them into streams, choose the codes left to choice, and place the parity.

    Args:
        parts: with `stored_bytes`, mask and code decided; their `stored_offset` is set here. A code `auto` or `auto:n`
            is resolved for all parts of the shard that name it.
        bit_error_rate, target: of the device and of the whole shard, for `auto`.
    """
    placed: list[Part] = []
    offset = 0
    for part in parts:
        placed.append(replace(part, stored_offset=offset))
        offset += part.stored_bytes
    placed = _resolve_auto(placed, bit_error_rate, target)
    streams, parity = pool(placed)
    return ShardPlan(name, device, tuple(sources), tuple(placed), tuple(streams), offset, parity, beside)


def pool(parts: Sequence[Part]) -> tuple[list[Stream], int]:
    """The streams that parts with their places and codes make, and the bytes of their parity (docs/format.md, 6)."""
    members: dict[tuple[str, int], list[int]] = {}
    joined: dict[tuple[str, str, str, str], tuple[Selection, list[int]]] = {}
    words = [-(-part.stored_bytes // 8) for part in parts]
    for index, part in enumerate(parts):
        if part.stored_bytes:
            like = (part.representation, part.dtype.name, part.mask, part.code)
            if (known := joined.get(like)) is None:
                selection = part.selection
                key = (part.code, selection.mask) if selection.mask else ("none", 0)
                known = joined[like] = (selection, members.setdefault(key, []))
            if known[0].period > 1:
                words[index] = stream_words(known[0], words[index])
            known[1].append(index)
    streams: list[Stream] = []
    parity = pieces = digests = 0
    for (spec, mask), indices in members.items():
        stream = _stream(codes.make(spec), mask, [(i, words[i]) for i in indices], parity, pieces, digests)
        streams.append(stream)
        parity += stream.parity_bytes
        pieces += len(stream.cuts) - 1
        digests += stream.units if stream.parity_bytes else 0
    return streams, parity


def _stream(
    code: Code, mask: int, parts: Sequence[tuple[int, int]], parity: int, first_piece: int, first_digest: int
) -> Stream:
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([words for _, words in parts], out=starts[1:])
    words = int(starts[-1])
    planes = mask.bit_count()
    unit_tiles = code.unit_tiles(max(planes, 1))
    unit_words = unit_tiles * TILE_WORDS
    both = np.sort(np.concatenate([starts, np.arange(0, words, unit_words, dtype=np.int64), [words]]))
    cuts = both[np.append(True, both[1:] != both[:-1])]  # np.union1d would import numpy.ma
    full, rest = divmod(words, unit_words)
    parity_bytes = 0
    if planes:
        parity_bytes = full * code.unit_layout(unit_words, planes).parity_bytes if full else 0
        parity_bytes += code.unit_layout(rest, planes).parity_bytes if rest else 0
    indices = tuple(index for index, _ in parts)
    return Stream(code, mask, unit_tiles, indices, words, parity, parity_bytes, first_piece, first_digest, starts, cuts)


def _resolve_auto(parts: Sequence[Part], bit_error_rate: float | None, target: float | None) -> list[Part]:
    """Replace the codes `auto` and `auto:n` by the cheapest BCH code that reaches the target."""
    asked = sorted({part.code for part in parts if part.code.partition(":")[0] == "auto"})
    result = list(parts)
    for spec in asked:
        if bit_error_rate is None:
            raise SpecError("--code auto needs the device's error rate; name a device (--devices, --device) or a code")
        chosen = _smallest_code(spec, [p for p in parts if p.code == spec], bit_error_rate, target or 1e-9)
        result = [replace(part, code=chosen) if part.code == spec else part for part in result]
    return result


def _smallest_code(spec: str, parts: Sequence[Part], bit_error_rate: float, target: float) -> str:
    from ckptguard.codes.bch import dimensions

    _, _, setting = spec.partition(":")
    try:
        n = int(setting or "8191")
        candidates = dimensions(n)
    except ValueError as error:
        raise SpecError(f"{spec!r}: `auto` takes one setting, the codeword length n = 2^m - 1") from error
    best = ""
    low, high = 0, len(candidates) - 1
    while low <= high:  # failure falls as t grows; candidates are sorted by falling k
        middle = (low + high) // 2
        trial = f"bch:{n},{candidates[middle]}"
        if _failure(trial, parts, bit_error_rate) <= target:
            best, high = trial, middle - 1
        else:
            low = middle + 1
    if not best:
        raise SpecError(
            f"no BCH code of length {n} decodes this shard with probability 1 - {target:g} at a bit error rate of "
            f"{bit_error_rate:g}; allow more failures (--target), or a shorter code (auto:1023)"
        )
    return best


def _failure(spec: str, parts: Sequence[Part], bit_error_rate: float) -> float:
    """Expected number of codewords of the parts that fail, which bounds the probability that any does."""
    total = 0.0
    streams, _ = pool([replace(part, code=spec) for part in parts])
    for stream in streams:
        if not stream.planes:
            continue
        for unit, count in ((0, stream.units - 1), (stream.units - 1, 1)):
            layout = stream.layout(unit)
            length = layout.message_bits + layout.parity_bits
            total += count * layout.codewords * stream.code.failure_probability(bit_error_rate, length)
    return total
