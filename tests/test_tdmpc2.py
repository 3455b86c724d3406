"""TD-MPC2: its equations against NumPy, where its gradients go, and what it learns of systems that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from policies.mppi import MPPIPolicy
from wm_agents.data.replay import Batch, ReplayBuffer
from wm_agents.errors import ConfigurationError
from wm_agents.models.frames import to_network
from wm_agents.models.tdmpc2 import (
    TDMPC2,
    TDMPC2Config,
    _over_time,
)
from wm_agents.models.tdmpc2_layers import _simnorm
from wm_agents.models.tdmpc2_nets import shift
from wm_agents.models.tdmpc2_policy import _gaussian_log_prob, _squash_correction
from wm_agents.pretrained import load_model, load_policy, save_model
from wm_envs.registry import RealSpec
from wm_envs.world_model import Step

BOX = spaces.Box(-1, 1, (2,), np.float32)
OBS = spaces.Box(-5, 5, (3,), np.float32)
FRAMES = spaces.Box(0, 255, (64, 64, 3), np.uint8)
TINY = TDMPC2Config(
    latent_dim=16, hidden_dim=32, enc_dim=32, num_q_networks=3, num_samples=32, num_elites=8, num_prior_plans=4,
    iterations=2, episode_length=50, rho=0.5,
)  # fmt: skip


def tiny(act_space: gym.Space[Any] = BOX, obs_space: gym.Space[Any] = OBS, seed: int = 0, **changes: Any) -> TDMPC2:
    torch.manual_seed(seed)
    return TDMPC2(TINY.replace(**changes), obs_space, act_space)


def stirred(model: TDMPC2) -> TDMPC2:
    """`model` with Qs and rewards that are not all zero."""
    torch.manual_seed(1)
    for weight in (*model.qs.weights, *model.slow_qs.weights, model.reward[-1].weight):
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def windows(model: TDMPC2, num: int = 8, steps: int = 3, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    shape = (num, steps + 1, *(model.obs_space.shape or ()))
    frames = rng.integers(0, 256, shape, np.uint8) if model.frames else rng.normal(size=shape).astype(np.float32)
    act = rng.uniform(-1, 1, (num, steps, model.actions)).astype(np.float32)
    act = (
        np.eye(model.actions, dtype=np.float32)[act.argmax(-1)] if isinstance(model.act_space, spaces.Discrete) else act
    )
    rew, term = rng.normal(size=(num, steps)).astype(np.float32), np.zeros((num, steps), bool)
    term[0, -1] = True
    none = torch.zeros(num, steps + 1, dtype=torch.bool)
    return Batch(*(torch.from_numpy(part) for part in (frames, act, rew, term)), none, none)


def reached(model: TDMPC2, *losses: str) -> set[str]:
    """Names of the parts whose weights get a gradient from these terms of the loss."""
    model.zero_grad()
    out = model.train().loss(windows(model))
    torch.stack([out.components[name] for name in losses]).sum().backward()
    return {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


# The equations


def test_simnorm_is_a_softmax_in_groups_as_in_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32) * 3
    got = _simnorm(torch.from_numpy(x), 8).numpy()
    for row in range(5):
        for group in range(3):
            e = np.exp(x[row, group::3])
            np.testing.assert_allclose(got[row, group::3], e / e.sum(), rtol=1e-5)


def test_latents_are_shares() -> None:
    model = tiny()
    z = model.encode(torch.randn(4, 3))["z"]
    for latent in (z, model.step({"z": z}, torch.randn(4, 2)).latent["z"], model.initial(4)["z"]):
        assert latent.min() >= 0 and latent.shape == (4, 16)
        torch.testing.assert_close(latent.view(4, 8, 2).sum(1), torch.ones(4, 2))


def test_rewards_and_values_are_two_hots_in_symlog_as_in_numpy() -> None:
    two_hot = tiny().two_hot
    numbers = np.array([-1e6, -3.7, 0.0, 0.05, 12.3, 1e6])
    bins = np.linspace(-10, 10, 101)
    want = np.zeros((6, 101))
    for row, x in enumerate(np.clip(np.sign(numbers) * np.log1p(np.abs(numbers)), -10, 10)):
        low = min(int((x + 10) // 0.2), 99)
        share = (x - bins[low]) / 0.2
        want[row, low], want[row, low + 1] = 1 - share, share
    got = two_hot.encode(torch.from_numpy(numbers))
    np.testing.assert_allclose(got, want, atol=1e-5)
    mean = want[1:5] @ bins
    np.testing.assert_allclose(
        two_hot.mean((got[1:5] + 1e-12).log()), np.sign(mean) * np.expm1(np.abs(mean)), atol=1e-4
    )


@pytest.mark.parametrize(("space", "want"), [("symlog", np.expm1(np.log(101) / 2)), ("symexp", 50.0)])
def test_an_even_chance_of_nothing_and_100_is_worth_50_among_numbers_themselves(space: str, want: float) -> None:
    two_hot = tiny(bin_space=space).two_hot
    even = (two_hot.encode(torch.tensor([0.0, 100.0])).mean(0) + 1e-12).log()
    assert float(two_hot.mean(even)) == pytest.approx(want, rel=1e-3)
    with pytest.raises(ConfigurationError, match="bin_space must be one of 'symlog', 'symexp', got 'linear'"):
        tiny(bin_space="linear")
    with pytest.raises(ConfigurationError, match="rho must be a number between 0 and 1, got 'abc'"):
        tiny(rho="abc")


@pytest.mark.parametrize(
    ("length", "discount"), [(10, 0.95), (200, 0.975), (300, 59 / 60), (500, 0.99), (27_000, 0.99)]
)
def test_the_discount_follows_from_the_length_of_episodes(length: int, discount: float) -> None:
    share = length / 5
    assert TINY.replace(episode_length=length).discount == pytest.approx(discount)
    assert discount == pytest.approx(np.clip((share - 1) / share, 0.95, 0.99))


def test_losses_weigh_rho_to_the_t_as_in_numpy() -> None:
    losses, rho = np.random.default_rng(0).random((6, 3)), 0.5 ** np.arange(4)
    want = sum(losses[:, t].mean() * 0.5**t for t in range(3)) / 3
    assert float(_over_time(torch.from_numpy(losses), torch.from_numpy(rho))) == pytest.approx(want)


def test_log_probabilities_are_those_of_a_squashed_normal_as_in_numpy() -> None:
    rng = np.random.default_rng(0)
    mean, log_std, noise = rng.normal(size=(3, 5, 2))
    x, std = mean + np.exp(log_std) * noise, np.exp(log_std)
    normal = (-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    got = _gaussian_log_prob(torch.from_numpy(noise), torch.from_numpy(log_std))
    np.testing.assert_allclose(got, normal)
    act = np.tanh(x)
    np.testing.assert_allclose(_squash_correction(torch.from_numpy(act)), np.log(1 - act**2 + 1e-6).sum(-1), rtol=1e-9)


def test_the_scaled_entropy_is_the_published_one() -> None:
    model = tiny()
    torch.manual_seed(2)
    drawn = model.policy.sample(model.pi(torch.randn(6, 16)))
    torch.manual_seed(2)
    mean, log_std = model.policy.normal(model.pi(torch.randn(6, 16)))
    noise = torch.randn_like(mean)
    assert log_std.min() >= -10 and log_std.max() <= 2
    log_prob = _gaussian_log_prob(noise, log_std)
    torch.testing.assert_close(drawn.act, torch.tanh(mean + log_std.exp() * noise))
    squashed = log_prob - torch.log(1 - drawn.act.square() + 1e-6).sum(-1)
    torch.testing.assert_close(drawn.entropy, -squashed)
    published = -squashed * (log_prob * 2) / (squashed + 1e-8)
    torch.testing.assert_close(drawn.scaled_entropy, published, atol=1e-5, rtol=1e-5)


def test_a_choice_has_the_entropy_of_its_chances() -> None:
    model = tiny(spaces.Discrete(3))
    z = torch.rand(4, 16)
    drawn, probs = model.policy.sample(model.pi(z)), model.pi(z).softmax(-1).detach().numpy()
    np.testing.assert_allclose(drawn.entropy.detach(), -(probs * np.log(probs)).sum(-1), rtol=1e-5)
    torch.testing.assert_close(drawn.scaled_entropy, drawn.entropy)


def test_the_policy_of_a_box_raises_its_value_and_its_entropy() -> None:
    model = stirred(tiny()).eval()
    model.value_scale.fill_(4.0)
    torch.manual_seed(0)
    zs, rho = torch.rand(5, 4, 16), 0.5 ** torch.arange(4)
    torch.manual_seed(1)
    loss, _ = model._policy_loss(zs, rho, torch.ones(5, 4))
    torch.manual_seed(1)
    drawn = model.policy.sample(model.pi(zs))
    q = model._expected_q(model.qs, zs, drawn.act, model._pair()).mean(0)
    gain = (1e-4 * drawn.scaled_entropy + q / 4).detach().numpy()
    assert loss.item() == pytest.approx(-sum(gain[:, t].mean() * 0.5**t for t in range(4)) / 4, rel=1e-4)


def test_the_policy_of_choices_goes_where_the_entropy_allows() -> None:
    model = stirred(tiny(spaces.Discrete(3), choice_entropy_coef=0.5)).eval()
    model.value_scale.fill_(4.0)
    torch.manual_seed(0)
    zs, rho = torch.rand(5, 4, 16), 0.5 ** torch.arange(4)
    torch.manual_seed(1)
    loss, metrics = model._policy_loss(zs, rho, torch.ones(5, 4))
    torch.manual_seed(1)
    q = model.policy.q(model.qs, zs, zs, model._pair()).mean(0).detach().numpy()
    probs = model.pi(zs).softmax(-1).detach().numpy()
    want = np.exp(q / 2) / np.exp(q / 2).sum(-1, keepdims=True)
    cost = -(want * np.log(probs)).sum(-1).mean(0)
    assert loss.item() == pytest.approx((cost * 0.5 ** np.arange(4)).mean(), rel=1e-4)
    assert float(metrics["q"]) == pytest.approx((probs * q).sum(-1)[:, 0].mean(), rel=1e-4)


def test_a_policy_that_is_sure_of_the_wrong_choice_learns_better() -> None:
    model = stirred(tiny(spaces.Discrete(2))).eval()
    with torch.no_grad():
        model.qs.weights[-1].zero_()
        hot = torch.stack([model.two_hot.encode(torch.tensor(v)) for v in (1.0, 2.0)]).clamp(min=1e-9).log().flatten()
        model.qs.biases[-1].copy_(hot.expand_as(model.qs.biases[-1]))
        model.pi[-1].bias.copy_(torch.tensor([30.0, -30.0]))  # type: ignore[operator]
    zs = torch.rand(8, 2, 16)
    optimizer = torch.optim.SGD(model.pi.parameters(), 10.0)
    for _ in range(30):
        optimizer.zero_grad()
        model._policy_loss(zs, torch.ones(2), torch.ones(8, 2))[0].backward()
        optimizer.step()
    assert float(model.pi(zs).detach().softmax(-1)[..., 1].min()) > 0.9


@torch.no_grad()
def promise(model: TDMPC2, values: list[float]) -> None:
    """Make slow Q k say values[k] everywhere."""
    hot = torch.stack([model.two_hot.encode(torch.tensor(v)) for v in values]).clamp(min=1e-9).log()
    model.slow_qs.weights[-1].zero_()
    model.slow_qs.biases[-1].copy_(
        hot[:, None].repeat(1, 1, model.actions if isinstance(model.act_space, spaces.Discrete) else 1)
    )


@pytest.mark.parametrize("act_space", [BOX, spaces.Discrete(3)], ids=str)
def test_targets_take_the_lesser_of_two_slow_qs(act_space: gym.Space[Any]) -> None:
    model = tiny(act_space)
    promise(model, [3.0, 20.0, 100.0])
    rew, term = torch.full((2, 1), 0.5), torch.tensor([[1.0], [0.0]])
    seen = torch.stack([model._td_target(torch.rand(2, 1, 16), rew, term) for _ in range(300)])
    assert (seen[:, 0] == 0.5).all()
    gamma, some = 0.95, seen[:, 1, 0]
    low, mid = (torch.isclose(some, torch.tensor(0.5 + gamma * v), rtol=1e-3) for v in (3.0, 20.0))
    assert (low | mid).all()  # 100 is never the lesser one.
    assert float(low.float().mean()) == pytest.approx(2 / 3, abs=0.1)  # Of three pairs, two hold the least.


def test_each_q_has_its_own_loss() -> None:
    model = stirred(tiny(episodic=False, dropout=0.5)).eval()
    batch = windows(model)
    torch.manual_seed(3)
    out = model.loss(batch)
    torch.manual_seed(3)
    with torch.no_grad():
        next_z = model.encoder(batch.obs[:, 1:])
        target = model._td_target(next_z, batch.rew, batch.term.float())
        z, want = model.encoder(batch.obs[:, 0]), 0.0
        for t in range(3):
            logits = model.qs(torch.cat([z, batch.act[:, t]], 1)).log_softmax(-1)
            for member in logits:
                want += 0.5**t * float(-(model.two_hot.encode(target[:, t]) * member).sum(-1).mean()) / 9
            z = model.dynamics(torch.cat([z, batch.act[:, t]], 1))
    assert out.components["value"].item() == pytest.approx(want, rel=1e-4)


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    model = stirred(tiny()).eval()
    out = model.loss(windows(model))
    scales = {"consistency": 20, "reward": 0.1, "value": 0.1}
    want = sum(scales.get(name, 1) * part for name, part in out.components.items())
    torch.testing.assert_close(out.loss, want)
    assert set(out.components) == {"consistency", "reward", "value", "termination", "policy", "probe"}


def test_consistency_is_measured_along_the_dreamed_path() -> None:
    model = tiny().eval()
    batch = windows(model)
    with torch.no_grad():
        z, want = model.encoder(batch.obs[:, 0]).numpy(), 0.0
        for t in range(3):
            z = model.dynamics(torch.cat([torch.from_numpy(z), batch.act[:, t]], 1)).numpy()
            want += 0.5**t * ((z - model.encoder(batch.obs[:, t + 1]).numpy()) ** 2).mean() / 3
    assert model.loss(batch).components["consistency"].item() == pytest.approx(want, rel=1e-5)


def crossing(model: TDMPC2, after: int) -> Batch:
    """Windows whose episode ends with step `after`; what comes then is another's."""
    batch = windows(model, steps=4)
    first, term = torch.zeros(8, 5, dtype=torch.bool), torch.zeros(8, 4, dtype=torch.bool)
    first[:, after + 2], term[:, after] = True, True
    return replace(batch, first=first, term=term)


