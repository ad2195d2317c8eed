"""From checkpoint to container, through damage, and back: every protected bit exact, or its tensor reported lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from containers import (
    ELEMENT_BITS,
    MIXED,
    WORD_BITS,
    Anatomy,
    Bytes,
    distance,
    flip,
    flip_bits,
    mixed,
    protected_mask,
    read_safetensors,
    safetensors_bytes,
    state_of,
    tensors,
)

from ckptguard.container import shard_file
from ckptguard.container.journal import journal_path
from ckptguard.errors import CheckpointError, CkptGuardError, MismatchError, UncorrectableError, UsageError
from ckptguard.pipeline.check import check
from ckptguard.pipeline.corrupt import corrupt
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.repair import repair
from ckptguard.pipeline.reports import Report
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.shard import Shard, open_set
from ckptguard.pipeline.verify import verify

SECDED = "secded:72,64"
TWO_DEVICES = """
[[device]]
name = "worn"
tensors = ["weight*", "half", "brain"]
channel = "bsc:1e-3"

[[device]]
name = "fresh"
tensors = ["*"]
channel = "bsc:1e-6"
"""


@dataclass(frozen=True)
class Case:
    """One way to protect a checkpoint and to damage it."""

    code: str
    channel: str = "bsc:1e-3"
    representation: str = "native"
    masks: tuple[tuple[str, str], ...] = (("*", "all"),)
    sidecar: bool = False
    devices: bool = False
    folder: bool = False

    def __str__(self) -> str:
        words = [self.code, self.channel, self.representation, self.masks[0][1]]
        words += [name for name in ("sidecar", "devices", "folder") if getattr(self, name)]
        return " ".join(words)

    def mask(self, name: str, dtype: str) -> str:
        """The mask of a tensor, resolved here and not by the product."""
        bits = WORD_BITS[dtype]
        if self.representation != "native" and dtype in ("F64", "F32", "F16", "BF16"):
            bits = int(self.representation.partition(":")[2].partition(",")[0])
        rule = next((mask for pattern, mask in self.masks if fnmatchcase(name, pattern)), "none")
        top = {"all": bits, "none": 0}[rule] if ":" not in rule else min(bits, int(rule[4:].partition(",")[0]))
        return "1" * top + "0" * (bits - top)


TOP = (("*", "top:9,or-all"),)
MIXTURE = (("weight*", "top:9"), ("half", "all"), ("brain", "top:3"), ("*", "none"))

CASES = [
    Case(SECDED),
    Case(SECDED, masks=TOP),
    Case(SECDED, masks=MIXTURE, sidecar=True),
    Case(SECDED, masks=MIXTURE, devices=True),
    Case(SECDED, masks=TOP, folder=True),
    Case(SECDED, folder=True, sidecar=True),
    Case(SECDED, folder=True, devices=True, masks=MIXTURE),
    Case("secded:39,32", representation="fixed:8"),
    Case("secded:64,57", "bsc:1e-4", "fixed:5,sign-magnitude", (("*", "top:2"),), devices=True),
    Case("secded:32,26", "burst:1e-4,0.05,0.3", masks=TOP),
    Case("crc", "bsc:1e-5"),
    Case("crc", "bsc:1e-5", "fixed:11", (("*", "top:4"),)),
    Case("crc", "asymmetric:1e-5,1e-4", masks=TOP, sidecar=True),
    Case("none", "bsc:1e-4"),
    Case("none", "bsc:1e-2", masks=(("*", "none"),), folder=True),
    Case("bch:1023,513", "bsc:1e-2", masks=TOP),
    Case("bch:1023,513", "bsc:3e-2", masks=TOP, sidecar=True),
    Case("bch:8191,6722", "bsc:1e-2", masks=TOP),
    Case("bch:8191,6722", "bsc:1e-2", "fixed:6", (("*", "top:3"),), folder=True),
    Case("bch:8191,6722", "erasure:4096,0.002", masks=MIXTURE, devices=True, folder=True),
]


def content(seed: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return tensors(seed, **MIXED, **{"weight.large": ("F32", (400, 300))})


def write_checkpoint(folder: Path, case: Case) -> Path:
    """A file, or a folder with two shards, their index, a configuration and a tokenizer."""
    if not case.folder:
        (folder / "m.safetensors").write_bytes(safetensors_bytes(content(1), format="pt"))
        return folder / "m.safetensors"
    model = folder / "model"
    model.mkdir()
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        renamed = {f"{key}.{number}": value for key, value in content(number).items()}
        (model / name).write_bytes(safetensors_bytes(renamed))
        weight_map |= dict.fromkeys(renamed, name)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (model / "config.json").write_text('{"architectures": ["Any"]}')
    (model / "tokenizer.txt").write_bytes(np.random.default_rng(5).bytes(20_001))
    return model


def make(case: Case, folder: Path) -> tuple[Path, Path]:
    """(checkpoint, container)"""
    source = write_checkpoint(folder, case)
    rules = [{"tensors": pattern, "mask": mask} for pattern, mask in case.masks]
    if case.masks[-1][0] != "*":
        rules.append({"tensors": "*", "mask": "none"})
    (folder / "sp.json").write_text(json.dumps({"format": "ckptguard-masks", "version": 1, "rules": rules}))
    (folder / "devices.toml").write_text(TWO_DEVICES)
    container = None if case.sidecar else folder / "m.ckg"
    made = protect(
        source,
        container,
        masks=folder / "sp.json",
        code=case.code,
        representation=case.representation,
        devices=folder / "devices.toml" if case.devices else None,
        sidecar=case.sidecar,
        jobs=2,
    )
    return source, made.path


def files_of(path: Path) -> dict[str, bytes]:
    """name -> bytes of a file (under the name '') or of a folder, temporary and hidden files included."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def all_tensors(data: dict[str, bytes]) -> dict[str, bytes]:
    """name -> bytes of all tensors, and of the files that are none."""
    found: dict[str, bytes] = {}
    for name, each in data.items():
        found |= read_safetensors(each) if name in ("",) or name.endswith(".safetensors") else {name: each}
    return found


