"""Analog profiles, as text and as records."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckptguard.channels.base import NoiseKey
from ckptguard.devices import AnalogProfile, analog_profiles, load_analog_profile
from ckptguard.report import numbers
from ckptguard.report.devices import CONFIDENCE, paragraph, points_text
from ckptguard.report.table import pairs, table

_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_DRAWS = 20_000


def records() -> list[dict[str, Any]]:
    """The rows of analog profiles in `devices list --json`."""
    rows = []
    for profile in map(load_analog_profile, analog_profiles()):
        about = {"name": profile.name, "summary": profile.summary, "confidence": profile.confidence}
        rows.append(about | {"parameters": list(profile.parameters), "presets": list(profile.presets)})
    return rows


def list_text(rows: Sequence[dict[str, Any]]) -> str:
    """What `devices list` prints of analog profiles."""
    body = [(row["name"], row["confidence"], row["summary"]) for row in rows]
    text = table(("profile", "confidence", "what it is"), body).partition("\n")[2]
    return f"Analog arrays, which change values instead of stored bits\n{text}"


def markdown() -> str:
    """The table of analog profiles in `docs/devices.md`."""
    lines = [
        "| profile | a weight is | read 0.5 as | valid | presets | confidence |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    sources = []
    for profile in map(load_analog_profile, analog_profiles()):
        shown = record(profile, profile.point({}))
        half = next(row for row in shown["read"] if row["weight"] == 0.5)
        valid = ", ".join(f"{p.name} {p.least:g} to {p.most:g} {p.unit}" for p in profile.parameters.values())
        stored = f"two cells, {profile.low:g} to {profile.high:g} µS" if profile.cells == "pair" else "one value"
        presets = ", ".join(f"`@{preset}`" for preset in profile.presets)
        cells = (
            f"`{profile.name}`",
            stored,
            f"{half['mean']:.2f} ± {half['deviation']:.2f}",
            valid or "-",
            presets or "-",
            profile.confidence,
        )
        lines.append(f"| {' | '.join(cells)} |")
        about = f"- `{profile.name}`: {profile.summary}. Source: {profile.source}"
        sources.append(textwrap.fill(about, 120, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join([*lines, "", *sources])


def record(profile: AnalogProfile, point: Mapping[str, float]) -> dict[str, Any]:
    """What `devices show --json` prints; `read` is estimated from 20,000 draws of a fixed seed for each weight."""
    weights = np.repeat(_WEIGHTS, _DRAWS)
    read = profile.read(weights, point, NoiseKey(0, "show"), largest=1.0).reshape(len(_WEIGHTS), _DRAWS)
    return {
        "name": profile.name,
        "summary": profile.summary,
        "cells": profile.cells,
        "conductance": [profile.low, profile.high],
        "formulas": {name: formula.text for name, formula in profile.formulas.items()},
        "read": [
            {"weight": weight, "mean": float(row.mean()), "deviation": float(row.std())}
            for weight, row in zip(_WEIGHTS, read, strict=True)
        ],
        "operating_point": dict(point),
        "parameters": [vars(parameter) for parameter in profile.parameters.values()],
        "presets": {name: dict(values) for name, values in profile.presets.items()},
        "source": profile.source,
        "confidence": profile.confidence,
        "notes": profile.notes,
    }


def show_text(shown: dict[str, Any]) -> str:
    """What `devices show` prints."""
    low, high = shown["conductance"]
    stored = f"a pair of cells of {low:g} to {high:g} microsiemens" if shown["cells"] == "pair" else "one value"
    rows = [
        (f"{row['weight']:.2f}", numbers.value(row["mean"] + 0.0), numbers.value(row["deviation"]))
        for row in shown["read"]
    ]
    blocks = [
        f"{shown['name']}: {shown['summary']}",
        pairs(
            [
                ("a weight is", stored),
                ("confidence", f"{shown['confidence']} ({CONFIDENCE[shown['confidence']]})"),
                *shown["formulas"].items(),
            ]
        ),
        "  in units of a tensor's largest magnitude, over 20,000 draws of a fixed seed:",
        table(("weight", "read as, in the mean", "standard deviation"), rows),
        *points_text(shown),
        paragraph("source", shown["source"]),
        paragraph("notes", shown["notes"]),
    ]
    return "\n\n".join(block for block in blocks if block)
