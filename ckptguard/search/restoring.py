"""Posterior restorers around trials, and what the bits of a tensor are worth where readers have one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.encodings import Encoding, NativeWords, floats_of
from ckptguard.dtypes import DType
from ckptguard.evaluate.session import Patch
from ckptguard.outliers import Outliers, misread, most_entries, outlier_fields, without
from ckptguard.posterior import FIELDS, MIXED, Restorer, Spread, all_finite, field_counts, magnitudes_of, transitions
from ckptguard.row_sums import RowSums, row_columns
from ckptguard.search.damage import Rates, Weights

Words = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
LEVEL_BYTES = 8
"""What the levels of a tensor's row sums take of the metadata."""
COUNT_BYTES = 8
"""What the numbers of a tensor's outliers take of it."""


def counts_of(encoding: Encoding) -> Counts | None:
    """Words by sign and exponent of a tensor that can have a restorer: floats as they are, all of them finite; None
    of others."""
    if not isinstance(encoding, NativeWords) or encoding.dtype.name not in FIELDS or not encoding.elements:
        return None
    fields = field_counts(encoding.dtype, encoding.words)
    return fields if all_finite(fields) else None


def sum_bits(encoding: Encoding, shape: tuple[int, ...]) -> int:
    """Bits of the row sums of a tensor with a restorer, without their levels; 0 where rows are too short.

    A container has one more byte for every row that lies in two units of its stream, of at least 256 KiB each.
    """
    return 8 * shape[0] if row_columns(encoding.elements, shape) else 0


class Restoring:
    """Readers with restorers, for one set of masks."""

    def __init__(
        self,
        encodings: Mapping[str, Encoding],
        shapes: Mapping[str, tuple[int, ...]],
        masks: Mapping[str, str],
        rates: Mapping[str, Rates],
        summed: Collection[str] = (),
        with_outliers: Collection[str] = (),
    ) -> None:
        """Measure the tensors.

        Args:
            summed: names of the tensors that carry row sums.
            with_outliers: names of those that carry outliers, where they have some.
        """
        self._encodings = encodings
        self._restorers: dict[str, Restorer] = {}
        self._sums: dict[str, RowSums] = {}
        self._outliers: dict[str, Outliers] = {}
        for name, encoding in encodings.items():
            counts, rate = counts_of(encoding), rates[name]
            if counts is None:
                continue
            if name in with_outliers:
                fields = outlier_fields(encoding.dtype, counts, masks[name], rate.of_0, rate.of_1)
                self._outliers[name] = Outliers.of(encoding.dtype, encoding.words, fields)
                counts = without(counts, fields)
            spread = Spread.of_counts(encoding.dtype, counts)
            self._restorers[name] = Restorer.of(spread, masks[name], rate.of_0, rate.of_1)
            if name in summed and sum_bits(encoding, shapes[name]):
                self._sums[name] = RowSums.of(_values(encoding, encoding.words), shapes[name][0])

    def restore(self, patches: Mapping[str, Patch]) -> dict[str, Patch]:
        """Patches after the restorers: every tensor with damage is read through its own, all of its words."""
        return {name: self._patch(name, patch) for name, patch in patches.items()}

    def _patch(self, name: str, patch: Patch) -> Patch:
        if name not in self._restorers:
            return patch
        encoding = self._encodings[name]
        words = encoding.words.copy()
        words[patch.elements] = patch.words
        read = words.copy() if name in self._outliers else words
        self._restorers[name].apply_in_place(words)
        if name in self._outliers:
            self._outliers[name].put(encoding.dtype, words, read)
        if name in self._sums:
            corrected = self._sums[name].correct(_values(encoding, words))
            words = encoding.encode(corrected.reshape(-1))
        elements = np.flatnonzero(words != encoding.words)
        return Patch(elements, words[elements])


def _values(encoding: Encoding, words: Words) -> Floats:
    found = floats_of(encoding.dtype.name, words)
    assert found is not None
    return found


class Weighed(NamedTuple):
    """A mask of a tensor.

    Attributes:
        damage: that is left, several flips in one word and all.
        entries: of outliers that it carries, at most; 0 = it carries none.
    """

    mask: str
    damage: float
    entries: int = 0


