"""The command line: what it imports, prints, returns and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from ckptguard import errors
from ckptguard.cli import app

CODE = "bch:255,131"
EVALUATOR = """
import numpy as np

def score(state_dict):
    return {"sum": float(np.nansum(np.abs(np.nan_to_num(state_dict["layer.weight"])))), "tensors": len(state_dict)}

def nothing(state_dict):
    return {}
"""

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    generator = np.random.Generator(np.random.Philox(1))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tensors = {
        "layer.weight": generator.normal(size=(40, 50)).astype(np.float32),
        "layer.bias": generator.normal(size=40).astype(np.float32),
        "steps": np.array(7, np.int64),
    }
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def container(model: Path) -> Path:
    """Its container: the top 9 bits protected."""
    path = model.with_name("model.ckg")
    assert run("protect", model, "-o", path, "--bits", 9, "--code", CODE).exit_code == 0
    return path


@pytest.fixture
def worn(container: Path, tmp_path: Path) -> Path:
    """The container after correctable damage."""
    path = tmp_path / "worn.ckg"
    assert run("corrupt", container, "-o", path, "--ber", "1e-3", "--seed", 3).exit_code == 0
    return path


@pytest.fixture
def ruined(container: Path, tmp_path: Path) -> Path:
    """The container after damage beyond the code, metadata readable."""
    path = tmp_path / "ruined.ckg"
    content = bytearray(container.read_bytes())
    begin = content.index(b"__metadata__") if b"__metadata__" in content else len(content) // 3
    for place in range(begin + 1000, begin + 5000):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def run(*words: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app.main, [str(word) for word in words])


def run_json(*words: object) -> Any:
    """Run a command with --json; what it prints on stdout."""
    result = run(*words, "--json")
    return json.loads(result.stdout) | {"_exit": result.exit_code}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands, by the words that name them."""
    context = click.Context(app.main)
    for name in app.COMMANDS:
        command = app.main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", found) for sub, found in command.commands.items())
        else:
            yield name, command


HEAVY = "('torch', 'galois', 'numba', 'numpy', 'sklearn', 'safetensors')"


@pytest.mark.parametrize(
    "code",
    [
        "import ckptguard",
        "from ckptguard.cli import main; main(['--version'], standalone_mode=True)",
        "from ckptguard.cli import main; main(['--help'])",
        "from ckptguard.cli import main; main(['protect', '--help'])",
        "from ckptguard.cli import main; main(['chekc'])",
    ],
)
def test_nothing_heavy_is_imported_before_there_is_work(code: str) -> None:
    found = python(
        f"import sys\ntry:\n    {code.replace('; ', chr(10) + '    ')}\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert found.splitlines()[-1] == "[]"


def test_version_is_that_of_the_package() -> None:
    import ckptguard

    assert run("--version").stdout.strip().endswith(ckptguard.__version__)


def test_module_and_command_are_the_same() -> None:
    words = [sys.executable, "-m", "ckptguard", "--version"]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == run("--version").stdout


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_has_help_and_prints_json(name: str, command: click.Command) -> None:
    assert command.help
    assert len(command.short_help or "") <= 60
    options = {text for parameter in command.params for text in parameter.opts}
    assert name == "completion" or {"--json", "--quiet"} <= options
    assert run(*name.split(), "--help").exit_code == 0


def test_no_command_prints_the_help_and_is_a_usage_error() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


def test_protect_prints_the_costs(model: Path, tmp_path: Path) -> None:
    result = run("protect", model, "-o", tmp_path / "a.ckg", "--bits", 9, "--code", CODE)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{tmp_path / 'a.ckg'}: 3 tensors protected in 1 shard\n")
    assert "redundancy r" in result.stdout


def test_inspect_gives_the_documented_fields(container: Path) -> None:
    record = run_json("inspect", container)
    assert record["_exit"] == record["exit_status"] == 0
    assert {"path", "created_by", "settings", "shards", "tensors", "protected_fraction", "redundancy"} <= record.keys()
    assert {"stored_redundancy", "original_bytes", "stored_bytes", "overhead"} <= record.keys()
    assert [tensor["name"] for tensor in record["tensors"] if tensor["kind"] == "tensor"] == sorted(
        ["layer.weight", "layer.bias", "steps"], key=[t["name"] for t in record["tensors"]].index
    )


def test_check_tells_intact_correctable_and_lost(container: Path, worn: Path, ruined: Path) -> None:
    expected = [(container, 0, "intact"), (worn, 10, "correctable"), (ruined, 11, "uncorrectable")]
    for path, status, verdict in expected:
        record = run_json("check", path)
        assert (record["_exit"], record["exit_status"], record["verdict"]) == (status, status, verdict)
        assert run("check", path).stdout.startswith(f"{path}: ")


def test_check_counts_codewords_and_metadata_bits(worn: Path) -> None:
    record = run_json("check", worn)
    assert record["shards"][0]["corrected_codewords"] > 0
    assert record["shards"][0]["uncorrectable_codewords"] == 0
    assert record["shards"][0]["metadata"]["flipped_bits"] > 0
    weight = next(tensor for tensor in record["tensors"] if tensor["name"] == "layer.weight")
    assert weight["found"] == "lost"
    assert weight["state"] == "protected-exact"


def test_restoring_an_intact_container_gives_the_same_file(model: Path, container: Path, tmp_path: Path) -> None:
    result = run("restore", container, "-o", tmp_path / "back.safetensors")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'back.safetensors'}: restored, every bit is exact\n"
    assert (tmp_path / "back.safetensors").read_bytes() == model.read_bytes()


