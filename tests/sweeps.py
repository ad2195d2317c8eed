"""A tiny model and its evaluator, for tests of campaigns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ckptguard.campaign.record import Run
from ckptguard.campaign.sweep import sweep

EVALUATOR = """
import numpy as np

CLASSES, WIDTH = 8, 16
GENERATOR = np.random.default_rng(3)
CENTRES = GENERATOR.normal(size=(CLASSES, WIDTH))
LABELS = np.arange(96) % CLASSES
INPUTS = CENTRES[LABELS] + 0.9 * GENERATOR.normal(size=(96, WIDTH))
calls = 0


def score(state):
    with np.errstate(all="ignore"):
        logits = INPUTS @ state["head.weight"].astype("f8").T + state["head.bias"].astype("f8")
        right = np.isfinite(logits).all(1) & (np.nan_to_num(logits).argmax(1) == LABELS)
        shifted = logits - logits.max(1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(96), LABELS]
    return {"accuracy": 100 * float(right.mean()), "loss": float(loss.mean())}


def chance(state):
    return {"accuracy": float(np.random.default_rng().random())}


def counting(state):
    global calls
    calls += 1
    return {"accuracy": 0.5 + calls // 3}


def refuses_nan(state):
    if not all(np.isfinite(tensor).all() for tensor in state.values()):
        raise ValueError("Input contains NaN")
    return score(state)


stumbled = False


def stumbles(state):
    global stumbled
    if not np.isfinite(state["head.weight"]).all():
        stumbled = True
        raise ValueError("gone")
    return {"accuracy": score(state)["accuracy"] - stumbled}


def limitless(state):
    return {"niceness": float(np.abs(state["head.bias"]).sum())}


"""


def model(folder: Path) -> Path:
    """A checkpoint of a linear classifier with 8 classes and 16 inputs: 136 float32 and one integer."""
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(8, 16))
    tensors = {
        "head.weight": (centres / 4).astype("f4"),
        "head.bias": (-(centres**2).sum(1) / 8).astype("f4"),
        "steps": np.array([7], "i8"),
    }
    save_file(tensors, folder / "m.safetensors")
    (folder / "task.py").write_text(EVALUATOR, encoding="utf-8")
    return folder / "m.safetensors"


def small(folder: Path, output: str, **request: Any) -> Run:
    """A campaign of a few trials on the model of `folder`, in this process unless `jobs` says otherwise."""
    asked: dict[str, Any] = {"ber": "1e-3,1e-2", "trials": 6, "framework": "np", "jobs": 1, "tensors": ("head.*",)}
    asked |= {"evaluator": f"{folder / 'task.py'}:score"}
    return sweep(folder / "m.safetensors", folder / output, **(asked | request))


def files(run: Run) -> tuple[bytes, bytes]:
    """results.jsonl and summary.csv."""
    return (run.folder / "results.jsonl").read_bytes(), (run.folder / "summary.csv").read_bytes()
