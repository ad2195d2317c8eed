"""Searches from end to end on a small classifier of handwritten digits, in torch and in numpy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ckptguard.campaign.subject import Subject
from ckptguard.cli import app
from ckptguard.errors import UsageError
from ckptguard.evaluate.session import TensorSpec, open_session
from ckptguard.masks import MaskSet
from ckptguard.pipeline.corrupt import corrupt
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore
from ckptguard.report import search as report
from ckptguard.search import curvature
from ckptguard.search.journal import Journal
from ckptguard.search.problem import faults_of
from ckptguard.search.run import search, sensitivity
from ckptguard.search.trials import Stored, Trials
from ckptguard.search.workers import Done

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

MODEL = """
import numpy as np
import torch


def net():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )


DATA = dict(np.load(__file__.replace("net.py", "digits.npz")))


def score(state):
    with np.errstate(all="ignore"):
        hidden = DATA["inputs"] @ state["0.weight"].T + state["0.bias"]
        hidden = (hidden - state["1.running_mean"]) / np.sqrt(state["1.running_var"] + 1e-5)
        hidden = np.maximum(hidden * state["1.weight"] + state["1.bias"], 0)
        logits = hidden @ state["3.weight"].T + state["3.bias"]
        right = np.isfinite(logits).all(1) & (np.nan_to_num(logits).argmax(1) == DATA["labels"])
    return {"accuracy": 100 * float(right.mean())}


def even(state):
    return score(state)


