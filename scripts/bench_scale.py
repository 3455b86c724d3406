"""Throughput of collecting, evaluating and evolving with 1 and 2 workers: processes, and Ray on this machine.

    python scripts/bench_scale.py                        # all, about six minutes
    python scripts/bench_scale.py --what collect --rounds 2

Each figure is the median over rounds, measured by turns on started and warm workers. Bars: 1.7 times as fast with 2
workers as with 1, and Ray at 90 % of processes. Needs the extra `distributed` and two free cores.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from policies.cmaes import CMAConfig
from policies.linear import num_params
from policies.play import EpisodePool, EpisodeTask
from policies.policy import explorer
from policies.pool import Procs, make_pool
from policies.ray_pool import RayCluster
from policies.rollout import EVAL_SEED
from policies.step_count import StepCount
from wm_agents.control.evolve import Dreams
from wm_agents.data.worker import ShardTask, collect_shard
from wm_agents.pretrained import frame_policy, load_dream
from wm_envs.dream import DreamConfig
from wm_envs.registry import TASKS

MODEL = "Dream-CarRacing-v0"
STEPS = 60
"""Agent steps of an episode, so that all tasks are equally long."""
EPISODES = 8
"""Episodes of a measurement."""
SPEC = replace(TASKS["CarRacing"].real, max_episode_steps=STEPS)
EVOLUTION = CMAConfig(population=16, rollouts=32)
HORIZON = 60
EMPTY_TASKS = 400
WORKERS: dict[tuple[str, int], Procs] = {
    **{("processes", num): num for num in (1, 2)},
    **{("ray", num): RayCluster("local", workers=num) for num in (1, 2)},
}
Measure = Callable[[], float]
"""Returns units per second of one measurement."""


def nothing(shared: Any, halt: Any, number: int) -> int:
    return number


@contextmanager
def collecting(procs: Procs) -> Iterator[Measure]:
    """Frames per second of shards of two episodes, as another machine would return them."""
    with tempfile.TemporaryDirectory() as out, make_pool(StepCount(Path(out) / "steps"), procs) as pool:

        def measure() -> float:
            tasks = [ShardTask(SPEC, out, explorer, seed, 2, None, STEPS, 0, 1, STEPS) for seed in range(EPISODES // 2)]
            began = time.perf_counter()
            images = [image for _, image in pool.run(collect_shard, tasks)]
            assert all(isinstance(image, bytes) for image in images)
            sizes["shard, bytes per frame"] = sum(map(len, images)) / (EPISODES * STEPS)
            return EPISODES * STEPS * SPEC.action_repeat / (time.perf_counter() - began)

        yield measure


@contextmanager
def evaluating(procs: Procs) -> Iterator[Measure]:
    """Frames per second of a controller on the latents of a model."""
    with EpisodePool(SPEC, partial(frame_policy, MODEL), procs) as pool:

        def measure() -> float:
            began = time.perf_counter()
            steps = sum(found.steps for found in pool.play([EpisodeTask(EVAL_SEED + i) for i in range(EPISODES)]))
            return steps * SPEC.action_repeat / (time.perf_counter() - began)

        yield measure


@contextmanager
def evolving(procs: Procs) -> Iterator[Measure]:
    """Dreamed steps per second of CMA-ES."""
    saved = load_dream(MODEL)
    dream = replace(saved.dream, horizon=HORIZON) if isinstance(saved.dream, DreamConfig) else DreamConfig()
    dreams = Dreams(saved.model, saved.starts, dream, "fp32", EVOLUTION, None)
    sizes["model and initial latents, bytes"] = len(pickle.dumps(dreams))
    with make_pool(dreams, procs) as pool:
        score = dreams.score_on(pool, lambda weights: weights)
        size = num_params(saved.model.act_space, saved.model.feat_dim)
        candidates = 0.1 * np.random.default_rng(0).standard_normal((EVOLUTION.population, size))

        def measure() -> float:
            before, began = dreams.steps, time.perf_counter()
            score(candidates, 0)
            return (dreams.steps - before) / (time.perf_counter() - began)

        yield measure


@contextmanager
def passing(procs: Procs) -> Iterator[Measure]:
    """Empty tasks per second: what a task costs at most."""
    with make_pool(None, procs) as pool:

        def measure() -> float:
            began = time.perf_counter()
            list(pool.run(nothing, range(EMPTY_TASKS)))
            return EMPTY_TASKS / (time.perf_counter() - began)

        yield measure


WHAT = {
    "collect": ("collecting CarRacing, frames/s", collecting),
    "evaluate": ("evaluating in CarRacing, frames/s", evaluating),
    "evolve": ("evolving in dreams of CarRacing, steps/s", evolving),
    "overhead": ("empty tasks/s", passing),
}
sizes: dict[str, float] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=[*WHAT], default=[*WHAT])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each figure")
    args = parser.parse_args()
    table = Table("what", "processes 1", "2", "ratio", "Ray 1", "2", "ratio", "Ray / processes, 2 workers")
    for name in args.what:
        label, opened = WHAT[name]
        found: dict[tuple[str, int], list[float]] = {key: [] for key in WORKERS}
        for _ in range(args.rounds):
            for key, procs in WORKERS.items():
                with opened(procs) as measure:
                    measure()  # Workers import, load and compile.
                    found[key].append(measure())
        mid = {key: median(values) for key, values in found.items()}
        cells = []
        for kind in ("processes", "ray"):
            one, two = mid[kind, 1], mid[kind, 2]
            cells += [f"{one:,.0f}", f"{two:,.0f}", f"{two / one:.2f}"]
        table.add_row(label, *cells, f"{mid['ray', 2] / mid['processes', 2]:.2f}")
        if name == "overhead":
            print(f"a task costs {1e3 / mid['processes', 1]:.2f} ms in a process, {1e3 / mid['ray', 1]:.2f} ms on Ray")
    Console(width=140).print(table)
    for name, size in sizes.items():
        print(f"object store: {name}: {size:,.0f}")
    cores = len(os.sched_getaffinity(0))
    print(
        f"median of {args.rounds}, {cores} cores ({platform.processor() or platform.machine()}), one thread per worker"
    )


if __name__ == "__main__":
    main()
