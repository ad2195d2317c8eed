"""The damage table, the frontier, the calibration and the certificate, each against an independent calculation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ckptguard.campaign.encodings import encode_tensor
from ckptguard.campaign.faults import make
from ckptguard.campaign.guarding import Guards
from ckptguard.campaign.subject import SubjectTensor
from ckptguard.dtypes import DTYPES
from ckptguard.errors import UsageError
from ckptguard.search.calibrate import Calibration
from ckptguard.search.certify import Certificate, Claim, walk
from ckptguard.search.curvature import Curvature
from ckptguard.search.damage import Rates, damage_table, tensor_damage
from ckptguard.search.frontier import BITS, TOP, Frontier, Strength, TensorDamage
from ckptguard.search.paths import at_random, uniform
from ckptguard.search.polish import polish

GENERATOR = np.random.default_rng(5)


def encoded(values, dtype="F32", spec="native"):
    data = values.astype(f"<f{DTYPES[dtype].word_bits // 8}").view(np.uint8)
    return encode_tensor("w", SubjectTensor(DTYPES[dtype], values.shape, data), spec)


def guarded(words, stored, index, encoding):
    """Read with the guard of a container, in plain Python: bits that never vary are set back; out of range is zero.

    The range is that of whole values: bounds of float32 are rounded outwards to 16 bits, their low half is filled.
    """
    varying = int(np.bitwise_or.reduce(stored)) ^ int(np.bitwise_and.reduce(stored))
    if (int(words[index]) ^ int(stored[index])) & ~varying:
        return stored
    shift = 16 if stored.dtype.itemsize == 4 else 0
    top = 1 << (encoding.bits - 1)

    def rank(word):
        word = int(word) >> shift if not encoding.planar else int(word)
        if encoding.planar and "sign-magnitude" not in encoding.part_representation:
            return word - (1 << encoding.bits) if word & top else word
        half = top >> (shift if not encoding.planar else 0)
        return -(word - half) - 1 if word & half else word

    ranks = [rank(word) for word in stored]
    if min(ranks) <= rank(words[index]) <= max(ranks):
        return words
    result = words.copy()
    values = encoding.values(stored)
    result[index] = 0 if values.min() <= 0 <= values.max() else stored[np.argmin(np.abs(values))]
    return result


def brute_force(encoding, rates, inputs, guard=None):
    """Expected loss of a linear model, 1/2 mean (x (w' - w))^2, every flip done by itself."""
    clean = encoding.values(encoding.words)
    result = np.zeros(encoding.bits)
    for index in range(encoding.elements):
        for bit in range(encoding.bits):
            place = 1 << (encoding.bits - 1 - bit)
            words = encoding.words.copy()
            chance = rates.of_1 if int(words[index]) & place else rates.of_0
            words[index] ^= words.dtype.type(place)
            restored = encoding.restore(words if guard is None else guarded(words, encoding.words, index, encoding))
            kind = "<f4" if restored.dtype.itemsize == 4 else "<f2"
            loss = 0.5 * np.mean((inputs @ (restored.view(kind).astype(float) - clean)) ** 2)
            result[bit] += chance * loss
    return result


@pytest.mark.parametrize("rates", [Rates(1e-2, 1e-2), Rates(1e-3, 4e-2), Rates(0.0, 1e-3)])
@pytest.mark.parametrize("with_guard", [True, False])
@pytest.mark.parametrize(
    ("dtype", "spec"),
    [
        ("F32", "native"),
        ("F16", "native"),
        ("F32", "fixed:8"),
        ("F32", "fixed:6,sign-magnitude"),
        ("F32", "cast:bfloat16"),
    ],
)
def test_damage_is_the_loss_of_a_linear_model_with_every_bit_flipped_in_turn(rates, with_guard, dtype, spec):
    encoding = encoded(GENERATOR.normal(0, 0.05, 9), dtype, spec)
    inputs = GENERATOR.normal(0, 1, (20, 9))
    guard = Guards({"w": encoding}, {"w": (9,)}, "tensor" if with_guard else "none").of("w")
    with np.errstate(over="ignore", invalid="ignore"):
        expected = brute_force(encoding, rates, inputs, guard)
    found = np.array(tensor_damage(encoding, rates, np.mean(inputs**2, 0), guard))
    finite = np.isfinite(expected) & (expected < 1e60)
    assert finite.sum() >= encoding.bits - 2
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-9, atol=1e-30)
    assert (found[~finite] > 1e30).all()


def test_the_kernel_for_float32_agrees_with_plain_arithmetic():
    from ckptguard.search import damage

    values = GENERATOR.normal(0, 1, 5000)
    values[:4] = 0.0, 1e-39, -1e-42, 3.0
    curvature = GENERATOR.random(5000).astype(np.float32)
    for encoding in (encoded(values), encoded(np.abs(values) + 0.1)):
        guards = Guards({"w": encoding}, {"w": (5000,)}, "tensor")
        for guard in (None, guards.of("w")):
            fast = damage._of_float32(encoding, Rates(1e-3, 2e-3), curvature, guard)
            slow = damage._by_chunks(encoding, Rates(1e-3, 2e-3), curvature, guard)
            np.testing.assert_allclose(fast, slow, rtol=1e-9)


def test_tensors_of_unknown_curvature_are_infinitely_damaging():
    counters = SubjectTensor(DTYPES["I64"], (3,), np.arange(3, dtype="<i8").view(np.uint8))
    encodings = {"n": encode_tensor("n", counters, "native"), "w": encoded(np.ones(4))}
    table = damage_table(encodings, dict.fromkeys(encodings, Rates(0.1, 0.1)), Curvature({"w": None}, 1, ""))
    assert all(math.isinf(value) for values in table.values() for value in values)


def test_a_guard_leaves_no_damage_in_bits_that_never_vary_even_where_nothing_is_known():
    counters = SubjectTensor(DTYPES["I64"], (3,), np.arange(3, dtype="<i8").view(np.uint8))
    encodings = {"n": encode_tensor("n", counters, "native")}
    guards = Guards(encodings, {"n": (3,)}, "tensor")
    table = damage_table(encodings, {"n": Rates(0.1, 0.1)}, Curvature({"n": None}, 1, ""), guards)
    assert table["n"] == (0.0,) * 62 + (math.inf, math.inf)


def test_groups_with_guards_of_their_own_are_less_damaged_than_the_whole_tensor():
    values = np.concatenate([GENERATOR.normal(0, 0.01, 200), GENERATOR.normal(0, 1, 200)])
    rates, small = Rates(1e-3, 1e-3), np.repeat([1.0, 0.0], 200)
    for spec in ("native", "fixed:8"):
        encoding = encoded(values, spec=spec)
        whole, parts = (Guards({"w": encoding}, {"w": (400,)}, size).of("w") for size in ("tensor", "group:200"))
        assert sum(tensor_damage(encoding, rates, small, parts)) < 0.1 * sum(
            tensor_damage(encoding, rates, small, whole)
        )


def test_a_weight_that_no_sample_reached_counts_as_the_mean_of_its_tensor():
    found = Curvature({"w": np.array([0.0, 2.0, 4.0, 0.0], np.float32)}, 1, "").of("w", 4)
    assert found.tolist() == [1.5, 2.0, 4.0, 1.5]


def test_rates_of_asymmetric_channels_keep_both_directions():
    assert Rates.of(make("asymmetric:1e-3,1e-5")) == Rates(1e-3, 1e-5)
    with pytest.raises(UsageError, match="rate of bits"):
        Rates.of(make("flips:3"))


def some_tensors(strengths, count=3, bits=3):
    return [
        TensorDamage(f"t{i}", int(GENERATOR.integers(1, 9)), tuple(GENERATOR.exponential(1, bits).tolist()), strengths)
        for i in range(count)
    ]


def all_masks(tensors, order):
    """(parity, damage) of every mask set there is."""
    options = []
    for tensor in tensors:
        masks = itertools.product("01", repeat=tensor.bits)
        if order == TOP:
            masks = ("1" * top + "0" * (tensor.bits - top) for top in range(tensor.bits + 1))
        rows = []
        for mask, strength in itertools.product(masks, tensor.strengths):
            left = sum(d * (strength.left if bit == "1" else 1) for bit, d in zip(mask, tensor.damage, strict=True))
            rows.append((tensor.words * list(mask).count("1") * strength.parity, left))
        options.append(rows)
    for combination in itertools.product(*options):
        yield sum(parity for parity, _ in combination), sum(damage for _, damage in combination)


@pytest.mark.parametrize("order", [BITS, TOP])
@pytest.mark.parametrize("strengths", [(Strength(None, 0.2),), (Strength(None, 0.3), Strength("bch:15,7", 0.1, 0.2))])
def test_no_masks_of_equal_or_less_parity_do_less_damage_than_a_vertex(order, strengths):
    for _ in range(5):
        tensors = some_tensors(strengths)
        frontier = Frontier(tensors, order)
        every = np.array(list(all_masks(tensors, order)))
        for vertex in range(len(frontier)):
            allowed = every[every[:, 0] <= frontier.parity_bits[vertex] + 1e-9]
            assert frontier.damage[vertex] == pytest.approx(allowed[:, 1].min(), rel=1e-9, abs=1e-12)


def test_with_one_code_the_masks_of_a_frontier_are_nested_and_its_gains_fall():
    frontier = Frontier(some_tensors((Strength(None, 0.2),), count=6, bits=8))
    for before, after in itertools.pairwise(range(len(frontier))):
        pairs = zip(frontier.choices(before), frontier.choices(after), strict=True)
        assert all(b == "1" or a == "0" for x, y in pairs for a, b in zip(x.mask, y.mask, strict=True))
    gains = [step.saved / step.parity for step in frontier.steps]
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(gains))
    assert frontier.damage[-1] == pytest.approx(0.0, abs=1e-12)


