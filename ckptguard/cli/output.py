"""Where commands write: one JSON object or text on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import click

from ckptguard.errors import UncorrectableError

_REDRAW_SECONDS = 0.1
_BAR = 30
_PATIENCE_SECONDS = 1.5


class Output:
    """The output of one command. As a context it removes the progress bar in the end.

    Attributes:
        json: print one JSON object and no text.
        quiet: print neither text nor progress; errors and the exit status remain.
    """

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.json = as_json
        self.quiet = quiet
        self._bar = not quiet and sys.stderr.isatty()
        self._drawn = 0.0
        self._patience = threading.Timer(_PATIENCE_SECONDS, self._explain_silence)
        self._patience.daemon = True

    def __enter__(self) -> Output:
        if self._bar:
            self._patience.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patience.cancel()
        self._clear()

    def _explain_silence(self) -> None:
        """Nothing was drawn for a while: very likely kernels are being compiled, which happens once."""
        if not self._drawn and "numba" in sys.modules:
            self._drawn = time.monotonic()
            sys.stderr.write("\r\x1b[Kcompiling kernels, as the first use on a machine does (`ckptguard warmup`) ...")
            sys.stderr.flush()

    def progress(self, step: str, done: int, total: int) -> None:
        """Draw a bar on stderr where that is a terminal."""
        now = time.monotonic()
        if not self._bar or (done < total and now - self._drawn < _REDRAW_SECONDS):
            return
        self._drawn = now
        filled = _BAR * done // max(total, 1)
        bar = "#" * filled + "." * (_BAR - filled)
        sys.stderr.write(f"\r\x1b[K{step[:40]} [{bar}] {100 * done // max(total, 1):3d} %")
        sys.stderr.flush()

    def result(self, record: Mapping[str, Any], text: Callable[[], str]) -> None:
        """Print a result, as JSON, as text, or not at all.

        Args:
            text: called only where it is printed.
        """
        self._patience.cancel()
        self._clear()
        if self.json:
            write(to_json(record))
        elif not self.quiet:
            write(text())

    def note(self, text: str) -> None:
        """Say something on stderr that is no error: what was done on the way, what to know."""
        self._clear()
        if not self.quiet:
            click.echo(text, err=True)

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = 0.0


def to_json(record: Mapping[str, Any]) -> str:
    """Strict JSON: non-finite numbers become text, as JSON has none."""
    return json.dumps(_finite(record), ensure_ascii=False, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def write(text: str) -> None:
    """Print on stdout. If nobody reads it any more (`| head`), the rest is dropped and the exit status stays true."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(error: Exception, exit_status: int, as_json: bool, message: str = "", hint: str = "") -> int:
    """`error: message` on stderr; with `--json` the same as an object on stdout. Returns the exit status."""
    message = message or str(error)
    click.echo(f"error: {message}{hint}", err=True)
    if as_json:
        name = "UsageError" if isinstance(error, click.UsageError) else type(error).__name__
        record: dict[str, Any] = {"class": name, "message": message, "exit_status": exit_status}
        if isinstance(error, UncorrectableError):
            record["report"] = error.report
        write(to_json({"error": record}))
    return exit_status
