"""The README's session and its Python are run, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sessions import ROOT, blocks, run, steps

pytest.importorskip("sklearn")

TRAINED = re.compile(r"trained|^ *clean|^ *corrupted|without it|accuracy|^ .* to .* 59 |trials now")
"""Lines whose numbers come from training, which may differ a little between machines, or are times."""


def told(text: str) -> list[str]:
    """Lines to compare: without trailing blanks, trained numbers left out."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return [re.sub(r" *[0-9][0-9.,]*", " #", line) if TRAINED.search(line) else line for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session takes place."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def session(folder: Path) -> list[tuple[str, str, str]]:
    """(command, what the README says, what is printed) for all sessions, one after the other in one folder."""
    result, status = [], 0
    for block in blocks("README.md", "console"):
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
    (code,) = blocks("README.md", "python")
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
