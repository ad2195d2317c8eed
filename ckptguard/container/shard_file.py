"""Reading and writing one shard file, whatever has happened to it."""

from __future__ import annotations

import mmap
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard.container.armour import CODEWORD_BYTES, MESSAGE_BYTES, armour, plain_message, unarmour
from ckptguard.container.superblock import Superblock, looks_like_superblock
from ckptguard.errors import ContainerError, MetadataLostError
from ckptguard.files import begin_writeback

SUFFIX = ".ckg"
_MAX_METADATA_BYTES = 1 << 31
_LONGEST_LOSS = 16
_LARGE = 1 << 20  # from so many bytes on writing them to the disk begins at once
_MAX_VECTORS = 512  # buffers per call; the system takes at least 1024

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MetadataDamage:
    """What had to be done to read the metadata, and what was wrong with its stored copies.

    Attributes:
        head_superblock, tail_superblock: whether each superblock could be read.
        flipped_bits: stored bits of superblocks and metadata copies that differ from what was written.
        stored_bits: of all of them.
    """

    head_superblock: bool
    tail_superblock: bool
    flipped_bits: int
    stored_bits: int


@dataclass(frozen=True)
class ShardFile:
    """An open shard file. Reads are positional, so any number of threads may share it.

    Attributes:
        path: of the shard file.
        payload_path: of the file the payload lies in; `path` itself unless it lies beside.
        superblock: as decoded.
        metadata: as decoded; its digest agrees with the superblock.
        missing_front: bytes the file lacks at its beginning (negative: foreign bytes that precede it).
        size: bytes the shard file really has.
        payload_size: bytes its payload file really has.
        head_superblock: whether the first superblock could be read.
    """

    path: Path
    payload_path: Path
    superblock: Superblock
    metadata: bytes
    missing_front: int
    size: int
    payload_size: int
    head_superblock: bool
    _descriptor: int
    _payload_descriptor: int
    _closed: list[bool] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> ShardFile:
        """Open a shard file and decode its metadata.

        Raises:
            ContainerError: the file is no container, is far too short, or is of an unknown version.
            MetadataLostError: it is one, but no copy of its metadata can be decoded.
        """
        descriptor, payload_descriptor = _open(path), -1
        try:
            size = os.fstat(descriptor).st_size
            superblock, from_head = _find_superblock(path, descriptor, size)
            missing_front = 0 if from_head else superblock.file_bytes - size
            _check_sizes(path, superblock, size)
            metadata = _read_metadata(path, descriptor, superblock, missing_front)
            payload_path, payload_descriptor, payload_size = path, descriptor, size
            if superblock.beside:
                payload_path = payload_beside(path)
                payload_descriptor = _open_payload(path, payload_path)
                payload_size = os.fstat(payload_descriptor).st_size
                _check_payload_size(path, superblock, payload_size)
        except BaseException:
            os.close(descriptor)
            if payload_descriptor not in (-1, descriptor):
                os.close(payload_descriptor)
            raise
        return cls(
            path,
            payload_path,
            superblock,
            metadata,
            missing_front,
            size,
            payload_size,
            from_head,
            descriptor,
            payload_descriptor,
        )

    def close(self) -> None:
        """Close the file; further reads fail."""
        if self._closed:
            return
        self._closed.append(True)
        os.close(self._descriptor)
        if self._payload_descriptor != self._descriptor:
            os.close(self._payload_descriptor)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def missing_bytes(self) -> int:
        """Bytes of shard and payload file that are not there (0 = whole)."""
        missing = max(0, self.superblock.file_bytes - self.size)
        if self.superblock.beside:
            missing += max(0, self.superblock.payload_bytes - self.payload_size)
        return missing

    @property
    def foreign_bytes(self) -> int:
        """Bytes beyond what the container says it has."""
        foreign = max(0, self.size - self.superblock.file_bytes)
        if self.superblock.beside:
            foreign += max(0, self.payload_size - self.superblock.payload_bytes)
        return foreign

    def read_payload(self, offset: int, size: int) -> Bytes:
        """(size,) bytes of the payload; bytes that the file lacks read as zero."""
        shift = 0 if self.superblock.beside else self.missing_front
        return _read(self._payload_descriptor, self.superblock.payload_offset + offset - shift, size)

    def read_payload_into(self, offset: int, targets: Sequence[Bytes]) -> None:
        """Fill contiguous arrays, one after the other, with payload from `offset` on; no copy is made on the way."""
        _read_into(self._payload_descriptor, self.payload_position(offset), targets)

    def map_payload(self) -> Bytes:
        """The file that the payload lies in, from its first byte to the payload's last, in private memory.

        Pages are read when they are touched; what is written to them never reaches the file. The map lives as long as
        what refers to it.

        Raises:
            ContainerError: the system does not map this file.
        """
        end = min(self.payload_position(self.superblock.payload_bytes), self.payload_size)
        if end <= 0:
            return np.zeros(0, np.uint8)
        try:
            return np.frombuffer(mmap.mmap(self._payload_descriptor, end, access=mmap.ACCESS_COPY), np.uint8)
        except (OSError, ValueError) as error:
            raise ContainerError(
                f"{self.payload_path}: cannot be mapped: {getattr(error, 'strerror', None) or error}; load it with "
                'backend="pread"'
            ) from error

    def read_parity(self, offset: int, size: int) -> Bytes:
        """(size,) bytes of the parity region; bytes that the file lacks read as zero."""
        return _read(self._descriptor, self.superblock.parity_offset + offset - self.missing_front, size)

    def read(self, position: int, size: int) -> Bytes:
        """(size,) bytes of the shard file as it is; bytes that it lacks read as zero."""
        return _read(self._descriptor, position, size)

    def payload_position(self, offset: int) -> int:
        """Where a payload byte really lies in `payload_path`; negative where the file lacks it."""
        return self.superblock.payload_offset + offset - (0 if self.superblock.beside else self.missing_front)

    def metadata_images(self) -> Iterator[tuple[int, bytes]]:
        """(position in the file, bytes that belong there) of superblocks and metadata copies, as they should be."""
        block = armour(self.superblock.pack())
        coded = armour(self.metadata)
        for offset, image in (
            (0, block),
            (CODEWORD_BYTES, coded),
            (self.superblock.tail_offset, coded),
            (self.superblock.file_bytes - CODEWORD_BYTES, block),
        ):
            yield offset - self.missing_front, image

    def gap_images(self) -> Iterator[tuple[int, bytes]]:
        """(position in the file, zeros) of the gaps between the regions."""
        block = self.superblock
        ends = [(CODEWORD_BYTES + block.metadata_stored, block.parity_offset if block.beside else block.payload_offset)]
        if not block.beside:
            ends.append((block.payload_offset + block.payload_bytes, block.parity_offset))
        ends.append((block.parity_offset + block.parity_bytes, block.tail_offset))
        for begin, end in ends:
            if begin < end:
                yield begin - self.missing_front, bytes(end - begin)

    def metadata_damage(self) -> MetadataDamage:
        """Compare the stored superblocks and metadata copies, bit by bit, with what should be there."""
        flipped = stored = 0
        for position, image in self.metadata_images():
            read = _read(self._descriptor, position, len(image))
            flipped += int(np.bitwise_count(read ^ np.frombuffer(image, np.uint8)).sum())
            stored += 8 * len(image)
        tail = _read(self._descriptor, self.superblock.file_bytes - CODEWORD_BYTES - self.missing_front, CODEWORD_BYTES)
        try:
            readable = _decode_superblock(tail.tobytes()) == self.superblock
        except ContainerError:
            readable = False
        return MetadataDamage(self.head_superblock, readable, flipped, stored)


