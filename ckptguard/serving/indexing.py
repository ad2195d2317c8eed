"""Which bytes of a tensor an index needs, and the elements it selects, read in few contiguous stretches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
ReadInto = Callable[[int, Bytes], None]

STRETCH_BYTES = 32 << 20
"""A stretch of which only a part is selected is at most this long, but for the selected bytes of one row."""

SKIPPED_BYTES = 1 << 18
"""What is not selected is read with what is, unless it is this long."""


@dataclass(frozen=True)
class Axis:
    """`count` places along one axis: start, start + step, ... (the step may be negative), `stride` elements apart."""

    start: int
    count: int
    step: int
    stride: int

    @property
    def low(self) -> int:
        """Offset of its lowest place, in elements."""
        return self.stride * min(self.start, self.start + (self.count - 1) * self.step)

    @property
    def high(self) -> int:
        """Offset of its highest place, in elements."""
        return self.stride * max(self.start, self.start + (self.count - 1) * self.step)


def basic_axes(index: Any, shape: tuple[int, ...]) -> list[Axis] | None:
    """One axis per dimension for an index of whole numbers, slices, `...` and None; None for any other index.

    The index has been tried before: it fits the shape.
    """
    items = index if isinstance(index, tuple) else (index,)
    consuming = sum(item is not None and item is not Ellipsis for item in items)
    axes: list[Axis] = []
    strides = [int(np.prod(shape[dimension + 1 :], dtype=np.int64)) for dimension in range(len(shape))]
    for item in items:
        if item is None:
            continue
        if item is Ellipsis:
            fill = len(shape) - consuming
            axes += [Axis(0, size, 1, strides[len(axes) + i]) for i, size in enumerate(shape[len(axes) :][:fill])]
            consuming += fill  # a second ellipsis, where one is allowed, stands for nothing
            continue
        if isinstance(item, slice):
            start, stop, step = item.indices(shape[len(axes)])
            axes.append(Axis(start, len(range(start, stop, step)), step, strides[len(axes)]))
            continue
        place = _whole_number(item)
        if place is None:
            return None
        axes.append(Axis(place + shape[len(axes)] * (place < 0), 1, 1, strides[len(axes)]))
    return axes + [Axis(0, size, 1, strides[len(axes) + i]) for i, size in enumerate(shape[len(axes) :])]


def _whole_number(item: Any) -> int | None:
    """The number, or None for bools, lists, arrays of more than no dimension and all that is no number."""
    if isinstance(item, bool | np.bool_) or getattr(item, "ndim", 0) != 0 or "bool" in str(getattr(item, "dtype", "")):
        return None
    try:
        return operator.index(item)
    except TypeError:
        return None


def select(axes: list[Axis], itemsize: int, read_into: ReadInto) -> Bytes:
    """The selected elements as fresh bytes, row-major.

    Args:
        read_into: fills an array with the tensor's bytes from a byte offset on.
    """
    out = np.empty(int(np.prod([axis.count for axis in axes], dtype=np.int64)) * itemsize, np.uint8)
    if out.size:
        _select(axes, 0, itemsize, read_into, out)
    return out


def _select(axes: list[Axis], base: int, itemsize: int, read_into: ReadInto, out: Bytes) -> None:
    """Fill `out` from one stretch, or from one per group of places along the first axis."""
    low, high = sum(axis.low for axis in axes), sum(axis.high for axis in axes)
    if (high - low + 1) * itemsize == out.size and all(axis.step > 0 or axis.count == 1 for axis in axes):
        read_into((base + low) * itemsize, out)
        return
    first, rest = axes[0], axes[1:]
    apart = abs(first.step) * first.stride
    width = sum(axis.high - axis.low for axis in rest) + 1
    wide = (apart - width) * itemsize >= SKIPPED_BYTES
    places = 1 if wide else max(1, (STRETCH_BYTES // itemsize - width) // apart + 1)
    row = out.size // first.count
    for done in range(0, first.count, places):
        some = min(places, first.count - done)
        target = out[done * row : (done + some) * row]
        part = Axis(first.start + done * first.step, some, first.step, first.stride)
        if some == 1:
            _select(rest, base + part.low, itemsize, read_into, target)
        else:
            _gather([part, *rest], base, itemsize, read_into, target)


def _gather(axes: list[Axis], base: int, itemsize: int, read_into: ReadInto, out: Bytes) -> None:
    """Read the whole stretch from the lowest to the highest element and pick the selected ones."""
    low, high = sum(axis.low for axis in axes), sum(axis.high for axis in axes)
    stretch = np.empty((high - low + 1) * itemsize, np.uint8)
    read_into((base + low) * itemsize, stretch)
    kind = np.dtype((np.void, itemsize))
    start = sum(axis.start * axis.stride for axis in axes) - low
    picked = np.lib.stride_tricks.as_strided(
        stretch.view(kind)[start:],
        [axis.count for axis in axes],
        [axis.step * axis.stride * itemsize for axis in axes],
    )
    out.view(kind).reshape(picked.shape)[...] = picked


def stretches(axes: list[Axis], itemsize: int, base: int = 0) -> Iterator[tuple[int, int]]:
    """(begin, end) of the bytes that hold the selected elements; what is skipped is left out where it is long."""
    if not all(axis.count for axis in axes):
        return
    first, rest = axes[:1], axes[1:]
    width = sum(axis.high - axis.low for axis in rest) + 1
    if first and (first[0].count == 1 or (abs(first[0].step) * first[0].stride - width) * itemsize >= SKIPPED_BYTES):
        for place in range(first[0].count):
            start = (first[0].start + place * first[0].step) * first[0].stride
            yield from stretches(rest, itemsize, base + start)
        return
    yield (base + sum(a.low for a in axes)) * itemsize, (base + sum(a.high for a in axes) + 1) * itemsize
