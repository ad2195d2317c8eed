"""The evaluator `weights`: how far the present weights are from the clean ones; no model is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.evaluate.live import LiveSession
from ckptguard.evaluate.session import Bytes, Context, Session
from ckptguard.evaluate.settings import Settings
from ckptguard.evaluate.values import to_float64


class WeightSession(LiveSession):
    """Compares weights with the reference: of patched elements only, where the reference is what is loaded.

    Metrics:
        wrong_bits, changed_elements: that differ from the reference.
        non_finite: elements that are NaN or infinite and were not so (C64 counts components).
        max_difference: largest |value - reference| over elements finite on both sides.
        relative_error: Frobenius norm of the difference over that of the reference, over the same elements.
    """

    summary: ClassVar[str] = "how bits and values of the weights differ from the clean ones"
    keys: ClassVar[Mapping[str, str]] = {}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._norm = 0.0
        self._reference: dict[str, Bytes] = {}

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """Takes no settings."""
        return cls(context)

    def loaded(self, reference: bool) -> None:
        """Keep a copy of a new reference."""
        if reference:
            self._reference = {name: data.copy() for name, data in self.data.items()}
            self._norm = float(np.sqrt(sum(self._square(name) for name in self.data)))

    def metrics(self) -> dict[str, float]:
        """See the class."""
        sums = {"wrong_bits": 0.0, "changed_elements": 0.0, "non_finite": 0.0}
        largest, square = 0.0, 0.0
        for name in self.touched if self.is_reference else self.data:
            dtype = self.context.specs[name].dtype
            changed = self._differing(name)
            before, after = (
                data.view(self.words[name].dtype)[changed] for data in (self._reference[name], self.data[name])
            )
            sums["wrong_bits"] += float(np.bitwise_count(before ^ after).sum())
            sums["changed_elements"] += np.unique(changed * dtype.word_bits // dtype.bits).size
            old, new = to_float64(dtype, before.view(np.uint8)), to_float64(dtype, after.view(np.uint8))
            if old is None or new is None:
                continue
            finite = np.isfinite(old) & np.isfinite(new)
            sums["non_finite"] += float((np.isfinite(old) & ~np.isfinite(new)).sum())
            with np.errstate(over="ignore"):
                difference = np.abs(new[finite] - old[finite])
                largest = max(largest, float(difference.max(initial=0.0)))
                square += float((difference * difference).sum())
        relative = float(np.sqrt(square)) / self._norm if self._norm else float(square > 0) * np.inf
        return sums | {"max_difference": largest, "relative_error": relative}

    def _differing(self, name: str) -> npt.NDArray[np.int64]:
        """Indices of the words that differ from the reference."""
        words = self.words[name]
        reference = self._reference[name].view(words.dtype)
        if not self.is_reference:
            return np.flatnonzero(words != reference)
        elements = np.unique(np.concatenate(self.patched(name)))
        differing: npt.NDArray[np.int64] = elements[words[elements] != reference[elements]]
        return differing

    def _square(self, name: str) -> float:
        values = to_float64(self.context.specs[name].dtype, self.data[name])
        if values is None:
            return 0.0
        values = values[np.isfinite(values)]
        with np.errstate(over="ignore"):
            return float(np.square(values).sum())
