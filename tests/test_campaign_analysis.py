"""What the rows of a campaign say; expected values are worked out by hand or by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from ckptguard.campaign.analysis import Question, analyse, overall, summarise
from ckptguard.campaign.attribution import attribute, in_time, lasting
from ckptguard.campaign.design import Stop, device_source, make_points, rate_sources
from ckptguard.campaign.faults import Scope
from ckptguard.campaign.metrics import Metric
from ckptguard.campaign.results import COUNTS, TALLIES, Key, Row
from ckptguard.campaign.verdict import Limit
from ckptguard.devices import Device

stats = pytest.importorskip("scipy.stats")

ACCURACY, LOSS = Metric("accuracy", True, 0.0, 100.0), Metric("loss", False, 0.0)
RATES = (1e-4, 1e-3)


def question(metric: Metric = ACCURACY, clean: float = 90.0, trials: int = 0, **changes: object) -> Question:
    """Two error rates and one metric."""
    points = make_points(rate_sources(RATES), ["w"], scope=Scope())
    names = ["a", "b"]
    asked = Question(
        points, names, ["a"], {metric.name: metric}, metric.name, {name: {metric.name: clean} for name in names},
        {point.id: trials for point in points}, {name: {point.id: 0.25 for point in points} for name in names},
    )  # fmt: skip
    return Question(**(vars(asked) | changes))


def rows_of(
    values: Sequence[float], variant: str = "a", point: str = "p00", metric: str = "accuracy"
) -> dict[Key, Row]:
    """Rows with a metric; NaN makes a trial that raised."""
    found = {}
    for trial, value in enumerate(values):
        metrics = {} if math.isnan(value) else {metric: value}
        counts = dict.fromkeys(COUNTS, 2) | {"flips": trial}
        found[point, variant, trial] = Row(
            point, variant, trial, metrics, not metrics, None, 3.0, None, counts, {name: {} for name in TALLIES}
        )
    return found


def both(first: Sequence[float], second: Sequence[float]) -> dict[Key, Row]:
    """The same at both points, for two variants."""
    return {
        key: row
        for point in ("p00", "p01")
        for variant, values in (("a", first), ("b", second))
        for key, row in rows_of(values, variant, point).items()
    }


def test_a_failed_trial_counts_as_the_worst_value_where_that_is_known() -> None:
    asked = question(trials=4)
    found = summarise(rows_of([80, math.nan, 70, math.inf]), asked, asked.points[0], "a", ACCURACY)
    assert (found["failures"], found["raised"], found["mean"]) == (2, 1, 37.5)
    assert (found["worst"], found["median"], found["best"]) == (0.0, 35.0, 80)
    assert found["failures_in_mean"] == "as the worst value"
    assert found["change"] == -52.5
    half = stats.t.ppf(0.975, 3) * np.std([80, 0, 70, 0], ddof=1) / 2
    assert found["mean_low"] == max(0.0, 37.5 - half)
    assert found["mean_high"] == pytest.approx(min(100.0, 37.5 + half))


def test_where_no_worst_value_is_known_the_mean_leaves_failures_out_and_says_so() -> None:
    asked = question(LOSS, clean=1.0, trials=4)
    rows = {
        key: row
        for p in ("p00", "p01")
        for v in ("a", "b")
        for key, row in rows_of([2, math.nan, 4, 3], v, p, "loss").items()
    }
    found = summarise(rows, asked, asked.points[0], "a", LOSS)
    assert (found["mean"], found["worst"], found["best"], found["failures_in_mean"]) == (3.0, math.inf, 2, "left out")
    assert found["median"] == 3.5
    (note,) = analyse(rows, asked)["notes"]
    assert "4 failed trials are left out of its means" in note


def test_no_trial_with_a_value_has_no_mean_but_an_order() -> None:
    asked = question(LOSS, clean=1.0, trials=2)
    found = summarise(rows_of([math.nan, math.nan], metric="loss"), asked, asked.points[0], "a", LOSS)
    assert math.isnan(found["mean"])
    assert (found["worst"], found["best"], found["failures"]) == (math.inf, math.inf, 2)


def test_the_five_per_cent_quantile_is_a_trial_that_was_seen() -> None:
    values = [float(value) for value in range(100, 60, -1)]
    asked = question(trials=40)
    found = summarise(rows_of(values), asked, asked.points[0], "a", ACCURACY)
    assert (found["q05"], found["worst"]) == (62.0, 61.0)
    assert found["mean_flips"] == 19.5
    assert (found["mean_expected_flips"], found["redundancy"]) == (3.0, 0.25)


def test_fifty_nine_trials_make_the_worst_a_bound_and_fifty_eight_do_not() -> None:
    values = [80.0 + trial / 10 for trial in range(59)]
    asked = question(trials=59)
    found = summarise(rows_of(values), asked, asked.points[0], "a", ACCURACY)
    assert found["tolerance_bound"] == 80.0
    assert found["tolerance"] == "95 % of devices keep at least 80, with 95 % confidence"
    fewer = summarise(rows_of(values), question(trials=58), asked.points[0], "a", ACCURACY)
    assert (fewer["tolerance_bound"], fewer["tolerance"]) == (None, "needs 59 trials, has 58")
    rising = question(LOSS, clean=1.0, trials=59)
    lower = summarise(rows_of(values, metric="loss"), rising, rising.points[0], "a", LOSS)
    assert lower["tolerance"] == "95 % of devices keep at most 85.8, with 95 % confidence"
    failed = summarise(rows_of([*values[1:], math.nan], metric="loss"), rising, rising.points[0], "a", LOSS)
    assert failed["tolerance"] == "failed trials leave nothing to state"


def test_the_share_within_a_limit_has_both_intervals() -> None:
    asked = question(trials=20, limit=Limit("accuracy", -1.0))
    found = summarise(rows_of([90.0] * 18 + [89.0, 88.9]), asked, asked.points[0], "a", ACCURACY)
    assert (found["within"], found["within_share"]) == (19, 0.95)
    test = stats.binomtest(19, 20)
    exact, wilson = test.proportion_ci(0.95, "exact"), test.proportion_ci(0.95, "wilson")
    assert found["within_clopper_pearson"] == pytest.approx([exact.low, exact.high])
    assert found["within_wilson"] == pytest.approx([wilson.low, wilson.high])


def test_variants_are_compared_with_the_first_on_the_same_trials() -> None:
    asked = question(trials=6)
    found = analyse(both([90, 80, 70, 60, 50, math.nan], [91, 82, 73, 64, 55, 6]), asked)["paired"]
    assert [(record["point"], record["first"], record["second"]) for record in found] == [
        ("p00", "b", "a"),
        ("p01", "b", "a"),
    ]
    assert (found[0]["mean"], found[0]["better"], found[0]["worse"]) == (pytest.approx(21 / 6), 6, 0)
    assert found[0]["sign_test"] == pytest.approx(2 * 0.5**6)


def test_the_verdict_is_about_the_judged_variants_only() -> None:
    good, bad = [90.0] * 59, [10.0] * 59
    limit = Limit("accuracy", -1.0)
    passed = analyse(both(good, bad), question(trials=59, limit=limit))
    assert passed["verdict"] == "PASS"
    assert {(v["variant"], v["outcome"]) for v in passed["verdicts"]} == {("a", "PASS"), ("b", "FAIL")}
    assert analyse(both(good, bad), question(trials=59, limit=limit, judged=["a", "b"]))["verdict"] == "FAIL"
    open_ = analyse(both(good, bad), question(trials=58, limit=limit))
    assert open_["verdict"] == "INCONCLUSIVE"
    assert [v["trials_needed"] for v in open_["verdicts"] if v["variant"] == "a"] == [1, 1]
    assert analyse(both(good, bad), question(trials=59))["verdict"] is None
    assert overall(["PASS", "INCONCLUSIVE", "FAIL"]) == "FAIL"


def test_a_watched_campaign_is_judged_by_bounds_that_allow_it() -> None:
    limit = Limit("accuracy", -1.0)
    rows = both([90.0] * 59, [90.0] * 59)
    found = analyse(rows, question(trials=59, limit=limit, stop=Stop("verdict")))
    assert found["verdict"] == "INCONCLUSIVE"
    assert {record["mean_method"] for record in found["summary"]} == {"betting sequence"}
    assert {record["tolerance_bound"] for record in found["summary"]} == {None}
    assert "not stated" in found["summary"][0]["tolerance"]
    assert found["summary"][0]["within_sequence"][0] < 0.95 < found["summary"][0]["within_sequence"][1]
    assert "the results decided how many trials there are (until verdict)" in found["notes"][0]


def test_the_threshold_is_the_largest_rate_with_little_more_error() -> None:
    rows = rows_of([90, 90, 90], "a", "p00") | rows_of([89.5, 89.5, 89.5], "a", "p01")
    rows |= rows_of([90, 90, 90], "b", "p00") | rows_of([80, 80, 80], "b", "p01")
    found = {(t["variant"], t["increase"]): t["rate"] for t in analyse(rows, question(trials=3))["thresholds"]}
    assert found["a", 0.10] == 1e-3  # error 10.5 < 1.1 * 10
    assert found["a", 0.05] == 1e-4  # error 10.5 is not below 1.05 * 10
    assert found["b", 0.10] == 1e-4


def damaged(costs: dict[str, float], trials: int, tally: str) -> dict[Key, Row]:
    """Trials whose loss of accuracy is a sum of residual flips times their costs."""
    generator = np.random.default_rng(5)
    found = {}
    for point in ("p00", "p01"):
        for variant in ("a", "b"):
            for trial in range(trials):
                flips = {name: int(generator.poisson(3)) for name in costs}
                value = 90 - sum(costs[name] * count for name, count in flips.items())
                none = dict.fromkeys(COUNTS, 0)
                row = Row(point, variant, trial, {"accuracy": value}, False, None, 1.0, None, none, {
                    "residual_by_tensor": {}, "residual_by_bit": {}, "flips_by_bit": {}, tally: flips,
                })  # fmt: skip
                found[row.key] = row
    return found


def test_attribution_finds_the_cost_of_every_tensor_and_bit() -> None:
    costs = {"w1": 2.0, "w2": 0.25, "w3": 0.0}
    asked = question(trials=20)
    rows = damaged(costs, 20, "residual_by_tensor")
    found = attribute(rows, asked, analyse(rows, asked)["summary"])["a"]["tensors"]
    assert (found["method"], found["trials"], found["explained"]) == ("regressed", 40, pytest.approx(1.0))
    assert {e["name"]: e["loss_per_flip"] for e in found["entries"]} == pytest.approx(costs, abs=1e-9)
    assert [entry["name"] for entry in found["entries"]] == ["w1", "w2", "w3"]
    assert sum(entry["share"] for entry in found["entries"]) == pytest.approx(1.0)
    rows = damaged({str(bit): 1.0 for bit in range(30)}, 20, "residual_by_bit")
    few = attribute(rows, asked, [])["a"]["bits"]
    assert (few["method"], few["note"]) == ("none", "40 trials are too few to tell 30 apart; it takes 60")


def test_attribution_of_layers_hit_alone_is_what_was_measured() -> None:
    points = make_points(rate_sources([1e-3]), ["x.w", "y.w"], scope=Scope(), groups={"x": ["x.w"], "y": ["y.w"]})
    asked = question(trials=2, points=points)
    rows = {
        key: row
        for variant in ("a", "b")
        for key, row in (rows_of([89, 87], variant, "p00") | rows_of([50, 60], variant, "p01")).items()
    }
    found = attribute(rows, asked, analyse(rows, asked)["summary"])["a"]["tensors"]
    assert found == {"method": "measured", "entries": [{"name": "y", "loss": 35.0}, {"name": "x", "loss": 2.0}]}


def on_device(days: Sequence[float]) -> Question:
    """Points on the device profile nand.tlc72.powerlaw after some days."""
    sources = [
        device_source(
            Device("shelf", "nand.tlc72.powerlaw", {"pe": 1000.0, "days": value}, f"bsc:{1e-4 * (i + 1)}"),
            f"days={value:g}",
        )
        for i, value in enumerate(days)
    ]
    points = make_points(sources, ["w"], scope=Scope())
    limit = Limit("accuracy", -1.0)
    base = question(trials=59, limit=limit, points=points)
    return Question(
        **(
            vars(base)
            | {"trials": {p.id: 59 for p in points}, "redundancy": {v: {p.id: 0.0 for p in points} for v in "ab"}}
        )
    )


def test_failures_in_time_come_from_the_days_of_the_operating_point() -> None:
    asked = on_device([90.0])
    rows = {key: row for v in ("a", "b") for key, row in rows_of([90.0] * 57 + [80.0, math.nan], v, "p00").items()}
    (found,) = in_time(rows, asked, devices=10)
    hours = 90 * 24
    assert (found["failures"], found["trials"], found["hours"]) == (2, 59, hours)
    assert found["fit"] == pytest.approx(1e9 * -math.log(1 - 2 / 59) / hours)
    high = stats.beta.ppf(0.975, 3, 57)
    assert found["fleet_hours"] == pytest.approx(hours / -math.log(1 - high) / 10)
    assert any("2 of 59" in text for text in found["assumptions"])
    assert in_time(rows, question(trials=59), devices=1) == []
    assert in_time(rows, Question(**(vars(asked) | {"stop": Stop("verdict")})), devices=1) == []


def test_the_time_a_device_keeps_the_limit_is_the_last_that_passed() -> None:
    asked = on_device([1.0, 30.0, 365.0])
    rows: dict[Key, Row] = {}
    for point, value in (("p00", 90.0), ("p01", 89.5), ("p02", 50.0)):
        for variant in ("a", "b"):
            rows |= rows_of([value] * 59, variant, point)
    (found,) = lasting(asked, analyse(rows, asked)["verdicts"])
    assert (found["parameter"], found["last_pass"], found["first_fail"]) == ("days", 30.0, 365.0)
    assert "'pe': 1000.0" in found["device"]
