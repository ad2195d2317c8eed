"""A checkpoint as a list of files: one safetensors file, or a folder with its shards, index, config and tokenizer."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ckptguard.checkpoint.safetensors import Header, read_header, short
from ckptguard.errors import CheckpointError

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
"""Suffixes under which torch.save files go about."""

OWN_SUFFIX = ".ckg"
_MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class SourceFile:
    """One file of a checkpoint.

    Attributes:
        name: relative to the checkpoint's root, with '/' between folders.
        path: where its bytes are.
        bytes: its size.
        header: of a safetensors file; None for a file whose content is not looked into.
    """

    name: str
    path: Path
    bytes: int
    header: Header | None


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint below `root`, by name."""

    root: Path
    files: tuple[SourceFile, ...]


def list_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The files that make up the checkpoint at `path`, every safetensors header and index checked.

    A folder gives all its regular files, in folders below too: safetensors files with their headers, all others
    (config, tokenizer, index, torch files) as they are. Hidden files and folders and `*.ckg` are left out. A symbolic
    link counts as the file it leads to, if that lies below the folder, or in the blob store of a Hugging Face cache
    when the folder is one of its snapshots.

    Raises:
        CheckpointError: nothing to protect, a malformed file, an index that contradicts the files, or a link that
            leads out of the folder or to another folder.
    """
    root = Path(path)
    if root.is_dir():
        return _list_folder(root)
    if root.suffix in TORCH_SUFFIXES:
        raise CheckpointError(f"{root}: is a torch file by its name; convert it to safetensors first")
    if not root.exists():
        raise CheckpointError(f"{root}: no such file or folder")
    header = read_header(root)
    return Checkpoint(root.parent, (SourceFile(root.name, root, header.file_bytes, header),))


def _list_folder(root: Path) -> Checkpoint:
    files = []
    for path in sorted(_walk(root)):
        name = path.relative_to(root).as_posix()
        size = _regular_size(root, path)
        header = read_header(path) if name.endswith(SUFFIX) else None
        files.append(SourceFile(name, path, size, header))
    files.sort(key=lambda file: file.name)
    if not any(file.header for file in files):
        _refuse_without_tensors(root, files)
    by_name = {file.name: file for file in files}
    for file in files:
        if file.name.endswith(INDEX_SUFFIX):
            _check_index(file, by_name)
    return Checkpoint(root, tuple(files))


def _walk(root: Path) -> Iterator[Path]:
    """Every file below `root` that is neither hidden nor a container; links to folders are refused."""

    def fail(error: OSError) -> None:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                raise CheckpointError(
                    f"{Path(folder, name)}: is a symbolic link to a folder, which is not followed; "
                    "replace it by a copy, or hide it with a leading dot"
                )
        for name in names:
            if name.startswith(".") or name.endswith(OWN_SUFFIX):
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                raise CheckpointError(f"{folder}: the file name {name!r} is not UTF-8; rename it") from None
            yield Path(folder, name)


def _regular_size(root: Path, path: Path) -> int:
    """Size of the file that `path` is or leads to."""
    try:
        status = path.stat()
        target = path.resolve(strict=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if path.is_symlink() and not any(target.is_relative_to(home) for home in _homes(root)):
        raise CheckpointError(
            f"{path}: is a symbolic link to {target}, outside of the checkpoint; replace it by a copy "
            f"(`cp -rL {root} COPY` does so for the whole folder)"
        )
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is neither a file nor a folder; remove it, or hide it with a leading dot")
    return status.st_size


def _homes(root: Path) -> list[Path]:
    """Folders that links may lead into."""
    real = root.resolve()
    homes = [real]
    if real.parent.name == "snapshots":  # the layout of the Hugging Face cache: snapshots/REVISION beside blobs
        homes.append(real.parent.parent / "blobs")
    return homes


def _refuse_without_tensors(root: Path, files: list[SourceFile]) -> None:
    torch_files = [file.name for file in files if Path(file.name).suffix in TORCH_SUFFIXES]
    if torch_files:
        raise CheckpointError(
            f"{root}: holds no {SUFFIX} file, only torch files ({_listed(torch_files)}); give one of them as a single "
            "file, with `--select NAME` if it holds several sets of tensors, to have it converted"
        )
    found = _listed([file.name for file in files]) if files else "nothing"
    raise CheckpointError(f"{root}: holds no {SUFFIX} file (found: {found}); name the folder that has the weights")


def _check_index(index: SourceFile, files: dict[str, SourceFile]) -> None:
    """Hold the weight map of an index against the headers of the files it names, in both directions."""
    folder = PurePosixPath(index.name).parent
    placed: dict[str, set[str]] = {}
    for tensor, shard in _weight_map(index).items():
        placed.setdefault(shard, set()).add(tensor)
    headers = {shard: file.header for shard in placed if (file := files.get(str(folder / shard))) and file.header}
    for shard, names in placed.items():
        if shard not in headers:
            raise CheckpointError(
                f"{index.path}: places {_listed(sorted(names))} in {short(shard)}, which is not there as a {SUFFIX} "
                "file; the checkpoint is incomplete, get the missing file"
            )
    for shard, names in placed.items():
        held = {tensor.name for tensor in headers[shard].tensors}
        if names != held:
            what = (
                f"places {_listed(sorted(names - held))} in {short(shard)}, which does not hold them"
                if names - held
                else f"does not place {_listed(sorted(held - names))} in {short(shard)}, which holds them"
            )
            raise CheckpointError(f"{index.path}: {what}; index and shards are of different checkpoints or versions")


def _weight_map(index: SourceFile) -> dict[str, str]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(found)
        if len(members) != len(found):
            raise CheckpointError(f"{index.path}: a key is given twice in the same object; the index is ambiguous")
        return members

    if index.bytes > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{index.path}: has {index.bytes} bytes, too many for an index ({_MAX_INDEX_BYTES})")
    try:
        content = json.loads(index.path.read_bytes().decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index.path}: is not the JSON of an index: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index.path}: has no object 'weight_map', which tells the file of every tensor")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise CheckpointError(
                f"{index.path}: places tensor {short(tensor)} in {short(shard)}, expected the name of a file in this "
                "folder"
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """True for relative names that stay below their folder, spelled in the one normal way."""
    parts = name.split("/")
    return "\\" not in name and "\0" not in name and not any(part in ("", ".", "..") for part in parts)


def _listed(names: list[str], most: int = 5) -> str:
    text = ", ".join(short(name) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
