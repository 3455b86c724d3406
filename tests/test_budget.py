"""Budgets: durations, the largest settings that fit, floors, plans that are kept, and runs that end in time."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import work_here

from policies.cmaes import CMAConfig
from policies.step_count import StepCount
from wm_agents.control.ppo import PPOConfig
from wm_agents.errors import ConfigurationError
from wm_agents.loops import budget_online, budget_rounds, finish, rounds
from wm_agents.loops.budget import Forecast, Plan, duration, fit_to, scaled, seconds_of, time_of
from wm_agents.loops.budget_rounds import Speeds, forecast, measure, planned, scale, updates
from wm_agents.loops.online import least_steps
from wm_agents.loops.online_config import OnlineConfig, online_recipe
from wm_agents.loops.recipes import RECIPES, ImproveConfig
from wm_agents.models.ensemble import EnsembleConfig
from wm_agents.models.vmc import VMCConfig
from wm_agents.system.files import read_json
from wm_agents.system.run_folder import RunFolder, start_run
from wm_agents.training.config import TrainingConfig
from wm_envs.registry import RealSpec

CFG = ImproveConfig(
    RealSpec("CartPole-v1", max_episode_steps=60),
    out="",
    rounds=6,
    random_steps=10_000,
    round_steps=8000,
    shard_episodes=1,
    family="ensemble",
    ensemble=EnsembleConfig(members=2, hidden=16),
    dynamics=TrainingConfig(total_steps=4000, batch_size=16, mixed_precision=False, eval_interval=500),
    controller="ppo",
    ppo=PPOConfig(iterations=100, envs=8, steps=16, batch_size=64, net=(8,)),
    horizon=30,
    judge_episodes=10,
    starts=64,
    procs=0,
)
SPEEDS = Speeds(step_s=0.001, act_s=0.002, update_s={"dynamics": 0.01}, generation_s=0.5, episode=60)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=500)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), ("2 m", 120)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds == time_of(text, False)


@pytest.mark.parametrize("text", ["10", "min", "0s", "-1h", "1d", "1h30"])
def test_other_durations_are_rejected(text: str) -> None:
    with pytest.raises(ConfigurationError, match="budget must be a time such as 90s, 10min or 1.5h, got"):
        replace(CFG, budget=text)


def test_a_budget_and_quick_exclude_each_other() -> None:
    assert time_of(None, True) == 180 and time_of(None, False) is None
    with pytest.raises(ConfigurationError, match="exclude each other"):
        replace(CFG, budget="10min", quick=True)


def test_durations_are_written() -> None:
    assert [duration(seconds) for seconds in (40, 99, 720, 5400, 7200)] == ["40 s", "99 s", "12 min", "90 min", "2.0 h"]
    assert str(Forecast({"collect": 40.0, "model": 0.2, "end": 80.0})) == "2 min (collect 40 s, end 80 s)"


def test_the_largest_settings_that_fit_are_found() -> None:
    def cost(factor: float) -> Forecast:
        return Forecast({"all": 10 + 100 * factor})

    factor = fit_to(100.0, 30.0, lambda factor: factor, cost, at_least=False)
    assert factor == pytest.approx(0.6, rel=1e-4)  # 30 + 10 + 100 x 0.6 = 100.
    with pytest.raises(ConfigurationError, match="a budget of 35 s is too short: after 30 s of measuring"):
        fit_to(35.0, 30.0, lambda factor: factor, cost, at_least=False)
    assert cost(fit_to(35.0, 30.0, lambda factor: factor, cost, at_least=True)).total < 10.2


def test_amounts_are_scaled_together_above_floors() -> None:
    assert scale(CFG, 1.0) == CFG
    assert (scaled(100, 0.5, 10), scaled(100, 0.01, 10), scaled(4, 0.01, 10)) == (50, 10, 4)
    half = scale(CFG, 0.5)
    assert half.rounds == 4 and half.round_steps == 6000  # 0.5 x 6 rounds / 4 = 3/4 of each.
    assert half.dynamics.total_steps == 3000 and half.ppo.iterations == 75
    least = scale(CFG, 1e-3)
    assert (least.rounds, least.random_steps, least.dynamics.total_steps, least.ppo.iterations) == (2, 500, 200, 5)
    assert least.dynamics.eval_interval == 200  # Else no weights would be the best.
    assert (least.judge_episodes, least.final_episodes) == (3, 10)
    assert scale(CFG, 8.0).final_episodes == 100


def test_a_forecast_adds_what_the_parts_take() -> None:
    found = forecast(CFG, SPEEDS).parts
    assert found["collect"] == pytest.approx(10_000 * 0.001 + 5 * 8000 * 0.002)
    assert found["model"] == pytest.approx(6 * 4000 * 0.01) and found["controller"] == pytest.approx(6 * 100 * 0.5)
    assert found["end"] == pytest.approx(120 * 60 * 0.002 + 120)
    images = replace(CFG, family="vmc", vision_rounds=3)
    assert updates(images)["vision"] == 4000 + 2 * 2000 and updates(images)["memory"] == 6 * 3000
    assert updates(CFG)["dynamics"] == 6 * 4000
    pong = RECIPES["Pong"]
    assert (
        updates(pong)["dynamics"] == (pong.rounds + 3) * pong.dynamics.total_steps
    )  # The first round takes four times.


def test_forecasts_grow_with_the_factor() -> None:
    totals = [forecast(scale(CFG, 2.0**power), SPEEDS).total for power in range(-8, 4)]
    assert totals == sorted(totals) and totals[0] < 0.2 * totals[-1]


def test_a_round_begins_only_if_it_ends_in_time() -> None:
    plan = Plan(budget_s=95, factor=1.0, trial_s=10, round_s=20, finish_s=15)
    assert plan.left_s([], 3) == 75
    assert plan.has_time([20, 20]) and not plan.has_time([20, 20, 20])
    assert plan.left_s([40], 1) == 70  # Twice as slow as expected, the end too.
    assert not plan.has_time([40])


@pytest.fixture
def fast_end(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)
    monkeypatch.setattr(rounds, "record", lambda *args, **more: None)


@pytest.mark.usefixtures("fast_end")
def test_a_trial_measures_every_part_and_its_steps_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    count = StepCount(tmp_path / "real_steps")
    speeds = measure(CFG, run, count)
    run.close()
    assert set(speeds.update_s) == {"dynamics"} and 0 < speeds.episode <= 60
    assert min(speeds.step_s, speeds.act_s, speeds.generation_s, speeds.update_s["dynamics"]) > 0
    assert 600 <= count.value < 600 + 2 * 60 + 60
    assert not list(tmp_path.glob("trial-*"))


@pytest.mark.usefixtures("fast_end")
def test_a_trial_measures_only_parts_that_are_trained(tmp_path: Path) -> None:
    memory = TrainingConfig(total_steps=3000, batch_size=16, mixed_precision=False)
    cfg = replace(CFG, family="vmc", model=VMCConfig(hidden=8, mixtures=2), memory=memory, window=16)
    with RunFolder(tmp_path) as run:
        speeds = measure(cfg, run, StepCount(tmp_path / "real_steps"))
    assert set(speeds.update_s) == {"memory"}  # Vectors have no encoder.
    assert forecast(cfg, speeds).parts["model"] == pytest.approx(6 * 3000 * speeds.update_s["memory"])


def test_a_resumed_run_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(budget_rounds, "measure", lambda *args: asked.append(args) or SPEEDS)
    run, console = RunFolder(tmp_path), quiet()
    cfg = replace(CFG, budget="5min")
    count = StepCount(tmp_path / "real_steps")
    first = planned(cfg, run, count, console)
    assert first == planned(cfg, run, count, console) and len(asked) == 1
    assert forecast(first, SPEEDS).total <= 300 and first.report_minutes == 0.5
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"plan: {first.rounds} rounds of {first.round_steps:,} real steps" in text and "forecast: " in text
    planned(replace(cfg, budget="6min"), run, count, console)
    assert len(asked) == 2
    assert planned(CFG, run, count, console) is CFG
    run.close()


@pytest.mark.usefixtures("fast_end")
def test_a_run_without_time_for_another_round_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = TrainingConfig(total_steps=10, batch_size=16, mixed_precision=False, eval_interval=10)
    cfg = replace(
        CFG, rounds=3, random_steps=100, round_steps=60, dynamics=short, ppo=replace(CFG.ppo, iterations=1),
        judge_episodes=1, budget="1min",
    )  # fmt: skip
    run, console = RunFolder(tmp_path), quiet()
    run.update(plan={"budget_s": 1e-6, "factor": 1.0, "trial_s": 0.0, "round_s": 1.0, "finish_s": 0.0})
    loop = rounds.Improvement(replace(cfg, out=str(tmp_path)), run, console)
    loop.loop()
    run.close()
    assert loop.round == 1 and list(run.state["history"]) == ["0"]
    assert "the budget allows 1 rounds; the run ends" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fast_end")
def test_a_run_that_is_resumed_without_its_budget_has_no_limit(tmp_path: Path) -> None:
    short = TrainingConfig(total_steps=10, batch_size=16, mixed_precision=False, eval_interval=10)
    cfg = replace(
        CFG, out=str(tmp_path), rounds=2, random_steps=100, round_steps=60, dynamics=short,
        ppo=replace(CFG.ppo, iterations=1), judge_episodes=0, final_episodes=1, report_minutes=0,
    )  # fmt: skip
    with start_run(tmp_path, replace(cfg, budget="1min").to_dict(), {"run": 1, "collect": 1, "judge": 900_000}) as run:
        run.update(plan={"budget_s": 60.0, "factor": 1.0, "trial_s": 59.0, "round_s": 1.0, "finish_s": 60.0})
    result = rounds.improve(cfg, quiet())
    assert result["round"] == 1 and len(read_json(tmp_path / "summary.json", "a summary")["rounds"]) == 2
    assert "plan" not in read_json(tmp_path / "summary.json", "a summary")


def online_config() -> OnlineConfig:
    spec = RealSpec("CartPole-v1", max_episode_steps=60)
    return replace(online_recipe("tdmpc2", "CartPole-v1", spec), size="ci", procs=0, device="cpu")


def test_online_settings_never_fall_below_what_a_run_needs() -> None:
    cfg = online_config()
    for factor in (1e-3, 0.1, 1.0, 4.0):
        small = budget_online.scale(cfg, factor)
        assert small.real_steps >= least_steps(small) + budget_online.trial_steps(cfg)
    assert budget_online.scale(cfg, 0.1).prefill == 200 and budget_online.scale(cfg, 1e-3).final_episodes == 10


def test_an_online_trial_measures_every_part_and_its_steps_count(tmp_path: Path) -> None:
    cfg = replace(online_config(), batch_size=16)
    run = RunFolder(tmp_path)
    count = StepCount(tmp_path / "real_steps")
    speeds = budget_online.measure(cfg, run, count)
    run.close()
    assert min(speeds.step_s, speeds.act_s, speeds.update_s) > 0 and speeds.plans and speeds.limit == 60
    assert count.value == budget_online.trial_steps(cfg)


def test_the_end_of_a_run_is_part_of_the_forecast() -> None:
    speeds = budget_online.Speeds(step_s=0.001, act_s=0.01, update_s=0.02, limit=60, plans=False)
    cfg = replace(online_config(), report_minutes=0.0, final_episodes=10)
    found = budget_online.forecast(cfg, speeds).parts
    assert found["acting"] == pytest.approx(cfg.real_steps * 0.01)
    assert found["updates"] == pytest.approx(cfg.real_steps * cfg.updates_per_step * 0.02)
    assert found["end"] == pytest.approx(20 * 60 * 0.01 + 8)
    assert finish.RANDOM_EPISODES >= 10


def test_the_default_of_cma_scales_too() -> None:
    linear = replace(CFG, controller="linear", cma=CMAConfig(generations=120))
    assert scale(linear, 1e-3).cma.generations == 5
