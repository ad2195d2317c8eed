"""What a campaign tries, as users write it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ckptguard.campaign import design
from ckptguard.campaign.design import Point, Stop, make_points, positions, rate_sources, rates
from ckptguard.campaign.engine import Part, planned
from ckptguard.campaign.faults import Scope
from ckptguard.campaign.metrics import Metric, describe, describe_all, refuse_beyond
from ckptguard.campaign.variant_text import controls, parse_variant
from ckptguard.campaign.variant_text import describe as name_of
from ckptguard.campaign.variants import Variant
from ckptguard.devices import Device
from ckptguard.errors import UsageError
from ckptguard.masks import MaskSet


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-6:1e-4", (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)),
        ("1e-6:1e-2", (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        ("2e-5:7e-4", (2e-5, 6e-5, 2e-4, 6e-4, 7e-4)),
        ("1e-4:1e-2:5", (1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2)),
        ("1e-3:2e-3:2", (1e-3, 2e-3)),
        ("0,1e-3,0.5", (0.0, 1e-3, 0.5)),
        ("1e-3", (1e-3,)),
    ],
)
def test_rates_are_round_and_keep_their_ends(text: str, expected: tuple[float, ...]) -> None:
    assert rates(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1e-2:1e-3", "0 < LO < HI"),
        ("0:1e-3", "0 < LO < HI"),
        ("1e-4:1e-3:1", "at least 2"),
        ("1e-4:1e-3:x", "at least 2"),
        ("1:2:3:4", "expected LO:HI, LO:HI:N or a list"),
        ("1e-3,1e-3", "names a rate twice"),
        ("often", "expected a number"),
        ("nan", "expected a number"),
        ("1.5", "between 0 and 1"),
        ("-1e-3", "between 0 and 1"),
    ],
)
def test_rates_that_make_no_sense_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        rates(text)


def test_points_are_every_source_at_every_place_and_survive_json() -> None:
    sources = [*rate_sources([1e-3, 1.5e-2]), *design.fault_sources(["flips:3"])]
    groups = design.layers(["conv1.weight", "conv1.bias", "odd[0]", "fc.weight"])
    assert groups == {"conv1": ("conv1.weight", "conv1.bias"), "odd[0]": ("odd[0]",), "fc": ("fc.weight",)}
    points = make_points(sources, list(groups), scope=Scope(("*",), (0, 1)), groups=groups, bits=[0, 1])
    assert len(points) == 3 * 3 * 2
    assert [point.id for point in points] == [f"p{i:02d}" for i in range(18)]
    assert {point.label for point in points} == {"1e-03", "1.5e-02", "flips:3"}
    last = points[6 + 5]
    assert (last.group, last.ber, last.scope) == ("layer:odd[0] bit:1", None, Scope(("odd[[]0]",), (1,)))
    assert last.scope.holds("odd[0]")
    assert not last.scope.holds("odd0")
    assert [Point.from_json(json.loads(json.dumps(point.to_json()))) for point in points] == list(points)


def test_points_need_faults_and_tensors() -> None:
    with pytest.raises(UsageError, match="there are no faults to try: give --ber"):
        make_points([], ["w"], scope=Scope())
    with pytest.raises(UsageError, match="nothing to hit"):
        make_points(rate_sources([0.1]), [], scope=Scope(("x*",)))
    with pytest.raises(UsageError, match=r"--tensors 'x\*': matches no tensor; there are a, b"):
        design.matching(["a", "b"], ["a", "x*"])
    with pytest.raises(UsageError, match="device 'box': its channel is not known"):
        design.device_source(Device("box"), "box")
    with pytest.raises(UsageError, match="device 'box': its channel is not known"):
        design.map_source(lambda name: Device("box"), ["w"], "map.toml")


def test_faults_of_a_device_keep_its_operating_point() -> None:
    device = Device("d", channel="bsc:0.001", operating_point={"days": 3.0})
    source = design.device_source(device, "days=3")
    assert (source.ber, source.faults, source.device) == (1e-3, {"*": "bsc:0.001"}, device.to_json())


def test_bit_positions_are_ranges_and_lists() -> None:
    assert positions("0-3,8,5-6") == (0, 1, 2, 3, 5, 6, 8)
    for text in ("", "3-1", "a", "1-", "-1"):
        with pytest.raises(UsageError, match="expected positions such as 0-8"):
            positions(text)
    with pytest.raises(UsageError, match="words have at most 64 bits"):
        positions("60-64")


def test_stopping_rules_and_parts_are_read_or_refused() -> None:
    assert Stop.parse("halfwidth=0.5") == Stop("halfwidth", 0.5)
    assert str(Stop.parse("halfwidth=0.5")) == "halfwidth=0.5"
    assert Stop.parse("verdict") == Stop("verdict")
    for text in ("halfwidth", "verdict=1", "soon"):
        with pytest.raises(UsageError, match="expected halfwidth=WIDTH"):
            Stop.parse(text)
    with pytest.raises(UsageError, match="a number above 0"):
        Stop.parse("halfwidth=0")
    assert Part.parse("2/3") == Part(2, 3)
    for text in ("0/3", "4/3", "2", "a/b"):
        with pytest.raises(UsageError, match="expected I/N"):
            Part.parse(text)


def test_parts_share_all_tasks_without_overlap() -> None:
    variants = [Variant("a"), Variant("b", "fixed:8")]
    tasks = list(planned(3, variants, range(11)))
    assert len(set(tasks)) == len(tasks) == 3 * 2 * 11
    shares = [[task for number, task in enumerate(tasks) if Part(i, 4).has(number)] for i in (1, 2, 3, 4)]
    assert sorted(task for share in shares for task in share) == sorted(tasks)


def test_a_variant_is_read_from_text() -> None:
    found = parse_variant("name=mine; masks=top:9; code=bch:63,45; representation=fixed:8; policy=null; guard=yes")
    assert found == Variant("mine", "fixed:8", MaskSet.top(9), "bch:63,45", "null", True)
    assert parse_variant("masks=top:9") == Variant("bch:8191,6722", "native", MaskSet.top(9), "bch:8191,6722")
    assert parse_variant("policy=null").name == "unprotected null"
    assert name_of(Variant("x", "fixed:8", None, "ideal", guard=True)) == "ideal fixed:8 guard"
    assert parse_variant("guard=no") == Variant("unprotected")
    assert parse_variant("guard=group:64") == Variant("unprotected guard=group:64", guard="group:64")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name", "not of the form key=value"),
        ("mask=top:9", "no key 'mask', did you mean 'masks'"),
        ("code=none;code=none", "'code' is given twice"),
        ("guard=maybe", "'maybe' is no granularity of guards"),
        ("policy=keep", "policy"),
        ("code=bhc:63,45", "bhc"),
        ("masks=nowhere.json", "nowhere.json"),
    ],
)
def test_a_variant_that_makes_no_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(Exception, match=why) as raised:
        parse_variant(text)
    assert getattr(raised.value, "exit_status", None) == 2


def test_guards_without_parity_are_a_control_where_variants_have_guards() -> None:
    mine = Variant("mine", masks=MaskSet.top(4), code="bch:255,131", guard="tensor")
    finer = Variant("finer", masks=MaskSet.top(4), code="bch:255,131", guard="channel")
    small = Variant("small", "fixed:8")
    found = {control.name: control for control in controls([mine, finer, small])}
    assert [name for name in found if "guards" in name] == ["guards", "guards=channel"]
    assert found["guards"] == Variant("guards", guard="tensor")
    assert found["guards=channel"] == Variant("guards=channel", guard="channel")
    assert "guards" not in {control.name for control in controls([mine, Variant("bare guards", guard=True)])}


def test_controls_are_those_that_are_not_there_yet() -> None:
    mine = Variant("mine", "native", MaskSet.top(9), "bch:63,45")
    assert [control.name for control in controls([mine])] == ["unprotected", "full", "ideal"]
    full, ideal = controls([mine])[1:]
    assert (full.masks, full.code) == (None, "bch:63,45")
    assert (ideal.masks, ideal.code) == (mine.masks, "ideal")
    assert [control.name for control in controls([Variant("bare")])] == ["full", "ideal"]
    two = controls([mine, Variant("small", "fixed:8")])
    assert [control.name for control in two] == ["unprotected", "full", "ideal", "full fixed:8", "ideal fixed:8"]


@pytest.mark.parametrize(
    ("name", "percent", "expected"),
    [
        ("accuracy", False, Metric("accuracy", True, 0.0, 1.0)),
        ("top1", True, Metric("top1", True, 0.0, 100.0)),
        ("val/f1-macro", False, Metric("val/f1-macro", True, 0.0, 1.0)),
        ("loss", True, Metric("loss", False, 0.0)),
        ("perplexity", False, Metric("perplexity", False, 1.0)),
        ("relative_error", True, Metric("relative_error", False, 0.0)),
        ("top1 error", True, Metric("top1 error", False, 0.0, 100.0)),
        ("label_spearman", True, Metric("label_spearman", True, -1.0, 1.0)),
        ("non_finite_outputs", False, Metric("non_finite_outputs", False, 0.0, 100.0)),
        ("non_finite", False, Metric("non_finite", False, 0.0)),
        ("score", True, Metric("score", True, known=False)),
    ],
)
def test_a_metrics_direction_and_range_follow_from_its_name(name: str, percent: bool, expected: Metric) -> None:
    assert describe(name, percent) == expected
    assert Metric.from_json(name, json.loads(json.dumps(expected.to_json()))) == expected


def test_one_share_beyond_one_makes_all_shares_per_cent() -> None:
    found = describe_all({"v": {"accuracy": 81.0, "mismatch": 0.0, "loss": 2.0}})
    assert {name: metric.high for name, metric in found.items()} == {"accuracy": 100, "mismatch": 100, "loss": math.inf}
    assert describe_all({"v": {"accuracy": 0.9, "mismatch": 0.0, "loss": 2.0}})["mismatch"].high == 1.0


def test_values_beyond_the_range_of_a_metric_are_refused() -> None:
    refuse_beyond(Metric("f1", True, 0.0, 1.0), [0.0, 1.0, math.nan, math.inf])
    with pytest.raises(UsageError, match=r"a trial has f1 1.5, beyond the 0 .. 1 .* --range f1=LOW:HIGH"):
        refuse_beyond(Metric("f1", True, 0.0, 1.0), [1.5])


def test_a_users_word_on_a_metric_counts() -> None:
    clean = {"v": {"score": 3.0, "loss": 1.0}}
    found = describe_all(clean, ["score=:10", "loss=0:8"], ["score=lower"])
    assert found["score"] == Metric("score", False, high=10.0)
    assert found["loss"].bounds == (0.0, 8.0)
    assert found["score"].worst == 10.0
    for ranges, directions, why in (
        (["scores=0:1"], [], "no metric 'scores', did you mean 'score'"),
        (["score"], [], "expected NAME=LOW:HIGH"),
        (["score=2:1"], [], "LOW is not below HIGH"),
        (["score=a:b"], [], "'a' is no number"),
        (["score=0:1"], [], r"the clean model \(v\) has 3"),
        ([], ["score=up"], "expected NAME=higher"),
    ):
        with pytest.raises(UsageError, match=why):
            describe_all(clean, ranges, directions)


def test_files_that_an_evaluator_names_are_part_of_its_identity(tmp_path: Path) -> None:
    code, data = tmp_path / "task.py", tmp_path / "x.npz"
    code.write_text("a")
    data.write_text("b")
    found = design.file_digests(f"classification:model={code}:Net,data={data},batch=4")
    assert set(found) == {str(code), str(data)}
    assert design.file_digests("weights") == {}
    data.write_text("c")
    assert design.file_digests(f"classification:model={code}:Net,data={data}")[str(data)] != found[str(data)]