@pytest.mark.parametrize("act_space", [BOX, spaces.Discrete(3)], ids=str)
@pytest.mark.parametrize("after", [0, 2])
def test_what_follows_an_episodes_end_in_a_window_is_not_learned(act_space: gym.Space[Any], after: int) -> None:
    model = stirred(tiny(act_space)).eval()
    batch = crossing(model, after)
    other = {name: getattr(batch, name).clone() for name in ("obs", "act", "rew", "term")}
    other["obs"][:, after + 2 :] += 5.0
    other["act"][:, after + 1 :] = other["act"][:, after + 1 :].flip(0)
    other["rew"][:, after + 1 :] += 100.0
    other["term"][:, after + 1 :] = True
    torch.manual_seed(0)
    want = model.loss(batch).components
    torch.manual_seed(0)
    got = model.loss(replace(batch, **other)).components
    torch.testing.assert_close(got, want)
    last = other | {"rew": batch.rew + (torch.arange(4) == after)}
    torch.manual_seed(0)
    assert not torch.isclose(model.loss(replace(batch, **last)).components["reward"], want["reward"])


def test_rewards_and_ends_are_those_of_the_dreamed_step_as_in_numpy() -> None:
    """The reward is of the latent and the action that lead on, the end of the latent that they lead to."""
    model, batch = stirred(tiny()).eval(), windows(tiny())
    model.termination[-1].weight.data.normal_()
    with torch.no_grad():
        z, reward, odds = model.encoder(batch.obs[:, 0]), 0.0, []
        for t in range(3):
            move = torch.cat([z, batch.act[:, t]], 1)
            want = model.two_hot.encode(batch.rew[:, t]).numpy()
            reward -= 0.5**t * float((want * model.reward(move).log_softmax(-1).numpy()).sum(-1).mean()) / 3
            z = model.dynamics(move)
            odds.append(model.termination(z)[:, 0].double().numpy())
    cont = 1 / (1 + np.exp(np.stack(odds, 1)))
    end = -np.log(np.where(batch.term, 1 - cont, cont)).mean()
    parts = model.loss(batch).components
    assert parts["reward"].item() == pytest.approx(reward, rel=1e-4)
    assert parts["termination"].item() == pytest.approx(end, rel=1e-4)


