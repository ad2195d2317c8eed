"""Checkpoints as they come: safetensors files, folders of them, and torch files to be converted."""

from __future__ import annotations

from ckptguard.checkpoint.folder import Checkpoint, SourceFile, list_checkpoint
from ckptguard.checkpoint.safetensors import Header, TensorInfo, parse_header, read_header, write_header
from ckptguard.checkpoint.torch_file import Conversion, convert

__all__ = [
    "Checkpoint",
    "Conversion",
    "Header",
    "SourceFile",
    "TensorInfo",
    "convert",
    "list_checkpoint",
    "parse_header",
    "read_header",
    "write_header",
]
