"""Gymnasium spaces as JSON, so that an artifact can say what it sees and does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def space_to_dict(space: gym.Space[Any]) -> dict[str, Any]:
    """A JSON object that `space_from_dict` turns back into an equal space."""
    if isinstance(space, spaces.Box):
        bounds = {name: _bound(getattr(space, name)) for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    raise ValueError(f"space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")


def space_from_dict(values: dict[str, Any]) -> gym.Space[Any]:
    """The space that `space_to_dict` described."""
    kind = values["type"]
    if kind == "Box":
        shape, dtype = tuple(values["shape"]), np.dtype(values["dtype"])
        low, high = (np.array(values[name], np.float64) for name in ("low", "high"))
        full = [np.broadcast_to(bound, shape).astype(dtype) for bound in (low, high)]
        return spaces.Box(full[0], full[1], shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(values["n"], start=values["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(values["nvec"], start=values["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(values["shape"])
    raise ValueError(f"unknown space type {kind!r}; this artifact is newer or not ours")


def _bound(bound: np.ndarray[Any, Any]) -> Any:
    """One number where all entries agree; infinities as JSON strings that float() reads."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0])
    return np.vectorize(_number, otypes=[object])(bound).tolist()


def _number(value: Any) -> float | str:
    number = float(value)
    return number if np.isfinite(number) else str(number)
