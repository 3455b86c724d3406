"""The interface of all world models, and imagination with one. Read this first.

Model families implement `WorldModel`, `DreamVectorEnv` turns a model into an environment, and controllers observe
`feat`. Steps are `obs[t], act[t] -> rew[t], obs[t+1]`. Every tensor of a latent has shape (B, ...), and rows of a batch
are independent.
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
from wm_envs.noise import Generator

Latent = dict[str, Tensor]


class Step(NamedTuple):
    """The result of one dreamed step."""

    latent: Latent
    rew: Tensor
    """(B,)"""
    cont: Tensor
    """(B,) probability that the episode continues."""
    end: Tensor | None = None
    """(B,) bool: termination, if the model samples it together with `rew`; None: a threshold on `cont` decides."""

    def over(self, cut_off: float = 0.5) -> Tensor:
        """(B,) bool: the episode terminates with this step."""
        if self.end is None:
            return self.cont < cut_off
        return self.end


class WorldModel(Protocol):
    """The interface of a world model. Actions are (B, A), in [-1, 1] or one-hot: see `wm_envs.action`."""

    obs_space: gym.Space[Any]
    act_space: gym.Space[Any]
    feat_dim: int

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""

    def initial(self, num: int) -> Latent:
        """The latent of `num` rows before the first frame."""

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Update the latent with one real frame.

        Args:
            obs: (B, *obs_shape).
            latent: the latent of the previous frame; None for the first frame.
            act: (B, A), the action between the two frames.
            first: (B,) bool, rows in which an episode starts; they ignore `latent` and `act`.
        """

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step. `temperature` is tau in Ha & Schmidhuber; 0 gives the most likely future."""

    def decode(self, latent: Latent) -> Tensor:
        """The observation (B, *obs_shape) in the dtype of `obs_space`."""

    def feat(self, latent: Latent) -> Tensor:
        """The features for controllers, (B, feat_dim) float32."""


@runtime_checkable
class EnsembleModel(WorldModel, Protocol):
    """A world model of several members, whose disagreement is computed on request, because it takes all members."""

    @property
    def members(self) -> int:
        """Number of members."""

    def disagreement(self, latent: Latent, act: Tensor, ahead: Latent) -> Tensor:
        """The disagreement (B,) of the members about the step from `latent` with `act` to `ahead`; 0 if they agree."""


def can_disagree(model: WorldModel) -> TypeGuard[EnsembleModel]:
    """Whether `model` is an ensemble of at least two members."""
    return isinstance(model, EnsembleModel) and model.members > 1


def feat_space(model: WorldModel) -> spaces.Box:
    """The observation space of feat, bounded by the largest float32, because checkers warn about infinite bounds."""
    most = float(np.finfo(np.float32).max)
    return spaces.Box(-most, most, (model.feat_dim,), np.float32)


class Trajectory(NamedTuple):
    """An imagined trajectory, time first."""

    latents: list[Latent]
    """H + 1 latents, including the first one."""
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
    """Dream from `latent` with actions (H, B, A), or with a function that maps feat (B, F) to actions (B, A).

    Args:
        horizon: number of steps; default: the number of given actions.

    Raises:
        ValueError: `horizon` is below 1, missing, or above the number of given actions.
    """
    given = None
    if isinstance(acts, Tensor):
        given = len(acts)
    if horizon is None:
        horizon = given
    if horizon is None or horizon < 1 or (given is not None and horizon > given):
        want = "at least 1, if acts is a function"
        if given is not None:
            want = f"from 1 to {given}, the number of acts"
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
    """Updates the latent of a model with real frames, one call per frame."""

    def __init__(self, model: WorldModel) -> None:
        self.model = model
        self.latent: Latent | None = None

    def reset(self) -> None:
        """Start a new episode with the next frame."""
        self.latent = None

    @torch.inference_mode()
    def observe(self, obs: NDArray[np.generic], act: NDArray[np.generic] | None) -> NDArray[np.float32]:
        """Update with frames (N, *obs_shape) after the env's own actions `act`, and return feat (N, F)."""
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
