"""The ids: both forms of gym.make in a fresh interpreter, and vectors made ours and Gymnasium's way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import save_tiny

import wm_envs
from wm_agents.models.saved import STORE
from wm_envs.checker import check_vector_env
from wm_envs.dream import DreamEnv, DreamVectorEnv
from wm_envs.real import make_real
from wm_envs.registry import (
    TASKS,
    RealSpec,
    Task,
    has_sticky_actions,
    protocol_of,
    register_envs,
    without_sticky_actions,
)

ROOT = Path(wm_envs.__file__).parents[1]
SHIPPED = [task for task in TASKS.values() if (STORE / task.model).is_dir()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("ids") / "model")


def fresh(code: str) -> str:
    """What `code` prints in an interpreter that has imported nothing, where warnings are errors."""
    args = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("Dream-v0", {"temprature": 1.0}, "unknown argument 'temprature' of a dream; did you mean 'temperature'"),
        ("Dream-v0", {"zzz": 1.0}, "unknown argument 'zzz' of a dream; it takes autoreset_mode, "),
        ("Real-v0", {"obss": "latent"}, "unknown argument 'obss' of a real environment; did you mean 'obs'"),
    ],
)
def test_a_misspelt_keyword_gets_the_nearest(model: str, name: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make(name, model=model, **keywords)
    if name == "Dream-v0":
        with pytest.raises(ValueError, match=message):
            gym.make_vec(name, num_envs=2, model=model, **keywords)


def test_an_id_with_its_module_needs_no_import(model: str) -> None:
    code = f"""
import gymnasium as gym
env = gym.make("wm_envs:Dream-v0", model={model!r}, obs="latent")
env.reset(seed=0)
envs = gym.make_vec("wm_envs:Dream-v0", num_envs=3, model={model!r})
print(env.step(env.action_space.sample())[0].shape, envs.reset(seed=0)[0].shape)
"""
    assert fresh(code) == "(12,) (3, 32, 32, 3)"


def test_importing_the_package_registers_its_ids(model: str) -> None:
    code = f"""
