"""Real episodes over processes: what a policy really scores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.policy import Policy
from policies.rollout import rollout
from wm_envs.real import make_real
from wm_envs.registry import RealSpec


class Played(NamedTuple):
    """One real episode."""

    job: int
    """Index of the job it answers."""
    seed: int
    ret: float
    steps: int
    """Agent steps; each is `spec.action_repeat` frames or less."""
    term: bool


class Job(NamedTuple):
    """One episode to play: the environment's seed, and what `make_policy` is called with."""

    seed: int
    args: tuple[Any, ...] = ()


def play(spec: RealSpec, make_policy: Callable[..., Policy], jobs: Iterable[Job], procs: int = 2) -> Iterator[Played]:
    """Play every job in a pool of processes and yield the episodes as they end.

    `make_policy` must be a module-level function or a partial of one; it is called in the worker with the job's args.
    An error in a worker, its death included, is raised here.
    """
    if procs < 1:
        raise ValueError(f"procs must be at least 1, got {procs}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(procs, mp_context=context, initializer=quiet_worker) as pool:
        futures = [pool.submit(play_one, spec, make_policy, i, job) for i, job in enumerate(jobs)]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def play_one(spec: RealSpec, make_policy: Callable[..., Policy], index: int, job: Job) -> Played:
    """Play one episode in this process."""
    policy = make_policy(*job.args)
    envs = SyncVectorEnv([partial(make_real, spec)], autoreset_mode=AutoresetMode.DISABLED)
    ret, steps, term = 0.0, 0, False
    for step in rollout(envs, policy, seed=job.seed, policy_seed=job.seed):
        ret, steps, term = ret + float(step.rew[0]), steps + 1, bool(step.term[0])
    envs.close()
    return Played(index, job.seed, ret, steps, term)


def quiet_worker() -> None:
    """One thread a worker and no display; the pool's processes share the cores already."""
    os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
