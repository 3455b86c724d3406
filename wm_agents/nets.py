"""Layers under the name that families know; those that policies need too live in `policies`."""

from policies.nets import MLP, BlockLinear, Layer, Linear, RMSNorm, init_weight

__all__ = ["MLP", "BlockLinear", "Layer", "Linear", "RMSNorm", "init_weight"]
