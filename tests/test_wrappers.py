"""ActionRepeat: the plain loop's results with a quarter of the drawing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.box2d.car_racing import CarRacing
from gymnasium.wrappers import FrameStackObservation, TimeLimit
from toy_env import Echo

from wm_envs.wrappers import ActionRepeat, ChosenActions, NoopStarts, _can_skip_drawing

OFF_FIELD = 340.0  # PLAYFIELD is 333.


def make_car(**kwargs: object) -> gym.Env:
    return gym.make("CarRacing-v3", disable_env_checker=True, **kwargs)


def leave(car: CarRacing) -> None:
    """Put the car off the field; the next picture must say "-0", though the score is -7.45 before and -0.55 after."""
    car.car.hull.position = (OFF_FIELD, 0.0)
    car.reward = -7.45
    move = car.car.step

    def step(dt: float) -> None:
        move(dt)
        car.reward += 7  # As a tile would.

    car.car.step = step


def play(env: ActionRepeat, seed: int, steps: int, leave_at: int = -1) -> Iterator[tuple]:
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    yield obs.copy(), 0.0, False, False, {}
    for t in range(steps):
        if t == leave_at:
            leave(env.unwrapped)
        obs, *rest = env.step(np.array([rng.uniform(-0.3, 0.3), rng.uniform(0, 0.5), 0.0], np.float32))
        yield obs.copy(), *rest
        if rest[1] or rest[2]:
            return


def both(seed: int, steps: int, leave_at: int = -1, **kwargs: object) -> list[tuple]:
    fast, plain = ActionRepeat(make_car(**kwargs), 4), ActionRepeat(make_car(**kwargs), 4)
    assert fast.skips_drawing
    plain.skips_drawing = False
    got, want = list(play(fast, seed, steps, leave_at)), list(play(plain, seed, steps, leave_at))
    assert len(got) == len(want)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]
    assert fast.unwrapped.reward == plain.unwrapped.reward
    fast.close()
    plain.close()
    return got


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_frames_rewards_and_ends_equal_the_plain_loop(seed: int) -> None:
    last = both(seed, steps=15)[-1]
    assert last[0].std() > 10  # A picture, not an empty screen.


def test_an_end_in_a_skipped_frame_is_drawn() -> None:
    steps = both(4, steps=10, leave_at=3)
    assert len(steps) == 5 and steps[-1][2] and steps[-1][1] == -100


def test_a_time_limit_in_a_skipped_frame_is_drawn() -> None:
    steps = both(5, steps=10, max_episode_steps=6)
    assert len(steps) == 3 and steps[-1][3] and not steps[-1][2]


def test_a_rendered_video_does_not_change_what_is_seen() -> None:
    env, plain = ActionRepeat(make_car(render_mode="rgb_array"), 4), ActionRepeat(make_car(), 4)
    for a, b in zip(play(env, 6, 4), play(plain, 6, 4)):
        np.testing.assert_array_equal(a[0], b[0])
        assert env.render().shape == (400, 600, 3)


def test_only_the_last_of_the_repeated_frames_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = CarRacing._render
    monkeypatch.setattr(CarRacing, "_render", lambda self, mode: drawn.append(mode) or draw(self, mode))
    env = ActionRepeat(make_car(), 4)
    list(play(env, 0, steps=5))
    assert drawn == ["state_pixels"] * 6  # The reset and one for each of the 5 steps.
    env.skips_drawing = False
    drawn.clear()
    list(play(env, 0, steps=5))
    assert len(drawn) == 1 + 5 * 4


def test_drawing_is_back_after_each_step_even_after_an_error() -> None:
    env = ActionRepeat(make_car(), 4)
    env.reset(seed=0)
    with pytest.raises(AttributeError):
        env.step("left")
    assert "_render" not in vars(env.unwrapped)


def test_other_environments_take_the_plain_loop() -> None:
    class Mine(CarRacing):
        pass

    car = make_car()
    assert _can_skip_drawing(car) and _can_skip_drawing(TimeLimit(car, 9))
    assert not _can_skip_drawing(Mine())
    assert not _can_skip_drawing(FrameStackObservation(car, 2))
    assert not _can_skip_drawing(gym.make("CarRacing-v3"))  # Its checker looks at every frame.
    assert not _can_skip_drawing(Echo())
    car.unwrapped.render_mode = "human"
    assert not _can_skip_drawing(car)


def test_rewards_add_up_and_the_repeat_stops_at_the_end() -> None:
    env = ActionRepeat(Echo(length=6), 4)
    assert env.reset()[0][0] == 0
    obs, rew, term, _, _ = env.step(np.array([0.5], np.float32))
    assert (obs[0], rew, term) == (4, 2.0, False)
    obs, rew, term, _, _ = env.step(np.array([0.25], np.float32))
    assert (obs[0], rew, term) == (6, 0.5, True)


class Flicker(gym.Env):
    """Draws frame t in column t, into the same array each time."""

    observation_space = gym.spaces.Box(0, 255, (2, 8), np.uint8)
    action_space = gym.spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.t, self.frame = 0, np.zeros((2, 8), np.uint8)
        return self.frame, {}

    def step(self, action: int) -> tuple:
        self.t += 1
        self.frame[:] = 0
        self.frame[:, self.t] = self.t
        return self.frame, 0.0, self.t == 7, False, {}


def test_the_maximum_is_over_the_last_two_frames_alone() -> None:
    env = ActionRepeat(Flicker(), 3, max_frames=True)
    assert not env.reset()[0].any()
    assert env.step(0)[0][0].tolist() == [0, 0, 2, 3, 0, 0, 0, 0]
    assert env.step(0)[0][0].tolist() == [0, 0, 0, 0, 0, 5, 6, 0]
    obs, _, term, _, _ = env.step(0)  # Ends in the first of its frames.
    assert term and obs[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 7]


def test_a_maximum_needs_two_frames() -> None:
    with pytest.raises(ValueError, match="repeat must be at least 2 for max_frames, got 1"):
        ActionRepeat(Flicker(), 1, max_frames=True)


@pytest.mark.parametrize("actions", [(), (0, 0), (0, 4), (-1,)])
def test_actions_that_cannot_be_chosen_are_named(actions: tuple[int, ...]) -> None:
    env = gym.make("LunarLander-v3")
    with pytest.raises(ValueError, match=r"actions must be distinct elements of Discrete\(4\), got \("):
        ChosenActions(env, actions)


def test_a_repeat_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="repeat must be at least 1, got 0"):
        ActionRepeat(Echo(), 0)


class Counted(gym.Env):
    """Counts its steps, and ends after `limit` of them."""

    observation_space, action_space = gym.spaces.Box(0, 99, (1,)), gym.spaces.Discrete(2)

    def __init__(self, limit: int = 99) -> None:
        self.limit, self.resets = limit, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age, self.resets = 0, self.resets + 1
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action == 0
        self.age += 1
        return np.full(1, self.age, np.float32), 0.0, self.age == self.limit, False, {}


def test_an_episode_begins_with_1_to_n_noops_that_depend_only_on_the_seed() -> None:
    env = NoopStarts(Counted(), 5)
    starts = [env.reset(seed=seed)[0].item() for seed in range(60)]
    assert set(starts) == {1, 2, 3, 4, 5} and starts == [env.reset(seed=seed)[0].item() for seed in range(60)]
    without_seed = [env.reset()[0].item() for _ in range(20)]
    assert len(set(without_seed)) > 1


def test_a_noop_that_ends_the_episode_begins_another() -> None:
    env = NoopStarts(Counted(limit=2), 30)
    assert max(env.reset(seed=seed)[0].item() for seed in range(20)) == 1 and env.unwrapped.resets > 20
