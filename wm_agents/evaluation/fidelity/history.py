"""The gap between dream and real return during a training run, read from its folder or its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from wm_agents.system.state import read_state


class _Round(NamedTuple):
    """Dream return and real return of one round of `improve`."""

    round: int
    """The round, or for a curriculum the generation."""
    dream: float
    real: float
    real_std: float | None
    real_steps: int | None
    """Real steps so far; None if unknown."""


class History(NamedTuple):
    """The rounds of a run."""

    source: str
    """The run folder or config.json that was read."""
    rounds: list[_Round]
    horizon: int | None
    """Horizon of the training dreams, to which their returns refer; None if unknown."""
    final_dream: float | None
    """Return of the selected controller in dreams of full length, at the end of the run."""
    final_real: float | None


def read_history(folder: Path) -> History | None:
    """The rounds of a run folder with both scores, or None."""
    summary, state, run = (_read(folder / name) for name in ("summary.json", "state.json", "run.json"))
    history = summary.get("rounds") or state.get("history") or {}
    rounds, steps = [], 0
    for index in sorted(history, key=int):
        stages = history[index]
        steps += sum(int(stage.get("steps", 0)) for stage in stages.values())
        # Old runs call this stage "evolve".
        control, judge = stages.get("control") or stages.get("evolve") or {}, stages.get("judge", {})
        dream = control.get("dream")
        if dream is not None and judge.get("real") is not None:
            rounds.append(_Round(int(index), float(dream), float(judge["real"]), judge.get("std"), steps))
    if not rounds:
        return None
    final = [summary.get(where, {}).get("mean") for where in ("dream", "real")]
    return History(str(folder), rounds, run.get("config", {}).get("horizon"), *final)


def told_history(model: Path) -> History | None:
    """The "rounds" in a model's config.json, as in shipped models, or None.

    Raises:
        ValueError: an entry is invalid.
    """
    file = model / "config.json"
    told = _read(file).get("rounds") or []
    try:
        rounds = [
            _Round(int(r["round"]), float(r["dream"]), float(r["real"]), r.get("std"), r.get("real_steps"))
            for r in told
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f'{file}: "rounds" must be a list of objects with the numbers "round", "dream" and "real", got {told}; '
            'correct "rounds" or remove it from the file'
        ) from error
    if rounds:
        return History(str(file), rounds, None, None, None)
    return None


def find_run(model: Path) -> Path | None:
    """The run folder that contains a model directory: `run/model` or `run/round-03/model`."""
    return next((folder for folder in list(model.resolve().parents)[:2] if (folder / "state.json").is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    if path.is_file():
        return read_state(path)
    return {}
