"""MPPI: on models whose best plan is known, and its equations against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from toy import Toy

from policies.mppi import MPPI, MPPIConfig, MPPIPolicy, _smooth, _weigh, refit
from wm_envs.noise import Generator
from wm_envs.world_model import Latent, Step

QUICK = MPPIConfig(num_samples=64, num_elites=8, num_prior_plans=4, min_std=0.01, discount=1.0)


class Flat(Toy):
    """The toy, whose feat is its latent."""

    def latent_of(self, feat: Tensor) -> Latent:
        return {"x": feat}


def at(*x: float) -> Latent:
    return {"x": torch.tensor([[value, 0.0] for value in x])}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def near(goal: float, scale: float = 10.0) -> Callable[..., Tensor]:
    """A value that is highest at `goal`."""

    def value(latent: Latent, *, generator: torch.Generator | None = None) -> Tensor:
        return -scale * (latent["x"][:, 0] - goal).square()

    return value


def always(act: float) -> Callable[..., Tensor]:
    """A prior of one action."""

    def prior(latent: Latent, *, greedy: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return torch.full((len(latent["x"]), 1), act)

    return prior


# Plans of models that are known


def test_the_best_plan_is_found_where_moving_pays() -> None:
    plan = MPPI(Toy(), QUICK).plan(at(0.0, 5.0), generator=seeded())
    torch.testing.assert_close(plan.act, torch.ones(2, 1), atol=0.05, rtol=0)
    torch.testing.assert_close(plan.guess, torch.ones(2, 3, 1), atol=0.1, rtol=0)


def test_nothing_is_earned_behind_an_end() -> None:
    # Two steps must stay at or below 0.5 together, the third may jump over the end: 1.5 in all, and 1 for who rushes.
    planner = MPPI(Toy(end=0.5), MPPIConfig(num_samples=512, min_std=0.01, discount=1.0))
    plan = planner.plan(at(0.0), generator=seeded())
    assert float(planner.returns(at(0.0), plan.guess[:, None])) > 1.4
    assert float(planner.returns(at(0.0), torch.ones(1, 1, 3, 1))) == 1.0


def test_returns_are_discounted_and_end_with_a_value() -> None:
    planner = MPPI(Toy(end=3.5), MPPIConfig(discount=0.5), value=near(0.0, 1.0))
    acts = torch.tensor([[[1.0], [1.0], [-1.0]], [[1.0], [0.0], [1.0]]])[None]
    got = planner.returns(at(2.0), acts)
    # The first ends with its second step, at 4; the second gets to 4 with its last.
    torch.testing.assert_close(got, torch.tensor([[1 + 0.5, 1 + 0.25]]))
    on = MPPI(Toy(), MPPIConfig(discount=0.5), value=near(0.0, 1.0)).returns(at(2.0), acts)
    torch.testing.assert_close(on, torch.tensor([[1 + 0.5 - 0.25 - 9 / 8, 1 + 0.25 - 16 / 8]]))


def test_rows_are_planned_each_for_itself() -> None:
    planner = MPPI(Toy(), QUICK, value=near(0.5))
    plan = planner.plan(at(-0.5, 0.5, 1.0), generator=seeded())
    reached = torch.tensor([-0.5, 0.5, 1.0]) + plan.guess.sum((1, 2))
    torch.testing.assert_close(reached, torch.full((3,), 0.55), atol=0.08, rtol=0)  # Moving pays a little more.


@pytest.mark.parametrize(("choices", "all_tried"), [(3, True), (9, False)])
def test_choices_are_planned_by_trying_all_or_by_their_chances(choices: int, all_tried: bool) -> None:
    model = Toy(act_space=spaces.Discrete(choices))
    planner = MPPI(model, replace(QUICK, num_elites=2), value=near(-1.5))
    assert planner.tries_all is all_tried
    plan = planner.plan(at(0.0, -3.0), generator=seeded())
    assert plan.act.sum(1).tolist() == [1, 1] and set(plan.act.unique().tolist()) == {0, 1}
    torch.testing.assert_close(plan.guess.sum(-1), torch.ones(2, 3))
    best = (plan.guess.argmax(-1) / (choices - 1) * 2 - 1).sum(1)
    want = [-1.5, 1.5] if choices == 9 else [-1.0, 2.0]  # 1 and 2 are as near, and moving up pays.
    torch.testing.assert_close(best, torch.tensor(want), atol=0.3, rtol=0)


def test_what_a_model_calls_nan_is_not_done() -> None:
    class Broken(Toy):
        def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
            out = super().step(latent, act, temperature=temperature, generator=generator)
            return out._replace(rew=torch.where(act[:, 0] > 0.2, torch.nan, out.rew - 9))

    plan = MPPI(Broken(), QUICK).plan(at(0.0), generator=seeded())
    assert plan.act.isfinite().all() and -0.1 < float(plan.act) <= 0.2


def test_a_prior_shows_what_sampling_never_finds() -> None:
    def narrow(latent: Latent, *, generator: torch.Generator | None = None) -> Tensor:
        return 100.0 * ((latent["x"][:, 0] - 0.9).abs() < 1e-4)

    cfg = MPPIConfig(num_samples=32, num_elites=4, num_prior_plans=2, discount=1.0)
    blind, shown = (MPPI(Toy(), cfg, prior, narrow).plan(at(0.0), generator=seeded()) for prior in (None, always(0.3)))
    assert float(shown.act) == pytest.approx(0.3) and float(blind.act) > 0.5


def test_planning_dreams_of_the_likeliest_future() -> None:
    sure, noisy = (MPPI(Toy(noise=n), QUICK, value=near(0.5)).plan(at(0.0), generator=seeded()) for n in (0.0, 9.0))
    assert torch.equal(sure.guess, noisy.guess)


# One plan after the other


def test_a_plan_begins_from_the_last_one_a_step_on_unless_the_row_is_new() -> None:
    planner = MPPI(Toy(), QUICK)
    last = torch.arange(6.0).view(2, 3, 1)
    begun = planner._begin(2, last, torch.tensor([False, True])).mean
    assert begun[0, :, 0].tolist() == [1, 2, 0] and begun[1, :, 0].tolist() == [0, 0, 0]
    choices = MPPI(Toy(act_space=spaces.Discrete(4)), QUICK)
    assert choices._begin(1, torch.eye(4)[None, :3], None).mean[0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0.25] * 4]
    with pytest.raises(ValueError, match=r"last, the mean of the previous plan, must be \(2, 3, 1\), got \(3, 3, 1\)"):
        planner.plan(at(0, 0), torch.zeros(3, 3, 1))


def test_a_good_last_plan_helps() -> None:
    cfg = replace(QUICK, num_samples=16, num_elites=4, iterations=1, max_std=0.1)
    planner = MPPI(Toy(), cfg)
    cold, warm = (planner.plan(at(0.0), last, generator=seeded()).act for last in (None, torch.ones(1, 3, 1)))
    assert float(warm) > 0.8 > 0.4 > float(cold)


def test_exploring_shakes_a_box_and_draws_choices() -> None:
    cfg = MPPIConfig(num_samples=64, num_elites=8, horizon=1, min_std=0.2, max_std=2.0, temperature=50.0)
    planner = MPPI(Toy(), cfg, value=near(0.0, 100.0))
    calm, shaken = (
        planner.plan(at(*[0.0] * 500), explore=explore, generator=seeded()).act.std() for explore in (False, True)
    )
    assert float(calm) < 0.05 and float(shaken) == pytest.approx(0.2, abs=0.03)
    choices = MPPI(Toy(act_space=spaces.Discrete(2)), MPPIConfig(horizon=1, smoothing=0.2))
    calm, shaken = (
        choices.plan(at(*[0.0] * 2000), explore=explore, generator=seeded()).act[:, 1].mean()
        for explore in (False, True)
    )
    assert float(calm) == 1 and float(shaken) == pytest.approx(0.9, abs=0.02)


def test_elites_are_picked_by_their_weight() -> None:
    def both(latent: Latent, *, greedy: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return torch.tensor([[1.0], [-1.0]]).repeat(len(latent["x"]) // 2, 1)

    # Moves of 1 and -1 earn 1 and -1: weights 1 / (1 + e^-1) and e^-1 / (1 + e^-1).
    cfg = MPPIConfig(horizon=1, num_samples=2, num_elites=2, num_prior_plans=2, iterations=1, temperature=0.5)
    plan = MPPI(Toy(), cfg, both).plan(at(*[0.0] * 5000), generator=seeded())
    assert set(plan.act.unique().tolist()) == {-1.0, 1.0}
    assert float(plan.act.mean()) == pytest.approx(np.tanh(0.5), abs=0.03)
    torch.testing.assert_close(plan.guess.mean(), torch.tensor(np.tanh(0.5), dtype=torch.float32))


def test_the_best_choice_is_taken_however_little_it_is_better() -> None:
    cfg = MPPIConfig(horizon=2, temperature=0.5)
    model = Toy(act_space=spaces.Discrete(3))
    plan = MPPI(model, cfg, value=near(0.4, 1e-3)).plan(at(*[0.0] * 500), generator=seeded())
    assert plan.act.argmax(1).unique().tolist() == [2]  # Moving up earns more; the elites hold other beginnings too.


def test_a_seeded_plan_repeats() -> None:
    planner = MPPI(Toy(), QUICK, always(0.1), near(0.3))
    one, two, other = (planner.plan(at(0.0), explore=True, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(one.act, two.act) and not torch.equal(one.act, other.act)


def test_no_iterations_ask_the_prior_alone() -> None:
    planner = MPPI(Toy(), MPPIConfig(iterations=0), always(-0.4))
    assert planner.plan(at(0.0, 1.0)).act[:, 0].tolist() == pytest.approx([-0.4, -0.4])
    with pytest.raises(ValueError, match="iterations=0 uses only the prior, but no prior was given"):
        MPPI(Toy(), MPPIConfig(iterations=0))


# The equations


def test_elites_weigh_as_in_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(3, 10)) * 5
    index, weights = _weigh(torch.from_numpy(values), 4, 0.5)
    for row in range(3):
        order = np.argsort(-values[row])[:4]
        raw = np.exp(0.5 * (values[row][order] - values[row].max()))
        assert index[row].tolist() == order.tolist()
        np.testing.assert_allclose(weights[row], raw / raw.sum())


def test_the_next_guess_is_the_weighted_mean_and_spread_as_in_numpy() -> None:
    rng = np.random.default_rng(0)
    elites, weights = rng.uniform(-1, 1, (2, 5, 3, 2)), rng.dirichlet(np.ones(5), 2)
    elites[0, :, 0, 0] = 0.25  # No spread at all.
    guess = refit(torch.from_numpy(elites), torch.from_numpy(weights), 0.05, 0.6)
    for n in range(2):
        mean = np.average(elites[n], axis=0, weights=weights[n])
        std = np.sqrt(np.average((elites[n] - mean) ** 2, axis=0, weights=weights[n]))
        np.testing.assert_allclose(guess.mean[n], mean)
        np.testing.assert_allclose(guess.std[n], np.clip(std, 0.05, 0.6))
    assert float(guess.std[0, 0, 0]) == 0.05 and float(guess.std.max()) == 0.6


def test_choices_keep_a_chance_as_in_numpy() -> None:
    rng = np.random.default_rng(0)
    taken, weights = rng.integers(0, 3, (2, 5, 4)), rng.dirichlet(np.ones(5), 2)
    got = _smooth(torch.from_numpy(np.eye(3)[taken]), torch.from_numpy(weights), 0.1)
    want = np.zeros((2, 4, 3))
    for n, k, h in np.ndindex(2, 5, 4):
        want[n, h, taken[n, k, h]] += 0.9 * weights[n, k]
    np.testing.assert_allclose(got, want + 0.1 / 3)


# The policy


def test_the_policy_acts_in_the_environments_own_units_and_is_saved_as_its_settings() -> None:
    model = Flat(act_space=spaces.Box(-3, 5, (1,), np.float32))
    policy = MPPIPolicy(MPPI(model, QUICK))
    policy.reset(2, seed=0)
    acts = [policy.act(np.zeros((2, 2), np.float32)) for _ in range(2)]
    assert acts[0].shape == (2, 1) and acts[0].dtype == np.float32
    np.testing.assert_allclose(acts[0], 5.0, atol=0.4)
    rng, here = seeded(), model.latent_of(torch.zeros(2, 2))
    first = policy.planner.plan(here, generator=rng)
    second = policy.planner.plan(here, first.guess, generator=rng)  # Each begins from the last.
    np.testing.assert_allclose(acts, [1 + 4 * plan.act for plan in (first, second)], atol=1e-6)
    again = MPPIPolicy.from_tensors(model, policy.tensors(), policy.about())
    again.reset(2, seed=0)
    np.testing.assert_array_equal([again.act(np.zeros((2, 2), np.float32)) for _ in range(2)], acts)
    with pytest.raises(ValueError, match=r"obs must be \(N, 2\), got \(2, 3\)"):
        policy.act(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MPPIConfig(horizon=0), "MPPIConfig.horizon must be a whole number of at least 1, got 0"),
        (lambda: MPPIConfig(num_elites=600), r"num_elites must be at most num_samples \(512\), got 600"),
        (lambda: MPPIConfig(num_prior_plans=600), r"num_prior_plans must be at most num_samples \(512\), got 600"),
        (lambda: MPPIConfig(min_std=3.0), r"min_std must be at most max_std \(2.0\), got 3.0"),
        (lambda: MPPIConfig(smoothing=1.5), "smoothing must be a number between 0 and 1, got 1.5"),
        (lambda: MPPIConfig(temperature=-1.0), "temperature must be a number of at least 0, got -1.0"),
        (
            lambda: MPPI(Toy(act_space=spaces.MultiBinary(2))),
            r"MPPI plans for Box and Discrete actions, got MultiBinary\(2\)",
        ),
        (lambda: MPPIPolicy(MPPI(Toy())), r"needs a model with a method latent_of\(feat\), got Toy; use"),
        (lambda: MPPIPolicy.from_tensors(Flat(), {}, {"kind": "mlp"}), "metadata must have kind 'mppi' and cfg"),
    ],
)
def test_what_does_not_fit_is_rejected(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
