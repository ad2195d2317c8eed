"""Units of work on a pool of threads, in bounded memory, with progress."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Task = TypeVar("Task")
Result = TypeVar("Result")


class Progress(Protocol):
    """Told how far a step has come: its name, units done, units in all."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


def silent(step: str, done: int, total: int) -> None:
    """The progress of those who want none."""


class Room:
    """Memory that is used again: fresh memory comes page by page, which for threads can take longer than the work."""

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """(size,) bytes of any content. Thread-safe."""
        try:
            array = self._free.pop()
        except IndexError:
            return np.empty(size, np.uint8)
        return array[:size] if array.size >= size else np.empty(size, np.uint8)

    def give(self, *arrays: npt.NDArray[np.uint8]) -> None:
        """Take back what nobody looks at any more. Thread-safe."""
        self._free.extend(arrays)


def default_jobs() -> int:
    """Threads that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def run(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    jobs: int | None = None,
    step: str = "",
    total: int = 0,
    progress: Progress = silent,
) -> Iterator[Result]:
    """Results of `function` in the order of `tasks`; at most two tasks per thread are under way or waiting."""
    jobs = jobs or default_jobs()
    done = 0
    if jobs == 1:
        for task in tasks:
            yield function(task)
            done += 1
            progress(step, done, total)
        return
    remaining = iter(tasks)
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(function, task) for task in islice(remaining, 2 * jobs))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in islice(remaining, 1))
                yield result
                done += 1
                progress(step, done, total)
        finally:
            for future in waiting:
                future.cancel()
