"""merge: the folders of all parts of a campaign become one, as if it had been run whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptguard.campaign.engine import Part
from ckptguard.campaign.journal import NAME
from ckptguard.campaign.record import CAMPAIGN, RESULTS, Run, as_bytes, finish, load_campaign
from ckptguard.campaign.results import Key, Row, line, read_rows
from ckptguard.errors import MismatchError, UsageError
from ckptguard.files import atomic_folder

_SAME = ("trials", "metric", "metrics", "limit", "until", "share", "confidence", "judged", "clean", "fleet")


def merge(folders: Sequence[Path | str], output: Path | str) -> Run:
    """Put the parts of a campaign together.

    Args:
        folders: of all parts, in any order; those of finished runs.
        output: a folder that does not exist.
    Raises:
        MismatchError: they are not parts of one campaign, or one is missing or not finished.
        CheckError: over all parts the flip-count check fails.
    """
    places = [Path(folder) for folder in folders]
    records = [load_campaign(place) for place in places]
    _refuse_different(places, records)
    rows: dict[Key, Row] = {}
    for place in places:
        if not (place / RESULTS).exists():
            raise MismatchError(f"{place}: has no {RESULTS}, so it is not finished; run it again with --resume")
        rows |= {row.key: row for row in read_rows(place / RESULTS)}
    first = records[0]
    trials = {point["id"]: int(first["trials"]) for point in first["points"]}
    _refuse_gaps(places, records, rows, trials)
    record = dict(first) | {"part": None, "run": _work(records)}
    with atomic_folder(output) as new:
        (new / NAME).write_bytes(b"".join(line(row).encode("utf-8") + b"\n" for _, row in sorted(rows.items())))
        (new / CAMPAIGN).write_bytes(as_bytes(record))
        found = finish(new, record, rows, trials)
    return Run(Path(output), found.campaign, found.rows)


def _refuse_different(places: Sequence[Path], records: Sequence[Mapping[str, Any]]) -> None:
    if len(places) < 1:
        raise UsageError("there is nothing to merge; name the folders of all parts")
    first = records[0]
    for place, record in zip(places, records, strict=True):
        if record["part"] is None:
            raise UsageError(f"{place}: is a whole campaign, not a part of one (--part I/N)")
        if record["identity"]["digest"] != first["identity"]["digest"]:
            raise MismatchError(f"{place}: is a part of another campaign than {places[0]}")
        different = [key for key in _SAME if record[key] != first[key]]
        if different:
            raise MismatchError(f"{place}: differs from {places[0]} in {', '.join(different)}; run all parts alike")
        if Part.parse(record["part"]).count != Part.parse(first["part"]).count:
            raise MismatchError(f"{place}: is part {record['part']}, {places[0]} is part {first['part']}")
    parts = [record["part"] for record in records]
    for place, part in zip(places, parts, strict=True):
        if parts.count(part) > 1:
            raise UsageError(f"{place}: part {part} is given twice")


def _refuse_gaps(
    places: Sequence[Path], records: Sequence[Mapping[str, Any]], rows: Mapping[Key, Row], trials: Mapping[str, int]
) -> None:
    count = Part.parse(records[0]["part"]).count
    present = {Part.parse(record["part"]).index for record in records}
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in present]
    if missing:
        raise MismatchError(f"{len(missing)} of {count} parts are missing: {', '.join(missing)}")
    names = [variant["name"] for variant in records[0]["variants"]]
    wanted = [(point, name, trial) for point, most in trials.items() for name in names for trial in range(most)]
    gaps = [key for key in wanted if key not in rows]
    if gaps:
        point, name, trial = gaps[0]
        raise MismatchError(
            f"{len(gaps)} trials are in none of {', '.join(map(str, places))}, the first is trial {trial} of {name!r} "
            f"at {point}; run the parts again with --resume"
        )


def _work(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all parts together did."""
    runs = [record["run"] for record in records]
    sums = {key: sum(run[key] for run in runs) for key in ("trials", "evaluations", "seconds", "worker_seconds")}
    return {"jobs": None, "backend": ", ".join(sorted({run["backend"] for run in runs})), "parts": len(runs)} | sums
