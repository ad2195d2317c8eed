"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ckptguard.errors import CheckpointError, CkptGuardError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: begin to write the dirty pages of the range, do not wait


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Give a binary file, readable and writable, that becomes `path` when the block ends without an exception.

    The bytes go to a hidden temporary file beside the target, reach the disk, and only then take its name. On any
    exception, KeyboardInterrupt included, the temporary is removed and the target is as it was.

    Args:
        path: the target; with `overwrite` it keeps its permissions, and a symbolic link is replaced, not followed.
        overwrite: whether an existing file may be replaced.
    Raises:
        UsageError: the folder does not exist, or the target exists and may not be replaced.
    """
    target = Path(path)
    _check_target(target, overwrite, folder=False)
    temporary = _temporary(target)
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _take_name(temporary, target, overwrite)
        sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder that becomes `path`, with all that was put in, when the block ends without an exception.

    With `overwrite` an existing folder is moved aside first and deleted last. A system cannot exchange two folders in
    one step everywhere, so a crash between the two renames leaves the old one under a hidden name beside the target.

    Raises:
        UsageError: the folder above does not exist, or the target exists and may not be replaced.
    """
    target = Path(path)
    _check_target(target, overwrite, folder=True)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        _check_target(target, overwrite, folder=True)
        _move_folder(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_exactly(file: BinaryIO, offset: int, size: int, error: type[CkptGuardError] = CheckpointError) -> bytes:
    """`size` bytes from `offset` on, never fewer. Threads may share a file of the system: its position is not used.

    Raises:
        error: the file ends before them; the message names the file and how many bytes are missing.
    """
    parts: list[bytes] = []
    missing = size
    while missing > 0:
        part = _read_some(file, offset + size - missing, missing)
        if not part:
            raise error(_truncated(file, offset, size, missing))
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_exactly_into(file: BinaryIO, offset: int, target: npt.NDArray[np.uint8]) -> None:
    """Fill a contiguous array from `offset` of a file of the system on; raises CheckpointError as `read_exactly`."""
    view = target.data
    while view:
        count = os.preadv(file.fileno(), [view], offset + target.size - len(view))
        if not count:
            raise CheckpointError(_truncated(file, offset, target.size, len(view)))
        view = view[count:]


def begin_writeback(descriptor: int, offset: int, size: int) -> None:
    """Let the system begin to bring written bytes to the disk, so that a later fsync finds little left to wait for.

    Linux only, elsewhere nothing is done. It promises nothing: what fails shows in the fsync.
    """
    call = _sync_file_range()
    if call is not None:
        call(descriptor, offset, size, _SYNC_FILE_RANGE_WRITE)


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The function of the C library, None where it has none."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


def _truncated(file: BinaryIO, offset: int, size: int, missing: int) -> str:
    name = getattr(file, "name", "the file")
    return (
        f"{name}: ends at byte {offset + size - missing}, {missing} bytes before the end of what was expected "
        f"({size} bytes from byte {offset} on); the file is truncated, get it again or from a backup"
    )


def _read_some(file: BinaryIO, offset: int, size: int) -> bytes:
    try:
        descriptor = file.fileno()
    except (AttributeError, OSError):  # a file in memory
        file.seek(offset)
        return file.read(size)
    return os.pread(descriptor, size, offset)


def refuse_overlap(target: Path, inputs: Iterable[Path], advice: str = "choose another name") -> None:
    """Raise UsageError if writing `target` would replace one of the inputs, or a folder that one lies in."""
    place = target.resolve()
    for path in inputs:
        found = path.resolve()
        if found == place:
            raise UsageError(f"{target}: is read, too, and inputs are never changed; {advice}")
        if found.is_relative_to(place):
            raise UsageError(f"{target}: holds {path}, which is read, and would be replaced as a whole; {advice}")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp{secrets.token_hex(4)}")


def _check_target(target: Path, overwrite: bool, folder: bool) -> None:
    if not target.name:
        raise UsageError(f"{target}: has no name that could be written; name a {'folder' if folder else 'file'}")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: the folder {target.parent} does not exist; create it first")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UsageError(f"{target}: exists already; choose another name, or ask to replace it (--force)")
    if target.is_dir() != folder:
        found, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise UsageError(f"{target}: is {found} and cannot be replaced by {wanted}; choose another name")


def _take_name(temporary: Path, target: Path, overwrite: bool) -> None:
    """Rename; without `overwrite` by a hard link where there are some, as only that refuses a name taken meanwhile."""
    if overwrite:
        if target.is_file():
            shutil.copymode(target, temporary)
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        _check_target(target, overwrite, folder=False)
    except OSError:
        _check_target(target, overwrite, folder=False)
        temporary.replace(target)
    else:
        temporary.unlink()


def _move_folder(temporary: Path, target: Path) -> None:
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    aside = _temporary(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Make durable which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
