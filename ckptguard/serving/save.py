"""`save_file`: tensors in memory become a protected checkpoint."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file as save_arrays

from ckptguard.container.shard_file import SUFFIX
from ckptguard.devices import DeviceMap
from ckptguard.errors import UsageError
from ckptguard.masks import MaskSet
from ckptguard.pipeline import work
from ckptguard.pipeline.protect import DEFAULT_CODE, DEFAULT_TARGET, Protected, protect
from ckptguard.serving.handle import Filename

WriteTo = Callable[[Path], None]


def save_file(
    tensors: Mapping[str, Any],
    filename: Filename,
    metadata: dict[str, str] | None = None,
    *,
    masks: MaskSet | Path | str | None = None,
    bits: int | None = None,
    code: str = DEFAULT_CODE,
    representation: str = "native",
    devices: DeviceMap | Path | str | None = None,
    target: float = DEFAULT_TARGET,
    guard: str | None = None,
    restorer: str | None = None,
    bit_error_rate: float | None = None,
    overwrite: bool = True,
    jobs: int | None = None,
    progress: work.Progress = work.silent,
) -> Protected:
    """Write tensors of torch or numpy, protected; an existing file is replaced, as safetensors replaces it.

    Args:
        tensors: by name, contiguous and without shared memory where they are torch's.
        filename: `*.safetensors` gets that file, as safetensors writes it, and its sidecar beside it; any other name
            gets a container, which is a folder where the tensors lie on several devices.
        metadata: free text for the header.
        masks, bits, code, representation, devices, target, guard, restorer, bit_error_rate, jobs, progress: as for
            `protect`.

    Raises:
        UsageError: values of both frameworks or of neither. ValueError, RuntimeError, SafetensorError: as safetensors
            raises them for tensors it does not save. Otherwise as `protect`.
    """
    return save_written(
        lambda path: _serialise(tensors, path, metadata),
        filename,
        masks=masks,
        bits=bits,
        code=code,
        representation=representation,
        devices=devices,
        target=target,
        guard=guard,
        restorer=restorer,
        bit_error_rate=bit_error_rate,
        overwrite=overwrite,
        jobs=jobs,
        progress=progress,
    )


def save_written(
    write: WriteTo,
    filename: Filename,
    *,
    masks: MaskSet | Path | str | None,
    bits: int | None,
    code: str,
    representation: str,
    devices: DeviceMap | Path | str | None,
    target: float,
    guard: str | None,
    restorer: str | None,
    bit_error_rate: float | None,
    overwrite: bool,
    jobs: int | None,
    progress: work.Progress,
) -> Protected:
    """Have `write` make a safetensors file beside the target, and protect that."""
    path = Path(filename)
    sidecar = path.suffix == ".safetensors"
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ckptguard-") as folder:
        plain = Path(folder) / (path.name if sidecar else f"{path.stem}.safetensors")
        write(plain)
        if sidecar:
            _refuse_existing(path, overwrite)
        made = protect(
            plain,
            None if sidecar else path,
            masks=masks,
            bits=bits,
            code=code,
            representation=representation,
            devices=devices,
            target=target,
            guard=guard,
            restorer=restorer,
            bit_error_rate=bit_error_rate,
            sidecar=sidecar,
            overwrite=overwrite,
            jobs=jobs,
            progress=progress,
        )
        if not sidecar:
            return made
        beside = path.with_name(path.name + SUFFIX)
        beside.unlink(missing_ok=True)  # never an old sidecar beside a new file
        plain.replace(path)
        made.path.replace(beside)
    return Protected(beside, made.plans, (beside,), made.warnings, made.losses)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and (path.exists() or path.with_name(path.name + SUFFIX).exists()):
        raise UsageError(f"{path}: exists already and is not replaced unasked; remove it or choose another name")


def _serialise(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str] | None) -> None:
    """Write a safetensors file with the library of that name."""
    torch = sys.modules.get("torch")  # where torch was never imported, no value can be a tensor of it
    of_torch = [name for name, value in tensors.items() if torch is not None and isinstance(value, torch.Tensor)]
    if of_torch and len(of_torch) == len(tensors):
        from safetensors.torch import save_file as save_tensors

        save_tensors(dict(tensors), path, metadata)
        return
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray | np.generic):
            others = f" beside tensors of torch such as {of_torch[0]!r}" if of_torch and name not in of_torch else ""
            raise UsageError(
                f"{name}: is {type(value).__module__}.{type(value).__qualname__}{others}; "
                "all values must be tensors of torch, or all must be arrays of numpy"
            )
    # safetensors writes the memory of an array as it lies, whatever its strides say
    arrays = {name: np.array(value, order="C", copy=None) for name, value in tensors.items()}
    save_arrays(arrays, path, metadata)
