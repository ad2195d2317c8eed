"""Posterior restorers and row sums in containers: their section, what readers make of damaged pieces, what it takes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import plain_reader
import pytest
from click.testing import CliRunner
from containers import Anatomy, flip, flip_bits, read_safetensors, safetensors_bytes
from reference_reader import read_set
from test_container import mutate

import ckptguard
from ckptguard.cli import app
from ckptguard.dtypes import DTYPES
from ckptguard.errors import CkptGuardError, ContainerError, MaskError, UsageError
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline import posteriors
from ckptguard.pipeline.certificate import certificate_of
from ckptguard.pipeline.check import check
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.repair import repair
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.shard import Shard
from ckptguard.pipeline.units import State, examine
from ckptguard.pipeline.verify import verify
from ckptguard.pipeline.wanted import recorded, wanted
from ckptguard.posterior import Restorer, Spread
from ckptguard.row_sums import Levels, segments, with_sums

Make = Callable[..., Path]

RECORD = {"kind": "posterior", "rates": [{"tensors": ["*"], "of_0": 0.01, "of_1": 0.01}]}


def words_of(values: npt.NDArray[np.float64], dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()


OUTLIERS = [7, 333 * 250 + 5, 166_000, 166_499]
"""Elements of `large` far above the others, in its first, second and last piece."""


def model(seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Weights of three dtypes, one tensor of several pieces, and what can have no restorer or no sums."""
    generator = np.random.default_rng(seed)

    def normal(dtype: str, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
        return dtype, shape, words_of(generator.normal(0.01, 0.05, int(np.prod(shape))), dtype)

    endless = generator.normal(0, 1, (8, 40))
    endless[3, 7] = np.inf
    large = generator.normal(0.01, 0.05, 500 * 333)
    large[OUTLIERS] = 1.2, -1.0, 1.9, 1.0
    odd = np.full(600, 0x7C01, "<u2")  # a signalling NaN
    return {
        "large": ("F32", (500, 333), words_of(large, "F32")),
        "brain": normal("BF16", 40, 100),
        "half": normal("F16", 21, 3, 17),
        "bias": normal("F32", 31),
        "thin": normal("F32", 50, 15),
        "endless": ("F32", (8, 40), endless.astype("<f4").tobytes()),
        "odd": ("F16", (20, 30), odd.tobytes()),
        "steps": ("I64", (), np.int64(7).tobytes()),
        "nothing": ("F32", (0, 40), b""),
    }


SUMMED = ("large", "brain", "half")
ASKED = (*SUMMED, "endless", "odd")


def masks_for(bits: int, summed: tuple[str, ...] = ASKED, **more: Any) -> MaskSet:
    return MaskSet((Rule(("*",), f"top:{bits}"),), {"restorer": RECORD, "row_sums": list(summed)} | more)


@pytest.fixture
def made(tmp_path: Path) -> Make:
    def make(bits: int = 3, names: list[str] | None = None, **settings: Any) -> Path:
        content = {name: model()[name] for name in names or model()}
        (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(content))
        settings = {"masks": masks_for(bits), "code": "bch:1023,513", "overwrite": True} | settings
        made = protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", **settings)
        return made.path

    return make


def worn(container: Path, rate: float, seed: int = 5, part: str | None = None) -> Path:
    """A copy with bits of payload and parity flipped; or only those of one part's payload."""
    data = container.read_bytes()
    anatomy = Anatomy.of(data)
    block = anatomy.superblock
    begin, end = block.payload_offset, block.parity_offset + block.parity_bytes
    if part is not None:
        for one in anatomy.record("PLAN")["parts"]:
            if part in (one["name"], one["kind"]):
                end = begin + one["stored"]
                break
            begin += one["stored"]
    copy = container.with_name("worn.ckg")
    copy.write_bytes(data[:begin] + flip(data[begin:end], rate, seed) + data[end:])
    return copy


def by_hand(container: Path, guard: bool) -> tuple[dict[str, bytes], dict[str, set[State]]]:
    """What reading has to give, piece by piece in plain numpy; and the states of pieces."""
    found: dict[str, bytearray] = {}
    states: dict[str, set[State]] = {}
    shard = Shard.open(container)
    plan, level_places = shard.plan, {}
    at = 0
    for index, part in enumerate(plan.parts):
        known = shard.posteriors.get(index)
        if known is not None and known.levels is not None:
            for piece in range(plan.table.starts[index], plan.table.stops[index]):
                begin = (plan.table.offset[piece] - part.stored_offset) // (part.dtype.word_bits // 8)
                count = plan.table.bytes[piece] // (part.dtype.word_bits // 8)
                starts, _ = segments(int(begin), int(count), part.elements // part.shape[0])
                level_places[piece] = slice(at, at + starts.size)
                at += starts.size
    units = [(examine(shard, *place, guard=guard)) for place in plan.all_units()]
    sums = bytearray(at)
    for unit in units:
        at = 0
        for piece, outcome in zip(unit.unit.pieces, unit.pieces, strict=True):
            part, data = plan.parts[piece.part], unit.bytes[at : at + piece.bytes]
            at += piece.bytes
            if part.kind == "extra":
                begin = piece.offset - part.stored_offset
                sums[begin : begin + piece.bytes] = data.tobytes()
                states["extra"] = {outcome.state}
    levels = np.frombuffer(bytes(sums), np.uint8)
    for unit in units:
        at = 0
        for piece, outcome in zip(unit.unit.pieces, unit.pieces, strict=True):
            part, data = plan.parts[piece.part], unit.bytes[at : at + piece.bytes].copy()
            lost = None if unit.lost_bits is None else unit.lost_bits[at : at + piece.bytes]
            at += piece.bytes
            if part.kind != "tensor":
                continue
            known = shard.posteriors.get(piece.part)
            states.setdefault(part.name, set()).add(outcome.state)
            if known is not None and outcome.state != State.EXACT:
                words = data.view(f"<u{part.dtype.word_bits // 8}")
                masks = (part.mask, "0" * len(part.mask))
                trusting, bare = (Restorer.of(known.spread, m, known.of_0, known.of_1).apply(words) for m in masks)
                touched = np.zeros(words.size, np.bool_)
                if outcome.state == State.LOST:
                    assert lost is not None
                    touched = lost.view(words.dtype) != 0
                words = np.where(touched, bare, trusting)
                if known.outliers and states["extra"] == {State.EXACT}:
                    assert part.name == "large"
                    begin = (piece.offset - part.stored_offset) // 4
                    original, read = np.frombuffer(model()["large"][2], "<u4"), data.view("<u4")
                    for place in (one - begin for one in OUTLIERS if begin <= one < begin + words.size):
                        words[place] = original[begin + place] >> 16 << 16 | read[place] & 0xFFFF
                if known.levels is not None and states["extra"] == {State.EXACT}:
                    begin = (piece.offset - part.stored_offset) // words.dtype.itemsize
                    starts, stops = segments(begin, words.size, part.elements // part.shape[0])
                    wanted_sums = known.levels.low + known.levels.step * levels[level_places[piece.index]].astype(float)
                    words = with_sums(part.dtype, words, starts, stops, wanted_sums)
                data = words.view(np.uint8)
            content = found.setdefault(part.name, bytearray(part.bytes))
            begin = piece.offset - part.stored_offset
            content[begin : begin + piece.bytes] = data.tobytes()
    shard.close()
    return {name: bytes(content) for name, content in found.items()}, states


def test_an_undamaged_container_gives_the_original_and_is_larger_by_what_inspect_says(
    made: Make, tmp_path: Path
) -> None:
    container = made()
    report = restore(container, tmp_path / "out")
    assert (report.verdict, report.exact) == ("intact", True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert all(tensor.estimated_elements == 0 for tensor in report.tensors)
    summary = inspect(container)
    rows = {tensor.name: tensor for tensor in summary.tensors if tensor.kind == "tensor"}
    with_restorer = {name for name, row in rows.items() if row.restorer_rates}
    assert with_restorer == {"large", "brain", "half", "bias", "thin"}
    assert rows["large"].restorer_rates == (pytest.approx(0.01), pytest.approx(0.01))
    assert {name for name, row in rows.items() if row.row_sums} == set(SUMMED)
    pieces = 1 + 500 * 333 * 4 // (64 * 4096)
    assert 500 + 40 + 21 <= summary.shards[0].sum_bytes <= 500 + 40 + 21 + pieces
    assert {name: row.outliers for name, row in rows.items() if row.outliers} == {"large": 4}
    assert summary.shards[0].outlier_bytes == 6 * 4
    assert summary.shards[0].payload_bytes == summary.original_bytes + summary.shards[0].sum_bytes + 24
    assert summary.shards[0].restorer_bytes < 24 + 40 + 20 * len(rows)
    bare = inspect(made(restorer="none"))
    assert (bare.shards[0].restorer_bytes, bare.shards[0].sum_bytes, bare.shards[0].outlier_bytes) == (0, 0, 0)
    assert summary.redundancy > bare.redundancy


def test_the_payload_begins_with_the_image_of_the_original_file(made: Make, tmp_path: Path) -> None:
    anatomy = Anatomy.of(made().read_bytes())
    original = (tmp_path / "m.safetensors").read_bytes()
    assert anatomy.payload[: len(original)] == original
    assert anatomy.record("PLAN")["parts"][-1]["kind"] == "extra"


def test_containers_without_restorers_are_as_before(made: Make) -> None:
    with_none = made(restorer="none", masks=masks_for(3))
    anatomy = Anatomy.of(with_none.read_bytes())
    assert "POST" not in anatomy.sections
    assert "restorer" not in anatomy.record("INFO")["settings"]
    assert {part["kind"] for part in anatomy.record("PLAN")["parts"]} == {"header", "tensor"}


def test_row_sums_are_those_of_the_tensor_to_half_a_level(made: Make) -> None:
    container = made()
    shard = Shard.open(container)
    index = next(i for i, part in enumerate(shard.plan.parts) if part.name == "brain")
    sums = Anatomy.of(container.read_bytes()).payload[-shard.plan.extra_bytes : -24]
    levels = shard.posteriors[index].levels
    shard.close()
    assert levels is not None
    values = (np.frombuffer(model()["brain"][2], "<u2").astype("<u4") << 16).view("<f4").astype(float).reshape(40, 100)
    places = sum(1 for one in sums) - 40 - 21
    found = levels.low + levels.step * np.frombuffer(sums, np.uint8)[places : places + 40]
    assert np.abs(found - values.sum(1)).max() <= levels.step * 0.5001


@pytest.mark.parametrize("guard", ["none", "tensor"])
@pytest.mark.parametrize(("code", "rate"), [("bch:1023,513", 1e-2), ("secded:72,64", 6e-4), ("bch:1023,848", 2.5e-2)])
def test_damaged_pieces_are_read_as_worked_out_by_hand_and_exact_ones_stay(
    code: str, rate: float, guard: str, made: Make, tmp_path: Path
) -> None:
    container = made(code=code, guard=guard)
    damaged = worn(container, rate)
    expected, states = by_hand(damaged, guard != "none")
    restore(damaged, tmp_path / "out")
    found = read_safetensors((tmp_path / "out").read_bytes())
    for name in ("large", "brain", "half", "bias", "thin"):
        assert found[name] == expected[name], name
    lost = {name for name in ("large", "extra") if State.LOST in states[name]}
    assert lost >= {"bch:1023,513": set(), "secded:72,64": {"large"}, "bch:1023,848": {"extra"}}[code]
    assert code != "bch:1023,513" or not lost
    assert found["large"] != model()["large"][2]


def test_a_piece_that_is_exact_keeps_every_bit_beside_one_that_is_not(made: Make, tmp_path: Path) -> None:
    container = made(names=["large"])
    anatomy = Anatomy.of(container.read_bytes())
    start = 8 * (anatomy.superblock.payload_offset + len(anatomy.sections["HEAD"].data))
    damaged = tmp_path / "worn.ckg"
    damaged.write_bytes(flip_bits(container.read_bytes(), [start + 32 * 7 + 22]))  # in the first piece, unprotected
    report = restore(damaged, tmp_path / "out")
    found = np.frombuffer(read_safetensors((tmp_path / "out").read_bytes())["large"], "<u4")
    original = np.frombuffer(model()["large"][2], "<u4")
    shard = Shard.open(damaged)
    first = shard.plan.unit(1, 0).pieces[0].bytes // 4
    shard.close()
    assert first < found.size
    assert (found[first:] == original[first:]).all()
    (row,) = (tensor for tensor in report.tensors if tensor.name == "large")
    assert (row.state, row.damaged_pieces) == ("protected-exact", 1)
    assert abs(row.estimated_elements - (found != original).sum()) <= 1


@pytest.mark.parametrize("policy", ["raw", "null"])
@pytest.mark.parametrize(("code", "rate"), [("bch:1023,513", 1e-2), ("secded:72,64", 1e-3)])
def test_all_readers_give_the_same(code: str, rate: float, policy: str, made: Make, tmp_path: Path) -> None:
    damaged = worn(made(code=code, guard="tensor"), rate)
    for jobs in (1, 3):
        restored = restore(damaged, tmp_path / "out", policy=policy, jobs=jobs, overwrite=True)
        content = read_safetensors((tmp_path / "out").read_bytes())
        for backend in ("pread", "mmap"):
            reports: list[dict[str, Any]] = []
            torch_state = ckptguard.load_file(
                damaged, framework="pt", backend=backend, on_error=policy, jobs=jobs, report=reports.append
            )
            for name, value in torch_state.items():
                assert value.reshape(-1).view(_uint8()).numpy().tobytes() == content[name], name
            counted = {tensor.name: tensor.estimated_elements for tensor in restored.tensors}
            assert {row["name"]: row["estimated_elements"] for row in reports[0]["tensors"]} == {
                row["name"]: counted[row["name"]] for row in reports[0]["tensors"]
            }
            assert counted["large"] > 0
            with ckptguard.safe_open(damaged, "np", backend=backend, on_error=policy, jobs=jobs) as opened:
                rows = opened.get_slice("large")[50:460, 3:180]
                whole = opened.get_tensor("large")
                assert whole.tobytes() == content["large"]
                assert rows.tobytes() == whole[50:460, 3:180].tobytes()


def _uint8() -> Any:
    import torch

    return torch.uint8


def test_estimates_have_a_smaller_error_than_guards_and_row_sums_that_are_right(made: Make, tmp_path: Path) -> None:
    damaged = worn(made(names=["large"], guard="tensor"), 1e-2)
    original = np.frombuffer(model()["large"][2], "<f4").astype(float).reshape(500, 333)
    errors, sums = [], []
    for estimate in (True, False):
        restore(damaged, tmp_path / "out", estimate=estimate, overwrite=True)
        values = np.frombuffer(read_safetensors((tmp_path / "out").read_bytes())["large"], "<f4").astype(float)
        errors.append(np.square(values.reshape(500, 333) - original).mean())
        sums.append(np.abs((values.reshape(500, 333) - original).sum(1)).max())
    assert errors[0] < 0.8 * errors[1]
    assert sums[0] < 0.1 * sums[1]


def test_lost_row_sums_are_not_used_and_that_is_told(made: Make, tmp_path: Path) -> None:
    container = made(names=["large", "bias"], code="secded:72,64")
    damaged = worn(container, 0.2, part="extra")
    assert check(damaged).verdict == "uncorrectable"
    data = damaged.read_bytes()
    block = Anatomy.of(container.read_bytes()).superblock
    damaged.write_bytes(
        data[: block.payload_offset]
        + flip(data[block.payload_offset :][:400_000], 1e-4, 2)
        + data[block.payload_offset + 400_000 :]
    )
    report = restore(damaged, tmp_path / "out")
    rows = {tensor.name: tensor for tensor in report.tensors}
    assert rows["large"].pieces_without_extra == rows["large"].damaged_pieces > 0
    assert [tensor.kind for tensor in report.lost if tensor.kind != "tensor"] == ["extra"]
    shard = Shard.open(damaged)
    (known,) = [one for i, one in shard.posteriors.items() if shard.plan.parts[i].name == "large"]
    mask = next(part.mask for part in shard.plan.parts if part.name == "large")
    first = examine(shard, 1, 0)
    shard.close()
    trusting = Restorer.of(known.spread, mask, known.of_0, known.of_1)
    found = np.frombuffer(read_safetensors((tmp_path / "out").read_bytes())["large"], "<u4")
    sure = np.ones(64 * 512 * 2, np.bool_)
    if first.lost_bits is not None:
        sure = first.lost_bits.view("<u4") == 0
    if first.pieces[0].state == State.PROTECTED or first.lost_bits is not None:
        expected = trusting.apply(first.bytes.view("<u4"))
        assert (found[: sure.size][sure] == expected[sure]).all()
    loaded: list[dict[str, Any]] = []
    ckptguard.load_file(damaged, framework="np", on_error="raw", report=loaded.append)
    counted = {row["name"]: row["pieces_without_extra"] for row in loaded[0]["tensors"]}
    assert counted["large"] == rows["large"].pieces_without_extra


def test_repair_writes_no_estimates(made: Make, tmp_path: Path) -> None:
    container = made(guard="none")
    damaged = worn(container, 1e-2)
    report = repair(damaged, tmp_path / "healed.ckg")
    assert all(tensor.estimated_elements == 0 for tensor in report.tensors)
    files = (container, damaged, tmp_path / "healed.ckg")
    clean, read, healed = (np.frombuffer(Anatomy.of(path.read_bytes()).payload, np.uint8) for path in files)
    assert not ((read ^ healed) & ~(read ^ clean)).any()
    restore(damaged, tmp_path / "before")
    restore(tmp_path / "healed.ckg", tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    assert check(tmp_path / "healed.ckg").verdict == "protected-intact"


def test_row_sums_are_checked_and_repaired_as_any_stored_bytes(made: Make, tmp_path: Path) -> None:
    container = made()
    damaged = worn(container, 1e-2, part="extra")
    report = check(damaged)
    (row,) = (tensor for tensor in report.tensors if tensor.kind == "extra")
    assert (report.verdict, row.found, row.state) == ("correctable", "lost", "exact")
    repair(damaged, tmp_path / "healed.ckg")
    assert (tmp_path / "healed.ckg").read_bytes() == container.read_bytes()
    flips = ckptguard.corrupt(container, tmp_path / "corrupted.ckg", seed=1, channel="bsc:1e-2")
    regions = [region.bits for region in flips[0].regions]
    assert 8 * (inspect(container).shards[0].sum_bytes + 24) in regions


def test_verify_compares_estimates_and_does_not_take_them_for_another_model(made: Make, tmp_path: Path) -> None:
    from ckptguard.report import verification

    def error(state: dict[str, Any]) -> dict[str, float]:
        values = np.clip(np.nan_to_num(state["large"], nan=1), -1, 1)
        return {"error": float(np.square(values - np.frombuffer(model()["large"][2], "<f4").reshape(500, 333)).mean())}

    damaged = worn(made(guard="tensor", names=["large"]), 1e-2)
    result = verify(damaged, tmp_path / "m.safetensors", evaluator=error, framework="np")
    assert list(result.metrics) == ["clean", "unprotected", "decoded", "guarded", "estimated"]
    assert result.metrics["estimated"]["error"] < result.metrics["guarded"]["error"]
    assert result.weights["large"]["estimated"].wrong_protected_bits > 0
    assert verification.verdict(result) == "protected-exact"
    assert "estimated" in verification.text(damaged, tmp_path / "m.safetensors", result)
    plain = verify(damaged, tmp_path / "m.safetensors", evaluator=error, framework="np", estimate=False)
    assert "estimated" not in plain.metrics


def test_containers_are_the_same_for_any_number_of_threads(made: Make) -> None:
    one = made(jobs=1).read_bytes()
    assert made(jobs=4).read_bytes() == one


@pytest.mark.parametrize("code", ["auto", "none", "crc"])
def test_every_code_may_hold_row_sums(code: str, made: Make, tmp_path: Path) -> None:
    devices = tmp_path / "devices.toml"
    devices.write_text('[[device]]\nname = "worn"\ntensors = ["*"]\nchannel = "asymmetric:1e-3,4e-3"\n')
    container = made(code=code, devices=devices)
    (sums,) = (part for part in Anatomy.of(container.read_bytes()).record("PLAN")["parts"] if part["kind"] == "extra")
    assert sums["code"].partition(":")[0] == {"auto": "bch"}.get(code, code)
    for row in inspect(container).tensors:
        assert row.restorer_rates in (None, (pytest.approx(1e-3), pytest.approx(4e-3)))
    restore(worn(container, 1e-4), tmp_path / "out")
    assert check(container).exact


def test_shards_on_several_devices_have_sums_and_rates_of_their_own(made: Make, tmp_path: Path) -> None:
    devices = tmp_path / "devices.toml"
    devices.write_text(
        '[[device]]\nname = "worn"\ntensors = ["large", "half"]\nchannel = "bsc:1e-2"\n'
        '[[device]]\nname = "good"\ntensors = ["*"]\nchannel = "bsc:1e-6"\n'
    )
    made()
    protect(tmp_path / "m.safetensors", tmp_path / "set", masks=masks_for(3), code="bch:1023,513", devices=devices)
    summary = inspect(tmp_path / "set")
    rates = {row.name: row.restorer_rates for row in summary.tensors if row.restorer_rates}
    assert rates["large"] == (pytest.approx(1e-2),) * 2
    assert rates["brain"] == (pytest.approx(1e-6),) * 2
    assert all(shard.sum_bytes > 0 for shard in summary.shards)
    restore(tmp_path / "set", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    ckptguard.corrupt(tmp_path / "set", tmp_path / "bad", seed=3)
    restored = restore(tmp_path / "bad", tmp_path / "worn")
    assert {row.name for row in restored.tensors if row.estimated_elements} >= {"large", "half"}


def test_rows_whose_sums_no_float32_can_hold_carry_none(tmp_path: Path) -> None:
    huge = np.full((40, 50), 3e38, "<f4")
    huge[::2] *= -1
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes({"large": ("F32", (40, 50), huge.tobytes())}))
    masks = masks_for(9, ("large",))
    made = protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", masks=masks, code="bch:1023,513")
    assert made.warnings[0].startswith("no row sums for large")
    assert not any(row.row_sums for row in inspect(tmp_path / "m.ckg").tensors)
    restore(worn(tmp_path / "m.ckg", 1e-2), tmp_path / "out")
    values = np.frombuffer(read_safetensors((tmp_path / "out").read_bytes())["large"], "<f4")
    assert np.isfinite(values).all()


def test_fixed_point_tensors_have_no_restorers(made: Make, tmp_path: Path) -> None:
    container = made(representation="fixed:8", names=["large", "steps"])
    assert "POST" not in Anatomy.of(container.read_bytes()).sections
    assert check(container).exact


# Asking ---------------------------------------------------------------------------------------------------------------


def test_masks_decide_unless_the_caller_does(made: Make) -> None:
    def settings(**more: Any) -> tuple[str | None, str]:
        found = Anatomy.of(made(**more).read_bytes()).record("INFO")["settings"]
        return found.get("restorer"), found["guard"]

    assert settings() == ("posterior", "none")
    assert settings(guard="tensor") == ("posterior", "tensor")
    assert settings(restorer="none") == (None, "tensor")
    plain = MaskSet((Rule(("*",), "top:3"),))
    assert settings(masks=plain) == (None, "tensor")
    assert settings(masks=plain, restorer="posterior", bit_error_rate=1e-3) == ("posterior", "tensor")


def test_masks_of_before_that_name_no_rates_are_told_of(made: Make, tmp_path: Path) -> None:
    made(restorer="none")
    old = MaskSet((Rule(("*",), "top:3"),), {"guard": "posterior", "row_sums": ["large", "thin", "gone"]})
    told = protect(tmp_path / "m.safetensors", tmp_path / "old.ckg", masks=old).warnings
    assert "--restorer posterior --ber P" in told[0]
    asked = {"masks": old, "restorer": "posterior", "bit_error_rate": 1e-3}
    told = protect(tmp_path / "m.safetensors", tmp_path / "new.ckg", **asked).warnings
    assert told == ("no row sums for gone, thin: no tensor of rows of finite floats, of 16 at least",)
    assert {row.name for row in inspect(tmp_path / "new.ckg").tensors if row.row_sums} == {"large"}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"restorer": "posteriors"}, UsageError, "known: none, posterior"),
        ({"restorer": "none", "bit_error_rate": 0.1}, UsageError, "belongs to --restorer posterior"),
        ({"bit_error_rate": 0.5}, UsageError, "no bit error rate"),
        ({"restorer": "posterior", "masks": MaskSet.top(3)}, UsageError, "give --ber P or a device"),
        ({"masks": masks_for(3, restorer={"kind": "posterior"})}, MaskError, "is not what a search writes"),
        ({"masks": masks_for(3, restorer={"kind": "x", "rates": []})}, MaskError, "is not what a search writes"),
        ({"masks": masks_for(3, restorer=RECORD | {"rates": [{"tensors": "*"}]})}, MaskError, "no tensors and rates"),
        ({"masks": masks_for(3, row_sums="large")}, MaskError, "no list of names"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str, made: Make, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        made(**settings)
    assert not (tmp_path / "m.ckg").exists()


def test_a_sidecar_has_no_place_for_row_sums_and_outliers(made: Make, tmp_path: Path) -> None:
    made(restorer="none")
    with pytest.raises(UsageError, match="no place for"):
        protect(tmp_path / "m.safetensors", sidecar=True, masks=masks_for(3))
    with pytest.raises(UsageError, match=r"m\.safetensors: restorers need 4 outliers, .* no place"):
        protect(tmp_path / "m.safetensors", sidecar=True, masks=masks_for(3, ()))
    assert not (tmp_path / "m.safetensors.ckg").exists()
    made(restorer="none", names=["half", "bias"])
    protect(tmp_path / "m.safetensors", sidecar=True, masks=masks_for(3, ()))
    assert any(row.restorer_rates for row in inspect(tmp_path / "m.safetensors.ckg").tensors)


def test_saving_takes_what_protect_takes(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).normal(0, 0.1, (30, 40)).astype(np.float32)}
    saved = ckptguard.save_file(weights, tmp_path / "m.ckg", masks=masks_for(3, ("w",)), bit_error_rate=1e-3)
    (row,) = (tensor for tensor in inspect(saved.path).tensors if tensor.kind == "tensor")
    assert (row.restorer_rates, row.row_sums) == ((pytest.approx(1e-3),) * 2, True)
    with pytest.raises(UsageError, match="no place for"):
        ckptguard.save_file(weights, tmp_path / "m.safetensors", masks=masks_for(3, ("w",)))
    ckptguard.save_file(weights, tmp_path / "m.safetensors", masks=masks_for(3, ("w",)), restorer="none")


def test_what_masks_record_of_restorers_is_read_back() -> None:
    rates = {"a": (0.01, 0.02), "b": (0.5, 0.0), "c": (0.01, 0.02)}
    found = wanted(None, None, MaskSet((Rule(("*",), "none"),), {"restorer": json.loads(json.dumps(recorded(rates)))}))
    assert found is not None
    assert {name: found.pair_of(name, None) for name in rates} == rates
    assert found.pair_of("a", "bsc:1e-4") == (1e-4, 1e-4)
    alike = wanted(None, None, MaskSet((Rule(("*",), "none"),), {"restorer": recorded({"a": (0.1, 0.1)})}))
    assert alike is not None
    assert alike.pair_of("anything", None) == (0.1, 0.1)


def test_a_certificate_says_where_restorers_are_missing() -> None:
    def departures(**settings: str) -> tuple[str, ...]:
        provenance = {"certificate": {"statement": "kept"}, "guard": "posterior"}
        found = certificate_of({"settings": {"masks": {"provenance": provenance}} | settings})
        assert found is not None
        return found.departs

    assert departures(guard="tensor") == ("searched with posterior restorers, stored without",)
    assert departures(guard="none", restorer="posterior") == ()
    assert departures(guard="tensor", restorer="posterior") == ()


# The format -----------------------------------------------------------------------------------------------------------


def test_packed_restorers_are_read_back(made: Make) -> None:
    shard = Shard.open(made())
    content = posteriors.pack(shard.posteriors, len(shard.plan.parts))
    spread = Spread.of(DTYPES["BF16"], np.frombuffer(model()["brain"][2], "<u2"))
    (brain,) = (one for i, one in shard.posteriors.items() if shard.plan.parts[i].name == "brain")
    shard.close()
    assert brain.spread == spread
    assert struct.unpack_from("<Iff", content) == (1, np.float32(0.01), np.float32(0.01))
    codes = struct.unpack_from("<11H", content, 12)
    assert [code for code in codes if code] == [0xC001, 0x8001, 0x8001, 1, 1]
    spreads = sum(len(one.spread.pack()) for one in shard.posteriors.values())
    assert len(content) == 12 + 2 * 11 + spreads + 3 * 8 + 4


def lie(begin: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:begin] + new + data[begin + len(new) :]


LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "cut short"),
    "cut": (lambda data: data[:-1], "need another size"),
    "longer": (lambda data: data + b"\0", "need another size"),
    "more pairs": (lie(0, struct.pack("<I", 1 << 31)), "pairs of rates"),
    "no pair": (lie(0, struct.pack("<I", 0)), "cannot have it|need another size|cut short"),
    "a rate above 1": (lie(4, struct.pack("<f", 1.5)), "no probabilities"),
    "a rate that is no number": (lie(8, struct.pack("<f", np.nan)), "no probabilities"),
    "a restorer of the header": (lie(12, struct.pack("<H", 1)), "cannot have it"),
    "an unknown pair": (lie(14, struct.pack("<H", 2)), "cannot have it"),
    "sums of a vector": (lie(20, struct.pack("<H", 0x8001)), "cannot have it"),
    "sums of no part": (lie(14, struct.pack("<H", 1)), "need another size"),
    "a field beyond the last": (lie(34, b"\xff\xff"), "does not fit"),
    "a sign of a fourth kind": (lie(36, b"\x30"), "does not fit"),
    "outliers of no part": (lie(14, struct.pack("<H", 0x8001)), "need another size"),
    "outliers that are none": (lambda data: data[:-4] + bytes(4), "these are none"),
    "more outliers": (lambda data: data[:-4] + struct.pack("<I", 5), "row sums and outliers, the payload has"),
    "outliers without end": (lambda data: data[:-4] + b"\xff" * 4, "row sums and outliers, the payload has"),
    "levels that are no numbers": (lambda data: data[:-8] + struct.pack("<f", np.inf) + data[-4:], "no numbers"),
    "a step below zero": (lambda data: data[:-8] + struct.pack("<f", -1.0) + data[-4:], "no numbers"),
}


@pytest.mark.parametrize("name", LIES)
def test_restorers_that_do_not_fit_are_refused(name: str, made: Make) -> None:
    container = made()
    anatomy = Anatomy.of(container.read_bytes())
    change, message = LIES[name]
    container.write_bytes(anatomy.changed("POST", change(anatomy.sections["POST"].data)).build())
    with pytest.raises(ContainerError, match=message):
        check(container)


def test_row_sums_that_restorers_do_not_need_are_refused(made: Make) -> None:
    container = made(names=["large", "bias"])
    anatomy = Anatomy.of(container.read_bytes())
    data = anatomy.sections["POST"].data
    fewer = data[:14] + struct.pack("<H", 0x4001) + data[16:-12] + data[-4:]
    container.write_bytes(anatomy.changed("POST", fewer).build())
    with pytest.raises(ContainerError, match=r"need 24 bytes of row sums and outliers, the payload has 52\d"):
        check(container)


PARTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another name": lambda part: part.update(name="x"),
    "a place": lambda part: part.update(offset=8),
    "a shape": lambda part: part.update(shape=[4]),
    "an open bit": lambda part: part.update(mask="11111110"),
    "another dtype": lambda part: part.update(dtype="I8"),
    "a tensor": lambda part: part.update(kind="tensor"),
    "a file": lambda part: part.update(kind="file"),
    "less": lambda part: part.update(bytes=part["bytes"] - 1),
}


