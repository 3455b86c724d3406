"""Real environments as a model sees them: same preprocessing, same action repeat, same spaces as the dream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import ResizeObservation, TimeLimit

from wm_envs.action import encode_action
from wm_envs.registry import RealSpec
from wm_envs.window import check_display
from wm_envs.wrappers import ActionRepeat

if TYPE_CHECKING:
    from wm_envs.world_model import WorldModel


def make_real(spec: RealSpec, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make the real environment of `spec`. Only `render_mode="human"` needs a display.

    Raises:
        RuntimeError: `render_mode="human"` and no display.
        ValueError: pixels are asked for (`spec.size`) and the environment gives none.
    """
    if render_mode == "human":
        check_display()
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # Else SDL complains where there is no sound card.
    # Not every env knows the argument.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    env = gym.make(spec.id, disable_env_checker=True, **rendering, **spec.kwargs)
    if spec.size is not None and not is_image(env.observation_space):
        raise ValueError(
            f"{spec.id} must give (H, W, 3) uint8 pixels for size={spec.size}, got {env.observation_space}; "
            "leave size out for vector observations"
        )
    if spec.action_repeat > 1:
        env = ActionRepeat(env, spec.action_repeat)
    env.metadata = {**env.metadata, "render_fps": env.metadata.get("render_fps", 30) / spec.action_repeat}
    if spec.size is not None:
        env = ResizeObservation(env, (spec.size, spec.size))
    if spec.max_episode_steps is not None:
        env = TimeLimit(env, spec.max_episode_steps)
    return CheckedAction(env)


def is_image(space: gym.Space[Any]) -> bool:
    """Whether observations are (H, W, 3) uint8 pixels."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3


class CheckedAction(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Refuses what is no action, such as NaN, before the simulator takes it in and breaks."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        encode_action(self.action_space, np.asarray(action)[None])
        return self.env.step(action)


class LatentObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Shows a model's feat (F,) float32 in place of frames, the latent carried along the episode."""

    def __init__(self, env: gym.Env[Any, Any], model: WorldModel) -> None:
        super().__init__(env)
        # A function-level import: this module must not need torch for plain real environments.
        from wm_envs.world_model import Observer, feat_space

        self.observer = Observer(model)
        self.observation_space = feat_space(model)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self.observer.reset()
        return self.observer.observe(obs[None], None)[0], info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, rew, term, trunc, info = self.env.step(action)
        return self.observer.observe(obs[None], np.asarray(action)[None])[0], rew, term, trunc, info
