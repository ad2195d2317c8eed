"""Range guards: what they record, what they change, how containers keep them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from containers import Anatomy, flip, flip_bits, mixed, read_safetensors, safetensors_bytes
from reference_reader import read_set

import ckptguard
from ckptguard.dtypes import DTYPES, SIGN_MAGNITUDE, TWOS_COMPLEMENT
from ckptguard.errors import ContainerError, SpecError, UncorrectableError, UsageError
from ckptguard.evaluate.values import to_float64
from ckptguard.guards import Builder, Counts, TensorGuard, WordForm, group_words, pack, unpack
from ckptguard.pipeline.check import check
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.repair import repair
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.verify import verify

GRANULARITIES = ("tensor", "channel", "group:8", "group:100")
SHAPE = (12, 50)
COUNT = 600
UNLIKE_OTHERS = ("F4", "F6_E2M3", "F6_E3M2", "C64")  # words that are no elements


def sample(name: str, seed: int = 0, count: int = COUNT) -> npt.NDArray[np.uint8]:
    """Bytes of a tensor such as models have: small finite floats, small integers."""
    generator, dtype = np.random.default_rng(seed), DTYPES[name]
    values = generator.standard_normal(count) * 0.05
    if name in ("F64", "F32", "F16", "C64"):
        return values.astype({"F64": "<f8", "F16": "<f2"}.get(name, "<f4")).view(np.uint8)
    if name == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    if name == "BOOL":
        return generator.integers(0, 2, count).astype(np.uint8)
    if name.startswith("F"):
        codes = generator.integers(0, 256, 8 * count).astype(np.uint8)
        known = to_float64(dtype, codes)
        return codes[:count] if known is None else codes[np.isfinite(known) & (np.abs(known) < 16)][:count]
    return generator.integers(0, 100, count).astype(dtype.numpy).view(np.uint8)


def damaged(data: npt.NDArray[np.uint8], rate: float, seed: int = 1) -> npt.NDArray[np.uint8]:
    return np.frombuffer(flip(data.tobytes(), rate, seed), np.uint8).copy()


@pytest.mark.parametrize("name", ["U8", "BF16", "F32", "F64"])
def test_kernels_count_every_bit_where_every_bit_of_every_word_is_wrong(name):
    form = WordForm.of(DTYPES[name])
    words = np.full(1000, 3, form.type)
    guard = TensorGuard.of_words(form, words, 1000)
    worn, also_worn = ~words, ~words
    assert guard.force_in_place(worn) == 1000 * form.bits
    assert guard.apply_in_place(also_worn) == Counts(1000 * form.bits, 0)
    assert (worn == words).all()
    assert (also_worn == words).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", DTYPES)
def test_a_guard_changes_nothing_of_what_it_was_made_from(name: str, granularity: str) -> None:
    data = sample(name)
    guard = TensorGuard.of(DTYPES[name], data, granularity, SHAPE)
    words = data.view(guard.form.type).copy()
    assert guard.apply_in_place(words) == Counts()
    assert not guard.apply(words).changed.any()
    assert words.tobytes() == data.tobytes()


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E8M0", "C64"])
def test_after_a_guard_every_value_is_finite_and_within_the_recorded_interval(name: str) -> None:
    data = sample(name)
    guard = TensorGuard.of(DTYPES[name], data, "group:100")
    words = damaged(data, 0.05).view(guard.form.type)
    applied = guard.apply(words)
    values, original = to_float64(DTYPES[name], applied.words.view(np.uint8)), to_float64(DTYPES[name], data)
    assert values is not None
    assert original is not None
    assert applied.replaced.any()
    for start in range(0, words.size, 100):
        here, before = values[start : start + 100], original[start : start + 100]
        assert np.isfinite(here).all()
        slack = 2.0**-4 if name == "F64" else 2.0**-7  # bounds are rounded outwards to 16 bits of a word
        bound = np.abs(before).max() * (1 + slack)
        assert np.abs(here).max() <= bound


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", DTYPES)
def test_a_bit_that_is_set_back_is_right_and_a_replaced_word_was_wrong(name: str, granularity: str) -> None:
    data = sample(name)
    guard = TensorGuard.of(DTYPES[name], data, granularity, SHAPE)
    original, worn = data.view(guard.form.type), damaged(data, 0.02).view(guard.form.type)
    applied = guard.apply(worn)
    moved = applied.words ^ worn
    kept = ~applied.replaced
    assert ((moved & ~(worn ^ original))[kept] == 0).all()
    assert (worn != original)[applied.replaced].all()
    assert applied.forced.sum() == np.bitwise_count(moved[kept]).sum()


@pytest.mark.parametrize("policy", ["null", "clip"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", DTYPES)
def test_the_compiled_guard_agrees_with_the_plain_one_wherever_a_run_of_words_begins(
    name: str, granularity: str, policy: str
) -> None:
    data = sample(name)
    guard = TensorGuard.of(DTYPES[name], data, granularity, SHAPE)
    words = damaged(data, 0.02).view(guard.form.type)
    for first, stop, kept in ((0, words.size, 0), (13, words.size - 5, 3), (599, 600, 0), (8, 8, 0)):
        run = words[first:stop].copy()
        counts = guard.apply_in_place(run, first, policy, kept)
        expected = guard.apply(words[first:stop], np.arange(first, stop), policy, kept)
        assert (run == expected.words).all()
        assert counts == expected.counts
        forced = words[first:stop].copy()
        group = np.arange(first, stop) // guard.group
        right = (forced | guard.always[group]) & guard.ever[group]
        assert guard.force_in_place(forced, first) == int(np.bitwise_count(words[first:stop] ^ right).sum())
        assert (forced == right).all()


def test_words_may_be_given_one_by_one_in_any_order() -> None:
    data = sample("F32")
    guard = TensorGuard.of(DTYPES["F32"], data, "channel", SHAPE)
    words = damaged(data, 0.02).view("<u4")
    order = np.random.default_rng(0).permutation(COUNT)[:77]
    assert (guard.apply(words[order], order).words == guard.apply(words).words[order]).all()


@pytest.mark.parametrize("pieces", [1, 7, 64, 599])
def test_a_guard_is_the_same_however_the_words_are_cut(pieces: int) -> None:
    data = sample("BF16").view("<u2")
    whole = TensorGuard.of_words(WordForm.of(DTYPES["BF16"]), data, 50)
    builder = Builder(WordForm.of(DTYPES["BF16"]), COUNT, 50)
    for first in reversed(range(0, COUNT, pieces)):
        builder.add(builder.measure(data[first : first + pieces].copy(), first))
    built = builder.guard()
    for column in ("ever", "always", "low", "high"):
        assert (getattr(whole, column) == getattr(built, column)).all()


def test_a_word_becomes_what_is_nearest_to_zero_or_to_itself() -> None:
    values = np.array([0.5, 0.75, 2.0, 3.0], "<f4")
    guard = TensorGuard.of(DTYPES["F32"], values.view(np.uint8))
    given = np.array([9.0, 0.1, 0.6, np.nan, np.inf, -np.inf], "<f4").view("<u4")
    top = struct.unpack("<f", struct.pack("<I", 0x4040FFFF))[0]  # 3.0 with its lower 16 bits set
    free = TensorGuard(guard.form, 9, 9, ~(guard.ever & 0), guard.always & 0, guard.low, guard.high)
    assert free.apply(given).words.view("<f4").tolist() == [0.5, 0.5, np.float32(0.6), 0.5, 0.5, 0.5]
    clipped = free.apply(given, policy="clip").words.view("<f4").tolist()
    assert clipped == [top, 0.5, np.float32(0.6), top, top, 0.5]
    around = TensorGuard.of(DTYPES["F32"], np.array([-1.0, 1.0], "<f4").view(np.uint8))
    assert around.nearest_to_zero.tolist() == [0]


def test_integers_and_codes_are_held_to_their_own_order() -> None:
    numbers = np.array([-3, 5, 2], "<i2")
    guard = TensorGuard.of(DTYPES["I16"], numbers.view(np.uint8))
    free = TensorGuard(guard.form, 9, 9, guard.ever | 0xFFFF, guard.always & 0, guard.low, guard.high)
    given = np.array([-4, -3, 6, 5, 0], "<i2").view("<u2")
    assert free.apply(given).words.view("<i2").tolist() == [0, -3, 0, 5, 0]
    for order, code in ((TWOS_COMPLEMENT, 0b1000), (SIGN_MAGNITUDE, 0b1111)):
        form = WordForm.of_codes(4, order)
        extent = np.array([3, 0b1110 if order == SIGN_MAGNITUDE else 0b1010], "<u2")  # 3 and -6
        codes = TensorGuard.of_words(form, extent, 2)
        loose = TensorGuard(form, 9, 9, codes.ever | 15, codes.always & 0, codes.low, codes.high)
        assert loose.apply(np.array([code, *extent], "<u2")).words.tolist() == [0, *extent.tolist()]


def test_a_negative_zero_of_a_fnuz_float_is_no_number_unless_it_was_one() -> None:
    finite = TensorGuard.of(DTYPES["F8_E4M3FNUZ"], np.array([0x08, 0x88, 0x11], np.uint8))
    free = TensorGuard(finite.form, 3, 3, finite.ever | 0xFF, finite.always & 0, finite.low, finite.high)
    assert free.apply(np.array([0x80], np.uint8)).words.tolist() == [0]
    holds = TensorGuard.of(DTYPES["F8_E4M3FNUZ"], np.array([0x08, 0x80], np.uint8))
    assert holds.apply(np.array([0x80], np.uint8)).words.tolist() == [0x80]


def test_constant_tensors_come_back_wholly() -> None:
    data = np.full(40, 1.5, "<f4").view(np.uint8)
    guard = TensorGuard.of(DTYPES["F32"], data)
    assert guard.apply(damaged(data, 0.4).view("<u4")).words.tobytes() == data.tobytes()


@pytest.mark.parametrize(
    ("granularity", "words", "shape", "expected"),
    [
        ("tensor", 600, (12, 50), 600),
        ("channel", 600, (6, 100), 100),
        ("channel", 600, (12, 50), 100),
        ("channel", 900, (100, 1, 3, 3), 72),
        ("channel", 600, (600,), 600),
        ("channel", 1, (), 1),
        ("channel", 9, (3, 3), 9),
        ("group:8", 600, (12, 50), 8),
        ("group:1000", 600, (12, 50), 600),
    ],
)
def test_groups_are_runs_of_words(granularity: str, words: int, shape: tuple[int, ...], expected: int) -> None:
    assert group_words(granularity, words, shape) == expected


@pytest.mark.parametrize("granularity", ["tensors", "group", "group:", "group:0", "group:-1", "group:4294967295", "8"])
def test_an_unknown_granularity_is_refused(granularity: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(mixed())
    with pytest.raises(SpecError, match=r"granularity|whole number"):
        protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", guard=granularity)
    assert not (tmp_path / "m.ckg").exists()


def test_an_unknown_guard_policy_lists_the_known_ones() -> None:
    guard = TensorGuard.of(DTYPES["F32"], sample("F32"))
    with pytest.raises(UsageError, match="known: null, clip"):
        guard.apply(sample("F32").view("<u4"), policy="zero")


def test_packed_guards_are_read_back() -> None:
    forms = [WordForm.of(DTYPES[name]) for name in ("F32", "U8", "F64", "F32", "BF16")]
    sizes = [600, 600, 600, 0, 600]
    guards: list[TensorGuard | None] = [
        TensorGuard.of(DTYPES["F32"], sample("F32"), "channel", SHAPE),
        None,
        TensorGuard.of(DTYPES["F64"], sample("F64")),
        None,
        TensorGuard.of(DTYPES["BF16"], sample("BF16"), "group:7"),
    ]
    data = pack(guards)
    found = unpack(data, forms, sizes)
    assert pack(found) == data
    assert [guard is None for guard in found] == [guard is None for guard in guards]
    assert len(data) == 4 * 5 + 16 * 6 + 32 * 1 + 8 * 86
    assert (found[4].low == guards[4].low).all()  # type: ignore[union-attr]


# Containers -----------------------------------------------------------------------------------------------------------


def model(seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A small model: weights around zero, a scale above it, whole numbers."""
    generator = np.random.default_rng(seed)
    scale = generator.uniform(0.5, 1.5, 300).astype("<f4")
    return {
        "weight": ("F32", (300, 200), sample("F32", seed, 60_000).tobytes()),
        "brain": ("BF16", (40, 100), sample("BF16", seed, 4000).tobytes()),
        "half": ("F16", (333,), sample("F16", seed, 333).tobytes()),
        "scale": ("F32", (300,), scale.tobytes()),
        "places": ("I64", (512,), np.arange(512, dtype="<i8").tobytes()),
        "small": ("F8_E4M3", (7, 11), sample("F8_E4M3", seed, 77).tobytes()),
        "nothing": ("F32", (0, 3), b""),
    }


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    def make(**settings: Any) -> Path:
        names = settings.pop("names", list(model()))
        (tmp_path / "m.safetensors").write_bytes(safetensors_bytes({name: model()[name] for name in names}))
        protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", **{"code": "none"} | settings)
        return tmp_path / "m.ckg"

    return make


