"""The folder of a run: campaign.json, results.jsonl and summary.csv; all but the journal is written here."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptguard.campaign import analysis, attribution, checks
from ckptguard.campaign.design import Point, Stop
from ckptguard.campaign.metrics import Metric
from ckptguard.campaign.results import Key, Row, as_json, order, write_rows
from ckptguard.campaign.verdict import Limit
from ckptguard.errors import CkptGuardError, UsageError
from ckptguard.files import atomic_writer

FORMAT, VERSION = "ckptguard-campaign", 1
CAMPAIGN, RESULTS, SUMMARY = "campaign.json", "results.jsonl", "summary.csv"
FAILED = 14
"""Exit status where a limit is not kept."""

SUMMARY_COLUMNS = (
    "point", "label", "ber", "group", "variant", "metric", "redundancy", "clean", "trials", "failures", "raised",
    "mean", "mean_low", "mean_high", "mean_method", "failures_in_mean", "change", "worst", "q05", "median", "best",
    "standard_deviation", "tolerance", "tolerance_bound", "tolerance_trials_needed", "within", "within_share",
    "verdict", "mean_expected_flips", "mean_flips", "mean_parity_flips", "mean_corrected", "mean_uncorrectable",
    "mean_miscorrected", "mean_residual_bits", "mean_nulled", "mean_guarded", "mean_non_finite",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A campaign that was run.

    Attributes:
        folder: with its files.
        campaign: what campaign.json holds.
        rows: of all trials, in the order of results.jsonl.
        exit_status: 14 if the verdict is FAIL, else 0.
    """

    folder: Path
    campaign: Mapping[str, Any]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def exit_status(self) -> int:
        """14 if the verdict is FAIL, else 0."""
        return FAILED if self.campaign.get("analysis", {}).get("verdict") == "FAIL" else 0

    @property
    def complete(self) -> bool:
        """Whether it is a whole campaign, not a part of one."""
        return self.campaign.get("part") is None


def finish(folder: Path, record: dict[str, Any], rows: Mapping[Key, Row], trials: Mapping[str, int]) -> Run:
    """Check the counts of flips, analyse, and write results.jsonl, summary.csv and campaign.json.

    Args:
        record: campaign.json, as `design` made it.
        trials: of every point; rows beyond them are left out.
    Raises:
        CheckError: the flips that were drawn are not those that were asked for.
    """
    asked = question_of(record, trials)
    kept = {key: row for key, row in rows.items() if key[0] in trials and key[2] < trials[key[0]]}
    ordered = order(kept.values(), [point.id for point in asked.points], asked.variants)
    record = dict(record) | {"checks": dict(record["checks"])}
    record["checks"]["flips"] = checks.flips(ordered, asked.points, record["checks"]["planes"])
    if record["part"] is None:
        found = analysis.analyse(kept, asked)
        found["attribution"] = attribution.attribute(kept, asked, found["summary"])
        found["in_time"] = attribution.in_time(kept, asked, record["fleet"])
        found["lasting"] = attribution.lasting(asked, found["verdicts"])
        record["analysis"] = found
        with atomic_writer(folder / SUMMARY, overwrite=True) as file:
            file.write(summary_text(found).encode("utf-8"))
    write_rows(folder / RESULTS, ordered)
    with atomic_writer(folder / CAMPAIGN, overwrite=True) as file:
        file.write(as_bytes(record))
    return Run(folder, finite(record), tuple(ordered))


def question_of(record: Mapping[str, Any], trials: Mapping[str, int]) -> analysis.Question:
    """What the analysis is asked, from campaign.json alone."""
    limit = None if record["limit"] is None else Limit(**record["limit"])
    metrics = {name: Metric.from_json(name, found) for name, found in record["metrics"].items()}
    clean = {name: {key: float(value) for key, value in found.items()} for name, found in record["clean"].items()}
    return analysis.Question(
        [Point.from_json(point) for point in record["points"]],
        [variant["name"] for variant in record["variants"]],
        record["judged"],
        metrics,
        record["metric"],
        clean,
        trials,
        {name: {key: float(value) for key, value in found.items()} for name, found in record["redundancy"].items()},
        None if record["until"] is None else Stop.parse(record["until"]),
        limit,
        record["share"],
        record["confidence"],
    )


def summary_text(found: Mapping[str, Any]) -> str:
    """summary.csv: one line per point, variant and metric."""
    verdicts = {(v["point"], v["variant"], v["metric"]): v["outcome"] for v in found["verdicts"]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SUMMARY_COLUMNS)
    for line in found["summary"]:
        line = line | {"verdict": verdicts.get((line["point"], line["variant"], line["metric"]))}
        writer.writerow(["" if line.get(name) is None else line[name] for name in SUMMARY_COLUMNS])
    return text.getvalue()


def digest_of(identity: Mapping[str, Any]) -> str:
    """Equal for campaigns whose rows may be mixed."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def load_campaign(folder: Path) -> dict[str, Any]:
    """campaign.json of a run folder."""
    path = folder / CAMPAIGN
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{folder}: has no {CAMPAIGN}, so it is no run of a campaign") from None
    except ValueError as error:
        raise CkptGuardError(f"{path}: is not JSON ({error}); the file was changed or damaged") from error
    if not isinstance(record, dict) or (record.get("format"), record.get("version")) != (FORMAT, VERSION):
        raise CkptGuardError(f"{path}: is no campaign of format {FORMAT}, version {VERSION}")
    return record


def as_bytes(record: Mapping[str, Any]) -> bytes:
    """Strict JSON of a record."""
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8") + b"\n"


def finite(value: Any) -> Any:
    """A record as strict JSON has it: non-finite numbers as text, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return as_json(value) if isinstance(value, float) else value