def test_bits_of_unknown_damage_are_protected_before_all_others():
    strengths = (Strength(None, 0.1),)
    tensors = [
        TensorDamage("w", 10, (5.0, 1.0), strengths),
        TensorDamage("counter", 1, (math.inf, math.inf), strengths),
        TensorDamage("wild", 10, (math.inf, 1.0), strengths),
    ]
    frontier = Frontier(tensors)
    assert [math.isinf(damage) for damage in frontier.damage[:3]] == [True, True, False]
    assert [choice.mask for choice in frontier.choices(2)] == ["00", "11", "10"]
    assert frontier.damage[2] == pytest.approx(7.0)


def test_small_damages_are_told_beside_enormous_ones():
    frontier = Frontier([TensorDamage(f"t{i}", 1, (1e60, 3.0, 1e-9), (Strength(None, 0.1),)) for i in range(3)])
    assert frontier.damage[3:] == pytest.approx((9 + 3e-9, 6 + 3e-9, 3 + 3e-9, 3e-9, 2e-9, 1e-9, 0.0), rel=1e-12)


def test_the_masks_of_a_vertex_resolve_to_its_choices_and_cost_its_redundancy():
    from ckptguard.masks import redundancy

    strengths = (Strength(None, 0.2), Strength("bch:15,7", 8 / 7, 0.0))
    tensors = [
        TensorDamage("a[0]", 10, (4.0, 1.0), strengths[:1]),
        TensorDamage("b", 5, (9.0, 1.0), strengths[1:]),
    ]
    frontier = Frontier(tensors, metadata_bits=3)
    vertex = frontier.within(0.28)
    found = frontier.masks(vertex).resolve([("a[0]", 2), ("b", 2)]).tensors
    assert [(one.mask, one.code) for one in found] == [
        (choice.mask, choice.code) for choice in frontier.choices(vertex)
    ]
    parity = {None: 0.2, "bch:15,7": 8 / 7}
    spent = redundancy((t.words, one.mask, parity[one.code]) for t, one in zip(tensors, found, strict=True))
    assert frontier.redundancy(vertex) == pytest.approx(spent)
    assert frontier.charged(vertex) == pytest.approx(spent + 3 / 30)
    assert frontier.charged(vertex) <= 0.28 < frontier.charged(vertex + 1)


