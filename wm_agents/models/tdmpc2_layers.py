"""Layers as TD-MPC2 has them: linear, layer norm, and Mish or SimNorm; and many such networks in one batched product.

Everything but products is in float32, under autocast too. Weights begin as a normal of deviation 0.02, biases at zero.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QEnsemble(nn.Module):
    """`members` networks in one batched product: two hidden layers each, dropout in the first.

    Their products run as one; the loss of each member is its own.
    """

    def __init__(self, members: int, dims: list[int], dropout: float) -> None:
        super().__init__()
        self.members, self.dropout = members, dropout
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, i, o)) for i, o in pairwise(dims))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in dims[1:])
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(members, 1, o)) for o in dims[1:-1])
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in dims[1:-1])
        for weight in self.weights:
            init_small(weight)
        nn.init.zeros_(self.weights[-1])

    def forward(self, x: Tensor, which: Tensor | None = None, *, drop: bool = False, frozen: bool = False) -> Tensor:
        """(..., I) to (K, ..., O), of the members `which` (K,) or of all; `frozen` ones get no gradient."""

        def of(params: nn.ParameterList, i: int) -> Tensor:
            param: Tensor = params[i].detach() if frozen else params[i]
            return param if which is None else param[which]

        shape = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1]).to(self.weights[0].dtype)
        x = x.expand(self.members if which is None else len(which), -1, -1)
        for i in range(len(self.gains)):
            x = torch.baddbmm(of(self.biases, i), x, of(self.weights, i))
            if drop and i == 0:
                x = drop_(x, self.dropout)
            x = F.layer_norm(x.float(), x.shape[-1:])
            x = mish(torch.addcmul(of(self.shifts, i).float(), of(self.gains, i).float(), x)).to(self.weights[0].dtype)
        x = torch.baddbmm(of(self.biases, -1), x, of(self.weights, -1))
        out: Tensor = x.unflatten(1, shape)
        return out


class Small(nn.Linear):
    """A linear layer that begins small, as all of TD-MPC2's do."""

    def reset_parameters(self) -> None:
        init_small(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class NormedLinear(Small):
    """Linear, layer norm, and Mish, or SimNorm over groups of `simnorm_dim`."""

    def __init__(self, in_dim: int, out_dim: int, simnorm_dim: int = 0) -> None:
        super().__init__(in_dim, out_dim)
        self.simnorm_dim = simnorm_dim
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = self.norm.weight.float(), self.norm.bias.float()
        x = F.layer_norm(super().forward(x).float(), gain.shape, gain, shift)
        return simnorm(x, self.simnorm_dim) if self.simnorm_dim else mish(x)


def init_small(weight: Tensor) -> None:
    """Fill with a normal of deviation 0.02."""
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=0.02)


def mlp(dims: list[int], simnorm_dim: int = 0) -> nn.Sequential:
    """Normed layers with Mish between `dims`; the last one is plain, or ends in SimNorm."""
    layers = [NormedLinear(a, b) for a, b in pairwise(dims[:-1])]
    a, b = dims[-2:]
    return nn.Sequential(*layers, NormedLinear(a, b, simnorm_dim) if simnorm_dim else Small(a, b))


class SimNorm(nn.Module):
    """`simnorm` as a layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return simnorm(x.float(), self.dim)


def simnorm(x: Tensor, dim: int) -> Tensor:
    """Softmax over groups of `dim`, (..., L) to (..., L); the members of a group are L / dim apart.

    The published groups lie side by side. Which units form one is a matter of their names only, and a softmax over the
    inner axis of 8 is 20 to 40 times as slow on a CPU.
    """
    groups: Tensor = x.unflatten(-1, (dim, -1))
    return groups.softmax(-2).flatten(-2)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra 2019)."""
    out: Tensor = F.mish(x) if x.is_cuda else _Mish.apply(x)  # type: ignore[no-untyped-call]
    return out


class _Mish(torch.autograd.Function):
    """x (1 - s²) / (1 + s²) with s = sigmoid(-x): the same, several times as fast on a CPU as torch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.neg()
        r = out.sigmoid().square_().add_(1).reciprocal_()
        out.addcmul_(x, r, value=2)
        if ctx.needs_input_grad[0]:
            # The slope, 2 r - 1 + 4 (r - r²) x sigmoid(x), is all that is kept: memory is what takes time here.
            bend = torch.addcmul(r, r, r, value=-1).mul_(F.silu(x))
            ctx.save_for_backward(r.mul_(2).sub_(1).add_(bend, alpha=4))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return slope * grad


def drop_(x: Tensor, share: float) -> Tensor:
    """Dropout in place: each number becomes 0 with chance `share`, the others grow to make up for it.

    Few are dropped, so their places are drawn and not a number for each place: evenly spread hits, a Poisson number of
    them, fall on each place independently of the others, and miss it with chance 1 - share.
    """
    if x.is_cuda:
        return F.dropout(x, share)
    hits = torch.poisson(torch.tensor(-x.numel() * math.log1p(-share)))
    x.view(-1).index_fill_(0, torch.randint(x.numel(), (int(hits),)), 0.0)
    return x.mul_(1 / (1 - share))
