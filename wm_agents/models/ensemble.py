"""A probabilistic ensemble for vector observations, after PETS (Chua et al. 2018) and MBPO (Janner et al. 2019).

From (obs, act), each member predicts the probability of termination, the reward of a terminal step, and the change of
the observation as a Gaussian. The reward of any other step is predicted from the sampled change. Termination is
predicted first, because the change of a terminal step, such as a crash, is unlike all others and not covered by the
Gaussian.

Each row of a dream follows one member, sampled at every step (TS1 of PETS), so a step evaluates only one member. The
disagreement of the members measures their uncertainty. It evaluates all members and is computed only on request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.errors import strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.ensemble_row import EnsembleRow
from wm_agents.models.loss import LossOutput
from wm_agents.models.mdrnn_kernels import is_dream
from wm_agents.models.model import Model
from wm_envs.fields import above, at_least
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch


@strict(ELSEWHERE)
@dataclass(frozen=True)
class EnsembleConfig(WorldModelConfig):
    """Sizes and loss weights of an ensemble."""

    family: ClassVar[str] = "ensemble"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ci": {"members": 2, "hidden": 32}, "default": {}}

    members: int = field(default=5, metadata=at_least(1))
    """Number of networks that are trained independently; they disagree where data are missing."""
    hidden: int = field(default=256, metadata=at_least(1))
    """Units of each hidden layer."""
    layers: int = field(default=2, metadata=at_least(1))
    """Hidden layers of each of the two networks of a member."""
    term_weight: float = field(default=5.0, metadata=above(0))
    """Weight of the rare terminal steps in the loss. Dreams correct the predicted probability for it."""


class Moves(NamedTuple):
    """Training steps obs, act -> rew, next_obs; separate ones for each member, or the same for all (M = 1)."""

    obs: Tensor
    """(M, B, D)"""
    act: Tensor
    """(M, B, A), encoded"""
    rew: Tensor
    """(M, B)"""
    term: Tensor
    """(M, B), 1 if the step terminated the episode"""
    next_obs: Tensor


class Ensemble(Model):
    """The world model: latent {obs (B, D)} in the units of the observation; feat is the normalised observation."""

    family: ClassVar[str] = "ensemble"
    cfg: EnsembleConfig
    threaded_from: ClassVar[int] = 4096  # A step is made of a hundred short operations.

    def __init__(self, cfg: EnsembleConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
            raise ValueError(f"an ensemble needs a Box of vectors, got {obs_space}; use the family 'vmc' for pixels")
        self.feat_dim = dim = obs_space.shape[0]
        # Separate networks, because the likelihood of precise changes has large gradients, which would dominate.
        self.change = EnsembleMLP(cfg, dim + self.actions, 2 * dim)
        self.reward = EnsembleMLP(cfg, 2 * dim + self.actions, 1)
        self.end = EnsembleMLP(cfg, dim + self.actions, 2)
        self.scale = _Scale(dim)
        self.dtype = torch.from_numpy(obs_space.low).dtype
        self.low: Tensor
        self.high: Tensor
        for name in ("low", "high"):
            self.register_buffer(name, torch.from_numpy(getattr(obs_space, name).copy()).float(), persistent=False)

    def initial(self, num: int) -> Latent:
        return {"obs": torch.zeros(num, self.feat_dim, device=self.device)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """The latent of an observation, which does not depend on earlier ones."""
        return {"obs": self.take_obs(obs).float()}

    @property
    def members(self) -> int:
        return self.cfg.members

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step.

        The temperature multiplies the variance. Change, termination and reward of a row are those of one member, which
        is sampled for this step. At temperature 0 they are the mean of all members.
        """
        obs = latent["obs"]
        num = len(obs)
        self.check_act(act, num)
        if temperature == 0:
            return self._step_mean(obs, act)
        noise = draw_normal(num, self.feat_dim + 2, generator, obs.device)
        if num == 1 and is_dream(obs):
            return EnsembleRow.of(self).step(obs, act, noise, temperature)
        uniform = torch.special.ndtr(noise[:, -2:])  # The CDF of a normal sample is uniform.
        member = (uniform[:, 0] * self.members).long().clamp(max=self.members - 1)
        order = member.argsort()
        rows = _Rows(*(x[order] for x in (obs, act, noise[:, :-2] * temperature**0.5, uniform[:, 1])))
        out = self._step_members(rows, member.bincount(minlength=self.members).tolist())
        back = order.argsort()
        return Step({"obs": out.latent["obs"][back]}, out.rew[back], out.cont[back], cast(Tensor, out.end)[back])

    def _step_mean(self, obs: Tensor, act: Tensor) -> Step:
        scale, x = self.scale, self._input(obs, act)
        ahead = self.predict(x)
        next_obs = scale.plausible(obs + ahead.mean.mean(0) * scale.change_std)
        rew = self.predict_reward(x, (next_obs - obs) / scale.change_std).mean(0)
        chance = self._chance(ahead.end).mean(0)
        return self._outcome(next_obs, rew, ahead.end_rew.mean(0), chance, chance > 0.5)

    def _step_members(self, rows: _Rows, counts: list[int]) -> Step:
        """Predictions for rows of which the first `counts[0]` follow the first member, and so on."""
        scale, x = self.scale, self._input(rows.obs, rows.act)
        mean, logvar = self.change.follow(x, counts).chunk(2, dim=1)
        change = mean + torch.exp(0.5 * _bounded(logvar)) * rows.noise
        next_obs = scale.plausible(rows.obs + change * scale.change_std)
        # The reward depends on the change after clipping and rounding.
        rew = self.reward.follow(torch.cat([x, (next_obs - rows.obs) / scale.change_std], dim=1), counts).squeeze(1)
        end, end_rew = self.end.follow(x, counts).unbind(1)
        chance = self._chance(end)
        return self._outcome(next_obs, rew, end_rew, chance, chance > rows.uniform)

    def _outcome(self, next_obs: Tensor, rew: Tensor, end_rew: Tensor, chance: Tensor, end: Tensor) -> Step:
        earned = torch.where(end, end_rew * self.scale.end_rew, rew * self.scale.rew)
        return Step({"obs": next_obs}, earned, 1 - chance, end)

    def disagreement(self, latent: Latent, act: Tensor, ahead: Latent) -> Tensor:
        """The disagreement (B,) of the members about the step to `ahead`.

        Each member predicts the mean change of each dimension, in units of `Scale.change_std`, and the reward, in units
        of `Scale.rew`. The disagreement is the root mean square of the standard deviations of these over members.
        """
        obs, x = latent["obs"], self._input(latent["obs"], act)
        mean, _ = self.change(x).float().chunk(2, dim=-1)
        rew = self.predict_reward(x, (ahead["obs"] - obs) / self.scale.change_std)
        return torch.cat([mean, rew[..., None]], dim=-1).var(0, correction=0).mean(1).sqrt()

    def _input(self, obs: Tensor, act: Tensor) -> Tensor:
        return torch.cat([self.scale.normal(obs), act], dim=1)

    def _chance(self, end: Tensor) -> Tensor:
        """The probability of termination, corrected for the weight of terminal steps in the loss."""
        return torch.sigmoid(end - math.log(self.cfg.term_weight))

    def decode(self, latent: Latent) -> Tensor:
        obs = torch.clamp(latent["obs"], self.low, self.high)
        if self.dtype.is_floating_point:
            return obs.to(self.dtype)
        return obs.round().to(self.dtype)

    def feat(self, latent: Latent) -> Tensor:
        return (latent["obs"] - self.scale.feat_mean) / self.scale.feat_std

    def predict(self, x: Tensor) -> _Future:
        """Return the predictions of each member for normalised obs and act, of shape (B, D + A) or (M, B, D + A)."""
        mean, logvar = self.change(x).float().chunk(2, dim=-1)
        return _Future(mean, _bounded(logvar), *self.end(x).float().unbind(-1))

    def predict_reward(self, x: Tensor, change: Tensor) -> Tensor:
        """The reward (M, B) that each member predicts for a step without termination, in units of `scale.rew`."""
        return cast(Tensor, self.reward(torch.cat([x, change], dim=-1)).float().squeeze(-1))

    def loss(self, batch: Batch) -> LossOutput:
        """`moves_loss` of all steps of the windows.

        In training mode each member draws a bootstrap sample of the steps, and the first batch sets the units, unless
        they are set already.
        """
        mine = ~batch.first[:, 1:]
        obs, next_obs = (x[mine].float() for x in (batch.obs[:, :-1], batch.obs[:, 1:]))
        moves = Moves(obs, batch.act[mine], batch.rew[mine], batch.term[mine].float(), next_obs)
        if not self.training:
            return self.moves_loss(Moves(*(x[None] for x in moves)))
        self.scale.settle(moves)
        pick = torch.randint(len(obs), (self.cfg.members, len(obs)), device=obs.device)
        return self.moves_loss(Moves(*(x[pick] for x in moves)))

    def moves_loss(self, moves: Moves) -> LossOutput:
        """The sum of the losses: negative log-likelihood of change and reward for steps without termination,
        cross-entropy of termination, and the reward of terminal steps.

        The reported losses are the plain ones, by which the best weights are chosen. The gradient is that of weighted
        versions: of the change, which is more stable (Seitzer et al. 2022), and of termination, which is rare.
        """
        scale, term, on = self.scale, moves.term, 1 - moves.term
        x = torch.cat([scale.normal(moves.obs), moves.act], dim=-1)
        change = (moves.next_obs - moves.obs) / scale.change_std
        ahead, rew = self.predict(x), self.predict_reward(x, change)
        nll = 0.5 * ((change - ahead.mean).square() * (-ahead.logvar).exp() + ahead.logvar)
        steadied = nll * (0.5 * ahead.logvar).exp().detach()  # Seitzer et al. 2022, beta = 0.5.
        ends = F.binary_cross_entropy_with_logits(ahead.end, term.expand_as(ahead.end), reduction="none")
        weight = 1 + (self.cfg.term_weight - 1) * term
        parts = {
            "change": _mean(nll.mean(-1), on),
            "rew": _mean((rew - moves.rew / scale.rew).square(), on),
            "end_rew": _mean((ahead.end_rew - moves.rew / scale.end_rew).square(), term),
            "term": ends.mean(),
        }
        loss = _mean(steadied.mean(-1), on) + parts["rew"] + parts["end_rew"] + (ends * weight).mean()
        return LossOutput(loss, parts, {})


