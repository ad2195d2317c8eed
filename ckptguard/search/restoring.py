"""Posterior restorers around trials, and what the bits of a tensor are worth where readers have one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.encodings import Encoding, NativeWords, floats_of
from ckptguard.dtypes import DType
from ckptguard.evaluate.session import Patch
from ckptguard.outliers import Outliers, misread, outlier_fields, without
from ckptguard.posterior import FIELDS, MIXED, Restorer, Spread, all_finite, field_counts
from ckptguard.row_sums import RowSums, row_columns
from ckptguard.search.damage import Rates, Weights

Words = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]
LEVEL_BYTES = 8
"""What the levels of a tensor's row sums take of the metadata."""


@dataclass(frozen=True, eq=False)
class Known:
    """What readers of a tensor are told beside sums of its rows.

    Attributes:
        dtype: of its elements.
        counts: (2, exponents) words by sign and field.
        fields: (exponents,) those of its outliers.
    """

    dtype: DType
    counts: npt.NDArray[np.int64]
    fields: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, encoding: Encoding, rates: Rates) -> Known | None:
        """Of a tensor that can have a restorer: floats as they are, all of them finite; None of others."""
        if not isinstance(encoding, NativeWords) or encoding.dtype.name not in FIELDS or not encoding.elements:
            return None
        counts = field_counts(encoding.dtype, encoding.words)
        if not all_finite(counts):
            return None
        return cls(encoding.dtype, counts, outlier_fields(encoding.dtype, counts, rates.of_0, rates.of_1))

    @property
    def spread(self) -> Spread:
        """Of the words that are no outliers."""
        return Spread.of_counts(self.dtype, without(self.counts, self.fields))

    def outliers(self, encoding: Encoding) -> Outliers | None:
        """None where there are none."""
        return Outliers.of(self.dtype, encoding.words, self.fields) if self.fields.any() else None


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
    ) -> None:
        """Measure the tensors.

        Args:
            summed: names of the tensors that carry row sums.
        """
        self._encodings = encodings
        self._restorers: dict[str, Restorer] = {}
        self._sums: dict[str, RowSums] = {}
        self._outliers: dict[str, Outliers] = {}
        for name, encoding in encodings.items():
            rate = rates[name]
            if (known := Known.of(encoding, rate)) is None:
                continue
            self._restorers[name] = Restorer.of(known.spread, masks[name], rate.of_0, rate.of_1)
            if (outliers := known.outliers(encoding)) is not None:
                self._outliers[name] = outliers
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


