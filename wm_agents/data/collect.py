"""Collect episodes of a real environment over processes, into shards that outlive any stop."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from policies.pool import WORKERS, WorkerDied, WorkerPool, finished, result_of
from policies.rollout import check_seed
from wm_agents.data.dataset import write_manifest
from wm_agents.data.shard import SUFFIX, TEMPORARY, ShardError, ShardInfo, read_info
from wm_agents.data.worker import Counters, MakePolicy, ShardTask, collect_shard, shard_name
from wm_agents.system.interrupt import deferred_interrupt
from wm_envs.registry import RealSpec

__all__ = ["CollectConfig", "CollectSummary", "MakePolicy", "check_seed", "collect"]

LOCK = ".collect.lock"
STOPPING = "stopping; whole shards are kept"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectConfig:
    """What to collect, where to, and when to stop."""

    spec: RealSpec
    out: str
    """Directory of the dataset; shards that are there already count, so calling again resumes"""
    steps: int
    """Agent steps wanted"""
    seed: int
    """Environment seed of the first episode; the others follow it, all below 1,000,000"""
    procs: int = 2
    """Worker processes; 0 collects in this one"""
    shard_episodes: int = 8
    stall: int | None = None
    """Cut an episode, as a truncation, after this many agent steps without a positive reward"""
    max_steps: int | None = None
    """Cut an episode, as a truncation, when it is so many agent steps long"""
    max_gb: float = 5.0
    """The shards in `out` never take more than this"""
    min_free_gb: float = 1.0
    """The disk always keeps this much free"""

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("procs", 0), ("shard_episodes", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("stall", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 step, or None, got {getattr(self, name)}")
        check_seed(self.seed)


class CollectSummary(NamedTuple):
    """What the seeds from `cfg.seed` on amount to now; `new_steps` and `wall_s` are of this call alone."""

    episodes: int
    steps: int
    frames: int
    """Frames of the environment: steps * action_repeat"""
    bytes: int
    wall_s: float
    stopped: str
    """done | max_gb | free_disk | no_space | interrupted"""
    returns: list[float]
    new_steps: int


def collect(cfg: CollectConfig, make_policy: MakePolicy, *, console: Console | None = None) -> CollectSummary:
    """Collect `cfg.steps` agent steps with processes that write a shard at a time.

    However it stops (done, a limit, a full disk, SIGINT, SIGTERM, SIGKILL), `out` holds whole shards only.

    Args:
        make_policy: called in each worker with its environment; picklable, so a `functools.partial` of a
            module's function.

    Raises:
        ValueError: a seed kept for evaluation is reached, or `out` holds data of another environment.
        RuntimeError: a worker died, or another collector works in `out`. A worker's own error comes as it is.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with _locked(out), deferred_interrupt(STOPPING) as stopping, _worker_environment(), _progress(cfg, console) as show:
        _sweep(out)
        plan = _Plan(cfg)
        old = plan.steps
        try:
            stopped = _full(cfg) or _work(cfg, make_policy, plan, stopping, show)
        finally:
            _sweep(out)
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
    )


def _work(cfg: CollectConfig, make_policy: MakePolicy, plan: _Plan, stopping: Callable[[], bool], show: _Show) -> str:
    """Keep every process busy with a shard until `plan` has enough; the reason for stopping comes back."""
    room = int(cfg.max_gb * 1e9) - _used(Path(cfg.out))
    counters = Counters(WORKERS.Value("q", 0), WORKERS.Value("q", room))
    running: dict[Future[ShardInfo | str], ShardTask] = {}
    stopped, old = "", plan.steps
    pool = WorkerPool(counters, cfg.procs)
    try:
        while True:
            while not stopped and len(running) < max(cfg.procs, 1) and plan.wants_more(len(running)):
                task = plan.next_task(make_policy)
                running[pool.submit(collect_shard, task)] = task
            if not running:
                return stopped or "done"
            done = finished(running, timeout=0.2)
            if stopping():
                return "interrupted"
            for future in done:
                got = result_of(future)
                del running[future]
                if isinstance(got, str):
                    stopped = stopped or got  # No room for this one: finish what runs, start nothing.
                else:
                    plan.add(got)
            show(plan, old, counters.steps.value)
    except WorkerDied as error:
        if stopping():  # The signal reached the workers as well.
            return "interrupted"
        seeds = ", ".join(f"{task.seed} to {task.seed + task.num - 1}" for task in running.values())
        raise RuntimeError(
            f"{cfg.spec.id}, seeds {seeds}: {error}; finished shards in {cfg.out} are safe, collect again to resume"
        ) from error
    finally:
        pool.close()
        for future in running:  # A shard that was being written as the stop came has landed.
            if not future.cancelled() and not future.exception() and not isinstance(future.result(), str):
                plan.add(cast(ShardInfo, future.result()))


