"""An evaluator given as `file.py:function`: it gets a state dict and returns metrics."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptguard.errors import CkptGuardError, UsageError

Evaluator = Callable[[Mapping[str, Any]], Mapping[str, float]]


def load_evaluator(spec: str) -> Evaluator:
    """The function named by `file.py:function`. The file's folder is importable while it loads, as for a script."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise UsageError(f"{spec!r} is not of the form file.py:function")
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file to take {name!r} from")
    loader = importlib.util.spec_from_file_location(f"ckptguard_evaluator_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UsageError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(loader)
    sys.modules[loader.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        loader.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_"))
        raise UsageError(f"{path}: has no function {name!r}; it has: {known}")
    return function  # type: ignore[no-any-return]


def evaluate(function: Evaluator, state_dict: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a state dict, as floats; non-finite ones are kept, they are a finding.

    Raises CkptGuardError where the function returns something else than named numbers.
    """
    metrics = function(state_dict)
    if not isinstance(metrics, Mapping) or not metrics:
        raise CkptGuardError(f"the evaluator returned {type(metrics).__name__}; it must return names with numbers")
    result = {}
    for name, value in metrics.items():
        try:
            result[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise CkptGuardError(f"the evaluator's metric {name!r} is {value!r}, no number") from error
    return result
