"""Collects episodes of a real environment in parallel processes, into shards that survive any
interruption."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from policies.play import check_machine
from policies.pool import Procs, WorkerDied, finished, make_pool
from policies.rollout import check_seed
from policies.step_count import StepCount
from wm_agents.data.dataset import write_manifest
from wm_agents.data.live import LiveView
from wm_agents.data.shard import SUFFIX, ShardError, ShardInfo, read_info
from wm_agents.data.worker import LOCK, MakePolicy, ShardTask, collect_shard, land, shard_name, used_bytes
from wm_agents.system.interrupt import deferred_interrupt
from wm_agents.system.progress import Bar
from wm_agents.system.replace import tidy
from wm_agents.system.run_folder import STEPS
from wm_envs.fields import at_least, check_fields
from wm_envs.registry import RealSpec

__all__ = ["CollectConfig", "CollectSummary", "MakePolicy", "check_seed", "collect"]

STOPPING = "stopping; whole shards are kept"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectConfig:
    """What to collect, where to write it, and when to stop."""

    spec: RealSpec
    out: str
    """Directory of the dataset; existing shards count, so a second call resumes"""
    steps: int = field(metadata=at_least(1))
    """Number of agent steps"""
    seed: int
    """Environment seed of the first episode; the others are consecutive, all below 1,000,000"""
    procs: Procs = field(default=2, metadata=at_least(0))
    """Worker processes, 0 to collect in this one, or a `RayCluster`"""
    shard_episodes: int = field(default=8, metadata=at_least(1))
    stall: int | None = field(default=None, metadata=at_least(1))
    """Truncate an episode after N agent steps without a positive reward"""
    max_steps: int | None = field(default=None, metadata=at_least(1))
    """Truncate an episode after N agent steps; by default only if the environment has no limit, after the share of
    `steps` of one process"""
    max_gb: float = 5.0
    """Maximum size of the shards in `out`"""
    min_free_gb: float = 1.0
    """Minimum free disk space"""
    live: LiveView | None = None
    """Show the episodes of one process as they are played"""

    def __post_init__(self) -> None:
        check_fields(self)
        check_seed(self.seed)


class CollectSummary(NamedTuple):
    """Totals over all seeds from `cfg.seed` up; `new_steps` and `wall_s` count only this call."""

    episodes: int
    steps: int
    frames: int
    """Environment frames: steps * action_repeat"""
    bytes: int
    wall_s: float
    stopped: str
    """done | max_gb | free_disk | no_space | interrupted"""
    returns: list[float]
    new_steps: int
    taken: int
    """Agent steps taken so far by all calls, including those of shards that were interrupted"""


def collect(
    cfg: CollectConfig, make_policy: MakePolicy, *, console: Console | None = None, count: StepCount | None = None
) -> CollectSummary:
    """Collect `cfg.steps` agent steps in worker processes, each of which writes one shard at a time.

    However it stops (done, a limit, a full disk, SIGINT, SIGTERM, SIGKILL), `out` contains only complete
    shards.

    Args:
        make_policy: called in each worker with its environment. It must be picklable, such as a
            `functools.partial` of a function of a module.
        count: counts the steps before they are taken; by default in the file `real_steps` of `out`.

    Raises:
        ValueError: a seed reserved for evaluation is reached, or `out` contains data of another environment.
        RuntimeError: a worker died, or another collection uses `out`. Errors in a worker are raised
            unchanged.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (
        _locked(out) as mark,
        deferred_interrupt(STOPPING) as stopping,
        _worker_environment(),
        _progress(cfg, console) as show,
    ):
        tidy(out)
        plan = _Plan(cfg, mark)
        old = plan.steps
        count = count or StepCount(out / STEPS, start=plan.found_steps)
        try:
            stopped = _full(cfg) or _work(cfg, make_policy, plan, count, stopping, show)
        finally:
            tidy(out)
            _note(out)
    return CollectSummary(
        episodes=sum(s.num_episodes for s in plan.shards),
        steps=plan.steps,
        frames=plan.steps * cfg.spec.action_repeat,
        bytes=sum(s.bytes for s in plan.shards),
        wall_s=time.monotonic() - began,
        stopped=stopped,
        returns=[float(r) for s in sorted(plan.shards, key=lambda s: s.name) for r in s.returns],
        new_steps=plan.steps - old,
        taken=count.value,
    )


def _work(
    cfg: CollectConfig,
    make_policy: MakePolicy,
    plan: _Plan,
    count: StepCount,
    stopping: Callable[[], bool],
    show: _Show,
) -> str:
    """Keep all processes busy until `plan` has enough steps, and return the reason for stopping."""
    running: dict[Future[ShardInfo | bytes | str], ShardTask] = {}
    stopped, old, before = "", plan.steps, count.value
    pool = make_pool(count, cfg.procs, partial(_check_machine, cfg.spec, make_policy))
    try:
        while True:
            while not stopped and len(running) < pool.size and plan.wants_more(len(running)):
                shown = any(task.live for task in running.values())
                task = plan.next_task(make_policy, pool.size, None if shown else cfg.live)
                running[pool.submit(collect_shard, task)] = task
            if not running:
                return stopped or "done"
            done = finished(running, timeout=0.2)
            if stopping():
                return "interrupted"
            for future in done:
                got = pool.result(future)
                task = running.pop(future)
                if isinstance(got, bytes):
                    got = land(task, got)
                if isinstance(got, str):
                    stopped = stopped or got  # No room for this shard: finish the running ones, start no more.
                else:
                    plan.add(got)
            show(plan, old, count.value - before)
    except WorkerDied as error:
        if stopping():  # The workers received the signal too.
            return "interrupted"
        seeds = ", ".join(f"{task.seed} to {task.seed + task.num - 1}" for task in running.values())
        raise RuntimeError(
            f"{cfg.spec.id}, seeds {seeds}: {error}; the shards already written to {cfg.out} are kept. "
            "Run the same command to resume"
        ) from error
    except KeyboardInterrupt:  # The second one.
        pool.kill()
        raise
    finally:
        pool.close()
        for future, task in running.items():  # Keep shards that were completed during the stop.
            if future.done() and not future.cancelled() and not future.exception():
                got = future.result()
                if isinstance(got, bytes):
                    got = land(task, got)
                if isinstance(got, ShardInfo):
                    plan.add(got)


