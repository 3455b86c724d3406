"""Losses, gradients and plans equal those of the official code, from weights that both are given.

scripts/ports/golden_tdmpc2.py and golden_dreamerv3.py made the numbers once by running that code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "ports"))

import golden_dreamerv3
from golden_tdmpc2 import ACT, HIDDEN, LATENT, NETS, OBS, QS, batch, settings, weights

from policies.actor_critic import ActorCritic, ActorCriticConfig, _Choice, _Dream
from policies.dists import mixed
from wm_agents.data.batch import Batch
from wm_agents.models.dreamerv3 import _kls
from wm_agents.models.tdmpc2 import TDMPC2, TDMPC2Config

TDMPC2_LOSSES = {
    "consistency": 0.019271867349743843,
    "reward": 3.446772336959839,
    "value": 3.43428897857666,
    "termination": 0.9748689532279968,
    "policy": -0.29785194993019104,
}
TDMPC2_NORMS = {"model": 2.8859028816223145, "policy": 2.0539469718933105}
TDMPC2_PLANS = [
    0.5786315202713013, -0.9926564693450928, -0.961322546005249, -1.2509422302246094, -0.32771480083465576,
    -0.47152912616729736,
]  # fmt: skip


DREAMERV3_LOSSES = {"policy": -0.2757914066314697, "value": 4.454281330108643, "replayed": 6.4409074783325195}
DREAMERV3_KL = [4.6740593910217285, 4.030062675476074, 5.183176040649414]


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> TDMPC2:
    """TD-MPC2 with the weights of the official one, without noise, and with the first two Q functions."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", lambda *shape, **how: torch.zeros(*shape))
    monkeypatch.setattr(torch, "randperm", lambda num, **how: torch.arange(num))
    same = settings()
    cfg = TDMPC2Config(
        latent_dim=LATENT, hidden_dim=HIDDEN, enc_dim=HIDDEN, num_q_networks=QS, dropout=0.0,
        episode_length=same.episode_length, num_samples=6, num_elites=2, num_prior_plans=2,
    )  # fmt: skip
    for name in ("rho", "discount_min", "discount_max", "tau", "entropy_coef", "consistency_coef", "reward_coef"):
        assert getattr(cfg, name) == getattr(same, name)
    space = gym.spaces.Box(-9, 9, (OBS,), np.float32)
    model = TDMPC2(cfg, space, gym.spaces.Box(-1, 1, (ACT,), np.float32))
    for net in NETS:
        give(model, net)
    return model


def give(model: TDMPC2, net: str) -> None:
    """Copy the official weights, with the units of the latent in our order."""
    module, layers = getattr(model, net), weights(net)
    # The members of a group of SimNorm are adjacent in the official code, and LATENT / 8 apart in ours.
    order = torch.arange(LATENT).view(-1, 8).t().flatten()
    if net != "encoder":
        layers[0]["weight"][..., :LATENT] = layers[0]["weight"][..., order]
    if net in ("encoder", "dynamics"):
        layers[-1] = {name: value[order] for name, value in layers[-1].items()}
    for i, layer in enumerate(layers):
        for part, value in layer.items():
            target(module, i, part).data.copy_(value.mT if "qs" in net and part == "weight" else row(net, value, part))


def row(net: str, value: Tensor, part: str) -> Tensor:
    """Vectors of Q functions have a row axis."""
    return value[:, None] if "qs" in net and part != "weight" else value


def target(module: nn.Module, layer: int, part: str) -> Tensor:
    names = {"weight": "weights", "bias": "biases", "gain": "gains", "shift": "shifts"}
    if hasattr(module, "gains"):
        return getattr(module, names[part])[layer]  # type: ignore[no-any-return]
    found = module[layer]  # type: ignore[index]
    if part in ("gain", "shift"):
        return getattr(found.norm, {"gain": "weight", "shift": "bias"}[part])  # type: ignore[no-any-return]
    return getattr(found, part)  # type: ignore[no-any-return]


def windows() -> Batch:
    data = batch()
    none = torch.zeros(data["obs"].shape[:2], dtype=torch.bool)
    return Batch(data["obs"], data["act"], data["rew"], data["term"].bool(), none, none)


def test_losses_of_tdmpc2_and_their_gradients_are_the_official_ones(official: TDMPC2) -> None:
    out = official.train().loss(windows())
    found = {name: float(out.components[name].detach()) for name in TDMPC2_LOSSES}
    assert found == pytest.approx(TDMPC2_LOSSES, rel=1e-5)
    (out.loss - out.components["probe"]).backward()
    norms = {"model": 0.0, "policy": 0.0}
    for name, p in official.named_parameters():
        if p.grad is not None and not name.startswith("decoder"):
            norms["policy" if name.startswith("pi.") else "model"] += float(p.grad.square().sum())
    assert {name: square**0.5 for name, square in norms.items()} == pytest.approx(TDMPC2_NORMS, rel=1e-5)


def test_values_of_plans_of_tdmpc2_are_the_official_ones(official: TDMPC2) -> None:
    data = batch()
    with torch.no_grad():
        latent = official.eval().encode(data["obs"][:1, 0])
        values = official.planner().returns(latent, data["plans"][None])[0]
    assert values.tolist() == pytest.approx(TDMPC2_PLANS, rel=1e-5, abs=1e-6)


class Table(nn.Module):
    """A network whose outputs are given: the feature is the index."""

    def __init__(self, outputs: np.ndarray) -> None:
        super().__init__()
        self.outputs = torch.from_numpy(outputs).transpose(0, 1).flatten(0, 1).float()

    def forward(self, feat: Tensor) -> Tensor:
        return self.outputs[feat[..., 0].long()]


class Choices(Table):
    def forward(self, feat: Tensor) -> _Choice:  # type: ignore[override]
        return _Choice(super().forward(feat))


def test_losses_of_the_actor_critic_of_dreamerv3_are_the_official_ones() -> None:
    data = golden_dreamerv3.inputs()
    agent = ActorCritic(ActorCriticConfig(units=4, layers=1), gym.spaces.Discrete(golden_dreamerv3.ACTIONS), 1).eval()
    agent.critic.net, agent.slow.net, agent.actor = Table(data["value"]), Table(data["slow"]), Choices(data["policy"])  # type: ignore[assignment]
    rows, states = data["rew"].shape
    feats = torch.arange(states * rows).view(states, rows, 1)
    rew, con, boot, last, term = (torch.from_numpy(data[n]).t() for n in ("rew", "con", "boot", "last", "term"))
    acts = torch.eye(golden_dreamerv3.ACTIONS)[torch.from_numpy(data["act"]).t()]
    losses = agent.judge(_Dream(feats, acts[:-1], rew[1:], con.float() / agent.cfg.discount))
    replayed = agent.judge_replay(feats, rew, term, last, boot)
    found = {"policy": float(losses.policy), "value": float(losses.value), "replayed": float(replayed)}
    assert found == pytest.approx(DREAMERV3_LOSSES, rel=1e-5)


def test_the_divergence_of_dreamerv3_is_the_official_one() -> None:
    data = golden_dreamerv3.inputs()
    post, prior = (mixed(torch.from_numpy(data[n]).mT, golden_dreamerv3.UNIMIX, dim=-2) for n in ("post", "prior"))
    for kl in _kls(post, prior):
        assert kl.tolist() == pytest.approx(DREAMERV3_KL, rel=1e-5)
