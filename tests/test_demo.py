"""The demo leaves a film and honest figures, or says what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from rich.console import Console
from tiny import SPEC, save_tiny, work_here

from policies.cmaes import CMAConfig
from policies.policy import RandomPolicy
from wm_agents.cli import demo
from wm_agents.cli.demo import run_demo
from wm_agents.control.evolve import Evolved, evolve_in_dream
from wm_agents.evaluation import evaluate
from wm_agents.evaluation.evaluate import evaluate_dream, evaluate_real
from wm_agents.pretrained import frame_policy, load_model
from wm_envs.dream import DreamConfig


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that has learned nothing in place of the shipped one, and a recipe of seconds."""
    model = save_tiny(tmp_path / "model")
    recipe = replace(demo.RECIPES["CarRacing"], horizon=5)
    monkeypatch.setattr(demo, "DREAM", model)
    monkeypatch.setattr(demo, "CMA", CMAConfig(population=4, rollouts=3, components=2, seed=5))
    monkeypatch.setattr(demo, "RECIPES", {"CarRacing": recipe})
    work_here(monkeypatch)
    return model


def run(out: Path, **changes: int) -> dict:
    return run_demo(out, **{"generations": 2, "episodes": 2, "procs": 1} | changes, console=Console(stderr=True))


def test_the_demo_leaves_a_video_and_its_figures(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evolved = []

    def keep(*args: Any, **kwargs: Any) -> Evolved:
        assert (args[3].horizon, kwargs["squash"]) == (5, ("tanh", "sigmoid", "clip"))
        assert kwargs.get("x0") is None and args[2].components == 2
        evolved.append(evolve_in_dream(*args, **kwargs))
        return evolved[0]

    monkeypatch.setattr("wm_agents.loops.evolve_saved.evolve_in_dream", keep)
    out = tmp_path / "outputs" / "demo"
    summary = run(out)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {path.name for path in out.iterdir()} == {"summary.json", "real_vs_dream.mp4"}
    assert cv2.VideoCapture(summary["video"]).get(cv2.CAP_PROP_FRAME_COUNT) == SPEC.max_episode_steps + 1

    policy = evolved[0].policy
    assert summary["controller"] == "linear, 39 parameters, trained from scratch only in dreams"
    assert 2 * 4 * 3 < summary["dream_steps"] == evolved[0].steps <= 2 * 4 * 3 * 5
    real, dream, floor = summary["real"], summary["dream"], summary["random"]
    seeds = [1_000_000, 1_000_001]
    again = evaluate_real(SPEC, lambda: frame_policy(small, policy.weights, policy.squash), seeds)
    assert real == {"episodes": 2, "seed": 1_000_000, **again.to_dict()}
    again = evaluate_real(SPEC, lambda: RandomPolicy(load_model(small)[0].act_space), seeds)
    assert floor == {"episodes": 2, "seed": 1_000_000, **again.to_dict()}
    assert dream["episodes"] == 100 and dream["std"] > 0
    assert summary["gap"] == pytest.approx(dream["mean"] - real["mean"], abs=2e-3)
    assert summary["wall_s"] >= summary["dreaming_s"]
    assert summary["hardware"]["cpu"] and summary["versions"]["gymnasium"]

    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line.rpartition("  ")[2] for line in shown.err.splitlines()]
    assert lines[0] == f"loading {small}"
    assert any(re.fullmatch(r"training in the dream generation 1/2, mean dream return -?\d+", line) for line in lines)
    assert "driving" in lines


def test_a_missing_shipped_model_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DREAM", "Dream-Nowhere-v0")
    with pytest.raises(FileNotFoundError, match=r"Dream-Nowhere-v0 is missing .*install the package again, or train"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["generations", "episodes", "procs"])
def test_less_than_one_is_rejected_before_anything_is_done(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*at least 1, got 0"):
        run(tmp_path / "out", **{name: 0})


def test_the_dreams_episodes_are_evaluated_as_the_model_is_saved(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DreamConfig] = []

    def watch(*args: Any, **kwargs: Any) -> evaluate.Score:
        asked.append(args[3])
        return evaluate_dream(*args, **kwargs)

    monkeypatch.setattr(demo, "evaluate_dream", watch)
    run(tmp_path / "out", generations=1, episodes=1)
    assert [(cfg.horizon, cfg.temperature) for cfg in asked] == [(6, 1.0)]
