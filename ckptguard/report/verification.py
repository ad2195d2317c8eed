"""What a comparison with the original found, as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptguard.evaluate.weights import WeightDifference
from ckptguard.pipeline.certificate import Certificate
from ckptguard.pipeline.reports import UNCORRECTABLE
from ckptguard.pipeline.verify import VARIANTS, Verification
from ckptguard.report import numbers
from ckptguard.report.damage import facts
from ckptguard.report.table import MOST_ROWS, pairs, table

EXACT, PROTECTED_EXACT, LOST, CONTRADICTED = "exact", "protected-exact", "lost", "contradicted"
_DIFFERENT = 13
_HEADS = {
    "clean": "clean",
    "unprotected": "corrupted, unprotected",
    "decoded": "decoded",
    "guarded": "and guarded",
    "estimated": "and estimated",
}
_ROWS = {"unprotected": "as read", "decoded": "decoded", "guarded": "guarded", "estimated": "estimated"}


def contradicted(result: Verification) -> list[str]:
    """Tensors whose protected bits differ from the original although their digests agree: it is of another model."""
    lost = {tensor.name for tensor in result.report.lost}
    return [name for name, rows in result.weights.items() if _read(rows).wrong_protected_bits and name not in lost]


def verdict(result: Verification) -> str:
    """`contradicted`, `lost`, `protected-exact` or `exact`: the worst that holds for any tensor."""
    if contradicted(result):
        return CONTRADICTED
    if result.report.lost:
        return LOST
    return PROTECTED_EXACT if any(_read(rows).changed_elements for rows in result.weights.values()) else EXACT


def _final(rows: Mapping[str, WeightDifference]) -> WeightDifference:
    """What those who load the container get."""
    return rows.get("estimated", _read(rows))


def _read(rows: Mapping[str, WeightDifference]) -> WeightDifference:
    """What was read, before restorers estimate elements, protected bits and all."""
    return rows.get("guarded", rows["decoded"])


def status(result: Verification) -> int:
    """Exit status of `verify`."""
    return {CONTRADICTED: _DIFFERENT, LOST: UNCORRECTABLE}.get(verdict(result), 0)


def text(container: Path, against: Path, result: Verification) -> str:
    """What `verify` prints."""
    found = verdict(result)
    names = contradicted(result) if found == CONTRADICTED else [tensor.name for tensor in result.report.lost]
    of = f"{len(names)} of {numbers.count(len(result.weights), 'tensor')}"
    head = {
        CONTRADICTED: f"was made from another model: protected bits that decode exactly differ in {of}",
        LOST: f"protected bits are lost in {of}",
        PROTECTED_EXACT: "every protected bit is exact; unprotected bits differ"
        if any(_read(rows).wrong_unprotected_bits for rows in result.weights.values())
        else "every stored bit is exact; elements differ by the rounding of their representation",
        EXACT: "every element is exact",
    }[found]
    blocks = [f"{container} against {against}: {head}"]
    if result.certificate is not None:
        blocks.append(certificate(result.certificate))
    if result.metrics:
        blocks.append(metrics_table(result.metrics))
    if found != EXACT or result.report.damaged:
        blocks += [pairs(facts(result.report)), weights_table(result.weights)]
    return "\n\n".join(blocks)


def certificate(found: Certificate) -> str:
    """What was shown for the masks when they were searched, and where the container departs from that."""
    lines = [f"certificate of the masks, not tested again here: {found.statement}"]
    return "\n".join(lines + [f"  not as certified: {one}" for one in found.departs])


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """One row per metric."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    variants = [variant for variant in VARIANTS if variant in metrics]
    rows = [
        (name, *(numbers.value(metrics[variant][name]) if name in metrics[variant] else "-" for variant in variants))
        for name in names
    ]
    return table(("metric", *(_HEADS[variant] for variant in variants)), rows)


def weights_table(weights: Mapping[str, Mapping[str, WeightDifference]]) -> str:
    """A row per tensor and variant; tensors that are left with the largest differences come first."""
    order = sorted(weights, key=lambda name: _badness(_final(weights[name])), reverse=True)
    rows = [
        (
            name if variant == "unprotected" else "",
            _ROWS[variant],
            numbers.count(row.wrong_protected_bits),
            numbers.count(row.wrong_unprotected_bits),
            numbers.count(row.changed_elements),
            numbers.count(row.non_finite),
            numbers.value(row.max_difference),
            numbers.value(row.mean_difference),
        )
        for name in order[: MOST_ROWS // 2]
        for variant, row in weights[name].items()
    ]
    heading = ("tensor", "", "wrong protected", "unprotected", "changed", "non-finite", "largest |d|", "mean |d|")
    return table(heading, rows, hidden=len(weights) - len(order[: MOST_ROWS // 2]))


def _badness(row: WeightDifference) -> tuple[int, int, float]:
    return row.wrong_protected_bits, row.non_finite, row.sum_difference
