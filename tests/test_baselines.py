"""References: each budget is kept to, failures are records, and recorded runs are not repeated."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import work_here

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import baselines
from baselines import (
    SETTINGS,
    SPECS,
    Setting,
    actor_of,
    budget_of,
    main,
    random_record,
    reference_record,
    seen_by_networks,
    train,
)
from records import Record, read_records, write_record
from result_tables import Card, Results
from stable_baselines3 import PPO

from wm_envs.registry import RealSpec

POLE = RealSpec("CartPole-v1", max_episode_steps=20)
SMALL = Setting(PPO, 2, {"n_steps": 16, "batch_size": 16, "policy_kwargs": {"net_arch": [4]}})


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)
    monkeypatch.setitem(SPECS, "CartPole", POLE)
    monkeypatch.setitem(SETTINGS, "CartPole", {"ppo": SMALL})


def record_of(budget: str = "steps", steps: int = 96) -> Record:
    return reference_record("CartPole", "ppo", budget, steps, 0.0, seed=4, episodes=3, procs=0)


def test_the_budget_of_steps_is_kept_to_and_the_curve_goes_up_to_it() -> None:
    record = record_of()
    assert record.real_steps == 96 and record.agent == "SB3 PPO" and record.budget == "equal steps"
    assert record.real is not None and len(record.real["returns"]) == 3 and record.failed is None
    steps = [point["real_steps"] for point in record.curve]
    assert steps == sorted(steps) and 0 < steps[0] <= steps[-1] <= 96
    assert all(1 <= point["real"] <= 20 for point in record.curve)


def test_the_budget_of_time_ends_training_long_before_its_steps() -> None:
    assert record_of("time", steps=10**9).real_steps == 2  # The time is up after the first step of both rows.


def test_the_same_seed_trains_the_same_network() -> None:
    models = [train(SMALL, POLE, 64, None, seed)[0] for seed in (1, 1, 2)]
    first, again, other = ([p.sum().item() for p in model.policy.parameters()] for model in models)
    assert first == again != other


def test_an_error_is_recorded_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "CartPole", {"ppo": SMALL._replace(kwargs={"gamma": "high"})})
    record = record_of()
    assert record.real is None and record.failed is not None and record.failed.startswith(("TypeError", "ValueError"))


def test_recorded_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["baselines.py", "--task", "CartPole", "--steps", "64", "--minutes", "0.0001", "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", [*flags, "--procs", "0", "--out", str(tmp_path)])
    write_record(random_record("CartPole", 2, 0), tmp_path)
    main()
    assert [record.name for record in read_records(tmp_path)] == [
        "sb3-ppo-equal-steps-seed-1",
        "sb3-ppo-equal-time-seed-1",
        "random",
    ]

    def repeated(*args: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(baselines, "train", repeated)
    main()


def test_the_budget_is_that_of_the_recorded_dreams_or_of_the_shipped_one() -> None:
    ran = partial(Record, "CartPole", "CartPole-v1", "dream", "ensemble, PPO")
    runs = [ran(seed, real={"mean": 1.0}, real_steps=1_000 * seed, wall_s=60.0 * seed) for seed in (1, 2)]
    failed = ran(3, failed="no", real_steps=9, wall_s=9.0)
    card = Card("CartPole", "ensemble, PPO", 1.0, 1.0, 1.0, 1.0, 1_884, 702.0, "CPU")
    assert budget_of(Results([*runs, failed], [card], {}), "CartPole") == (1_500, 90.0)
    assert budget_of(Results([], [card], {}), "CartPole") == (1_884, 702.0)
    with pytest.raises(ValueError, match="no run of Pendulum is recorded, so give --steps and --minutes"):
        budget_of(Results([], [card], {}), "Pendulum")


@pytest.mark.parametrize("task", sorted(set(SETTINGS) - {"CartPole"}))
def test_every_setting_makes_a_learner_whose_policy_acts_elsewhere(task: str) -> None:
    for setting in SETTINGS[task].values():
        memory = {} if setting.algo is PPO else {"buffer_size": 100}
        make = partial(baselines.make_env, seen_by_networks(SPECS[task]))
        envs = baselines.make_vec_env(make, n_envs=setting.num_envs)
        model = setting.algo(setting.policy, envs, device="cpu", **{**setting.kwargs, **memory})
        obs = np.stack([model.observation_space.sample()])
        policy = pickle.loads(pickle.dumps(actor_of(model)))()
        assert np.array_equal(policy.act(channels_last(obs)), model.predict(obs, deterministic=True)[0])
        envs.close()


def channels_last(obs: np.ndarray) -> np.ndarray:
    """Images as the real environment gives them."""
    return obs if obs.ndim == 2 else np.moveaxis(obs, 1, -1)
