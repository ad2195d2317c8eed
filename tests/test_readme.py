"""The README's session and its Python are run, and print what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parent.parent
TRAINED = re.compile(r"trained|^ *clean|^ *corrupted|without it|accuracy")
"""Lines whose numbers come from training, which may differ a little between machines."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def steps(session: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a console session."""
    found = re.split(r"^\$ (?=ckptguard|echo)(.*)\n", session, flags=re.M)
    return list(zip(found[1::2], found[2::2], strict=True))


def told(text: str) -> list[str]:
    """Lines to compare: without trailing blanks, trained numbers left out."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return [re.sub(r" *[0-9][0-9.,]*", " #", line) if TRAINED.search(line) else line for line in lines]


def run(command: str, folder: Path, status: int) -> tuple[str, int]:
    """What a command of the session prints, and its exit status."""
    if command == "echo $?":
        return f"{status}\n", 0
    words = shlex.split(command, comments=True)
    assert words[0] == "ckptguard"
    done = subprocess.run(
        [sys.executable, "-m", "ckptguard", *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr, done.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session takes place."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def session(folder: Path) -> list[tuple[str, str, str]]:
    """(command, what the README says, what is printed) for all sessions, one after the other in one folder."""
    result, status = [], 0
    for block in blocks("console"):
        for command, expected in drop_demo(steps(block)):
            found, status = run(command, folder, status)
            result.append((command, expected, found))
    return result


def drop_demo(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The demonstration shows commands while it runs them itself: they belong to what it prints."""
    if not found or not found[0][0].startswith("ckptguard demo"):
        return found
    shown = "".join(f"$ {command}\n{text}" for command, text in found[1:])
    return [(found[0][0], found[0][1] + shown)]


def test_the_session_prints_what_the_readme_says(session: list[tuple[str, str, str]]) -> None:
    assert len(session) >= 5
    for command, expected, found in session:
        assert told(found) == told(expected), command


def test_the_python_of_the_readme_runs(session: list[tuple[str, str, str]], folder: Path) -> None:
    assert session
    (code,) = blocks("python")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, env=environment, check=True)


def test_every_file_that_is_linked_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"(?:`|^    )make ([a-z-]+)", (ROOT / name).read_text(encoding="utf-8"), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), (name, target)
