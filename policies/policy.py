"""The Policy protocol, and exploration policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wm_envs.action import act_dim, clip_action, decode_action

Array = NDArray[Any]
Space = spaces.Space[Any]
Floats = NDArray[np.float64]


class Policy(Protocol):
    """Chooses actions for N episodes at once; row i of every array belongs to environment i."""

    def reset(self, num: int, seed: int) -> None:
        """Start `num` new episodes; `seed` determines all randomness of the policy."""

    def act(self, obs: Array) -> Array:
        """Map observations (N, ...) to the environment's own actions (N, *action_space.shape)."""


class RandomPolicy:
    """A uniform random action in every step."""

    def __init__(self, space: Space) -> None:
        self.space = _check_space(space)

    def reset(self, num: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, obs: Array) -> Array:
        return sample_actions(self.space, len(obs), self.rng)


class HeldActions:
    """Uniform random actions, each repeated for a random number of steps."""

    def __init__(self, space: Space, min_hold: int = 1, max_hold: int = 10) -> None:
        if not 1 <= min_hold <= max_hold:
            raise ValueError(f"need 1 <= min_hold <= max_hold, got {min_hold} and {max_hold}")
        self.space, self.min_hold, self.max_hold = _check_space(space), min_hold, max_hold

    def reset(self, num: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.held = sample_actions(self.space, num, self.rng)
        self.left = self._draw_holds(num)

    def act(self, obs: Array) -> Array:
        over = self.left == 0
        if over.any():
            self.held[over] = sample_actions(self.space, int(over.sum()), self.rng)
            self.left[over] = self._draw_holds(int(over.sum()))
        self.left -= 1
        return self.held.copy()

    def _draw_holds(self, num: int) -> NDArray[np.int64]:
        return self.rng.integers(self.min_hold, self.max_hold + 1, num)


class OrnsteinUhlenbeck:
    """Smooth random actions for a Box: x += theta (mean - x) dt + sigma sqrt(dt) noise, a new mean each episode.

    x = 0 means no action, and x = -1 and 1 are the bounds. A dimension with lower bound 0 (a pedal, a
    thruster) clips negative x to 0, so it is used intermittently. The first such dimension has a mean drawn
    from `drive`, later ones a mean drawn from `oppose`, because they would cancel out otherwise (gas and
    brake of CarRacing).
    """

    def __init__(
        self,
        space: Space,
        theta: float = 0.5,
        sigma: float = 0.5,
        dt: float = 1.0,
        *,
        spread: tuple[float, float] = (-0.1, 0.1),
        drive: tuple[float, float] = (-0.4, 0.2),
        oppose: tuple[float, float] = (-1.5, -0.8),
    ) -> None:
        self.space = check_box(space)
        if not (theta > 0 and sigma >= 0 and 0 < theta * dt < 2):
            raise ValueError(f"need theta > 0, sigma >= 0, 0 < theta * dt < 2; got {theta=}, {sigma=}, {dt=}")
        self.theta, self.sigma, self.dt = theta, sigma, dt
        one_sided = _is_one_sided(self.space)
        first = one_sided & (np.cumsum(one_sided) == 1)
        ranges = np.full((len(first), 2), spread)
        ranges[one_sided], ranges[first] = oppose, drive
        self.mean_low, self.mean_high = ranges.T

    def reset(self, num: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.mean = self.rng.uniform(self.mean_low, self.mean_high, (num, len(self.mean_low)))
        self.x = np.clip(self.mean, -1, 1)

    def act(self, obs: Array) -> Array:
        noise = self.rng.standard_normal(self.x.shape)
        self.x = self.x + self.theta * self.dt * (self.mean - self.x) + self.sigma * np.sqrt(self.dt) * noise
        return _from_unit(self.space, self.x)


class _RandomNetwork:
    """A small random network of the observation, resampled in each episode."""

    def __init__(self, space: Space, hidden: int = 32, gain: float = 2.0) -> None:
        self.space, self.hidden, self.gain = _check_space(space), hidden, gain

    def reset(self, num: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights: tuple[Floats, Floats, Floats] | None = None

    def act(self, obs: Array) -> Array:
        x = _features(obs)
        if self.weights is None:
            self.first = x
            self.weights = self._draw_weights(len(x), x.shape[1])
        w_in, bias, w_out = self.weights
        hid = np.tanh(np.einsum("nf,nfh->nh", x - 0.5 * self.first, w_in) + bias)
        scores = self.gain * np.einsum("nh,nha->na", hid, w_out)
        if isinstance(self.space, spaces.Box):
            scores = np.tanh(scores)
        return decode_action(self.space, scores)

    def _draw_weights(self, num: int, width: int) -> tuple[Floats, Floats, Floats]:
        w_in = self.rng.standard_normal((num, width, self.hidden)) / np.sqrt(width)
        bias = self.rng.standard_normal((num, self.hidden)) * 0.5
        w_out = self.rng.standard_normal((num, self.hidden, act_dim(self.space))) / np.sqrt(self.hidden)
        return 2 * w_in, bias, w_out


class _Mixture:
    """Plays each episode with one of `policies`, sampled at the start of the episode."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        if not policies:
            raise ValueError("a mixture needs at least one policy, got none")
        self.policies = list(policies)

    def reset(self, num: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])  # Independent of the streams of the policies.
        self.pick = rng.integers(len(self.policies), size=num)
        for policy in self.policies:
            policy.reset(num, seed)

    def act(self, obs: Array) -> Array:
        acts = np.stack([policy.act(obs) for policy in self.policies])  # (P, N, ...)
        return acts[self.pick, np.arange(len(obs))]


def explorer(env: gym.Env[Any, Any]) -> Policy:
    """The exploration policy for collection without a controller.

    Box: smooth random actions. Otherwise: random actions that are repeated for 1 to 4 steps, which reach more
    states than longer repeats (docs/log.md). With vector observations, random networks play half of the
    episodes.
    """
    space = env.action_space
    if isinstance(space, spaces.Box):
        return OrnsteinUhlenbeck(space)
    held = HeldActions(space, 1, 4)
    sees_vectors = len(env.observation_space.shape or ()) == 1
    if sees_vectors:
        return _Mixture([held, _RandomNetwork(space)])
    return held


class NoisyPolicy:
    """A policy with exploration noise, whose level is drawn from `noise` for each episode.

    Box: Ornstein-Uhlenbeck noise; the level is its standard deviation relative to half the range.
    Otherwise: the level is the share of steps with repeated random actions.

    Args:
        leave: share of episodes in which repeated random actions take over until the end. They start in
            states that only the policy reaches, and find states that it avoids (after Ecoffet et al. 2021,
            "Go-Explore").
        leave_by: the random actions take over within the first `leave_by` steps.
    """

    def __init__(
        self,
        policy: Policy,
        space: Space,
        noise: tuple[float, ...] = (0.0, 0.3, 0.6),
        leave: float = 0.0,
        leave_by: int = 300,
    ) -> None:
        if not noise or min(noise) < 0:
            raise ValueError(f"noise must be one or more levels >= 0, got {noise}")
        if not 0 <= leave <= 1 or leave_by < 1:
            raise ValueError(f"need 0 <= leave <= 1 and leave_by >= 1, got {leave=} and {leave_by=}")
        self.policy, self.space, self.noise = policy, _check_space(space), noise
        self.leave, self.leave_by = leave, leave_by
        self.theta = 0.15
        self.other = HeldActions(space)

    def reset(self, num: int, seed: int) -> None:
        self.policy.reset(num, seed)
        self.rng = np.random.default_rng([seed, 1])  # Independent of the stream of the wrapped policy.
        self.level = self.rng.choice(self.noise, num)
        self.x = np.zeros((num, act_dim(self.space)))
        self.astray = np.zeros(num, bool)
        self.other.reset(num, int(self.rng.integers(2**31)))
        leaves, moment = self.rng.random(num) < self.leave, self.rng.integers(self.leave_by, size=num)
        self.stays = np.where(leaves, moment, np.iinfo(np.int64).max)
        """Steps until random actions take over, per episode."""

    def act(self, obs: Array) -> Array:
        act, random = self.policy.act(obs), self.other.act(obs)
        if isinstance(self.space, spaces.Box):
            act = self._shake(self.space, act)
        else:
            act = self._swap(act, random)
        gone = self.stays <= 0
        self.stays -= 1
        act[gone] = random[gone]
        return act

    def _shake(self, space: spaces.Box, act: Array) -> Array:
        scale = np.sqrt(1 - (1 - self.theta) ** 2)  # Keeps the standard deviation of x at 1.
        self.x = (1 - self.theta) * self.x + scale * self.rng.standard_normal(self.x.shape)
        half = (space.high.astype(np.float64) - space.low) / 2
        noise = (self.level[:, None] * self.x).reshape(act.shape) * half
        return clip_action(space, act + noise)

    def _swap(self, act: Array, random: Array) -> Array:
        # Random actions last 5 steps on average, and make up a share `level` of all steps.
        level = np.minimum(self.level, 1.0)
        leave = np.where(level < 1, 0.2 * level / np.maximum(1 - level, 1e-9), 1.0)
        stay = np.where(level < 1, 0.8, 1.0)
        self.astray = self.rng.random(len(act)) < np.where(self.astray, stay, np.minimum(leave, 1.0))
        swapped = np.array(act)
        swapped[self.astray] = random[self.astray]
        return swapped


def _check_space(space: Space) -> Space:
    """Return the action space if uniform sampling supports it."""
    if isinstance(space, spaces.Box):
        return check_box(space)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return space
    raise ValueError(f"actions must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")


def check_box(space: Space) -> spaces.Box:
    """Return the action space if it is a Box with finite bounds."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"this policy needs Box actions, got {space}; use HeldActions for discrete actions")
    act_dim(space)  # Raises an error for infinite bounds.
    return space


def sample_actions(space: Space, num: int, rng: np.random.Generator) -> Array:
    """Sample `num` uniform actions (num, *space.shape) with the given generator."""
    shape = (num, *(space.shape or ()))
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.integer):
            return rng.integers(space.low, space.high.astype(np.int64) + 1, shape).astype(space.dtype)
        return rng.uniform(space.low, space.high, shape).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + rng.integers(0, space.n, shape), space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + rng.integers(0, space.nvec, shape)).astype(space.dtype)
    assert isinstance(space, spaces.MultiBinary), space
    return rng.integers(0, 2, shape).astype(space.dtype)


def _from_unit(space: spaces.Box, x: Floats) -> Array:
    """Map x (N, A), with 0 for no action and -1 and 1 for the bounds, to clipped actions."""
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    rest = np.where(_is_one_sided(space), 0.0, (low + high) / 2)
    return clip_action(space, (rest + x * (high - rest)).reshape(-1, *space.shape))


def _is_one_sided(space: spaces.Box) -> NDArray[np.bool_]:
    """The dimensions (A,) of real numbers with lower bound 0, where 0 means no action: a pedal, a thruster."""
    one_sided: NDArray[np.bool_] = (space.low.ravel() == 0) & (space.dtype.kind == "f")
    return one_sided


def _features(obs: Array) -> Floats:
    """About 200 features of each observation: a coarse image in [-1, 1], or a normalised vector."""
    if obs.ndim == 4:
        stride = (max(1, obs.shape[1] // 8), max(1, obs.shape[2] // 8))
        small = obs[:, stride[0] // 2 :: stride[0], stride[1] // 2 :: stride[1]]
        return np.asarray(small.reshape(len(obs), -1) / 127.5 - 1)
    flat = obs.reshape(len(obs), -1).astype(np.float64)
    return np.asarray(np.sign(flat) * np.log1p(np.abs(flat)))
