"""Planning by sampling in any world model: MPPI (Williams et al. 2015) as in TD-MPC2 (Hansen et al. 2024).

Each iteration samples plans from a distribution, evaluates them in the dream, and refits the distribution to
the best plans, weighted by their values. Box actions use a normal distribution per step and dimension,
discrete actions a categorical per step. If the number of possible discrete plans is small, all of them are
evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from policies.dists import draw_one_hot
from wm_envs.action import act_dim, decode_action
from wm_envs.fields import above, at_least, check_fields, fail, share
from wm_envs.world_model import Latent, WorldModel

Array = NDArray[Any]
Random = torch.Generator | None


@dataclass(frozen=True)
class MPPIConfig:
    """Settings of sampling and weighting; the defaults are those of TD-MPC2."""

    horizon: int = field(default=3, metadata=at_least(1))
    """Steps of a plan."""
    iterations: int = field(default=6, metadata=at_least(0))
    """Iterations of sampling; 0 uses only the prior."""
    num_samples: int = field(default=512, metadata=at_least(1))
    """Plans per iteration, including those of the prior."""
    num_elites: int = field(default=64, metadata=at_least(1))
    """Number of best plans to which the distribution is fitted."""
    num_prior_plans: int = field(default=24, metadata=at_least(0))
    temperature: float = field(default=0.5, metadata=at_least(0))
    """The weight of an elite is exp(temperature * (value - best value))."""
    min_std: float = field(default=0.05, metadata=above(0))
    max_std: float = 2.0
    """Initial and maximum standard deviation of Box actions."""
    smoothing: float = field(default=0.1, metadata=share())
    """Share of the uniform distribution in that of discrete actions; the counterpart of `min_std`."""
    discount: float = field(default=0.99, metadata=share())
    cut_off: float = field(default=0.5, metadata=share())
    """A dream terminates when `cont` falls below this, unless the model samples termination itself."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_prior_plans", "num_elites"):
            if getattr(self, name) > self.num_samples:
                fail(self, name, f"at most num_samples ({self.num_samples})")
        if self.min_std > self.max_std:
            fail(self, "min_std", f"at most max_std ({self.max_std})")


class _Prior(Protocol):
    """A policy that proposes plans."""

    def __call__(self, latent: Latent, *, greedy: bool = False, generator: Random = None) -> Tensor:
        """Encoded actions (B, A): sampled, or the mode if `greedy`."""


class _Value(Protocol):
    """The value of the last latent of a plan."""

    def __call__(self, latent: Latent, *, generator: Random = None) -> Tensor:
        """(B,) discounted return."""


class _Plan(NamedTuple):
    """The chosen action, and the mean for the start of the next plan."""

    act: Tensor
    """(N, A) encoded"""
    guess: Tensor
    """(N, H, A) means of Box actions, probabilities of discrete actions"""


class _Guess(NamedTuple):
    """The distribution from which plans are sampled."""

    mean: Tensor
    """(N, H, A) means of Box actions, probabilities of discrete actions"""
    std: Tensor
    """(N, H, A) standard deviations of Box actions; unused for discrete actions"""


