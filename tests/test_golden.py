"""Containers that were written once are read for ever, by the product and by a reader written from the format alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from containers import Anatomy, flip, safetensors_bytes, tensors
from reference_reader import read_set

from ckptguard.pipeline.check import check
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore

GOLDEN = Path(__file__).parent / "vectors" / "golden"
CASES = sorted(case for version in GOLDEN.iterdir() for case in version.iterdir())


def files_of(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def expected_of(case: Path) -> dict[str, bytes]:
    rounded = case / "restored"
    return files_of(rounded if rounded.is_dir() else case / "original")


def container_of(case: Path) -> Path:
    """A set of shard files by its folder, a single one by its name."""
    shards = sorted((case / "container").glob("*.ckg"))
    return shards[0] if len(shards) == 1 else case / "container"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_golden_containers_give_their_originals(case: Path, tmp_path: Path) -> None:
    report = check(container_of(case))
    assert (report.verdict, report.exact) == ("intact", True)
    restore(container_of(case), tmp_path / "out")
    expected = expected_of(case)
    found = (
        files_of(tmp_path / "out")
        if (tmp_path / "out").is_dir()
        else {next(iter(expected)): (tmp_path / "out").read_bytes()}
    )
    assert found == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_a_reader_written_from_the_format_alone_agrees_with_every_byte(case: Path) -> None:
    files = files_of(case / "container")
    shards = {name: data for name, data in files.items() if name.endswith(".ckg")}
    assert read_set(shards, files) == expected_of(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_golden_containers_are_read_after_damage_of_their_metadata(case: Path, tmp_path: Path) -> None:
    shutil.copytree(case / "container", tmp_path / "container")
    for shard in sorted((tmp_path / "container").glob("*.ckg")):
        data = shard.read_bytes()
        shard.write_bytes(flip(data[:4096], 1e-2, 1) + data[4096:])
    worn = tmp_path / "container"
    shards = sorted(worn.glob("*.ckg"))
    assert check(shards[0] if len(shards) == 1 else worn).verdict in ("correctable", "intact")


@pytest.mark.parametrize(
    ("code", "bits", "representation", "count"),
    [
        ("secded:72,64", 1, "native", 90_000),
        ("crc", 32, "native", 70_000),
        ("bch:63,45", 1, "native", 150_000),
        ("bch:1023,513", 1, "native", 300_000),
        ("secded:39,32", 1, "fixed:2", 2_100_000),
        ("bch:255,191,outer=4", 1, "native", 120_000),
        ("none", 9, "native", 70_000),
    ],
)
def test_containers_of_several_units_are_as_the_format_says(
    code: str, bits: int, representation: str, count: int, tmp_path: Path
) -> None:
    content = tensors(3, a=("F32", (37,)), b=("F32", (count,)), c=("F32", (1001,)), d=("F16", (15,)))
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(content))
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", code=code, bits=bits, representation=representation)
    restore(tmp_path / "m.ckg", tmp_path / "out")
    streams = Anatomy.of((tmp_path / "m.ckg").read_bytes()).record("PLAN")["streams"]
    assert any(stream["words"] > 512 * stream["unit_tiles"] for stream in streams)
    found = read_set({"m.ckg": (tmp_path / "m.ckg").read_bytes()}, {})
    assert found == {"m.safetensors": (tmp_path / "out").read_bytes()}


def test_golden_vectors_are_small_and_of_every_kind() -> None:
    sizes = [file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()]
    assert max(sizes) < 20_000
    assert np.sum(sizes) < 600_000
    assert {case.name.partition("-")[0] for case in CASES} == {
        *("none", "crc", "secded", "bch", "rules", "fixed", "sidecar", "devices", "folder", "guard", "restorer")
    }
