"""The evaluator `sentence`: whether a sentence embedding model still says what the clean one said."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.errors import MissingExtraError, UsageError
from ckptguard.evaluate.language import import_transformers, in_transformers
from ckptguard.evaluate.models import RUN_KEYS, ModelSession
from ckptguard.evaluate.session import Context, Session
from ckptguard.evaluate.settings import Settings

Floats = npt.NDArray[np.float64]


class Sentence(ModelSession):
    """Scores embeddings of pairs of sentences.

    Metrics:
        cosine: mean cosine between a sentence's embedding and that of the clean model; zero where it is not finite.
        spearman: rank correlation over pairs between the cosine of the pair and that by the clean model.
        label_spearman: rank correlation with the column `score`, where there is one.
        non_finite_outputs: per cent of sentences whose embedding has a NaN or infinite component.
    """

    summary: ClassVar[str] = "agreement of sentence embeddings with the clean model's"
    keys: ClassVar[Mapping[str, str]] = {
        "model": "folder of a sentence-transformers model",
        "pairs": "CSV file with the columns sentence1, sentence2 and, if known, score",
        "limit": "use the first so many pairs",
        "batch": "sentences per run of the model (default 32)",
    } | {key: RUN_KEYS[key] for key in ("device", "cache")}

    def __init__(self, context: Context, path: Path, pairs: _Pairs, settings: Settings) -> None:
        self._pairs = pairs
        model = _model(path, settings.text("device", "cpu"))
        super().__init__(
            context,
            lambda: _inner(path, model),
            names=in_transformers("", lambda name: name.endswith("position_ids")),
            device=settings.text("device", "cpu"),
            cache=settings.size("cache", "512MiB"),
        )
        self._model: Any = model.eval()
        size = settings.integer("batch", 32)
        parts = [pairs.sentences[start : start + size] for start in range(0, len(pairs.sentences), size)]
        tokenize = getattr(model, "preprocess", model.tokenize)
        self._batches = [self._on_device(tokenize(part)) for part in parts]
        self._clean: Floats = np.empty((0, 0))

    @classmethod
    def from_settings(cls, settings: Settings, context: Context) -> Session:
        """See `keys`."""
        path = Path(settings.text("model"))
        if not path.is_dir():
            raise UsageError(f"model={path}: is no folder")
        return cls(context, path, _Pairs(Path(settings.text("pairs")), settings.optional_integer("limit")), settings)

    def loaded(self, reference: bool) -> None:
        """Keep the embeddings of a new clean model."""
        super().loaded(reference)
        if reference:
            self._clean = self._embeddings()

    def metrics(self) -> dict[str, float]:
        """See the class."""
        found = self._embeddings()
        finite = np.logical_and.reduce(np.isfinite(found), axis=1)
        found = np.where(finite[:, None], found, 0.0)
        scores, clean = _cosines(found[0::2], found[1::2]), _cosines(self._clean[0::2], self._clean[1::2])
        result = {
            "cosine": float(_cosines(found, self._clean).mean()),
            "spearman": rank_correlation(scores, clean),
            "non_finite_outputs": 100 * float((~finite).mean()),
        }
        if self._pairs.scores is not None:
            result["label_spearman"] = rank_correlation(scores, self._pairs.scores)
        return result

    def _on_device(self, features: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value.to(self.device) if hasattr(value, "to") else value for key, value in features.items()}

    def _embeddings(self) -> Floats:
        """(sentences, width); sentences 2i and 2i + 1 are pair i."""
        rows = [
            self.run(index, lambda part=part: self._model(dict(part))["sentence_embedding"])  # type: ignore[misc]
            for index, part in enumerate(self._batches)
        ]
        return np.concatenate([row.cpu().double().numpy() for row in rows])


class _Pairs:
    """Sentences, two by two, and scores or None."""

    def __init__(self, path: Path, limit: int | None) -> None:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))[:limit]
            self.sentences = [row[name] for row in rows for name in ("sentence1", "sentence2")]
            self.scores = np.array([float(row["score"]) for row in rows]) if rows and "score" in rows[0] else None
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UsageError(
                f"pairs={path}: {error}; expected a CSV file with the columns sentence1, sentence2[, score]"
            ) from error
        if len(rows) < 2:
            raise UsageError(f"pairs={path}: has {len(rows)} pairs; a rank correlation needs at least 2")


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's coefficient, ties with their mean rank; NaN where all values of a side are equal."""
    ranks = [_ranks(one), _ranks(other)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt(np.square(centred[0]).sum() * np.square(centred[1]).sum()))
    return float(centred[0] @ centred[1]) / scale if scale else float("nan")


def _ranks(values: Floats) -> Floats:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    result: Floats = (np.cumsum(counts) - (counts - 1) / 2)[where]
    return result


def _cosines(one: Floats, other: Floats) -> Floats:
    """Row by row; zero where a row is zero or too large for its norm."""
    with np.errstate(all="ignore"):
        result: Floats = (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
    return np.nan_to_num(result, nan=0.0, posinf=0.0, neginf=0.0)


def _model(path: Path, device: str) -> Any:
    try:
        import_transformers("sentence")
        import sentence_transformers
    except ImportError as error:
        raise MissingExtraError("sentence-transformers is missing: pip install 'ckptguard[sentence]'") from error
    return sentence_transformers.SentenceTransformer(str(path), device=device, local_files_only=True)


def _inner(path: Path, model: Any) -> Any:
    """The transformer inside, whose names a checkpoint has."""
    inner = getattr(model[0], "auto_model", None) or getattr(model[0], "model", None)
    if inner is None:
        raise UsageError(f"model={path}: its first module is {type(model[0]).__name__}, no transformer")
    return inner
