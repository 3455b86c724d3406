"""`wm curriculum`: exit codes, what is printed, the preflight; and a small one for real, killed and resumed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gymnasium.envs.registration import register, registry
from rich.console import Console
from waiting import HANG_S, wait_until

from wm_agents.cli import curriculum as command
from wm_agents.cli.app import main as wm
from wm_agents.curriculum import preflight as check
from wm_agents.curriculum import tasks as curriculum_tasks
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.loops.preflight import Finding
from wm_agents.system.run_folder import FolderInUse, RunFolder

ROOT = Path(__file__).parents[1]


def run(flags: list[str]) -> int:
    """The exit code of `wm curriculum`."""
    return wm(["curriculum", *flags])


class Fake:
    """A curriculum that ends as it is told to."""

    ends: Any = True
    """What `run` gives, or raises."""

    def __init__(self, cfg: CurriculumConfig, courses: list[Any], left_out: dict[str, str], console: Console) -> None:
        self.cfg, self.courses, self.left_out, self.records = cfg, courses, left_out, []
        cfg.root.mkdir(parents=True, exist_ok=True)
        (cfg.root / "run.json").touch()
        Fake.last = self  # type: ignore[attr-defined]

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self) -> bool:
        if isinstance(self.ends, BaseException):
            raise self.ends
        return bool(self.ends)


@pytest.fixture
def pole(tmp_path: Path) -> str:
    file = tmp_path / "pole.toml"
    file.write_text('[[task]]\nname = "CartPole"\n')
    return str(file)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Fake]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "Curriculum", Fake)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # Set back after a test.
    monkeypatch.setattr(command, "look_around", lambda *args: True)
    monkeypatch.setattr(Fake, "ends", True)
    return Fake


@pytest.mark.parametrize(
    "ends, code, said",
    [
        (True, 0, ""),
        (False, 1, ""),
        (KeyboardInterrupt(), 2, "interrupted; run the same command to resume"),
        (ValueError("the disk is full"), 3, "the disk is full"),
        (KeyError("x"), 3, "KeyError: 'x' (--debug prints the traceback)"),
    ],
)
def test_exit_codes(
    fake: type[Fake], pole: str, capsys: pytest.CaptureFixture[str], ends: Any, code: int, said: str
) -> None:
    fake.ends = ends
    assert wm(["curriculum", *["--curriculum", pole]]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_wrong_flags_are_an_error_and_help_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm(["curriculum", *["--amq", "1"]]) == 3
    assert wm(["curriculum", *["--help"]]) == 0
    assert wm(["curriculum", "--curriculum", "clasic"]) == 3
    assert "wm curriculum: unknown curriculum 'clasic'; did you mean 'classic'?" in capsys.readouterr().err


def test_debug_shows_where(fake: type[Fake], pole: str) -> None:
    fake.ends = ValueError("here")
    with pytest.raises(ValueError, match="here"):
        run(["--curriculum", pole, "--debug"])


def test_sigterm_is_as_ctrl_c_and_set_back_after(fake: type[Fake], pole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(fake, "run", lambda self: signal.raise_signal(signal.SIGTERM))
    assert run(["--curriculum", pole]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "flags, tasks",
    [
        ([], ["Pong", "LunarLander", "CarRacing"]),
        (["--prefer-box2d", "False"], ["Pong", "Breakout", "CartPole", "Acrobot"]),
        (["--prefer-box2d", "False", "--curriculum", "core"], ["Pong", "LunarLander", "CarRacing"]),
    ],
)
def test_which_curriculum_is_run(fake: type[Fake], flags: list[str], tasks: list[str]) -> None:
    run(flags)
    assert [course.entry.name for course in fake.last.courses] == tasks  # type: ignore[attr-defined]


def test_what_is_left_out_is_reported(
    fake: type[Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curriculum_tasks, "find_spec", lambda name: None if name == "Box2D" else object())
    assert run([]) == 0
    assert 'skipping CarRacing; to include it: pip install "gymnasium[box2d]"' in capsys.readouterr().err
    assert set(fake.last.left_out) == {"LunarLander", "CarRacing"}  # type: ignore[attr-defined]
    monkeypatch.setattr(curriculum_tasks, "find_spec", lambda name: None)
    assert run([]) == 3
    assert "no environment of the curriculum 'core' is installed: Pong: pip install" in capsys.readouterr().err


def test_a_task_without_an_episode_limit_gets_one(fake: type[Fake], tmp_path: Path) -> None:
    register("Endless-v0", entry_point="gymnasium.envs.classic_control.pendulum:PendulumEnv")
    file = tmp_path / "tasks.toml"
    file.write_text('[[task]]\nname = "CartPole"\n[[task]]\nenv = "Endless-v0"\nthreshold = 0.0\n')
    try:
        for line, limit in (("", 1000), ("max_episode_steps = 50\n", 50)):
            file.write_text(file.read_text() + line)
            assert run(["--curriculum", str(file)]) == 0
            assert fake.last.courses[1].cfg.spec.max_episode_steps == limit  # type: ignore[attr-defined]
    finally:
        registry.pop("Endless-v0")


def test_the_smoke_test_is_the_preflight_alone(fake: type[Fake], pole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.ends = AssertionError("nothing is to be trained")
    for well in (True, False):
        monkeypatch.setattr(command, "look_around", lambda *args, well=well: well)
        assert run(["--curriculum", pole, "--smoke-test", "True"]) == (0 if well else 1)


def test_the_preflight_comes_first_once(
    fake: type[Fake], pole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = []

    def look(cfg: CurriculumConfig, *args: Any) -> bool:
        looks.append(args)
        with pytest.raises(FolderInUse):  # Two of one folder would sweep up after each other.
            RunFolder(cfg.root)
        return len(looks) > 1

    monkeypatch.setattr(command, "look_around", look)
    assert run(["--curriculum", pole]) == 3
    assert "the preflight check failed; --no-preflight starts anyway" in capsys.readouterr().err
    assert not Path("runs/curriculum/run.json").exists()  # What it hints at may be flags that make another run.
    assert run(["--curriculum", pole, "--quick"]) == 0 and len(looks) == 2
    assert run(["--curriculum", pole, "--quick"]) == 0 and len(looks) == 2  # It has begun.
    apart = ["--checkpoint-dir", "apart", "--preflight", "False"]
    assert run(["--curriculum", pole, *apart]) == 0 and len(looks) == 2


def test_a_device_that_is_not_there_is_reported_at_once(
    fake: type[Fake], pole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert run(["--curriculum", pole, "--device", "cuda"]) == 3
    assert "device 'cuda' is not on this machine; use 'cpu'" in capsys.readouterr().err


def test_without_a_display_a_video_takes_the_windows_place_unless_it_must_not(
    fake: type[Fake], pole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    show = ["--curriculum", pole, "--visualize", "True"]
    assert run(show) == 0
    assert "no display: videos/watch.mp4 of each task replaces the window" in capsys.readouterr().err
    assert run([*show, "--render-mode", "rgb_array", "--no-fallback-rgb"]) == 0
    assert run([*show, "--no-fallback-rgb"]) == 3
    assert "needs a display" in capsys.readouterr().err


def test_the_preflight_looks_at_everything(pole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "micro_run", lambda cfg, courses, folder: "a whole curriculum")
    cfg = CurriculumConfig(curriculum=pole, checkpoint_dir=str(tmp_path / "run"))
    courses, _ = command.courses_of(cfg)
    out = io.StringIO()
    assert check.look_around(cfg, courses, Console(file=out, width=200))
    findings = [Finding(**row) for row in json.loads((tmp_path / "run" / "preflight.json").read_text())]
    names = ["device", "CartPole-v1", "videos", "disk", "memory", "a small run of everything"]
    assert [(finding.what, finding.ok) for finding in findings] == [(name, True) for name in names]
    assert out.getvalue().count("  ok   ") == len(names)


def test_the_preflight_finds_what_is_wrong_and_still_looks_at_the_rest(
    pole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr(check, "micro_run", broken)
    monkeypatch.setattr(check, "check_env", broken)
    monkeypatch.setattr(check, "estimate", broken)
    cfg = CurriculumConfig(curriculum=pole, checkpoint_dir=str(tmp_path / "run"))
    assert not check.look_around(cfg, command.courses_of(cfg)[0], Console(file=io.StringIO()))
    findings = {row["what"]: row for row in json.loads((tmp_path / "run" / "preflight.json").read_text())}
    assert [name for name, row in findings.items() if row["ok"]] == ["device", "videos"]
    assert all(row["hint"] for row in findings.values() if not row["ok"])


@pytest.mark.slow
def test_a_micro_run_takes_every_part_from_nothing_to_the_report(tmp_path: Path) -> None:
    cfg = CurriculumConfig()
    courses, _ = command.courses_of(cfg)
    text = check.micro_run(cfg, courses, tmp_path / "micro")
    assert text == "a whole curriculum on ALE/Pong-v5, LunarLander-v3, CarRacing-v3"
    assert not (tmp_path / "micro").exists()


@pytest.mark.slow
def test_a_real_curriculum_killed_twice_continues_to_its_end(tmp_path: Path) -> None:
    file, out = tmp_path / "tasks.toml", tmp_path / "run"
    file.write_text('[[task]]\nname = "CartPole"\nquick_threshold = 15.0\nmax_generations = 20\n')
    args = ["--curriculum", str(file), "--quick", "True", "--checkpoint-dir", str(out), "--preflight", "False"]
    args += ["--record-video", "True", "--episodes-per-eval", "2", "--procs", "1", "--eval-every", "1"]
    start = [sys.executable, str(ROOT / "scripts" / "curriculum_trainer.py"), *args]

    def evaluations() -> int:
        state = out / "state.json"
        tasks = json.loads(state.read_text()).get("tasks", {}) if state.exists() else {}
        return len(tasks["CartPole-v1"]["evaluations"]) if tasks else 0

    for stop, code, least in ((signal.SIGTERM, 2, 1), (signal.SIGKILL, -signal.SIGKILL, 2)):
        process = subprocess.Popen(start, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda least=least: evaluations() >= least, process)
        process.send_signal(stop)
        _, err = process.communicate(timeout=HANG_S)
        assert process.returncode == code, err
    done = subprocess.run(
        start, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    (task,) = json.loads((out / "curriculum_results.json").read_text())["tasks"]
    assert task["solved"] and task["held_out"]["episodes"] == 5
    assert (out / "CartPole-v1" / "videos" / f"gen_{task['generations_trained']:04d}.mp4").stat().st_size > 1000