def test_a_budget_below_the_metadata_is_refused():
    with pytest.raises(UsageError, match="metadata"):
        Frontier(some_tensors((Strength(None, 0.2),)), metadata_bits=1000).within(0.01)


def test_uniform_masks_protect_leading_bits_and_random_ones_cost_no_less():
    tensors = some_tensors((Strength(None, 0.2),), bits=4)
    path = uniform(tensors)
    assert [path.vertices[top][0] for top in range(5)] == ["0000", "1000", "1100", "1110", "1111"]
    frontier, other = Frontier(tensors), at_random(tensors, 3)
    for vertex in range(len(other)):
        best = frontier.within(other.redundancy(vertex))
        assert frontier.damage[min(best + 1, len(frontier) - 1)] <= other.damage[vertex] + 1e-12
    assert at_random(tensors, 3).vertices == other.vertices != at_random(tensors, 4).vertices


def test_the_calibration_is_the_isotonic_regression_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.isotonic")
    for _ in range(20):
        predicted = np.sort(GENERATOR.exponential(1, 8))
        losses = predicted + GENERATOR.normal(0, 0.7, 8)
        weights = GENERATOR.integers(1, 5, 8).astype(float)
        expected = sklearn.IsotonicRegression().fit(predicted, losses, weights).predict(predicted)
        found = Calibration.fit(predicted.tolist(), losses.tolist(), weights.tolist())
        np.testing.assert_allclose([found.loss(x) for x in predicted], expected, atol=1e-9)
    assert math.isinf(found.loss(math.inf))


