"""Wrappers that Gymnasium lacks: an action repeat that skips rendering, no-op starts, and a subset of the actions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import OrderEnforcing, TimeLimit


class ActionRepeat(gym.Wrapper, RecordConstructorArgs):
    """Repeat each action `repeat` times and sum the rewards; stop when the episode ends.

    `info` is that of the last frame. If the environment supports it, unobserved frames
    are not rendered. The results are the same either way.

    Args:
        max_frames: observe each pixel's maximum over the last two frames. The first frame of an episode, and
            a frame on which an episode ends early, is observed alone.
    """

    def __init__(self, env: gym.Env, repeat: int, max_frames: bool = False) -> None:
        least = 2 if max_frames else 1
        if repeat < least:
            raise ValueError(f"repeat must be at least {least}{' for max_frames' * max_frames}, got {repeat}")
        RecordConstructorArgs.__init__(self, repeat=repeat, max_frames=max_frames)
        gym.Wrapper.__init__(self, env)
        self.repeat, self.max_frames = repeat, max_frames
        self.skips_drawing = repeat > 1 and _can_skip_drawing(env)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, before = 0.0, None
        for left in range(self.repeat, 1, -1):
            seen = self.max_frames and left == 2
            obs, rew, term, trunc, info = (self.env.step if seen else self._step_unseen)(action)
            total += float(rew)
            if term or trunc:
                return obs, total, term, trunc, info
            before = np.array(obs) if seen else None  # The env may reuse the array.
        obs, rew, term, trunc, info = self.env.step(action)
        if before is not None:
            obs = np.maximum(before, obs)
        return obs, total + float(rew), term, trunc, info

    def _step_unseen(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.skips_drawing:
            return self.env.step(action)
        with _drawing_held(self.env.unwrapped) as draw:
            obs, rew, term, trunc, info = self.env.step(action)
        if term or trunc:
            obs = draw()  # The last frame of an episode is always observed.
        return obs, rew, term, trunc, info


class NoopStarts(gym.Wrapper, RecordConstructorArgs):
    """Begins each episode of an ALE game with a random number of no-op steps, as Mnih et al. 2015 do.

    Without sticky actions all episodes of a deterministic policy are equal otherwise. The number is drawn from the
    environment's own generator, so it depends only on the seed.

    Args:
        most: 1 to `most` steps with action 0, the ALE's no-op.
    """

    def __init__(self, env: gym.Env, most: int) -> None:
        RecordConstructorArgs.__init__(self, most=most)
        gym.Wrapper.__init__(self, env)
        self.most = most

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        for _ in range(self.unwrapped.np_random.integers(1, self.most + 1)):
            obs, _, term, trunc, info = self.env.step(0)
            if term or trunc:
                obs, info = self.env.reset(options=options)
        return obs, info


class ChosenActions(gym.ActionWrapper, RecordConstructorArgs):
    """Restricts a Discrete env to the given actions: action i is the env's own `actions[i]`."""

    def __init__(self, env: gym.Env, actions: tuple[int, ...]) -> None:
        space = env.action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"the setting `actions` works only with Discrete actions, got {space}; remove it")
        if not actions or len(set(actions)) < len(actions) or not all(space.contains(np.int64(a)) for a in actions):
            raise ValueError(f"actions must be distinct elements of {space}, got {actions}")
        RecordConstructorArgs.__init__(self, actions=actions)
        gym.ActionWrapper.__init__(self, env)
        self.actions = actions
        self.action_space = spaces.Discrete(len(actions))

    def action(self, action: Any) -> int:
        return self.actions[int(action)]


def _can_skip_drawing(env: gym.Env) -> bool:
    """Whether `env` is Gymnasium's CarRacing without a wrapper that reads its frames."""
    while type(env) in (TimeLimit, OrderEnforcing):
        assert isinstance(env, gym.Wrapper)
        env = env.env
    kind = (type(env).__module__, type(env).__qualname__)
    return (
        kind == ("gymnasium.envs.box2d.car_racing", "CarRacing")
        and env.render_mode != "human"
        and callable(getattr(env, "_render", None))
    )


class _Draw:
    """Renders the frame that a step skipped, exactly as the step would have rendered it."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.reward = env.reward

    def hold(self, mode: str) -> Any:
        if mode != "state_pixels":
            return type(self.env)._render(self.env, mode)
        self.reward = self.env.reward  # The frame shows the score, which step() changes after rendering.
        return self.env.state

    def __call__(self) -> Any:
        reward, self.env.reward = self.env.reward, self.reward
        self.env.state = type(self.env)._render(self.env, "state_pixels")
        self.env.reward = reward
        return self.env.state


@contextmanager
def _drawing_held(env: Any) -> Iterator[_Draw]:
    """In this context `env` (CarRacing) steps without rendering; calling the value renders the skipped
    frame."""
    draw = _Draw(env)
    env._render = draw.hold  # Shadows the method of this instance only.
    try:
        yield draw
    finally:
        del env._render