class _Future(NamedTuple):
    """Predictions of the members."""

    mean: Tensor
    """(M, B, D), the change without termination, in units of `Scale.change_std`"""
    logvar: Tensor
    end: Tensor
    """(M, B), a logit"""
    end_rew: Tensor
    """(M, B), the reward of a terminal step, in units of `Scale.end_rew`"""


class _Rows(NamedTuple):
    """Predictions for rows that each follow one member."""

    obs: Tensor
    """(B, D)"""
    act: Tensor
    """(B, A), encoded"""
    noise: Tensor
    """(B, D) normal noise, scaled by the temperature"""
    uniform: Tensor
    """(B,) uniform noise: the row terminates if its probability is above this"""


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean over the rows with `where` = 1 of each member, averaged over the members."""
    return ((values * where).sum(-1) / where.sum(-1).clamp(min=1)).mean()


def _bounded(logvar: Tensor) -> Tensor:
    return -10 + 12 * torch.sigmoid(logvar)


class _Scale(nn.Module):
    """The units in which the model is trained, and the range of plausible observations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        one, zero = torch.ones(dim), torch.zeros(dim)
        self.feat_mean, self.feat_std, self.obs_mean, self.obs_std, self.change_std = zero, one, zero, one, one
        self.seen_low, self.seen_high, self.two_valued = zero - torch.inf, zero + torch.inf, zero
        self.rew, self.end_rew = torch.ones(()), torch.ones(())
        for name in list(vars(self)):
            if isinstance(value := getattr(self, name), Tensor):
                delattr(self, name)
                self.register_buffer(name, value.clone())

    def normal(self, obs: Tensor) -> Tensor:
        return (obs - self.obs_mean) / self.obs_std

    def plausible(self, obs: Tensor) -> Tensor:
        """Clip observations to a plausible range.

        The range extends beyond the data on both sides by the width of the data. A narrower range would stop a drift: a
        cart that never left the track in the data must be able to leave it in dreams. Dimensions with two values take
        the nearer value.
        """
        margin = self.seen_high - self.seen_low
        inside = obs.clamp(self.seen_low - margin, self.seen_high + margin)
        high = obs > (self.seen_low + self.seen_high) / 2
        return torch.where(self.two_valued > 0, torch.where(high, self.seen_high, self.seen_low), inside)

    def settle(self, moves: Moves) -> None:
        """Set the units from the first steps (N, ...), if they are not set, and extend the range by later ones."""
        obs, next_obs, low, high = moves.obs, moves.next_obs, self.seen_low.clone(), self.seen_high.clone()
        if low.isinf().all():
            self.fit(obs, next_obs, moves.rew, moves.term, first=True)
            return
        both = torch.cat([obs, next_obs, low[None], high[None]])
        two_valued = (self.two_valued > 0) | (low == high)
        self.see(both)
        self.two_valued.mul_(two_valued)

    def see(self, obs: Tensor) -> None:
        """Extend the range by `obs` (N, D), and find the dimensions that have only two values."""
        self.seen_low.copy_(obs.min(0).values)
        self.seen_high.copy_(obs.max(0).values)
        at_bounds = (obs == self.seen_low) | (obs == self.seen_high)
        self.two_valued.copy_((at_bounds.all(0) & (self.seen_low < self.seen_high)).float())

    def fit(self, obs: Tensor, next_obs: Tensor, rew: Tensor, term: Tensor, first: bool) -> None:
        """Set all units from steps (N, ...). Those of feat, on which controllers depend, come from the `first` data
        only."""
        self.obs_mean.copy_(obs.mean(0))
        self.obs_std.copy_(_spread(obs))
        self.change_std.copy_(_spread(next_obs - obs))
        self.see(torch.cat([obs, next_obs]))
        on, ends = rew[term == 0], rew[term > 0]
        self.rew.fill_(_size(on))
        self.end_rew.fill_(_size(ends))
        if first:
            self.feat_mean.copy_(self.obs_mean)
            self.feat_std.copy_(self.obs_std)


