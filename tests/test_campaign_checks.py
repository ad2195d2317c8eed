"""What stops a campaign before a number is printed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeps import model, small

from ckptguard.campaign import checks
from ckptguard.campaign.checks import CheckError
from ckptguard.campaign.design import fault_sources, make_points, rate_sources
from ckptguard.campaign.faults import Scope
from ckptguard.campaign.results import Row
from ckptguard.campaign.variants import Prepared
from ckptguard.errors import CkptGuardError, MismatchError
from ckptguard.evaluate.live import LiveSession

pytest.importorskip("joblib")
stats = pytest.importorskip("scipy.stats")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the model and its evaluators."""
    model(tmp_path)
    return tmp_path


def task(place: Path, function: str) -> str:
    """The spec of an evaluator of the tests."""
    return f"{place / 'task.py'}:{function}"


def test_an_evaluator_that_is_not_deterministic_is_caught(place: Path) -> None:
    with pytest.raises(CheckError, match=r"null check: the same undamaged weights score .* not deterministic"):
        small(place, "run", evaluator=task(place, "chance"))
    assert not (place / "run").exists()


def test_an_evaluator_that_remembers_its_calls_is_caught(place: Path) -> None:
    with pytest.raises(CheckError, match="keeps something from one call to the next"):
        small(place, "run", evaluator=task(place, "counting"))


