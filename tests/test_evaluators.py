"""Evaluators: sessions that are patched, scored and put back; specs; built-in scores; prefix reuse."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptguard.dtypes import DTYPES
from ckptguard.errors import CkptGuardError, MissingExtraError, SpecError, UsageError
from ckptguard.evaluate import session as sessions
from ckptguard.evaluate.live import LiveSession
from ckptguard.evaluate.session import Context, Patch, Session, TensorSpec, open_session
from ckptguard.evaluate.settings import Settings

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
EVERY = {name: TensorSpec(dtype, (4, 6)) for name, dtype in DTYPES.items() if name != "BOOL"}


def random_bytes(specs: Mapping[str, TensorSpec], seed: int = 0) -> dict[str, Any]:
    """Random bits for every tensor."""
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, spec.bytes, dtype=np.uint8) for name, spec in specs.items()}


def flips(session: Any, names: list[str], seed: int, count: int = 3) -> dict[str, Patch]:
    """Patches that flip one bit in some words of the named tensors."""
    random = np.random.default_rng(seed)
    patches = {}
    for name in names:
        words = session.words[name]
        elements = np.sort(random.choice(words.size, min(count, words.size), replace=False))
        bits = random.integers(0, words.itemsize * 8, elements.size)
        patches[name] = Patch(elements, words[elements] ^ (np.uint64(1) << bits.astype(np.uint64)).astype(words.dtype))
    return patches


def described(module: Any) -> tuple[dict[str, TensorSpec], dict[str, Any]]:
    """Specs and bytes of a module's state dict."""
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16"}
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    specs = {name: TensorSpec(DTYPES[kinds[tensor.dtype]], tuple(tensor.shape)) for name, tensor in state.items()}
    data = {name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for name, tensor in state.items()}
    return specs, data


# The contract --------------------------------------------------------------------------------------------------------


def test_undo_brings_every_dtype_back_bit_for_bit() -> None:
    session = open_session("weights", EVERY)
    assert isinstance(session, LiveSession)
    tensors = random_bytes(EVERY)
    session.load(tensors)
    before = session.digest()
    for seed in range(3):  # three patches, overlapping, taken back at once
        session.patch(flips(session, list(EVERY), seed, count=12))
    assert session.digest() != before
    session.undo()
    assert session.digest() == before
    assert all((session.data[name] == data).all() for name, data in tensors.items())


