"""Checkpoints as the verbs take them: safetensors files and folders as they are, torch files converted on the way."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ckptguard.checkpoint.folder import TORCH_SUFFIXES, Checkpoint, list_checkpoint
from ckptguard.checkpoint.torch_file import Conversion, convert
from ckptguard.errors import UsageError


def is_torch_file(path: Path) -> bool:
    """Whether a path is to be read by torch."""
    return path.suffix in TORCH_SUFFIXES and not path.is_dir()


@contextlib.contextmanager
def open_checkpoint(
    path: Path, select: str | None = None, notes: list[str] | None = None, scratch: Path | None = None
) -> Iterator[Checkpoint]:
    """The files of a checkpoint; a torch file is converted into a temporary safetensors file for the time being.

    Args:
        select: which state dict of a torch file.
        notes: gets what the conversion has to say.
        scratch: folder for the temporary file; default: the system's.
    """
    if not is_torch_file(path):
        if select is not None:
            raise UsageError(f"--select chooses a state dict in a torch file; {path} is none")
        yield list_checkpoint(path)
        return
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".ckptguard-") as folder:
        converted = Path(folder) / f"{path.stem}.safetensors"
        conversion = convert(path, converted, select)
        if notes is not None:
            notes += _notes(conversion)
        yield list_checkpoint(converted)


def _notes(conversion: Conversion) -> list[str]:
    """What was done to a torch file, for people."""
    notes = [f"took the tensors of {conversion.selected!r}"] if conversion.selected != "." else []
    if conversion.left_out:
        notes.append(f"left out, because it is no tensor of it: {_listed(conversion.left_out)}")
    if conversion.densified:
        notes.append(f"written without gaps: {_listed(conversion.densified)}")
    notes += [f"shared the same memory, each is written by itself: {_listed(group)}" for group in conversion.shared]
    return notes


def _listed(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
