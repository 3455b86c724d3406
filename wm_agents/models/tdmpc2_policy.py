"""The policies of TD-MPC2: a squashed normal for Box actions, a categorical for discrete ones.

Each says how the output of the policy network becomes actions, what the Q functions are given, and which loss improves
the policy. The networks themselves belong to the model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.dists import TwoHot, draw_one_hot, entropy, likeliest
from wm_agents.models.tdmpc2_layers import QEnsemble

if TYPE_CHECKING:
    from wm_agents.models.tdmpc2 import TDMPC2Config


class _PolicySample(NamedTuple):
    """A sample of the policy in training."""

    act: Tensor
    """(..., A) a sample of Box actions; probabilities of discrete actions"""
    entropy: Tensor
    """(...)"""
    scaled_entropy: Tensor
    """(...) as used in the policy loss for Box actions"""
    log_probs: Tensor
    """(..., A) for discrete actions; empty for Box"""


class GaussianPolicy:
    """A normal before tanh; the Q functions get latent and action."""

    def __init__(self, cfg: TDMPC2Config, actions: int, two_hot: TwoHot) -> None:
        self.cfg, self.actions, self.two_hot = cfg, actions, two_hot
        self.out_dim = 2 * actions
        self.q_in, self.q_out = cfg.latent_dim + actions, cfg.num_bins

    def act(self, out: Tensor, greedy: bool, generator: torch.Generator | None) -> Tensor:
        """Actions (B, A), sampled or the mode, for outputs (B, 2 A)."""
        mean, log_std = self.normal(out)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.tanh(mean if greedy else mean + log_std.exp() * noise)

    def weights(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        """What expected values are computed from: a sample (B, A)."""
        return self.act(out, False, generator)

    def sample(self, out: Tensor) -> _PolicySample:
        """A sample for outputs (..., 2 A), with gradients."""
        mean, log_std = self.normal(out)
        noise = torch.randn_like(mean)
        act = torch.tanh(mean + log_std.exp() * noise)
        log_prob = _gaussian_log_prob(noise, log_std)
        # The published loss uses the entropy of the normal before tanh, times the number of action dimensions: it
        # scales the entropy by (dimensions * log-probability of the normal) / (log-probability after tanh), and the
        # tanh cancels.
        return _PolicySample(act, _squash_correction(act) - log_prob, -log_prob * self.actions, noise.new_empty(0))

    def normal(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before tanh."""
        low, high = self.cfg.log_std_min, self.cfg.log_std_max
        mean, raw = out.chunk(2, dim=-1)
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    def q_bins(self, qs: QEnsemble, z: Tensor, act: Tensor, *, drop: bool) -> Tensor:
        """Logits (K, ..., bins) of the actions (..., A) in the data."""
        out: Tensor = qs(torch.cat([z, act], -1), drop=drop)
        return out

    def q(self, qs: QEnsemble, z: Tensor, act: Tensor, members: Tensor, **how: bool) -> Tensor:
        """Q (2, ...) of actions (..., A)."""
        return self.two_hot.mean(qs(torch.cat([z, act], -1), members, **how))

    def expect(self, q: Tensor, act: Tensor) -> Tensor:
        """The expected Q (...): that of the sampled action."""
        return q

    def losses(self, q: Tensor, sample: _PolicySample, scale: Tensor) -> Tensor:
        """Maximise Q, divided by its range, plus the entropy: (...)."""
        return -(self.cfg.entropy_coef * sample.scaled_entropy + q / scale)


class CategoricalPolicy:
    """Probabilities of all actions; one pass of the Q functions gives the values of all of them."""

    def __init__(self, cfg: TDMPC2Config, actions: int, two_hot: TwoHot) -> None:
        self.cfg, self.actions, self.two_hot = cfg, actions, two_hot
        self.out_dim = actions
        self.q_in, self.q_out = cfg.latent_dim, actions * cfg.num_bins

    def act(self, out: Tensor, greedy: bool, generator: torch.Generator | None) -> Tensor:
        """One-hot actions (B, A), sampled or the most likely, for outputs (B, A)."""
        probs = out.softmax(-1)
        uniform = torch.rand(len(probs), generator=generator, device=probs.device)
        if greedy:
            return likeliest(probs)
        return draw_one_hot(probs, uniform)

    def weights(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        """What expected values are computed from: the probabilities (B, A)."""
        return out.softmax(-1)

    def sample(self, out: Tensor) -> _PolicySample:
        """The probabilities for outputs (..., A), with gradients."""
        probs = out.softmax(-1)
        return _PolicySample(probs, entropy(probs), entropy(probs), out.log_softmax(-1))

    def q_bins(self, qs: QEnsemble, z: Tensor, act: Tensor, *, drop: bool) -> Tensor:
        """Logits (K, ..., bins) of the one-hot actions (..., A) in the data."""
        bins: Tensor = qs(z, drop=drop).unflatten(-1, (self.actions, -1))
        return bins.take_along_dim(act.argmax(-1)[None, ..., None, None], -2).squeeze(-2)

    def q(self, qs: QEnsemble, z: Tensor, act: Tensor, members: Tensor, **how: bool) -> Tensor:
        """Q (2, ..., A) of every action."""
        out: Tensor = qs(z, members, **how)
        return self.two_hot.mean(out.unflatten(-1, (self.actions, -1)))

    def expect(self, q: Tensor, act: Tensor) -> Tensor:
        """The expected Q (...) over probabilities (..., A)."""
        return (q * act).sum(-1)

    def losses(self, q: Tensor, sample: _PolicySample, scale: Tensor) -> Tensor:
        """Cross-entropy (...) to the optimal policy, which is proportional to exp(Q / (entropy weight * range)).

        The gradient of the expected Q would vanish once the policy is deterministic.
        """
        best = (q.detach() / (self.cfg.choice_entropy_coef * scale)).softmax(-1)
        return -(best * sample.log_probs).sum(-1)


def _gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Log-density (...) of samples mean + std * noise (..., A)."""
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def _squash_correction(act: Tensor) -> Tensor:
    """The correction (...) of log-densities for actions (..., A) after tanh."""
    return (F.relu(1 - act.square()) + 1e-6).log().sum(-1)
