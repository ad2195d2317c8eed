"""What a campaign damages: the tensors of a checkpoint or of a container, in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import plan
from ckptguard.checkpoint.folder import OWN_SUFFIX, Checkpoint
from ckptguard.checkpoint.safetensors import parse_header, write_header
from ckptguard.devices import Device
from ckptguard.dtypes import DType
from ckptguard.errors import CheckpointError
from ckptguard.files import read_exactly_into
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline.inputs import open_checkpoint
from ckptguard.pipeline.reader import Reader
from ckptguard.pipeline.shard import Shard, open_set
from ckptguard.pipeline.wanted import POSTERIOR

if TYPE_CHECKING:
    from ckptguard.campaign.variants import Variant

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class SubjectTensor:
    """One tensor.

    Attributes:
        data: raw little-endian bytes, read-only; of a container what an undamaged restore gives.
        representation: how a container stores it; `native` otherwise.
        stored: its stored bytes in that representation, where it is not native.
        magnitude: the scale of that representation.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: Bytes
    representation: str = "native"
    stored: Bytes | None = None
    magnitude: float = 0.0

    @property
    def elements(self) -> int:
        """Words that masks speak of."""
        return self.dtype.words(self.data.size)


@dataclass(frozen=True, eq=False)
class Subject:
    """The tensors that faults meet, and how they are spread over files.

    Attributes:
        name: of the file or folder.
        digest: XXH3-128 over names, dtypes, shapes and bytes of all tensors, in hexadecimal digits.
        tensors: by name.
        shards: names of the tensors of every shard file, in the order of their bytes; codes pool within a shard.
        variant: what a container does with its tensors; None for a checkpoint.
        devices: of the tensors that a container has a device for.
    """

    name: str
    digest: str
    tensors: dict[str, SubjectTensor]
    shards: tuple[tuple[str, ...], ...]
    variant: Variant | None = None
    devices: dict[str, Device] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        tensors: Mapping[str, SubjectTensor],
        shards: Sequence[Sequence[str]] | None = None,
        variant: Variant | None = None,
        devices: Mapping[str, Device] | None = None,
    ) -> Subject:
        """A subject of tensors in memory; without `shards` they all lie in one file, in the order given."""
        digest = xxhash.xxh3_128()
        for key, tensor in sorted(tensors.items()):
            digest.update(f"{key}\0{tensor.dtype.name}\0{list(tensor.shape)}\0{tensor.data.size}\0".encode())
            digest.update(tensor.data.data)
        spread = tuple(map(tuple, shards)) if shards is not None else (tuple(tensors),)
        return cls(name, digest.hexdigest(), dict(tensors), spread, variant, dict(devices or {}))

    def write(self, file: BinaryIO, data: Mapping[str, Bytes], metadata: Mapping[str, str] | None = None) -> None:
        """Write these tensors as one safetensors file, with other bytes than their own.

        Args:
            data: raw little-endian bytes of every tensor, as many as it has.
            metadata: of the header.
        """
        described = ((name, tensor.dtype, tensor.shape) for name, tensor in self.tensors.items())
        header = write_header(described, metadata or {})
        file.write(header)
        for info in parse_header(header[8:], sum(one.size for one in data.values())).tensors:
            file.write(data[info.name].data)

    @classmethod
    def open(cls, path: Path | str, select: str | None = None) -> Subject:
        """Read a checkpoint (safetensors file, folder, torch file) or a container wholly into memory.

        Args:
            select: which state dict of a torch file.
        Raises:
            CheckpointError: nothing to read, two tensors of one name, or a container with damage.
        """
        path = Path(path)
        if path.suffix == OWN_SUFFIX or (path.is_dir() and any(path.glob(f"*{OWN_SUFFIX}"))):
            with open_set(path) as shards:
                return _of_container(path, shards)
        with open_checkpoint(path, select) as checkpoint:
            return _of_checkpoint(path, checkpoint)


def _of_checkpoint(path: Path, checkpoint: Checkpoint) -> Subject:
    tensors: dict[str, SubjectTensor] = {}
    shards = []
    for source in checkpoint.files:
        if source.header is None:
            continue
        with source.path.open("rb") as file:
            for info in source.header.tensors:
                if info.name in tensors:
                    raise CheckpointError(
                        f"{path}: two files hold a tensor named {info.name!r}; a campaign needs names that differ, "
                        "run it on one of the files"
                    )
                data = np.empty(info.end - info.begin, np.uint8)
                read_exactly_into(file, source.header.data_offset + info.begin, data)
                data.setflags(write=False)
                tensors[info.name] = SubjectTensor(info.dtype, info.shape, data)
        shards.append([info.name for info in source.header.tensors])
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors, there is nothing for a campaign to damage")
    return Subject.of(path.name, tensors, shards)


def _of_container(path: Path, shards: Sequence[Shard]) -> Subject:
    reader = Reader(shards, on_error="raw")
    tensors: dict[str, SubjectTensor] = {}
    devices: dict[str, Device] = {}
    for name, part in reader.tensors.items():
        data = reader.elements(name, 0, part.bytes)
        place, index = reader.place(name)
        stored, magnitude = None, float(shards[place].magnitudes[index])
        if part.representation != "native":
            stored = reader.stored(place, index, 0, part.stored_bytes).decoded
            stored.setflags(write=False)
        data.setflags(write=False)
        tensors[name] = SubjectTensor(part.dtype, part.shape, data, part.representation, stored, magnitude)
        record = shards[place].plan.device
        if record is not None:
            devices[name] = Device.from_json(dict(record))
    _refuse_damage(path, reader)
    spread = [[part.name for part in shard.plan.parts if part.kind == plan.TENSOR] for shard in shards]
    return Subject.of(path.name, tensors, [names for names in spread if names], _variant_of(shards), devices)


def _refuse_damage(path: Path, reader: Reader) -> None:
    damaged = [
        tensor.name for tensor in reader.report.tensors if tensor.kind == plan.TENSOR and tensor.state != "exact"
    ]
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise CheckpointError(
            f"{path}: {', '.join(damaged[:5])}{more} cannot be read as written; a campaign starts from undamaged "
            "weights, give it the original or an undamaged copy"
        )


def _variant_of(shards: Sequence[Shard]) -> Variant:
    """What the plans of a container say, rule by tensor."""
    from ckptguard.campaign.guarding import granularity_found
    from ckptguard.campaign.variants import Variant

    parts = [part for shard in shards for part in shard.plan.parts if part.kind == plan.TENSOR]
    rules = tuple(Rule((_exactly(part.name),), part.mask, part.code) for part in parts)
    spoken = {part.code for part in parts if "1" in part.mask} - {"none"}
    specs = {part.representation for part in parts}
    representation: Any = next(iter(specs))
    if len(specs) > 1:
        representation = tuple((_exactly(part.name), part.representation) for part in parts)
    said = {"guard": POSTERIOR} if any(shard.posteriors for shard in shards) else {}
    masks = MaskSet(rules, said) if said or any("1" in part.mask for part in parts) else None
    found = [
        (shard.guards.get(index), part.shape)
        for shard in shards
        for index, part in enumerate(shard.plan.parts)
        if part.kind == plan.TENSOR
    ]
    guard = granularity_found(found)
    return Variant("container", representation, masks, min(spoken) if spoken else "none", guard=guard)


def _exactly(name: str) -> str:
    """A pattern that matches this name only."""
    return re.sub(r"([*?\[])", r"[\1]", name)
