"""What a search found: as text, as a record, and as a folder with tables and a page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptguard.files import atomic_writer
from ckptguard.report import html, numbers, plots
from ckptguard.report.markup import element
from ckptguard.report.table import pairs, table
from ckptguard.search.result import SearchResult, Sensitivity

PAGE, RECORD, FRONTIER, DAMAGE = "report.html", "search.json", "frontier.csv", "damage.csv"
_MOST_ROWS = 20


def text(found: SearchResult) -> str:
    """A short table."""
    chosen = found.chosen
    rows = [
        ("method", found.method),
        ("faults", found.faults),
        (found.metric, f"{numbers.value(found.clean)} undamaged"),
        ("redundancy", f"{chosen.redundancy:.3g} parity, {chosen.charged:.3g} with the metadata of masks and guards"),
        ("predicted damage", numbers.value(chosen.predicted)),
    ]
    if found.compared:
        others = (f"{one.guard}: {numbers.value(one.loss)} lost at {one.cost:.3g}" for one in found.compared)
        rows.append(("guard", f"{found.guard}; {', '.join(others)}"))
    if chosen.expected is not None:
        rows.append(("expected loss", f"{numbers.value(chosen.expected)} of {found.metric}"))
    polish: Any = found.masks.provenance.get("polish")
    if polish:
        kept = f"{len(polish['kept'])} of {numbers.count(polish['tried'], 'swap')} kept"
        rows.append(("polish", f"{kept}, {numbers.count(polish['evaluations'], 'evaluation')}"))
    if found.unknown:
        rows.append(("no gradient", f"{', '.join(found.unknown[:5])}: bits that vary are protected"))
    if found.asked_certificate:
        rows.append(("certificate", found.certificate.text if found.certificate else "none: the first test failed"))
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.seconds.items())
    rows.append(("seconds", f"{spent}; {numbers.count(found.evaluations, 'evaluation')}"))
    return pairs(rows)


def record(found: SearchResult) -> dict[str, Any]:
    """A JSON object; numbers may be infinite."""
    return {
        "format": "ckptguard-search",
        "version": 1,
        "method": found.method,
        "metric": found.metric,
        "clean": found.clean,
        "faults": found.faults,
        "guard": found.guard,
        "compared_guards": [one.to_json() for one in found.compared],
        "redundancy": found.chosen.redundancy,
        "charged_redundancy": found.chosen.charged,
        "predicted_damage": found.chosen.predicted,
        "expected_loss": found.chosen.expected,
        "calibration": None if found.calibration is None else found.calibration.to_json(),
        "certificate": None if found.certificate is None else found.certificate.to_json(),
        "unknown": list(found.unknown),
        "seconds": found.seconds,
        "evaluations": found.evaluations,
        "masks": json.loads(found.masks.to_json()),
    }


def write(found: SearchResult, folder: Path | str) -> list[Path]:
    """Write search.json, frontier.csv, damage.csv and report.html into a folder, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frontier = [
        (v.vertex, v.redundancy, v.charged, v.predicted, "" if v.expected is None else v.expected) for v in found.path
    ]
    heading = ("vertex", "redundancy", "charged_redundancy", "predicted_damage", "expected_loss")
    return [
        _write(folder / RECORD, json.dumps(_finite(record(found)), indent=2, ensure_ascii=False) + "\n"),
        _write(folder / FRONTIER, _csv(heading, frontier)),
        _write(folder / DAMAGE, damage_csv(found.table)),
        _write(folder / PAGE, page(found)),
    ]


def page(found: SearchResult) -> str:
    """What was found, the frontier, and the damage table as a picture."""
    title = "Masks by " + found.method
    lines = [part.strip().split("  ", 1) for part in text(found).splitlines()]
    body = (
        element("h1", title),
        html.facts([(name, value.strip()) for name, value in lines]),
        html.section("What parity buys", html.figure(frontier_plot(found))),
        html.section("Where flips hurt", html.figure(damage_plot(found.table))),
    )
    return html.document(title, element("main", *body))


def frontier_plot(found: SearchResult) -> plots.Curves:
    """Expected metric (or predicted damage) against redundancy."""
    calibrated = found.calibration is not None
    points = []
    for vertex in found.path:
        value = vertex.expected if calibrated else vertex.predicted
        if value is not None and math.isfinite(value):
            shown = found.clean - value if calibrated else value
            points.append((vertex.charged, shown, shown, shown))
    return plots.frontier(
        [(found.method, points)],
        title="Redundancy against what is kept" if calibrated else "Redundancy against predicted damage",
        x_label="redundancy with metadata (bits per bit of the weights)",
        y_label=f"expected {found.metric}" if calibrated else "predicted damage",
        clean=found.clean if calibrated else None,
        description=f"{found.faults}; every vertex of the frontier",
    )


def damage_plot(damages: Mapping[str, Sequence[float]]) -> plots.Heat:
    """Tensors by bit positions."""
    return plots.damage(list(damages), list(damages.values()), unit="expected damage")


def sensitivity_text(found: Sensitivity) -> str:
    """The tensors whose unprotected words cost most, with their worst positions."""
    rows = []
    total = math.fsum(d for damages in found.table.values() for d in damages if math.isfinite(d))
    ranked = sorted(found.table.items(), key=lambda item: -sum(item[1]))
    for name, damages in ranked[:_MOST_ROWS]:
        worst = sorted(range(len(damages)), key=lambda bit: -damages[bit])[:4]
        share = f"{100 * sum(damages) / total:.3g} %" if math.isfinite(sum(damages)) and total else "not known"
        rows.append((name, f"{found.words[name]:,}", share, " ".join(f"{bit}:{damages[bit]:.2g}" for bit in worst)))
    body = table(
        ("tensor", "words", "share of damage", "worst bits (0 = most significant)"),
        rows,
        hidden=max(len(ranked) - _MOST_ROWS, 0),
    )
    return f"{body}\n\n{pairs([('faults', found.faults), ('curvature', found.source)])}"


def damage_csv(damages: Mapping[str, Sequence[float]]) -> str:
    """One row per tensor and bit position."""
    rows = [(name, bit, damage) for name, values in damages.items() for bit, damage in enumerate(values)]
    return _csv(("tensor", "bit", "damage"), rows)


def write_sensitivity(found: Sensitivity, folder: Path | str) -> list[Path]:
    """Write damage.csv and report.html into a folder, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    title = "Where flips hurt"
    body = element(
        "main",
        element("h1", title),
        html.facts([("faults", found.faults), ("curvature", found.source)]),
        html.figure(damage_plot(found.table)),
    )
    return [
        _write(folder / DAMAGE, damage_csv(found.table)),
        _write(folder / PAGE, html.document(title, body)),
    ]


def _csv(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return file.getvalue()


def _write(path: Path, content: str) -> Path:
    with atomic_writer(path, overwrite=True) as file:
        file.write(content.encode("utf-8"))
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
