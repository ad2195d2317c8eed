"""Sessions: a model in memory whose weights are loaded once, patched sparsely, scored, and put back bit for bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.errors import SpecError, UsageError
from ckptguard.evaluate.settings import Settings
from ckptguard.spec import suggestion

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its values."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return -(-math.prod(self.shape) * self.dtype.bits // 8)


@dataclass(frozen=True)
class Patch:
    """A sparse change of one tensor.

    Attributes:
        elements: (count,) ascending, without duplicates: flat indices of words as masks count them (two per element of
            C64, bytes of the 4- and 6-bit floats).
        words: (count,) the new little-endian words, of the unsigned type as wide as the dtype's words.
    """

    elements: npt.NDArray[np.int64]
    words: npt.NDArray[np.unsignedinteger[Any]]


class Session(ABC):
    """A model in memory, in one process. Built once per worker; `load`, then any number of patch, metrics, undo."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Bytes], *, reference: bool = True) -> None:
        """Set all weights from raw little-endian bytes and forget patches.

        Args:
            reference: these weights are the clean model that later metrics are compared with; a session that needs its
                outputs runs it here. False keeps the one of before; the first load is always the reference.
        Raises:
            UsageError: names or sizes are not those that the session was opened for.
        """

    @abstractmethod
    def patch(self, patches: Mapping[str, Patch]) -> None:
        """Change weights. More patches may follow; `undo` takes them all back."""

    @abstractmethod
    def undo(self) -> None:
        """Bring every weight back to what `load` set, bit for bit."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Scores of the present weights; non-finite values are kept."""

    @abstractmethod
    def digest(self) -> str:
        """XXH3 of the present weights' bytes, hexadecimal: equal before a patch and after its undo."""

    def layer_types(self) -> dict[str, str]:
        """The class of the layer that a tensor belongs to (`Conv2d`), by tensor; empty where no model is known."""
        return {}


@dataclass(frozen=True)
class Context:
    """What a session is opened for.

    Attributes:
        specs: the model's tensors by name.
        framework: `pt` or `np`: the tensors that a user's function gets.
        threads: of torch; None leaves the number that it has.
    """

    specs: Mapping[str, TensorSpec]
    framework: str = "pt"
    threads: int | None = 1


class Kind(Protocol):
    """A class of sessions that can be named in a spec.

    Attributes:
        summary: one line.
        keys: the keys of its spec, each with its meaning.
    """

    summary: ClassVar[str]
    keys: ClassVar[Mapping[str, str]]

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """A session for the given settings; raises SpecError."""
        ...


KINDS: dict[str, str | type[Kind]] = {
    "classification": "ckptguard.evaluate.classification:Classification",
    "lm-eval": "ckptguard.evaluate.harness:Harness",
    "logits": "ckptguard.evaluate.logits:Logits",
    "perplexity": "ckptguard.evaluate.perplexity:Perplexity",
    "sentence": "ckptguard.evaluate.sentence:Sentence",
    "weights": "ckptguard.evaluate.weight_session:WeightSession",
}
"""Every kind of evaluator and where its class is; `register` adds to it."""


def register(name: str, kind: type[Kind]) -> None:
    """Add a kind of evaluator, for this process; a worker that should know it must import the module that calls this.

    Raises UsageError where the name is taken or no plain word.
    """
    if name in KINDS or not name.replace("-", "_").isidentifier():
        raise UsageError(f"evaluator {name!r} cannot be registered: the name is {_what_is_wrong(name)}")
    KINDS[name] = kind


def find_kind(name: str) -> type[Kind]:
    """The class behind a name of `KINDS`, which must be there."""
    place = KINDS[name]
    if not isinstance(place, str):
        return place
    module, _, attribute = place.partition(":")
    return cast("type[Kind]", getattr(import_module(module), attribute))


def open_session(
    evaluator: str | Callable[..., Any] | object,
    specs: Mapping[str, TensorSpec],
    *,
    framework: str = "pt",
    threads: int | None = 1,
) -> Session:
    """A session for an evaluator; `load` comes next.

    Args:
        evaluator: a spec (`weights`, `classification:key=value,...`, `file.py:function`); a function of the state
            dict; a class, made once, whose objects are such functions; or an object with `update` and `compute`.
        specs: the model's tensors by name.
        framework: `pt` or `np`: tensors that a function gets.
        threads: of torch in this process, where it is used; None leaves the number that it has.

    Raises:
        SpecError: the spec names no known kind, or a key is unknown, missing or malformed.
        MissingExtraError: a package that the evaluator needs is not installed.
    """
    from ckptguard.evaluate.user import UserSession, load_object

    context = Context(dict(specs), framework, threads)
    if not isinstance(evaluator, str):
        return UserSession(evaluator, context)
    name, _, rest = evaluator.partition(":")
    if name.strip() in KINDS:
        kind = find_kind(name.strip())
        return kind.from_settings(Settings.parse(name.strip(), rest, kind.keys), context)
    file = evaluator.rpartition(":")[0]
    if file.endswith(".py") or Path(file).is_file():
        return UserSession(load_object(evaluator), context)
    raise SpecError(
        f"unknown evaluator {evaluator!r}{suggestion(name, KINDS)}; known: {', '.join(sorted(KINDS))}, "
        "or a function of yours as file.py:function"
    )


def _what_is_wrong(name: str) -> str:
    return "taken" if name in KINDS else "no plain word of letters, digits, _ and -"
