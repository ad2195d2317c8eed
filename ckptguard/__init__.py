"""ckptguard keeps model checkpoints alive on storage that flips bits.

    ckptguard.protect("model.safetensors", "model.ckg", bits=9)
    ckptguard.corrupt("model.ckg", "worn.ckg", seed=7, channel="bsc:1e-2")
    report = ckptguard.restore("worn.ckg", "restored.safetensors")
    state_dict = ckptguard.load_file("worn.ckg")

Importing this package imports neither torch nor numba; they are loaded when first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckptguard.campaign.replay import replay
    from ckptguard.campaign.sweep import sweep
    from ckptguard.pipeline.check import check
    from ckptguard.pipeline.corrupt import corrupt
    from ckptguard.pipeline.inspect import inspect
    from ckptguard.pipeline.protect import protect
    from ckptguard.pipeline.repair import repair
    from ckptguard.pipeline.restore import restore
    from ckptguard.pipeline.verify import verify
    from ckptguard.search.run import search as find_masks
    from ckptguard.search.run import sensitivity
    from ckptguard.serving import load_file, safe_open, save_file

_PLACES = {
    "protect": "ckptguard.pipeline.protect",
    "inspect": "ckptguard.pipeline.inspect",
    "corrupt": "ckptguard.pipeline.corrupt",
    "check": "ckptguard.pipeline.check",
    "repair": "ckptguard.pipeline.repair",
    "restore": "ckptguard.pipeline.restore",
    "verify": "ckptguard.pipeline.verify",
    "sweep": "ckptguard.campaign.sweep",
    "replay": "ckptguard.campaign.replay",
    "find_masks": "ckptguard.search.run:search",  # `search` is the subpackage
    "sensitivity": "ckptguard.search.run",
    "load_file": "ckptguard.serving",
    "save_file": "ckptguard.serving",
    "safe_open": "ckptguard.serving",
}

__all__ = [
    "__version__",
    "check",
    "corrupt",
    "find_masks",
    "inspect",
    "load_file",
    "protect",
    "repair",
    "replay",
    "restore",
    "safe_open",
    "save_file",
    "sensitivity",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    raise AttributeError(f"module 'ckptguard' has no attribute {name!r}")
