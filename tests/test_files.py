"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptguard.errors import CheckpointError, ContainerError, UsageError
from ckptguard.files import atomic_folder, atomic_writer, read_exactly


def test_a_file_appears_with_its_bytes_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with atomic_writer(target) as file:
        file.write(b"xyz")
        file.seek(0)
        assert file.read(1) == b"x"
        assert not target.exists()
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.startswith(".a.bin.tmp")
    assert target.read_bytes() == b"xyz"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_after_any_exception_the_target_is_as_it_was(
    error: type[BaseException], before: bytes | None, tmp_path: Path
) -> None:
    target = tmp_path / "a.bin"
    if before is not None:
        target.write_bytes(before)

    def write_and_fail() -> None:
        with atomic_writer(target, overwrite=True) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert (target.read_bytes() if target.exists() else None) == before
    assert len(list(tmp_path.iterdir())) == (before is not None)


def test_a_failing_flush_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), atomic_writer(tmp_path / "a") as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_when_asked_and_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with pytest.raises(UsageError, match="exists already"), atomic_writer(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"
    with atomic_writer(target, overwrite=True) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile_is_not_replaced(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    target = tmp_path / "a.bin"

    def write_too_late() -> None:
        with atomic_writer(target) as file:
            file.write(b"ours")
            target.write_bytes(b"theirs")

    with pytest.raises(UsageError, match="exists already"):
        write_too_late()
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]
    target.unlink()
    with atomic_writer(target) as file:
        file.write(b"ours")
    assert target.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [target]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists already"), atomic_writer(tmp_path / "a"):
        pass


def test_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="does not exist"), atomic_writer(tmp_path / "absent" / "a"):
        pass
    with pytest.raises(UsageError, match="does not exist"), atomic_writer(tmp_path / "file" / "a"):
        pass
    with pytest.raises(UsageError, match="is a folder"), atomic_writer(tmp_path, overwrite=True):
        pass
    with pytest.raises(UsageError, match="is a file"), atomic_folder(tmp_path / "file", overwrite=True):
        pass
    with pytest.raises(UsageError, match="has no name"), atomic_writer("/"):
        pass


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        assert folder.name.startswith(".model.tmp")
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"

    def write_and_fail() -> None:
        with atomic_folder(tmp_path / "other") as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(UsageError, match="exists already"), atomic_folder(target):
        pass
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("1")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("1")
    rename = Path.rename

    def failing(self: Path, new: Path) -> Path:
        if new == target and (self / "new").exists():
            raise OSError(errno.EIO, "failed")
        return rename(self, new)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="failed"), atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("1")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


class OneByOne(io.BytesIO):
    """Gives one byte per read, as pipes and network files may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 1))


def test_exactly_the_asked_bytes_are_read() -> None:
    assert read_exactly(io.BytesIO(b"abcdef"), 2, 3) == b"cde"
    assert read_exactly(OneByOne(b"abcdef"), 2, 3) == b"cde"
    assert read_exactly(io.BytesIO(b"abcdef"), 9, 0) == b""


def test_a_truncated_file_is_told_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    with path.open("rb") as file, pytest.raises(CheckpointError, match="short: ends at byte 3, 2 bytes before"):
        read_exactly(file, 1, 4)
    with pytest.raises(ContainerError, match="the file: ends"):
        read_exactly(io.BytesIO(b""), 0, 1, ContainerError)


def test_threads_that_share_a_file_read_what_they_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(number.to_bytes(8, "little") for number in range(1 << 14)))
    with path.open("rb") as file, ThreadPoolExecutor(4) as pool:
        numbers = [number * 7919 % (1 << 14) for number in range(8000)]
        read = list(pool.map(lambda number: read_exactly(file, 8 * number, 8), numbers))
    assert [int.from_bytes(data, "little") for data in read] == numbers
