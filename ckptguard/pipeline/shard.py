"""An open shard with its plan and digests, and the sets that shards form."""

from __future__ import annotations

import contextlib
import reprlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard import __version__, plan
from ckptguard.container import sections
from ckptguard.container.sections import Section
from ckptguard.container.shard_file import SUFFIX, ShardFile
from ckptguard.container.superblock import Superblock
from ckptguard.errors import CkptGuardError, ContainerError, MismatchError
from ckptguard.guards import TensorGuard
from ckptguard.pipeline import guarding, posteriors
from ckptguard.pipeline.posteriors import Posterior
from ckptguard.plan import ShardPlan
from ckptguard.plan.columns import read_plan
from ckptguard.representations.base import Losses

KNOWN_SECTIONS = {
    **dict.fromkeys(("INFO", "PLAN", "HEAD", "DGST", "SCAL", "LOSS"), 0),
    guarding.TAG: 0,
    posteriors.TAG: 0,
}
_LOSS = struct.Struct("<QQQd")


@dataclass(frozen=True)
class Digests:
    """XXH3-64 digests of what was written.

    Attributes:
        raw: (pieces,) of a piece's stored bytes.
        protected: (pieces,) of its words with the unprotected bits cleared; the judge after decoding.
        parity: (units with parity,) of a unit's parity.
    """

    raw: npt.NDArray[np.uint64]
    protected: npt.NDArray[np.uint64]
    parity: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls, shard: ShardPlan) -> Digests:
        """Room for the digests of a shard."""
        return cls(
            np.zeros(shard.pieces, np.uint64),
            np.zeros(shard.pieces, np.uint64),
            np.zeros(shard.parity_digests, np.uint64),
        )

    def to_bytes(self) -> bytes:
        """Raw, protected, parity, one after the other, little endian."""
        return b"".join(array.astype("<u8").tobytes() for array in (self.raw, self.protected, self.parity))

    @classmethod
    def from_bytes(cls, data: bytes, shard: ShardPlan) -> Digests:
        """Inverse of `to_bytes`."""
        counts = (shard.pieces, shard.pieces, shard.parity_digests)
        if len(data) != 8 * sum(counts):
            raise ContainerError(f"the metadata has {len(data)} bytes of digests, the plan needs {8 * sum(counts)}")
        values = np.frombuffer(data, "<u8").astype(np.uint64)
        return cls(*(part.copy() for part in np.split(values, np.cumsum(counts)[:-1])))


@dataclass(frozen=True)
class Shard:
    """An open shard: bytes, plan, digests.

    Attributes:
        file: the bytes.
        plan: what lies where.
        info: the record common to the set: shard names, settings, provenance.
        digests: of what was written.
        magnitudes: (parts,) scale of each part, for representations that need one.
        losses: of each part stored in a coarser representation, by part index.
        sections: those that only damage needs; they are read then.
    """

    file: ShardFile
    plan: ShardPlan
    info: dict[str, Any]
    digests: Digests
    magnitudes: npt.NDArray[np.float64]
    losses: dict[int, Losses]
    sections: dict[str, Section]

    @cached_property
    def guards(self) -> dict[int, TensorGuard]:
        """Range guards, by part index. Raises ContainerError where they do not fit the plan."""
        with _told_of(self.file.path):
            return guarding.read(self.sections.get(guarding.TAG), self.plan)

    @cached_property
    def posteriors(self) -> dict[int, Posterior]:
        """What restorers are made of, by part index. Raises ContainerError where it does not fit the plan."""
        with _told_of(self.file.path):
            return posteriors.read(self.sections.get(posteriors.TAG), self.plan)

    def read_whole(self) -> None:
        """Read what else only damage needs. Raises ContainerError as that would."""
        _ = self.guards, self.posteriors

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Open a shard file and read its metadata; see `ShardFile.open` for what it raises."""
        file = ShardFile.open(path)
        try:
            with _told_of(path):
                return cls._interpret(file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _interpret(cls, file: ShardFile) -> Shard:
        found = sections.unpack(file.metadata, KNOWN_SECTIONS)
        for tag in ("INFO", "PLAN", "HEAD", "DGST"):
            if tag not in found:
                raise ContainerError(f"the metadata has no section {tag!r}")
        record, info = read_plan(found["PLAN"]), sections.from_json(found["INFO"])
        superblock = file.superblock
        if not isinstance(record, dict):
            raise ContainerError("the metadata's section 'PLAN' is not the record it should be")
        _check_info(info, superblock)
        headers = _split_headers(found["HEAD"].data, record)
        shard = plan.from_json(file.path.name, record, headers, superblock.payload_bytes, superblock.beside)
        if shard.parity_bytes != superblock.parity_bytes:
            raise ContainerError(
                f"the superblock states {superblock.parity_bytes} bytes of parity, the plan {shard.parity_bytes}"
            )
        digests = Digests.from_bytes(found["DGST"].data, shard)
        scales, losses = _read_scales(found.get("SCAL"), shard), _read_losses(found.get("LOSS"))
        later = {tag: found[tag] for tag in (guarding.TAG, posteriors.TAG) if tag in found}
        return cls(file, shard, info, digests, scales, losses, later)

    def close(self) -> None:
        """Close the files."""
        self.file.close()


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Errors of the metadata's content say which file it is of, and what to do."""
    try:
        yield
    except CkptGuardError as error:
        advice = "" if ";" in str(error) else "; flipped bits do not do this, get the container from where it was made"
        where = "" if str(path) in str(error) else f"{path}: "
        raise type(error)(f"{where}{error}{advice}") from error