class _Plan:
    """The seeds that are already in shards, the next seeds, and the totals."""

    def __init__(self, cfg: CollectConfig, mark: str) -> None:
        self.cfg, self.mark = cfg, mark
        self.cursor = cfg.seed
        self.shards: list[ShardInfo] = []
        self.steps = 0
        self.found = dict(_find_shards(cfg))
        self.found_steps = sum(shard.num_steps for shard in self.found.values())
        self._take_found()

    def add(self, shard: ShardInfo) -> None:
        self.shards.append(shard)
        self.steps += shard.num_steps

    def wants_more(self, running: int) -> bool:
        """Whether another shard is needed, if the running ones have the mean size of the finished ones."""
        longest = self.cfg.shard_episodes * (self.cfg.spec.max_episode_steps or 0)
        expect = self.steps / len(self.shards) if self.shards else longest / 2
        return self.steps < self.cfg.steps and self.steps + running * expect < self.cfg.steps

    def next_task(self, make_policy: MakePolicy, workers: int, live: LiveView | None) -> ShardTask:
        later = [seed for seed in self.found if seed > self.cursor]
        num = min([self.cfg.shard_episodes, *(seed - self.cursor for seed in later)])
        cfg = self.cfg
        task = ShardTask(
            cfg.spec,
            cfg.out,
            make_policy,
            self.cursor,
            num,
            cfg.stall,
            cfg.max_steps,
            cfg.min_free_gb,
            cfg.max_gb,
            longest=-(-cfg.steps // workers),
            mark=self.mark,
            live=live,
        )
        check_seed(self.cursor + num - 1)
        self.cursor += num
        self._take_found()
        return task

    def _take_found(self) -> None:
        while self.cursor in self.found and self.steps < self.cfg.steps:
            shard = self.found.pop(self.cursor)
            self.add(shard)
            self.cursor = shard.seeds[-1] + 1  # A seed may give several episodes.


def _find_shards(cfg: CollectConfig) -> Iterator[tuple[int, ShardInfo]]:
    for path in sorted(Path(cfg.out).glob(shard_name("*") + SUFFIX)):
        try:
            info = read_info(path)
        except ShardError as error:
            log.warning("%s: %s; its seeds will be collected again", path, error)
            continue
        want = json.loads(json.dumps(cfg.spec.to_dict()))
        if info.spec != want:
            raise ValueError(f"{path} contains data of {info.spec}, expected {want}; choose another directory")
        yield info.seeds[0], info


def _check_machine(spec: RealSpec, make_policy: MakePolicy, count: StepCount) -> None:
    check_machine(spec, make_policy)


def _full(cfg: CollectConfig) -> str:
    """The reason why nothing can be collected, or an empty string."""
    if used_bytes(Path(cfg.out)) >= cfg.max_gb * 1e9:
        return "max_gb"
    if shutil.disk_usage(cfg.out).free < cfg.min_free_gb * 1e9:
        return "free_disk"
    return ""


def _note(out: Path) -> None:
    try:
        write_manifest(out)
    except OSError as error:  # A full disk must not hide the result of the collection.
        log.warning("%s: manifest not written: %s", out, error)


@contextmanager
def _locked(out: Path) -> Iterator[str]:
    """Allow one collection per directory; the system releases the lock when the process ends.

    Yields the content of the lock file, which no other file has.
    """
    with open(out / LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process is collecting into {out}; wait for it, or choose another directory"
            ) from error
        file.truncate(0)
        file.write(mark := secrets.token_hex(8))
        file.flush()
        yield mark


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Environment variables for worker processes: one thread each, no display, no sound."""
    names = {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Show:
    """Updates the progress bar."""

    def __init__(self, bar: Bar, repeat: int) -> None:
        self.bar, self.repeat = bar, repeat
        self.began = time.monotonic()

    def __call__(self, plan: _Plan, old_steps: int, new_steps: int) -> None:
        """Show `new_steps` of this call, including unfinished shards."""
        speed = new_steps * self.repeat / (time.monotonic() - self.began)
        mb = sum(s.bytes for s in plan.shards) / 1e6
        self.bar.update(old_steps + new_steps, f"steps  {speed:,.0f} frames/s  {mb:,.1f} MB")


@contextmanager
def _progress(cfg: CollectConfig, console: Console | None) -> Iterator[_Show]:
    with Bar(f"collect {cfg.spec.id}", cfg.steps, console or Console(stderr=True)) as bar:
        yield _Show(bar, cfg.spec.action_repeat)
