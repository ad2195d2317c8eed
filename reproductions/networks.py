"""The networks of the experiments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import nn

from reproductions.data import CIFAR_CLASSES

TEMPLATES = (
    "a photo of a {}", "a blurry photo of a {}", "a small picture of the {}", "one {}", "a bad photo of a {}",
    "an image that shows a {}", "a {} in the wild", "a close view of the {}", "the {}", "a cropped photo of a {}",
)  # fmt: skip


class TextBlock(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class VDCNN(nn.Module):
    """Very deep character CNN of depth 9 with shortcuts (Conneau et al. 2017): 14.35 million parameters."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(69, 16, padding_idx=0)
        self.stem = nn.Conv1d(16, 64, 3, padding=1)
        self.block1, self.block2 = TextBlock(64, 64), TextBlock(64, 128)
        self.block3, self.block4 = TextBlock(128, 256), TextBlock(256, 512)
        self.fc1, self.fc2, self.fc3 = nn.Linear(4096, 2048), nn.Linear(2048, 2048), nn.Linear(2048, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, characters) codes to (batch, classes) logits."""
        x = self.stem(self.embed(x).transpose(1, 2))
        for block in (self.block1, self.block2, self.block3):
            x = F.max_pool1d(block(x), 3, 2, 1)
        x = F.adaptive_max_pool1d(self.block4(x), 8).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class ResidualBlock(nn.Module):
    """Basic residual block; with `pad` the shortcut has no parameters (He et al. 2016, section 4.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, pad: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.pad = pad and changes
        self.shortcut: nn.Module = nn.Identity()
        if changes and not pad:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            extra = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for images of 32 x 32."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64), blocks: int = 3, pad: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages, inputs = len(widths), widths[0]
        for index, width in enumerate(widths):
            stage = [ResidualBlock(inputs, width, 1 if index == 0 else 2, pad)]
            stage += [ResidualBlock(width, width, 1, pad) for _ in range(blocks - 1)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
            inputs = width
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 32, 32) images to (batch, 10) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.linear(x.mean((2, 3)))


class SmallNet(nn.Module):
    """Three convolutions and two linear layers for images of 32 x 32: 153 thousand parameters."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.conv3, self.bn3 = nn.Conv2d(48, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96)
        self.fc1, self.fc2 = nn.Linear(1536, 64), nn.Linear(64, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 32, 32) images to (batch, outputs)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class TextTower(nn.Module):
    """A transformer of two layers over the characters of a prompt."""

    def __init__(self, width: int = 64, outputs: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(28, width, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(48, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(prompts, characters) codes to (prompts, outputs)."""
        padding = x == 0
        y = self.layers(self.embed(x) + self.place[: x.shape[1]], src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2)
        return self.projection(self.norm((y * kept).sum(1) / kept.sum(1)))


class TwoTower(nn.Module):
    """An image and a text tower with a common space, as CLIP's (Radford et al. 2021); classes are prompts."""

    def __init__(self, outputs: int = 64) -> None:
        super().__init__()
        self.vision, self.text = SmallNet(outputs), TextTower(outputs=outputs)
        self.scale = nn.Parameter(torch.tensor(2.6593))

    def forward(self, images: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of images against prompts; without `codes` against the mean of all templates of the ten classes."""
        texts = self.class_texts() if codes is None else F.normalize(self.text(codes), dim=1)
        return self.scale.exp() * F.normalize(self.vision(images), dim=1) @ texts.T

    def class_texts(self) -> torch.Tensor:
        """(10, outputs): for each class the mean direction of its prompts."""
        texts = F.normalize(self.text(prompts(TEMPLATES)), dim=1).reshape(10, len(TEMPLATES), -1)
        return F.normalize(texts.mean(1), dim=1)


def prompts(templates: Sequence[str]) -> torch.Tensor:
    """(10 * templates, 48) character codes of every class in every template, class by class."""
    texts = [template.format(name) for name in CIFAR_CLASSES for template in templates]
    codes = torch.zeros((len(texts), 48), dtype=torch.int64)
    for row, text in enumerate(texts):
        codes[row, : len(text)] = torch.tensor([1 if letter == " " else ord(letter) - 95 for letter in text])
    return codes


def resnet20() -> ResNet:
    """The published ResNet-20 for CIFAR-10; its tensors carry the prefix `module.`."""
    return ResNet()


def resnet18() -> ResNet:
    """ResNet-18 for images of 32 x 32."""
    return ResNet((64, 128, 256, 512), 2, pad=False)


def vdcnn() -> VDCNN:
    """For the four classes of AG News."""
    return VDCNN(4)


def vdcnn_thucnews() -> VDCNN:
    """For the ten classes of THUCNews."""
    return VDCNN(10)
