"""A small network from feat to action: a trained policy without its training code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from policies.policy import Policy
from wm_envs.action import act_dim, clip_action, decode_action

Array = NDArray[Any]
Layer = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu, "silu": F.silu}
SQUASHES: dict[str, tuple[type[gym.Space[Any]], ...]] = {
    "clip": (spaces.Box,),
    "tanh": (spaces.Box,),
    "unit": (spaces.Box,),
    "argmax": (spaces.Discrete, spaces.MultiDiscrete),
    "sign": (spaces.MultiBinary,),
}


class MLPPolicy:
    """Acts deterministically by `squash(W_n act(... act(W_1 feat + b_1)) + b_n)`.

    Args:
        act_space: the single action space.
        layers: weight (out, in) and bias (out,) of every layer; copied, in float32.
        activation: "tanh", "relu" or "silu", after every layer except the last.
        squash: converts outputs to actions. Box: "clip" to the bounds; "unit" scales [-1, 1] to the bounds and
            clips; "tanh" does so after a tanh. Discrete and MultiDiscrete: "argmax". MultiBinary: "sign", 1 above
            0.
    """

    def __init__(self, act_space: gym.Space[Any], layers: Sequence[Layer], activation: str, squash: str) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        fits = sorted(name for name, kinds in SQUASHES.items() if isinstance(act_space, kinds))
        if squash not in fits:
            raise ValueError(f"squash must be one of {fits} for {act_space}, got {squash!r}")
        self.space, self.activation, self.squash = act_space, activation, squash
        self.layers = [tuple(part.detach().cpu().float().clone() for part in layer) for layer in layers]
        _check_shapes(self.layers, act_dim(act_space), act_space)

    @property
    def feat_dim(self) -> int:
        """Width of its observations."""
        return int(self.layers[0][0].shape[1])

    def reset(self, num: int, seed: int) -> None:
        """Does nothing: the policy has no state."""

    def act(self, obs: Array) -> Array:
        """Map feat (N, F) to the env's own actions (N, *space.shape)."""
        if obs.ndim != 2 or obs.shape[1] != self.feat_dim:
            raise ValueError(f"obs must be (N, {self.feat_dim}), got {obs.shape}")
        outs = self.outputs(obs).numpy()
        if self.squash == "clip":
            assert isinstance(self.space, spaces.Box), self.space
            return clip_action(self.space, outs.reshape(len(outs), *self.space.shape))
        if self.squash == "tanh":
            outs = np.tanh(outs)
        return decode_action(self.space, outs)

    def outputs(self, obs: Array) -> Tensor:
        """The last layer's outputs (N, A) for feat (N, F), before they become actions."""
        x = torch.from_numpy(np.ascontiguousarray(obs, np.float32))
        *hidden, (weight, bias) = self.layers
        for w, b in hidden:
            x = ACTIVATIONS[self.activation](F.linear(x, w, b))
        return F.linear(x, weight, bias)

    def tensors(self) -> dict[str, Tensor]:
        """The layers by name, for a safetensors file."""
        return {
            f"{i}.{name}": part for i, layer in enumerate(self.layers) for name, part in zip(("weight", "bias"), layer)
        }

    def about(self) -> dict[str, str]:
        """Settings for the metadata of the file."""
        return {"kind": "mlp", "activation": self.activation, "squash": self.squash}

    @classmethod
    def from_tensors(
        cls, act_space: gym.Space[Any], tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> MLPPolicy:
        """Restore a policy from its `tensors` and `about`.

        Raises:
            ValueError: they belong to another kind of policy, or to another action space.
        """
        if about.get("kind") != "mlp" or not {"activation", "squash"} <= about.keys():
            raise ValueError(
                f"metadata must contain kind='mlp' and the keys 'activation' and 'squash', got {dict(about)}"
            )
        names = [f"{i}.{part}" for i in range(len(tensors) // 2) for part in ("weight", "bias")]
        if not names or sorted(names) != sorted(tensors):
            raise ValueError(f"tensors must be '0.weight', '0.bias' and so on, got {sorted(tensors)}")
        layers = [(tensors[weight], tensors[bias]) for weight, bias in zip(names[::2], names[1::2])]
        return cls(act_space, layers, about["activation"], about["squash"])


def mean_mlp(policies: Sequence[MLPPolicy]) -> MLPPolicy:
    """The policy whose weights are the mean of those of `policies`, states of one training.

    It is usually better than each of them: Polyak & Juditsky 1992, Izmailov et al. 2018.
    """
    first = policies[0]
    layers = [
        (torch.stack([weight for weight, _ in layer]).mean(0), torch.stack([bias for _, bias in layer]).mean(0))
        for layer in zip(*(policy.layers for policy in policies), strict=True)
    ]
    return MLPPolicy(first.space, layers, first.activation, first.squash)


class DrawnPolicy:
    """Samples discrete actions with the probabilities of a network, as PPO does in training.

    Args:
        policy: a network whose outputs are logits of Discrete actions.

    Raises:
        ValueError: it is not an `MLPPolicy` with Discrete actions.
    """

    def __init__(self, policy: Policy) -> None:
        if not isinstance(policy, MLPPolicy) or not isinstance(policy.space, spaces.Discrete):
            raise ValueError(f"sampling actions needs an MLPPolicy with Discrete actions, got {policy!r}")
        self.policy, self.space = policy, policy.space

    def reset(self, num: int, seed: int) -> None:
        self.policy.reset(num, seed)
        self.rng = np.random.default_rng([seed, 3])  # Independent of the streams of other policies.

    def act(self, obs: Array) -> Array:
        shares = self.policy.outputs(obs).double().softmax(1).cumsum(1).numpy()
        drawn = (shares[:, :-1] < self.rng.random((len(obs), 1))).sum(1)
        return np.asarray(drawn + self.space.start, self.space.dtype)


def _check_shapes(layers: Sequence[tuple[Tensor, ...]], outs: int, space: gym.Space[Any]) -> None:
    shapes = [tuple(tuple(part.shape) for part in layer) for layer in layers]
    agree = all(len(s) == 2 and len(s[0]) == 2 and s[1] == s[0][:1] for s in shapes)
    if not shapes or not agree or any(before[0][0] != after[0][1] for before, after in pairwise(shapes)):
        raise ValueError(f"layers must be weights (out, in) and biases (out,) of matching sizes, got {shapes}")
    if shapes[-1][0][0] != outs:
        raise ValueError(f"the last layer must have {outs} outputs for {space}, got {shapes[-1][0][0]}")