def pack_metadata(
    info: dict[str, Any],
    shard: ShardPlan,
    digests: Digests,
    magnitudes: npt.NDArray[np.float64],
    losses: dict[int, Losses],
    guards: dict[int, TensorGuard],
    restorers: dict[int, Posterior],
) -> bytes:
    """The metadata of a shard. Plan, guards and restorers decide its size, so that room can be left for it before."""
    parts = [
        Section("INFO", sections.to_json(info), compressed=True),
        Section("PLAN", sections.to_json(shard.to_json()), compressed=True),
        Section("HEAD", b"".join(source.header for source in shard.sources), compressed=True),
        Section("DGST", digests.to_bytes()),
    ]
    coarse = [index for index, part in enumerate(shard.parts) if part.representation != "native"]
    if coarse:
        parts.append(Section("SCAL", magnitudes.astype("<f8").tobytes()))
        records = b"".join(_pack_loss(index, losses.get(index, Losses())) for index in coarse)
        parts.append(Section("LOSS", records, optional=True))
    count = len(shard.parts)
    return sections.pack(parts + guarding.section(guards, count) + posteriors.section(restorers, count))


def _pack_loss(index: int, loss: Losses) -> bytes:
    return _LOSS.pack(index, loss.rounded, loss.clipped, loss.max_error)


def _check_info(info: Any, superblock: Superblock) -> None:
    """Raise ContainerError unless INFO is a record that fits the superblock."""
    if (
        not isinstance(info, dict)
        or not isinstance(info.get("shards"), list)
        or not isinstance(info.get("settings", {}), dict)
        or not isinstance(info.get("folder"), bool)
    ):
        raise ContainerError("the metadata's section 'INFO' is not the record it should be")
    names = [_safe_name(name) for name in info["shards"]]
    if len(set(names)) < len(names) or len(names) != superblock.shards or superblock.shard >= superblock.shards:
        raise ContainerError(
            f"the superblock says shard {superblock.shard} of {superblock.shards}, the metadata names {len(names)} "
            f"shard files ({len(set(names))} different ones)"
        )


def _read_scales(section: Section | None, shard: ShardPlan) -> npt.NDArray[np.float64]:
    coarse = [part.representation != "native" for part in shard.parts]
    if section is None and not any(coarse):
        return np.zeros(len(coarse))
    data = section.data if section else b""
    scales = np.frombuffer(data, "<f8") if len(data) == 8 * len(coarse) else np.full(1, np.nan)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ContainerError("the metadata's scales are not one finite number of at least 0 for every part")
    return scales.astype(np.float64)


def _read_losses(section: Section | None) -> dict[int, Losses]:
    if section is None:
        return {}
    if len(section.data) % _LOSS.size:
        raise ContainerError("the metadata's record of rounding losses is cut short")
    records = _LOSS.iter_unpack(section.data)
    return {index: Losses(rounded, clipped, max_error) for index, rounded, clipped, max_error in records}