def dtypes() -> dict[str, str]:
    layout = {**MIXED, "weight.large": ("F32", (400, 300))}
    return {name + suffix: dtype for name, (dtype, _) in layout.items() for suffix in ("", ".1", ".2")}


def is_wrong(case: Case, name: str, original: bytes, restored: bytes) -> bool:
    """Whether a protected bit of a native tensor, or any of a file, differs from the original."""
    difference = np.frombuffer(original, np.uint8) ^ np.frombuffer(restored, np.uint8)
    dtype = dtypes().get(name)
    if dtype is not None:
        mask = case.mask(name, dtype)
        if "1" not in mask:
            return False
        difference &= protected_mask(mask, dtype, len(original))
    return bool(difference.any())


def stored_protected(case: Case, shards: list[Shard]) -> dict[str, Bytes]:
    """name -> stored bytes of the tensors that are not native, with the unprotected planes cleared."""
    found = {}
    for shard in shards:
        for part in shard.plan.parts:
            if part.representation == "native" or not part.stored_bytes:
                continue
            mask = case.mask(part.name, part.dtype.name)
            planes = shard.file.read_payload(part.stored_offset, part.stored_bytes).reshape(-1, len(mask), 8)
            found[part.name] = planes[:, [place for place, bit in enumerate(mask) if bit == "1"]].copy()
    return found


def states(report: Report) -> dict[str, str]:
    return {tensor.name: tensor.state for tensor in report.tensors if tensor.kind != "header"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[Path, Path, Path]]:
    """(folder, checkpoint, container) of a case, made once."""
    made: dict[Case, tuple[Path, Path, Path]] = {}

    def get(case: Case) -> tuple[Path, Path, Path]:
        if case not in made:
            folder = tmp_path_factory.mktemp("case")
            made[case] = (folder, *make(case, folder))
        return made[case]

    return get


Workshop = Callable[[Case], tuple[Path, Path, Path]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_protected_comes_back_as_it_was(case: Case, workshop: Workshop, tmp_path: Path) -> None:
    _, source, container = workshop(case)
    before = state_of(source)
    report = check(container)
    assert (report.verdict, report.status, report.exact) == ("intact", 0, True)
    assert restore(container, tmp_path / "out").exact
    if case.representation == "native":
        originals = {name: data for name, data in files_of(source).items() if not name.endswith(".ckg")}
        assert files_of(tmp_path / "out") == originals
    summary = inspect(container)
    masks = {tensor.name: tensor.mask for tensor in summary.tensors if tensor.kind == "tensor"}
    assert masks == {name: case.mask(name, dtypes()[name]) for name in masks}
    assert state_of(source) == before


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_after_damage_every_protected_bit_is_exact_or_its_tensor_is_reported_lost(
    case: Case, seed: int, workshop: Workshop, tmp_path: Path
) -> None:
    folder, source, container = workshop(case)
    suffix = "" if container.is_dir() else ".ckg"
    worn, healed = tmp_path / f"worn{suffix}", tmp_path / f"healed{suffix}"
    before = state_of(folder)
    flips = corrupt(container, worn, seed=seed, channel=None if case.devices and seed == 1 else case.channel)
    assert state_of(folder) == before
    stored = {row.name: (row.rises + row.falls, row.bits) for row in flips}
    place, place_before = (worn, container) if worn.is_dir() else (tmp_path, container.parent)
    after_files = [file for file in sorted(place.iterdir()) if file.is_file()]
    for file in after_files:
        if worn.is_dir():
            twin = place_before / file.name
        else:
            twin = container if file.suffix == ".ckg" else container.with_suffix("")
        assert stored[twin.name] == (distance(file.read_bytes(), twin.read_bytes()), 8 * file.stat().st_size)
    assert len(after_files) == len(flips)

    damaged = state_of(worn)
    report = check(worn)
    restored = restore(worn, tmp_path / "out")
    assert states(restored) == states(report)
    assert state_of(worn) == damaged
    assert report.status == {"intact": 0, "protected-intact": 0, "correctable": 10, "uncorrectable": 11}[report.verdict]
    originals = {name: data for name, data in files_of(source).items() if not name.endswith(".ckg")}
    before_bytes, after_bytes = all_tensors(originals), all_tensors(files_of(tmp_path / "out"))
    assert set(before_bytes) == set(after_bytes)
    lost = {name for name, state in states(report).items() if state == "lost"}
    coarse = {name for name in before_bytes if case.representation != "native" and dtypes().get(name) in FLOATS}
    wrong = {name for name in set(before_bytes) - coarse if is_wrong(case, name, before_bytes[name], after_bytes[name])}
    assert wrong == lost - coarse
    for name, state in states(report).items():
        if state == "exact" and name not in coarse:
            assert before_bytes[name] == after_bytes[name]

    repaired = repair(worn, healed)
    assert states(repaired) == states(report)
    with open_set(container) as whole, open_set(healed) as again:
        right, found = stored_protected(case, whole), stored_protected(case, again)
    assert set(right) >= coarse - {name for name in coarse if not before_bytes[name]}
    assert {name for name in right if (right[name] != found[name]).any()} == lost & coarse
    final = check(healed)
    assert states(final) == states(report)
    assert final.verdict in (("uncorrectable",) if lost else ("intact", "protected-intact"))
    assert all(shard.metadata is not None and not shard.metadata.flipped_bits for shard in final.shards)

    if worn.is_dir():
        shutil.copytree(worn, tmp_path / "place")
        repair(tmp_path / "place", in_place=True)
        assert files_of(tmp_path / "place") == files_of(healed)
    else:
        repair(worn, in_place=True)
        assert worn.read_bytes() == healed.read_bytes()
        if case.sidecar:
            assert worn.with_suffix("").read_bytes() == healed.with_suffix("").read_bytes()
    assert not list(tmp_path.rglob(".*"))


FLOATS = ("F64", "F32", "F16", "BF16")


# Determinism ---------------------------------------------------------------------------------------------------------

VARIED = [CASES[1], CASES[6], CASES[8], CASES[10], CASES[15]]


@pytest.mark.parametrize("case", VARIED, ids=str)
def test_the_bytes_of_a_container_do_not_depend_on_threads_or_time(case: Case, tmp_path: Path) -> None:
    found = []
    source = write_checkpoint(tmp_path, case)
    (tmp_path / "devices.toml").write_text(TWO_DEVICES)
    for run, jobs in enumerate((1, 4, 4)):
        protect(
            source,
            tmp_path / f"c{run}",
            bits=3,
            code=case.code,
            representation=case.representation,
            devices=tmp_path / "devices.toml" if case.devices else None,
            jobs=jobs,
        )
        found.append(files_of(tmp_path / f"c{run}"))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("channel", ["bsc:1e-3", "asymmetric:1e-4,1e-3", "burst:1e-4,0.05,0.3", "erasure:4096,0.1"])
def test_the_same_seed_gives_the_same_flips_for_any_number_of_threads(
    channel: str, workshop: Workshop, tmp_path: Path
) -> None:
    _, _, container = workshop(CASES[0])
    for run, (seed, jobs) in enumerate(((1, 1), (1, 4), (2, 4))):
        corrupt(container, tmp_path / f"{run}.ckg", seed=seed, channel=channel, jobs=jobs)
    one, same, other = ((tmp_path / f"{run}.ckg").read_bytes() for run in range(3))
    assert one == same
    assert one != other


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[6]], ids=str)
def test_a_channel_without_errors_gives_identical_files(case: Case, workshop: Workshop, tmp_path: Path) -> None:
    _, _, container = workshop(case)
    copy = tmp_path / ("c" if container.is_dir() else "c.ckg")
    flips = corrupt(container, copy, seed=0, channel="bsc:0")
    assert all(row.rises == row.falls == 0 for row in flips)
    if container.is_dir():
        assert files_of(copy) == {name: data for name, data in files_of(container).items() if name.endswith(".ckg")}
    else:
        assert copy.read_bytes() == container.read_bytes()


