"""Gymnasium spaces as JSON, so that an artifact can say what it sees and does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def space_to_dict(space: gym.Space[Any]) -> dict[str, Any]:
    """A JSON object that `space_from_dict` turns back into an equal space.

    Raises:
        ValueError: another kind of space.
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
    """The space that `space_to_dict` described.

    Raises:
        ValueError: not a space of ours.
    """
    try:
        kind, dtype = values["type"], np.dtype(values.get("dtype", "int64")).type
        if kind == "Box":
            shape = tuple(values["shape"])
            low, high = (np.broadcast_to(np.array(values[name], dtype), shape) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype)
        if kind == "Discrete":
            return spaces.Discrete(values["n"], start=values["start"], dtype=dtype)
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(values["nvec"], dtype, start=values["start"])
        if kind == "MultiBinary":
            return spaces.MultiBinary(values["n"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a space: {values}; {error!r}") from error
    raise ValueError(f"unknown space type {kind!r}; this artifact is newer or not ours")


def _bound(bound: np.ndarray[Any, Any]) -> Any:
    """One number where all entries agree; infinities as JSON strings that numpy reads."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0])
    return np.vectorize(_number, otypes=[object])(bound).tolist()


def _number(value: Any) -> int | float | str:
    number: int | float = np.asarray(value).item()
    return number if np.isfinite(number) else str(number)
