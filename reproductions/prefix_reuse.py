"""What prefix reuse saves: `python -m reproductions.prefix_reuse > docs/results/prefix-reuse.md`.

Trials on the VDCNN for AG News, each with 20 flipped bits in one layer, with and without reuse, in turn.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from ckptguard.checkpoint.safetensors import read_header
from ckptguard.evaluate.models import ModelSession
from ckptguard.evaluate.session import Patch, TensorSpec, open_session
from reproductions import data

LAYERS = ("fc3", "fc1", "block4.conv2", "block4.conv1")
TEXTS, TRIALS, FLIPS = 1000, 8, 20
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "vdcnn_agnews.py"


def sessions() -> list[ModelSession]:
    """A session without and one with reuse, loaded."""
    path = data.folder() / "vdcnn-agnews.safetensors"
    header, raw = read_header(path), np.fromfile(path, np.uint8)
    specs = {tensor.name: TensorSpec(tensor.dtype, tensor.shape) for tensor in header.tensors}
    start = header.data_offset
    made = []
    for cache in ("0", "512MiB"):
        spec = f"classification:model={EXAMPLE}:VDCNN,data={EXAMPLE}:texts,limit={TEXTS},cache={cache}"
        session = open_session(spec, specs, threads=1)
        if not isinstance(session, ModelSession):
            raise TypeError(f"{spec} gave {type(session).__name__}")
        session.load({tensor.name: raw[start + tensor.begin : start + tensor.end] for tensor in header.tensors})
        made.append(session)
    return made


def main() -> None:
    """Print the page."""
    os.environ["AGNEWS_CSV"] = str(data.folder() / "agnews" / "test.csv")
    pair = sessions()
    random = np.random.default_rng(1)
    print(f"""# What prefix reuse saves

`python -m reproductions.prefix_reuse`: VDCNN, the first {TEXTS} test texts of AG News, batches of 256, one thread;
trials of {FLIPS} flipped bits in one layer. CPU seconds of a trial (patch, evaluation, undo), least of those from the
fourth on; the scores of every trial with and without reuse were equal to the last bit.

| layer changed | full run | with reuse | factor | kept for it |
|---|---|---|---|---|""")
    for layer in LAYERS:
        words = pair[0].words[f"{layer}.weight"]
        seconds: list[list[float]] = [[], []]
        before = pair[1].reuse.report.kept_bytes
        for _ in range(TRIALS):
            elements = np.sort(random.choice(words.size, FLIPS, replace=False))
            patch = Patch(elements, words[elements] ^ np.uint32(1 << int(random.integers(32))))
            scores = []
            for session, times in zip(pair, seconds, strict=True):
                start = time.process_time()
                session.patch({f"{layer}.weight": patch})
                scores.append(repr(session.metrics()))
                session.undo()
                times.append(time.process_time() - start)
            if scores[0] != scores[1]:
                raise AssertionError(f"{layer}: {scores[0]} is not {scores[1]}")
        full, reused = (min(times[3:]) for times in seconds)
        kept = (pair[1].reuse.report.kept_bytes - before) / 2**20
        print(f"| `{layer}` | {full:.3f} | {reused:.3f} | {full / reused:.1f} | {kept:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