def joint_damage(
    encoding: Encoding, counts: Counts, rates: Rates, curvature: Weights, alone: Sequence[float], price: float
) -> tuple[Weighed, ...]:
    """Masks of a tensor worth a look, each with the damage that is left.

    Every subset of the exponent's bits, with and without the sign, and with and without outliers, is weighed with its
    own restorer; bits of the fraction add up. Of these, the masks on the lower hull are returned, one bit after
    another.

    Args:
        counts: of the tensor's words, by sign and field.
        alone: damage of every bit position without any guard; those of the fraction are used.
        price: of an entry of outliers, in protected bits of the whole tensor.
    """
    exponent_bits = FIELDS[encoding.dtype.name][0]
    moments = _Moments.of(encoding, counts, curvature)
    mixed = Spread.of_counts(encoding.dtype, counts).sign == MIXED
    points = []
    for mask in map("".join, product("01", repeat=exponent_bits)):
        for entries, damages in _left(moments, rates, mask, mixed):
            for sign, damage in enumerate(damages[: 1 + mixed]):
                points.append(_Point(sign + mask.count("1") + price * entries, damage, str(sign) + mask, entries))
    return _merged(_hull(points), list(alone[1 + exponent_bits :]))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over the words of a tensor.

    Attributes:
        counts: (2, exponents) words.
        values: (exponents,) sum of F w^2 by exponent field.
        zeros: sum of F of the words with exponent field 0.
    """

    dtype: DType
    counts: Counts
    values: Floats
    zeros: float

    @cached_property
    def fields(self) -> npt.NDArray[np.int64]:
        """Those that words have."""
        return np.flatnonzero(self.counts.sum(0))

    @classmethod
    def of(cls, encoding: Encoding, counts: Counts, curvature: Weights) -> _Moments:
        exponent_bits, fraction_bits = FIELDS[encoding.dtype.name]
        count = 1 << exponent_bits
        field = (encoding.words >> fraction_bits & (count - 1)).astype(np.int64)
        numbers = _values(encoding, encoding.words)
        weights = np.full(field.size, curvature) if isinstance(curvature, float) else curvature.astype(np.float64)
        finite = np.where(np.isfinite(numbers), numbers, 0.0)
        values = np.bincount(field, weights * finite**2, minlength=count).astype(np.float64)
        plain = np.bincount(field, weights, minlength=count)
        values[0] = 0.0
        return cls(encoding.dtype, counts, values, float(plain[0]))


def _left(moments: _Moments, rates: Rates, mask: str, mixed: bool) -> list[tuple[int, tuple[float, float]]]:
    """Entries of outliers, and damage left with the sign unprotected, and protected, for a mask of the exponent.

    Where words would be outliers there are two rows, without these and with. Without, their undamaged reading is wrong,
    all of them in the same direction, which no sum over single weights sees: it counts as the worst that errors which
    add up can do, the number of the words times the sum of their damages.
    """
    total, fields = moments.counts.sum(0), moments.fields
    chances = transitions(moments.dtype, "0" + mask, rates.of_0, rates.of_1, fields)
    every = _Reading.of(moments, moments.counts, chances)
    flagged = misread(moments.dtype, total, every.estimates)
    whole = every.damages(moments, moments.values, rates, mixed)
    if not flagged.any():
        return [(0, whole)]
    ratio = every.estimates[flagged] / magnitudes_of(moments.dtype)[flagged]
    outliers = int(total[flagged].sum())
    together = 0.5 * outliers * float((moments.values[flagged] * (1 - ratio) ** 2).sum())
    others = _Reading.of(moments, without(moments.counts, flagged), chances)
    kept = others.damages(moments, np.where(flagged, 0.0, moments.values), rates, mixed)
    return [(0, (whole[0] + together, whole[1] + together)), (most_entries(outliers, int(total.sum())), kept)]


@dataclass(frozen=True, eq=False)
class _Reading:
    """What a restorer makes of words with some mask of the exponent.

    Attributes:
        weights: (fields,) of the spread.
        chances: (fields, exponents) that a field is read as another.
        estimates: (exponents,) of magnitudes, without gain and sign.
    """

    weights: Floats
    chances: Floats
    estimates: Floats

    @classmethod
    def of(cls, moments: _Moments, counts: Counts, chances: Floats) -> _Reading:
        weights = Spread.of_counts(moments.dtype, counts).weights[moments.fields]
        joint = weights[:, None] * chances
        total, magnitudes = joint.sum(0), magnitudes_of(moments.dtype)[moments.fields]
        return cls(weights, chances, np.divide(magnitudes @ joint, total, out=np.zeros_like(total), where=total > 0))

    def damages(self, moments: _Moments, values: Floats, rates: Rates, mixed: bool) -> tuple[float, float]:
        """With the sign unprotected, and protected, of words with these sums of F w^2 by field."""
        magnitudes = magnitudes_of(moments.dtype)[moments.fields]
        result = []
        for protected in (False, True):
            flips = 0.0 if protected or not mixed else (rates.of_0 + rates.of_1) / 2
            scale = self.estimates * (1 - 2 * flips)
            back = float((magnitudes * self.weights * (self.chances @ scale)).sum()) * (1 - 2 * flips)
            scale = scale * (float((self.weights * magnitudes**2).sum()) / back) if back > 0 else scale
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(magnitudes[:, None] > 0, scale[None, :] / magnitudes[:, None], 0.0)
            error = (1 - flips) * (ratio - 1) ** 2 + flips * (ratio + 1) ** 2
            damage = float((values[moments.fields][:, None] * self.chances * error).sum())
            if moments.fields[0] == 0:
                damage += moments.zeros * float((self.chances[0] * scale**2).sum())
            result.append(0.5 * damage)
        return result[0], result[1]


class _Point(NamedTuple):
    """Sign and exponent of a mask; the cost is in protected bits."""

    cost: float
    damage: float
    head: str
    entries: int


def _hull(points: list[_Point]) -> list[_Point]:
    hull: list[_Point] = []
    for point in sorted(points):
        if hull and not point.damage < hull[-1].damage:
            continue
        while len(hull) > 1 and _gain(hull[-2], point) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _gain(before: _Point, after: _Point) -> float:
    return (before.damage - after.damage) / (after.cost - before.cost)


def _merged(heads: list[_Point], fraction: list[float]) -> tuple[Weighed, ...]:
    """Steps of the head and of the fraction in the order of what they save per bit."""
    steps: list[tuple[float, int, Any]] = [(_gain(a, b), 0, b) for a, b in pairwise(heads)]
    steps += [(saved, 1, place) for place, saved in enumerate(fraction)]
    steps.sort(key=lambda step: -step[0])
    head, tail = heads[0], ["0"] * len(fraction)
    left = list(fraction)
    found = [Weighed(head.head + "".join(tail), head.damage + sum(left), head.entries)]
    for _, kind, what in steps:
        if kind == 0:
            head = what
        else:
            tail[what], left[what] = "1", 0.0
        found.append(Weighed(head.head + "".join(tail), head.damage + sum(left), head.entries))
    return tuple(found)