class _Plan:
    """Which seeds are in shards already, which come next, and how much that is."""

    def __init__(self, cfg: CollectConfig) -> None:
        self.cfg = cfg
        self.cursor = cfg.seed
        self.shards: list[ShardInfo] = []
        self.steps = 0
        self.found = dict(_find_shards(cfg))
        self._take_found()

    def add(self, shard: ShardInfo) -> None:
        self.shards.append(shard)
        self.steps += shard.num_steps

    def wants_more(self, running: int) -> bool:
        """Whether another shard is needed on top of those that run, going by the mean of those that are done."""
        longest = self.cfg.shard_episodes * (self.cfg.spec.max_episode_steps or 0)
        expect = self.steps / len(self.shards) if self.shards else longest / 2
        return self.steps < self.cfg.steps and self.steps + running * expect < self.cfg.steps

    def next_task(self, make_policy: MakePolicy) -> ShardTask:
        later = [seed for seed in self.found if seed > self.cursor]
        num = min([self.cfg.shard_episodes, *(seed - self.cursor for seed in later)])
        cfg = self.cfg
        task = ShardTask(cfg.spec, cfg.out, make_policy, self.cursor, num, cfg.stall, cfg.max_steps, cfg.min_free_gb)
        check_seed(self.cursor + num - 1)
        self.cursor += num
        self._take_found()
        return task

    def _take_found(self) -> None:
        while self.cursor in self.found and self.steps < self.cfg.steps:
            shard = self.found.pop(self.cursor)
            self.add(shard)
            self.cursor = shard.seeds[-1] + 1  # A seed may have become several episodes.


def _find_shards(cfg: CollectConfig) -> Iterator[tuple[int, ShardInfo]]:
    for path in sorted(Path(cfg.out).glob(shard_name("*") + SUFFIX)):
        try:
            info = read_info(path)
        except ShardError as error:
            log.warning("%s: %s; its seeds are collected again when their turn comes", path, error)
            continue
        want = json.loads(json.dumps(cfg.spec.to_dict()))
        if info.spec != want:
            raise ValueError(f"{path} holds data of {info.spec}, this collector makes {want}; choose another directory")
        yield info.seeds[0], info


def _used(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob(f"*{SUFFIX}"))


def _full(cfg: CollectConfig) -> str:
    """Why nothing can be collected at all, or the empty string."""
    if _used(Path(cfg.out)) >= cfg.max_gb * 1e9:
        return "max_gb"
    if shutil.disk_usage(cfg.out).free < cfg.min_free_gb * 1e9:
        return "free_disk"
    return ""


def _sweep(out: Path) -> None:
    """Remove half-written files; the lock says that nobody is at them."""
    for path in out.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _note(out: Path) -> None:
    try:
        write_manifest(out)
    except OSError as error:  # A full disk must not hide how the collection itself ended.
        log.warning("%s: manifest not written: %s", out, error)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One collector a directory; the lock goes with the process, however that ends."""
    with open(out / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another collector is at work in {out}; wait for it, or choose another directory"
            ) from error
        yield


@contextmanager
def _worker_environment() -> Iterator[None]:
    """What spawned workers inherit: one thread each, no display, no sound."""
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
    """Moves the progress bar."""

    def __init__(self, bar: Progress, task: TaskID, repeat: int) -> None:
        self.bar, self.task, self.repeat = bar, task, repeat
        self.began = time.monotonic()

    def __call__(self, plan: _Plan, old_steps: int, new_steps: int) -> None:
        """Show `new_steps` taken by this call, those in unfinished shards included."""
        speed = new_steps * self.repeat / (time.monotonic() - self.began)
        mb = sum(s.bytes for s in plan.shards) / 1e6
        self.bar.update(self.task, completed=old_steps + new_steps, fps=f"{speed:,.0f}", mb=f"{mb:,.1f}")


@contextmanager
def _progress(cfg: CollectConfig, console: Console | None) -> Iterator[_Show]:
    bar = Progress(
        TextColumn(f"collect {cfg.spec.id}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        TextColumn("{task.fields[fps]} frames/s"),
        TextColumn("{task.fields[mb]} MB"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console or Console(stderr=True),
    )
    with bar:
        yield _Show(bar, bar.add_task("", total=cfg.steps, fps="0", mb="0.0"), cfg.spec.action_repeat)
