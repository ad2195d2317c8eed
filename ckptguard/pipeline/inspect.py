"""inspect: what a container holds, how it is protected, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptguard import plan
from ckptguard.pipeline import guarding, posteriors
from ckptguard.pipeline.posteriors import outlier_bytes
from ckptguard.pipeline.shard import Shard, open_set
from ckptguard.plan import ShardPlan

ARMOUR_GROWTH = 4
"""Stored bytes for a byte of metadata: doubled by its code, and at both ends of the file."""


@dataclass(frozen=True)
class TensorSummary:
    """How one tensor (or auxiliary file, or row sums and outliers) is protected.

    Attributes:
        restorer_rates: probabilities that a stored 0, a stored 1 is read wrong, for which its posterior restorer is
            made; None without one.
        row_sums: it carries sums of its rows.
        outliers: words whose upper 16 bits it carries.
    """

    name: str
    kind: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    representation: str
    mask: str
    protected_bits: int
    weight_bits: int
    code: str
    rounded: int = 0
    clipped: int = 0
    max_error: float = 0.0
    guard_groups: int = 0
    restorer_rates: tuple[float, float] | None = None
    row_sums: bool = False
    outliers: int = 0


@dataclass(frozen=True)
class StreamSummary:
    """A stream's code and what it costs."""

    code: str
    corrects: int
    tensors: int
    protected_bits: int
    codewords: int
    parity_bytes: int


@dataclass(frozen=True)
class ShardSummary:
    """A shard file in figures.

    Attributes:
        guard_bytes, restorer_bytes: those of the metadata (before armour) that are range guards, posterior restorers.
        sum_bytes, outlier_bytes: those of the payload that are row sums, outliers.
    """

    name: str
    device: Mapping[str, Any] | None
    placement: str
    file_bytes: int
    metadata_bytes: int
    payload_bytes: int
    parity_bytes: int
    streams: tuple[StreamSummary, ...]
    guard_bytes: int = 0
    restorer_bytes: int = 0
    sum_bytes: int = 0
    outlier_bytes: int = 0


@dataclass(frozen=True)
class Summary:
    """A container in figures.

    Attributes:
        protected_fraction: protected bits over the bits that represent the weights.
        redundancy: the papers' r, protected bits times (n - k) / k over the bits that represent the weights.
        stored_redundancy: parity bits really stored for tensors, over the same; padding and short codewords counted.
            Both count row sums and outliers as parity.
        original_bytes: of all files of the checkpoint.
        stored_bytes: of all files of the container (and the files it stands beside).
        overhead: stored_bytes / original_bytes - 1.
    """

    path: str
    created_by: str
    settings: Mapping[str, Any]
    shards: tuple[ShardSummary, ...]
    tensors: tuple[TensorSummary, ...]
    protected_fraction: float
    redundancy: float
    stored_redundancy: float
    original_bytes: int
    stored_bytes: int

    @property
    def overhead(self) -> float:
        """Growth of the stored bytes over the original ones."""
        return self.stored_bytes / self.original_bytes - 1 if self.original_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """A record for machines."""
        return asdict(self) | {"overhead": self.overhead}


def inspect(path: Path | str) -> Summary:
    """Describe a container from its metadata alone. Raises as `open_set`."""
    with open_set(path) as shards:
        summaries: list[ShardSummary] = []
        tensors: list[TensorSummary] = []
        for shard in shards:
            block = shard.file.superblock
            summaries.append(
                ShardSummary(
                    shard.plan.name,
                    shard.plan.device,
                    "beside" if block.beside else "embedded",
                    block.file_bytes + (block.payload_bytes if block.beside else 0),
                    block.metadata_bytes,
                    block.payload_bytes,
                    block.parity_bytes,
                    tuple(stream_summaries(shard.plan)),
                    guarding.stored_bytes(shard.guards, len(shard.plan.parts)),
                    posteriors.stored_bytes(shard.posteriors, len(shard.plan.parts)),
                    shard.plan.extra_bytes - outlier_bytes(shard.posteriors),
                    outlier_bytes(shard.posteriors),
                )
            )
            tensors += tensor_summaries(shard)
        plans = [shard.plan for shard in shards]
        weight_bits = sum(p.weight_bits for p in plans)
        sources = {source.name: source.bytes for p in plans for source in p.sources}
        return Summary(
            str(path),
            str(shards[0].info.get("created_by", "")),
            shards[0].info.get("settings", {}),
            tuple(summaries),
            tuple(tensors),
            _share(sum(p.protected_bits for p in plans), weight_bits),
            _share(sum(p.nominal_parity for p in plans), weight_bits),
            _share(8 * sum(p.stored_parity for p in plans), weight_bits),
            sum(sources.values()),
            sum(summary.file_bytes for summary in summaries),
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def stream_summaries(shard: ShardPlan) -> list[StreamSummary]:
    """The streams of a shard that have a code."""
    return [
        StreamSummary(
            stream.code.spec,
            stream.code.t,
            len(stream.parts),
            stream.protected_bits,
            (stream.units - 1) * stream.layout(0).codewords + stream.layout(stream.units - 1).codewords,
            stream.parity_bytes,
        )
        for stream in shard.streams
        if stream.planes
    ]


def tensor_summaries(shard: Shard) -> Sequence[TensorSummary]:
    """The tensors, auxiliary files, row sums and outliers of a shard."""
    losses, guards, known = shard.losses, shard.guards, shard.posteriors
    return [
        TensorSummary(
            part.name,
            part.kind,
            shard.plan.name,
            part.dtype.name,
            part.shape,
            part.elements,
            part.representation,
            part.mask,
            part.protected_bits,
            part.weight_bits,
            part.code,
            losses[index].rounded if index in losses else 0,
            losses[index].clipped if index in losses else 0,
            losses[index].max_error if index in losses else 0.0,
            guards[index].groups if index in guards else 0,
            (known[index].of_0, known[index].of_1) if index in known else None,
            index in known and known[index].levels is not None,
            known[index].outliers if index in known else 0,
        )
        for index, part in enumerate(shard.plan.parts)
        if part.kind != plan.HEADER
    ]
