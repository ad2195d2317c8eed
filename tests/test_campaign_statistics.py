"""What trials prove, held against scipy, published tables and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ckptguard.campaign import reliability, statistics, verdict
from ckptguard.errors import UsageError

ACCURACIES = [81.2, 80.9, 81.4, 78.0, 81.1, 80.7, 81.3, 81.0, 79.9, 81.2, 80.5, 81.1]


def test_the_t_interval_is_scipys():
    found = statistics.mean_interval(ACCURACIES, 0.9, method="t")
    expected = scipy.stats.ttest_1samp(ACCURACIES, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_bootstrap_interval_agrees_with_scipys():
    found = statistics.mean_interval(ACCURACIES, method="bca", resamples=20000)
    expected = scipy.stats.bootstrap((ACCURACIES,), np.mean, n_resamples=20000, rng=np.random.default_rng(3))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.05)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.05)


def test_the_same_seed_gives_the_same_bootstrap():
    assert statistics.mean_interval(ACCURACIES, seed=5) == statistics.mean_interval(ACCURACIES, seed=5)
    assert statistics.mean_interval(ACCURACIES, seed=5) != statistics.mean_interval(ACCURACIES, seed=6)


def test_few_trials_are_given_students_interval_and_one_trial_none():
    assert statistics.mean_interval(ACCURACIES[:9]).method == "t"
    assert statistics.mean_interval(ACCURACIES[:10]).method == "bca"
    assert statistics.mean_interval([3.0]).high == math.inf
    assert statistics.mean_interval([3.0] * 20) == statistics.Interval(3.0, 3.0, 0.95, "all trials equal")


def test_proportions_have_their_published_intervals():
    """Brown, Cai, DasGupta 2001; 0 of 100 exact one-sided 95 % is 1 - 0.05 ** (1 / 100)."""
    assert statistics.clopper_pearson(0, 100, 0.9).high == pytest.approx(1 - 0.05**0.01)
    found = statistics.wilson(10, 50)
    center, z = 0.2, 1.959963984540054
    half = z / (1 + z * z / 50) * math.sqrt(center * 0.8 / 50 + z * z / 10000)
    middle = (center + z * z / 100) / (1 + z * z / 50)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize(
    ("share", "confidence", "rank", "trials"),
    [(0.95, 0.95, 1, 59), (0.95, 0.99, 1, 90), (0.99, 0.95, 1, 299), (0.999, 0.95, 1, 2995), (0.95, 0.95, 2, 93)],
)
def test_tolerance_needs_the_trials_of_the_tables(share, confidence, rank, trials):
    assert statistics.tolerance_trials(share, confidence, rank) == trials


def test_the_tolerance_bound_is_the_worst_of_59_and_the_second_worst_of_93():
    values = [float(v) for v in range(93)]
    assert statistics.tolerance(values[:58]).bound is None
    assert statistics.tolerance(values[:59]).bound == 0.0
    assert statistics.tolerance(values).bound == 1.0
    assert statistics.tolerance([*values[:58], -math.inf]).bound == -math.inf


def test_tolerance_holds_in_95_per_cent_of_simulated_campaigns():
    draws = np.random.default_rng(11).random((2000, 59))
    held = sum(statistics.tolerance(row).bound <= 0.05 for row in draws)
    assert scipy.stats.binomtest(held, 2000, 0.95, alternative="less").pvalue > 1e-4


def _sequence_by_hand(values, confidence, m):
    """log of the hedged capital at mean m, in plain Python from the paper's formulas."""
    alpha = 1 - confidence
    plus = minus = 0.0
    for t in range(1, len(values) + 1):
        past = values[: t - 1]
        means = [(0.5 + sum(past[: i + 1])) / (i + 2) for i in range(len(past))]
        variance = (0.25 + sum((x - mu) ** 2 for x, mu in zip(past, means, strict=True))) / t
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(t + 1)))
        plus += math.log(1 + min(bet, 0.5 / m) * (values[t - 1] - m))
        minus += math.log(1 - min(bet, 0.5 / (1 - m)) * (values[t - 1] - m))
    return max(plus, minus) - math.log(2)


