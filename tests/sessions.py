"""Console sessions in documents: taken apart, and run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document (relative to the project) in a language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def steps(session: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a console session."""
    found = re.split(r"^\$ (?=ckptguard|echo)(.*)\n", session, flags=re.M)
    return list(zip(found[1::2], found[2::2], strict=True))


def run(command: str, folder: Path, status: int, environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """What a command of a session prints in a folder, and its exit status; `status` is that of the one before."""
    if command == "echo $?":
        return f"{status}\n", 0
    words = shlex.split(command, comments=True)
    assert words[0] == "ckptguard"
    done = subprocess.run(
        [sys.executable, "-m", "ckptguard", *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr, done.returncode
