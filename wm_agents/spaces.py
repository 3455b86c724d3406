"""Gymnasium spaces as JSON for saved models, and the spaces of shapes and of an env."""

from __future__ import annotations

import math
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from wm_agents.errors import ConfigurationError, did_you_mean
from wm_envs.frames import CHANNELS, frame_shape
from wm_envs.real import own_limit, probe, spec_for
from wm_envs.registry import TASKS, RealSpec

Env = gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | str
MAX_NUMBERS = 2**24
"""The largest observation or action that a saved model may claim."""
SHAPE = "a tuple of positive integers, such as (8,) or (64, 64, 3)"


def space_to_dict(space: gym.Space[Any]) -> dict[str, Any]:
    """Convert a space to a JSON object; `space_from_dict` is the inverse.

    Raises:
        ValueError: unsupported type of space.
    """
    if isinstance(space, spaces.Box):
        bounds = {name: _bound(getattr(space, name)) for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        lists = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", **lists, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.n)}
    raise ValueError(f"space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")


def space_from_dict(values: dict[str, Any]) -> gym.Space[Any]:
    """Convert a JSON object of `space_to_dict` to a space.

    Raises:
        ValueError: the object does not describe a supported space.
    """
    try:
        kind, dtype = values["type"], np.dtype(values.get("dtype", "int64")).type
        if kind == "Box":
            shape = tuple(values["shape"])
            if (shape and not is_shape(shape)) or math.prod(shape) > MAX_NUMBERS:
                raise ValueError(
                    f"the shape of a Box must be {SHAPE}, with at most {MAX_NUMBERS:,} values, got {list(shape)}"
                )
            low, high = (np.broadcast_to(np.array(values[name], dtype), shape) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype)
        if kind == "Discrete":
            return spaces.Discrete(values["n"], start=values["start"], dtype=dtype)
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(values["nvec"], dtype, start=values["start"])
        if kind == "MultiBinary":
            return spaces.MultiBinary(values["n"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{values} does not describe a space: {error!r}; save the model again") from error
    raise ValueError(f"unknown space type {kind!r}; the model was saved by a newer version or another package")


def is_shape(value: Any) -> bool:
    """Whether `value` is a valid observation shape."""
    kinds = int | np.integer
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(isinstance(n, kinds) and not isinstance(n, bool) and n > 0 for n in value)
    )


def space_of(obs_shape: tuple[int, ...]) -> spaces.Box:
    """The observation space of a shape: float32 vectors, or uint8 frames with the given axis order.

    Raises:
        ConfigurationError: the shape is neither.
    """
    if not is_shape(obs_shape):
        raise ConfigurationError(f"obs_shape must be {SHAPE}, got {obs_shape!r}")
    shape = tuple(obs_shape)
    if len(shape) == 1:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)
    space = spaces.Box(0, 255, shape, np.uint8)
    if frame_shape(space) is None:
        channels = " or ".join(map(str, CHANNELS))
        raise ConfigurationError(
            f"obs_shape must be (D,) for vectors, or (H, W, C) or (C, H, W) for frames with C = {channels} channels, "
            f"got {shape}; add a channel axis to grey frames, or give the environment id as env instead of obs_shape"
        )
    return space


def action_space_of(action_dim: int, action_type: str | None = None) -> gym.Space[Any]:
    """The action space of `action_dim`: `Box(-1, 1, (A,))`, or `Discrete(A)` for "discrete".

    Raises:
        ConfigurationError: unknown type, or invalid `action_dim`.
    """
    if action_type is None:
        action_type = "continuous"
    if action_type not in ("continuous", "discrete"):
        hint = did_you_mean(str(action_type), ("continuous", "discrete"))
        raise ConfigurationError(f"action_type must be 'continuous' or 'discrete', got {action_type!r}{hint}")
    if not isinstance(action_dim, int | np.integer) or isinstance(action_dim, bool) or action_dim < 1:
        raise ConfigurationError(f"action_dim must be a positive integer, got {action_dim!r}")
    if action_type == "discrete":
        return spaces.Discrete(int(action_dim))
    return spaces.Box(-1, 1, (int(action_dim),), np.float32)


def spaces_of(env: Env) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """The observation and action space of a model of `env`."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space
    if not isinstance(env, str):
        return env.observation_space, env.action_space
    try:
        return probe(_spec_of(env)).spaces
    except (gym.error.Error, ImportError) as error:
        raise ConfigurationError(f"cannot create env {env!r}: {error}") from error


def limit_of(env: Env) -> int | None:
    """Steps after which `env` truncates an episode, or None."""
    if isinstance(env, str):
        return probe(_spec_of(env)).limit
    return own_limit(env.spec)


def _spec_of(env_id: str) -> RealSpec:
    task = next((t for t in TASKS.values() if env_id in (t.real.id, t.real_id, t.dream_id)), None)
    return task.real if task else spec_for(env_id)


def action_type_of(space: gym.Space[Any]) -> Literal["continuous", "discrete"]:
    """The action type of a space."""
    if isinstance(space, spaces.Box):
        return "continuous"
    return "discrete"


def _bound(bound: np.ndarray[Any, Any]) -> Any:
    """A single number if all entries are equal; infinities as strings, which JSON supports and numpy
    reads."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0])
    return np.vectorize(_number, otypes=[object])(bound).tolist()


def _number(value: Any) -> int | float | str:
    number: int | float = np.asarray(value).item()
    if np.isfinite(number):
        return number
    return str(number)
