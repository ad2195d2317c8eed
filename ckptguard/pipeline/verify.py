"""verify: what a container's model is worth: as the original, with the damage as read, and decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard import representations
from ckptguard.checkpoint.folder import Checkpoint
from ckptguard.checkpoint.safetensors import TensorInfo
from ckptguard.errors import MismatchError
from ckptguard.evaluate.frameworks import framework_name
from ckptguard.evaluate.session import TensorSpec, open_session
from ckptguard.evaluate.user import Evaluator
from ckptguard.evaluate.weights import WeightDifference
from ckptguard.files import read_exactly
from ckptguard.pipeline import work
from ckptguard.pipeline.certificate import Certificate, certificate_of
from ckptguard.pipeline.inputs import open_checkpoint
from ckptguard.pipeline.reader import Reader
from ckptguard.pipeline.reports import Report
from ckptguard.pipeline.restore import from_stored
from ckptguard.pipeline.shard import Shard, open_set
from ckptguard.pipeline.units import group_source_bytes, stored_group_bytes
from ckptguard.plan import Part

VARIANTS = ("clean", "unprotected", "decoded", "guarded", "estimated")
CHUNK_BYTES = 8 << 20

Bytes = npt.NDArray[np.uint8]


@dataclass
class Verification:
    """What verify found.

    Attributes:
        report: of decoding, with range guards and posterior restorers where they are used.
        weights: tensor -> variant (`unprotected`, `decoded`, `guarded` where guards are used, `estimated` where
            restorers are) -> differences from the original.
        metrics: variant (`clean` and these) -> metrics of the evaluator; empty without one.
        certificate: what the container says was shown for its masks; None where it says nothing.
    """

    report: Report
    weights: dict[str, dict[str, WeightDifference]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    certificate: Certificate | None = None

    def to_json(self) -> dict[str, Any]:
        """A record for machines; non-finite metrics are given as text."""
        weights = {
            name: {kind: asdict(row) | {"mean_difference": row.mean_difference} for kind, row in rows.items()}
            for name, rows in self.weights.items()
        }
        metrics = {
            kind: {name: value if np.isfinite(value) else str(value) for name, value in values.items()}
            for kind, values in self.metrics.items()
        }
        certificate = None if self.certificate is None else self.certificate.to_json()
        return {"report": self.report.to_json(), "weights": weights, "metrics": metrics, "certificate": certificate}


def verify(
    path: Path | str,
    against: Path | str,
    *,
    evaluator: str | Evaluator | object | None = None,
    framework: str = "pt",
    policy: str = "raw",
    guard: bool = True,
    estimate: bool = True,
    select: str | None = None,
    jobs: int | None = None,
    progress: work.Progress = work.silent,
) -> Verification:
    """Compare a (damaged) container with the checkpoint it was made from, in bits, values and, if asked, metrics.

    Args:
        against: the original checkpoint.
        evaluator: a spec (`file.py:function`, `classification:...`) or an object, as `evaluate.open_session` takes; a
            function gets a state dict of `framework` and returns metrics. It scores the original, which is also the
            clean model it compares with, the payload as read without any decoding, the decoded payload, that with
            range guards where they are used, and with posterior restorers (and guards) where these are.
        framework: `pt` or `np`.
        policy: for elements in uncorrectable codewords, as for `restore`.
        guard, estimate: use the range guards, the posterior restorers of the container, where it has some.
        select: which state dict, where the original is a torch file.

    Raises:
        MismatchError: the container holds other tensors than the original.
    """
    framework_name(framework)
    with open_set(path) as shards, open_checkpoint(Path(against), select) as checkpoint:
        original = _Original(checkpoint)
        readers = {"decoded": Reader(shards, policy, guard=False, estimate=False, jobs=jobs)}
        if guard and any(shard.guards for shard in shards):
            readers["guarded"] = Reader(shards, policy, estimate=False, jobs=jobs)
        if estimate and any(shard.posteriors for shard in shards):
            readers["estimated"] = Reader(shards, policy, guard=guard, jobs=jobs)
        tensors = readers["decoded"].tensors
        original.refuse_other_tensors(tensors)
        specs = {name: TensorSpec(part.dtype, part.shape) for name, part in tensors.items()}
        session = None if evaluator is None else open_session(evaluator, specs, framework=framework, threads=jobs)
        result = Verification(list(readers.values())[-1].report, certificate=certificate_of(shards[0].info))
        for done, name in enumerate(tensors):
            result.weights[name] = _compare(name, shards, readers, original, policy)
            progress("compare", done + 1, len(tensors))
        if session is not None:
            variants = ("clean", "unprotected", *readers)
            for done, variant in enumerate(variants):
                session.load(_Variant(variant, shards, readers, original), reference=variant == "clean")
                result.metrics[variant] = session.metrics()
                progress("evaluate", done + 1, len(variants))
        return result


class _Original:
    """The tensors of the original checkpoint, by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._places: dict[str, tuple[Path, int, TensorInfo]] = {
            tensor.name: (file.path, file.header.data_offset, tensor)
            for file in checkpoint.files
            if file.header is not None
            for tensor in file.header.tensors
        }

    def refuse_other_tensors(self, tensors: Mapping[str, Part]) -> None:
        """Raise MismatchError unless names, dtypes and shapes are the same."""
        only = sorted(set(self._places) ^ set(tensors))
        if only:
            side = "the original" if only[0] in self._places else "the container"
            raise MismatchError(f"{len(only)} tensors are in one of the two only: {only[0]!r} is in {side}")
        for name, part in tensors.items():
            tensor = self._places[name][2]
            if (tensor.dtype, tensor.shape) != (part.dtype, part.shape):
                raise MismatchError(
                    f"{name!r} is {part.dtype.name} {list(part.shape)} in the container and "
                    f"{tensor.dtype.name} {list(tensor.shape)} in the original"
                )

    def read(self, name: str, begin: int, end: int) -> Bytes:
        """Bytes [begin, end) of a tensor; a fresh array."""
        path, data_offset, tensor = self._places[name]
        with path.open("rb") as file:
            return np.frombuffer(read_exactly(file, data_offset + tensor.begin + begin, end - begin), np.uint8).copy()


