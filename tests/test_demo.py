"""The demonstration: a classifier is ruined and brought back, and every number is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors import safe_open

from ckptguard.cli import app

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demonstration wrote its files."""
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def record(folder: Path) -> Any:
    """What it measured."""
    result = CliRunner().invoke(app.main, ["demo", "--output", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_model_is_worth_protecting(record: Any) -> None:
    assert record["accuracy"]["clean"] > 0.95  # measured: 0.978


def test_without_protection_the_model_is_ruined(record: Any) -> None:
    assert record["accuracy"]["unprotected"] < 0.3  # measured: 0.0, chance is 0.1


def test_repair_brings_the_accuracy_back(record: Any) -> None:
    assert record["accuracy"]["repaired"] > record["accuracy"]["clean"] - 0.01  # measured: no difference
    assert record["lost"] == []


def test_one_percent_of_all_stored_bits_was_flipped(record: Any) -> None:
    assert record["flipped_bits"] / record["stored_bits"] == pytest.approx(1e-2, rel=0.02)  # 5.7 million bits: 0.4 %


def test_every_codeword_was_hit_and_corrected(record: Any) -> None:
    assert record["corrected_codewords"] == record["codewords"] > 200
    assert record["uncorrectable_codewords"] == 0
    assert record["corrected_metadata_bits"] > 100


def test_redundancy_is_that_of_nine_of_32_bits_under_the_code(record: Any) -> None:
    assert record["redundancy"] == pytest.approx(9 / 32 * (8191 - 6722) / 6722)
    assert record["redundancy"] < record["overhead"] < 0.08


def test_the_restored_model_is_a_safetensors_file(record: Any, folder: Path) -> None:
    with safe_open(folder / "restored.safetensors", "np") as file:
        assert sum(file.get_tensor(name).size for name in file.keys()) == record["parameters"]  # noqa: SIM118


def test_the_commands_it_shows_work(folder: Path, record: Any) -> None:
    assert record
    words = ["verify", folder / "worn.ckg", "--against", folder / "model.safetensors", "--framework", "np", "--json"]
    result = CliRunner().invoke(
        app.main, [str(word) for word in [*words, "--eval", f"{folder / 'digits.py'}:evaluate"]]
    )
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["decoded"]["accuracy"] == record["accuracy"]["repaired"]


def test_it_prints_the_accuracies_as_a_table_and_runs_again(folder: Path, record: Any) -> None:
    result = CliRunner().invoke(app.main, ["demo", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert "corrupted, after repair" in result.stdout
    assert f"{100 * record['accuracy']['clean']:.2f} %" in result.stdout
    assert "$ ckptguard protect" in result.stdout


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = CliRunner().invoke(app.main, ["demo", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install 'ckptguard[demo]'" in result.stderr
    assert not (tmp_path / "out").exists()
