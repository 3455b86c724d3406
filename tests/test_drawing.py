"""Pictures of vectors: what the observation says shows, in the proportions of the real renderers."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from wm_envs.drawing import BLACK, GRAY, WHITE, YELLOW, Frame, draw, how_drawn

POLE, LIT, BLUE, RED = (202, 152, 101), (80, 220, 80), (80, 80, 200), (204, 77, 77)
KNOWN = {
    "CartPole-v1": 4,
    "Acrobot-v1": 6,
    "Pendulum-v1": 3,
    "MountainCar-v0": 2,
    "MountainCarContinuous-v0": 2,
    "LunarLander-v3": 8,
}


def vectors(dim: int, bound: float = np.inf) -> Box:
    return Box(-bound, bound, (dim,), np.float32)


def picture(env_id: str | None, *obs: float) -> Frame:
    return draw(env_id, vectors(len(obs)), np.array(obs, np.float32))


def where(frame: Frame, color: tuple[int, int, int]) -> tuple[float, float]:
    """Mean column and row of the pixels of a color."""
    rows, cols = np.nonzero((frame == color).all(axis=-1))
    assert len(rows), f"nothing is {color}"
    return float(cols.mean()), float(rows.mean())


def test_the_pole_of_a_cart_leans_where_its_angle_says() -> None:
    upright, right = picture("CartPole-v1", 0, 0, 0, 0), picture("CartPole-v1", 0, 0, 0.2, 0)
    assert where(upright, POLE)[0] == pytest.approx(300, abs=1)
    assert where(right, POLE)[0] == pytest.approx(300 + 57.5 * np.sin(0.2), abs=2)
    assert where(right, POLE)[1] > where(upright, POLE)[1]  # Row 0 is at the top.


def test_a_cart_stands_where_its_position_says() -> None:
    shift = where(picture("CartPole-v1", 1, 0, 0, 0), POLE)[0] - where(picture("CartPole-v1", 0, 0, 0, 0), POLE)[0]
    assert shift == pytest.approx(125, abs=1)


def test_an_acrobot_hangs_and_stands() -> None:
    link = (0, 204, 204)
    assert where(picture("Acrobot-v1", 1, 0, 1, 0, 0, 0), link)[1] > 300
    assert where(picture("Acrobot-v1", -1, 0, 1, 0, 0, 0), link)[1] < 200
    folded = picture("Acrobot-v1", 1, 0, -1, 0, 0, 0)  # The second link lies on the first.
    assert 250 < where(folded, link)[1] < 340
    assert (folded[136, 50:500:400] < 64).all()  # The line that it must reach.


def test_a_pendulum_stands_and_hangs() -> None:
    assert where(picture("Pendulum-v1", 1, 0, 0), RED)[1] < 230
    assert where(picture("Pendulum-v1", -1, 0, 0), RED)[1] > 270
    assert where(picture("Pendulum-v1", 0, 1, 0), RED)[0] < 230  # A quarter turn counterclockwise.


def test_a_car_rolls_up_the_mountain() -> None:
    low, high = (where(picture("MountainCar-v0", x, 0), GRAY) for x in (-0.5, 0.4))
    assert high[0] - low[0] == pytest.approx(300, abs=10) and high[1] < low[1] - 200


def test_a_lander_flies_where_it_says_and_turns() -> None:
    hull = (128, 102, 230)
    level, higher, turned = (picture("LunarLander-v3", 0.2, y, 0, 0, a, 0, 0, 0) for y, a in [(0, 0), (1, 0), (0, 0.5)])
    assert where(level, hull)[0] == pytest.approx(360, abs=2)
    assert where(level, hull)[1] - where(higher, hull)[1] == pytest.approx(200, abs=2)
    assert (level != turned).any()


@pytest.mark.parametrize(("contacts", "side"), [((1, 0), 1), ((0, 1), -1)])
def test_the_leg_that_touches_the_ground_lights_up(contacts: tuple[float, float], side: int) -> None:
    assert side * (where(picture("LunarLander-v3", 0, 0, 0, 0, 0, 0, *contacts), LIT)[0] - 300) > 15


def test_no_leg_lights_up_in_the_air() -> None:
    frame = picture("LunarLander-v3", 0, 1, 0, 0, 0, 0, 0, 0)
    assert not (frame == LIT).all(axis=-1).any()
    assert (frame == YELLOW).all(axis=-1).any()  # The flags of the landing pad.
    assert tuple(frame[350, 300]) == WHITE and tuple(frame[350, 50]) == GRAY and tuple(frame[5, 5]) == BLACK


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3"])
def test_a_drawing_lies_over_the_real_renderers_frame(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    obs, _ = env.reset(seed=3)
    env.action_space.seed(3)
    for _ in range(8):
        obs = env.step(env.action_space.sample())[0]
    real, drawn = env.render(), draw(env_id, env.observation_space, obs)
    assert drawn.shape == real.shape  # type: ignore[union-attr]
    rows = 200 if env_id == "LunarLander-v3" else None  # No observation tells how high the hills below are.
    far = (np.abs(real[:rows].astype(int) - drawn[:rows]).max(axis=-1) > 64).mean()  # type: ignore[index]
    assert far < 0.005
    env.close()


@pytest.mark.parametrize(("env_id", "dim"), KNOWN.items())
def test_drawings_are_even_uint8_and_always_the_same(env_id: str, dim: int) -> None:
    obs = np.random.default_rng(0).normal(size=(3, dim)).astype(np.float32)
    frames = draw(env_id, vectors(dim), obs)
    assert frames.dtype == np.uint8 and frames.shape[0] == 3 and frames.shape[3] == 3
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    np.testing.assert_array_equal(frames, draw(env_id, vectors(dim), obs))
    np.testing.assert_array_equal(frames[1], draw(env_id, vectors(dim), obs[1]))
    assert how_drawn(env_id, vectors(dim)) == "drawing of the observation"


@pytest.mark.parametrize("env_id", [*KNOWN, None])
@pytest.mark.parametrize("value", [np.nan, np.inf, -3e38])
def test_a_dream_that_went_astray_is_still_drawn(env_id: str | None, value: float) -> None:
    dim = KNOWN.get(env_id or "", 5)
    assert draw(env_id, vectors(dim), np.full(dim, value, np.float32)).dtype == np.uint8


def test_a_bar_stands_for_each_value_up_or_down() -> None:
    frame = draw(None, vectors(4, 2.0), np.array([1, -2, 0, 2], np.float32))
    heights = [
        int(((column == BLUE) | (column == RED)).all(axis=-1).sum()) for column in frame[:, 40::100].swapaxes(0, 1)
    ]
    np.testing.assert_allclose(heights, [100, 200, 0, 200], atol=2)
    assert tuple(frame[150, 40]) == BLUE and tuple(frame[250, 140]) == RED
    assert frame.shape == (400, 400, 3)


def test_values_without_bounds_are_squashed() -> None:
    huge = Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,), np.float32)
    for space in (vectors(1), huge):
        heights = [(draw(None, space, np.array([x])) == BLUE).all(axis=-1).any(axis=1).sum() for x in (0.5, 5)]
        np.testing.assert_allclose(heights, [200 * np.tanh(0.5), 200], atol=2)


def test_many_values_take_several_lines() -> None:
    obs = np.zeros(100)
    obs[75] = 5.0  # The second of two lines of 50, in its middle.
    col, row = where(draw("Ant-v5", vectors(100), obs), BLUE)
    assert 200 < col < 208 and 200 < row < 300


@pytest.mark.parametrize(
    ("env_id", "dim"), [("phys2d/CartPole-v1", 4), ("CartPole-v1", 5), ("MyCartPole-v1", 4), (None, 4)]
)
def test_what_is_not_known_gets_bars(env_id: str | None, dim: int) -> None:
    assert how_drawn(env_id, vectors(dim)) == "bars of the observation"
    np.testing.assert_array_equal(picture(env_id, *range(dim)), picture(None, *range(dim)))


def test_an_id_may_name_its_module() -> None:
    assert how_drawn("gymnasium:CartPole-v1", vectors(4)) == "drawing of the observation"


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_their_own_image(channels: int) -> None:
    space = Box(0, 255, (6, 5, channels), np.uint8)
    obs = space.sample()
    frame = draw("CarRacing-v3", space, obs)
    np.testing.assert_array_equal(frame, np.broadcast_to(obs, (6, 5, 3)))
    assert how_drawn("CarRacing-v3", space) == "decoded pixels"
    assert not np.shares_memory(frame, obs)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 2, 4), ()])
def test_observations_of_another_shape_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"obs must be \(4,\) or \(N, 4\), got \("):
        draw("CartPole-v1", vectors(4), np.zeros(shape))
