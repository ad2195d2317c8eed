"""The evaluator `classification`: how often a model names the right class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ckptguard.errors import UsageError
from ckptguard.evaluate.data import DATA_KEYS, Data, load_data
from ckptguard.evaluate.models import MODEL_KEYS, RUN_KEYS, ModelSession, build, first_tensor, stripped
from ckptguard.evaluate.session import Context, Session
from ckptguard.evaluate.settings import Settings
from ckptguard.evaluate.user import is_metric, load_object, named, numbers

TOP = 5


class Classification(ModelSession):
    """Scores a classifier on labelled inputs.

    Metrics, in per cent but for the loss:
        accuracy: largest logit on the right class. Outputs with a NaN or infinite logit count as wrong.
        top5: right class among the five largest; only with more than five classes.
        loss: mean cross entropy, NaN or infinite where an output is.
        top2diff: mean distance of the two largest softmax probabilities; zero for outputs that are not finite.
        mismatch: predictions that differ from the clean model's; outputs that are not finite differ.
        non_finite_outputs: inputs with a NaN or infinite logit.
        class.NAME.accuracy: per class, where asked.
    """

    summary: ClassVar[str] = "accuracy, loss and more of a classifier on labelled inputs"
    keys: ClassVar[Mapping[str, str]] = (
        MODEL_KEYS
        | DATA_KEYS
        | RUN_KEYS
        | {
            "per_class": "yes adds class.NAME.accuracy",
            "metrics": "FILE.py:name of objects with update(logits, labels) and compute(), as those of torchmetrics",
        }
    )

    def __init__(
        self,
        context: Context,
        make: Callable[[], Any],
        data: Data,
        *,
        batch: int = 256,
        per_class: bool = False,
        metric: Any = None,
        **model: Any,
    ) -> None:
        super().__init__(context, make, **model)
        self._labels = data.labels
        self._names = data.names
        self._per_class = per_class
        self._metric = metric
        kind = self.float_type if data.inputs.dtype.is_floating_point else None
        self._batches = [part.to(device=self.device, dtype=kind) for part in data.inputs.split(batch)]
        self._clean: Any = None

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """See `keys`."""
        make = build(settings)
        metric = load_object(settings.text("metrics")) if "metrics" in settings else None
        if metric is not None and (isinstance(metric, type) or not is_metric(metric)):
            metric = metric()
        if metric is not None and not is_metric(metric):
            raise UsageError(f"metrics={settings.text('metrics')}: {metric!r} has no update and compute")
        return cls(
            context,
            make,
            load_data(settings),
            per_class=settings.yes("per_class"),
            metric=metric,
            **run_settings(settings),
        )

    def loaded(self, reference: bool) -> None:
        """Keep the predictions of a new clean model."""
        super().loaded(reference)
        if reference:
            self._clean = _predictions(self._logits())

    def calibration(self, count: int) -> tuple[dict[str, Any], list[Any], Callable[[Any], Any]]:
        """What gradients are taken of.

        Returns:
            The model's own tensors by name of the checkpoint, the first `count` inputs, each a batch of one, and the
            function from such an input to logits.
        """
        inputs = [part[row : row + 1] for part in self._batches for row in range(len(part))][:count]
        return dict(self.bound), inputs, lambda sample: first_tensor(self.module(sample))

    def metrics(self) -> dict[str, float]:
        """See the class."""
        import torch

        logits, labels = self._logits(), self._labels
        finite = logits.isfinite().all(1)
        predictions = _predictions(logits)
        right = predictions == labels
        if self._clean is None or logits.shape[1] <= int(labels.max()) or int(labels.min()) < 0:
            raise UsageError(f"labels are {labels.min()} to {labels.max()}, the model has {logits.shape[1]} classes")
        sane = torch.where(finite[:, None], logits, torch.zeros_like(logits))
        top2 = torch.softmax(sane, 1).topk(min(2, logits.shape[1]), 1).values
        result = {
            "accuracy": _per_cent(right),
            "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
            "top2diff": _per_cent((top2[:, 0] - top2[:, -1]) * finite),
            "mismatch": _per_cent((predictions != self._clean) | ~finite),
            "non_finite_outputs": _per_cent(~finite),
        }
        if logits.shape[1] > TOP:
            result["top5"] = _per_cent((sane.topk(TOP, 1).indices == labels[:, None]).any(1) & finite)
        if self._per_class:
            result |= self._by_class(right)
        return result | self._own(logits)

    def _logits(self) -> Any:
        """(count, classes) float64 on the CPU."""
        import torch

        rows = [
            self.run(index, lambda part=part: first_tensor(self.module(part)))  # type: ignore[misc]
            for index, part in enumerate(self._batches)
        ]
        logits = torch.cat(rows).to(device="cpu", dtype=torch.float64)
        if logits.ndim != 2:
            raise UsageError(f"the model gives {list(logits.shape)}; expected one row of logits per input")
        return logits

    def _by_class(self, right: Any) -> dict[str, float]:
        result = {}
        for label in self._labels.unique().tolist():
            name = self._names[label] if label < len(self._names) else str(label)
            result[f"class.{name}.accuracy"] = _per_cent(right[self._labels == label])
        return result

    def _own(self, logits: Any) -> dict[str, float]:
        """What the user's metric object makes of logits (float32) and labels, batch by batch."""
        if self._metric is None:
            return {}
        if callable(getattr(self._metric, "reset", None)):
            self._metric.reset()
        start = 0
        for part in self._batches:
            self._metric.update(logits[start : start + len(part)].float(), self._labels[start : start + len(part)])
            start += len(part)
        return numbers(named(self._metric.compute(), type(self._metric).__name__.lower()))


def run_settings(settings: Settings) -> dict[str, Any]:
    """The arguments that `MODEL_KEYS` and `RUN_KEYS` give to a session."""
    return {
        "names": stripped(settings.text("strip", "")) if "strip" in settings else lambda name, known: name,
        "unknown": settings.choice("unknown", "refuse", ("refuse", "ignore")),
        "batch": settings.integer("batch", 256),
        "device": settings.text("device", "cpu"),
        "cache": settings.size("cache", "512MiB"),
    }


def _predictions(logits: Any) -> Any:
    """(count,) the class of the largest logit, -1 where a logit is not finite."""
    import torch

    finite = logits.isfinite().all(1)
    return torch.where(finite, torch.nan_to_num(logits).argmax(1), -1)


def _per_cent(values: Any) -> float:
    return float(100 * values.double().mean())
