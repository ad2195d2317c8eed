"""Train the networks that the data folder does not hold: `python -m reproductions.train WHAT [--out FOLDER]`.

WHAT is `small` (six instances of SmallNet on CIFAR-10, seeds 0-5), `thucnews` (VDCNN) or `two-tower`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from safetensors.torch import save_file
from torch import nn

from reproductions import data
from reproductions.networks import TEMPLATES, VDCNN, SmallNet, TwoTower, prompts

INSTANCES = 6


def batches(x: torch.Tensor, y: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random batches of one epoch; the last short one is left out."""
    order = torch.randperm(len(x))
    for start in range(0, len(x) - size + 1, size):
        chosen = order[start : start + size]
        yield x[chosen], y[chosen]


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Per cent."""
    net.eval()
    with torch.inference_mode():
        right = sum(int((net(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum()) for i in range(0, len(x), 500))
    return 100 * right / len(x)


def fit(
    net: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    train: data.Inputs,
    test: data.Inputs,
    epochs: int,
    rate: float,
    size: int = 128,
) -> float:
    """Train by SGD with momentum and one cycle of the learning rate; the test accuracy in per cent."""
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * (len(train[0]) // size))
    for epoch in range(epochs):
        net.train()
        start = time.perf_counter()
        total = 0.0
        for x, y in batches(*train, size):
            optimizer.zero_grad()
            value = loss(x, y)
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(value)
        mean = total / (len(train[0]) // size)
        print(f"epoch {epoch + 1}: loss {mean:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    found = accuracy(net, *test)
    print(f"test accuracy {found:.2f} %", flush=True)
    return found


def mirrored(x: torch.Tensor) -> torch.Tensor:
    """Images, shifted by up to two pixels together and each mirrored with probability 1/2."""
    dx, dy = torch.randint(-2, 3, (2,)).tolist()
    x = torch.roll(x, (dx, dy), (2, 3))
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def small(out: Path) -> None:
    """Six instances that differ in their seed only."""
    train, test = data.cifar10("train", 0, 20_000), data.cifar10("test")
    for seed in range(INSTANCES):
        torch.manual_seed(seed)
        net = SmallNet()
        fit(net, lambda x, y, net=net: F.cross_entropy(net(mirrored(x)), y), train, test, 5, 0.1)
        save(net, out / f"small-{seed}.safetensors")


def thucnews(out: Path) -> None:
    """VDCNN on Chinese headlines."""
    torch.manual_seed(0)
    net = VDCNN(10)
    train, test = data.thucnews("train"), data.thucnews("test")
    fit(net, lambda x, y: F.cross_entropy(net(x), y), train, test, 4, 0.05, 64)
    save(net, out / "vdcnn-thucnews.safetensors")


def two_tower(out: Path) -> None:
    """Images against one random prompt per class."""
    torch.manual_seed(0)
    net, codes = TwoTower(), prompts(TEMPLATES).reshape(10, len(TEMPLATES), -1)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        chosen = codes[torch.arange(10), torch.randint(len(TEMPLATES), (10,))]
        return F.cross_entropy(net(mirrored(x), chosen), y)

    fit(net, loss, data.cifar10("train", 0, 20_000), data.cifar10("test"), 5, 0.1)
    save(net, out / "two-tower.safetensors")


def save(net: nn.Module, path: Path) -> None:
    """The state dict as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    print(path, flush=True)


KINDS = {"small": small, "thucnews": thucnews, "two-tower": two_tower}


def main() -> None:
    """Train what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("build/reproductions"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    KINDS[arguments.what](arguments.out)


if __name__ == "__main__":
    main()
