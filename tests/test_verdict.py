"""How a run ends: what is looked at, what is written, and what a policy that plans is spared."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import SPEC, save_tiny

from wm_agents.evaluation.evaluate import Score
from wm_agents.loops import finish as verdict
from wm_agents.loops.finish import Candidate, Story, deliver
from wm_agents.pretrained import load_model, load_policy, load_starts
from wm_agents.system.time_limit import TimeUp
from wm_envs.registry import TASKS

RESULT = {
    "real": {
        "env": "CarRacing-v3",
        "mean": 5.0,
        "std": 1.0,
        "ci95": 0.2,
        "episodes": 30,
        "seed": 10**6,
        "returns": [4.0, 6.0],
    },
    "dream": {"mean": 6.0, "std": 1.0, "ci95": 0.2, "returns": [5.0, 7.0]},
    "gap": 1.0,
    "protocol": "standard",
    "versions": {"gymnasium": "1.4"},
}
RANDOM = Score([-30.0, -31.0])
STORY = Story("seeds from 3", "7 updates", "It learned.", 400, 12.3, {"chosen": 2}, {"evaluations": [1]})


@pytest.fixture(autouse=True)
def random_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "evaluate_real", lambda *args, **more: RANDOM)


class Planner:
    """A controller that says it plans."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def about(self) -> dict[str, str]:
        return {**self.policy.about(), "kind": "mppi"}

    def tensors(self) -> Any:
        return self.policy.tensors()


@pytest.mark.parametrize("plans", [False, True])
def test_a_run_ends_with_a_model_its_scores_and_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: bool
) -> None:
    model, artifact = load_model(save_tiny(tmp_path / "tiny"))
    asked: list[dict[str, Any]] = []
    looked: list[str] = []
    monkeypatch.setattr(verdict, "evaluate", lambda model, **more: asked.append(more) or dict(RESULT))
    monkeypatch.setattr(verdict, "fidelity_report", lambda model, *args, **more: looked.append(model))
    policy: Any = load_policy(model, artifact)
    spec = replace(SPEC, max_episode_steps=None)  # The environment's own limit is the dream's: 1,000 frames.
    candidate = Candidate(model, Planner(policy) if plans else policy, spec, load_starts(artifact), 0.4)
    console = Console(file=io.StringIO(), width=200)
    result = deliver(tmp_path, candidate, STORY, episodes=30, procs=1, console=console)
    assert asked[0]["episodes"] == 30 and asked[0]["dream_episodes"] == (10 if plans else 30)
    assert looked == ([] if plans else [str(tmp_path / "model")])
    assert result["random"]["mean"] == -30.5 and "better than random actions" in result["trust"]
    assert "| random actions | -30.5 ± 0.707 |" in (tmp_path / "model" / "README.md").read_text()
    assert ("no fidelity report" in console.file.getvalue()) == plans  # type: ignore[attr-defined]
    assert (result["real_steps"], result["real_frames"], result["train_wall_s"]) == (400, 1600, 12)
    assert json.loads((tmp_path / "summary.json").read_text()) == {**result, "evaluations": [1]}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| protocol | standard |" in card and "protocol: standard" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "400 agent steps, 1600 frames, seeds from 3" in card and "12 s of wall time, 7 updates" in card
    assert not asked[0]["both_protocols"] and "without sticky" not in card
    saved = load_model(tmp_path / "model")[1]
    assert saved.config["cut_off"] == 0.4 and saved.config["horizon"] == 250


def test_a_controller_that_exploits_its_dream_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, artifact = load_model(save_tiny(tmp_path / "tiny"))
    dream = {"mean": 90.0, "std": 1.0, "ci95": 12.7, "returns": [89.0, 91.0]}
    monkeypatch.setattr(verdict, "evaluate", lambda model, **more: {**RESULT, "dream": dream})
    monkeypatch.setattr(verdict, "fidelity_report", lambda *args, **more: None)
    candidate = Candidate(model, load_policy(model, artifact), SPEC, load_starts(artifact), 0.4)
    console = Console(file=io.StringIO(), width=1000)
    result = deliver(tmp_path, candidate, STORY, episodes=2, procs=1, console=console)
    assert result["warning"].startswith(
        "WARNING: the dream return 90.0 (95 % CI ± 12.7) is far above the real return 5.0"
    )
    assert result["warning"] in console.file.getvalue()  # type: ignore[attr-defined]
    assert result["warning"] in (tmp_path / "model" / "README.md").read_text()


