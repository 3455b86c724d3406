"""The interface everything hangs on: what a world model is, and what it means to imagine with one.

Read this first. Families implement `WorldModel`, `DreamVectorEnv` turns one into an environment, controllers see
`feat`. Time runs `obs[t], act[t] -> rew[t], obs[t+1]`; every leaf of a latent is (B, ...), rows never mix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from wm_envs.action import encode_action

Latent = dict[str, Tensor]


Rows = NDArray[np.int64] | slice
"""Which rows of a batch."""
EVERYONE = slice(None)


class RowStreams:
    """Standard normals for N rows, each row from a stream of its own, drawn ahead in blocks.

    `restart` opens a row's stream from the row's generator. What follows depends on that and on the calls since, never
    on the neighbours, so that a row of a batch repeats the same dream alone. Only the `active` rows draw, all of
    them unless set otherwise.
    """

    def __init__(self, rngs: list[np.random.Generator], block: int = 2048) -> None:
        self.rngs = rngs
        self.block = block
        self._streams = [torch.Generator() for _ in rngs]
        self._ahead = torch.zeros(len(rngs), block)
        self._rows = self._ahead.unbind()
        self._cursor = np.full(len(rngs), block)
        self.active: Rows = EVERYONE

    def restart(self, row: int) -> None:
        """Open a new stream in `row`: an episode begins there."""
        self._streams[row].manual_seed(int(self.rngs[row].integers(2**63)))
        self._cursor[row] = self.block

    def normal(self, dim: int) -> Tensor:
        """The next `dim` numbers of each `active` row, (rows, dim) float32 on the CPU."""
        if dim > self.block:
            raise ValueError(f"dim must be at most {self.block}, got {dim}; make RowStreams with a larger block")
        at = self._cursor[self.active]
        if (used_up := at + dim > self.block).any():
            for row in np.arange(len(self.rngs))[self.active][used_up]:
                self._rows[row].normal_(generator=self._streams[row])  # Faster than numpy's by three.
                self._cursor[row] = 0
            at = self._cursor[self.active]
        if (at == at[0]).all():
            ahead = self._ahead[:, at[0] : at[0] + dim].clone()
        else:
            columns = self._cursor.clip(max=self.block - dim)  # The clip is for others, whose block may be used up.
            ahead = self._ahead.gather(1, torch.from_numpy(columns)[:, None] + torch.arange(dim))
        self._cursor[self.active] += dim
        return ahead[self.active]


Generator = torch.Generator | RowStreams | None


def draw_normal(num: int, dim: int, generator: Generator, device: torch.device) -> Tensor:
    """Standard normals (num, dim) from whichever source the caller owns; None is torch's global generator."""
    if isinstance(generator, RowStreams):
        return generator.normal(dim).to(device)
    return torch.randn(num, dim, generator=generator, device=device)


class Step(NamedTuple):
    """What one dreamed step gives."""

    latent: Latent
    rew: Tensor
    """(B,)"""
    cont: Tensor
    """(B,) probability that the episode goes on."""
    end: Tensor | None = None
    """(B,) bool, the model's own draw of the end, which `rew` belongs to; None leaves it to a cut-off on `cont`."""

    def over(self, cut_off: float = 0.5) -> Tensor:
        """(B,) bool: the episode ends with this step."""
        return self.cont < cut_off if self.end is None else self.end


class WorldModel(Protocol):
    """Anything that can be dreamed in. Actions are (B, A) in [-1, 1] or one-hot: see `wm_envs.action`."""

    obs_space: gym.Space[Any]
    act_space: gym.Space[Any]
    feat_dim: int

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""

    def initial(self, num: int) -> Latent:
        """The latent before any frame was seen."""

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Take in one real frame. `obs` is (B, *obs_shape); `latent` and `act` are those of the step before;
        rows where `first` (B,) bool is set forget them."""

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step. `temperature` is Ha & Schmidhuber's tau; 0 takes the most likely future."""

    def decode(self, latent: Latent) -> Tensor:
        """The observation (B, *obs_shape) in the dtype of `obs_space`."""

    def feat(self, latent: Latent) -> Tensor:
        """What a controller sees, (B, feat_dim) float32."""


