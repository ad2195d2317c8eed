"""ResNet-18 for CIFAR-10 and its test images, for the evaluator `classification`.

    export CIFAR10_NPZ=cifar10-test.npz
    F=examples/resnet18_cifar10.py
    ckptguard verify worn.ckg --against resnet18.safetensors --eval classification:model=$F:ResNet18,data=$F:images

The file named by CIFAR10_NPZ holds JPEG images, as for examples/resnet20_cifar10.py. CIFAR10_COUNT limits how many are
decoded (default 2000). Needs torch and Pillow.
"""

from __future__ import annotations

import io
import itertools
import os

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from PIL import Image
from torch import Tensor, nn

MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], np.float32)


def images() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(count, 3, 32, 32) normalised images and (count,) labels."""
    with np.load(os.environ["CIFAR10_NPZ"]) as data:
        jpeg, offsets = data["jpeg"], data["offsets"]
        labels = data["labels"][: int(os.environ.get("CIFAR10_COUNT", "2000"))].astype(np.int64)
    spans = itertools.pairwise(offsets[: len(labels) + 1])
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes()))) for start, end in spans])
    normalised = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), labels


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks, the first convolution 3x3 for small images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        for stage, (inputs, outputs) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], start=1):
            blocks = [Block(inputs, outputs, 1 if stage == 1 else 2), Block(outputs, outputs, 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32) images to (batch, 10) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))
