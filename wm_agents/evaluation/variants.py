"""Variants of a model's policy, which are played in the dream and in the real environment, and ranked."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from policies.latent import LatentPolicy
from policies.linear import LinearPolicy
from policies.policy import NoisyPolicy, Policy, RandomPolicy
from wm_agents.evaluation.subject import saved_policy
from wm_agents.pretrained import cached_model

SAVED = "as saved"
RANDOM = "random"


class Contender(NamedTuple):
    """One policy on latents."""

    name: str
    noise: float = 0.0
    """Level of exploration noise: see `NoisyPolicy`."""
    weights: NDArray[np.float32] | None = None
    """Weights of a linear controller that replace the saved ones."""


def contenders(policy: Policy | None, space: gym.Space[Any], num: int) -> list[Contender]:
    """Up to `num` policies: the saved one, noisy ones, random actions, and for a linear one perturbed
    weights.

    There are eight for any policy, ten for a linear one, and twelve for a linear one with Box actions.
    """
    if policy is None:
        return [Contender(RANDOM)]
    noisy = [Contender(f"noise {level}", noise=level) for level in (0.2, 0.5, 1.0, 0.35, 0.1, 0.75)]
    bent = []
    if isinstance(policy, LinearPolicy):
        bent = _bent(policy, space)
    # The first eight should differ as much as possible.
    return [Contender(SAVED), Contender(RANDOM), *noisy[:3], *bent, *noisy[3:]][:num]


def _bent(policy: LinearPolicy, space: gym.Space[Any]) -> list[Contender]:
    weights, rng = policy.weights, np.random.default_rng(0)
    noise = rng.standard_normal(weights.shape) * np.sqrt(np.mean(np.square(weights)))
    found = [
        Contender("weights half replaced", weights=_floats(0.5 * weights + 0.5 * noise)),
        Contender("weights perturbed by 20 %", weights=_floats(weights + 0.2 * noise)),
    ]
    if isinstance(space, spaces.Box):  # Scaling does not change discrete actions.
        found += [Contender(f"weights x {by}", weights=_floats(by * weights)) for by in (0.5, 0.25)]
    return found


def _floats(weights: NDArray[Any]) -> NDArray[np.float32]:
    return weights.astype(np.float32)


def controller(policy: Policy | None, space: gym.Space[Any], who: Contender) -> Policy:
    """Create the variant as a policy on latents; `policy` is the saved one.

    Raises:
        ValueError: it needs the saved policy, and there is none.
    """
    if who.name == RANDOM:
        return RandomPolicy(space)
    if who.weights is not None:
        policy = LinearPolicy(space, who.weights, squash_of(policy))
    if policy is None:
        raise ValueError(
            f"the variant {who.name!r} changes the saved policy of the model, got none; save the model with a policy"
        )
    if who.noise:
        return NoisyPolicy(policy, space, (who.noise,))
    return policy


def squash_of(policy: Policy | None) -> tuple[str, ...] | None:
    """The squashing functions of a linear policy; None: those of the action space."""
    if isinstance(policy, LinearPolicy):
        return policy.squash
    return None


def drive(model: str, who: Contender) -> Policy:
    """Create the variant as a policy on real frames, in a worker, with the encoder of `model`."""
    net, artifact = cached_model(model)
    return LatentPolicy(net, controller(saved_policy(net, artifact), net.act_space, who))