def test_fifty_nine_devices_certify_95_per_cent_only_if_none_loses_more():
    claim = Claim.parse("drop=1.0")
    assert claim == Claim(1.0, 0.95, 0.95, 59)
    assert claim.shown_by([1.0] * 59)
    assert not claim.shown_by([0.0] * 58 + [1.01])
    assert not claim.shown_by([0.0] * 58 + [math.nan])


def test_with_93_devices_one_may_lose_more():
    claim = Claim(1.0, trials=93)  # sum of the first two terms of Bin(93, 0.05) is 0.0498, of Bin(92, 0.05) 0.0521
    assert claim.shown_by([0.0] * 92 + [5.0])
    assert not claim.shown_by([0.0] * 91 + [5.0, 5.0])
    assert not Claim(1.0, trials=92).shown_by([0.0] * 91 + [5.0])


def test_too_few_trials_for_a_claim_are_refused():
    with pytest.raises(UsageError, match="59"):
        Claim(1.0, trials=58)
    for text in ("trials=59", "drop=a", "drop=1,drop=2", "loss=1"):
        with pytest.raises(UsageError):
            Claim.parse(text)


def test_the_walk_ends_at_the_first_failure_although_a_later_one_would_pass():
    claim = Claim(1.0)
    losses = {9: 0.0, 7: 0.5, 5: 2.0, 3: 0.0}
    asked = []

    def trials(vertex, number):
        asked.append((vertex, number))
        return [losses[vertex]] * 59

    tests, passed = walk([(9, 0.9), (7, 0.7), (5, 0.5), (3, 0.3)], claim, trials)
    assert passed == 7
    assert asked == [(9, 0), (7, 1), (5, 2)]
    assert [test.passed for test in tests] == [True, True, False]
    certificate = Certificate(claim, "accuracy", 90.0, "held-out data", "bsc:0.01", passed, tuple(tests))
    assert "with 95% confidence, 95% of devices lose at most 1 of accuracy" in certificate.text
    assert certificate.to_json()["walk"][1]["worst"] == 0.5


def test_a_walk_whose_first_test_fails_certifies_nothing():
    assert walk([(1, 0.1)], Claim(1.0), lambda vertex, number: [3.0] * 59)[1] is None


def test_joint_damage_is_that_of_restored_words_in_the_mean():
    from ckptguard.posterior import Restorer
    from ckptguard.search.restoring import Known, joint_damage

    generator = np.random.default_rng(8)
    encoding = encoded(generator.normal(0, 0.1, 300), "F16")
    weights, rates = generator.random(300), Rates(0.02, 0.05)
    known = Known.of(encoding, rates)
    alone = tensor_damage(encoding, rates, weights)
    found = joint_damage(encoding, known, rates, weights, alone)
    assert [mask.count("1") for mask, _ in found] == sorted(mask.count("1") for mask, _ in found)
    clean = encoding.values(encoding.words)
    for mask, damage in (found[0], found[4], found[-1]):
        restorer = Restorer.of(known.spread, mask, rates.of_0, rates.of_1)
        losses = []
        for _ in range(3000):
            flips = np.zeros(300, np.uint16)
            for place, chosen in enumerate(mask):
                bit = np.uint16(1 << (15 - place))
                chance = np.where(encoding.words & bit, rates.of_1, rates.of_0) * (chosen == "0")
                flips |= np.where(generator.random(300) < chance, bit, np.uint16(0))
            after = restorer.apply(encoding.words ^ flips).view("<f2").astype(float)
            losses.append(0.5 * float(weights @ (after - clean) ** 2))
        assert damage == pytest.approx(np.mean(losses), rel=0.06, abs=1e-6)


