"""What a running search has measured so far, on disk, so that a killed one goes on.

Kept are losses of single draws and the curvature, each under a digest of everything that decides it: the weights, the
evaluator with its files and its clean scores, faults, masks, seed. A search that goes on asks the same again and gets
the same answers; one that asks otherwise finds nothing and measures. So an agent, which is deterministic but for its
rewards, plays its episodes once more without evaluating a model.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ckptguard.errors import MismatchError, UsageError
from ckptguard.files import atomic_writer
from ckptguard.search.curvature import Curvature

DRAWS = "draws.jsonl"
SYNC_SECONDS = 0.5


class Journal:
    """An open journal, locked against other processes.

    Attributes:
        remembered: losses that were answered from it.
    """

    def __init__(self, folder: Path | str, resume: bool = False) -> None:
        """Open the journal in a folder, which is made if it is not there; without `resume` what it held is dropped.

        Raises:
            UsageError: another process works on this folder.
            MismatchError: a line that is not the last cannot be read.
        """
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.remembered = 0
        self._file = (self.folder / DRAWS).open("a+b")
        try:
            self._lock()
            if not resume:
                self._clear()
            self._drops = self._read()
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{self.folder}: another search writes here; wait for it, or name another output"
            ) from None

    def _clear(self) -> None:
        self._file.truncate(0)
        for path in self.folder.glob("curvature-*.npz"):
            path.unlink()

    def _read(self) -> dict[tuple[str, int], float]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]  # a process that dies leaves at most one torn line
        found = {}
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                key, trial, drop = json.loads(text)
                found[str(key), int(trial)] = float(drop)
            except (ValueError, TypeError) as error:
                raise MismatchError(
                    f"{self.folder / DRAWS}, line {number}: is no draw of a search ({error}); search without --resume"
                ) from error
        self._file.truncate(len(whole))
        return found

    def drop(self, key: str, trial: int) -> float | None:
        """The loss of a draw, if it was measured before."""
        found = self._drops.get((key, trial))
        self.remembered += found is not None
        return found

    def add(self, key: str, trial: int, drop: float) -> None:
        """Keep the loss of a draw. It outlives this process at once, and the machine after half a second."""
        self._drops[key, trial] = drop
        self._file.write(f"{json.dumps([key, trial, repr(drop)])}\n".encode())
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def curvature(self, key: str) -> Curvature | None:
        """What was kept under a key."""
        path = self._curvature_path(key)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            said = json.loads(str(stored["said"]))
            values = {name: None if at is None else stored[f"value{at}"] for name, at in said["values"]}
        plain = {name: float(one) if one is not None and not one.ndim else one for name, one in values.items()}
        return Curvature(plain, said["samples"], said["source"], said["common"])

    def add_curvature(self, key: str, found: Curvature) -> None:
        """Keep a curvature."""
        arrays: dict[str, Any] = {}
        places = []
        for number, (name, value) in enumerate(found.values.items()):
            places.append((name, None if value is None else number))
            if value is not None:
                arrays[f"value{number}"] = np.asarray(value)
        said = {"values": places, "samples": found.samples, "source": found.source, "common": dict(found.common)}
        content = io.BytesIO()
        arrays["said"] = np.array(json.dumps(said))
        np.savez(content, **arrays)
        with atomic_writer(self._curvature_path(key), overwrite=True) as file:
            file.write(content.getbuffer())

    def _curvature_path(self, key: str) -> Path:
        return self.folder / f"curvature-{key}.npz"

    def remove(self) -> None:
        """Drop it from the disk, where the search has ended and its results are there."""
        self._clear()
        (self.folder / DRAWS).unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
