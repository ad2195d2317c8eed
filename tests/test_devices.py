"""Device profiles, operating points, and device maps."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckptguard import channels, devices
from ckptguard.devices import Device, DeviceMap, load_profile
from ckptguard.devices.expression import Expression
from ckptguard.devices.profile import parse_profile
from ckptguard.errors import SpecError
from ckptguard.report import analog as analog_report
from ckptguard.report import devices as report

MAP = """
[[device]]
name = "vision-rram"
tensors = ["vision.*", "logit_scale"]
profile = "nand.tlc72.powerlaw"
at = { pe = 3000, days = 365 }

[[device]]
name = "text.ssd"
tensors = ["*"]
channel = "bsc:1e-2"
"""


@pytest.mark.parametrize("name", devices.profiles())
def test_every_profile_has_units_a_source_and_a_channel_at_its_default_point(name):
    profile = load_profile(name)
    assert profile.source
    assert profile.confidence in "ABCD"
    assert all(parameter.unit and parameter.meaning for parameter in profile.parameters.values())
    device = profile.at()
    assert (device.name, device.profile, device.source) == (name, name, profile.source)
    assert device.channel == channels.make(device.channel).spec
    assert set(device.operating_point) == set(profile.parameters)


@pytest.mark.parametrize("name", devices.profiles())
def test_every_profile_holds_at_its_presets_and_at_the_ends_of_every_range(name):
    profile = load_profile(name)
    for preset in profile.presets:
        assert profile.at(preset=preset).operating_point == {
            **{key: parameter.default for key, parameter in profile.parameters.items()},
            **profile.presets[preset],
        }
    for most in (False, True):
        point = {key: entry.most if most else entry.least for key, entry in profile.parameters.items()}
        assert channels.make(profile.at(**point).channel).bit_error_rate <= 0.5


def test_the_profiles_of_the_first_release_are_there():
    assert set(devices.profiles()) >= {
        "nand.tlc72.powerlaw",
        "dram.soft.gddr5",
        "stt.mram",
        "ssd.sector",
        "net.ge",
        "fixture.bsc-1e-2",
        "fixture.bsc-1e-6",
        "fixture.int8-1e-3",
    }


@pytest.mark.parametrize(
    ("point", "rate"),
    [
        ({"pe": 0}, 1.5e-3),
        ({"pe": 1000}, 2.0e-3),
        ({"pe": 1000, "days": 90}, 3.9e-3),
        ({"pe": 3000, "days": 365}, 1.1e-2),
        ({"pe": 1000, "reads": 1000}, 7e-3),
    ],
)
def test_nand_power_law_gives_the_values_of_its_source(point, rate):
    channel = channels.make(load_profile("nand.tlc72.powerlaw").at(**point).channel)
    assert float(f"{channel.bit_error_rate:.1e}") == pytest.approx(rate, rel=0.05)


def test_gddr5_soft_errors_grow_with_hours():
    device = load_profile("dram.soft.gddr5").at(hours=1000)
    assert device.channel == "bsc:7.8e-12"


def test_mram_errs_ten_times_as_often_on_ones():
    assert load_profile("stt.mram").at(preset="energy-scaled").channel == "asymmetric:1e-05,0.0001"


def test_ssd_sectors_are_lost_at_the_rate_of_the_class():
    profile = load_profile("ssd.sector")
    assert profile.at(preset="client").channel == "erasure:4096,3.2768e-11"
    assert profile.at(preset="enterprise").channel == "erasure:4096,3.2768e-12"
    assert profile.at(preset="enterprise", uber=1e-13).channel == "erasure:4096,3.2768e-09"


def test_packet_bursts_have_the_stated_share_and_length():
    channel = channels.make(load_profile("net.ge").at(loss=0.01, burst=8).channel)
    assert channel.bit_error_rate == pytest.approx(0.5 * 0.01 / 1.01)
    assert 1 / channel.p_leave == pytest.approx(8 * 1460 * 8)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"pe": 5001}, "pe = 5001 cycles is outside the range 0 .. 5000"),
        ({"pe": -1}, "outside the range"),
        ({"pe": float("nan")}, "finite number"),
        ({"pe": "many"}, "finite number"),
        ({"pe": True}, "finite number"),
        ({"day": 3}, "no parameter 'day', did you mean 'days'.*known: days, pe, reads"),
        ({"preset": "worn"}, "unknown preset of profile"),
    ],
)
def test_a_point_the_profile_does_not_hold_at_is_refused(point, message):
    with pytest.raises(SpecError, match=message):
        load_profile("nand.tlc72.powerlaw").at(**point)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(SpecError, match=r"unknown device profile 'nand.tlc72', did you mean .*known: dram.eden,"):
        load_profile("nand.tlc72")


GOOD = """
summary = "s"
group = "fixture"
channel = "bsc:{rate}"
source = "a test"
confidence = "D"
[parameters.x]
meaning = "m"
unit = "u"
default = 1
range = [0, 2]
[quantities]
rate = "0.9 * x"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("summary", "summery", "no key 'summery', did you mean 'summary'"),
        ('source = "a test"', "", "needs a text 'source'"),
        ('"D"', '"E"', "A, B, C or D"),
        ("default = 1", "default = 3", "outside its range"),
        ("0.9 * x", "0.9 * y", "rate of profile 'p': unknown name 'y'"),
        ("0.9 * x", "0.9 * rate", "unknown name 'rate'"),
        ("0.9 * x", "0.9 *", "expected a number, a name, a function or '\\(', found the end"),
        ('"0.9 * x"', "0.9", "a formula, as a string, or a list of formulas, not 0.9"),
        ("rate =", "x =", "x of profile 'p' is a parameter already"),
        ("{rate}", "{rat}", "channel of profile 'p' has no key 'rat', did you mean 'rate'"),
        ('"fixture"', '"flesh"', "did you mean 'flash'"),
        ("range = [0, 2]", "range = [0, 2]\nlimit = 3", "no key 'limit'"),
        ("[quantities]", "[quantities", "not TOML"),
    ],
)
def test_a_wrong_profile_is_refused(old, new, message):
    assert old in GOOD
    with pytest.raises(SpecError, match=message):
        parse_profile("p", GOOD.replace(old, new))


