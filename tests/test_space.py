"""Spaces survive the way through JSON."""

from __future__ import annotations

import json
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wm_agents.spaces import limit_of, space_from_dict, space_to_dict
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

SPACES = [
    spaces.Box(0, 255, (64, 64, 3), np.uint8),
    spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)),
    spaces.Box(-np.inf, np.inf, (4,), np.float32),
    spaces.Box(np.array([-np.inf, 0.1]), np.array([3.5, np.inf]), dtype=np.float64),
    spaces.Box(np.arange(6, dtype=np.int16).reshape(2, 3), np.full((2, 3), 9, np.int16), dtype=np.int16),
    spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    spaces.Box(-3.0, 3.0, (), np.float32),
    spaces.Discrete(5),
    spaces.Discrete(3, start=-1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], np.int32, start=[[1, 0], [0, -2]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_survives_json(space: gym.Space) -> None:
    again = space_from_dict(json.loads(json.dumps(space_to_dict(space), allow_nan=False)))
    assert again == space and again.dtype == space.dtype


def test_equal_bounds_are_stored_once() -> None:
    assert space_to_dict(SPACES[0])["high"] == 255


def test_other_spaces_are_rejected() -> None:
    with pytest.raises(ValueError, match="space must be Box, Discrete, MultiDiscrete or MultiBinary, got Text"):
        space_to_dict(spaces.Text(3))


@pytest.mark.parametrize("values", [{"n": 3}, {"type": "Box", "dtype": "float32"}, {"type": "Box", "dtype": "?!"}])
def test_what_is_not_a_space_is_named(values: dict) -> None:
    with pytest.raises(ValueError, match="does not describe a space"):
        space_from_dict(values)


def test_a_newer_kind_of_space_is_named() -> None:
    with pytest.raises(ValueError, match="unknown space type 'Graph'"):
        space_from_dict({"type": "Graph"})


def test_the_limit_of_an_environment_is_its_wrappers_or_its_games() -> None:
    pytest.importorskip("ale_py")
    for env_id, want in (("Pendulum-v1", 200), ("ALE/Boxing-v5", 27_000)):
        with closing(make_real(RealSpec(env_id))) as env:
            assert limit_of(env) == limit_of(env_id) == want
