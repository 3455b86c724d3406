"""Plays real episodes in parallel processes, to score policies."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TYPE_CHECKING, Any, NamedTuple

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.policy import Policy
from policies.rollout import rollout
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

MakePolicy = Callable[..., Policy]


class Played(NamedTuple):
    """One real episode."""

    job: int
    """Index of its job."""
    seed: int
    ret: float
    steps: int
    """Agent steps, each of at most `spec.action_repeat` frames."""
    term: bool


class Job(NamedTuple):
    """One episode to play: the environment seed and the arguments of `make_policy`."""

    seed: int
    args: tuple[Any, ...] = ()


class Arena:
    """A pool of processes that play real episodes. Use it in a `with` statement, or close it.

    Args:
        make_policy: called in a worker for each job with the arguments of the job. It must be picklable: a
            function of a module, a class, or a `functools.partial` of one.
    """

    def __init__(self, spec: RealSpec, make_policy: MakePolicy, procs: int = 2) -> None:
        if procs < 1:
            raise ValueError(f"procs must be at least 1, got {procs}")
        self.spec = spec
        self.steps = 0
        """Agent steps played so far."""
        self._halt = WORKERS.Event()
        self._pool = ProcessPoolExecutor(
            procs, mp_context=WORKERS, initializer=start_worker, initargs=(Stage(spec, make_policy, self._halt),)
        )

    def play(self, jobs: Iterable[Job]) -> Iterator[Played]:
        """Play all jobs and yield the episodes in the order in which they end.

        Raises:
            RuntimeError: a worker process died. Errors in a worker are raised unchanged.
        """
        futures: dict[Future[Played], Job] = {}
        try:
            for i, job in enumerate(jobs):
                futures[self._pool.submit(play_job, i, job)] = job
            for future in as_completed(futures):
                played = future.result()
                self.steps += played.steps
                yield played
        except BrokenProcessPool as error:
            lost = sorted({job.seed for future, job in futures.items() if future.cancelled() or future.exception()})
            raise RuntimeError(
                f"a worker process for {self.spec.id} died (killed, crashed, out of memory, or the script lacks "
                "`if __name__ == '__main__':`); "
                f"unfinished seeds: {lost[:8]}{' and more' if len(lost) > 8 else ''}"
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Stop the processes. A running episode is dropped at its next step."""
        self._halt.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def play(spec: RealSpec, make_policy: MakePolicy, jobs: Iterable[Job], procs: int = 2) -> Iterator[Played]:
    """Play all jobs in a new `Arena` and yield the episodes in the order in which they end."""
    with Arena(spec, make_policy, procs) as arena:
        yield from arena.play(jobs)


class Stage(NamedTuple):
    """The settings that all jobs of a worker share."""

    spec: RealSpec
    make_policy: MakePolicy
    halt: Event
    """If set, workers drop their episodes."""


_stage: Stage | None = None  # A pool can pass it to a worker only when the worker starts.


def start_worker(stage: Stage) -> None:
    """Set up a process of the pool."""
    global _stage
    _stage = stage
    prepare_worker()


class _Worker(SpawnProcess):
    """A process that ignores Ctrl-C from the start, because its parent handles it."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Inherited by the child.
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers(SpawnContext):
    Process = _Worker


WORKERS = _Workers()
"""The context of pools whose processes call `prepare_worker`."""


def prepare_worker() -> None:
    """Set up this process: one thread, no display, and exit with its parent.

    The processes of the pool already share the cores. This imports nothing heavy.
    """
    os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", OMP_NUM_THREADS="1")
    if (torch := sys.modules.get("torch")) is not None:  # Otherwise torch reads OMP_NUM_THREADS when it is imported.
        torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def play_job(index: int, job: Job) -> Played:
    """Play one episode in a process of the pool."""
    assert _stage is not None, "start_worker() first"
    spec, make_policy, halt = _stage
    policy = make_policy(*job.args)
    envs = SyncVectorEnv([partial(make_real, spec)], autoreset_mode=AutoresetMode.DISABLED)
    ret, steps, term = 0.0, 0, False
    try:
        for step in rollout(envs, policy, seed=job.seed, policy_seed=job.seed):
            if halt.is_set():
                break
            ret, steps, term = ret + float(step.rew[0]), steps + 1, bool(step.term[0])
    finally:
        envs.close()
    return Played(index, job.seed, ret, steps, term)