def _spans(part: Part) -> Iterator[tuple[int, int]]:
    """(begin, end) of stored bytes, on borders of both groups and 64-bit words."""
    group = stored_group_bytes(part) * 8
    step = max(1, CHUNK_BYTES // group) * group
    for begin in range(0, part.stored_bytes, step):
        yield begin, min(begin + step, part.stored_bytes)


def _compare(
    name: str, shards: list[Shard], readers: Mapping[str, Reader], original: _Original, policy: str
) -> dict[str, WeightDifference]:
    shard, index = readers["decoded"].place(name)
    part = shards[shard].plan.parts[index]
    magnitude = float(shards[shard].magnitudes[index])
    representation = representations.make(part.representation)
    rows = {variant: WeightDifference() for variant in ("unprotected", *readers)}
    for begin, end in _spans(part):
        first = group_source_bytes(part, 0, begin)
        source = original.read(name, first, first + group_source_bytes(part, begin, end))
        expected, _ = representation.store(part.dtype, source, magnitude)
        for kind, reader in readers.items():
            stored = reader.stored(shard, index, begin, end)
            if kind == "decoded":
                rows["unprotected"].add_bits(part.selection, expected, stored.read, begin // 8)
                values = from_stored(part, stored.read, begin, magnitude, None)
                rows["unprotected"].add_values(part.dtype, source, values)
            guard = reader.guards(shard).get(index)
            lost = stored.lost_bits if policy == "null" else None
            rows[kind].add_bits(part.selection, expected, stored.decoded, begin // 8)
            rows[kind].add_values(part.dtype, source, from_stored(part, stored.decoded, begin, magnitude, lost, guard))
    return rows


class _Variant(Mapping[str, Bytes]):
    """The tensors of one variant, made when asked for, so that only one is held beside the session's own."""

    def __init__(self, variant: str, shards: list[Shard], readers: Mapping[str, Reader], original: _Original) -> None:
        self._variant, self._shards, self._readers, self._original = variant, shards, readers, original
        self._decoded = readers["decoded"]

    def __len__(self) -> int:
        return len(self._decoded.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded.tensors)

    def __getitem__(self, name: str) -> Bytes:
        shard, index = self._decoded.place(name)
        part = self._shards[shard].plan.parts[index]
        if self._variant == "clean":
            return self._original.read(name, 0, part.bytes)
        if self._variant in self._readers:
            return self._readers[self._variant].elements(name, 0, part.bytes)
        stored = self._decoded.stored(shard, index, 0, part.stored_bytes)
        return from_stored(part, stored.read, 0, float(self._shards[shard].magnitudes[index]), None)
