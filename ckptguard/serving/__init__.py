"""Loading: tensors straight out of a container, with the names and habits of safetensors."""

from __future__ import annotations

from ckptguard.serving.handle import LoadError, TensorSlice, safe_open
from ckptguard.serving.load import load_file
from ckptguard.serving.save import save_file

__all__ = ["LoadError", "TensorSlice", "load_file", "safe_open", "save_file"]
