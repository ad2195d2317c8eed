"""Multi-level cells: several bits in one cell, as one of several levels of charge or conductance.

Source of the model (levels as normal distributions, read against thresholds): Y. Cai, E. F. Haratsch, O. Mutlu, K. Mai,
Threshold Voltage Distribution in MLC NAND Flash Memory, DATE 2013.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import BLOCK_BYTES, Channel, NoiseKey
from ckptguard.channels.noise import binomial, of_2_to_63, require_bytes, stream_key
from ckptguard.errors import SpecError
from ckptguard.spec import look_up

ORDERS = {"bits": False, "pages": True}
"""Whether the bits of a cell come from different pages."""

MOST_LEVELS = 256

_PART_CELLS = 1 << 16
_FORM = (
    "levelmap:means,sigmas[,thresholds|ml[,labels|gray|binary[,bits|pages]]] with '/' between the numbers of a list, "
    "as in levelmap:0/1/2/3,0.1/0.1/0.1/0.1,ml,gray,bits"
)


class LevelMap(Channel):
    """Reads each cell at the level that a normal deviate around its written level's mean falls into.

    Each 64 KiB of a file is stored in cells of b = log2(levels) bits by itself. The order `bits` puts b consecutive
    bits into a cell, from the most significant bit of the first byte on; the first of them is the most significant bit
    of the cell's label. The order `pages` cuts the 64 KiB into b pages of equal length (the last is short where b does
    not divide); cell c holds bit c of each page, and page i is bit i of the label, 0 = least significant. Bits that the
    last cell lacks are zeros. Level l has the label `labels[l]`: explicit, binary (l) or Gray (l ^ l >> 1). Level l is
    read where the deviate lies between thresholds l - 1 and l; `ml` puts each threshold where the densities of its two
    neighbours are equal.

    Which cells change is exact: each cell is a candidate with the largest departure probability of all levels, and a
    candidate moves as its own level's row of the transition matrix says.
    """

    name: ClassVar[str] = "levelmap"

    def __init__(
        self,
        means: tuple[float, ...],
        sigmas: tuple[float, ...],
        thresholds: tuple[float, ...] | None = None,
        labels: str | tuple[int, ...] = "gray",
        order: str = "bits",
    ) -> None:
        levels = len(means)
        if levels < 2 or levels > MOST_LEVELS or levels & (levels - 1):
            raise SpecError(f"a level map has 2, 4, 8 ... {MOST_LEVELS} levels, not {levels}")
        if len(sigmas) != levels:
            raise SpecError(
                f"a level map needs a standard deviation for each of its {levels} levels, not {len(sigmas)}"
            )
        if not all(sigma > 0 for sigma in sigmas):
            raise SpecError(f"standard deviations of a level map are above 0, not {_join(sigmas)}")
        self.means, self.sigmas, self.order = means, sigmas, order
        self.paged = look_up(ORDERS, order, "order of a level map")
        self.labels = _labels(labels, levels)
        self.thresholds = _checked(thresholds, levels) if thresholds is not None else _likelihood(means, sigmas)
        parts = (
            _join(means),
            _join(sigmas),
            "ml" if thresholds is None else _join(thresholds),
            labels if isinstance(labels, str) else "/".join(map(str, labels)),
            order,
        )
        self.spec = f"{self.name}:{','.join(parts)}"

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> LevelMap:
        """The channel of the spec `levelmap:means,sigmas[,thresholds|ml[,labels|gray|binary[,bits|pages]]]`."""
        if not 2 <= len(settings) <= 5:
            raise SpecError(f"channel 'levelmap' is written {_FORM}, not {','.join(settings)!r}")
        means, sigmas = (_numbers(text) for text in settings[:2])
        rest = dict(zip(("thresholds", "labels", "order"), settings[2:], strict=False))
        thresholds = rest.get("thresholds", "ml")
        return cls(
            means,
            sigmas,
            None if thresholds == "ml" else _numbers(thresholds),
            _given_labels(rest.get("labels", "gray")),
            rest.get("order", "bits"),
        )

    @property
    def cell_bits(self) -> int:
        """Bits of a cell."""
        return len(self.means).bit_length() - 1

    @cached_property
    def transitions(self) -> npt.NDArray[np.float64]:
        """(levels, levels) probability to read column's level where row's was written, rounded to 12 digits."""
        rows = []
        edges = (-math.inf, *self.thresholds, math.inf)
        for mean, sigma in zip(self.means, self.sigmas, strict=True):
            rows.append([_between((low - mean) / sigma, (high - mean) / sigma) for low, high in pairwise(edges)])
        return np.array([[float(f"{value:.12g}") for value in row] for row in rows])

    @property
    def cell_error_rate(self) -> float:
        """Probability that a cell is read at another level, all levels being equally likely."""
        return float(self._departures.mean())

    @property
    def moves(self) -> tuple[float, float]:
        """Probability that a cell is read at a higher and at a lower level, all levels being equally likely."""
        levels = len(self.means)
        return (
            float(np.triu(self.transitions, 1).sum()) / levels,
            float(np.tril(self.transitions, -1).sum()) / levels,
        )

    @cached_property
    def page_rates(self) -> npt.NDArray[np.float64]:
        """(cell_bits, 2) probability that a stored 0 and a stored 1 of label bit i flips, 0 = least significant."""
        labels = np.array(self.labels)
        change = labels[:, None] ^ labels[None, :]
        rates = np.empty((self.cell_bits, 2))
        for bit in range(self.cell_bits):
            flips = (self.transitions * (change >> bit & 1)).sum(axis=1)
            for value in (0, 1):
                rates[bit, value] = flips[labels >> bit & 1 == value].mean()
        return rates

    @property
    def page_error_rates(self) -> tuple[float, ...]:
        """Bit error rate of each page, that is of each label bit, 0 = least significant."""
        return tuple(float(rate) for rate in self.page_rates.mean(axis=1))

    @property
    def bit_error_rate(self) -> float:
        """Mean over the bits of a cell, other bits being unknown; the worse of 0 and 1."""
        return float(self.page_rates.mean(axis=0).max())

    def flip_probability(self, word_bits: int) -> npt.NDArray[np.float64]:
        """See `Channel.flip_probability`; the mean over pages unless a word's bits always have the same place."""
        if self.paged or 8 % self.cell_bits or word_bits % 8:
            return np.tile(self.page_rates.mean(axis=0), (word_bits, 1))
        return self.page_rates[self.cell_bits - 1 - np.arange(word_bits) % self.cell_bits]

    def corrupt(self, data: npt.NDArray[np.uint8], first_block: int, key: NoiseKey) -> None:
        """Move cells of `data` to other levels in place; see `Channel.corrupt`."""
        require_bytes(data, first_block)
        stream = stream_key(key, self.spec)
        whole = data.size - data.size % BLOCK_BYTES
        for piece, block_bytes, block in (
            (data[:whole], BLOCK_BYTES, first_block),
            (data[whole:], data.size - whole, first_block + whole // BLOCK_BYTES),
        ):
            if piece.size:
                self._move(piece, block_bytes, block, stream)

    @property
    def _departures(self) -> npt.NDArray[np.float64]:
        away = self.transitions.copy()
        np.fill_diagonal(away, 0.0)
        departures: npt.NDArray[np.float64] = away.sum(axis=1)
        return departures

    @cached_property
    def _tables(self) -> tuple[float, npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Largest departure probability, and `moves`, `flips` and `level_of` of the kernel."""
        away = self.transitions.copy()
        np.fill_diagonal(away, 0.0)
        most = min(1.0, float(away.sum(axis=1).max()))
        levels = len(self.means)
        moves = np.zeros((levels, levels), np.uint64)
        for level, row in enumerate(np.cumsum(away, axis=1) / (most or 1.0)):
            moves[level] = [of_2_to_63(min(1.0, float(value))) for value in row]
        labels = np.array(self.labels, np.uint8)
        level_of = np.empty(levels, np.uint8)
        level_of[labels] = np.arange(levels, dtype=np.uint8)
        return most, moves, labels[:, None] ^ labels[None, :], level_of

    def _move(self, piece: npt.NDArray[np.uint8], block_bytes: int, first_block: int, stream: np.uint64) -> None:
        from ckptguard.kernels import sampling

        most, moves, flips, level_of = self._tables
        if most == 0.0:
            return
        width = self.cell_bits
        cells = _shares(8 * block_bytes, width)
        last_first = np.arange(width - 1, -1, -1, dtype=np.int64)
        few, complement = (1.0 - most, True) if most > 0.5 else (most, False)
        sampling.move_levels(
            piece,
            block_bytes,
            first_block,
            _shares(_shares(8 * BLOCK_BYTES, width), _PART_CELLS),
            stream,
            cells,
            1 if self.paged else width,
            cells * np.arange(width, dtype=np.int64) if self.paged else last_first,
            *binomial(_PART_CELLS, few),
            *binomial((cells - 1) % _PART_CELLS + 1, few),
            complement,
            level_of,
            moves,
            flips,
        )


def _shares(number: int, size: int) -> int:
    """How many shares of at most this size a number makes."""
    return (number + size - 1) // size


def _between(low: float, high: float) -> float:
    """Probability of a standard normal number in low .. high, exact far out as well."""
    if low > 0:
        low, high = -high, -low
    return 0.5 * (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2)))


def _likelihood(means: tuple[float, ...], sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """Where the densities of neighbouring levels are equal, rounded to 12 digits."""
    levels = list(zip(means, sigmas, strict=True))
    found = []
    for place, ((a, s), (b, t)) in enumerate(pairwise(levels)):
        if not a < b:
            raise SpecError(f"means of a level map rise from level to level; {_text(a)} is followed by {_text(b)}")
        at = _crossing(a, s, b, t)
        if at is None:
            raise SpecError(
                f"the densities of levels {place} and {place + 1} of a level map do not cross between their means "
                f"{_text(a)} and {_text(b)}; give the thresholds"
            )
        found.append(float(f"{at:.12g}"))
    return _checked(tuple(found), len(means))


def _crossing(a: float, s: float, b: float, t: float) -> float | None:
    """The point between a and b where the normal densities of (a, s) and (b, t) are equal, if there is one."""

    # Their logarithms differ by a function that falls all the way from a to b, so that halving finds its zero.
    def lead(x: float) -> float:
        return ((x - b) / t) ** 2 - ((x - a) / s) ** 2 + 2 * math.log(t / s)

    low, high = a, b
    if lead(low) <= 0 or lead(high) >= 0:
        return None
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if lead(middle) > 0 else (low, middle)
    return (low + high) / 2


def _checked(thresholds: tuple[float, ...], levels: int) -> tuple[float, ...]:
    if len(thresholds) != levels - 1 or any(a >= b for a, b in pairwise(thresholds)):
        raise SpecError(
            f"a level map of {levels} levels has {levels - 1} thresholds, each above the one before, "
            f"not {_join(thresholds)}"
        )
    return thresholds


def _labels(labels: str | tuple[int, ...], levels: int) -> tuple[int, ...]:
    if isinstance(labels, str):
        binary = tuple(range(levels))
        return look_up({"binary": binary, "gray": tuple(i ^ i >> 1 for i in binary)}, labels, "labels of a level map")
    if sorted(labels) != list(range(levels)):
        raise SpecError(
            f"labels of a level map are the numbers 0 .. {levels - 1}, each once, not {'/'.join(map(str, labels))}"
        )
    return labels


def _given_labels(text: str) -> str | tuple[int, ...]:
    parts = [part.strip() for part in text.split("/")]
    return tuple(map(int, parts)) if all(part.isascii() and part.isdecimal() for part in parts) else text


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split("/"))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise SpecError(f"{text!r} is not a list of numbers; channel 'levelmap' is written {_FORM}")
    return values


def _text(value: float) -> str:
    return repr(value).removesuffix(".0")


def _join(values: tuple[float, ...]) -> str:
    return "/".join(_text(value) for value in values)
