"""One pool of workers for all work on episodes: processes that share a setup, or this process.

`procs` means the same everywhere: the number of worker processes, 0 for none, or workers elsewhere, such as those of
`policies.ray_pool.RayCluster`. Only `make_pool` looks at which it is. A task is a function of a module, called as
`function(shared, halt, *args)`.

An environment may hang or end its process. A worker that looks at `halt` once and then not again for the number of
seconds in the environment variable WM_STEP_TIMEOUT (300 by default, 0 for no limit) is killed, and so are all workers
when Ctrl-C is pressed while they are being stopped.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


TIMEOUT = "WM_STEP_TIMEOUT"
"""Name of the environment variable with the longest time, in seconds, between two looks of a task at `halt`."""


class Halt(Protocol):
    """Set when results are no longer wanted; tasks look at it before every step and end early."""

    def is_set(self) -> bool: ...


class WorkerDied(RuntimeError):
    """A worker process died: killed, crashed or out of memory."""

    def __init__(self, lost: Sequence[Any] = (), why: str = "") -> None:
        super().__init__(
            why
            or "a worker process died (killed, crashed, out of memory, or the script lacks "
            "`if __name__ == '__main__':`)"
        )
        self.lost = list(lost)
        """The items that were not finished."""


class Pool(Protocol):
    """Runs tasks on workers; use it in a `with` statement, or close it."""

    @property
    def size(self) -> int:
        """Number of tasks that run at once; it may grow."""

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Start a task; without workers, run it to its end."""

    def run(self, function: Callable[..., Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Run `function` on every item; yield (index, result) in the order in which tasks end.

        Raises:
            WorkerDied: a worker was lost for good. Errors in a task are raised unchanged.
        """

    def result(self, future: Future[Result]) -> Result:
        """The result of a task that has ended.

        Raises:
            WorkerDied: its worker was lost for good. The task's own error is raised unchanged.
        """

    def close(self) -> None:
        """Stop the workers. Running tasks see `halt`; if waiting for them is interrupted, they are killed."""

    def kill(self) -> None:
        """Kill the workers without waiting for their steps."""

    def __enter__(self) -> Pool: ...

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None: ...


Check = Callable[[Any], None]
"""Called with what the tasks share, on every other machine, before work begins; raises what that machine lacks."""


@runtime_checkable
class Workers(Protocol):
    """Workers elsewhere, which make pools for all functions that take `procs`."""

    def pool(self, shared: Any, check: Check | None) -> Pool: ...


Procs = int | Workers
"""Number of worker processes on this machine, 0 to work in this process, or workers elsewhere."""


def make_pool(shared: Any, procs: Procs, check: Check | None = None) -> Pool:
    """The pool that `procs` describes.

    Args:
        shared: the first argument of every task; it reaches every worker once.
        check: called with `shared` on every other machine before work begins.

    Raises:
        ValueError, RuntimeError: the workers cannot be used; one line with the reason.
    """
    return WorkerPool(shared, procs) if isinstance(procs, int) else procs.pool(shared, check)


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
        self.size = max(procs, 1)
        self.halt: Any = WORKERS.Event() if procs else threading.Event()
        self._executor: ProcessPoolExecutor | None = None
        self._context = _Workers()
        self._limit = step_limit()
        self._looks: Any = ()  # When each worker looked at `halt`; 0 outside of tasks.
        self._stuck = False
        self._closed = threading.Event()
        if procs:
            self._looks = self._context.RawArray("d", procs)
            slots = self._context.Value("i", 0)
            self._executor = ProcessPoolExecutor(
                procs,
                mp_context=self._context,
                initializer=_start_worker,
                initargs=(shared, self.halt, self._looks, slots),
            )
            if self._limit:
                threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Start a task; without processes, run it to its end."""
        if self._executor is not None:
            return self._executor.submit(_call, function, *args)
        future: Future[Result] = Future()
        try:
            future.set_result(function(self.shared, self.halt, *args))
        except Exception as error:
            future.set_exception(error)
        except SystemExit as error:
            future.set_exception(portable(error))
        return future

    def run(self, function: Callable[..., Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Run `function` on every item; yield (index, result) in the order in which tasks end.

        Raises:
            WorkerDied: a process died. Errors in a task are raised unchanged.
        """
        if self._executor is None:
            for index, item in enumerate(items):
                yield index, self.submit(function, item).result()
            return
        items = list(items)
        futures: dict[Future[Result], int] = {}
        try:
            for index, item in enumerate(items):
                futures[self._executor.submit(_call, function, item)] = index
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise self._died([items[i] for future, i in futures.items() if _is_lost(future)]) from error
        except KeyboardInterrupt:
            futures.clear()  # The workers are killed next; before Python 3.12, cancelled tasks break the executor then.
            raise
        finally:
            for future in futures:
                future.cancel()

    def result(self, future: Future[Result]) -> Result:
        """The result of a task that has ended.

        Raises:
            WorkerDied: its process died. The task's own error is raised unchanged.
        """
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._died() from error

    def close(self) -> None:
        """Stop the processes. Running tasks see `halt`; if waiting for them is interrupted, they are killed."""
        self.halt.set()
        self._closed.set()
        if self._executor is None:
            return
        try:
            self._executor.shutdown(wait=True, cancel_futures=True)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the processes without waiting for their steps."""
        for process in self._context.started:
            if process.is_alive():
                process.kill()

    def _watch(self) -> None:
        """Kill the processes when one has not looked at `halt` for too long."""
        while not self._closed.wait(min(self._limit / 4, 1.0)):
            looks = [look for look in self._looks if look]
            if looks and time.monotonic() - min(looks) > self._limit:
                self._stuck = True
                self.kill()
                return

    def _died(self, lost: Sequence[Any] = ()) -> WorkerDied:
        if not self._stuck:
            return WorkerDied(lost)
        why = (
            f"a step or reset took longer than {self._limit:g} s, so the workers were killed; mend the environment, or "
            f"set {TIMEOUT} to more seconds (0: no limit)"
        )
        return WorkerDied(lost, why)

    def __enter__(self) -> WorkerPool[Shared]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is KeyboardInterrupt:
            self.kill()
        self.close()


def finished(running: Iterable[Future[Result]], timeout: float) -> list[Future[Result]]:
    """The tasks that have ended; waits until one has, at most `timeout` seconds."""
    return list(wait(running, timeout=timeout, return_when=FIRST_COMPLETED).done)


def _is_lost(future: Future[Any]) -> bool:
    return future.cancelled() or not future.done() or future.exception() is not None


def step_limit() -> float:
    """The longest time, in seconds, between two looks of a task at `halt`; 0 for no limit."""
    text = os.environ.get(TIMEOUT, "300")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ValueError(f"the environment variable {TIMEOUT} must be seconds, or 0 for no limit, got {text!r}")
    return limit


def portable(error: BaseException) -> Exception:
    """`error` if it is an Exception that another process can unpickle, else one that describes it."""
    if not isinstance(error, Exception):
        return RuntimeError(f"an environment or policy raised {error!r}, which would end the program")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _WatchedHalt:
    """The halt of a process, which records when its task has looked at it."""

    def __init__(self, halt: Halt, looks: Any, slot: int) -> None:
        self.halt, self.looks, self.slot = halt, looks, slot

    def is_set(self) -> bool:
        self.looks[self.slot] = time.monotonic()  # The same clock in all processes.
        return self.halt.is_set()

    def rest(self) -> None:
        """The task has ended."""
        self.looks[self.slot] = 0.0


_setup: tuple[Any, _WatchedHalt] | None = None  # A pool can pass it to a worker only when the worker starts.


def _start_worker(shared: Any, halt: Halt, looks: Any, slots: Any) -> None:
    global _setup
    with slots.get_lock():
        slot, slots.value = slots.value, slots.value + 1
    _setup = shared, _WatchedHalt(halt, looks, slot)
    prepare_worker()


def _call(function: Callable[..., Result], *args: Any) -> Result:
    assert _setup is not None, "_start_worker() first"
    try:
        return function(*_setup, *args)
    except BaseException as error:
        if (described := portable(error)) is error:
            raise
        raise described from error
    finally:
        _setup[1].rest()


class _Worker(SpawnProcess):
    """A process that ignores Ctrl-C from the start, because its parent handles it."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Inherited by the child.
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers(SpawnContext):
    """A context that knows the processes it has created."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> _Worker:  # type: ignore[override]
        self.started.append(_Worker(*args, **kwargs))
        return self.started[-1]


WORKERS = _Workers()
"""The context of values that workers share."""


def use_one_core() -> None:
    """Set up this process for one core without display and sound. This imports nothing heavy."""
    os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", OMP_NUM_THREADS="1")
    if (torch := sys.modules.get("torch")) is not None:  # Otherwise torch reads OMP_NUM_THREADS when it is imported.
        torch.set_num_threads(1)


def prepare_worker() -> None:
    """Set up this process as a worker: one core, because the pool shares the cores, and exit with its parent."""
    use_one_core()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