def test_repair_of_what_is_whole_changes_no_byte(workshop: Workshop, tmp_path: Path) -> None:
    _, _, container = workshop(CASES[1])
    repair(container, tmp_path / "again.ckg")
    assert (tmp_path / "again.ckg").read_bytes() == container.read_bytes()
    shutil.copy(container, tmp_path / "place.ckg")
    before = state_of(tmp_path / "place.ckg")
    repair(tmp_path / "place.ckg", in_place=True)
    assert state_of(tmp_path / "place.ckg") == before


# What the numbers say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [SECDED, "bch:1023,513", "crc"])
def test_corrected_bits_are_those_that_were_flipped(code: str, tmp_path: Path) -> None:
    original = tensors(3, w=("F32", (5000,)), v=("F32", (777,)))
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(original))
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", bits=9, code=code, guard="none")
    clean = (tmp_path / "m.ckg").read_bytes()
    block = Anatomy.of(clean).superblock
    with open_set(tmp_path / "m.ckg") as (shard,):
        (stream,) = [one for one in shard.plan.streams if one.parity_bytes]
        places = {part.name: block.payload_offset + part.stored_offset for part in shard.plan.parts}
        codewords = stream.layout(0).codewords
    generator = np.random.default_rng(4)
    flips = {"w": 1, "v": 1} if code == "crc" else {"w": 3, "v": 2} if code == SECDED else {"w": 60, "v": 40}
    bits, expected = [], {}
    for name, count in flips.items():
        elements = generator.choice(len(original[name][2]) // 4, count, replace=False)
        protected = 8 * (places[name] + 4 * elements) + 31 - generator.integers(0, 9, count)
        unprotected = 8 * (places[name] + 4 * elements) + generator.integers(0, 23, count)
        bits += [*protected.tolist(), *unprotected.tolist()]
        expected[name] = count
    parity = (
        (8 * block.parity_offset + generator.choice(7 * codewords, 3, replace=False)).tolist() if code != "crc" else []
    )
    (tmp_path / "worn.ckg").write_bytes(flip_bits(clean, bits + parity))
    report = check(tmp_path / "worn.ckg")
    assert {tensor.name: tensor.corrected_bits for tensor in report.tensors if tensor.kind == "tensor"} == expected
    row = report.shards[0]
    assert row.corrected_bits == sum(expected.values()) + len(parity)
    assert (row.codewords, row.uncorrectable_codewords, row.miscorrected_units) == (codewords, 0, 0)
    assert 0 < row.corrected_codewords <= row.corrected_bits
    assert row.damaged_parity_units == bool(parity)
    assert {tensor.found for tensor in report.tensors if tensor.kind == "tensor"} == {"lost"}


def test_flipped_bits_of_the_metadata_are_counted(workshop: Workshop, tmp_path: Path) -> None:
    _, _, container = workshop(CASES[0])
    clean = container.read_bytes()
    block = Anatomy.of(clean).superblock
    area = [*range(8 * (128 + block.metadata_stored)), *range(8 * block.tail_offset, 8 * block.file_bytes)]
    bits = np.random.default_rng(1).choice(area, 100, replace=False)
    (tmp_path / "m.ckg").write_bytes(flip_bits(clean, bits))
    report = check(tmp_path / "m.ckg")
    assert report.shards[0].metadata is not None
    assert report.shards[0].metadata.flipped_bits == 100
    assert report.shards[0].metadata.stored_bits == len(area)
    assert (report.verdict, report.exact) == ("correctable", True)
    repair(tmp_path / "m.ckg", in_place=True)
    assert (tmp_path / "m.ckg").read_bytes() == clean


def test_damage_of_the_parity_alone_is_told_and_healed(workshop: Workshop, tmp_path: Path) -> None:
    _, source, container = workshop(CASES[1])
    clean = container.read_bytes()
    block = Anatomy.of(clean).superblock
    area = slice(block.parity_offset, block.parity_offset + block.parity_bytes)
    (tmp_path / "m.ckg").write_bytes(clean[: area.start] + flip(clean[area], 0.5, 1) + clean[area.stop :])
    report = check(tmp_path / "m.ckg")
    with open_set(container) as (shard,):
        units = sum(stream.units for stream in shard.plan.streams if stream.parity_bytes)
    assert report.shards[0].damaged_parity_units == units
    assert (report.verdict, report.exact, report.lost) == ("correctable", True, [])
    restore(tmp_path / "m.ckg", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    repair(tmp_path / "m.ckg", in_place=True)
    assert (tmp_path / "m.ckg").read_bytes() == clean


def test_damage_of_the_payloads_header_alone_is_told_and_healed(workshop: Workshop, tmp_path: Path) -> None:
    for case in (CASES[1], CASES[2]):
        _, source, container = workshop(case)
        shutil.copy(container, tmp_path / "m.ckg")
        shutil.copy(source, tmp_path / "m")
        target = tmp_path / ("m" if case.sidecar else "m.ckg")
        offset = 0 if case.sidecar else Anatomy.of(container.read_bytes()).superblock.payload_offset
        clean = target.read_bytes()
        target.write_bytes(flip_bits(clean, [8 * offset + 3, 8 * offset + 170, 8 * offset + 1003]))
        report = check(tmp_path / "m.ckg")
        (header,) = [tensor for tensor in report.tensors if tensor.kind == "header"]
        assert (header.state, header.corrected_bits) == ("exact", 3)
        assert (report.verdict, report.exact) == ("correctable", True)
        restore(tmp_path / "m.ckg", tmp_path / "out", overwrite=True)
        assert (tmp_path / "out").read_bytes() == source.read_bytes()
        repair(tmp_path / "m.ckg", in_place=True)
        assert target.read_bytes() == clean


@pytest.mark.parametrize("filling", ["zeros", "ones", "noise"])
@pytest.mark.parametrize(("code", "pages", "state"), [("bch:8191,6722", 8, "protected-exact"), (SECDED, 3, "lost")])
def test_lost_pages_are_reported_tensor_by_tensor(
    filling: str, code: str, pages: int, state: str, tmp_path: Path
) -> None:
    """A 4 KiB page costs a codeword at most nine bits under BCH, one under SEC-DED."""
    original = tensors(7, a=("F32", (300_000,)), b=("F32", (200_000,)), c=("F32", (900,)))
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(original))
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", bits=9, code=code)
    clean = (tmp_path / "m.ckg").read_bytes()
    offset = Anatomy.of(clean).superblock.payload_offset + 500_000 // 4096 * 4096
    size = pages * 4096
    loss = {"zeros": bytes(size), "ones": b"\xff" * size, "noise": np.random.default_rng(1).bytes(size)}[filling]
    (tmp_path / "worn.ckg").write_bytes(clean[:offset] + loss + clean[offset + size :])
    report = restore(tmp_path / "worn.ckg", tmp_path / "out")
    assert states(report)["b"] == "exact"
    assert states(report)["c"] == "exact"
    restored = read_safetensors((tmp_path / "out").read_bytes())
    assert (restored["b"], restored["c"]) == (original["b"][2], original["c"][2])
    wrong = np.frombuffer(restored["a"], np.uint8) ^ np.frombuffer(original["a"][2], np.uint8)
    wrong &= protected_mask("1" * 9 + "0" * 23, "F32", len(wrong))
    assert states(report)["a"] == state
    assert wrong.any() == (state == "lost")
    row = next(tensor for tensor in report.tensors if tensor.name == "a")
    assert (row.lost_pieces, row.affected_elements > 0) == ((1, True) if state == "lost" else (0, False))


def test_a_wrong_codeword_does_not_spoil_what_was_read_rightly(tmp_path: Path) -> None:
    """Three flips in one codeword of a small tensor; SEC-DED flips a fourth bit, mostly in its large neighbour."""
    original = tensors(8, large=("I64", (900,)), small=("I64", (100,)))
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(original))
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", code=SECDED)
    clean = (tmp_path / "m.ckg").read_bytes()
    with open_set(tmp_path / "m.ckg") as (shard,):
        part = next(part for part in shard.plan.parts if part.name == "small")
        stream, unit = shard.plan.units_of_part(shard.plan.parts.index(part), 0, 1)[0]
        layout = shard.plan.unit(stream, unit)
        code = shard.plan.streams[stream].code
        chosen = code.cover(np.arange(layout.layout.codewords) == 5, layout.words, 2**64 - 1)
        first = next(piece.first_word for piece in layout.pieces if shard.plan.parts[piece.part].name == "small")
        base = shard.file.superblock.payload_offset + part.stored_offset
    bits = [64 * word + bit for word in range(100) for bit in range(64) if int(chosen[first + word]) >> bit & 1]
    spoiled = 0
    for start in range(0, len(bits) - 2, 1):
        damaged = flip_bits(clean, 8 * base + np.array(bits[start : start + 3]))
        (tmp_path / "worn.ckg").write_bytes(damaged)
        report = restore(tmp_path / "worn.ckg", tmp_path / "out", overwrite=True)
        assert states(report) == {"large": "exact", "small": "lost"}
        assert read_safetensors((tmp_path / "out").read_bytes())["large"] == original["large"][2]
        spoiled += report.shards[0].miscorrected_units
    assert spoiled, "no triple was taken for a single flip; the test shows nothing"


