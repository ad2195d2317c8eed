"""Device profiles, operating points, and device maps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ckptguard import channels, devices
from ckptguard.devices import Device, DeviceMap, load_profile
from ckptguard.devices.profile import parse_profile
from ckptguard.errors import SpecError

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
    with pytest.raises(SpecError, match=r"unknown device profile 'nand.tlc72', did you mean .*known: dram.soft.gddr5,"):
        load_profile("nand.tlc72")


GOOD = """
summary = "s"
channel = "bsc:{rate}"
source = "a test"
confidence = "D"
[parameters.x]
meaning = "m"
unit = "u"
default = 1
range = [0, 2]
[quantities]
rate = [{ coefficient = 0.9, powers = { x = 1 } }]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("summary", "summery", "no key 'summery', did you mean 'summary'"),
        ('source = "a test"', "", "needs a text 'source'"),
        ('"D"', '"E"', "A, B, C or D"),
        ("default = 1", "default = 3", "outside its range"),
        ("powers = { x", "powers = { y", "no key 'y'"),
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