def losses(state):
    module = net().eval()
    for start in range(12):
        inputs = torch.from_numpy(DATA["inputs"][start : start + 1])
        logits = torch.func.functional_call(module, state, inputs)
        yield torch.nn.functional.cross_entropy(logits, torch.from_numpy(DATA["labels"][start : start + 1]))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with a trained model, its factory, and inputs that it was not trained on."""
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    inputs, labels = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    np.savez(folder / "digits.npz", inputs=inputs[1000:], labels=labels[1000:])
    (folder / "net.py").write_text(MODEL)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(inputs[:1000])), torch.tensor(labels[:1000])).backward()
        optimizer.step()
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def spec(digits: Path) -> str:
    return f"classification:model={digits}/net.py:net,data={digits}/digits.npz"


def loaded(digits: Path, spec: str):
    subject = Subject.open(digits / "model.safetensors")
    specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in subject.tensors.items()}
    session = open_session(spec, specs)
    session.load({name: tensor.data for name, tensor in subject.tensors.items()})
    return subject, session


def test_curvature_is_the_mean_squared_numeric_derivative_of_every_kind_of_tensor(digits, spec):
    _, session = loaded(digits, f"{spec},limit=3")
    found = curvature.of_session(session, 3, seed=4)
    _, inputs, forward = session.calibration(3)
    draws = torch.Generator().manual_seed(4)
    labels = []
    with torch.no_grad():
        for sample in inputs:
            chances = torch.log_softmax(forward(sample).double(), -1).reshape(-1).exp()
            labels.append(int(torch.multinomial(chances, 1, generator=draws)))
    module = session.module.double()

    def losses():
        with torch.no_grad():
            rows = [
                torch.log_softmax(module(sample.double()), -1)[0, label]
                for sample, label in zip(inputs, labels, strict=True)
            ]
        return -torch.stack(rows).numpy()

    places = {"0.weight": 70, "0.bias": 5, "1.weight": 5, "1.bias": 5, "1.running_mean": 5, "1.running_var": 5}
    for name, place in places.items():
        tensor = dict(module.named_parameters()) | dict(module.named_buffers())
        flat = tensor[name].data.view(-1)
        step = 1e-4 * max(abs(float(flat[place])), 0.1)
        flat[place] += step
        above = losses()
        flat[place] -= 2 * step
        below = losses()
        flat[place] += step
        expected = float(np.mean(((above - below) / (2 * step)) ** 2))
        assert found.values[name][place] == pytest.approx(expected, rel=1e-3, abs=1e-9), name
    assert found.values["1.num_batches_tracked"] is None
    assert found.unknown == ("1.num_batches_tracked",)


def test_taking_gradients_leaves_the_model_as_it_was(digits, spec):
    _, session = loaded(digits, f"{spec},limit=50")
    before, digest = session.metrics(), session.digest()
    curvature.of_session(session, 5)
    assert session.metrics() == before
    assert session.digest() == digest
    assert not any("forward" in vars(layer) for layer in session.module.modules())  # batch norm is torch's own again


def test_losses_of_a_users_function_give_the_squares_of_their_gradients(digits):
    state = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])}
    found = curvature.of_losses(lambda s: [(s["w"] * x).sum() for x in (1.0, 3.0)], state)
    assert found.values["w"].tolist() == [5.0, 5.0]  # (1 + 9) / 2
    assert found.values["n"] is None
    assert found.samples == 2


def test_parts_of_data_share_no_input_and_are_the_whole_together(spec, digits):
    from ckptguard.evaluate.data import DATA_KEYS, load_data
    from ckptguard.evaluate.settings import Settings

    def rows(part):
        given = Settings("classification", {"data": str(digits / "digits.npz"), **part}, DATA_KEYS)
        data = load_data(given)
        return [row.tobytes() for row in data.inputs.numpy()], data.labels

    whole, _ = rows({})
    first, labels = rows({"part": "1/3"})
    others = [rows({"part": f"{i}/3"})[0] for i in (2, 3)]
    assert sorted(first + others[0] + others[1]) == sorted(whole)
    assert set(labels.tolist()) == set(range(10))
    assert rows({"part": "1/3", "limit": "7"})[0] == first[:7]
    with pytest.raises(UsageError, match="part=4/3"):
        rows({"part": "4/3"})


def test_a_fisher_search_loses_less_than_uniform_masks_of_no_less_parity(digits, spec):
    asked = {"evaluator": spec, "ber": 1e-2, "seed": 3, "samples": 48}
    model = digits / "model.safetensors"
    costs = sensitivity(model, **asked)
    metadata = costs.metadata_bits / sum(count * len(costs.table[name]) for name, count in costs.words.items())
    budget = metadata + 4 / 32 * 0.0879
    fisher = search(model, budget=budget, **asked)
    subject = Subject.open(model)
    faults, _ = faults_of(subject, ber=1e-2)
    held_out = Trials(subject, f"{spec},part=2/2", faults, Stored(), seed=77)
    mine = held_out.drops(fisher.masks, 0, 24)
    uniform = held_out.drops(MaskSet.top(4), 0, 24)
    assert fisher.chosen.redundancy <= 4 / 32 * 0.0879
    assert np.mean(mine) < np.mean(uniform) - 0.5
    assert fisher.chosen.charged <= budget


def test_a_search_says_the_same_every_time(digits, spec):
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 16, "trials": 2, "seed": 5}
    first = search(digits / "model.safetensors", **asked)
    second = search(digits / "model.safetensors", **asked)
    assert first.masks == second.masks
    assert first.chosen == second.chosen


@pytest.mark.parametrize("method", ["fisher", "measured"])
def test_searches_on_two_processes_find_what_one_finds_and_count_the_same_evaluations(digits, spec, method, tmp_path):
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 16, "trials": 2, "method": method}
    asked |= {"certify": "drop=2.0", "polish": 24}
    found, kept = [], []
    for jobs in (1, 2):
        with Journal(tmp_path / str(jobs)) as journal:
            found.append(search(digits / "model.safetensors", journal=journal, jobs=jobs, **asked))
        kept.append(sorted((tmp_path / str(jobs) / "draws.jsonl").read_text().splitlines()))
    one, two = found
    assert one.masks.to_json() == two.masks.to_json()
    assert (one.path, one.table, one.certificate, one.walk) == (two.path, two.table, two.certificate, two.walk)
    assert one.evaluations == two.evaluations
    assert kept[0] == kept[1]


def test_workers_draw_only_what_a_journal_does_not_know(digits, spec, tmp_path):
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 16, "trials": 2, "seed": 4}
    with Journal(tmp_path) as journal:
        first = search(digits / "model.safetensors", journal=journal, **asked)
    with Journal(tmp_path, resume=True) as journal:
        again = search(digits / "model.safetensors", journal=journal, jobs=2, **asked)
        assert journal.remembered == first.evaluations - 1  # but for that of the undamaged model
    assert again.evaluations == 1
    assert again.masks == first.masks


def test_workers_draw_where_several_draws_are_asked_for_and_nowhere_else(digits, spec):
    class Recording:
        def __init__(self):
            self.draws = 0

        def draw(self, trials, asked):
            self.draws += len(asked)
            for key, trial in asked:
                yield Done(key, trial, float(trial), 1)

    subject, workers = Subject.open(digits / "model.safetensors"), Recording()
    trials = Trials(subject, spec, faults_of(subject, ber=1e-2)[0], Stored(), workers=workers)
    assert trials.drops(MaskSet.top(4), 5, 3) == [5.0, 6.0, 7.0]
    assert (workers.draws, trials.evaluations) == (3, 4)
    assert trials.drops(MaskSet.top(4), 5, 1) != [5.0]
    assert workers.draws == 3


def test_an_evaluator_that_cannot_be_sent_to_a_process_is_refused_by_name(digits, spec):
    lock = threading.Lock()

    def guarded_accuracy(state):
        with lock:
            return {"accuracy": 100.0}

    asked = {"calibrate": guarded_accuracy, "method": "measured", "ber": 1e-2, "max_drop": 1.0, "framework": "np"}
    with pytest.raises(UsageError, match=r"guarded_accuracy cannot be sent .*FILE\.py:NAME"):
        search(digits / "model.safetensors", evaluator=spec, jobs=2, **asked)


def test_the_library_offers_both_verbs_whatever_was_imported_before():
    import ckptguard

    assert ckptguard.find_masks is search
    assert ckptguard.sensitivity is sensitivity


def test_a_tighter_limit_never_costs_less(digits, spec):
    asked = {"evaluator": spec, "ber": 1e-2, "samples": 16, "trials": 3}
    loose = search(digits / "model.safetensors", max_drop=5.0, **asked)
    tight = search(digits / "model.safetensors", max_drop=0.5, **asked)
    assert tight.chosen.redundancy >= loose.chosen.redundancy
    assert tight.chosen.expected <= 0.5


def test_a_certificate_holds_on_a_hundred_fresh_devices(digits, spec):
    model = digits / "model.safetensors"
    found = search(model, evaluator=spec, ber=1e-2, max_drop=1.0, certify="drop=2.0", samples=48, seed=1)
    assert found.certificate is not None
    stored = MaskSet.parse(json.loads(found.masks.to_json())).provenance["certificate"]
    assert stored["statement"] == found.certificate.text
    assert stored["claim"] == {"drop": 2.0, "share": 0.95, "confidence": 0.95, "trials": 59}
    subject = Subject.open(model)
    fresh = Trials(subject, f"{spec},part=2/2", faults_of(subject, ber=1e-2)[0], Stored(), seed=4242)
    over = sum(drop > 2.0 for drop in fresh.drops(found.masks, 0, 100))
    assert over <= 11  # P(Bin(100, 0.05) > 11) is 0.4 per cent


def test_models_without_gradients_are_searched_by_measuring(digits):
    model, evaluator = digits / "model.safetensors", f"{digits}/net.py:score"
    with pytest.raises(UsageError, match="--calibrate"):
        search(model, evaluator=evaluator, ber=1e-2, max_drop=2.0)
    with pytest.raises(UsageError, match="no gradients"):
        search(model, evaluator=evaluator, calibrate=f"{digits}/net.py:even", ber=1e-2, max_drop=2.0, framework="np")
    asked = {"calibrate": f"{digits}/net.py:even", "ber": 1e-2, "max_drop": 2.0, "framework": "np", "trials": 3}
    found = search(model, evaluator=evaluator, method="measured", **asked)
    assert 0 < found.chosen.redundancy < 0.05
    assert found.chosen.expected <= 2.0


def test_a_users_losses_serve_where_the_evaluator_has_no_gradients(digits):
    found = sensitivity(
        digits / "model.safetensors",
        evaluator=f"{digits}/net.py:score",
        gradients=f"{digits}/net.py:losses",
        framework="np",
        ber=1e-3,
    )
    assert found.table["0.weight"][0] > found.table["0.weight"][20] > 0
    assert "12 losses" in found.source


def test_bits_on_a_worse_device_are_protected_first(digits, spec):
    from ckptguard.devices import DeviceMap

    devices = DeviceMap.parse(
        '[[device]]\nname = "worn"\ntensors = ["0.*"]\nchannel = "bsc:1e-2"\n'
        '[[device]]\nname = "fresh"\ntensors = ["*"]\nchannel = "bsc:1e-7"\n'
    )
    found = search(
        digits / "model.safetensors", evaluator=spec, devices=devices, budget=0.11, samples=16, codes="ideal:0.01"
    )
    masks = {one.name: one.mask.count("1") for one in found.masks.resolve([("0.weight", 32), ("3.weight", 32)]).tensors}
    assert masks["0.weight"] > masks["3.weight"] + 4


def test_requests_that_say_too_little_or_too_much_are_refused(digits, spec):
    model = digits / "model.safetensors"
    for wrong in ({}, {"budget": 0.1, "max_drop": 1.0}):
        with pytest.raises(UsageError, match="only one"):
            search(model, evaluator=spec, ber=1e-2, **wrong)
    with pytest.raises(UsageError, match="one storage"):
        search(model, evaluator=spec, budget=0.1)
    with pytest.raises(UsageError, match="better than the undamaged"):
        search(model, evaluator=spec, ber=1e-2, target=101.0, samples=4, trials=1)
    with pytest.raises(UsageError, match="did you mean"):
        search(model, evaluator=spec, ber=1e-2, budget=0.2, method="fischer")


def test_the_command_writes_masks_that_protect_takes_and_a_report(digits, spec, tmp_path):
    model, masks, folder = str(digits / "model.safetensors"), tmp_path / "sp.json", tmp_path / "run"
    arguments = ["search", model, "--eval", spec, "--ber", "1e-2", "--budget", "0.12", "--samples", "16"]
    arguments += ["-o", str(masks), "--report", str(folder), "--json"]
    result = CliRunner().invoke(app.main, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["charged_redundancy"] <= 0.12
    assert {Path(name).name for name in record["files"]} == {
        "sp.json", "search.json", "frontier.csv", "damage.csv", "report.html",
    }  # fmt: skip
    assert not (folder / "journal").exists()
    assert "Where flips hurt" in (folder / "report.html").read_text()
    container = str(tmp_path / "m.ckg")
    protect = ["protect", model, "-o", container, "--masks", str(masks), "--code", "bch:255,131"]
    assert CliRunner().invoke(app.main, protect).exit_code == 0
    again = CliRunner().invoke(app.main, arguments)
    assert again.exit_code == 2
    assert "--force" in again.output


def test_sensitivity_prints_the_worst_tensors(digits, spec):
    arguments = ["sensitivity", str(digits / "model.safetensors"), "--eval", spec, "--ber", "1e-2", "--samples", "8"]
    result = CliRunner().invoke(app.main, arguments)
    assert result.exit_code == 0
    assert "0.weight" in result.stdout
    assert "Fisher diagonal, 8 samples" in result.stdout


@pytest.mark.parametrize("method", ["topbits-ddpg", "bitmask-ppo"])
def test_agents_learn_masks_within_their_share_and_say_how_they_were_chosen(digits, spec, method, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.setattr("ckptguard.search.learning.CANDIDATES", 2)
    monkeypatch.setattr("ckptguard.search.learning.DRAWS", 2)
    found = search(
        digits / "model.safetensors", evaluator=spec, ber=1e-2, method=method, protected_share=0.3, episodes=36
    )
    learning = found.masks.provenance["learning"]
    assert learning["episodes"] == 36
    assert learning["evaluations"] in (36, 40)  # PPO plays whole rounds of 8
    assert 0 <= learning["selection_accuracy"] <= 1
    words = {name: tensor for name, tensor in Subject.open(digits / "model.safetensors").tensors.items()}
    resolved = found.masks.resolve([(name, tensor.dtype.word_bits) for name, tensor in words.items()]).tensors
    floats = [mask for mask in resolved if words[mask.name].dtype.name == "F32"]
    assert {mask.mask for mask in resolved if words[mask.name].dtype.name == "I64"} == {"1" * 64}
    if method == "topbits-ddpg":
        total = sum(32 * words[mask.name].elements for mask in floats)
        assert sum(mask.protected_bits * words[mask.name].elements for mask in floats) <= 0.3 * total
        assert all(mask.mask.rstrip("0").count("0") == 0 for mask in floats)


def test_agents_refuse_what_they_cannot_do(digits, spec):
    pytest.importorskip("stable_baselines3")
    model = digits / "model.safetensors"
    with pytest.raises(UsageError, match="for a budget"):
        search(model, evaluator=spec, ber=1e-2, method="topbits-ddpg", max_drop=1.0)
    with pytest.raises(UsageError, match="budget of agents"):
        search(model, evaluator=spec, ber=1e-2, protected_share=0.3)
    with pytest.raises(UsageError, match="taken up by metadata"):
        search(model, evaluator=spec, ber=1e-2, method="topbits-ddpg", budget=1e-6)
    score = f"{digits}/net.py:score"
    with pytest.raises(UsageError, match="--selection"):
        search(
            model, evaluator=score, calibrate=f"{digits}/net.py:even", ber=1e-2, method="topbits-ddpg", budget=0.05,
            framework="np",
        )  # fmt: skip


def test_halves_of_data_are_nested_parts():
    from ckptguard.search.learning import halves

    assert halves("classification:model=a,data=b") == (
        "classification:model=a,data=b,part=1/2",
        "classification:model=a,data=b,part=2/2",
    )
    assert halves("classification:model=a,part=2/3,data=b") == (
        "classification:model=a,data=b,part=3/6",
        "classification:model=a,data=b,part=4/6",
    )
    assert halves("weights") is None


def test_with_posterior_restorers_less_parity_and_metadata_keep_as_much(digits, spec):
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 48, "trials": 6, "seed": 2}
    model = digits / "model.safetensors"
    ranges, posterior = search(model, **asked), search(model, guard="posterior", **asked)
    assert posterior.chosen.charged < ranges.chosen.charged
    assert posterior.chosen.redundancy < ranges.chosen.redundancy
    subject = Subject.open(model)
    faults, _ = faults_of(subject, ber=1e-2)
    held_out = Trials(subject, f"{spec},part=2/2", faults, Stored(guard="posterior"), seed=99)
    assert np.mean(held_out.drops(posterior.masks, 0, 20)) < 2.0


def test_a_container_made_with_masks_for_restorers_keeps_what_their_search_promised(digits, spec, tmp_path):
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 48, "trials": 6, "seed": 2}
    model, container, worn = digits / "model.safetensors", tmp_path / "m.ckg", tmp_path / "worn.ckg"
    found = search(model, guard="posterior", codes="bch:1023,768", **asked)
    assert found.masks.provenance["restorer"] == {
        "kind": "posterior",
        "rates": [{"tensors": ["*"], "of_0": 0.01, "of_1": 0.01}],
    }
    protect(model, container, masks=found.masks, code="bch:1023,768")
    summary = inspect(container)
    summed = {tensor.name for tensor in summary.tensors if tensor.row_sums}
    assert summed == set(found.masks.provenance.get("row_sums", ()))
    weight_bits = sum(tensor.weight_bits for tensor in summary.tensors if tensor.kind == "tensor")
    masks = sum(len(tensor.mask) // 8 for tensor in summary.tensors if tensor.kind == "tensor")
    metadata = 8 * 4 * (summary.shards[0].restorer_bytes + masks) / weight_bits
    compression = 8 * 4 * 8 * (len(summed) + 1) / weight_bits  # of levels, which the search does not see
    assert summary.redundancy + metadata == pytest.approx(found.chosen.charged, abs=compression)
    _, scores = loaded(digits, f"{spec},part=2/2")
    clean = accuracy_of(scores, model)
    drops: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(6):
        corrupt(container, worn, seed=seed, channel="bsc:1e-2", overwrite=True)
        for estimate, losses in drops.items():
            restore(worn, tmp_path / "back.safetensors", estimate=estimate, overwrite=True)
            losses.append(clean - accuracy_of(scores, tmp_path / "back.safetensors"))
    assert np.mean(drops[True]) < 2.0
    assert np.mean(drops[False]) > 10.0


def accuracy_of(session, path):
    session.load({name: tensor.data for name, tensor in Subject.open(path).tensors.items()}, reference=False)
    return session.metrics()["accuracy"]


DYING = """
import importlib.util
import os
import signal

