"""Checkpoints to measure with: float32 tensors of normal weights, written without holding them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

_BLOCK = 32 << 20


def write(path: Path, size: int, tensors: int = 16) -> Path:
    """A safetensors file with `size` bytes of float32 weights in equal tensors; the weights repeat every 32 MiB."""
    each = size // tensors // 4 * 4
    header = {
        f"layers.{index}.weight": {
            "dtype": "F32",
            "shape": [each // 4],
            "data_offsets": [index * each, (index + 1) * each],
        }
        for index in range(tensors)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = np.random.default_rng(14).standard_normal(_BLOCK // 4, np.float32).tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = each * tensors
        while left:
            left -= file.write(block[:left])
    return path
