"""Evaluators of the user's: a function, class or metric object, given as such or as `file.py:name`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptguard.errors import CkptGuardError, UsageError
from ckptguard.evaluate.frameworks import framework_name, torch_with_threads
from ckptguard.evaluate.live import LiveSession
from ckptguard.evaluate.session import Context

Evaluator = Callable[[Mapping[str, Any]], Mapping[str, float]]


class UserSession(LiveSession):
    """Runs a user's evaluator on the live tensors.

    A class is made once, here, so that it can build its model once per worker. An object with `update` and `compute`
    gets `reset()` where it has that, `update(state_dict)`, `compute()`. Anything else is called with the state dict.
    """

    def __init__(self, evaluator: object, context: Context) -> None:
        super().__init__(context)
        if framework_name(context.framework) == "torch":
            torch_with_threads(context.threads)
        self._function = as_function(evaluator)

    def metrics(self) -> dict[str, float]:
        """What the evaluator returns. It gets a new dict of the same tensors every time and must not change them."""
        return evaluate(self._function, dict(self.state))


def load_object(spec: str) -> Any:
    """The object named by `file.py:name`, callable. The file's folder is importable while it loads, as for a script."""
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
    found = getattr(module, name, None)
    if not (callable(found) or is_metric(found)):
        known = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_"))
        raise UsageError(f"{path}: has no function {name!r}; it has: {known}")
    return found


def is_metric(thing: object) -> bool:
    """Whether an object has `update` and `compute`, as the metrics of torchmetrics do."""
    return callable(getattr(thing, "update", None)) and callable(getattr(thing, "compute", None))


def as_function(evaluator: object) -> Evaluator:
    """A function of the state dict, from a function, a class or a metric object."""
    made: Any = evaluator() if isinstance(evaluator, type) else evaluator
    if is_metric(made):
        return _MetricFunction(made)
    if callable(made):
        function: Evaluator = made
        return function
    raise UsageError(f"{made!r} is no evaluator: it can neither be called nor has it update and compute")


class _MetricFunction:
    """A metric object as a function of the state dict."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def __call__(self, state_dict: Mapping[str, Any]) -> Mapping[str, float]:
        if callable(getattr(self._metric, "reset", None)):
            self._metric.reset()
        self._metric.update(state_dict)
        return named(self._metric.compute(), type(self._metric).__name__.lower())


def named(values: Any, name: str) -> dict[str, Any]:
    """What a metric computed, by name: a mapping as it is, a number under `name`, several as `name.0`, `name.1`."""
    if isinstance(values, Mapping):
        result: dict[str, Any] = {}
        for key, value in values.items():
            result |= named(value, str(key))
        return result
    rows = values.tolist() if callable(getattr(values, "tolist", None)) else values
    if isinstance(rows, list | tuple):
        return {f"{name}.{index}": value for index, value in enumerate(rows)}
    return {name: rows}


def evaluate(function: Evaluator, state_dict: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a state dict, as floats; non-finite ones are kept, they are a finding.

    Raises CkptGuardError where the function returns something else than named numbers.
    """
    return numbers(function(state_dict))


def numbers(metrics: object) -> dict[str, float]:
    """Named values as named floats; CkptGuardError where they are something else."""
    if not isinstance(metrics, Mapping) or not metrics:
        raise CkptGuardError(f"the evaluator returned {type(metrics).__name__}; it must return names with numbers")
    result = {}
    for name, value in metrics.items():
        try:
            result[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise CkptGuardError(f"the evaluator's metric {name!r} is {value!r}, no number") from error
    return result