@pytest.mark.parametrize("name", PARTS)
def test_row_sums_that_are_stored_otherwise_are_refused(name: str, made: Make) -> None:
    container = made()
    anatomy = Anatomy.of(container.read_bytes())
    container.write_bytes(anatomy.edited("PLAN", lambda plan: PARTS[name](plan["parts"][-1])).build())
    with pytest.raises(ContainerError):
        check(container)


def test_row_sums_stand_at_the_end_and_once(made: Make) -> None:
    anatomy = Anatomy.of(made().read_bytes())
    for change in (lambda parts: parts.insert(1, parts.pop()), lambda parts: parts.append(dict(parts[-1]))):
        container = made()
        container.write_bytes(anatomy.edited("PLAN", lambda plan, do=change: do(plan["parts"])).build())
        with pytest.raises(ContainerError):
            check(container)


def test_a_reader_that_does_not_know_restorers_skips_them(made: Make, tmp_path: Path) -> None:
    container = made()
    anatomy = Anatomy.of(container.read_bytes())
    assert anatomy.sections["POST"].optional
    damaged = worn(container, 1e-2)
    restore(damaged, tmp_path / "expected", estimate=False)
    container.write_bytes(Anatomy.of(container.read_bytes()).changed("POST", None).build())
    restore(worn(container, 1e-2), tmp_path / "out")
    found, expected = (read_safetensors((tmp_path / name).read_bytes()) for name in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert check(container).exact


def test_metadata_changed_at_random_gives_errors_or_finite_numbers(made: Make, tmp_path: Path) -> None:
    container = made(names=["brain", "half", "thin", "steps"], guard="tensor")
    damaged = Anatomy.of(container.read_bytes())
    payload = flip(damaged.payload, 1e-2, 1)
    refused = 0
    for seed in range(120):
        generator = np.random.default_rng(seed)
        anatomy = damaged
        if seed % 3:
            data = bytearray(anatomy.sections["POST"].data)
            for _ in range(generator.integers(1, 4)):
                data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
            anatomy = anatomy.changed("POST", bytes(data))
        else:
            record = anatomy.record("PLAN")
            mutate(record["parts"][-1], generator)
            anatomy = anatomy.changed("PLAN", record)
        data = anatomy.build()
        begin = anatomy.superblock.payload_offset
        path = tmp_path / "fuzz.ckg"
        path.write_bytes(data[:begin] + payload + data[begin + len(payload) :])
        try:
            report = restore(path, tmp_path / "out", overwrite=True)
        except CkptGuardError:
            refused += 1
            continue
        values = np.frombuffer(read_safetensors((tmp_path / "out").read_bytes())["half"], "<f2")
        if any(tensor.estimated_elements for tensor in report.tensors if tensor.name == "half"):
            assert np.isfinite(values).all()
    assert 20 < refused < 120


@pytest.mark.parametrize("summed", [(), SUMMED])
@pytest.mark.parametrize("guard", ["none", "tensor"])
def test_readers_written_from_the_format_alone_find_what_they_expect(
    summed: tuple[str, ...], guard: str, made: Make, tmp_path: Path
) -> None:
    names = ["brain", "half", "bias", "thin", "endless", "steps", "nothing"]
    container = made(names=names, guard=guard, masks=masks_for(3, summed), code="bch:255,131")
    assert read_set({"m.ckg": container.read_bytes()}, {}) == {
        "m.safetensors": (tmp_path / "m.safetensors").read_bytes()
    }
    assert plain_reader.read(container.read_bytes()) == {"m.safetensors": (tmp_path / "m.safetensors").read_bytes()}


def test_a_reader_written_from_the_format_alone_estimates_as_the_product_does(made: Make, tmp_path: Path) -> None:
    container = made(names=["brain", "half", "bias", "thin", "steps"], code="bch:1023,513")
    damaged = worn(container, 1e-2)
    restore(damaged, tmp_path / "out")
    found = plain_reader.read(damaged.read_bytes(), estimate=True)
    assert found == {"m.safetensors": (tmp_path / "out").read_bytes()}


def test_segments_are_what_lies_of_rows_in_a_run() -> None:
    starts, stops = segments(50, 100, 40)  # rows end at 80, 120, 160
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(0, 30), (30, 70), (70, 100)]
    starts, stops = segments(70, 60, 40)  # 10 elements of the first row are too few, 10 of the last as well
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(10, 50)]
    assert segments(0, 0, 40)[0].size == segments(0, 100, 0)[0].size == 0
    levels = Levels.of(np.array([-1.0, 4.1, 0.3]))
    assert levels.quantise(np.array([-1.0, 4.1, 9.0, -9.0])).tolist() == [0, 255, 255, 0]
    assert Levels.of(np.array([2.5])).quantise(np.array([2.5])).tolist() == [0]


def test_a_sweep_says_that_it_does_without_restorers(made: Make, tmp_path: Path) -> None:
    """What it measures of such a container is worse than what readers make of it."""
    settings = ["--ber", "1e-3", "--eval", "weights", "--trials", "2", "--no-report"]
    ran = CliRunner().invoke(app.main, ["sweep", str(made()), "-o", str(tmp_path / "run"), *settings])
    assert ran.exit_code == 0, ran.stderr
    assert "variant 'container' counts on posterior restorers" in ran.stderr
