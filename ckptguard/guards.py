"""Range guards: what the words of a tensor have in common, and what that tells of damaged ones.

Of every group of words the bits that never vary and the smallest and largest value are recorded where errors do not
reach. A damaged word whose bits differ from those is certainly wrong: bits that never vary are set back, which is
certainly right; a word outside the interval is replaced by zero, or by what comes nearest to it, which is only likely.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import SIGN_MAGNITUDE, TWOS_COMPLEMENT, UNORDERED, DType
from ckptguard.errors import ContainerError, SpecError, UsageError
from ckptguard.spec import suggestion

NONE, TENSOR, CHANNEL, GROUP = "none", "tensor", "channel", "group"
NULL, CLIP = "null", "clip"
POLICIES = (NULL, CLIP)
LEAST_GROUP = 64
"""Words that a group of `channel` has at least; smaller channels are put together."""

_SIGNIFICANT = 16  # bits of the bounds of floats that are kept: they are rounded outwards
_WHOLE = 0xFFFFFFFF
_WIDTHS = (1, 2, 4, 8)

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
Measured = tuple[int, tuple[Words, Words, Words, Words]]


@dataclass(frozen=True)
class WordForm:
    """What the words of a part are.

    Attributes:
        bits: of a word that have a meaning, the least significant ones.
        bytes: that a word takes: 1, 2, 4 or 8.
        order: of the values, one of those in `dtypes`.
        nan: a word that is no number although it lies between two that are; -1 where there is none.
        rounded: bounds are rounded outwards to 16 significant bits.
    """

    bits: int
    bytes: int
    order: str
    nan: int = -1
    rounded: bool = False

    @classmethod
    def of(cls, dtype: DType) -> WordForm:
        """The words of a tensor as it is."""
        nan = 0x80 if dtype.name.endswith("FNUZ") else -1
        rounded = dtype.order == SIGN_MAGNITUDE and dtype.word_bits > _SIGNIFICANT
        return cls(dtype.word_bits, dtype.word_bits // 8, dtype.order, nan, rounded)

    @classmethod
    def of_codes(cls, bits: int, order: str) -> WordForm:
        """The codes of a fixed-point representation, each in 16 bits."""
        return cls(bits, 2, order)

    @property
    def type(self) -> np.dtype[Any]:
        """numpy's type of a word."""
        return np.dtype(f"<u{self.bytes}")

    @property
    def widest(self) -> int:
        """The largest key."""
        return (1 << self.bits) - 1

    @cached_property
    def constants(self) -> Words:
        """(4,) how keys are made; see `kernels.guard.measure`."""
        sign = 1 << (self.bits - 1)
        signed = self.order in (SIGN_MAGNITUDE, TWOS_COMPLEMENT)
        by_magnitude = self.order == SIGN_MAGNITUDE
        values = (sign if signed else 0, sign if by_magnitude else 0, sign - 1 if by_magnitude else 0, self.widest)
        # a negative number's key is the word with all bits turned: sign by the first constant, the rest by the third
        return np.array(values, self.type)

    def keys(self, words: Words) -> Words:
        """Numbers that are ordered as the values of words are; a key's key by `from_keys` is the word."""
        sign, top, flip, _ = self.constants
        result: Words = words ^ sign ^ np.where(words & top, flip, flip ^ flip)
        return result

    def from_keys(self, keys: Words) -> Words:
        """Inverse of `keys`."""
        sign, top, flip, _ = self.constants
        words = keys ^ sign
        result: Words = words ^ np.where(words & top, flip, flip ^ flip)
        return result


@dataclass(frozen=True)
class Applied:
    """What a guard makes of some words.

    Attributes:
        words: as they can have been.
        forced: (count,) bits of each that were set back; 0 where it was replaced.
        replaced: (count,) which were outside of their interval.
    """

    words: Words
    forced: npt.NDArray[np.uint8]
    replaced: npt.NDArray[np.bool_]

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """(count,) which words are not as they were given."""
        result: npt.NDArray[np.bool_] = (self.forced > 0) | self.replaced
        return result

    @property
    def counts(self) -> Counts:
        """In all."""
        return Counts(int(self.forced.sum(dtype=np.int64)), int(self.replaced.sum()))


