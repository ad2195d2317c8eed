"""The evaluator `lm-eval`: tasks of the lm-evaluation-harness, on local data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ckptguard.errors import MissingExtraError, UsageError
from ckptguard.evaluate.language import (
    FOLDER_KEYS,
    causal_model,
    folder,
    in_transformers,
    offline,
    prefix_of,
    tokenizer_of,
)
from ckptguard.evaluate.models import RUN_KEYS, ModelSession
from ckptguard.evaluate.session import Context, Session
from ckptguard.evaluate.settings import Settings
from ckptguard.evaluate.user import numbers


class Harness(ModelSession):
    """Scores a language model with tasks of the lm-evaluation-harness.

    Metrics: `task/metric` as the harness names them (a filter other than `none` is added after a comma), without its
    standard errors. The harness runs its own batches; nothing is reused between trials.
    """

    summary: ClassVar[str] = "tasks of the lm-evaluation-harness on local data"
    keys: ClassVar[Mapping[str, str]] = FOLDER_KEYS | {
        "tasks": "names of tasks, joined by +",
        "include": "folder with YAML files of tasks of your own",
        "limit": "use the first so many documents per task",
        "fewshot": "examples in the prompt (default: the task's own)",
        "batch": "requests per run of the model (default 8)",
        "device": RUN_KEYS["device"],
    }

    def __init__(self, context: Context, path: Path, settings: Settings) -> None:
        harness = _import_harness()
        dtype = settings.choice("dtype", "checkpoint", ("checkpoint", "float32"))
        super().__init__(
            context,
            causal_model(path, context, dtype),
            names=in_transformers(
                prefix_of(path), lambda name: name.endswith((".attn.bias", ".masked_bias", "inv_freq"))
            ),
            device=settings.text("device", "cpu"),
            cache=0,
        )
        self._evaluate = harness.simple_evaluate
        self._tasks: list[str | dict[str, Any] | object] = [*settings.text("tasks").split("+")]
        self._manager = harness.tasks.TaskManager(include_path=settings.text("include", "") or None)
        unknown = [task for task in self._tasks if task not in self._manager.all_tasks]
        if unknown:
            raise UsageError(f"tasks={settings.text('tasks')}: the harness knows no task {unknown[0]!r}; give include=")
        self._limit = settings.optional_integer("limit")
        self._fewshot = settings.optional_integer("fewshot", least=0)
        self._model = harness.models.huggingface.HFLM(
            pretrained=self.module, tokenizer=tokenizer_of(path), batch_size=settings.integer("batch", 8)
        )

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """See `keys`."""
        settings.text("tasks")
        return cls(context, folder(settings), settings)

    def metrics(self) -> dict[str, float]:
        """See the class."""
        found = self._evaluate(
            model=self._model,
            tasks=self._tasks,
            task_manager=self._manager,
            num_fewshot=self._fewshot,
            limit=self._limit,
            bootstrap_iters=0,
            log_samples=False,
        )
        rows = {
            f"{task}/{metric.removesuffix(',none')}": value
            for task, values in found["results"].items()
            for metric, value in values.items()
            if isinstance(value, int | float) and "_stderr" not in metric and metric != "sample_len"
        }
        return numbers(rows)


def _import_harness() -> Any:
    offline()
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise MissingExtraError(
            f"the harness cannot be imported ({error}): pip install 'ckptguard[lm-eval]'"
        ) from error
    return lm_eval
