"""Collecting: whole shards only, however it stops, and calling again goes on from there."""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from toy_env import is_aligned, make_random
from waiting import HANG_S, wait_until, wait_until_gone

from policies.policy import RandomPolicy
from policies.step_count import StepCount
from wm_agents.data import collect as collecting
from wm_agents.data.collect import CollectConfig, CollectSummary, collect
from wm_agents.data.dataset import Dataset
from wm_agents.data.episode import NonFiniteStep
from wm_agents.data.shard import ShardInfo
from wm_agents.data.vector_stream import Stream
from wm_agents.data.worker import LOCK, ROOM_LOCK, ShardTask, collect_shard, land
from wm_agents.system import replace as replace_file
from wm_envs.registry import TASKS, RealSpec

ECHO = RealSpec("toy_env:Echo-v0")
ENDLESS = RealSpec("toy_env:Echo-v0", kwargs={"length": 10**9})
TESTS = Path(__file__).parent


def run(out: Path, steps: int = 60, make: Callable = make_random, **changes: object) -> CollectSummary:
    cfg = {"spec": ECHO, "out": str(out), "steps": steps, "seed": 0, "procs": 1, "shard_episodes": 4, **changes}
    return collect(CollectConfig(**cfg), make, console=Console(file=io.StringIO()))


def run_here(out: Path, seed: int = 0, num: int = 3, stall: int | None = None, spec: RealSpec = ECHO) -> ShardInfo:
    """One shard in this process."""
    return shard_of(task_for(out, seed, num, spec, stall=stall))


def task_for(out: Path, seed: int = 0, num: int = 3, spec: RealSpec = ECHO, **more: object) -> ShardTask:
    """A task whose folder is that of its worker."""
    out.mkdir(parents=True, exist_ok=True)
    (out / LOCK).write_text("here")
    limits = {
        "stall": None,
        "max_steps": None,
        "min_free_gb": 0.0,
        "max_gb": 1.0,
        "longest": 10**6,
        "mark": "here",
        **more,
    }
    return ShardTask(spec, str(out), make_random, seed, num, **limits)


def shard_of(task: ShardTask) -> ShardInfo | bytes | str:
    return collect_shard(StepCount(Path(task.out) / "real_steps"), mp.Event(), task)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name not in (LOCK, ROOM_LOCK, "real_steps"))


def test_collecting_gives_the_steps_asked_for_and_collecting_again_resumes(tmp_path: Path) -> None:
    first = run(tmp_path, steps=60, procs=2)
    data = Dataset(tmp_path)
    assert first.stopped == "done" and first.steps == first.new_steps == first.frames == data.num_steps >= 60
    assert data.seeds == list(range(first.episodes)) and first.bytes == data.num_bytes
    assert first.returns == pytest.approx(data.returns)
    for ep in data.iter_episodes():
        assert is_aligned(ep.obs, ep.act, ep.rew) and ep.term and not ep.trunc
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}

    same = run(tmp_path, steps=60)
    assert (same.steps, same.new_steps, same.returns) == (first.steps, 0, first.returns)

    (tmp_path / "seed-0000004.h5").write_bytes(b"damaged")
    more = run(tmp_path, steps=first.steps + 20)
    assert more.steps >= first.steps + 20 and not Dataset(tmp_path).skipped
    assert sorted(Dataset(tmp_path).seeds) == list(range(more.episodes))
    untouched = [name for name in kept if (tmp_path / name).stat().st_mtime_ns == kept[name]]
    assert sorted(untouched) == sorted(set(kept) - {"seed-0000004.h5"})
    data.refresh()
    assert data.num_episodes >= more.episodes - 4


def test_the_same_seeds_give_the_same_episodes(tmp_path: Path) -> None:
    a, b = (run_here(tmp_path / name, seed=5) for name in "ab")
    assert a.seeds == (5, 6, 7) and a.returns.tolist() == b.returns.tolist()
    assert len({Dataset(tmp_path / "a").steps(i)[0][0, 0] for i in range(3)}) == 3  # The policy is seeded too.
    assert run_here(tmp_path / "c", seed=8).returns.tolist() != a.returns.tolist()