class ShardWriter:
    """Writes one shard file into an open, empty file: payload and parity in any order, then the metadata."""

    def __init__(self, descriptor: int, superblock: Superblock) -> None:
        self._descriptor = descriptor
        self._superblock = superblock
        os.ftruncate(descriptor, superblock.file_bytes)

    def write_payload(self, offset: int, data: bytes | Bytes) -> None:
        """Put bytes of the payload in place. Thread-safe."""
        write_at(self._descriptor, self._superblock.payload_offset + offset, data, early=True)

    def read_payload(self, offset: int, size: int) -> Bytes:
        """(size,) bytes of the payload as written so far. Thread-safe."""
        return _read(self._descriptor, self._superblock.payload_offset + offset, size)

    def write_parity(self, offset: int, data: bytes | Bytes) -> None:
        """Put bytes of the parity region in place. Thread-safe."""
        write_at(self._descriptor, self._superblock.parity_offset + offset, data)

    def finish(self, superblock: Superblock, metadata: bytes) -> None:
        """Write both copies of the metadata and both superblocks; sizes must be those announced."""
        if superblock.file_bytes != self._superblock.file_bytes or len(metadata) != superblock.metadata_bytes:
            raise ContainerError("the sizes announced when the shard file was begun have changed")
        block, coded = armour(superblock.pack()), armour(metadata)
        write_at(self._descriptor, 0, block)
        write_at(self._descriptor, CODEWORD_BYTES, coded)
        write_at(self._descriptor, superblock.tail_offset, coded)
        write_at(self._descriptor, superblock.file_bytes - CODEWORD_BYTES, block)


