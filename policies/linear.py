"""The controller of the paper: one matrix from feat to action, with 867 parameters for CarRacing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_envs.action import act_dim, decode_action

Array = NDArray[Any]

SQUASHES = ("clip", "sigmoid", "tanh")


class LinearPolicy:
    """Acts by `squash(weights @ [feat, 1])`.

    Box dimensions are squashed into their range: "tanh" into the whole range, "sigmoid" (0 maps to the
    middle) and "clip" (0 maps to the lower bound) as the authors do for gas and brake. Discrete and
    MultiDiscrete take the largest output, MultiBinary the outputs above 0.

    Args:
        space: the single action space.
        weights: (A, F + 1), or (P, A, F + 1) for P controllers that act on P equal blocks of rows.
        squash: one name per Box dimension; default: "tanh" if the range contains 0 inside, else "sigmoid".
    """

    def __init__(self, space: gym.Space[Any], weights: Array, squash: tuple[str, ...] | None = None) -> None:
        self.space = space
        self.squash = squash if squash is not None else _default_squash(space)
        outs = act_dim(space)
        if weights.ndim not in (2, 3) or weights.shape[-2] != outs:
            raise ValueError(
                f"weights must have shape ({outs}, features + 1), or (controllers, {outs}, features + 1), for {space}, "
                f"got {weights.shape}"
            )
        if isinstance(space, spaces.Box) and (bad := set(self.squash) - set(SQUASHES)):
            raise ValueError(f"squash must contain only {list(SQUASHES)}, got {sorted(bad)}")
        if isinstance(space, spaces.Box) and len(self.squash) != outs:
            raise ValueError(
                f"squash needs {outs} names, one per action dimension, each tanh, sigmoid or clip, got {self.squash}"
            )
        self.weights = np.ascontiguousarray(weights, np.float32)
        blocks = self.weights if weights.ndim == 3 else self.weights[None]
        self._matrix = torch.from_numpy(blocks[..., :-1].copy()).transpose(1, 2)  # (P, F, A)
        self._bias = torch.from_numpy(blocks[:, None, :, -1].copy())  # (P, 1, A)

    def reset(self, num: int, seed: int) -> None:
        """Does nothing: the policy has no state."""

    def act(self, obs: Array) -> Array:
        """Map feat (N, F) to actions (N, *space.shape); each of P controllers acts in N / P consecutive rows."""
        p, f, _ = self._matrix.shape
        if obs.ndim != 2 or obs.shape[1] != f or len(obs) % p:
            raise ValueError(f"obs must be (N, {f}) with N a multiple of {p}, got {obs.shape}")
        rows = torch.from_numpy(np.ascontiguousarray(obs, np.float32)).view(p, -1, f)
        outs = torch.baddbmm(self._bias, rows, self._matrix)
        return decode_action(self.space, _squashed(outs.flatten(0, 1).numpy(), self.squash))

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, for a safetensors file."""
        return {"weights": torch.from_numpy(self.weights)}

    def about(self) -> dict[str, str]:
        """Settings for the metadata of the file."""
        return {"kind": "linear", "squash": ",".join(self.squash)}

    @classmethod
    def from_tensors(
        cls, act_space: gym.Space[Any], tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> LinearPolicy:
        """Restore a policy from its `tensors` and `about`."""
        squash: tuple[str, ...] = ()
        if about["squash"]:
            squash = tuple(about["squash"].split(","))
        return cls(act_space, tensors["weights"].float().numpy(), squash)


def num_params(space: gym.Space[Any], feat_dim: int) -> int:
    """Number of parameters of a linear controller, including the bias."""
    return act_dim(space) * (feat_dim + 1)


def _default_squash(space: gym.Space[Any]) -> tuple[str, ...]:
    """ "tanh" for dimensions with 0 inside, "sigmoid" for one-sided ones; empty for discrete actions."""
    if not isinstance(space, spaces.Box):
        return ()
    inside = (space.low < 0) & (space.high > 0)
    return tuple(np.where(inside, "tanh", "sigmoid").ravel().tolist())


def _squashed(outs: Array, squash: tuple[str, ...]) -> Array:
    """Map outputs (N, A) to [-1, 1], one name per column; without names they stay as they are.

    "tanh" and "sigmoid" are the same curve over the whole range; "clip" stays at the lower bound below 0.
    """
    if not squash:
        return outs
    units = np.tanh(outs)
    if "clip" in squash:
        units = np.where(np.array(squash) == "clip", 2 * np.maximum(units, 0) - 1, units)
    return units


class Controller(nn.Module):
    """The same matrix as a torch module: maps (B, Z + H) to (B, A) without squashing.

    Takes the state or its parts in order: `controller(z, h)` equals `controller(torch.cat([z, h], 1))`.
    """

    def __init__(self, latent_size: int, hidden_size: int, action_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(latent_size + hidden_size, action_size)

    def forward(self, *parts: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.cat(parts, dim=-1))
        return out
