"""The worker of collection: plays the episodes of a shard and writes them, or returns the shard to the caller."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.policy import Policy
from policies.pool import Halt
from policies.rollout import Transition, check_seed, rollout
from policies.step_count import StepCount
from wm_agents.data.episode import Episode, NonFiniteStep, collect_episode, split_episode
from wm_agents.data.live import LiveFrames, LiveView
from wm_agents.data.shard import SUFFIX, ShardInfo, build_shard, land_shard
from wm_agents.errors import FULL_DISK
from wm_envs.real import make_real, own_limit
from wm_envs.registry import RealSpec

LOCK = ".collect.lock"
"""Held by the process that collects into a folder."""
ROOM_LOCK = ".collect.room"
"""Held by the process that writes a shard."""
MakePolicy = Callable[[gym.Env], Policy]
log = logging.getLogger(__name__)


def shard_name(seed: int | str) -> str:
    """The name of the shard whose first episode has `seed`."""
    if isinstance(seed, int):
        return f"seed-{seed:07d}"
    return f"seed-{seed}"


class ShardTask(NamedTuple):
    """`num` episodes with consecutive seeds for one shard."""

    spec: RealSpec
    out: str
    make_policy: MakePolicy
    seed: int
    num: int
    stall: int | None
    max_steps: int | None
    min_free_gb: float
    max_gb: float
    longest: int
    """If neither `max_steps` nor the environment limits an episode, truncate it after N steps, and end the shard"""
    mark: str = ""
    """The content of the lock file in `out`, by which a worker on another machine recognises a shared folder"""
    live: LiveView | None = None
    """Show the episodes as they are played."""


class _Halted(Exception):
    """The parent has stopped the collection."""


class _NoRoom(Exception):
    """A limit would be exceeded; the argument is its name."""


def collect_shard(count: StepCount, halt: Halt, task: ShardTask) -> ShardInfo | bytes | str:
    """Play and write one shard, or return its content if this machine does not share the folder.

    If it cannot be written, return the reason and leave no file.
    """
    try:
        image = build_shard(shard_name(task.seed), _play(task, count, halt), task.spec.to_dict())
    except _Halted:
        return "interrupted"
    return land(task, image) if _is_shared(task) else image


def land(task: ShardTask, image: bytes) -> ShardInfo | str:
    """Write the shard of a task, or return the reason why it cannot be written and leave no file."""
    out = Path(task.out)
    try:
        with open(out / ROOM_LOCK, "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # One writer at a time, so that max_gb is never exceeded.
            _admit(task, len(image))
            return land_shard(out, shard_name(task.seed), image)
    except _NoRoom as limit:
        return str(limit)
    except OSError as error:
        if error.errno in FULL_DISK:
            return "no_space"
        raise


def used_bytes(out: Path) -> int:
    """Bytes of the shards in a folder."""
    return sum(path.stat().st_size for path in out.glob(f"*{SUFFIX}"))


def _is_shared(task: ShardTask) -> bool:
    """Whether `task.out` is the folder of the caller, and not one of the same name on another machine."""
    try:
        return (Path(task.out) / LOCK).read_text(encoding="utf-8") == task.mark
    except OSError:
        return False


def _play(task: ShardTask, count: StepCount, halt: Halt) -> Iterator[Episode]:
    """Play the episodes of the task; with `lives_end`, each life is one episode."""
    envs = SyncVectorEnv([partial(make_real, task.spec)], autoreset_mode=AutoresetMode.DISABLED)
    try:
        policy = task.make_policy(envs.envs[0])
        limit = task.max_steps or own_limit(envs.envs[0].spec)
        most = limit or task.longest
        view = task.live if _is_shared(task) else None
        live = LiveFrames(view, envs.single_observation_space, task.spec.id)
        for seed in range(task.seed, task.seed + task.num):
            check_seed(seed)
            steps = _until(halt, rollout(envs, policy, seed=[seed], policy_seed=seed, count=count), live)
            lives: list[int] = []
            if task.spec.lives_end:
                steps = _counting_lives(steps, envs.envs[0], lives)
            try:
                ep = collect_episode(steps, seed, stall=task.stall, max_steps=most)
            except NonFiniteStep as error:
                raise NonFiniteStep(f"{task.spec.id}: {error}") from error
            yield from split_episode(ep, np.flatnonzero(np.diff(lives) < 0) + 1)
            if limit is None and ep.num_steps == most and ep.trunc:
                log.warning(
                    "%s has no episode limit: the episode of seed %s was truncated after %s steps; set "
                    "max_steps (--max-steps) to collect several episodes",
                    task.spec.id, seed, f"{most:,}",
                )  # fmt: skip
                return
    finally:
        envs.close()


def _until(halt: Halt, transitions: Iterator[Transition], live: LiveFrames) -> Iterator[Transition]:
    while not halt.is_set():  # Before the reset and before every step.
        transition = next(transitions, None)
        if transition is None:
            return
        live.show(transition.obs[0])
        yield transition
    raise _Halted


def _counting_lives(
    transitions: Iterator[Transition], env: gym.Env, lives: list[int]
) -> Generator[Transition, None, None]:
    for transition in transitions:
        lives.append(env.unwrapped.ale.lives())  # type: ignore[attr-defined]
        yield transition


def _admit(task: ShardTask, size: int) -> None:
    """Raise _NoRoom if a shard of `size` bytes would exceed a limit."""
    if shutil.disk_usage(task.out).free - size < task.min_free_gb * 1e9:
        raise _NoRoom("free_disk")
    before = Path(task.out) / (shard_name(task.seed) + SUFFIX)  # Of an earlier try.
    others = used_bytes(Path(task.out)) - (before.stat().st_size if before.exists() else 0)
    if others + size > task.max_gb * 1e9:
        raise _NoRoom("max_gb")
