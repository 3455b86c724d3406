"""A dream beside the real environment: the dream is the registered one, and the mark is where it leaves reality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from tiny import save_tiny
from toy import BOX, Toy, toy_starts

import wm_envs  # noqa: F401
from wm_agents.web.controls import controls_of, read_action, resting
from wm_agents.web.game import WINDOW, Game
from wm_agents.web.playable import PERSON, RANDOM, Playable, load_playable
from wm_envs.dream import DreamConfig
from wm_envs.registry import RealSpec
from wm_envs.world_model import Observer

CART = "Dream-CartPole-v0"


class Line(gym.Env[Any, Any]):
    """Reality: x' = x + drift + act, which the toy dreams without the drift."""

    observation_space = spaces.Box(-999, 999, (2,), np.float32)
    action_space = BOX

    def __init__(self, drift: float = 0.0, last: int = 10_000) -> None:
        self.drift, self.last = drift, last

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.x = 0, float(seed or 0)
        return np.array([self.x, 0], np.float32), {}

    def step(self, act: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x += float(act[0]) + self.drift
        return np.array([self.x, float(act[0])], np.float32), float(act[0]), self.t >= self.last, False, {}


def toy_game(env: Line | None, monkeypatch: pytest.MonkeyPatch, **toy: Any) -> Game:
    """A game of the toy, whose real environment is `env`."""
    model: Any = Toy(**toy)
    spec = None if env is None else RealSpec("Toy-v0")
    config = {"real": {"id": "Toy-v0"}, "temperature": 1.0, "horizon": None, "fps": 10}
    monkeypatch.setattr("wm_agents.web.game.make_real", lambda spec: env)
    starts, controls = toy_starts(), controls_of(model.act_space)
    dream = DreamConfig(config["temperature"], config["horizon"])
    playable = Playable("toy", model, starts, config, dream, {}, spec, "none here", np.ones(2), controls)
    return Game(playable)


def test_the_dream_is_that_of_the_registered_environment() -> None:
    env = gym.make(CART)
    playable = load_playable(CART, real=False)
    game = Game(playable)
    obs, _ = env.reset(seed=5)
    scene = game.restart(5)
    assert np.array_equal(scene.dream, obs)
    for t in range(30):
        game.person = np.asarray(t % 2)
        obs, rew, term, trunc, _ = env.step(t % 2)
        scene = game.step()
        assert np.array_equal(scene.dream, obs) and scene.rew == rew
        assert bool(scene.dream_over) == (term or trunc)
        if scene.over:
            break


def test_both_worlds_start_from_the_same_real_frame_and_take_the_same_actions() -> None:
    playable = load_playable(CART)
    game = Game(playable)
    scene = game.restart(3)
    real = gym.make("Real-CartPole-v0")
    obs, _ = real.reset(seed=3)
    assert np.array_equal(scene.real, obs) and np.allclose(scene.dream, obs)
    game.person = np.asarray(1)
    for _ in range(5):
        scene, (obs, *_) = game.step(), real.step(1)
        assert np.array_equal(scene.real, obs)


def test_a_true_dream_never_leaves_reality(monkeypatch: pytest.MonkeyPatch) -> None:
    game = toy_game(Line(), monkeypatch)
    game.restart(4)
    game.person = np.array([0.5], np.float32)
    scenes = [game.step() for _ in range(50)]
    assert all(m.errors is not None and m.errors.dream == 0 and m.left is None for m in scenes)
    assert scenes[-1].ret == scenes[-1].real_ret == pytest.approx(25)


def test_a_dream_leaves_reality_when_it_is_further_off_than_reality_one_second_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    game = toy_game(Line(drift=0.1), monkeypatch)
    game.restart(0)
    game.person = np.array([0.0], np.float32)
    scenes = [game.step() for _ in range(40)]
    # After t steps the dream is off by 0.1 t, and reality ten steps (a second) before by 1 at most.
    errors = [m.errors for m in scenes]
    assert errors[29] is not None and errors[29].dream == pytest.approx(3 / 2**0.5, rel=1e-5)
    assert errors[29].late == pytest.approx(1 / 2**0.5, rel=1e-5) and errors[29].seen == 0
    left = scenes[-1].left
    assert left is not None and WINDOW < left < 25 and scenes[left - 2].left is None


def test_waking_up_follows_reality_and_falling_asleep_parts_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    game = toy_game(Line(drift=1.0), monkeypatch)
    game.restart(0)
    game.person = np.array([0.0], np.float32)
    for _ in range(20):
        scene = game.step()
    assert scene.dream[0] == 0 and scene.real is not None and scene.real[0] == 20 and scene.left is not None
    game.wake()
    scene = game.step()
    assert scene.awake and scene.dream[0] == 21 and scene.left is None and scene.age == 0
    game.sleep()
    for _ in range(3):
        scene = game.step()
    assert not scene.awake and scene.dream[0] == 21 and scene.real[0] == 24 and scene.age == 3  # type: ignore[index]


def test_the_end_of_the_world_in_control_ends_the_game(monkeypatch: pytest.MonkeyPatch) -> None:
    game = toy_game(Line(last=3), monkeypatch)
    game.restart(0)
    for _ in range(5):
        scene = game.step()
    assert scene.real_over == "terminated" and not scene.over and scene.errors is None
    with pytest.raises(ValueError, match="the real episode has terminated; restart before switching"):
        game.wake()
    game.horizon = 7
    assert [game.step().over for _ in range(2)] == [False, True]


def test_a_game_without_the_real_environment_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    game = toy_game(None, monkeypatch)
    scene = game.restart(0)
    assert scene.real is None and scene.errors is None
    with pytest.raises(ValueError, match="cannot switch to the real environment: none here"):
        game.wake()


def test_pilots_switch_in_mid_episode() -> None:
    playable = load_playable(CART)
    game = Game(playable)
    game.restart(0)
    game.fly("policy (mlp)")
    acts = [int(game.step().act) for _ in range(12)]
    assert set(acts) == {0, 1}
    game.fly(PERSON)
    assert int(game.step().act) == int(game.person)
    game.fly(RANDOM)
    assert game.step().step == 14
    with pytest.raises(ValueError, match="pilot must be one of"):
        game.fly("nobody")


def test_an_episode_that_starts_anywhere_has_been_played_for_a_while() -> None:
    game = Game(load_playable(CART))
    begin = game.restart(1)
    game.start = "anywhere"
    anywhere = game.restart(1)
    assert not np.array_equal(begin.real, anywhere.real) and np.allclose(anywhere.dream, anywhere.real)
    assert anywhere.step == 0 and np.array_equal(game.restart(1).real, anywhere.real)


def test_awake_a_policy_acts_on_what_the_model_sees_of_reality(tmp_path: Path) -> None:
    playable = load_playable(save_tiny(tmp_path / "tiny"))
    game = Game(playable)
    game.restart(0)
    game.fly("policy (linear)")
    game.wake()
    observer, policy = Observer(playable.model), playable.pilots["policy (linear)"]()
    env = gym.make("Real-v0", model=str(tmp_path / "tiny"))
    obs, _ = env.reset(seed=0)
    feat = observer.observe(obs[None], None)
    for _ in range(4):
        act = policy.act(feat)
        scene = game.step()
        assert np.allclose(scene.act, act[0])
        obs, *_ = env.step(act[0])
        assert np.array_equal(scene.real, obs)
        feat = observer.observe(obs[None], act)
    game.close()
    env.close()


def test_saved_policies_are_pilots_and_others_are_rejected(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny", RealSpec("CartPole-v1"))
    playable = load_playable(tiny, [str(tmp_path / "tiny" / "policy_linear.safetensors")], real=False)
    assert list(playable.pilots) == ["policy (linear)", "tiny (linear)", "random"]
    with pytest.raises(ValueError, match=r"policy_linear.safetensors does not fit ensemble with 4 features"):
        load_playable(CART, [tiny], real=False)
    with pytest.raises(FileNotFoundError, match=r"--policies must be policy_<kind>.safetensors .* got .*tinny.*'tiny'"):
        load_playable(tiny, [str(tmp_path / "tinny")], real=False)


SPACES = [
    spaces.Discrete(3),
    spaces.Discrete(4, start=-1),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Box(np.array([-1, 0, 0]), np.array([1, 1, 1]), dtype=np.float32),
    spaces.Box(0, 5, (1, 2), np.int64),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([2, 3], start=[-1, 7]),
    spaces.MultiBinary(3),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_action_space_has_controls_and_reads_its_own_actions(space: gym.Space[Any]) -> None:
    controls = controls_of(space)
    assert controls["kind"] in ("discrete", "continuous", "multiple")
    assert space.contains(resting(space, controls) if space.shape else space.dtype.type(resting(space, controls)))  # type: ignore[union-attr]
    space.seed(0)
    for _ in range(20):
        act = np.asarray(space.sample())
        assert np.array_equal(read_action(space, act.ravel().tolist()), act)


def test_parts_of_an_action_start_where_the_space_does_and_have_keys() -> None:
    space = spaces.MultiDiscrete([2] * 10, start=[5, *[0] * 9])
    controls = controls_of(space)
    assert controls["parts"][0] == {"name": "part 1", "num": 2, "start": 5, "keys": {"ArrowLeft": -1, "ArrowRight": 1}}
    assert [list(part["keys"]) for part in controls["parts"][3:6]] == [["KeyS", "KeyW"], ["Digit5"], ["Digit6"]]
    assert controls["parts"][9]["keys"] == {}  # It has its buttons.
    assert space.contains(resting(space, controls))


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("given", [None, "x", {}, [], [[1]], [None], float("nan"), float("inf"), 1e300, [1] * 9, True])
def test_what_is_not_an_action_is_rejected(space: gym.Space[Any], given: Any) -> None:
    with pytest.raises(ValueError, match="act must be"):
        read_action(space, given)


def test_known_environments_have_their_usual_keys() -> None:
    pong = controls_of(spaces.Discrete(3), "ALE/Pong-v5", ["NOOP", "RIGHT", "LEFT"])
    assert pong["names"] == ["no move", "up", "down"] and pong["keys"]["ArrowUp"] == 1 and pong["rest"] == 0
    breakout = controls_of(spaces.Discrete(3), "ALE/Breakout-v5", ["FIRE", "RIGHT", "LEFT"])
    assert breakout["keys"]["ArrowRight"] == 1 and breakout["rest"] == 0
    car = controls_of(SPACES[3], "CarRacing-v3")
    assert [dim["keys"] for dim in car["dims"]] == [
        {"ArrowLeft": -1, "ArrowRight": 1}, {"ArrowUp": 1}, {"ArrowDown": 1},
    ]  # fmt: skip
    assert controls_of(spaces.Discrete(2), "CartPole-v1")["rest"] is None
