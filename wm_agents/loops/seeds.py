"""Seeds of a run: one seed for all parts, and environment seeds that runs do not share."""

from __future__ import annotations

from pathlib import Path

from wm_agents.system.files import read_json

SEEDS_A_ROUND = 20_000
JUDGE_SEED = 900_000
"""First seed for model selection; these seeds are used neither for collection nor for final scores."""
GOLDEN = 0.6180339887
"""Multiples of the golden ratio, modulo 1, stay as far apart as possible."""


def first_env_seed(seed: int, slot: int = SEEDS_A_ROUND) -> int:
    """The environment seed of the first episode that the run `seed` collects, from 1 to `slot`; 1 for run 1.

    Consecutive runs start far apart: at least `slot` / 7 episodes for five runs, `slot` / 19 for ten. Runs with
    the same environment seeds would collect the same random episodes.
    """
    stride = int(slot * GOLDEN) | 1
    return 1 + (seed - 1) * stride % slot


def kept_env_seed(run: Path, seed: int) -> int | None:
    """The first environment seed of the run with `seed` in the folder `run`, or None if there is none to resume.

    Runs of earlier versions, whose collection started at `seed` itself, resume with it.
    """
    file = run / "run.json"
    seeds = {}
    if file.exists():
        seeds = read_json(file, "a run").get("seeds", {})
    collected: int | None = seeds.get("collect")
    if seeds.get("run", collected) == seed:
        return collected
    return None
