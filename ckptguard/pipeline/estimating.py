"""What readers make of native pieces that are not exact: by bits that never vary, restorers and what these carry, or
range guards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.guards import Counts, TensorGuard
from ckptguard.outliers import Outliers
from ckptguard.pipeline import guarding
from ckptguard.pipeline.posteriors import Posterior, outlier_places, piece_segments, sum_places
from ckptguard.pipeline.shard import Shard
from ckptguard.pipeline.units import Examined, PieceOutcome, State, examine, piece_slices, touched_elements
from ckptguard.plan import Part, Piece
from ckptguard.posterior import Restorer
from ckptguard.row_sums import with_sums_in_place

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
Look = Callable[[int, int, Examined], object]


class Estimator:
    """Reads the damaged pieces of one shard as what they most likely were; every piece by itself, on any thread."""

    def __init__(self, shard: Shard, *, guard: bool, estimate: bool) -> None:
        self._shard, self._guard, self._wanted = shard, guard, estimate
        self._restorers: dict[tuple[int, str], Restorer] = {}
        self._extra: tuple[Bytes, npt.NDArray[np.bool_]] | None = None
        self._outliers: dict[int, Outliers | None] = {}
        self._lock = threading.Lock()

    @property
    def guards(self) -> dict[int, TensorGuard]:
        """Range guards in use, by part index."""
        return self._shard.guards if self._guard else {}

    @property
    def _posteriors(self) -> dict[int, Posterior]:
        return self._shard.posteriors if self._wanted else {}

    def concerns(self, examined: Examined) -> bool:
        """Whether `apply` may change the unit's bytes."""
        return any(
            piece.state != State.EXACT and (piece.part in self.guards or piece.part in self._posteriors)
            for piece in examined.pieces
        )

    def apply(self, examined: Examined, look: Look | None = None) -> list[tuple[int, Counts]]:
        """Change native pieces that are not exact, in the unit's bytes; how much that changed, by part.

        Args:
            look: told of units (stream, unit, outcome) that are examined for the row sums and outliers in them.
        """
        changed = []
        pieces = zip(examined.unit.pieces, examined.pieces, piece_slices(examined.unit), strict=True)
        for piece, outcome, where in pieces:
            part = self._shard.plan.parts[piece.part]
            if part.representation != "native" or outcome.state == State.EXACT:
                continue
            data = examined.bytes[where]
            if piece.part in self._posteriors:
                lost = None if examined.lost_bits is None else examined.lost_bits[where]
                changed.append((piece.part, self._estimate(part, piece, outcome, data, lost, look)))
            elif (guard := self.guards.get(piece.part)) is not None:
                begin, proven = piece.offset - part.stored_offset, outcome.state == State.PROTECTED
                changed.append((piece.part, guarding.restrict(part, begin, guard, data, proven)))
        return changed

    def _estimate(
        self, part: Part, piece: Piece, outcome: PieceOutcome, data: Bytes, lost: Bytes | None, look: Look | None
    ) -> Counts:
        """Read a piece through its restorers, in place."""
        forced = 0
        if (guard := self.guards.get(piece.part)) is not None:
            forced = guarding.force(part, piece, guard, data)
        before = data.view(f"<u{part.dtype.word_bits // 8}")
        words = before.copy()
        unsure = _unsure(part, piece, outcome, lost)
        if unsure is None:
            self._restorer(piece.part, part.mask).apply_in_place(words)
        else:
            apart = words[unsure]
            self._restorer(piece.part, "0" * len(part.mask)).apply_in_place(apart)
            if apart.size < words.size:
                self._restorer(piece.part, part.mask).apply_in_place(words)
            words[unsure] = apart
        without = not self._put_outliers(part, piece, words, before, look)
        without |= not self._add_sums(part, piece, words, look)
        estimated = int(np.count_nonzero(words != before))
        data[:] = words.view(np.uint8)
        return Counts(forced, 0, estimated, int(without))

    def _restorer(self, index: int, trusted: str) -> Restorer:
        """The restorer of a part that trusts these bits."""
        found = self._restorers.get((index, trusted))
        if found is None:
            known = self._posteriors[index]
            found = self._restorers[index, trusted] = Restorer.of(known.spread, trusted, known.of_0, known.of_1)
        return found

    def _put_outliers(self, part: Part, piece: Piece, words: Words, read: Words, look: Look | None) -> bool:
        """Set the outliers in a piece, in place; False where they are lost."""
        if not self._posteriors[piece.part].outliers:
            return True
        outliers = self._outliers_of(piece.part, look)
        if outliers is None:
            return False
        first = (piece.offset - part.stored_offset) // (part.dtype.word_bits // 8)
        outliers.put(part.dtype, words, read, first)
        return True

    def _outliers_of(self, index: int, look: Look | None) -> Outliers | None:
        """Of a part that has some; None where not all of them are proved by a digest."""
        stored, known = self._load_extra(look)
        if index not in self._outliers:
            part, place = self._shard.plan.parts[index], self._outlier_places[index]
            proved = bool(known[place].all())
            self._outliers[index] = Outliers.unpack(part.dtype, stored[place], part.elements) if proved else None
        return self._outliers[index]

    @cached_property
    def _outlier_places(self) -> dict[int, slice]:
        """Part -> where its outliers lie."""
        return outlier_places(self._shard.plan, self._posteriors)

    def _add_sums(self, part: Part, piece: Piece, words: Words, look: Look | None) -> bool:
        """Give the row segments of a piece the sums they had, in place; False where these are lost."""
        levels, place = self._posteriors[piece.part].levels, self._places.get(piece.index)
        if levels is None or not place:
            return True
        stored, known = self._load_extra(look)
        here = slice(place.start, place.stop)
        if not known[here].all():
            return False
        wanted = levels.sums(stored[here])
        with_sums_in_place(part.dtype, words, *piece_segments(self._shard.plan, piece.index), wanted)
        return True

    @cached_property
    def _places(self) -> dict[int, range]:
        """Piece -> where its row sums lie."""
        return sum_places(self._shard.plan, [index for index, one in self._posteriors.items() if one.levels])

    def _load_extra(self, look: Look | None) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        """All row sums and outliers, decoded once, and which bytes of them are proved by a digest."""
        with self._lock:
            if self._extra is None:
                self._extra = self._read_extra(look)
            return self._extra

    def _read_extra(self, look: Look | None) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        shard = self._shard
        index = shard.plan.extra
        assert index is not None  # `posteriors.read` has held it against the plan
        part = shard.plan.parts[index]
        stored, known = np.zeros(part.stored_bytes, np.uint8), np.zeros(part.stored_bytes, np.bool_)
        for stream, unit in shard.plan.units_of_part(index, 0, part.stored_bytes):
            examined = examine(shard, stream, unit, guard=self._guard)
            if look is not None:
                look(stream, unit, examined)
            pieces = zip(examined.unit.pieces, examined.pieces, piece_slices(examined.unit), strict=True)
            for piece, outcome, where in pieces:
                if piece.part == index:
                    begin = piece.offset - part.stored_offset
                    stored[begin : begin + piece.bytes] = examined.bytes[where]
                    known[begin : begin + piece.bytes] = outcome.state != State.LOST
        return stored, known


def _unsure(part: Part, piece: Piece, outcome: PieceOutcome, lost: Bytes | None) -> npt.NDArray[np.bool_] | None:
    """Which words of a piece have protected bits that may be wrong; None = no word has.

    In a piece that is not protected-exact these are the words with bits in codewords that failed: of all others the
    protected bits are right. Where no codeword admits that it failed, any of them may be wrong.
    """
    if outcome.state == State.PROTECTED:
        return None
    touched = None if lost is None else touched_elements(part, piece, lost)
    if touched is None or not touched.any():
        return np.ones(piece.bytes // (part.dtype.word_bits // 8), np.bool_)
    return touched
