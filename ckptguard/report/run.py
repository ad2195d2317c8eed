"""A campaign's folder as reports see it: points, variants, metrics, what was computed, and every trial.

Nothing is computed here that a campaign states; what a campaign leaves out is None or NaN and is left out of reports.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptguard.errors import UsageError
from ckptguard.report import ticks

FORMAT = "ckptguard-campaign"
Row = Mapping[str, Any]

_GROUP = re.compile(r"(?:layer:(?P<layer>.+?))?(?:(?:^| )bit:(?P<bit>\d+))?", re.DOTALL)
_LOWER_IS_BETTER = (
    "loss",
    "perplexity",
    "ppl",
    "error",
    "kl",
    "difference",
    "mismatch",
    "divergence",
    "changed",
    "flip",
)


@dataclass(frozen=True)
class Point:
    """One kind and strength of fault.

    Attributes:
        kind: `all`, `layer`, `bit` or `layer bit` (one bit position of one layer).
        layer, bit: which; empty where all.
        ber: per stored bit, or None.
        device: with its operating point, or None.
    """

    id: str
    label: str
    ber: float | None
    kind: str
    layer: str
    bit: str
    faults: Mapping[str, str]
    device: Mapping[str, Any] | None
    scope: Mapping[str, Any]

    @property
    def part(self) -> str:
        """The layer or bit it is about."""
        return self.layer or self.bit


@dataclass(frozen=True)
class Cell:
    """What was computed for one point, variant and metric; NaN where it was not."""

    point: str
    variant: str
    metric: str
    clean: float
    trials: int
    failures: int
    mean: float
    low: float
    high: float
    worst: float
    q05: float
    median: float
    best: float
    redundancy: float
    tolerance: str


@dataclass(frozen=True)
class Run:
    """A campaign, read.

    Attributes:
        metrics: the one the campaign is about first.
        cells: by (point, variant, metric).
        rows: results, by (point, variant), in the order of the trials.
    """

    campaign: Mapping[str, Any]
    points: tuple[Point, ...]
    variants: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    rows: Mapping[tuple[str, str], tuple[Row, ...]] = field(repr=False)

    @property
    def analysis(self) -> Mapping[str, Any]:
        """What the campaign computed."""
        return mapping(self.campaign.get("analysis"))

    def of_kind(self, kind: str) -> tuple[Point, ...]:
        """The points about all weights, about one layer each or about one bit position each."""
        return tuple(point for point in self.points if point.kind == kind)

    def cell(self, point: Point, variant: str, metric: str) -> Cell | None:
        """What was computed there, or None."""
        return self.cells.get((point.id, variant, metric))

    def values(self, point: Point, variant: str, metric: str) -> list[float]:
        """The metric of every trial; NaN and infinity for trials that failed."""
        rows = self.rows.get((point.id, variant), ())
        return [number(mapping(row.get("metrics")).get(metric)) for row in rows]

    def better_is_higher(self, metric: str) -> bool:
        """As the campaign says; where it does not, by the name of the metric."""
        said = mapping(mapping(self.campaign.get("metrics")).get(metric)).get("direction")
        if said in ("higher", "lower"):
            return bool(said == "higher")
        return not any(word in metric.lower() for word in _LOWER_IS_BETTER)

    def say(self, metric: str, value: float) -> str:
        """A value of a metric, with as many digits after the point as every value of it has."""
        if math.isnan(value):
            return "–"
        clean = [abs(v) for variant in self.variants if math.isfinite(v := self.clean(variant, metric))]
        return ticks.fixed(value, ticks.digits_for(max(clean))) if clean and max(clean) > 0 else ticks.short(value)

    def clean(self, variant: str, metric: str) -> float:
        """The metric of undamaged weights."""
        return number(mapping(mapping(self.campaign.get("clean")).get(variant)).get(metric))


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        UsageError: there is none, or its files contradict each other or are of an unknown version.
    """
    try:
        campaign = json.loads((folder / "campaign.json").read_text("utf-8"))
        lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: {Path(error.filename).name} is missing; name the folder of a finished run"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{folder}: campaign.json or results.jsonl is damaged ({error}); run it again or --resume"
        ) from error
    summary = folder / "summary.csv"
    cells = list(csv.DictReader(summary.read_text("utf-8").splitlines())) if summary.exists() else None
    return build(campaign, rows, cells)


