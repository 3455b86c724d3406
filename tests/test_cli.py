"""`wm`: quick help, one line for what is wrong, exit codes, and every flag doing what it says."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import register, registry
from tiny import SQUASH, save_tiny, work_here
from waiting import HANG_S, wait_until

from policies.cmaes import CMAConfig
from policies.ray_pool import RayCluster
from wm_agents.checkpoint import load_artifact
from wm_agents.cli import app as cli
from wm_agents.cli import commands
from wm_agents.data.collect import CollectConfig, CollectSummary
from wm_agents.evaluation import evaluate as evaluating
from wm_agents.factory import create_world_model
from wm_agents.loops.recipes import RECIPES, ImproveConfig
from wm_agents.training.config import TrainingConfig
from wm_envs.dream import DreamConfig
from wm_envs.real import probe
from wm_envs.registry import RealSpec

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the commands pass on, in place of the work."""
    seen: dict[str, Any] = {}

    def keep(name: str, result: Any = None) -> None:
        def fake(*args: Any, **kwargs: Any) -> Any:
            seen.update(kwargs, name=name, args=args)
            return result

        monkeypatch.setattr(commands, name, fake)

    score = {"mean": 1.0, "std": 2.0, "ci95": 3.0}
    keep("improve_rounds")
    keep("learn_online")
    keep("collect_episodes", CollectSummary(1, 2, 8, 100, 0.5, "done", [1.0], 2, 2))
    keep("evolve_artifact")
    keep("judge", {"real": score, "dream": score, "gap": 0.0, "protocol": "standard", "wall_s": 1.0})
    keep("record", 251)
    keep("run_demo", {"real": score})
    return seen


def wm(*args: str) -> int:
    """Exit code of a command run here."""
    try:
        return cli.main(list(args))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_help_lists_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("--help") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if re.match("  [a-z]", line)] == list(cli.COMMANDS)
    topics = list(dict.fromkeys(command.topic for command in cli.COMMANDS.values()))
    assert [line for line in shown if line in topics] == topics


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("--version") == 0 and capsys.readouterr().out == f"wm {importlib.metadata.version('dreams-as-envs')}\n"


def test_images_are_drawn_to_memory_but_the_doctor_looks_for_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert wm("doctor", "--help") == 0 and "SDL_VIDEODRIVER" not in os.environ
    assert wm("video", "--help") == 0 and os.environ["SDL_VIDEODRIVER"] == "dummy"