def test_a_rate_that_is_no_probability_is_refused_at_its_point():
    profile = parse_profile("p", GOOD)
    assert profile.at().channel == "bsc:0.9"
    with pytest.raises(SpecError, match="profile 'p' does not hold at"):
        profile.at(x=2)


FORMULAS = [
    ("1 + 2 * 3 - 4 / 8", 6.5),
    ("-x^2 + 2^-x", -9 + 0.125),
    ("2^3^2", 512),
    ("(1 - (x - 1)) * -1", 1),
    ("0^0", 1),
    ("1.5e-3*x^0.5", 1.5e-3 * math.sqrt(3)),
    ("ln(exp(x)) + sqrt(16) + abs(-1)", 8),
    ("min(x, 2) + 10 * max(x, 2) + floor(2.9)", 34),
    ("step(x - 3) + step(-0.001)", 1),
    ("Q(0)", 0.5),
    ("Q(3.0902323061678132)", 1e-3),
]


@pytest.mark.parametrize(("text", "value"), FORMULAS)
def test_a_formula_has_its_value(text, value):
    assert Expression.parse(text).at({"x": 3.0}) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the end"),
        ("1 +", "found the end"),
        ("1 2", "expected an operator, found '2'"),
        ("(1", "expected '\\)', found the end"),
        ("min(1)", "expected ',', found '\\)'"),
        ("ln(1, 2)", "expected '\\)', found ','"),
        ("lnn(1)", "unknown function 'lnn', did you mean 'ln'"),
        ("__import__(1)", "unknown function '__import__'"),
        ("x.real", "expected an operator, found '.'|means nothing here|is not a number"),
        ("1.2.3", "'1.2.3' is not a number"),
        ("[1]", "'\\[' means nothing here"),
    ],
)
def test_what_is_no_formula_is_refused(text, message):
    with pytest.raises(SpecError, match=message):
        Expression.parse(text)


@pytest.mark.parametrize("text", ["1 / 0", "ln(0)", "exp(1000)", "10^400", "sqrt(-1)", "(-2)^0.5", "1e308 * 10"])
def test_a_formula_without_a_finite_value_is_refused(text):
    with pytest.raises(SpecError, match="value at"):
        Expression.parse(text).at({})


