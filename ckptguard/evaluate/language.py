"""Folders of transformers models: built from their configuration, without the network, on a session's weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptguard.errors import MissingExtraError, UsageError
from ckptguard.evaluate.frameworks import torch_dtype
from ckptguard.evaluate.session import Context
from ckptguard.evaluate.settings import Settings
from ckptguard.spec import suggestion

FOLDER_KEYS = {
    "model": "folder of a transformers model with configuration and tokenizer; its weights are not read",
    "dtype": "checkpoint (default: compute in the type of the checkpoint) or float32",
}


def offline() -> None:
    """Keep the Hugging Face libraries from asking the network, in this process, unless the user set otherwise."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers fork


def import_transformers(extra: str = "transformers") -> Any:
    """transformers, offline; MissingExtraError says how to get it, by the extra that the caller needs."""
    offline()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"transformers is not installed: pip install 'ckptguard[{extra}]'") from error
    package: Any = transformers
    package.utils.logging.disable_progress_bar()
    return package


def folder(settings: Settings) -> Path:
    """The folder named by `model=`, which must have a configuration."""
    path = Path(settings.text("model"))
    if not (path / "config.json").is_file():
        raise UsageError(f"model={path}: is no folder with a config.json")
    return path


def causal_model(path: Path, context: Context, dtype: str) -> Callable[[], Any]:
    """A factory of the language model of a folder, its weights not yet set."""

    def make() -> Any:
        transformers = import_transformers()
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=_compute_type(context, dtype))

    return make


def tokenizer_of(path: Path) -> Any:
    """The tokenizer of a folder."""
    return import_transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)


def in_transformers(base: str, ignored: Callable[[str], bool]) -> Callable[[str, set[str]], str | None]:
    """Names as transformers finds them: as they are, or with the base model's prefix added or taken off.

    Args:
        base: the prefix, such as `transformer`; empty for none.
        ignored: names that the model says it has no use for.
    """

    def name_in_model(name: str, known: set[str]) -> str | None:
        candidates = [name, f"{base}.{name}", name.removeprefix(f"{base}.")] if base else [name]
        found = next((candidate for candidate in candidates if candidate in known), None)
        return found if found is not None else None if ignored(name) else name

    return name_in_model


def prefix_of(path: Path) -> str:
    """The base model's prefix of the language model of a folder."""
    transformers = import_transformers()
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    mapping: Mapping[Any, Any] = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise UsageError(
            f"{path}: {config.model_type!r} has no language model in transformers{suggestion(config.model_type, [])}"
        )
    prefix: str = mapping[type(config)].base_model_prefix
    return prefix


def _compute_type(context: Context, dtype: str) -> Any:
    torch_types = [spec.dtype for spec in context.specs.values() if spec.dtype.name in ("F32", "F16", "BF16", "F64")]
    if dtype == "float32" or not torch_types:
        import torch

        return torch.float32
    return torch_dtype(max(torch_types, key=torch_types.count))
