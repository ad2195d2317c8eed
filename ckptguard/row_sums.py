"""Sums of rows: what keeps the errors of a restored tensor from adding up in one direction.

Activations after a rectifier have a large common part, so that of all errors in a row their sum does by far the most
harm; spread evenly over the row the difference to the stored sum takes it away. Containers have one for each segment
of a row. Methods in plain numpy are what the kernels are held against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.posterior import LARGEST, Floats, Indices, Words, encode, narrowed

LEAST_SEGMENT = 16
"""Elements of a row below which their sum is not worth a byte."""


def numbers(dtype: DType, words: Words) -> Floats:
    """What words stand for, in float64."""
    wide: Words = words.astype("<u4") << np.uint32(16) if dtype.name == "BF16" else words
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return wide.view("<f2" if dtype.name == "F16" else "<f4").astype(np.float64)


@dataclass(frozen=True)
class Levels:
    """How sums are kept in 8 bits.

    Attributes:
        low, step: float32; level i stands for low + step * i.
    """

    low: float
    step: float

    @classmethod
    def of(cls, sums: Floats) -> Levels:
        """Levels from the smallest sum to the largest."""
        with np.errstate(over="ignore"):
            low = float(np.float32(sums.min()))
            return cls(low, float(np.float32((sums.max() - low) / 255)))

    @property
    def finite(self) -> bool:
        """Whether float32 can hold them."""
        return math.isfinite(self.low) and math.isfinite(self.step)

    def quantise(self, sums: Floats) -> npt.NDArray[np.uint8]:
        """The nearest levels."""
        levels = np.clip(np.rint((sums - self.low) / self.step), 0, 255) if self.step > 0 else np.zeros(sums.size)
        return levels.astype(np.uint8)

    def sums(self, levels: npt.NDArray[np.uint8]) -> Floats:
        """What levels stand for."""
        result: Floats = self.low + self.step * levels.astype(np.float64)
        return result


def row_columns(elements: int, shape: tuple[int, ...]) -> int:
    """Elements of a row, an index of the first axis; 0 where rows are too short for sums, or there is one axis only."""
    columns = elements // shape[0] if len(shape) > 1 and shape[0] else 0
    return columns if columns >= LEAST_SEGMENT else 0


def segments(first: int, count: int, columns: int) -> tuple[Indices, Indices]:
    """(starts, stops), counted from element `first` on, of what lies of every row in a run of elements.

    What is shorter than LEAST_SEGMENT is left out; so are all where `columns` is 0.
    """
    if not columns:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = np.arange(first // columns, -(-(first + count) // columns) + 1, dtype=np.int64)
    edges = np.clip(rows * columns - first, 0, count)
    long = np.diff(edges) >= LEAST_SEGMENT
    return edges[:-1][long], edges[1:][long]


def segment_sums(dtype: DType, words: Words, starts: Indices, stops: Indices) -> Floats:
    """Sums of runs of words, added one after the other in float64."""
    from ckptguard.kernels import posterior as kernel

    result = np.zeros(starts.size)
    kernel.sums(_kernel_numbers(dtype, words), starts, stops, result)
    return result


def _kernel_numbers(dtype: DType, words: Words) -> npt.NDArray[Any]:
    """What words stand for, as kernels take it: those of F32 where they lie, of BF16 in float32, of F16 in float64."""
    if dtype.name == "F16":
        return numbers(dtype, words)
    return (words if dtype.name == "F32" else words.astype("<u4") << 16).view("<f4")


def with_sums(dtype: DType, words: Words, starts: Indices, stops: Indices, wanted: Floats) -> Words:
    """Words whose runs have the sums that are wanted: all of a run move by the same. A new array."""
    values = numbers(dtype, words)
    for start, stop, total in zip(starts.tolist(), stops.tolist(), wanted.tolist(), strict=True):
        run = values[start:stop]
        run += (total - np.cumsum(run)[-1]) / run.size  # cumsum adds one after the other, sum does not
        np.clip(run, -LARGEST[dtype.name], LARGEST[dtype.name], out=run)
    return _signed(dtype, values)


def with_sums_in_place(dtype: DType, words: Words, starts: Indices, stops: Indices, wanted: Floats) -> None:
    """As `with_sums`, in place and fast; the same bits."""
    from ckptguard.kernels import posterior as kernel

    values = _kernel_numbers(dtype, words)
    kernel.correct(values, starts, stops, wanted, LARGEST[dtype.name])
    if dtype.name == "BF16":
        words[:] = narrowed(values.view("<u4"))
    elif dtype.name == "F16":
        words[:] = _signed(dtype, values)


def _signed(dtype: DType, values: Floats) -> Words:
    """Words of numbers, each rounded once, half to even."""
    words = encode(dtype, np.abs(values))
    return words | np.signbit(values).astype(words.dtype) << words.dtype.type(8 * words.dtype.itemsize - 1)


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums of the whole rows of a tensor, 8 bits each.

    Attributes:
        low, step: of the levels, float32.
        levels: (rows,) uint8.
    """

    low: float
    step: float
    levels: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, values: npt.NDArray[Any], rows: int) -> RowSums:
        """Of a tensor's values; rows are the indices of its first axis."""
        sums = values.astype(np.float64).reshape(rows, -1).sum(1)
        form = Levels.of(sums)
        return cls(form.low, form.step, form.quantise(sums))

    @property
    def sums(self) -> Floats:
        """(rows,) as they were, to half a step."""
        return Levels(self.low, self.step).sums(self.levels)

    def correct(self, values: npt.NDArray[Any]) -> Floats:
        """(rows, columns) values whose rows have these sums: every value of a row moves by the same."""
        table = values.astype(np.float64).reshape(self.levels.size, -1)
        result: Floats = table + ((self.sums - table.sum(1)) / table.shape[1])[:, None]
        return result