def pages(name, *, adjacent=False, **point):
    """Error rate of each page, from the means and deviates of a profile's channel, by scipy."""
    stats = pytest.importorskip("scipy.stats")
    channel = channels.make(load_profile(name).at(**point).channel)
    count = len(channel.means)
    rates = np.zeros(channel.cell_bits)
    for level, (mean, sigma) in enumerate(zip(channel.means, channel.sigmas, strict=True)):
        normal = stats.norm(mean, sigma)
        above = np.array([1.0, *normal.sf(channel.thresholds), 0.0])
        for read in range(count):
            p = above[read] - above[read + 1]
            if adjacent:  # an emulator that moves a cell by one level at most
                p = {level + 1: above[level + 1], level - 1: 1 - above[level]}.get(read, 0.0)
            if read != level:
                change = channel.labels[level] ^ channel.labels[read]
                rates += [p / count * (change >> bit & 1) for bit in range(channel.cell_bits)]
    return rates


@pytest.mark.parametrize(
    ("name", "point", "expected", "adjacent"),
    [
        ("nand.tlc.levels", {}, (4.5e-5, 2.1e-4, 4.6e-4), False),
        ("nand.tlc.levels", {"pe": 1000, "days": 90}, (5.7e-5, 5.0e-4, 1.3e-3), False),
        ("nand.tlc.levels", {"days": 365}, (8.7e-5, 1.0e-3, 1.7e-3), False),
        ("nand.tlc.levels", {"reads": 50000}, (4.0e-5, 2.6e-4, 1.2e-2), True),
        ("nand.mlc.levels", {}, (2.5e-6, 1.4e-5), False),
        ("nand.mlc.levels", {"days": 90}, (2.3e-5, 6.8e-3), False),
    ],
)
def test_nand_pages_err_as_the_emulator_they_are_taken_from(name, point, expected, adjacent):
    rates = pages(name, adjacent=adjacent, **point)
    assert [float(f"{rate:.1e}") for rate in rates] == pytest.approx(expected)
    channel = channels.make(load_profile(name).at(**point).channel)
    assert channel.page_error_rates == pytest.approx(tuple(pages(name, **point)), rel=1e-9)


def test_cells_of_tlc_move_up_with_age():
    profile = load_profile("nand.tlc.levels")
    fresh, old = (channels.make(profile.at(days=days).channel).moves for days in (0, 365))
    assert [float(f"{rate:.1e}") for rate in (*fresh, *old)] == [4.6e-4, 2.5e-4, 2.7e-3, 1.3e-4]


def test_the_widening_of_the_emulator_is_applied_where_it_is_asked_for():
    profile = load_profile("nand.tlc.levels")
    narrow, wide = (channels.make(profile.at(days=365, broadening=share).channel) for share in (0, 1))
    assert narrow.means == wide.means
    hours = 8760
    shift = abs(-1.53e-8 * hours**2 + 0.000335 * hours)
    assert wide.sigmas[4] == pytest.approx(9.2 * (192 * 0.0049 + shift * 0.01 * (1 + 50)))
    assert wide.bit_error_rate > 5 * narrow.bit_error_rate


def test_mlc_retention_is_refused_where_its_line_leaves_the_world():
    with pytest.raises(SpecError, match=r"days = 365 days is outside the range 0 .. 90"):
        load_profile("nand.mlc.levels").at(days=365)


@pytest.mark.parametrize(
    ("name", "cell", "planes"),
    [
        ("rram.mlc.2b", 7.9e-9, None),
        ("rram.mlc.3b", 3.8e-3, (1.1e-3, 1.8e-3, 8.6e-4)),
        ("rram.mlc.3b-binary", 3.8e-3, (3.8e-3, 2.7e-3, 8.6e-4)),
    ],
)
def test_resistive_cells_and_their_bits_err_as_their_source(name, cell, planes):
    channel = channels.make(load_profile(name).at().channel)
    assert float(f"{channel.cell_error_rate:.1e}") == cell
    if planes is not None:
        assert tuple(float(f"{rate:.1e}") for rate in channel.page_error_rates) == planes
        assert channel.page_error_rates == pytest.approx(tuple(pages(name)), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "refresh", "sigmas"),
    [("dram.retention.1t", 64000, 3.09), ("edram.3t", 10, 3.09), ("edram.333t", 501, 3.5)],
)
def test_retention_fails_at_its_anchor_and_follows_a_lognormal_law(name, refresh, sigmas):
    stats = pytest.importorskip("scipy.stats")
    profile = load_profile(name)
    assert channels.make(profile.at().channel).p10 == pytest.approx(stats.norm.sf(sigmas), rel=1e-9)
    spread = 0.05 / sigmas / (0.09 / math.log(10))
    leakage = stats.lognorm(s=spread, scale=math.exp(-sigmas * spread) / refresh)  # of the charge lost, per microsecond
    for factor in (0.25, 0.8, 2):
        channel = channels.make(profile.at(refresh_us=factor * refresh).channel)
        assert channel.p10 == pytest.approx(leakage.sf(1 / (factor * refresh)), rel=1e-6)
        assert channel.p01 == 0.0


