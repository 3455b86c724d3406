"""Actor and critic against NumPy, and on a world whose every number is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from toy import Toy

from policies.actor_critic import (
    ActorCritic,
    ActorCriticConfig,
    ActorPolicy,
    _Actor,
    _BoundedNormal,
    _Choice,
    _Critic,
    _Dream,
    _ReturnScale,
)
from wm_agents.checkpoint import load_artifact, save_artifact
from wm_agents.pretrained import POLICIES
from wm_agents.training.laprop import LaProp
from wm_envs.noise import RowStreams

BOX, CHOICE = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)
SMALL = ActorCriticConfig(units=16, layers=1, horizon=5)


def stirred(module: ActorCritic) -> ActorCritic:
    """With weights that are not zero anywhere."""
    torch.manual_seed(1)
    for p in module.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return module


def test_log_chances_and_entropies_are_the_equations() -> None:
    rng = np.random.default_rng(0)
    logits, act = rng.normal(size=(4, 3)), np.eye(3)[[0, 2, 1, 1]]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    choice = _Choice(torch.from_numpy(logits))
    np.testing.assert_allclose(choice.log_prob(torch.from_numpy(act)), np.log((probs * act).sum(1)))
    np.testing.assert_allclose(choice.entropy(), -(probs * np.log(probs)).sum(1))
    mean, std, x = rng.normal(size=(4, 2)), rng.random((4, 2)) + 0.1, rng.normal(size=(4, 2))
    normal = _BoundedNormal(torch.from_numpy(mean), torch.from_numpy(std))
    density = np.exp(-((x - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)
    np.testing.assert_allclose(normal.log_prob(torch.from_numpy(x)), np.log(density).sum(1))
    np.testing.assert_allclose(normal.entropy(), (0.5 * np.log(2 * np.pi * np.e * std**2)).sum(1))


def test_the_actor_reports_what_the_papers_heads_say() -> None:
    torch.manual_seed(0)
    actor, feat = _Actor(BOX, 4, 16, 1), torch.randn(5, 4)
    assert actor.spread is not None
    x = actor.body(feat).detach().numpy()
    mean = x @ actor.out.weight.detach().numpy().T
    spread = x @ actor.spread.weight.detach().numpy().T
    dist = actor(feat)
    np.testing.assert_allclose(dist.mean.detach(), np.tanh(mean), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dist.std.detach(), 0.9 / (1 + np.exp(-(spread + 2))) + 0.1, rtol=1e-5)
    assert float(dist.mean.detach().abs().max()) < 0.05  # It begins without a preference.


def test_samples_follow_the_chances_and_the_noise_they_are_given() -> None:
    noise = torch.randn(4000, 1, generator=torch.manual_seed(0))
    drawn = _Choice(torch.tensor([0.2, 0.5, 0.3]).log().expand(4000, 3)).sample(noise)
    np.testing.assert_allclose(drawn.mean(0), [0.2, 0.5, 0.3], atol=0.03)
    assert _Choice(torch.tensor([[0.0, 2.0, 1.0]])).mode().tolist() == [[0, 1, 0]]
    normal = _BoundedNormal(torch.tensor([[0.5]]), torch.tensor([[0.2]]))
    assert normal.sample(torch.tensor([[2.0]])).tolist() == [[pytest.approx(0.9)]] and normal.noise_dim == 1


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])
def test_actions_it_cannot_take_are_rejected_before_training(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="this actor needs Box or Discrete actions, got Multi.*train with `wm evolve`"):
        _Actor(space, 4)


def test_a_critic_that_has_learned_nothing_says_zero() -> None:
    assert (_Critic(4, 16, 2).value(torch.randn(7, 4)) == 0).all()


def test_the_scale_of_returns_is_their_spread_averaged_and_never_below_1() -> None:
    scale, returns = _ReturnScale(0.5), torch.linspace(0, 100, 101)
    assert float(scale(returns)) == pytest.approx(45)  # Half of 95 - 5; nothing makes up for the start at 0.
    assert float(scale(returns)) == pytest.approx(67.5)
    scale.eval()
    assert float(scale(100 * returns)) == pytest.approx(67.5)
    assert float(_ReturnScale(0.01)(returns)) == 1


def random_dream(steps: int = 5, num: int = 4, feat_dim: int = 3) -> _Dream:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    acts = torch.eye(3)[torch.randint(3, (steps, num), generator=rng)]
    return _Dream(draw(steps + 1, num, feat_dim), acts, 5 * draw(steps, num), draw(steps + 1, num))


def test_a_dream_is_evaluated_by_the_equations() -> None:
    """Hafner et al. 2023, eq. 6 to 11, step by step and row by row."""
    cfg = ActorCriticConfig(units=16, layers=1, entropy=0.1, return_rate=1.0)
    agent, dream = stirred(ActorCritic(cfg, CHOICE, 3)), random_dream()
    judged = agent.judge(dream)
    scale = float(agent.eval().scale(judged.returns))
    assert scale > 2
    value, slow = agent.critic.value(dream.feats).detach(), agent.slow.value(dream.feats)
    logits = agent.critic(dream.feats).detach()
    chances = agent.actor(dream.feats).logits.detach().softmax(-1)
    policy, critic, returns = np.zeros((5, 4)), np.zeros((5, 4)), np.zeros((5, 4))
    for n in range(4):
        ahead = float(value[5, n])
        for t in reversed(range(5)):
            on = (1 - 1 / 333) * float(dream.conts[t + 1, n])
            ahead = float(dream.rews[t, n]) + on * (0.05 * float(value[t + 1, n]) + 0.95 * ahead)
            returns[t, n] = ahead
        weight = 1.0
        for t in range(5):
            weight *= (1 - 1 / 333) * float(dream.conts[t, n])
            p = chances[t, n].numpy()
            log_chance = np.log(p[int(dream.acts[t, n].argmax())])
            advantage = (returns[t, n] - float(value[t, n])) / scale
            policy[t, n] = -weight * (log_chance * advantage - 0.1 * (p * np.log(p)).sum())
            targets = torch.tensor([returns[t, n], float(slow[t, n])], dtype=torch.float32)
            critic[t, n] = weight * float(agent.critic.bins.loss(logits[t, n].expand(2, -1), targets).sum())
    np.testing.assert_allclose(judged.returns, returns, rtol=1e-4)
    assert float(judged.policy.detach()) == pytest.approx(policy.mean(), rel=1e-4)
    assert float(judged.value.detach()) == pytest.approx(critic.mean(), rel=1e-4)


def test_replayed_returns_stop_at_ends_and_are_not_learned_at_last_frames() -> None:
    agent = stirred(ActorCritic(SMALL, CHOICE, 3)).eval()
    feat, rew, boot = torch.randn(4, 1, 3), torch.tensor([9.0, 1.0, 2.0, 3.0])[:, None], torch.full((4, 1), 10.0)
    term, last = (torch.tensor(flags)[:, None] for flags in ([False, True, False, False], [False, True, False, False]))
    got = agent.judge_replay(feat, rew, term, last, boot)
    # Frame 0 leads to the end, which earns 1; frame 1 is the end; frame 2 earns 3 and what is dreamed of frame 3.
    want = torch.tensor([1.0, 0.0, 3.0 + (1 - 1 / 333) * 10.0])
    bins, logits = agent.critic.bins, agent.critic(feat[:3, 0])
    each = bins.loss(logits, want) + bins.loss(logits, agent.slow.value(feat[:3, 0]))
    assert float(got.detach()) == pytest.approx(float((each[0] + each[2]).detach()) / 3, rel=1e-5)


def test_cut_off_episodes_are_worth_what_is_dreamed_of_their_last_frame() -> None:
    agent = stirred(ActorCritic(SMALL, CHOICE, 3)).eval()
    feat, rew, boot = torch.randn(3, 1, 3), torch.tensor([[0.0], [1.0], [50.0]]), torch.full((3, 1), 10.0)
    cut, no = torch.tensor([[False], [True], [False]]), torch.zeros(3, 1, dtype=torch.bool)
    bins, logits = agent.critic.bins, agent.critic(feat[:1, 0])
    want = bins.loss(logits, torch.tensor([1 + (1 - 1 / 333) * 10])) + bins.loss(logits, agent.slow.value(feat[:1, 0]))
    assert float(agent.judge_replay(feat, rew, no, cut, boot).detach()) == pytest.approx(
        float(want.detach()) / 2, rel=1e-5
    )


def test_dreams_carry_no_gradient_and_losses_reach_only_their_own_network() -> None:
    agent = stirred(ActorCritic(SMALL, CHOICE, 3))
    dream = random_dream()
    dream = dream._replace(feats=dream.feats.requires_grad_(), rews=dream.rews.requires_grad_())
    judged = agent.judge(dream)
    actor, critic = list(agent.actor.parameters()), list(agent.critic.parameters())
    everything = [*actor, *critic, dream.feats, dream.rews]
    by_policy = torch.autograd.grad(judged.policy, everything, allow_unused=True, retain_graph=True)
    by_value = torch.autograd.grad(judged.value, everything, allow_unused=True)
    assert all(g is not None and g.any() for g in by_policy[: len(actor)])
    assert all(g is not None and g.any() for g in by_value[len(actor) : len(actor) + len(critic)])
    assert not any(g is not None and g.any() for g in by_policy[len(actor) :])
    assert not any(g is not None and g.any() for g in (*by_value[: len(actor)], *by_value[-2:]))


def test_the_slow_critic_follows_by_a_fiftieth() -> None:
    agent = stirred(ActorCritic(SMALL, CHOICE, 3))
    before = [p.clone() for p in agent.slow.parameters()]
    agent.after_update()
    for slow, old, fast in zip(agent.slow.parameters(), before, agent.critic.parameters(), strict=True):
        torch.testing.assert_close(slow.data, 0.98 * old + 0.02 * fast.data)
        assert not slow.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_learns_under_autocast(dtype: torch.dtype) -> None:
    """Weights that autocast first meets in a dream have no gradient there; torch before 2.10 kept them that way."""
    agent, model = stirred(ActorCritic(SMALL, CHOICE, 2)), Toy(act_space=CHOICE)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        judged = agent.judge(agent.dream(model, model.initial(8), torch.ones(8)))
    (judged.policy + judged.value).backward()
    assert all(p.grad is not None and p.grad.any() for p in agent.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dream_is_kept_in_the_type_of_products_and_evaluated_as_if_in_float32(dtype: torch.dtype) -> None:
    agent, model = stirred(ActorCritic(SMALL, CHOICE, 2)).eval(), Toy(act_space=CHOICE)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        dream = agent.dream(model, model.initial(8), torch.ones(8))
        judged, wide = agent.judge(dream), agent.judge(dream._replace(feats=dream.feats.float()))
    assert dream.feats.dtype == dtype
    assert torch.equal(judged.policy, wide.policy) and torch.equal(judged.value, wide.value)
    assert {part.dtype for part in (judged.policy, judged.value, judged.returns)} == {torch.float32}


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (1,), np.float32), CHOICE])
def test_it_learns_to_go_where_the_reward_is(space: spaces.Space, learning_seed: int) -> None:
    """In the toy world a move earns itself: the best is 1 at every step, and with a discount of a half 2 in all."""
    torch.manual_seed(learning_seed)
    cfg = ActorCriticConfig(units=16, layers=1, horizon=5, discount=0.5, slow_weight=0.0)
    model, agent = Toy(act_space=space), ActorCritic(cfg, space, 2)
    opt = LaProp([p for p in agent.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(80):
        start = {"x": torch.rand(64, 2) * 4 - 2}
        judged = agent.judge(agent.dream(model, start, torch.ones(64)))
        opt.zero_grad()
        (judged.policy + judged.value).backward()
        opt.step()
        agent.after_update()
    acts = agent.act(torch.zeros(5, 2), explore=False)
    assert (acts[:, -1] > 0.8).all()
    assert float(agent.critic.value(torch.zeros(1, 2)).detach()) == pytest.approx(2, abs=0.4)


def test_a_row_explores_alike_whatever_its_neighbours_do() -> None:
    torch.manual_seed(0)
    agent, feat = ActorCritic(SMALL, BOX, 4), torch.randn(3, 4)

    def streams(*seeds: int) -> RowStreams:
        rows = RowStreams([np.random.default_rng(seed) for seed in seeds])
        for i in range(len(seeds)):
            rows.restart(i)
        return rows

    many = agent.act(feat, explore=True, generator=streams(1, 2, 3))
    alone = agent.act(feat[1:2], explore=True, generator=streams(2))
    torch.testing.assert_close(many[1:2], alone)
    assert many.shape == (3, 2) and float(many.abs().max()) <= 1
    torch.testing.assert_close(agent.act(feat, explore=False), agent.actor(feat).mean.detach())


@pytest.mark.parametrize("space", [spaces.Box(np.float32([0, -2]), np.float32([1, 6])), spaces.Discrete(3, start=5)])
def test_a_policy_that_was_saved_acts_the_same(space: spaces.Space, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = ActorPolicy(space, _Actor(space, 4, 16, 2))
    for p in policy.actor.parameters():
        p.add_(0.3 * torch.randn_like(p))
    save_artifact(tmp_path / "a", {}, {"w": torch.zeros(1)}, {}, "# a\n", {"actor": (policy.tensors(), policy.about())})
    tensors, about = load_artifact(tmp_path / "a").policies["actor"]
    loaded = POLICIES["actor"](Toy(act_space=space), tensors, about)
    feat = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    acts = policy.act(feat)
    np.testing.assert_array_equal(loaded.act(feat), acts)
    assert acts.shape == (9, *space.shape) and all(space.contains(act) for act in acts) and len(np.unique(acts)) > 1
    with pytest.raises(ValueError, match=r"obs must be \(N, 4\), got \(9, 5\)"):
        loaded.act(np.zeros((9, 5), np.float32))


def test_weights_of_something_else_are_rejected() -> None:
    tensors = ActorPolicy(BOX, _Actor(BOX, 4, 16, 2)).tensors()
    with pytest.raises(ValueError, match="the saved actor does not fit Discrete.*expected shapes"):
        ActorPolicy.from_tensors(CHOICE, tensors, {"kind": "actor"})
    with pytest.raises(ValueError, match="expected weights of an actor and kind 'actor', got"):
        ActorPolicy.from_tensors(BOX, tensors, {"kind": "mlp"})


def test_settings_that_cannot_be_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"ActorCriticConfig.horizon must be a whole number of at least 1, got 0"):
        ActorCriticConfig(horizon=0)
    with pytest.raises(ValueError, match=r"ActorCriticConfig.lam must be a number between 0 and 1, got 1.5"):
        ActorCriticConfig(lam=1.5)
