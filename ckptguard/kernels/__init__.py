"""Compiled kernels: arrays and integers in, status out; nothing is raised, numba is used here only.

numba keeps compiled code in files: beside the modules, else in the user's cache folder. Where neither can be written to
(a package installed read-only, a user without a home), importing a cached function would fail; then a private folder
in the system's temporary one takes their place. NUMBA_CACHE_DIR, where set, is left alone.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def spare_cache_folder(
    package: Path, user_cache: Path, temporary: Path, writable: Callable[[Path], bool]
) -> Path | None:
    """A folder for compiled code, where neither the package's nor the user's can be written to; None otherwise.

    The folder is only taken if it belongs to this user alone: whoever can write there can run code here.
    """
    if writable(package / "__pycache__") or writable(user_cache):
        return None
    owner = os.getuid() if hasattr(os, "getuid") else 0
    folder = temporary / f"ckptguard-kernels-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ckptguard-kernels-"))
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if private and (not hasattr(os, "getuid") or found.st_uid == owner):
        return folder
    return Path(tempfile.mkdtemp(prefix="ckptguard-kernels-"))


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to, or made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _use_spare_cache() -> None:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = spare_cache_folder(Path(__file__).parent, user_cache, Path(tempfile.gettempdir()), _writable)
    if folder is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
        if "numba" in sys.modules:  # it has read its settings already
            sys.modules["numba"].config.CACHE_DIR = str(folder)


_use_spare_cache()
