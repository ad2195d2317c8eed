"""Which tensors and bit positions cost most, and how often a device fails in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.analysis import Question
from ckptguard.campaign.design import Point
from ckptguard.campaign.metrics import Metric
from ckptguard.campaign.reliability import HOURS, endurance, failure_rate, hours_of
from ckptguard.campaign.results import Key, Row, column
from ckptguard.devices import load_profile, profiles
from ckptguard.errors import MissingExtraError

Floats = npt.NDArray[np.float64]

MOST = 10
"""Tensors and bits that are named; campaign.json has them all."""
_SATURATED = 0.5
"""Points whose mean loss is beyond this share of the range are left out of a regression: there every flip is as bad."""


def attribute(rows: Mapping[Key, Row], asked: Question, summary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Loss of the main metric by tensor or layer, and by bit position, for every variant.

    From points that hit one layer or one bit only the loss is what was measured there. Else it is a regression: the
    loss of a trial as a sum, over tensors (or bits), of residual flips times a loss per flip that is not negative.
    """
    metric = asked.metrics[asked.metric]
    found: dict[str, Any] = {}
    for variant in asked.variants:
        measured = {kind: _measured(summary, asked, variant, kind) for kind in ("layer", "bit")}
        found[variant] = {
            "tensors": measured["layer"] or _regressed(rows, asked, summary, variant, metric, "residual_by_tensor"),
            "bits": measured["bit"] or _regressed(rows, asked, summary, variant, metric, "residual_by_bit"),
        }
    return found


def _measured(summary: Sequence[Mapping[str, Any]], asked: Question, variant: str, kind: str) -> dict[str, Any] | None:
    """Mean loss of the points that hit one layer, or one bit, only; the largest over rates."""
    sign = -1.0 if asked.metrics[asked.metric].higher_is_better else 1.0
    prefix = f"{kind}:"
    losses: dict[str, float] = {}
    for record in summary:
        group = str(record["group"])
        if record["variant"] != variant or record["metric"] != asked.metric or not group.startswith(prefix):
            continue
        if kind == "layer" and " bit:" in group:
            continue
        loss = sign * record["change"]
        name = group.removeprefix(prefix)
        losses[name] = max(losses.get(name, -math.inf), loss if math.isfinite(loss) else math.inf)
    if not losses:
        return None
    order = sorted(losses, key=lambda name: -losses[name])
    return {"method": "measured", "entries": [{"name": name, "loss": losses[name]} for name in order]}


def _regressed(
    rows: Mapping[Key, Row],
    asked: Question,
    summary: Sequence[Mapping[str, Any]],
    variant: str,
    metric: Metric,
    tally: str,
) -> dict[str, Any] | None:
    used = [point for point in asked.points if not _saturated(summary, point, variant, metric)]
    counts, losses = _observations(rows, asked, used, variant, metric, tally)
    names = sorted({name for count in counts for name in count}, key=_place)
    if not names or not any(losses):
        return None
    if len(losses) < 2 * len(names):
        note = f"{len(losses)} trials are too few to tell {len(names)} apart; it takes {2 * len(names)}"
        return {"method": "none", "note": note, "entries": []}
    design = np.array([[count.get(name, 0) for name in names] for count in counts], np.float64)
    per_flip, explained = _non_negative(design, np.array(losses))
    shares = per_flip * design.mean(axis=0)
    total = float(shares.sum())
    entries = [
        {
            "name": name,
            "loss_per_flip": float(cost),
            "flips": float(flips),
            "share": float(share) / total if total else 0.0,
        }
        for name, cost, flips, share in zip(names, per_flip, design.mean(axis=0), shares, strict=True)
    ]
    entries.sort(key=lambda entry: -float(str(entry["share"])))
    return {"method": "regressed", "trials": len(losses), "explained": explained, "entries": entries}


def _place(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)


def _saturated(summary: Sequence[Mapping[str, Any]], point: Point, variant: str, metric: Metric) -> bool:
    if metric.bounds is None:
        return False
    for record in summary:
        if (record["point"], record["variant"], record["metric"]) == (point.id, variant, metric.name):
            span = abs(record["clean"] - metric.worst)
            return bool(abs(record["change"]) > _SATURATED * span) if span else False
    return False


