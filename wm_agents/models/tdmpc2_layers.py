"""Layers of TD-MPC2: linear, layer norm, Mish or SimNorm; and ensembles of such networks as batched products.

Everything except products is in float32, also under autocast. Weights are initialised with a normal of
standard deviation 0.02, biases with zero.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.models.cpu_kernels import dropout_, mish


class QEnsemble(nn.Module):
    """`members` independent networks as batched products: two hidden layers each, dropout in the first."""

    def __init__(self, members: int, dims: list[int], dropout: float) -> None:
        super().__init__()
        self.members, self.dropout = members, dropout
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, i, o)) for i, o in pairwise(dims))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in dims[1:])
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(members, 1, o)) for o in dims[1:-1])
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in dims[1:-1])
        for weight in self.weights:
            _init_small(weight)
        nn.init.zeros_(self.weights[-1])

    def forward(self, x: Tensor, which: Tensor | None = None, *, drop: bool = False, frozen: bool = False) -> Tensor:
        """Map (..., I) to (K, ..., O) for the members `which` (K,) or all; with `frozen` they get no
        gradient."""

        def of(params: nn.ParameterList, i: int) -> Tensor:
            param: Tensor = params[i]
            if frozen:
                param = param.detach()
            if which is not None:
                param = param[which]
            return param

        shape = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1]).to(self.weights[0].dtype)
        num = self.members
        if which is not None:
            num = len(which)
        x = x.expand(num, -1, -1)
        for i in range(len(self.gains)):
            x = torch.baddbmm(of(self.biases, i), x, of(self.weights, i))
            if drop and i == 0:
                x = dropout_(x, self.dropout)
            x = F.layer_norm(x.float(), x.shape[-1:])
            x = mish(torch.addcmul(of(self.shifts, i).float(), of(self.gains, i).float(), x)).to(self.weights[0].dtype)
        x = torch.baddbmm(of(self.biases, -1), x, of(self.weights, -1))
        out: Tensor = x.unflatten(1, shape)
        return out


class Small(nn.Linear):
    """A linear layer with the small initial weights of TD-MPC2."""

    def reset_parameters(self) -> None:
        _init_small(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class _NormedLinear(Small):
    """Linear, layer norm, and Mish or SimNorm over groups of `simnorm_dim`."""

    def __init__(self, in_dim: int, out_dim: int, simnorm_dim: int = 0) -> None:
        super().__init__(in_dim, out_dim)
        self.simnorm_dim = simnorm_dim
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = self.norm.weight.float(), self.norm.bias.float()
        x = F.layer_norm(super().forward(x).float(), gain.shape, gain, shift)
        if self.simnorm_dim:
            return _simnorm(x, self.simnorm_dim)
        return mish(x)


def _init_small(weight: Tensor) -> None:
    """Fill with a normal of standard deviation 0.02."""
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=0.02)


def mlp(dims: list[int], simnorm_dim: int = 0) -> nn.Sequential:
    """Normed layers with Mish between `dims`; the last one is linear, or ends with SimNorm."""
    layers = [_NormedLinear(a, b) for a, b in pairwise(dims[:-1])]
    a, b = dims[-2:]
    return nn.Sequential(*layers, _NormedLinear(a, b, simnorm_dim) if simnorm_dim else Small(a, b))


class SimNorm(nn.Module):
    """Softmax over groups of `dim`, as a layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return _simnorm(x.float(), self.dim)


class Spread(nn.Module):
    """Reorders (..., L) such that `dim` adjacent units become one group of SimNorm.

    Behind a convolution, the order of units has a meaning: as published, a group is 8 neighbouring places of a channel.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        groups: Tensor = x.unflatten(-1, (-1, self.dim))
        return groups.transpose(-1, -2).flatten(-2)


def _simnorm(x: Tensor, dim: int) -> Tensor:
    """Softmax over groups of `dim`, (..., L) to (..., L); the members of a group are L / dim apart.

    In the published code the members of a group are adjacent. Between linear layers the order of units does not matter,
    and a softmax over an inner axis of 8 is 20 to 40 times slower on a CPU. `Spread` is for convolutions.
    """
    groups: Tensor = x.unflatten(-1, (dim, -1))
    return groups.softmax(-2).flatten(-2)
