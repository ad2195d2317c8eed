"""The data sets of the experiments, from the folder CKPTGUARD_DATA."""

from __future__ import annotations

import csv
import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{} "
TEXT_LENGTH = 256
HEADLINE_LENGTH = 128

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Inputs = tuple[torch.Tensor, torch.Tensor]


def folder() -> Path:
    """The folder of the data; FileNotFoundError says how to name another."""
    found = Path(os.environ.get("CKPTGUARD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not found.is_dir():
        raise FileNotFoundError(f"{found}: no such folder; set CKPTGUARD_DATA to the folder of the data sets")
    return found


@lru_cache(maxsize=8)
def agnews(split: str = "test", first: int = 0, count: int | None = None) -> Inputs:
    """(count, 256) character codes and labels of AG News; `train` has 20,000 texts, `test` 7,600."""
    name, header = ("test.csv", 0) if split == "test" else ("train-20k.csv", 1)
    with (folder() / "agnews" / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[header:][first : None if count is None else first + count]
    codes = {character: code + 1 for code, character in enumerate(ALPHABET[:68])}
    x = np.zeros((len(rows), TEXT_LENGTH), np.int64)
    for row, (_, title, text) in enumerate(rows):
        line = f"{title} {text}".lower()[:TEXT_LENGTH]
        x[row, : len(line)] = [codes.get(character, 0) for character in line]
    return torch.from_numpy(x), torch.tensor([int(row[0]) - 1 for row in rows])


@lru_cache(maxsize=8)
def thucnews(split: str = "test", first: int = 0, count: int | None = None) -> Inputs:
    """(count, 128) codes and labels of Chinese headlines in UTF-8: two codes a byte, its high half and its low one."""
    lines = (folder() / "thucnews" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line][first : None if count is None else first + count]
    x = np.zeros((len(rows), HEADLINE_LENGTH), np.int64)
    for row, (text, _) in enumerate(rows):
        data = np.frombuffer(text.encode()[: HEADLINE_LENGTH // 2], np.uint8).astype(np.int64)
        x[row, 0 : 2 * data.size : 2] = 1 + (data >> 4)
        x[row, 1 : 2 * data.size : 2] = 17 + (data & 15)
    return torch.from_numpy(x), torch.tensor([int(row[1]) for row in rows])


@lru_cache(maxsize=4)
def cifar10(split: str = "test", first: int = 0, count: int | None = None, imagenet: bool = False) -> Inputs:
    """(count, 3, 32, 32) normalised images and labels; any prefix is balanced over the ten classes.

    Args:
        imagenet: normalise by ImageNet's mean and deviation, as the published ResNet-20 was trained with.
    """
    from PIL import Image

    with np.load(folder() / f"cifar10-jpeg-{split}.npz") as data:
        blob, offsets, labels = data["jpeg"], data["offsets"], data["labels"]
    chosen = range(first, len(labels) if count is None else first + count)
    pixels = [np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()))) for i in chosen]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (CIFAR_MEAN, CIFAR_STD)
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return x.contiguous(), torch.from_numpy(labels[chosen.start : chosen.stop].astype(np.int64))


def resnet20_images() -> Inputs:
    """500 test images as the published ResNet-20 takes them."""
    return cifar10("test", 0, 500, imagenet=True)


def agnews_train() -> Inputs:
    """What `--calibrate` takes parts of."""
    return agnews("train")


def thucnews_train() -> Inputs:
    """The same for the Chinese headlines."""
    return thucnews("train")


def cifar10_train() -> Inputs:
    """The first 10,000 training images; any part of them is about balanced."""
    return cifar10("train", 0, 10_000)


def cifar10_imagenet() -> Inputs:
    """Test images, normalised as for the published ResNet-20."""
    return cifar10("test", imagenet=True)


def cifar10_imagenet_train() -> Inputs:
    """Training images, normalised as for the published ResNet-20."""
    return cifar10("train", 0, 10_000, imagenet=True)