def _spread(x: Tensor) -> Tensor:
    std = x.std(0)
    return torch.where(std > 1e-6, std, torch.ones_like(std))


def _size(rew: Tensor) -> float:
    """The root mean square; not the standard deviation, which is 0 if every reward is 1."""
    size = 0.0
    if len(rew):
        size = float(rew.double().square().mean().sqrt())
    return size if size > 0 else 1.0


Layer = tuple[Tensor, Tensor]
"""Weight (I, O) and bias (1, O)."""


class EnsembleMLP(nn.Module):
    """`members` independent networks as batched products: (B, I), (1, B, I) or (M, B, I) to (M, B, O)."""

    def __init__(self, cfg: EnsembleConfig, in_dim: int, out_dim: int) -> None:
        super().__init__()
        dims = [in_dim, *[cfg.hidden] * cfg.layers, out_dim]
        pairs = list(pairwise(dims))
        self.weights = nn.ParameterList(nn.Parameter(_uniform(cfg.members, i, o, fan_in=i)) for i, o in pairs)
        self.biases = nn.ParameterList(nn.Parameter(_uniform(cfg.members, 1, o, fan_in=i)) for i, o in pairs)
        self._views: list[list[Layer]] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x.expand(len(self.weights[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = torch.baddbmm(bias, F.silu(out) if i else out, weight)
        return out

    def follow(self, x: Tensor, counts: list[int]) -> Tensor:
        """Map rows (B, I) to (B, O), the first `counts[0]` with the first member, and so on."""
        outs = []
        for layers, part in zip(self.layers(), x.split(counts), strict=True):
            if len(part):
                for i, (weight, bias) in enumerate(layers):
                    part = torch.addmm(bias, F.silu(part, inplace=True) if i else part, weight)
                outs.append(part)
        return torch.cat(outs).float()

    def layers(self) -> list[list[Layer]]:
        """The layers of each member.

        Without gradients they are cached views of the weights, in which updates in place stay visible. The cache is
        rebuilt when the weights are at another address. Building the views takes as long as a forward pass of one row.
        """
        if torch.is_grad_enabled():
            return _by_member(self.weights, self.biases)
        if not self._views or self._views[0][0][0].data_ptr() != self.weights[0].data_ptr():
            self._views = _by_member(*([p.detach() for p in params] for params in (self.weights, self.biases)))
        return self._views

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": []}  # A copy has other weights.


def _by_member(weights: Iterable[Tensor], biases: Iterable[Tensor]) -> list[list[Layer]]:
    by_layer = (zip(weight.unbind(), bias.unbind()) for weight, bias in zip(weights, biases))
    return [list(layers) for layers in zip(*by_layer)]


def _uniform(members: int, rows: int, cols: int, fan_in: int) -> Tensor:
    """Initialise as nn.Linear does."""
    return (2 * torch.rand(members, rows, cols) - 1) / math.sqrt(fan_in)