def test_a_stalled_episode_is_cut(tmp_path: Path) -> None:
    info = run_here(tmp_path, spec=ENDLESS, stall=3)
    assert info.trunc.all() and not info.term.any()
    for ep in Dataset(tmp_path).iter_episodes():
        assert (ep.rew[-3:] <= 0).all()


def test_an_endless_environment_gives_one_episode_of_the_steps_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(tmp_path, 50, spec=ENDLESS, procs=0)
    data = Dataset(tmp_path)
    assert (found.stopped, found.episodes, found.steps) == ("done", 1, 50)
    assert [(ep.term, ep.trunc) for ep in data.iter_episodes()] == [(False, True)]
    assert "Echo-v0 has no episode limit: the episode of seed 0 was truncated after 50 steps" in caplog.text
    again = run(tmp_path, 120, spec=ENDLESS, procs=0)
    assert (again.new_steps, data.refresh(), data.seeds) == (120, 1, [0, 1])


def test_an_episode_limit_of_the_steps_asked_for_is_not_taken_for_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(tmp_path, 50, spec=replace(ENDLESS, max_episode_steps=50), procs=0, shard_episodes=1)
    assert (found.episodes, found.steps) == (1, 50) and "no episode limit" not in caplog.text


def test_pixels_are_stored_as_they_are_seen(tmp_path: Path) -> None:
    spec = RealSpec("toy_env:Echo-v0", kwargs={"pixels": True, "length": 6}, size=8, action_repeat=2)
    info = run_here(tmp_path, spec=spec)
    assert info.obs_shape == (8, 8, 3) and info.obs_dtype == "uint8" and info.lengths.tolist() == [3, 3, 3]
    assert info.spec == spec.to_dict()
    assert Dataset(tmp_path).episode(0).obs[:, 0, 0, 0].tolist() == [0, 2, 4, 6]


def test_each_life_of_a_game_is_an_episode_and_the_next_seeds_follow(tmp_path: Path) -> None:
    spec = replace(TASKS["Breakout"].real, size=8)
    info = run_here(tmp_path, seed=3, num=1, spec=spec)
    assert info.seeds == (3,) * 5 and info.term.all()
    lives = list(Dataset(tmp_path).iter_episodes())
    assert all(np.array_equal(a.obs[-1], b.obs[0]) for a, b in pairwise(lives))
    whole = run_here(tmp_path / "whole", 3, 1, spec=replace(spec, lives_end=False))
    assert isinstance(whole, ShardInfo) and whole.lengths.sum() == info.lengths.sum() and len(whole.lengths) == 1
    again = run(tmp_path, steps=1, seed=3, spec=spec, shard_episodes=1)
    assert again.new_steps == 0 and again.episodes == 5
    more = run(tmp_path, steps=info.num_steps + 1, seed=3, spec=spec, shard_episodes=1)
    assert sorted(set(Dataset(tmp_path).seeds)) == [3, 4] and more.new_steps > 0


def test_seeds_kept_for_evaluation_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 0 to 999,999, got 1,000,000; seeds from 1,000,000 up are for evalua"):
        run(tmp_path, seed=1_000_000)
    with pytest.raises(ValueError, match="got 1,000,001"):  # Reached on the way.
        run(tmp_path, seed=999_998)
    with pytest.raises(ValueError, match="got 1,000,000"):
        run_here(tmp_path, seed=999_998)
    with pytest.raises(ValueError, match="got -1"):
        run(tmp_path, seed=-1)
    assert not list(tmp_path.glob("*.h5"))


