"""A real, messy checkpoint (ResNet-20 for CIFAR, as torch saved it) through protection, damage and back.

Skipped where the folder ../shared/data is not beside the checkout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from containers import distance, flip, protected_mask, read_safetensors, state_of

from ckptguard.container.armour import CODEWORD_BYTES
from ckptguard.container.shard_file import ShardFile
from ckptguard.pipeline.check import check
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.repair import repair
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.shard import open_set

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESNET20 = DATA / "resnet20-12fca82f.th"
MASK = "1" * 9 + "0" * 23
PARITY_BITS, CORRECTS, LANES = 8191 - 6722, 115, 512
END = 64 << 10

pytestmark = [
    pytest.mark.skipif(not RESNET20.exists(), reason="needs the real checkpoint ../shared/data/resnet20-12fca82f.th"),
    pytest.mark.filterwarnings("ignore"),  # torch's own
]
SEEDS = range(20)


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the checkpoint as safetensors, its container)"""
    pytest.importorskip("torch")
    from ckptguard.checkpoint.torch_file import convert

    folder = tmp_path_factory.mktemp("resnet20")
    before = state_of(RESNET20)
    convert(RESNET20, folder / "m.safetensors", "state_dict")
    protect(RESNET20, folder / "m.ckg", bits=9, code="bch:8191,6722", select="state_dict", guard="none")
    assert state_of(RESNET20) == before
    return folder / "m.safetensors", folder / "m.ckg"


def protected_difference(one: Path, other: Path) -> dict[str, int]:
    """name -> protected bits that differ between two safetensors files; the top nine of four bytes, or all of eight."""
    a, b = read_safetensors(one.read_bytes()), read_safetensors(other.read_bytes())
    assert set(a) == set(b)
    found = {}
    for name, data in a.items():
        difference = np.frombuffer(data, np.uint8) ^ np.frombuffer(b[name], np.uint8)
        width = 8 if name.endswith("num_batches_tracked") else 4
        mask = MASK if width == 4 else "1" * 9 + "0" * 55
        kind = "F32" if width == 4 else "I64"
        found[name] = int(np.bitwise_count(difference & protected_mask(mask, kind, len(data))).sum())
    return found


