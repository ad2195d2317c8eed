"""What a container holds and costs, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptguard.checkpoint.torch_file import Conversion
from ckptguard.pipeline.inspect import ARMOUR_GROWTH, ShardSummary, Summary, TensorSummary
from ckptguard.pipeline.protect import Protected
from ckptguard.report import numbers
from ckptguard.report.masks import short_mask
from ckptguard.report.table import MOST_ROWS, pairs, table


def protected_text(made: Protected, summary: Summary) -> str:
    """What `protect` prints."""
    tensors = sum(tensor.kind == "tensor" for tensor in summary.tensors)
    text = f"{made.path}: {numbers.count(tensors, 'tensor')} protected in {numbers.count(len(summary.shards), 'shard')}"
    coarse = [tensor for tensor in summary.tensors if tensor.representation != "native"]
    blocks = [text, pairs(_costs(summary)), shards_table(summary.shards)]
    return "\n\n".join(blocks + ([losses_table(coarse)] if coarse else []))


def summary_text(summary: Summary) -> str:
    """What `inspect` prints."""
    tensors = sum(tensor.kind == "tensor" for tensor in summary.tensors)
    text = f"{summary.path}: {numbers.count(tensors, 'tensor')} in {numbers.count(len(summary.shards), 'shard')}"
    facts = [("made by", summary.created_by), *_costs(summary)]
    coarse = [tensor for tensor in summary.tensors if tensor.representation != "native"]
    blocks = [text, pairs(facts), shards_table(summary.shards), streams_table(summary.shards)]
    blocks.append(tensors_table(summary.tensors))
    return "\n\n".join(blocks + ([losses_table(coarse)] if coarse else []))


def _costs(summary: Summary) -> list[tuple[str, str]]:
    return [
        ("checkpoint", numbers.size(summary.original_bytes)),
        ("stored", f"{numbers.size(summary.stored_bytes)}, overhead {numbers.percent(summary.overhead)}"),
        ("protected", f"{numbers.percent(summary.protected_fraction)} of the bits that represent the weights"),
        ("redundancy r", f"{summary.redundancy:.4f} nominal, {summary.stored_redundancy:.4f} as stored"),
        *_guards(summary),
        *_restorers(summary),
    ]


def _guards(summary: Summary) -> list[tuple[str, str]]:
    """How many range guards there are and what they take, armoured and stored twice, as all metadata is."""
    groups = sum(tensor.guard_groups for tensor in summary.tensors)
    taken = ARMOUR_GROWTH * sum(shard.guard_bytes for shard in summary.shards)
    return [("range guards", f"{groups:,}, {numbers.size(taken)} of the metadata")] if groups else []


def _restorers(summary: Summary) -> list[tuple[str, str]]:
    """For which rates posterior restorers are, and what they, row sums and outliers take."""
    rates = {tensor.restorer_rates for tensor in summary.tensors if tensor.restorer_rates}
    if not rates:
        return []
    low, high = min(min(pair) for pair in rates), max(max(pair) for pair in rates)
    said = numbers.value(low) if low == high else f"{numbers.value(low)} to {numbers.value(high)}"
    count = sum(tensor.restorer_rates is not None for tensor in summary.tensors)
    taken = ARMOUR_GROWTH * sum(shard.restorer_bytes for shard in summary.shards)
    rows = [("restorers", f"{count:,} for a bit error rate of {said}, {numbers.size(taken)} of the metadata")]
    if any(tensor.row_sums for tensor in summary.tensors):
        summed = sum(tensor.row_sums for tensor in summary.tensors)
        size = numbers.size(sum(shard.sum_bytes for shard in summary.shards))
        rows.append(("row sums", f"of {numbers.count(summed, 'tensor')}, {size} of the payload"))
    if outliers := sum(tensor.outliers for tensor in summary.tensors):
        rows.append(("outliers", f"{outliers:,}, {numbers.size(sum(shard.outlier_bytes for shard in summary.shards))}"))
    return rows


def shards_table(shards: Sequence[ShardSummary]) -> str:
    """One row per shard file."""
    rows = [
        (
            shard.name,
            str((shard.device or {}).get("name", "-")),
            shard.placement,
            numbers.size(shard.payload_bytes),
            numbers.size(shard.parity_bytes),
            numbers.size(shard.metadata_bytes),
            numbers.size(shard.file_bytes),
        )
        for shard in shards[:MOST_ROWS]
    ]
    heading = ("shard", "device", "payload is", "payload", "parity", "metadata", "in all")
    return table(heading, rows, hidden=len(shards) - len(rows))


def streams_table(shards: Sequence[ShardSummary]) -> str:
    """One row per code and mask of a shard."""
    streams = [(shard.name, stream) for shard in shards for stream in shard.streams]
    rows = [
        (
            name,
            stream.code,
            str(stream.corrects),
            str(stream.tensors),
            numbers.size(stream.protected_bits / 8),
            numbers.count(stream.codewords),
            numbers.size(stream.parity_bytes),
        )
        for name, stream in streams[:MOST_ROWS]
    ]
    heading = ("shard", "code", "t", "tensors", "protected", "codewords", "parity")
    return table(heading, rows, hidden=len(streams) - len(rows))


def tensors_table(tensors: Sequence[TensorSummary]) -> str:
    """One row per tensor, the largest ones where there are many."""
    largest = sorted(range(len(tensors)), key=lambda i: (-tensors[i].weight_bits, i))[:MOST_ROWS]
    rows = [
        (
            tensor.name,
            tensor.dtype,
            "x".join(map(str, tensor.shape)) or ("scalar" if tensor.kind == "tensor" else tensor.kind),
            tensor.representation,
            short_mask(tensor.mask),
            tensor.code,
            numbers.percent(tensor.protected_bits / tensor.weight_bits if tensor.weight_bits else 0, 1),
        )
        for tensor in (tensors[i] for i in sorted(largest))
    ]
    heading = ("tensor", "dtype", "shape", "stored as", "mask", "code", "protected")
    return table(heading, rows, hidden=len(tensors) - len(rows))


def losses_table(tensors: Sequence[TensorSummary]) -> str:
    """What a coarser representation cost, the worst tensors first."""
    worst = sorted(tensors, key=lambda tensor: -tensor.max_error)[:MOST_ROWS]
    rows = [
        (
            tensor.name,
            tensor.representation,
            numbers.count(tensor.rounded),
            numbers.count(tensor.clipped),
            numbers.value(tensor.max_error),
        )
        for tensor in worst
    ]
    heading = ("tensor", "stored as", "rounded", "clipped", "largest error")
    return table(heading, rows, hidden=len(tensors) - len(rows))


def conversion_record(conversion: Conversion) -> dict[str, Any]:
    """What `convert --json` prints."""
    return {
        "output": str(conversion.path),
        "selected": conversion.selected,
        "tensors": len(conversion.header.tensors),
        "bytes": conversion.header.file_bytes,
        "left_out": list(conversion.left_out),
        "densified": list(conversion.densified),
        "shared": [list(group) for group in conversion.shared],
    }


def conversion_text(conversion: Conversion) -> str:
    """What `convert` prints."""
    tensors = numbers.count(len(conversion.header.tensors), "tensor")
    text = f"{conversion.path}: {tensors}, {numbers.size(conversion.header.file_bytes)}"
    facts = [("taken from", conversion.selected)] if conversion.selected != "." else []
    facts += [("left out", _listed(conversion.left_out))] if conversion.left_out else []
    facts += [("written without gaps", _listed(conversion.densified))] if conversion.densified else []
    facts += [("shared memory", _listed(group)) for group in conversion.shared]
    return "\n\n".join([text, pairs(facts)] if facts else [text])


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
