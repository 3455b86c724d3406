"""Reads runs for the dashboard: the folders below one, their metrics as they grow, and files that may be shown."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wm_envs.registry import TASKS

DEPTH = 6
"""Folders below the root in which runs are found."""
CHUNK = 2**20
"""Bytes of metrics that are read at once."""
SHOWN = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".webm": "video/webm"}
"""Files that are sent, by suffix."""
MARKS = ("metrics.jsonl", "run.json")
PARTS = 40
MEDIA = 24


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
            raise FileNotFoundError(f"RUNS_DIR must be a folder with runs, but {root} does not exist")
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

    def list(self) -> list[dict[str, Any]]:
        """All runs, the one that was updated last first."""
        found = [self._about(folder) for folder in self._folders(self.root, DEPTH)]
        return sorted(found, key=lambda run: -run["updated"])

    def run(self, name: str) -> dict[str, Any]:
        """What is known of one run: its metrics files, media, settings, state and threshold."""
        folder = self.place(name)
        files = sorted(path for path in folder.rglob("metrics.jsonl") if path.resolve().is_relative_to(self.root))
        media = [
            path for path in folder.rglob("*") if path.suffix in SHOWN and path.resolve().is_relative_to(self.root)
        ]
        media.sort(key=lambda path: -path.stat().st_mtime)
        facts = _json(folder / "run.json")
        return {
            **self._about(folder),
            "parts": [self._name(path) for path in files[:PARTS]],
            "media": [self._name(path) for path in media[:MEDIA]],
            "threshold": _threshold(facts),
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()),
            "free_bytes": shutil.disk_usage(folder).free,
            "budget_gb": _find(facts.get("config"), "max_gb"),
            "summary": _json(folder / "summary.json"),
            "state": {key: value for key, value in _json(folder / "state.json").items() if _is_short(key, value)},
        }

    def metrics(self, name: str, since: int = 0) -> MetricRows:
        """Complete rows of a metrics file from byte `since` on, at most `CHUNK` bytes at once.

        A last line without its newline is left for the next call; lines that are not JSON objects are skipped.
        """
        path = self.place(name)
        if path.name != "metrics.jsonl":
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

    def _folders(self, folder: Path, depth: int) -> Iterator[Path]:
        """Folders of runs; what lies inside of one belongs to it."""
        if any((folder / mark).is_file() for mark in MARKS):
            yield folder
            return
        if depth == 0:
            return
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from self._folders(child, depth - 1)

    def _about(self, folder: Path) -> dict[str, Any]:
        facts = _json(folder / "run.json")
        starts = facts.get("starts")
        last = starts[-1] if isinstance(starts, list) and starts and isinstance(starts[-1], dict) else {}
        stamps = [path.stat().st_mtime for mark in (*MARKS, "state.json") if (path := folder / mark).is_file()]
        updated = max(stamps, default=0.0)
        return {
            "name": self._name(folder),
            "updated": updated,
            "age_s": max(0.0, time.time() - updated),
            "finished": (folder / "summary.json").is_file(),
            "command": str(last.get("command", "")),
            "started": str(last.get("started_at", "")),
            "env": str(_find(facts.get("config"), "id") or _find(facts.get("config"), "environment") or ""),
            "family": str(_find(facts.get("config"), "family") or ""),
        }

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            yield {key: value for key, value in row.items() if isinstance(value, int | float) and abs(value) < 1e300}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty if there is none, or if it is being written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _find(config: Any, name: str) -> Any:
    """The first value of a key in nested tables."""
    if not isinstance(config, dict):
        return None
    if name in config and not isinstance(config[name], dict):
        return config[name]
    return next((value for part in config.values() if (value := _find(part, name)) is not None), None)


def _threshold(facts: dict[str, Any]) -> float | None:
    env_id = _find(facts.get("config"), "id")
    return next((task.threshold for task in TASKS.values() if task.real.id == env_id), None)


def _is_short(key: str, value: Any) -> bool:
    return key != "sha256" and isinstance(value, str | int | float) and len(str(value)) < 80