def test_the_evaluator_weights_counts_what_an_independent_comparison_counts(workshop: Workshop, tmp_path: Path) -> None:
    case = CASES[1]
    _, source, container = workshop(case)
    corrupt(container, tmp_path / "worn.ckg", seed=3, channel="bsc:1e-3")
    found = verify(tmp_path / "worn.ckg", source)
    restore(tmp_path / "worn.ckg", tmp_path / "out", guard=False)
    original = read_safetensors(source.read_bytes())
    worn = (tmp_path / "worn.ckg").read_bytes()
    offset = Anatomy.of(container.read_bytes()).superblock.payload_offset
    image = source.read_bytes()
    undecoded = worn[offset : offset + len(image)]
    start = 8 + int.from_bytes(image[:8], "little")
    undecoded_tensors = read_safetensors(image[:start] + undecoded[start:])
    variants = {"unprotected": undecoded_tensors, "decoded": read_safetensors((tmp_path / "out").read_bytes())}
    assert set(found.weights) == set(original)
    for name, rows in found.weights.items():
        dtype = dtypes()[name]
        for kind, after in variants.items():
            a, b = np.frombuffer(original[name], np.uint8), np.frombuffer(after[name], np.uint8)
            mask = case.mask(name, dtype)
            protected = protected_mask(mask, dtype, len(a)) if "1" in mask else np.zeros(len(a), np.uint8)
            row = rows[kind]
            assert row.wrong_protected_bits == np.bitwise_count((a ^ b) & protected).sum()
            assert row.wrong_unprotected_bits == np.bitwise_count((a ^ b) & ~protected).sum()
            if ELEMENT_BITS[dtype] >= 8:
                width = ELEMENT_BITS[dtype] // 8
                assert row.elements == len(a) // width
                assert row.changed_elements == (a != b).reshape(-1, width).any(axis=1).sum()
            if dtype in ("F64", "F32", "F16", "I64"):
                kind_of = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}[dtype]
                with np.errstate(invalid="ignore", over="ignore"):
                    x, y = a.view(kind_of).astype(float), b.view(kind_of).astype(float)
                    finite = np.isfinite(x) & np.isfinite(y)
                    differences = np.abs(x[finite] - y[finite])
                assert row.max_difference == differences.max(initial=0.0)
                assert row.mean_difference == pytest.approx(differences.mean() if len(differences) else 0.0)
                assert row.non_finite == (np.isfinite(x) & ~np.isfinite(y)).sum()
    assert any(rows["decoded"].wrong_unprotected_bits for rows in found.weights.values())