spec = importlib.util.spec_from_file_location("net", __file__.replace("dying.py", "net.py"))
net = importlib.util.module_from_spec(spec)
spec.loader.exec_module(net)
CALLS = []


def score(state):
    CALLS.append(1)
    if len(CALLS) == int(os.environ.get("DIES_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    return net.score(state)


def even(state):
    return score(state)
"""


def test_a_search_that_was_killed_goes_on_and_finds_what_it_would_have_found(digits, tmp_path):
    (digits / "dying.py").write_text(DYING)
    code = f"{digits}/dying.py"
    arguments = ["search", str(digits / "model.safetensors"), "--eval", f"{code}:score", "--calibrate", f"{code}:even"]
    arguments += ["--framework", "np", "--method", "measured", "--ber", "1e-2", "--max-drop", "2", "--trials", "3"]
    arguments += ["--certify", "drop=50", "--json", "-o"]
    whole = CliRunner().invoke(app.main, [*arguments, str(tmp_path / "whole.json")])
    assert whole.exit_code == 0, whole.output
    evaluations = json.loads(whole.stdout)["evaluations"]
    assert not (tmp_path / ".whole.json.search").exists()
    program = [sys.executable, "-m", "ckptguard", *arguments, str(tmp_path / "sp.json")]
    for dies_at in (40, evaluations // 2):  # a start of its own for --resume, too
        process = subprocess.run([*program, "--resume"], env=os.environ | {"DIES_AT": str(dies_at)}, check=False)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "sp.json").exists()
    torn = tmp_path / ".sp.json.search" / "draws.jsonl"
    torn.write_bytes(torn.read_bytes() + b'["half a li')
    result = CliRunner().invoke(app.main, [*arguments, str(tmp_path / "sp.json"), "--resume"])
    record = json.loads(result.stdout)
    assert (tmp_path / "sp.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert record["remembered"] > 40
    assert record["evaluations"] + record["remembered"] == evaluations
    assert not torn.parent.exists()


def test_an_agent_that_goes_on_plays_its_episodes_without_evaluating_them_again(digits, spec, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.setattr("ckptguard.search.learning.CANDIDATES", 2)
    monkeypatch.setattr("ckptguard.search.learning.DRAWS", 2)
    asked = {"evaluator": spec, "ber": 1e-2, "method": "topbits-ddpg", "protected_share": 0.3, "episodes": 36}
    model = digits / "model.safetensors"
    whole = search(model, **asked)
    kept, calls, inner = 20, [], Trials._goodness

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > kept:
            raise KeyboardInterrupt
        return inner(*arguments)

    with monkeypatch.context() as patch, Journal(tmp_path) as journal:
        patch.setattr(Trials, "_goodness", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(model, journal=journal, **asked)
    with Journal(tmp_path, resume=True) as journal:
        again = search(model, journal=journal, **asked)
    assert again.masks.rules == whole.masks.rules
    assert journal.remembered == kept
    assert again.evaluations == whole.evaluations - kept


def test_a_journal_answers_only_what_was_asked_under_the_same_conditions(digits, spec, tmp_path):
    model = digits / "model.safetensors"
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 8, "trials": 2}
    with Journal(tmp_path) as journal:
        first = search(model, journal=journal, **asked)
        assert journal.remembered == 0
        with pytest.raises(UsageError, match="another search"):
            Journal(tmp_path)
    for change, remembered in (({}, True), ({"seed": 1}, False), ({"ber": 2e-2}, False), ({"guard": "none"}, False)):
        with Journal(tmp_path, resume=True) as journal:
            again = search(model, journal=journal, **(asked | change))
            assert (journal.remembered > 0) == remembered, change
            if remembered:
                assert again.masks == first.masks
    with Journal(tmp_path) as journal:  # without resume
        search(model, journal=journal, **asked)
        assert journal.remembered == 0


def test_polishing_stays_within_parity_and_evaluations_and_keeps_only_what_measures_better(digits, spec):
    model = digits / "model.safetensors"
    asked = {"evaluator": spec, "ber": 1e-2, "method": "fisher", "budget": 0.068, "samples": 4, "seed": 6}
    plain, polished = search(model, **asked), search(model, polish=60, **asked)
    said = polished.masks.provenance["polish"]
    assert 8 < said["evaluations"] <= 60
    assert said["tried"] == said["evaluations"] // 8 - 1
    assert polished.evaluations == plain.evaluations + said["evaluations"]
    assert polished.chosen.charged <= 0.068
    assert all(swap["gain"] > swap["error"] >= 0 for swap in said["kept"])
    assert (polished.masks.rules == plain.masks.rules) == (not said["kept"])
    trials = Trials(
        Subject.open(model), f"{spec},part=1/2", faults_of(Subject.open(model), ber=1e-2)[0], Stored(), seed=6
    )
    before, after = (np.mean(trials.drops(one.masks, 100_000, 8)) for one in (plain, polished))
    assert before - after == pytest.approx(sum(swap["gain"] for swap in said["kept"]))
    assert f"{len(said['kept'])} of {said['tried']} swaps kept" in report.text(polished)
    with pytest.raises(UsageError, match="at least 16"):
        search(model, polish=15, **asked)
    with pytest.raises(UsageError, match="frontier"):
        search(model, polish=16, **(asked | {"method": "uniform", "budget": 0.2}))


def drops_of(found, model, data, guard, first, count):
    subject = Subject.open(model)
    faults, _ = faults_of(subject, ber=1e-2)
    return Trials(subject, data, faults, Stored(guard=guard), seed=2).drops(found.masks, first, count)


def test_auto_keeps_the_guard_that_loses_less_on_common_draws_of_the_data_that_choose(digits, spec):
    model = digits / "model.safetensors"
    asked = {"evaluator": spec, "ber": 1e-2, "budget": 0.08, "samples": 16, "seed": 2}
    found = search(model, guard="auto", **asked)
    assert [one.guard for one in found.compared] == ["tensor", "posterior"]
    best = min(found.compared, key=lambda one: (one.loss, one.cost))
    assert found.guard == found.masks.provenance["guard"] == best.guard
    for one in found.compared:
        alone = search(model, guard=one.guard, **asked)
        assert (one.cost, one.draws) == (alone.chosen.charged, 8)
        assert one.loss == pytest.approx(np.mean(drops_of(alone, model, f"{spec},part=1/2", one.guard, 200_000, 8)))
        if one.guard == found.guard:
            assert alone.masks.rules == found.masks.rules
            same = {key: found.masks.provenance[key] for key in alone.masks.provenance}
            assert same == alone.masks.provenance
    assert found.masks.provenance["compared_guards"] == [one.to_json() for one in found.compared]
    assert f"{found.guard}; tensor: " in report.text(found)
    assert report.record(found)["compared_guards"][1]["guard"] == "posterior"


def test_auto_keeps_the_guard_that_costs_less_for_a_loss(digits, spec):
    model = digits / "model.safetensors"
    asked = {"evaluator": spec, "ber": 1e-2, "max_drop": 1.0, "samples": 48, "trials": 6, "seed": 2}
    found = search(model, guard="auto", **asked)
    alone = {guard: search(model, guard=guard, **asked) for guard in ("tensor", "posterior")}
    assert {one.guard: one.cost for one in found.compared} == {
        guard: one.chosen.charged for guard, one in alone.items()
    }
    assert found.guard == min(alone, key=lambda guard: alone[guard].chosen.charged)
    assert found.chosen == alone[found.guard].chosen
    assert found.evaluations == sum(one.evaluations for one in alone.values()) - 1  # of the undamaged model
    assert all(one.loss <= 1.0 and one.draws == 0 for one in found.compared)


def test_auto_takes_the_guard_whose_metadata_a_budget_pays_for(digits, spec):
    asked = {"evaluator": spec, "ber": 1e-2, "samples": 4, "guard": "auto"}
    model = digits / "model.safetensors"
    with pytest.raises(UsageError, match="does not pay for") as failed:
        search(model, budget=1e-5, **asked)
    costs = []
    for guard in ("tensor", "posterior"):
        with pytest.raises(UsageError) as one:
            search(model, budget=1e-5, **(asked | {"guard": guard}))
        costs.append(float(str(one.value).partition("alone (")[2].partition(")")[0]))
    assert str(failed.value).count(f"{costs[0]:.2g}") == 1
    assert costs[0] != costs[1]
    found = search(model, budget=(costs[0] + costs[1]) / 2, **asked)
    assert found.guard == ("tensor", "posterior")[int(costs[1] < costs[0])]
    assert [one.guard for one in found.compared] == [found.guard]
    with pytest.raises(UsageError, match="for one guard"):
        search(model, protected_share=0.3, method="topbits-ddpg", episodes=36, **asked)
    with pytest.raises(UsageError, match="unknown guard 'auto'"):
        sensitivity(model, evaluator=spec, ber=1e-2, guard="auto")


def test_auto_finds_the_same_with_workers_and_after_a_stop(digits, tmp_path):
    pytest.importorskip("joblib")
    model, net = digits / "model.safetensors", f"{digits}/net.py"
    asked = {"evaluator": f"{net}:score", "calibrate": f"{net}:even", "gradients": f"{net}:losses"}
    asked |= {"ber": 1e-2, "budget": 0.08, "framework": "np", "guard": "auto", "certify": "drop=50,trials=5,share=0.5"}
    with Journal(tmp_path / "one") as journal:
        one = search(model, journal=journal, **asked)
    two = search(model, jobs=2, **asked)
    with Journal(tmp_path / "one", resume=True) as journal:
        again = search(model, journal=journal, **asked)
        assert journal.remembered == 2 * 8 + 5
    assert one.masks == two.masks == again.masks
    assert one.compared == two.compared == again.compared
    assert again.evaluations == one.evaluations - 2 * 8 - 5
