"""The evaluator `perplexity`: how well a language model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ckptguard.errors import UsageError
from ckptguard.evaluate.language import FOLDER_KEYS, causal_model, folder, in_transformers, prefix_of, tokenizer_of
from ckptguard.evaluate.models import RUN_KEYS, ModelSession
from ckptguard.evaluate.session import Context, Session
from ckptguard.evaluate.settings import Settings


class Perplexity(ModelSession):
    """Scores a language model on a text, in windows that overlap so that tokens have context.

    Metrics:
        perplexity: exp(loss).
        loss: mean negative log likelihood of the tokens, in nats; NaN where an output has NaN.
        tokens: how many were predicted.
    """

    summary: ClassVar[str] = "perplexity of a transformers language model on a text file"
    keys: ClassVar[Mapping[str, str]] = (
        FOLDER_KEYS
        | {
            "text": "text file, UTF-8",
            "window": "tokens that the model sees at once (default: what it can, at most 1024)",
            "stride": "tokens by which windows advance (default: the window, so that none are seen twice)",
            "limit": "use the first so many tokens of the text",
        }
        | {key: RUN_KEYS[key] for key in ("device", "cache")}
    )

    def __init__(
        self, context: Context, path: Path, text: str, settings: Settings, *, dtype: str = "checkpoint"
    ) -> None:
        prefix = prefix_of(path)
        super().__init__(
            context,
            causal_model(path, context, dtype),
            names=in_transformers(prefix, lambda name: name.endswith((".attn.bias", ".masked_bias", "inv_freq"))),
            device=settings.text("device", "cpu"),
            cache=settings.size("cache", "512MiB"),
        )
        tokenizer = tokenizer_of(path)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        self._windows = list(self._cut(ids[: settings.optional_integer("limit", least=2)], settings))

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """See `keys`."""
        path = folder(settings)
        file = Path(settings.text("text"))
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"text={file}: cannot be read as text: {error}") from error
        dtype = settings.choice("dtype", "checkpoint", ("checkpoint", "float32"))
        return cls(context, path, text, settings, dtype=dtype)

    def metrics(self) -> dict[str, float]:
        """See the class."""
        total, tokens = 0.0, 0
        for index, (ids, scored) in enumerate(self._windows):
            logits = self.run(index, lambda ids=ids: self.module(input_ids=ids, use_cache=False).logits)  # type: ignore[misc]
            total += _negative_log_likelihood(logits[0, -scored - 1 : -1], ids[0, -scored:])
            tokens += scored
        loss = total / tokens
        return {"perplexity": math.exp(loss) if not loss > 700 else math.inf, "loss": loss, "tokens": float(tokens)}

    def _cut(self, ids: list[int], settings: Settings) -> Any:
        """Windows, (1, length), each with how many of its last tokens are scored; every token but the first is once."""
        import torch

        if len(ids) < 2:
            raise UsageError(f"text={settings.text('text')}: has {len(ids)} tokens; at least 2 are needed")
        longest = getattr(self.module.config, "max_position_embeddings", None) or 1024
        window = settings.integer("window", min(longest, 1024), least=2)
        stride = settings.integer("stride", window - 1)
        if window > longest or stride >= window:
            raise UsageError(
                f"window={window}, stride={stride}: the model sees {longest} tokens at most, and a stride must be "
                "smaller than the window, so that every token has one before it"
            )
        done = 1
        while done < len(ids):
            end = min(done + stride if done > 1 else window, len(ids))
            yield torch.tensor([ids[max(0, end - window) : end]], device=self.device), end - done
            done = end


def _negative_log_likelihood(logits: Any, targets: Any) -> float:
    import torch

    return float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