def test_presets_of_sram_are_nested_in_one_chip():
    profile = load_profile("sram.lowv")
    shares = sorted((point["faulty"], name) for name, point in profile.presets.items())
    assert [share for share, _ in shares] == [1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2.5e-2]
    before = np.zeros(1 << 18, np.uint8)
    for _, name in shares:
        data = np.zeros(1 << 18, np.uint8)
        channels.make(profile.at(name).channel).corrupt(data, 0, channels.NoiseKey(11))
        assert not (before & ~data).any()
        assert np.bitwise_count(data).sum() > np.bitwise_count(before).sum()
        before = data


def test_orbits_see_the_rates_of_their_formula():
    profile = load_profile("space.leo")
    for preset, rate in (
        ("leo-500", 3e-12 * math.exp(-0.6)),
        ("sso-650", 1e-12 * math.exp(-0.6)),
        ("leo-2000", 11e-12 * math.exp(-0.6)),
    ):
        channel = channels.make(profile.at(preset, hours=10).channel)
        assert channel.bit_error_rate == pytest.approx(36000 * rate)
    assert channels.make(profile.at(inclination=60, hours=1).channel).p == pytest.approx(3600e-12 * math.exp(-0.6))


def test_soft_errors_of_hbm2_keep_their_number_of_events():
    channel = channels.make(load_profile("hbm2.mbu").at(events=1e-6).channel)
    single, multiple = channel.parts
    assert single.p + multiple.p / 8 == pytest.approx(1e-6)
    assert multiple.p / 8 == pytest.approx(0.3e-6)
    assert (multiple.least, multiple.most, multiple.unit_bytes) == (2, 8, 1)


@pytest.mark.parametrize(
    ("name", "point", "rate"),
    [
        ("nand.slc", {}, 1e-9),
        ("nand.slc", {"pe": 100000}, 1e-6),
        ("nand.qlc", {}, 2e-3),
        ("nand.qlc", {"pe": 1000}, 1e-2),
        ("hbm.relaxed", {"ber": 1e-3}, 1e-3),
        ("pcm.mlc4", {}, 1e-5),
        ("fefet.mlc", {}, 0.04),
        ("dram.refresh.ddr3", {"preset": "hot"}, 4e-9),
        ("dram.eden", {"preset": "hardest"}, 5e-2),
        ("hdd.sector", {"preset": "enterprise"}, 0.5 * 32768e-16),
        ("ssd.sector.field", {"days": 1000, "drive_gb": 4096}, 0.5 * 2e-9),
        ("dram.rowhammer", {"row_share": 1e-3, "activations": 120000}, 1e-3 * 10 / 65536),
    ],
)
def test_profiles_have_the_rates_of_their_sources(name, point, rate):
    assert channels.make(load_profile(name).at(**point).channel).bit_error_rate == pytest.approx(rate)


def test_the_table_of_the_document_is_that_of_the_profiles():
    text = (Path(__file__).parent.parent / "docs" / "devices.md").read_text(encoding="utf-8")
    expected = f"{report.markdown(devices.profiles())}\n\n### Analog arrays\n\n{analog_report.markdown()}"
    found = text.partition("Error rates are at the default operating point.\n")[2].strip()
    assert found == expected, "put what both markdown functions of ckptguard.report give at the end of the document"


def test_the_list_is_grouped_and_the_record_names_pages_and_levels():
    rows = report.profile_records(devices.profiles())
    groups = [row["group"] for row in rows]
    assert [group for group, _ in itertools.groupby(groups)] == [group for group in devices.GROUPS if group in groups]
    profile = load_profile("nand.tlc.levels")
    record = report.device_record(profile, profile.at("year"))
    assert [page["name"] for page in record["cells"]["pages"]] == ["LSB", "CSB", "MSB"]
    assert [level["label"] for level in record["cells"]["levels"]] == [7, 3, 1, 5, 4, 0, 2, 6]
    text = report.show_text(record)
    for words in ("MSB", "0 read as 1", "@season", "0 to 365", "ACE", "lower"):
        assert words in text
    assert max(map(len, text.split("\n"))) < 150


