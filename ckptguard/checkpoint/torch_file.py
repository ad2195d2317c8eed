"""Torch checkpoints, turned into safetensors files without running what their pickles ask for."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptguard.checkpoint.safetensors import Header, parse_header, short, write_header
from ckptguard.dtypes import DTYPES, DType
from ckptguard.errors import CheckpointError, MissingExtraError
from ckptguard.files import atomic_writer

if TYPE_CHECKING:
    import torch

TOP = "."
"""How the outermost mapping of a torch file is selected and named; inner ones have dotted paths."""

BARE_NAME = "tensor"
"""Name given to a tensor that was saved without one."""

_PIECE_BYTES = 16 << 20
_LISTED = 20
_MAX_DEPTH = 64

_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip

# What torch.load and the unpickler in it raise over files that are damaged, hostile or of another kind.
_LOAD_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, OSError, ValueError, TypeError,
    LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError, ImportError,
)  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What became of a torch file.

    Attributes:
        path: the safetensors file written.
        selected: dotted path of the mapping whose tensors were taken; '.' for the outermost one or a bare tensor.
        header: of the file written.
        left_out: dotted paths, with the kind of what is there, of everything that was not taken.
        densified: names of tensors that were strided views and are now written in order, without gaps.
        shared: groups of names whose tensors lay in the same stretch of memory (tied weights) and now have bytes each.
    """

    path: Path
    selected: str
    header: Header
    left_out: tuple[str, ...]
    densified: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]


def convert(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    select: str | None = None,
    *,
    overwrite: bool = False,
) -> Conversion:
    """Write the tensors of the torch file `path` as the safetensors file `destination`, names kept as they are.

    The file is the one `safetensors.torch.save_file(tensors, destination, {"format": "pt"})` writes for the same
    tensors made contiguous. Tensors pass one after the other, in pieces of 16 MiB.

    Args:
        select: dotted path of the mapping that holds the tensors, '.' for the outermost; needed where several do.
    Raises:
        MissingExtraError: torch is not installed.
        CheckpointError: torch cannot read the file without running code, there is no mapping of tensors or no single
            one, or a tensor is of a kind that safetensors cannot hold.
        UsageError: the destination exists, or its folder does not.
    """
    path = Path(path)
    content = _load(path)
    found = _pick(path, _candidates(content), select)
    _check_names(path, found)
    kinds = {name: _kind(path, name, tensor) for name, tensor in found.tensors.items()}
    raw = write_header(
        ((name, kind, tuple(found.tensors[name].shape)) for name, kind in kinds.items()), {"format": "pt"}
    )
    data_bytes = sum(tensor.nelement() * tensor.element_size() for tensor in found.tensors.values())
    header = parse_header(raw[8:], data_bytes, where=str(destination))
    with atomic_writer(destination, overwrite=overwrite) as file:
        free = shutil.disk_usage(Path(destination).parent).free
        if header.file_bytes > free:
            raise CheckpointError(f"{destination}: needs {header.file_bytes} bytes and the disk has {free} free")
        file.write(raw)
        for info in header.tensors:
            _write(file, found.tensors[info.name])
    return Conversion(
        path=Path(destination),
        selected=found.path,
        header=header,
        left_out=tuple(_left_out(content, found)),
        densified=tuple(sorted(name for name, tensor in found.tensors.items() if not tensor.is_contiguous())),
        shared=_shared(found.tensors),
    )


@dataclass(frozen=True)
class _Found:
    """A mapping that holds tensors: where, the mapping itself, and the tensors in it."""

    path: str
    mapping: Any
    tensors: dict[Any, torch.Tensor]


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("reading torch files needs torch; run: pip install 'ckptguard[torch]'") from error
    return torch


def _load(path: Path) -> Any:
    torch = _import_torch()
    if sys.byteorder != "little":
        raise CheckpointError(f"{path}: torch files can be converted on little-endian machines only")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{path}: {_why_refused(error)}") from error


def _why_refused(error: BaseException) -> str:
    """What torch's message comes down to, without its advice to load the file unsafely."""
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text)
    if wanted:
        return (
            f"its pickle asks for {wanted.group(1)}, which is refused because unpickling it could run code; "
            "where you trust the file, save its state_dict alone with torch and convert that"
        )
    if "TorchScript" in text:
        return "is a TorchScript archive, which holds a program; save the module's state_dict and convert that"
    first = text.strip().splitlines()[0][:200] if text.strip() else "it ends too early"
    if isinstance(error, pickle.UnpicklingError):
        first = text.partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or "its pickle is malformed"
    return f"torch cannot read it as plain tensors: {first}; it is damaged, or no torch checkpoint"


