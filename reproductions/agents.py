"""The papers' search: `python -m reproductions.agents NETWORK METHOD [--episodes N] [--representation fixed:8]`.

The same as `ckptguard search --method METHOD`, for the networks of `reproductions.mask_search`: an episode is one draw
of faults at 1e-2 on every parameter and COUNT training inputs; masks are chosen on as many others, and on common draws.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from ckptguard.search.journal import Journal
from ckptguard.search.run import search
from reproductions.mask_search import masks_of_agent, network

COUNT = 160
TRAINING = {"vdcnn": 20_000, "thucnews": 20_000, "resnet20": 50_000, "resnet18": 50_000}


def main() -> None:
    """Learn, choose, and write the masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=TRAINING)
    parser.add_argument("method")
    parser.add_argument("--episodes", type=int, default=1200)
    parser.add_argument("--share", type=float, default=0.25, help="of all bits that may be protected")
    parser.add_argument("--representation", default="native")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/reproductions"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = network(given.network, given.out)
    parts = TRAINING[given.network] // COUNT
    started, processor = time.perf_counter(), time.process_time()

    def progress(step: str, done: int, total: int) -> None:
        if done % 50 == 0:
            print(f"{given.method} {step} {done}/{total}, {time.perf_counter() - started:.0f} s", flush=True)

    target = masks_of_agent(given.out, given.method, given.network, given.representation)
    with Journal(target.with_suffix(".journal"), resume=True) as journal:
        found = search(
            net.path, evaluator=net.evaluator(), calibrate=net.training(1, parts), selection=net.training(2, parts),
            ber=1e-2, method=given.method, protected_share=given.share, episodes=given.episodes, guard="none",
            representation=given.representation, seed=given.seed, journal=journal, progress=progress,
        )  # fmt: skip
    target.write_text(found.masks.to_json(), encoding="utf-8")
    print(json.dumps(dict(found.masks.provenance), indent=1))
    print(f"{time.process_time() - processor:.0f} s of processor time; written: {target}")


if __name__ == "__main__":
    main()