def test_a_device_survives_json():
    for device in (load_profile("nand.tlc72.powerlaw").at(pe=3000), Device("default"), Device("a", channel="bsc:0.01")):
        assert Device.from_json(json.loads(json.dumps(device.to_json()))) == device


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a JSON object"),
        ({"name": "a", "chanel": "bsc:1"}, "did you mean 'channel'"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": ".."}, "letters, digits"),
        ({"channel": "bsc:1"}, "letters, digits"),
        ({"name": 1}, "name of a device is a string"),
        ({"name": "a", "channel": 1}, "channel of a device is a string"),
        ({"name": "a", "channel": "bsc:2"}, "probability"),
        ({"name": "a", "operating_point": []}, "is an object"),
        ({"name": "a", "operating_point": {"pe": "1"}}, "finite number"),
    ],
)
def test_what_is_no_device_is_refused(value, message):
    with pytest.raises(SpecError, match=message):
        Device.from_json(value)


def test_a_tensor_lies_on_the_first_device_that_matches(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(MAP, encoding="utf-8")
    devices = DeviceMap.load(path)
    assert [device.name for device in devices.devices] == ["vision-rram", "text.ssd"]
    vision = devices.assign("vision.layer.0.weight")
    assert vision.operating_point == {"pe": 3000.0, "days": 365.0, "reads": 0.0}
    assert vision.channel == load_profile("nand.tlc72.powerlaw").at(pe=3000, days=365).channel
    assert devices.assign("logit_scale") is vision
    assert devices.assign("Vision.x").channel == "bsc:0.01"


def test_a_tensor_that_matches_no_device_is_refused_by_name():
    devices = DeviceMap.parse(MAP.replace('["*"]', '["text.*"]'))
    with pytest.raises(SpecError, match=r"tensor 'head\.weight' matches no device"):
        devices.assign("head.weight")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (MAP, "", "at least one"),
        (MAP, "device = 3", "at least one"),
        (MAP, "[device]\nname = 'a'", "at least one"),
        (MAP, "devices = []", "did you mean 'device'"),
        (MAP, "[[device", "not TOML"),
        ('tensors = ["*"]', 'tensor = ["*"]', "did you mean 'tensors'"),
        ('tensors = ["*"]', "tensors = []", "needs tensors"),
        ('tensors = ["*"]', 'tensors = "*"', "needs tensors"),
        ('"text.ssd"', '"vision-rram"', "two devices are named 'vision-rram'"),
        ('"text.ssd"', '"text ssd"', "letters, digits"),
        ('name = "text.ssd"', "", "device 2 needs a name"),
        ('channel = "bsc:1e-2"', "", "either a profile or a channel"),
        ('channel = "bsc:1e-2"', 'channel = "bsc:1e-2"\nprofile = "net.ge"', "either a profile or a channel"),
        ('channel = "bsc:1e-2"', 'channel = "bsc:2"', "probability"),
        ('channel = "bsc:1e-2"', "channel = 3", "channel of device 'text.ssd' is a string"),
        ('channel = "bsc:1e-2"', 'channel = "bsc:1e-2"\nat = {}', "'at' goes with a profile"),
        ("nand.tlc72.powerlaw", "nand.tlc.powerlaw", "did you mean 'nand.tlc72.powerlaw'"),
        ("pe = 3000", "pe = 30000", "outside the range"),
        ("pe = 3000", "self = 1", "no parameter 'self'"),
        ("pe = 3000", "preset = 1", "preset of device 'vision-rram' is a string"),
        ("at = { pe = 3000, days = 365 }", "at = 3", "is a table"),
    ],
)
def test_a_wrong_map_is_refused_with_its_file(tmp_path, old, new, message):
    assert old in MAP
    path = tmp_path / "devices.toml"
    path.write_text(MAP.replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError, match=message) as caught:
        DeviceMap.load(path)
    assert str(path) in str(caught.value)


def test_a_map_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        DeviceMap.load(tmp_path / "none.toml")


def test_devices_do_not_import_numba():
    program = (
        "import sys; from ckptguard import devices; [devices.load_profile(name).at() for name in devices.profiles()]"
    )
    program += "; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
