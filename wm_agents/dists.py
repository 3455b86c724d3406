"""Distributions under the name that families know; they live in `policies`, whose critics need them too."""

from policies.dists import (
    TwoHot,
    draw_one_hot,
    entropy,
    likeliest,
    mixed,
    straight_through,
    symexp,
    symlog,
    tempered,
)

__all__ = [
    "TwoHot",
    "draw_one_hot",
    "entropy",
    "likeliest",
    "mixed",
    "straight_through",
    "symexp",
    "symlog",
    "tempered",
]
