"""A probabilistic ensemble for vector observations, after PETS (Chua et al. 2018) and MBPO (Janner et al. 2019).

Each member predicts from (obs, act) whether the episode ends, what is earned then, and otherwise, as a Gaussian, how
the observation changes; what that change earns is read off the move itself. Ends come first because a crash shows in
what it does to the velocity, which no Gaussian around the usual change would ever draw. Each row of a dream follows one
member, drawn anew at every step (TS1 of PETS), so that a step costs one member and not all of them. How far the members
are apart is the uncertainty that pessimistic dreams act on; it needs all members and is computed only on request.
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
from wm_agents.models.cpu_kernels import is_dream
from wm_agents.models.ensemble_row import EnsembleRow
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_envs.fields import above, at_least
from wm_envs.world_model import Generator, Latent, Step, draw_normal

if TYPE_CHECKING:
    from wm_agents.data.replay import Batch


@strict(ELSEWHERE)
@dataclass(frozen=True)
class EnsembleConfig(WorldModelConfig):
    """Sizes and loss weights of an ensemble."""

    family: ClassVar[str] = "ensemble"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ci": {"members": 2, "hidden": 32}, "default": {}}

    members: int = field(default=5, metadata=at_least(1))
    hidden: int = field(default=256, metadata=at_least(1))
    layers: int = field(default=2, metadata=at_least(1))
    """Hidden layers of each of the two networks of a member."""
    term_weight: float = field(default=5.0, metadata=above(0))
    """Weight of the rare terminal steps in the cross-entropy; it is taken out of the odds again when dreaming."""


class Moves(NamedTuple):
    """Steps, each member's own or (M = 1) the same for all: obs, act -> rew, next_obs."""

    obs: Tensor
    """(M, B, D)"""
    act: Tensor
    """(M, B, A), encoded"""
    rew: Tensor
    """(M, B)"""
    term: Tensor
    """(M, B), 1 where the step ended the episode"""
    next_obs: Tensor


