"""A redo journal: the changes of a repair in place, made durable before the first byte of the target changes.

Layout: magic (8 bytes), then records of offset (u64), length (u64), bytes; the commit record is offset 2^64 - 1, length
0, followed by the XXH3-64 digest of everything before it. A journal without a right commit record was never applied and
is discarded; one with it is applied, as often as needed (writing the same bytes again changes nothing).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard.container.shard_file import write_at
from ckptguard.errors import ContainerError

_MAGIC = b"CKGREDO0"
_RECORD = struct.Struct("<QQ")
_COMMIT = (1 << 64) - 1
_GAP = 64

Bytes = npt.NDArray[np.uint8]


class Journal:
    """The journal of one file, `.NAME.journal` beside it. As a context it removes itself unless it was committed."""

    PATTERN = ".*.journal"

    def __init__(self, target: Path) -> None:
        self._path = journal_path(target)
        self._file: BinaryIO | None = None
        self._digest = xxhash.xxh3_64()
        self._committed = False

    def __enter__(self) -> Journal:
        self._file = self._path.open("wb")
        self._write(_MAGIC)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if not self._committed:
            self._path.unlink(missing_ok=True)

    @staticmethod
    def target_name(name: str) -> str:
        """The name of the file that a journal of this name belongs to."""
        return name.removeprefix(".").removesuffix(".journal")

    def add(self, offset: int, data: Bytes) -> None:
        """Note that `data` belongs at `offset`."""
        self._write(_RECORD.pack(offset, len(data)))
        self._write(data.tobytes())

    def add_changes(self, offset: int, stored: Bytes, data: Bytes) -> None:
        """Note the runs of `data` that differ from what is `stored` at `offset`; close runs are joined."""
        changed = np.flatnonzero(stored != data)
        if not len(changed):
            return
        for run in np.split(changed, np.flatnonzero(np.diff(changed) > _GAP) + 1):
            self.add(offset + int(run[0]), data[run[0] : run[-1] + 1])

    def commit(self) -> None:
        """Make the journal durable; from here on the repair will be completed, whatever happens."""
        assert self._file is not None
        self._write(_RECORD.pack(_COMMIT, 0))
        self._file.write(self._digest.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        _sync_folder(self._path.parent)
        self._committed = True

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._digest.update(data)
        self._file.write(data)


def journal_path(target: Path) -> Path:
    """Where the journal of a file lies."""
    return target.with_name(f".{target.name}.journal")


def replay(target: Path) -> bool:
    """Apply and remove the committed journal of a file; discard one that was never committed.

    Returns:
        whether there was a committed journal.
    """
    path = journal_path(target)
    if not path.exists():
        return False
    committed = _is_committed(path)
    if committed:
        _apply(path, target)
    path.unlink()
    _sync_folder(path.parent)
    return committed


def _is_committed(path: Path) -> bool:
    size = path.stat().st_size
    tail = _RECORD.size + 8
    if size < len(_MAGIC) + tail:
        return False
    digest, left = xxhash.xxh3_64(), size - 8
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
        file.seek(0)
        while left:
            chunk = file.read(min(left, 1 << 20))
            digest.update(chunk)
            left -= len(chunk)
        stored = file.read(8)
        file.seek(size - tail)
        return stored == digest.digest() and file.read(_RECORD.size) == _RECORD.pack(_COMMIT, 0)


def _apply(path: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_RDWR)
    try:
        size = os.fstat(descriptor).st_size
        with path.open("rb") as file:
            file.seek(len(_MAGIC))
            while True:
                offset, length = _RECORD.unpack(file.read(_RECORD.size))
                if offset == _COMMIT:
                    break
                if offset + length > size:
                    raise ContainerError(f"{path}: reaches beyond {target}; it belongs to another file")
                write_at(descriptor, offset, file.read(length))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
