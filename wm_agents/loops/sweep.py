"""Many runs of `wm improve`: seeds, tasks and settings as a grid, on the cores of this machine or of a Ray cluster.

<out>/
  sweep.json                        the settings, and at the end every run with its score or why it failed
  CartPole/seed-1/                  one run, as `wm improve` leaves it, with the output of the command in log.txt
  CartPole/ppo.lr=0.001/seed-1/     the same in a sweep over settings
  table.md, returns.png             the scores of all seeds, by task and settings
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from policies.pool import Halt, Procs, make_pool
from policies.ray_pool import RayCluster
from wm_agents.errors import ConfigurationError, check_names
from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.statistics import interval, iqm, load_scipy
from wm_agents.loops.recipes import RECIPES
from wm_agents.system.files import read_json, write_json, write_text
from wm_agents.system.run_folder import RunFolder, provenance
from wm_envs.fields import at_least, check_fields

Value = bool | int | float | str
RESULT = "sweep.json"
LOG = "log.txt"
HEADS = ("task and settings", "seeds", "real return", "95 % CI", "IQM", "95 % CI of the IQM", "each seed", "failed")
POLL_S = 0.2
STOP_S = 60.0
"""Time for an interrupted run to save its state."""
OWN = ("task", "env", "seed", "out", "procs", "ray")
"""Flags of `wm improve` that the sweep sets."""


@dataclass(frozen=True)
class SweepConfig:
    """What to run, and on which cores."""

    out: str
    """Folder of the sweep; the same command resumes in it."""
    tasks: tuple[str, ...] = ()
    """Tasks with the settings of shipped dreams, as in `CartPole,Acrobot`."""
    envs: tuple[str, ...] = ()
    """Environments with default settings: Gymnasium ids, or module:Id-v0."""
    seeds: tuple[int, ...] = field(default=(1, 2, 3, 4, 5), metadata=at_least(0))
    """Random seeds; each combination of task and settings runs with every one of them."""
    settings: dict[str, Value] = field(default_factory=dict)
    """Flags of `wm improve` for all runs, as in `'{"rounds": 2, "ppo.lr": 0.001}'`."""
    grid: dict[str, list[Value]] = field(default_factory=dict)
    """Flags of `wm improve` with several values; all combinations run, as in `'{"ppo.lr": [0.001, 0.0003]}'`."""
    cores: int = field(default=1, metadata=at_least(1))
    """Cores of each run."""
    jobs: int | None = field(default=None, metadata=at_least(1))
    """Runs at once; default: as many as the cores allow."""
    ray: str | None = None
    """Ray cluster on which the runs are executed: `auto`, `HOST:PORT` or `local`. All nodes must share `out`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.tasks or self.envs) or not self.seeds:
            raise ConfigurationError("a sweep needs at least one of tasks or envs, and one seed")
        check_names(self.tasks, RECIPES, "the tasks")
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigurationError(f"grid.{name} must be a list of one or more values, got {values!r}")
        flags = [*self.settings, *self.grid]
        if wrong := [name for name in flags if name.replace("-", "_") in OWN]:
            raise ConfigurationError(f"{wrong[0]} is set by the sweep itself; remove it from settings and grid")
        if twice := set(self.settings) & set(self.grid):
            raise ConfigurationError(f"{min(twice)} is in settings and in grid; remove one of them")

    @property
    def workers(self) -> Procs:
        """One worker for each run at a time."""
        if self.ray is not None:
            return RayCluster(self.ray, workers=self.jobs, cores=self.cores)
        return self.jobs or max((os.cpu_count() or 1) // self.cores, 1)

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed, so that an interrupted sweep has every setting with the same seeds."""
        names = [*self.grid]
        for seed in self.seeds:
            for kind, which in [*(("task", t) for t in self.tasks), *(("env", e) for e in self.envs)]:
                for values in product(*self.grid.values()):
                    chosen: dict[str, Value] = dict(zip(names, values))
                    label = ",".join(f"{name}={_text(value)}" for name, value in chosen.items())
                    parts = (part.replace("/", "-") for part in (which.rpartition(":")[2], label) if part)
                    group = "/".join(parts)
                    folder = f"{self.out}/{group}/seed-{seed}"
                    flags: dict[str, Value] = {kind: which, "seed": seed, "out": folder, "procs": self.cores - 1}
                    yield Run(group, seed, folder, {**flags, **self.settings, **chosen})


class Run(NamedTuple):
    """One run of `wm improve`."""

    group: str
    """Task and settings."""
    seed: int
    folder: str
    flags: dict[str, Value]

    @property
    def command(self) -> list[str]:
        given = (word for name, value in self.flags.items() for word in (f"--{name}", _text(value)))
        return [sys.executable, "-m", "wm_agents", "improve", *given]


class Ended(NamedTuple):
    """How a run ended."""

    run: Run
    failed: str | None
    """Why it has no score; None if it has one."""


class Shared(NamedTuple):
    """What all workers know of a sweep."""

    out: str
    mark: str
    """The time at which this call began, by which a machine recognises the folder."""
    cores: int


def sweep(cfg: SweepConfig, console: Console | None = None) -> dict[str, Any]:
    """Run or resume all runs, and return the content of `sweep.json`.

    A run that fails is reported as failed with the last line of its output; the same call tries it again.

    Raises:
        ConfigurationError, ImportError: the settings, or this machine, do not allow it; before work begins.
        KeyboardInterrupt: the sweep was interrupted; all runs are saved.
    """
    load_scipy()
    console = console or Console(stderr=True)
    runs = list(cfg.runs())
    out = Path(cfg.out)
    with RunFolder(out):
        facts = {"settings": {k: v for k, v in asdict(cfg).items() if k not in ("out", "ray", "jobs")}, **provenance()}
        mark = f"{facts['started_at']} {os.getpid()}"
        write_json(out / RESULT, {"mark": mark, **facts})
        ended: dict[int, Ended] = {}
        with make_pool(Shared(str(out.resolve()), mark, cfg.cores), cfg.workers, _check_machine) as pool:
            for index, failed in pool.run(_work, runs):
                ended[index] = Ended(runs[index], failed)
                text = f"{len(ended)}/{len(runs)} {_line(ended[index])}"
                console.print(text, soft_wrap=True, markup=False, highlight=False)
        result = {**facts, **summary_of([ended[index] for index in range(len(runs))])}
        write_json(out / RESULT, {"mark": mark, **result})
        write_text(out / "table.md", markdown_of(result))
        plot(result, out / "returns.png")
    return result


def _check_machine(shared: Shared) -> None:
    """Check that this machine shares the folder of the sweep."""
    file = Path(shared.out) / RESULT
    if not file.exists() or read_json(file, "a sweep").get("mark") != shared.mark:
        raise ValueError(f"there is no {shared.out} here; put it in a folder that all machines share")


def _work(shared: Shared, halt: Halt, run: Run) -> str | None:
    """Run a command to its end; return the last line of its output if it fails."""
    folder = Path(run.folder)
    if (folder / "summary.json").exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(shared.cores)},
            preexec_fn=_stop_with_parent(),
        )
        while process.poll() is None:
            if halt.is_set():
                process.terminate()
                process.wait(STOP_S)
                return "interrupted"
            time.sleep(POLL_S)
    if process.returncode == 0:
        return None
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")


def _stop_with_parent() -> Callable[[], Any]:
    """A function that lets a child receive SIGTERM when this worker dies, so that no run continues unwatched."""
    library = ctypes.CDLL(None, use_errno=True)
    return partial(library.prctl, 1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _line(ended: Ended) -> str:
    run, failed = ended
    if failed is not None:
        return f"{run.group} seed {run.seed}: FAILED: {failed}; see {run.folder}/{LOG}"
    mean: float = read_json(Path(run.folder) / "summary.json", "a summary")["real"]["mean"]
    return f"{run.group} seed {run.seed}: real return {mean:.1f}"


def summary_of(ended: list[Ended]) -> dict[str, Any]:
    """Every run with its score, and by group: mean, 95 % CI (Student), IQM and its bootstrap interval over seeds."""
    rows: list[dict[str, Any]] = []
    for run, failed in ended:
        row: dict[str, Any] = {"group": run.group, "seed": run.seed, "folder": run.folder}
        if failed is None:
            summary = read_json(Path(run.folder) / "summary.json", "a summary")
            row |= {"real": summary["real"]["mean"], "real_steps": summary["real_steps"]}
            row |= {"wall_s": summary["train_wall_s"]}
        else:
            row |= {"failed": failed}
        rows.append(row)
    return {"runs": rows, "groups": {name: _group(name, rows) for name in dict.fromkeys(row["group"] for row in rows)}}


def _group(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [row for row in rows if row["group"] == name]
    scores = [row["real"] for row in mine if "real" in row]
    counts: dict[str, Any] = {"seeds": len(mine), "failed": len(mine) - len(scores)}
    if not scores:
        return counts
    score = Score(scores)
    return counts | {
        "returns": scores,
        "mean": round(score.mean, 3),
        "ci95": round(score.ci95, 3) if len(scores) > 1 else None,
        "iqm": round(iqm(scores), 3),
        "iqm_interval": interval([scores]),
    }


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The table: one row per task and settings, with the heads of `HEADS`."""
    return [_row(name, group) for name, group in result["groups"].items()]


def _row(name: str, group: dict[str, Any]) -> list[str]:
    if "mean" not in group:
        return [name, str(group["seeds"]), "–", "–", "–", "–", "–", str(group["failed"])]
    ci95 = "–" if group["ci95"] is None else f"± {group['ci95']:.1f}"
    bounds = "–" if group["iqm_interval"] is None else "{:.1f} to {:.1f}".format(*group["iqm_interval"])
    returns = ", ".join(f"{score:.1f}" for score in group["returns"])
    numbers = f"{group['mean']:.1f}", ci95, f"{group['iqm']:.1f}", bounds, returns
    return [name, str(group["seeds"]), *numbers, str(group["failed"])]


def markdown_of(result: dict[str, Any]) -> str:
    """The table in Markdown, and the reason of every failure."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows_of(result)]
    if failures := failed_of(result):
        lines += ["", *(f"* {row['group']}, seed {row['seed']}: FAILED: {row['failed']}" for row in failures)]
    return "\n".join(lines) + "\n"


def failed_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that have no score."""
    return [row for row in result["runs"] if "failed" in row]


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the return of every seed, with the mean, its 95 % CI, and the IQM of each group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = {name: group for name, group in result["groups"].items() if "mean" in group}
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, group in enumerate(groups.values()):
        axes.plot(group["returns"], [y] * len(group["returns"]), "o", color="0.6", markersize=4)
        axes.errorbar(group["mean"], y, xerr=group["ci95"] or 0.0, fmt="|", color="C0", markersize=14, capsize=4)
        axes.plot(group["iqm"], y, "D", color="C1", markersize=5)
    axes.set_yticks(range(len(groups)), [*groups])
    axes.invert_yaxis()
    axes.set_xlabel("real return: seeds (grey), mean with 95 % CI (blue), IQM (orange)")
    figure.savefig(str(path), dpi=120)


def _text(value: Value) -> str:
    """A value as it is written after a flag."""
    return str(value) if isinstance(value, str) else json.dumps(value)