def test_an_undo_that_leaves_a_bit_is_caught(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undo = LiveSession.undo

    def forgetful(session: LiveSession) -> None:
        undo(session)
        session.data["head.bias"][0] ^= 1

    monkeypatch.setattr(LiveSession, "undo", forgetful)
    with pytest.raises(CheckError, match="does not bring the weights back, bit for bit"):
        small(place, "run")


def test_a_decoder_that_finds_flips_without_faults_is_caught(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Prepared.trial

    def inventive(prepared: Prepared, *arguments: Any) -> Any:
        return replace(trial(prepared, *arguments), residual_bits=3)

    monkeypatch.setattr(Prepared, "trial", inventive)
    with pytest.raises(CheckError, match=r"without faults there are \{'residual_bits': 3\}"):
        small(place, "run")


def test_an_encoding_that_changes_native_weights_is_caught(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Prepared.__init__

    def sloppy(prepared: Prepared, *arguments: Any) -> None:
        made(prepared, *arguments)
        prepared.base = dict(prepared.base) | {"head.bias": prepared.base["head.bias"] ^ np.uint8(1)}

    monkeypatch.setattr(Prepared, "__init__", sloppy)
    with pytest.raises(CheckError, match=r"change tensor 'head\.bias', which has to stay bit-identical"):
        small(place, "run")


def test_a_container_that_restores_other_weights_is_caught(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = checks.restore

    def careless(source: Path, destination: Path, **options: Any) -> None:
        restore(source, destination, **options)
        content = bytearray(destination.read_bytes())
        content[-1] ^= 1
        destination.write_bytes(content)

    monkeypatch.setattr(checks, "restore", careless)
    with pytest.raises(CheckError, match=r"golden check: variant 'bch:63,45': a container and its restoring change"):
        small(place, "run", masks="top:9", code="bch:63,45")


def test_the_golden_check_says_what_has_no_container(place: Path) -> None:
    notes: list[str] = []
    variants = [
        "name=a;code=bch:63,45;representation=fixed:8",
        "name=b;code=ideal",
        "name=c;representation=cast:bfloat16",
    ]
    run = small(place, "run", variants=variants, trials=1, note=notes.append)
    assert run.campaign["checks"]["golden"]["a"] == "passed"
    assert run.campaign["checks"]["golden"]["b"] == "skipped: an ideal code has no container"
    assert run.campaign["checks"]["golden"]["c"] == "skipped: cast:bfloat16 exists in campaigns only"
    assert len(notes) == 2
    assert "golden check of variant 'b' skipped" in notes[0]


def test_a_containers_own_protection_is_checked_against_the_container_itself(place: Path) -> None:
    from ckptguard.campaign.sweep import sweep
    from ckptguard.pipeline.protect import protect

    protect(place / "m.safetensors", place / "m.ckg", bits=9, code="bch:63,45", jobs=1)
    run = sweep(
        place / "m.ckg", place / "run", evaluator=task(place, "score"), ber="1e-2", trials=2, framework="np", jobs=1
    )
    assert [variant["name"] for variant in run.campaign["variants"]] == ["container"]
    assert run.campaign["checks"]["golden"] == {"container": "passed"}
    assert all(row.counts["codewords"] > 0 for row in run.rows)


def test_a_trial_whose_evaluator_raises_is_a_failure_with_its_reason(place: Path) -> None:
    run = small(place, "run", evaluator=task(place, "refuses_nan"), ber="0.1", trials=20)
    failed = [row for row in run.rows if row.error]
    assert 0 < len(failed) < 20
    assert {row.error for row in failed} == {"ValueError: Input contains NaN"}
    assert all(not row.metrics and row.counts["non_finite"] for row in failed)
    (record,) = [r for r in run.campaign["analysis"]["summary"] if r["metric"] == "accuracy"]
    assert (record["failures"], record["worst"]) == (len(failed), 0.0)
    kept = [row.metrics["accuracy"] for row in run.rows if not row.error]
    assert record["mean"] == pytest.approx(sum(kept) / 20)


def test_an_evaluator_that_raises_and_is_broken_from_then_on_stops_the_campaign(place: Path) -> None:
    with pytest.raises(CkptGuardError, match="no longer scores the undamaged model as before"):
        small(place, "run", evaluator=task(place, "stumbles"), ber="0.1", trials=20)


def test_a_worker_that_scores_the_clean_model_otherwise_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = checks.begin

    def elsewhere(work: Any) -> Any:
        found = begin(work)
        return replace(found, clean={name: value + 1e-12 for name, value in found.clean.items()})

    monkeypatch.setattr(checks, "begin", elsewhere)
    with pytest.raises(CkptGuardError, match=r"a worker finds accuracy .* where the first found"):
        small(place, "run")


def rows(count: int, shift: int = 0) -> list[Row]:
    """Rows of one point with 1,000 bits in plane 0, flipped at 0.1."""
    tally = {"flips_by_bit": {"0": 100 + shift}, "residual_by_bit": {}, "residual_by_tensor": {}}
    counts = {"flips": 100 + shift, "parity_flips": 5, "parity_bits": 50}
    return [Row("p00", "v", trial, {}, False, None, 100.0, 5.0, counts, tally) for trial in range(count)]


def test_flips_outside_the_tails_of_their_binomial_distribution_are_caught() -> None:
    points = make_points(rate_sources([0.1]), ["w"], scope=Scope())
    planes = {"v": {"p00": {"0": 1000}}}
    found = checks.flips(rows(4, 10), points, planes)
    assert found["counts"] == 2
    expected = min(
        float(tail)
        for k, n in ((440, 4000), (20, 200))
        for tail in (stats.binom(n, 0.1).sf(k - 1), stats.binom(n, 0.1).cdf(k))
    )
    assert found["smallest_tail"] == pytest.approx(expected)
    checks.flips(rows(4, 22), points, planes)
    with pytest.raises(CheckError, match=r"bit plane 0: 496 flips were drawn where 400 are expected \(probability"):
        checks.flips(rows(4, 24), points, planes)
    with pytest.raises(CheckError, match="flip-count check"):
        checks.flips(rows(4, -23), points, planes)


def test_every_plane_of_a_run_is_counted(place: Path) -> None:
    run = small(place, "run", ber="1e-2", bits="0-8", trials=30)
    (planes,) = run.campaign["checks"]["planes"]["unprotected"].values()
    assert planes == {str(plane): 136 for plane in range(9)}
    assert run.campaign["checks"]["flips"]["counts"] == 9 + 1
    assert run.campaign["checks"]["flips"]["smallest_tail"] > 1e-6


def test_flips_of_bits_with_several_probabilities_are_held_against_a_chernoff_bound() -> None:
    points = make_points(fault_sources(["asymmetric:0.1,0.2"]), ["w"], scope=Scope())
    assert checks.flips(rows(4, 10), points, {"v": {"p00": {}}})["counts"] == 2
    with pytest.raises(CheckError, match=r"message: 520 flips were drawn where 400 are expected"):
        checks.flips(rows(4, 30), points, {"v": {"p00": {}}})
    for count, mean in ((520, 400.0), (300, 400.0), (3, 0.5), (0, 12.0)):
        exact = stats.binom(100_000, mean / 100_000)
        tail = exact.sf(count - 1) if count > mean else exact.cdf(count)
        assert tail <= checks._chernoff(count, mean) <= 30 * math.sqrt(mean + 1) * tail


def test_faults_of_exactly_k_flips_have_k_in_every_trial() -> None:
    points = make_points(fault_sources(["flips:105"]), ["w"], scope=Scope())
    assert checks.flips(rows(3), points, {"v": {"p00": {}}})["counts"] == 1
    with pytest.raises(CheckError, match=r"trial 0: 107 flips were drawn where 105 are expected"):
        checks.flips(rows(3, 2), points, {"v": {"p00": {}}})
    bursts = make_points(fault_sources(["erasure:64,0.1"]), ["w"], scope=Scope())
    assert checks.flips(rows(3), bursts, {"v": {"p00": {}}})["counts"] == 0


def test_sampled_failures_hit_unprotected_bits_as_the_exact_decoder_does(place: Path) -> None:
    asked: dict[str, Any] = {"masks": "top:9", "code": "bch:255,131", "ber": "1e-3", "trials": 20, "golden": False}
    exact, sampled = (small(place, decoder, decoder=decoder, **asked) for decoder in ("exact", "sampled"))
    (planes,) = sampled.campaign["checks"]["planes"]["bch:255,131"].values()
    assert planes == {str(plane): 136 for plane in range(9, 32)}
    assert [row.tallies["residual_by_bit"] for row in sampled.rows] == [
        row.tallies["residual_by_bit"] for row in exact.rows
    ]
    with pytest.raises(MismatchError, match="different: decoder"):
        small(place, "exact", decoder="sampled", resume=True, **asked)
