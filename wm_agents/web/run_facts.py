"""What the dashboard shows of one run: its settings, state, files, tasks and report, from files alone.

Files of foreign runs may contain anything, so values of other types than expected are left out.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from wm_agents.data.live import LIVE
from wm_agents.evaluation.evaluate import Score
from wm_agents.strips import STRIPS
from wm_agents.web.runs import METRICS, REPORT, SHOWN, Runs, is_text, read_object, updated
from wm_envs.registry import TASKS

PARTS, MEDIA, ROUNDS = 41, 24, 60
"""Metrics files, videos, and rounds with strips that are listed, at most."""
MAX_TEXT = 400


def about(runs: Runs, folder: Path) -> dict[str, Any]:
    """The entry of a run in the list of runs."""
    record = read_object(folder / "run.json")
    starts = record.get("starts")
    last = {}
    if isinstance(starts, list) and starts and isinstance(starts[-1], dict):
        last = starts[-1]
    at, config = updated(folder), record.get("config")
    state = read_object(folder / "state.json")
    tasks = state.get("tasks")
    ended = isinstance(tasks, dict) and bool(tasks) and all(_at(task, "done") is True for task in tasks.values())
    return {
        "name": runs.name(folder),
        "updated": at,
        "age_s": max(0.0, time.time() - at),
        "finished": ended or (folder / "summary.json").is_file(),
        "command": _text(last.get("command")),
        "started": _text(last.get("started_at")),
        "env": _text(_find(config, "id") or _find(config, "environment")),
        "family": _text(_find(config, "family")),
    }


def facts_of(runs: Runs, name: str) -> dict[str, Any]:
    """All that is shown of a run besides its curves, as JSON.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = runs.place(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name[:200]!r} is not a run")
    record, state, files = read_object(folder / "run.json"), read_object(folder / "state.json"), list(_walk(folder))
    config, paths = record.get("config"), [path for path, _ in files]
    stats = dict(files)
    newest = sorted((path for path in paths if path.suffix in SHOWN), key=lambda path: -stats[path].st_mtime)
    media = [path for path in newest if path.name != LIVE and path.parent.name != STRIPS]
    live = next((path for path in newest if path.name == LIVE), None)
    env_id = _find(config, "id") or _find(config, "environment")
    limits = state.get("limits")
    return {
        **about(runs, folder),
        "parts": [runs.name(path) for path in _metrics(folder, paths)],
        "media": [runs.name(path) for path in media[:MEDIA]],
        "strips": _strips(runs, paths),
        "live": None if live is None else runs.name(live),
        "threshold": next((task.threshold for task in TASKS.values() if task.real.id == env_id), None),
        "bytes": sum(stat.st_size for stat in stats.values()),
        "free_bytes": shutil.disk_usage(folder).free,
        "data_gb": _number(_at(limits, "data_gb") or _find(config, "max_gb")),
        "data_bytes": sum(stat.st_size for path, stat in files if path.suffix == ".h5"),
        "ram_gb": _number(_at(_at(record, "starts", -1), "hardware", "ram_gb")),
        "budget_s": _number(_at(state, "plan", "budget_s")),
        "spent_s": _spent(record.get("starts"), updated(folder)),
        "round": _number(state.get("round")),
        "rounds": _number(_at(limits, "rounds")),
        "stage": _text(state.get("stage")),
        "real_steps": _number(state.get("real_steps")),
        "max_real_steps": _number(_find(config, "real_steps")),
        "final": _final(read_object(folder / "summary.json")),
        "tasks": _tasks(config, state),
        "fidelity": _fidelity(runs, paths),
    }


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below `folder` without links, and their status."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if is_text(name))
        for name in filter(is_text, names):
            path = Path(place, name)
            try:
                stat = path.lstat()
            except OSError:  # It has just been removed.
                continue
            if not path.is_symlink():
                yield path, stat


def _metrics(folder: Path, paths: list[Path]) -> list[Path]:
    """The metrics file of the run itself, and those of its last rounds."""
    own, found = folder / METRICS, sorted(path for path in paths if path.name == METRICS)
    return [path for path in found if path == own] + [path for path in found if path != own][1 - PARTS :]


