"""The gap between dream and reality along a training run, read from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Round(NamedTuple):
    """One round of `improve`: what its dream promised, and what its controller earned for real."""

    round: int
    dream: float
    real: float
    real_std: float | None
    real_steps: int
    """Real steps spent up to here."""


class History(NamedTuple):
    """The rounds of a run."""

    folder: str
    rounds: list[Round]
    horizon: int | None
    """Steps of the dreams that the controller was evolved in: their returns span these only."""
    final_dream: float | None
    """Of the chosen controller in dreams of full length, as the run's end found it."""
    final_real: float | None


def read_history(folder: Path) -> History | None:
    """The rounds of a run folder that have both scores; None if there are none."""
    summary, state, run = (_read(folder / name) for name in ("summary.json", "state.json", "run.json"))
    history = summary.get("rounds") or state.get("history") or {}
    rounds, steps = [], 0
    for index in sorted(history, key=int):
        stages = history[index]
        steps += sum(int(stage.get("steps", 0)) for stage in stages.values())
        dream, judge = stages.get("evolve", {}).get("dream"), stages.get("judge", {})
        if dream is not None and judge.get("real") is not None:
            rounds.append(Round(int(index), float(dream), float(judge["real"]), judge.get("std"), steps))
    if not rounds:
        return None
    final = [summary.get(where, {}).get("mean") for where in ("dream", "real")]
    return History(str(folder), rounds, run.get("config", {}).get("horizon"), *final)


def find_run(model: Path) -> Path | None:
    """The run folder that a model directory lies in: `run/model` or `run/round-03/model`."""
    return next((folder for folder in list(model.resolve().parents)[:2] if (folder / "state.json").is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    values: Any = json.loads(path.read_text()) if path.is_file() else {}
    return values if isinstance(values, dict) else {}