def test_restore_writes_the_best_there_is_and_exits_with_11(ruined: Path, tmp_path: Path) -> None:
    result = run("restore", ruined, "-o", tmp_path / "best.safetensors")
    assert result.exit_code == 11
    assert "layer.weight" in result.stdout
    assert set(load_file(tmp_path / "best.safetensors")) == {"layer.weight", "layer.bias", "steps"}


@pytest.mark.parametrize("command", ["restore", "repair"])
def test_strict_writes_nothing_when_bits_are_lost(command: str, ruined: Path, tmp_path: Path) -> None:
    target = tmp_path / "none.ckg"
    result = run(command, ruined, "-o", target, "--strict", "--json")
    assert result.exit_code == 11
    assert not target.exists()
    error = json.loads(result.stdout)["error"]
    assert error["class"] == "UncorrectableError"
    assert error["report"]["lost"]


def test_repair_heals_what_is_protected(worn: Path, tmp_path: Path) -> None:
    assert run("repair", worn, "-o", tmp_path / "healed.ckg").exit_code == 0
    record = run_json("check", tmp_path / "healed.ckg")
    assert record["exit_status"] == 0
    assert record["verdict"] == "protected-intact"


def test_repair_in_place_changes_the_file_itself(worn: Path) -> None:
    assert run("repair", worn, "--in-place").exit_code == 0
    assert run("check", worn).exit_code == 0