def test_an_evaluator_gets_the_clean_the_unprotected_and_the_decoded_model(workshop: Workshop, tmp_path: Path) -> None:
    _, source, container = workshop(CASES[17])
    corrupt(container, tmp_path / "worn.ckg", seed=3, channel="bsc:1e-2")
    original = np.frombuffer(read_safetensors(source.read_bytes())["weight"], "<f4").reshape(70, 101)

    def evaluate(state: Any) -> dict[str, float]:
        with np.errstate(invalid="ignore", over="ignore"):
            return {"worst": float(np.abs(state["weight"] - original).max()), "names": len(state)}

    with pytest.raises(CkptGuardError):  # numpy has no type for some of the tensors
        verify(tmp_path / "worn.ckg", source, evaluator=evaluate, framework="np")
    plain = tensors(1, weight=("F32", (70, 101)))
    (tmp_path / "p.safetensors").write_bytes(safetensors_bytes(plain))
    original = np.frombuffer(plain["weight"][2], "<f4").reshape(70, 101)
    protect(tmp_path / "p.safetensors", tmp_path / "p.ckg", bits=9)
    corrupt(tmp_path / "p.ckg", tmp_path / "pw.ckg", seed=3, channel="bsc:1e-2")
    metrics = verify(tmp_path / "pw.ckg", tmp_path / "p.safetensors", evaluator=evaluate, framework="np").metrics
    assert metrics["clean"] == {"worst": 0.0, "names": 1.0}
    assert not metrics["unprotected"]["worst"] < 1e3
    assert 0 < metrics["decoded"]["worst"] < 0.5


def test_verify_refuses_another_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    _, _, container = workshop(CASES[0])
    for other in (tensors(1, weight=("F32", (70, 101))), content(1) | tensors(1, weight=("F32", (101, 70)))):
        (tmp_path / "o.safetensors").write_bytes(safetensors_bytes(other))
        with pytest.raises(MismatchError) as caught:
            verify(container, tmp_path / "o.safetensors")
        assert caught.value.exit_status == 13


# Policies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("representation", ["native", "fixed:8"])
def test_policies_keep_or_null_the_elements_of_lost_codewords(representation: str, tmp_path: Path) -> None:
    original = tensors(9, w=("F32", (40_000,)), v=("F32", (64,)))
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(original))
    settings = {"bits": 4, "code": SECDED, "representation": representation, "guard": "none"}
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", **settings)
    restore(tmp_path / "m.ckg", tmp_path / "clean")
    clean = np.frombuffer(read_safetensors((tmp_path / "clean").read_bytes())["w"], "<f4")
    corrupt(tmp_path / "m.ckg", tmp_path / "worn.ckg", seed=1, channel="bsc:1e-3")
    found = {}
    for policy in ("raw", "null"):
        report = restore(tmp_path / "worn.ckg", tmp_path / policy, policy=policy)
        found[policy] = np.frombuffer(read_safetensors((tmp_path / policy).read_bytes())["w"], "<f4")
    row = next(tensor for tensor in report.tensors if tensor.name == "w")
    assert row.state == "lost"
    nulled = found["raw"].view("<u4") != found["null"].view("<u4")
    assert (found["null"][nulled] == 0).all()
    assert 0 < nulled.sum() <= row.affected_elements < 40_000
    mask = np.uint32(0xF0000000)
    if representation == "native":
        wrong = (found["raw"].view("<u4") ^ clean.view("<u4")) & mask != 0
        assert wrong.sum() > (wrong & ~nulled & (found["raw"] != 0)).sum()