def test_the_card_of_a_game_has_both_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(TASKS["Pong"].real, size=32, max_episode_steps=6)
    model, artifact = load_model(save_tiny(tmp_path / "tiny", spec))
    asked: list[dict[str, Any]] = []
    plain = {"mean": 7.5, "std": 2.0, "ci95": 0.3, "episodes": 30, "protocol": "ALE v5 without sticky actions"}
    result = {**RESULT, "protocol": "ALE v5 with sticky actions 0.25", "real_without_sticky": plain}
    monkeypatch.setattr(verdict, "evaluate", lambda model, **more: asked.append(more) or dict(result))
    monkeypatch.setattr(verdict, "fidelity_report", lambda *args, **more: None)
    candidate = Candidate(model, load_policy(model, artifact), spec, load_starts(artifact), 0.4)
    console = Console(file=io.StringIO(), width=200)
    assert deliver(tmp_path, candidate, STORY, episodes=30, procs=1, console=console)["real_without_sticky"] == plain
    assert asked[0]["both_protocols"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| protocol | ALE v5 with sticky actions 0.25 |" in card
    assert "| real score without sticky actions | 7.5 ± 2.0, 30 episodes |" in card


def finish_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., Any], minutes: float
) -> tuple[dict[str, Any], str]:
    """Deliver a run whose fidelity report is `report`; return the summary and all that was printed."""
    model, artifact = load_model(save_tiny(tmp_path / "tiny"))
    monkeypatch.setattr(verdict, "evaluate", lambda model, **more: dict(RESULT))
    monkeypatch.setattr(verdict, "fidelity_report", report)
    candidate = Candidate(model, load_policy(model, artifact), SPEC, load_starts(artifact), 0.4)
    out = io.StringIO()
    console = Console(file=out, width=1000)
    deliver(tmp_path, candidate, STORY, episodes=2, procs=1, console=console, report_minutes=minutes)
    return json.loads((tmp_path / "summary.json").read_text()), out.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no plot"), TimeUp("not finished after 1 minutes")])
def test_a_report_that_ends_early_ends_after_the_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    written: list[bool] = []

    def stop(*args: Any, **more: Any) -> None:
        written.append((tmp_path / "summary.json").exists() and (tmp_path / "model" / "README.md").exists())
        raise error

    summary, text = finish_with(tmp_path, monkeypatch, stop, 1.0)
    assert written == [True] and summary["real"]["mean"] == 5.0
    assert "the fidelity report was " in text and "the dream and its policy are in" in text


def test_a_report_is_ended_by_its_time_limit_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def endless(*args: Any, **more: Any) -> None:
        asked.append(1)
        while True:
            pass

    _, text = finish_with(tmp_path / "limited", monkeypatch, endless, 0.001)
    assert asked == [1] and "not finished after 0.001 minutes" in text and "raise report_minutes" in text
    _, text = finish_with(tmp_path / "without", monkeypatch, endless, 0.0)
    assert asked == [1] and "fidelity" not in text


def test_the_result_is_one_table_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = finish_with(tmp_path, monkeypatch, lambda *args, **more: None, 0.0)
    rows = [line.split() for line in text.splitlines()]
    assert ["random", "actions,", "real", "-30.5", "±", "6.4", "2", "episodes"] in rows
    assert ["policy,", "real", "5.0", "±", "0.2", "2", "episodes"] in rows
    assert ["gap", "(dream", "-", "real)", "+1.0"] in rows and ["real", "steps", "400"] in rows
    assert "The policy is better than random actions. The dream can be trusted for this policy" in text
