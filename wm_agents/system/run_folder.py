"""The run folder: settings, versions, metrics and state of a run; used by one process at a time.

runs/<name>/
  run.json        configuration, command, git commit, versions, seeds, hardware
  metrics.jsonl   one JSON object per line: {"step": ..., "train/loss": ...}
  events.*        the same for TensorBoard
  state.json      the progress of the run, for resuming
  real_steps      the count of real steps: a byte each (see `policies.step_count`)
  lock            held by the process that is using the folder
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from wm_agents.system.files import write_text
from wm_agents.system.hardware import describe
from wm_agents.system.processes import rank
from wm_agents.system.replace import naming_full_disk, tidy
from wm_agents.system.state import DamagedState, read_state, write_state
from wm_envs.fields import differing

PACKAGES = (
    "gymnasium", "ale-py", "Box2D", "numpy", "torch", "cma", "h5py", "safetensors", "stable-baselines3",
    "lightning-fabric", "moviepy", "opencv-python-headless",
)  # fmt: skip


STEPS = "real_steps"
"""The file that counts the real steps of a run."""


class FolderInUse(RuntimeError):
    """Another live process holds the run folder."""


class MetricsLog:
    """Writes scalars by step to `metrics.jsonl` and TensorBoard."""

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        """Open the log in folder `path`. Rows after step `keep_until` are removed, to be logged again."""
        from torch.utils.tensorboard import SummaryWriter

        path.mkdir(parents=True, exist_ok=True)
        self.path = path / "metrics.jsonl"
        if self.path.exists():
            _trim(self.path, keep_until)
        self._file = self.path.open("a", encoding="utf-8")
        purge = None
        if keep_until is not None:
            purge = keep_until + 1
        self._writer = SummaryWriter(str(path), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with naming_full_disk(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without an incomplete last line."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _trim(path: Path, keep_until: int | None) -> None:
    """Remove an incomplete last line and the rows after step `keep_until`."""
    rows = [r for r in read_metrics(path) if keep_until is None or r["step"] <= keep_until]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class RunFolder:
    """A locked run folder; close it, or use it in a `with` statement.

    Under torchrun, the first process locks and writes it; the others read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path / "lock") if rank() == 0 else -1
        self._log: MetricsLog | None = None
        file = path / "state.json"
        try:
            self.state: dict[str, Any] = read_state(file) if file.exists() else {}
        except DamagedState:
            self.close()
            raise

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append scalars; names are paths such as `eval/real/return`."""
        if rank() > 0:
            return
        self._log = self._log or MetricsLog(self.path)
        self._log.write(step, values)

    def update(self, **values: Any) -> None:
        """Add `values` (JSON) to `state` and write it atomically."""
        state = {**self.state, **values}
        if rank() == 0:
            write_state(self.path / "state.json", state)
        self.state = state

    def close(self) -> None:
        """Release the folder; a second call does nothing."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def start_run(
    path: str | Path, config: Mapping[str, Any], seeds: Mapping[str, Any], may_change: Collection[str] = ()
) -> RunFolder:
    """Open the run folder `path` and write run.json.

    A folder with a run.json is resumed: its `state` is loaded, and this start is added to its list of starts.
    Other seeds raise an error, as does another configuration except in the fields `may_change`.
    """
    run = RunFolder(Path(path))
    if rank() > 0:
        return run
    try:
        tidy(run.path)
        file = run.path / "run.json"
        wanted = json.loads(json.dumps({"config": config, "seeds": seeds}))
        starts: list[Any] = []
        if file.exists():
            record = read_state(file, "delete the file to resume with the present settings")
            starts = record["starts"]
            _check_same_run(run.path, record, wanted, may_change)
        write_state(file, {**wanted, "starts": [*starts, {**provenance(), "config": wanted["config"]}]})
    except BaseException:
        run.close()
        raise
    return run


def _check_same_run(path: Path, old: dict[str, Any], new: dict[str, Any], may_change: Collection[str]) -> None:
    fixed = [("config", name) for name in old["config"] if name not in may_change]  # Newer fields had their default.
    fixed += [("seeds", name) for name in old["seeds"]]
    before, now = ({f"{part}.{name}": _said(run[part].get(name)) for part, name in fixed} for run in (old, new))
    if changes := differing(before, now):
        raise ValueError(
            f"{path} contains a run with other settings: {changes}; restore them to resume, or use another folder"
        )


def _said(value: Any) -> Any:
    """`value` without empty entries, because newer fields are missing in older files."""
    if not isinstance(value, dict):
        return value
    return {name: _said(part) for name, part in value.items() if part is not None and part is not False}


def provenance() -> dict[str, Any]:
    """When, by which command, from which commit, with which versions, on which hardware."""
    return {
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command(),
        "git": _git_state(),
        "versions": versions(),
        "hardware": describe(),
    }


def _command() -> str:
    """The command line, with the name of the program without its folder."""
    name = Path(sys.argv[0]).name
    return shlex.join(["wm" if name in ("cli.py", "__main__.py") else name, *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Versions that a score depends on; None for packages that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git_state(folder: Path = Path(__file__).parent) -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None outside a checkout."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # The package may be installed inside the checkout of another project.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _lock(path: Path) -> int:
    """Lock `path` until it is closed. The system releases the lock when the process dies.

    A child that a killed process was just starting keeps the lock for some milliseconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    tries = 10
    while not _try_lock(fd):
        tries -= 1
        if tries == 0:
            holder = os.read(fd, 32).decode().strip()
            os.close(fd)
            raise FolderInUse(
                f"{path.parent} is in use by process {holder or '(unknown)'}; wait for it, stop it, or use another "
                "folder"
            )
        time.sleep(0.05)
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
