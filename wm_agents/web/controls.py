"""Which keys and which on-screen controls steer an action space, and which actions a client may send."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]

AXIS_KEYS = (("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("KeyA", "KeyD"), ("KeyS", "KeyW"))
"""Keys that pull a continuous dimension down and up; further dimensions have sliders only."""
PEDAL_KEYS = ("ArrowUp", "ArrowDown", "KeyW", "KeyS", "Space")
"""Keys of dimensions with lower bound 0, in order."""
NAMES = {
    "CarRacing": ["steer", "gas", "brake"],
    "LunarLander": ["coast", "left engine", "main engine", "right engine"],
    "LunarLanderContinuous": ["main engine", "side engines"],
    "CartPole": ["push left", "push right"],
    "Acrobot": ["torque −1", "no torque", "torque +1"],
    "MountainCar": ["push left", "coast", "push right"],
    "Pendulum": ["torque"],
}
"""Names of actions (discrete) or dimensions (continuous), by environment id without the version."""
KEYS = {
    "LunarLander": {"ArrowLeft": 3, "ArrowUp": 2, "ArrowRight": 1},  # Key and motion point the same way.
    "CartPole": {"ArrowLeft": 0, "ArrowRight": 1},
    "Acrobot": {"ArrowLeft": 0, "ArrowRight": 2},
    "MountainCar": {"ArrowLeft": 0, "ArrowRight": 2},
}
RESTS = {"LunarLander": 0, "Acrobot": 1, "MountainCar": 1}
MEANING_KEYS = {"UP": "ArrowUp", "DOWN": "ArrowDown", "LEFT": "ArrowLeft", "RIGHT": "ArrowRight", "FIRE": "Space"}
"""Keys of the ALE's actions."""
VERTICAL = {"Pong": {"RIGHT": "up", "LEFT": "down"}}
"""Games whose paddle moves upward on RIGHT."""


def controls_of(space: gym.Space[Any], env_id: str = "", meanings: list[str] | None = None) -> dict[str, Any]:
    """A description of the controls of an action space, as JSON.

    Args:
        env_id: the real environment, for names and keys of known ones.
        meanings: the ALE's names of the actions, as "NOOP" or "UPRIGHT".

    Returns:
        `kind` "discrete" (one action of `names`, the action `rest` without a key, or null to keep the last one),
        "continuous" (`dims` with name, low, high, rest and keys) or "multiple" (`parts` with name, num, start and the
        keys that choose the option before and after).
    """
    name = env_id.split(":")[-1].split("/")[-1].rsplit("-v", 1)[0]
    if isinstance(space, spaces.Discrete):
        return _discrete(space, name, meanings)
    if isinstance(space, spaces.Box):
        return _continuous(space, name)
    return _multiple(space)


def _discrete(space: spaces.Discrete, name: str, meanings: list[str] | None) -> dict[str, Any]:
    num = int(space.n)
    rest: int | None
    if meanings is not None and len(meanings) == num:
        turned = VERTICAL.get(name, {})
        names = [turned.get(word, word.replace("NOOP", "no move").lower()) for word in meanings]
        keys = {MEANING_KEYS[turned.get(word, word).upper()]: i for i, word in enumerate(meanings) if _is_plain(word)}
        rest = next((i for i, word in enumerate(meanings) if word in ("NOOP", "FIRE")), 0)
        keys = {key: i for key, i in keys.items() if i != rest}
    else:
        names = NAMES.get(name, [])
        keys, rest = dict(KEYS.get(name, {})), RESTS.get(name)
    if len(names) != num:
        names = [f"action {i}" for i in range(num)]
    known = {}
    if all(i < num for i in keys.values()):
        known = keys
    digits = {f"Digit{(i + 1) % 10}": i for i in range(min(num, 10))}
    return {"kind": "discrete", "names": names, "keys": {**digits, **known}, "rest": rest, "start": int(space.start)}


def _is_plain(word: str) -> bool:
    return word in MEANING_KEYS


def _continuous(space: spaces.Box, name: str) -> dict[str, Any]:
    lows, highs = np.ravel(space.low).tolist(), np.ravel(space.high).tolist()
    names = NAMES.get(name, [])
    if len(names) != len(lows):
        names = [f"dimension {i}" for i in range(len(lows))]
    pedals, axes = iter(PEDAL_KEYS), iter(AXIS_KEYS)
    dims = []
    for label, low, high in zip(names, lows, highs):
        if low == 0 and high > 0 and len(lows) > 1:
            keys = {key: 1 for key in [next(pedals, None)] if key}
            rest = 0.0
        else:
            down_up = next(axes, None)
            if down_up and set(down_up) & {"ArrowUp", "ArrowDown"} and 0 in lows[1:]:
                down_up = next(axes, None)  # Pedals have these keys.
            keys = {}
            if down_up is not None:
                keys = {down_up[0]: -1, down_up[1]: 1}
            rest = 0.0
            if not low < 0 < high:
                rest = (low + high) / 2
        dims.append({"name": label, "low": low, "high": high, "rest": rest, "keys": keys})
    return {"kind": "continuous", "shape": list(space.shape), "dims": dims}


def _multiple(space: gym.Space[Any]) -> dict[str, Any]:
    counts = np.ravel(getattr(space, "nvec", np.full(space.shape or (), 2))).tolist()
    starts = np.ravel(getattr(space, "start", np.zeros(len(counts), int))).tolist()
    parts = []
    for i, (num, start) in enumerate(zip(counts, starts)):
        keys = {}
        if i < len(AXIS_KEYS):
            keys = {AXIS_KEYS[i][0]: -1, AXIS_KEYS[i][1]: 1}
        elif i < 9:
            keys = {f"Digit{i + 1}": 1}  # After the last option comes the first.
        parts.append({"name": f"part {i + 1}", "num": num, "start": start, "keys": keys})
    return {"kind": "multiple", "shape": list(space.shape or ()), "parts": parts}


def resting(space: gym.Space[Any], controls: dict[str, Any]) -> Array:
    """The action of a person who touches nothing."""
    if isinstance(space, spaces.Box):
        return np.array([dim["rest"] for dim in controls["dims"]], space.dtype).reshape(space.shape)
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + (controls["rest"] or 0), space.dtype)
    return np.asarray(getattr(space, "start", 0) + np.zeros(space.shape or (), space.dtype), space.dtype)


def read_action(space: gym.Space[Any], given: Any) -> Array:
    """The action of JSON that a client sent: a number, or a list with one number for each dimension.

    Raises:
        ValueError: it is not an action of `space`.
    """
    size = int(np.prod(space.shape or ()))
    numbers = given
    if not isinstance(given, list):
        numbers = [given]
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in numbers)
    if not plain or len(numbers) != size:
        raise ValueError(f"act must be {size} finite numbers for {space}, got {str(given)[:80]!r}")
    if isinstance(space, spaces.Box):
        act: Array = np.array(numbers, np.float64).reshape(space.shape)
        return np.clip(act, space.low, space.high).astype(space.dtype)
    act = np.array(numbers, np.int64).reshape(space.shape or ()).astype(space.dtype)
    if not space.contains(act if space.shape else space.dtype.type(act)):  # type: ignore[union-attr]
        raise ValueError(f"act must be in {space}, got {str(given)[:80]!r}")
    return act
