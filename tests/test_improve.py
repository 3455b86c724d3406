"""The improvement loop: every stage, every kill, the same end."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from odd_env import ACT
from rich.console import Console
from safetensors.torch import load_file
from stable_baselines3 import PPO
from tiny import save_tiny, work_here
from toy import Toy, toy_starts
from waiting import HANG_S, wait_until

from policies.cmaes import CMAConfig
from policies.latent import LatentPolicy
from wm_agents.control.ppo import Iteration, PPOConfig, ppo_in_dream
from wm_agents.data.dataset import Dataset
from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.fidelity.history import read_history, told_history
from wm_agents.loops import finish as verdict
from wm_agents.loops import fit as learning
from wm_agents.loops import rounds as improving
from wm_agents.loops.preflight import check_training
from wm_agents.loops.recipes import ImproveConfig, recipe_for
from wm_agents.loops.rounds import Improvement, improve
from wm_agents.models.ensemble import EnsembleConfig
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import cached_model, explore_with, load_model, load_policy, load_starts, save_model
from wm_agents.system.run_folder import read_metrics
from wm_agents.system.state import read_state_tensors
from wm_agents.training import fit_ensemble as fit_members
from wm_agents.training.config import TrainingConfig
from wm_envs.action import encode_action
from wm_envs.dream import DreamConfig
from wm_envs.real import make_real
from wm_envs.registry import RealSpec
from wm_envs.world_model import Step

TESTS = Path(__file__).parent
TRAINING = TrainingConfig(
    total_steps=20,
    batch_size=16,
    learning_rate=3e-3,
    mixed_precision=False,
    eval_interval=10,
    save_interval=5,
    log_interval=5,
)
POLE = ImproveConfig(
    RealSpec("CartPole-v1", max_episode_steps=100),
    out="",
    rounds=2,
    random_steps=300,
    round_steps=150,
    family="vmc",
    model=VMCConfig(vision="identity", hidden=16),
    vision=TRAINING,
    memory=TRAINING,
    window=16,
    cma=CMAConfig(population=8, rollouts=4, generations=4, sigma=0.5),
    horizon=30,
    judge_episodes=3,
    starts=64,
    procs=1,
)
MEMBERS = replace(
    POLE,
    family="ensemble",
    ensemble=EnsembleConfig(members=2, hidden=16),
    dynamics=TRAINING,
    controller="ppo",
    ppo=PPOConfig(iterations=4, envs=8, steps=16, batch_size=64, net=(8,)),
)
CAR = replace(
    POLE,
    family="auto",
    spec=RealSpec("CarRacing-v3", size=32, action_repeat=4, max_episode_steps=30),
    rounds=1,
    random_steps=100,
    model=VMCConfig(z_dim=8, hidden=16),
    squash=("tanh", "sigmoid", "clip"),
)


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """All episodes are played in this process: workers take seconds to start."""
    work_here(monkeypatch)
    judge = verdict.evaluate
    # The report has tests of its own.
    monkeypatch.setattr("wm_agents.loops.finish.fidelity_report", lambda model, out, **more: {})
    monkeypatch.setattr(
        "wm_agents.loops.finish.evaluate",
        lambda *args, **more: judge(*args, **{**more, "episodes": 5, "dream_episodes": 5}),
    )


def run(cfg: ImproveConfig, out: Path) -> dict[str, Any]:
    cached_model.cache_clear()
    return improve(replace(cfg, out=str(out)), Console(file=io.StringIO()))


def learned(out: Path) -> dict[str, torch.Tensor]:
    """All that the last round learned, its controller and starts among it."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(out.glob("round-*/model/*.safetensors")):
        found |= {f"{path.relative_to(out)}/{name}": leaf for name, leaf in load_file(path).items()}
    return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("at_home")
def test_videos_and_reports_that_cannot_be_made_do_not_hold_up_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise LookupError("the renderer is out of paint")

    monkeypatch.setattr("wm_agents.loops.rounds.record", fail)
    monkeypatch.setattr("wm_agents.loops.finish.fidelity_report", fail)
    said = io.StringIO()
    result = improve(replace(POLE, rounds=1, out=str(tmp_path)), Console(file=said, width=500))
    assert json.loads((tmp_path / "summary.json").read_text())["real"] == result["real"]
    for what in ("the video of this round", "the fidelity report"):
        assert f"{what} was not made: LookupError: the renderer is out of paint" in said.getvalue()


def test_an_environment_without_an_episode_limit_gets_one() -> None:
    assert recipe_for("toy_env:Echo-v0").spec.max_episode_steps == 1000
    assert recipe_for("CartPole-v1").spec.max_episode_steps is None


def test_dreams_are_never_longer_than_episodes_of_the_environment() -> None:
    cfg = ImproveConfig(RealSpec("CartPole-v1"), "out", horizon=200)
    assert cfg.dream(DreamConfig(horizon=30)).horizon == 30
    assert cfg.dream(DreamConfig(horizon=500)).horizon == 200
    assert cfg.dream(DreamConfig()).horizon == 200


@pytest.mark.usefixtures("at_home")
def test_a_run_leaves_a_model_its_scores_and_how_it_came_about(tmp_path: Path) -> None:
    result = run(POLE, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["real"]["seed"] == 1_000_000 and len(summary["real"]["returns"]) == 5
    assert summary["gap"] == pytest.approx(summary["dream"]["mean"] - summary["real"]["mean"], abs=1e-3)
    assert result["round"] == max((0, 1), key=lambda r: summary["rounds"][str(r)]["judge"]["real"])
    assert [list(stages) for stages in summary["rounds"].values()] == [list(improving.STAGES)] * 2
    assert 450 <= summary["real_steps"] < 900
    model, artifact = load_model(tmp_path / "model")
    assert load_policy(model, artifact).weights.shape == (2, 4 + 16 + 1)
    told, read = told_history(tmp_path / "model"), read_history(tmp_path)
    assert told is not None and read is not None and told.rounds == read.rounds
    assert [r.real for r in told.rounds] == [summary["rounds"][str(r)]["judge"]["real"] for r in range(2)]
    assert [r.real_std for r in told.rounds] == [summary["rounds"][str(r)]["judge"]["std"] for r in range(2)]
    assert told.rounds[-1].real_steps == summary["real_steps"]
    judged = [summary["rounds"][str(r)]["judge"] for r in range(2)]
    assert all(
        0 < facts["dream"] <= 100 and facts["dream_std"] >= 0 for facts in judged
    )  # Whole dreams, like episodes.
    assert {bank: len(latent["z"]) for bank, latent in load_starts(artifact).items()} == {"begin": 64, "anywhere": 64}
    assert model.vision.std.ne(1).all() and float(model.rew_scale) == 1  # The normaliser reached the model.
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{summary['real']['mean']} ± {summary['real']['std']}" in card and "seeds from 1000000" in card
    record = json.loads((tmp_path / "run.json").read_text())
    assert (
        record["seeds"] == {"run": 1, "collect": 1, "judge": 900_000} and record["starts"][0]["hardware"]["cores"] >= 1
    )
    names = {name for row in read_metrics(tmp_path / "metrics.jsonl") for name in row}
    assert {"collect/return", "learn/val_memory", "control/dream", "judge/real", "dream/return"} <= names


@pytest.mark.usefixtures("at_home")
def test_each_round_continues_from_the_last(tmp_path: Path) -> None:
    run(POLE, tmp_path)
    rounds = [tmp_path / f"round-{r:02d}" / "model" for r in range(2)]
    means = [load_policy(*load_model(path)).weights.ravel() for path in rounds]
    begun = json.loads((tmp_path / "round-01" / "evolution.json").read_text())["x0"]
    assert np.allclose(begun, means[0]) and not np.allclose(means[0], means[1])
    seeds = sorted(int(path.stem.split("-")[1]) for path in (tmp_path / "data").glob("seed-*.h5"))
    assert seeds[0] == 1 and any(20_001 <= seed < 20_100 for seed in seeds) and max(seeds) < 900_000


@pytest.mark.usefixtures("at_home")
def test_rounds_between_judgings_are_not_evaluated_and_the_last_one_is(tmp_path: Path) -> None:
    cfg = replace(MEMBERS, rounds=4, judge_every=3, round_seeds=500, draw_actions=True)
    run(cfg, tmp_path)
    rounds = json.loads((tmp_path / "summary.json").read_text())["rounds"]
    assert [round for round, stages in rounds.items() if "real" in stages["judge"]] == ["2", "3"]
    seeds = [int(path.stem.split("-")[1]) for path in (tmp_path / "data").glob("seed-*.h5")]
    assert {seed // 500 for seed in seeds} == {0, 1, 2, 3}


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("judge_episodes, judged", [(2, ["1", "2"]), (0, [])])
def test_the_mean_controller_of_the_last_rounds_is_evaluated_and_saved(
    judge_episodes: int, judged: list[str], tmp_path: Path
) -> None:
    moving = replace(MEMBERS.ppo, lr=0.05)  # So that the controllers of two rounds differ.
    run(replace(MEMBERS, rounds=3, ppo=moving, mean_rounds=2, judge_every=2, judge_episodes=judge_episodes), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [round for round, stages in summary["rounds"].items() if "real" in stages["judge"]] == judged
    best = summary["round"]
    folders = [tmp_path / f"round-{index:02d}" / "model" for index in (best - 1, best)]
    before, last, saved = (load_policy(*load_model(path)).tensors() for path in (*folders, tmp_path / "model"))
    for name, part in saved.items():  # Saved models are in half precision where it is precise enough.
        assert torch.allclose(part, (before[name] + last[name]) / 2, atol=2e-3), name
    assert max((saved[name] - last[name]).abs().max() for name in saved) > 0.02
    assert "mean of the last 2 controllers" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.usefixtures("at_home")
def test_a_round_whose_dream_is_far_above_reality_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(improving, "evaluate_dream", lambda *args, episodes, **more: Score([9_000.0] * episodes))
    monkeypatch.setattr(verdict, "deliver", lambda *args, **more: {})
    console = Console(file=io.StringIO(), width=1000)
    improve(replace(MEMBERS, rounds=1, out=str(tmp_path)), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "WARNING: the dream return 9000.0 (95 % CI ± 0.0) is far above the real return" in shown


class Killed(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


def killing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`function`, but its call number `at` does its work and is the last."""
    calls = 0

    def killed(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **more)
        if calls == at:
            raise Killed
        return result

    return killed


# Where a kill strikes: (what is called, the call that is the last).
KILLS: list[tuple[Any, str, int]] = [
    (improving, "collect", 1),  # All shards landed, not yet noted.
    (learning, "encode_dataset", 1),
    (learning, "make_starts", 1),  # M is fitted, not yet saved.
    (Improvement, "_look", 3),  # In the middle of a generation's bookkeeping.
    (improving, "evolve_in_dream", 1),
    (improving, "evaluate_real", 1),
    (improving, "collect", 1),  # Of round 1 from here on.
    (Improvement, "_note", 2),
    (Improvement, "_look", 2),
    (verdict, "write_json", 1),
]


@pytest.mark.usefixtures("at_home")
def test_a_run_killed_between_any_two_things_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = run(POLE, tmp_path / "whole")
    for owner, name, at in KILLS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), at))
            with pytest.raises(Killed):
                run(POLE, tmp_path / "killed")
    resumed = run(POLE, tmp_path / "killed")
    assert equal(learned(tmp_path / "killed"), learned(tmp_path / "whole"))
    assert resumed["real"] == whole["real"] and resumed["dream"] == whole["dream"]
    judge = json.loads((tmp_path / "whole" / "summary.json").read_text())["rounds"]["0"]["judge"]
    played_twice = round(judge["real"] * judge["episodes"])  # A step of CartPole pays 1.
    assert resumed["real_steps"] == whole["real_steps"] + played_twice


@pytest.mark.usefixtures("at_home")
def test_a_finished_run_takes_more_rounds_and_other_settings_but_not_another_problem(tmp_path: Path) -> None:
    run(replace(POLE, rounds=1), tmp_path)
    first = learned(tmp_path)
    with pytest.raises(ValueError, match=r"contains a run with other settings: config.random_steps was 300, now 400"):
        run(replace(POLE, random_steps=400), tmp_path)
    with pytest.raises(ValueError, match="cannot change during a run: hidden was 16, now 8; use another folder"):
        run(replace(POLE, model=replace(POLE.model, hidden=8)), tmp_path)
    run(replace(POLE, horizon=50), tmp_path)
    both = learned(tmp_path)
    assert all(torch.equal(both[name], leaf) for name, leaf in first.items()) and len(both) == 2 * len(first)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["config"]["horizon"] for start in starts] == [30, 30, 50]


@pytest.mark.parametrize("changes", [{"env_seed": 890_000}, {"rounds": 45}, {"env_seed": 870_000}])
def test_seeds_for_evaluating_are_never_collected(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"collect up to seed .*, but seeds from 900,000 up "):
        replace(POLE, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"round_steps": 0}, "round_steps must be a whole number of at least 1, got 0"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be a number of at least 0, got -1.0"),
        ({"pessimism": math.nan}, "pessimism must be a finite number, got nan"),
        ({"start_rounds": 0}, "start_rounds must be a whole number of at least 1, got 0"),
        ({"dream_stall": 0}, "dream_stall must be a whole number of at least 1, or None, got 0"),
        ({"leave": 2.0}, "leave must be a number between 0 and 1, got 2.0"),
        ({"noise": ()}, r"noise must be one or more levels, got \(\)"),
        ({"noise": (-2.0,)}, "noise must be a list of numbers of at least 0"),
        ({"max_gb": 0.0}, "max_gb must be a number above 0, got 0.0"),
    ],
)
def test_what_a_run_cannot_do_is_rejected_before_it_begins(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POLE, **changes)


def test_what_an_environment_or_ppo_cannot_do_is_rejected() -> None:
    with pytest.raises(ValueError, match="RealSpec.action_repeat must be a whole number of at least 1, got 0"):
        RealSpec("CartPole-v1", action_repeat=0)
    for values in ({"batch_size": 1}, {"envs": 1, "steps": 1}):
        with pytest.raises(ValueError, match="must be .*at least 2.*, got 1"):
            PPOConfig(**values)


@pytest.mark.usefixtures("at_home")
def test_a_run_without_room_for_data_reports_it_and_continues_with_more(tmp_path: Path) -> None:
    small = replace(POLE, rounds=1, max_gb=1e-9)
    with pytest.raises(ValueError, match=r"nothing was collected \(max_gb\); raise max_gb \(1e-09\)"):
        run(small, tmp_path)
    run(replace(small, max_gb=1.0), tmp_path)
    assert (tmp_path / "summary.json").exists()


SCRIPT = """
import sys
sys.path[:0] = [TESTS, ROOT]
from dataclasses import replace
from test_improve import CAR, POLE
from rich.console import Console
from wm_agents.loops.rounds import Improvement
from wm_agents.system.run_folder import start_run

if __name__ == "__main__":
    cfg = {"car": CAR, "pole": POLE}[sys.argv[1]]
    cfg = replace(cfg, out=sys.argv[2], rounds=1, memory=cfg.memory.replace(total_steps=200))
    with start_run(cfg.out, cfg.to_dict(), {}) as run:
        Improvement(cfg, run, Console(stderr=True)).loop()
"""


def launch(tmp_path: Path, which: str, out: Path) -> subprocess.Popen[bytes]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("TESTS", repr(str(TESTS))).replace("ROOT", repr(str(TESTS.parent))))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), which, str(out)]
    with (tmp_path / "stderr").open("ab") as stderr:
        return subprocess.Popen(command, env=env, stderr=stderr, start_new_session=True)


def finish(proc: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert proc.wait(timeout=HANG_S) == 0, (tmp_path / "stderr").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["pole", "car"])
def test_a_run_killed_for_good_in_the_middle_of_stages_ends_as_one_that_was_not(tmp_path: Path, which: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(launch(tmp_path, which, whole), tmp_path)
    middles = [
        killed / "data" / ".collect.lock",
        killed / "round-00" / "memory" / "last.safetensors",
        killed / "round-00" / "evolution.json",
    ]
    for path in middles:
        proc = launch(tmp_path, which, killed)
        wait_until(path.exists, proc)
        proc.kill()
        proc.wait()
    assert json.loads((killed / "state.json").read_text())["stage"] in ("control", "judge")
    finish(launch(tmp_path, which, killed), tmp_path)
    assert equal(learned(killed), learned(whole))
    if which == "car":
        assert list(killed.glob("round-00/vision/samples/*.png")) and (killed / "round-00/real_vs_dream.mp4").exists()


# The same for an ensemble and PPO. What PPO has learned is kept, the moments of its optimizer are not.
MEMBER_KILLS: list[tuple[Any, str, int]] = [
    (improving, "collect", 1),
    (fit_members, "read_moves", 1),
    (fit_members, "make_starts", 1),
    (improving, "ppo_in_dream", 1),
    (improving, "evaluate_real", 1),
    (Improvement, "_note", 2),
    (verdict, "write_json", 1),
]


@pytest.mark.usefixtures("at_home")
def test_an_ensemble_and_ppo_survive_kills_too(tmp_path: Path) -> None:
    whole = run(MEMBERS, tmp_path / "whole")
    for owner, name, at in MEMBER_KILLS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), at))
            with pytest.raises(Killed):
                run(MEMBERS, tmp_path / "killed")
    resumed = run(MEMBERS, tmp_path / "killed")
    assert equal(learned(tmp_path / "killed"), learned(tmp_path / "whole"))
    assert resumed["real"] == whole["real"] and resumed["policy"] == "mlp"


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("cfg", [POLE, MEMBERS], ids=["linear", "ppo"])
def test_a_look_at_the_controller_comes_on_time_and_may_end_the_run(tmp_path: Path, cfg: ImproveConfig) -> None:
    seen: list[improving.Check] = []

    def look(check: improving.Check) -> bool:
        model, artifact = load_model(check.model)
        assert load_policy(model, artifact) and check.wall_s["collect"] > 0
        seen.append(check)
        return check.generation == 6

    cached_model.cache_clear()
    cfg = replace(cfg, out=str(tmp_path), check_every=2, rounds=3)
    result = improve(cfg, Console(file=io.StringIO()), look)
    assert [(check.generation, check.round) for check in seen] == [(2, 0), (4, 0), (6, 1)]
    assert result["round"] == 1 and not (tmp_path / "round-02").exists()
    assert seen[0].real_steps < seen[2].real_steps <= result["real_steps"]


@pytest.mark.usefixtures("at_home")
def test_a_run_without_a_evaluate_keeps_its_last_round(tmp_path: Path) -> None:
    result = run(replace(MEMBERS, judge_episodes=0), tmp_path)
    assert result["round"] == 1 and result["real_steps"] == len_of(tmp_path / "data")


def len_of(data: Path) -> int:
    return Dataset(data).num_steps


@torch.no_grad()
def test_the_latent_takes_in_the_action_that_was_taken_noise_and_all(tmp_path: Path) -> None:
    spec = RealSpec("CartPole-v1", max_episode_steps=40)
    path, env = save_tiny(tmp_path / "m", spec), make_real(spec)
    net, artifact = load_model(path)
    own = load_policy(net, artifact)
    policy = explore_with(path, (1.0,), 0.0, 300, env)
    policy.reset(1, 0)
    obs, _ = env.reset(seed=0)
    latent, strayed = net.encode(torch.from_numpy(obs[None])), 0
    for _ in range(8):
        act = policy.act(obs[None])
        strayed += int(act[0] != own.act(net.feat(latent).numpy())[0])
        obs = env.step(act[0])[0]
        latent = net.encode(torch.from_numpy(obs[None]), latent, torch.from_numpy(encode_action(env.action_space, act)))
    policy.act(obs[None])
    assert strayed and isinstance(policy, LatentPolicy) and policy.observer.latent is not None
    torch.testing.assert_close(policy.observer.latent["h"], latent["h"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": RealSpec("toy_env:Echo-v0")}, "has no episode limit; set one with --spec.max_episode_steps N"),
        ({"pessimism": 1.0}, "need an ensemble of at least 2 members, got vmc with 1"),
        (
            {"family": "ensemble", "max_disagreement": 1.0, "ensemble": EnsembleConfig(members=1)},
            "at least 2 members, got ensemble with 1",
        ),
        ({"spec": RealSpec("CartPole-v1", size=64)}, "CartPole-v1: observations must be"),
    ],
)
def test_what_cannot_work_is_rejected_before_any_work(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        improve(replace(POLE, out=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "space", [Discrete(4, start=1), MultiBinary([2, 2]), MultiDiscrete([[2, 3], [2, 2]]), MultiDiscrete([2], start=[1])]
)
def test_actions_that_ppo_cannot_choose_are_rejected_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Space[Any]
) -> None:
    monkeypatch.setitem(ACT, "odd", space)
    spec = RealSpec("odd_env:Odd-v0", {"obs": "matrix", "act": "odd"}, max_episode_steps=7)
    cfg = replace(MEMBERS, spec=spec, out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"odd_env:Odd-v0: SB3 .*, got (.|\n)*, or use the linear controller"):
        improve(cfg)
    assert not (tmp_path / "run").exists()
    check_training(replace(cfg, controller="linear"))
    monkeypatch.setitem(ACT, "discrete", space)
    assert recipe_for("odd_env:Odd-v0").controller == "linear"
    if isinstance(space, Discrete):
        check_training(replace(cfg, spec=replace(spec, actions=(1, 2, 3, 4))))


def test_a_warm_start_takes_what_v_learned_and_not_what_stood_still(tmp_path: Path) -> None:
    cfg = replace(CAR, model=VMCConfig(z_dim=4, hidden=8, motion_weight=10.0), warm_start=str(tmp_path / "m"))
    spaces_ = (Box(0, 255, (32, 32, 1), np.uint8), Discrete(2))
    first = learning.new_model(replace(cfg, warm_start=None, seed=5), *spaces_)
    assert isinstance(first, VMC)
    first.vision.still.fill_(0.5)
    starts = {"begin": first.initial(1), "anywhere": first.initial(1)}
    save_model(tmp_path / "m", first, RealSpec("CarRacing-v3", size=32), starts, horizon=5, card="")
    second = learning.new_model(cfg, *spaces_)
    assert isinstance(second, VMC)
    ours, theirs = second.vision.state_dict(), first.vision.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "still")
    assert not ours["still"].any()


def test_ppo_that_was_killed_before_a_look_looks_again_and_continues(tmp_path: Path) -> None:
    toy, cfg = Toy(), PPOConfig(iterations=3, envs=4, steps=8, batch_size=16, net=(4,))
    seen: list[int] = []

    def look(iteration: Iteration) -> bool:
        seen.append(iteration.number)
        if len(seen) == 2:
            raise Killed
        return False

    how: dict[str, Any] = {"state": tmp_path / "ppo.safetensors", "dream": DreamConfig(horizon=5), "on_iteration": look}
    with pytest.raises(Killed):
        ppo_in_dream(toy, toy_starts(), cfg, **how)
    last = ppo_in_dream(toy, toy_starts(), cfg, **how)
    assert seen == [1, 2, 2, 3] and last.number == 3 and np.isfinite(last.mean)
    again = ppo_in_dream(toy, toy_starts(), cfg, **how)
    assert (again.number, again.mean) == (3, last.mean)


class Rich(Toy):
    """The toy with larger rewards."""

    def step(self, *args: Any, **kwargs: Any) -> Step:
        step = super().step(*args, **kwargs)
        return step._replace(rew=step.rew * 1024)


def test_ppo_does_not_depend_on_the_unit_of_rewards_and_resumes_its_scale(tmp_path: Path) -> None:
    cfg = PPOConfig(iterations=2, envs=4, steps=8, batch_size=16, net=(4,))
    for name, toy in (("poor", Toy()), ("rich", Rich())):
        for iterations in (1, 2):  # Interrupted after the first.
            how = {"dream": DreamConfig(horizon=5), "state": tmp_path / name}
            last = ppo_in_dream(toy, toy_starts(), replace(cfg, iterations=iterations), **how)  # type: ignore[arg-type]
    poor, rich = (load_file(tmp_path / name) for name in ("poor", "rich"))
    assert np.isfinite(last.mean)
    for name, value in poor.items():
        torch.testing.assert_close(rich[name], value, rtol=1e-3, atol=1e-4)
    scales = [read_state_tensors(tmp_path / name)[1] for name in ("poor", "rich")]
    assert float(scales[1]["scale_var"]) == pytest.approx(1024**2 * float(scales[0]["scale_var"]), rel=1e-3)
    assert float(scales[0]["scale_count"]) == pytest.approx(2 * 4 * 8, rel=0.01)


def test_the_learning_rate_of_ppo_falls_linearly_also_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    learn = PPO.learn

    def spy(self: PPO, *args: Any, **kwargs: Any) -> PPO:
        learn(self, *args, **kwargs)
        rates.append(self.policy.optimizer.param_groups[0]["lr"])
        return self

    monkeypatch.setattr(PPO, "learn", spy)
    cfg = PPOConfig(iterations=4, envs=4, steps=8, batch_size=16, net=(4,), lr=0.004)
    how: dict[str, Any] = {"dream": DreamConfig(horizon=5), "state": tmp_path / "ppo"}
    ppo_in_dream(Toy(), toy_starts(), cfg, on_iteration=lambda now: now.number == 2, **how)
    ppo_in_dream(Toy(), toy_starts(), cfg, **how)
    assert rates == pytest.approx([0.004, 0.003, 0.002, 0.001])


def test_ppo_leaves_no_folder_of_logs_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "logs"))
    cfg = PPOConfig(iterations=1, envs=4, steps=8, batch_size=16, net=(4,))
    ppo_in_dream(Toy(), toy_starts(), cfg, DreamConfig(horizon=5), state=tmp_path / "ppo.safetensors")
    assert not (tmp_path / "logs").exists()


def test_whitening_is_of_the_first_dreams_and_kept(tmp_path: Path) -> None:
    toy, starts = Toy(), toy_starts()
    cfg = PPOConfig(iterations=1, envs=4, steps=8, batch_size=16, net=(4,), activation="relu", whiten=True)
    first = ppo_in_dream(toy, starts, cfg, DreamConfig(horizon=5), state=tmp_path / "a")
    kept = load_file(tmp_path / "a")
    feat = toy.feat(starts["anywhere"])
    assert torch.allclose(kept["features_extractor.mean"], feat.mean(0)) and first.policy.activation == "relu"
    moved = {bank: {key: leaf + 1 for key, leaf in latent.items()} for bank, latent in starts.items()}
    ppo_in_dream(toy, moved, cfg, DreamConfig(horizon=5), state=tmp_path / "b", before=tmp_path / "a")
    assert torch.equal(load_file(tmp_path / "b")["features_extractor.mean"], kept["features_extractor.mean"])


@pytest.mark.usefixtures("at_home")
def test_rounds_evaluated_on_fewer_episodes_do_not_compete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([Score([99.0]), Score([5.0, 7.0]), Score([3.0, 4.0])])
    monkeypatch.setattr(improving, "evaluate_real", lambda *args, **more: next(scores))
    assert run(replace(POLE, rounds=3), tmp_path)["round"] == 1
