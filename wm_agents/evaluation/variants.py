"""Policies around the one that a model carries: the same ones play in the dream and for real, and are ranked."""

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
    """Exploration noise on it: see `NoisyPolicy`."""
    weights: NDArray[np.float32] | None = None
    """Of a linear controller, in place of the saved one."""


def contenders(policy: Policy | None, space: gym.Space[Any], num: int) -> list[Contender]:
    """`num` policies or fewer, the saved one first: with noise, random, and for a linear one bent in its weights.

    Any policy has eight, a linear one ten, a linear one with Box actions twelve.
    """
    if policy is None:
        return [Contender(RANDOM)]
    noisy = [Contender(f"noise {level}", noise=level) for level in (0.2, 0.5, 1.0, 0.35, 0.1, 0.75)]
    bent = _bent(policy, space) if isinstance(policy, LinearPolicy) else []
    # The first eight are to be as different as can be.
    return [Contender(SAVED), Contender(RANDOM), *noisy[:3], *bent, *noisy[3:]][:num]


def _bent(policy: LinearPolicy, space: gym.Space[Any]) -> list[Contender]:
    weights, rng = policy.weights, np.random.default_rng(0)
    noise = rng.standard_normal(weights.shape) * np.sqrt(np.mean(np.square(weights)))
    found = [
        Contender("weights half replaced", weights=_floats(0.5 * weights + 0.5 * noise)),
        Contender("weights shaken by a fifth", weights=_floats(weights + 0.2 * noise)),
    ]
    if isinstance(space, spaces.Box):  # Scaling changes no choice.
        found += [Contender(f"weights x {by}", weights=_floats(by * weights)) for by in (0.5, 0.25)]
    return found


def _floats(weights: NDArray[Any]) -> NDArray[np.float32]:
    return weights.astype(np.float32)


def controller(policy: Policy | None, space: gym.Space[Any], who: Contender) -> Policy:
    """The contender on latents; `policy` is the saved one.

    Raises:
        ValueError: it is made from the saved one, and there is none.
    """
    if who.name == RANDOM:
        return RandomPolicy(space)
    if who.weights is not None:
        policy = LinearPolicy(space, who.weights, squash_of(policy))
    if policy is None:
        raise ValueError(f"contender {who.name!r} needs a saved policy, got none")
    return NoisyPolicy(policy, space, (who.noise,)) if who.noise else policy


def squash_of(policy: Policy | None) -> tuple[str, ...] | None:
    """How a linear policy squashes; None leaves it to the action space."""
    return policy.squash if isinstance(policy, LinearPolicy) else None


def drive(model: str, who: Contender) -> Policy:
    """The contender on real frames, in a worker: `model` says by what eyes."""
    net, artifact = cached_model(model)
    return LatentPolicy(net, controller(saved_policy(net, artifact), net.act_space, who))