class Ensemble(Model):
    """The world model: latent {obs (B, D)} in the observation's own units, feat the same in units of its spread."""

    family: ClassVar[str] = "ensemble"
    cfg: EnsembleConfig
    threaded_from: ClassVar[int] = 4096  # A step is made of a hundred short operations.

    def __init__(self, cfg: EnsembleConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
            raise ValueError(f"an ensemble needs a Box of vectors, got {obs_space}; use the family 'vmc' for pixels")
        self.feat_dim = dim = obs_space.shape[0]
        # Networks of their own: the likelihood of a sure change has gradients that would drown the rare end's.
        self.change = EnsembleMLP(cfg, dim + self.actions, 2 * dim)
        self.reward = EnsembleMLP(cfg, 2 * dim + self.actions, 1)
        self.end = EnsembleMLP(cfg, dim + self.actions, 2)
        self.scale = Scale(dim)
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
        """Take in an observation: it says all there is to say, whatever came before."""
        return {"obs": self.take_obs(obs).float()}

    @property
    def members(self) -> int:
        return self.cfg.members

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step; tau multiplies the variance, and at 0 the mean of all members is followed.

        Otherwise change, end and reward of a row are those of one member, which is drawn for this step alone.
        """
        obs = latent["obs"]
        num = len(obs)
        self.check_act(act, num)
        if temperature == 0:
            return self._step_mean(obs, act)
        noise = draw_normal(num, self.feat_dim + 2, generator, obs.device)
        if num == 1 and is_dream(obs):
            return EnsembleRow.of(self).step(obs, act, noise, temperature)
        uniform = torch.special.ndtr(noise[:, -2:])  # A normal's own quantile is uniform.
        member = (uniform[:, 0] * self.members).long().clamp(max=self.members - 1)
        order = member.argsort()
        rows = Rows(*(x[order] for x in (obs, act, noise[:, :-2] * temperature**0.5, uniform[:, 1])))
        out = self._step_members(rows, member.bincount(minlength=self.members).tolist())
        back = order.argsort()
        return Step({"obs": out.latent["obs"][back]}, out.rew[back], out.cont[back], cast(Tensor, out.end)[back])

    def _step_mean(self, obs: Tensor, act: Tensor) -> Step:
        scale, x = self.scale, self._input(obs, act)
        ahead = self.foresee(x)
        next_obs = scale.plausible(obs + ahead.mean.mean(0) * scale.change_std)
        rew = self.earn(x, (next_obs - obs) / scale.change_std).mean(0)
        chance = self._chance(ahead.end).mean(0)
        return self._outcome(next_obs, rew, ahead.end_rew.mean(0), chance, chance > 0.5)

    def _step_members(self, rows: Rows, counts: list[int]) -> Step:
        """The first `counts[0]` rows follow the first member, and so on."""
        scale, x = self.scale, self._input(rows.obs, rows.act)
        mean, logvar = self.change.follow(x, counts).chunk(2, dim=1)
        change = mean + torch.exp(0.5 * _bounded(logvar)) * rows.noise
        next_obs = scale.plausible(rows.obs + change * scale.change_std)
        # The reward is read off the very move that is dreamed, snapped and bounded as it is.
        rew = self.reward.follow(torch.cat([x, (next_obs - rows.obs) / scale.change_std], dim=1), counts).squeeze(1)
        end, end_rew = self.end.follow(x, counts).unbind(1)
        chance = self._chance(end)
        return self._outcome(next_obs, rew, end_rew, chance, chance > rows.uniform)

    def _outcome(self, next_obs: Tensor, rew: Tensor, end_rew: Tensor, chance: Tensor, end: Tensor) -> Step:
        earned = torch.where(end, end_rew * self.scale.end_rew, rew * self.scale.rew)
        return Step({"obs": next_obs}, earned, 1 - chance, end)

    def disagreement(self, latent: Latent, act: Tensor, ahead: Latent) -> Tensor:
        """How far the members are apart about the step to `ahead`, (B,).

        It is the root mean square of their standard deviations: of the mean change in each dimension, in units of
        `Scale.change_std`, and of the reward of the move to `ahead`, in units of `Scale.rew`.
        """
        obs, x = latent["obs"], self._input(latent["obs"], act)
        mean, _ = self.change(x).float().chunk(2, dim=-1)
        rew = self.earn(x, (ahead["obs"] - obs) / self.scale.change_std)
        return torch.cat([mean, rew[..., None]], dim=-1).var(0, correction=0).mean(1).sqrt()

    def _input(self, obs: Tensor, act: Tensor) -> Tensor:
        return torch.cat([self.scale.normal(obs), act], dim=1)

    def _chance(self, end: Tensor) -> Tensor:
        """The probability of an end; the weight of ends in the loss is taken out of the odds."""
        return torch.sigmoid(end - math.log(self.cfg.term_weight))

    def decode(self, latent: Latent) -> Tensor:
        obs = torch.clamp(latent["obs"], self.low, self.high)
        return obs.to(self.dtype) if self.dtype.is_floating_point else obs.round().to(self.dtype)

    def feat(self, latent: Latent) -> Tensor:
        return (latent["obs"] - self.scale.feat_mean) / self.scale.feat_std

    def foresee(self, x: Tensor) -> Future:
        """Normalised (obs, act), (B, D + A) or (M, B, D + A), to what each member expects."""
        mean, logvar = self.change(x).float().chunk(2, dim=-1)
        return Future(mean, _bounded(logvar), *self.end(x).float().unbind(-1))

    def earn(self, x: Tensor, change: Tensor) -> Tensor:
        """What each member pays for a move that goes on, (M, B), in units of `scale.rew`."""
        return cast(Tensor, self.reward(torch.cat([x, change], dim=-1)).float().squeeze(-1))

    def loss(self, batch: Batch) -> LossOutput:
        """`moves_loss` of every step in the windows.

        In training mode each member draws its own from them, as from a bootstrap, and the first batch sets the units
        where no fit has.
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
        """Likelihood of change and reward where the episode went on, the end's cross-entropy and its reward, summed.

        What is told of the change is its plain negative log-likelihood; the one that is trained on is steadied.
        """
        scale, term, on = self.scale, moves.term, 1 - moves.term
        x = torch.cat([scale.normal(moves.obs), moves.act], dim=-1)
        change = (moves.next_obs - moves.obs) / scale.change_std
        ahead, rew = self.foresee(x), self.earn(x, change)
        nll = 0.5 * ((change - ahead.mean).square() * (-ahead.logvar).exp() + ahead.logvar)
        steadied = nll * (0.5 * ahead.logvar).exp().detach()  # Seitzer et al. 2022, beta = 0.5.
        weight = 1 + (self.cfg.term_weight - 1) * term
        bce = F.binary_cross_entropy_with_logits(ahead.end, term.expand_as(ahead.end), reduction="none") * weight
        parts = {
            "change": _mean(nll.mean(-1), on),
            "rew": _mean((rew - moves.rew / scale.rew).square(), on),
            "end_rew": _mean((ahead.end_rew - moves.rew / scale.end_rew).square(), term),
            "term": bce.mean(),
        }
        loss = _mean(steadied.mean(-1), on) + parts["rew"] + parts["end_rew"] + parts["term"]
        return LossOutput(loss, parts, {})


class Future(NamedTuple):
    """What the members expect of (obs, act)."""

    mean: Tensor
    """(M, B, D) of the change if the episode goes on, in units of `Scale.change_std`"""
    logvar: Tensor
    end: Tensor
    """(M, B), a logit"""
    end_rew: Tensor
    """(M, B) the reward if it ends, in units of `Scale.end_rew`"""


class Rows(NamedTuple):
    """Rows that each follow one member."""

    obs: Tensor
    """(B, D)"""
    act: Tensor
    """(B, A), encoded"""
    noise: Tensor
    """(B, D) normal, of the variance that the temperature asks for"""
    uniform: Tensor
    """(B,) it ends where the probability is above this"""


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the members of their means over the rows `where` is 1."""
    return ((values * where).sum(-1) / where.sum(-1).clamp(min=1)).mean()


def _bounded(logvar: Tensor) -> Tensor:
    return -10 + 12 * torch.sigmoid(logvar)


class Scale(nn.Module):
    """Units that data are learned in, and what is plausible at all."""

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
        """No further out than what was seen is wide; a dimension that only has two values takes the nearer one.

        Narrower walls would hold up what drifts: a cart that never ran off the track in its data must do so in dreams.
        """
        margin = self.seen_high - self.seen_low
        inside = obs.clamp(self.seen_low - margin, self.seen_high + margin)
        high = obs > (self.seen_low + self.seen_high) / 2
        return torch.where(self.two_valued > 0, torch.where(high, self.seen_high, self.seen_low), inside)

    def settle(self, moves: Moves) -> None:
        """Set the units from the first steps (N, ...), if they are not set; take in how far later ones go."""
        obs, next_obs, low, high = moves.obs, moves.next_obs, self.seen_low.clone(), self.seen_high.clone()
        if low.isinf().all():
            self.fit(obs, next_obs, moves.rew, moves.term, first=True)
            return
        both = torch.cat([obs, next_obs, low[None], high[None]])
        two_valued = (self.two_valued > 0) | (low == high)
        self.see(both)
        self.two_valued.mul_(two_valued)

    def see(self, obs: Tensor) -> None:
        """Set how far `obs` (N, D) go, and which of their dimensions have two values."""
        self.seen_low.copy_(obs.min(0).values)
        self.seen_high.copy_(obs.max(0).values)
        at_bounds = (obs == self.seen_low) | (obs == self.seen_high)
        self.two_valued.copy_((at_bounds.all(0) & (self.seen_low < self.seen_high)).float())

    def fit(self, obs: Tensor, next_obs: Tensor, rew: Tensor, term: Tensor, first: bool) -> None:
        """Set all units from steps (N, ...); those of feat, which controllers rely on, from the `first` data alone."""
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
    """Root mean square: a reward of 1 at every step has no spread."""
    size = float(rew.double().square().mean().sqrt()) if len(rew) else 0.0
    return size if size > 0 else 1.0


Layer = tuple[Tensor, Tensor]
"""Weight (I, O) and bias (1, O)."""


class EnsembleMLP(nn.Module):
    """`members` networks of their own weights in one batched product: (B, I), (1, B, I) or (M, B, I) to (M, B, O)."""

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
        """Rows (B, I), the first `counts[0]` by the first member alone and so on, to (B, O)."""
        outs = []
        for layers, part in zip(self.layers(), x.split(counts), strict=True):
            if len(part):
                for i, (weight, bias) in enumerate(layers):
                    part = torch.addmm(bias, F.silu(part, inplace=True) if i else part, weight)
                outs.append(part)
        return torch.cat(outs).float()

    def layers(self) -> list[list[Layer]]:
        """The layers of each member.

        Without gradients they are views of the weights, which training changes in place, and are kept for as long as
        the weights stay where they are: making them anew would take as long as the products of a single row.
        """
        if torch.is_grad_enabled():
            return _by_member(self.weights, self.biases)
        if not self._views or self._views[0][0][0].data_ptr() != self.weights[0].data_ptr():
            self._views = _by_member(*([p.detach() for p in params] for params in (self.weights, self.biases)))
        return self._views

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": []}  # A copy has weights of its own.


def _by_member(weights: Iterable[Tensor], biases: Iterable[Tensor]) -> list[list[Layer]]:
    by_layer = (zip(weight.unbind(), bias.unbind()) for weight, bias in zip(weights, biases))
    return [list(layers) for layers in zip(*by_layer)]


def _uniform(members: int, rows: int, cols: int, fan_in: int) -> Tensor:
    """As nn.Linear begins."""
    return (2 * torch.rand(members, rows, cols) - 1) / math.sqrt(fan_in)
