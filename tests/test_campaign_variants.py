"""Decoding in memory against the real pipeline, encodings, guards, and what variants cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from containers import MIXED, read_safetensors, safetensors_bytes, tensors
from scipy import stats

from ckptguard import codes
from ckptguard.campaign import faults
from ckptguard.campaign.drawing import Flips
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Damage, Prepared, Variant
from ckptguard.devices import DeviceMap
from ckptguard.errors import CheckpointError, UncorrectableError, UsageError
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.shard import open_set

CASES = {
    "short words of a code with many failures": ("bch:255,131", "native", "top:9", 0.06),
    "the same over fixed-point planes": ("bch:255,131", "fixed:8", "top:3", 0.06),
    "sign and magnitude": ("bch:511,259", "fixed:6,sign-magnitude", "110100", 0.055),
    "every bit": ("bch:255,191", "native", "all", 0.03),
    "one error in a memory word": ("secded:72,64", "native", "top:5", 0.02),
    "one error in a short word": ("secded:32,26", "fixed:8", "top:2", 0.03),
    "one error in a tile": ("crc", "native", "top:2", 1e-3),
    "lost codewords that outer words bring back": ("bch:511,259,outer=8", "native", "top:4", 0.047),
    "lost codewords too many for outer words": ("bch:255,131,outer=4", "native", "top:4", 0.055),
}
"""code, representation, mask, bit error rate."""

GUARDED = [
    *(("none", case) for case in CASES),
    *(("tensor", case) for case in CASES),
    ("channel", "short words of a code with many failures"),
    ("channel", "one error in a tile"),
    ("group:100", "the same over fixed-point planes"),
    ("group:100", "sign and magnitude"),
    ("group:100", "every bit"),
]


def checkpoint(folder: Path) -> Path:
    """Tensors of every width, of which one fills more than a unit."""
    path = folder / "model.safetensors"
    layout = {"large": ("F32", (263, 300)), **MIXED, "codes": ("I8", (40_001,))}
    layout["codes"] = ("U8", (40_001,))
    content = tensors(5, **layout)
    variances = np.random.default_rng(6).uniform(0.5, 3.0, 500).astype("<f4")
    content["variance"] = ("F32", (500,), variances.tobytes())  # zero is impossible
    path.write_bytes(safetensors_bytes(content))
    return path


def rules(mask: str, representation: str) -> MaskSet:
    """A mask for floats; bits of other words only as far as they have them."""
    if not set(mask) <= {"0", "1"}:
        return MaskSet((Rule(("*",), mask + (",or-all" if mask.startswith("top") else "")),))
    floats = ("large", "weight", "half", "brain", "double", "nothing", "variance")
    return MaskSet((Rule(floats, mask), Rule(("*",), "none")))


def damage_container(container: Path, prepared: Prepared, flips: Flips) -> bytes:
    """The bytes of a container with the same flips in its payload and parity."""
    with open_set(container) as (shard,):
        data = np.frombuffer(container.read_bytes(), np.uint8).copy()
        block = shard.file.superblock
        for part in shard.plan.parts:
            if part.name in flips.tensors:
                encoding, drawn = prepared.encodings[part.name], flips.tensors[part.name]
                words = np.zeros_like(encoding.words)
                words[drawn.elements] = drawn.flips.astype(words.dtype)
                image = encoding.image(words)
                begin = block.payload_offset + part.stored_offset
                data[begin : begin + part.stored_bytes] ^= image
        coded = [stream for stream in shard.plan.streams if stream.planes and stream.code.spec != "none"]
        for stream, (key, coder) in zip(coded, sorted(prepared.coders.items()), strict=True):
            assert (stream.code.spec, stream.words) == (coder.code.spec, coder.stream.words)
            bits = np.zeros(8 * stream.parity_bytes, np.uint8)
            bits[flips.parity.get(key, np.zeros(0, np.int64))] = 1
            begin = block.parity_offset + stream.parity_offset
            data[begin : begin + stream.parity_bytes] ^= np.packbits(bits, bitorder="little")
    return data.tobytes()


def damage_set(folder: Path, prepared: Prepared, flips: Flips) -> None:
    """Flip the same bits in the shard files of a set."""
    with open_set(folder) as shards:
        for number, shard in enumerate(shards):
            path = shard.file.path
            data, block = np.frombuffer(path.read_bytes(), np.uint8).copy(), shard.file.superblock
            for part in shard.plan.parts:
                if part.name in flips.tensors:
                    encoding, drawn = prepared.encodings[part.name], flips.tensors[part.name]
                    words = np.zeros_like(encoding.words)
                    words[drawn.elements] = drawn.flips.astype(words.dtype)
                    begin = block.payload_offset + part.stored_offset
                    data[begin : begin + part.stored_bytes] ^= encoding.image(words)
            coded = [stream for stream in shard.plan.streams if stream.planes and stream.code.spec != "none"]
            mine = [key for key in sorted(prepared.coders) if key[0] == number]
            for stream, key in zip(coded, mine, strict=True):
                bits = np.zeros(8 * stream.parity_bytes, np.uint8)
                bits[flips.parity.get(key, np.zeros(0, np.int64))] = 1
                begin = block.parity_offset + stream.parity_offset
                data[begin : begin + stream.parity_bytes] ^= np.packbits(bits, bitorder="little")
            path.write_bytes(data.tobytes())


def test_flips_go_through_a_set_on_several_devices_as_through_its_files(tmp_path: Path) -> None:
    source, container = checkpoint(tmp_path), tmp_path / "set"
    devices = DeviceMap.parse(
        '[[device]]\nname = "flash"\nchannel = "bsc:0.04"\ntensors = ["large", "v*"]\n'
        '[[device]]\nname = "disk"\nchannel = "asymmetric:0.01,0.03"\ntensors = ["*"]\n'
    )
    protect(source, container, bits=9, code="bch:255,131", devices=devices, guard="channel")
    subject = Subject.open(container)
    assert subject.variant is not None
    assert subject.variant.granularity == "channel"
    prepared = Prepared(subject, subject.variant)
    assert {number for number, _ in prepared.coders} == {0, 1}
    assigned = faults.of_devices(subject.devices)
    flips, damage = prepared.draw(assigned, 3, 1), prepared.trial(assigned, 3, 1)
    damage_set(container, prepared, flips)
    report = restore(container, tmp_path / "out.safetensors")
    assert patched(prepared, damage) == read_safetensors((tmp_path / "out.safetensors").read_bytes())
    assert damage.uncorrectable > 0 < damage.corrected
    assert report.lost
    rates = {name: drawn.bits / (32 * 78_900) for name, drawn in flips.tensors.items() if name == "large"}
    assert rates["large"] == pytest.approx(0.04, rel=0.05)


def patched(prepared: Prepared, damage: Damage) -> dict[str, bytes]:
    """Tensors with the patches of a trial."""
    result = {}
    for name, base in prepared.base.items():
        data = base.copy()
        if name in damage.patches:
            patch = damage.patches[name]
            data.view(patch.words.dtype)[patch.elements] = patch.words
        result[name] = data.tobytes()
    return result


@pytest.mark.parametrize(("guard", "case"), GUARDED)
def test_decoding_in_memory_gives_the_tensors_that_restore_gives(guard: str, case: str, tmp_path: Path) -> None:
    code, representation, mask, rate = CASES[case]
    source, container, worn = checkpoint(tmp_path), tmp_path / "model.ckg", tmp_path / "worn.ckg"
    masks = rules(mask, representation)
    protect(source, container, masks=masks, code=code, representation=representation, guard=guard)
    subject = Subject.open(source)
    variants = {
        policy: Variant(policy, representation, masks, code, policy, guard) for policy in ("raw", "null", "raise")
    }
    prepared = {policy: Prepared(subject, variant) for policy, variant in variants.items()}
    seen: set[str] = set()
    for seed, share in ((1, 1.0), (2, 0.9), (3, 0.6), (4, 0.05)):
        fault = faults.make(f"bsc:{rate * share}")
        flips = prepared["raw"].draw(fault, seed, 0)
        worn.write_bytes(damage_container(container, prepared["raw"], flips))
        for policy in ("raw", "null"):
            report = restore(worn, tmp_path / "out.safetensors", policy=policy, overwrite=True)
            expected = read_safetensors((tmp_path / "out.safetensors").read_bytes())
            damage = prepared[policy].trial(fault, seed, 0)
            found = patched(prepared[policy], damage)
            assert found.keys() == expected.keys()
            assert [name for name in found if found[name] != expected[name]] == []
            changes = sum(tensor.guarded_bits + tensor.guarded_elements for tensor in report.tensors)
            assert (damage.guarded > 0) == (changes > 0) == (guard != "none")
            assert damage.guarded <= changes
            seen |= {word for word in ("corrected", "uncorrectable", "miscorrected") if getattr(damage, word)}
        raised = False
        try:
            restore(worn, tmp_path / "out.safetensors", strict=True, overwrite=True)
        except UncorrectableError:
            raised = True
        refused = prepared["raise"].trial(fault, seed, 0)
        assert refused.raised == raised
        assert not (raised and refused.patches)
    assert "corrected" in seen
    assert "uncorrectable" in seen or guard != "none"
    assert "miscorrected" in seen or guard != "none" or codes.make(code).t > 1 or code == "crc"


@pytest.mark.parametrize("representation", ["native", "fixed:8"])
@pytest.mark.parametrize("others", ["bch:255,131", "none"])
def test_bits_that_digests_judge_and_no_code_corrects_are_as_a_container_has_them(others, representation, tmp_path):
    source, container, worn = checkpoint(tmp_path), tmp_path / "model.ckg", tmp_path / "worn.ckg"
    floats = (Rule(("large", "variance"), "top:1", "none"), Rule(("half", "weight"), "top:4", others))
    masks = MaskSet((*floats, Rule(("*",), "none")))
    protect(source, container, masks=masks, code=others, representation=representation, guard="tensor")
    subject = Subject.open(container)
    assert subject.variant is not None
    given = Prepared(Subject.open(source), Variant("given", representation, masks, others, "raise", "tensor"))
    of_container = Prepared(subject, subject.variant)
    assert given.redundancy == of_container.redundancy
    kept, refused = 0, set()
    for seed in range(8):
        fault = faults.make(f"bsc:{10 ** -(4 + seed / 3)}")
        flips, damage = of_container.draw(fault, seed, 0), of_container.trial(fault, seed, 0)
        worn.write_bytes(damage_container(container, of_container, flips))
        restore(worn, tmp_path / "out.safetensors", overwrite=True)
        assert patched(of_container, damage) == read_safetensors((tmp_path / "out.safetensors").read_bytes())
        kept += sum(1 for patch in damage.patches.values() for word in patch.words.tolist() if word == 0x80000000)
        raised = given.trial(fault, seed, 0).raised
        refused.add(raised)
        if raised:
            with pytest.raises(UncorrectableError):
                restore(worn, tmp_path / "out.safetensors", strict=True, overwrite=True)
        else:
            restore(worn, tmp_path / "out.safetensors", strict=True, overwrite=True)
    assert kept > 0 or representation != "native"  # words replaced by zero that keep their proven sign
    assert refused == {True, False}


@pytest.mark.parametrize(("code", "representation"), [("bch:511,259", "native"), ("crc", "fixed:7")])
def test_parity_in_memory_is_that_of_the_container(code: str, representation: str, tmp_path: Path) -> None:
    source, container = checkpoint(tmp_path), tmp_path / "model.ckg"
    protect(source, container, masks=MaskSet.top(5), code=code, representation=representation)
    prepared = Prepared(Subject.open(source), Variant("v", representation, MaskSet.top(5), code))
    with open_set(container) as (shard,):
        stored = [s for s in shard.plan.streams if s.planes and s.code.spec != "none"]
        for stream, (_, coder) in zip(stored, sorted(prepared.coders.items()), strict=True):
            parity = shard.file.read_parity(stream.parity_offset, stream.parity_bytes)
            assert (coder.parity_image() == parity).all()


def test_a_container_is_a_subject_with_its_own_masks_codes_and_devices(tmp_path: Path) -> None:
    source, container = checkpoint(tmp_path), tmp_path / "set"
    masks = MaskSet(
        (Rule(("large",), "top:2", "secded:72,64"), Rule(("half", "weight"), "top:4"), Rule(("*",), "none"))
    )
    devices = DeviceMap.parse(
        '[[device]]\nname = "flash"\nchannel = "bsc:0.001"\ntensors = ["large"]\n'
        '[[device]]\nname = "disk"\nchannel = "bsc:0.01"\ntensors = ["*"]\n'
    )
    protect(source, container, masks=masks, code="bch:255,131", representation="fixed:9", devices=devices)
    subject = Subject.open(container)
    plain = Subject.open(source)
    assert subject.variant is not None
    assert subject.devices["large"].name == "flash"
    assert subject.devices["half"].name == "disk"
    prepared = Prepared(subject, subject.variant)
    again = Prepared(plain, Variant("same", "fixed:9", masks, "bch:255,131"))
    damage = prepared.trial(faults.of_devices(subject.devices), 1, 0)
    large = 9 * subject.tensors["large"].elements
    assert damage.expected_flips == pytest.approx(0.001 * large + 0.01 * (damage.stored_bits - large))
    assert prepared.masks["large"] == ("110000000", "secded:72,64")
    assert prepared.masks["half"] == ("111100000", "bch:255,131")
    assert prepared.masks["flags"] == ("00000000", "none")
    assert {name: base.tobytes() for name, base in prepared.base.items()} == {
        name: base.tobytes() for name, base in again.base.items()
    }
    restore(container, tmp_path / "out.safetensors")
    expected = read_safetensors((tmp_path / "out.safetensors").read_bytes())
    assert {name: base.tobytes() for name, base in prepared.base.items()} == expected
    assert prepared.redundancy == pytest.approx(again.redundancy)


def test_a_native_container_is_the_same_subject_as_its_checkpoint(tmp_path: Path) -> None:
    source, container = checkpoint(tmp_path), tmp_path / "model.ckg"
    protect(source, container, bits=9, code="bch:255,131")
    subject, plain = Subject.open(container), Subject.open(source)
    assert subject.digest == plain.digest
    assert subject.variant is not None
    fault = faults.make("bsc:0.05")
    one = Prepared(subject, subject.variant).trial(fault, 4, 2)
    assert subject.variant.granularity == "tensor"
    other = Prepared(plain, Variant("v", masks=MaskSet.top(9), code="bch:255,131", guard=True)).trial(fault, 4, 2)
    assert one.residual_by_tensor == other.residual_by_tensor
    assert one.uncorrectable == other.uncorrectable > 0


def test_a_damaged_container_is_no_subject(tmp_path: Path) -> None:
    source, container = checkpoint(tmp_path), tmp_path / "model.ckg"
    protect(source, container, bits=3, code="secded:72,64")
    with open_set(container) as (shard,):
        place = shard.file.superblock.payload_offset + shard.plan.parts[1].stored_offset
    data = bytearray(container.read_bytes())
    data[place] ^= 1
    container.write_bytes(data)
    with pytest.raises(CheckpointError, match="large cannot be read as written"):
        Subject.open(container)


def test_a_torch_file_and_a_folder_are_subjects(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(6.0), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "m.pt")
    found = Subject.open(tmp_path / "m.pt")
    assert found.tensors["w"].data.view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, name in enumerate("pq"):
        (folder / f"{name}.safetensors").write_bytes(safetensors_bytes(tensors(number, **{name: ("F32", (5,))})))
    (folder / "config.json").write_text("{}")
    assert Subject.open(folder).shards == (("p",), ("q",))


def test_an_ideal_code_leaves_flips_of_unprotected_bits_only_and_costs_what_capacity_says(tmp_path: Path) -> None:
    subject = Subject.open(checkpoint(tmp_path))
    prepared = Prepared(subject, Variant("ideal", masks=MaskSet.top(9), code="ideal"))
    damage = prepared.trial(faults.make("bsc:0.02"), 1, 0)
    plain = Prepared(subject, Variant("none")).trial(faults.make("bsc:0.02"), 1, 0)
    assert damage.flips_by_bit == plain.flips_by_bit
    assert damage.residual_by_bit == {bit: count for bit, count in plain.flips_by_bit.items() if bit >= 9}
    assert math.isnan(prepared.redundancy)
    words = {name: tensor.elements for name, tensor in subject.tensors.items()}
    bits = {name: tensor.dtype.word_bits for name, tensor in subject.tensors.items()}
    share = sum(min(9, bits[name]) * words[name] for name in words) / sum(bits[name] * words[name] for name in words)
    entropy = float(stats.entropy([0.02, 0.98], base=2))
    assert prepared.redundancy_at(0.02) == pytest.approx(share * entropy / (1 - entropy))
    priced = Prepared(subject, Variant("ideal", masks=MaskSet.top(9), code="ideal:0.02"))
    assert priced.redundancy == pytest.approx(prepared.redundancy_at(0.02))


def test_redundancy_is_that_of_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(tensors(1, w=("F32", (10_000,)))))
    prepared = Prepared(Subject.open(path), Variant("v", masks=MaskSet.top(9), code="bch:8191,6722"))
    assert prepared.redundancy == pytest.approx(9 / 32 * (8191 - 6722) / 6722)
    assert Prepared(Subject.open(path), Variant("none", masks=MaskSet.top(9))).redundancy == 0.0


@pytest.mark.parametrize("spec", ["q:2.6", "q:1.3", "q:4.12", "q:2.6,sign-magnitude"])
def test_a_q_format_steps_by_a_power_of_two_and_is_clipped_to_its_integer_bits(spec: str, tmp_path: Path) -> None:
    whole, fraction = map(int, spec.removeprefix("q:").split(",")[0].split("."))
    values = np.array([0.0, 0.3, -0.3, 0.49, 1.01, -1.7, 1e9, -1e9, 2.0**-fraction, -(2.0**-fraction)], "<f4")
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F32", (10,), values.tobytes())}))
    prepared = Prepared(Subject.open(path), Variant("q", spec))
    step, limit = 2.0**-fraction, 2.0 ** (whole - 1) - 2.0**-fraction
    expected = np.clip(np.round(values.astype(float) / step) * step, -limit, limit)
    assert (prepared.base["w"].view("<f4") == expected).all()


def test_a_flipped_sign_bit_is_worth_what_the_encoding_says(tmp_path: Path) -> None:
    values = np.array([0.75, -0.75], "<f4")
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F32", (2,), values.tobytes())}))
    subject, everything = Subject.open(path), faults.make("bsc:1")
    sign = faults.Scope(bits=(0,))
    for spec, expected in {
        "q:2.6": [-1.25, 1.25],  # two's complement: 2 away, as its sign bit weighs -2
        "q:2.6,sign-magnitude": [-0.75, 0.75],
        "native": [-0.75, 0.75],
        "cast:bfloat16": [-0.75, 0.75],
        "cast:float16": [-0.75, 0.75],
    }.items():
        damage = Prepared(subject, Variant("v", spec)).trial(everything, 1, 0, sign)
        assert damage.patches["w"].words.view("<f4").tolist() == expected


def test_tensors_have_formats_of_their_own_and_others_stay_native(tmp_path: Path) -> None:
    subject = Subject.open(checkpoint(tmp_path))
    pairs = (("large", "q:2.6"), ("b*", "cast:float16"), ("double", "cast:bfloat16"), ("w*", "fixed:4"))
    prepared = Prepared(subject, Variant("mixed", pairs))
    bits = {name: one.bits for name, one in prepared.encodings.items()}
    assert (bits["large"], bits["brain"], bits["double"], bits["weight"]) == (8, 16, 16, 4)
    assert (bits["half"], bits["steps"], bits["complex"]) == (16, 64, 32)
    assert prepared.trial(faults.make("bsc:0.0"), 1, 0).patches == {}


def test_casts_round_as_torch_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(4)
    words = generator.integers(0, 2**32, 20_000, dtype=np.uint32).view("<f4")
    words = words[np.isfinite(words)]
    for dtype, kind in (("F32", "<f4"), ("F64", "<f8")):
        values = words.astype(kind)
        path = tmp_path / f"{dtype}.safetensors"
        path.write_bytes(safetensors_bytes({"w": (dtype, values.shape, values.tobytes())}))
        for spec, target in (("cast:bfloat16", torch.bfloat16), ("cast:float16", torch.float16)):
            prepared = Prepared(Subject.open(path), Variant("v", spec))
            expected = torch.from_numpy(values.copy()).to(target).to(torch.from_numpy(values.copy()).dtype).numpy()
            assert prepared.base["w"].tobytes() == expected.tobytes()


def test_a_guard_forces_what_never_varies_and_clears_what_is_impossible(tmp_path: Path) -> None:
    subject = Subject.open(checkpoint(tmp_path))
    guarded = Prepared(subject, Variant("guard", guard=True))
    plain = Prepared(subject, Variant("none"))
    fault = faults.make("bsc:0.02")
    damage, before = guarded.trial(fault, 3, 0), plain.trial(fault, 3, 0)
    assert damage.flips == before.flips == before.residual_bits > damage.residual_bits
    assert before.non_finite > 0
    assert damage.non_finite == 0
    assert damage.guarded > 0
    largest = np.abs(subject.tensors["large"].data.view("<f4")).max()
    assert np.abs(damage.patches["large"].words.view("<f4")).max() <= largest * (1 + 2**-7)  # bounds have 16 bits
    assert np.nanmax(np.abs(before.patches["large"].words.view("<f4"))) > largest
    assert max(patched(guarded, damage)["flags"]) <= 1 < max(patched(plain, before)["flags"])


@pytest.mark.parametrize("guard", ["none", "tensor", "channel", "group:100"])
def test_what_guards_take_is_what_the_container_pays_for_them(guard: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    made = inspect(protect(source, tmp_path / "m.ckg", bits=9, code="bch:255,131", guard=guard).path)
    subject = Subject.open(tmp_path / "m.ckg")
    assert subject.variant is not None
    assert subject.variant.granularity == guard
    found_in = Prepared(Subject.open(source), Variant("v", guard=guard))
    found = found_in.guard_bits
    groups = sum(tensor.guard_groups for tensor in made.tensors)
    assert found.stored == 8 * 4 * sum(shard.guard_bytes for shard in made.shards)  # armour doubles, two copies
    assert (found.plain == 0) == (groups == 0) == (guard == "none")
    if guard == "tensor":
        widths = [one.words.dtype.itemsize for one in found_in.encodings.values() if one.elements]
        assert found.plain == 8 * sum(4 + 4 * width for width in widths)


def test_variants_come_back_from_their_records() -> None:
    for variant in (
        Variant("none"),
        Variant("a", "fixed:8,sign-magnitude", MaskSet.top(4), "bch:8191,6722", "null", True),
        Variant("b", (("x*", "q:2.6"), ("*", "cast:bfloat16")), None, "ideal:0.01", "raise"),
        Variant("c", guard="channel"),
        Variant("d", guard="group:256"),
    ):
        assert Variant.from_json(json.loads(json.dumps(variant.to_json()))) == variant


def test_guards_are_named_as_protect_names_them_or_switched() -> None:
    assert {Variant("v", guard=off).guard for off in (False, None, "none")} == {False}
    assert Variant("v", guard=True) == Variant("v", guard="tensor")


@pytest.mark.parametrize(
    "settings",
    [
        {"guard": "row"},
        {"guard": "group:0"},
        {"policy": "ignore"},
        {"code": "bhc:255,131"},
        {"code": "ideal:2"},
        {"representation": "cast:float8"},
        {"representation": "q:0.8"},
        {"representation": "q:2"},
        {"representation": (("*", "fixed:99"),)},
    ],
)
def test_variants_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Variant("v", **settings)


def failing(prepared: Prepared, decoder: str, p: float, trials: int) -> tuple[list[int], list[int], list[int]]:
    """Uncorrectable codewords, corrected ones and residual protected bits of trials."""
    rows = [prepared.trial(faults.make(f"bsc:{p}"), 9, trial, decoder=decoder) for trial in range(trials)]
    residual = [sum(count for bit, count in row.residual_by_bit.items() if bit < 6) for row in rows]
    return [row.uncorrectable + row.miscorrected for row in rows], [row.corrected for row in rows], residual


def test_sampled_failures_are_distributed_as_those_of_the_decoder(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(tensors(1, w=("F32", (12_345,)), v=("F32", (77,)))))
    variant = Variant("v", masks=MaskSet.top(6), code="bch:255,131")
    prepared = Prepared(Subject.open(path), variant)
    p, trials = 0.055, 60
    real, sampled = failing(prepared, "exact", p, trials), failing(prepared, "sampled", p, trials)
    (coder,) = prepared.coders.values()
    bits, lanes = 6 * 2 * (-(-12_345 // 2) + -(-77 // 2)), coder.codewords
    long = bits - lanes * (-(-bits // lanes) - 1)
    length = -(-bits // lanes) + 124
    expected = long * stats.binom.sf(18, length, p) + (lanes - long) * stats.binom.sf(18, length - 1, p)
    for failures, corrected, _ in (real, sampled):
        assert stats.poisson.cdf(sum(failures), trials * expected) > 1e-6  # binomial counts vary less than Poisson's
        assert stats.poisson.sf(sum(failures) - 1, trials * expected) > 1e-6
        assert abs(np.mean(failures) - expected) < 5 * np.sqrt(expected / trials)
        assert all(f + c <= lanes for f, c in zip(failures, corrected, strict=True))
    for one, other in zip(real, sampled, strict=True):
        assert stats.mannwhitneyu(one, other).pvalue > 1e-6
        assert np.std(one) == pytest.approx(np.std(other), rel=0.5)


def test_sampled_failures_with_guards_are_distributed_as_those_of_the_decoder(tmp_path: Path) -> None:
    subject = Subject.open(checkpoint(tmp_path))
    masks = MaskSet((Rule(("large", "weight", "variance"), "top:6"), Rule(("*",), "none")))
    rows = {}
    for guard in ("none", "tensor"):
        prepared = Prepared(subject, Variant("v", masks=masks, code="bch:255,131", guard=guard))
        rows[guard] = [failing(prepared, decoder, 0.055, 30) for decoder in ("exact", "sampled")]
    real, sampled = rows["tensor"]
    assert sum(real[0]) < 0.7 * sum(rows["none"][0][0])
    for one, other in zip(real, sampled, strict=True):
        assert stats.mannwhitneyu(one, other).pvalue > 1e-6
        assert np.mean(one) == pytest.approx(np.mean(other), rel=0.2, abs=1.0)


def test_sampling_draws_unprotected_bits_as_always_and_is_refused_where_it_would_not_be_exact(tmp_path: Path) -> None:
    subject = Subject.open(checkpoint(tmp_path))
    prepared = Prepared(subject, Variant("v", masks=MaskSet.top(6), code="bch:255,131"))
    fault = faults.make("bsc:0.01")
    exact, sampled = prepared.trial(fault, 1, 0), prepared.trial(fault, 1, 0, decoder="sampled")
    assert sampled.flips_by_bit == {bit: n for bit, n in exact.residual_by_bit.items() if bit > 5}
    for code, spec, scope in (
        ("secded:72,64", "bsc:0.01", None),
        ("bch:255,131,outer=4", "bsc:0.01", None),
        ("bch:255,231", "bsc:0.01", None),
        ("bch:255,131", "asymmetric:0.01,0.02", None),
        ("bch:255,131", "flips:3", None),
        ("bch:255,131", "bsc:0.01", faults.Scope(bits=(1,))),
        ("bch:255,131", "bsc:0.01", faults.Scope(tensors=("large",))),
    ):
        with pytest.raises(UsageError):
            Prepared(subject, Variant("v", masks=MaskSet.top(6), code=code)).trial(
                faults.make(spec), 1, 0, scope, decoder="sampled"
            )