@runtime_checkable
class EnsembleModel(WorldModel, Protocol):
    """A world model of several members, whose disagreement is computed only on request: it needs all of them."""

    @property
    def members(self) -> int:
        """Their number; one alone cannot disagree."""

    def disagreement(self, latent: Latent, act: Tensor, ahead: Latent) -> Tensor:
        """How far the members are apart about the step from `latent` by `act` to `ahead`: (B,), 0 where they agree."""


def can_disagree(model: WorldModel) -> TypeGuard[EnsembleModel]:
    """Whether `model` has two members or more."""
    return isinstance(model, EnsembleModel) and model.members > 1


def feat_space(model: WorldModel) -> spaces.Box:
    """The space of feat as an observation; it has no bounds of its own, and checkers frown on infinite ones."""
    most = float(np.finfo(np.float32).max)
    return spaces.Box(-most, most, (model.feat_dim,), np.float32)


class Trajectory(NamedTuple):
    """An imagined trajectory, time first."""

    latents: list[Latent]
    """H + 1 latents, the start among them."""
    acts: Tensor
    """(H, B, A)"""
    rewards: Tensor
    """(H, B)"""
    continues: Tensor
    """(H, B) probabilities."""


def imagine(
    model: WorldModel,
    latent: Latent,
    acts: Tensor | Callable[[Tensor], Tensor],
    horizon: int | None = None,
    *,
    temperature: float = 1.0,
    generator: Generator = None,
) -> Trajectory:
    """Dream from `latent` under given actions (H, B, A), or under a function from feat (B, F) to actions (B, A)."""
    given = len(acts) if isinstance(acts, Tensor) else None
    horizon = given if horizon is None else horizon
    if horizon is None or horizon < 1 or (given is not None and horizon > given):
        want = "at least 1; pass it when acts is a function" if given is None else f"from 1 to the {given} acts given"
        raise ValueError(f"horizon must be {want}, got {horizon}")
    latents, taken, rews, conts = [latent], [], [], []
    for t in range(horizon):
        act = acts[t] if isinstance(acts, Tensor) else acts(model.feat(latent))
        out = model.step(latent, act, temperature=temperature, generator=generator)
        latent = out.latent
        latents.append(latent)
        taken.append(act)
        rews.append(out.rew)
        conts.append(out.cont)
    return Trajectory(latents, torch.stack(taken), torch.stack(rews), torch.stack(conts))


class Observer:
    """Carries a model's latent along real frames, one call a frame."""

    def __init__(self, model: WorldModel) -> None:
        self.model = model
        self.latent: Latent | None = None

    def reset(self) -> None:
        """Forget: the next frame opens an episode."""
        self.latent = None

    @torch.inference_mode()
    def observe(self, obs: NDArray[np.generic], act: NDArray[np.generic] | None) -> NDArray[np.float32]:
        """Take in frames (N, *obs_shape) that followed the env's own actions `act`; returns feat (N, F)."""
        _check_obs(self.model.obs_space, obs)
        encoded = None
        if act is not None and self.latent is not None:
            encoded = torch.from_numpy(encode_action(self.model.act_space, act)).to(self.model.device)
        frames = torch.from_numpy(np.ascontiguousarray(obs)).to(self.model.device)
        self.latent = self.model.encode(frames, self.latent, encoded)
        feat: NDArray[np.float32] = self.model.feat(self.latent).float().cpu().numpy().copy()
        return feat


def _check_obs(space: gym.Space[Any], obs: NDArray[np.generic]) -> None:
    shape = space.shape or ()
    if obs.ndim == 0 or obs.shape[1:] != shape or not np.can_cast(obs.dtype, space.dtype or obs.dtype, "same_kind"):
        want = f"(N, {', '.join(map(str, shape))}) {space.dtype}"
        raise ValueError(
            f"obs must be {want} for this model, got {obs.shape} {obs.dtype}; "
            "make_real(spec) gives the environment the model was trained on"
        )
