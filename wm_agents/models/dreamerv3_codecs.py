"""Encoders and decoders of DreamerV3, one for each kind of observation.

Each maps observations (N, *shape) to tokens (N, `token_dim`), predicts observations from the latent, and has the loss
of these predictions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from policies.dists import symexp, symlog
from policies.nets import MLP, BlockLinear, Layer, Linear, NormSiLU, compute_dtype, make_layers
from wm_agents.errors import ConfigurationError
from wm_agents.models.conv_layers import Down, Up, spread
from wm_agents.models.cpu_kernels import pixel_loss
from wm_agents.models.frames import to_frames
from wm_envs.fields import fail
from wm_envs.frames import frame_shape

if TYPE_CHECKING:
    from wm_agents.models.dreamerv3 import DreamerV3Config


class Codec(Protocol):
    """An encoder and decoder."""

    token_dim: int

    def encode(self, obs: Tensor) -> Tensor:
        """Map observations (N, *shape) to tokens (N, token_dim)."""

    def predict(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Predict observations from the latent, in the form that `loss` and `decode` take."""

    def loss(self, predicted: Tensor, obs: Tensor) -> Tensor:
        """The loss (N,) of predictions."""

    def decode(self, predicted: Tensor) -> Tensor:
        """The observations (N, *shape) for predictions."""


def make_codec(
    cfg: DreamerV3Config, space: gym.Space[Any], stoch_dim: int
) -> _ImageCodec | _VectorCodec | _DiscreteCodec:
    """Encoder and decoder for the observations of a space.

    Raises:
        ConfigurationError: the space contains neither frames, vectors nor discrete observations.
    """
    if frame_shape(space) is not None:
        return _ImageCodec(cfg, space, stoch_dim)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _DiscreteCodec(cfg, space, stoch_dim)
    if isinstance(space, spaces.Box | spaces.MultiBinary) and len(space.shape) <= 2:
        return _VectorCodec(cfg, space, stoch_dim)
    raise ConfigurationError(
        "dreamerv3 supports uint8 frames (H, W, C) or (C, H, W) with 1 or 3 channels, vectors and discrete values, "
        f"got {space}; use a wrapper such as GrayscaleObservation or FlattenObservation"
    )


