"""Real episodes over processes: what a policy really scores."""

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


class Arena:
    """Processes that play real episodes, kept from one `play` to the next; use it in a `with`, or close it.

    Args:
        make_policy: called in a worker for each job, with the job's args; picklable, so a module's function, a class
            or a `functools.partial` of one.
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
        """Play every job and yield the episodes as they end.

        Raises:
            RuntimeError: a worker died. A worker's own error comes as it is.
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
                f"a process that played {self.spec.id} died (killed, crashed, out of memory, or its script lacks "
                "`if __name__ == '__main__':`); "
                f"seeds not played to the end: {lost[:8]}{' and more' if len(lost) > 8 else ''}"
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Stop the processes; an episode that is still going is dropped at its next step."""
        self._halt.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def play(spec: RealSpec, make_policy: MakePolicy, jobs: Iterable[Job], procs: int = 2) -> Iterator[Played]:
    """Play every job in processes of its own and yield the episodes as they end: `Arena`, used once."""
    with Arena(spec, make_policy, procs) as arena:
        yield from arena.play(jobs)


class Stage(NamedTuple):
    """What every job of a worker has in common."""

    spec: RealSpec
    make_policy: MakePolicy
    halt: Event
    """Set: drop what you are doing."""


_stage: Stage | None = None  # A pool can hand it to its workers only once, as they start.


def start_worker(stage: Stage) -> None:
    """Set up a process of the pool."""
    global _stage
    _stage = stage
    prepare_worker()


class _Worker(SpawnProcess):
    """Deaf to Ctrl-C from its first moment on, while it still imports too: it is its parent's to answer."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # A child inherits it.
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers(SpawnContext):
    Process = _Worker


WORKERS = _Workers()
"""The context of pools whose processes call `prepare_worker`."""


def prepare_worker() -> None:
    """One thread and no display for this process, whose life is its parent's.

    The pool's processes share the cores already. Nothing heavy is imported here.
    """
    os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", OMP_NUM_THREADS="1")
    if (torch := sys.modules.get("torch")) is not None:  # Else it reads OMP_NUM_THREADS when it is imported.
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
