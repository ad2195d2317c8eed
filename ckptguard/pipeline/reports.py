"""What the verbs tell: per tensor, per shard, in all. Field names are stable; `to_json` is what `--json` prints."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ckptguard import plan
from ckptguard.container.shard_file import MetadataDamage
from ckptguard.guards import Counts
from ckptguard.pipeline.shard import Shard
from ckptguard.pipeline.units import Examined, State

INTACT, CORRECTABLE, UNCORRECTABLE = 0, 10, 11


@dataclass
class TensorReport:
    """What became of one tensor (or safetensors header, auxiliary file, or row sums and outliers).

    Attributes:
        name, kind: see `plan.Part`.
        shard: index of its shard.
        state: `exact` (every bit as written), `protected-exact` (every protected bit is), or `lost`.
        found: the same, before decoding.
        pieces, damaged_pieces, lost_pieces: grains of digest: all, damaged as read, lost after decoding.
        corrected_bits: stored bits that the decoder flipped back.
        affected_elements: elements with bits in codewords that could not be decoded (at most).
        guarded_bits: stored bits that never vary in the tensor and were set back to what they are.
        guarded_elements: elements outside of their recorded interval, replaced by zero or what comes nearest to it.
        estimated_elements: elements that posterior restorers changed, by a factor or by their row's sum; their
            protected bits may be among what changed.
        pieces_without_extra: damaged pieces that were estimated without their row sums or outliers, which are lost.
    """

    name: str
    kind: str
    shard: int
    state: str = "exact"
    found: str = "exact"
    pieces: int = 0
    damaged_pieces: int = 0
    lost_pieces: int = 0
    corrected_bits: int = 0
    affected_elements: int = 0
    guarded_bits: int = 0
    guarded_elements: int = 0
    estimated_elements: int = 0
    pieces_without_extra: int = 0


@dataclass
class ShardReport:
    """What became of one shard.

    Attributes:
        name, device: of the shard file.
        codewords, corrected_codewords, uncorrectable_codewords: all of the shard; those the decoder changed; those it
            gave up on. Codewords of units whose digests agreed were not decoded and count as clean.
        corrected_bits: bits that the decoder flipped back, in message and parity.
        damaged_parity_units: units whose parity is not what was written (check and repair look at all, restore only at
            those it decodes).
        miscorrected_units: units that every codeword of decoded, while the digest denies the result.
        metadata: damage of superblocks and metadata copies; None where it was not looked at.
        missing_bytes, foreign_bytes: that the file lacks, or has beyond its end.
    """

    name: str
    device: str | None
    codewords: int = 0
    corrected_codewords: int = 0
    uncorrectable_codewords: int = 0
    corrected_bits: int = 0
    damaged_parity_units: int = 0
    miscorrected_units: int = 0
    metadata: MetadataDamage | None = None
    missing_bytes: int = 0
    foreign_bytes: int = 0


@dataclass
class Report:
    """What a verb found, shard by shard and tensor by tensor."""

    shards: list[ShardReport] = field(default_factory=list)
    tensors: list[TensorReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lost(self) -> list[TensorReport]:
        """Tensors with protected bits that could not be brought back."""
        return [tensor for tensor in self.tensors if tensor.state == "lost"]

    @property
    def damaged(self) -> bool:
        """Whether there is something that repair would change (and anything lost)."""
        return any(
            tensor.found == "lost" or (tensor.kind == plan.HEADER and tensor.found != "exact")
            for tensor in self.tensors
        ) or any(
            shard.damaged_parity_units
            or shard.missing_bytes
            or shard.foreign_bytes
            or (shard.metadata is not None and shard.metadata.flipped_bits)
            for shard in self.shards
        )

    @property
    def verdict(self) -> str:
        """In a word.

        `intact`: everything is as written. `protected-intact`: everything protected is, unprotected bits are not, and
        no code can bring them back. `correctable`: repair makes everything protected exact. `uncorrectable`: protected
        bits are lost.
        """
        if self.lost:
            return "uncorrectable"
        if self.damaged:
            return "correctable"
        return "intact" if all(tensor.found == "exact" for tensor in self.tensors) else "protected-intact"

    @property
    def status(self) -> int:
        """Exit status of `check`: 0 intact where protected, 10 damaged but correctable, 11 uncorrectable."""
        return {"uncorrectable": UNCORRECTABLE, "correctable": CORRECTABLE}.get(self.verdict, INTACT)

    @property
    def exact(self) -> bool:
        """Whether every stored bit of every tensor is as written, after decoding."""
        return all(tensor.state == "exact" for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """A record for machines."""
        return {
            "verdict": self.verdict,
            "exact": self.exact,
            "lost": [tensor.name for tensor in self.lost],
            "shards": [asdict(shard) for shard in self.shards],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "notes": list(self.notes),
        }


_WORDS = {State.EXACT: "exact", State.PROTECTED: "protected-exact", State.LOST: "lost"}


class Tally:
    """Collects outcomes of units into a report."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.report = Report()
        self._tensors: list[dict[int, TensorReport]] = []
        for index, shard in enumerate(shards):
            device = (shard.plan.device or {}).get("name")
            codewords = sum(
                (s.units - 1) * s.layout(0).codewords + s.layout(s.units - 1).codewords
                for s in shard.plan.streams
                if s.parity_bytes
            )
            self.report.shards.append(
                ShardReport(
                    shard.plan.name,
                    device,
                    codewords,
                    missing_bytes=shard.file.missing_bytes,
                    foreign_bytes=shard.file.foreign_bytes,
                )
            )
            rows = {i: TensorReport(p.name, p.kind, index) for i, p in enumerate(shard.plan.parts)}
            self._tensors.append(rows)
            self.report.tensors += [rows[i] for i, p in enumerate(shard.plan.parts) if p.kind != plan.HEADER]
            self.report.tensors += [rows[i] for i, p in enumerate(shard.plan.parts) if p.kind == plan.HEADER]

    def add_exact(self, shard: int, parts: Iterable[int]) -> None:
        """Count pieces that were read by themselves and are as they were written, by the parts they belong to."""
        rows = self._tensors[shard]
        for part in parts:
            rows[part].pieces += 1

    def add_guarded(self, shard: int, part: int, counts: Counts) -> None:
        """Count what guards and restorers changed in a part when it was read."""
        tensor = self._tensors[shard][part]
        tensor.guarded_bits += counts.forced
        tensor.guarded_elements += counts.replaced
        tensor.estimated_elements += counts.estimated
        tensor.pieces_without_extra += counts.without_extra

    def add(self, shard: int, examined: Examined, counted: Container[int] = ()) -> None:
        """Count one unit; of its pieces only those whose index is not among the `counted`."""
        row = self.report.shards[shard]
        flips = examined.flips
        row.corrected_codewords += int((flips > 0).sum())
        row.uncorrectable_codewords += int((flips < 0).sum())
        row.corrected_bits += int(flips[flips > 0].sum())
        row.damaged_parity_units += examined.parity_damaged
        lost = any(piece.state == State.LOST for piece in examined.pieces)
        row.miscorrected_units += bool(lost and len(flips) and (flips >= 0).all())
        for place, piece in zip(examined.unit.pieces, examined.pieces, strict=True):
            if place.index in counted:
                continue
            tensor = self._tensors[shard][piece.part]
            tensor.pieces += 1
            tensor.damaged_pieces += piece.found != State.EXACT
            tensor.lost_pieces += piece.state == State.LOST
            tensor.corrected_bits += piece.corrected
            tensor.affected_elements += piece.affected
            tensor.guarded_bits += piece.forced
            tensor.found = _worse(tensor.found, piece.found)
            tensor.state = _worse(tensor.state, piece.state)


def _worse(word: str, state: State) -> str:
    order = list(_WORDS.values())
    return max(word, _WORDS[state], key=order.index)
