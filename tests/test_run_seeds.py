"""One seed for all parts of a run, and environment seeds that runs do not share."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm_agents.cli.app import parser_of
from wm_agents.loops import rounds
from wm_agents.loops.recipes import RECIPES, SEEDED, ImproveConfig, recipe_for, seeded
from wm_agents.loops.seeds import first_env_seed, kept_env_seed
from wm_agents.project.settings import load_project
from wm_agents.project.translate import online_of, rounds_of, spaces_of, spec_of


def seeds_of(cfg: ImproveConfig) -> set[int]:
    return {cfg.seed, *(getattr(cfg, name).seed for name in SEEDED)}


def parsed(*flags: str) -> Any:
    _, parser, rest = parser_of("improve", list(flags))
    return parser.arguments(rest)["cfg"]


def test_every_part_with_a_seed_is_seeded() -> None:
    cfg = RECIPES["Pong"]
    parts = {f.name for f in fields(cfg) if is_dataclass(value := getattr(cfg, f.name)) and hasattr(value, "seed")}
    assert parts == set(SEEDED)
    assert seeds_of(seeded(cfg, 5)) == {5}


@pytest.mark.parametrize("cfg", [*RECIPES.values(), recipe_for("CartPole-v1")], ids=lambda cfg: cfg.out)
def test_recipes_have_one_seed(cfg: ImproveConfig) -> None:
    assert seeds_of(cfg) == {1} and cfg.first_env_seed == 1


def test_parts_follow_the_seed_of_the_run_unless_theirs_is_given(tmp_path: Path) -> None:
    assert parsed("--task", "CartPole") == RECIPES["CartPole"]
    assert parsed("--task", "CartPole", "--seed", "3") == seeded(RECIPES["CartPole"], 3)
    cfg = parsed("--task", "CartPole", "--ppo.seed", "1", "--seed=3")
    assert cfg.ppo.seed == 1 and seeds_of(replace(cfg, ppo=replace(cfg.ppo, seed=3))) == {3}
    (tmp_path / "flags.toml").write_text("seed = 4\n[dynamics]\nseed = 6\n")
    cfg = parsed("--task", "CartPole", "--config", str(tmp_path / "flags.toml"))
    assert (cfg.seed, cfg.dynamics.seed, cfg.ppo.seed) == (4, 6, 4)


def test_the_seed_of_a_project_has_a_short_flag(tmp_path: Path) -> None:
    for name, preset in (("a", "ensemble:ci"), ("b", "tdmpc2:ci")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "wm.toml").write_text(f'environment = "Pendulum-v1"\nmodel = "{preset}"\n')
    _, parser, flags = parser_of("train", ["--config", str(tmp_path / "a"), "--seed", "7"])
    given = parser.arguments(flags)
    assert given["settings"] == {"training.seed": 7}
    project = load_project(given["config"], given["settings"])
    cfg = rounds_of(project, spaces_of(project, spec_of(project)))
    assert seeds_of(cfg) == {7} and cfg.first_env_seed == first_env_seed(7)
    online = online_of(load_project(str(tmp_path / "b"), given["settings"]))
    assert online.seed == 7 and online.first_env_seed == first_env_seed(7)


@pytest.mark.parametrize("slot", [4_000, 20_000])
@pytest.mark.parametrize(("runs", "share"), [(5, 7), (10, 19)])
def test_runs_collect_different_episodes(slot: int, runs: int, share: int) -> None:
    firsts = np.sort([first_env_seed(seed, slot) for seed in range(1, runs + 1)])
    assert firsts[0] == 1 and firsts[-1] <= slot
    gaps = np.diff([*firsts, firsts[0] + slot])  # The next round begins one slot later.
    assert gaps.min() >= slot // share


def test_all_rounds_of_any_seed_stay_below_the_seeds_for_evaluation() -> None:
    for cfg in RECIPES.values():
        last = replace(cfg, seed=2**31 - 1)
        assert 1 <= last.first_env_seed <= cfg.round_seeds


def test_a_run_keeps_its_environment_seeds_and_one_of_an_earlier_version_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImproveConfig] = []

    class Nothing:
        def __init__(self, cfg: ImproveConfig, *more: Any) -> None:
            seen.append(cfg)

        def loop(self) -> None: ...

        def finish(self) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(rounds, "Improvement", Nothing)
    cfg = replace(RECIPES["CartPole"], out=str(tmp_path / "old"), seed=300_001)
    (tmp_path / "old").mkdir()
    old = {"config": {**cfg.to_dict(), "env_seed": None}, "seeds": {"collect": 300_001, "judge": 900_000}, "starts": []}
    (tmp_path / "old" / "run.json").write_text(json.dumps(old))
    for _ in range(2):  # The second time, its run.json is of this version.
        rounds.improve(cfg)
    assert [cfg.first_env_seed for cfg in seen] == [300_001] * 2
    with pytest.raises(ValueError, match="seeds.run was 300001, now 2"):
        rounds.improve(replace(cfg, seed=2))
    rounds.improve(replace(cfg, out=str(tmp_path / "new"), env_seed=77))
    assert kept_env_seed(tmp_path / "new", 300_001) == 77 and kept_env_seed(tmp_path / "new", 1) is None
    assert kept_env_seed(tmp_path / "none", 1) is None