class _ImageCodec(nn.Module):
    """Encodes and decodes frames with convolutions, with the squared error of pixels in [0, 1]."""

    def __init__(self, cfg: DreamerV3Config, space: gym.Space[Any], stoch_dim: int) -> None:
        super().__init__()
        self.space, shape = space, frame_shape(space)
        assert shape is not None, space
        channels, sides = shape[0], list(shape[1:])
        stages = _stages(sides)
        # Frames are padded with zeros until both sides can be halved that often.
        self.sides, self.small = sides, [-(-side // 2**stages) for side in sides]
        depths = [cfg.cnn_depth * mult for mult in (2, 3, *[4] * stages)[:stages]]
        self.encoder = nn.Sequential(*[Down(a, b) for a, b in zip([channels, *depths], depths, strict=False)])
        self.token_dim = math.prod(self.small) * depths[-1]
        if depths[-1] % cfg.blocks:
            fail(
                cfg,
                "cnn_depth",
                f"such that {depths[-1] // cfg.cnn_depth} times as many can be shared by {cfg.blocks} blocks",
            )
        self.from_deter = BlockLinear(cfg.deter_dim, self.token_dim, cfg.blocks)
        self.from_stoch = nn.Sequential(Layer(stoch_dim, 2 * cfg.units), Linear(2 * cfg.units, self.token_dim))
        self.norm = NormSiLU(depths[-1])
        self.ups = nn.ModuleList(Up(a, b) for a, b in zip(depths[::-1], [*depths[-2::-1], channels], strict=True))
        self.norms = nn.ModuleList(NormSiLU(dim) for dim in depths[-2::-1])

    def encode(self, obs: Tensor) -> Tensor:
        """Map frames (N, *shape) to (N, token_dim)."""
        x = self._channels_last(obs).to(compute_dtype(self.from_deter.weight))
        x = (x / 255 if obs.dtype == torch.uint8 else x) - 0.5
        stages = 2 ** len(self.ups)
        fill = [m * stages - side for m, side in zip(self.small, self.sides, strict=True)]
        if any(fill):
            x = F.pad(x, (0, 0, 0, fill[1], 0, fill[0]))
        return cast(Tensor, self.encoder(x)).flatten(1)

    def predict(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Logits of pixels, (N, H, W, C)."""
        high, wide = self.small
        # Each block of deter decodes separate channels of the whole image.
        x = self.from_deter(deter).view(len(deter), self.from_deter.blocks, high, wide, -1)
        x = x.permute(0, 2, 3, 1, 4).flatten(3)
        x = self.norm(x + self.from_stoch(stoch).view(x.shape))
        for up, norm in zip(self.ups, self.norms, strict=False):
            x = spread(norm(up(x)))
        return spread(self.ups[-1](x))[:, : self.sides[0], : self.sides[1]]

    def loss(self, predicted: Tensor, obs: Tensor) -> Tensor:
        """Squared error of pixels in [0, 1], summed over the frame: (N,)."""
        return pixel_loss(predicted, self._channels_last(obs))

    def decode(self, predicted: Tensor) -> Tensor:
        return to_frames(torch.sigmoid(predicted.float()).movedim(-1, 1), self.space)

    def _channels_last(self, obs: Tensor) -> Tensor:
        if list(obs.shape[1:3]) == self.sides:
            return obs
        return obs.movedim(1, -1)


class _VectorCodec(nn.Module):
    """Encodes and decodes vectors in symlog space, with a squared error."""

    def __init__(self, cfg: DreamerV3Config, space: spaces.Box | spaces.MultiBinary, stoch_dim: int) -> None:
        super().__init__()
        self.shape, self.dim = space.shape, int(np.prod(space.shape))
        self.dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        low, high = (
            (space.low, space.high) if isinstance(space, spaces.Box) else (np.zeros(space.shape), np.ones(space.shape))
        )
        for name, bound in (("low", low), ("high", high)):
            self.register_buffer(name, torch.from_numpy(bound.astype(np.float32)), persistent=False)
        self.low: Tensor
        self.high: Tensor
        self.token_dim = cfg.units
        self.encoder = make_layers(self.dim, cfg.units, 3)
        self.decoder = MLP(cfg.deter_dim + stoch_dim, cfg.units, 3, self.dim)

    def encode(self, obs: Tensor) -> Tensor:
        """Map (N, *shape) to (N, token_dim)."""
        return cast(Tensor, self.encoder(self._flat(obs)))

    def predict(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """The symlog of observations, the input of `loss` and `decode`."""
        return cast(Tensor, self.decoder(torch.cat([deter, stoch], dim=-1))).float()

    def loss(self, predicted: Tensor, obs: Tensor) -> Tensor:
        """Squared error of symlog, summed over the vector: (N,)."""
        return (predicted - self._flat(obs)).square().sum(-1)

    def decode(self, predicted: Tensor) -> Tensor:
        obs = torch.clamp(symexp(predicted).reshape(-1, *self.shape), self.low, self.high)
        return (obs if self.dtype.is_floating_point else obs.round()).to(self.dtype)

    def _flat(self, obs: Tensor) -> Tensor:
        return symlog(obs.reshape(len(obs), -1).float())


class _DiscreteCodec(nn.Module):
    """Encodes and decodes discrete observations as one-hot vectors, with a cross-entropy."""

    def __init__(self, cfg: DreamerV3Config, space: spaces.Discrete | spaces.MultiDiscrete, stoch_dim: int) -> None:
        super().__init__()
        self.shape = space.shape or ()
        counts = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).ravel()
        self.counts = [int(n) for n in counts]
        start = torch.from_numpy(np.broadcast_to(np.asarray(space.start), self.shape).reshape(-1).astype(np.int64))
        self.register_buffer("start", start, persistent=False)
        self.start: Tensor
        self.token_dim = cfg.units
        self.encoder = make_layers(sum(self.counts), cfg.units, 3)
        self.decoder = MLP(cfg.deter_dim + stoch_dim, cfg.units, 3, sum(self.counts))

    def encode(self, obs: Tensor) -> Tensor:
        parts = zip(self._values(obs).unbind(-1), self.counts, strict=True)
        hot = torch.cat([F.one_hot(value, count) for value, count in parts], dim=-1)
        return cast(Tensor, self.encoder(hot))

    def predict(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Concatenated logits of all discrete parts."""
        return cast(Tensor, self.decoder(torch.cat([deter, stoch], dim=-1))).float()

    def loss(self, predicted: Tensor, obs: Tensor) -> Tensor:
        parts = zip(predicted.split(self.counts, dim=-1), self._values(obs).unbind(-1), strict=True)
        return torch.stack([F.cross_entropy(logits, value, reduction="none") for logits, value in parts]).sum(0)

    def decode(self, predicted: Tensor) -> Tensor:
        best = torch.stack([logits.argmax(-1) for logits in predicted.split(self.counts, dim=-1)], dim=-1)
        return (best + self.start).reshape(len(predicted), *self.shape)

    def _values(self, obs: Tensor) -> Tensor:
        return obs.reshape(len(obs), -1).long() - self.start


def _stages(sides: list[int]) -> int:
    """The number of halvings after which both sides have 3 to 16 pixels; four if possible."""
    for stages in (4, 3, 2, 1, 5, 6):
        if all(3 <= -(-side // 2**stages) <= 16 for side in sides):
            return stages
    raise ConfigurationError(
        f"frames of {sides[0]} x {sides[1]} pixels cannot be halved 1 to 6 times to sides of 3 to 16 pixels; "
        "resize them, such as with gymnasium.wrappers.ResizeObservation(env, (64, 64))"
    )
