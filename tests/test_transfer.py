"""Fresh controllers in a frozen dream: one record per seed, whatever happens to it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import save_tiny, work_here

from policies.cmaes import CMAConfig
from wm_agents.cli import app as cli
from wm_agents.control.ppo import PPOConfig
from wm_agents.loops import transfer as transferring
from wm_agents.loops.recipes import PROJECT_RECIPES, RECIPES
from wm_agents.loops.transfer import MOST_DREAMED, _controller_settings, _summary_of, lines_of, transfer
from wm_agents.pretrained import load_model, load_policy
from wm_agents.system.progress import Bar
from wm_envs.registry import TASKS, RealSpec

SPEC = RealSpec("CartPole-v1", max_episode_steps=30)
TINY = replace(
    RECIPES["CartPole"],
    spec=SPEC,
    rounds=1,
    controller="linear",
    horizon=5,
    cma=CMAConfig(population=4, rollouts=2, generations=3, sigma=1.0),
    ppo=PPOConfig(iterations=2, envs=4, steps=8, batch_size=16, net=(4,)),
)


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "pole", SPEC, horizon=30)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)
    monkeypatch.setitem(transferring.RECIPES, "CartPole", TINY)


def run(model: str, out: Path, policies: int = 2, algo: Any = "recipe", **more: Any) -> dict[str, Any]:
    return transfer(model, out, policies=policies, algo=algo, episodes=3, console=Console(file=io.StringIO()), **more)


def scores(result: dict[str, Any]) -> list[Any]:
    return [(record["seed"], record["real"], record["dream"]) for record in result["policies"]]


def actors(out: Path) -> list[Any]:
    return [load_policy(*load_model(path)).tensors() for path in sorted(out.glob("policy-*/model"))]


@pytest.mark.parametrize("algo", ["recipe", "ppo"])
def test_each_policy_has_its_own_seed_and_the_same_seeds_repeat(algo: str, pole: str, tmp_path: Path) -> None:
    first, again = (run(pole, tmp_path / name, algo=algo) for name in ("a", "b"))
    assert scores(first) == scores(again) and [record["seed"] for record in first["policies"]] == [1, 10_001]
    one, other = actors(tmp_path / "a")
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    kinds = {load_policy(*load_model(path)).about()["kind"] for path in (tmp_path / "a").glob("policy-*/model")}
    assert kinds == {"mlp" if algo == "ppo" else "linear"}
    assert json.loads((tmp_path / "a" / "transfer.json").read_text()) == json.loads(json.dumps(first))
    assert first["first_episode_seed"] == 1_000_000 and len(first["policies"][0]["real"]["returns"]) == 3


def test_the_spread_is_that_between_policies() -> None:
    records = [{"seed": 1, "real": {"mean": 10.0}}, {"seed": 2, "failed": "no"}, {"seed": 3, "real": {"mean": 14.0}}]
    found = _summary_of(records)
    assert found["std_between"] == pytest.approx(np.sqrt(8), abs=1e-3)
    assert (found["mean"], found["min"], found["max"], found["policies"], found["failed"]) == (12.0, 10.0, 14.0, 3, 1)
    assert _summary_of(records[1:2]) == {"policies": 1, "failed": 1}


def test_a_killed_run_resumes_and_ends_as_one_that_was_not(
    pole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(pole, tmp_path / "whole")
    updates = 0

    def update(self: Bar, done: int, text: str = "") -> None:
        nonlocal updates
        updates += "policy" in self.title
        if updates == 5:  # In the second generation of the second policy.
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bar, "update", update)
        with pytest.raises(KeyboardInterrupt):
            run(pole, tmp_path / "killed")
    state = json.loads((tmp_path / "killed" / "state.json").read_text())
    assert list(state["policies"]) == ["0"] and not (tmp_path / "killed" / "transfer.json").exists()
    assert scores(run(pole, tmp_path / "killed")) == scores(whole)


def test_a_failed_policy_is_reported_and_tried_again(
    pole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = transferring.evolve_in_dream

    def fails(model: Any, starts: Any, cfg: CMAConfig, *args: Any, **more: Any) -> Any:
        if cfg.seed == 10_001:
            raise ValueError("returns must be finite, got nan")
        return real(model, starts, cfg, *args, **more)

    monkeypatch.setattr(transferring, "evolve_in_dream", fails)
    flags = ["transfer", pole, "--out", str(tmp_path), "--policies", "3", "--episodes", "2", "--procs", "0"]
    assert cli.main(flags) == 1
    out = capsys.readouterr().out
    assert "policy 1 (seed 10001): FAILED: returns must be finite, got nan\n" in out and "(1 of 3 failed)" in out
    trained = json.loads((tmp_path / "transfer.json").read_text())["policies"]
    monkeypatch.setattr(transferring, "evolve_in_dream", real)
    assert cli.main(flags) == 0
    again = json.loads((tmp_path / "transfer.json").read_text())
    assert again["policies"][0] == trained[0] and again["real"]["failed"] == 0
    assert len(lines_of(again)) == 4


def test_more_policies_continue_a_run_and_other_settings_do_not(pole: str, tmp_path: Path) -> None:
    one = run(pole, tmp_path, policies=1)
    assert run(pole, tmp_path, policies=2)["policies"][0] == one["policies"][0]
    with pytest.raises(ValueError, match="config.controller was"):
        run(pole, tmp_path, iterations=7)
    with pytest.raises(ValueError, match="seeds.run was 1, now 2"):
        run(pole, tmp_path, seed=2)


@pytest.mark.parametrize("changes", [{"policies": 0}, {"seed": 999_000}, {"seed": -1}])
def test_settings_out_of_range_are_rejected(changes: dict[str, int], pole: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be"):
        run(pole, tmp_path, **changes)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("Acrobot", 180),  # 3 rounds of 60.
        ("LunarLander", MOST_DREAMED // 128**2),
        ("CarRacing", 130),  # One round, although it takes 67 million steps.
    ],
)
def test_the_usual_number_of_iterations_is_bounded(task: str, expected: int) -> None:
    spec = TASKS[task].real
    assert _controller_settings(spec, "recipe", None).generations == expected
    assert _controller_settings(spec, "recipe", 7).generations == 7


def test_a_model_that_sees_a_task_in_another_way_takes_the_settings_of_its_kind() -> None:
    """The recipe of Pong trains an object model on whole pixels; that of projects trains V-M-C on 64 x 64 ones."""
    assert _controller_settings(PROJECT_RECIPES["Pong"].spec, "recipe", None).ppo.net == (256, 256)
    assert _controller_settings(TASKS["Pong"].real, "recipe", None).ppo.net == (192, 192)
    assert _controller_settings(RealSpec("Pendulum-v1"), "linear", None).controller == "linear"
