"""Drills: commands and writers are killed, files damaged, disks filled. `pytest -m drill`; docs/reliability.md."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until, wait_until_gone

from wm_agents.data.dataset import Dataset

pytestmark = pytest.mark.drill
TESTS = Path(__file__).parent


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """A process in a session of its own, whose environments count their steps in the file `taken` of the folder."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
        "COUNT_FILE": str(folder / "taken"),
    }
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *command],
            env=env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def output(folder: Path, *command: str) -> Any:
    process = start(folder, *command)
    stdout, _ = process.communicate()
    assert process.returncode == 0, (folder / "log").read_text()
    return json.loads(stdout.splitlines()[-1])


def taken(folder: Path) -> int:
    """The steps that environments have really taken."""
    file = folder / "taken"
    return file.stat().st_size if file.exists() else 0


def kill_after(folder: Path, steps: int, *command: str) -> None:
    """Start a command and kill all its processes when its environments have taken so many steps more."""
    until = taken(folder) + steps
    process = start(folder, *command)
    wait_until(lambda: taken(folder) >= until, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until_gone(process.pid)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.suffix in (".tmp", ".old", ".part")]


def test_every_step_of_a_collection_that_is_killed_is_counted_and_no_episode_is_lost_or_doubled(tmp_path: Path) -> None:
    out = tmp_path / "data"
    spec = ("--spec.id", "counted_env:Counted-v0", "--seed", "5", "--procs", "2", "--json")
    command = ("-m", "wm_agents", "collect", str(out), "--steps", "6000", *spec)
    rng = random.Random(1)
    for _ in range(3):
        kill_after(tmp_path, rng.randrange(40, 900), *command)
    summary = output(tmp_path, *command)
    data = Dataset(out)
    assert taken(tmp_path) <= summary["taken"] <= taken(tmp_path) + 3 * 2  # At most the step before each kill.
    assert summary["taken"] >= summary["steps"] == data.num_steps >= 6000
    assert not data.skipped and sorted(data.seeds) == list(range(5, 5 + data.num_episodes))
    assert temporaries(out) == []


ONLINE = """
import json, sys
from rich.console import Console
from wm_agents.loops import online as loop
from wm_agents.loops.online_config import OnlineConfig
from wm_envs.registry import RealSpec

if __name__ == "__main__":
    loop.deliver = lambda run, candidate, story, **more: {"real_steps": story.real_steps}
    cfg = OnlineConfig(
        RealSpec("counted_env:Counted-v0", max_episode_steps=12), out=sys.argv[1], family="tdmpc2", size="ci",
        real_steps=900, prefill=60, ratio=3.2, batch_size=4, length=2, eval_every=150, eval_episodes=2, save_every=50,
        starts=8, seed=1, device="cpu", mixed_precision=False,
    )
    print(json.dumps(loop.online(cfg, Console(stderr=True))))
"""


def test_every_step_of_an_online_run_that_is_killed_is_counted_and_paid_from_the_budget(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ONLINE)
    command = (str(tmp_path / "script.py"), str(tmp_path / "run"))
    rng = random.Random(2)
    for _ in range(3):
        kill_after(tmp_path, rng.randrange(20, 190), *command)
    result = output(tmp_path, *command)
    assert taken(tmp_path) <= result["real_steps"] <= min(taken(tmp_path) + 3, 900)
    assert not Dataset(tmp_path / "run" / "data").skipped and temporaries(tmp_path / "run") == []


def test_writers_that_are_killed_leave_whole_files(tmp_path: Path) -> None:
    found = output(tmp_path, str(TESTS / "drill_files.py"), "kill", "8", str(tmp_path / "drill"), "1")
    assert {name: (drill["kills"], drill["broken"], drill["left"]) for name, drill in found.items()} == {
        name: (8, [], []) for name in found
    }


def test_damaged_files_are_read_unharmed_or_named(tmp_path: Path) -> None:
    found = output(tmp_path, str(TESTS / "drill_files.py"), "fuzz", "15", str(tmp_path / "drill"), "1")
    assert {name: drill["unnamed"] for name, drill in found.items()} == {name: [] for name in found}
    assert all(drill["named"] >= 1 for drill in found.values())  # manifest.json of shards is optional.


FULL = """
import sys
from pathlib import Path
from wm_agents import create_world_model
from wm_agents.errors import describe
from wm_agents.models.saved import load_model, save_bare

out = Path(sys.argv[1])
spaces = {"obs_shape": (4,), "action_dim": 2, "action_type": "discrete"}
save_bare(out / "m", create_world_model("ensemble:default", **spaces, hidden=16))
try:
    save_bare(out / "m", create_world_model("ensemble:default", **spaces, hidden=1024))
except OSError as error:
    print(describe(error))
load_model(out / "m")
print(sorted(path.name for path in out.iterdir()))
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs a mount namespace of its own",
)
def test_a_full_disk_keeps_the_old_model_and_is_named(tmp_path: Path) -> None:
    mounted = f'mount -t tmpfs -o size=2m drill {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted, FULL], env=env, capture_output=True, text=True)
    error, left = done.stdout.splitlines()[-2:]
    assert "No space left on device: " in error and "/m'; free disk space, then run the same command" in error
    assert left == "['m']", done.stderr