def test_corrupt_is_the_same_for_any_number_of_jobs(container: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        words = ("--ber", "1e-2", "--seed", 5, "--jobs", jobs)
        assert run("corrupt", container, "-o", tmp_path / f"{jobs}.ckg", *words).exit_code == 0
    assert (tmp_path / "1.ckg").read_bytes() == (tmp_path / "3.ckg").read_bytes()


def test_corrupt_reports_every_flip(container: Path, tmp_path: Path) -> None:
    report, copy = tmp_path / "report.json", tmp_path / "copy.ckg"
    record = run_json("corrupt", container, "-o", copy, "--ber", "1e-4", "--seed", 1, "--report", report)
    difference = np.frombuffer(container.read_bytes(), np.uint8) ^ np.frombuffer(copy.read_bytes(), np.uint8)
    flipped = [
        (int(byte), bit) for byte in np.flatnonzero(difference) for bit in range(8) if difference[byte] >> bit & 1
    ]
    (file,) = json.loads(report.read_text())["files"]
    assert [tuple(position) for position in file["positions"]] == flipped
    assert record["flips"] == file["rises"] + file["falls"] == len(flipped)
    assert sum(region["bits"] for region in file["regions"]) == file["bits"] == 8 * copy.stat().st_size


def test_the_device_that_is_recorded_decides_what_corrupt_does(model: Path, tmp_path: Path) -> None:
    container, worn = tmp_path / "device.ckg", tmp_path / "device-worn.ckg"
    words = ("--device", "nand.tlc72.powerlaw", "--at", "pe=3000,days=365", "--code", CODE)
    assert run("protect", model, "-o", container, *words).exit_code == 0
    record = run_json("corrupt", container, "-o", worn, "--seed", 1)
    assert record["files"][0]["device"] == "nand.tlc72.powerlaw"
    assert record["flips"] > 0


def test_a_device_map_makes_one_shard_per_device(model: Path, tmp_path: Path) -> None:
    devices = tmp_path / "devices.toml"
    devices.write_text(
        '[[device]]\nname = "bad"\ntensors = ["layer.*"]\nchannel = "bsc:1e-2"\n'
        '[[device]]\nname = "good"\ntensors = ["*"]\nchannel = "bsc:1e-6"\n'
    )
    made = run_json("protect", model, "-o", tmp_path / "set", "--devices", devices, "--code", CODE)
    assert {shard["device"]["name"] for shard in made["shards"]} == {"bad", "good"}
    assert run("check", tmp_path / "set").exit_code == 0
    Path(made["files"][1]).unlink()
    assert run("check", tmp_path / "set").exit_code == 13


def test_metadata_that_is_lost_exits_with_12(container: Path, tmp_path: Path) -> None:
    content = np.frombuffer(container.read_bytes(), np.uint8).copy()
    size = json.loads(run("inspect", container, "--json").stdout)["shards"][0]["metadata_bytes"]
    stored = 2 * size + 128
    content[128 : 128 + stored] ^= 0x55
    content[-128 - stored : -128] ^= 0x55
    (tmp_path / "lost.ckg").write_bytes(content.tobytes())
    result = run("check", tmp_path / "lost.ckg")
    assert result.exit_code == 12
    assert result.stderr.startswith("error: ")


def test_verify_compares_bits_and_metrics(model: Path, worn: Path, tmp_path: Path) -> None:
    script = tmp_path / "task.py"
    script.write_text(EVALUATOR)
    words = ("verify", worn, "--against", model, "--eval", f"{script}:score", "--framework", "np")
    record = run_json(*words)
    assert (record["_exit"], record["verdict"]) == (0, "protected-exact")
    assert record["metrics"]["clean"]["tensors"] == 3
    assert record["weights"]["layer.weight"]["decoded"]["wrong_protected_bits"] == 0
    assert record["weights"]["layer.weight"]["unprotected"]["wrong_protected_bits"] > 0
    assert "corrupted, unprotected" in run(*words).stdout


def test_verify_against_another_model_exits_with_13(model: Path, container: Path, tmp_path: Path) -> None:
    other = load_file(model)
    other["layer.bias"] = -other["layer.bias"]
    save_file(other, tmp_path / "other.safetensors")
    record = run_json("verify", container, "--against", tmp_path / "other.safetensors")
    assert (record["_exit"], record["verdict"]) == (13, "contradicted")


def certified(model: Path, tmp_path: Path, **provenance: object) -> Path:
    """A container made with masks that carry a certificate."""
    content = {
        "format": "ckptguard-masks",
        "version": 1,
        "rules": [{"tensors": "*", "mask": "top:9,or-all"}],
        "provenance": {"certificate": {"statement": "with 95% confidence,\n95% of devices lose nothing"}} | provenance,
    }
    (tmp_path / "sp.json").write_text(json.dumps(content))
    made = run("protect", model, "-o", tmp_path / "certified.ckg", "--masks", tmp_path / "sp.json")
    assert made.exit_code == 0
    return tmp_path / "certified.ckg"


def test_verify_prints_the_certificate_of_the_masks(model: Path, tmp_path: Path) -> None:
    path = certified(model, tmp_path, representation="native", guard=True)
    record = run_json("verify", path, "--against", model)
    assert record["certificate"]["statement"] == "with 95% confidence, 95% of devices lose nothing"
    assert record["certificate"]["departs"] == []
    assert (
        "not tested again here: with 95% confidence, 95% of devices" in run("verify", path, "--against", model).stdout
    )


def test_verify_tells_where_a_container_is_not_what_was_certified(model: Path, tmp_path: Path) -> None:
    path = certified(model, tmp_path, representation="fixed:8", guard=False)
    printed = run("verify", path, "--against", model).stdout
    assert "not as certified: searched as fixed:8, stored as native" in printed
    assert "not as certified: searched without range guards" in printed


def test_verify_of_a_container_without_a_certificate_speaks_of_none(model: Path, container: Path) -> None:
    assert run_json("verify", container, "--against", model)["certificate"] is None
    assert "certificate" not in run("verify", container, "--against", model).stdout


def test_verify_tells_what_is_lost(model: Path, ruined: Path) -> None:
    assert run("verify", ruined, "--against", model).exit_code == 11


def test_masks_show_and_diff(model: Path, tmp_path: Path) -> None:
    for name, mask in (("a", "top:9"), ("b", "top:8")):
        content = {"format": "ckptguard-masks", "version": 1, "rules": [{"tensors": "layer.*", "mask": mask}]}
        content["rules"].append({"tensors": "*", "mask": "none"})
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    shown = run_json("masks", "show", tmp_path / "a.json", "--model", model)
    assert shown["protected_bits"] == 9 * 2040
    assert shown["redundancy"] == pytest.approx(9 * 2040 / (32 * 2040 + 64) * 1469 / 6722)
    differ = run_json("masks", "diff", tmp_path / "a.json", tmp_path / "b.json", "--model", model)
    assert differ["mean"] == pytest.approx((31 / 32 + 31 / 32 + 1) / 3)
    assert "top:9" in run("masks", "diff", tmp_path / "a.json", tmp_path / "b.json", "--model", model).stdout


def test_an_operating_point_takes_a_preset_by_its_name() -> None:
    for at in ("@season,pe=2000", "preset=season,pe=2000"):
        shown = run_json("devices", "show", "nand.tlc.levels", "--at", at)
        assert shown["operating_point"] == {"pe": 2000, "days": 90, "reads": 0, "broadening": 0}
    assert run("devices", "show", "nand.tlc.levels", "--at", "@season,@year").exit_code == 2


def test_analog_profiles_are_shown_and_refused_for_stored_bits(tmp_path: Path) -> None:
    assert "pcm.joshi20" in run("devices", "list").stdout
    shown = run_json("devices", "show", "pcm.nandakumar19", "--at", "@day")
    assert shown["operating_point"] == {"seconds": 86400}
    refused = run("corrupt", tmp_path / "a", "-o", tmp_path / "b", "--seed", 1, "--device", "pcm.joshi20")
    assert refused.exit_code == 2
    assert "changes values, not stored bits" in refused.stderr


def test_devices_and_codes_are_listed() -> None:
    assert "nand.tlc72.powerlaw" in run("devices", "list").stdout
    shown = run_json("devices", "show", "nand.tlc72.powerlaw", "--at", "pe=3000", "--at", "days=365")
    assert shown["bit_error_rate"] == pytest.approx(1.14e-2, rel=5e-3)
    assert {"bch", "crc", "none", "secded"} <= {kind["name"] for kind in run_json("codes")["kinds"]}
    rows = {row["k"]: row for row in run_json("codes", "bch", "--n", 255, "--ber", "1e-3")["codes"]}
    assert rows[131]["t"] == 18
    assert 0 < rows[239]["failure_probability"] < 1


def test_codes_agree_with_the_published_failure_probability() -> None:
    """facts: BCH(8191,6722) corrects 115 flips; computed with 40 digits, it fails with 2.0759e-4 at 1e-2."""
    rows = {row["k"]: row for row in run_json("codes", "bch", "--n", 8191, "--ber", "1e-2")["codes"]}
    assert rows[6722]["t"] == 115
    assert rows[6722]["failure_probability"] == pytest.approx(2.0759e-4, rel=1e-4)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_CKPTGUARD_COMPLETE" in result.stdout


def test_convert_writes_what_torch_holds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"w": torch.ones(3)}, "epoch": 4}, tmp_path / "model.pt")
    record = run_json("convert", tmp_path / "model.pt", "-o", tmp_path / "model.safetensors")
    assert (record["selected"], record["tensors"]) == ("state_dict", 1)
    assert load_file(tmp_path / "model.safetensors")["w"].tolist() == [1, 1, 1]


