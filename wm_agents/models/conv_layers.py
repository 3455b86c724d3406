"""Layers of DreamerV3: convolutions that halve and double an image, and linear layers for loops over time."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.nets import (
    MLP,
    BlockLinear,
    Layer,
    Linear,
    NormSiLU,
    apply_blocks,
    compute_dtype,
    init_weight,
    make_layers,
    split_blocks,
)

__all__ = [
    "MLP",
    "BlockLinear",
    "Down",
    "LateBlocks",
    "LateLinear",
    "Layer",
    "Linear",
    "NormSiLU",
    "Up",
    "compute_dtype",
    "halve",
    "init_weight",
    "make_layers",
    "spread",
]


class Down(nn.Module):
    """5x5 convolution, 2x2 max pooling, RMS norm over channels, SiLU; images (N, H, W, C).

    CPUs multiply 16 channels at a time. With fewer channels, two neighbours of a row are treated as one pixel
    with twice the channels (as they are in memory), and a 5x3 kernel for pairs computes the same sums.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 5, 5))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        init_weight(self.weight, 25 * in_dim)
        self.norm = NormSiLU(out_dim)
        # Pixel `at` of the middle one of three pairs is multiplied by tap l of pixel at + l of the six.
        over = F.one_hot(torch.arange(2)[:, None] + torch.arange(5), 6).float().unflatten(-1, (3, 2))
        self.register_buffer("over", over, persistent=False)  # (2, 5, 3, 2)
        self.over: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2h, 2w, in_dim) to (N, h, w, out_dim)."""
        dtype = compute_dtype(self.weight)
        if x.device.type == "cpu" and len(self.weight) < 16:
            weight = torch.einsum("oikl,alqb->aobikq", self.weight, self.over).flatten(2, 3).flatten(0, 1)
            pairs = x.unflatten(2, (-1, 2)).flatten(3)
            out = _conv(pairs, weight, self.bias.repeat(2), dtype).unflatten(-1, (2, -1)).flatten(2, 3)
        else:
            out = _conv(x, self.weight, self.bias, dtype)
        return cast(Tensor, self.norm(halve(out)))


def _conv(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Convolve images (N, H, W, C) without changing height and width."""
    high, wide = weight.shape[2:]
    weight = weight.to(dtype, memory_format=torch.channels_last)
    return F.conv2d(x.movedim(-1, 1), weight, bias.to(dtype), padding=(high // 2, wide // 2)).movedim(1, -1)


def halve(x: Tensor) -> Tensor:
    """2x2 max pooling, (N, 2h, 2w, C) to (N, h, w, C)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.max_pool2d(x.movedim(-1, 1), 2).movedim(1, -1)
    # On CPUs max_pool2d is slow with few channels; torch.compile does not support the faster version.
    return cast(Tensor, _Larger.apply(_Larger.apply(x, 1), 2))  # type: ignore[no-untyped-call]


class _Larger(torch.autograd.Function):
    """The maximum of every two neighbours along an axis; if they are equal, the first gets the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        a, b = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
        # Stored as numbers: conversion to and from bool is four times slower on CPUs.
        first = torch.ge(a, b, out=torch.empty_like(a, memory_format=torch.contiguous_format))
        ctx.save_for_backward(first)
        ctx.dim = dim
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (first,), dim, (grad,) = ctx.saved_tensors, ctx.dim, grads
        out = grad.new_empty(*grad.shape[: dim + 1], 2, *grad.shape[dim + 1 :])
        a, b = out.unbind(dim + 1)
        torch.mul(grad, first, out=a)
        torch.mul(grad, 1 - first, out=b)
        return out.flatten(dim, dim + 1), None


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 5x5 convolution; images (N, H, W, C).

    After upsampling, only 9 of the 25 pixels under the kernel are different. So the original image is
    convolved with four 3x3 kernels, one for each of the four pixels that a pixel becomes.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, 5, 5))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        init_weight(self.weight, 25 * in_dim)
        tap, at = torch.arange(5), torch.arange(2)[:, None]
        # Pixel `at` of a pair is multiplied by tap k of the pixel at offset (at + k - 2) // 2.
        over = torch.div(at + tap - 2, 2, rounding_mode="floor")[:, None] == torch.arange(-1, 2)[:, None]
        self.register_buffer("over", over.float(), persistent=False)  # (2, 3, 5)
        self.over: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, h, w, in_dim) to (N, h, w, 4, out_dim), which `spread` converts to (N, 2h, 2w, out_dim)."""
        dtype = compute_dtype(self.weight)
        weight = torch.einsum("oikl,apk,bql->aboipq", self.weight, self.over, self.over).flatten(0, 2)
        out: Tensor = _conv(x, weight, self.bias.repeat(4), dtype).unflatten(-1, (4, -1))
        return out


def spread(quarters: Tensor) -> Tensor:
    """Rearrange (N, h, w, 4, C), the pixels of 2x2 squares, to (N, 2h, 2w, C)."""
    # Row by row, also in the gradient: interleaving both axes at once is three times slower on CPUs.
    rows = quarters.unflatten(3, (2, 2)).unbind(3)
    return torch.stack(rows, 2).flatten(1, 2).flatten(2, 3)


class LateLinear:
    """A linear layer in a scan: called once per step; the gradient of its weight is one product over all
    steps.

    Args:
        bias: bias of each step, (T, B, out_dim); default: the bias of the layer.
        columns: number of columns of the weight that the steps use; -1: all.
    """

    def __init__(self, layer: nn.Linear, steps: int, rows: int, bias: Tensor | None = None, columns: int = -1) -> None:
        dtype = compute_dtype(layer.weight)
        weight = layer.weight if columns < 0 else layer.weight[:, :columns]
        bias = layer.bias.to(dtype).expand(steps, rows, -1) if bias is None else bias
        self.weight = weight.detach().to(dtype).t()
        self._seen: list[Tensor] = []
        late: Tensor = _LateLinear.apply(bias, weight, self._seen)  # type: ignore[no-untyped-call]
        self._bias = iter(late.unbind())

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        self._seen.append(x.detach())
        return torch.addmm(next(self._bias), x, self.weight)


class _LateLinear(torch.autograd.Function):
    """The biases of all steps; their gradients determine that of the weight."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, weight: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad = grads[0]
        return grad, grad.flatten(0, 1).t() @ torch.cat(ctx.seen), None