def test_resnet20_comes_back_byte_for_byte(resnet20: tuple[Path, Path], tmp_path: Path) -> None:
    source, container = resnet20
    report = check(container)
    assert (report.verdict, report.exact, len(report.lost)) == ("intact", True, 0)
    restore(container, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == source.read_bytes()
    assert len(read_safetensors(source.read_bytes())) > 90


def expected_failures(container: Path, worn: bytes) -> set[int]:
    """Codewords with more than t flips, counted from the files and the layout of docs/format.md (one short unit)."""
    with open_set(container) as (shard,):
        (stream,) = [one for one in shard.plan.streams if one.parity_bytes]
        assert stream.units == 1
        block = shard.file.superblock
        count = stream.layout(0).codewords
        words = []
        for index in stream.parts:
            part = shard.plan.parts[index]
            start = block.payload_offset + part.stored_offset
            clean = container.read_bytes()[start : start + part.stored_bytes]
            damaged = worn[start : start + part.stored_bytes]
            difference = np.frombuffer(clean, np.uint8) ^ np.frombuffer(damaged, np.uint8)
            padded = np.zeros(-(-len(difference) // 8) * 8, np.uint8)
            padded[: len(difference)] = difference
            words.append(padded.view("<u8"))
        flipped = np.concatenate(words)
        positions = [bit for bit in range(64) if stream.mask >> bit & 1]
        flat = np.concatenate(
            [
                (tile >> np.uint64(bit) & np.uint64(1)).astype(np.uint8)
                for tile in np.split(flipped, range(512, len(flipped), 512))
                for bit in positions
            ]
        )
        parity = slice(block.parity_offset, block.parity_offset + block.parity_bytes)
        clean_parity = np.frombuffer(container.read_bytes()[parity], np.uint8)
        parity_flips = np.unpackbits(clean_parity ^ np.frombuffer(worn[parity], np.uint8), bitorder="little")
    per_codeword = np.bincount(np.arange(len(flat)) % count, flat, count)
    per_codeword += np.bincount(np.arange(count * PARITY_BITS) % count, parity_flips[: count * PARITY_BITS], count)
    return set(np.flatnonzero(per_codeword > CORRECTS).tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_resnet20_at_an_error_rate_of_1e_2_is_exact_where_protected_or_says_what_is_lost(
    seed: int, resnet20: tuple[Path, Path], tmp_path: Path
) -> None:
    source, container = resnet20
    clean = container.read_bytes()
    worn = flip(clean, 1e-2, seed)
    (tmp_path / "worn.ckg").write_bytes(worn)
    report = restore(tmp_path / "worn.ckg", tmp_path / "out.safetensors")
    failures = expected_failures(container, worn)
    assert report.shards[0].uncorrectable_codewords == len(failures)
    wrong = {name for name, bits in protected_difference(source, tmp_path / "out.safetensors").items() if bits}
    assert wrong == {tensor.name for tensor in report.lost}
    assert bool(wrong) <= bool(failures)
    repair(tmp_path / "worn.ckg", tmp_path / "healed.ckg")
    assert {tensor.name for tensor in check(tmp_path / "healed.ckg").lost} == wrong
    if not failures:
        healed = (tmp_path / "healed.ckg").read_bytes()
        with ShardFile.open(container) as file:
            block = file.superblock
            parity = block.parity_offset
            payload = slice(block.payload_offset, block.payload_offset + block.payload_bytes)
        assert healed[parity:] == clean[parity:]
        assert distance(healed[payload], clean[payload]) == distance(worn[payload], clean[payload]) - sum(
            tensor.corrected_bits for tensor in report.tensors
        )


@pytest.mark.parametrize("seed", [pytest.param(None, id="alone"), *SEEDS[:3]])
@pytest.mark.parametrize("loss", ["first cut", "last cut", "first zeroed", "last zeroed"])
def test_resnet20_without_64_kib_at_an_end_is_read_and_told_tensor_by_tensor(
    loss: str, seed: int | None, resnet20: tuple[Path, Path], tmp_path: Path
) -> None:
    source, container = resnet20
    clean = container.read_bytes()
    first, how = loss.split()
    filling = b"" if how == "cut" else bytes(END)
    worn = filling + clean[END:] if first == "first" else clean[:-END] + filling
    worn = worn if seed is None else flip(worn, 1e-2, seed)
    (tmp_path / "worn.ckg").write_bytes(worn)
    report = restore(tmp_path / "worn.ckg", tmp_path / "out.safetensors")
    assert report.shards[0].missing_bytes == (END if how == "cut" else 0)
    assert {tensor.name for tensor in report.tensors if tensor.kind == "tensor"} == set(
        read_safetensors(source.read_bytes())
    )
    wrong = {name for name, bits in protected_difference(source, tmp_path / "out.safetensors").items() if bits}
    assert wrong == {tensor.name for tensor in report.lost}
    with ShardFile.open(tmp_path / "worn.ckg") as file:
        gone = END - file.superblock.payload_offset
        assert file.superblock.metadata_stored > CODEWORD_BYTES
    with open_set(container) as (shard,):
        inside = {p.name for p in shard.plan.parts if p.stored_offset < gone and p.kind == "tensor" and p.bytes}
    damaged = {tensor.name for tensor in report.tensors if tensor.kind == "tensor" and tensor.found != "exact"}
    if seed is None and first == "first":
        assert damaged <= inside
        assert len(damaged) > len(inside) // 2
    if seed is None and first == "last":
        assert not damaged
        assert (tmp_path / "out.safetensors").read_bytes() == source.read_bytes()