def _spent(starts: Any, until: float) -> float | None:
    """Seconds from the start of a run; None for a resumed one, whose pauses are not known."""
    if not isinstance(starts, list) or len(starts) != 1:
        return None
    try:
        began = datetime.fromisoformat(_text(_at(starts, 0, "started_at")))
        return max(0.0, until - began.timestamp())
    except (ValueError, OverflowError):
        return None


def _strips(runs: Runs, paths: list[Path]) -> list[dict[str, Any]]:
    """The strips of each round or evaluation, the newest last."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(paths):
        if path.parent.name == STRIPS and path.suffix == ".png":
            folders.setdefault(path.parent, []).append(path)
    return [
        {"title": runs.name(place.parent), "files": [runs.name(path) for path in files]}
        for place, files in list(folders.items())[-ROUNDS:]
    ]


def _final(summary: dict[str, Any]) -> dict[str, float]:
    """The held-out score of a finished run."""
    places = {
        "real": ("real", "mean"),
        "std": ("real", "std"),
        "ci95": ("real", "ci95"),
        "episodes": ("real", "episodes"),
        "dream": ("dream", "mean"),
        "real_steps": ("real_steps",),
        "train_wall_s": ("train_wall_s",),
    }
    found = {name: _number(_at(summary, *place)) for name, place in places.items()}
    return {name: value for name, value in found.items() if value is not None}


def _tasks(config: Any, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a curriculum in order, with their evaluations."""
    records, planned = state.get("tasks"), _at(config, "tasks")
    if not isinstance(records, dict) or not isinstance(planned, list):
        return []
    tasks = []
    for entry in planned:
        env_id = _text(_at(entry, 0))
        record = records.get(env_id)
        looks = _at(record, "evaluations")
        evaluations = [row for look in looks if (row := _evaluation(look))] if isinstance(looks, list) else []
        verdict = _text(_at(record, "standing", "verdict"))
        tasks.append(
            {
                "env": env_id,
                "done": _at(record, "done") is True,
                "status": verdict or ("training" if evaluations else "waiting"),
                "threshold": _number(_at(entry, 1)),
                "max_generations": _number(_at(entry, 2)),
                "evaluations": evaluations,
                "final": _number(_at(record, "final", "real")),
                "final_std": _number(_at(record, "final", "std")),
            }
        )
    return tasks


def _evaluation(look: Any) -> dict[str, float | None] | None:
    """One evaluation: generation, mean return with its 95 % interval, dream return; None if it is not one."""
    given = _at(look, "returns")
    returns = []
    if isinstance(given, list):
        returns = [x for x in map(_number, given) if x is not None]
    generation = _number(_at(look, "generation"))
    if not returns or generation is None:
        return None
    score, ci95 = Score(returns), None
    if len(returns) > 1:
        ci95 = score.ci95
    return {
        "generation": generation,
        "mean": score.mean,
        "ci95": ci95,
        "dream": _number(_at(look, "dream_return")),
    }


def _fidelity(runs: Runs, paths: list[Path]) -> dict[str, Any] | None:
    """The sentences of the newest fidelity report, and its page."""
    found = [path for path in paths if path.name == "fidelity.json"]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime)
    report = read_object(newest)
    verdicts, page = report.get("verdicts"), newest.with_name(REPORT)
    facts: dict[str, Any] = {"verdicts": {}, "episodes": _number(report.get("real_episodes")), "page": None}
    if isinstance(verdicts, dict):
        facts["verdicts"] = {_text(k): _text(v) for k, v in verdicts.items()}
    if page in paths:
        facts["page"] = runs.name(page)
    return facts


def _at(value: Any, *keys: str | int) -> Any:
    """The value at nested keys of objects and lists; None if there is none."""
    for key in keys:
        if isinstance(key, str) and isinstance(value, dict):
            value = value.get(key)
        elif isinstance(key, int) and isinstance(value, list) and -len(value) <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def _find(config: Any, name: str) -> Any:
    """The first value of a key in nested tables."""
    if not isinstance(config, dict):
        return None
    if name in config and not isinstance(config[name], dict):
        return config[name]
    return next((value for part in config.values() if (value := _find(part, name)) is not None), None)


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if plain and abs(value) < 1e300 else None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    return ""
