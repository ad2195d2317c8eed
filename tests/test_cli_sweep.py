"""The commands sweep and merge: statuses, output, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import model

from ckptguard.cli import main

pytest.importorskip("joblib")
pytest.importorskip("scipy")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the model and its evaluators."""
    model(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    printed = capsys.readouterr()
    return int(str(exit_.value.code)), printed.out, printed.err


def run(capsys: pytest.CaptureFixture[str], *words: str, output: str = "run") -> tuple[int, str, str]:
    """The same of a sweep of the model in this process, without the golden check."""
    fixed = ["sweep", "m.safetensors", "-o", output, "--framework", "np", "-j1", "--no-golden"]
    evaluator = [] if "--eval" in words else ["--eval", "task.py:score"]
    return call(capsys, *fixed, *evaluator, *words)


def record(capsys: pytest.CaptureFixture[str], *words: str, output: str = "run") -> dict[str, Any]:
    """What `--json` prints."""
    status, out, err = run(capsys, *words, "--json", output=output)
    found: dict[str, Any] = json.loads(out)
    assert found.get("exit_status") == status, err
    return found


def test_an_analog_device_is_swept_at_its_operating_points(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = ["--operating-point", "@s0_001", "--operating-point", "sigma=0.5"]
    found = record(capsys, "--device", "analog.awgn", *points, "--trials", "4")
    assert found["exit_status"] == 0
    campaign = json.loads((place / "run" / "campaign.json").read_text())
    assert [point["label"] for point in campaign["points"]] == ["@s0_001", "sigma=0.5"]
    assert [point["device"]["operating_point"] for point in campaign["points"]] == [{"sigma": 0.001}, {"sigma": 0.5}]
    with (place / "run" / "summary.csv").open(newline="") as file:
        little, much = (float(line["mean"]) for line in csv.DictReader(file) if line["metric"] == "accuracy")
    assert little > much


def test_a_set_on_several_devices_is_swept_with_each_ones_faults(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "map.toml").write_text(
        '[[device]]\nname = "worn"\nchannel = "bsc:0.05"\ntensors = ["head.weight"]\n'
        '[[device]]\nname = "fresh"\nchannel = "bsc:0"\ntensors = ["*"]\n'
    )
    protect = ["protect", "m.safetensors", "-o", "set", "--devices", "map.toml", "--bits", "9", "--code", "bch:63,45"]
    assert call(capsys, *protect, "--quiet")[0] == 0
    words = ["sweep", "set", "-o", "run", "--framework", "np", "-j1", "--eval", "task.py:score", "--trials", "5"]
    status, out, err = call(capsys, *words)
    assert (status, err) == (0, "")
    assert "golden (1 of 1 variants)" in out
    rows = [json.loads(line) for line in (place / "run" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert all(row["flips"] > 0 < row["parity_flips"] for row in rows)
    assert {name for row in rows for name in row["residual_by_tensor"]} <= {"head.weight"}


def test_a_sweep_prints_a_table_and_writes_its_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--ber", "1e-4:1e-2", "--trials", "4", "--code", "bch:63,45", "--controls")
    assert (status, err) == (0, "")
    assert "mean accuracy" in out
    assert "checks passed: null, golden (0 of 3 variants)" in out
    assert "run/report.html" in out
    names = {"campaign.json", "journal.jsonl", "results.jsonl", "summary.csv", "report.html"}
    assert {path.name for path in (place / "run").iterdir()} == names
    with (place / "run" / "summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 3 * 2
    assert [line["label"] for line in lines[::6]] == ["1e-04", "3e-04", "1e-03", "3e-03", "1e-02"]
    campaign = json.loads((place / "run" / "campaign.json").read_text())
    assert campaign["command"][0] == "ckptguard"
    assert "NaN" not in (place / "run" / "campaign.json").read_text()


@pytest.mark.parametrize(
    ("words", "status", "verdict"),
    [
        (("--ber", "0", "--trials", "59"), 0, "PASS"),
        (("--ber", "0", "--trials", "3"), 0, "INCONCLUSIVE"),
        (("--ber", "0.1", "--trials", "8"), 14, "FAIL"),
        (("--ber", "0.1", "--trials", "12", "--claim", "mean"), 14, "FAIL"),
        (
            (
                "--ber",
                "0,0.1",
                "--trials",
                "8",
                "--code",
                "ideal",
                "--variant",
                "name=bare;code=none",
                "--judge",
                "bare",
            ),
            14,
            "FAIL",
        ),
    ],
)
def test_the_exit_status_is_the_verdict(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, verdict: str
) -> None:
    found = record(capsys, *words, "--limit", "accuracy=-1", "--no-report")
    assert (found["exit_status"], found["analysis"]["verdict"]) == (status, verdict)


def test_until_verdict_runs_no_more_than_it_needs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--ber", "0.1", "--until", "verdict", "--max-trials", "200", "--limit", "accuracy=-1", "--no-report")
    found = record(capsys, *words)
    assert found["exit_status"] == 14
    assert 8 <= found["analysis"]["verdicts"][0]["trials"] <= 32


def test_layers_and_bits_are_hit_one_at_a_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = record(
        capsys,
        "--fault",
        "flips:3",
        "--per-tensor",
        "--per-bit",
        "--bits",
        "0-1",
        "--trials",
        "2",
        "--no-report",
        "--tensors",
        "head.*",
    )
    groups = [point["group"] for point in found["points"]]
    assert groups == [f"layer:{name} bit:{bit}" for name in ("head.bias", "head.weight") for bit in (0, 1)]
    rows = [json.loads(line) for line in (place / "run" / "results.jsonl").read_text().splitlines()]
    assert all(list(row["flips_by_bit"].values()) == [3] for row in rows)
    hit = {(row["point"], *row["residual_by_tensor"]) for row in rows}
    assert hit == {(point["id"], point["scope"]["tensors"][0]) for point in found["points"]}
    layers = record(capsys, "--fault", "single", "--per-layer", "--trials", "1", "--no-report", output="layers")
    assert [point["group"] for point in layers["points"]] == ["layer:steps", "layer:head"]


def test_devices_give_points_with_their_operating_point(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = record(
        capsys, "--device", "nand.tlc72.powerlaw", "--operating-point", "pe=1000,days=90",
        "--operating-point", "pe=3000,days=365", "--trials", "2", "--no-report",
    )  # fmt: skip
    assert [point["label"] for point in found["points"]] == ["pe=1000,days=90", "pe=3000,days=365"]
    assert [point["device"]["operating_point"]["days"] for point in found["points"]] == [90.0, 365.0]
    assert 3e-3 < found["points"][0]["ber"] < found["points"][1]["ber"] < 2e-2
    (place / "map.toml").write_text(
        '[[device]]\nname = "good"\ntensors = ["*.bias"]\nchannel = "bsc:0"\n\n'
        '[[device]]\nname = "bad"\ntensors = ["*"]\nchannel = "asymmetric:0.1,0"\n'
    )
    mapped = record(capsys, "--devices", "map.toml", "--trials", "3", "--no-report", output="mapped")
    (point,) = mapped["points"]
    assert point["faults"]["head.bias"] == "bsc:0.0"
    rows = [json.loads(line) for line in (place / "mapped" / "results.jsonl").read_text().splitlines()]
    assert all(set(row["residual_by_tensor"]) <= {"head.weight", "steps"} and row["flips"] for row in rows)


def test_a_containers_own_devices_are_what_it_is_swept_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ckptguard.pipeline.protect import protect

    (place / "map.toml").write_text('[[device]]\nname = "d"\ntensors = ["*"]\nchannel = "bsc:0.01"\n')
    protect(place / "m.safetensors", place / "m.ckg", bits=9, code="bch:63,45", devices=place / "map.toml", jobs=1)
    status, out, _ = call(
        capsys,
        "sweep",
        "m.ckg",
        "-o",
        "run",
        "--eval",
        "task.py:score",
        "--framework",
        "np",
        "-j1",
        "--trials",
        "2",
        "--json",
    )
    found = json.loads(out)
    assert (status, found["points"][0]["label"]) == (0, "own devices")
    assert found["checks"]["golden"] == {"container": "passed"}


def test_parts_are_merged_by_a_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--ber", "1e-3,1e-2", "--trials", "4", "--no-report")
    for part in ("1/2", "2/2"):
        status, out, _ = run(capsys, *words, "--part", part, output=f"p{part[0]}")
        assert (status, out) == (0, f"part {part}: 4 results in p{part[0]}; `ckptguard merge` is next\n")
    whole = record(capsys, *words, output="whole")
    status, out, _ = call(capsys, "merge", "p2", "p1", "-o", "both", "--json")
    assert (status, json.loads(out)["analysis"]) == (0, whole["analysis"])
    for name in ("results.jsonl", "summary.csv"):
        assert (place / "both" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert (place / "both" / "report.html").exists()
    status, _, err = call(capsys, "merge", "p2", "-o", "half")
    assert (status, err) == (13, "error: 1 of 2 parts are missing: 1/2\n")
    status, _, err = call(capsys, "merge", "nowhere", "-o", "half")
    assert (status, err) == (2, "error: nowhere: has no campaign.json, so it is no run of a campaign\n")


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        ((), 2, "there are no faults to try: give --ber"),
        (("--ber", "2"), 2, "between 0 and 1"),
        (("--fault", "bsk:1"), 2, "unknown fault 'bsk'"),
        (("--ber", "1e-3", "--tensors", "foot.*"), 2, "--tensors 'foot.*': matches no tensor"),
        (("--ber", "1e-3", "--layer-types", "Linear"), 2, "does not say which layer a tensor belongs to"),
        (("--ber", "1e-3", "--fields", "sing"), 2, "unknown field 'sing', did you mean 'sign'"),
        (("--ber", "1e-3", "--metric", "accurcy"), 2, "no metric 'accurcy', did you mean 'accuracy'"),
        (("--ber", "1e-3", "--limit", "top1=-1"), 2, "no metric 'top1'"),
        (("--ber", "1e-3", "--limit", "accuracy=1"), 2, "of this metric higher is better, so a loss is accuracy=-1"),
        (("--ber", "1e-3", "--limit", "accuracy"), 2, "is no limit"),
        (("--ber", "1e-3", "--until", "verdict"), 2, "--until verdict needs a --limit"),
        (("--ber", "1e-3", "--until", "soon"), 2, "expected halfwidth=WIDTH"),
        (("--ber", "1e-3", "--until", "halfwidth=1", "--metric", "loss"), 2, "the range of 'loss' is not known"),
        (("--ber", "1e-3", "--until", "halfwidth=1", "--trials", "9"), 2, "--trials and --until exclude each other"),
        (("--ber", "1e-3", "--until", "halfwidth=1", "--part", "1/2"), 2, "--part and --until exclude each other"),
        (("--ber", "1e-3", "--max-trials", "9"), 2, "--max-trials belongs to --until"),
        (("--ber", "1e-3", "--per-layer", "--per-tensor"), 2, "--per-layer and --per-tensor exclude each other"),
        (("--ber", "1e-3", "--operating-point", "pe=1"), 2, "--operating-point belongs to --device"),
        (("--ber", "1e-3", "--figures", "gif"), 2, "'gif' is not known; known: png, pdf, svg"),
        (("--ber", "1e-3", "--judge", "best"), 2, "there is no such variant; there are unprotected"),
        (("--ber", "1e-3", "--variant", "name=a", "--variant", "name=a;policy=null"), 2, "two variants are named 'a'"),
        (("--ber", "1e-3", "--per-bit", "--bits", "63", "--tensors", "head.*"), 2, "no stored word has the bits"),
        (("--ber", "1e-3", "--resume", "--part", "3/2"), 2, "expected I/N"),
        (("--ber", "1e-3", "--eval", "task.py:chance"), 1, "not deterministic"),
        (("--ber", "1e-3", "--limit", "niceness=-1", "--eval", "task.py:limitless", "--claim", "mean",
          "--until", "verdict"), 2, "give --range niceness=LOW:HIGH"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_met_says_why_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, why: str
) -> None:
    found, out, err = run(capsys, *words)
    assert (found, out) == (status, "")
    assert why in err
    assert not (place / "run" / "results.jsonl").exists()


def test_a_folder_that_is_there_is_refused_without_resume(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--ber", "1e-2", "--trials", "2", "--no-report")
    assert run(capsys, *words)[0] == 0
    status, _, err = run(capsys, *words)
    assert (status, err) == (2, "error: run: exists already; give --resume to go on with it, or choose another name\n")
    before = (place / "run" / "results.jsonl").read_bytes()
    assert run(capsys, *words, "--resume")[0] == 0
    assert (place / "run" / "results.jsonl").read_bytes() == before
    status, _, err = run(capsys, "--ber", "2e-2", "--trials", "2", "--resume")
    assert status == 13
    assert "run: is another campaign; different: points" in err
    (place / "file").write_text("")
    assert "is a file" in run(capsys, *words, "--resume", output="file")[2]
    assert "the folder nowhere does not exist" in run(capsys, *words, output="nowhere/run")[2]


def test_layer_types_are_those_of_the_evaluators_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    (place / "net.py").write_text(
        "import numpy as np\nimport torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = torch.nn.Linear(16, 8)\n"
        "        self.register_buffer('steps', torch.zeros(1, dtype=torch.int64))\n\n"
        "    def forward(self, x):\n        return self.head(x)\n\n\n"
        "def data():\n    generator = np.random.default_rng(3)\n    "
        "return generator.normal(size=(20, 16)).astype('f4'), np.arange(20) % 8\n"
    )
    evaluator = "classification:model=net.py:Net,data=net.py:data"
    words = ("--ber", "1e-2", "--trials", "1", "--eval", evaluator, "--no-report")
    found = record(capsys, *words, "--layer-types", "Linear")
    assert found["points"][0]["scope"]["tensors"] == ["head.bias", "head.weight"]
    status, _, err = run(capsys, *words, "--layer-types", "Conv", output="other")
    assert status == 2
    assert "no layer is a Conv; there are Linear, Net" in err
