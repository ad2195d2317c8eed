"""The functions of `safetensors.numpy`, for protected checkpoints: change the import, keep the calls.

from ckptguard.numpy import load_file, save_file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptguard import serving
from ckptguard.devices import DeviceMap
from ckptguard.masks import MaskSet
from ckptguard.pipeline import work
from ckptguard.pipeline.protect import DEFAULT_CODE, DEFAULT_TARGET, Protected
from ckptguard.serving.handle import DEFAULT_BACKEND, Filename, TakeReport

__all__ = ["load_file", "save_file"]


def load_file(
    filename: Filename,
    *,
    backend: str = DEFAULT_BACKEND,
    on_error: str = "raise",
    guard: bool = True,
    estimate: bool = True,
    report: TakeReport | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """All arrays of a container by name; see `ckptguard.load_file`."""
    return serving.load_file(
        filename,
        framework="np",
        backend=backend,
        on_error=on_error,
        guard=guard,
        estimate=estimate,
        report=report,
        jobs=jobs,
    )


def save_file(
    tensor_dict: Mapping[str, Any],
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
    """Write arrays, protected; see `ckptguard.save_file`."""
    return serving.save_file(
        tensor_dict,
        filename,
        metadata,
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
