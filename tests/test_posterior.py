"""Posterior restorers against enumeration, and against range guards on Gaussian weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ckptguard.dtypes import DTYPES
from ckptguard.errors import ContainerError, UsageError
from ckptguard.guards import TensorGuard
from ckptguard.posterior import FIELDS, MIXED, POSITIVE, Restorer, Spread, transitions
from ckptguard.row_sums import RowSums, segment_sums, segments, with_sums, with_sums_in_place

NOTHING = {"F32": "0" * 32, "BF16": "0" * 16, "F16": "0" * 16}


def words_of(values, name="F32"):
    if name == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype("<f4" if name == "F32" else "<f2").view("<u4" if name == "F32" else "<u2")


def values_of(words, name="F32"):
    if name == "BF16":
        return (words.astype("<u4") << 16).view("<f4").astype(float)
    return words.view("<f4" if name == "F32" else "<f2").astype(float)


def damaged(words, rate, generator, mask):
    flips = np.zeros(words.size, words.dtype)
    for place, chosen in enumerate(mask):
        if chosen == "0":
            flips |= (generator.random(words.size) < rate).astype(words.dtype) << words.dtype.type(
                len(mask) - 1 - place
            )
    return words ^ flips


@pytest.mark.parametrize("name", list(FIELDS))
def test_without_errors_every_word_stays_as_it_is(name):
    values = np.random.default_rng(1).normal(0, 0.05, 4000)
    values[:3] = 0.0
    values[np.abs(values) < 1e-4] = 0.0  # subnormal numbers of float16 count as zero
    words = words_of(values, name)
    spread = Spread.of(DTYPES[name], words)
    restorer = Restorer.of(spread, NOTHING[name], 0.0, 0.0)
    kept = spread.weights[(words >> FIELDS[name][1] & ((1 << FIELDS[name][0]) - 1)).astype(int)] > 0
    assert restorer.gain == 1.0
    assert kept.mean() > 0.999
    np.testing.assert_array_equal(restorer.apply(words)[kept], words[kept])


def test_the_probabilities_of_reading_exponents_are_products_over_their_bits():
    mask = "0" + "01" + "0" * 13
    found = transitions(DTYPES["F16"], mask, 0.1, 0.3, np.arange(32))
    for was, read in itertools.product(range(32), repeat=2):
        expected = 1.0
        for place in range(5):
            bit, seen = was >> (4 - place) & 1, read >> (4 - place) & 1
            wrong = 0.0 if mask[1 + place] == "1" else (0.1, 0.3)[bit]
            expected *= wrong if bit != seen else 1 - wrong
        assert found[was, read] == pytest.approx(expected, abs=1e-15)


def test_no_other_table_has_a_smaller_expected_squared_error():
    generator = np.random.default_rng(2)
    words = words_of(generator.normal(0, 0.3, 3000), "F16")
    spread = Spread.of(DTYPES["F16"], words)
    best = Restorer.of(spread, NOTHING["F16"], 0.02, 0.03, gain=False)
    chances = transitions(DTYPES["F16"], NOTHING["F16"], 0.02, 0.03, np.arange(32))
    magnitudes = np.exp2(np.arange(32) - 15.0)
    magnitudes[[0, 31]] = 0.0

    def error(scale):
        total = 0.0
        for was, read in itertools.product(range(32), repeat=2):
            weight = spread.weights[was] * chances[was, read]
            for flipped, chance in ((1, 0.975), (-1, 0.025)):  # the sign
                total += weight * chance * (flipped * scale[read] - magnitudes[was]) ** 2
        return total

    least = error(best.scale)
    for _ in range(50):
        other = best.scale * np.exp(generator.normal(0, 0.2, 32)) + generator.normal(0, 1e-3, 32)
        assert error(other) > least


@pytest.mark.parametrize("name", ["F32", "BF16"])
def test_errors_left_by_a_posterior_restorer_are_less_than_half_of_those_of_a_range_guard(name):
    generator = np.random.default_rng(3)
    words = words_of(generator.normal(0, 0.05, 200_000), name)
    values = values_of(words, name)
    mask = "10000111" + NOTHING[name][8:]  # the sign, and the bits of the exponent that move words within the range
    read = damaged(words, 1e-2, generator, mask)
    restorer = Restorer.of(Spread.of(DTYPES[name], words), mask, 1e-2, 1e-2, gain=False)
    posterior = np.mean((values_of(restorer.apply(read), name) - values) ** 2)
    guard = TensorGuard.of(DTYPES[name], words.view(np.uint8))
    by_guard = np.mean((values_of(guard.apply(read).words, name) - values) ** 2)
    assert posterior < by_guard / 2


def test_the_gain_takes_the_common_pull_towards_zero_away():
    generator = np.random.default_rng(4)
    words = words_of(generator.normal(0, 0.05, 400_000))
    values = values_of(words)
    read = damaged(words, 1e-2, generator, NOTHING["F32"])
    spread = Spread.of(DTYPES["F32"], words)
    pull = {}
    for gain in (False, True):
        after = values_of(Restorer.of(spread, NOTHING["F32"], 1e-2, 1e-2, gain).apply(read))
        pull[gain] = float(after @ values / (values @ values))
    assert pull[False] < 0.96
    assert pull[True] == pytest.approx(1.0, abs=0.015)


@pytest.mark.parametrize("name", list(FIELDS))
@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_kernels_give_the_bits_of_the_numpy_methods(name, sign):
    generator = np.random.default_rng(8)
    values = generator.normal(0, 0.05, 5000)
    values = {"both": values, "positive": np.abs(values), "negative": -np.abs(values)}[sign]
    spread = Spread.of(DTYPES[name], words_of(values, name))
    kind = "<u4" if name == "F32" else "<u2"
    words = generator.integers(0, 1 << (8 * np.dtype(kind).itemsize), 20_000).astype(kind)  # NaN and all
    masks = (NOTHING[name], "1" * 6 + NOTHING[name][6:])
    for mask, (of_0, of_1) in itertools.product(masks, ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (1e-2, 3e-2))):
        restorer = Restorer.of(spread, mask, of_0, of_1)
        fast = words.copy()
        restorer.apply_in_place(fast)
        np.testing.assert_array_equal(fast, restorer.apply(words))
    top = (1 << FIELDS[name][0]) - 1
    finite = words[(words >> FIELDS[name][1] & top) < top]
    for read in (fast, finite):
        starts, stops = segments(13, read.size - 13, 70)
        wanted = generator.normal(0, 3, starts.size)
        wanted[:2] = 1e38, -3e38
        expected = with_sums(DTYPES[name], read, starts, stops, wanted)
        moved = read.copy()
        with_sums_in_place(DTYPES[name], moved, starts, stops, wanted)
        np.testing.assert_array_equal(moved, expected)
        assert np.isfinite(values_of(moved, name)).all()
        sums = segment_sums(DTYPES[name], read, starts, stops)
        by_hand = [sum(values_of(read, name)[a:b].tolist()) for a, b in zip(starts, stops, strict=True)]
        np.testing.assert_array_equal(sums, by_hand)


def test_tensors_of_one_sign_keep_it():
    words = words_of(np.abs(np.random.default_rng(5).normal(1, 0.1, 1000)))
    spread = Spread.of(DTYPES["F32"], words)
    assert spread.sign == POSITIVE
    restorer = Restorer.of(spread, NOTHING["F32"], 1e-2, 1e-2)
    assert (values_of(restorer.apply(words ^ np.uint32(1 << 31))) > 0).all()


def test_a_spread_takes_a_few_bytes_and_comes_back():
    for count in (0, 1, 2, 5000):
        words = words_of(np.random.default_rng(6).normal(0, 0.02, count))
        spread = Spread.of(DTYPES["F32"], words)
        data = spread.pack()
        assert Spread.unpack(DTYPES["F32"], data + b"more") == (spread, len(data))
        assert len(data) <= 12
    assert spread.sign == MIXED


def test_spreads_that_make_no_sense_are_refused():
    for data in (b"", b"\x01\x09\x0f", b"\xff\x02\x0f\x00", b"\x01\x00\x3f", b"\x00\x01\x00\x00"):
        with pytest.raises(ContainerError):
            Spread.unpack(DTYPES["F32"], data)
    with pytest.raises(UsageError, match="I8"):
        Spread.of(DTYPES["I8"], np.zeros(1, "u1"))


def test_corrected_rows_have_their_sums_to_half_a_step():
    generator = np.random.default_rng(7)
    values = generator.normal(0, 1, (20, 30))
    sums = RowSums.of(values, 20)
    assert np.abs(sums.sums - values.sum(1)).max() <= sums.step * 0.51
    noisy = values + generator.normal(0, 0.5, values.shape)
    corrected = sums.correct(noisy)
    np.testing.assert_allclose(corrected.sum(1), sums.sums, rtol=1e-12)
    np.testing.assert_allclose(np.ptp(corrected - noisy, axis=1), 0, atol=1e-12)
    assert RowSums.of(np.ones((3, 4)), 3).correct(np.zeros((3, 4))).sum(1).tolist() == [4.0, 4.0, 4.0]
