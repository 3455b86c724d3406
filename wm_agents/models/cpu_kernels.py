"""Functions of the models that are faster on CPUs than PyTorch's own.

`tests/test_cpu_kernels.py` compares each with its plain definition.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(x: Tensor) -> Tensor:
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


def pixel_loss(logits: Tensor, frames: Tensor) -> Tensor:
    """Sum over the frame (N,) of (sigmoid(logits) - frames)², for frames (N, H, W, C) as uint8 or in [0, 1]."""
    return cast(Tensor, _PixelLoss.apply(logits, frames))  # type: ignore[no-untyped-call]


class _PixelLoss(torch.autograd.Function):
    """A few frames at a time to save memory: a batch in float32 takes 50 MB per operation."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, frames: Tensor) -> Tensor:
        losses, slopes = [], torch.empty_like(logits)
        rows = 16
        if logits.device.type != "cpu":
            rows = len(logits)
        for x, y, slope in zip(logits.split(rows), frames.split(rows), slopes.split(rows), strict=True):
            pixel = torch.sigmoid(x.float())
            error = torch.sub(pixel, y, alpha=1 / 255 if y.dtype == torch.uint8 else 1)
            losses.append(torch.linalg.vector_norm(error, dim=(1, 2, 3)).square())
            slope.copy_(torch.ops.aten.sigmoid_backward(error, pixel))
        ctx.save_for_backward(slopes)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * (2 * grads[0]).to(slopes.dtype)[:, None, None, None], None


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra 2019)."""
    out: Tensor = F.mish(x) if x.is_cuda else _Mish.apply(x)  # type: ignore[no-untyped-call]
    return out


class _Mish(torch.autograd.Function):
    """x (1 - s²) / (1 + s²) with s = sigmoid(-x): the same function, several times faster on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.neg()
        r = out.sigmoid().square_().add_(1).reciprocal_()
        out.addcmul_(x, r, value=2)
        if ctx.needs_input_grad[0]:
            # Stores only the slope, 2 r - 1 + 4 (r - r²) x sigmoid(x), because the time goes into memory
            # access.
            bend = torch.addcmul(r, r, r, value=-1).mul_(F.silu(x))
            ctx.save_for_backward(r.mul_(2).sub_(1).add_(bend, alpha=4))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return slope * grad


def dropout_(x: Tensor, share: float) -> Tensor:
    """Dropout in place: each value becomes 0 with probability `share`, and the others are scaled up.

    Few values are dropped, so their positions are sampled instead of a number for each position: a Poisson
    number of uniform hits falls on each position independently, and misses it with probability 1 - share.
    """
    if x.is_cuda:
        return F.dropout(x, share)
    hits = torch.poisson(torch.tensor(-x.numel() * math.log1p(-share)))
    x.view(-1).index_fill_(0, torch.randint(x.numel(), (int(hits),)), 0.0)
    return x.mul_(1 / (1 - share))