def test_a_patch_is_seen_by_tensors_of_torch_and_numpy() -> None:
    specs = {"w": TensorSpec(DTYPES["F32"], (2, 3)), "b": TensorSpec(DTYPES["BOOL"], (3,))}
    for framework in ("pt", "np"):
        seen: list[list[float]] = []
        session = open_session(
            lambda state, seen=seen: {"n": seen.append(np.asarray(state["w"]).ravel().tolist()) or len(state)},
            specs,
            framework=framework,
        )
        session.load({"w": np.arange(6, dtype="<f4").view(np.uint8), "b": np.zeros(3, np.uint8)})
        session.patch({"w": Patch(np.array([1, 5]), np.array([-7.5, 9], "<f4").view("<u4"))})
        assert session.metrics() == {"n": 2.0}
        session.undo()
        session.metrics()
        assert seen == [[0, -7.5, 2, 3, 4, 9], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"x": Patch(np.array([0]), np.array([0], "<u4"))}, "'x'"),
        ({"F32": Patch(np.array([0]), np.array([0], "<u2"))}, "uint32"),
        ({"F32": Patch(np.array([24]), np.array([0], "<u4"))}, "24"),
        ({"F32": Patch(np.array([-1]), np.array([0], "<u4"))}, "-1"),
        ({"F32": Patch(np.array([0, 1]), np.array([0], "<u4"))}, "one uint32 per element"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_and_changes_nothing(patch: dict[str, Patch], message: str) -> None:
    session = open_session("weights", EVERY)
    session.load(random_bytes(EVERY))
    before = session.digest()
    with pytest.raises(UsageError, match=message):
        session.patch({"U8": Patch(np.array([0]), np.array([0], "u1"))} | patch)
    assert session.digest() == before


def test_loading_other_tensors_is_refused() -> None:
    session = open_session("weights", EVERY)
    tensors = random_bytes(EVERY)
    with pytest.raises(UsageError, match="'more' is unknown"):
        session.load(tensors | {"more": tensors["U8"]})
    with pytest.raises(UsageError, match="'U8' is missing"):
        session.load({name: data for name, data in tensors.items() if name != "U8"})
    with pytest.raises(UsageError, match="needs 96 bytes"):
        session.load(tensors | {"F32": tensors["U8"]})


# Specs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wieghts", "did you mean 'weights'"),
        ("weights:deep=yes", "takes no keys"),
        ("classification:modle=x", "did you mean 'model'"),
        ("classification:data=x.npz", r"needs model=.*FILE\.py:factory"),
        ("classification:model", "not of the form key=value"),
        ("logits:seed=1,seed=2", "given twice"),
        ("absent.py:f", "there is no such file"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(spec, EVERY)


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ("a=0", lambda s: s.integer("a"), "at least 1"),
        ("a=x", lambda s: s.integer("a"), "no whole number"),
        ("a=maybe", lambda s: s.yes("a"), "known: yes, no"),
        ("a=3x", lambda s: s.shape("a"), "no shape"),
        ("a=5parsec", lambda s: s.size("a", "1"), "no size"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(text: str, read: Callable[[Settings], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read(Settings.parse("kind", text, {"a": ""}))


def test_settings_are_read_as_written() -> None:
    settings = Settings.parse("kind", r"a=x\,y=1, b=1.5GiB,c=1x3x32", dict.fromkeys("abcd", ""))
    assert settings.text("a") == "x,y=1"
    assert settings.size("b", "0") == 3 << 29
    assert settings.shape("c") == (1, 3, 32)
    assert settings.optional_integer("d") is None


def test_a_registered_kind_is_found_and_its_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Count(LiveSession):
        summary = "counts"
        keys = {"times": "factor"}  # noqa: RUF012

        @classmethod
        def from_settings(cls, settings: Settings, context: Context) -> Session:
            made = cls(context)
            made.times = settings.integer("times", 1)  # type: ignore[attr-defined]
            return made

        def metrics(self) -> dict[str, float]:
            return {"count": float(self.times * len(self.data))}  # type: ignore[attr-defined]

    monkeypatch.setattr(sessions, "KINDS", dict(sessions.KINDS))
    sessions.register("count", Count)
    assert open_session("count:times=3", EVERY).metrics() == {"count": 3.0 * len(EVERY)}
    for name in ("count", "weights", "a b"):
        with pytest.raises(UsageError, match="cannot be registered"):
            sessions.register(name, Count)


# Users' evaluators ---------------------------------------------------------------------------------------------------


def test_a_class_is_made_once_and_gets_the_same_tensors_every_time(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "class Score:\n"
        "    made = 0\n"
        "    def __init__(self):\n"
        "        Score.made += 1\n"
        "        self.places = set()\n"
        "    def __call__(self, state):\n"
        "        self.places.add(state.pop('F32').data_ptr())\n"
        "        return {'made': Score.made, 'places': len(self.places)}\n"
    )
    session = open_session(f"{tmp_path}/task.py:Score", {"F32": EVERY["F32"]})
    for seed in range(3):
        session.load(random_bytes({"F32": EVERY["F32"]}, seed))
        assert session.metrics() == {"made": 1.0, "places": 1.0}


def test_a_metric_object_is_reset_updated_and_computed() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Norm(torchmetrics.Metric):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")

        def update(self, state: Mapping[str, Any]) -> None:
            self.total += sum(tensor.square().sum() for tensor in state.values())

        def compute(self) -> Any:
            return self.total.sqrt()

    for evaluator in (Norm, Norm()):
        session = open_session(evaluator, {"w": TensorSpec(DTYPES["F32"], (2,))})
        session.load({"w": np.array([3, 4], "<f4").view(np.uint8)})
        assert session.metrics() == {"norm": 5.0}
        assert session.metrics() == {"norm": 5.0}


@pytest.mark.parametrize("returned", [{}, 3.0, {"a": "good"}, {"a": [1, 2]}])
def test_an_evaluator_that_returns_no_named_numbers_is_an_error(returned: Any) -> None:
    session = open_session(lambda state: returned, EVERY, framework="pt")
    session._function = lambda state: returned  # type: ignore[attr-defined]
    small = open_session(lambda state: returned, {"w": TensorSpec(DTYPES["F32"], (1,))})
    small.load({"w": np.zeros(4, np.uint8)})
    with pytest.raises(CkptGuardError):
        small.metrics()


def test_what_can_neither_be_called_nor_computed_is_no_evaluator() -> None:
    with pytest.raises(UsageError, match="no evaluator"):
        open_session(3, EVERY)


def test_a_class_may_lay_its_model_over_the_live_tensors_once(tmp_path: Path) -> None:
    class Head:
        def __init__(self) -> None:
            self.net, self.bound = nn.Linear(3, 1), False

        def __call__(self, state: Mapping[str, Any]) -> dict[str, float]:
            if not self.bound:
                self.net.load_state_dict(state, assign=True)
                self.bound = True
            return {"out": self.net(torch.ones(3)).item()}

    specs = {"weight": TensorSpec(DTYPES["F32"], (1, 3)), "bias": TensorSpec(DTYPES["F32"], (1,))}
    session = open_session(Head, specs)
    session.load({"weight": np.array([1, 2, 3], "<f4").view(np.uint8), "bias": np.array([4], "<f4").view(np.uint8)})
    assert session.metrics() == {"out": 10.0}
    session.patch({"weight": Patch(np.array([1]), np.array([-2], "<f4").view("<u4"))})
    assert session.metrics() == {"out": 6.0}
    session.undo()
    assert session.metrics() == {"out": 10.0}


def test_every_kind_and_key_is_documented() -> None:
    text = (ROOT / "docs" / "evaluators.md").read_text(encoding="utf-8")
    for name in sessions.KINDS:
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        assert section is not None, name
        for key in sessions.find_kind(name).keys:
            assert re.search(rf"`[^`]*\b{key}\b[^`]*`", section[1]), (name, key)


# weights -------------------------------------------------------------------------------------------------------------


def test_weights_counts_what_differs_from_the_reference() -> None:
    specs = {"a": TensorSpec(DTYPES["F32"], (4,)), "c": TensorSpec(DTYPES["C64"], (2,))}
    clean = {"a": np.array([3, 0, 4, 0], "<f4").view(np.uint8), "c": np.zeros(16, np.uint8)}
    session = open_session("weights", specs)
    session.load(clean)
    assert set(session.metrics().values()) == {0.0}
    new = np.array([-3, np.nan], "<f4").view("<u4")
    patches = {
        "a": Patch(np.array([0, 1]), new),
        "c": Patch(np.array([2, 3]), np.array([1, 1], "<f4").view("<u4")),  # both components of the second element
    }
    session.patch(patches)
    expected = {
        "wrong_bits": 1.0 + int(new[1]).bit_count() + 2 * (0x3F800000).bit_count(),
        "changed_elements": 3.0,
        "non_finite": 1.0,
        "max_difference": 6.0,
        "relative_error": pytest.approx(math.sqrt(36 + 1 + 1) / 5),
    }
    assert session.metrics() == expected
    worn = {name: data.copy() for name, data in session.data.items()}  # type: ignore[attr-defined]
    session.undo()
    session.load(worn, reference=False)
    assert session.metrics() == expected
    session.load(worn)
    assert session.metrics()["wrong_bits"] == 0.0


# classification ------------------------------------------------------------------------------------------------------

TASK = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(5, 7)
    def forward(self, x):
        return self.fc(x)
def images():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(50, 5, generator=rng), torch.randint(0, 7, (50,), generator=rng)
class Wrong:
    pass
def metric():
    import torchmetrics
    return torchmetrics.Accuracy(task="multiclass", num_classes=7)
"""


@pytest.fixture
def linear(tmp_path: Path) -> tuple[str, dict[str, TensorSpec], dict[str, Any]]:
    """(path of the task, specs, bytes) of a linear classifier of 7 classes."""
    path = tmp_path / "task.py"
    path.write_text(TASK)
    random = np.random.default_rng(3)
    weight, bias = random.normal(size=(7, 5)).astype("<f4"), random.normal(size=7).astype("<f4")
    specs = {"fc.weight": TensorSpec(DTYPES["F32"], (7, 5)), "fc.bias": TensorSpec(DTYPES["F32"], (7,))}
    return str(path), specs, {"fc.weight": weight.view(np.uint8).ravel(), "fc.bias": bias.view(np.uint8)}


def by_hand(tensors: Mapping[str, Any], inputs: Any, labels: Any) -> dict[str, float]:
    """Scores of the linear classifier, in numpy."""
    weight = tensors["fc.weight"].view("<f4").reshape(7, 5).astype(float)
    with np.errstate(all="ignore"):
        logits = inputs.astype(float) @ weight.T + tensors["fc.bias"].view("<f4")
    finite = np.isfinite(logits).all(1)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    order = np.argsort(-logits, axis=1)
    two = np.sort(shares, axis=1)[:, -2:]
    return {
        "accuracy": 100 * float(((order[:, 0] == labels) & finite).mean()),
        "top5": 100 * float(((order[:, :5] == labels[:, None]).any(1) & finite).mean()),
        "loss": float(-np.log(shares[np.arange(len(labels)), labels]).mean()),
        "top2diff": 100 * float((two[:, 1] - two[:, 0]).mean()),
        "mismatch": 0.0,
        "non_finite_outputs": 0.0,
    }


def test_classification_scores_as_numpy_does(linear: Any, tmp_path: Path) -> None:
    path, specs, tensors = linear
    session = open_session(f"classification:model={path}:Net,data={path}:images,batch=16", specs)
    session.load(tensors)
    random = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(50, 5, generator=random).numpy(), torch.randint(0, 7, (50,), generator=random).numpy()
    expected = by_hand(tensors, inputs, labels)
    assert session.metrics() == pytest.approx(expected, rel=1e-5)
    np.savez(tmp_path / "d.npz", x=inputs, y=labels)
    other = open_session(f"classification:model={path}:Net,data={tmp_path}/d.npz,limit=20,per_class=yes", specs)
    other.load(tensors)
    found = other.metrics()
    classes = {name: found.pop(name) for name in list(found) if name.startswith("class.")}
    assert found == pytest.approx(by_hand(tensors, inputs[:20], labels[:20]), rel=1e-5)
    counts = np.bincount(labels[:20], minlength=7)
    assert set(classes) == {f"class.{label}.accuracy" for label in np.unique(labels[:20])}
    mean = sum(counts[int(name.split(".")[1])] * value for name, value in classes.items()) / 20
    assert mean == pytest.approx(found["accuracy"])


def test_outputs_that_are_not_finite_count_as_wrong(linear: Any) -> None:
    path, specs, tensors = linear
    session = open_session(f"classification:model={path}:Net,data={path}:images", specs)
    session.load(tensors)
    session.patch({"fc.bias": Patch(np.array([2]), np.array([np.nan], "<f4").view("<u4"))})
    found = session.metrics()
    assert {name: found[name] for name in ("accuracy", "top5", "top2diff")} == {"accuracy": 0, "top5": 0, "top2diff": 0}
    assert found["mismatch"] == found["non_finite_outputs"] == 100.0
    assert math.isnan(found["loss"])
    session.undo()
    assert session.metrics()["mismatch"] == 0.0


def test_mismatch_compares_with_the_reference_not_with_what_was_loaded_last(linear: Any) -> None:
    path, specs, tensors = linear
    session = open_session(f"classification:model={path}:Net,data={path}:images", specs)
    session.load(tensors)
    worn = tensors | {"fc.weight": (-tensors["fc.weight"].view("<f4")).view(np.uint8)}
    session.load(worn, reference=False)
    assert session.metrics()["mismatch"] > 50
    session.load(worn)
    assert session.metrics()["mismatch"] == 0.0


def test_metric_objects_see_the_logits_and_labels_of_every_batch(linear: Any) -> None:
    pytest.importorskip("torchmetrics")
    path, specs, tensors = linear
    session = open_session(f"classification:model={path}:Net,data={path}:images,batch=50,metrics={path}:metric", specs)
    session.load(tensors)
    for _ in range(2):
        found = session.metrics()
        assert "multiclassaccuracy" in found
    micro = open_session(f"classification:model={path}:Net,data={path}:images,per_class=yes", specs)
    micro.load(tensors)
    classes = [value for name, value in micro.metrics().items() if name.startswith("class.")]
    assert 100 * found["multiclassaccuracy"] in (
        pytest.approx(found["accuracy"], abs=1e-4),  # micro average
        pytest.approx(np.mean(classes), abs=1e-4),  # macro average, the default of torchmetrics
    )


def test_a_checkpoint_of_another_model_is_refused_with_the_names(linear: Any) -> None:
    path, specs, _ = linear
    spec = f"classification:model={path}:Net,data={path}:images"
    with pytest.raises(UsageError, match=r"not in the checkpoint, such as 'fc\.bias'"):
        open_session(spec, {"fc.weight": specs["fc.weight"]})
    with pytest.raises(UsageError, match=r"strip=module\. takes the prefix off"):
        open_session(spec, {f"module.{name}": value for name, value in specs.items()})
    with pytest.raises(UsageError, match=r"\[7, 4\] in the checkpoint and \[7, 5\] in the model"):
        open_session(spec, specs | {"fc.weight": TensorSpec(DTYPES["F32"], (7, 4))})
    with pytest.raises(UsageError, match=r"not in the model, such as 'fd\.bias', did you mean 'fc\.bias'"):
        open_session(spec, specs | {"fd.bias": specs["fc.bias"]})
    open_session(f"{spec},strip=module.", {f"module.{name}": value for name, value in specs.items()})
    open_session(f"{spec},unknown=ignore", specs | {"fd.bias": specs["fc.bias"]})
    with pytest.raises(UsageError, match="gave Wrong, no torch"):
        open_session(f"classification:model={path}:Wrong,data={path}:images", specs)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64"])
def test_weights_of_another_type_are_converted_as_load_state_dict_does(linear: Any, kind: str) -> None:
    path, specs, tensors = linear
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[kind]
    narrow = {
        name: torch.from_numpy(data.view("<f4")).to(dtype).view(torch.uint8).numpy() for name, data in tensors.items()
    }
    session = open_session(
        f"classification:model={path}:Net,data={path}:images",
        {name: TensorSpec(DTYPES[kind], spec.shape) for name, spec in specs.items()},
    )
    wide = open_session(f"classification:model={path}:Net,data={path}:images", specs)
    session.load(narrow)
    for seed in range(4):
        session.patch(flips(session, list(specs), seed))
        values = {
            name: torch.from_numpy(data.copy()).view(dtype).float().view(torch.uint8).numpy()
            for name, data in session.data.items()  # type: ignore[attr-defined]
        }
        wide.load(values)
        found, expected = session.metrics(), wide.metrics()
        for metrics in (found, expected):
            del metrics["mismatch"]
        assert found == pytest.approx(expected, nan_ok=True, rel=0, abs=0)
        session.undo()


def test_tied_weights_are_one_weight() -> None:
    class Tied(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Any) -> Any:
            return self.head(self.embed(x).mean(1))

    from ckptguard.evaluate.logits import Logits

    torch.manual_seed(0)
    specs, data = described(Tied())
    codes = torch.randint(0, 9, (6, 3))
    for present in (["embed.weight"], ["head.weight"], ["embed.weight", "head.weight"]):
        session = Logits(Context({name: specs[name] for name in present}), Tied, codes)
        session.load({name: data[name] for name in present})
        assert session.metrics()["max_difference"] == 0.0
        assert session.module.embed.weight is session.module.head.weight
        session.patch({present[-1]: Patch(np.array([0, 9]), np.array([5, 7], "<f4").view("<u4"))})
        assert session.module.embed.weight[0, 0] == 5.0
        assert session.metrics()["max_difference"] > 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,label\n1,2,0\n3,x,1\n", "must hold numbers"),
        ("", "header line"),
    ],
)
def test_a_malformed_csv_is_refused(linear: Any, tmp_path: Path, content: str, message: str) -> None:
    path, specs, _ = linear
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        open_session(f"classification:model={path}:Net,data={tmp_path}/d.csv", specs)


def test_csv_and_npz_give_the_same_scores(linear: Any, tmp_path: Path) -> None:
    path, specs, tensors = linear
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(30, 5)).astype(np.float32), random.integers(0, 7, 30)
    rows = [f"{int(label)}," + ",".join(map(repr, map(float, row))) for row, label in zip(inputs, labels, strict=True)]
    (tmp_path / "d.csv").write_text("kind,a,b,c,d,e\n" + "\n".join(rows) + "\n")
    np.savez(tmp_path / "d.npz", pixels=inputs, kinds=labels)
    found = []
    for data in (f"{tmp_path}/d.csv,labels=kind", f"{tmp_path}/d.npz,inputs=pixels,labels=kinds"):
        session = open_session(f"classification:model={path}:Net,data={data}", specs)
        session.load(tensors)
        found.append(session.metrics())
    assert found[0] == found[1]
    with pytest.raises(UsageError, match="has no array 'inputs' or 'x'; it has kinds, pixels"):
        open_session(f"classification:model={path}:Net,data={tmp_path}/d.npz", specs)
    with pytest.raises(UsageError, match="has no column 'nothing'"):
        open_session(f"classification:model={path}:Net,data={tmp_path}/d.csv,labels=nothing", specs)


def test_an_image_folder_gives_normalised_images_class_by_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from ckptguard.evaluate.data import DATA_KEYS, load_data

    for name, level in (("cat", 51), ("dog", 255)):
        (tmp_path / name).mkdir()
        for number in range(3):
            image.new("RGB", (4, 2), (level, 0, number)).save(tmp_path / name / f"{number}.png")
    settings = Settings.parse("classification", f"data={tmp_path},mean=0.2/0/0,std=0.5,limit=4", DATA_KEYS)
    data = load_data(settings)
    assert data.names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.inputs.shape == (4, 3, 2, 4)
    assert data.inputs[:, 0, 0, 0].tolist() == pytest.approx([0, 1.6, 0, 1.6], abs=1e-6)
    assert data.inputs[:, 2, 0, 0].tolist() == pytest.approx([0, 0, 2 / 255, 2 / 255])
    image.new("RGB", (5, 2)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(UsageError, match="give resize="):
        load_data(settings)
    resized = load_data(Settings.parse("classification", f"data={tmp_path},resize=3x6", DATA_KEYS))
    assert resized.inputs.shape == (6, 3, 3, 6)


def test_verify_scores_the_three_models_with_any_evaluator(linear: Any, tmp_path: Path) -> None:
    from ckptguard import corrupt, protect, verify

    path, _, tensors = linear
    state = {"fc.weight": tensors["fc.weight"].view("<f4").reshape(7, 5), "fc.bias": tensors["fc.bias"].view("<f4")}
    pytest.importorskip("safetensors.numpy").save_file(state, tmp_path / "m.safetensors")
    protect(tmp_path / "m.safetensors", tmp_path / "m.ckg")
    corrupt(tmp_path / "m.ckg", tmp_path / "worn.ckg", seed=4, channel="bsc:1e-2")
    spec = f"classification:model={path}:Net,data={path}:images"
    found = verify(tmp_path / "worn.ckg", tmp_path / "m.safetensors", evaluator=spec, jobs=1).metrics
    assert found["clean"] == found["decoded"]
    assert found["clean"]["mismatch"] == 0.0
    assert found["unprotected"]["mismatch"] > 0.0
    weights = verify(tmp_path / "worn.ckg", tmp_path / "m.safetensors", evaluator="weights", jobs=1).metrics
    assert weights["decoded"]["wrong_bits"] == 0.0 < weights["unprotected"]["wrong_bits"]


# logits --------------------------------------------------------------------------------------------------------------


def test_logits_compares_with_the_clean_model_as_numpy_does(linear: Any, tmp_path: Path) -> None:
    path, specs, tensors = linear
    inputs = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=inputs)
    session = open_session(f"logits:model={path}:Net,inputs={tmp_path}/d.npz,batch=7", specs)
    session.load(tensors)
    assert session.metrics() == {"agreement": 100.0, "kl": 0.0, "max_difference": 0.0, "non_finite_outputs": 0.0}
    session.patch({"fc.bias": Patch(np.array([0, 3]), np.array([2.5, -1], "<f4").view("<u4"))})
    logits = []
    for state in (tensors, session.data):  # type: ignore[attr-defined]
        weight = state["fc.weight"].view("<f4").reshape(7, 5).astype(float)
        logits.append(inputs @ weight.T + state["fc.bias"].view("<f4"))
    shares = [np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in logits]
    expected = {
        "agreement": 100 * float((logits[0].argmax(1) == logits[1].argmax(1)).mean()),
        "kl": float((shares[0] * np.log(shares[0] / shares[1])).sum(1).mean()),
        "max_difference": float(np.abs(logits[0] - logits[1]).max()),
        "non_finite_outputs": 0.0,
    }
    assert session.metrics() == pytest.approx(expected, rel=1e-4)


def test_seeded_inputs_are_the_same_in_every_session(linear: Any) -> None:
    path, specs, tensors = linear
    found = []
    for seed in (1, 1, 2):
        session = open_session(f"logits:model={path}:Net,seed={seed},shape=1x5,count=9", specs)
        session.load(tensors)
        session.patch({"fc.bias": Patch(np.array([2]), np.array([3], "<f4").view("<u4"))})
        found.append(session.metrics())
    assert found[0] == found[1] != found[2]
    for wrong in ("", ",shape=2x5", ",inputs=d.npz,seed=1"):
        with pytest.raises(UsageError):
            open_session(f"logits:model={path}:Net{wrong}", specs)


# Prefix reuse --------------------------------------------------------------------------------------------------------


class Plain(nn.Module):  # type: ignore[misc, name-defined]
    """A chain whose activations work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(8 * 36, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )

    def forward(self, x: Any) -> Any:
        return self.net(x)


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    """Shortcuts, additions in place, operations between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        kept = x
        x = F.relu_(self.norm(self.a(x)))
        x += kept
        kept.mul_(0.5)
        halves = x.chunk(2, 1)
        x = torch.cat([halves[1], halves[0]], 1) + kept
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class Stateful(nn.Module):  # type: ignore[misc, name-defined]
    """Activations kept as attributes, a weight read before its module runs, a branch that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(108, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.seen: Any = None

    def forward(self, x: Any) -> Any:
        self.seen = self.first(x.flatten(1))
        scale = self.head.weight.square().mean()  # long before the head's turn
        y = self.second(self.seen.relu()) * scale
        if bool(self.seen.mean() > 0) or y.isnan().any().item():
            y = y + 1
        return self.head(y + self.seen)


class Caught(nn.Module):  # type: ignore[misc, name-defined]
    """Takes another way, and an activation that was read nowhere else, where its output is broken; catches all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(108, 12), nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        spare = self.first(x.flatten(1) * 2)
        y = self.head(self.first(x.flatten(1)).relu())
        try:
            return torch.where(y.isnan(), spare[:, :10], y) if not y.isfinite().all() or y.max() > 1e3 else y
        except Exception:  # noqa: BLE001 - what some models do
            return y


class Random(nn.Module):  # type: ignore[misc, name-defined]
    """Draws random numbers between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(108, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        x = F.dropout(self.a(x.flatten(1)), 0.5, training=True)
        return self.c(self.b(x) + torch.rand(12))


class Attention(nn.Module):  # type: ignore[misc, name-defined]
    """A transformer layer, whose projections are read without calling their module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(self.embed(x.flatten(1, 2))).mean(1))


NETS: list[type[Any]] = [Plain, Residual, Stateful, Caught, Random, Attention]


@pytest.mark.parametrize("net", NETS)
def test_scores_with_and_without_reuse_are_bitwise_equal(net: type[Any]) -> None:
    from ckptguard.evaluate.classification import Classification
    from ckptguard.evaluate.data import Data

    torch.manual_seed(5)
    specs, tensors = described(net())
    data = Data(torch.randn(20, 3, 6, 6), torch.randint(0, 10, (20,)))
    with_reuse, without = (Classification(Context(specs), net, data, batch=8, cache=cache) for cache in (1 << 24, 0))
    for session in (with_reuse, without):
        torch.manual_seed(9)
        session.load(tensors)
    for seed in range(3):
        for name in [*specs, *specs]:
            found = []
            for session in (with_reuse, without):
                session.patch(flips(session, [name], seed, count=8))
                torch.manual_seed(seed)
                found.append([session.metrics(), session._logits().numpy().tobytes()])
                session.undo()
            assert repr(found[0]) == repr(found[1]), (name, seed)
            assert with_reuse.digest() == without.digest()
    assert without.reuse.report.reused == 0
    report = with_reuse.reuse.report
    assert report.refused == ("the model draws random numbers" if net is Random else "")
    assert (report.reused > 0) == (net is not Random)
    if net in (Plain, Residual, Attention):
        assert report.diverged == 0
        assert report.skipped_operations > 0


def test_a_run_that_takes_another_way_than_the_clean_one_is_repeated_in_full() -> None:
    from ckptguard.evaluate.classification import Classification
    from ckptguard.evaluate.data import Data

    torch.manual_seed(5)
    specs, tensors = described(Caught())
    data = Data(torch.randn(20, 3, 6, 6), torch.randint(0, 10, (20,)))
    sessions = [Classification(Context(specs), Caught, data, cache=cache) for cache in (1 << 24, 0)]
    found: list[list[bytes]] = []
    for session in sessions:
        session.load(tensors)
        found.append([])
        for value in (1, 2, np.nan, 3, 1e4):
            session.patch({"head.bias": Patch(np.array([3]), np.array([value], "<f4").view("<u4"))})
            found[-1].append(session._logits().numpy().tobytes())
            session.undo()
    assert found[0] == found[1]
    assert sessions[0].reuse.report.diverged == 2
    assert sessions[0].reuse.report.refused == ""
    assert np.isfinite(np.frombuffer(found[0][2])).all()  # the other way was taken


def test_reuse_of_the_last_layer_skips_nearly_everything() -> None:
    from ckptguard.evaluate.logits import Logits

    torch.manual_seed(5)
    specs, tensors = described(Residual())
    calls: list[str] = []
    session = Logits(Context(specs), Residual, torch.randn(8, 3, 6, 6), batch=4)
    session.load(tensors)
    for _ in range(4):
        session.patch(flips(session, ["fc.weight"], 1))
        calls.append(repr(session.metrics()))
        session.undo()
    assert len(set(calls)) == 1
    report = session.reuse.report
    assert report.reused == 4  # two batches, in the third and fourth evaluation
    assert report.operations - report.skipped_operations <= 4 * 3


def test_the_budget_bounds_what_reuse_keeps() -> None:
    from ckptguard.evaluate.logits import Logits

    torch.manual_seed(5)
    specs, tensors = described(Residual())
    for budget in (0, 1000, 5000, 40_000):
        session = Logits(Context(specs), Residual, torch.randn(8, 3, 6, 6), batch=2, cache=budget)
        session.load(tensors)
        for _ in range(3):
            for name in ("fc.weight", "b.weight", "a.weight", "fc.bias"):
                session.patch(flips(session, [name], 1))
                session.metrics()
                session.undo()
                assert session.reuse.report.kept_bytes <= budget
        kept = [
            store.nbytes for part in session.reuse._kept.values() for one in part.values() for store in one.values()
        ]
        assert sum(kept) == session.reuse.report.kept_bytes


def test_loading_other_weights_forgets_what_was_kept() -> None:
    from ckptguard.evaluate.logits import Logits

    torch.manual_seed(5)
    inputs = torch.randn(8, 3, 6, 6)
    states = [described(Residual()) for _ in range(2)]
    session = Logits(Context(states[0][0]), Residual, inputs)
    expected = []
    for specs, tensors in states:
        fresh = Logits(Context(specs), Residual, inputs, cache=0)
        for one in (session, fresh):
            one.load(tensors)
            for _ in range(3):
                one.patch(flips(one, ["fc.weight"], 1))
                expected.append(one.metrics())
                one.undo()
    for _, tensors in [states[0], states[1], *states]:  # loaded again, and never run clean: tapes are found again
        session.load(tensors, reference=False)
        for _ in range(4):
            session.patch(flips(session, ["fc.weight"], 1))
            found = session.run(0, lambda: session.module(inputs)).clone()
            session.undo()
        fresh.load(tensors)
        fresh.patch(flips(fresh, ["fc.weight"], 1))
        assert (found == fresh.run(0, lambda: fresh.module(inputs))).all()
        fresh.undo()
        assert session.reuse.report.reused == 2
    assert expected[0:3] == expected[3:6]
    assert expected[6:9] == expected[9:12]


# Real models ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "vdcnn-agnews.safetensors").exists(), reason="needs ../shared/data")
def test_the_examples_score_their_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptguard.checkpoint.safetensors import read_header

    monkeypatch.setenv("AGNEWS_CSV", str(DATA / "agnews" / "test.csv"))
    monkeypatch.setenv("CIFAR10_NPZ", str(DATA / "cifar10-jpeg-test.npz"))
    monkeypatch.setenv("CIFAR10_COUNT", "500")
    for file, task, low in (
        ("vdcnn-agnews", "vdcnn_agnews.py:VDCNN,data={}/vdcnn_agnews.py:texts,limit=500", 80),
        ("resnet18-cifar10", "resnet18_cifar10.py:ResNet18,data={}/resnet18_cifar10.py:images", 80),
    ):
        path = DATA / f"{file}.safetensors"
        header = read_header(path)
        raw = np.memmap(path, np.uint8)[header.data_offset :]
        examples = os.fspath(ROOT / "examples")
        session = open_session(
            f"classification:model={examples}/{task.format(examples)}",
            {tensor.name: TensorSpec(tensor.dtype, tensor.shape) for tensor in header.tensors},
        )
        session.load({tensor.name: raw[tensor.begin : tensor.end] for tensor in header.tensors})
        assert session.metrics()["accuracy"] > low


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "t.txt").write_text("a b c")
    for module, spec, extra in (
        ("transformers", f"perplexity:model={tmp_path},text={tmp_path}/t.txt", "transformers"),
        ("sentence_transformers", f"sentence:model={tmp_path},pairs={tmp_path}/p.csv", "sentence"),
        ("lm_eval", f"lm-eval:model={tmp_path},tasks=x", "lm-eval"),
    ):
        (tmp_path / "p.csv").write_text("sentence1,sentence2\na,b\nc,d\n")
        with monkeypatch.context() as patched:
            patched.setitem(__import__("sys").modules, module, None)
            with pytest.raises(MissingExtraError, match=rf"ckptguard\[{extra}\]"):
                open_session(spec, EVERY)
