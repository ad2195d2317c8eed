"""Prefix reuse: what a model computes before it first reads a changed weight is taken from an earlier run.

The unit is the operation of torch, not the module: a clean run of every batch is recorded as a tape of operations. A
cut at operation c is taken where the first of the changed weights is read. Of everything before it, only the tensors
that are read again after it (the activations that cross the cut) are kept. In later runs the model's own Python code
runs as always, but operations before the cut are not carried out: they return placeholders, or the kept tensors.
Against skipping whole modules this also skips the operations between modules, needs no more than the crossing
activations in memory, and stays right where modules work in place, share activations or keep some as attributes.

Exactness: an operation is skipped only if it is the one on the tape, all it read was unchanged, and it writes to
nothing that outlives the run; models that draw random numbers are always run in full. Where a run leaves the tape, or
reads a placeholder after the cut, it is repeated in full. The first use of every cut is compared bit for bit with a
full run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ckptguard.evaluate.tape import DivergedError, Place, Tape

SHELF = 16
"""Tapes are kept for this many different weights."""


@dataclass
class ReuseReport:
    """What reuse did since the weights were loaded.

    Attributes:
        full, reused: runs of a batch.
        skipped_operations, operations: of the reused runs.
        diverged: runs that left the tape and were repeated in full.
        kept_bytes: held now.
        refused: why reuse was given up, or empty.
    """

    full: int = 0
    reused: int = 0
    skipped_operations: int = 0
    operations: int = 0
    diverged: int = 0
    kept_bytes: int = 0
    refused: str = ""


class PrefixReuse:
    """Runs batches, reusing what unchanged weights determine.

    Args:
        budget: bytes of activations to keep at most; 0 switches reuse off.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.report = ReuseReport()
        self._digest = ""
        self._tapes: dict[Hashable, Tape] = {}
        self._shelf: OrderedDict[str, dict[Hashable, Tape]] = OrderedDict()  # by digest of the weights
        self._kept: OrderedDict[int, dict[Hashable, dict[Place, Any]]] = OrderedDict()  # by cut, batch, place
        self._asked: set[tuple[int, Hashable]] = set()
        self._checked: set[int] = set()

    def weights_are(self, digest: str) -> None:
        """Drop activations if other weights were loaded; tapes of some weights are found again when they come back."""
        if digest == self._digest:
            return
        self._digest = digest
        self._tapes = self._shelf.pop(digest, {})
        self._shelf[digest] = self._tapes
        if len(self._shelf) > SHELF:
            self._shelf.popitem(last=False)
        self.report = ReuseReport()
        self._kept.clear()
        self._asked.clear()
        self._checked.clear()

    def record(self, batch: Hashable, call: Callable[[], Any]) -> Any:
        """Run a batch on clean weights and remember its operations; returns what `call` returns."""
        from ckptguard.evaluate.modes import Recorder, tensors_of

        self.report.full += 1
        if not self.budget or self.report.refused:
            return call()
        tape = Tape()
        mode = Recorder(tape)
        try:
            with mode:
                result = call()
        except (NotImplementedError, RuntimeError) as error:  # a tensor without storage; or the model's own error again
            self.report.refused = f"the run could not be recorded: {error}"
            return call()
        if mode.random:
            self.report.refused = "the model draws random numbers"
            return result
        tape.results = {place for tensor in tensors_of(result) if isinstance(place := mode.place(tensor), tuple)}
        self._tapes[batch] = tape
        return result

    def run(self, batch: Hashable, call: Callable[[], Any], changed: Iterable[int]) -> Any:
        """Run a batch on patched weights.

        Args:
            changed: addresses (`storage_address`) of the storages of changed weights; none means a full run.
        """
        from ckptguard.evaluate.modes import Replayer

        tape, changed = self._tapes.get(batch), list(changed)
        cut = tape.cut(changed) if tape is not None and changed and not self.report.refused else 0
        if tape is None or cut == 0:
            self.report.full += 1
            return call()
        start = self._nearest(cut, batch)
        # many cuts are asked for once only; activations are kept from the second time on
        capture = cut if start != cut and (cut, batch) in self._asked else None
        self._asked.add((cut, batch))
        if start == 0 and capture is None:
            self.report.full += 1
            return call()
        mode = Replayer(tape, start, self._kept[start][batch] if start else {}, capture)
        try:
            with mode:
                result = call()
            result = mode.finish(result)
        except DivergedError:
            self.report.diverged += 1
            return call()
        if capture is not None:
            self._keep(capture, batch, mode.captured)
        if start == 0:
            self.report.full += 1
            return result
        self.report.reused += 1
        self.report.skipped_operations += start
        self.report.operations += len(tape.operations)
        return self._checked_result(start, result, call)

    def _nearest(self, cut: int, batch: Hashable) -> int:
        """The largest kept cut that is not behind `cut`, or 0."""
        return max((kept for kept, batches in self._kept.items() if kept <= cut and batch in batches), default=0)

    def _keep(self, cut: int, batch: Hashable, stores: dict[Place, Any]) -> None:
        size = sum(store.nbytes for store in stores.values())
        if cut in self._kept:
            self._kept.move_to_end(cut)
        while self.report.kept_bytes + size > self.budget and next(iter(self._kept), cut) != cut:
            _, dropped = self._kept.popitem(last=False)
            self.report.kept_bytes -= sum(store.nbytes for kept in dropped.values() for store in kept.values())
        if self.report.kept_bytes + size <= self.budget:
            self._kept.setdefault(cut, {})[batch] = stores
            self.report.kept_bytes += size

    def _checked_result(self, cut: int, result: Any, call: Callable[[], Any]) -> Any:
        """The result; at a cut's first use compared with a full run, which is returned where they differ."""
        from ckptguard.evaluate.modes import same_bits

        if cut in self._checked:
            return result
        self._checked.add(cut)
        full = call()
        if not same_bits(result, full):
            self.report.refused = f"a run from operation {cut} on differed from a full run"
            self._kept.clear()
            self.report.kept_bytes = 0
            return full
        return result
