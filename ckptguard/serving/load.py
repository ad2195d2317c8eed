"""`load_file`: all tensors of a container at once."""

from __future__ import annotations

from typing import Any

from ckptguard.serving.handle import DEFAULT_BACKEND, Filename, TakeReport, safe_open


def load_file(
    filename: Filename,
    device: Any = "cpu",
    *,
    framework: str = "pt",
    backend: str = DEFAULT_BACKEND,
    on_error: str = "raise",
    guard: bool = True,
    estimate: bool = True,
    report: TakeReport | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """All tensors of a container by name, as `safetensors.torch.load_file` gives those of a file.

    Args and Raises: as `safe_open`; `report` is called after loading.
    """
    with safe_open(
        filename,
        framework,
        device,
        backend=backend,
        on_error=on_error,
        guard=guard,
        estimate=estimate,
        report=report,
        jobs=jobs,
    ) as opened:
        return opened.get_tensors()
