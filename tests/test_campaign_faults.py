"""Faults: exact counts, nested across rates, the same for every encoding, and only where the scope allows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from containers import MIXED, safetensors_bytes, tensors
from scipy import stats

from ckptguard.campaign import faults
from ckptguard.campaign.drawing import distinct
from ckptguard.campaign.faults import Scope
from ckptguard.campaign.shells import draw
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.devices import Device
from ckptguard.errors import SpecError, UsageError
from ckptguard.masks import MaskSet

UNLIKELY = 1e-6
LARGE = {"a": ("F32", (70_001,)), "b": ("F32", (333,)), "c": ("BF16", (2_000,))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subject")


def subject(folder: Path, layout: dict[str, tuple[str, tuple[int, ...]]] = LARGE) -> Subject:
    path = folder / f"{'-'.join(layout)}.safetensors"
    path.write_bytes(safetensors_bytes(tensors(3, **layout)))
    return Subject.open(path)


def bits_of(prepared: Prepared, spec: str, seed: int = 1, trial: int = 0, scope: Scope | None = None) -> dict:
    """By tensor, the set of (element, plane) that a trial flips."""
    flips = prepared.draw(faults.make(spec), seed, trial, scope)
    found = {}
    for name, drawn in flips.tensors.items():
        width = prepared.encodings[name].bits
        found[name] = {
            (element, plane)
            for element, word in zip(drawn.elements.tolist(), drawn.flips.tolist(), strict=True)
            for plane in range(width)
            if word >> (width - 1 - plane) & 1
        }
    return found


def assert_binomial(hits: int, count: int, p: float) -> None:
    assert stats.binom.cdf(hits, count, p) > UNLIKELY
    assert stats.binom.sf(hits - 1, count, p) > UNLIKELY


@pytest.mark.parametrize("p", [1e-7, 2.0**-20, 3e-6, 1e-4, 0.0123, 0.2, 0.4999, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("elements", [50, 1000, 65536, 200_000])
def test_flips_are_as_many_as_a_binomial_count_allows_in_every_plane(elements: int, p: float) -> None:
    drawn = draw(np.uint64(7), elements, range(8), range(7, -1, -1), p, p)
    assert (np.diff(drawn.elements) > 0).all()
    assert (drawn.flips != 0).all()
    assert ((drawn.elements >= 0) & (drawn.elements < elements)).all()
    for plane in range(8):
        hits = int(np.count_nonzero(drawn.flips >> np.uint64(7 - plane) & np.uint64(1)))
        assert hits == drawn.by_plane[plane]
        assert_binomial(hits, elements, p)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 0), (1.0, 5 * 70_000)])
def test_rates_of_zero_and_one_flip_nothing_and_everything(p: float, expected: int) -> None:
    assert draw(np.uint64(7), 70_000, range(5), range(5), p, p).bits == expected


def test_the_number_of_flips_of_a_block_has_the_variance_of_a_binomial_count() -> None:
    p, places, trials = 0.003, 1000, 3000
    counts = [draw(np.uint64(seed), places, [0], [0], p, p).bits for seed in range(trials)]
    table = np.bincount(np.minimum(counts, 9), minlength=10)
    shares = stats.binom.pmf(np.arange(9), places, p)
    expected = trials * np.append(shares, 1 - shares.sum())
    assert stats.chisquare(table, expected).pvalue > UNLIKELY


def test_places_of_flips_are_uniform_and_neighbouring_shells_do_not_favour_any() -> None:
    drawn = draw(np.uint64(3), 65536 * 4, range(16), range(16), 0.01, 0.01)
    table = np.bincount(drawn.elements % 65536 // 1024, minlength=64)
    assert stats.chisquare(table).pvalue > UNLIKELY
    pairs = np.bitwise_count(drawn.flips)
    both = int((pairs > 1).sum())
    assert_binomial(both, 65536 * 4, stats.binom.sf(1, 16, 0.01))


RATES = [0.0, 1e-7, 5e-7, 2.0**-20, 1.5e-6, 1e-5, 2.0**-12, 3e-4, 0.004, 0.04, 0.3, 0.5, 0.51, 0.9, 1.0]


def test_flips_at_a_lower_rate_are_among_those_at_every_higher_rate() -> None:
    found = [draw(np.uint64(11), 80_000, range(3), range(3), p, p) for p in RATES]
    words = np.zeros((len(RATES), 80_000), np.uint64)
    for row, drawn in zip(words, found, strict=True):
        row[drawn.elements] = drawn.flips
    for low, high in pairwise(words):
        assert not (low & ~high).any()


def test_asymmetric_faults_flip_the_stored_zeros_and_ones_that_the_symmetric_ones_of_either_rate_do(
    folder: Path,
) -> None:
    prepared = Prepared(subject(folder), Variant("none"))
    low, high, mixed = (bits_of(prepared, spec) for spec in ("bsc:0.001", "bsc:0.02", "asymmetric:0.001,0.02"))
    for name, encoding in prepared.encodings.items():

        def stored(bit: tuple[int, int], encoding=encoding) -> int:
            return int(encoding.words[bit[0]]) >> (encoding.bits - 1 - bit[1]) & 1

        expected = {bit for bit in low[name] if not stored(bit)} | {bit for bit in high[name] if stored(bit)}
        assert mixed[name] == expected


def test_stuck_cells_read_their_value_and_are_nested(folder: Path) -> None:
    prepared = Prepared(subject(folder), Variant("none"))
    few, many = bits_of(prepared, "stuck1:0.003"), bits_of(prepared, "stuck1:0.01")
    for name, encoding in prepared.encodings.items():
        assert few[name] < many[name]
        assert all(not int(encoding.words[e]) >> (encoding.bits - 1 - j) & 1 for e, j in many[name])
    damage = prepared.trial(faults.make("stuck1:0.01"), 1, 0)
    zeros = sum(int((np.unpackbits(t.data) == 0).sum()) for t in prepared.subject.tensors.values())
    assert damage.expected_flips == pytest.approx(0.01 * zeros)
    assert_binomial(damage.flips, zeros, 0.01)


@pytest.mark.parametrize(
    "representation", ["fixed:8", "fixed:5,sign-magnitude", "q:3.4", "cast:bfloat16", "cast:float16"]
)
def test_the_same_bits_are_flipped_in_every_encoding(folder: Path, representation: str) -> None:
    native = Prepared(subject(folder), Variant("none"))
    other = Prepared(subject(folder), Variant("other", representation))
    plain, coded = bits_of(native, "bsc:0.01"), bits_of(other, "bsc:0.01")
    for name in plain:
        bits = min(native.encodings[name].bits, other.encodings[name].bits)
        assert {bit for bit in plain[name] if bit[1] < bits} == {bit for bit in coded[name] if bit[1] < bits}


def test_masks_and_codes_meet_the_same_flips(folder: Path) -> None:
    plain = bits_of(Prepared(subject(folder), Variant("none")), "bsc:0.01")
    coded = bits_of(Prepared(subject(folder), Variant("bch", masks=MaskSet.top(9), code="bch:255,131")), "bsc:0.01")
    assert plain == coded


def test_other_seeds_trials_and_tensors_have_other_flips(folder: Path) -> None:
    prepared = Prepared(subject(folder), Variant("none"))
    one = bits_of(prepared, "bsc:0.01")
    for other in (bits_of(prepared, "bsc:0.01", seed=2), bits_of(prepared, "bsc:0.01", trial=1)):
        shared = len(one["a"] & other["a"])
        assert_binomial(shared, len(one["a"]), 0.01)
    same_places = {bit for bit in one["a"] if bit[0] < 333}
    assert len(same_places & one["b"]) < 20


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(bits=(0, 31)), {"a": {0, 31}, "b": {0, 31}, "c": {0}}),
        (Scope(fields=("sign",)), {"a": {0}, "b": {0}, "c": {0}}),
        (Scope(fields=("exponent",)), {"a": set(range(1, 9)), "b": set(range(1, 9)), "c": set(range(1, 9))}),
        (Scope(fields=("fraction",), tensors=("c",)), {"c": set(range(9, 16))}),
        (Scope(tensors=("[ab]",)), {"a": set(range(32)), "b": set(range(32))}),
    ],
)
def test_a_scope_keeps_the_flips_of_its_bits_and_no_others(folder: Path, scope: Scope, expected: dict) -> None:
    prepared = Prepared(subject(folder), Variant("none"))
    everything, found = bits_of(prepared, "bsc:0.2"), bits_of(prepared, "bsc:0.2", scope=scope)
    assert found == {name: {bit for bit in everything[name] if bit[1] in planes} for name, planes in expected.items()}
    assert Scope.from_json(scope.to_json()) == scope


@pytest.mark.parametrize("code", ["none", "bch:255,131"])
def test_exactly_k_flips_are_drawn_and_fewer_are_the_first_of_more(folder: Path, code: str) -> None:
    prepared = Prepared(subject(folder), Variant("v", code=code))
    before: dict = {}
    for k in (0, 1, 7, 500, 40_000):
        flips = prepared.draw(faults.make(f"flips:{k}"), 5, 3)
        assert flips.count + flips.parity_count == k
        found = bits_of(prepared, f"flips:{k}", 5, 3)
        assert all(before.get(name, set()) <= found.get(name, set()) for name in before)
        before = found
    assert prepared.draw(faults.make("single"), 5, 3).count in (0, 1)


def test_single_flips_hit_every_bit_equally_often(folder: Path) -> None:
    small = subject(folder, {"x": ("U8", (3,)), "y": ("F16", (2,)), "z": ("F32", (0,))})
    prepared, trials = Prepared(small, Variant("none")), 3000
    table: dict = {}
    for trial in range(trials):
        for name, bits in bits_of(prepared, "single", 1, trial).items():
            for bit in bits:
                table[name, bit] = table.get((name, bit), 0) + 1
    assert len(table) == 3 * 8 + 2 * 16
    assert sum(table.values()) == trials
    assert stats.chisquare(list(table.values())).pvalue > UNLIKELY


def test_numbers_without_replacement_are_different_and_uniform() -> None:
    numbers = np.concatenate([distinct(np.uint64(key), 5, 9) for key in range(2000)])
    assert stats.chisquare(np.bincount(numbers, minlength=9)).pvalue > UNLIKELY
    assert sorted(distinct(np.uint64(1), 1000, 1000).tolist()) == list(range(1000))


def test_zeroed_words_are_zero_and_gaussian_noise_has_its_spread(folder: Path) -> None:
    model = subject(folder)
    prepared = Prepared(model, Variant("none"))
    damage = prepared.trial(faults.make("zero:0.05"), 1, 0)
    assert all((patch.words == 0).all() for patch in damage.patches.values())
    assert_binomial(damage.changed_elements, 70_001 + 333 + 2_000, 0.05)
    values = model.tensors["a"].data.view("<f4").astype(float)
    patch = prepared.trial(faults.make("gaussian:0.01"), 1, 0).patches["a"]
    noise = np.zeros(values.size)
    noise[patch.elements] = patch.words.view("<f4") - values[patch.elements]
    spread = noise / (0.01 * np.abs(values).max())
    assert stats.kstest(spread, "norm").pvalue > UNLIKELY


@pytest.mark.parametrize("spec", ["burst:0.0001,0.01,0.5", "erasure:512,0.1,zeros"])
@pytest.mark.parametrize("representation", ["native", "fixed:8"])
def test_other_channels_act_on_the_stored_bytes(folder: Path, spec: str, representation: str) -> None:
    prepared = Prepared(subject(folder), Variant("v", representation, code="secded:72,64"))
    flips = prepared.draw(faults.make(spec), 1, 0)
    again = prepared.draw(faults.make(spec), 1, 0)
    assert flips.count > 0
    assert flips.parity_count > 0
    assert flips.count == again.count
    if spec.startswith("erasure"):
        encoding, drawn = prepared.encodings["a"], flips.tensors["a"]
        assert not (drawn.flips & ~encoding.words[drawn.elements].astype(np.uint64)).any()


@pytest.mark.parametrize(
    "spec",
    [
        "burst:1e-4,0.05,0.5",
        "cluster:1e-2,2,8",
        "stuck:0.02,0.3",
        "levelmap:0/1/2/3,0.2/0.2/0.2/0.2",
        "erasure:512,0.2,ones",
        "bsc:0.001+asymmetric:0.01,0.002",
        "zero:0.05",
    ],
)
def test_as_many_flips_are_drawn_as_are_expected(folder: Path, spec: str) -> None:
    prepared = Prepared(subject(folder), Variant("v", code="secded:72,64"))
    damages = [prepared.trial(faults.make(spec), 2, trial) for trial in range(60)]
    for drawn, expected in (("flips", "expected_flips"), ("parity_flips", "expected_parity_flips")):
        counts = np.array([getattr(damage, drawn) for damage in damages], float)
        mean = getattr(damages[0], expected)
        assert mean > 0
        assert all(getattr(damage, expected) == mean for damage in damages)
        assert abs(counts.mean() - mean) < 5 * counts.std() / np.sqrt(len(counts)) + 0.03 * mean


def test_every_tensor_has_its_own_map_of_stuck_cells_on_a_die_and_keeps_it(folder: Path) -> None:
    same = np.zeros(50_000, "<f4").tobytes()
    (folder / "die.safetensors").write_bytes(safetensors_bytes({name: ("F32", (50_000,), same) for name in "ab"}))
    prepared = Prepared(Subject.open(folder / "die.safetensors"), Variant("v"))
    found = bits_of(prepared, "stuck:0.001,1,1,7")
    assert found == bits_of(prepared, "stuck:0.001,1,1,7", seed=2, trial=5)
    assert len(found["a"] & found["b"]) < 0.01 * len(found["a"])


def test_an_analog_array_changes_values_as_its_profile_says(folder: Path) -> None:
    made = subject(folder)
    prepared = Prepared(made, Variant("v", masks=MaskSet.top(9), code="bch:255,131"))
    damage = prepared.trial(faults.make("analog:analog.awgn,sigma=0.02"), 1, 0)
    before = made.tensors["a"].data.view("<f4")
    assert (damage.expected_flips, damage.parity_flips) == (None, 0)
    bare = Prepared(made, Variant("v")).trial(faults.make("analog:analog.awgn,sigma=0.02"), 1, 0).patches["a"]
    noise = bare.words.view("<f4").astype(float) - before[bare.elements]
    assert noise.size > 0.99 * before.size
    shares = noise / (0.02 * np.abs(before).max())
    assert stats.kstest(shares, "norm").pvalue > UNLIKELY
    other = Prepared(made, Variant("v")).trial(faults.make("analog:analog.awgn,@s0_1"), 1, 1).patches["a"]
    assert not np.array_equal(bare.words, other.words)


@pytest.mark.parametrize(
    "spec",
    ["analog", "analog:pcm.joshi", "analog:analog.awgn,sigma", "analog:analog.awgn,sigma=2", "analog:analog.awgn,@no"],
)
def test_analog_arrays_that_are_not_known_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        faults.make(spec)


def test_every_dtype_can_be_hit_and_counted(folder: Path) -> None:
    layout = {name: (dtype, shape) for name, (dtype, shape) in MIXED.items()}
    prepared = Prepared(subject(folder, layout), Variant("none"))
    damage = prepared.trial(faults.make("bsc:1.0"), 1, 0)
    assert damage.flips == damage.stored_bits == damage.residual_bits == sum(damage.flips_by_bit.values())
    assert damage.expected_flips == damage.flips
    for name, tensor in prepared.subject.tensors.items():
        if tensor.data.size:
            assert (damage.patches[name].words.view(np.uint8) == ~tensor.data).all()
        else:
            assert name not in damage.patches


@pytest.mark.parametrize(
    "spec",
    [
        "flip:3",
        "flips",
        "flips:-1",
        "flips:1.5",
        "single:2",
        "stuck0:2",
        "zero",
        "gaussian:x",
        "gaussian:-1",
        "bsc:2",
        "",
    ],
)
def test_faults_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        faults.make(spec)


@pytest.mark.parametrize(
    "spec",
    ["bsc:0.001", "asymmetric:0.1,0.2", "flips:12", "single", "stuck0:0.01", "stuck1:0.5", "zero:0.1", "gaussian:0.1"],
)
def test_a_fault_is_made_again_from_its_spec(spec: str) -> None:
    assert faults.make(faults.make(spec).spec) == faults.make(spec)


def test_requests_that_cannot_be_met_are_refused(folder: Path) -> None:
    prepared = Prepared(subject(folder), Variant("none"))
    with pytest.raises(UsageError, match=r"only \d+ bits in scope"):
        prepared.draw(faults.make("flips:100000000"), 1, 0)
    with pytest.raises(UsageError, match="'x\\*' matches no tensor"):
        prepared.draw(faults.make("single"), 1, 0, Scope(tensors=("x*",)))
    with pytest.raises(UsageError, match="whole words"):
        prepared.draw(faults.make("zero:0.1"), 1, 0, Scope(bits=(0,)))
    with pytest.raises(UsageError, match="unknown field"):
        Scope(fields=("mantissa",))
    with pytest.raises(UsageError, match="bit positions"):
        Scope(bits=(64,))
    with pytest.raises(UsageError, match="a trial"):
        prepared.draw(faults.make("single"), 1, -1)


def test_a_device_of_which_nothing_is_known_has_no_fault() -> None:
    with pytest.raises(UsageError, match="nothing is known of the device 'tape'"):
        faults.of_devices({"a": Device("tape")})


def test_tensors_on_different_devices_have_faults_of_their_own(folder: Path) -> None:
    prepared = Prepared(subject(folder), Variant("none"))
    spread = {"a": faults.make("bsc:0.01"), "c*": faults.make("bsc:0.5")}
    damage = prepared.trial(spread, 1, 0)
    assert set(damage.residual_by_tensor) == {"a", "c"}
    assert damage.stored_bits == 32 * 70_001 + 16 * 2_000
    assert_binomial(damage.residual_by_tensor["c"], 32_000, 0.5)
