"""Posterior restorers of parts: what a container says of them, where it is kept, and how it is measured."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.container import sections
from ckptguard.container.sections import Section
from ckptguard.errors import ContainerError
from ckptguard.pipeline import work
from ckptguard.plan import TENSOR, Part, ShardPlan
from ckptguard.posterior import FIELDS, Indices, Spread, all_finite, field_counts
from ckptguard.row_sums import Levels, row_columns, segment_sums, segments

TAG = "POST"

_COUNT = struct.Struct("<I")
_PAIR = struct.Struct("<ff")
_CODE = struct.Struct("<H")
_SUMMED = 1 << 15

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
Pair = tuple[float, float]
ReadPart = Callable[[Part, int, int], Bytes]


@dataclass(frozen=True)
class Posterior:
    """What readers know of the words of a part beside their guard.

    Attributes:
        of_0, of_1: float32 probabilities, that a stored 0, a stored 1 is read wrong.
        levels: of the sums of its row segments; None where it carries none.
    """

    of_0: float
    of_1: float
    spread: Spread
    levels: Levels | None = None


def can_have(part: Part) -> bool:
    """Whether a part can have a restorer: floating-point tensors as they are, with at least one element."""
    return part.kind == TENSOR and part.representation == "native" and part.dtype.name in FIELDS and part.bytes > 0


def columns_of(part: Part) -> int:
    """Elements of the part's rows, as `posterior.row_columns`."""
    return row_columns(part.elements, part.shape) if can_have(part) else 0


def piece_segments(plan: ShardPlan, piece: int) -> tuple[Indices, Indices]:
    """(starts, stops) of the row segments of a piece, in its elements; of a part that has rows."""
    part = plan.parts[int(plan.table.part[piece])]
    size = part.dtype.word_bits // 8
    first = (int(plan.table.offset[piece]) - part.stored_offset) // size
    return segments(first, int(plan.table.bytes[piece]) // size, columns_of(part))


def sum_places(plan: ShardPlan, summed: Iterable[int]) -> dict[int, range]:
    """Piece -> where in the row sums its own lie, for the pieces of these parts, one after the other."""
    pieces = [piece for part in sorted(summed) for piece in _pieces(plan, part)]
    ends = list(accumulate((len(piece_segments(plan, piece)[0]) for piece in pieces), initial=0))
    return {piece: range(ends[i], ends[i + 1]) for i, piece in enumerate(pieces)}


def most_sums(part: Part) -> int:
    """An upper bound of the row segments of a part, however it is cut into pieces of at least 64 tiles."""
    return part.shape[0] + part.stored_bytes // (64 * 4096) + 2


def _pieces(plan: ShardPlan, part: int) -> range:
    return range(int(plan.table.starts[part]), int(plan.table.stops[part]))


# Writing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restorers:
    """What a shard has to carry: restorers by part index, and the bytes of its row sums."""

    posteriors: dict[int, Posterior]
    sums: Bytes

    @classmethod
    def none(cls) -> Restorers:
        """No restorers."""
        return cls({}, np.zeros(0, np.uint8))


def measure(
    plan: ShardPlan, rates: Mapping[int, Pair], summed: Sequence[int], read: ReadPart, jobs: int | None
) -> Restorers:
    """Measure the parts of a shard, piece by piece.

    Tensors with infinities or NaN get no restorer, which would make numbers of these; rows whose sums float32 cannot
    hold get no sums.

    Args:
        rates: by index of the parts that are to have restorers.
        summed: which of them carry row sums; they have rows.
        read: gives bytes [begin, end) of a part.
    """
    fields: dict[int, npt.NDArray[np.int64]] = {}
    found: dict[int, list[npt.NDArray[np.float64]]] = {part: [] for part in sorted(summed)}
    table = plan.table

    def look(piece: int) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64] | None]:
        index = int(table.part[piece])
        part = plan.parts[index]
        begin = int(table.offset[piece]) - part.stored_offset
        words: Words = read(part, begin, begin + int(table.bytes[piece])).view(f"<u{part.dtype.word_bits // 8}")
        sums = segment_sums(part.dtype, words, *piece_segments(plan, piece)) if index in found else None
        return index, field_counts(part.dtype, words), sums

    pieces = (piece for part in sorted(rates) for piece in _pieces(plan, part))
    for index, counts, sums in work.run(look, pieces, jobs=jobs):
        fields[index] = fields[index] + counts if index in fields else counts
        if sums is not None:
            found[index].append(sums)
    posteriors, stored = {}, []
    for index in sorted(rates):
        part, levels = plan.parts[index], None
        if not all_finite(fields[index]):
            continue
        if found.get(index) and sum(map(len, found[index])):
            sums = np.concatenate(found[index])
            if (made := Levels.of(sums)).finite:
                levels = made
                stored.append(made.quantise(sums))
        of_0, of_1 = (float(np.float32(rate)) for rate in rates[index])
        posteriors[index] = Posterior(of_0, of_1, Spread.of_counts(part.dtype, fields[index]), levels)
    return Restorers(posteriors, np.concatenate(stored) if stored else np.zeros(0, np.uint8))


