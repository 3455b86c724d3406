"""Counts the agent steps taken in a real environment, across processes and kills."""

from __future__ import annotations

import os
from pathlib import Path

_away: dict[Path, int] | None = None
"""Steps counted by a process that does not share the files, by file; None where the files are written."""


def count_away() -> None:
    """Count in this process's memory from now on: it runs on another machine, or tasks may be repeated elsewhere."""
    global _away
    _away = {}


def steps_away() -> dict[Path, int]:
    """The steps that this process has counted in memory since the last call, by file.

    The process that started the work adds them to its files.
    """
    global _away
    counted, _away = _away or {}, {}
    return counted


class StepCount:
    """The number of agent steps taken in a real environment, kept in a file.

    Every step appends one byte before it is taken, so the size of the file is the count: no process needs a lock, and
    a killed process leaves nothing uncounted. Processes that unpickle it share the file.

    Args:
        path: the file; it is created in an existing folder.
        start: the count of a new file, for steps that were taken before it existed.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self._file: int | None = None
        if start and not path.exists():
            path.touch()
            os.truncate(path, start)  # A hole, which takes no space on the disk.

    def add(self, num: int) -> None:
        """Count `num` steps, before they are taken."""
        if _away is not None:
            _away[self.path] = _away.get(self.path, 0) + num
            return
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(self._file, b"." * num)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @property
    def value(self) -> int:
        """The steps so far, of all processes."""
        if self.path.exists():
            return self.path.stat().st_size
        return 0

    def close(self) -> None:
        """Close the file; `add` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_file": None}  # An open file belongs to one process.
