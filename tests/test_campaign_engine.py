"""Campaigns: the same results however they are run, interrupted or divided."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sweeps import files, model, small

from ckptguard.campaign.design import ROUND
from ckptguard.campaign.journal import Journal
from ckptguard.campaign.merge import merge
from ckptguard.campaign.record import Run
from ckptguard.campaign.results import line, read_rows
from ckptguard.errors import CkptGuardError, MismatchError, UsageError

pytest.importorskip("joblib")
pytest.importorskip("scipy")
pytest.importorskip("threadpoolctl")

COMPARED: dict[str, Any] = {
    "masks": "top:9",
    "code": "bch:63,45",
    "representations": ["native", "fixed:8"],
    "controls": True,
}
QUICK = COMPARED | {"golden": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and its evaluator."""
    folder = tmp_path_factory.mktemp("campaign")
    model(folder)
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Run:
    """The campaign that others must equal, run in one process."""
    return small(place, "whole", **COMPARED)


@pytest.mark.parametrize(
    ("jobs", "backend"),
    [
        (2, None),
        (3, "threading"),
        pytest.param(4, "loky", marks=pytest.mark.slow),
        pytest.param(2, "ray", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
        pytest.param(2, "dask", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
    ],
)
def test_results_are_the_same_bytes_for_any_workers_and_backend(
    place: Path, whole: Run, jobs: int, backend: str | None
) -> None:
    if backend in ("ray", "dask"):
        pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend])
    run = small(place, f"w{jobs}{backend}", jobs=jobs, backend=backend, **QUICK)
    assert run.campaign["run"]["jobs"] == jobs
    assert files(run) == files(whole)


def test_a_parallel_config_around_the_call_decides_where_it_runs(place: Path, whole: Run) -> None:
    import joblib

    with joblib.parallel_config(backend="threading", n_jobs=2):
        run = small(place, "configured", jobs=None, **QUICK)
    assert (run.campaign["run"]["backend"], run.campaign["run"]["jobs"]) == ("threading", 2)
    assert files(run) == files(whole)


def test_rows_are_one_per_point_variant_and_trial_in_order(whole: Run) -> None:
    names = [variant["name"] for variant in whole.campaign["variants"]]
    assert len(names) == 8
    assert [row.key for row in whole.rows] == [(p, v, t) for p in ("p00", "p01") for v in names for t in range(6)]
    assert list(whole.rows) == read_rows(whole.folder / "results.jsonl")


def test_all_variants_of_one_encoding_meet_the_same_flips(whole: Run) -> None:
    flips: dict[tuple[str, int, bool], set[int]] = {}
    for row in whole.rows:
        flips.setdefault((row.point, row.trial, "fixed" in row.variant), set()).add(row.counts["flips"])
    assert all(len(found) == 1 for found in flips.values())


def test_a_sum_of_what_was_evaluated_counts_equal_damage_once(whole: Run) -> None:
    assert 0 < whole.campaign["run"]["evaluations"] < len(whole.rows)


@pytest.fixture
def killed(place: Path) -> Path:
    """The folder of a run of a slow evaluator that was killed in its middle by SIGKILL."""
    slow = place / "slow.py"
    slow.write_text(
        "import time\nfrom task import score\n\n\ndef slowly(state):\n    time.sleep(0.05)\n    return score(state)\n"
    )
    folder = place / "killed"
    command = [
        sys.executable,
        "-m",
        "ckptguard",
        "sweep",
        "m.safetensors",
        "-o",
        "killed",
        "--ber",
        "1e-2",
        "--trials",
        "200",
    ]
    command += ["--eval", "slow.py:slowly", "--framework", "np", "-j1", "-q", "--no-report"]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, cwd=place, env={**os.environ, "PYTHONPATH": str(root)})
    journal = folder / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder


