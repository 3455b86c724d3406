"""DreamerV3: its equations against NumPy, what it takes in, where its gradients go, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from policies.actor_critic import ActorCriticConfig, ActorPolicy
from wm_agents.data.replay import Batch
from wm_agents.errors import ConfigurationError
from wm_agents.models.dreamerv3 import RSSM, DreamerV3, DreamerV3Config, _Posteriors
from wm_agents.training.dreamer_agent import DreamerLearner
from wm_agents.training.laprop import LaProp
from wm_envs.action import act_dim
from wm_envs.world_model import Latent

B, T = 3, 5
CI = DreamerV3Config.from_size("ci")
VECTOR, FRAME = spaces.Box(-9, 9, (4,), np.float32), spaces.Box(0, 255, (64, 64, 3), np.uint8)
BOX, CHOICE = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)


def make(obs: gym.Space[Any] = VECTOR, act: gym.Space[Any] = CHOICE, cfg: DreamerV3Config = CI) -> DreamerV3:
    """A model whose every weight is stirred: zeros hide mistakes."""
    torch.manual_seed(0)
    model = DreamerV3(cfg, obs, act)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return model


def draw_obs(space: gym.Space[Any], *batch: int) -> Tensor:
    rng, shape = np.random.default_rng(0), (*batch, *(space.shape or ()))
    if isinstance(space, spaces.Discrete):
        return torch.from_numpy(rng.integers(space.start, space.start + space.n, shape))
    if space.dtype == np.uint8:
        return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(
        torch.from_numpy(np.zeros(0, space.dtype)).dtype
    )


def draw_batch(model: DreamerV3, rows: int = B, steps: int = T) -> Batch:
    """Windows; in row 0 an episode ends at frame 2 and the next begins at frame 3."""
    first, last = torch.zeros(2, rows, steps + 1, dtype=torch.bool)
    term = torch.zeros(rows, steps, dtype=torch.bool)
    term[0, 1] = last[0, 2] = first[0, 3] = True
    rng = torch.Generator().manual_seed(1)
    act = torch.rand(rows, steps, act_dim(model.act_space), generator=rng)
    rew = torch.randn(rows, steps, generator=rng)
    act[0, 2], rew[0, 2] = 0, 0
    return Batch(draw_obs(model.obs_space, rows, steps + 1), act, rew, term, first, last)


# Equations


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in module.state_dict().items()}


def np_layer(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return np_norm_silu(x @ w[f"{name}.linear.weight"].T + w[f"{name}.linear.bias"], w[f"{name}.norm.weight"])


def np_norm_silu(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale
    return y / (1 + np.exp(-y))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def np_gru(w: dict[str, np.ndarray], deter: np.ndarray, stoch: np.ndarray, act: np.ndarray, blocks: int) -> np.ndarray:
    """One row of the block GRU, block after block."""
    act = act / np.maximum(1, np.abs(act))
    shared = np.concatenate([np_layer(w, n, x) for n, x in (("in_deter", deter), ("in_stoch", stoch), ("in_act", act))])
    parts = [np.concatenate([part, shared]) @ w["mix.weight"][g] for g, part in enumerate(np.split(deter, blocks))]
    x = np_norm_silu(np.concatenate(parts) + w["mix.bias"], w["mix_norm.weight"])
    new = []
    bias = np.split(w["gates.bias"], blocks)
    for g, (part, old) in enumerate(zip(np.split(x, blocks), np.split(deter, blocks))):
        reset, candidate, update = np.split(part @ w["gates.weight"][g] + bias[g], 3)
        update = sigmoid(update - 1)
        new.append(update * np.tanh(sigmoid(reset) * candidate) + (1 - update) * old)
    return np.concatenate(new)


def np_chances(logits: np.ndarray, cfg: DreamerV3Config) -> np.ndarray:
    """(K, G), choices before groups, a hundredth even."""
    logits = logits.reshape(cfg.stoch_classes, cfg.stoch_discrete)
    probs = np.exp(logits) / np.exp(logits).sum(0)
    return 0.99 * probs + 0.01 / cfg.stoch_classes


def test_a_step_of_the_recurrent_model_is_the_equations() -> None:
    rssm = make(act=BOX).rssm
    w, rng = arrays(rssm), np.random.default_rng(0)
    deter, stoch = rng.normal(size=(B, 64)), rng.normal(size=(B, 16))
    act = rng.normal(size=(B, 2)) * 3  # Beyond the bounds: pulled back to -1 and 1.
    latent = {"deter": torch.from_numpy(deter).float(), "stoch": torch.from_numpy(stoch).float()}
    got, prior = rssm.prior_step(latent, torch.from_numpy(act).float())
    want = np.stack([np_gru(w, *row, 8) for row in zip(deter, stoch, act)])
    np.testing.assert_allclose(got.detach(), want, atol=1e-5)
    hidden = np_layer(w, "prior.1", np_layer(w, "prior.0", want))
    logits = hidden @ w["prior.2.weight"].T + w["prior.2.bias"]
    np.testing.assert_allclose(prior.detach(), [np_chances(row, CI) for row in logits], atol=1e-5)


def test_a_window_is_observed_by_the_equations() -> None:
    rssm = make(act=BOX).rssm
    w, rng = arrays(rssm), np.random.default_rng(1)
    tokens, acts = rng.normal(size=(4, 1, 32)), rng.uniform(-1, 1, (4, 1, 2))
    first = np.array([False, False, True, False])[:, None]
    deter, stoch = rng.normal(size=64), rng.normal(size=16)
    latent = {"deter": torch.from_numpy(deter)[None].float(), "stoch": torch.from_numpy(stoch)[None].float()}
    inputs = [torch.from_numpy(x).float() for x in (tokens, acts)]
    uniform = rng.random((4, 1, 4))
    seen = rssm.observe(latent, *inputs, torch.from_numpy(first), torch.from_numpy(uniform).float())
    for t in range(4):
        keep = 0.0 if first[t, 0] else 1.0
        deter = np_gru(w, keep * deter, keep * stoch, keep * acts[t, 0], 8)
        hidden = np_layer(w, "post", np.concatenate([deter, tokens[t, 0]]))
        probs = np_chances(hidden @ w["post_out.weight"].T + w["post_out.bias"], CI)
        picks = [int(np.searchsorted(np.cumsum(probs[:, g]), uniform[t, 0, g])) for g in range(4)]
        stoch = np.eye(4)[picks].T.reshape(-1)
        np.testing.assert_allclose(seen.deter[t, 0].detach(), deter, atol=1e-4)
        np.testing.assert_allclose(seen.probs[t, 0].detach(), probs, atol=1e-4)
        np.testing.assert_allclose(seen.stoch[t, 0].detach(), stoch, atol=1e-5)


def test_kl_terms_have_free_nats_by_step_and_their_official_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = make(), np.random.default_rng(0)
    batch = draw_batch(model)
    post, prior = (rng.dirichlet(np.ones(4) * c, (T, B, 4)).swapaxes(2, 3) for c in (1.0, 8.0))
    post[0] = prior[0]  # Nothing to learn there, and yet it counts the free nat.
    seen = _Posteriors(torch.zeros(T, B, 64), torch.zeros(T, B, 16), torch.from_numpy(post).requires_grad_())
    ahead = torch.from_numpy(prior).swapaxes(0, 1).requires_grad_()
    monkeypatch.setattr(
        RSSM, "observe", lambda self, latent, tokens, *rest: _Posteriors(*(x[-len(tokens) :] for x in seen))
    )
    monkeypatch.setattr(RSSM, "prior_probs", lambda self, deter: ahead)
    out = model.loss(batch)
    each = (post * (np.log(post) - np.log(prior))).sum((2, 3))
    assert 0.2 < (each > 1).mean() < 1 and each[0].max() < 1e-9
    want = np.maximum(each, 1).mean()
    assert (
        float(out.components["dyn"].detach()) == float(out.components["rep"].detach()) == pytest.approx(want, rel=1e-5)
    )
    rest = sum(float(out.components[name].detach()) for name in ("rec", "rew", "con"))
    assert float(out.loss.detach()) == pytest.approx(rest + 1.0 * want + 0.1 * want, rel=1e-5)
    out.loss.backward()
    assert ahead.grad is not None and seen.probs.grad is not None
    pressed = each > 1  # Where it is free, nothing pulls; elsewhere the prior is pulled ten times as hard.
    np.testing.assert_allclose(ahead.grad.swapaxes(0, 1)[pressed], -(post / prior)[pressed] / (B * T), rtol=1e-4)
    slope = 0.1 * (np.log(post) - np.log(prior) + 1)
    np.testing.assert_allclose(seen.probs.grad[pressed], slope[pressed] / (B * T), rtol=1e-4)
    assert not ahead.grad.swapaxes(0, 1)[~pressed].any() and not seen.probs.grad[~pressed].any()


def test_the_parts_of_a_loss_are_the_papers() -> None:
    model = make().eval()
    batch = draw_batch(model)
    torch.manual_seed(0)
    out, post = model.learn(batch)
    feat = model.feat(post).detach()
    obs = batch.obs[:, 1:].numpy()
    drawn = model.eye.predict(post["deter"], post["stoch"]).detach().numpy()
    want = ((drawn - np.sign(obs) * np.log1p(np.abs(obs))) ** 2).sum(-1).mean()
    assert float(out.components["rec"].detach()) == pytest.approx(want, rel=1e-4)
    want = model.rew_bins.loss(model.rew(feat), batch.rew).mean()
    assert float(out.components["rew"].detach()) == pytest.approx(float(want.detach()), rel=1e-4)
    prob, on = sigmoid(model.cont(feat)[..., 0].detach().numpy()), (1 - 1 / 333) * (1 - batch.term.numpy())
    want = -(on * np.log(prob) + (1 - on) * np.log(1 - prob)).mean()
    assert float(out.components["con"].detach()) == pytest.approx(want, rel=1e-4)
    assert on.min() == 0


def test_dreams_do_not_end_of_the_discount() -> None:
    model = make()
    model.cont[-1].weight.data.zero_()
    model.cont[-1].bias.data.fill_(float(np.log(332 / 333 * 0.75) - np.log(1 - 332 / 333 * 0.75)))
    latent, act = model.initial(2), torch.eye(3)[:2]
    assert model.step(latent, act).cont.tolist() == pytest.approx([0.75, 0.75])
    model.cont[-1].bias.data.fill_(50.0)
    assert model.step(latent, act).cont.tolist() == [1, 1]


# Windows


def test_first_inside_a_window_opens_an_episode() -> None:
    model, batch = make(), draw_batch(make())
    tokens = model.eye.encode(batch.obs.flatten(0, 1)).unflatten(0, (B, T + 1)).transpose(0, 1)
    past: Latent = {"deter": torch.randn(B, 64), "stoch": torch.rand(B, 16)}
    acts = torch.rand(T, B, 3)
    whole = model.rssm.observe(past, tokens[1:], acts, batch.first[:, 1:].t())
    alone = model.rssm.observe(model.initial(B), tokens[3:], acts[2:] * 0, batch.first[:, 3:].t() & False)
    torch.testing.assert_close(whole.deter[2, 0], alone.deter[0, 0])
    assert not torch.allclose(whole.deter[2, 1], alone.deter[0, 1])


def test_frame_0_is_context_as_stored_or_seen_without_a_past() -> None:
    model, batch = make(), draw_batch(make())
    known = {"deter": torch.randn(B, 64), "stoch": torch.rand(B, 16)}
    known["deter"][1] = 0  # None was stored there.

    def deter(batch: Batch) -> Tensor:
        torch.manual_seed(0)
        return model.learn(batch)[1]["deter"].detach()

    stored, fresh = deter(replace(batch, latent=known)), deter(batch)
    torch.testing.assert_close(stored[1], fresh[1])
    assert not torch.allclose(stored[0, 0], fresh[0, 0])
    with torch.no_grad():
        start = model.encode(batch.obs[:, 0])
        ahead, _ = model.rssm.prior_step(start, batch.act[:, 0])
    torch.testing.assert_close(fresh[:, 0], ahead)
    other = batch.obs.clone()
    other[1, 0] += 1
    assert not torch.allclose(deter(replace(batch, obs=other))[1], fresh[1])
    torch.testing.assert_close(deter(replace(batch, obs=other, latent=known))[0], stored[0])


def test_encoding_repeats_itself_and_steps_draw_by_their_generator_alone() -> None:
    model, obs = make(), draw_obs(VECTOR, B)
    with torch.no_grad():
        latent = model.encode(obs)
        torch.manual_seed(5)
        again = model.encode(obs)
        act = torch.eye(3)
        drawn = [model.step(latent, act, generator=torch.Generator().manual_seed(0)).latent["stoch"] for _ in range(2)]
    assert torch.equal(latent["stoch"], again["stoch"]) and torch.equal(*drawn)
    assert latent["stoch"].view(B, 4, 4).sum(1).tolist() == [[1.0] * 4] * B
    feat = model.feat(latent)
    assert all(torch.equal(part, latent[key]) for key, part in model.latent_of(feat).items())


def test_an_action_must_come_with_the_latent_before_it() -> None:
    model = make()
    with pytest.raises(ValueError, match="encode needs the act that led from latent to obs"):
        model.encode(draw_obs(VECTOR, B), model.initial(B))


# What it sees


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-9, 9, (4,), np.float64),
        spaces.Box(0, 20, (4, 2), np.int64),
        spaces.Box(-np.inf, np.inf, (), np.float32),
        spaces.MultiBinary(5),
        spaces.Discrete(6, start=2),
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(0, 255, (3, 64, 64), np.uint8),
        spaces.Box(0, 255, (84, 84, 1), np.uint8),
        spaces.Box(0, 255, (28, 40, 3), np.uint8),
    ],
    ids=str,
)
def test_it_sees_and_draws_frames_vectors_and_choices(space: gym.Space[Any]) -> None:
    model = make(space)
    obs = torch.from_numpy(np.stack([space.sample() for _ in range(2 * 4)])).unflatten(0, (2, 4))
    batch = draw_batch(make(), 2, 3)
    loss = model.loss(replace(batch, obs=obs)).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.any() for p in model.eye.parameters())
    with torch.no_grad():
        drawn = model.decode(model.encode(obs[:, 0])).numpy()
    assert drawn.shape == (2, *space.shape) and drawn.dtype == space.dtype
    assert all(space.contains(np.asarray(one)) for one in drawn)


def test_vectors_come_back_through_symexp_within_their_bounds() -> None:
    model = make(spaces.Box(np.float32([-1, -100, -100]), np.float32([1, 100, 100])))
    drawn = torch.tensor([[3.0, 3.0, -0.5]])
    np.testing.assert_allclose(model.eye.decode(drawn), [[1, np.exp(3) - 1, 1 - np.exp(0.5)]], rtol=1e-5)


def test_vectors_are_never_convolved() -> None:
    assert not any(isinstance(m, torch.nn.Conv2d) or "Down" in type(m).__name__ for m in make().modules())


def test_observations_it_cannot_take_are_rejected() -> None:
    with pytest.raises(ConfigurationError, match=r"frames of 20 x 400 pixels cannot be halved .*; resize them"):
        make(spaces.Box(0, 255, (20, 400, 3), np.uint8))
    with pytest.raises(ConfigurationError, match="dreamerv3 supports uint8 frames .* got Box.*float32.*use a wrapper"):
        make(spaces.Box(0, 1, (8, 8, 8), np.float32))


def test_impossible_sizes_are_rejected_by_name() -> None:
    with pytest.raises(
        ConfigurationError, match=r"DreamerV3Config.deter_dim must be divisible by blocks \(8\), got 100"
    ):
        DreamerV3Config.from_size("ci", deter_dim=100)
    with pytest.raises(ConfigurationError, match="kl_free must be a number of at least 0, got -1"):
        DreamerV3Config.from_size("ci", kl_free=-1)
    with pytest.raises(ConfigurationError, match="unknown field 'hidden_dims'.*did you mean 'hidden_dim'"):
        DreamerV3Config.from_size("size12m", hidden_dims=3)
    assert DreamerV3Config() == DreamerV3Config.from_size("size12m")


# Sizes


def count(cfg: DreamerV3Config, actions: int) -> tuple[int, int]:
    """Weights of the model and of its behaviour on 64x64x3, counted by the layers of anchors of the authors' code."""
    deter, hidden, units, blocks, bins = cfg.deter_dim, cfg.hidden_dim, cfg.units, 8, 255
    stoch = cfg.stoch_discrete * cfg.stoch_classes
    feat, d = deter + stoch, cfg.cnn_depth

    def layer(a: int, b: int) -> int:
        return a * b + b + b  # Weight, bias, scale of the norm.

    def head(layers: int, out: int) -> int:
        return layer(feat, units) + (layers - 1) * layer(units, units) + units * out + out

    small = 4 * 4 * 4 * d
    encoder = sum(25 * a * b + 2 * b for a, b in ((3, 2 * d), (2 * d, 3 * d), (3 * d, 4 * d), (4 * d, 4 * d)))
    gru = blocks * (deter // blocks + 3 * hidden) * (deter // blocks) + 2 * deter
    gru += blocks * (deter // blocks) * (3 * deter // blocks) + 3 * deter
    inputs = layer(deter, hidden) + layer(stoch, hidden) + layer(actions, hidden)
    prior = layer(deter, hidden) + layer(hidden, hidden) + hidden * stoch + stoch
    posterior = layer(deter + small, hidden) + hidden * stoch + stoch
    space = deter * small // blocks + small + layer(stoch, 2 * units) + 2 * units * small + small + 4 * d
    ups = sum(25 * a * b + 2 * b for a, b in ((4 * d, 4 * d), (4 * d, 3 * d), (3 * d, 2 * d))) + 25 * 2 * d * 3 + 3
    model = encoder + gru + inputs + prior + posterior + space + ups + head(1, bins) + head(1, 1)
    return model, head(3, actions) + 2 * head(3, bins)  # The slow critic counts too.


@pytest.mark.parametrize(
    ("size", "total"),
    [
        ("size1m", 752_567),
        ("size12m", 11_346_119),
        ("size25m", 25_356_967),
        ("size50m", 44_926_599),
        ("size100m", 100_742_215),
        ("size200m", 178_792_967),
        ("size400m", 401_599_879),
    ],
)
def test_a_size_has_the_weights_of_its_layers(size: str, total: int) -> None:
    with torch.device("meta"):
        learner = DreamerLearner(DreamerV3(DreamerV3Config.from_size(size), FRAME, spaces.Discrete(6)))
    model, behaviour = (sum(p.numel() for p in part.parameters()) for part in (learner.model, learner.behaviour))
    assert (model, behaviour) == count(learner.model.cfg, 6)
    assert model + behaviour == total


# Learning


def learner(obs: gym.Space[Any] = VECTOR, act: gym.Space[Any] = CHOICE) -> DreamerLearner:
    model = make(obs, act)
    behaviour = ActorCriticConfig(units=16, layers=1, horizon=3)
    torch.manual_seed(0)
    agent = DreamerLearner(model, behaviour)
    for p in agent.behaviour.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return agent


@pytest.mark.parametrize("part", ["policy", "value", "repval"])
def test_gradients_of_the_behaviour_go_where_they_should(part: str) -> None:
    agent = learner()
    agent.loss(draw_batch(agent.model)).components[part].backward()
    reached = {name for name, p in agent.named_parameters() if p.grad is not None and p.grad.any()}

    def some(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in reached)

    assert some("behaviour.actor.") == (part == "policy")
    assert some("behaviour.critic.") == (part in ("value", "repval"))
    # Only what really followed teaches the model which features tell of it.
    assert some("model.rssm.") == some("model.eye.encoder") == (part == "repval")
    assert not some("behaviour.slow") and not some("model.rew") and not some("model.cont")


def test_dreams_begin_at_every_frame_and_the_critic_gets_what_followed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, told = learner(), []
    batch = draw_batch(agent.model)
    dream, replay = agent.behaviour.dream, agent.behaviour.judge_replay
    monkeypatch.setattr(agent.behaviour, "dream", lambda *args: told.append(args) or dream(*args))
    monkeypatch.setattr(agent.behaviour, "judge_replay", lambda *args: told.append(args) or replay(*args))
    torch.manual_seed(0)
    out = agent.loss(batch)
    (_, start, cont), (feat, rew, term, last, boot) = told
    assert agent.latents is not None
    for key, leaf in agent.latents.items():
        torch.testing.assert_close(start[key].unflatten(0, (T, B)), leaf.transpose(0, 1))
    torch.testing.assert_close(feat.detach(), agent.model.feat(agent.latents).transpose(0, 1))
    torch.testing.assert_close(cont, agent.model.continues(feat.detach()).detach().flatten())
    torch.testing.assert_close((rew, term, last), (batch.rew.t(), batch.term.t(), batch.last[:, 1:].t()))
    assert boot.shape == (T, B) and not boot.requires_grad
    weights = {"dyn": 1.0, "rep": 0.1, "repval": 0.3}
    parts = {name: weights.get(name, 1.0) * float(part.detach()) for name, part in out.components.items()}
    assert parts.keys() == {"rec", "rew", "con", "dyn", "rep", "policy", "value", "repval"}
    assert float(out.loss.detach()) == pytest.approx(sum(parts.values()), rel=1e-5)


def test_the_models_loss_alone_reaches_all_of_the_model_and_no_behaviour() -> None:
    agent = learner(FRAME)
    agent.model.loss(draw_batch(agent.model)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in agent.model.parameters())
    assert all(p.grad is None for p in agent.behaviour.parameters())


@pytest.mark.parametrize("act", [CHOICE, BOX])
def test_bf16_learns_what_float32_learns(act: gym.Space[Any]) -> None:
    agent = learner(act=act).eval()
    batch = draw_batch(agent.model, 8, 16)
    grads, losses = [], []
    for enabled in (False, True):
        agent.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = agent.loss(batch)
        out.loss.backward()
        losses.append(float(out.loss.detach()))
        assert all(p.grad is not None and p.grad.any() for p in agent.parameters() if p.requires_grad)
        grads.append(torch.cat([p.grad.flatten() for p in agent.model.eye.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert float(F.cosine_similarity(*grads, dim=0)) > 0.95


def test_posteriors_are_left_for_the_replay_buffer() -> None:
    agent = learner()
    batch = draw_batch(agent.model)
    agent.loss(batch)
    assert agent.latents is not None
    assert {key: tuple(leaf.shape) for key, leaf in agent.latents.items()} == {"deter": (B, T, 64), "stoch": (B, T, 16)}
    assert not any(leaf.requires_grad for leaf in agent.latents.values())


def test_a_learner_in_eval_mode_moves_nothing_and_an_update_moves_the_slow_critic() -> None:
    agent = learner().eval()
    before = {name: t.clone() for name, t in agent.state_dict().items()}
    agent.loss(draw_batch(agent.model))
    assert all(torch.equal(t, before[name]) for name, t in agent.state_dict().items())
    agent.train().loss(draw_batch(agent.model))
    agent.after_update()
    moved = {name for name, t in agent.state_dict().items() if not torch.equal(t, before[name])}
    assert moved and all(name.startswith(("behaviour.slow.", "behaviour.scale.")) for name in moved)


def test_a_learner_acts_as_the_policy_that_it_leaves() -> None:
    agent = learner()
    latent = agent.model.encode(draw_obs(VECTOR, B))
    acts = agent.act(latent, explore=False)
    feat = agent.model.feat(latent).detach().numpy()
    assert ActorPolicy(CHOICE, agent.behaviour.actor).act(feat).tolist() == acts.argmax(1).tolist()
    rng = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(*(agent.act(latent, explore=True, generator=g) for g in rng))


def test_choices_side_by_side_are_rejected_before_training() -> None:
    model = DreamerV3(CI, VECTOR, spaces.MultiDiscrete([2, 3]))
    with pytest.raises(ValueError, match="needs Box or Discrete actions, got MultiDiscrete"):
        DreamerLearner(model)


def action_pays(rows: int, shift: int, seed: int) -> Batch:
    """Windows of an env whose reward is its action, or (shifted) the action before."""
    rng = torch.Generator().manual_seed(seed)
    act = torch.randint(2, (rows, 9), generator=rng).float() * 2 - 1
    none = torch.zeros(rows, 9, dtype=torch.bool)
    rew = act[:, 1:] if shift == 0 else act[:, :-1]
    return Batch(torch.zeros(rows, 9, 4), act[:, 1:, None], rew, none[:, 1:], none, none)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_reward_belongs_to_the_action_that_earned_it(shift: int, learning_seed: int) -> None:
    torch.manual_seed(learning_seed)
    model = DreamerV3(CI, VECTOR, spaces.Box(-1, 1, (1,), np.float32))
    opt = LaProp(model.parameters(), lr=1e-2)
    for i in range(60):
        opt.zero_grad()
        model.loss(action_pays(16, shift, 1000 * learning_seed + i)).loss.backward()
        opt.step()
    act = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    with torch.no_grad():
        earned = model.step(model.encode(torch.zeros(4, 4)), act, temperature=0).rew
    assert (float((earned - act[:, 0]).abs().max()) < 0.3) == (shift == 0)