def _split_headers(data: bytes, record: dict[str, Any]) -> list[bytes]:
    headers, offset = [], 0
    sources = record.get("sources")
    for item in sources if isinstance(sources, list) else [None]:
        size = item.get("header") if isinstance(item, dict) else None
        if type(size) is not int or not 0 <= size <= len(data) - offset:
            raise ContainerError("the metadata's copies of the safetensors headers do not fit its sources")
        headers.append(data[offset : offset + size])
        offset += size
    if offset != len(data):
        raise ContainerError("the metadata's copies of the safetensors headers do not fit its sources")
    return headers


def make_info(shards: Sequence[str], folder: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """The record common to all shards of a set; `folder`: the checkpoint was one."""
    return {
        "created_by": f"ckptguard {__version__}",
        "shards": list(shards),
        "folder": folder,
        "settings": settings,
    }


@contextlib.contextmanager
def open_set(path: Path | str, *, whole: bool = True) -> Iterator[list[Shard]]:
    """Open all shards of a container: a file, a folder of shard files, or any one file of a set.

    Args:
        whole: read all of the metadata now; otherwise what only damage needs is read, and refused, when it is needed.

    Raises:
        MismatchError: shards are missing or belong to another set.
        MetadataLostError, ContainerError: as `ShardFile.open`.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        first = _any_shard(path, stack)
        folder = first.file.path.parent
        names = first.info["shards"]
        shards = []
        for index, name in enumerate(names):
            member = folder / _safe_name(name)
            if index == first.file.superblock.shard:
                shards.append(first)
                continue
            if not member.exists():
                raise MismatchError(
                    f"{folder}: the set of {len(names)} shards lacks {name!r}; put that file there, under that name"
                )
            shard = Shard.open(member)
            stack.callback(shard.close)
            if shard.file.superblock.set_id != first.file.superblock.set_id or shard.file.superblock.shard != index:
                raise MismatchError(
                    f"{member}: belongs to another set of shards than {first.file.path.name}, or to another place in "
                    "it; put together the files that one `ckptguard protect` wrote, under the names it gave them"
                )
            shards.append(shard)
        _check_set(shards)
        if whole:
            for shard in shards:
                shard.read_whole()
        yield shards


def set_files(shards: Sequence[Shard]) -> list[Path]:
    """Every file of a set, payloads beside included."""
    return [path for shard in shards for path in dict.fromkeys((shard.file.path, shard.file.payload_path))]


def _check_set(shards: Sequence[Shard]) -> None:
    """Raise ContainerError unless the shards make up one set that holds its checkpoint wholly and once."""
    where = shards[0].file.path if len(shards) == 1 else shards[0].file.path.parent
    digest = xxhash.xxh3_64()
    for shard in shards:
        digest.update(shard.file.metadata)
    if digest.intdigest() != shards[0].file.superblock.set_id:
        raise ContainerError(f"{where}: the metadata of the shards is not that of their set; get the set again")
    try:
        plan.check_whole([shard.plan for shard in shards])
    except ValueError as error:
        raise ContainerError(f"{where}: {error}; get the set again") from error


def _safe_name(name: Any) -> str:
    try:
        plan.check_source_names([name])
        if "/" in name:
            raise ValueError
    except (ValueError, TypeError, AttributeError) as error:
        raise ContainerError(
            f"the metadata names a shard file {reprlib.repr(name)}, which is no plain file name"
        ) from error
    return str(name)


def _any_shard(path: Path, stack: contextlib.ExitStack) -> Shard:
    """The shard at `path`, or the first readable one in a folder."""
    if not path.is_dir():
        shard = Shard.open(path)
        stack.callback(shard.close)
        return shard
    failure: CkptGuardError | None = None
    for candidate in sorted(path.glob(f"*{SUFFIX}")):
        try:
            shard = Shard.open(candidate)
        except CkptGuardError as error:
            failure = failure or error
            continue
        stack.callback(shard.close)
        return shard
    raise failure or ContainerError(f"{path}: the folder holds no shard files (*{SUFFIX})")
