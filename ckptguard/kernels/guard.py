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

intrinsic: Any = numba_intrinsic  # an intrinsic is called without its first parameter


@intrinsic
def _ones(context, word):
    """How many bits of a word are 1."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


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
            key = word ^ sign ^ (flip if word & top else flip ^ flip)
            some |= word
            all_of &= word
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
    forced = np.uint64(0)
    start, place = 0, first // group
    border = group - first % group
    while start < words.size:
        stop = min(border, start + _BLOCK, words.size)
        some, all_of = ever[place], always[place]
        run = words[start:stop]
        wrong = some ^ some
        for i in range(run.size):
            wrong |= ((run[i] | all_of) & some) ^ run[i]
        if wrong:
            for i in range(run.size):
                word = (run[i] | all_of) & some
                forced += _ones(np.uint64(word ^ run[i]))
                run[i] = word
        start = stop
        if start == border:
            place += 1
            border += group
    return int(forced)


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
    nothing, keep = flip ^ flip, kept[0]
    forced, replaced = np.uint64(0), 0
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
            word = (run[i] | all_of) & some
            key = word ^ sign ^ (flip if word & top else nothing)
            wrong |= word ^ run[i]
            outside |= (key < least) | (key > most) | (held & (word == odd))
        if wrong or outside:
            for i in range(run.size):
                word = (run[i] | all_of) & some
                key = word ^ sign ^ (flip if word & top else nothing)
                if key < least:
                    run[i] = (below[place] & ~keep) | (word & keep)
                    replaced += 1
                elif key > most or (held and word == odd):
                    run[i] = (above[place] & ~keep) | (word & keep)
                    replaced += 1
                elif word != run[i]:
                    forced += _ones(np.uint64(word ^ run[i]))
                    run[i] = word
        start = stop
        if start == border:
            place += 1
            border += group
    counts[0] += np.int64(forced)
    counts[1] += replaced