def build(campaign: Mapping[str, Any], rows: Iterable[Row], summary: Sequence[Mapping[str, Any]] | None = None) -> Run:
    """A run from its records; without `summary` the cells are those of the analysis.

    Raises:
        UsageError: the record is of another format or version.
    """
    found = campaign.get("format"), campaign.get("version")
    if found != (FORMAT, 1):
        raise UsageError(f"campaign.json: format {found[0]!r} version {found[1]!r} is not {FORMAT!r} version 1")
    points = tuple(_point(record) for record in campaign.get("points", ()))
    variants = tuple(_name(variant) for variant in campaign.get("variants", ()))
    if summary is None:
        summary = list(mapping(campaign.get("analysis")).get("summary", ()))
    cells = {}
    for record in summary:
        cell = _cell(record)
        cells[cell.point, cell.variant, cell.metric] = cell
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((str(row["point"]), str(row["variant"])), []).append(row)
    metrics = _metrics(campaign, cells, grouped)
    return Run(campaign, points, variants, metrics, cells, {key: tuple(value) for key, value in grouped.items()})


def _metrics(
    campaign: Mapping[str, Any],
    cells: Mapping[tuple[str, str, str], Cell],
    rows: Mapping[tuple[str, str], Sequence[Row]],
) -> tuple[str, ...]:
    first = [str(campaign["metric"])] if campaign.get("metric") else []
    seen = [metric for _, _, metric in cells]
    seen += [metric for group in rows.values() for row in group[:1] for metric in mapping(row.get("metrics"))]
    return tuple(dict.fromkeys([*first, *seen]))


def _point(record: Mapping[str, Any]) -> Point:
    group = str(record.get("group") or "all")
    found = _GROUP.fullmatch(group)
    layer, bit = (found["layer"] or "", found["bit"] or "") if found else ("", "")
    ber = number(record.get("ber"))
    return Point(
        str(record["id"]),
        str(record.get("label", record["id"])),
        ber if math.isfinite(ber) else None,
        " ".join(name for name, part in (("layer", layer), ("bit", bit)) if part) or "all",
        layer,
        bit,
        {str(name): str(spec) for name, spec in mapping(record.get("faults")).items()},
        record.get("device"),
        mapping(record.get("scope")),
    )


def _name(variant: Any) -> str:
    return str(variant["name"]) if isinstance(variant, Mapping) else str(variant)


def _cell(record: Mapping[str, Any]) -> Cell:
    def get(*names: str) -> float:
        return number(next((record[name] for name in names if record.get(name) not in (None, "")), None))

    tolerance = record.get("tolerance") or ""
    return Cell(
        str(record["point"]),
        str(record["variant"]),
        str(record["metric"]),
        get("clean"),
        int(get("trials")),
        int(get("failures")) if math.isfinite(get("failures")) else 0,
        get("mean"),
        get("mean_low"),
        get("mean_high"),
        get("worst"),
        get("q05"),
        get("median"),
        get("best"),
        get("redundancy"),
        tolerance if isinstance(tolerance, str) else str(mapping(tolerance).get("text", "")),
    )


def number(value: Any) -> float:
    """A number of a record; the texts `nan`, `inf` and `-inf` are what they say, anything else is NaN."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def records(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list, or nothing."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def differences(clean: float, value: float, higher: bool) -> float:
    """What was lost: positive where the value is worse than the clean one."""
    return clean - value if higher else value - clean