def test_ends_are_met_at_every_step_of_a_window() -> None:
    """Or the values of what the encoder makes of a last frame, which targets are made of, are never learned."""
    model = tiny()
    buffer = ReplayBuffer(1000, model.obs_space.shape or (), model.actions)
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = int(rng.integers(10, 20))
        frames = rng.random((steps + 1, *buffer.obs_shape), np.float32)
        buffer.add_episode(frames, np.zeros((steps, model.actions)), np.zeros(steps), terminated=True)
    batch = buffer.sample(4000, 3, pack=model.packs, generator=torch.Generator().manual_seed(0))
    share = batch.term.float().mean(0)
    np.testing.assert_allclose(share, share.mean(), rtol=0.25)


def test_slow_qs_follow_by_a_hundredth() -> None:
    model = tiny()
    before = [p.clone() for p in model.slow_qs.parameters()]
    stirred(model)
    slow = [p.clone() for p in model.slow_qs.parameters()]
    model.after_update()
    for old, now, quick in zip(slow, model.slow_qs.parameters(), model.qs.parameters(), strict=True):
        np.testing.assert_allclose(now, 0.99 * old + 0.01 * quick.detach(), atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(before, slow, strict=True))


def test_the_scale_of_values_follows_their_spread_in_train_mode_alone() -> None:
    model = stirred(tiny())
    model.qs.biases[-1].data.normal_(0, 3)
    with torch.no_grad():
        model.qs.weights[-1].mul_(30)
    batch = windows(model, 64)
    torch.manual_seed(0)
    quiet = model.eval().loss(batch)
    torch.manual_seed(0)
    assert torch.equal(quiet.loss, model.loss(batch).loss) and float(model.value_scale) == 1
    spread = []
    measure = model.policy.q

    def listening(*args: Any, **how: Any) -> Tensor:
        q = measure(*args, **how)
        spread.append(np.percentile(q.mean(0)[:, 0].detach(), [5, 95]) if how else None)
        return q

    model.policy.q = listening  # type: ignore[method-assign]
    model.train().loss(batch)
    fresh = tiny().train()
    fresh.loss(batch)
    assert float(fresh.value_scale) == 1  # Of no spread at all; it is never below 1.
    low, high = spread[-1]
    assert high - low > 1.5
    assert float(model.value_scale) == pytest.approx(0.99 + 0.01 * (high - low), rel=1e-4)