def payload_beside(sidecar: Path) -> Path:
    """The payload file of a sidecar: its own name without `.ckg`."""
    if sidecar.suffix != SUFFIX:
        raise ContainerError(f"{sidecar}: a sidecar is named like its payload file plus {SUFFIX}")
    return sidecar.with_suffix("")


def write_at(descriptor: int, offset: int, data: bytes | Bytes, *, early: bool = False) -> None:
    """Write all of `data` at `offset`; if `early`, what is large starts on its way to the disk at once."""
    view, position = (data.data if isinstance(data, np.ndarray) else memoryview(data)).cast("B"), offset
    size = len(view)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written
    if early and size >= _LARGE:
        begin_writeback(descriptor, offset, size)


def _open(path: Path) -> int:
    """A descriptor to read from; only of a regular file (others have no size, and a pipe would block)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ContainerError(f"{path}: there is no such file; check the name") from error
    except (OSError, ValueError) as error:
        raise ContainerError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    raise ContainerError(f"{path}: is {what}, a file was expected")


def _open_payload(path: Path, payload_path: Path) -> int:
    try:
        return _open(payload_path)
    except ContainerError as error:
        raise ContainerError(f"{error}; {path} protects it and must stand beside it") from error


def _read(descriptor: int, position: int, size: int) -> Bytes:
    """(size,) bytes from `position`; whatever lies outside the file reads as zero."""
    data = np.empty(size, np.uint8)
    _read_into(descriptor, position, [data])
    return data


def _read_into(descriptor: int, position: int, targets: Sequence[Bytes]) -> None:
    """Fill the targets from `position` on; whatever lies outside the file becomes zero."""
    views = deque(target.data for target in targets if target.size)
    while views and position < 0:
        before = min(-position, len(views[0]))
        np.frombuffer(views[0], np.uint8)[:before] = 0
        _advance(views, before)
        position += before
    while views:
        count = os.preadv(descriptor, list(islice(views, _MAX_VECTORS)), position)
        if count == 0:
            break
        _advance(views, count)
        position += count
    for view in views:
        np.frombuffer(view, np.uint8)[:] = 0


def _advance(views: deque[memoryview], count: int) -> None:
    """Drop `count` bytes from the front."""
    while views and count >= len(views[0]):
        count -= len(views.popleft())
    if count:
        views[0] = views[0][count:]


def _decode_superblock(stored: bytes) -> Superblock | None:
    if len(stored) != CODEWORD_BYTES:
        return None
    superblock = Superblock.unpack(plain_message(stored, MESSAGE_BYTES))
    if superblock is None:
        decoded = unarmour(stored)
        if decoded.flips[0] >= 0:
            superblock = Superblock.unpack(decoded.message[0].tobytes())
    return superblock


def _find_superblock(path: Path, descriptor: int, size: int) -> tuple[Superblock, bool]:
    """The superblock and whether it was the first one."""
    if size < 2 * CODEWORD_BYTES:
        raise ContainerError(
            f"{path}: {size} bytes are no container (the smallest has {2 * CODEWORD_BYTES}); "
            "is it empty, truncated or another file?"
        )
    head, tail = (_read(descriptor, place, CODEWORD_BYTES).tobytes() for place in (0, size - CODEWORD_BYTES))
    try:
        if (superblock := _decode_superblock(head)) is not None:
            return superblock, True
        if (superblock := _decode_superblock(tail)) is not None:
            return superblock, False
    except ContainerError as error:
        raise ContainerError(f"{path}: {error}") from error
    if looks_like_superblock(head) or looks_like_superblock(tail):
        raise MetadataLostError(f"{path}: both superblocks are damaged beyond repair; nothing can be located")
    beside = path.with_name(path.name + SUFFIX)
    advice = f"name {beside}, which protects it" if beside.exists() else "`ckptguard protect` makes one"
    raise ContainerError(f"{path}: no ckptguard container (no superblock at either end); {advice}")


def _check_sizes(path: Path, superblock: Superblock, size: int) -> None:
    """Refuse declared sizes that the file cannot mean, before anything is allocated."""
    if superblock.metadata_bytes > _MAX_METADATA_BYTES or superblock.metadata_stored > size:
        raise ContainerError(
            f"{path}: declares {superblock.metadata_bytes} bytes of metadata, which do not fit a file of {size} bytes; "
            "it is cut off, get it again or from a backup"
        )
    if superblock.file_bytes > _LONGEST_LOSS * size:
        raise ContainerError(
            f"{path}: declares {superblock.file_bytes} bytes but has {size}; so little is left that it is not read, "
            "get it again"
        )


def _check_payload_size(path: Path, superblock: Superblock, size: int) -> None:
    if superblock.payload_bytes > _LONGEST_LOSS * size:
        raise ContainerError(
            f"{path}: declares a payload of {superblock.payload_bytes} bytes beside it, which has {size}; so little is "
            "left that it is not read, get the file again"
        )


def _read_metadata(path: Path, descriptor: int, superblock: Superblock, missing_front: int) -> bytes:
    """Decode the metadata from whatever is left of its two copies, codeword by codeword."""
    stored_size, size = superblock.metadata_stored, superblock.metadata_bytes
    copies: list[bytes] = []
    for offset in (CODEWORD_BYTES, superblock.tail_offset):
        copies.append(_read(descriptor, offset - missing_front, stored_size).tobytes())
        if _matches(metadata := plain_message(copies[-1], size), superblock):
            return metadata
    decoded = [unarmour(stored) for stored in copies]
    for one in decoded:
        if _matches(metadata := one.message.tobytes()[:size], superblock):
            return metadata
    first, second = decoded
    for one, other in ((first, second), (second, first)):
        merged = np.where(((one.flips < 0) & (other.flips >= 0))[:, None], other.message, one.message)
        if _matches(metadata := merged.tobytes()[:size], superblock):
            return metadata
    lost = [int((one.flips < 0).sum()) for one in decoded]
    raise MetadataLostError(
        f"{path}: of {len(first.flips)} metadata codewords {lost[0]} are lost in the first copy and {lost[1]} in the "
        "second, and together they do not agree with their digest; the container cannot be read, get it from a backup"
    )


def _matches(metadata: bytes, superblock: Superblock) -> bool:
    return xxhash.xxh3_64_intdigest(metadata) == superblock.metadata_digest
