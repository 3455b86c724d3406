"""Layers of DreamerV3: linear and block-linear layers with RMS norm and SiLU.

Weights are initialised with a truncated normal, scaled to unit variance by fan-in; biases with zero.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def init_weight(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fill with a normal of variance scale² / fan_in, truncated at two standard deviations."""
    # Truncation at 2 leaves a standard deviation of 0.8796, which the factor 1.1368 corrects.
    std = 1.1368 * scale * fan_in**-0.5
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std) if std else weight.zero_()


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of products with `weight`: that of autocast if it is enabled."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def forgetful_autocast(device: torch.device) -> torch.autocast:
    """Autocast without its weight cache, for code without gradients that runs before the losses.

    Older PyTorch would reuse the cached weights, which have no gradients, in the losses (pytorch #112583).
    """
    kind = device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)


class Linear(nn.Linear):
    """A linear layer whose initial weights are multiplied by `scale`, which may be 0."""

    def __init__(self, in_dim: int, out_dim: int, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(in_dim, out_dim)

    def reset_parameters(self) -> None:
        init_weight(self.weight, self.in_features, self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(compute_dtype(self.weight)), self.weight, self.bias)


class BlockLinear(nn.Module):
    """`blocks` parallel linear layers: block i takes the i-th part of x, and all of `shared` if given."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, shared_dim: int = 0) -> None:
        super().__init__()
        if in_dim % blocks or out_dim % blocks:
            raise ValueError(f"in_dim and out_dim must be divisible by {blocks} blocks, got {in_dim} and {out_dim}")
        self.blocks, self.own_dim = blocks, in_dim // blocks
        self.weight = nn.Parameter(torch.empty(blocks, self.own_dim + shared_dim, out_dim // blocks))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        # The authors' initialiser includes the number of blocks in the fan-in.
        init_weight(self.weight, blocks * (self.own_dim + shared_dim))

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """Map (B, in_dim) and (B, shared_dim) to (B, out_dim)."""
        return self.by_block(x, shared).transpose(0, 1).flatten(1)

    def by_block(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """As `forward`, with the blocks on an axis of their own: (blocks, B, out_dim / blocks)."""
        dtype = compute_dtype(self.weight)
        own, every = split_blocks(self.weight.to(dtype), self.own_dim)
        bias = self.bias.to(dtype)[None]
        return apply_blocks(x.to(dtype), own, bias if shared is None else torch.addmm(bias, shared.to(dtype), every))


def split_blocks(weight: Tensor, own_dim: int) -> tuple[Tensor, Tensor]:
    """Split a block-linear weight (G, I + S, O) into the parts for x (G, I, O) and for `shared` (S, G O)."""
    return weight[:, :own_dim], weight[:, own_dim:].transpose(0, 1).flatten(1)


def apply_blocks(x: Tensor, own: Tensor, bias: Tensor) -> Tensor:
    """Map (B, G I) through blocks (G, I, O), plus a bias (B or 1, G O), to (G, B, O)."""
    parts, add = (t.unflatten(-1, (len(own), -1)).transpose(0, 1) for t in (x, bias))
    return torch.baddbmm(add, parts, own)


class NormSiLU(nn.Module):
    """SiLU of x / sqrt(mean(x²) + eps) times a learned scale, over the last axis (RMS norm, Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > CHUNK and x.device.type == "cpu":
            return cast(Tensor, _NormSiLU.apply(x, self.weight, self.eps))  # type: ignore[no-untyped-call]
        unit = F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps)
        return F.silu(unit).to(x.dtype)


class _NormSiLU(torch.autograd.Function):
    """The same for inputs larger than a CPU cache in float32: processes some rows at a time, and stores
    less."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale, dim = weight.float(), x.shape[-1]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        inverse = scale.new_empty(x.numel() // dim)  # 1 / sqrt(mean(x²) + eps) of every row
        mean = torch.full_like(scale, 1 / dim)
        with torch.autocast("cpu", enabled=False):
            for part, length, to in zip(_chunks(x), _chunks(inverse, dim), _chunks(out), strict=True):
                wide = part.float()
                torch.mv(wide.square(), mean, out=length).add_(eps).rsqrt_()
                to.copy_(F.silu(wide * _outer(length, scale), inplace=True))
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        scale, dim = weight.float(), x.shape[-1]
        out, total = torch.empty_like(x, memory_format=torch.contiguous_format), torch.zeros_like(scale)
        parts = zip(_chunks(grads[0]), _chunks(x), _chunks(inverse, dim), _chunks(out), strict=True)
        with torch.autocast("cpu", enabled=False):
            for after, part, length, to in parts:
                wide, factor = part.float(), _outer(length, scale)
                grad = torch.ops.aten.silu_backward(after.float(), wide * factor)
                slopes = grad * wide
                total += torch.mv(slopes.t(), length)
                along = torch.mv(slopes, scale).mul_(length.pow(3)).div_(-dim)
                to.copy_(grad.mul_(factor).addcmul_(wide, _outer(along, torch.ones_like(scale))))
        return out, total.to(weight.dtype), None


CHUNK = 2**17
"""Number of values that `NormSiLU` processes at a time."""


def _chunks(x: Tensor, dim: int = 0) -> list[Tensor]:
    """Split x (..., dim) into chunks of rows; with `dim`, x has one value per row."""
    rows = x if dim else x.flatten(0, -2)
    return list(rows.split(max(CHUNK // (dim or x.shape[-1]), 1)))


def _outer(column: Tensor, row: Tensor) -> Tensor:
    """The outer product (R, C) as a matrix product: broadcasting along short rows is three times slower on
    CPUs."""
    return torch.mm(column[:, None], row[None])


class Layer(nn.Module):
    """Linear, RMS norm, SiLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = Linear(in_dim, out_dim)
        self.norm = NormSiLU(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.linear(x)))


def make_layers(in_dim: int, units: int, num: int) -> nn.Sequential:
    """A stack of `num` layers."""
    return nn.Sequential(*[Layer(a, b) for a, b in pairwise([in_dim, *[units] * num])])


class MLP(nn.Sequential):
    """`num` layers, then a linear layer to `out_dim` whose initial weights are multiplied by `scale`."""

    def __init__(self, in_dim: int, units: int, num: int, out_dim: int, scale: float = 1.0) -> None:
        super().__init__(*make_layers(in_dim, units, num), Linear(units, out_dim, scale))
