"""How a run ends: what is looked at, what is written, and what a policy that plans is spared."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import SPEC, save_tiny

from wm_agents.loops import finish as verdict
from wm_agents.loops.finish import Candidate, Story, deliver
from wm_agents.pretrained import load_model, load_policy, load_starts
from wm_envs.registry import TASKS

RESULT = {
    "real": {"mean": 5.0, "std": 1.0, "ci95": 0.2, "episodes": 30, "seed": 10**6, "returns": [4.0, 6.0]},
    "dream": {"mean": 6.0, "std": 1.0, "returns": [5.0, 7.0]},
    "gap": 1.0,
    "protocol": "as usual",
    "versions": {"gymnasium": "1.4"},
}
STORY = Story("seeds from 3", "7 updates", "It learned.", 400, 12.3, {"chosen": 2}, {"evaluations": [1]})


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
    assert ("no fidelity report" in console.file.getvalue()) == plans  # type: ignore[attr-defined]
    assert (result["real_steps"], result["real_frames"], result["train_wall_s"]) == (400, 1600, 12)
    assert json.loads((tmp_path / "summary.json").read_text()) == {**result, "evaluations": [1]}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| protocol | as usual |" in card and "protocol: as usual" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "400 agent steps, 1600 frames, seeds from 3" in card and "12 s of wall time, 7 updates" in card
    assert not asked[0]["both_protocols"] and "without sticky" not in card
    saved = load_model(tmp_path / "model")[1]
    assert saved.config["cut_off"] == 0.4 and saved.config["horizon"] == 250


def test_a_controller_that_exploits_its_dream_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, artifact = load_model(save_tiny(tmp_path / "tiny"))
    dream = {"mean": 90.0, "std": 1.0, "returns": [89.0, 91.0]}
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