def test_quiet_prints_nothing(worn: Path) -> None:
    result = run("check", worn, "--quiet")
    assert (result.exit_code, result.output) == (10, "")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["chekc"], 2, "did you mean 'check'?"),
        (["check"], 2, "Missing argument"),
        (["check", "no-such-file.ckg"], None, "no-such-file.ckg"),
        (["codes", "bhc"], 2, "did you mean 'bch'?"),
        (["codes", "bch"], 2, "--n"),
        (["devices", "show", "nand"], 2, "unknown device profile"),
        (["devices", "show", "stt.mram", "--at", "x"], 2, "key=value"),
        (["devices", "show", "stt.mram", "--at", "self=1"], 2, "self"),
        (
            ["corrupt", "MODEL", "-o", "x", "--seed", "1", "--ber", "1e-2", "--channel", "bsc:1"],
            2,
            "exclude each other",
        ),
        (["corrupt", "MODEL", "-o", "x", "--seed", "1"], 2, "--ber, --channel or --device"),
        (["corrupt", "MODEL", "-o", "x", "--ber", "1e-2"], 2, "--seed"),
        (["corrupt", "MODEL", "-o", "x", "--seed", "1", "--ber", "2"], 2, "2"),
        (["protect", "MODEL"], 2, "-o"),
        (["protect", "MODEL", "-o", "x", "--bits", "9", "--masks", "m"], 2, "exclude"),
        (["protect", "MODEL", "-o", "x", "--code", "auto"], 2, "--device"),
        (["protect", "MODEL", "-o", "x", "--target", "1e-9"], 2, "--code auto"),
        (["protect", "MODEL", "-o", "x", "--code", "bch:8191,6721"], 2, "bch:8191,6722"),
        (["protect", "MODEL", "-o", "MODEL"], 2, "inputs are never changed"),
        (["restore", "MODEL", "-o", "x"], 1, "model.safetensors"),
        (["repair", "CONTAINER"], 2, "--in-place"),
        (["verify", "CONTAINER", "--against", "MODEL", "--eval", "nothing.py:f"], 2, "nothing.py"),
    ],
)
def test_a_wrong_request_is_one_line_with_the_status_of_its_class(
    words: list[str], status: int | None, message: str, model: Path, container: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [{"MODEL": str(model), "CONTAINER": str(container)}.get(word, word) for word in words]
    result = run(*words)
    assert result.exit_code == status if status is not None else result.exit_code in (1, 2)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    as_json = run(*words, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert error["exit_status"] == as_json.exit_code == result.exit_code
    assert message in error["message"]
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_replaced_only_by_force(container: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.safetensors"
    target.write_bytes(b"mine")
    assert run("restore", container, "-o", target).exit_code == 2
    assert target.read_bytes() == b"mine"
    assert run("restore", container, "-o", target, "--force").exit_code == 0
    assert target.read_bytes() != b"mine"


@pytest.mark.parametrize("place", ["container", "copy"])
def test_a_report_replaces_neither_the_container_nor_its_copy(place: str, container: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.ckg"
    before = container.read_bytes()
    report = {"container": container, "copy": copy}[place]
    words = ("--ber", "1e-3", "--seed", 1, "--report", report, "--force")
    result = run("corrupt", container, "-o", copy, *words)
    assert result.exit_code == 2
    assert "the report" in result.stderr
    assert container.read_bytes() == before
    assert not copy.exists()


def test_every_error_class_has_a_documented_status() -> None:
    text = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
    classes = [errors.CkptGuardError]
    for one in classes:
        classes += one.__subclasses__()
    for one in classes:
        assert f"| {one.exit_status} |" in text, one


def test_every_command_and_option_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, command in commands():
        assert f"## {name}\n" in text, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[-1]}" in text or f" {parameter.opts[-1]}" in text, (name, parameter.opts)


def test_an_interruption_exits_with_130(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptguard.pipeline import check

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check", interrupted)
    result = run("check", container)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_a_reader_that_goes_away_does_not_change_the_status(worn: Path) -> None:
    words = [sys.executable, "-m", "ckptguard", "check", str(worn), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait() == 10
    assert process.stderr.read() == ""
    process.stderr.close()