# The section ----------------------------------------------------------------------------------------------------------


def section(posteriors: Mapping[int, Posterior], parts: int) -> list[Section]:
    """The section that holds the restorers, by part index, of a shard; none where there are none."""
    if not posteriors:
        return []
    return [Section(TAG, pack(posteriors, parts), compressed=True, optional=True)]


def stored_bytes(posteriors: Mapping[int, Posterior], parts: int) -> int:
    """Bytes that the restorers of a shard take in its metadata, before it is armoured."""
    return len(sections.pack(section(posteriors, parts)))


def pack(posteriors: Mapping[int, Posterior], parts: int) -> bytes:
    """The content of the section `POST`."""
    pairs = sorted({(one.of_0, one.of_1) for one in posteriors.values()})
    numbers = {pair: number for number, pair in enumerate(pairs, 1)}
    codes = [0] * parts
    for index, one in posteriors.items():
        codes[index] = numbers[one.of_0, one.of_1] | (_SUMMED if one.levels else 0)
    ordered = [posteriors[index] for index in sorted(posteriors)]
    return b"".join(
        [
            _COUNT.pack(len(pairs)),
            *(_PAIR.pack(*pair) for pair in pairs),
            *(_CODE.pack(code) for code in codes),
            *(one.spread.pack() for one in ordered),
            *(_PAIR.pack(one.levels.low, one.levels.step) for one in ordered if one.levels),
        ]
    )


def read(found: Section | None, plan: ShardPlan) -> dict[int, Posterior]:
    """The restorers in a section, by part index. Raises ContainerError where they do not fit the plan."""
    if found is None:
        return {}
    try:
        posteriors = _unpack(found.data, plan.parts)
    except struct.error as error:
        raise ContainerError("the metadata's posterior restorers are cut short") from error
    summed = [index for index, one in posteriors.items() if one.levels]
    count = sum(map(len, sum_places(plan, summed).values()))
    if count != plan.sum_bytes:
        raise ContainerError(
            f"the metadata's posterior restorers need {count} bytes of row sums, the payload has {plan.sum_bytes}"
        )
    return posteriors


def _unpack(data: bytes, parts: Sequence[Part]) -> dict[int, Posterior]:
    (count,) = _COUNT.unpack_from(data)
    if _COUNT.size + _PAIR.size * count > len(data) or count >= _SUMMED:
        raise ContainerError(f"the metadata's posterior restorers do not hold the {count} pairs of rates they state")
    pairs = [_PAIR.unpack_from(data, _COUNT.size + _PAIR.size * i) for i in range(count)]
    if not all(0 <= rate <= 1 for pair in pairs for rate in pair):
        raise ContainerError("the metadata's posterior restorers are for rates that are no probabilities")
    offset = _COUNT.size + _PAIR.size * count
    codes = [_CODE.unpack_from(data, offset + _CODE.size * index)[0] for index in range(len(parts))]
    offset += _CODE.size * len(parts)
    spreads: dict[int, Spread] = {}
    for index, code in enumerate(codes):
        part = parts[index]
        if not code:
            continue
        if not can_have(part) or not 0 < code % _SUMMED <= count or (code & _SUMMED and not columns_of(part)):
            raise ContainerError("the metadata has a posterior restorer for a part that cannot have it")
        spreads[index], size = Spread.unpack(part.dtype, data[offset:])
        offset += size
    summed = [index for index in spreads if codes[index] & _SUMMED]
    if len(data) != offset + _PAIR.size * len(summed):
        raise ContainerError(f"the metadata has {len(data)} bytes of posterior restorers, its parts need another size")
    levels = {index: Levels(*_PAIR.unpack_from(data, offset + _PAIR.size * i)) for i, index in enumerate(summed)}
    if not all(one.finite and one.step >= 0 for one in levels.values()):
        raise ContainerError("the metadata's row sums have levels that are no numbers")
    of = {index: pairs[codes[index] % _SUMMED - 1] for index in spreads}
    return {index: Posterior(of[index][0], of[index][1], one, levels.get(index)) for index, one in spreads.items()}
