"""The journal of a running campaign: rows as they are finished, on disk before anyone relies on them.

One JSON object a line, appended. A process that dies leaves at most one torn line at the end; the next one cuts it off.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ckptguard.campaign.results import Key, Row, line, parse
from ckptguard.errors import UsageError

NAME = "journal.jsonl"
SYNC_SECONDS = 0.5


class Journal:
    """An open journal, locked against other processes.

    Attributes:
        rows: those it held when it was opened, and those appended since, by key.
    """

    def __init__(self, folder: Path) -> None:
        """Open or begin the journal of a run folder; a torn last line is cut off.

        Raises:
            UsageError: another process works on this folder.
            CkptGuardError: a line that is not the last is no row.
        """
        self.path = folder / NAME
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(
                f"{folder}: another process runs this campaign; wait for it, or give --part I/N and a folder of its own"
            ) from None
        try:
            self.rows = self._read()
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _read(self) -> dict[Key, Row]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        rows = [parse(text, f"{self.path}, line {number}") for number, text in enumerate(whole.splitlines(), 1)]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        return {row.key: row for row in rows}

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows. They outlive this process at once, and the machine after at most half a second or `sync`."""
        new = list(rows)
        self._file.write(b"".join(line(row).encode("utf-8") + b"\n" for row in new))
        self._file.flush()
        self.rows |= {row.key: row for row in new}
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make everything appended so far durable."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()
