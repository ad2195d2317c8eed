"""Device profiles, as text and as records."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ckptguard import channels
from ckptguard.devices import Device, Profile, load_profile
from ckptguard.report import numbers
from ckptguard.report.table import pairs, table

_WIDTH = 100
CONFIDENCE = {
    "A": "read in primary code or data",
    "B": "read in an abstract or excerpt",
    "C": "from the literature, not read again",
    "D": "an engineering default",
}


def profile_records(names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `devices list --json`: every profile at its default operating point."""
    rows = []
    for name in names:
        profile = load_profile(name)
        device = profile.at()
        rows.append(
            {
                "name": name,
                "summary": profile.summary,
                "channel": device.channel,
                "bit_error_rate": _rate(device),
                "confidence": profile.confidence,
            }
        )
    return rows


def list_text(rows: Sequence[dict[str, Any]]) -> str:
    """What `devices list` prints."""
    body = [(row["name"], _rate_text(row["bit_error_rate"]), row["confidence"], row["summary"]) for row in rows]
    text = f"{numbers.count(len(rows), 'device profile')}, error rates at their default operating points"
    return f"{text}\n\n{table(('profile', 'bit error rate', 'confidence', 'what it is'), body)}"


def device_record(profile: Profile, device: Device) -> dict[str, Any]:
    """What `devices show --json` prints."""
    return {
        "name": profile.name,
        "summary": profile.summary,
        "channel": device.channel,
        "bit_error_rate": _rate(device),
        "operating_point": dict(device.operating_point),
        "parameters": [vars(parameter) for parameter in profile.parameters.values()],
        "presets": {name: dict(point) for name, point in profile.presets.items()},
        "source": profile.source,
        "confidence": profile.confidence,
        "notes": profile.notes,
    }


def show_text(record: dict[str, Any]) -> str:
    """What `devices show` prints."""
    point = record["operating_point"]
    confidence = f"{record['confidence']} ({CONFIDENCE.get(record['confidence'][:1], 'see notes')})"
    blocks = [
        f"{record['name']}: {record['summary']}",
        pairs(
            [
                ("channel", record["channel"] or "-"),
                ("bit error rate", _rate_text(record["bit_error_rate"])),
                ("confidence", confidence),
            ]
        ),
    ]
    if record["parameters"]:
        rows = [
            (p["name"], f"{point[p['name']]:g}", f"{p['least']:g} to {p['most']:g}", p["unit"], p["meaning"])
            for p in record["parameters"]
        ]
        blocks.append(table(("parameter", "here", "valid", "unit", "meaning"), rows))
    if record["presets"]:
        rows_of = [
            (name, ",".join(f"{key}={value:g}" for key, value in preset.items()))
            for name, preset in record["presets"].items()
        ]
        blocks.append(table(("preset", "operating point"), rows_of))
    blocks += [_paragraph("source", record["source"]), _paragraph("notes", record["notes"])]
    return "\n\n".join(block for block in blocks if block)


def _paragraph(title: str, text: str) -> str:
    if not text:
        return ""
    return textwrap.fill(f"{title}: {' '.join(text.split())}", _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _rate(device: Device) -> float | None:
    return channels.make(device.channel).bit_error_rate if device.channel else None


def _rate_text(rate: float | None) -> str:
    return "-" if rate is None else numbers.rate(rate)
