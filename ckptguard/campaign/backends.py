"""Where trials run: in this process, on processes or threads of this machine, on Ray or on Dask; all through joblib."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ckptguard.errors import MissingExtraError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("loky", "threading", "ray", "dask")
_AHEAD = 4
"""Tasks per worker that a backend gets at once where it cannot give results one by one."""


class Pool:
    """Workers that stay for the length of a campaign; a context.

    Attributes:
        jobs: how many.
        backend: joblib's name of it.
    """

    def __init__(self, jobs: int | None, backend: str | None) -> None:
        """Start workers.

        Args:
            jobs: None for as many as there are processors, or as a `joblib.parallel_config` around this call says.
            backend: one of BACKENDS; None for what is configured around this call, else loky.
        Raises:
            MissingExtraError: joblib, Ray or Dask is not installed.
        """
        if backend is not None and backend not in BACKENDS:
            raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self._joblib = _import_joblib()
        self._stack = contextlib.ExitStack()
        try:
            if backend == "ray":
                self._stack.enter_context(_ray(jobs))
            elif backend == "dask":
                self._stack.enter_context(_dask(jobs))
            self._configure(jobs, backend)
        except BaseException:
            self._stack.close()
            raise

    def _configure(self, jobs: int | None, backend: str | None) -> None:
        from joblib.parallel import get_active_backend

        if backend is not None:
            self._stack.enter_context(self._joblib.parallel_config(backend=backend, n_jobs=jobs))
        active, configured = get_active_backend()
        wanted = next((number for number in (jobs, configured) if number is not None), -1)
        self.jobs = int(active.effective_n_jobs(wanted))
        self.backend = type(active).__name__.removesuffix("Backend").removesuffix("Distributed").lower()
        self._streams = bool(active.supports_return_generator)
        options: dict[str, Any] = {"n_jobs": wanted, "pre_dispatch": "2*n_jobs"}
        if self._streams:
            options["return_as"] = "generator_unordered"
        self._parallel = self._stack.enter_context(self._joblib.Parallel(**options))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results as they are ready, in any order."""
        delayed = self._joblib.delayed(function)
        if self._streams:
            yield from self._parallel(delayed(item) for item in items)
            return
        for chunk in _chunks(list(items), self.jobs * _AHEAD):
            yield from self._parallel(delayed(item) for item in chunk)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _import_joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingExtraError("campaigns need joblib: pip install 'ckptguard[campaign]'") from error
    return joblib


@contextlib.contextmanager
def _ray(jobs: int | None) -> Iterator[None]:
    """Register Ray with joblib; a Ray that is not running is started on this machine, and stopped in the end."""
    try:
        ray: Any = importlib.import_module("ray")
        ray_joblib: Any = importlib.import_module("ray.util.joblib")
    except ImportError as error:
        raise MissingExtraError("--backend ray needs Ray: pip install 'ckptguard[ray]'") from error
    started = not ray.is_initialized()
    if started:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray, about its own defaults
            ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray_joblib.register_ray()
        yield
    finally:
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _dask(jobs: int | None) -> Iterator[None]:
    """A Dask client: the one that is there, or one with workers on this machine for the time being."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise MissingExtraError("--backend dask needs Dask: pip install 'ckptguard[dask]'") from error
    try:
        distributed.default_client()
    except ValueError:
        with (
            distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster),
        ):
            yield
        return
    yield


@contextlib.contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """BLAS and OpenMP of this process on a number of threads; afterwards they and torch have those that they had.

    Sums are rounded by how they are split, so equal results need equal numbers.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None
    limits = limit_threads(threads)
    try:
        yield
    finally:
        limits.restore_original_limits()
        torch = sys.modules.get("torch")
        if torch is not None and before is not None:
            torch.set_num_threads(before)


def limit_threads(threads: int) -> Any:
    """BLAS and OpenMP of this process on a number of threads until `restore_original_limits` of what is returned."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtraError("campaigns need threadpoolctl: pip install 'ckptguard[campaign]'") from error
    return threadpool_limits(threads)
