"""Analog profiles: what is read of a weight that a conductance stores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ckptguard.channels import NoiseKey
from ckptguard.devices import analog_profiles, load_analog_profile
from ckptguard.devices.analog import BLOCK_VALUES, parse_analog_profile
from ckptguard.errors import SpecError
from ckptguard.report import analog as report

KEY = NoiseKey(7, "layer.weight")
MANY = 200_000


def read(name: str, weight: float, preset: str | None = None, **values: float) -> np.ndarray:
    profile = load_analog_profile(name)
    return profile.read(np.full(MANY, weight), profile.point(values, preset), KEY, largest=1.0)


@pytest.mark.parametrize("name", analog_profiles())
def test_every_analog_profile_has_a_source_units_and_values_at_the_ends_of_its_ranges(name):
    profile = load_analog_profile(name)
    assert profile.source
    assert profile.confidence == "A"
    assert all(parameter.unit and parameter.meaning for parameter in profile.parameters.values())
    points = [
        {key: end(entry) for key, entry in profile.parameters.items()} for end in (lambda e: e.least, lambda e: e.most)
    ]
    points += [dict(preset) for preset in profile.presets.values()]
    for point in points:
        values = profile.read(np.linspace(-1, 1, 101), profile.point(point), KEY)
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("name", "weight", "deviation"),
    [
        ("analog.awgn", 0.3, 0.01),
        # two cells, each with the deviation of its conductance, over the width of the range
        ("rram.milo21", 0.0, math.sqrt(2) * (4.782321 - 0.009107 * 50) / 175),
        ("rram.milo21", -1.0, math.hypot(4.782321 - 0.009107 * 225, 4.782321 - 0.009107 * 50) / 175),
        # the other cell is at 0, where half of a normal deviate is cut off: its variance is 1/2 - 1/(2 pi) of it
        ("pcm.joshi20", 0.8, math.hypot(1.08846279, 0.28638599 * math.sqrt(0.5 - 0.5 / math.pi)) / 25),
        ("rram.wan22", 0.5, math.hypot(2.37813, 1.053 * math.sqrt(0.5 - 0.5 / math.pi)) / 39.26),
    ],
)
def test_the_error_of_a_weight_has_the_deviation_of_its_cells(name, weight, deviation):
    values = read(name, weight)
    assert values.std() == pytest.approx(deviation, rel=0.01)


def test_drift_takes_conductance_by_a_power_of_time():
    profile = load_analog_profile("pcm.nandakumar19")
    day = read("pcm.nandakumar19", 1.0, "day")
    assert profile.formulas["drift"].at({"x": 1.0}) == 0.049
    # programmed at 25 with 1.05 of spread, factor (86400 / 20)**-0.049 in the median
    assert np.median(day) == pytest.approx((86400 / 20) ** -0.049, rel=0.03)
    assert read("pcm.nandakumar19", 1.0).mean() == pytest.approx(1.0, abs=0.02)
    assert read("pcm.nandakumar19", 1.0, "year").mean() < day.mean()


def test_noise_of_reading_grows_with_the_logarithm_of_time():
    formula = load_analog_profile("pcm.nandakumar19").formulas["read"]
    early, late = (formula.at({"g": 25.0, "x": 1.0, "seconds": s}) for s in (20.0, 31536000.0))
    assert early == pytest.approx(25 * 0.0088 * math.sqrt(math.log((20 + 2.5e-7) / 5e-7)))
    assert late / early == pytest.approx(math.sqrt(math.log(31536000 / 5e-7) / math.log(20 / 5e-7)), rel=1e-6)


def test_what_is_drawn_follows_from_key_and_place_alone():
    profile = load_analog_profile("pcm.nandakumar19")
    weights = np.random.default_rng(1).normal(size=BLOCK_VALUES + 1000)
    point = profile.point({}, "day")
    first = profile.read(weights, point, KEY)
    assert np.array_equal(first, profile.read(weights, point, KEY))
    changed = weights.copy()
    changed[:100] = 0.0
    changed[50] = weights[np.argmax(np.abs(weights))]
    assert np.array_equal(profile.read(changed, point, KEY)[200:], first[200:])
    for other in (NoiseKey(8, "layer.weight"), NoiseKey(7, "layer.bias")):
        assert not np.array_equal(profile.read(weights, point, other), first)


def test_shape_stays_and_what_is_not_finite_or_all_zero_is_read_as_it_is():
    profile = load_analog_profile("rram.milo21")
    weights = np.array([[1.0, np.nan], [np.inf, -2.0]], np.float32)
    values = profile.read(weights, {}, KEY)
    assert values.shape == (2, 2)
    assert np.isnan(values[0, 1])
    assert values[1, 0] == np.inf
    assert np.array_equal(profile.read(np.zeros((3, 2)), {}, KEY), np.zeros((3, 2)))
    assert profile.read(np.zeros((0, 4)), {}, KEY).shape == (0, 4)


GOOD = """
summary = "s"
cells = "pair"
conductance = [0, 25]
source = "a test"
confidence = "D"
[formulas]
sigma = "0.1 * x"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"pair"', '"pear"', "did you mean 'pair'"),
        ("[0, 25]", "[25, 0]", "a range from 0 or more up, not 25 .. 0"),
        ('"D"', '"E"', "A, B, C or D"),
        ('source = "a test"', "", "needs a text 'source'"),
        ("0.1 * x", "0.1 * y", "sigma of analog profile 'p' has no key 'y'"),
        ("sigma =", "drift =", "needs the formula sigma"),
        ("sigma =", 'drift = "0"\nsigma =', "both of drift and time"),
        ("sigma =", "sigmas =", "did you mean 'sigma'"),
        ("[formulas]", "[formulas", "not TOML"),
    ],
)
def test_a_wrong_analog_profile_is_refused(old, new, message):
    assert old in GOOD
    assert parse_analog_profile("p", GOOD).high == 25
    with pytest.raises(SpecError, match=message):
        parse_analog_profile("p", GOOD.replace(old, new))


def test_a_point_outside_the_range_is_refused():
    profile = load_analog_profile("pcm.nandakumar19")
    with pytest.raises(SpecError, match=r"seconds = 1 seconds is outside the range 20 .. "):
        profile.point({"seconds": 1})
    with pytest.raises(SpecError, match=r"unknown analog profile 'pcm\.joshi'"):
        load_analog_profile("pcm.joshi")


def test_a_shown_profile_says_what_weights_are_read_as():
    profile = load_analog_profile("pcm.joshi20")
    shown = report.record(profile, profile.point({}))
    half = next(row for row in shown["read"] if row["weight"] == 0.5)
    assert half["deviation"] == pytest.approx(read("pcm.joshi20", 0.5).std(), rel=0.05)
    assert "microsiemens" in report.show_text(shown)
