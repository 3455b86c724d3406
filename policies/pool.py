"""One pool of workers for all work on real episodes: processes that share a setup, or this process.

`procs` means the same everywhere: the number of worker processes, 0 for none. A task is a function of a module, called
as `function(shared, halt, *args)`.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Halt(Protocol):
    """Set when results are no longer wanted; tasks look at it and end early."""

    def is_set(self) -> bool: ...


class WorkerDied(RuntimeError):
    """A worker process died: killed, crashed or out of memory."""

    def __init__(self, lost: Sequence[Any] = ()) -> None:
        super().__init__(
            "a worker process died (killed, crashed, out of memory, or the script lacks `if __name__ == '__main__':`)"
        )
        self.lost = list(lost)
        """The items that were not finished."""


class WorkerPool(Generic[Shared]):
    """Runs tasks in `procs` processes; use it in a `with` statement, or close it.

    Args:
        shared: the first argument of every task; pickled once per worker.
        procs: number of processes, 0 to run tasks in this one.
    """

    def __init__(self, shared: Shared, procs: int) -> None:
        if procs < 0:
            raise ValueError(f"procs must be at least 0, got {procs}; 0 runs everything in this process")
        self.shared = shared
        self.halt: Any = WORKERS.Event() if procs else threading.Event()
        self._executor: ProcessPoolExecutor | None = None
        if procs:
            self._executor = ProcessPoolExecutor(
                procs, mp_context=WORKERS, initializer=_start_worker, initargs=(shared, self.halt)
            )

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Start a task; without processes, run it to its end."""
        if self._executor is not None:
            return self._executor.submit(_call, function, *args)
        future: Future[Result] = Future()
        try:
            future.set_result(function(self.shared, self.halt, *args))
        except Exception as error:
            future.set_exception(error)
        return future

    def run(self, function: Callable[..., Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Run `function` on every item; yield (index, result) in the order in which tasks end.

        Raises:
            WorkerDied: a process died. Errors in a task are raised unchanged.
        """
        if self._executor is None:
            for index, item in enumerate(items):
                yield index, function(self.shared, self.halt, item)
            return
        items = list(items)
        futures: dict[Future[Result], int] = {}
        try:
            for index, item in enumerate(items):
                futures[self._executor.submit(_call, function, item)] = index
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise WorkerDied([items[i] for future, i in futures.items() if _is_lost(future)]) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Stop the processes. Running tasks see `halt`."""
        self.halt.set()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> WorkerPool[Shared]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def finished(running: Iterable[Future[Result]], timeout: float) -> list[Future[Result]]:
    """The tasks that have ended; waits until one has, at most `timeout` seconds."""
    return list(wait(running, timeout=timeout, return_when=FIRST_COMPLETED).done)


def result_of(future: Future[Result]) -> Result:
    """The result of a task that has ended.

    Raises:
        WorkerDied: its process died. The task's own error is raised unchanged.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise WorkerDied from error


def _is_lost(future: Future[Any]) -> bool:
    return future.cancelled() or not future.done() or future.exception() is not None


_setup: tuple[Any, Halt] | None = None  # A pool can pass it to a worker only when the worker starts.


def _start_worker(shared: Any, halt: Halt) -> None:
    global _setup
    _setup = shared, halt
    prepare_worker()


def _call(function: Callable[..., Result], *args: Any) -> Result:
    assert _setup is not None, "_start_worker() first"
    return function(*_setup, *args)


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
"""The context of worker processes; shared counters come from it."""


def prepare_worker() -> None:
    """Set up this process as a worker: one thread, no display, and exit with its parent.

    The processes of the pool already share the cores. This imports nothing heavy.
    """
    os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", OMP_NUM_THREADS="1")
    if (torch := sys.modules.get("torch")) is not None:  # Otherwise torch reads OMP_NUM_THREADS when it is imported.
        torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
