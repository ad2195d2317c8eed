"""The evaluator `logits`: how far a model's outputs are from the clean model's; needs no labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ckptguard.errors import SpecError, UsageError
from ckptguard.evaluate.classification import run_settings
from ckptguard.evaluate.data import load_data
from ckptguard.evaluate.frameworks import import_torch
from ckptguard.evaluate.models import MODEL_KEYS, RUN_KEYS, ModelSession, build, first_tensor
from ckptguard.evaluate.session import Context, Session
from ckptguard.evaluate.settings import Settings

SEEDED = ("seed", "shape", "count", "high")


class Logits(ModelSession):
    """Compares outputs, rows of logits over the last axis, with those of the clean model on the same inputs.

    Metrics:
        agreement: per cent of rows whose largest logit is at the same place; rows that are not finite disagree.
        kl: mean Kullback-Leibler divergence of softmax, KL(clean || present), in nats; NaN where a row has NaN.
        max_difference: largest |logit - clean logit|; NaN or infinite where an output is.
        non_finite_outputs: per cent of rows with a NaN or infinite logit.
    """

    summary: ClassVar[str] = "agreement with the clean model on given or seeded inputs"
    keys: ClassVar[Mapping[str, str]] = (
        MODEL_KEYS
        | RUN_KEYS
        | {
            "inputs": "FILE.npz (array inputs or x), FILE.csv, an image folder, or FILE.py:function; or else",
            "seed": "of drawn inputs (default 0)",
            "shape": "of drawn inputs with the batch axis first, which is not counted: 1x3x32x32",
            "count": "how many inputs are drawn (default 64)",
            "high": "draw whole numbers below this, for models that take codes; without it, standard normal numbers",
            "limit": "use the first so many inputs",
            "resize": "size of images as 32x32",
            "mean": "to subtract from images",
            "std": "to divide images by",
        }
    )

    def __init__(
        self, context: Context, make: Callable[[], Any], inputs: Any, *, batch: int = 256, **model: Any
    ) -> None:
        super().__init__(context, make, **model)
        kind = self.float_type if inputs.dtype.is_floating_point else None
        self._batches = [part.to(device=self.device, dtype=kind) for part in inputs.split(batch)]
        self._clean: list[Any] = []

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """See `keys`."""
        drawn = [key for key in SEEDED if key in settings]
        if "inputs" in settings and drawn:
            raise SpecError(f"evaluator 'logits': inputs= and {drawn[0]}= exclude each other")
        make = build(settings)
        inputs = load_data(settings, "inputs", labelled=False).inputs if "inputs" in settings else _drawn(settings)
        return cls(context, make, inputs, **run_settings(settings))

    def loaded(self, reference: bool) -> None:
        """Keep the outputs of a new clean model."""
        super().loaded(reference)
        if reference:
            self._clean = list(self._outputs())

    def metrics(self) -> dict[str, float]:
        """See the class."""
        import torch

        rows, same, broken, divergence = 0, 0.0, 0.0, 0.0
        largest = torch.zeros((), dtype=torch.float64)
        for clean, found in zip(self._clean, self._outputs(), strict=True):
            finite = found.isfinite().all(1)
            rows += len(found)
            same += float(((torch.nan_to_num(found).argmax(1) == clean.argmax(1)) & finite).sum())
            broken += float((~finite).sum())
            before, after = clean.double().log_softmax(1), found.double().log_softmax(1)
            divergence += float((before.exp() * (before - after)).sum())
            largest = torch.maximum(largest, (found.double() - clean.double()).abs().max())
        return {
            "agreement": 100 * same / rows,
            "kl": divergence / rows,
            "max_difference": float(largest),
            "non_finite_outputs": 100 * broken / rows,
        }

    def _outputs(self) -> Any:
        """Per batch (rows, classes) on the CPU."""
        for index, part in enumerate(self._batches):
            logits = self.run(index, lambda part=part: first_tensor(self.module(part)))  # type: ignore[misc]
            yield logits.reshape(-1, logits.shape[-1]).cpu()


def _drawn(settings: Settings) -> Any:
    """(count, ...) inputs from torch's generator on the CPU; the same for every worker."""
    torch = import_torch()
    if "shape" not in settings:
        raise SpecError("evaluator 'logits' needs inputs=... or shape=..., as in shape=1x3x32x32,seed=0,count=64")
    shape = (settings.integer("count", 64), *settings.shape("shape")[1:])
    if settings.shape("shape")[0] != 1:
        raise UsageError(f"shape={settings.text('shape')}: the first number is the batch axis and must be 1")
    generator = torch.Generator().manual_seed(settings.integer("seed", 0, least=0))
    if "high" in settings:
        return torch.randint(settings.integer("high"), shape, generator=generator)
    return torch.randn(shape, generator=generator)