def test_senseless_settings_are_rejected(tmp_path: Path) -> None:
    for name in ("steps", "shard_episodes", "stall"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
            run(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match="procs must be a whole number of at least 0, got -1"):
        run(tmp_path, procs=-1)


def test_without_processes_this_one_collects_the_same(tmp_path: Path) -> None:
    here, there = run(tmp_path / "here", procs=0), run(tmp_path / "there", procs=1)
    assert here.returns == there.returns and (here.steps, here.bytes) == (there.steps, there.bytes)


def test_data_of_another_environment_is_not_mixed_in(tmp_path: Path) -> None:
    run_here(tmp_path)
    with pytest.raises(ValueError, match="choose another directory"):
        run(tmp_path, spec=ENDLESS)


def test_two_collectors_do_not_share_a_directory(tmp_path: Path) -> None:
    with collecting._locked(tmp_path), pytest.raises(RuntimeError, match="another process is collecting into"):
        run(tmp_path)


def test_max_gb_is_never_passed(tmp_path: Path) -> None:
    size = run_here(tmp_path / "one", num=4).bytes
    summary = run(tmp_path / "many", steps=10**6, max_gb=2.5 * size / 1e9)
    assert summary.stopped == "max_gb"
    data = Dataset(tmp_path / "many")
    assert 0 < data.num_bytes <= 2.5 * size and data.num_steps == summary.steps
    again = run(tmp_path / "many", steps=10**6, max_gb=data.num_bytes / 1e9)
    assert again.stopped == "max_gb" and again.new_steps == 0


def test_a_worker_without_the_folder_returns_the_shard(tmp_path: Path) -> None:
    here = run_here(tmp_path / "here")
    task = task_for(tmp_path / "there", mark="another machine")
    image = shard_of(task)
    assert isinstance(image, bytes) and not list((tmp_path / "there").glob("*.h5"))
    landed = land(task, image)
    assert isinstance(landed, ShardInfo) and landed.returns.tolist() == here.returns.tolist()
    small = task._replace(max_gb=1.5 * len(image) / 1e9)
    assert isinstance(land(small, image), ShardInfo)  # It replaces itself.
    assert land(small._replace(seed=9), image) == "max_gb"


def test_too_little_free_disk_stops_before_it_begins_and_before_a_shard_lands(tmp_path: Path) -> None:
    assert run(tmp_path, min_free_gb=1e9).stopped == "free_disk"
    assert shard_of(task_for(tmp_path, min_free_gb=1e9)) == "free_disk"
    assert names(tmp_path) == ["manifest.json"]


def test_a_halted_worker_drops_its_shard_at_once(tmp_path: Path) -> None:
    halt = mp.Event()
    halt.set()
    count = StepCount(tmp_path / "real_steps")
    assert collect_shard(count, halt, task_for(tmp_path, spec=ENDLESS)) == "interrupted"
    assert names(tmp_path) == []


def full_after_two(env: gym.Env) -> RandomPolicy:
    """Make this worker's disk full once two shards are there."""
    fsync = os.fsync

    def fail_on_third(handle: int) -> None:
        if len(list(Path(os.readlink(f"/proc/self/fd/{handle}")).parent.glob("seed-*.h5"))) >= 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    replace_file.os = type("os", (), {**vars(os), "fsync": staticmethod(fail_on_third)})
    return make_random(env)


def test_a_full_disk_stops_cleanly_with_everything_so_far_readable(tmp_path: Path) -> None:
    summary = run(tmp_path, steps=10**6, make=full_after_two)
    assert summary.stopped == "no_space"
    data = Dataset(tmp_path)
    assert data.num_episodes == summary.episodes == 8 and not data.skipped
    assert sum(1 for _ in data.iter_episodes()) == 8
    assert names(tmp_path) == ["manifest.json", "seed-0000000.h5", "seed-0000004.h5"]


class Dies(RandomPolicy):
    def act(self, obs: np.ndarray) -> np.ndarray:
        os._exit(3)


def make_dies(env: gym.Env) -> Dies:
    return Dies(env.action_space)


def test_a_dead_worker_raises_in_the_parent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"toy_env:Echo-v0, seeds 0 to 3: a worker process died .* resume"):
        run(tmp_path, make=make_dies)
    assert names(tmp_path) == ["manifest.json"]


def test_a_workers_error_raises_in_the_parent(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="the environment broke"):
        run(tmp_path, spec=RealSpec("toy_env:Echo-v0", kwargs={"fail_at": 2}))