def test_a_run_killed_in_its_middle_resumes_to_the_same_bytes(place: Path, killed: Path) -> None:
    done = (killed / "journal.jsonl").read_bytes().count(b"\n")
    assert 5 <= done < 200
    assert not (killed / "results.jsonl").exists()
    asked: dict[str, Any] = {"ber": "1e-2", "trials": 30, "tensors": (), "evaluator": "slow.py:slowly"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        resumed = small(place, "killed", resume=True, **asked)
        fresh = small(place, "fresh", **asked)
    assert resumed.campaign["run"]["trials"] == max(0, 30 - done)
    assert files(resumed) == files(fresh)


def test_a_torn_last_line_of_the_journal_is_cut_off_and_done_again(place: Path, whole: Run, tmp_path: Path) -> None:
    model(tmp_path)
    first = small(tmp_path, "run", **QUICK, evaluator=f"{place / 'task.py'}:score")
    journal = first.folder / "journal.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[: 2 * len(content) // 3])
    assert not journal.read_bytes().endswith(b"\n")
    again = small(tmp_path, "run", resume=True, **QUICK, evaluator=f"{place / 'task.py'}:score")
    assert 0 < again.campaign["run"]["trials"] < 24
    assert files(again) == files(whole)
    assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())


def test_a_journal_damaged_in_its_middle_is_refused_with_its_line(whole: Run, tmp_path: Path) -> None:
    rows = [line(row) for row in whole.rows[:3]]
    (tmp_path / "journal.jsonl").write_text(f"{rows[0]}\n{rows[1][:40]}\n{rows[2]}\n", encoding="utf-8")
    with pytest.raises(CkptGuardError, match=r"journal.jsonl, line 2: is no row of a campaign"):
        Journal(tmp_path)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(UsageError, match="another process runs this campaign"):
        Journal(tmp_path)


def test_more_trials_go_on_where_fewer_ended(place: Path, whole: Run) -> None:
    run = small(place, "grown", **(QUICK | {"trials": 2}))
    assert len(run.rows) == 2 * 8 * 2
    grown = small(place, "grown", resume=True, **QUICK)
    assert grown.campaign["run"]["trials"] == 2 * 2 * 4
    assert files(grown) == files(whole)


def test_parts_merged_are_the_whole(place: Path, whole: Run) -> None:
    parts = [small(place, f"part{i}", part=f"{i}/3", **QUICK) for i in (1, 2, 3)]
    assert sum(len(part.rows) for part in parts) == len(whole.rows)
    assert not any((part.folder / "summary.csv").exists() for part in parts)
    merged = merge([part.folder for part in (parts[2], parts[0], parts[1])], place / "merged")
    assert files(merged) == files(whole)
    assert merged.campaign["analysis"] == whole.campaign["analysis"]
    again = small(place, "merged", resume=True, **QUICK)
    assert (again.campaign["run"]["trials"], files(again)) == (0, files(whole))

    with pytest.raises(MismatchError, match="1 of 3 parts are missing: 2/3"):
        merge([parts[0].folder, parts[2].folder], place / "gap")
    with pytest.raises(UsageError, match="part 1/3 is given twice"):
        merge([parts[0].folder, parts[0].folder], place / "gap")
    with pytest.raises(UsageError, match="is a whole campaign"):
        merge([whole.folder], place / "gap")
    other = small(place, "other", part="2/3", **(QUICK | {"seed": 1}))
    with pytest.raises(MismatchError, match="is a part of another campaign"):
        merge([parts[0].folder, other.folder, parts[2].folder], place / "gap")
    longer = small(place, "longer", part="2/3", **(QUICK | {"trials": 7}))
    with pytest.raises(MismatchError, match=r"differs from .* in trials"):
        merge([parts[0].folder, longer.folder, parts[2].folder], place / "gap")
    half = small(place, "half", part="2/2", **QUICK)
    with pytest.raises(MismatchError, match=r"is part 2/2, .* is part 1/3"):
        merge([parts[0].folder, half.folder, parts[2].folder], place / "gap")
    rows = (parts[1].folder / "results.jsonl").read_text().splitlines(keepends=True)
    (parts[1].folder / "results.jsonl").write_text("".join(rows[:-1]))
    with pytest.raises(MismatchError, match=r"1 trials are in none of .* run the parts again with --resume"):
        merge([part.folder for part in parts], place / "gap")
    (parts[1].folder / "results.jsonl").unlink()
    with pytest.raises(MismatchError, match="it is not finished"):
        merge([part.folder for part in parts], place / "gap")
    assert not (place / "gap").exists()


