"""The worker pool on a Ray cluster: the same tasks, on the cores of many machines.

A worker is a Ray actor with a core. What the tasks share is in the object store, from which each machine fetches it
once. If a worker dies, hangs or loses its machine, another one runs its task again: a task depends only on its
arguments, among which are its seeds. Machines that join the cluster get workers, too. Real steps are counted with
the results, so steps of a repeated task count once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from policies.pool import TIMEOUT, Check, Procs, WorkerDied, step_limit
from policies.ray_connection import HeadLost, connect, while_head_answers
from policies.ray_worker import Actor, Place, look_around, reason
from policies.step_count import StepCount

Item = TypeVar("Item")
Result = TypeVar("Result")

PROCESSES = 2
"""Worker processes, unless their number or a Ray cluster is given."""
WAIT_S = 0.02
"""Longest time until a new task reaches an idle worker while others work. Ten times as long while no worker is idle."""
LOOK_S = 30.0
"""Longest time between two looks at every worker."""
COUNT_S = 1.0
"""Time between two counts of the machines of the cluster."""
MAX_LOST = 4
"""A task is given up after this many lost workers. One that hangs counts twice."""
DIED = "died (killed, crashed, out of memory, or its machine is gone)"
STOP_S = 10.0
"""Time for running tasks to end when the pool is closed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayCluster:
    """The cores of a Ray cluster, as `procs` of every function that takes it.

    Args:
        address: `auto` for the cluster that this machine belongs to, or the `HOST:PORT` of its head, or `local` to
            start Ray on this machine alone.
        workers: number of workers; default: all cores, also of machines that join later.
        cores: cores of each worker.
        runtime_env: Ray's `runtime_env`, such as `{"pip": ["my_env"]}`; default: that in the environment variable
            WM_RUNTIME_ENV (JSON, or the path of a JSON file).
    """

    address: str = "auto"
    workers: int | None = None
    cores: int = 1
    runtime_env: Mapping[str, Any] | None = None

    def pool(self, shared: Any, check: Check | None = None) -> RayPool:
        """A pool on this cluster; the first one connects to it.

        Raises:
            ImportError: Ray is not installed.
            ValueError, RuntimeError: there is no such cluster, it has too few cores, or a machine of it lacks
                something; one line with the reason.
        """
        connect(self.address, self.runtime_env)
        return RayPool(shared, self, check)


def workers_of(procs: int | None, ray: str | None) -> Procs:
    """The workers that `--procs` and `--ray` describe: processes of this machine, or those of a Ray cluster."""
    if ray is not None:
        return RayCluster(ray, workers=procs or None)
    return processes_of(procs, ray)


def processes_of(procs: int | None, ray: str | None) -> int:
    """The worker processes of this machine that `--procs` and `--ray` describe."""
    if ray is not None:
        return 0
    return PROCESSES if procs is None else procs


class _Task:
    """A task, until its future is done."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        self.function, self.args = function, args
        self.future: Future[Any] = Future()
        self.lost = 0

    def end(self, result: Any = None, error: Exception | None = None) -> None:
        """Set the result or the error, unless the pool was killed meanwhile."""
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)


class _Worker:
    """What this process knows of a worker: starting (`task` is None), at work, or idle (`ref` is None)."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.ref: Any = actor.ready.remote()
        self.task: _Task | None = None
        self.name = "a new worker"
        self.look: Any = None
        self.asked = 0.0


