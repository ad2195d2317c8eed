"""An evaluator for `ckptguard verify --eval`: top-1 accuracy of a CIFAR-10 ResNet-20 on test images.

    export CIFAR10_NPZ=cifar10-test.npz
    ckptguard verify worn.ckg --against resnet20.th --eval examples/resnet20_cifar10.py:accuracy

The file named by CIFAR10_NPZ holds JPEG images: `jpeg` (all bytes), `offsets` (where each image starts and ends) and
`labels`. CIFAR10_COUNT limits how many are used (default 2000). Needs torch and Pillow.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from PIL import Image

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
BATCH = 500

State = Mapping[str, torch.Tensor]


def accuracy(state: State) -> dict[str, float]:
    """Share of images whose largest logit is the right class, in percent. NaN logits count as wrong."""
    images, labels = test_images(os.environ["CIFAR10_NPZ"], int(os.environ.get("CIFAR10_COUNT", "2000")))
    weights = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            logits = forward(weights, images[start : start + BATCH])
            guesses = logits.argmax(1)
            sane = logits.isfinite().all(1)
            right += int((sane & (guesses == labels[start : start + BATCH])).sum())
    return {"top1": 100 * right / len(images)}


@lru_cache
def test_images(path: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 3, 32, 32) normalised images and (count,) labels."""
    with np.load(path) as data:
        jpeg, offsets, labels = data["jpeg"], data["offsets"], data["labels"][:count]
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in range(len(labels))]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - MEAN) / STD, torch.from_numpy(labels.astype(np.int64))


def forward(weights: State, x: torch.Tensor) -> torch.Tensor:
    """Logits of ResNet-20: three stages of three basic blocks, shortcuts without parameters (He et al. 2016, 4.2)."""
    x = F.relu(normalised(weights, "bn1", F.conv2d(x, weights["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(normalised(weights, f"{name}.bn1", y))
            y = normalised(weights, f"{name}.bn2", F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1))
            x = F.relu(y + shortcut(x, stride, y.shape[1]))
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def normalised(weights: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Batch normalisation with the stored statistics."""
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])


def shortcut(x: torch.Tensor, stride: int, channels: int) -> torch.Tensor:
    """The input itself, subsampled and padded with zero channels where a stage begins."""
    if stride == 1:
        return x
    extra = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra, extra))
