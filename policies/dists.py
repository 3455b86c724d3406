"""Distributions of world models and critics: values over bins, and one-hot categoricals; all in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): the identity near 0, a logarithm far out (Hafner et al. 2023, eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (e^|x| - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """Real values as logits over bins: a target is split between the two nearest bins.

    Args:
        num: number of bins.
        limit: the outermost bins are at -limit and limit, in symlog.
        space: where distances are measured. "symexp": between bins at symexp of an even grid (DreamerV3);
            "symlog": on the even grid itself, with values mapped by symlog and back by symexp (TD-MPC2).
    """

    def __init__(self, num: int = 255, limit: float = 20.0, space: Literal["symexp", "symlog"] = "symexp") -> None:
        super().__init__()
        if num < 3 or num % 2 == 0 or not limit > 0:
            raise ValueError(f"TwoHot needs an odd num of at least 3 and a limit above 0, got {num} and {limit}")
        self.num, self.limit, self.space = num, limit, space
        half = torch.linspace(-limit, 0, num // 2 + 1)
        # Stores the grid instead of its symexp, so that a model in half precision stays in range.
        self.register_buffer("grid", torch.cat([half, -half[:-1].flip(0)]), persistent=False)
        self.grid: Tensor

    @property
    def bins(self) -> Tensor:
        """The bins (num,) in the space in which distances are measured."""
        grid = self.grid.float()
        if self.space == "symexp":
            return symexp(grid)
        return grid

    def mean(self, logits: Tensor) -> Tensor:
        """The expected value (...) of logits (..., num)."""
        probs, bins, half = logits.float().softmax(-1), self.bins, self.num // 2
        # Mirrored bins are added in pairs, so that uniform probabilities give exactly 0.
        pairs = probs[..., half + 1 :] - probs[..., :half].flip(-1)
        mean = (pairs * bins[half + 1 :]).sum(-1)
        if self.space == "symexp":
            return mean
        return symexp(mean)

    def shares(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For values (...): the bin below, the bin above, and the weight of the bin above; each (...)."""
        bins = self.bins
        x = target.detach().float()
        if self.space != "symexp":
            x = symlog(x)
        x = x.clamp(bins[0], bins[-1])
        above = torch.bucketize(x, bins).clamp(min=1)
        low, high = bins[above - 1], bins[above]
        return above - 1, above, (x - low) / (high - low)

    def encode(self, target: Tensor) -> Tensor:
        """Values (...) as weights (..., num) that sum to 1."""
        below, above, share = self.shares(target)
        hot = torch.zeros(*target.shape, self.num, device=target.device)
        return hot.scatter(-1, below[..., None], 1 - share[..., None]).scatter(-1, above[..., None], share[..., None])

    def loss(self, logits: Tensor, target: Tensor, also: Tensor | None = None, weight: float = 1.0) -> Tensor:
        """Cross-entropy (...) of logits (..., num) against values (...), which get no gradient.

        `also` is a second target; its cross-entropy is added with `weight`.
        """
        below, above, share = self.shares(target)
        index, parts = [below, above], [1 - share, share]
        if also is not None:
            below, above, share = self.shares(also)
            index, parts = [*index, below, above], [*parts, weight * (1 - share), weight * share]
        picked = logits.float().log_softmax(-1).gather(-1, torch.stack(index, -1))
        return -(picked * torch.stack(parts, -1)).sum(-1)


def mixed(logits: Tensor, unimix: float = 0.01, dim: int = -1) -> Tensor:
    """Probabilities of logits over axis `dim`, mixed with a share `unimix` of the uniform distribution."""
    probs = logits.float().softmax(dim)
    if unimix == 0:
        return probs
    return (1 - unimix) * probs + unimix / probs.shape[dim]


def tempered(probs: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """Probabilities whose logarithms are divided by a temperature above 0."""
    if temperature == 1:
        return probs
    return (probs.log() / temperature).softmax(dim)


def draw_one_hot(probs: Tensor, uniform: Tensor, dim: int = -1) -> Tensor:
    """One-hot samples of probabilities, by inverse transform sampling from uniform numbers in [0, 1)."""
    ends = probs.cumsum(dim).narrow(dim, 0, probs.shape[dim] - 1)
    before = (uniform.unsqueeze(dim) < ends).to(probs.dtype)
    edge = torch.zeros_like(probs.narrow(dim, 0, 1))
    # The last class gets the rounding error of the cumulative sum.
    return torch.diff(before, dim=dim, prepend=edge, append=edge + 1)


def likeliest(probs: Tensor, dim: int = -1) -> Tensor:
    """One-hot vectors of the most likely classes."""
    return torch.zeros_like(probs).scatter(dim, probs.argmax(dim, keepdim=True), 1)


def straight_through(hot: Tensor, probs: Tensor) -> Tensor:
    """The value of the one-hot vector with the gradient of the probabilities (Bengio et al. 2013)."""
    return hot + (probs - probs.detach())


def entropy(probs: Tensor, dim: int = -1) -> Tensor:
    """Entropy in nats over `dim`; probabilities of 0 contribute 0."""
    each: Tensor = torch.special.entr(probs)
    return each.sum(dim)
