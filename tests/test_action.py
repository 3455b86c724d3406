"""Actions of every space as the vector that models take in."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from wm_envs.action import act_dim, clip_action, decode_action, encode_action

CAR = spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))
CASES = [
    (CAR, [[-1, 0, 1], [0, 0.5, 0.25]], [[-1, -1, 1], [0, 0, -0.5]]),
    (spaces.Box(-2, 2, (2, 2), np.float32), [[[-2, -1], [0, 2]]], [[-1, -0.5, 0, 1]]),
    (spaces.Box(0, 10, (1,), np.int64), [[0], [10], [5]], [[-1], [1], [0]]),
    (spaces.Discrete(3), [2, 0], [[0, 0, 1], [1, 0, 0]]),
    (spaces.Discrete(2, start=-1), [-1, 0], [[1, 0], [0, 1]]),
    (spaces.Discrete(3, dtype=np.uint8), [2, 0], [[0, 0, 1], [1, 0, 0]]),
    (spaces.MultiDiscrete([2, 3]), [[1, 0], [0, 2]], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
    (spaces.MultiDiscrete([2, 3], dtype=np.uint16), [[1, 0], [0, 2]], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
    (spaces.MultiDiscrete([[2], [2]], start=[[5], [0]]), [[[6], [0]]], [[0, 1, 1, 0]]),
    (spaces.MultiBinary(2), [[0, 1], [1, 1]], [[-1, 1], [1, 1]]),
    (spaces.MultiBinary((2, 1)), [[[1], [0]]], [[1, -1]]),
]


@pytest.mark.parametrize(("space", "act", "want"), CASES, ids=lambda x: str(x) if isinstance(x, gym.Space) else "")
def test_actions_become_these_vectors(space: gym.Space, act: list, want: list) -> None:
    got = encode_action(space, np.array(act, space.dtype))
    assert got.dtype == np.float32 and got.shape == (len(act), act_dim(space))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("space", [case[0] for case in CASES], ids=str)
def test_every_action_of_the_space_is_taken(space: gym.Space) -> None:
    space.seed(0)
    got = encode_action(space, np.stack([space.sample() for _ in range(20)]))
    assert np.abs(got).max() <= 1


@pytest.mark.parametrize("space", [case[0] for case in CASES], ids=str)
def test_decoding_undoes_encoding(space: gym.Space) -> None:
    space.seed(0)
    act = np.stack([space.sample() for _ in range(20)])
    back = decode_action(space, encode_action(space, act))
    assert back.dtype == space.dtype and back.shape == act.shape and all(space.contains(a) for a in back)
    np.testing.assert_allclose(back, act, atol=1e-6)


def test_any_vector_becomes_an_action_of_the_space() -> None:
    np.testing.assert_allclose(decode_action(CAR, np.array([[-3.0, 0.5, 2.0]], np.float32)), [[-1, 0.75, 1]])
    assert decode_action(spaces.Discrete(3, start=2), np.array([[0.1, 0.7, 0.2]])).tolist() == [3]
    assert decode_action(spaces.MultiDiscrete([2, 3]), np.array([[0.1, 0.7, 0.2, 0.9, 0.3]])).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match=r"act must be \(N, 3\) for Box.*, got \(1, 2\)"):
        decode_action(CAR, np.zeros((1, 2)))


def test_actions_in_own_units_are_clipped_and_rounded() -> None:
    whole = clip_action(spaces.Box(0, 10, (2,), np.int64), np.array([[-3.0, 2.6], [4.4, 99.0]]))
    assert whole.tolist() == [[0, 3], [4, 10]] and whole.dtype == np.int64
    assert clip_action(CAR, np.array([[-9.0, 0.25, 9.0]])).tolist() == [[-1, 0.25, 1]]


def test_a_box_action_out_of_bounds_is_clipped() -> None:
    np.testing.assert_array_equal(encode_action(CAR, np.array([[-9.0, 9.0, -0.1]])), [[-1, 1, -1]])


def test_a_dimension_without_room_is_at_rest() -> None:
    space = spaces.Box(np.array([0.5, -1], np.float32), np.array([0.5, 1], np.float32))
    np.testing.assert_array_equal(encode_action(space, np.array([[0.5, 0]], np.float32)), [[-1, 0]])


def test_wide_bounds_do_not_overflow() -> None:
    most = np.finfo(np.float32).max
    got = encode_action(spaces.Box(-most, most, (1,)), np.array([[most], [0], [-most]], np.float32))
    np.testing.assert_array_equal(got, [[1], [0], [-1]])


@pytest.mark.parametrize(
    ("space", "act", "message"),
    [
        (CAR, np.zeros(3), r"act must be \(N, 3\) for Box.*, got \(3,\)"),
        (CAR, np.zeros((1, 2)), r"act must be \(N, 3\) for Box.*, got \(1, 2\)"),
        (CAR, np.full((1, 3), np.nan), "act must be finite for Box.*NaN or infinity; the policy has diverged"),
        (CAR, np.full((1, 3), "left"), "act must be numeric for Box.*, got dtype <U4"),
        (spaces.Discrete(3), np.array(1), r"act must be \(N, \) for Discrete\(3\), got \(\)"),
        (spaces.Discrete(3), np.array([1.0]), r"act must be integers for Discrete\(3\), got dtype float64"),
        (spaces.Discrete(3), np.array([3]), r"act must be in Discrete\(3\), got values from 3 to 3"),
        (spaces.Discrete(3), np.array([0, -1]), r"act must be in Discrete\(3\), got values from -1 to 0"),
        (spaces.MultiDiscrete([2, 3]), np.array([[2, 0]]), r"act must be in MultiDiscrete\(\[2 3\]\), got values from"),
        (spaces.MultiBinary(2), np.array([[2, 0]]), r"act must be in MultiBinary\(2\), got values from 0 to 2"),
    ],
)
def test_a_wrong_action_is_named(space: gym.Space, act: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_action(space, act)


def test_spaces_without_a_vector_are_rejected() -> None:
    with pytest.raises(ValueError, match="need finite bounds, got Box.*; set them with a wrapper: ") as error:
        act_dim(spaces.Box(-np.inf, np.inf, (2,)))
    env = gym.Env()
    env.action_space = spaces.Box(-np.inf, np.inf, (2,))
    hint = str(error.value).partition("wrapper: ")[2]
    wrapped = eval(hint, {"gymnasium": gym, "env": env, "Box": spaces.Box})
    assert act_dim(wrapped.action_space) == 2  # The hint works as it is written.
    with pytest.raises(ValueError, match="actions must be Box, Discrete, MultiDiscrete or MultiBinary, got Text"):
        act_dim(spaces.Text(3))
