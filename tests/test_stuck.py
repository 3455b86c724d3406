"""Environments that hang, end their process or raise what cannot be raised: named, and ended when it is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bad_env import Unpicklable
from toy_env import make_random
from toy_policy import Always
from waiting import HANG_S, wait_until, wait_until_gone

from policies.play import EpisodeTask, play
from policies.pool import WorkerPool
from wm_agents.cli import app as cli
from wm_agents.cli import commands
from wm_agents.data.collect import CollectConfig, collect
from wm_envs.registry import RealSpec

TESTS = Path(__file__).parent


def bad(how: str, **kwargs: object) -> RealSpec:
    return RealSpec("bad_env:Bad-v0", kwargs={"how": how, **kwargs})


@pytest.mark.parametrize("how", ["hang", "spin"])
def test_a_worker_that_hangs_is_ended_and_named(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WM_STEP_TIMEOUT", "0.5")
    text = r"a step or reset took longer than 0.5 s, so the workers were killed; .* set WM_STEP_TIMEOUT to more seconds"
    with pytest.raises(RuntimeError, match=f"^bad_env:Bad-v0: {text}.*unfinished seeds: .*7"):
        list(play(bad(how), Always, [EpisodeTask(seed, (0.5,)) for seed in (7, 8)], procs=2))
    with pytest.raises(
        RuntimeError, match=f"^bad_env:Bad-v0, seeds 0 to 7: {text}.*the shards already written to .* are kept"
    ):
        collect(CollectConfig(bad(how), str(tmp_path), steps=100, seed=0, procs=1), make_random)


def test_a_limit_that_is_not_a_number_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "-1", "inf", "nan", ""):
        monkeypatch.setenv("WM_STEP_TIMEOUT", text)
        with pytest.raises(ValueError, match=f"WM_STEP_TIMEOUT must be seconds, or 0 for no limit, got {text!r}"):
            WorkerPool(None, 1)


@pytest.mark.parametrize("procs", [0, 1])
def test_an_environment_that_ends_the_program_is_named(procs: int) -> None:
    with pytest.raises(RuntimeError, match=r"policy raised SystemExit\(3\), which would end the program"):
        list(play(bad("system exit"), Always, [EpisodeTask(0, (0.5,))], procs=procs))


def test_a_keyboard_interrupt_of_an_environment_in_a_worker_is_not_taken_for_one_of_the_user() -> None:
    with pytest.raises(RuntimeError, match=r"raised KeyboardInterrupt\(\), which would end the program"):
        list(play(bad("ctrl-c"), Always, [EpisodeTask(0, (0.5,))], procs=1))


def test_an_error_that_cannot_be_pickled_keeps_its_type_and_text() -> None:
    with pytest.raises(RuntimeError, match="^Unpicklable: joint knee at 0.5$"):
        list(play(bad("unpicklable"), Always, [EpisodeTask(0, (0.5,))], procs=1))
    with pytest.raises(Unpicklable):
        list(play(bad("unpicklable"), Always, [EpisodeTask(0, (0.5,))], procs=0))


def leaves(code: int) -> None:
    raise SystemExit(code)


def test_a_command_that_a_library_ends_reports_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "judge", lambda *args, **more: leaves(7))
    assert cli.main(["evaluate", "m"]) == 1
    assert capsys.readouterr().err == "wm evaluate: an environment, or another library, raised SystemExit(7)\n"


SCRIPT = """
import sys
from functools import partial
from toy_env import make_random
from toy_policy import Always
from policies.play import EpisodeTask, play
from wm_agents.data.collect import CollectConfig, collect
from wm_envs.registry import RealSpec

if __name__ == "__main__":
    what, how, out, mark = sys.argv[1:]
    spec = RealSpec("bad_env:Bad-v0", kwargs={"how": how, "mark": mark})
    try:
        if what == "collect":
            collect(CollectConfig(spec, out, steps=100, seed=0, procs=2), make_random)
        else:
            list(play(spec, Always, [EpisodeTask(seed, (0.5,)) for seed in range(2)]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.drill
@pytest.mark.parametrize(
    "what, how, signum", [("collect", "hang", "SIGTERM"), ("collect", "spin", "SIGINT"), ("play", "spin", "SIGINT")]
)
def test_a_second_signal_ends_hanging_workers_at_once(tmp_path: Path, what: str, how: str, signum: str) -> None:
    script, mark, log = tmp_path / "script.py", tmp_path / "mark", tmp_path / "log"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), what, how, str(tmp_path / "data"), str(mark)]
    with (
        log.open("w") as err,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True
        ) as proc,
    ):
        wait_until(mark.exists, proc)
        os.kill(proc.pid, signal.Signals[signum])
        if what == "collect":
            wait_until(lambda: "whole shards are kept; press again to stop at once" in log.read_text(), proc)
            os.kill(proc.pid, signal.Signals[signum])
        stdout, _ = proc.communicate(timeout=HANG_S)
        assert (proc.returncode, stdout) == (0, "interrupted\n"), log.read_text()
    assert "Traceback" not in log.read_text()
    wait_until_gone(proc.pid)
