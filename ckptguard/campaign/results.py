"""The rows of a campaign: one per point, variant and trial, and how they are written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptguard.errors import CkptGuardError
from ckptguard.files import atomic_writer

Key = tuple[str, str, int]
"""Point, variant and trial."""
Clean = Mapping[str, Mapping[str, float]]
"""Variant -> metrics of the undamaged model in its encoding."""

COUNTS = (
    "stored_bits", "parity_bits", "flips", "parity_flips", "codewords", "corrected", "uncorrectable", "miscorrected",
    "residual_bits", "changed_elements", "nulled", "guarded", "non_finite",
)  # fmt: skip
"""Whole numbers of a row, by the names that `Damage` has for them."""
TALLIES = ("flips_by_bit", "residual_by_bit", "residual_by_tensor")


@dataclass(frozen=True)
class Row:
    """What one trial gave for one variant.

    Attributes:
        metrics: of the evaluator; empty where the trial raised.
        raised: the policy `raise` stopped the load.
        error: what the evaluator raised on these weights (on clean ones it works), or None.
        expected_flips, expected_parity_flips: the mean of those drawn; None where it is not known exactly.
        counts: by the names in COUNTS.
        tallies: by the names in TALLIES: bit position or tensor -> count.
    """

    point: str
    variant: str
    trial: int
    metrics: Mapping[str, float]
    raised: bool
    error: str | None
    expected_flips: float | None
    expected_parity_flips: float | None
    counts: Mapping[str, int]
    tallies: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """By which rows are told apart, and sorted."""
        return self.point, self.variant, self.trial

    def value(self, metric: str) -> float:
        """A metric; NaN where the trial failed before there was one."""
        return self.metrics.get(metric, math.nan)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; non-finite metrics are the texts `nan`, `inf`, `-inf`."""
        head: dict[str, Any] = {"point": self.point, "variant": self.variant, "trial": self.trial}
        head |= {"metrics": {name: as_json(value) for name, value in self.metrics.items()}, "raised": self.raised}
        if self.error is not None:
            head["error"] = self.error
        head |= {"expected_flips": self.expected_flips, "expected_parity_flips": self.expected_parity_flips}
        head |= {name: self.counts.get(name, 0) for name in COUNTS}
        return head | {name: dict(self.tallies.get(name, {})) for name in TALLIES}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError where it is something else."""
        return cls(
            str(value["point"]),
            str(value["variant"]),
            int(value["trial"]),
            {str(name): float(number) for name, number in value["metrics"].items()},
            bool(value["raised"]),
            value.get("error"),
            _optional(value["expected_flips"]),
            _optional(value["expected_parity_flips"]),
            {name: int(value[name]) for name in COUNTS},
            {name: {str(key): int(number) for key, number in value[name].items()} for name in TALLIES},
        )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def as_json(value: float) -> float | str:
    """A number as strict JSON has it: non-finite ones as text."""
    return value if math.isfinite(value) else str(value)


def line(row: Row) -> str:
    """A row as one line of JSON; equal rows give equal bytes."""
    return json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=False)


def parse(text: str | bytes, where: str) -> Row:
    """Read one line. Raises CkptGuardError naming `where`."""
    try:
        return Row.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CkptGuardError(
            f"{where}: is no row of a campaign ({error!r}); the file was changed or damaged"
        ) from error


def column(rows: Mapping[Key, Row], point: str, variant: str, trials: int, metric: str) -> list[float]:
    """A metric of the first trials of a point and variant, in order; NaN for those that failed."""
    return [rows[point, variant, trial].value(metric) for trial in range(trials)]


def order(rows: Iterable[Row], points: Iterable[str], variants: Iterable[str]) -> list[Row]:
    """Rows by point, variant (as they are listed) and trial."""
    point_place = {point: place for place, point in enumerate(points)}
    variant_place = {variant: place for place, variant in enumerate(variants)}
    return sorted(rows, key=lambda row: (point_place[row.point], variant_place[row.variant], row.trial))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows, in the order given, one JSON object a line."""
    with atomic_writer(path, overwrite=True) as file:
        for row in rows:
            file.write(line(row).encode("utf-8") + b"\n")


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with path.open("rb") as file:
        return [parse(text, f"{path}, line {number}") for number, text in enumerate(file, 1)]