@pytest.mark.parametrize(
    "how, text",
    [
        ("nan obs", r"the observation of step 3 is nan at index \[1\] \(seed 0\)"),
        ("inf obs", r"the observation of step 3 is -inf at index \[1\]"),
        ("nan reward", "the reward of step 3 is nan"),
        ("large reward", r"the reward of step 3 is 1e\+300 \(seed 0\); it must be finite in float32; correct the env"),
    ],
)
def test_values_that_are_not_finite_are_rejected_with_step_and_environment(tmp_path: Path, how: str, text: str) -> None:
    with pytest.raises(NonFiniteStep, match=f"^bad_env:Bad-v0: {text}"):
        run(tmp_path, spec=RealSpec("bad_env:Bad-v0", kwargs={"how": how}), procs=0)
    assert names(tmp_path) == ["manifest.json"]
    stream = Stream(RealSpec("bad_env:Bad-v0", kwargs={"how": how}), 2, iter([0, 1]))
    with stream, pytest.raises(NonFiniteStep, match=f"^bad_env:Bad-v0: {text}"):
        for _ in range(3):
            stream.step(np.zeros((2, 1), np.float32))


SCRIPT = """
import sys
from toy_env import make_random
from wm_agents.data.collect import CollectConfig, collect
from wm_envs.registry import TASKS, RealSpec
if __name__ == "__main__":
    spec = RealSpec("toy_env:Echo-v0", kwargs={"length": 2000})
    cfg = CollectConfig(spec, sys.argv[1], steps=10**7, seed=0, procs=1, shard_episodes=1)
    print(collect(cfg, make_random).stopped)
"""


def start(out: Path) -> subprocess.Popen:
    """A collector in a process group of its own, with two shards written and no end in sight."""
    script = out.parent / "run.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(out)]
    proc = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: len(list(out.glob("seed-*.h5"))) >= 2, proc)
    return proc


@pytest.mark.parametrize("signum, whole_group", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_stops_cleanly_with_everything_so_far_readable(tmp_path: Path, signum: int, whole_group: bool) -> None:
    out = tmp_path / "data"
    proc = start(out)
    (os.killpg if whole_group else os.kill)(proc.pid, signum)  # Ctrl-C reaches every process of the group.
    stdout, stderr = proc.communicate(timeout=HANG_S)
    assert (proc.returncode, stdout) == (0, "interrupted\n"), stderr
    assert "Traceback" not in stderr
    data = Dataset(out)
    assert data.num_episodes >= 2 and not data.skipped
    assert names(out) == ["manifest.json", *(f"seed-{i:07d}.h5" for i in range(data.num_episodes))]
    wait_until_gone(proc.pid)


def test_a_killed_collector_leaves_no_half_shard_and_no_orphan_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "data"
    proc = start(out)
    proc.kill()
    proc.communicate()
    wait_until_gone(proc.pid)
    (out / ".seed-0000099.h5.77.0a1b2c3d.tmp").write_bytes(b"left by a kill in mid write")
    data, taken = Dataset(out), (out / "real_steps").stat().st_size
    found = data.num_episodes
    assert found >= 2 and not data.skipped and taken >= data.num_steps
    for ep in data.iter_episodes():
        assert ep.num_steps == 2000 and is_aligned(ep.obs, ep.act, ep.rew)
    spec = RealSpec("toy_env:Echo-v0", kwargs={"length": 2000})
    summary = run(out, spec=spec, steps=2000 * (found + 1), shard_episodes=1)
    assert (summary.episodes, summary.new_steps) == (found + 1, 2000)
    assert summary.taken == taken + 2000
    assert names(out) == ["manifest.json", *(f"seed-{i:07d}.h5" for i in range(found + 1))]


def test_progress_names_speed_size_and_time_left(tmp_path: Path) -> None:
    screen = io.StringIO()
    cfg = CollectConfig(ECHO, str(tmp_path), steps=30, seed=0, procs=1, shard_episodes=2)
    collect(cfg, make_random, console=Console(file=screen, force_terminal=True, width=120))
    assert all(part in screen.getvalue() for part in ("toy_env:Echo-v0", "/30", "steps", "frames/s", "MB", "0:00:00"))


def test_without_a_terminal_progress_is_a_line_with_speed_and_size(tmp_path: Path) -> None:
    screen = io.StringIO()
    spec = RealSpec("toy_env:Echo-v0", kwargs={"length": 15})
    cfg = CollectConfig(spec, str(tmp_path), steps=30, seed=0, procs=0, shard_episodes=1)
    collect(cfg, make_random, console=Console(file=screen, width=40))
    assert re.search(r"collect toy_env:Echo-v0 30/30  steps  [\d,]+ frames/s  [\d.]+ MB\n", screen.getvalue())
