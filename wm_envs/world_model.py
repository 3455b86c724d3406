"""The interface everything hangs on: what a world model is, and what it means to imagine with one.

Read this first. Families implement `WorldModel`, `DreamVectorEnv` turns one into an environment, controllers see
`feat`. Time runs `obs[t], act[t] -> rew[t], obs[t+1]`; every leaf of a latent is (B, ...), rows never mix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_envs.action import encode_action

Latent = dict[str, Tensor]


class RowStreams:
    """Standard normals for N rows, each row from a generator of its own, drawn ahead in blocks.

    Row i's numbers depend on its generator and on how often it was asked, never on its neighbours, so that a row of a
    batch repeats the same dream alone.
    """

    def __init__(self, rngs: list[np.random.Generator], block: int = 64) -> None:
        self.rngs = rngs
        self.block = block
        self.active: NDArray[np.bool_] | None = None
        """Rows that take numbers at the next call; None means all. The others see numbers but do not use them up."""
        self._buffer: NDArray[np.float32] = np.empty((len(rngs), 0), np.float32)
        self._cursor = np.zeros(len(rngs), np.int64)

    def restart(self, row: int) -> None:
        """Throw away what is drawn ahead for `row`: call it when the row's generator is seeded or used elsewhere."""
        self._cursor[row] = self._buffer.shape[1]

    def normal(self, dim: int) -> Tensor:
        """The next `dim` numbers of every row, (N, dim) float32 on the CPU."""
        if self._buffer.shape[1] != self.block * dim:
            self._buffer = np.empty((len(self.rngs), self.block * dim), np.float32)
            self._cursor[:] = self._buffer.shape[1]
        for row in np.flatnonzero(self._cursor == self._buffer.shape[1]):
            self.rngs[row].standard_normal(out=self._buffer[row], dtype=np.float32)
            self._cursor[row] = 0
        at = self._cursor.copy()
        self._cursor += dim if self.active is None else dim * self.active
        if (at == at[0]).all():
            return torch.from_numpy(self._buffer[:, at[0] : at[0] + dim].copy())
        return torch.from_numpy(np.take_along_axis(self._buffer, at[:, None] + np.arange(dim), axis=1))


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
    if isinstance(acts, Tensor):
        horizon = len(acts) if horizon is None else horizon
    if horizon is None or horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}; pass it when acts is a function")
    latents, taken, rews, conts = [latent], [], [], []
    for t in range(horizon):
        act = acts[t] if isinstance(acts, Tensor) else acts(model.feat(latent))
        latent, rew, cont = model.step(latent, act, temperature=temperature, generator=generator)
        latents.append(latent)
        taken.append(act)
        rews.append(rew)
        conts.append(cont)
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
        encoded = None
        if act is not None and self.latent is not None:
            encoded = torch.from_numpy(encode_action(self.model.act_space, act)).to(self.model.device)
        frames = torch.from_numpy(np.ascontiguousarray(obs)).to(self.model.device)
        self.latent = self.model.encode(frames, self.latent, encoded)
        feat: NDArray[np.float32] = self.model.feat(self.latent).float().cpu().numpy()
        return feat