def test_the_betting_sequence_ends_where_the_capital_reaches_its_bound():
    values = np.random.default_rng(2).beta(8, 2, 60).tolist()
    found = statistics.mean_sequence(values, 0.0, 1.0)
    bound = math.log(20)
    for inside, outside in ((found.low + 0.001, found.low - 0.001), (found.high - 0.001, found.high + 0.001)):
        assert _sequence_by_hand(values, 0.95, inside) < bound
        assert _sequence_by_hand(values, 0.95, outside) >= bound


def test_the_betting_sequence_scales_with_its_range():
    unit = statistics.mean_sequence([0.2, 0.4, 0.3, 0.9], 0, 1)
    wide = statistics.mean_sequence([10.0, 30.0, 20.0, 80.0], -10, 90)
    assert (wide.low, wide.high) == pytest.approx((100 * unit.low - 10, 100 * unit.high - 10))


@pytest.mark.slow
def test_sequences_hold_at_every_look_in_95_per_cent_of_campaigns():
    generator = np.random.default_rng(4)
    campaigns, missed_mean, missed_share = 300, 0, 0
    for _ in range(campaigns):
        values = generator.beta(9, 1, 80)
        looks = [statistics.mean_sequence(values[:n], 0, 1) for n in range(5, 81, 5)]
        missed_mean += any(not look.low <= 0.9 <= look.high for look in looks)
        hits = np.cumsum(values < 0.9)
        share = scipy.stats.beta.cdf(0.9, 9, 1)
        shares = [statistics.proportion_sequence(int(hits[n - 1]), n) for n in range(1, 81)]
        missed_share += any(not look.low <= share <= look.high for look in shares)
    for missed in (missed_mean, missed_share):
        assert scipy.stats.binomtest(missed, campaigns, 0.05, alternative="greater").pvalue > 1e-4


def test_the_proportion_sequence_is_the_beta_mixtures():
    found = statistics.proportion_sequence(3, 100)
    for p in (found.low, found.high):
        mixture = scipy.special.betaln(3.5, 97.5) - scipy.special.betaln(0.5, 0.5)
        assert mixture - 3 * math.log(p) - 97 * math.log(1 - p) == pytest.approx(math.log(20))
    assert statistics.proportion_sequence(0, 5).low == 0.0


def test_pairing_counts_wins_and_measures_what_it_saved():
    common = np.random.default_rng(0).normal(80, 3, 30)
    first, second = common + 0.5, common
    found = statistics.paired(first, second)
    assert (found.better, found.equal, found.worse) == (30, 0, 0)
    assert found.mean == pytest.approx(0.5)
    assert found.sign_test == pytest.approx(2 * 0.5**30)
    assert found.variance_ratio < 1e-9
    assert statistics.paired([1.0, 2.0], [1.0, 2.0]).sign_test == 1.0


def test_the_threshold_is_the_last_rate_within_the_limit_before_the_first_beyond_it():
    found = statistics.threshold([1e-6, 1e-5, 1e-4, 1e-3], [8.0, 8.02, 9.0, 8.0], 8.0, 0.005)
    assert (found.rate, found.next_rate) == (1e-5, 1e-4)
    assert found.crossing == pytest.approx(10 ** (-5 + (8.04 - 8.02) / (9.0 - 8.02)))
    assert statistics.threshold([1e-6], [9.0], 8.0).rate is None
    assert statistics.threshold([1e-6], [8.0], 8.0).next_rate is None