def test_frames_are_shifted_each_its_own_way() -> None:
    torch.manual_seed(0)
    frames = torch.rand(16, 2, 9, 7)
    padded = np.pad(frames.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    found = set()
    for i, got in enumerate(shift(frames).numpy()):
        at = [(y, x) for y, x in np.ndindex(7, 7) if np.array_equal(got, padded[i, :, y : y + 9, x : x + 7])]
        assert len(at) == 1
        found |= set(at)
    assert len(found) > 8


# Where gradients go

MODEL = {"encoder", "dynamics", "reward", "termination", "qs"}


@pytest.mark.parametrize("act_space", [BOX, spaces.Discrete(3)], ids=str)
@pytest.mark.parametrize("obs_space", [OBS, FRAMES], ids=["vectors", "frames"])
def test_each_loss_reaches_its_own_weights(act_space: gym.Space[Any], obs_space: gym.Space[Any]) -> None:
    model = stirred(tiny(act_space, obs_space))
    assert reached(model, "policy") == {"pi"}
    assert reached(model, "probe") == {"decoder"}
    assert reached(model, "consistency") == {"encoder", "dynamics"}
    assert reached(model, "reward") == {"encoder", "dynamics", "reward"}
    assert reached(model, "value") == {"encoder", "dynamics", "qs"}
    assert reached(model, "termination") == {"encoder", "dynamics", "termination"}


def test_what_consistency_aims_at_gets_no_gradient() -> None:
    model = tiny()
    batch = windows(model)
    batch = replace(batch, obs=batch.obs.requires_grad_())
    model.loss(batch).components["consistency"].backward()
    assert batch.obs.grad is not None
    assert batch.obs.grad[:, 0].any() and not batch.obs.grad[:, 1:].any()


def test_every_weight_is_in_one_group_and_the_encoder_is_slower() -> None:
    model = tiny()
    groups = model.param_groups(1e-3)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    clip = {name: {g["clip"] for g in groups for p in g["params"] if any(p is q for q in part.parameters())}
            for name, part in model.named_children()}  # fmt: skip
    assert rate[id(model.encoder[0].weight)] == pytest.approx(3e-4) and rate[id(model.qs.weights[0])] == 1e-3
    assert clip["pi"] == {"policy"} and clip["decoder"] == {"probe"} and clip["qs"] == clip["encoder"] == {"model"}
    assert next(g for g in groups if g["clip"] == "policy")["eps"] == 1e-5
    torch.optim.Adam(groups)


def test_only_training_drops_out() -> None:
    model = stirred(tiny(dropout=0.5)).train()
    z = {"z": torch.rand(4, 16)}
    one, two = (model.state_value(z, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(model.qs(torch.rand(4, 18), drop=True), model.qs(torch.rand(4, 18), drop=True))


# What it learns


LINE = spaces.Box(-1, 1, (1,), np.float32)


def fit(model: TDMPC2, batch: Batch, updates: int, seed: int) -> TDMPC2:
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.param_groups(5e-3), fused=True)
    rows = np.random.default_rng(seed)
    for _ in range(updates):
        at = torch.from_numpy(rows.integers(len(batch.act), size=64))
        some = Batch(*(getattr(batch, name)[at] for name in ("obs", "act", "rew", "term", "first", "last")))
        optimizer.zero_grad()
        model.train().loss(some).loss.backward()
        optimizer.step()
        model.after_update()
    return model.eval()


def line(seed: int, shifted: int = 0, first_moves: float = 1.0) -> Batch:
    """x' = x + act from below 0, earning act; it is over where x' > 0, and what follows belongs to another episode."""
    rng = np.random.default_rng(seed)
    act = rng.uniform(-1, 1, (1000, 3, 1)).astype(np.float32)
    act[:, :2] *= first_moves
    x = np.cumsum(np.concatenate([rng.uniform(-1, 0, (1000, 1)), act[..., 0]], 1), 1)
    obs = np.stack([x, np.ones_like(x), np.zeros_like(x)], -1).astype(np.float32)
    term, first = x[:, 1:] > 0, np.zeros(x.shape, bool)
    first[:, 2:] = term[:, :-1]
    parts = (obs, act, np.roll(act[..., 0], shifted, 1), term, first, np.zeros_like(first))
    return Batch(*(torch.from_numpy(part) for part in parts))


class Dreamed(NamedTuple):
    """The third step of dreams of the line that still go on by then, and what was real."""

    step: Step
    seen: Tensor
    """The frame before the step, as the probe shows it."""
    obs: Tensor
    rew: Tensor
    x: Tensor
    """Where the step leads."""


@torch.no_grad()
def dream(model: TDMPC2, seed: int) -> Dreamed:
    batch = line(seed + 1000, first_moves=0.2)
    on = ~batch.term[:, :2].any(1)
    latent = model.encode(batch.obs[on, 0])
    for t in range(2):
        latent = model.step(latent, batch.act[on, t], temperature=0).latent
    out = model.step(latent, batch.act[on, 2], temperature=0)
    return Dreamed(out, model.decode(latent), batch.obs[on, 2], batch.rew[on, 2], batch.obs[on, 3, 0])


@pytest.fixture(scope="module")
def learned(learning_seed: int) -> Dreamed:
    return dream(fit(tiny(LINE, seed=learning_seed), line(learning_seed), 150, learning_seed), learning_seed)


def test_it_learns_rewards_and_ends_where_they_are(learned: Dreamed) -> None:
    out = learned.step
    assert float((out.rew - learned.rew).abs().mean()) < 0.15
    assert out.end is not None and torch.equal(out.cont < 0.5, out.end)
    over, on = learned.x > 0.2, learned.x < -0.2
    assert float(out.end[over].float().mean()) > 0.75 and float(out.end[on].float().mean()) < 0.25


def test_rewards_a_step_late_are_not_learned(learning_seed: int) -> None:
    late = dream(fit(tiny(LINE, seed=learning_seed), line(learning_seed, shifted=1), 75, learning_seed), learning_seed)
    assert float((late.step.rew - late.rew).abs().mean()) > 0.3


def test_its_dream_can_be_seen(learned: Dreamed) -> None:
    assert learned.seen.dtype == torch.float32 and learned.seen.shape == learned.obs.shape
    assert np.corrcoef(learned.seen[:, 0], learned.obs[:, 0])[0, 1] > 0.93  # The frame a step before: 0.92.
    assert float((learned.seen - learned.obs)[:, 1:].abs().mean()) < 0.1


@torch.no_grad()
def test_the_probe_speaks_in_symlog() -> None:
    model = tiny()
    model.decoder[-1].weight.zero_()
    model.decoder[-1].bias.copy_(torch.tensor([np.log(5), -np.log(3), 9.0]))
    got = model.decode(model.initial(2))
    torch.testing.assert_close(got, torch.tensor([[4.0, -2.0, 5.0]] * 2))  # The last one is held to its bound.
    batch = replace(windows(model), obs=got[:1].expand(4, 3).repeat(8, 1, 1))
    want = (9 - np.log(6)) ** 2 / 3
    assert float(model.loss(batch).components["probe"]) == pytest.approx(want, rel=1e-5)


def test_it_plans_towards_what_pays(learning_seed: int) -> None:
    model = tiny(LINE, seed=learning_seed)
    batch = windows(model, 512, seed=learning_seed)
    fit(model, replace(batch, rew=batch.act[..., 0]), 75, learning_seed)
    latent = model.encode(batch.obs[:6, 0])
    act = model.act(latent, explore=False, generator=torch.Generator().manual_seed(learning_seed))
    assert act.shape == (6, 1) and float(act.min()) > 0.5
    assert float(model.propose(latent, greedy=True).detach().min()) > 0.5


def test_choices_are_learned_and_planned(learning_seed: int) -> None:
    model = tiny(spaces.Discrete(3), temperature=50.0, seed=learning_seed)
    batch = windows(model, 512, seed=learning_seed)
    fit(model, replace(batch, rew=batch.act @ torch.tensor([0.0, 1.0, 0.5])), 75, learning_seed)
    latent = model.encode(batch.obs[:6, 0])
    assert model.act(latent, explore=False).argmax(1).tolist() == [1] * 6
    assert model.propose(latent, greedy=True).argmax(1).tolist() == [1] * 6
    assert len(model.act(latent, explore=True)) == 6


# What it is made of


@pytest.mark.parametrize(
    ("size", "enc", "hidden", "latent", "layers", "qs", "millions"),
    [
        ("1m", 256, 384, 128, 2, 2, 1.2), ("5m", 256, 512, 512, 2, 5, 5.0), ("19m", 1024, 1024, 768, 3, 5, 18.1),
        ("48m", 1792, 1792, 768, 4, 5, 47.2), ("317m", 4096, 4096, 1376, 5, 8, 312.7),
    ],
)  # fmt: skip
def test_sizes_have_the_published_weights(
    size: str, enc: int, hidden: int, latent: int, layers: int, qs: int, millions: float
) -> None:
    def net(*dims: int, normed: bool = False) -> int:
        total = sum(a * b + b for a, b in pairwise(dims))
        return total + 2 * sum(dims[1:-1]) + (2 * dims[-1] if normed else 0)

    with torch.device("meta"):
        model = TDMPC2(TDMPC2Config.from_size(size), spaces.Box(-1, 1, (39,)), spaces.Box(-1, 1, (6,)))
    move, bins = latent + 6, 101
    want = {
        "encoder": net(39, *[enc] * (layers - 1), latent, normed=True),
        "dynamics": net(move, hidden, hidden, latent, normed=True),
        "reward": net(move, hidden, hidden, bins),
        "pi": net(latent, hidden, hidden, 12),
        "qs": qs * net(move, hidden, hidden, bins),
    }
    got = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert {name: got[name] for name in want} == want
    assert sum(want.values()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert got["termination"] == net(latent, hidden, hidden, 1) and got["slow_qs"] == got["qs"]


def test_heads_begin_at_zero_and_layers_small() -> None:
    model = TDMPC2(TDMPC2Config.from_size("ci"), OBS, BOX)
    z, act = torch.rand(4, 64), torch.rand(4, 2)
    assert not model.step({"z": z}, act).rew.any() and not model.state_value({"z": z}).any()
    assert float(model.qs.weights[1].detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.dynamics[1].weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_overrides_change_the_plan() -> None:
    model = TDMPC2(TDMPC2Config.from_size("ci", horizon=10, num_samples=256, iterations=2), OBS, BOX)
    rows: list[int] = []
    step = model.step

    def counting(latent: Any, act: Tensor, **how: Any) -> Step:
        rows.append(len(act))
        return step(latent, act, **how)

    model.step = counting  # type: ignore[method-assign]
    model.act(model.encode(torch.zeros(1, 3)), explore=False)
    assert rows == [8] * 9 + [256] * 20
    assert TDMPC2Config().planner(20).iterations == 8 and TDMPC2Config().planner(19).iterations == 6
    assert TDMPC2Config(planning=False).planner(1).iterations == 0


def test_plans_continue_from_call_to_call_but_not_into_a_new_episode() -> None:
    model = tiny()
    latent = model.encode(torch.randn(3, 3))
    begun: list[Tensor | None] = []
    planner = model.planner

    def listening() -> Any:
        made = planner()
        begin = made._begin
        made._begin = lambda num, last, first: begun.append(begin(num, last, first).mean) or begin(num, last, first)  # type: ignore[func-returns-value,method-assign]
        return made

    model.planner = listening  # type: ignore[method-assign]
    model.act(latent, explore=True)
    model.act(latent, explore=True, first=torch.tensor([False, True, False]))
    model.act({"z": latent["z"][:2]}, explore=True)
    moved = [None if b is None else b.flatten(1).any(1).tolist() for b in begun]
    assert moved == [[False] * 3, [True, False, True], [False] * 2]


def test_an_artifact_carries_the_planner(tmp_path: Path) -> None:
    model = stirred(tiny(spaces.Box(-2, 2, (1,), np.float32), spaces.Box(-8, 8, (3,), np.float32))).eval()
    policy, starts = MPPIPolicy(model.planner()), {bank: model.initial(4) for bank in ("begin", "anywhere")}
    save_model(tmp_path / "m", model, RealSpec("Pendulum-v1"), starts, horizon=9, card="# m\n", policy=policy)
    again = load_policy(*load_model(tmp_path / "m"))
    assert isinstance(again, MPPIPolicy) and again.planner.cfg == policy.planner.cfg and again.planner.prior is not None
    feat = np.random.default_rng(0).random((2, 16), np.float32)
    acts = []
    for one in (policy, again):
        one.reset(2, seed=3)
        acts.append(np.stack([one.act(feat) for _ in range(2)]))
    np.testing.assert_array_equal(*acts)
    assert acts[0].shape == (2, 2, 1)


@pytest.mark.parametrize("shape", [(84, 84, 1), (3, 96, 96), (32, 32, 3)])
def test_frames_of_other_sizes_are_resized_and_come_back(shape: tuple[int, ...]) -> None:
    model = tiny(obs_space=spaces.Box(0, 255, shape, np.uint8))
    latent = model.encode(torch.randint(0, 256, (2, *shape), dtype=torch.uint8))
    assert latent["z"].shape == (2, 16) and model.decode(latent).shape == (2, *shape)
    for p in model.decoder[-1].parameters():
        nn.init.zeros_(p)
    assert (model.decode(latent) == 128).all()  # Zero is grey, to the probe as to the encoder.
    batch = windows(model)
    grey = to_network(batch.obs.flatten(0, 1)) - 0.5
    want = F.interpolate(grey, (64, 64), mode="bilinear", antialias=True).square().mean()
    torch.testing.assert_close(model.loss(batch).components["probe"], want)


@torch.no_grad()
@pytest.mark.parametrize("obs_space", [OBS, FRAMES], ids=["vectors", "frames"])
def test_it_dreams_in_half_precision(obs_space: gym.Space[Any]) -> None:
    model = stirred(tiny(obs_space=obs_space)).eval()
    obs, act = windows(model).obs[:, 0], torch.rand(8, 2)
    want = model.step(model.encode(obs), act, temperature=0)
    model.bfloat16()
    got = model.step(model.encode(obs), act, temperature=0)
    torch.testing.assert_close(got.latent, want.latent, atol=0.02, rtol=0)
    assert model.state_value(got.latent).shape == (8,) and model.propose(want.latent).isfinite().all()
    assert model.decode(got.latent).dtype == model.decode(want.latent).dtype == obs.dtype


def test_as_published_the_convolution_of_5m_ends_in_the_latent() -> None:
    with torch.device("meta"):
        model = TDMPC2(TDMPC2Config.from_size("5m"), FRAMES, BOX)
    assert model.encoder(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 512)
    assert sum(p.numel() for p in model.encoder.parameters()) == 32 * (3 * 49 + 32 * (25 + 9 + 9)) + 4 * 32


def test_groups_of_frames_are_neighbouring_places_of_a_channel_as_published() -> None:
    torch.manual_seed(0)
    model = TDMPC2(TDMPC2Config.from_size("5m"), FRAMES, BOX).eval()
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        z = model.encode(frames)["z"].unflatten(-1, (8, 64)).transpose(1, 2)  # (rows, groups, members)
        seen = model.encoder[:7](to_network(frames) - 0.5)  # (rows, 32 channels, 4, 4)
    want = seen.reshape(2, 64, 8).numpy()  # Channel-major: a group is two rows of a channel.
    want = np.exp(want - want.max(-1, keepdims=True))
    np.testing.assert_allclose(z.numpy(), want / want.sum(-1, keepdims=True), rtol=1e-5)


def test_every_field_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()

    class Listening(TDMPC2Config):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    values = {f.name: getattr(TINY, f.name) for f in fields(TINY)}
    for obs_space, act_space in ((OBS, BOX), (FRAMES, spaces.Discrete(3))):
        cfg = Listening(**values)
        read.clear()
        model = TDMPC2(cfg, obs_space, act_space)
        model.loss(windows(model))
        model.after_update()
        model.param_groups(1e-3)
        model.act({"z": torch.rand(1, 16)}, explore=True)
        unread = {f.name for f in fields(TINY)} - read
        vectors, frames = {"num_channels", "choice_entropy_coef"}, {"enc_dim", "num_hidden_layers", "entropy_coef"}
        assert unread <= (vectors if obs_space is OBS else frames | {"log_std_min", "log_std_max"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tiny(spaces.MultiDiscrete([2, 3])),
            "needs Box or Discrete actions, got MultiDiscrete.*flatten them",
        ),
        (lambda: tiny(spaces.MultiBinary(4)), r"needs Box or Discrete actions, got MultiBinary\(4\)"),
        (lambda: tiny(obs_space=spaces.Box(0, 1, (4, 4), np.float32)), "needs a Box of vectors, or a uint8 frame"),
        (lambda: tiny(obs_space=spaces.Box(0, 255, (64, 64, 12), np.uint8)), "a uint8 frame with 1 or 3 channels"),
        (lambda: TDMPC2Config(latent_dim=100), r"TDMPC2Config.latent_dim must be a multiple of simnorm_dim \(8\)"),
        (lambda: TDMPC2Config(horizon=0), "TDMPC2Config.horizon must be a whole number of at least 1, got 0"),
        (lambda: TDMPC2Config(planning="x"), "TDMPC2Config.planning must be true or false, got 'x'"),
        (lambda: TDMPC2Config(episodic=None), "TDMPC2Config.episodic must be true or false, got None"),
        (lambda: TDMPC2Config(reward_coef=math.nan), "TDMPC2Config.reward_coef must be a finite number, got nan"),
        (lambda: TDMPC2Config(reward_coef=True), "TDMPC2Config.reward_coef must be a number of at least 0, got True"),
        *(
            (
                lambda name=name: TDMPC2Config(**{name: -1}),
                f"TDMPC2Config.{name} must be a number of at least 0, got -1",
            )
            for name in (
                "consistency_coef",
                "reward_coef",
                "value_coef",
                "termination_coef",
                "entropy_coef",
                "enc_lr_scale",
            )
        ),
        (lambda: TDMPC2Config(bin_limit=math.inf), "TDMPC2Config.bin_limit must be a finite number, got inf"),
        (lambda: TDMPC2Config(bin_limit=0), "TDMPC2Config.bin_limit must be a number above 0, got 0"),
        (lambda: TDMPC2Config(bin_space="log"), "bin_space must be one of 'symlog', 'symexp', got 'log'"),
        (lambda: TDMPC2Config(num_elites=1000), r"TDMPC2Config.num_elites must be at most num_samples \(512\)"),
        (lambda: TDMPC2Config(rho=1.5), "TDMPC2Config.rho must be a number between 0 and 1, got 1.5"),
        (lambda: TDMPC2Config(num_bins=100), "TDMPC2Config.num_bins must be an odd number, got 100"),
        (lambda: TDMPC2Config(log_std_min=3.0), r"log_std_min must be below log_std_max \(2.0\), got 3.0"),
        (lambda: TDMPC2Config.from_size("1m", num_sample=9), "unknown field 'num_sample'.*did you mean 'num_samples'"),
        (lambda: TDMPC2Config.from_size("5"), "size of TDMPC2Config must be one of ci, 1m, 5m"),
        (
            lambda: tiny().step({"z": torch.zeros(3, 16)}, torch.zeros(3, 1)),
            r"act must be \(3, 2\) for Box.*got \(3, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_rejected(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert isinstance(caught.value, ConfigurationError) or "act must be" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_trains_and_plans_on_a_gpu() -> None:
    for obs_space in (OBS, FRAMES):
        model = stirred(tiny(obs_space=obs_space)).cuda().train()
        out = model.loss(windows(model).to("cuda"))
        out.loss.backward()
        model.after_update()
        act = model.act({"z": torch.rand(2, 16, device="cuda")}, explore=True, first=torch.ones(2).bool().cuda())
        assert out.loss.isfinite() and act.is_cuda and act.isfinite().all()
    host, there = stirred(tiny()).eval(), stirred(tiny()).eval().cuda()
    parts = [m.loss(windows(m).to(m.device)).components["consistency"] for m in (host, there)]
    torch.testing.assert_close(parts[0], parts[1].cpu(), atol=1e-4, rtol=1e-2)