@dataclass(frozen=True)
class Counts:
    """How much reading changed that no code brought back.

    Attributes:
        forced: bits that never vary, set back in words that were kept.
        replaced: words outside of their interval.
        estimated: words that a posterior restorer changed.
        without_extra: pieces whose row sums or outliers were lost, so that restorers did without.
    """

    forced: int = 0
    replaced: int = 0
    estimated: int = 0
    without_extra: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.forced + other.forced,
            self.replaced + other.replaced,
            self.estimated + other.estimated,
            self.without_extra + other.without_extra,
        )


@dataclass(frozen=True, eq=False)
class TensorGuard:
    """What the groups of words of one part have in common.

    Attributes:
        form: of the words.
        words: of the part.
        group: consecutive words of a group; the last may be shorter.
        ever, always: (groups,) bits that are 1 in some word, and in all.
        low, high: (groups,) keys of the smallest and the largest value.
    """

    form: WordForm
    words: int
    group: int
    ever: Words
    always: Words
    low: Words
    high: Words

    @classmethod
    def of(
        cls, dtype: DType, data: Bytes, granularity: str = TENSOR, shape: Sequence[int] | None = None
    ) -> TensorGuard:
        """The guard of a tensor, from its little-endian bytes.

        Args:
            granularity: `tensor`, `channel` (needs the shape) or `group:N`.
        """
        form = WordForm.of(dtype)
        words = data.view(form.type)
        return cls.of_words(form, words, group_words(granularity, words.size, shape if shape is not None else ()))

    @classmethod
    def of_words(cls, form: WordForm, words: Words, group: int) -> TensorGuard:
        """The guard of words, `group` of them in a group."""
        builder = Builder(form, words.size, group)
        builder.add(builder.measure(words, 0))
        return builder.guard()

    @property
    def groups(self) -> int:
        """How many groups."""
        return len(self.ever)

    @property
    def stored_bytes(self) -> int:
        """Bytes of its entries before compression."""
        return 4 + 4 * self.groups * self.form.bytes

    @cached_property
    def nearest_to_zero(self) -> Words:
        """(groups,) zero, or the bound that is nearest to it where zero lies outside of the interval."""
        zero = self.form.keys(np.zeros(1, self.form.type))[0]
        return self.form.from_keys(np.clip(zero, self.low, self.high))

    @cached_property
    def _bounds(self) -> tuple[Words, Words]:
        return self.form.from_keys(self.low), self.form.from_keys(self.high)

    def _replacements(self, policy: str) -> tuple[Words, Words]:
        """What takes the place of words below and above the intervals."""
        if policy not in POLICIES:
            raise UsageError(f"unknown guard policy {policy!r}; known: {', '.join(POLICIES)}")
        return self._bounds if policy == CLIP else (self.nearest_to_zero, self.nearest_to_zero)

    def apply(self, words: Words, elements: npt.ArrayLike | None = None, policy: str = NULL, kept: int = 0) -> Applied:
        """What damaged words can have been.

        Args:
            words: (count,) of the part from its first on, or those of the `elements`; not changed.
            elements: (count,) which words of the part these are, in any order.
            policy: words outside of the interval become `null`, zero or the bound nearest to it, or are `clip`ped to
                the bound they passed.
            kept: bits that are known to be right: a word keeps them when it is replaced.
        """
        below, above = self._replacements(policy)
        places = np.arange(words.size) if elements is None else np.asarray(elements, np.int64)
        group = places // self.group
        before = words.astype(self.form.type, copy=False)
        forced = (before | self.always[group]) & self.ever[group]
        keys, low, high = self.form.keys(forced), self.low[group], self.high[group]
        under, over = keys < low, keys > high
        if self.form.nan >= 0:
            over |= (forced == self.form.nan) & ((low > 0) | (high < self.form.widest)) & ~under
        outside = under | over
        keep = self.form.type.type(kept)
        put = (np.where(under, below[group], above[group]) & ~keep) | (forced & keep)
        result = np.where(outside, put, forced)
        bits = np.where(outside, 0, np.bitwise_count(forced ^ before)).astype(np.uint8)
        return Applied(result.astype(words.dtype, copy=False), bits, outside)

    def apply_in_place(self, words: Words, first: int = 0, policy: str = NULL, kept: int = 0) -> Counts:
        """As `apply` to a run of words of the part from `first` on, in place and fast."""
        from ckptguard.kernels import guard as kernel

        below, above = self._replacements(policy)
        counts = np.zeros(2, np.int64)
        nan = np.full(1 if self.form.nan >= 0 else 0, max(self.form.nan, 0), self.form.type)
        keep = np.full(1, kept, self.form.type)
        extents = (self.ever, self.always, self.low, self.high)
        kernel.apply(words, first, self.group, self.form.constants, *extents, below, above, nan, keep, counts)
        return Counts(*counts.tolist())

    def force_in_place(self, words: Words, first: int = 0) -> int:
        """Set back the bits that never vary, which is certainly right; how many differed."""
        from ckptguard.kernels import guard as kernel

        return int(kernel.force(words, first, self.group, self.ever, self.always))

    def null_in_place(self, words: Words, chosen: npt.NDArray[np.bool_], first: int = 0) -> None:
        """Make the chosen ones of a run of words zero, or what comes nearest to it."""
        places = np.flatnonzero(chosen)
        words[places] = self.nearest_to_zero[(first + places) // self.group]

    def fixed_bits(self, first: int, count: int) -> tuple[Words, Words]:
        """(count,) `ever` and `always` of a run of words."""
        group = np.arange(first, first + count) // self.group
        return self.ever[group], self.always[group]


class Builder:
    """Makes the guard of a part from runs of its words, which may be measured on several threads."""

    def __init__(self, form: WordForm, words: int, group: int) -> None:
        self._form, self._words, self._group = form, words, group
        self._columns = _empty(form, -(-words // group))

    def measure(self, words: Words, first: int) -> Measured:
        """(group of the first word, extents of the groups that a run of words reaches into)."""
        from ckptguard.kernels import guard as kernel

        begin = first // self._group
        columns = _empty(self._form, -(-(first + words.size) // self._group) - begin if words.size else 0)
        kernel.measure(words, first, self._group, self._form.constants, *columns)
        if self._form.nan >= 0:
            places = (first + np.flatnonzero(words == self._form.nan)) // self._group - begin
            columns[2][places], columns[3][places] = 0, self._form.widest
        return begin, columns

    def add(self, measured: Measured) -> None:
        """Take in what a run of words was measured to be."""
        begin, columns = measured
        for mine, other, widen in zip(
            self._columns, columns, (np.bitwise_or, np.bitwise_and, np.minimum, np.maximum), strict=True
        ):
            here = mine[begin : begin + len(other)]
            widen(here, other, out=here)

    def guard(self) -> TensorGuard:
        """The guard of all that was added."""
        form, (ever, always, low, high) = self._form, self._columns
        if form.order == UNORDERED:
            low[:], high[:] = 0, form.widest
        if form.rounded:
            below = form.type.type((1 << (form.bits - _SIGNIFICANT)) - 1)
            low, high = low & ~below, high | below
        return TensorGuard(form, self._words, self._group, ever, always, low, high)


def _empty(form: WordForm, groups: int) -> tuple[Words, Words, Words, Words]:
    """The extents of groups without words."""
    ones = np.full(groups, form.widest, form.type)
    return np.zeros(groups, form.type), ones, ones.copy(), np.zeros(groups, form.type)


def check_granularity(granularity: str) -> None:
    """Raise SpecError unless it is `none`, `tensor`, `channel` or `group:N`."""
    if granularity not in (NONE, TENSOR, CHANNEL):
        _group_size(granularity)


def _group_size(granularity: str) -> int:
    name, _, size = granularity.partition(":")
    if name != GROUP:
        known = (NONE, TENSOR, CHANNEL, f"{GROUP}:N")
        raise SpecError(
            f"{granularity!r} is no granularity of guards; known: {', '.join(known)}{suggestion(granularity, known)}"
        )
    if not (size.isascii() and size.isdigit() and 1 <= int(size) < _WHOLE):
        raise SpecError(f"{granularity!r}: a group has a whole number of elements, as in 'group:256'")
    return int(size)


def group_words(granularity: str, words: int, shape: Sequence[int]) -> int:
    """Words of a group, for a part of so many words and this shape. Raises SpecError for an unknown granularity.

    `channel` is an index of the first axis where there are several axes, else the whole tensor; channels of less than
    64 words are put together.
    """
    whole = max(words, 1)
    if granularity == TENSOR or (granularity == CHANNEL and (len(shape) < 2 or not prod(shape))):
        return whole
    if granularity != CHANNEL:
        return min(_group_size(granularity), whole)
    channel = max(words // shape[0], 1)
    return min(-(-LEAST_GROUP // channel) * channel, whole)


def pack(guards: Sequence[TensorGuard | None]) -> bytes:
    """The content of the section `GRDS`: one guard, or none, for every part."""
    sizes = [0 if guard is None else _WHOLE if guard.groups == 1 else guard.group for guard in guards]
    pieces = [struct.pack(f"<{len(sizes)}I", *sizes)]
    for width in _WIDTHS:
        chosen = [guard for guard in guards if guard is not None and guard.form.bytes == width]
        for name in ("ever", "always", "low", "high"):
            column = np.concatenate([np.zeros(0, f"<u{width}"), *(getattr(guard, name) for guard in chosen)])
            planes = column.astype(f"<u{width}").view(np.uint8).reshape(-1, width)
            pieces.append(np.ascontiguousarray(planes[:, ::-1].T).tobytes())
    return b"".join(pieces)


def unpack(data: bytes, forms: Sequence[WordForm | None], words: Sequence[int]) -> list[TensorGuard | None]:
    """Inverse of `pack`.

    Args:
        forms: of the words of every part; None where a part cannot have a guard.
        words: of every part.

    Raises:
        ContainerError: the content does not fit the parts, or contradicts itself.
    """
    parts = len(forms)
    if len(data) < 4 * parts:
        raise ContainerError(f"the metadata's range guards name fewer parts than the {parts} there are")
    sizes = struct.unpack_from(f"<{parts}I", data)
    if any(size and (form is None or not count) for size, form, count in zip(sizes, forms, words, strict=True)):
        raise ContainerError("the metadata has a range guard for a part that cannot have one")
    groups = [-(-count // _group(size, count)) if size else 0 for size, count in zip(sizes, words, strict=True)]
    widths = [form.bytes if form is not None else 0 for form in forms]
    expected = 4 * parts + sum(4 * width * count for width, count in zip(widths, groups, strict=True))
    if len(data) != expected:
        raise ContainerError(f"the metadata has {len(data)} bytes of range guards, its parts need {expected}")
    guards: list[TensorGuard | None] = [None] * parts
    offset = 4 * parts
    for width in _WIDTHS:
        chosen = [i for i in range(parts) if sizes[i] and widths[i] == width]
        total = sum(groups[i] for i in chosen)
        planes = np.frombuffer(data, np.uint8, 4 * width * total, offset).reshape(4, width, total)
        columns = np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 1)).view(f"<u{width}").reshape(4, total)
        offset += 4 * width * total
        begin = 0
        for i in chosen:
            form = forms[i]
            assert form is not None
            here = columns[:, begin : begin + groups[i]]
            begin += groups[i]
            guards[i] = _checked(TensorGuard(form, words[i], _group(sizes[i], words[i]), *here))
    return guards


def _group(size: int, words: int) -> int:
    return max(words, 1) if size == _WHOLE else size


def _checked(guard: TensorGuard) -> TensorGuard:
    """The guard itself. Raises ContainerError where its entries contradict each other."""
    top = guard.form.type.type(guard.form.widest)
    if (guard.always & ~guard.ever).any() or (guard.low > guard.high).any() or (guard.ever | guard.high > top).any():
        raise ContainerError("the metadata's range guards contradict themselves")
    return guard
