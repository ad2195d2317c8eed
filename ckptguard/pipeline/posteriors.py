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
from ckptguard.outliers import ENTRY_BYTES, Flags, Outliers, most_entries, outlier_fields, without
from ckptguard.pipeline import work
from ckptguard.plan import TENSOR, Part, ShardPlan
from ckptguard.posterior import FIELDS, Indices, Spread, all_finite, field_counts
from ckptguard.row_sums import Levels, row_columns, segment_sums, segments

TAG = "POST"

_COUNT = struct.Struct("<I")
_PAIR = struct.Struct("<ff")
_CODE = struct.Struct("<H")
_SUMMED, _OUTLYING = 1 << 15, 1 << 14

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
        outliers: entries of those that it carries.
    """

    of_0: float
    of_1: float
    spread: Spread
    levels: Levels | None = None
    outliers: int = 0


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


def most_extra(part: Part, summed: bool) -> int:
    """An upper bound of the bytes of row sums and outliers of a part."""
    return (most_sums(part) if summed else 0) + ENTRY_BYTES * most_entries(part.elements)


def outlier_bytes(posteriors: Mapping[int, Posterior]) -> int:
    """What the outliers of a shard take of its payload."""
    return ENTRY_BYTES * sum(one.outliers for one in posteriors.values())


def outlier_places(plan: ShardPlan, posteriors: Mapping[int, Posterior]) -> dict[int, slice]:
    """Part -> where in what is extra its outliers lie: behind all row sums, part after part."""
    found, at = {}, plan.extra_bytes - outlier_bytes(posteriors)
    for index in sorted(posteriors):
        size = ENTRY_BYTES * posteriors[index].outliers
        found[index] = slice(at, at + size)
        at += size
    return found


def _pieces(plan: ShardPlan, part: int) -> range:
    return range(int(plan.table.starts[part]), int(plan.table.stops[part]))


# Writing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restorers:
    """What a shard has to carry: restorers by part index, and the bytes of its row sums and outliers."""

    posteriors: dict[int, Posterior]
    extra: Bytes

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
    counts: dict[int, npt.NDArray[np.int64]] = {}
    sums: dict[int, list[npt.NDArray[np.float64]]] = {part: [] for part in sorted(summed)}

    def look(piece: int) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64] | None]:
        index, _, words = _words(plan, piece, read)
        dtype = plan.parts[index].dtype
        found = segment_sums(dtype, words, *piece_segments(plan, piece)) if index in sums else None
        return index, field_counts(dtype, words), found

    pieces = (piece for part in sorted(rates) for piece in _pieces(plan, part))
    for index, fields, found in work.run(look, pieces, jobs=jobs):
        counts[index] = counts[index] + fields if index in counts else fields
        if found is not None:
            sums[index].append(found)
    pairs = {
        index: (float(np.float32(rates[index][0])), float(np.float32(rates[index][1])))
        for index in sorted(rates)
        if all_finite(counts[index])
    }
    outliers = _find_outliers(plan, counts, pairs, read, jobs)
    posteriors, stored = {}, []
    for index, pair in pairs.items():
        levels, words = None, counts[index]
        if sums.get(index) and sum(map(len, sums[index])):
            joined = np.concatenate(sums[index])
            if (made := Levels.of(joined)).finite:
                levels = made
                stored.append(made.quantise(joined))
        entries = 0
        if index in outliers:
            flags, one = outliers[index]
            words, entries = without(words, flags), one.entries
        spread = Spread.of_counts(plan.parts[index].dtype, words)
        posteriors[index] = Posterior(*pair, spread, levels, entries)
    stored += [one.pack() for _, one in outliers.values()]
    return Restorers(posteriors, np.concatenate(stored) if stored else np.zeros(0, np.uint8))


def _words(plan: ShardPlan, piece: int, read: ReadPart) -> tuple[int, int, Words]:
    """The part of a piece, the element that it begins with, and its words."""
    index = int(plan.table.part[piece])
    part = plan.parts[index]
    begin, size = int(plan.table.offset[piece]) - part.stored_offset, part.dtype.word_bits // 8
    return index, begin // size, read(part, begin, begin + int(plan.table.bytes[piece])).view(f"<u{size}")


def _find_outliers(
    plan: ShardPlan,
    counts: Mapping[int, npt.NDArray[np.int64]],
    rates: Mapping[int, Pair],
    read: ReadPart,
    jobs: int | None,
) -> dict[int, tuple[Flags, Outliers]]:
    """By index, of the parts that have outliers: their fields, and themselves."""
    fields = {index: outlier_fields(plan.parts[index].dtype, counts[index], *pair) for index, pair in rates.items()}
    fields = {index: one for index, one in fields.items() if one.any()}
    found: dict[int, list[Outliers]] = {index: [] for index in fields}

    def look(piece: int) -> tuple[int, Outliers]:
        index, first, words = _words(plan, piece, read)
        return index, Outliers.of(plan.parts[index].dtype, words, fields[index], first)

    for index, one in work.run(look, (piece for part in sorted(fields) for piece in _pieces(plan, part)), jobs=jobs):
        found[index].append(one)
    return {index: (fields[index], Outliers.joined(several)) for index, several in found.items()}


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
        flags = (_SUMMED if one.levels else 0) | (_OUTLYING if one.outliers else 0)
        codes[index] = numbers[one.of_0, one.of_1] | flags
    ordered = [posteriors[index] for index in sorted(posteriors)]
    return b"".join(
        [
            _COUNT.pack(len(pairs)),
            *(_PAIR.pack(*pair) for pair in pairs),
            *(_CODE.pack(code) for code in codes),
            *(one.spread.pack() for one in ordered),
            *(_PAIR.pack(one.levels.low, one.levels.step) for one in ordered if one.levels),
            *(_COUNT.pack(one.outliers) for one in ordered if one.outliers),
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
    count = sum(map(len, sum_places(plan, summed).values())) + outlier_bytes(posteriors)
    if count != plan.extra_bytes:
        raise ContainerError(
            f"the metadata's posterior restorers need {count} bytes of row sums and outliers, the payload has "
            f"{plan.extra_bytes}"
        )
    return posteriors


def _unpack(data: bytes, parts: Sequence[Part]) -> dict[int, Posterior]:
    (count,) = _COUNT.unpack_from(data)
    if _COUNT.size + _PAIR.size * count > len(data) or count >= _OUTLYING:
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
        if not can_have(part) or not 0 < code % _OUTLYING <= count or (code & _SUMMED and not columns_of(part)):
            raise ContainerError("the metadata has a posterior restorer for a part that cannot have it")
        spreads[index], size = Spread.unpack(part.dtype, data[offset:])
        offset += size
    summed = [index for index in spreads if codes[index] & _SUMMED]
    outlying = [index for index in spreads if codes[index] & _OUTLYING]
    behind = offset + _PAIR.size * len(summed)
    if len(data) != behind + _COUNT.size * len(outlying):
        raise ContainerError(f"the metadata has {len(data)} bytes of posterior restorers, its parts need another size")
    levels = {index: Levels(*_PAIR.unpack_from(data, offset + _PAIR.size * i)) for i, index in enumerate(summed)}
    if not all(one.finite and one.step >= 0 for one in levels.values()):
        raise ContainerError("the metadata's row sums have levels that are no numbers")
    counts = {index: _COUNT.unpack_from(data, behind + _COUNT.size * i)[0] for i, index in enumerate(outlying)}
    if not all(counts.values()):
        raise ContainerError("the metadata says that a part has outliers, and that these are none")
    of = {index: pairs[codes[index] % _OUTLYING - 1] for index in spreads}
    return {
        index: Posterior(of[index][0], of[index][1], spread, levels.get(index), counts.get(index, 0))
        for index, spread in spreads.items()
    }