def test_modules_beside_the_user_are_found(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "my_envs.py").write_text("import gymnasium as gym\ngym.register('Mine-v0', 'toy_env:Echo')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    request.addfinalizer(lambda: gym.registry.pop("Mine-v0"))
    request.addfinalizer(lambda: sys.modules.pop("my_envs"))
    seen: list[str] = []
    monkeypatch.setattr(
        cli, "parser_of", lambda name, flags: seen.append(type(probe(RealSpec(flags[1])).obs_space).__name__)
    )
    wm("improve", "--env", "my_envs:Mine-v0")
    assert seen == ["Box"]


def test_help_is_what_no_command_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm() == wm("-h") == 0
    out = capsys.readouterr().out
    assert out.count("usage: wm COMMAND") == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm(name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: wm {name} ")
    if not cli.COMMANDS[name].target.startswith("commands:"):
        return
    function = getattr(commands, name)
    assert inspect.getdoc(function).splitlines()[0][:40] in out
    assert "Args:" not in out


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if cli.COMMANDS[name].target == f"commands:{name}"])
def test_every_flag_is_read(name: str) -> None:
    (tree,) = ast.parse(inspect.getsource(getattr(commands, name))).body
    assert isinstance(tree, ast.FunctionDef)
    read = {node.id for part in tree.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert {arg.arg for arg in tree.args.args} <= read


def test_an_unknown_command_is_reported_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("evalute") == 2
    assert capsys.readouterr().err == "wm: unknown command 'evalute'; did you mean 'evaluate'?\n"
    assert wm("zzz") == 2
    assert f"expected one of {', '.join(cli.COMMANDS)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("evaluate m --episode 3", "unrecognized arguments: --episode 3; did you mean --episodes?"),
        ("evaluate m --seeed=3", "unrecognized arguments: --seeed=3; did you mean --seed?"),
        ("video m --resync-evry 3", "did you mean --resync-every?"),
        ("evaluate", "the following arguments are required: model; `wm evaluate --help` lists the flags"),
        ("evaluate m --episodes many", "Parser key \"episodes\": Expected a <class 'int'>. Got value: many"),
        ("evolve m out --in space", "Got value: space"),
        ("improve --task CarRcing", "argument --task: invalid choice: 'CarRcing'"),
        ("improve --task CarRacing --vison.total_steps 3", "did you mean --vision.total-steps?"),
        ("improve --out x", "the following arguments are required: spec.id; give --env ID (any Gymnasium id, or"),
    ],
)
def test_wrong_flags_get_one_line_and_do_nothing(
    args: str, text: str, called: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm(*args.split()) == 2
    out, err = capsys.readouterr()
    assert text in err and err.count("\n") == 1 and err.startswith(f"wm {args.split()[0]}: ")
    assert out == "" and called == {}


def test_an_error_is_one_line_and_its_traceback_is_for_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("evaluate", "nowhere") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("wm evaluate: model must be a directory with a config.json or one of")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        wm("evaluate", "nowhere", "--debug")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("seed must be above 0, got -1"), "seed must be above 0, got -1"),
        (
            OSError(28, "No space left on device"),
            "[Errno 28] No space left on device; free disk space, then run the same command again",
        ),
        (RuntimeError("a process died"), "a process died"),
        (KeyError("z"), "KeyError: 'z' (--debug prints the traceback)"),
        (ValueError(), "ValueError:  (--debug prints the traceback)"),
        (ImportError("Minari is needed: pip install minari"), "Minari is needed: pip install minari"),
        (ImportError("cannot import name 'x'"), "ImportError: cannot import name 'x' (--debug prints the traceback)"),
    ],
)
def test_errors_of_ours_speak_plainly_and_others_are_named(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "judge", raising(error))
    assert wm("evaluate", "m") == 1
    assert capsys.readouterr().err == f"wm evaluate: {text}\n"


@pytest.mark.parametrize(
    ("args", "then"),
    [("evolve TINY out", "to resume"), ("evaluate m", "to start over")],
)
def test_an_interruption_exits_with_2_and_says_how_to_resume(
    args: str, then: str, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("judge", "evolve_artifact"):
        monkeypatch.setattr(commands, name, raising(KeyboardInterrupt()))
    name, *rest = args.replace("TINY", tiny).split()
    assert wm(name, *rest) == 2
    assert capsys.readouterr().err == f"wm {name}: interrupted; run the same command {then}\n"


def test_sigterm_is_an_interruption_and_its_handler_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "judge", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert wm("evaluate", "m") == 2
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_terminal_that_knows_ascii_alone_gets_it_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TERM": "dumb", "COLUMNS": "20"}.items():
        monkeypatch.setenv(name, value)
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "ascii"))
    assert wm("models", "info", "Dream-Acrobot-v0") == 0
    shown = terminal.getvalue()
    assert b"\x1b" not in shown and b"Acrobot-v1" in shown and shown.isascii()
    assert b" ? " in shown and not capsys.readouterr().err  # It was a plus-minus.


def test_a_reader_that_has_seen_enough_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert wm("config", "schema") == 1
        assert not capsys.readouterr().err