class MPPI:
    """Plans in the most likely future of `model`, in float32.

    Args:
        model: the world model.
        prior: proposes `num_prior_plans` of the plans.
        value: the value of the last latent of a plan; default: 0.

    Raises:
        ValueError: the action space is neither Box nor Discrete, or `iterations` is 0 without a prior.
    """

    def __init__(
        self,
        model: WorldModel,
        cfg: MPPIConfig | None = None,
        prior: _Prior | None = None,
        value: _Value | None = None,
    ) -> None:
        if not isinstance(model.act_space, spaces.Box | spaces.Discrete):
            raise ValueError(f"MPPI plans for Box and Discrete actions, got {model.act_space}")
        self.model, self.prior, self.value = model, prior, value
        self.cfg = cfg = cfg or MPPIConfig()
        if cfg.iterations == 0 and prior is None:
            raise ValueError("iterations=0 uses only the prior, but no prior was given; use at least 1 iteration")
        self.actions = act_dim(model.act_space)
        self.choices = isinstance(model.act_space, spaces.Discrete)
        self.num_prior_plans = 0 if prior is None else cfg.num_prior_plans
        # Two actions over 3 steps give only 8 plans.
        self.tries_all = self.choices and self.actions**cfg.horizon <= cfg.num_samples

    @torch.no_grad()
    def plan(
        self,
        latent: Latent,
        last: Tensor | None = None,
        first: Tensor | None = None,
        *,
        explore: bool = False,
        generator: Random = None,
    ) -> _Plan:
        """Choose actions in N rows at once.

        Args:
            latent: the current latent of each row, leaves (N, ...).
            last: the `guess` of the previous plan; shifted by one step, it starts this one.
            first: (N,) bool, rows that ignore `last` because an episode starts.
            explore: add exploration noise.
        """
        # Rounding to bfloat16 would move the values of plans by more than they differ from each other.
        with torch.autocast(self.model.device.type, enabled=False):
            guess = self._begin(_rows(latent), last, first)
            if self.cfg.iterations == 0:
                assert self.prior is not None
                return _Plan(self.prior(latent, greedy=not explore, generator=generator), guess.mean)
            return self._search(latent, guess, explore, generator)

    def returns(self, latent: Latent, acts: Tensor, generator: Random = None) -> Tensor:
        """Discounted returns (N, S) of plans (N, S, H, A) from `latent`, up to termination, with the final
        value."""
        N, S = acts.shape[:2]
        latent = {key: leaf.repeat_interleave(S, 0) for key, leaf in latent.items()}
        total = torch.zeros(N * S, device=acts.device)
        weight = torch.ones_like(total)
        for act in acts.flatten(0, 1).unbind(1):  # (N * S, A)
            out = self.model.step(latent, act, temperature=0.0)
            total = total + weight * out.rew
            weight = self.cfg.discount * weight * ~out.over(self.cfg.cut_off)
            latent = out.latent
        if self.value is not None:
            total = total + weight * self.value(latent, generator=generator)
        # Avoid regions where the model diverges.
        return total.float().nan_to_num(nan=torch.finfo(torch.float32).min).view(N, S)

    def _search(self, latent: Latent, guess: _Guess, explore: bool, generator: Random) -> _Plan:
        cfg, N = self.cfg, len(guess.mean)
        rows = torch.arange(N, device=guess.mean.device)
        given = self._given_plans(latent, generator)  # (N, P, H, A)
        iterations, num_drawn, num_elites = cfg.iterations, cfg.num_samples - given.shape[1], cfg.num_elites
        if self.tries_all:
            iterations, num_drawn = 1, 0
            num_elites = max(given.shape[1] * cfg.num_elites // cfg.num_samples, 1)
        for _ in range(iterations):
            drawn = self._draw(guess, num_drawn, generator)
            acts = torch.cat([given, drawn], 1)
            best, weights = _weigh(self.returns(latent, acts, generator), num_elites, cfg.temperature)
            elites = acts[rows[:, None], best]
            guess = self._refit(elites, weights)
        if self.choices:
            # Take the best plan: elites differ little if the next plan can correct this action.
            act = elites[:, 0, 0]
        else:
            # The largest ratio to an exponential is a weighted sample: the Gumbel trick without logarithms.
            race = weights / torch.empty_like(weights).exponential_(generator=generator)
            act = elites[rows, race.argmax(1), 0]
        return _Plan(self._shaken(act, guess, generator) if explore else act, guess.mean)

    def _begin(self, num: int, last: Tensor | None, first: Tensor | None) -> _Guess:
        shape, device = (num, self.cfg.horizon, self.actions), self.model.device
        mean = torch.full(shape, 1 / self.actions if self.choices else 0.0, device=device)
        if last is not None and tuple(last.shape) != shape:
            raise ValueError(f"last, the mean of the previous plan, must be {shape}, got {tuple(last.shape)}")
        if last is not None:
            shifted = torch.cat([last[:, 1:], mean[:, -1:]], 1)
            mean = shifted if first is None else torch.where(first[:, None, None], mean, shifted)
        return _Guess(mean, torch.full(shape, self.cfg.max_std, device=device))

    def _given_plans(self, latent: Latent, generator: Random) -> Tensor:
        """Plans (N, P, H, A) that are evaluated in every iteration: all possible plans, or those of the
        prior."""
        N, H, P = _rows(latent), self.cfg.horizon, self.num_prior_plans
        if self.tries_all:
            index = torch.cartesian_prod(*[torch.arange(self.actions, device=self.model.device)] * H)
            return F.one_hot(index.view(-1, H), self.actions).float().expand(N, -1, -1, -1)
        if self.prior is None or P == 0:
            return torch.zeros(N, 0, H, self.actions, device=self.model.device)
        latent = {key: leaf.repeat_interleave(P, 0) for key, leaf in latent.items()}
        acts = [self.prior(latent, generator=generator)]
        while len(acts) < H:
            latent = self.model.step(latent, acts[-1], temperature=0.0).latent
            acts.append(self.prior(latent, generator=generator))
        return torch.stack(acts, 1).float().view(N, P, H, self.actions)

    def _draw(self, guess: _Guess, num: int, generator: Random) -> Tensor:
        N, H, A = guess.mean.shape
        if self.choices:
            uniform = torch.rand(N, num, H, generator=generator, device=guess.mean.device)
            return draw_one_hot(guess.mean[:, None].expand(-1, num, -1, -1), uniform)
        noise = torch.randn(N, num, H, A, generator=generator, device=guess.mean.device)
        return (guess.mean[:, None] + guess.std[:, None] * noise).clamp(-1, 1)

    def _refit(self, elites: Tensor, weights: Tensor) -> _Guess:
        if self.choices:
            return _Guess(_smooth(elites, weights, self.cfg.smoothing), torch.zeros_like(elites[:, 0]))
        return refit(elites, weights, self.cfg.min_std, self.cfg.max_std)

    def _shaken(self, act: Tensor, guess: _Guess, generator: Random) -> Tensor:
        """Exploration: noise with the standard deviation of the plan for Box, some uniform discrete
        actions."""
        if self.choices:
            drawn, shaken = torch.rand(2, len(act), generator=generator, device=act.device)
            evenly = draw_one_hot(torch.full_like(act, 1 / self.actions), drawn)
            return torch.where((shaken < self.cfg.smoothing)[:, None], evenly, act)
        noise = torch.randn(act.shape, generator=generator, device=act.device)
        return (act + guess.std[:, 0] * noise).clamp(-1, 1)


def _weigh(values: Tensor, num_elites: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Indices and weights (N, num_elites) of the best values (N, S); the weights sum to 1."""
    best, index = values.topk(num_elites, 1)
    return index, (temperature * (best - best[:, :1])).softmax(1)


def refit(elites: Tensor, weights: Tensor, min_std: float, max_std: float) -> _Guess:
    """Weighted mean and standard deviation (N, H, A) of elites (N, K, H, A)."""
    weights = weights[:, :, None, None]
    mean = (weights * elites).sum(1)
    std = (weights * (elites - mean[:, None]).square()).sum(1).sqrt()
    return _Guess(mean, std.clamp(min_std, max_std))


def _smooth(elites: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Probabilities (N, H, A) of the discrete actions of elites (N, K, H, A), mixed with a uniform share."""
    chances = (weights[:, :, None, None] * elites).sum(1)
    return (1 - smoothing) * chances + smoothing / elites.shape[-1]


def _rows(latent: Latent) -> int:
    return len(next(iter(latent.values())))


class _Flat(WorldModel, Protocol):
    """A world model whose feat contains its whole latent."""

    def latent_of(self, feat: Tensor) -> Latent:
        """The latent of `feat`."""


class MPPIPolicy:
    """A `Policy` that plans at every step from feat; each plan starts from the previous one.

    Only its settings are saved. `from_tensors` takes the model, and uses its `propose` for proposed
    plans and its `state_value` for the value after a plan, if they exist.
    """

    def __init__(self, planner: MPPI) -> None:
        if not hasattr(planner.model, "latent_of"):
            raise ValueError(
                f"planning from feat needs a model with a method latent_of(feat), got {type(planner.model).__name__}; "
                "use a model whose feat contains the whole latent"
            )
        self.planner = planner
        self.reset(0, 0)

    @property
    def feat_dim(self) -> int:
        """Width of its observations."""
        return self.planner.model.feat_dim

    def reset(self, num: int, seed: int) -> None:
        self._generator = torch.Generator(self.planner.model.device).manual_seed(seed)
        self._guess: Tensor | None = None

    def act(self, obs: Array) -> Array:
        """Map feat (N, F) to the env's own actions (N, *space.shape)."""
        model: _Flat = self.planner.model  # type: ignore[assignment]
        if obs.ndim != 2 or obs.shape[1] != self.feat_dim:
            raise ValueError(f"obs must be (N, {self.feat_dim}), got {obs.shape}")
        latent = model.latent_of(torch.from_numpy(obs).float().to(model.device))
        act, self._guess = self.planner.plan(latent, self._guess, generator=self._generator)
        return decode_action(model.act_space, act.float().cpu().numpy())

    def tensors(self) -> dict[str, Tensor]:
        """Empty: the policy has no weights."""
        return {}

    def about(self) -> dict[str, str]:
        """Settings for the metadata of the file."""
        return {"kind": "mppi", "cfg": json.dumps(asdict(self.planner.cfg))}

    @classmethod
    def from_tensors(cls, model: WorldModel, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> MPPIPolicy:
        """Restore a policy from its `about`, for planning in `model`.

        Raises:
            ValueError: `about` belongs to another kind of policy.
        """
        if about.get("kind") != "mppi" or "cfg" not in about:
            raise ValueError(f"metadata must have kind 'mppi' and cfg, got {dict(about)}")
        cfg = MPPIConfig(**json.loads(about["cfg"]))
        prior, value = getattr(model, "propose", None), getattr(model, "state_value", None)
        return cls(MPPI(model, cfg, prior, value))
