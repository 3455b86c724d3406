"""`wm train`: what a wm.toml asks for, told in a manifest; random data never pass for real ones."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from tiny import work_here
from toy_env import Echo

import wm_envs
from wm_agents.checkpoint import sha256
from wm_agents.cli import app as cli
from wm_agents.cli import project as command
from wm_agents.data.dataset import Dataset
from wm_agents.degraded import NO_ENV, RANDOM_DATA, mark_degraded
from wm_agents.errors import ConfigurationError
from wm_agents.evaluation.fidelity.report import fidelity_report
from wm_agents.evaluation.verify.verify import verify
from wm_agents.loops.rounds import Improvement
from wm_agents.models.families import FAMILIES
from wm_agents.pretrained import cached_model, load_model
from wm_agents.project import run as running
from wm_agents.project.curves import _thin, draw_curves
from wm_agents.project.finished import _more as more_of
from wm_agents.project.finished import digest
from wm_agents.project.manifest import INCOMPLETE, MEANINGFUL, SMOKE, _classify, data_facts
from wm_agents.project.noise import _noise, write_noise
from wm_agents.project.offline import _learn, _loss_of_world
from wm_agents.project.run import _Degraded, _find_source, train
from wm_agents.project.scaffold import write_project
from wm_agents.project.schema import Project
from wm_agents.project.settings import load_project
from wm_agents.project.translate import _config_of, online_of, replay_of, rounds_of, spaces_of, spec_of, training_of
from wm_agents.system.run_folder import FolderInUse, RunFolder, read_metrics
from wm_envs.env_id import UnknownEnv

assert Echo and wm_envs
TINY = """\
environment = "toy_env:Echo-v0"
model = "ensemble:ci"
[training]
total_steps = 12
batch_size = 16
log_interval = 4
eval_interval = 6
save_interval = 4
device = "cpu"
[data]
num_steps = 80
max_episode_steps = 12
[online_collection]
enabled = true
warmup_transitions = 40
[controller]
kind = "linear"
iterations = 1
horizon = 4
"""
ACTING = """\
environment = "toy_env:Echo-v0"
model = "{model}"
[training]
batch_size = 4
sequence_length = {length}
log_interval = 5
device = "cpu"
{more}
[data]
num_steps = 150
max_episode_steps = 12
"""


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """All episodes are played in this process, few of them; the fidelity report has tests of its own."""
    work_here(monkeypatch)
    monkeypatch.setattr("wm_agents.loops.finish.fidelity_report", lambda model, out, **more: {})
    monkeypatch.setattr("wm_agents.project.translate.FINAL_EPISODES", 3)
    monkeypatch.setattr("wm_agents.project.offline.FINAL_EPISODES", 3)
    cached_model.cache_clear()


def project(folder: Path, text: str = TINY, **flags: Any) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wm.toml").write_text(text)
    return load_project(folder, {name.replace("__", "."): value for name, value in flags.items()})


def trained(asked: Project, **kwargs: Any) -> tuple[dict[str, Any], str]:
    """The manifest, and what was said."""
    console = Console(file=io.StringIO(), width=300)
    values = train(asked, console=console, **kwargs)
    assert isinstance(console.file, io.StringIO)
    return values, console.file.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Any], str]:
    """A small training that went well."""
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        patch.setattr("wm_agents.loops.finish.fidelity_report", lambda model, out, **more: {})
        patch.setattr("wm_agents.project.translate.FINAL_EPISODES", 3)
        asked = project(tmp_path_factory.mktemp("runs") / "my", gameplay__enabled=True, gameplay__fps=7.0)
        return asked, *trained(asked)


def test_a_training_leaves_a_dream_that_gymnasium_opens(done: tuple[Project, dict[str, Any], str]) -> None:
    asked, _, said = done
    env = gym.make("Dream-v0", model=str(asked.out / "model"))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2,)
    env.step(env.action_space.sample())
    env.close()
    assert said.splitlines()[-3:] == [
        f"{MEANINGFUL}: {asked.out / 'model'}",
        f"next: wm verify --target {asked.out / 'model'}",
        f"      wm evaluate {asked.out / 'model'}",
    ]
    assert sum(line.startswith("policy, real ") for line in said.splitlines()) == 1


def test_the_manifest_describes_what_was_run_on_what(done: tuple[Project, dict[str, Any], str]) -> None:
    asked, values, _ = done
    assert json.loads((asked.out / "run_manifest.json").read_text()) == values
    assert values["schema_version"] == "wm.run_manifest.v1" and values["status"] == "done"
    assert (values["environment"], values["model"], values["family"]) == ("toy_env:Echo-v0", "ensemble:ci", "ensemble")
    assert values["config"]["training"]["total_steps"] == 12 and values["config"]["data"]["num_steps"] == 80
    assert values["plan"]["dynamics"]["total_steps"] == 12 and values["plan"]["controller"] == "linear"
    assert values["seeds"] == {"run": 1, "collect": 1, "judge": 900_000}
    assert values["versions"]["torch"] and values["hardware"]["cores"] and "git" in values and values["command"]
    assert values["degraded_modes"] == [] and values["run_classification"] == MEANINGFUL
    assert {"collect_s", "learn_s", "control_s", "judge_s", "train_s", "this_start_s"} <= values["timings"].keys()
    assert values["scores"]["real"]["episodes"] == 3 and "dream" in values["scores"] and "gap" in values["scores"]
    assert values["artifact"] == {"folder": "model", "sha256": sha256(asked.out / "model" / "config.json")}
    assert values["training"]["film_steps"] > 1
    assert values["started_at"] <= values["ended_at"]


def test_the_manifest_vouches_for_the_data(done: tuple[Project, dict[str, Any], str], tmp_path: Path) -> None:
    asked, values, _ = done
    data = values["data"]
    assert (data["mode"], data["environment"]) == ("online", "toy_env:Echo-v0")
    assert data["steps"] >= 80 and data["seeds"][0] == 1
    assert data_facts(asked.out / "data", "online") == data
    shard = next((asked.out / "data").glob("*.h5"))
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    assert (data_facts(tmp_path, "online") or {})["sha256"] != data["sha256"]
    assert data_facts(tmp_path / "none", "online") is None


def test_what_was_measured_is_logged_and_drawn(done: tuple[Project, dict[str, Any], str]) -> None:
    asked, _, _ = done
    rows = read_metrics(asked.out / "metrics.jsonl")
    assert {"collect/return", "judge/real"} <= {name for row in rows for name in row}
    assert cv2.imread(str(asked.out / "curves.png")).shape[0] > 100
    film = cv2.VideoCapture(str(asked.out / "gameplay.mp4"))
    assert film.get(cv2.CAP_PROP_FPS) == 7 and film.read()[0]


def test_what_is_trained_is_not_trained_again(
    done: tuple[Project, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, values, before = done
    scores = values["scores"]
    monkeypatch.setattr(running, "_learn", lambda *args: pytest.fail("trained again"))
    monkeypatch.chdir(asked.root)
    again, said = trained(asked)
    assert again == values
    here = before.replace(f"{asked.root}/", "")
    assert said.splitlines() == [
        "outputs is already trained; raise online_collection.rounds to continue; for any other change use another "
        "training.output_dir",
        f"real {scores['real']['mean']:.1f} ± {scores['real']['std']:.1f} over 3 held-out episodes, dream "
        f"{scores['dream']['mean']:.1f}",
        *here.splitlines()[-3:],
    ]
    more = {"gameplay__enabled": True, "gameplay__fps": 7.0, "verify__episodes": 9, "inference__horizon": 3}
    assert trained(project(asked.root, **more))[1] == said  # Nothing that a training reads.
    with pytest.raises(ConfigurationError) as error:
        trained(project(asked.root, gameplay__enabled=True, gameplay__fps=7.0, training__total_steps=13))
    assert str(error.value) == (
        "outputs is already trained with other settings: training.total_steps was 12, now 13; raise "
        "online_collection.rounds to continue; for any other change use another training.output_dir"
    )


def test_a_key_that_came_later_leaves_what_is_finished_finished() -> None:
    before = {"data.size": 64, "training.seed": 1, "controller.kind": None}
    assert digest(before) == digest({**before, "data.stack": False}) != digest({**before, "data.stack": True})


def test_a_finished_run_continues_with_what_it_says(tmp_path: Path) -> None:
    first, _ = trained(project(tmp_path))
    again, said = trained(project(tmp_path, online_collection__rounds=3, training__total_steps=13))
    assert "round 2 of 3: collect" in said and "round 1 of" not in said
    assert again["data"]["steps"] > first["data"]["steps"] and again["config"]["training"]["total_steps"] == 13
    for name, more in (("ensemble", "use another training.output_dir"), ("tdmpc2", "raise training.total_steps")):
        text = TINY.replace("ensemble", name).split("[controller]")[0].replace("enabled = true", "enabled = false")
        assert more in more_of(project(tmp_path / name, text))
    text = ACTING.format(model="tdmpc2:ci", length=2, more="") + "[online_collection]\nenabled = true\n"
    acting = project(tmp_path / "acts", text, online_collection__warmup_transitions=60)
    assert "raise data.num_steps" in more_of(acting)


def test_the_projects_own_scripts_run(
    done: tuple[Project, dict[str, Any], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, _ = done
    write_project(asked.root, asked.environment, asked.model, force=True)
    (asked.root / "wm.toml").write_text(TINY)
    monkeypatch.setattr(running, "_learn", lambda *args: pytest.fail("trained again"))
    assert script(asked.root / "dataset.py", monkeypatch) == 0
    assert "episodes, " in (out := capsys.readouterr().out) and "ReplayBuffer(" in out
    assert script(asked.root / "inference.py", monkeypatch) == 0
    assert "dreamed " in capsys.readouterr().out and (asked.out / "dream.mp4").is_file()
    (asked.root / "wm.toml").write_text(TINY + "[gameplay]\nenabled = true\nfps = 7.0\n")
    assert script(asked.root / "train.py", monkeypatch) == 0
    assert "is already trained" in capsys.readouterr().err


def script(path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """The exit code of a script of a project, run as Python runs it."""
    monkeypatch.setattr(sys, "argv", [str(path), *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    return stop.value.code


def test_the_projects_own_scripts_end_as_commands_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, "toy_env:Echo-v0", "ensemble:ci", force=True)
    (tmp_path / "wm.toml").write_text(TINY)
    assert script(tmp_path / "inference.py", monkeypatch) == 1
    assert capsys.readouterr().err == (
        f"inference.py: {tmp_path} is an untrained project: run `wm train` in it; its model will be "
        f"{tmp_path}/outputs/model\n"
    )
    assert script(tmp_path / "dataset.py", monkeypatch) == 1
    assert capsys.readouterr().err.startswith(f"dataset.py: no dataset at {tmp_path}/outputs/data")
    monkeypatch.setattr(sys, "argv", ["inference.py", "--debug"])
    with pytest.raises(FileNotFoundError):
        runpy.run_path(str(tmp_path / "inference.py"), run_name="__main__")

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wm_agents.pretrained.load_model", stop)
    assert script(tmp_path / "inference.py", monkeypatch) == 2
    assert capsys.readouterr().err == "inference.py: interrupted\n"
    monkeypatch.setattr(Improvement, "collect", stop)
    assert script(tmp_path / "train.py", monkeypatch, "--training.seed", "3") == 2
    assert capsys.readouterr().err.endswith("wm train: interrupted; run the same command to resume\n")
    assert json.loads((tmp_path / "outputs" / "run_manifest.json").read_text())["seeds"]["run"] == 3


def test_a_run_that_was_stopped_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(project(tmp_path / "whole"))
    control: Callable[[Improvement], Any] = Improvement.control

    def stop(self: Improvement) -> dict[str, float]:
        raise KeyboardInterrupt

    asked = project(tmp_path / "parts")
    console = Console(file=io.StringIO(), width=300)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Improvement, "control", stop)
        train(asked, console=console)
    values = json.loads((asked.out / "run_manifest.json").read_text())
    assert (values["status"], values["run_classification"]) == ("interrupted", INCOMPLETE)
    assert values["data"]["steps"] >= 40 and values["scores"] is None and values["artifact"] is None
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"steps of data, round 0 up to 'control', the last training checkpoint, in {asked.out}" in said
    assert Improvement.control is control
    again, _ = trained(asked)
    assert again["scores"]["real"]["returns"] == whole["scores"]["real"]["returns"]
    assert again["scores"]["dream"]["returns"] == whole["scores"]["dream"]["returns"]
    assert again["data"]["sha256"] == whole["data"]["sha256"]


def test_a_run_that_failed_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Improvement) -> dict[str, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Improvement, "collect", fail)
    asked = project(tmp_path)
    with pytest.raises(OSError, match="No space"):
        trained(asked)
    values = json.loads((asked.out / "run_manifest.json").read_text())
    assert (values["status"], values["run_classification"], values["data"]) == ("failed", INCOMPLETE, None)


def test_another_run_does_not_take_the_folder_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_learn", lambda *args: {})
    monkeypatch.setattr(running, "_finish", lambda *args: None)
    trained(project(tmp_path))
    with pytest.raises(ValueError, match=r"contains a run with other settings: seeds.run was 1, now 5"):
        trained(project(tmp_path, training__seed=5))
    for changes in ({"architecture__hidden": 7}, {"online_collection__warmup_transitions": 41}):
        ((name, value),) = changes.items()
        with pytest.raises(
            ValueError, match=rf"with other settings: config.{name.replace('__', '.')} was .*, now {value}"
        ):
            trained(project(tmp_path, **changes))
    trained(project(tmp_path, training__total_steps=13, controller__iterations=2, verify__episodes=3))
    with RunFolder(tmp_path / "outputs"), pytest.raises(FolderInUse, match="outputs is in use by process"):
        trained(project(tmp_path, training__total_steps=14))


def test_what_does_not_fit_the_environment_is_reported_before_any_work(tmp_path: Path) -> None:
    said = TINY + "[architecture]\nobs_shape = [2]\naction_dim = 3\naction_type = 'continuous'\n"
    with pytest.raises(ConfigurationError) as error:
        trained(project(tmp_path, said, architecture__obs_shape=(3,)))
    assert str(error.value) == (
        "[architecture] in wm.toml does not match toy_env:Echo-v0:\n"
        "  --architecture.obs_shape: architecture.obs_shape is (3,), but (2,) in toy_env:Echo-v0\n"
        "  line 22: architecture.action_dim is 3, but 1 in toy_env:Echo-v0\n"
        "remove these optional keys, or create a new project: "
        "`wm init FOLDER --env toy_env:Echo-v0`"
    )
    with pytest.raises(ValueError, match="needs a Box of vectors|pixels"):
        trained(project(tmp_path, data__env_kwargs={"pixels": True}))
    with pytest.raises(UnknownEnv, match="the nearest are Echo-v0"):
        trained(project(tmp_path, environment="toy_env:Eco-v0"))
    endless = TINY.replace("max_episode_steps = 12\n", "")
    with pytest.raises(ConfigurationError, match=r"has no episode limit; set max_episode_steps in \[data\]"):
        trained(project(tmp_path, endless))
    assert not (tmp_path / "outputs").exists()


def test_random_data_are_an_error_unless_allowed(tmp_path: Path) -> None:
    asked = project(tmp_path, data__source="random", online_collection__enabled=False)
    with pytest.raises(
        _Degraded, match="so the model will be meaningless; .* `wm train --allow-degraded` to do it anyway"
    ):
        trained(asked)
    assert not asked.out.exists()
    values, said = trained(asked, allow_degraded=True)
    assert values["degraded_modes"] == [RANDOM_DATA] and values["run_classification"] == SMOKE
    assert values["status"] == "done" and values["scores"] is None and values["data"]["mode"] == "random"
    assert said.count("DEGRADED: random_data: the model was trained on random data") == 2
    assert MEANINGFUL not in said and MEANINGFUL not in (asked.out / "run_manifest.json").read_text()
    _, artifact = load_model(asked.out / "model")
    assert artifact.config["degraded_modes"] == [RANDOM_DATA]
    assert "# DEGRADED" in (asked.out / "model" / "README.md").read_text()
    found = verify(str(asked.out / "model"), episodes=1, procs=1)
    assert not found.verified and found.degraded_modes == [RANDOM_DATA]
    env = gym.make("Dream-v0", model=str(asked.out / "model"))
    env.reset(seed=0)
    env.close()


def test_no_environment_is_an_error_unless_allowed(tmp_path: Path) -> None:
    text = 'environment = "Nowhere-v0"\nmodel = "ensemble:ci"\n[training]\ntotal_steps = 3\n[data]\nnum_steps = 200\n'
    with pytest.raises(UnknownEnv, match="no environment 'Nowhere-v0' is installed"):
        trained(project(tmp_path, text))
    with pytest.raises(ConfigurationError, match=r"\[architecture\] needs obs_shape and action_dim"):
        trained(project(tmp_path, text), allow_degraded=True)
    asked = project(tmp_path, text, architecture__obs_shape=(4,), architecture__action_dim=2)
    values, said = trained(asked, allow_degraded=True)
    assert values["degraded_modes"] == [NO_ENV, RANDOM_DATA] and values["run_classification"] == SMOKE
    assert "DEGRADED: no_environment: the real environment could not be created" in said
    assert load_model(asked.out / "model")[0].obs_space.shape == (4,)
    online = project(tmp_path, text, online_collection__enabled=True, data__num_steps=600)
    with pytest.raises(_Degraded, match="online collection is not possible: no environment 'Nowhere-v0'"):
        trained(online, allow_degraded=True)


def test_every_report_on_a_degraded_model_reports_it(
    done: tuple[Project, dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(done[0].out / "model", tmp_path / "model")
    assert wm("evaluate", str(model), "--episodes", "2") == 0
    assert "DEGRADED" not in capsys.readouterr().out
    mark_degraded(model, [RANDOM_DATA])
    assert wm("evaluate", str(model), "--episodes", "2") == 0
    assert "DEGRADED: random_data" in capsys.readouterr().out
    assert wm("evaluate", str(model), "--episodes", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["degraded_modes"] == [RANDOM_DATA]
    result = fidelity_report(str(model), tmp_path / "fidelity", procs=1, quick=True)
    assert result["degraded_modes"] == [RANDOM_DATA]
    assert "DEGRADED: random_data. The dream of" in (tmp_path / "fidelity" / "fidelity.html").read_text()


@pytest.mark.parametrize("status", ["running", "done", "interrupted", "failed"])
def test_nothing_makes_a_degraded_run_meaningful(status: Any) -> None:
    for degraded in ([RANDOM_DATA], [NO_ENV], [NO_ENV, RANDOM_DATA], ["anything"]):
        assert _classify(status, degraded) == SMOKE
    assert _classify(status, []) == (MEANINGFUL if status == "done" else INCOMPLETE)


def test_noise_is_the_same_for_the_same_seed_and_of_the_right_shape(tmp_path: Path) -> None:
    asked = project(tmp_path)
    spaces = spaces_of(asked, spec_of(asked))
    first, again = (list(_noise(spaces, 250, 100, seed=3)) for _ in range(2))
    assert len(first) == 3 and all(np.array_equal(a.obs, b.obs) for a, b in zip(first, again))
    assert (
        first[0].obs.shape == (101, 2) and first[0].act.shape == (100, 1) and {ep.term for ep in first} <= {True, False}
    )
    pixels = spaces_of(asked, None) if False else (gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces[1])
    assert next(_noise(pixels, 5, 5, seed=0)).obs.dtype == np.uint8


@pytest.mark.parametrize(
    ("model", "length", "more", "online"),
    [
        pytest.param(
            "tdmpc2:ci",
            2,
            "",
            "enabled = true\nwarmup_transitions = 60\ncollect_steps_per_update = 10",
            marks=pytest.mark.slow,
        ),
        ("tdmpc2:ci", 2, "total_steps = 6", "enabled = false"),
        ("dreamerv3:ci", 6, "total_steps = 3", "enabled = false"),
    ],
)
def test_families_that_learn_to_act_are_trained_too(
    model: str, length: int, more: str, online: str, tmp_path: Path
) -> None:
    text = ACTING.format(model=model, length=length, more=more) + f"[online_collection]\n{online}\n"
    asked = project(tmp_path, text)
    values, _ = trained(asked)
    assert values["run_classification"] == MEANINGFUL and values["scores"]["real"]["episodes"] == 3
    assert values["data"]["mode"] == ("online" if "true" in online else "offline")
    assert values["training"]["updates"] > 0 and list(asked.out.glob("**/strips/*.png"))
    assert any("memory/process_gb" in row for row in read_metrics(asked.out / "metrics.jsonl"))
    assert load_model(asked.out / "model")[1].policies


def test_patience_without_a_held_out_window_is_reported_in_the_projects_words(tmp_path: Path) -> None:
    text = ACTING.format(model="tdmpc2:ci", length=30, more="patience = 3")
    asked = project(tmp_path, text)
    spaces = spaces_of(asked, spec_of(asked))
    write_noise(tmp_path / "data", spaces, 100, 10, seed=0)
    with pytest.raises(
        ConfigurationError, match="need held-out windows of 30 steps, .* lower training.sequence_length"
    ):
        _learn(asked, spaces, Dataset(tmp_path / "data"), Console(file=io.StringIO()))


def test_a_plan_of_rounds_is_the_recipe_with_what_is_said(tmp_path: Path) -> None:
    asked = project(tmp_path, training__seed=9, data__episode_length=7, controller__horizon=11, architecture__members=3)
    cfg = rounds_of(asked, spaces_of(asked, spec_of(asked)))
    assert (cfg.rounds, cfg.random_steps, cfg.round_steps, cfg.max_steps) == (2, 40, 40, 7)
    assert (cfg.family, cfg.ensemble.members, cfg.ensemble.hidden) == ("ensemble", 3, 32)
    assert (cfg.dynamics.total_steps, cfg.dynamics.batch_size, cfg.dynamics.learning_rate) == (12, 16, 1e-3)
    assert (cfg.controller, cfg.cma.generations, cfg.ppo.iterations, cfg.horizon) == ("linear", 1, 1, 11)
    assert (cfg.seed, cfg.spec.max_episode_steps, cfg.judge_episodes) == (9, 12, 10)
    for one in (asked, project(tmp_path)):
        assert training_of(one).seed == rounds_of(one, spaces_of(one, spec_of(one))).dynamics.seed
    alone = project(tmp_path, online_collection__enabled=False)
    cfg = rounds_of(alone, spaces_of(alone, spec_of(alone)))
    assert (cfg.rounds, cfg.random_steps, cfg.judge_episodes) == (1, 80, 0)
    vmc = project(tmp_path, TINY.replace("ensemble:ci", "vmc:ci"), training__sequence_length=5)
    cfg = rounds_of(vmc, spaces_of(vmc, spec_of(vmc)))
    assert (cfg.family, cfg.window, cfg.model.vision, cfg.model.hidden) == ("vmc", 5, "identity", 32)
    assert cfg.vision.total_steps == cfg.memory.total_steps == 12 and cfg.memory.grad_clip == 1.0


def test_a_plan_of_online_steps_is_the_recipe_with_what_is_said(tmp_path: Path) -> None:
    text = ACTING.format(model="tdmpc2:ci", length=3, more="learning_rate = 0.5") + "buffer_capacity = 99\n"
    online = {"warmup_transitions": 60, "collect_steps_per_update": 4, "num_envs": 2, "enabled": True}
    flags = {f"online_collection__{name}": value for name, value in online.items()}
    cfg = online_of(project(tmp_path, text, architecture__hidden_dim=48, **flags))
    assert (cfg.size, cfg.real_steps, cfg.prefill, cfg.num_envs, cfg.capacity) == ("ci", 150, 60, 2, 99)
    assert (cfg.batch_size, cfg.length, cfg.learning_rate, cfg.updates_per_step) == (4, 3, 0.5, 0.25)
    assert cfg.overrides["hidden_dim"] == 48 and cfg.overrides["episode_length"] == 12
    assert cfg.optimizer == "adam" and cfg.grad_clip == 20.0  # The recipe's.
    assert cfg.spec == spec_of(project(tmp_path, text, **flags))


def test_learning_from_a_buffer_goes_by_the_familys_own_settings(tmp_path: Path) -> None:
    text = ACTING.format(model="dreamerv3:ci", length=9, more="total_steps = 4")
    cfg = replay_of(project(tmp_path, text))
    facts = FAMILIES["dreamerv3"]
    assert (cfg.optimizer, cfg.learning_rate) == ("laprop", facts.online["learning_rate"])
    assert cfg.warmup_steps == facts.online["warmup_steps"]
    pixels = replay_of(project(tmp_path, text, data__size=64))
    assert pixels.learning_rate == facts.online_pixels["learning_rate"] != cfg.learning_rate
    assert (cfg.total_steps, cfg.sequence_length, cfg.batch_size) == (4, 9, 4)


def test_an_online_budget_that_cannot_do_and_lives_are_reported_before_any_work(tmp_path: Path) -> None:
    text = ACTING.format(model="tdmpc2:ci", length=3, more="")
    online: dict[str, Any] = {"online_collection__enabled": True, "online_collection__warmup_transitions": 140}
    with pytest.raises(ConfigurationError, match="real_steps must be at least"):
        trained(project(tmp_path, text, **online))
    with pytest.raises(ConfigurationError, match="does not support lives_end; remove it"):
        online_of(project(tmp_path, text, data__lives_end=True, **online))
    assert not (tmp_path / "outputs").exists()


def test_tdmpc2_looks_ahead_by_the_episodes_of_the_environment(tmp_path: Path) -> None:
    asked = project(tmp_path, ACTING.format(model="tdmpc2:ci", length=3, more=""))
    assert _config_of(asked, spaces_of(asked, spec_of(asked))[0]).episode_length == 12  # type: ignore[attr-defined]


def test_the_best_weights_are_chosen_by_what_is_known_of_the_world() -> None:
    assert _loss_of_world({"loss": -9.0, "rec": 2.0, "rew": 1.0, "policy": -12.0, "value": 0.5}) == 3.0
    assert _loss_of_world({"loss": 4.0, "move": 2.0}) == 4.0


def test_a_game_of_the_ale_is_seen_as_data_says(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    text = TINY.replace("toy_env:Echo-v0", "ALE/Pong-v5").replace("ensemble:ci", "vmc:ci")
    asked = project(tmp_path, text, data__size=64, data__env_kwargs={"obs_type": "grayscale"})
    assert _find_source(asked, allow_degraded=False).spec == spec_of(asked)


def test_curves_are_thinned_to_means() -> None:
    assert _thin(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
    assert _thin(np.arange(3.0), 9).tolist() == [0, 1, 2]


def drawn(out: Path, monkeypatch: pytest.MonkeyPatch, most: int = 100) -> dict[str, Any]:
    """The axes of curves.png by title."""
    found: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: found.append(self) or savefig(self, *args, **kw))
    assert draw_curves(out, most) == out / "curves.png"
    return {axes.get_title(): axes for axes in found[-1].axes}


def test_a_curve_begins_again_with_each_round_and_says_over_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(path: Path, rows: list[dict[str, float]]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    rows: list[dict[str, float]] = []
    for index in range(2):
        rows += [{"step": index, "collect/return": 20.0 * index}]
        rows += [{"step": 3 * index + i, "dream/return": 10.0 * i} for i in (1, 2, 3)]
        rows += [{"step": index, "judge/real": 50.0}]
        losses: list[dict[str, float]] = [{"step": step, "train/loss": 9.0 / step} for step in (4, 8, 12)]
        log(tmp_path / f"round-0{index}" / "dynamics", losses)
    log(tmp_path, rows)
    axes = drawn(tmp_path, monkeypatch)
    lines = {title: [line.get_xydata().tolist() for line in each.lines] for title, each in axes.items()}
    assert lines["training loss"] == [[[4, 2.25], [8, 1.125], [12, 0.75]]] * 2
    assert lines["dream return"] == [[[1, 10], [2, 20], [3, 30]], [[4, 10], [5, 20], [6, 30]]]
    assert lines["real return of a round"] == [[[0, 50], [1, 50]]]
    assert {title: each.get_xlabel() for title, each in axes.items()} == {
        "training loss": "updates", "dream return": "iterations of the controller",
        "return during collection": "round", "real return of a round": "round",
    }  # fmt: skip
    assert [line.get_label() for line in axes["training loss"].lines] == ["round 0 dynamics", "round 1 dynamics"]
    online = [{"step": 50 * i, "train/loss": 1.0, "train/updates": i} for i in range(3)]
    log(tmp_path / "online", [*online, {"step": 150, "eval/real/return": 3.0}, {"step": 200, "eval/real/return": 4.0}])
    axes = drawn(tmp_path / "online", monkeypatch, most=2)
    assert {each.get_xlabel() for each in axes.values()} == {"real steps"}
    assert [len(each.lines[0].get_xydata()) for each in axes.values()] == [2, 2]


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert draw_curves(tmp_path, 10) is None


def wm(*args: str) -> int:
    try:
        return cli.main(list(args))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_the_command_reads_the_file_and_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(running, "train", lambda asked, **kwargs: seen.append((asked, kwargs)))
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert wm("train") == 0
    assert (
        wm("train", "--allow-degraded", "--training.total_steps", "5", "--architecture.hidden=7", "--config", ".") == 0
    )
    (plain, first), (changed, second) = seen
    assert plain == load_project(tmp_path) and first == {"allow_degraded": False, "budget": None, "quick": False}
    assert second == {**first, "allow_degraded": True}
    assert changed.training["total_steps"] == 5 and changed.architecture == {"hidden": 7}


def test_wrong_settings_are_an_error_and_wrong_flags_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wm("train") == 1
    assert capsys.readouterr().err.startswith(
        "wm train: wm.toml does not exist; create it with `wm init FOLDER --env ID`"
    )
    (tmp_path / "wm.toml").write_text(TINY + "colour = 3\n")
    assert wm("train", "--training.batch_size", "0") == 1
    err = capsys.readouterr().err
    assert err.startswith("wm train: wm.toml has 2 errors\n  --training.batch_size: training.batch_size must be")
    assert "line 20: controller.colour is unknown; known keys: horizon, iterations, kind" in err
    assert wm("train", "--training.batch_sise", "3") == 2
    assert "did you mean --training.batch-size?" in capsys.readouterr().err
    assert wm("train", "--verify.mode", "proof") == 2


def test_ctrl_c_exits_with_2_and_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Improvement) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Improvement, "learn", stop)
    project(tmp_path)
    assert wm("train", "--config", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert "saved: " in err and err.endswith("wm train: interrupted; run the same command to resume\n")


def test_an_environment_that_is_not_here_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path)
    assert wm("train", "--config", str(tmp_path), "--environment", "CartPol-v1") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the nearest are CartPole-v1" in err


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, done: tuple[Project, dict[str, Any], str]) -> Path:
    """The folder of the trained project, its verification made small."""
    monkeypatch.chdir(done[0].root)
    (done[0].root / "wm.toml").write_text(TINY + "[verify]\nepisodes = 1\nproof_episodes = 2\n")
    return done[0].root


def test_verify_takes_up_the_projects_model_and_settings(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = wm("verify", "--procs", "1", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(judged / "outputs" / "model") and found["mode"] == "quick" and found["episodes"] == 4
    assert status == (command.VERIFIED if found["verified"] else command.NOT_VERIFIED)
    assert not (judged / "outputs" / "evidence").exists()


def test_proof_leaves_evidence_that_verify_reads(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = wm("verify", "--target", "outputs/model", "--mode", "proof", "--procs", "1")
    out, err = capsys.readouterr()
    assert "return gap" in out and "evidence: outputs/evidence\n" in err
    assert wm("verify", "--target", "outputs/evidence") == status
    assert capsys.readouterr().out == out
    (judged / "outputs" / "evidence" / "report.txt").write_text("verified!")
    assert wm("verify", "--target", "outputs/evidence") == 3
    assert "report.txt was changed" in capsys.readouterr().err
    quick = wm("verify", "--procs", "0")
    assert wm("verify", "--evidence-bundle", "elsewhere", "--procs", "0") == quick
    assert (judged / "elsewhere" / "manifest.json").is_file()


def test_a_result_an_error_and_wrong_flags_have_codes_of_their_own(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm("verify", "--target", "nowhere") == 3
    assert "model must be a directory" in capsys.readouterr().err
    assert wm("verify", "--target", "outputs/model", "--mode", "demo") == 2
    assert wm("verify", "--targett", "outputs/model") == 2
    assert wm("verify", "--mode", "quick", "--proof-episodes", "5") == 3
    assert "proof_episodes applies to --mode proof only, got --mode quick" in capsys.readouterr().err
    data = judged / "outputs" / "model" / "README.md"
    before = data.read_text()
    data.write_text("changed")
    assert wm("verify", "--target", "outputs/model") == 1
    assert "FAIL artifact" in capsys.readouterr().out
    data.write_text(before)
