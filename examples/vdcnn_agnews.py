"""A character network and its texts, for the evaluator `classification`: VDCNN of depth 9 on AG News.

    export AGNEWS_CSV=agnews/test.csv
    F=examples/vdcnn_agnews.py
    ckptguard verify worn.ckg --against vdcnn.safetensors --eval classification:model=$F:VDCNN,data=$F:texts,limit=2000

The file named by AGNEWS_CSV has the columns class (1 to 4), title, text, with or without a header line. Needs torch.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

LENGTH = 256
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{}"
CODE = {character: code for code, character in enumerate(CHARACTERS, start=1)}
"""Code 0 stands for everything else, and fills texts up."""


def texts() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(count, 256) codes of the first characters of title and text, and (count,) classes from 0."""
    with Path(os.environ["AGNEWS_CSV"]).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row[0].isdigit()]
    codes = np.zeros((len(rows), LENGTH), np.int64)
    for line, (_, title, text) in zip(codes, rows, strict=True):
        start = f"{title} {text}".lower()[:LENGTH]
        line[: len(start)] = [CODE.get(character, 0) for character in start]
    return codes, np.array([int(row[0]) - 1 for row in rows])


class Block(nn.Module):
    """Two convolutions with batch normalisation beside a shortcut (Conneau et al. 2017, figure 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(inputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs)
        self.conv2, self.bn2 = nn.Conv1d(outputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, length) to (batch, outputs, length)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class VDCNN(nn.Module):
    """Very deep character network, depth 9: four blocks between poolings, then three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS) + 1, 16, padding_idx=0)
        self.stem = nn.Conv1d(16, 64, 3, padding=1)
        for number, (inputs, outputs) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], start=1):
            self.add_module(f"block{number}", Block(inputs, outputs))
        self.fc1, self.fc2, self.fc3 = nn.Linear(4096, 2048), nn.Linear(2048, 2048), nn.Linear(2048, 4)

    def forward(self, codes: Tensor) -> Tensor:
        """(batch, 256) character codes to (batch, 4) logits."""
        x = self.stem(self.embed(codes).transpose(1, 2))
        for number in (1, 2, 3):
            x = F.max_pool1d(self.get_submodule(f"block{number}")(x), kernel_size=3, stride=2, padding=1)
        x = F.adaptive_max_pool1d(self.get_submodule("block4")(x), 8).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