def _observations(
    rows: Mapping[Key, Row], asked: Question, points: Sequence[Point], variant: str, metric: Metric, tally: str
) -> tuple[list[Mapping[str, int]], list[float]]:
    counts: list[Mapping[str, int]] = []
    losses: list[float] = []
    clean = asked.clean[variant][metric.name]
    for point in points:
        trials = asked.trials[point.id]
        for trial, value in enumerate(column(rows, point.id, variant, trials, metric.name)):
            value = value if math.isfinite(value) else metric.worst
            if math.isfinite(value):
                counts.append(rows[point.id, variant, trial].tallies[tally])
                losses.append(clean - value if metric.higher_is_better else value - clean)
    return counts, losses


def _non_negative(design: Floats, losses: Floats) -> tuple[Floats, float]:
    """(loss per flip, none negative; share of the losses' variance that it explains)"""
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise MissingExtraError("statistics need scipy: pip install 'ckptguard[campaign]'") from error
    scale = np.maximum(design.max(axis=0), 1.0)
    found, _ = nnls(design / scale, losses)
    spread = float(((losses - losses.mean()) ** 2).sum())
    left = float(((losses - design / scale @ found) ** 2).sum())
    return np.asarray(found / scale, np.float64), max(0.0, 1 - left / spread) if spread else 0.0


def in_time(rows: Mapping[Key, Row], asked: Question, devices: int) -> list[dict[str, Any]]:
    """Failures in time of every point on a device whose operating point names a stretch of time.

    Needs a limit, and a number of trials that was fixed before.

    Args:
        devices: of the fleet.
    """
    if asked.limit is None or asked.stop is not None:
        return []
    found = []
    for point in asked.points:
        name, parameter, unit, value = _stretch(point)
        if parameter is None or value <= 0:
            continue
        for variant in asked.judged:
            values = column(rows, point.id, variant, asked.trials[point.id], asked.limit.metric)
            clean = asked.clean[variant][asked.limit.metric]
            failed = sum(not asked.limit.holds(entry, clean) for entry in values)
            rate = failure_rate(
                failed, len(values), hours_of(value, unit), devices=devices, confidence=asked.confidence, device=name
            )
            record = {name: entry for name, entry in vars(rate).items() if name != "assumptions"}
            found.append({"point": point.id, "variant": variant} | record | {"assumptions": list(rate.assumptions)})
    return found


def lasting(asked: Question, verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Up to which time of a device's operating point the verdict is PASS, where several times were tried."""
    found = []
    for variant in asked.judged:
        series: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
        for point in asked.points:
            name, parameter, unit, value = _stretch(point)
            outcome = next((v["outcome"] for v in verdicts if (v["point"], v["variant"]) == (point.id, variant)), None)
            if parameter is not None and outcome is not None and point.group == "all":
                others = {key: v for key, v in _operating_point(point).items() if key != parameter}
                series.setdefault((f"{name} {others}" if others else name, parameter, unit), []).append(
                    (value, outcome)
                )
        for (device, parameter, unit), entries in series.items():
            if len(entries) > 1:
                result = endurance(
                    parameter, unit, [value for value, _ in entries], [outcome for _, outcome in entries]
                )
                found.append({"variant": variant, "device": device} | vars(result))
    return found


def _operating_point(point: Point) -> dict[str, float]:
    return dict((point.device or {}).get("operating_point") or {})


def _stretch(point: Point) -> tuple[str, str | None, str, float]:
    """(device, parameter, unit, value) of the time in a point's operating point; parameter None where there is none."""
    device = point.device or {}
    profile = device.get("profile")
    if profile not in profiles():
        return "", None, "", 0.0
    for name, parameter in load_profile(str(profile)).parameters.items():
        if parameter.unit in HOURS:
            return (
                str(device["name"]),
                name,
                parameter.unit,
                float(_operating_point(point).get(name, parameter.default)),
            )
    return "", None, "", 0.0
