"""The functions of `safetensors.torch`, for protected checkpoints: change the import, keep the calls.

from ckptguard.torch import load_file, load_model, save_file, save_model
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptguard.devices import DeviceMap
from ckptguard.evaluate.frameworks import import_torch
from ckptguard.masks import MaskSet
from ckptguard.pipeline import work
from ckptguard.pipeline.protect import DEFAULT_CODE, DEFAULT_TARGET, Protected
from ckptguard.serving import load_file, save_file
from ckptguard.serving.handle import DEFAULT_BACKEND, Filename, TakeReport
from ckptguard.serving.save import save_written

if TYPE_CHECKING:
    import torch

__all__ = ["load_file", "load_model", "save_file", "save_model"]


def load_model(
    model: torch.nn.Module,
    filename: Filename,
    strict: bool = True,
    device: Any = "cpu",
    *,
    backend: str = DEFAULT_BACKEND,
    on_error: str = "raise",
    guard: bool = True,
    estimate: bool = True,
    report: TakeReport | None = None,
    jobs: int | None = None,
) -> tuple[list[str], list[str]]:
    """Load a container into a module; names that share a tensor with a loaded one do not count as missing.

    Returns:
        names in the module that were not loaded, and names in the container that the module does not have.
    Raises:
        RuntimeError: `strict`, and there are such names, as in safetensors. Otherwise as `load_file`.
    """
    import_torch()
    from safetensors.torch import _remove_duplicate_names

    state = load_file(
        filename, device, backend=backend, on_error=on_error, guard=guard, estimate=estimate, report=report, jobs=jobs
    )
    # as safetensors: of names that share memory one stands for all, preferably the one in the file
    aliases = _remove_duplicate_names(model.state_dict(), preferred_names=list(state))
    not_loaded, unexpected = model.load_state_dict(state, strict=False)
    missing = set(not_loaded)
    for alias in (name for group in aliases.values() for name in group):
        if alias in missing:
            missing.remove(alias)
        else:
            unexpected.append(alias)
    if strict and (missing or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                listed = ", ".join(f'"{name}"' for name in sorted(names))
                lines.append(f"    {what} key(s) in state_dict: {listed}")
        raise RuntimeError("\n".join(lines))
    return sorted(missing), list(unexpected)


def save_model(
    model: torch.nn.Module,
    filename: Filename,
    metadata: dict[str, str] | None = None,
    force_contiguous: bool = True,
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
    """Write a module's tensors, protected, each once; names that share it are noted in the header, as in safetensors.

    Args and Raises: as `save_file`.
    """
    import_torch()
    from safetensors.torch import save_model as save_plain_model

    def write(path: Path) -> None:
        save_plain_model(model, str(path), metadata, force_contiguous)

    return save_written(
        write,
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