def test_a_geometric_deviation_is_a_factor():
    assert statistics.geometric_deviation([1e-5, 4e-5]) == pytest.approx(math.exp(math.log(4) / math.sqrt(2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean_interval([]),
        lambda: statistics.mean_interval([1.0, math.nan]),
        lambda: statistics.mean_interval([1.0, 2.0], 1.0),
        lambda: statistics.mean_interval([1.0, 2.0], method="normal"),
        lambda: statistics.wilson(3, 2),
        lambda: statistics.proportion_sequence(1, 0),
        lambda: statistics.tolerance_trials(0.95, 0.95, 0),
        lambda: statistics.tolerance([math.nan]),
        lambda: statistics.mean_sequence([2.0], 0, 1),
        lambda: statistics.paired([1.0], [1.0, 2.0]),
        lambda: statistics.threshold([1e-3, 1e-4], [1.0, 1.0], 1.0),
        lambda: statistics.geometric_deviation([1.0]),
        lambda: verdict.Limit.parse("accuracy"),
        lambda: verdict.Limit("accuracy", -1.0, claim="most"),
        lambda: verdict.judge([], 1.0, verdict.Limit("accuracy", -1.0)),
        lambda: verdict.judge([1.0, math.nan], 1.0, verdict.Limit("accuracy", -1.0, "mean")),
        lambda: reliability.failure_rate(0, 10, 0.0),
        lambda: reliability.failure_rate(0, 10, 1.0, devices=0),
        lambda: reliability.hours_of(1.0, "fortnights"),
        lambda: reliability.endurance("days", "days", [1.0], []),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(UsageError):
        call()


def test_59_trials_within_the_limit_pass_and_58_say_that_one_is_missing():
    limit = verdict.Limit.parse("accuracy=-0.5")
    assert verdict.judge([80.6] * 59, 81.0, limit).outcome == verdict.PASS
    found = verdict.judge([80.6] * 58, 81.0, limit)
    assert (found.outcome, found.trials_needed) == (verdict.INCONCLUSIVE, 1)


def test_many_trials_beyond_the_limit_fail():
    limit = verdict.Limit("accuracy", -0.5)
    assert verdict.judge([80.6] * 20 + [70.0] * 5, 81.0, limit).outcome == verdict.FAIL
    assert verdict.judge([math.nan] * 10, 81.0, limit).outcome == verdict.FAIL


def test_peeking_costs_trials():
    limit = verdict.Limit("accuracy", -0.5)
    assert verdict.judge([81.0] * 59, 81.0, limit, peeking=True).outcome == verdict.INCONCLUSIVE
    found = verdict.judge([81.0] * 59, 81.0, limit, peeking=True)
    assert found.trials_needed is not None
    assert verdict.judge([81.0] * (59 + found.trials_needed), 81.0, limit, peeking=True).outcome == verdict.PASS
    assert verdict.judge([81.0] * (58 + found.trials_needed), 81.0, limit, peeking=True).outcome != verdict.PASS


def test_a_limit_above_zero_bounds_a_loss_from_above():
    limit = verdict.Limit("loss", 0.1)
    assert limit.holds(0.55, 0.5)
    assert not limit.holds(0.65, 0.5)
    assert not limit.holds(math.nan, 0.5)
    assert limit.holds(0.1, 0.5)


def test_a_claim_of_the_mean_is_judged_by_its_interval():
    near, far = verdict.Limit("accuracy", -0.5, "mean"), verdict.Limit("accuracy", -0.05, "mean")
    values = [80.9, 80.8, 80.85, 80.95, 80.8, 80.9, 80.7, 80.85, 80.9, 80.8, 80.9, 80.85]
    assert verdict.judge(values, 81.0, near).outcome == verdict.PASS
    assert verdict.judge(values, 81.0, far).outcome == verdict.FAIL
    undecided = verdict.judge(values, 81.0, verdict.Limit("accuracy", -0.15, "mean"))
    assert undecided.outcome == verdict.INCONCLUSIVE
    failed = verdict.judge([*values, math.nan], 81.0, near, bounds=(0.0, 100.0))
    assert failed.outcome == verdict.INCONCLUSIVE


def test_failures_in_time_follow_from_the_share_that_fails():
    """One of 100 devices in 1000 hours: -ln(0.99) / 1000 per hour."""
    found = reliability.failure_rate(1, 100, 1000.0, devices=50)
    assert found.fit == pytest.approx(1e9 * -math.log(0.99) / 1000)
    assert found.mean_hours == pytest.approx(1000 / -math.log(0.99))
    exact = scipy.stats.beta.ppf(0.975, 2, 99)
    assert found.fit_high == pytest.approx(1e9 * -math.log1p(-exact) / 1000)
    assert found.fleet_hours == pytest.approx(found.mean_hours_low / 50)
    assert reliability.failure_rate(0, 100, 1000.0).mean_hours == math.inf
    assert reliability.failure_rate(100, 100, 1000.0).fit == math.inf


def test_time_units_are_hours():
    assert reliability.hours_of(2, "days") == 48.0
    assert reliability.hours_of(1, "years") == 8766.0


def test_endurance_is_the_last_point_that_passes_before_one_that_does_not():
    found = reliability.endurance("days", "days", [365, 30, 90, 180], ["FAIL", "PASS", "PASS", "INCONCLUSIVE"])
    assert (found.last_pass, found.first_fail) == (90, 365)
    assert reliability.endurance("days", "days", [1.0], ["FAIL"]).last_pass is None
