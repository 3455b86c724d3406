"""Plays held-out real episodes and keeps them in memory, with frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.play import EpisodeTask, MakePolicy, check_machine
from policies.pool import Halt, Procs, WorkerDied, make_pool
from policies.rollout import EVAL_SEED, Transition, rollout
from wm_agents.data.episode import Episode, collect_episode
from wm_envs.real import make_real
from wm_envs.registry import RealSpec


def record(
    spec: RealSpec, make_policy: MakePolicy, tasks: Sequence[EpisodeTask], procs: Procs = 2
) -> Iterator[Episode]:
    """Play every task, and yield the episodes in the order of the tasks; `procs=0` plays in this process.

    Raises:
        ValueError: a seed below 1,000,000, which training may have used.
        RuntimeError: a worker died. Errors in a worker are raised unchanged.
    """
    if low := [task.seed for task in tasks if task.seed < EVAL_SEED]:
        raise ValueError(f"seeds must be at least {EVAL_SEED:,}, because lower seeds are for training; got {low[0]:,}")
    ready: dict[int, Episode] = {}
    position = 0
    try:
        with make_pool((spec, make_policy), procs, _check_stage) as pool:
            for index, episode in pool.run(_play_task, tasks):
                ready[index] = episode
                while position in ready:
                    yield ready.pop(position)
                    position += 1
    except WorkerDied as error:
        raise RuntimeError(f"{spec.id}: {error}") from error


def _play_episode(spec: RealSpec, make_policy: MakePolicy, task: EpisodeTask, halt: Halt | None = None) -> Episode:
    """Play one episode in this process."""
    with closing(SyncVectorEnv([partial(make_real, spec)], autoreset_mode=AutoresetMode.DISABLED)) as envs:
        steps = rollout(envs, make_policy(*task.args), seed=task.seed, policy_seed=task.seed)
        return collect_episode(_until(halt, steps), task.seed)


def _check_stage(stage: tuple[RealSpec, MakePolicy]) -> None:
    check_machine(*stage)


def _play_task(stage: tuple[RealSpec, MakePolicy], halt: Halt, task: EpisodeTask) -> Episode:
    return _play_episode(*stage, task, halt)


def _until(halt: Halt | None, steps: Iterator[Transition]) -> Iterator[Transition]:
    while halt is None or not halt.is_set():  # Before the reset and before every step.
        step = next(steps, None)
        if step is None:
            return
        yield step
    raise InterruptedError("the recording was interrupted")
