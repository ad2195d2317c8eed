"""Where compiled code is kept when the usual places cannot be written to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ckptguard.kernels import spare_cache_folder

PACKAGE = Path(__file__).parent.parent / "ckptguard"


def test_the_usual_places_are_used_where_one_can_be_written_to(tmp_path: Path) -> None:
    for usable in ("package", "cache"):
        assert (
            spare_cache_folder(tmp_path / "package", tmp_path / "cache", tmp_path, lambda p, u=usable: u in str(p))
            is None
        )


def test_a_private_folder_takes_their_place(tmp_path: Path) -> None:
    folder = spare_cache_folder(tmp_path / "package", tmp_path / "cache", tmp_path, lambda _: False)
    assert folder is not None
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert spare_cache_folder(tmp_path / "package", tmp_path / "cache", tmp_path, lambda _: False) == folder


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    first = spare_cache_folder(tmp_path / "package", tmp_path / "cache", tmp_path, lambda _: False)
    assert first is not None
    first.chmod(0o777)
    other = spare_cache_folder(tmp_path / "package", tmp_path / "cache", tmp_path, lambda _: False)
    assert other is not None
    assert other != first
    other.rmdir()


def test_kernels_run_from_a_package_without_any_cache_folder(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "ckptguard", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ckptguard" / "kernels" / "__pycache__").write_bytes(b"")  # a file: no folder can be made here
    (tmp_path / "home").write_bytes(b"")
    (tmp_path / "temporary").mkdir()
    code = "from ckptguard.kernels import crc32c; import os; crc32c.tables(); print(os.environ['NUMBA_CACHE_DIR'])"
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path / "temporary"))
