"""Real episodes over processes: the same returns as at home, a kept pool, and errors that reach the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from toy_policy import Always, Dies, Raises, refuse
from waiting import HANG_S, wait_until, wait_until_gone

from policies.play import EpisodePool, EpisodeTask, play
from policies.policy import RandomPolicy
from policies.pool import WORKERS, WorkerPool
from policies.rollout import returns, rollout
from wm_envs.registry import RealSpec

ECHO = RealSpec("toy_env:Echo-v0", kwargs={"length": 5})
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def pool() -> Iterator[EpisodePool]:
    with EpisodePool(RealSpec("toy_env:Echo-v0"), Always, procs=2) as pool:
        yield pool


def test_every_job_is_played_and_named(pool: EpisodePool) -> None:
    before = pool.steps
    jobs = [EpisodeTask(seed, (action,)) for seed in range(4) for action in (0.5, -1.0)]
    played = sorted(pool.play(jobs))
    assert [(p.task, p.seed) for p in played] == [(i, job.seed) for i, job in enumerate(jobs)]
    for p, job in zip(played, jobs):
        assert 3 <= p.steps <= 12 and p.term and p.ret == pytest.approx(job.args[0] * p.steps)
    assert {(p.seed, p.steps) for p in played} == {(p.seed, p.steps) for p in played[::2]}  # The seed decides.
    assert pool.steps - before == sum(p.steps for p in played)


def test_a_pool_is_kept_between_calls(pool: EpisodePool) -> None:
    list(pool.play([EpisodeTask(0, (0.0,))]))
    processes = set(pool._pool._executor._processes or {})
    first, second = (sorted(pool.play([EpisodeTask(s, (1.0,)) for s in range(6)])) for _ in range(2))
    assert first == second and set(pool._pool._executor._processes or {}) >= processes


def test_no_jobs_no_episodes(pool: EpisodePool) -> None:
    assert list(pool.play([])) == []


def test_giving_up_midway_leaves_the_pool_usable(pool: EpisodePool) -> None:
    episodes = pool.play([EpisodeTask(s, (1.0,)) for s in range(50)])
    next(episodes)
    episodes.close()  # type: ignore[attr-defined]
    assert len(list(pool.play([EpisodeTask(0, (1.0,))]))) == 1


def test_processes_play_what_one_process_would() -> None:
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    spec = RealSpec("CartPole-v1")
    space = gym.spaces.Discrete(2)
    played = sorted(play(spec, partial(RandomPolicy, space), [EpisodeTask(seed) for seed in range(5)], procs=1))
    envs = SyncVectorEnv([lambda: gym.make(spec.id)], autoreset_mode=AutoresetMode.DISABLED)
    at_home = [float(returns(rollout(envs, RandomPolicy(space), seed=[s], policy_seed=s))[0]) for s in range(5)]
    assert [p.ret for p in played] == at_home == [p.steps for p in played]
    assert len(set(at_home)) > 1


def test_an_error_of_a_policy_reaches_the_parent_as_it_is() -> None:
    with pytest.raises(ArithmeticError, match="the policy broke at step 2"):
        list(play(ECHO, Raises, [EpisodeTask(s, (0.0,)) for s in range(20)], procs=2))


def test_errors_of_makers_and_environments_reach_the_parent_as_they_are() -> None:
    with pytest.raises(LookupError, match="no such policy"):
        list(play(ECHO, refuse, [EpisodeTask(0)], procs=1))
    spec = RealSpec("toy_env:Echo-v0", kwargs={"length": 5, "fail_at": 3})
    with pytest.raises(ArithmeticError, match="the environment broke"):
        list(play(spec, Always, [EpisodeTask(0, (0.0,))], procs=1))


def test_a_worker_that_dies_raises_in_the_parent_without_a_hang() -> None:
    jobs = [EpisodeTask(s, (-1.0 if s == 7 else 1.0,)) for s in range(30)]
    with pytest.raises(RuntimeError, match=r"toy_env:Echo-v0: a worker process died .*unfinished seeds.*7"):
        list(play(ECHO, Dies, jobs, procs=2))


def test_a_worker_that_cannot_start_raises_in_the_parent(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AttributeError, TypeError), match="pickle|local object"):
        list(play(ECHO, lambda: Always(0.0), [EpisodeTask(0)], procs=1))  # type: ignore[arg-type, return-value]


def test_no_processes_are_rejected() -> None:
    with pytest.raises(ValueError, match="procs must be at least 0, got -1; 0 runs everything in this process"):
        EpisodePool(ECHO, Always, procs=-1)


def test_without_processes_this_one_plays_the_same(pool: EpisodePool) -> None:
    tasks = [EpisodeTask(seed, (0.5,)) for seed in range(4)]
    with EpisodePool(RealSpec("toy_env:Echo-v0"), Always, procs=0) as here:
        assert list(here.play(tasks)) == sorted(pool.play(tasks)) and here.steps > 0
    with pytest.raises(ArithmeticError, match="the policy broke at step 2"):
        list(play(ECHO, Raises, [EpisodeTask(0, (0.0,))], procs=0))


def add(shared: int, halt: object, item: int) -> int:
    return shared + item


@pytest.mark.parametrize("procs", [0, 1])
def test_tasks_get_what_is_shared_and_results_carry_their_index(procs: int) -> None:
    with WorkerPool(10, procs) as pool:
        assert sorted(pool.run(add, [1, 2, 3])) == [(0, 11), (1, 12), (2, 13)]
        assert pool.submit(add, 5).result() == 15
    assert pool.halt.is_set()


SCRIPT = """
from policies.play import EpisodeTask, play
from toy_policy import Slow
from wm_envs.registry import RealSpec

if __name__ == "__main__":
    try:
        tasks = [EpisodeTask(seed, (PATH,)) for seed in range(4)]
        list(play(RealSpec("toy_env:Echo-v0", kwargs={"length": 100_000}), Slow, tasks))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_parent_and_every_worker(tmp_path: Path, signum: int) -> None:
    script, notes = tmp_path / "script.py", tmp_path / "notes"
    script.write_text(SCRIPT.replace("PATH", repr(str(notes))))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, str(script)]
    proc = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: notes.exists() and len(set(notes.read_text().split())) >= 2, proc)
    if signum == signal.SIGINT:
        for worker in set(notes.read_text().split()):
            os.kill(int(worker), signum)  # Not for the workers to answer.
        steps = len(notes.read_text())
        wait_until(lambda: len(notes.read_text()) >= steps + 100, proc)
        os.killpg(proc.pid, signum)  # Ctrl-C reaches every process of the group.
        stdout, stderr = proc.communicate(timeout=HANG_S)
        assert (proc.returncode, stdout, stderr) == (0, "interrupted\n", "")
    else:
        proc.kill()
        proc.communicate(timeout=HANG_S)
    wait_until_gone(proc.pid)


def test_importing_brings_no_torch() -> None:
    code = "import sys, policies.play; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_workers_have_one_thread_and_no_display(tmp_path: Path) -> None:
    code = (
        "import os, policies.pool as p; p._die_with_parent = lambda: None; p.prepare_worker();"
        "print(os.environ['OMP_NUM_THREADS'], os.environ['SDL_VIDEODRIVER'], end=' ');"
        "import torch; print(torch.get_num_threads())"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "1 dummy 1\n"


def _is_deaf() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_are_deaf_to_ctrl_c_before_they_import_anything_and_their_parent_is_not() -> None:
    with ProcessPoolExecutor(1, mp_context=WORKERS) as pool:
        assert pool.submit(_is_deaf).result() and not _is_deaf()
