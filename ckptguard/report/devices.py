"""Device profiles, as text and as records."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ckptguard import channels
from ckptguard.channels.levelmap import LevelMap
from ckptguard.devices import GROUPS, Device, Profile, load_profile
from ckptguard.errors import UsageError
from ckptguard.report import numbers
from ckptguard.report.table import pairs, table

_WIDTH = 100
_PAGES = {1: ["single"], 2: ["LSB", "MSB"], 3: ["LSB", "CSB", "MSB"]}
CONFIDENCE = {
    "A": "read in primary code or data",
    "B": "read in an abstract or excerpt",
    "C": "from the literature, not read again",
    "D": "an engineering default",
}


def profile_records(names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `devices list --json`: every profile at its default operating point, group by group."""
    rows = []
    for profile in sorted((load_profile(name) for name in names), key=lambda p: (list(GROUPS).index(p.group), p.name)):
        device = profile.at()
        rows.append(
            {
                "name": profile.name,
                "group": profile.group,
                "summary": profile.summary,
                "channel": device.channel,
                "bit_error_rate": _rates(device)["bit_error_rate"],
                "confidence": profile.confidence,
                "parameters": list(profile.parameters),
                "presets": list(profile.presets),
            }
        )
    return rows


def list_text(rows: Sequence[dict[str, Any]]) -> str:
    """What `devices list` prints."""
    body = [(row["name"], numbers.rate(row["bit_error_rate"]), row["confidence"], row["summary"]) for row in rows]
    heading, *lines = table(("profile", "bit error rate", "confidence", "what it is"), body).split("\n")
    text = [
        f"{numbers.count(len(rows), 'device profile')}; error rates at their default operating points",
        "",
        heading,
    ]
    for group, of_group in groupby(zip(rows, lines, strict=True), key=lambda pair: pair[0]["group"]):
        text += ["", GROUPS[group], *(line for _, line in of_group)]
    meanings = ", ".join(f"{letter} = {meaning}" for letter, meaning in CONFIDENCE.items())
    return "\n".join(
        [*text, "", textwrap.fill(f"confidence: {meanings}; a profile has the letter of its weakest part", _WIDTH)]
    )


def markdown(names: Sequence[str]) -> str:
    """The tables of `docs/devices.md`, one per group; `|` in texts is not expected."""
    lines: list[str] = []
    records = [(load_profile(row["name"]), row) for row in profile_records(names)]
    for group, members in groupby(records, key=lambda pair: pair[0].group):
        lines += [
            "",
            f"### {GROUPS[group]}",
            "",
            "| profile | channel | bit error rate | valid | presets | confidence |",
        ]
        lines.append("| --- | --- | ---: | --- | --- | --- |")
        sources = []
        for profile, row in members:
            valid = ", ".join(f"{p.name} {p.least:g} to {p.most:g} {p.unit}" for p in profile.parameters.values())
            kinds = " + ".join(part.partition(":")[0] for part in profile.channel.split("+"))
            cells = (
                f"`{profile.name}`",
                kinds,
                numbers.rate(row["bit_error_rate"]),
                valid or "-",
                ", ".join(f"`@{preset}`" for preset in profile.presets) or "-",
                profile.confidence,
            )
            lines.append(f"| {' | '.join(cells)} |")
            about = f"- `{profile.name}`: {profile.summary}. Source: {profile.source}"
            sources.append(textwrap.fill(about, 120, subsequent_indent="  ", break_on_hyphens=False))
        lines += ["", *sources]
    return "\n".join(lines).strip()


def device_record(profile: Profile, device: Device) -> dict[str, Any]:
    """What `devices show --json` prints."""
    return {
        "name": profile.name,
        "group": profile.group,
        "summary": profile.summary,
        "channel": device.channel,
        **_rates(device),
        "operating_point": dict(device.operating_point),
        "parameters": [vars(parameter) for parameter in profile.parameters.values()],
        "presets": {name: dict(point) for name, point in profile.presets.items()},
        "source": profile.source,
        "confidence": profile.confidence,
        "notes": profile.notes,
    }