def test_a_folder_is_not_mixed_with_another_campaign(place: Path, whole: Run) -> None:
    with pytest.raises(UsageError, match="exists already; give --resume"):
        small(place, "whole", **QUICK)
    for change, named in (
        ({"seed": 5}, "seed"),
        ({"ber": "1e-3,2e-2"}, "points"),
        ({"code": "bch:31,21"}, "variants"),
        ({"threads": 2}, "threads"),
    ):
        with pytest.raises(MismatchError, match=f"is another campaign; different: {named}"):
            small(place, "whole", resume=True, **(QUICK | change))
    with pytest.raises(MismatchError, match="is part 1/1 of its campaign, not 1/2"):
        small(place, "whole", resume=True, part="1/2", **QUICK)
    assert whole.folder.exists()


def test_a_changed_model_or_evaluator_is_another_campaign(tmp_path: Path) -> None:
    model(tmp_path)
    small(tmp_path, "run", trials=1)
    task = tmp_path / "task.py"
    task.write_text(task.read_text() + "\n# changed\n")
    with pytest.raises(MismatchError, match="different: evaluator files"):
        small(tmp_path, "run", trials=1, resume=True)
    task.write_text(task.read_text().replace("\n# changed\n", ""))
    content = bytearray((tmp_path / "m.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(MismatchError, match="different: subject"):
        small(tmp_path, "run", trials=1, resume=True)


def test_other_clean_metrics_than_before_are_refused(tmp_path: Path) -> None:
    model(tmp_path)
    run = small(tmp_path, "run", trials=1)
    campaign = json.loads((run.folder / "campaign.json").read_text())
    campaign["clean"]["unprotected"]["accuracy"] += 1
    (run.folder / "campaign.json").write_text(json.dumps(campaign))
    with pytest.raises(MismatchError, match="old and new trials cannot be mixed"):
        small(tmp_path, "run", trials=1, resume=True)


def test_a_point_stops_at_the_end_of_a_round_whatever_the_workers(place: Path) -> None:
    asked: dict[str, Any] = {"ber": "0,1e-2", "trials": 120, "until": "halfwidth=14"}
    alone = small(place, "until1", **asked)
    trials = {record["point"]: record["trials"] for record in alone.campaign["analysis"]["summary"]}
    assert set(trials) == {"p00", "p01"}
    assert all(0 < count < 120 and count % ROUND == 0 for count in trials.values())
    assert trials["p00"] < trials["p01"]
    assert files(small(place, "until3", jobs=3, backend="threading", **asked)) == files(alone)
    (record,) = [r for r in alone.campaign["analysis"]["summary"] if (r["point"], r["metric"]) == ("p01", "accuracy")]
    assert record["mean_method"] == "betting sequence"
    assert record["mean_high"] - record["mean_low"] <= 28


def test_until_verdict_stops_when_it_is_decided(place: Path) -> None:
    run = small(place, "verdict", ber="0.05", trials=300, until="verdict", limit="accuracy=-1")
    (verdict,) = run.campaign["analysis"]["verdicts"]
    assert verdict["outcome"] == "FAIL"
    assert verdict["trials"] < 300
    assert run.exit_status == 14


def test_a_function_of_the_callers_evaluates_in_other_processes(place: Path, whole: Run) -> None:
    source = (place / "task.py").read_text()
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "task", "exec"), space)  # as from a notebook: no module that a worker could import
    found = [small(place, f"function{jobs}", evaluator=space["score"], jobs=jobs, **QUICK) for jobs in (1, 2)]
    assert files(found[0]) == files(found[1])
    assert files(found[0])[1] == files(whole)[1]


def test_an_open_subject_gives_the_same_as_its_path(place: Path, whole: Run) -> None:
    from ckptguard.campaign.subject import Subject
    from ckptguard.campaign.sweep import sweep

    subject = Subject.open(place / "m.safetensors")
    run = sweep(
        subject, place / "open", evaluator=f"{place / 'task.py'}:score", ber="1e-3,1e-2", trials=6, framework="np",
        jobs=1, tensors=("head.*",), **QUICK,
    )  # fmt: skip
    assert files(run) == files(whole)


def test_threads_of_this_process_are_as_before(place: Path, whole: Run) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    with threadpool_limits(2):
        before = [one["num_threads"] for one in threadpool_info()]
        small(place, "threads", trials=1)
        assert [one["num_threads"] for one in threadpool_info()][: len(before)] == before