def test_words_that_are_misread_but_too_many_to_be_outliers_count_as_errors_that_add_up():
    from ckptguard.outliers import Outliers
    from ckptguard.posterior import Restorer
    from ckptguard.search.restoring import Known, joint_damage

    generator = np.random.default_rng(9)
    values = generator.normal(0, 0.05, 20_000)
    values[:: 20_000 // 3] = 1.0
    rates = Rates(1e-2, 1e-2)
    joint = {}
    for count, far in ((4, True), (40, False)):
        values[:count] = 1.0
        encoding = encoded(values, "F32")
        known = Known.of(encoding, rates)
        assert known.fields.any() == far
        joint[count] = joint_damage(encoding, known, rates, 1.0, tensor_damage(encoding, rates, 1.0))
        if far:
            outliers = known.outliers(encoding)
            assert outliers.positions.tolist() == np.flatnonzero(encoding.words == 0x3F800000).tolist()
            continue
        mask, damage = joint[count][0]
        assert "1" not in mask[:9]
        read = Restorer.of(known.spread, mask, 1e-2, 1e-2, gain=False).apply(np.array([0x3F800000], "<u4"))
        error = (1 - float(read.view("<f4")[0]) / (1 - 2 * 1e-2)) ** 2
        misread = int((encoding.words >> 23 & 255 == 127).sum())
        assert damage > 0.5 * misread**2 * error > joint[4][0][1]
    assert isinstance(outliers, Outliers)


class Additive:
    """Trials whose losses add up, over tensors that are not protected, with noise that all masks share."""

    def __init__(self, losses):
        self.losses, self.evaluations = losses, 0

    def drops(self, masks, first, count):
        self.evaluations += count
        found = masks.resolve([(name, 1) for name in self.losses]).tensors
        left = sum(self.losses[one.name] for one in found if one.mask == "0")
        return [left * (1 + 0.1 * (draw % 2)) + 5 * (draw % 3) for draw in range(first, first + count)]


def test_polishing_finds_the_better_half_where_the_table_errs():
    names = ["a", "b", "c", "d"]
    frontier = Frontier(
        [TensorDamage(n, 10, (d,), (Strength(None, 0.1),)) for n, d in zip(names, (4.0, 3, 2, 1), strict=True)]
    )
    trials = Additive({"a": 4.0, "b": 0.5, "c": 2.0, "d": 1.0})  # b is harmless in truth
    found = polish(frontier, 2, trials, frontier.parity_bits[2], 80, 100.0)
    assert [one.mask for one in found.masks(2).resolve([(name, 1) for name in names]).tensors] == ["1", "0", "1", "0"]
    assert trials.evaluations == found.evaluations <= 80
    kept = [swap for swap in found.swaps if swap.kept]
    assert [(swap.taken, swap.given) for swap in kept] == [("b", "c")]
    assert kept[0].gain == pytest.approx(1.5 * 1.05)  # the even half of the draws has 1.0, the other 1.1
    assert found.redundancy(2) == pytest.approx(frontier.redundancy(2))
    assert found.damage[2] == pytest.approx(3 + 1)
    assert found.damage[1] == frontier.damage[1]
    assert found.masks(1) == frontier.masks(1)


def test_polishing_never_spends_more_parity_than_is_allowed():
    sizes = {"a": 10, "b": 12, "c": 9}
    tensors = [
        TensorDamage(name, size, (damage,), (Strength(None, 0.1),))
        for (name, size), damage in zip(sizes.items(), (9.0, 5.0, 3.0), strict=True)
    ]
    frontier, trials = Frontier(tensors), Additive({"a": 0.0, "b": 9.0, "c": 1.0})
    tight = polish(frontier, 1, trials, frontier.parity_bits[1], 80, 100.0)  # b is larger than a
    assert [swap.given for swap in tight.swaps if swap.kept] == ["c"]
    loose = polish(frontier, 1, trials, 1.2, 80, 100.0)
    assert "b" in [swap.given for swap in loose.swaps if swap.kept]
    assert loose.redundancy(1) * 31 == pytest.approx(1.2)