def test_strict_writes_nothing_and_says_what_is_lost(workshop: Workshop, tmp_path: Path) -> None:
    _, _, container = workshop(CASES[0])
    (tmp_path / "worn").mkdir()
    worn = tmp_path / "worn" / "w.ckg"
    corrupt(container, worn, seed=1, channel="bsc:1e-2")
    before = state_of(tmp_path)
    for verb in (
        lambda: restore(worn, tmp_path / "out", strict=True),
        lambda: repair(worn, tmp_path / "out.ckg", strict=True),
        lambda: repair(worn, in_place=True, strict=True),
    ):
        with pytest.raises(UncorrectableError, match=r"protected bits are lost in .*nothing was written") as caught:
            verb()
        assert caught.value.exit_status == 11
        assert "weight" in caught.value.report["lost"]  # type: ignore[operator]
        assert state_of(tmp_path) == before
    corrupt(container, tmp_path / "light.ckg", seed=1, channel="bsc:1e-6")
    assert not restore(tmp_path / "light.ckg", tmp_path / "fine", strict=True).lost


@pytest.mark.parametrize("verb", [restore, repair])
def test_an_unknown_policy_lists_the_known_ones(
    verb: Callable[..., object], workshop: Workshop, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="known: raw, null"):
        verb(workshop(CASES[0])[2], tmp_path / "x.ckg", policy="zero")


# Sets ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(workshop: Workshop, tmp_path: Path) -> Path:
    """A copy of a set of three shard files."""
    shutil.copytree(workshop(CASES[4])[2], tmp_path / "set")
    return tmp_path / "set"


def test_any_file_of_a_set_opens_the_whole(sharded: Path) -> None:
    whole = states(check(sharded))
    for member in sorted(sharded.glob("*.ckg")):
        assert states(check(member)) == whole


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_shard_is_named(number: int, sharded: Path) -> None:
    member = sorted(sharded.iterdir())[number]
    member.unlink()
    with pytest.raises(MismatchError, match=f"lacks '{member.name}'") as caught:
        check(sharded)
    assert caught.value.exit_status == 13


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_renamed_shard_is_missed_under_its_name(number: int, sharded: Path) -> None:
    member = sorted(sharded.iterdir())[number]
    member.rename(sharded / "zzz.ckg")
    with pytest.raises(MismatchError, match=f"lacks '{member.name}'"):
        check(sharded)


def test_shards_that_changed_places_are_refused(sharded: Path) -> None:
    first, second, _ = sorted(sharded.glob("*.ckg"))
    first.rename(sharded / "aside")
    second.rename(first)
    (sharded / "aside").rename(second)
    for path in (sharded, first, second):
        with pytest.raises(MismatchError, match="another place"):
            check(path)


def test_a_shard_of_another_set_is_refused(sharded: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, CASES[4])
    protect(source, tmp_path / "other", bits=10, code=SECDED)
    member = sorted(sharded.glob("model*.ckg"))[1]
    shutil.copy(tmp_path / "other" / member.name, member)
    with pytest.raises(MismatchError, match="another set"):
        check(sharded)


def test_a_set_with_one_unreadable_shard_names_it(sharded: Path) -> None:
    member = sorted(sharded.glob("*.ckg"))[1]
    member.write_bytes(bytes(len(member.read_bytes())))
    with pytest.raises(CkptGuardError, match=member.name):
        check(sharded)


# Inputs stay as they are ---------------------------------------------------------------------------------------------


