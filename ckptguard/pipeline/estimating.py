"""What readers make of native pieces that are not exact: bits that never vary, restorers, row sums, or range guards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.guards import Counts, TensorGuard
from ckptguard.pipeline import guarding
from ckptguard.pipeline.posteriors import piece_segments, sum_places
from ckptguard.pipeline.shard import Shard
from ckptguard.pipeline.units import Examined, PieceOutcome, State, examine, piece_slices, touched_elements
from ckptguard.plan import Part, Piece
from ckptguard.posterior import Restorer, with_sums_in_place

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
Look = Callable[[int, int, Examined], object]


class Estimator:
    """Reads the damaged pieces of one shard as what they most likely were; every piece by itself, on any thread.

    Attributes:
        guards: range guards in use, by part index.
    """

    def __init__(self, shard: Shard, *, guard: bool, estimate: bool, look: Look | None = None) -> None:
        """Nothing is read yet.

        Args:
            look: told of units (stream, unit, outcome) that are examined for the row sums in them.
        """
        self.guards: dict[int, TensorGuard] = shard.guards if guard else {}
        self._shard, self._guard, self._look = shard, guard, look
        self._posteriors = shard.posteriors if estimate else {}
        self._restorers: dict[int, tuple[Restorer, Restorer]] = {}
        self._sums: tuple[Bytes, npt.NDArray[np.bool_]] | None = None
        self._lock = threading.Lock()

    def concerns(self, examined: Examined) -> bool:
        """Whether `apply` may change the unit's bytes."""
        return any(
            piece.state != State.EXACT and (piece.part in self.guards or piece.part in self._posteriors)
            for piece in examined.pieces
        )

    def apply(self, examined: Examined) -> list[tuple[int, Counts]]:
        """Change native pieces that are not exact, in the unit's bytes; how much that changed, by part."""
        changed = []
        pieces = zip(examined.unit.pieces, examined.pieces, piece_slices(examined.unit), strict=True)
        for piece, outcome, where in pieces:
            part = self._shard.plan.parts[piece.part]
            if part.representation != "native" or outcome.state == State.EXACT:
                continue
            data = examined.bytes[where]
            if piece.part in self._posteriors:
                lost = None if examined.lost_bits is None else examined.lost_bits[where]
                changed.append((piece.part, self._estimate(part, piece, outcome, data, lost)))
            elif (guard := self.guards.get(piece.part)) is not None:
                begin, proven = piece.offset - part.stored_offset, outcome.state == State.PROTECTED
                changed.append((piece.part, guarding.restrict(part, begin, guard, data, proven)))
        return changed

    def _estimate(self, part: Part, piece: Piece, outcome: PieceOutcome, data: Bytes, lost: Bytes | None) -> Counts:
        """Read a piece through its restorers, in place."""
        forced = 0
        if (guard := self.guards.get(piece.part)) is not None:
            forced = guarding.force(part, piece, guard, data)
        before = data.view(f"<u{part.dtype.word_bits // 8}")
        words = before.copy()
        masked, bare = self._restorers_of(piece.part)
        unsure = _unsure(part, piece, outcome, lost)
        if unsure is None:
            masked.apply_in_place(words)
        elif unsure.all():
            bare.apply_in_place(words)
        else:
            apart = words[unsure]
            masked.apply_in_place(words)
            bare.apply_in_place(apart)
            words[unsure] = apart
        without = not self._add_sums(part, piece, words)
        estimated = int(np.count_nonzero(words != before))
        data[:] = words.view(np.uint8)
        return Counts(forced, 0, estimated, int(without))

    def _restorers_of(self, index: int) -> tuple[Restorer, Restorer]:
        """Those that trust the protected bits of a part, and none of its bits."""
        found = self._restorers.get(index)
        if found is None:
            part, known = self._shard.plan.parts[index], self._posteriors[index]
            masked, bare = (
                Restorer.of(known.spread, mask, known.of_0, known.of_1) for mask in (part.mask, "0" * len(part.mask))
            )
            found = self._restorers[index] = masked, bare
        return found

    def _add_sums(self, part: Part, piece: Piece, words: Words) -> bool:
        """Give the row segments of a piece the sums they had, in place; False where these are lost."""
        levels, place = self._posteriors[piece.part].levels, self._places.get(piece.index)
        if levels is None or not place:
            return True
        stored, known = self._load_sums()
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

    def _load_sums(self) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        """All row sums, decoded once, and which of them are proved by a digest."""
        with self._lock:
            if self._sums is None:
                self._sums = self._read_sums()
            return self._sums

    def _read_sums(self) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        shard = self._shard
        index = shard.plan.sums
        assert index is not None  # `posteriors.read` has held levels against the plan
        part = shard.plan.parts[index]
        stored, known = np.zeros(part.stored_bytes, np.uint8), np.zeros(part.stored_bytes, np.bool_)
        for stream, unit in shard.plan.units_of_part(index, 0, part.stored_bytes):
            examined = examine(shard, stream, unit, guard=self._guard)
            if self._look is not None:
                self._look(stream, unit, examined)
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