def worn_payload(container: Path, rate: float, seed: int = 5) -> Path:
    """A copy with payload bits flipped, and none of the metadata's."""
    data = container.read_bytes()
    block = Anatomy.of(data).superblock
    begin, end = block.payload_offset, block.payload_offset + block.payload_bytes
    worn = container.with_name("worn.ckg")
    worn.write_bytes(data[:begin] + flip(data[begin:end], rate, seed) + data[end:])
    return worn


def payload_of(container: Path) -> npt.NDArray[np.uint8]:
    """The stored bytes."""
    data = container.read_bytes()
    block = Anatomy.of(data).superblock
    return np.frombuffer(data[block.payload_offset :][: block.payload_bytes], np.uint8)


def numbers_of(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    content = read_safetensors(path.read_bytes())
    values = {
        name: to_float64(DTYPES[dtype], np.frombuffer(content[name], np.uint8))
        for name, (dtype, _, _) in model().items()
    }
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("representation", ["native", "fixed:8", "fixed:6,sign-magnitude"])
@pytest.mark.parametrize("guard", ["tensor", "channel", "group:64", "none"])
def test_an_undamaged_container_with_guards_gives_the_original(
    guard: str, representation: str, made: Callable[..., Path], tmp_path: Path
) -> None:
    plain = made(guard="none", representation=representation)
    restore(plain, tmp_path / "plain")
    container = made(guard=guard, representation=representation, overwrite=True)
    report = restore(container, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "plain").read_bytes()
    assert all(tensor.guarded_bits == tensor.guarded_elements == 0 for tensor in report.tensors)


@pytest.mark.parametrize("representation", ["native", "fixed:8"])
def test_without_any_code_all_weights_stay_finite_and_small_at_1e_2(
    representation: str, made: Callable[..., Path], tmp_path: Path
) -> None:
    worn = worn_payload(made(representation=representation, bits=3), 1e-2)
    report = restore(worn, tmp_path / "on")
    restore(worn, tmp_path / "off", guard=False)
    restore(tmp_path / "m.ckg", tmp_path / "clean")
    guarded, bare, clean = (numbers_of(tmp_path / name) for name in ("on", "off", "clean"))
    for name, values in guarded.items():
        assert np.isfinite(values).all()
        if values.size:
            assert np.abs(values).max() <= np.abs(clean[name]).max() * (1 + 2**-7)
    assert guarded["scale"].min() > 0.49  # never zero where zero never was
    assert guarded["places"].max() < 512
    if representation == "native":
        assert not all(np.isfinite(values).all() for values in bare.values())
    rows = {tensor.name: tensor for tensor in report.tensors}
    assert rows["weight"].guarded_elements > 0
    assert not report.exact


def test_guards_never_make_a_bit_wrong_that_is_protected(made: Callable[..., Path], tmp_path: Path) -> None:
    container = made(code="bch:1023,513", bits=4, guard="channel")
    worn = worn_payload(container, 5e-3)
    report = restore(worn, tmp_path / "out")
    rows = {tensor.name: tensor for tensor in report.tensors}
    assert rows["weight"].state == "protected-exact"
    assert rows["weight"].guarded_elements > 0
    found, original = read_safetensors((tmp_path / "out").read_bytes()), model()
    for name, mask in (("weight", 0xF0000000), ("brain", 0xF000)):
        width = "<u4" if name == "weight" else "<u2"
        wrong = np.frombuffer(found[name], width) ^ np.frombuffer(original[name][2], width)
        assert not (wrong & mask).any()
        assert wrong.any()


def test_bits_set_back_before_decoding_save_codewords(made: Callable[..., Path], tmp_path: Path) -> None:
    container = made(code="bch:1023,848", bits=9)
    worn = worn_payload(container, 1.4e-2)
    with_guards = restore(worn, tmp_path / "on")
    without = restore(worn, tmp_path / "off", guard=False)
    assert (without.shards[0].uncorrectable_codewords > with_guards.shards[0].uncorrectable_codewords) is True
    assert len(with_guards.lost) <= len(without.lost)


def test_repair_writes_what_is_certain_and_nothing_that_is_only_likely(made: Callable[..., Path]) -> None:
    container = made()
    worn = worn_payload(container, 1e-2)
    report = repair(worn, container.with_name("healed.ckg"))
    files = (container, worn, container.with_name("healed.ckg"))
    clean_bits, read_bits, healed_bits = (payload_of(path) for path in files)
    changed = read_bits ^ healed_bits
    assert not (changed & ~(read_bits ^ clean_bits)).any()
    header = sum(tensor.corrected_bits for tensor in report.tensors if tensor.kind == "header")
    assert sum(tensor.guarded_bits for tensor in report.tensors) == np.bitwise_count(changed).sum() - header > 0
    assert all(tensor.guarded_elements == 0 for tensor in report.tensors)
    untouched = repair(worn, container.with_name("bare.ckg"), guard=False)
    assert all(tensor.guarded_bits == 0 for tensor in untouched.tensors)


def test_what_guards_make_whole_is_called_exact_only_by_its_digest(made: Callable[..., Path], tmp_path: Path) -> None:
    container = made()
    anatomy = Anatomy.of(container.read_bytes())
    header = len(anatomy.sections["HEAD"].data)
    start = 8 * (anatomy.superblock.payload_offset + header)
    worn = tmp_path / "worn.ckg"
    worn.write_bytes(flip_bits(container.read_bytes(), [start + 32 * 7 + 30]))  # the exponent's top bit, always 0
    report = check(worn)
    row = next(tensor for tensor in report.tensors if tensor.name == "weight")
    assert (row.found, row.state, row.guarded_bits) == ("lost", "exact", 1)
    restore(worn, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.parametrize("representation", ["native", "fixed:8", "fixed:5,sign-magnitude"])
@pytest.mark.parametrize("guard", ["tensor", "channel", "group:100"])
@pytest.mark.parametrize("policy", ["raw", "null"])
def test_parts_of_damaged_tensors_are_as_the_whole_and_as_restored(
    representation: str, guard: str, policy: str, made: Callable[..., Path], tmp_path: Path
) -> None:
    container = made(code="secded:72,64", bits=2, representation=representation, guard=guard)
    worn = worn_payload(container, 4e-3)
    restored = restore(worn, tmp_path / "out", policy=policy)
    content = read_safetensors((tmp_path / "out").read_bytes())
    reports: list[dict[str, Any]] = []
    for backend in ("pread", "mmap"):
        with ckptguard.safe_open(worn, "np", backend=backend, on_error=policy, report=reports.append) as opened:
            rows = opened.get_slice("weight")[50:260, 3:180]
            again = opened.get_slice("weight")[100:120]
            whole = opened.get_tensor("weight")
            others = {name: opened.get_tensor(name) for name in ("half", "scale", "places")}
        assert whole.tobytes() == content["weight"]
        assert rows.tobytes() == whole[50:260, 3:180].tobytes()
        assert again.tobytes() == whole[100:120].tobytes()
        for name, value in others.items():
            assert value.tobytes() == content[name]
    counted = {tensor.name: (tensor.guarded_bits, tensor.guarded_elements) for tensor in restored.tensors}
    for report in reports:
        (row,) = (one for one in report["tensors"] if one["name"] == "weight")
        assert (row["guarded_bits"], row["guarded_elements"]) == counted["weight"]
    assert sum(counted["weight"]) > 0


def test_loaders_use_guards_unless_told_not_to(made: Callable[..., Path]) -> None:
    worn = worn_payload(made(names=["weight", "half"]), 1e-2)
    assert np.isfinite(ckptguard.load_file(worn, framework="np", on_error="raw")["weight"]).all()
    assert not np.isfinite(ckptguard.load_file(worn, framework="np", on_error="raw", guard=False)["weight"]).all()


def test_lost_elements_become_the_possible_value_nearest_to_zero(made: Callable[..., Path], tmp_path: Path) -> None:
    container = made(code="secded:72,64")
    worn = worn_payload(container, 2e-2)
    report = restore(worn, tmp_path / "out", policy="null")
    assert "scale" in [tensor.name for tensor in report.lost]
    values = numbers_of(tmp_path / "out")
    assert 0.49 < values["scale"].min() <= 0.5
    assert (values["weight"] == 0).sum() > 1000
    with ckptguard.safe_open(worn, "np") as opened, pytest.raises(UncorrectableError):
        opened.get_tensor("weight")


def test_verify_shows_what_guards_add(made: Callable[..., Path], tmp_path: Path) -> None:
    worn = worn_payload(made(code="secded:72,64", bits=1, names=["weight", "half"]), 1e-3)

    def worst(state: dict[str, Any]) -> dict[str, float]:
        return {"worst": float(np.nan_to_num(np.abs(state["weight"]), nan=1e38, posinf=1e38).max())}

    result = verify(worn, tmp_path / "m.safetensors", evaluator=worst, framework="np")
    assert list(result.metrics) == ["clean", "unprotected", "decoded", "guarded"]
    rows = result.weights["weight"]
    assert rows["guarded"].max_difference < 0.5 < result.metrics["decoded"]["worst"]
    assert result.metrics["guarded"]["worst"] <= result.metrics["clean"]["worst"] * 1.01
    assert rows["guarded"].changed_elements <= rows["decoded"].changed_elements
    plain = verify(worn, tmp_path / "m.safetensors", evaluator=worst, framework="np", guard=False)
    assert list(plain.metrics) == ["clean", "unprotected", "decoded"]


def test_inspect_counts_groups_and_bytes(made: Callable[..., Path]) -> None:
    summary = inspect(made(guard="channel"))
    groups = {tensor.name: tensor.guard_groups for tensor in summary.tensors}
    assert groups == {"weight": 300, "brain": 40, "half": 1, "scale": 1, "places": 1, "small": 2, "nothing": 0}
    bare = inspect(made(guard="none", overwrite=True))
    assert bare.shards[0].guard_bytes == 0
    more = summary.shards[0].metadata_bytes - bare.shards[0].metadata_bytes
    settings = 16  # `channel` for `none` in the settings, compressed
    assert abs(more - summary.shards[0].guard_bytes) <= settings


def test_containers_are_the_same_for_any_number_of_threads(made: Callable[..., Path]) -> None:
    one = made(guard="channel", jobs=1).read_bytes()
    assert made(guard="channel", jobs=5, overwrite=True).read_bytes() == one


Edit = Callable[[bytes], bytes]
LIES: dict[str, tuple[Edit, str]] = {
    "cut": (lambda data: data[:-1], "bytes of range guards"),
    "longer": (lambda data: data + b"\0", "bytes of range guards"),
    "empty": (lambda data: b"", "fewer parts"),
    "a header with a guard": (lambda data: struct.pack("<I", 1) + data[4:], "cannot have one"),
    "an empty tensor with a guard": (lambda data: data[:28] + struct.pack("<I", 1) + data[32:], "cannot have one"),
    "more groups": (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "bytes of range guards"),
    "bits always set that never are": (lambda data: data[:32] + bytes(len(data) - 32), ""),
}


@pytest.mark.parametrize("lie", LIES)
def test_guards_that_do_not_fit_are_refused(lie: str, made: Callable[..., Path]) -> None:
    container = made()
    anatomy = Anatomy.of(container.read_bytes())
    edit, message = LIES[lie]
    container.write_bytes(anatomy.changed("GRDS", edit(anatomy.sections["GRDS"].data)).build())
    if not message:  # nothing is ever set, and only zero is possible: absurd, but it fits
        assert check(container).exact
        return
    with pytest.raises(ContainerError, match=message):
        check(container)


@pytest.mark.parametrize(
    ("ever", "always", "low", "high"), [(0, 1, 0, 255), (255, 0, 2, 1), (256, 0, 0, 1), (1, 0, 0, 256)]
)
def test_guards_that_contradict_themselves_are_refused(ever: int, always: int, low: int, high: int) -> None:
    form = WordForm.of_codes(8, TWOS_COMPLEMENT)
    columns = b"".join(struct.pack(">H", value) for value in (ever, always, low, high))
    with pytest.raises(ContainerError, match="contradict"):
        unpack(struct.pack("<I", 3) + columns, [form], [3])


def test_a_reader_that_does_not_know_guards_skips_them(made: Callable[..., Path]) -> None:
    anatomy = Anatomy.of(made().read_bytes())
    assert anatomy.sections["GRDS"].optional
    container = made(overwrite=True)
    container.write_bytes(anatomy.changed("GRDS", None).build())
    assert check(container).exact


@pytest.mark.parametrize("representation", ["native", "fixed:5", "fixed:9,sign-magnitude"])
@pytest.mark.parametrize("guard", ["tensor", "channel", "group:8"])
def test_a_reader_written_from_the_format_alone_finds_the_guards_it_expects(
    guard: str, representation: str, tmp_path: Path
) -> None:
    content = {name: (name, (5, 9), sample(name, 1, 45).tobytes()) for name in DTYPES if name not in UNLIKE_OTHERS}
    content["whole"] = ("F32", (2, 3, 40), sample("F32", 2, 240).tobytes())
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(content))
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", code="none", guard=guard, representation=representation)
    restore(tmp_path / "m.ckg", tmp_path / "out")
    found = read_set({"m.ckg": (tmp_path / "m.ckg").read_bytes()}, {})
    assert found == {"m.safetensors": (tmp_path / "out").read_bytes()}
