"""The demonstration's evaluator: how many handwritten digits a classifier reads rightly.

`ckptguard demo` puts a copy of this file beside the model, for `ckptguard verify --eval digits.py:evaluate`. It needs
numpy only: images and labels lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def evaluate(state_dict: Mapping[str, Any]) -> dict[str, float]:
    """Share of the test images that are classified rightly, and of those for which a score is NaN or infinite.

    The latter count as wrong.
    """
    with np.load(Path(__file__).with_name("digits-test.npz")) as test:
        outputs = forward(state_dict, test["images"])
        labels = test["labels"]
    finite = np.isfinite(outputs).all(axis=1)
    right = (outputs.argmax(axis=1) == labels) & finite
    return {"accuracy": float(right.mean()), "not_finite": float(1 - finite.mean())}


def forward(state_dict: Mapping[str, Any], images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(images, 10) scores: layers `0.weight`, `0.bias`, `1.weight`, ..., with max(x, 0) between them."""
    layers = len(state_dict) // 2
    values = images
    with np.errstate(all="ignore"):
        for layer in range(layers):
            values = values @ state_dict[f"{layer}.weight"].T + state_dict[f"{layer}.bias"]
            if layer < layers - 1:
                values = np.maximum(values, 0)
    return values
