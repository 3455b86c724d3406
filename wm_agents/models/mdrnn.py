"""M of V-M-C: an LSTM with a Gaussian mixture, reward and termination (Ha & Schmidhuber 2018).

`MDRNN` runs over sequences and `MDRNNCell` takes one step at a time; both have the usual signatures.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.models.mdrnn_kernels import draw_by_component, gains_by_component
from wm_envs.noise import Generator, draw_normal

Mixture = Literal["joint", "per_dim"]


class _MDRNNBase(nn.Module):
    """The common part of the sequence model and the cell: one linear head from the memory to a Gaussian mixture,
    reward and termination."""

    Recurrent: ClassVar[type[nn.LSTM | nn.LSTMCell]] = nn.LSTM

    def __init__(
        self,
        latents: int,
        actions: int,
        hiddens: int,
        gaussians: int,
        mixture: Mixture = "joint",
        rewards: int = 1,
    ) -> None:
        """`rewards`: 1 for a reward as one number, or the number of logits of rewards."""
        super().__init__()
        if mixture not in ("joint", "per_dim"):
            raise ValueError(f"mixture must be 'joint' or 'per_dim', got {mixture!r}")
        self.latents, self.actions, self.hiddens, self.gaussians = latents, actions, hiddens, gaussians
        self.mixture, self.rewards = mixture, rewards
        self.choices = latents
        if mixture == "joint":
            self.choices = 1
        self.num_mixture = (2 * latents + self.choices) * gaussians
        self.gmm_linear = nn.Linear(hiddens, self.num_mixture + rewards + 1)
        self.rnn = self.Recurrent(latents + actions, hiddens)

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError("use MDRNN for sequences or MDRNNCell for single steps")

    def split(self, head: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Split the output (..., D) of the head into mus, sigmas (..., K, Z), logpi (..., K) or (..., K, Z), and its
        last outputs `ends`."""
        k, z = self.gaussians, self.latents
        mus = head[..., : k * z].unflatten(-1, (k, z))
        sigmas = head[..., k * z : 2 * k * z].unflatten(-1, (k, z)).clamp(-7, 5).exp()
        logits = head[..., 2 * k * z : self.num_mixture]
        if self.mixture == "per_dim":
            logits = logits.unflatten(-1, (k, z))
        logpi = logits.log_softmax(dim=-1 if self.mixture == "joint" else -2)
        return mus, sigmas, logpi, *self.ends(head[..., self.num_mixture :])

    def ends(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Split the last R + 1 outputs (..., R + 1) of the head into the reward (...), or its logits (..., R), and
        the logit of termination."""
        rew = ends[..., :-1]
        return rew[..., 0] if self.rewards == 1 else rew, ends[..., -1]

    def draw(self, h: Tensor, temperature: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """From the memory (B, H): z' (B, Z) by `sample`, and the outputs of the head for reward and termination (B,
        R + 1)."""
        if self.mixture == "joint" and gains_by_component(h):
            return draw_by_component(self, h, temperature, generator)
        head = self.gmm_linear(h).float()
        return self.sample(head, temperature, generator), head[:, self.num_mixture :]

    def sample(self, head: Tensor, temperature: float, generator: Generator) -> Tensor:
        """Sample z' (B, Z) from the mixture of the head; temperature 0 gives the mean of the most likely component."""
        b, k, z = len(head), self.gaussians, self.latents
        logits = head[:, 2 * k * z : self.num_mixture].view(b, k, self.choices)
        noise = self.noise(b, temperature, generator, head.device)
        index = self.choose(logits, noise, temperature)[:, None].expand(b, 1, z)
        mus, logsigmas = (part.view(b, k, z).gather(1, index)[:, 0] for part in head[:, : 2 * k * z].chunk(2, dim=1))
        return self.spread(mus, logsigmas, noise, temperature)

    def noise(self, num: int, temperature: float, generator: Generator, device: torch.device) -> Tensor | None:
        """Standard normal noise (num, choices + Z) for the choice of components and for z'; None at temperature 0."""
        if temperature > 0:
            return draw_normal(num, self.choices + self.latents, generator, device)
        return None

    def choose(self, logits: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """The components (B, choices) for logits (B, K, choices): sampled, or the most likely ones without noise."""
        if noise is None:
            return logits.argmax(1)
        edges = (logits / temperature).softmax(1).cumsum(1)
        chance = torch.special.ndtr(noise[:, None, : self.choices])  # The CDF of a normal sample is uniform.
        return cast(Tensor, (edges < chance).sum(1).clamp(max=self.gaussians - 1))

    def spread(self, mus: Tensor, logsigmas: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """z' (B, Z) of components with these means and standard deviations (B, Z); the means without noise."""
        if noise is None:
            return mus
        wider: float = temperature**0.5
        return mus + logsigmas.clamp(-7, 5).exp() * wider * noise[:, self.choices :]


class MDRNN(_MDRNNBase):
    """M over sequences, time-first: p(z[t+1], rew[t], term[t] | z[:t+1], act[:t+1])."""

    rnn: nn.LSTM

    def forward(self, actions: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map actions (T, B, A) and latents (T, B, Z) to mus, sigmas (T, B, K, Z), logpi (T, B, K), rs and ds (T,
        B); ds is a logit."""
        outs, _ = self.rnn(torch.cat([actions, latents], dim=-1))
        return self.split(self.gmm_linear(outs).float())  # bfloat16 is not precise enough for a mixture.

    def advance(self, z: Tensor, act: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the LSTM with (z, act); updates (h, c), each (B, H)."""
        rnn = self.rnn
        bias = cast(Tensor, rnn.bias_ih_l0) + cast(Tensor, rnn.bias_hh_l0)
        # Two products are faster than one with joined weights, whose inner width would be odd.
        gates = F.linear(torch.cat([act, z], dim=1), cast(Tensor, rnn.weight_ih_l0), bias)  # bfloat16 under autocast.
        gates.addmm_(h.to(gates.dtype), cast(Tensor, rnn.weight_hh_l0).t().to(gates.dtype))
        i, f, g, o = gates.to(c.dtype).chunk(4, dim=1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        c = torch.addcmul(_times_tanh(i, g), f, c)
        return _times_tanh(o, c), c


class MDRNNCell(_MDRNNBase):
    """M for single steps; `load_mdrnn` copies the weights of a trained sequence model."""

    Recurrent = nn.LSTMCell
    rnn: nn.LSTMCell

    def forward(
        self, action: Tensor, latent: Tensor, hidden: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Map actions (B, A), latents (B, Z) and (h, c) to mus, sigmas (B, K, Z), logpi (B, K), r, d (B,) and the
        next (h, c)."""
        h, c = self.rnn(torch.cat([action, latent], dim=1), hidden)
        return (*self.split(self.gmm_linear(h)), (h, c))

    def get_init_hidden(self, num: int) -> tuple[Tensor, Tensor]:
        """The initial memory (h, c), each (num, H)."""
        zeros = torch.zeros(num, self.hiddens, device=self.gmm_linear.weight.device)
        return zeros, zeros.clone()

    def load_mdrnn(self, mdrnn: MDRNN) -> None:
        """Copy the weights of `mdrnn`."""
        self.gmm_linear.load_state_dict(mdrnn.gmm_linear.state_dict())
        self.rnn.load_state_dict({key.removesuffix("_l0"): w for key, w in mdrnn.rnn.state_dict().items()})


def _times_tanh(a: Tensor, x: Tensor) -> Tensor:
    """a * tanh(x) as a - 2 a sigmoid(-2 x), because tanh is three times slower than the sigmoid on CPUs without
    AVX-512."""
    return torch.addcmul(a, a, torch.sigmoid(-2 * x), value=-2)


def gmm_loss(batch: Tensor, mus: Tensor, sigmas: Tensor, logpi: Tensor, reduce: bool = True) -> Tensor:
    """Negative log-likelihood of `batch` (..., Z) under a mixture with mus and sigmas (..., K, Z).

    logpi (..., K) is one mixture over all dimensions of z; logpi (..., K, Z) is one mixture per dimension. Without
    `reduce` the result is (...).
    """
    unit = (batch.unsqueeze(-2) - mus) / sigmas
    log_prob = -0.5 * unit.square() - sigmas.log() - 0.9189385332046727  # log sqrt(2 pi)
    if logpi.ndim == mus.ndim:
        nll = -torch.logsumexp(logpi + log_prob, dim=-2).sum(-1)
    else:
        nll = -torch.logsumexp(logpi + log_prob.sum(-1), dim=-1)
    return nll.mean() if reduce else nll
