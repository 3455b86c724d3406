"""Training by SB3 in a dream leaves a policy that plain SB3 loads, an artifact that acts, scores and a film."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.save_util import load_from_zip_file
from tiny import SPEC, save_tiny, work_here
from toy import Toy
from toy_env import Echo

from policies.sb3 import DreamVecEnv, SB3Policy
from wm_agents.checkpoint import load_artifact
from wm_agents.evaluation import evaluate
from wm_agents.models.saved import STORE
from wm_agents.pretrained import frame_policy, load_model, load_policy
from wm_envs.registry import TASKS, RealSpec

SCRIPTS = Path(__file__).parents[1] / "scripts"
CART = RealSpec("CartPole-v1", max_episode_steps=9)
PENDULUM = RealSpec("Pendulum-v1", max_episode_steps=5)
SHORT = ["--timesteps", "64", "--num-envs", "4", "--episodes", "2", "--procs", "1"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("train_sb3_in_dream")


@pytest.fixture(autouse=True)
def here(monkeypatch) -> None:
    """Real episodes are played without processes, which take seconds to start."""
    work_here(monkeypatch)


@pytest.fixture(scope="module")
def car(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("car") / "model")


@pytest.fixture(scope="module")
def out(script, car: str, tmp_path_factory) -> Path:
    """What the script leaves of a short run in the latents of a car's dream."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        assert script.main(["--dream", car, "--out", str(out), *SHORT]) == 0
    return out


@pytest.fixture(scope="module")
def cart(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("cart") / "model", CART, horizon=9)


