"""Held-out real episodes, frames and all, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.play import WORKERS, Job, MakePolicy, prepare_worker
from policies.rollout import EVAL_SEED, Transition, rollout
from wm_agents.data.episode import Episode, collect_episode
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event


def record(spec: RealSpec, make_policy: MakePolicy, jobs: Sequence[Job], procs: int = 2) -> Iterator[Episode]:
    """Play every job, and yield the episodes in the order of the jobs. One process is this one.

    Raises:
        ValueError: a seed below 1,000,000, which training may have used.
        RuntimeError: a worker died. A worker's own error comes as it is.
    """
    if low := [job.seed for job in jobs if job.seed < EVAL_SEED]:
        raise ValueError(f"seeds must be at least {EVAL_SEED:,}: lower ones may have been trained on; got {low[0]:,}")
    if procs == 1:
        for job in jobs:
            yield play_episode(spec, make_policy, job)
        return
    stage = _Stage(spec, make_policy, WORKERS.Event())
    pool = ProcessPoolExecutor(procs, mp_context=WORKERS, initializer=_start_worker, initargs=(stage,))
    try:
        yield from pool.map(_play_job, jobs)
    except BrokenProcessPool as error:
        raise RuntimeError(f"a process that played {spec.id} died (killed, crashed or out of memory)") from error
    finally:
        stage.halt.set()
        pool.shutdown(wait=True, cancel_futures=True)


def play_episode(spec: RealSpec, make_policy: MakePolicy, job: Job, halt: Event | None = None) -> Episode:
    """Play one episode in this process."""
    with closing(SyncVectorEnv([partial(make_real, spec)], autoreset_mode=AutoresetMode.DISABLED)) as envs:
        steps = rollout(envs, make_policy(*job.args), seed=job.seed, policy_seed=job.seed)
        return collect_episode(_until(halt, steps), job.seed)


class _Stage(NamedTuple):
    spec: RealSpec
    make_policy: MakePolicy
    halt: Event
    """Set: nobody waits for the episode any more."""


_stage: _Stage | None = None  # A pool can hand it to its workers only once, as they start.


def _start_worker(stage: _Stage) -> None:
    global _stage
    _stage = stage
    prepare_worker()


def _play_job(job: Job) -> Episode:
    assert _stage is not None, "_start_worker() first"
    return play_episode(_stage.spec, _stage.make_policy, job, _stage.halt)


def _until(halt: Event | None, steps: Iterator[Transition]) -> Iterator[Transition]:
    for step in steps:
        if halt is not None and halt.is_set():
            raise InterruptedError("the recording was stopped")
        yield step
