"""Flips drawn exactly and sparsely: a count and then places, never a random number per bit.

Random numbers are SplitMix64 with an increment of its own for every stream; a stream is named by a key and an index, so
that what is drawn for one part of a file depends on nothing else.
Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckptguard.kernels.jit import njit

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]

_SPARSE = 256  # up to so many candidates a part is changed flip by flip, beyond in one pass
_GEOMETRIC_LIMIT = 1 << 19
PART_WORDS = 1024  # of a part of 65536 bits, as `flip_words` takes it
_SPARSE_WORDS = 24  # the same as _SPARSE for words, where one pass is quicker


@njit(cache=True, nogil=True, inline="always")
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _start(stream: U64, key: np.uint64, index: int) -> None:
    """Set `stream` (2,) to the state and the odd increment of stream `index` of `key`."""
    state = _mix(key ^ _mix((np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)))
    stream[0] = state
    stream[1] = _mix(state + np.uint64(0xD1B54A32D192ED03)) | np.uint64(1)


@njit(cache=True, nogil=True, inline="always")
def _draw(stream: U64) -> np.uint64:
    stream[0] += stream[1]
    return _mix(stream[0])  # type: ignore[no-any-return]


@njit(cache=True, nogil=True)
def _happens(stream: U64, of_2_to_63: np.uint64) -> bool:
    """True with probability of_2_to_63 / 2**63, both ends included."""
    return bool((_draw(stream) >> np.uint64(1)) < of_2_to_63)


@njit(cache=True, nogil=True)
def _count(stream: U64, thresholds: U64, least: int) -> int:
    """A number from its distribution function; `thresholds[i]` / 2**64 = P(count <= least + i)."""
    u = _draw(stream)
    low = 0
    high = thresholds.size
    while low < high:
        middle = (low + high) >> 1
        if thresholds[middle] <= u:
            low = middle + 1
        else:
            high = middle
    return least + low


@njit(cache=True, nogil=True)
def _choose(stream: U64, count: int, bits: int, marks: U8, chosen: npt.NDArray[np.int32]) -> None:
    """Mark `count` different ones of `bits` (at most 65536) bits in `marks` and list them in `chosen`."""
    found = 0
    while found < count:
        r = _draw(stream)
        for _ in range(4):
            place = np.int64(r & np.uint64(0xFFFF))
            r >>= np.uint64(16)
            if found < count and place < bits:
                bit = np.uint8(1 << (place & 7))
                if marks[place >> 3] & bit == np.uint8(0):
                    marks[place >> 3] |= bit
                    chosen[found] = place
                    found += 1


@njit(cache=True, nogil=True)
def _flip_marked(data: U8, begin: int, size: int, marks: U8, stream: U64, rarer: int, kept: np.uint64) -> None:
    """Flip the marked bits of `data[begin:begin + size]` and clear the marks; of bits that hold `rarer`, a share."""
    if rarer < 0:
        for i in range(size):
            data[begin + i] ^= marks[i]
            marks[i] = np.uint8(0)
        return
    for i in range(size):
        mark = marks[i]
        if mark == np.uint8(0):
            continue
        marks[i] = np.uint8(0)
        value = data[begin + i]
        flips = np.uint8(0)
        for bit in range(8):
            here = np.uint8(1 << bit)
            if mark & here and (np.int64(value >> np.uint8(bit)) & 1 != rarer or _happens(stream, kept)):
                flips |= here
        data[begin + i] = value ^ flips


@njit(cache=True, nogil=True)
def flip_bits(
    data: U8,
    part_bytes: int,
    first_part: int,
    key: np.uint64,
    thresholds: U64,
    least: int,
    complement: bool,
    rarer: int,
    kept: np.uint64,
) -> None:
    """Flip bits of every part independently: as many as a binomial count says, each set of places equally likely.

    Args:
        data: (parts * part_bytes,) uint8, changed in place.
        part_bytes: at most 8192.
        first_part: index of the first part in its file.
        thresholds, least: distribution of the count, see `_count`.
        complement: the count is of bits that are *not* candidates for a flip.
        rarer: 0 or 1: candidates that hold this value are flipped with probability kept / 2**63 only; -1: all are.
        kept: see `rarer`.
    """
    stream = np.empty(2, np.uint64)
    marks = np.zeros(part_bytes, np.uint8)
    chosen = np.empty(8 * part_bytes, np.int32)
    for part in range(data.size // part_bytes):
        begin = part * part_bytes
        _start(stream, key, first_part + part)
        count = _count(stream, thresholds, least)
        _choose(stream, count, 8 * part_bytes, marks, chosen)
        if complement or count > _SPARSE:
            if complement:
                for i in range(part_bytes):
                    marks[i] = ~marks[i]
            _flip_marked(data, begin, part_bytes, marks, stream, rarer, kept)
            continue
        for i in range(count):
            place = chosen[i] >> 3
            bit = chosen[i] & 7
            marks[place] = np.uint8(0)
            value = np.int64(data[begin + place] >> np.uint8(bit)) & 1
            if value != rarer or _happens(stream, kept):
                data[begin + place] ^= np.uint8(1 << bit)


@njit(cache=True, nogil=True)
def _choose_words(stream: U64, count: int, marks: U64, chosen: npt.NDArray[np.int32], listed: bool) -> None:
    """`_choose` for 65536 bits: the same bits, but all state in registers and no branch that depends on what is drawn.

    Args:
        marks: (PART_WORDS,), bit b of the part is bit b % 64 of word b // 64.
        chosen: receives the bits, if `listed`.
    """
    state, step = stream[0], stream[1]
    found = 0
    while found < count:
        state += step
        r = _mix(state)
        for _ in range(4):
            if found < count:
                place = r & np.uint64(0xFFFF)
                r >>= np.uint64(16)
                word = np.intp(place >> np.uint64(6))
                before = marks[word]
                after = before | (np.uint64(1) << (place & np.uint64(63)))
                marks[word] = after
                if listed:
                    chosen[found] = np.int32(place)
                found += int(after != before)
    stream[0] = state


@njit(cache=True, nogil=True)
def flip_words(data: U64, first_part: int, key: np.uint64, thresholds: U64, least: int, complement: bool) -> None:
    """`flip_bits` for parts of 65536 bits in which every candidate is flipped; three times as fast, the same flips.

    Args:
        data: (parts * PART_WORDS,) uint64 of little-endian bytes, changed in place.
        first_part, key, thresholds, least, complement: as there.
    """
    stream = np.empty(2, np.uint64)
    marks = np.zeros(PART_WORDS, np.uint64)
    chosen = np.empty(_SPARSE_WORDS + 1, np.int32)
    inverted = ~np.uint64(0) if complement else np.uint64(0)
    for part in range(data.size // PART_WORDS):
        words = data[part * PART_WORDS : (part + 1) * PART_WORDS]
        _start(stream, key, first_part + part)
        count = _count(stream, thresholds, least)
        if complement or count > _SPARSE_WORDS:
            _choose_words(stream, count, marks, chosen, False)
            for i in range(PART_WORDS):
                words[i] ^= marks[i] ^ inverted
                marks[i] = np.uint64(0)
            continue
        _choose_words(stream, count, marks, chosen, True)
        for i in range(count):
            word = chosen[i] >> 6
            words[word] ^= np.uint64(1) << np.uint64(chosen[i] & 63)
            marks[word] = np.uint64(0)


@njit(cache=True, nogil=True)
def _geometric(stream: U64, digits: U64) -> int:
    """Failures before the first success, at most 2**19: the binary digits of a geometric number are independent.

    `digits[0]` / 2**63 = P(number >= 2**19), `digits[1 + j]` / 2**63 = P(binary digit j is 1).
    """
    if digits[0] != np.uint64(0) and _happens(stream, digits[0]):
        return _GEOMETRIC_LIMIT
    number = 0
    for j in range(digits.size - 1):
        if _happens(stream, digits[1 + j]):
            number |= 1 << j
    return number


@njit(cache=True, nogil=True)
def flip_bursts(
    data: U8,
    block_bytes: int,
    first_block: int,
    key: np.uint64,
    starts_bad: np.uint64,
    enter: U64,
    leave: U64,
    bad: U64,
    good: U64,
) -> None:
    """Flip bits as a chain of two states does, which starts afresh in every block.

    Args:
        data: uint8, changed in place; the last block may be short.
        block_bytes: at most 65536.
        first_block: index of the first block in its file.
        starts_bad: the chance of the first bit's state being the bad one, of 2**63.
        enter, leave: digits (see `_geometric`) of the bits before the bad state is entered or left.
        bad, good: digits of the bits between flips in either state; empty where there are none.
    """
    stream = np.empty(2, np.uint64)
    for block in range((data.size + block_bytes - 1) // block_bytes):
        begin = block * block_bytes
        bits = 8 * min(block_bytes, data.size - begin)
        _start(stream, key, first_block + block)
        is_bad = _happens(stream, starts_bad)
        at = 0
        while at < bits:
            end = min(bits, at + 1 + _geometric(stream, leave if is_bad else enter))
            gaps = bad if is_bad else good
            if gaps.size:
                at += _geometric(stream, gaps)
                while at < end:
                    data[begin + (at >> 3)] ^= np.uint8(1 << (at & 7))
                    at += 1 + _geometric(stream, gaps)
            at = end
            is_bad = not is_bad


@njit(cache=True, nogil=True)
def _fill(data: U8, low: int, begin: int, end: int, kind: int, key: np.uint64) -> None:
    """Overwrite file bytes `begin`..`end` of `data`, which starts at byte `low` of the file."""
    for at in range(begin, end):
        if kind == 0 or kind == 255:
            data[at - low] = np.uint8(kind)
        else:
            word = _mix(key ^ _mix((np.uint64(at >> 3) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)))
            data[at - low] = np.uint8((word >> np.uint64(8 * (at & 7))) & np.uint64(255))


@njit(cache=True, nogil=True)
def erase_units(
    data: U8,
    low: int,
    unit_bytes: int,
    group_units: int,
    key: np.uint64,
    fill_key: np.uint64,
    thresholds: U64,
    least: int,
    complement: bool,
    fill: int,
) -> None:
    """Overwrite lost units, drawn group by group: a binomial count, each set of units equally likely.

    Args:
        data: uint8, changed in place.
        low: byte of the file `data` starts at.
        unit_bytes: units are aligned to multiples of this in the file.
        group_units: units drawn together, at most 65536.
        thresholds, least: distribution of the count, see `_count`.
        complement: the count is of units that are *not* lost.
        fill: 0 or 255: what the bytes of lost units read as; -1: as random bytes.
    """
    stream = np.empty(2, np.uint64)
    marks = np.zeros((group_units + 7) // 8, np.uint8)
    chosen = np.empty(group_units, np.int32)
    group_bytes = unit_bytes * group_units
    high = low + data.size
    for group in range(low // group_bytes, (high + group_bytes - 1) // group_bytes):
        _start(stream, key, group)
        count = _count(stream, thresholds, least)
        if count == 0 and not complement:
            continue
        if group_units == 1:
            marks[0] = np.uint8(count)
            chosen[0] = 0
        else:
            _choose(stream, count, group_units, marks, chosen)
        if complement:
            for unit in range(group_units):
                if (marks[unit >> 3] >> np.uint8(unit & 7)) & np.uint8(1) == np.uint8(0):
                    begin = group * group_bytes + unit * unit_bytes
                    _fill(data, low, max(begin, low), min(begin + unit_bytes, high), fill, fill_key)
        else:
            for i in range(count):
                begin = group * group_bytes + chosen[i] * unit_bytes
                _fill(data, low, max(begin, low), min(begin + unit_bytes, high), fill, fill_key)
        for i in range(marks.size):
            marks[i] = np.uint8(0)


@njit(cache=True, nogil=True)
def erase_runs(
    data: U8,
    low: int,
    unit_bytes: int,
    group_units: int,
    key: np.uint64,
    fill_key: np.uint64,
    starts_lost: np.uint64,
    enter: U64,
    leave: U64,
    fill: int,
) -> None:
    """Overwrite runs of lost units: a chain of two states over units, which starts afresh in every group.

    Args:
        data, low, unit_bytes, fill: as in `erase_units`.
        group_units: units of a group.
        starts_lost: the chance of the first unit being lost, of 2**63.
        enter, leave: digits (see `_geometric`) of the units before a run begins or ends.
    """
    stream = np.empty(2, np.uint64)
    group_bytes = unit_bytes * group_units
    high = low + data.size
    for group in range(low // group_bytes, (high + group_bytes - 1) // group_bytes):
        first = group * group_bytes
        _start(stream, key, group)
        lost = _happens(stream, starts_lost)
        at = 0
        while at < group_units and first + at * unit_bytes < high:
            end = min(group_units, at + 1 + _geometric(stream, leave if lost else enter))
            if lost:
                _fill(data, low, max(first + at * unit_bytes, low), min(first + end * unit_bytes, high), fill, fill_key)
            at = end
            lost = not lost


@njit(cache=True, nogil=True)
def _flip_in_unit(data: U8, begin: int, unit_bytes: int, least: int, most: int, stream: U64, places: U16) -> None:
    """Flip `least` to `most` different bits of a unit, each number and each set of places equally likely."""
    span = most - least + 1
    mask = np.uint64(1)
    while mask < np.uint64(span):
        mask <<= np.uint64(1)
    more = _draw(stream) & (mask - np.uint64(1))
    while more >= np.uint64(span):
        more = _draw(stream) & (mask - np.uint64(1))
    wanted = least + np.int64(more)
    last = np.uint64(8 * unit_bytes - 1)
    found = 0
    while found < wanted:
        r = _draw(stream)
        for _ in range(4):
            place = np.uint16(r & last)
            r >>= np.uint64(16)
            if found == wanted:
                break
            known = False
            for i in range(found):
                known = known or places[i] == place
            if known:
                continue
            places[found] = place
            found += 1
            at = begin + (np.int64(place) >> 3)
            if at < data.size:
                data[at] ^= np.uint8(1 << (place & 7))


@njit(cache=True, nogil=True)
def flip_clusters(
    data: U8,
    block_bytes: int,
    first_block: int,
    unit_bytes: int,
    key: np.uint64,
    thresholds: U64,
    lowest: int,
    complement: bool,
    least: int,
    most: int,
) -> None:
    """Flip `least` to `most` bits in each unit that is hit; how many are hit in a block is binomial.

    Args:
        data: uint8, changed in place; what is hit beyond its end is lost.
        block_bytes: units of so many bytes are drawn together.
        unit_bytes: a power of two, at most 8192.
        thresholds, lowest: distribution of the count of a whole block's units, see `_count`.
        complement: the count is of units that are *not* hit.
        least, most: flips per hit unit, at most 64.
    """
    stream = np.empty(2, np.uint64)
    units = block_bytes // unit_bytes
    marks = np.zeros((units + 7) // 8, np.uint8)
    chosen = np.empty(units, np.int32)
    places = np.empty(64, np.uint16)
    for block in range((data.size + block_bytes - 1) // block_bytes):
        begin = block * block_bytes
        _start(stream, key, first_block + block)
        count = _count(stream, thresholds, lowest)
        _choose(stream, count, units, marks, chosen)
        if complement:
            for unit in range(units):
                if (marks[unit >> 3] >> np.uint8(unit & 7)) & np.uint8(1) == np.uint8(0):
                    _flip_in_unit(data, begin + unit * unit_bytes, unit_bytes, least, most, stream, places)
        for i in range(count):
            marks[chosen[i] >> 3] = np.uint8(0)
            if not complement:
                _flip_in_unit(data, begin + chosen[i] * unit_bytes, unit_bytes, least, most, stream, places)


@njit(cache=True, nogil=True)
def stick(
    data: U8,
    part_bytes: int,
    first_part: int,
    key: np.uint64,
    access_key: np.uint64,
    thresholds: U64,
    starts: npt.NDArray[np.int64],
    least: npt.NDArray[np.int64],
    kept: np.uint64,
    ones: np.uint64,
    access: np.uint64,
) -> None:
    """Read stuck bits as what they are stuck at.

    A bit's number u lies in the first shell that chooses it; shells are drawn one by one over all bits of a part, so
    that what a shell chooses does not depend on how many shells there are: bits stuck at a rate are stuck at every
    larger one.

    Args:
        data: (parts * part_bytes,) uint8, changed in place.
        part_bytes: at most 8192.
        thresholds, starts, least: shell s chooses a number of bits as in `_count`, with thresholds[starts[s] :
            starts[s + 1]] and least[s].
        kept: chance, of 2**63, that a bit of the last shell is stuck; bits of earlier ones are.
        ones: chance of being stuck at 1, of 2**63.
        access: chance, of 2**63, that a stuck bit errs in this reading; of `access_key`.
    """
    stream = np.empty(2, np.uint64)
    marks = np.zeros(part_bytes, np.uint8)
    taken = np.zeros(part_bytes, np.uint8)
    chosen = np.empty(8 * part_bytes, np.int32)
    last = least.size - 1
    for part in range(data.size // part_bytes):
        begin = part * part_bytes
        for shell in range(least.size):
            _start(stream, key, (first_part + part) * 64 + shell)
            count = _count(stream, thresholds[starts[shell] : starts[shell + 1]], least[shell])
            _choose(stream, count, 8 * part_bytes, marks, chosen)
            for i in range(count):
                place = chosen[i] >> 3
                bit = np.uint8(1 << (chosen[i] & 7))
                marks[place] = np.uint8(0)
                is_kept = _happens(stream, kept) or shell < last
                at_one = _happens(stream, ones)
                if taken[place] & bit:
                    continue
                taken[place] |= bit
                if not is_kept:
                    continue
                index = np.uint64(((first_part + part) << 16) + chosen[i])
                errs = _mix(access_key ^ _mix((index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)))
                if (errs >> np.uint64(1)) < access:
                    data[begin + place] = data[begin + place] | bit if at_one else data[begin + place] & ~bit
        taken[:] = np.uint8(0)


@njit(cache=True, nogil=True, inline="always")
def _label(data: U8, begin: int, bits: int, first: int, offsets: npt.NDArray[np.int64]) -> int:
    """The label of the cell whose bits lie at `first` + `offsets`; see `move_levels`."""
    label = 0
    for i in range(offsets.size):
        at = first + offsets[i]
        if at < bits:
            label |= (np.int64(data[begin + (at >> 3)]) >> (7 - (at & 7)) & 1) << i
    return label


@njit(cache=True, nogil=True, inline="always")
def _move(
    data: U8,
    begin: int,
    bits: int,
    first: int,
    offsets: npt.NDArray[np.int64],
    level: int,
    moves: U64,
    flips: U8,
    stream: U64,
) -> None:
    """Read one candidate cell at the level that is drawn for the one it was written at; see `move_levels`."""
    u = _draw(stream) >> np.uint64(1)
    levels = moves.shape[1]
    read = 0
    for other in range(levels):  # counted rather than searched: a search branches where nobody can foresee it
        read += int(u >= moves[level, other])
    if read < levels:
        change = np.int64(flips[level, read])
        for i in range(offsets.size):
            at = first + offsets[i]
            if at < bits:
                data[begin + (at >> 3)] ^= np.uint8((change >> i & 1) << (7 - (at & 7)))


@njit(cache=True, nogil=True)
def move_levels(
    data: U8,
    block_bytes: int,
    first_block: int,
    block_parts: int,
    key: np.uint64,
    cells: int,
    step: int,
    offsets: npt.NDArray[np.int64],
    whole: U64,
    whole_least: int,
    rest: U64,
    rest_least: int,
    complement: bool,
    level_of: U8,
    moves: U64,
    flips: U8,
) -> None:
    """Read cells of several levels, of which some are read at another level than they were written at.

    Bits of a block are numbered from its first byte's most significant bit on. Bit i of the label of cell c of a block
    is its bit c * step + offsets[i]; bits beyond the block's end are zeros, and lost. Every cell is a candidate alike;
    a candidate's new level is drawn from its own one's row of `moves`.

    Args:
        data: (blocks * block_bytes,) uint8, changed in place.
        block_parts: streams of a whole 64 KiB block of this file, of 65536 cells each but for the last.
        cells: in a block here.
        whole, whole_least, rest, rest_least: distribution of the candidates of 65536 cells and of the cells of a last
            part, see `_count`.
        complement: the count is of cells that are *not* candidates.
        level_of: (labels,) the level of each label.
        moves: (levels, levels) of a candidate at a level, the chance of 2**63 to be read at this or a lower level that
            is not its own; never falling along a row.
        flips: (levels, levels) exclusive or of both labels.
    """
    stream = np.empty(2, np.uint64)
    marks = np.zeros(8192, np.uint8)
    chosen = np.empty(65536, np.int32)
    labels = np.empty(65536, np.uint8)
    bits = 8 * block_bytes
    for block in range(data.size // block_bytes):
        begin = block * block_bytes
        for part in range((cells + 65535) // 65536):
            first = part * 65536
            here = min(65536, cells - first)
            _start(stream, key, (first_block + block) * block_parts + part)
            is_last = first + 65536 >= cells
            count = _count(stream, rest if is_last else whole, rest_least if is_last else whole_least)
            _choose(stream, count, here, marks, chosen)
            if complement:
                for i in range(here):
                    if (marks[i >> 3] >> np.uint8(i & 7)) & np.uint8(1) == np.uint8(0):
                        at = (first + i) * step
                        level = level_of[_label(data, begin, bits, at, offsets)]
                        _move(data, begin, bits, at, offsets, level, moves, flips, stream)
                for i in range(count):
                    marks[chosen[i] >> 3] = np.uint8(0)
                continue
            for i in range(count):  # all loads first: they do not wait for one another
                marks[chosen[i] >> 3] = np.uint8(0)
                labels[i] = _label(data, begin, bits, (first + chosen[i]) * step, offsets)
            for i in range(count):
                at = (first + chosen[i]) * step
                _move(data, begin, bits, at, offsets, level_of[labels[i]], moves, flips, stream)
