"""Range guards: the extent of groups of words, and what damaged words may have been."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from ckptguard.kernels.jit import njit

Words = npt.NDArray[np.unsignedinteger]

_BLOCK = 256  # words looked at together; where nothing is to be changed nothing is written
_COUNT = np.uint16  # holds how many bits of a block are 1, even of words of 64 bits

intrinsic: Any = numba_intrinsic  # an intrinsic is called without its first parameter


@intrinsic
def _ones(context, word):
    """How many bits of a word are 1."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def _like(context, value, word):
    """A value as a word of the type of another: numba widens words, and vectors of wide words hold fewer of them."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return word(value, word), generate


@njit(inline="always")
def _set_back(word, some, all_of):
    """A word with the bits that never vary as they are in every word."""
    return _like((word | all_of) & some, word)


@njit(inline="always")
def _key(word, sign, top, flip):
    """What words are ordered by; see `measure`."""
    return _like(word ^ sign ^ (flip if word & top else flip ^ flip), word)


@njit(cache=True, nogil=True)
def measure(
    words: Words,
    first: int,
    group: int,
    order: Words,
    ever: Words,
    always: Words,
    low: Words,
    high: Words,
) -> None:
    """Widen the extents of groups by words.

    Args:
        words: of a part, from word `first` on.
        group: words of a group.
        order: (4,) of the same type; the key of a word is `word ^ order[0]`, and `^ order[2]` where it has a bit of
            `order[1]`; `order[3]` is the largest key there can be.
        ever, always, low, high: the extents so far, of the group of the first word and those that follow: bits that are
            1 in some word, in all words, the smallest and the largest key.
    """
    sign, top, flip = order[0], order[1], order[2]
    start, place = 0, 0
    stop = group - first % group
    while start < words.size:
        stop = min(stop, words.size)
        some, all_of = ever[place], always[place]
        least, most = low[place], high[place]
        run = words[start:stop]  # an index that starts at zero needs no check, and the loop is done in vectors
        for i in range(run.size):
            word = run[i]
            key = _key(word, sign, top, flip)
            some = _like(some | word, word)
            all_of = _like(all_of & word, word)
            least = min(least, key)
            most = max(most, key)
        ever[place], always[place], low[place], high[place] = some, all_of, least, most
        place += 1
        start = stop
        stop += group


@njit(cache=True, nogil=True)
def force(words: Words, first: int, group: int, ever: Words, always: Words) -> int:
    """Set the bits that never vary to what they are in every word, in place; how many bits that changed.

    Args:
        words: of a part, from word `first` on.
        ever, always: of all groups of the part, as in `measure`.
    """
    forced = 0
    start, place = 0, first // group
    border = group - first % group
    while start < words.size:
        stop = min(border, start + _BLOCK, words.size)
        some, all_of = ever[place], always[place]
        run = words[start:stop]
        wrong = _like(some ^ some, some)
        for i in range(run.size):
            wrong = _like(wrong | (_set_back(run[i], some, all_of) ^ run[i]), some)
        if wrong:
            bits = _COUNT(0)
            for i in range(run.size):
                word = _set_back(run[i], some, all_of)
                bits = _COUNT(bits + _COUNT(_ones(np.uint64(word ^ run[i]))))
                run[i] = word
            forced += int(bits)
        start = stop
        if start == border:
            place += 1
            border += group
    return forced


@njit(cache=True, nogil=True)
def apply(
    words: Words,
    first: int,
    group: int,
    order: Words,
    ever: Words,
    always: Words,
    low: Words,
    high: Words,
    below: Words,
    above: Words,
    nan: Words,
    kept: Words,
    counts: npt.NDArray[np.int64],
) -> None:
    """Set the bits that never vary, then replace words that lie outside of their group's interval, in place.

    Args:
        words, first, group, order: as in `measure`.
        ever, always, low, high: of all groups of the part.
        below, above: what takes the place of words whose keys are too small and too large.
        nan: one word that lies outside of every interval but the widest; or none.
        kept: (1,) bits that a word keeps when it is replaced.
        counts: (2,): bits that were set in words that were kept, and words that were replaced, are added.
    """
    sign, top, flip = order[0], order[1], order[2]
    nothing, keep = _like(flip ^ flip, flip), kept[0]
    start, place = 0, first // group
    border = group - first % group
    while start < words.size:
        stop = min(border, start + _BLOCK, words.size)
        some, all_of = ever[place], always[place]
        least, most = low[place], high[place]
        held = nan.size > 0 and (least != nothing or most != order[3])
        odd = nan[0] if held else nothing
        run = words[start:stop]
        wrong = nothing
        outside = False
        for i in range(run.size):
            word = _set_back(run[i], some, all_of)
            key = _key(word, sign, top, flip)
            wrong = _like(wrong | (word ^ run[i]), word)
            outside |= (key < least) | (key > most) | (held & (word == odd))
        if wrong or outside:  # without branches, so that the loop is done in vectors
            under, over = _like(below[place] & ~keep, keep), _like(above[place] & ~keep, keep)
            forced, replaced = _COUNT(0), _COUNT(0)
            for i in range(run.size):
                word = _set_back(run[i], some, all_of)
                key = _key(word, sign, top, flip)
                out = (key < least) | (key > most) | (held & (word == odd))
                put = _like((under if key < least else over) | (word & keep), word)
                forced = _COUNT(forced + (_COUNT(0) if out else _COUNT(_ones(np.uint64(word ^ run[i])))))
                replaced = _COUNT(replaced + (_COUNT(1) if out else _COUNT(0)))
                run[i] = put if out else word
            counts[0] += forced
            counts[1] += replaced
        start = stop
        if start == border:
            place += 1
            border += group
