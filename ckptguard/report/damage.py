"""What happened to a container, and what decoding made of it, as text. The verdict comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ckptguard.pipeline.corrupt import FileFlips, RegionFlips
from ckptguard.pipeline.reports import Report, TensorReport
from ckptguard.plan import EXTRA, FILE, HEADER
from ckptguard.report import numbers
from ckptguard.report.table import MOST_ROWS, pairs, table

_STATES = ("lost", "protected-exact", "exact")
_FOUND = {"lost": "damaged", "protected-exact": "damaged where unprotected", "exact": "exact"}


def check_text(container: Path, report: Report) -> str:
    """What `check` prints."""
    verdict = {
        "intact": "intact, everything is as it was written",
        "protected-intact": f"intact where protected; unprotected bits differ in {_share(report, 'protected-exact')}",
        "correctable": "damaged, everything protected is correctable",
        "uncorrectable": f"uncorrectable, {_losses(report)}",
    }[report.verdict]
    return _blocks(f"{container}: {verdict}", report)


def written_text(command: str, output: Path, report: Report) -> str:
    """What `repair` and `restore` print."""
    done = {"repair": "repaired", "restore": "restored"}[command]
    if report.lost:
        verdict = f"{done} as far as possible, {_losses(report)}"
    elif report.exact:
        verdict = f"{done}, every bit is exact"
    else:
        share = _share(report, "protected-exact")
        verdict = f"{done}, every protected bit is exact; unprotected bits differ in {share}"
    return _blocks(f"{output}: {verdict}", report)


def _losses(report: Report) -> str:
    return f"protected bits are lost in {_share(report, 'lost')}"


def _share(report: Report, state: str) -> str:
    """How many tensors (and files) end in a state; headers come from their replica and do not count."""
    counted = [tensor for tensor in report.tensors if tensor.kind not in (HEADER, EXTRA)]
    files = any(tensor.kind == FILE for tensor in counted)
    some = sum(tensor.state == state for tensor in counted)
    return f"{some} of {numbers.count(len(counted), 'tensor', 'tensors and files' if files else '')}"


def _blocks(verdict: str, report: Report) -> str:
    blocks = [verdict]
    if report.verdict != "intact":
        blocks += [pairs(facts(report)), tensors_table(report.tensors)]
    if len(report.shards) > 1:
        blocks.append(shards_table(report))
    return "\n\n".join(block for block in (*blocks, *report.notes) if block)


def facts(report: Report) -> list[tuple[str, str]]:
    """What was found in all, line by line; what did not happen is left out, but for the counts of codewords."""
    shards = report.shards
    corrected = sum(shard.corrected_codewords for shard in shards)
    uncorrectable = sum(shard.uncorrectable_codewords for shard in shards)
    total = sum(shard.codewords for shard in shards)
    bits = sum(shard.corrected_bits for shard in shards)
    rows = [
        ("codewords", f"{total:,} in all, {corrected:,} corrected, {uncorrectable:,} uncorrectable"),
        ("corrected", numbers.count(bits, "bit")),
    ]
    forced = sum(tensor.guarded_bits for tensor in report.tensors)
    replaced = sum(tensor.guarded_elements for tensor in report.tensors)
    if forced or replaced:
        rows.append(
            ("guarded", f"{numbers.count(forced, 'bit')} set back, {numbers.count(replaced, 'element')} replaced")
        )
    estimated = sum(tensor.estimated_elements for tensor in report.tensors)
    without = sum(tensor.pieces_without_extra for tensor in report.tensors)
    if estimated:
        lost = f"; {numbers.count(without, 'piece')} without row sums or outliers, which are lost" if without else ""
        rows.append(("estimated", f"{numbers.count(estimated, 'element')}, protected bits and all{lost}"))
    looked = [shard.metadata for shard in shards if shard.metadata is not None]
    if looked:
        flipped, stored = (sum(getattr(m, name) for m in looked) for name in ("flipped_bits", "stored_bits"))
        unread = sum((not m.head_superblock) + (not m.tail_superblock) for m in looked)
        lost = f"; {numbers.count(unread, 'superblock')} unreadable, the other end was used" if unread else ""
        rows.append(("metadata", f"read; {flipped:,} of {numbers.count(stored, 'stored bit')} were wrong{lost}"))
    counts = [
        ("missing", sum(shard.missing_bytes for shard in shards), "byte"),
        ("foreign", sum(shard.foreign_bytes for shard in shards), "byte"),
        ("miscorrected", sum(shard.miscorrected_units for shard in shards), "unit"),
    ]
    return rows + [(name, numbers.count(count, noun)) for name, count, noun in counts if count]


def tensors_table(tensors: Sequence[TensorReport]) -> str:
    """One row per damaged tensor, the lost ones first, then those with most damage."""
    damaged = [tensor for tensor in tensors if tensor.found != "exact" or tensor.state != "exact"]
    damaged.sort(key=lambda tensor: (_STATES.index(tensor.state), -tensor.affected_elements, -tensor.corrected_bits))
    rows = [
        (
            tensor.name if tensor.kind == "tensor" else f"({tensor.kind}) {tensor.name}",
            _FOUND[tensor.found],
            tensor.state,
            numbers.count(tensor.corrected_bits),
            f"≤ {tensor.affected_elements:,}" if tensor.affected_elements else "0",
        )
        for tensor in damaged[:MOST_ROWS]
    ]
    if not rows:
        return ""
    heading = ("tensor", "as read", "decoded", "corrected bits", "affected elements")
    return table(heading, rows, hidden=len(damaged) - len(rows))


def shards_table(report: Report) -> str:
    """One row per shard."""
    rows = [
        (
            shard.name,
            shard.device or "-",
            numbers.count(shard.codewords),
            numbers.count(shard.corrected_codewords),
            numbers.count(shard.uncorrectable_codewords),
            numbers.count(shard.corrected_bits),
        )
        for shard in report.shards[:MOST_ROWS]
    ]
    heading = ("shard", "device", "codewords", "corrected", "uncorrectable", "corrected bits")
    return table(heading, rows, hidden=len(report.shards) - len(rows))


def flips_record(files: Sequence[FileFlips]) -> dict[str, Any]:
    """What `corrupt --json` prints: all but the positions, which `--report` has."""
    records = [asdict(replace(flips, positions=[])) for flips in files]
    for record in records:
        del record["positions"], record["truncated"]
    return {"flips": sum(flips.rises + flips.falls for flips in files), "files": records}


def flips_text(destination: Path, files: Sequence[FileFlips]) -> str:
    """What `corrupt` prints."""
    bits, flips = sum(file.bits for file in files), sum(file.rises + file.falls for file in files)
    verdict = f"{destination}: {flips:,} of {numbers.count(bits, 'stored bit')} flipped"
    rows = [
        (
            file.name,
            file.device or "-",
            file.channel,
            numbers.count(file.bits),
            numbers.count(file.rises + file.falls),
            numbers.rate((file.rises + file.falls) / file.bits if file.bits else 0.0),
        )
        for file in files[:MOST_ROWS]
    ]
    heading = ("file", "device", "channel", "bits", "flipped", "rate")
    blocks = [verdict, table(heading, rows, hidden=len(files) - len(rows))]
    if len(files) == 1:
        blocks.append(regions_table(files[0].regions))
    return "\n\n".join(blocks)


def regions_table(regions: Sequence[RegionFlips]) -> str:
    """The regions of one file, in file order; the largest ones where there are many."""
    largest = sorted(range(len(regions)), key=lambda i: (-regions[i].bits, i))[:MOST_ROWS]
    rows = [
        (region.name, numbers.count(region.bits), numbers.count(region.rises), numbers.count(region.falls))
        for region in (regions[i] for i in sorted(largest))
    ]
    return table(("region", "bits", "0 read as 1", "1 read as 0"), rows, hidden=len(regions) - len(rows))
