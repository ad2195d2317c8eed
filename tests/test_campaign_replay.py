"""Trials of finished campaigns, made again and written to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sweeps import model, small

from ckptguard.campaign.record import Run
from ckptguard.campaign.replay import replay
from ckptguard.cli import main
from ckptguard.errors import MismatchError, UsageError
from ckptguard.evaluate.user import load_object

pytest.importorskip("joblib")
pytest.importorskip("scipy")

VARIANTS = (
    "name=bare",
    "name=coded;masks=top:9;code=bch:63,45;guard=tensor;policy=null",
    "name=small;representation=fixed:8;code=secded:32,26",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A campaign of two points and three variants, its model beside it."""
    folder = tmp_path_factory.mktemp("replay")
    model(folder)
    return small(folder, "run", variants=VARIANTS, golden=False)


def score(run: Run, weights: Path) -> dict[str, float]:
    evaluate: Any = load_object(f"{run.folder.parent / 'task.py'}:score")
    found: dict[str, float] = evaluate(load_file(weights))
    return found


def test_every_replayed_model_scores_exactly_what_its_trial_did(run: Run, tmp_path: Path) -> None:
    source, target = run.folder.parent / "m.safetensors", tmp_path / "bad.safetensors"
    for row in run.rows:
        where: dict[str, Any] = {"point": row.point, "variant": row.variant, "trial": row.trial}
        found = replay(run.folder, source, target, overwrite=True, **where)
        assert found.row == row
        assert score(run, target) == row.metrics
        changed = sum(int((a != b).sum()) for a, b in _pairs(source, target))
        assert row.variant == "small" or changed == row.counts["changed_elements"]


def _pairs(first: Path, second: Path) -> list[tuple[Any, Any]]:
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    return [(one[name].view(f"u{one[name].itemsize}"), two[name].view(f"u{two[name].itemsize}")) for name in one]


def test_the_worst_trial_is_the_one_with_the_least_of_the_main_metric(run: Run, tmp_path: Path) -> None:
    found = replay(run.folder, run.folder.parent / "m.safetensors", tmp_path / "bad.safetensors", point="p01")
    rows = [row for row in run.rows if (row.point, row.variant) == ("p01", "bare")]
    assert found.row.metrics["accuracy"] == min(row.metrics["accuracy"] for row in rows)


def test_what_was_never_run_cannot_be_replayed(run: Run, tmp_path: Path) -> None:
    source, target = run.folder.parent / "m.safetensors", tmp_path / "bad.safetensors"
    for wrong, why in (
        ({}, "2 points; name one of p00, p01"),
        ({"point": "p1"}, "no point 'p1', did you mean 'p01'"),
        ({"point": "p00", "variant": "code"}, "did you mean 'coded'"),
        ({"point": "p00", "trial": 6}, "no trial 6"),
    ):
        with pytest.raises(UsageError, match=why):
            replay(run.folder, source, target, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="inputs are never changed"):
        replay(run.folder, source, source, point="p00", overwrite=True)
    assert not target.exists()


def test_another_model_or_a_trial_that_comes_out_otherwise_is_refused(run: Run, tmp_path: Path) -> None:
    source, other = run.folder.parent / "m.safetensors", tmp_path / "other.safetensors"
    save_file({name: values + values.dtype.type(1) for name, values in load_file(source).items()}, other)
    with pytest.raises(MismatchError, match="its weights are others"):
        replay(run.folder, other, tmp_path / "bad.safetensors", point="p00")
    changed = tmp_path / "run"
    changed.mkdir()
    (changed / "results.jsonl").write_bytes((run.folder / "results.jsonl").read_bytes())
    campaign = json.loads((run.folder / "campaign.json").read_text())
    (changed / "campaign.json").write_text(json.dumps(campaign | {"seed": campaign["seed"] + 1}))
    with pytest.raises(MismatchError, match="comes out otherwise"):
        replay(changed, source, tmp_path / "bad.safetensors", point="p01", trial=0)


def test_a_trial_that_a_policy_refused_has_no_model(run: Run, tmp_path: Path) -> None:
    folder = run.folder.parent
    variants = ["name=strict;masks=all;code=bch:63,57;policy=raise"]
    refused = small(folder, "refused", variants=variants, ber="0.2", trials=2, golden=False)
    assert all(row.raised for row in refused.rows)
    for trial in (0, "worst"):
        with pytest.raises(UsageError, match="refused by the policy `raise`"):
            replay(refused.folder, folder / "m.safetensors", tmp_path / "bad.safetensors", trial=trial)


def test_the_command_writes_the_file_and_says_which_trial_it_is(run: Run, tmp_path: Path, capsys: Any) -> None:
    source, target = str(run.folder.parent / "m.safetensors"), tmp_path / "bad.safetensors"
    words = ["replay", str(run.folder), source, "-o", str(target), "--point", "p01", "--variant", "coded"]
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--json"])
    assert exit_.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["point"], found["variant"], found["output"]) == ("p01", "coded", str(target))
    assert score(run, target)["accuracy"] == found["metrics"]["accuracy"]
    assert all(np.isfinite(values).all() for values in load_file(target).values() if values.dtype.kind == "f")
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--trial", "last", "--force"])
    assert exit_.value.code == 2
    assert "--trial 'last'" in capsys.readouterr().err
