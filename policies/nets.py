"""Layers as DreamerV3 has them: linear, block-linear and convolutional, RMS norm and SiLU between.

Weights begin as a normal cut at two deviations, scaled to unit variance by fan-in; biases begin at zero.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def init_weight(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fill with a normal of variance scale² / fan_in, cut at two deviations."""
    # Cutting at 2 leaves a deviation of 0.8796, which 1.1368 makes up for.
    std = 1.1368 * scale * fan_in**-0.5
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std) if std else weight.zero_()


class Linear(nn.Linear):
    """A linear layer whose weights begin `scale` times as large as usual; 0 makes it begin as zero."""

    def __init__(self, in_dim: int, out_dim: int, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(in_dim, out_dim)

    def reset_parameters(self) -> None:
        init_weight(self.weight, self.in_features, self.scale)
        nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """`blocks` linear layers side by side, block i from the i-th part of the input to the i-th part of the output."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int) -> None:
        super().__init__()
        if in_dim % blocks or out_dim % blocks:
            raise ValueError(f"in_dim and out_dim must be divisible by {blocks} blocks, got {in_dim} and {out_dim}")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, in_dim // blocks, out_dim // blocks))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        init_weight(self.weight, in_dim // blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, out_dim)."""
        parts = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)
        return torch.bmm(parts, self.weight.to(x.dtype)).transpose(0, 1).flatten(1) + self.bias.to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) times a learned scale, over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (unit * self.weight).to(x.dtype)


class Layer(nn.Module):
    """Linear, RMS norm, SiLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = Linear(in_dim, out_dim)
        self.norm = RMSNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x)))


class MLP(nn.Sequential):
    """`layers` times linear, RMS norm, SiLU; then linear to `out_dim`, beginning `scale` times as large as usual."""

    def __init__(self, in_dim: int, units: int, layers: int, out_dim: int, scale: float = 1.0) -> None:
        dims = [in_dim, *[units] * layers]
        super().__init__(*[Layer(a, b) for a, b in pairwise(dims)], Linear(dims[-1], out_dim, scale))
