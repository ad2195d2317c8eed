"""Raw bytes as tensors of numpy or torch, without copying."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.errors import MissingExtraError, UsageError

Bytes = npt.NDArray[np.uint8]

FRAMEWORKS = {"pt": "torch", "pytorch": "torch", "torch": "torch", "np": "numpy", "numpy": "numpy"}

TORCH_DTYPES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""Names of torch's dtypes, by safetensors dtype."""

ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""Names of the dtypes that the package ml_dtypes adds to numpy."""


def framework_name(framework: str) -> str:
    """`torch` or `numpy`, from any of the names that safetensors takes for them."""
    if framework not in FRAMEWORKS:
        raise UsageError(f"unknown framework {framework!r}; known: {', '.join(sorted(FRAMEWORKS))}")
    return FRAMEWORKS[framework]


def import_torch() -> Any:
    """torch, or MissingExtraError saying how to get it or do without it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "torch is not installed: pip install 'ckptguard[torch]', or ask for numpy arrays (framework='np')"
        ) from error
    return torch


def torch_with_threads(threads: int | None) -> Any:
    """torch, set to a number of threads in this process; None leaves the number that it has."""
    torch = import_torch()
    if threads is not None:
        torch.set_num_threads(threads)
    return torch


def tensor_from_bytes(framework: str, dtype: DType, shape: tuple[int, ...], data: Bytes, device: Any = "cpu") -> Any:
    """A tensor over `data` (writable, contiguous bytes), on `device` for torch."""
    if framework_name(framework) == "numpy":
        return np.ndarray(shape, numpy_dtype(dtype), data)
    torch = import_torch()
    kind = torch_dtype(dtype)
    shape = tensor_shape(framework, dtype, shape)
    if data.size == 0:
        return torch.empty(shape, dtype=kind, device=device)
    tensor = torch.from_numpy(np.ndarray(shape, dtype.numpy or f"<i{dtype.word_bits // 8}", data))
    tensor = tensor if tensor.dtype == kind else tensor.view(kind)
    return tensor if str(device) == "cpu" else tensor.to(device)


def tensor_shape(framework: str, dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the framework gives a tensor; torch packs two elements of F4 into one along the last axis."""
    if dtype.name == "F4" and framework_name(framework) == "torch":
        return (*shape[:-1], shape[-1] // 2)
    return shape


def torch_dtype(dtype: DType) -> Any:
    """torch's dtype, or UsageError where this version of torch has none."""
    torch = import_torch()
    name = TORCH_DTYPES.get(dtype.name)
    if name is None or not hasattr(torch, name):
        raise UsageError(f"torch {torch.__version__} has no dtype for {dtype.name}")
    return getattr(torch, name)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """numpy's dtype, or that of ml_dtypes where it is installed."""
    if dtype.numpy is not None:
        return np.dtype(dtype.numpy)
    if dtype.name in ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingExtraError(
                f"numpy has no type for {dtype.name}: pip install ml_dtypes, or use framework='pt'"
            ) from error
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, ML_DTYPES[dtype.name]))
        return found
    raise UsageError(f"numpy has no type for {dtype.name}")