def show_text(record: dict[str, Any]) -> str:
    """What `devices show` prints."""
    confidence = f"{record['confidence']} ({CONFIDENCE[record['confidence']]})"
    rates = [("bit error rate", numbers.rate(record["bit_error_rate"]))]
    rises, falls = record["zero_read_as_one"], record["one_read_as_zero"]
    if rises != falls:
        rates = [
            ("bit error rate", f"{numbers.rate((rises + falls) / 2)} of equally many zeros and ones"),
            ("0 read as 1", numbers.rate(rises)),
            ("1 read as 0", numbers.rate(falls)),
        ]
    blocks = [
        f"{record['name']}: {record['summary']}",
        pairs([*rates, ("confidence", confidence)]),
        _channel_text(record["channel"]),
        _cells_text(record.get("cells")),
    ]
    blocks += points_text(record)
    blocks += [paragraph("source", record["source"]), paragraph("notes", record["notes"])]
    return "\n\n".join(block for block in blocks if block)


def points_text(record: dict[str, Any]) -> list[str]:
    """The parameters and presets of a profile's record, a table each where there are any."""
    blocks = []
    if record["parameters"]:
        point = record["operating_point"]
        rows = [
            (p["name"], f"{point[p['name']]:g}", f"{p['least']:g} to {p['most']:g}", p["unit"], p["meaning"])
            for p in record["parameters"]
        ]
        blocks.append(table(("parameter", "here", "valid", "unit", "meaning"), rows))
    if record["presets"]:
        rows_of = [
            (f"@{name}", ",".join(f"{key}={value:g}" for key, value in preset.items()))
            for name, preset in record["presets"].items()
        ]
        blocks.append(table(("preset", "operating point"), rows_of))
    return blocks


def _rates(device: Device) -> dict[str, Any]:
    """Error rates of a device's channel, and what its cells look like where they have several levels."""
    if device.channel is None:
        raise UsageError(f"device {device.name!r} has no channel")
    channel = channels.make(device.channel)
    rises, falls = channel.flip_probability(64).mean(axis=0).tolist()
    record = {"bit_error_rate": channel.bit_error_rate, "zero_read_as_one": rises, "one_read_as_zero": falls}
    return record | ({"cells": _cells(channel)} if isinstance(channel, LevelMap) else {})


def _cells(channel: LevelMap) -> dict[str, Any]:
    higher, lower = channel.moves
    names = _PAGES[channel.cell_bits] if channel.cell_bits in _PAGES else [f"bit {i}" for i in range(channel.cell_bits)]
    moves = channel.transitions
    return {
        "error_rate": channel.cell_error_rate,
        "read_higher": higher,
        "read_lower": lower,
        "order": channel.order,
        "pages": [
            {"name": name, "bit_error_rate": rate, "zero_read_as_one": rises, "one_read_as_zero": falls}
            for name, rate, (rises, falls) in zip(
                names, channel.page_error_rates, channel.page_rates.tolist(), strict=True
            )
        ],
        "levels": [
            {
                "label": label,
                "mean": mean,
                "sigma": sigma,
                "read_higher": float(moves[level, level + 1 :].sum()),
                "read_lower": float(moves[level, :level].sum()),
            }
            for level, (label, mean, sigma) in enumerate(
                zip(channel.labels, channel.means, channel.sigmas, strict=True)
            )
        ],
    }


def _cells_text(cells: dict[str, Any] | None) -> str:
    if cells is None:
        return ""
    width = len(cells["pages"])
    pages = [
        (page["name"], *(numbers.rate(page[key]) for key in ("bit_error_rate", "zero_read_as_one", "one_read_as_zero")))
        for page in cells["pages"]
    ]
    levels = [
        (
            f"{place}",
            f"{level['label']:0{width}b}",
            f"{level['mean']:.6g}",
            f"{level['sigma']:.4g}",
            numbers.rate(level["read_higher"]),
            numbers.rate(level["read_lower"]),
        )
        for place, level in enumerate(cells["levels"])
    ]
    what = "page" if cells["order"] == "pages" else "bit of a cell"
    rates = [numbers.rate(cells[key]) for key in ("error_rate", "read_higher", "read_lower")]
    return "\n\n".join(
        [
            f"  of all cells {rates[0]} are read at another level: {rates[1]} higher, {rates[2]} lower",
            table((what, "bit error rate", "0 read as 1", "1 read as 0"), pages),
            table(("level", "label", "mean", "sigma", "read higher", "read lower"), levels),
        ]
    )


def _channel_text(spec: str) -> str:
    """A spec, cut after commas where it is long."""
    filled = textwrap.fill(
        f"channel: {spec.replace(',', ', ')}",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return filled.replace(", ", ",")


def paragraph(title: str, text: str) -> str:
    """A text in lines of 100, or nothing."""
    if not text:
        return ""
    return textwrap.fill(f"{title}: {' '.join(text.split())}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
