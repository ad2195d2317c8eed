"""Outliers: words so far above the others of their tensor that a restorer takes them for damaged ones.

A transformer has weights of a hundred times the rms of their tensor. Hardly any other word has their exponents, so the
estimate of least squared error reads such a word as a common one that was damaged, whether it was or not, and what it
stood for is gone from an undamaged model, too. There are few of them: containers carry their upper 16 bits, readers put
these back, and the restorer is made for the other words, of which none has such an exponent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.errors import UsageError
from ckptguard.posterior import FIELDS, Floats, Indices, Spread, Words, magnitudes_of, means

LEAST = 0.7
"""Of its magnitude: what an undamaged word is read as at least, unless it is an outlier."""
FAR = 8.0
"""Times the rms of its tensor, both to the power of two below: above that are outliers."""
SHARE, FEW = 512, 16
"""Of so many words of a tensor one may be an outlier; and that many always."""
ENTRY_BYTES = 6
_GO_ON = 0xFFFF_FFFF
_ENTRY = np.dtype([("gap", "<u4"), ("upper", "<u2")])

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


def outlier_fields(dtype: DType, counts: Counts, of_0: float, of_1: float) -> Flags:
    """(exponents,) the fields whose words are outliers.

    Those that a restorer which trusts no bit misreads; where these are too many, the largest. A mask leaves about
    as many, as the bits that tell an outlier from a common word are dear to protect. So the set is that of the tensor,
    whatever is protected: masks need not be known to charge for it, and readers who can trust no bit have it as well.

    Args:
        counts: of all words, as `posterior.field_counts` gives them.
        of_0, of_1: probabilities that a stored 0, a stored 1 is read wrong.
    """
    used = counts.sum(0)
    nothing = "0" * dtype.word_bits
    found = misread(dtype, used, means(Spread.of_counts(dtype, counts), nothing, of_0, of_1))
    from_the_top = np.cumsum(np.where(found, used, 0)[::-1])[::-1]
    return found & (from_the_top <= max(int(used.sum()) // SHARE, FEW))


def misread(dtype: DType, used: Counts, estimates: Floats) -> Flags:
    """(exponents,) the fields far above the tensor's rms whose words are read as less than LEAST of themselves.

    Args:
        used: (exponents,) words by field.
        estimates: (exponents,) what a word read with a field was in the mean, its fraction taken as zero.
    """
    magnitudes = magnitudes_of(dtype)
    rms = np.sqrt((used * magnitudes**2).sum() / max(int(used.sum()), 1))
    found: Flags = (used > 0) & (estimates < LEAST * magnitudes) & (magnitudes > FAR * rms)
    return found


def without(counts: Counts, fields: Flags) -> Counts:
    """The counts of the words that are no outliers."""
    return np.where(fields, 0, counts)


def most_entries(elements: int) -> int:
    """No fewer entries than the outliers of a tensor take, wherever in it they lie."""
    return max(elements // SHARE, min(FEW, elements)) + elements // _GO_ON


@dataclass(frozen=True, eq=False)
class Outliers:
    """Outliers of a tensor.

    Attributes:
        positions: (outliers,) their elements, ascending.
        uppers: (outliers,) uint16, the upper 16 bits of their words.
    """

    positions: Indices
    uppers: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, dtype: DType, words: Words, fields: Flags, first: int = 0) -> Outliers:
        """Those of a run of words, the first of which is element `first`."""
        exponent_bits, fraction_bits = FIELDS[dtype.name]
        kind = words.dtype.type
        exponents = words >> kind(fraction_bits) & kind((1 << exponent_bits) - 1)
        found = np.flatnonzero(fields[exponents])
        return cls(found + first, (words[found] >> kind(_shift(dtype))).astype("<u2"))

    @classmethod
    def joined(cls, several: list[Outliers]) -> Outliers:
        """Those of runs that follow one another."""
        return cls(np.concatenate([one.positions for one in several]), np.concatenate([one.uppers for one in several]))

    @property
    def entries(self) -> int:
        """That they take."""
        return self.positions.size + int((np.diff(self.positions, prepend=0) // _GO_ON).sum())

    def pack(self) -> npt.NDArray[np.uint8]:
        """As stored: entries of a gap and of the upper bits; the gap 2^32 - 1 goes on without a word."""
        gaps = np.diff(self.positions, prepend=0)
        skips = gaps // _GO_ON
        places = np.cumsum(skips + 1) - 1
        entries = np.zeros(int(places[-1]) + 1 if places.size else 0, _ENTRY)
        entries["gap"] = _GO_ON
        entries["gap"][places] = gaps - skips * _GO_ON
        entries["upper"][places] = self.uppers
        return entries.view(np.uint8)

    @classmethod
    def unpack(cls, dtype: DType, data: npt.NDArray[np.uint8], elements: int) -> Outliers:
        """Inverse of `pack`. Entries beyond the tensor, and those of infinities and NaN, mean nothing."""
        entries = np.frombuffer(data.tobytes(), _ENTRY)
        positions = np.cumsum(entries["gap"], dtype=np.int64)
        exponent_bits, fraction_bits = FIELDS[dtype.name]
        top = (1 << exponent_bits) - 1
        exponents = entries["upper"] >> np.uint16(fraction_bits - _shift(dtype)) & np.uint16(top)
        kept = (entries["gap"] < _GO_ON) & (positions < elements) & (exponents < top)
        return cls(positions[kept], entries["upper"][kept])

    def put(self, dtype: DType, words: Words, read: Words, first: int = 0) -> None:
        """Set the outliers in a run of words, in place: upper bits as they were, those below as read.

        Args:
            read: the words before they were restored.
            first: the element that the run begins with.
        """
        if words.dtype != read.dtype or words.size != read.size:
            raise UsageError(f"{words.size} words of {words.dtype} are no reading of {read.size} of {read.dtype}")
        low, high = np.searchsorted(self.positions, (first, first + words.size))
        places = self.positions[low:high] - first
        kind, shift = words.dtype.type, _shift(dtype)
        below = read[places] & kind((1 << shift) - 1)
        words[places] = self.uppers[low:high].astype(words.dtype) << kind(shift) | below


def _shift(dtype: DType) -> int:
    """Bits of a word below its upper 16."""
    return dtype.word_bits - 16
