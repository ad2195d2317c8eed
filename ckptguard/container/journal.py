"""A redo journal: the changes of a repair in place, made durable before the first byte of the target changes.

Layout: magic (8 bytes), identity of the container (u64), then records of offset (u64), length (u64), bytes; the commit
record is offset 2^64 - 1, length 0, followed by the XXH3-64 digest of everything before it. A journal without a right
commit record was never applied and is discarded; one with it is applied, as often as needed (writing the same bytes
again changes nothing), but to the container it was made for only.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard.container.shard_file import write_at
from ckptguard.errors import ContainerError, MismatchError, UsageError
from ckptguard.files import sync_folder

_MAGIC = b"CKGREDO1"
_HEAD = struct.Struct("<8sQ")
_RECORD = struct.Struct("<QQ")
_COMMIT = (1 << 64) - 1
_DIGEST_BYTES = 8
_GAP = 64
_CHUNK = 1 << 20

Bytes = npt.NDArray[np.uint8]


class Journal:
    """The journal of one file, `.NAME.journal` beside it. As a context it removes itself unless it was committed.

    Attributes:
        changes: bytes noted so far.
    """

    def __init__(self, target: Path, identity: int) -> None:
        """`identity` (64 bits) is that of the container `target` belongs to: the digest of its metadata."""
        self.changes = 0
        self._path = journal_path(target)
        self._identity = identity
        self._file: BinaryIO | None = None
        self._digest = xxhash.xxh3_64()
        self._committed = False

    def __enter__(self) -> Journal:
        try:
            self._file = self._path.open("xb")
        except FileExistsError as error:
            raise UsageError(f"{self._path}: is there; another repair of it is under way, wait") from error
        _lock(self._file, self._path)
        self._write(_HEAD.pack(_MAGIC, self._identity))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            if not self._committed:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def add_changes(self, offset: int, stored: Bytes, data: Bytes) -> None:
        """Note the runs of `data` that differ from what is `stored` at `offset`; close runs are joined."""
        changed = np.flatnonzero(stored != data)
        if not len(changed):
            return
        for run in np.split(changed, np.flatnonzero(np.diff(changed) > _GAP) + 1):
            self._add(offset + int(run[0]), data[run[0] : run[-1] + 1])

    def commit(self) -> None:
        """Make the journal durable; from here on the repair will be completed, whatever happens."""
        assert self._file is not None
        self._write(_RECORD.pack(_COMMIT, 0))
        self._file.write(self._digest.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        sync_folder(self._path.parent)
        self._committed = True

    def _add(self, offset: int, data: Bytes) -> None:
        self._write(_RECORD.pack(offset, len(data)))
        self._write(data.tobytes())
        self.changes += len(data)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._digest.update(data)
        self._file.write(data)


def journal_path(target: Path) -> Path:
    """Where the journal of a file lies."""
    return target.with_name(f".{target.name}.journal")


def replay(target: Path, identity: int) -> bool:
    """Apply and remove the committed journal of a file; discard one that was never committed.

    Args:
        identity: of the container that `target` belongs to now.
    Returns:
        whether there was a committed journal.
    Raises:
        UsageError: a repair that is under way holds it.
        MismatchError: the journal was made for another container.
        ContainerError: it reaches beyond the file.
    """
    path = journal_path(target)
    if not path.exists():
        return False
    with path.open("rb") as file:
        _lock(file, path)
        committed = _is_committed(file)
        if committed:
            _apply(path, file, target, identity)
        path.unlink(missing_ok=True)
    sync_folder(path.parent)
    return committed


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold a journal until it is closed; whoever dies lets go of it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(f"{path}: is held; another repair of it is under way, wait") from error


def _is_committed(file: BinaryIO) -> bool:
    left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
    if left < _HEAD.size + _RECORD.size or file.read(len(_MAGIC)) != _MAGIC:
        return False
    digest, tail = xxhash.xxh3_64(), b""
    file.seek(0)
    while left:
        chunk = file.read(min(left, _CHUNK))
        digest.update(chunk)
        tail = (tail + chunk)[-_RECORD.size :]
        left -= len(chunk)
    return file.read() == digest.digest() and tail == _RECORD.pack(_COMMIT, 0)


def _apply(path: Path, file: BinaryIO, target: Path, identity: int) -> None:
    file.seek(0)
    _, found = _HEAD.unpack(file.read(_HEAD.size))
    if found != identity:
        raise MismatchError(
            f"{path}: was left by an interrupted repair of another container than the one now at {target}; remove it, "
            "or put that container back"
        )
    descriptor = os.open(target, os.O_RDWR)
    try:
        for _ in _records(path, file, os.fstat(descriptor).st_size):
            pass
        for offset, data in _records(path, file, os.fstat(descriptor).st_size):
            write_at(descriptor, offset, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _records(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of all records, long ones in chunks."""
    file.seek(_HEAD.size)
    while True:
        head = file.read(_RECORD.size)
        offset, length = _RECORD.unpack(head) if len(head) == _RECORD.size else (0, size + 1)
        if offset == _COMMIT:
            return
        if offset + length > size:
            raise ContainerError(f"{path}: reaches beyond the file it is for; it is damaged, remove it")
        while length:
            chunk = file.read(min(length, _CHUNK))
            if not chunk:
                raise ContainerError(f"{path}: ends inside a record; it is damaged, remove it")
            yield offset, chunk
            offset, length = offset + len(chunk), length - len(chunk)