class RayPool:
    """Runs tasks on the workers of a Ray cluster, with the interface of `policies.pool.Pool`."""

    def __init__(self, shared: Any, cluster: RayCluster, check: Check | None) -> None:
        import ray

        self._ray: Any = ray
        self._cluster, self._place = cluster, Place(os.getcwd(), [*sys.path])
        self._head = ray.get_runtime_context().gcs_address
        self._limit = step_limit()
        self._lock = threading.RLock()
        self._queue: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._new = threading.Event()
        self._closing, self._over = False, False
        self._refused = 0
        """Workers that could not start and are not replaced."""
        self._unborn = 0
        """Workers in a row that died before they were ready."""
        self._failure = ""
        self._deserted = False
        """Whether no machine with cores was left at the last look."""
        while_head_answers(self._head, lambda: self._start(shared, check))
        self._thread = threading.Thread(target=self._serve_all, daemon=True)
        self._thread.start()

    def _start(self, shared: Any, check: Check | None) -> None:
        """Check the machines and start the first workers."""
        ray = self._ray
        self._target = self._count_workers()
        self._stage = ray.put(ray.cloudpickle.dumps((shared, check)))
        self._look_at_machines()
        groups = {"control": 1}
        method = ray.method(concurrency_group="control")
        kind = type("Worker", (Actor,), {"idle_s": method(Actor.idle_s), "stop": method(Actor.stop)})
        self._kind = ray.remote(num_cpus=self._cluster.cores, max_restarts=0, concurrency_groups=groups)(kind)
        self._grow()

    @property
    def size(self) -> int:
        return self._target

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Start a task on an idle worker, or queue it."""
        task = _Task(function, args)
        with self._lock:
            if self._failure:
                task.end(error=WorkerDied([args], self._failure))
            else:
                self._queue.append(task)
        self._new.set()
        return task.future

    def run(self, function: Callable[..., Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Run `function` on every item; yield (index, result) in the order in which tasks end."""
        items = list(items)
        futures = {self.submit(function, item): index for index, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except WorkerDied as error:
            lost = [items[i] for future, i in futures.items() if not future.done() or future.exception() is not None]
            raise WorkerDied(lost, str(error)) from error
        finally:
            with self._lock:
                self._queue = deque(task for task in self._queue if task.future not in futures)

    def result(self, future: Future[Result]) -> Result:
        """The result of a task that has ended."""
        return future.result()

    def close(self) -> None:
        """Stop the workers. Running tasks see `halt` and have `STOP_S` seconds to end."""
        with self._lock:
            self._closing = True
            for task in self._queue:
                task.future.cancel()
            self._queue.clear()
            if not self._failure:
                for worker in self._workers:
                    worker.actor.stop.remote()
        self._new.set()
        try:
            self._thread.join(STOP_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the workers without waiting for their steps."""
        self._over = True
        self._new.set()
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            if worker.task is not None:
                worker.task.future.cancel()
        if not self._failure:
            with suppress(HeadLost):
                while_head_answers(self._head, lambda: [self._ray.kill(worker.actor) for worker in workers])

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is KeyboardInterrupt:
            self.kill()
        self.close()

    def _serve_all(self) -> None:
        """Serve, and let no task wait for ever if Ray fails."""
        try:
            while_head_answers(self._head, self._serve)
        except HeadLost as error:
            self._give_up(str(error))
        except Exception as error:
            log.debug("Ray failed", exc_info=error)
            self._give_up(f"the Ray cluster at {self._head} failed: {reason(error)}")

    def _serve(self) -> None:
        """Give tasks to workers and take their results, until the pool is closed."""
        counted = looked = time.monotonic()
        while not self._over and not self._failure:
            now = time.monotonic()
            with self._lock:
                self._grow()
                self._give()
                waiting = {worker.ref: worker for worker in self._workers if worker.ref is not None}
                idle = len(waiting) < len(self._workers)
                if self._closing and not any(worker.task for worker in self._workers):
                    return
            if waiting:
                for ref in self._ray.wait([*waiting], timeout=WAIT_S if idle else WAIT_S * 10)[0]:
                    self._take(waiting[ref], ref)
            else:
                self._new.wait(WAIT_S * 10)
                self._new.clear()
            if now - counted > COUNT_S:
                counted = now
                self._follow_machines()
            if self._limit and now - looked > min(self._limit / 4, LOOK_S):
                looked = now
                self._look()

    def _follow_machines(self) -> None:
        """Want as many workers as there is room for on the machines that are left."""
        rooms = self._rooms()
        if not any(rooms) and not self._deserted:
            log.warning(
                "the Ray cluster at %s has no cores left: waiting for a node, which `ray start --address %s` adds",
                self._head,
                self._head,
            )
        self._deserted = not any(rooms)
        target = self._cluster.workers or sum(rooms)
        if target != self._target:
            self._target, self._refused = target, 0  # Machines came or went, so all may try again.

    def _rooms(self) -> list[int]:
        """How many workers each machine has room for."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [int(node.get("CPU", 0)) // self._cluster.cores for node in nodes]

    def _count_workers(self) -> int:
        """The number of workers; an error if the cluster has fewer cores than they need."""
        cluster, rooms = self._cluster, self._rooms()
        if sum(rooms) < (cluster.workers or 1):
            cores = f"{cluster.cores} cores each" if cluster.cores > 1 else "a core each"
            raise ValueError(
                f"{cluster.workers or 1} workers with {cores} do not fit the Ray cluster at {self._head}, whose "
                f"{len(rooms)} nodes have room for {sum(rooms)}; ask for fewer, or add nodes with `ray start --address "
                f"{self._head}`"
            )
        return cluster.workers or sum(rooms)

    def _look_at_machines(self) -> None:
        """Check every machine before work begins."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(num_cpus=0, max_retries=0)(look_around)
        asked = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                node_only = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ref = look.options(scheduling_strategy=node_only).remote(self._stage, self._place)
                asked[ref] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for ref, name in asked.items():
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                raise RuntimeError(f"node {name} of the Ray cluster cannot take part: {reason(error)}") from error
            except self._ray.exceptions.RayError as error:  # The node has just left the cluster.
                log.warning("node %s of the Ray cluster does not answer: %s", name, reason(error))

    def _grow(self) -> None:
        """Start the workers that are missing."""
        while not self._closing and len(self._workers) + self._refused < self._target:
            self._workers.append(_Worker(self._kind.remote(self._stage, self._place)))

    def _give(self) -> None:
        """Give queued tasks to idle workers."""
        for worker in self._workers:
            if worker.ref is None and self._queue:
                worker.task = task = self._queue.popleft()
                worker.ref = worker.actor.run.remote(task.function, task.args)

    def _take(self, worker: _Worker, ref: Any) -> None:
        """Take the result of a worker's task, or its loss."""
        task, worker.task, worker.ref, worker.look = worker.task, None, None, None
        try:
            got = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if task is None:
                self._refuse(worker, f"cannot take part: {reason(error)}")
            else:
                task.end(error=RuntimeError(reason(error)))
            return
        except self._ray.exceptions.RayError as error:
            log.debug("%s: %s", worker.name, error)
            self._unborn += task is None
            if self._unborn == MAX_LOST:
                self._unborn = 0
                self._refuse(worker, DIED)
            else:
                self._drop(worker, DIED)
            self._repeat(task, 1, worker)
            return
        if task is None:
            worker.name = "worker {1} on node {0}".format(*got)
            self._unborn = 0
            return
        try:
            for path, num in got.steps.items():
                count = StepCount(path)
                count.add(num)
                count.close()
        except OSError as error:  # The disk of this machine is full, or the folder is gone.
            task.end(error=error)
        else:
            task.end(got.result, got.error)

    def _drop(self, worker: _Worker, why: str) -> None:
        """Do without a worker; `_grow` starts another."""
        if self._closing:
            return
        log.warning("%s %s", worker.name, why)
        with self._lock, suppress(ValueError):
            self._workers.remove(worker)
        with suppress(Exception):
            self._ray.kill(worker.actor)

    def _refuse(self, worker: _Worker, why: str) -> None:
        """Do without a worker that could not start, and without another in its place."""
        self._refused += 1
        self._drop(worker, why)
        if not self._workers and self._refused >= self._target:
            self._give_up(f"no worker can start on the Ray cluster at {self._head}: the last one {why}")

    def _repeat(self, task: _Task | None, weight: int, worker: _Worker, why: str = "died") -> None:
        """Queue the task of a lost worker again, before the others, unless that has happened too often."""
        if task is None:
            return
        task.lost += weight
        if self._closing:
            task.future.cancel()
        elif task.lost >= MAX_LOST:
            text = f"{worker.name} {why} like others before it at the same task, so the task was given up"
            task.end(error=WorkerDied([task.args], text))
        else:
            with self._lock:
                self._queue.appendleft(task)

    def _look(self) -> None:
        """Give up the workers whose task has not looked at `halt` for too long, and those that do not answer."""
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.task is not None]:
            idle = 0.0
            if worker.look is None:
                worker.look, worker.asked = worker.actor.idle_s.remote(), now
            elif self._ray.wait([worker.look], timeout=0)[0]:
                with suppress(self._ray.exceptions.RayError):
                    idle = self._ray.get(worker.look)
                worker.look = None
            else:
                idle = now - worker.asked
            if idle > self._limit:
                task, worker.task, worker.ref = worker.task, None, None
                why = f"hung: a step or reset took longer than {self._limit:g} s ({TIMEOUT})"
                self._drop(worker, why)
                self._repeat(task, 2, worker, why)

    def _give_up(self, why: str) -> None:
        """End all tasks, because no worker can be reached any more."""
        with self._lock:
            self._failure = why
            tasks = [worker.task for worker in self._workers if worker.task is not None] + [*self._queue]
            self._queue.clear()
            for task in tasks:
                task.end(error=WorkerDied([task.args], why))