class LateBlocks:
    """`LateLinear` for a block-linear layer; returns (G, B, O) as `BlockLinear.by_block`."""

    def __init__(self, layer: BlockLinear, steps: int, rows: int) -> None:
        dtype = compute_dtype(layer.weight)
        self.own, self.every = split_blocks(layer.weight.detach().to(dtype), layer.own_dim)
        self._seen: list[Tensor] = []
        self._seen_shared: list[Tensor] = []
        bias = layer.bias.to(dtype).expand(steps, rows, -1)
        late = _LateBlocks.apply(bias, layer.weight, self._seen, self._seen_shared)  # type: ignore[no-untyped-call]
        self._bias = iter(late.unbind())

    def __call__(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        x, bias = x.to(self.own.dtype), next(self._bias)
        self._seen.append(x.detach())
        if shared is not None:
            shared = shared.to(self.own.dtype)
            self._seen_shared.append(shared.detach())
            bias = torch.addmm(bias, shared, self.every)
        return apply_blocks(x, self.own, bias)


class _LateBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, weight: Tensor, seen: list[Tensor], shared: list[Tensor]) -> Tensor:
        ctx.seen, ctx.shared, ctx.blocks = seen, shared, len(weight)
        return bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad = grads[0]
        by_block = grad.flatten(0, 1).unflatten(-1, (ctx.blocks, -1)).transpose(0, 1)  # (G, T B, O)
        own = torch.cat(ctx.seen).unflatten(-1, (ctx.blocks, -1)).transpose(0, 1)
        parts = [own.transpose(1, 2) @ by_block]
        if ctx.shared:
            every = torch.cat(ctx.shared).t() @ grad.flatten(0, 1)
            parts.append(every.unflatten(-1, (ctx.blocks, -1)).transpose(0, 1))
        return grad, torch.cat(parts, dim=1), None, None
