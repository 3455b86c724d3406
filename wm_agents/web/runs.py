"""Finds runs below a folder, follows their metrics as they grow, and hands out files that may be shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DEPTH = 6
"""Folders below the root in which runs are found."""
CHUNK = 2**20
"""Bytes of metrics that are read at once."""
SHOWN = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".webm": "video/webm"}
"""Files that are sent, by suffix."""
METRICS = "metrics.jsonl"
MARKS = (METRICS, "run.json")
"""Files that make a folder a run."""
REPORT = "fidelity.html"


class MetricRows(NamedTuple):
    """New rows of a metrics file."""

    rows: list[dict[str, Any]]
    at: int
    """The byte after the last complete line, from which to read on."""
    restarted: bool
    """The file is shorter than before: earlier rows are void."""


class Runs:
    """The runs below the folder `root`. Nothing outside of it is read."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"RUNS_DIR must be a folder with runs, but {root} is not a folder")
        self.root = root.resolve()

    def place(self, name: str) -> Path:
        """The file or folder of this relative name.

        Raises:
            FileNotFoundError: it does not exist, or lies outside of the root, also through links.
        """
        try:
            path = (self.root / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # NUL, loops of links, names that are too long.
            raise FileNotFoundError(f"there is no {name[:200]!r} among the runs") from None
        if not path.is_relative_to(self.root) or Path(name).is_absolute():
            raise FileNotFoundError(f"there is no {name[:200]!r} among the runs")
        return path

    def name(self, path: Path) -> str:
        """The relative name of a file or folder below the root."""
        return str(path.relative_to(self.root))

    def newest(self) -> list[Path]:
        """The folders of all runs, the one that was updated last first."""
        return sorted(self._folders(self.root, DEPTH), key=updated, reverse=True)

    def metrics(self, name: str, since: int = 0) -> MetricRows:
        """Complete rows of a metrics file from byte `since` on, at most `CHUNK` bytes at once.

        A last line without its newline is left for the next call; lines that are not JSON objects are skipped.
        """
        path = self.place(name)
        if path.name != METRICS:
            raise FileNotFoundError(f"there are no metrics in {name[:200]!r}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            restarted = since > size
            start = 0 if restarted else max(since, 0)
            file.seek(start)
            data = file.read(CHUNK)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == CHUNK:  # A line longer than that is not one of ours.
            return MetricRows([], start + len(data), restarted)
        return MetricRows(list(_rows(data[:end])), start + end, restarted)

    def shown(self, name: str) -> tuple[Path, str]:
        """A file that may be sent, and its type.

        Raises:
            FileNotFoundError: there is none, or its type is not sent.
        """
        path = self.place(name)
        if path.suffix not in SHOWN or not path.is_file():
            raise FileNotFoundError(f"{name[:200]!r} is not a video or an image")
        return path, SHOWN[path.suffix]

    def report(self, name: str) -> Path:
        """The page of a fidelity report.

        Raises:
            FileNotFoundError: there is none.
        """
        path = self.place(name)
        if path.name != REPORT or not path.is_file():
            raise FileNotFoundError(f"{name[:200]!r} is not a fidelity report")
        return path

    def _folders(self, folder: Path, depth: int) -> Iterator[Path]:
        """Folders of runs; what lies inside of one belongs to it."""
        if any((folder / mark).is_file() for mark in MARKS):
            yield folder
            return
        if depth == 0:
            return
        for child in sorted(folder.iterdir()):
            hidden = child.name.startswith(".") or not is_text(child.name)
            if child.is_dir() and not child.is_symlink() and not hidden:
                yield from self._folders(child, depth - 1)


def updated(folder: Path) -> float:
    """When a run was updated last, in seconds since 1970."""
    files = (folder / mark for mark in (*MARKS, "state.json"))
    return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)


def is_text(name: str) -> bool:
    """Whether a file's name is valid Unicode, which JSON needs."""
    return name.isprintable()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty if there is none, or if it is being written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(found, dict):
        return found
    return {}


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            yield {key: value for key, value in row.items() if isinstance(value, int | float) and abs(value) < 1e300}
