"""Curvature: how much the loss of a model bends along every single weight.

F_i is the mean, over calibration inputs, of the squared derivative of -log p(y | x) by weight i, with y drawn from the
model's own prediction: the diagonal of the Fisher information, which is that of the Gauss-Newton matrix. With y from
the data it would vanish where a model fits its training data, although such a model is no less fragile there.
Source: Martens, New insights and perspectives on the natural gradient method, JMLR 21 (2020), sections 5 and 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.errors import UsageError
from ckptguard.evaluate.frameworks import import_torch
from ckptguard.evaluate.user import load_object
from ckptguard.pipeline.work import Progress, silent

Losses = Callable[[Mapping[str, Any]], Iterable[Any]]
"""What a user's file may give: from a state dict of tensors that require gradients, one loss (a scalar) per sample."""


@dataclass(frozen=True)
class Curvature:
    """By tensor an array with a number per element, or one number for all of them; None where it is not known.

    Attributes:
        samples: inputs that it was taken from.
        source: in words, for provenance.
        common: by tensor of several axes the share of its curvature that lies in moving all elements of a row (an index
            of the first axis) by the same.
    """

    values: Mapping[str, npt.NDArray[np.float32] | float | None]
    samples: int
    source: str
    common: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str, elements: int) -> npt.NDArray[np.float32] | float | None:
        """Of the elements of a tensor, as masks count them.

        Elements that no sample reached get the tensor's mean: an embedding of a word that was not seen, or of padding
        whose gradient the framework drops, is not harmless.
        """
        found = self.values.get(name)
        if found is None or isinstance(found, float):
            return found
        if found.size != elements:
            if elements % found.size:
                raise UsageError(f"{name}: curvature of {found.size} elements does not fit {elements}")
            found = np.repeat(found, elements // found.size)
        if not np.isfinite(found).all():
            return None
        mean = np.float32(found.mean(dtype=np.float64))
        return np.where(found == 0, mean, found)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of tensors about which nothing is known."""
        return tuple(name for name, value in self.values.items() if value is None)


def of_session(session: Any, count: int, seed: int = 0, progress: Progress = silent) -> Curvature:
    """Curvature of a loaded `classification` session, from its first `count` inputs, one backward pass each.

    Raises UsageError where the session holds no model that can be differentiated.
    """
    if not hasattr(session, "calibration"):
        raise UsageError(
            "this evaluator has no gradients; give --gradients FILE.py:losses (a function that returns one loss per "
            "sample), or search with --method measured"
        )
    torch = import_torch()
    tensors, inputs, forward = session.calibration(count)
    draws = torch.Generator().manual_seed(seed)
    with _leaves(tensors) as leaves:

        def losses(_: Mapping[str, Any]) -> Iterator[Any]:
            for sample in inputs:
                chances = torch.log_softmax(forward(sample).double(), -1).reshape(-1)
                label = torch.multinomial(chances.detach().exp(), 1, generator=draws).item()
                yield -chances[label]

        sums, common = _squares(losses, leaves, progress, len(inputs))
    values = {name: sums.get(name) for name in session.context.specs}
    return Curvature(
        values, len(inputs), f"Fisher diagonal, {len(inputs)} samples, labels of the model, seed {seed}", common
    )


def of_losses(losses: Losses | str, state: Mapping[str, Any], progress: Progress = silent) -> Curvature:
    """Curvature from a user's function `losses` (or `FILE.py:losses`) of a state dict.

    Args:
        state: tensors of torch by name; the function gets copies that require gradients where they are floating.
    """
    function = load_object(losses) if isinstance(losses, str) else losses
    leaves = {name: tensor.detach().clone() for name, tensor in state.items()}
    wanted = {name: leaf.requires_grad_(True) for name, leaf in leaves.items() if leaf.dtype.is_floating_point}
    counted = [0]

    def counting(given: Mapping[str, Any]) -> Iterator[Any]:
        for loss in function(leaves):
            counted[0] += 1
            yield loss

    sums, common = _squares(counting, wanted, progress, 0)
    if not counted[0]:
        raise UsageError("the function of losses gave none; it returns one scalar per calibration sample")
    values = {name: sums.get(name) for name in state}
    return Curvature(values, counted[0], f"squared gradients of {counted[0]} losses of the user's function", common)


def _squares(
    losses: Losses, leaves: Mapping[str, Any], progress: Progress, total: int
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, float]]:
    """Mean over samples of the squared gradient by every leaf, and the share of it that rows have in common.

    Leaves that no loss depends on are left out.
    """
    torch = import_torch()
    names = list(leaves)
    sums: dict[str, Any] = {}
    rows: dict[str, float] = {}
    count = 0
    with torch.enable_grad(), _explicit():
        for loss in losses(leaves):
            found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
            count += 1
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    flat = gradient.detach().reshape(-1).float()
                    sums.setdefault(name, torch.zeros_like(flat)).addcmul_(flat, flat)
                    if gradient.dim() > 1:
                        table = flat.reshape(gradient.shape[0], -1)
                        rows[name] = rows.get(name, 0.0) + float(table.sum(1).square().sum()) / table.shape[1]
            progress("curvature", count, total or count)
    totals = {name: float(value.sum()) for name, value in sums.items()}
    common = {name: value / totals[name] for name, value in rows.items() if totals[name] > 0}
    return {name: (value / max(count, 1)).cpu().numpy() for name, value in sums.items()}, common


@contextmanager
def _leaves(tensors: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Let floating tensors, running statistics among them, require gradients for a while."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
    before = {name: leaf.requires_grad for name, leaf in leaves.items()}
    try:
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        yield leaves
    finally:
        for name, leaf in leaves.items():
            leaf.requires_grad_(before[name])


def _explicit() -> Any:
    """A mode of torch in which gradients reach what its own functions keep them from.

    Batch norm of evaluation is done in plain arithmetic, as torch's own gives no gradient by the running statistics;
    embeddings forget which row is padding, whose gradient torch drops although its weights are read all the same.
    """
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Explicit(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = dict(kwargs or {})
            if function is functional.batch_norm and not _bound(functional.batch_norm, args, given, "training"):
                return _batch_norm(*(_bound(functional.batch_norm, args, given, name) for name in _NORM))
            if function is functional.embedding:
                args, given = args[:2], given | {"padding_idx": None}
            return function(*args, **given)

    return Explicit()


_NORM = ("input", "running_mean", "running_var", "weight", "bias", "eps")


def _bound(function: Any, args: Any, kwargs: Any, name: str) -> Any:
    """The value of an argument of a call."""
    found = signature(function).bind(*args, **kwargs)
    found.apply_defaults()
    return found.arguments[name]


def _batch_norm(inputs: Any, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
    shape = [1, -1] + [1] * (inputs.dim() - 2)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    result = (inputs - mean.reshape(shape)) * scale.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)
