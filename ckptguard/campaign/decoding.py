"""What decoding leaves of flips, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.shells import Drawn

I64 = npt.NDArray[np.int64]


@dataclass
class Decoding:
    """What became of the protected bits in a trial.

    Attributes:
        codewords: in all streams.
        corrected: damaged codewords of decoded units that came out right.
        uncorrectable: those the decoder gave up on.
        miscorrected: those it took for another codeword.
        lost: whether protected bits are wrong, and reading strictly would fail.
    """

    codewords: int = 0
    corrected: int = 0
    uncorrectable: int = 0
    miscorrected: int = 0
    lost: bool = False
    _wrong: dict[str, list[Drawn]] = field(default_factory=dict)
    _given_up: dict[str, list[I64]] = field(default_factory=dict)
    _unproven: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, name: str, wrong: Drawn, given_up: I64 | None, reach: tuple[int, int]) -> None:
        """Note protected bits of a piece of a tensor that are wrong.

        Args:
            given_up: elements with bits in codewords that were given up on.
            reach: (begin, end) of the elements with stored bits in the piece.
        """
        self.lost = True
        self._unproven.setdefault(name, []).append(reach)
        self._wrong.setdefault(name, []).append(wrong)
        if given_up is not None:
            self._given_up.setdefault(name, []).append(given_up)

    def wrong(self, name: str) -> Drawn | None:
        """Protected bits of a tensor that differ after decoding."""
        pieces = self._wrong.get(name)
        return joined(pieces) if pieces else None

    def unproven(self, name: str) -> list[tuple[int, int]]:
        """(begin, end) of elements of a tensor in pieces whose protected bits are not all right."""
        return self._unproven.get(name, [])

    def given_up(self, name: str) -> I64 | None:
        """Elements of a tensor, ascending, with bits in codewords that were given up on and did not come out right."""
        pieces = self._given_up.get(name)
        return np.unique(np.concatenate(pieces)) if pieces else None


def joined(pieces: Sequence[Drawn]) -> Drawn:
    """Flips of different bits of the same words, together; planes are not counted."""
    elements = np.concatenate([piece.elements for piece in pieces])
    flips = np.concatenate([piece.flips for piece in pieces])
    if (elements[1:] <= elements[:-1]).any():
        order = np.argsort(elements, kind="stable")
        elements, starts = np.unique(elements[order], return_index=True)
        flips = np.bitwise_xor.reduceat(flips[order], starts)
    return Drawn(elements, flips, pieces[0].by_plane)


def combined(many: Drawn, few: Drawn) -> Drawn:
    """The same of two, of which one has few words."""
    if not many.elements.size or not few.elements.size:
        return few if few.elements.size else many
    at = np.searchsorted(many.elements, few.elements)
    known = many.elements[np.minimum(at, many.elements.size - 1)] == few.elements
    flips = many.flips.copy()
    flips[at[known]] ^= few.flips[known]
    elements, new = many.elements, ~known
    if new.any():
        elements = np.insert(elements, at[new], few.elements[new])
        flips = np.insert(flips, at[new], few.flips[new])
    return Drawn(elements, flips, many.by_plane)