def test_a_policy_on_latents_is_trained_evaluated_and_recorded(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    assert summary["timesteps"] == 256 and summary["episodes"] == 2 and summary["first_eval_seed"] == 1_000_000
    assert [len(summary[where]["returns"]) for where in ("real", "dream", "random")] == [2, 2, 2]
    assert summary["gap"] == pytest.approx(summary["dream"]["mean"] - summary["real"]["mean"], abs=2e-3)
    assert summary["curve"] and summary["dream_sps"] > 0 and summary["settings"]["num_envs"] == 4
    assert (out / "real_vs_dream.mp4").stat().st_size > 1000


def test_the_policy_is_the_same_in_plain_sb3_and_in_the_artifact(out: Path) -> None:
    model, artifact = load_model(out / "model")
    feat = np.random.default_rng(0).standard_normal((20, model.feat_dim)).astype(np.float32)
    plain = SB3Policy(PPO.load(out / "policy.zip"), model.act_space)
    np.testing.assert_allclose(load_policy(model, artifact).act(feat), plain.act(feat), atol=1e-6)


def test_scores_are_those_of_the_saved_policy_on_held_out_seeds(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    again = evaluate.evaluate_real(SPEC, partial(frame_policy, str(out / "model")), [1_000_000, 1_000_001], 1)
    assert again.returns == summary["real"]["returns"]


def test_settings_in_the_zip_are_sb3_s_own_objects(out: Path) -> None:
    data, _, _ = load_from_zip_file(out / "policy.zip")
    assert data["learning_rate"](0.5) == pytest.approx(5e-4)


def test_the_dream_is_kept_as_it_was(car: str, out: Path) -> None:
    before, after = load_artifact(car), load_artifact(out / "model")
    assert {**before.config, "files": 0} == {**after.config, "files": 0}
    for old, new in ((before.tensors, after.tensors), (before.starts, after.starts)):
        assert old.keys() == new.keys() and all(np.array_equal(old[name], new[name]) for name in old)
    assert list(before.policies) == ["linear"] and list(after.policies) == ["mlp"]


def test_a_policy_on_pixels_is_trained_evaluated_and_recorded(script, tmp_path: Path) -> None:
    dream = save_tiny(tmp_path / "model", replace(SPEC, size=64))
    small = '{"learning_starts": 32, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}'
    flags = ["--obs", "pixels", "--algo", "sac", "--kwargs", small]
    assert script.main(["--dream", dream, "--out", str(tmp_path / "out"), *SHORT, *flags]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"policy.zip", "summary.json", "real.mp4"}
    assert SAC.load(tmp_path / "out" / "policy.zip", buffer_size=1).observation_space.shape == (3, 64, 64)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    settings = summary["settings"]
    assert settings["learning_starts"] == "32" and settings["buffer_size"] == "20000"
    assert summary["obs"] == "pixels" and len(set(summary["real"]["returns"])) == 2


@pytest.mark.parametrize(
    "algo, spec", [("a2c", CART), ("dqn", CART), ("ppo", CART), ("td3", PENDULUM), ("sac", PENDULUM), ("ppo", PENDULUM)]
)
def test_every_recipe_trains(script, algo: str, spec: RealSpec, tmp_path: Path) -> None:
    dream = save_tiny(tmp_path / "model", spec, horizon=5)
    extra = [] if algo in ("ppo", "a2c") else ["--kwargs", '{"learning_starts": 16}']
    args = script.parse(["--dream", dream, "--algo", algo, *SHORT, *extra])
    trained = script.train(args, *load_model(dream), Console(quiet=True))
    assert trained.model.num_timesteps >= 64 and isinstance(trained.model, script.RECIPES[algo].algo)


def test_native_vectors_are_learned_from(script, cart: str, tmp_path: Path) -> None:
    flags = ["--obs", "pixels", "--record-video", "False"]
    assert script.main(["--dream", cart, "--out", str(tmp_path), *SHORT, *flags]) == 0
    assert PPO.load(tmp_path / "policy.zip").observation_space.shape == (4,)
    assert {file.name for file in tmp_path.iterdir()} == {"policy.zip", "summary.json"}
    assert json.loads((tmp_path / "summary.json").read_text())["threshold"] is None


def test_only_what_is_given_is_passed_to_the_dream(script, car: str, monkeypatch) -> None:
    made = []
    real = script.make_dream_vec_env
    monkeypatch.setattr(
        script, "make_dream_vec_env", lambda *args, **kwargs: made.append(kwargs) or real(*args, **kwargs)
    )
    for flags in ([], ["--temperature", "1.2", "--horizon", "3"]):
        script.train(script.parse(["--dream", car, *SHORT, *flags]), *load_model(car), Console(quiet=True))
    assert "temperature" not in made[0] and "pessimism" not in made[0] and made[0]["horizon"] == 6
    assert made[1]["temperature"] == 1.2 and made[1]["horizon"] == 3 and made[1]["start"] == "anywhere"
    with pytest.raises(ValueError, match="need an ensemble of at least 2 members, VMC is a single model"):
        script.train(script.parse(["--dream", car, *SHORT, "--pessimism", "1"]), *load_model(car), Console(quiet=True))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--algo", "sac"], r"--algo sac needs Box actions, .* has Discrete(2); use ppo, a2c, dqn"),
        (["--algo", "td3"], r"--algo td3 needs Box actions, .* has Discrete(2); use ppo, a2c, dqn"),
        (["--timesteps", "0"], "--timesteps must be at least 1, got 0"),
        (["--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["--seed", "1000000"], "need environment seeds from 0 to 999,999, got 1,000,000"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    script, cart, flags, message, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(script, "train", lambda *args: pytest.fail("work was begun"))
    assert script.main(["--dream", cart, "--out", str(tmp_path / "out"), *flags]) == 1
    told = capsys.readouterr().err
    assert all(part in told for part in message.split(".*")) and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_refusals(script, car: str, capsys) -> None:
    for flags, message in [
        (["--algo", "dqn"], "--algo dqn needs Discrete actions"),
        (["--obs", "pixels"], "--obs pixels needs 36x36 or more for SB3's CnnPolicy"),
        (["--dream", "Dream-Nothing-v0"], "'Dream-Nothing-v0'"),
    ]:
        assert script.main(["--dream", car, *flags]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        script.main(["--dream", car, "--alg", "ppo"])
    assert "did you mean --algo?" in capsys.readouterr().err


def test_dreams_without_a_limit_need_one(script, car: str) -> None:
    artifact = load_artifact(car)
    endless = replace(artifact, config={**artifact.config, "horizon": None, "real": RealSpec("Echo-v0").to_dict()})
    with pytest.raises(ValueError, match="--horizon must be given: neither .* nor its real environment has a limit"):
        script.check(script.parse(["--dream", car]), Toy(), endless)
    script.check(script.parse(["--dream", car, "--horizon", "5"]), Toy(), endless)


def test_an_interruption_reports_it(script, car: str, tmp_path: Path, capsys, monkeypatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "train", stop)
    assert script.main(["--dream", car, "--out", str(tmp_path)]) == 2
    assert "interrupted; run the same command to start over" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cart_pole_dream_teaches_the_real_cart_pole(script, tmp_path: Path, monkeypatch) -> None:
    task = TASKS["CartPole"]
    if not (STORE / task.model).is_dir():
        pytest.skip(f"{task.model} is not in the store yet")
    flags = ["--episodes", "20", "--record-video", "False", "--out", str(tmp_path)]
    assert script.main(["--dream", task.dream_id, "--algo", "ppo", "--timesteps", "200000", *flags]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["real"]["mean"] >= task.threshold


# The benchmark


def test_the_benchmark_prints_both_sides(tmp_path: Path, monkeypatch, capsys) -> None:
    bench = load("bench_sb3")
    monkeypatch.setattr(bench, "dream", lambda env_id, num: DreamVecEnv(echo(num)))
    monkeypatch.setattr(bench, "real", lambda env_id, num, obs: DreamVecEnv(echo(num)))
    monkeypatch.setattr(bench, "own", lambda env_id: DreamVecEnv(echo(8)))
    monkeypatch.setattr(sys, "argv", ["bench", "--num-envs", "4", "--real-envs", "2", "--seconds", "0.01", "--json"])
    bench.main()
    told, shown = capsys.readouterr()
    speeds = json.loads(told)["speeds"]
    assert [(s["case"], s["num_envs"], s["steps"]) for s in speeds] == [
        ("dream, latents", 4, 4 * 64),
        ("real, latents", 2, 2 * 512),
        ("dream, make_vec_env", 8, 8 * 64),
        ("real, make_vec_env", 8, 8 * 64),
    ]
    assert all(s["learn_sps"] > 0 and s["env_sps"] > 0 and 0 < s["rollout_share"] < 1 for s in speeds)
    assert "10 epochs of 8 minibatches" in shown and "10,000 agent steps/s" in shown


def echo(num: int) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Echo(5)] * num, autoreset_mode=AutoresetMode.SAME_STEP)


def test_the_benchmark_dreams_in_latents() -> None:
    envs = load("bench_sb3").dream("Dream-CarRacing-v0", 3)
    assert envs.reset().shape == (3, 288) and isinstance(envs.action_space, spaces.Box)
    assert load("bench_sb3").own("Dream-CarRacing-v0").reset().shape == (8, 288)