import gymnasium as gym, wm_envs
env = gym.make("Dream-v0", model={model!r})
print(sorted(name for name in gym.registry if "Dream" in name or "Real" in name), env.reset(seed=0)[0].shape)
"""
    names = ["Acrobot", "Breakout", "CarRacing", "CartPole", "LunarLander", "Pong"]
    ids = sorted(f"{kind}{name}-v0" for kind in ("Dream", "Real") for name in ("", *(f"-{name}" for name in names)))
    assert fresh(code) == f"{ids} (32, 32, 3)"


def test_registering_needs_no_torch_and_no_ale() -> None:
    assert fresh("import sys, wm_envs; print([m for m in ('torch', 'ale_py', 'cv2') if m in sys.modules])") == "[]"


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_a_shipped_dream_and_its_real_twin_are_made_by_id_and_pass_every_check(task: Task) -> None:
    dream, real = gym.make(task.dream_id), gym.make(task.real_id)
    assert dream.observation_space == real.observation_space and dream.action_space == real.action_space
    check_env(gym.make(task.dream_id, obs="latent", max_episode_steps=5).unwrapped, skip_render_check=True)
    envs = gym.make_vec(task.dream_id, num_envs=4, obs="latent", temperature=1.15)
    assert isinstance(envs.unwrapped, DreamVectorEnv) and envs.unwrapped.temperature == 1.15
    check_vector_env(partial(gym.make_vec, task.dream_id, obs="latent", max_episode_steps=9), steps=20)


def test_shipped_models_are_small_and_have_a_card_without_a_machine_s_paths() -> None:
    sizes = {}
    for task in SHIPPED:
        folder = STORE / task.model
        sizes[task.name] = sum(file.stat().st_size for file in folder.iterdir())
        card = (folder / "README.md").read_text()
        assert (task.real.id in card and "held-out" in card) or "seeds from 1000000" in card
        assert not re.search(r"/(tmp|work|home|root)/", card + (folder / "config.json").read_text()), folder
    assert max(sizes.values()) <= 4e6 and sum(sizes.values()) <= 25e6, sizes


def test_registering_twice_changes_nothing() -> None:
    before = dict(gym.registry)
    register_envs()
    assert before == dict(gym.registry)


def test_a_vector_is_one_dream_environment(model: str) -> None:
    envs = gym.make_vec("Dream-v0", num_envs=4, model=model, obs="latent", temperature=1.15, autoreset_mode="Disabled")
    assert isinstance(envs, DreamVectorEnv) and envs.num_envs == 4 and envs.temperature == 1.15
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and envs.spec.id == "Dream-v0"
    assert gym.make_vec("Dream-v0", model=model).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_gymnasium_s_vectors_of_single_dreams_dream_the_same(model: str) -> None:
    kwargs = {"model": model, "obs": "latent", "horizon": 4}
    ours = gym.make_vec("Dream-v0", num_envs=2, autoreset_mode="NextStep", **kwargs)
    sync = gym.make_vec("Dream-v0", num_envs=2, vectorization_mode="sync", **kwargs)
    assert isinstance(sync, SyncVectorEnv) and isinstance(sync.envs[0].unwrapped, DreamEnv)
    np.testing.assert_allclose(ours.reset(seed=5)[0], sync.reset(seed=5)[0], atol=1e-5)
    ours.action_space.seed(0)
    for _ in range(9):
        act = ours.action_space.sample()
        got, want = ours.step(act), sync.step(act)
        for a, b in zip(got[:4], want[:4], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_spec_makes_its_environment_again(model: str) -> None:
    env = gym.make("Dream-v0", model=model, obs="latent")
    again = gym.make(env.spec)
    np.testing.assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_the_episode_length_comes_from_the_artifact_or_the_caller(model: str) -> None:
    assert gym.make("Dream-v0", model=model).unwrapped.envs.horizon == 6
    assert gym.make_vec("Dream-v0", num_envs=2, model=model, max_episode_steps=3).horizon == 3
    env = gym.make("Dream-v0", model=model, max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(2)] == [False, True]


def test_any_model_has_its_real_twin(model: str) -> None:
    real, dream = gym.make("Real-v0", model=model, obs="latent"), gym.make("Dream-v0", model=model, obs="latent")
    assert type(real.unwrapped).__name__ == "CarRacing" and real.observation_space == dream.observation_space
    assert gym.make("Real-v0", model=model).observation_space.shape == (32, 32, 3)
    with pytest.raises(ValueError, match="Real-v0 needs `model=`: a directory"):
        gym.make("Real-v0")


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="model must be a directory with a config.json or one of .*got 'nope'"):
        gym.make("Dream-v0", model="nope")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_a_model_has_its_real_environment_and_reports_what_trains_one(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("wm_agents.models.saved.STORE", tmp_path)
    real = gym.make(f"Real-{name}-v0")
    obs, _ = real.reset(seed=0)
    assert obs in real.observation_space
    real.close()
    message = f"Dream-{name}-v0 has no shipped model; train one with `wm improve --task {name}`.*Real-{name}-v0 needs"
    with pytest.raises(FileNotFoundError, match=message):
        gym.make(f"Dream-{name}-v0")


def test_the_thresholds_are_those_of_the_curriculum() -> None:
    want = {"CarRacing": 900, "Pong": 18, "LunarLander": 200, "Breakout": 50, "CartPole": 475, "Acrobot": -100}
    assert {task.name: task.threshold for task in TASKS.values()} == want
    assert all(protocol_of(task.real) == task.protocol != "" for task in TASKS.values())
    assert protocol_of(RealSpec("Pendulum-v1")) == protocol_of(RealSpec("ALE/Boxing-v5", lives_end=True)) == "standard"
    assert protocol_of(RealSpec("Pendulum-v1", size=32, action_repeat=4)) == "standard except size 32, action_repeat 4"
    assert protocol_of(RealSpec("Pendulum-v1", max_episode_steps=200)) == "standard"
    assert protocol_of(RealSpec("Pendulum-v1", max_episode_steps=100)) == "standard except max_episode_steps 100"
    breakout, racing = TASKS["Breakout"], TASKS["CarRacing"]
    assert protocol_of(replace(breakout.real, lives_end=False)) == breakout.protocol
    assert protocol_of(replace(racing.real, stack=True)) == f"{racing.protocol} except stack True"
    assert protocol_of(RealSpec("CarRacing-v3", size=64)) == "standard except size 64"


@pytest.mark.parametrize("name", ["Pong", "Breakout"])
def test_games_have_a_variant_without_sticky_actions(name: str) -> None:
    spec = TASKS[name].real
    plain = without_sticky_actions(spec)
    assert has_sticky_actions(spec) and not has_sticky_actions(plain) and not has_sticky_actions(RealSpec("Acrobot-v1"))
    assert plain.kwargs == {**spec.kwargs, "repeat_action_probability": 0.0}
    env = make_real(plain)
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0
    env.close()
    words = TASKS[name].protocol.replace("with sticky actions 0.25", "without sticky actions")
    words = words.replace("no no-op starts", "1 to 30 no-op steps at the start")
    assert protocol_of(plain) == words != TASKS[name].protocol
    boxing = protocol_of(without_sticky_actions(RealSpec("ALE/Boxing-v5")))
    assert boxing == "standard, without sticky actions, 1 to 30 no-op steps at the start"


@pytest.mark.parametrize("name", TASKS)
def test_a_real_spec_survives_json(name: str) -> None:
    spec = TASKS[name].real
    assert RealSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_fields_that_came_later_are_left_out_at_their_defaults() -> None:
    """Data and artifacts of older versions say the same of their environment as new ones."""
    old = {"id": "CarRacing-v3", "kwargs": {}, "size": 64, "action_repeat": 4, "max_episode_steps": 250}
    assert TASKS["CarRacing"].real.to_dict() == old and RealSpec.from_dict(old) == TASKS["CarRacing"].real


def test_a_real_spec_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['sizes'\] of RealSpec; known fields"):
        RealSpec.from_dict({"id": "CartPole-v1", "sizes": 3})


@pytest.mark.parametrize("name", TASKS)
def test_the_page_of_tasks_reports_what_the_table_says(name: str) -> None:
    task, page = TASKS[name], (ROOT / "docs" / "tasks.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    spec = task.real
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == spec.id and cells[4] == str(spec.action_repeat)
    if spec.actions is not None:
        assert cells[3].startswith(f"{len(spec.actions)}: ")
    assert cells[5].startswith(f"{spec.max_episode_steps:,} steps") and cells[6] == f"{task.threshold:g}"


def test_settings_for_any_environment_know_the_ales_ids_too() -> None:
    code = "from wm_agents.loops.recipes import recipe_for; print(recipe_for('ALE/Freeway-v5').spec)"
    assert "size=64" in fresh(code)


def test_games_of_the_ale_open_without_a_banner(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py")
    make_real(TASKS["Pong"].real).close()
    assert capfd.readouterr() == ("", "")
