"""The tutorial is run where the checkpoint and the images it speaks of are at hand (../shared beside the project)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from sessions import ROOT, blocks, run, steps

import ckptguard

DATA = ROOT.parent / "shared" / "data"
NEEDED = ("resnet20-12fca82f.th", "cifar10-jpeg-test.npz")

pytestmark = pytest.mark.skipif(
    not all((DATA / name).exists() for name in NEEDED), reason="../shared/data with ResNet-20 and CIFAR-10 is absent"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tutorial takes place, with its files under the names it uses."""
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("tutorial")
    shutil.copy(DATA / NEEDED[0], folder / "resnet20.th")
    (folder / "cifar10-test.npz").symlink_to(DATA / NEEDED[1])
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def without_accuracy(text: str) -> list[str]:
    """Lines before the measured accuracy; torch may round differently on another machine."""
    lines = []
    for line in text.strip().splitlines():
        if re.match(r" *(top1|\.\.\.)", line):
            break
        lines.append(line.rstrip())
    return lines


def test_the_tutorial_prints_what_it_says(folder: Path) -> None:
    status, commands = 0, 0
    environment = {"CIFAR10_NPZ": "cifar10-test.npz"}
    for block in blocks("docs/tutorial.md", "console"):
        for command, expected in steps(block):
            found, status = run(command, folder, status, environment)
            if "--quiet" not in command:
                shown = without_accuracy(expected)
                assert without_accuracy(found)[: len(shown)] == shown, command
            commands += 1
    assert commands > 10
    assert (folder / "back.safetensors").read_bytes() == (folder / "resnet20.safetensors").read_bytes()


def test_accuracy_is_lost_without_decoding_and_kept_with_it(folder: Path) -> None:
    ckptguard.protect(folder / "resnet20.th", folder / "again.ckg", bits=9)
    ckptguard.corrupt(folder / "again.ckg", folder / "again-worn.ckg", seed=3, channel="bsc:1e-2")
    command = (
        "ckptguard verify again-worn.ckg --against resnet20.th --eval examples/resnet20_cifar10.py:accuracy --json"
    )
    text, status = run(command, folder, 0, {"CIFAR10_NPZ": "cifar10-test.npz", "CIFAR10_COUNT": "1000"})
    metrics = json.loads(text)["metrics"]
    assert status == 0
    assert metrics["clean"]["top1"] > 79
    assert metrics["unprotected"]["top1"] < 20
    assert abs(metrics["decoded"]["top1"] - metrics["clean"]["top1"]) < 1.5
