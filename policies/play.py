"""Plays real episodes in parallel processes, to score policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.policy import Policy
from policies.pool import Halt, Procs, WorkerDied, make_pool
from policies.rollout import rollout
from policies.step_count import StepCount
from wm_envs.real import make_real, probe
from wm_envs.registry import RealSpec

MakePolicy = Callable[..., Policy]


class EpisodeResult(NamedTuple):
    """One real episode."""

    task: int
    """Index of its task."""
    seed: int
    ret: float
    steps: int
    """Agent steps, each of at most `spec.action_repeat` frames."""
    term: bool


class EpisodeTask(NamedTuple):
    """One episode to play: the environment seed and the arguments of `make_policy`."""

    seed: int
    args: tuple[Any, ...] = ()


class Stage(NamedTuple):
    """The environment and the policy of an `EpisodePool`, equal in all its workers."""

    spec: RealSpec
    make_policy: MakePolicy
    taken: StepCount | None = None
    """Counts the steps before they are taken."""


def check_stage(stage: Stage) -> None:
    """Check that this machine has what `stage` needs: the environment, and the folders named to `make_policy`.

    Raises:
        ValueError: something is missing.
    """
    check_machine(stage.spec, stage.make_policy)


def check_machine(spec: RealSpec, make_policy: Callable[..., Any]) -> None:
    """Check that this machine can make the environment, and has the folders in the arguments of `make_policy`.

    Raises:
        ValueError: something is missing.
    """
    probe(spec)
    named = [*make_policy.args, *make_policy.keywords.values()] if isinstance(make_policy, partial) else []
    for name in named:
        if isinstance(name, str | Path) and len(Path(name).parts) > 1 and not Path(name).exists():
            raise ValueError(f"{name} does not exist on this machine; put it in a folder that all machines share")


class EpisodePool:
    """A pool that plays real episodes. Use it in a `with` statement, or close it.

    Args:
        make_policy: called in a worker for each task with the arguments of the task. It must be picklable: a
            function of a module, a class, or a `functools.partial` of one.
        procs: number of worker processes, 0 to play in this process, or a `RayCluster`.
        count: counts the steps before they are taken, also those of episodes that are interrupted.
    """

    def __init__(
        self, spec: RealSpec, make_policy: MakePolicy, procs: Procs = 2, count: StepCount | None = None
    ) -> None:
        self.spec = spec
        self.steps = 0
        """Agent steps played so far."""
        self._pool = make_pool(Stage(spec, make_policy, count), procs, check_stage)

    def play(self, tasks: Iterable[EpisodeTask]) -> Iterator[EpisodeResult]:
        """Play all tasks and yield the episodes in the order in which they end.

        Raises:
            RuntimeError: a worker process died. Errors in a worker are raised unchanged.
        """
        try:
            for _, result in self._pool.run(play_task, enumerate(tasks)):
                self.steps += result.steps
                yield result
        except WorkerDied as error:
            lost = sorted({task.seed for _, task in error.lost})
            more = ""
            if len(lost) > 8:
                more = f" and {len(lost) - 8} more"
            raise RuntimeError(f"{self.spec.id}: {error}; unfinished seeds: {lost[:8]}{more}") from error

    def close(self) -> None:
        """Stop the processes. A running episode is dropped at its next step."""
        self._pool.close()

    def __enter__(self) -> EpisodePool:
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)


def play(
    spec: RealSpec,
    make_policy: MakePolicy,
    tasks: Iterable[EpisodeTask],
    procs: Procs = 2,
    count: StepCount | None = None,
) -> Iterator[EpisodeResult]:
    """Play all tasks in a new `EpisodePool` and yield the episodes in the order in which they end."""
    with EpisodePool(spec, make_policy, procs, count) as pool:
        yield from pool.play(tasks)


def play_task(stage: Stage, halt: Halt, numbered: tuple[int, EpisodeTask]) -> EpisodeResult:
    """Play one episode in a worker process; `stage` holds what all episodes share."""
    index, task = numbered
    policy = stage.make_policy(*task.args)
    envs = SyncVectorEnv([partial(make_real, stage.spec)], autoreset_mode=AutoresetMode.DISABLED)
    ret, steps, term = 0.0, 0, False
    halt.is_set()  # The reset is watched too.
    try:
        for step in rollout(envs, policy, seed=task.seed, policy_seed=task.seed, count=stage.taken):
            if halt.is_set():
                break
            ret, steps, term = ret + float(step.rew[0]), steps + 1, bool(step.term[0])
    finally:
        envs.close()
    return EpisodeResult(index, task.seed, ret, steps, term)