def _candidates(content: Any) -> list[_Found]:
    """Every mapping that holds tensors directly, in the order of the file; each object once."""
    torch = _import_torch()
    if isinstance(content, torch.Tensor):
        return [_Found(TOP, None, {BARE_NAME: content})]
    found = []
    for path, mapping in _mappings(content):
        tensors = {key: value for key, value in mapping.items() if isinstance(value, torch.Tensor)}
        if tensors:
            found.append(_Found(path, mapping, tensors))
    return found


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All mappings reachable through mappings, lists and tuples, with their paths; cycles are walked once."""
    seen: set[int] = set()
    waiting = [(TOP, 0, content)]
    while waiting:
        path, depth, node = waiting.pop()
        if id(node) in seen or not isinstance(node, Mapping | list | tuple):
            continue
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{path[:80]}: mappings nest deeper than {_MAX_DEPTH}; no checkpoint needs that")
        seen.add(id(node))
        if isinstance(node, Mapping):
            yield path, node
        waiting.extend(reversed([(_join(path, key), depth + 1, child) for key, child in _children(node)]))


def _join(path: str, key: object) -> str:
    return str(key) if path == TOP else f"{path}.{key}"


def _pick(path: Path, candidates: Sequence[_Found], select: str | None) -> _Found:
    chosen = [found for found in candidates if select is None or found.path == select]
    if len(chosen) == 1:
        return chosen[0]
    if not candidates:
        raise CheckpointError(f"{path}: holds no tensors by name; save a state_dict, a mapping from names to tensors")
    ordered = sorted(candidates, key=lambda found: -len(found.tensors))
    listed = "".join(
        f"\n  {found.path}  ({len(found.tensors)} tensor{'s' * (len(found.tensors) != 1)})"
        for found in ordered[:_LISTED]
    )
    more = f"\n  and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    if select is None:
        what = "holds several mappings with tensors; choose one with `--select NAME`"
    elif chosen:
        what = f"the name {select!r} fits {len(chosen)} mappings; save the one that is meant on its own"
    else:
        what = f"holds no mapping with tensors named {select!r}; choose one with `--select NAME`"
    raise CheckpointError(f"{path}: {what}:{listed}{more}")


def _check_names(path: Path, found: _Found) -> None:
    for name in found.tensors:
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: {found.path}: the key {short(name)} of a tensor is {type(name).__name__}, expected a string; "
                "choose a mapping with names by `--select NAME`"
            )


def _kind(path: Path, name: str, tensor: torch.Tensor) -> DType:
    """The safetensors dtype, or a refusal that names what the format cannot hold."""
    torch = _import_torch()
    dtype = str(tensor.dtype).removeprefix("torch.")
    refused = None
    if tensor.is_quantized:
        refused = f"is quantized ({dtype}); dequantize it, or save int_repr(), scale and zero point as tensors"
    elif tensor.layout != torch.strided:
        refused = f"has the layout {tensor.layout}; convert it with to_dense()"
    elif tensor.device.type != "cpu":
        refused = f"has no data (device {tensor.device})"
    elif type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        refused = f"is a {type(tensor).__name__}, not a plain tensor"
    elif dtype not in _DTYPES:
        refused = f"has the dtype {dtype}; the ones that can be held are {', '.join(_DTYPES)}"
    if refused:
        raise CheckpointError(f"{path}: tensor {short(name)} {refused}; safetensors cannot hold it")
    return DTYPES[_DTYPES[dtype]]


def _write(file: BinaryIO, tensor: torch.Tensor) -> None:
    torch = _import_torch()
    for piece in _pieces(tensor.detach()):
        plain = piece.resolve_conj().resolve_neg().contiguous().reshape(-1)
        file.write(plain.view(torch.uint8).numpy().data)


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Parts of at most 16 MiB that follow each other in row-major order."""
    size = tensor.nelement() * tensor.element_size()
    if size == 0:
        return
    if size <= _PIECE_BYTES:
        yield tensor
        return
    tensor = tensor.view(-1) if tensor.is_contiguous() else tensor
    rows = max(1, _PIECE_BYTES * len(tensor) // size)
    for row in range(0, len(tensor), rows):
        yield from _pieces(tensor[row] if rows == 1 else tensor[row : row + rows])


def _left_out(content: Any, found: _Found) -> Iterator[str]:
    """Entries beside the tensors that were taken, then the branches of the file that were not."""
    if found.mapping is None:
        return
    for key, value in found.mapping.items():
        if key not in found.tensors:
            yield f"{_join(found.path, key)} ({_described(value)})"
    if getattr(found.mapping, "_metadata", None):
        yield f"{_join(found.path, '_metadata')} (versions of modules, as load_state_dict reads)"
    yield from _other_branches(TOP, content, found.mapping, set())


def _other_branches(path: str, node: Any, taken: Any, seen: set[int]) -> Iterator[str]:
    if node is taken or id(node) in seen:
        return
    seen.add(id(node))
    for key, child in _children(node):
        if child is taken:
            continue
        if _reaches(child, taken):
            yield from _other_branches(_join(path, key), child, taken, seen)
        else:
            yield f"{_join(path, key)} ({_described(child)})"


def _reaches(node: Any, taken: Any) -> bool:
    return any(mapping is taken for _, mapping in _mappings(node))


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, Mapping | list | tuple) else kind


def _shared(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """Groups of names whose tensors lie in the same stretch of memory."""
    spans = sorted((*_span(tensor), name) for name, tensor in tensors.items() if tensor.nelement())
    groups: list[list[str]] = []
    reached = -1
    for begin, end, name in spans:
        if begin < reached:
            groups[-1].append(name)
        else:
            groups.append([name])
        reached = max(reached, end)
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last-plus-one address that the elements touch."""
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()