def test_no_verb_replaces_what_it_reads(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(workshop(CASES[4])[0], folder)
    source, container = folder / "model", folder / "m.ckg"
    member = sorted(container.iterdir())[0]
    before = state_of(tmp_path)
    forbidden: list[Callable[[], object]] = [
        lambda: protect(source, source, bits=3, overwrite=True),
        lambda: protect(source, folder, bits=3, overwrite=True),
        lambda: protect(source / "model-00001-of-00002.safetensors", source, bits=3, overwrite=True),
        lambda: restore(container, container, overwrite=True),
        lambda: restore(container, folder, overwrite=True),
        lambda: restore(member, container, overwrite=True),
        lambda: repair(container, container, overwrite=True),
        lambda: repair(member, folder, overwrite=True),
        lambda: corrupt(container, container, seed=1, channel="bsc:1e-3", overwrite=True),
        lambda: corrupt(member, container, seed=1, channel="bsc:1e-3", overwrite=True),
        lambda: corrupt(container, folder, seed=1, channel="bsc:1e-3", overwrite=True),
        lambda: restore(container, tmp_path / "none" / "x"),
        lambda: protect(source, tmp_path / "none" / "x"),
        lambda: repair(container),
        lambda: repair(container, tmp_path / "x", in_place=True),
        lambda: corrupt(container, tmp_path / "x", seed=-1, channel="bsc:1e-3"),
        lambda: corrupt(container, tmp_path / "x", seed=1),
    ]
    for verb in forbidden:
        with pytest.raises(UsageError) as caught:
            verb()
        assert caught.value.exit_status == 2
        assert state_of(tmp_path) == before


def test_an_existing_target_is_not_replaced_unasked(workshop: Workshop, tmp_path: Path) -> None:
    _, source, container = workshop(CASES[0])
    (tmp_path / "x.ckg").write_bytes(b"mine")
    for verb in (
        lambda: protect(source, tmp_path / "x.ckg"),
        lambda: restore(container, tmp_path / "x.ckg"),
        lambda: repair(container, tmp_path / "x.ckg"),
        lambda: corrupt(container, tmp_path / "x.ckg", seed=1, channel="bsc:1e-3"),
    ):
        with pytest.raises(UsageError, match="exists already"):
            verb()
        assert files_of(tmp_path) == {"x.ckg": b"mine"}


@pytest.mark.parametrize("name", ["we\\ird.safetensors", "x" * 240 + ".safetensors"])
def test_a_name_that_could_not_be_restored_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(mixed())
    if len(name) > 200:
        protect(tmp_path / name, tmp_path / "m.ckg", code="none", bits=1)
        restore(tmp_path / "m.ckg", tmp_path / "out")
        return
    with pytest.raises(CheckpointError, match="rename it"):
        protect(tmp_path / name, tmp_path / "m.ckg", code="none", bits=1)
    assert not (tmp_path / "m.ckg").exists()


# Interrupted work ----------------------------------------------------------------------------------------------------

Verb = Callable[[Path], object]


@pytest.fixture(scope="module")
def worn_set(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A damaged set of shard files."""
    target = tmp_path_factory.mktemp("worn") / "worn"
    corrupt(workshop(CASES[4])[2], target, seed=1, channel="bsc:1e-4")
    return target


@pytest.fixture
def verbs(workshop: Workshop, worn_set: Path) -> dict[str, Verb]:
    """Verbs that write, each into a folder it is given."""
    _, source, container = workshop(CASES[4])
    single, alone = workshop(CASES[0])[1:]
    return {
        "protect": lambda to: protect(source, to / "x", code=SECDED, jobs=1),
        "protect a file": lambda to: protect(single, to / "x", code=SECDED, jobs=1),
        "restore": lambda to: restore(worn_set, to / "x", jobs=1),
        "restore a file": lambda to: restore(alone, to / "x", jobs=1),
        "repair": lambda to: repair(worn_set, to / "x", jobs=1),
        "corrupt": lambda to: corrupt(container, to / "x", seed=1, channel="bsc:1e-3", jobs=1),
    }


VERBS = ["protect", "protect a file", "restore", "restore a file", "repair", "corrupt"]


def count_writes(monkeypatch: pytest.MonkeyPatch, fail_at: int, error: type[BaseException]) -> list[int]:
    """Let the write of a number fail, half done; returns the count so far."""
    done = [0]
    pwrite = os.pwrite

    def write(descriptor: int, data: Any, offset: int) -> int:
        done[0] += 1
        if done[0] == fail_at:
            pwrite(descriptor, data[: len(data) // 2], offset)
            raise error("stopped here")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(shard_file.os, "pwrite", write)
    return done


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
def test_interrupted_work_leaves_nothing_behind(
    name: str, error: type[BaseException], verbs: dict[str, Verb], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    with monkeypatch.context() as patch:
        total = count_writes(patch, 0, error)
        verbs[name](tmp_path / "whole")
    for position in sorted({1, 2, total[0] // 2, total[0] - 1, total[0]}):
        target = tmp_path / f"to{position}"
        target.mkdir()
        with monkeypatch.context() as patch:
            count_writes(patch, position, error)
            with pytest.raises(error, match="stopped here"):
                verbs[name](target)
        assert list(target.iterdir()) == []
    verbs[name](target)
    assert files_of(target) == files_of(tmp_path / "whole")


def in_child(work: Callable[[], object]) -> int:
    """Start a process that does the work and ends; its number."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def killed_at(delay: float, work: Callable[[], object]) -> bool:
    """Do the work in another process and kill it after a while; whether it was still at it."""
    child = in_child(work)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def moments(work: Callable[[], object], count: int) -> Iterator[float]:
    """Delays that spread over the time the work takes."""
    started = time.perf_counter()
    os.waitpid(in_child(work), 0)
    duration = time.perf_counter() - started
    generator = np.random.default_rng(1)
    yield from (duration * generator.random(count)).tolist()


@pytest.mark.parametrize("name", VERBS)
def test_killed_work_leaves_no_half_file_under_the_targets_name(
    name: str, verbs: dict[str, Verb], tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    right = None
    for number, delay in enumerate(moments(lambda: verbs[name](tmp_path / "whole"), 8)):
        right = right or files_of(tmp_path / "whole")
        target = tmp_path / f"to{number}"
        target.mkdir()
        killed_at(delay, lambda to=target: verbs[name](to))  # type: ignore[misc]
        found = {file: data for file, data in files_of(target).items() if not file.startswith(".")}
        assert found in ({}, right)
        if not found:
            verbs[name](target)
            assert {file: data for file, data in files_of(target).items() if not file.startswith(".")} == right


def copy_of(worn: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(worn, place)
    return place


def test_a_repair_in_place_that_is_killed_is_completed_by_the_next(
    worn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_of(worn_set, tmp_path / "right")
    repair(place, in_place=True, jobs=1)
    right, lost = files_of(place), check(place).lost
    place = copy_of(worn_set, tmp_path / "place")
    for delay in list(moments(lambda: repair(copy_of(worn_set, tmp_path / "p"), in_place=True, jobs=1), 8)):
        place = copy_of(worn_set, tmp_path / "place")
        killed_at(delay, lambda to=place: repair(to, in_place=True, jobs=1))  # type: ignore[misc]
        assert [tensor.name for tensor in check(place).lost] == [tensor.name for tensor in lost]
        repair(place, in_place=True, jobs=1)
        assert files_of(place) == right


@pytest.mark.parametrize("by_file", [False, True])
def test_a_repair_in_place_that_stops_at_any_write_is_completed_by_the_next(
    by_file: bool, worn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_of(worn_set, tmp_path / "place")
    with monkeypatch.context() as patch:
        total = count_writes(patch, 0, KeyboardInterrupt)
        repair(place, in_place=True, jobs=1)
    right = files_of(place)
    for position in sorted({1, 2, total[0] // 3, total[0] // 2, total[0] - 1, total[0]}):
        copy_of(worn_set, place)
        with monkeypatch.context() as patch:
            count_writes(patch, position, KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                repair(place, in_place=True, jobs=1)
        assert list(place.glob(".*.journal"))
        repair(sorted(place.glob("*.ckg"))[0] if by_file else place, in_place=True, jobs=1)
        assert files_of(place) == right


@pytest.fixture
def journalled(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes, bytes]:
    """(damaged container, its journal, the container as repaired), the journal committed and not applied."""
    path = tmp_path / "w.ckg"
    corrupt(workshop(CASES[0])[2], path, seed=1, channel="bsc:1e-5")
    worn = path.read_bytes()
    with monkeypatch.context() as patch:
        count_writes(patch, 1, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            repair(path, in_place=True)
    journal = journal_path(path).read_bytes()
    repair(path, in_place=True)
    repaired = path.read_bytes()
    assert repaired != worn
    assert not journal_path(path).exists()
    path.write_bytes(worn)
    return path, journal, repaired


def test_a_journal_that_was_cut_or_damaged_is_discarded(journalled: tuple[Path, bytes, bytes]) -> None:
    path, journal, repaired = journalled
    worn = path.read_bytes()
    spoilt = [journal[:length] for length in (0, 1, 8, 16, 40, len(journal) // 2, len(journal) - 9, len(journal) - 1)]
    spoilt += [flip_bits(journal, [bit]) for bit in (0, 70, 200, 8 * len(journal) - 1)]
    for one in (*spoilt, journal + b"x", bytes(len(journal))):
        path.write_bytes(worn)
        journal_path(path).write_bytes(one)
        repair(path, in_place=True)
        assert path.read_bytes() == repaired
        assert not journal_path(path).exists()


def test_a_journal_is_not_applied_to_another_container(
    journalled: tuple[Path, bytes, bytes], workshop: Workshop
) -> None:
    path, journal, _ = journalled
    other = workshop(CASES[1])[2].read_bytes()
    path.write_bytes(other)
    journal_path(path).write_bytes(journal)
    with pytest.raises(MismatchError, match="another container"):
        repair(path, in_place=True)
    assert path.read_bytes() == other


def test_a_second_repair_in_place_at_the_same_time_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "w.ckg"
    shutil.copy(workshop(CASES[0])[2], path)

    def interfere(step: str, done: int, total: int) -> None:
        assert journal_path(path).exists()
        raise_from_second.append(step)
        if len(raise_from_second) == 1:
            with pytest.raises(UsageError, match="another repair"):
                repair(path, in_place=True)

    raise_from_second: list[str] = []
    repair(path, in_place=True, progress=interfere)
    assert raise_from_second


def test_a_file_of_another_size_is_not_repaired_in_place(workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "w.ckg"
    for data in (workshop(CASES[0])[2].read_bytes() + b"x", workshop(CASES[0])[2].read_bytes()[:-5]):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="cannot be repaired in place"):
            repair(path, in_place=True)
        assert path.read_bytes() == data
        repair(path, tmp_path / "h.ckg", overwrite=True)
        assert check(tmp_path / "h.ckg").verdict == "intact"


# Odd checkpoints -------------------------------------------------------------------------------------------------

ODD = {
    "only empty tensors": {"a": ("F32", (0,)), "b": ("F16", (3, 0))},
    "one byte": {"a": ("U8", (1,))},
    "scalars": {"a": ("F64", ()), "b": ("BOOL", ()), "weight": ("F16", ())},
    "less than a word": {"a": ("F4", (2,)), "weight": ("BF16", (3,)), "c": ("C64", (1,))},
}


@pytest.mark.parametrize("layout", ODD)
@pytest.mark.parametrize("code", ["bch:8191,6722", SECDED, "crc", "none"])
@pytest.mark.parametrize("way", ["native", "fixed:3", "devices", "sidecar"])
def test_checkpoints_of_odd_and_no_sizes_make_the_round_trip(layout: str, code: str, way: str, tmp_path: Path) -> None:
    source, container = tmp_path / "m.safetensors", tmp_path / "m.ckg"
    source.write_bytes(safetensors_bytes(tensors(1, **ODD[layout])))
    (tmp_path / "devices.toml").write_text(TWO_DEVICES)
    representation = way if way.startswith("fixed") else "native"
    devices = tmp_path / "devices.toml" if way == "devices" else None
    if way == "sidecar":
        container = protect(source, code=code, sidecar=True).path
    else:
        protect(source, container, code=code, representation=representation, devices=devices)
    assert check(container).verdict == "intact"
    restore(container, tmp_path / "out")
    if representation == "native":
        assert (tmp_path / "out").read_bytes() == source.read_bytes()
    suffix = "" if container.is_dir() else ".ckg"
    corrupt(container, tmp_path / f"worn{suffix}", seed=1, channel="bsc:1e-3")
    report = repair(tmp_path / f"worn{suffix}", in_place=True)
    assert states(check(tmp_path / f"worn{suffix}")) == states(report)
    assert set(verify(tmp_path / f"worn{suffix}", source).weights) == set(ODD[layout])


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes({}))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        protect(tmp_path / "m.safetensors", tmp_path / "m.ckg")


def test_a_journal_that_waits_is_told(journalled: tuple[Path, bytes, bytes]) -> None:
    path, journal, _ = journalled
    assert check(path).notes == []
    journal_path(path).write_bytes(journal)
    (note,) = check(path).notes
    assert journal_path(path).name in note
    assert "--in-place" in note


def test_repair_tells_where_the_policy_null_could_not_be_applied(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    source.write_bytes(safetensors_bytes(tensors(1, a=("F32", (4000,)))))
    protect(source, tmp_path / "m.ckg", code="bch:63,45", representation="fixed:8")
    corrupt(tmp_path / "m.ckg", tmp_path / "worn.ckg", seed=1, channel="bsc:1e-2")
    raw = repair(tmp_path / "worn.ckg", tmp_path / "raw.ckg")
    null = repair(tmp_path / "worn.ckg", tmp_path / "null.ckg", policy="null")
    assert [tensor.name for tensor in null.lost] == ["a"]
    assert (raw.notes, len(null.notes)) == ([], 1)
    assert "restore --policy null" in null.notes[0]
