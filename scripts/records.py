"""Records of reference runs: one small JSON file each in docs/records/<task>/, the source of all result tables.

scripts/keep_run.py writes them from run folders, scripts/baselines.py for references; scripts/results.py reads them.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

from wm_agents.system.files import read_json, write_text

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "records"
KINDS = ("dream", "online", "reference", "random", "transfer")
"""A controller trained in dreams by rounds; a family trained online; a model-free learner in the real environment; the
random policy; fresh controllers in a shipped dream."""


@dataclass(frozen=True)
class Record:
    """One run: what was trained, with which budget, and its score on held-out episodes."""

    task: str
    """A name in `wm_envs.registry.TASKS`, or a Gymnasium id without its version."""
    env: str
    kind: str
    agent: str
    """What was trained, as the tables name it, such as "ensemble, PPO" or "SB3 DQN"."""
    seed: int
    real: dict[str, Any] | None = None
    """mean, std, ci95 and the returns of single episodes; None if the run failed."""
    failed: str | None = None
    """Why the run has no score."""
    dream: dict[str, Any] | None = None
    """mean, std and ci95 of the same controller in its dream."""
    without_sticky: dict[str, Any] | None = None
    """The real score without sticky actions, for games."""
    policies: list[dict[str, Any]] = field(default_factory=list)
    """kind "transfer": one entry per fresh controller."""
    real_steps: int | None = None
    """Agent steps in the real environment."""
    frames_a_step: int = 1
    wall_s: float | None = None
    budget: str = ""
    """kind "reference": what it has in common with the runs it is compared with, "equal steps" or "equal time"."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """By round or evaluation: real_steps and wall_s so far, and those known of real, dream, gap and collected (the mean
    return while collecting, with exploration)."""
    protocol: str = ""
    command: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    started_at: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind != "transfer" and (self.real is None) == (self.failed is None):
            raise ValueError(
                f"a record has either a real score or the reason of a failure, got {self.real=}, {self.failed=}"
            )

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        if self.kind in ("random", "transfer"):
            return self.kind
        what = "" if self.kind == "dream" else f"{self.agent} {self.budget}"
        words = re.sub(r"[^\w-]+", " ", f"{what} seed {self.seed}".lower())
        return "-".join(words.split())


def write_record(record: Record, root: Path = RECORDS) -> Path:
    """Write `record` to its place, one entry a line; empty entries are left out."""
    values = {name: value for name, value in asdict(record).items() if value not in (None, "", [], {})}
    path = root / record.task / f"{record.name}.json"
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{{\n{lines}\n}}\n")
    return path


def read_records(root: Path = RECORDS) -> list[Record]:
    """All records, sorted by task, kind and seed.

    Raises:
        ValueError: a file has unknown entries, or does not lie where its content says.
    """
    known = {f.name for f in fields(Record)}
    records = []
    for path in sorted(root.glob("*/*.json")):
        values = read_json(path, "a record")
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"{path}: unknown entries {', '.join(unknown)}")
        record = Record(**values)
        if (record.task, record.name) != (path.parent.name, path.stem):
            raise ValueError(f"{path} contains {record.task}/{record.name}.json")
        records.append(record)
    return sorted(records, key=lambda r: (r.task, KINDS.index(r.kind), r.agent, r.budget, r.seed))


def without_folders(command: str) -> str:
    """`command` with absolute paths shortened to their last part."""
    return shlex.join(PurePath(word).name if word.startswith("/") else word for word in shlex.split(command))