def joint_damage(
    encoding: Encoding, known: Known, rates: Rates, curvature: Weights, alone: Sequence[float]
) -> tuple[tuple[str, float], ...]:
    """Masks of a tensor worth a look, each with the damage that is left, several flips in one word and all.

    Every subset of the exponent's bits, with and without the sign, is weighed with its own restorer; bits
    of the fraction add up. Of these, the masks on the lower hull are returned, one bit after another.

    Args:
        alone: damage of every bit position without any guard; those of the fraction are used.
    """
    name = encoding.dtype.name
    exponent_bits = FIELDS[name][0]
    moments, spread = _Moments.of(encoding, known, curvature), known.spread
    points = [
        (sign + mask.count("1"), damage, str(sign) + mask)
        for mask in map("".join, product("01", repeat=exponent_bits))
        for sign, damage in enumerate(_left(moments, spread, rates, mask, exponent_bits))
        if not (sign and spread.sign != MIXED)
    ]
    heads = _hull(points)
    return _merged(heads, list(alone[1 + exponent_bits :]))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over the words of a tensor.

    Outliers are left out: their exponents are right.

    Attributes:
        used: (exponents,) words by exponent field.
        values: (exponents,) sum of F w^2 by exponent field.
        zeros: sum of F of the words with exponent field 0.
        magnitudes: (exponents,) 2^e.
    """

    dtype: DType
    used: npt.NDArray[np.int64]
    values: Floats
    zeros: float
    magnitudes: Floats

    @classmethod
    def of(cls, encoding: Encoding, known: Known, curvature: Weights) -> _Moments:
        exponent_bits, fraction_bits = FIELDS[encoding.dtype.name]
        count = 1 << exponent_bits
        field = (encoding.words >> fraction_bits & (count - 1)).astype(np.int64)
        numbers = _values(encoding, encoding.words)
        weights = np.full(field.size, curvature) if isinstance(curvature, float) else curvature.astype(np.float64)
        magnitudes = np.exp2(np.arange(count, dtype=np.float64) - ((1 << (exponent_bits - 1)) - 1))
        magnitudes[[0, -1]] = 0.0
        finite = np.where(np.isfinite(numbers), numbers, 0.0)
        values = np.bincount(field, weights * finite**2, minlength=count).astype(np.float64)
        plain = np.bincount(field, weights, minlength=count)
        values[0] = 0.0
        used = without(known.counts, known.fields).sum(0)
        return cls(encoding.dtype, used, np.where(known.fields, 0.0, values), float(plain[0]), magnitudes)

    def together(self, estimates: Floats) -> float:
        """Damage of words that no damage makes but the restorer does, where outliers are too many to be carried.

        All of them err in the same direction, which no sum over single weights sees, and by much, which no curvature
        does. So they count as the worst that errors which add up can do: what their squares come to, times how many
        they are.
        """
        fields = misread(self.dtype, self.used, estimates)
        ratio = estimates[fields] / self.magnitudes[fields]
        return int(self.used[fields].sum()) * float((self.values[fields] * (1 - ratio) ** 2).sum())


def _left(moments: _Moments, spread: Spread, rates: Rates, mask: str, exponent_bits: int) -> tuple[float, float]:
    """Damage left with the sign unprotected, and protected, for a mask of the exponent."""
    used = np.flatnonzero((moments.values > 0) | (spread.weights > 0))
    chances = np.ones((used.size, moments.values.size))
    reads = np.arange(moments.values.size)
    for place, chosen in enumerate(mask):
        shift = exponent_bits - 1 - place
        was, read = used >> shift & 1, reads >> shift & 1
        wrong = np.zeros(2) if chosen == "1" else np.array([rates.of_0, rates.of_1])
        same = was[:, None] == read[None, :]
        chances *= np.where(same, 1 - wrong[was][:, None], wrong[was][:, None])
    magnitudes, weights = moments.magnitudes[used], spread.weights[used]
    joint = weights[:, None] * chances
    total = joint.sum(0)
    plain = np.divide(magnitudes @ joint, total, out=np.zeros_like(total), where=total > 0)
    together = moments.together(plain)
    result = []
    for protected in (False, True):
        flips = 0.0 if protected or spread.sign != MIXED else (rates.of_0 + rates.of_1) / 2
        scale = plain * (1 - 2 * flips)
        back = float((magnitudes * (joint @ scale)).sum()) * (1 - 2 * flips)
        scale = scale * (float((weights * magnitudes**2).sum()) / back) if back > 0 else scale
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(magnitudes[:, None] > 0, scale[None, :] / magnitudes[:, None], 0.0)
        error = (1 - flips) * (ratio - 1) ** 2 + flips * (ratio + 1) ** 2
        damage = float((moments.values[used][:, None] * chances * error).sum())
        zero = np.flatnonzero(used == 0)
        if zero.size:
            damage += moments.zeros * float((chances[zero[0]] * scale**2).sum())
        result.append(0.5 * (damage + together))
    return result[0], result[1]


def _hull(points: list[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
    hull: list[tuple[int, float, str]] = []
    for point in sorted(points):
        if hull and not point[1] < hull[-1][1]:
            continue
        while len(hull) > 1 and _gain(hull[-2], point) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _gain(before: tuple[int, float, str], after: tuple[int, float, str]) -> float:
    return (before[1] - after[1]) / (after[0] - before[0])


def _merged(heads: list[tuple[int, float, str]], fraction: list[float]) -> tuple[tuple[str, float], ...]:
    """Steps of the head and of the fraction in the order of what they save per bit."""
    steps: list[tuple[float, int, Any]] = [(_gain(a, b), 0, b) for a, b in pairwise(heads)]
    steps += [(saved, 1, place) for place, saved in enumerate(fraction)]
    steps.sort(key=lambda step: -step[0])
    head, tail = heads[0], ["0"] * len(fraction)
    found = [(head[2] + "".join(tail), head[1] + sum(fraction))]
    left = list(fraction)
    for _, kind, what in steps:
        if kind == 0:
            head = what
        else:
            tail[what], left[what] = "1", 0.0
        found.append((head[2] + "".join(tail), head[1] + sum(left)))
    return tuple(found)
