"""Linear layers for loops over time, whose weight gradients are computed once for all steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from policies.nets import BlockLinear, apply_blocks, compute_dtype, split_blocks


class ScanLinear:
    """A linear layer in a scan: called once per step; the gradient of its weight is one product over all
    steps.

    Args:
        bias: bias of each step, (T, B, out_dim); default: the bias of the layer.
        columns: number of columns of the weight that the steps use; -1: all.
    """

    def __init__(self, layer: nn.Linear, steps: int, rows: int, bias: Tensor | None = None, columns: int = -1) -> None:
        dtype = compute_dtype(layer.weight)
        weight = layer.weight if columns < 0 else layer.weight[:, :columns]
        if bias is None:
            bias = layer.bias.to(dtype).expand(steps, rows, -1)
        self.weight = weight.detach().to(dtype).t()
        self._seen: list[Tensor] = []
        late: Tensor = _LateGradient.apply(bias, weight, self._seen)  # type: ignore[no-untyped-call]
        self._bias = iter(late.unbind())

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        self._seen.append(x.detach())
        return torch.addmm(next(self._bias), x, self.weight)


class _LateGradient(torch.autograd.Function):
    """The biases of all steps; their gradients determine that of the weight."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, weight: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad = grads[0]
        return grad, grad.flatten(0, 1).t() @ torch.cat(ctx.seen), None


class ScanBlocks:
    """`ScanLinear` for a block-linear layer; the output has shape (G, B, O), like that of `BlockLinear.by_block`."""

    def __init__(self, layer: BlockLinear, steps: int, rows: int) -> None:
        dtype = compute_dtype(layer.weight)
        self.own, self.every = split_blocks(layer.weight.detach().to(dtype), layer.own_dim)
        self._seen: list[Tensor] = []
        self._seen_shared: list[Tensor] = []
        bias = layer.bias.to(dtype).expand(steps, rows, -1)
        late = _LateBlockGradient.apply(bias, layer.weight, self._seen, self._seen_shared)  # type: ignore[no-untyped-call]
        self._bias = iter(late.unbind())

    def __call__(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        x, bias = x.to(self.own.dtype), next(self._bias)
        self._seen.append(x.detach())
        if shared is not None:
            shared = shared.to(self.own.dtype)
            self._seen_shared.append(shared.detach())
            bias = torch.addmm(bias, shared, self.every)
        return apply_blocks(x, self.own, bias)


class _LateBlockGradient(torch.autograd.Function):
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