def test_collect_takes_its_flags(called: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--spec.id CarRacing-v3 --spec.size 64 --spec.action_repeat 4 --spec.kwargs.continuous false --steps 5"
    assert (
        wm(
            "collect",
            "data",
            *flags.split(),
            "--seed",
            "3",
            "--procs",
            "4",
            "--stall",
            "9",
            "--max_gb",
            "0.5",
            "--max_steps",
            "8",
            "--json",
        )
        == 0
    )
    spec = RealSpec("CarRacing-v3", {"continuous": False}, size=64, action_repeat=4)
    assert called["args"][0] == CollectConfig(spec, "data", 5, 3, 4, stall=9, max_steps=8, max_gb=0.5)
    assert called["args"][1] is commands.explorer
    assert json.loads(capsys.readouterr().out)["stopped"] == "done"
    assert (
        wm("collect", "data", "--spec.id", "A-v0", "--policy", "runs/m", "--noise", "[0.0,0.4]", "--leave", "0.5") == 0
    )
    assert called["args"][1].args == ("runs/m", (0.0, 0.4), 0.5, 300)


@pytest.mark.parametrize(
    ("stopped", "code", "text"),
    [
        ("interrupted", 2, "interrupted; run the same command to resume"),
        ("no_space", 1, "stopped by no_space at 7 of 10,000 steps; the data in data are usable"),
        ("max_gb", 1, "stopped by max_gb at 7 of 10,000 steps"),
    ],
)
def test_a_collection_that_stopped_early_does_not_pass_for_done(
    stopped: str, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = CollectSummary(1, 7, 28, 100, 0.5, stopped, [1.0], 7, 7)
    monkeypatch.setattr(commands, "collect_episodes", lambda *args, **kwargs: summary)
    assert wm("collect", "data", "--spec.id", "A-v0", "--json") == code
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 7 and text in err
    assert wm("collect", "data", "--spec.id", "A-v0") == code
    assert capsys.readouterr().out.startswith("data: 1 episodes with 7 steps (7 new; 7 taken ")


def test_evolve_takes_its_flags_and_the_models_own_squash_and_temperature(tiny: str, called: dict[str, Any]) -> None:
    assert wm("evolve", tiny, "runs/out") == 0
    assert called["args"] == (tiny, Path("runs/out"), CMAConfig())
    assert (called["where"], called["dream"]) == ("dream", DreamConfig(1.0, 6))
    assert (called["squash"], called["procs"]) == (SQUASH, 0)  # One batch in this process.
    flags = "--in real --cma.population 8 --cma.seed 4 --horizon 5 --temperature 1.2 --stall 5 --procs 3"
    assert wm("evolve", tiny, "runs/out", *flags.split(), "--squash", '["clip", "clip", "clip"]') == 0
    assert called["args"][2] == CMAConfig(population=8, seed=4)
    assert (called["where"], called["dream"]) == ("real", DreamConfig(1.2, 5, 5))
    assert (called["squash"], called["procs"]) == (("clip", "clip", "clip"), 3)
    assert wm("evolve", tiny, "runs/out", "--ray", "auto", "--procs", "4") == 0
    assert called["procs"] == RayCluster("auto", workers=4)
    assert wm("evolve", tiny, "runs/out", "--horizon", "900") == 0
    assert called["dream"].horizon == 6  # The limit of the environment.
    assert wm("evolve", tiny, "runs/out", "--seed", "6") == 0 and called["args"][2] == CMAConfig(seed=6)


def test_squash_comes_from_the_models_controller_or_else_from_its_tasks_recipe(tiny: str, tmp_path: Path) -> None:
    artifact = load_artifact(tiny)
    weights = artifact.policies["linear"][0]
    tanh = {"linear": (weights, {"kind": "linear", "squash": "tanh,tanh,tanh"})}
    assert commands.usual_squash(replace(artifact, policies=tanh)) == ("tanh", "tanh", "tanh")
    assert commands.usual_squash(replace(artifact, policies={})) == RECIPES["CarRacing"].squash
    other = load_artifact(save_tiny(tmp_path / "pole", RealSpec("CartPole-v1"), controller=False))
    assert commands.usual_squash(other) is None


def test_evaluate_video_and_demo_take_their_flags(
    tiny: str, called: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm("evaluate", "m", "--episodes", "7", "--seed", "1000005", "--procs", "3") == 0
    assert called["args"] == ("m",)
    assert (called["episodes"], called["seed"], called["procs"]) == (7, 1_000_005, 3)
    assert "real   1.0 ± 2.0 (95 % CI of the mean: ± 3.0)" in capsys.readouterr().out
    assert wm("video", tiny, "--out", "a/b.mp4", "--seed", "5", "--resync_every", "null") == 0
    assert called["args"][0] == Path("a/b.mp4")
    assert (called["seed"], called["resync_every"], called["args"][4]) == (5, None, DreamConfig(1.0, 6))
    assert capsys.readouterr().out == "a/b.mp4: 251 frames\n"
    assert wm("demo", "--out", "o", "--generations", "3", "--episodes", "4", "--procs", "1") == 0
    assert called["args"] == (Path("o"),)
    assert (called["generations"], called["episodes"], called["procs"]) == (3, 4, 1)


def test_improve_starts_from_a_tasks_recipe_and_flags_win(called: dict[str, Any]) -> None:
    recipe = RECIPES["CarRacing"]
    assert wm("improve", "--task", "CarRacing") == 0
    assert called["args"][0] == recipe
    assert wm("improve", "--task=CarRacing", "--out", "x", "--cma.generations", "3", "--vision.total_steps", "7") == 0
    vision = recipe.vision.replace(total_steps=7)
    assert called["args"][0] == replace(recipe, out="x", cma=replace(recipe.cma, generations=3), vision=vision)


def test_improve_takes_any_environment(called: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("improve", "--env", "Pendulum-v1", "--rounds", "2") == 0
    cfg = called["args"][0]
    assert (cfg.spec, cfg.out, cfg.rounds, cfg.controller) == (RealSpec("Pendulum-v1"), "runs/pendulum-v1", 2, "ppo")
    assert wm("improve", "--env", "CarRacing-v3") == 0
    assert called["args"][0].spec.size == 64
    assert wm("improve", "--env", "Pendulum-v1", "--task", "CartPole") == 2
    assert "--task CartPole and --env Pendulum-v1 exclude each other" in capsys.readouterr().err


def test_tdmpc2_sees_images_in_threes_unless_reported_otherwise(
    called: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    boxing = ("improve", "--family", "tdmpc2", "--env", "ALE/Boxing-v5")
    for flags, want in (((), True), (("--spec.stack", "False"), False)):
        assert wm(*boxing, *flags) == 0
        assert called["args"][0].spec.stack is want
    memory = ("--spec.kwargs", '{"obs_type": "ram"}', "--spec.size", "null")
    assert wm(*boxing, *memory) == 0
    assert called["args"][0].spec == RealSpec("ALE/Boxing-v5", {"obs_type": "ram"})
    assert wm(*boxing, "--help-all") == 0
    assert "default: True" in capsys.readouterr().out.split("--spec.stack")[-1][:300]


@pytest.mark.parametrize(
    "kwargs", [("--spec.kwargs", '{"size": %d}'), ("--spec.kwargs.size", "%d"), ("--config", "kwargs%d.toml")]
)
@pytest.mark.parametrize(("size", "seen"), [(1, None), (2, 64)])
def test_arguments_of_an_environment_decide_on_its_recipe(
    called: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kwargs: tuple[str, str],
    size: int,
    seen: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"kwargs{size}.toml").write_text(f"[spec]\nkwargs = {{ size = {size} }}\n")
    flags = ("--env", "odd_env:Sized-v0", kwargs[0], kwargs[1] % size)
    assert wm("improve", *flags) == 0
    assert called["args"][0].spec == RealSpec("odd_env:Sized-v0", {"size": size}, size=seen)
    assert wm("improve", "--family", "dreamerv3", *flags) == 0
    assert called["args"][0].spec == RealSpec("odd_env:Sized-v0", {"size": size}, size=seen)


def test_missing_arguments_of_an_environment_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("improve", "--env", "odd_env:Sized-v0") == 1
    said = capsys.readouterr().err
    assert "cannot create odd_env:Sized-v0 with the arguments {}: Sized.__init__() missing 1 required" in said
    assert "give its arguments with --spec.kwargs '{\"name\": 5}', --env-kwargs of `wm init`, or env_kwargs" in said


def test_an_online_recipe_goes_by_episodes_as_flags_and_files_have_them(called: dict[str, Any], tmp_path: Path) -> None:
    assert wm("improve", "--family", "tdmpc2", "--env", "Pendulum-v1", "--spec.action_repeat", "4") == 0
    cfg = called["args"][0]
    assert (cfg.spec.action_repeat, cfg.overrides) == (4, {"episode_length": 50})
    register("Endless-v0", entry_point="gymnasium.envs.classic_control.pendulum:PendulumEnv")
    try:
        assert wm("improve", "--family", "tdmpc2", "--env", "Endless-v0", "--spec.max_episode_steps=30") == 0
        assert called["args"][0].overrides == {"episode_length": 30}
        (tmp_path / "short.toml").write_text('family = "tdmpc2"\n[spec]\nmax_episode_steps = 40\n')
        flags = ("--env", "Endless-v0", "--family", "tdmpc2", "--config", str(tmp_path / "short.toml"))
        assert wm("improve", *flags) == 0
        assert called["args"][0].overrides == {"episode_length": 40}
    finally:
        registry.pop("Endless-v0")


def test_a_recipes_environment_arguments_stay_whole(called: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RealSpec("CarRacing-v3", {"continuous": False, "colours": {"road": [1, 2]}}, size=64)
    monkeypatch.setitem(RECIPES, "CarRacing", replace(RECIPES["CarRacing"], spec=spec))
    assert wm("improve", "--task", "CarRacing") == 0
    assert called["args"][0].spec == spec


def test_improve_reads_a_file_and_flags_win_over_it(
    called: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('out = "from_file"\nrounds = 3\n[spec]\nid = "CartPole-v1"\n[model]\nvision = "identity"\n')
    assert wm("improve", "--config", str(file), "--rounds", "2") == 0
    cfg = called["args"][0]
    assert isinstance(cfg, ImproveConfig) and isinstance(cfg.memory, TrainingConfig)
    assert (cfg.out, cfg.rounds, cfg.spec, cfg.model.vision) == ("from_file", 2, RealSpec("CartPole-v1"), "identity")
    file.write_text(file.read_text().replace("rounds = 3", 'task = "CarRacing"'))
    called.clear()
    assert wm("improve", "--config", str(file)) == 2
    assert "give task and env as --task NAME or --env ID, not in a file" in capsys.readouterr().err
    assert called == {}


def test_evaluate_prints_one_json_object_and_the_same_score_every_time(
    tiny: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wm("evaluate", tiny, "--episodes", "2", "--seed", "1000000", "--procs", "1", "--json") == 0
    out, err = capfd.readouterr()  # What worker processes print, too.
    result = json.loads(out)
    assert out.count("\n") == 1
    assert "real CarRacing-v3 2/2" in err
    work_here(monkeypatch)
    assert {**result, "wall_s": 0} == {**evaluating.evaluate(tiny, episodes=2), "wall_s": 0}


def test_ctrl_c_stops_the_processes_too_and_the_same_command_resumes(tmp_path: Path) -> None:
    out, pole = tmp_path / "out", save_tiny(tmp_path / "pole", RealSpec("CartPole-v1"))
    state = tmp_path / "out.run" / "evolution.json"
    flags = ["evolve", pole, str(out), "--in", "real", "--cma.population", "2", "--cma.rollouts", "1", "--procs", "1"]

    def told() -> int:
        return len(json.loads(state.read_text())["told"]) if state.exists() else 0

    command = [sys.executable, "-m", "wm_agents", *flags, "--cma.generations", "1000"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_until(lambda: told() >= 2, process)
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does: the workers get it as well.
        _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 2, err
    assert err.splitlines()[-1] == "wm evolve: interrupted; run the same command to resume"
    assert "Traceback" not in err
    assert not out.exists()
    assert wm(*flags, "--cma.generations", str(told())) == 0  # All generations are done: only the artifact is missing.
    assert load_artifact(out).policies


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def test_a_file_of_settings_that_is_not_there_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("improve", "--env", "CartPole-v1", "--config", "nofile.toml") == 2
    assert "--config: no such file: 'nofile.toml'" in capsys.readouterr().err


def test_settings_may_stand_where_their_file_would(called: dict[str, Any]) -> None:
    assert wm("improve", "--env", "CartPole-v1", "--config", "rounds = 3") == 0
    assert called["args"][0].rounds == 3


def test_the_settings_that_are_printed_are_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("improve", "--family", "dreamerv3", "--env", "CartPole-v1", "--print_config") == 0
    assert 'size = "size1m"' in capsys.readouterr().out


def test_a_model_saved_alone_gets_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_world_model("ensemble:ci", obs_shape=(4,), action_dim=2).save_pretrained(tmp_path / "alone")
    for command in (("evaluate",), ("evolve", str(tmp_path / "out"))):
        assert wm(command[0], str(tmp_path / "alone"), *command[1:]) == 1
        assert "contains weights only" in capsys.readouterr().err


def test_a_removed_working_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert wm("models", "list") == 1
    assert capsys.readouterr().err == "wm: the working directory was removed; change to another one\n"
