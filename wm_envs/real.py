"""Real environments with the preprocessing, action repeat and spaces of their dream."""

from __future__ import annotations

import math
import os
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    GrayscaleObservation,
    ReshapeObservation,
    ResizeObservation,
    TimeLimit,
    TransformObservation,
)

from wm_envs.action import act_dim, encode_action
from wm_envs.env_id import LackingEnv, UnknownEnv
from wm_envs.frames import is_channels_first, is_image, is_resizable
from wm_envs.registry import RealSpec
from wm_envs.window import check_display
from wm_envs.wrappers import ActionRepeat, ChosenActions, NoopStarts

if TYPE_CHECKING:
    from wm_envs.world_model import WorldModel

MAX_VECTOR = 2000
"""No model here supports longer vectors; they are usually images."""
ALE_FPS = 60
NO_LIMIT = 1000
"""Episode limit in agent steps for environments without one."""
USUAL_FPS = 30.0


class EnvFacts(NamedTuple):
    """What training and evaluation need to know of a real environment."""

    obs_space: gym.Space[Any]
    act_space: gym.Space[Any]
    limit: int | None
    """Agent steps after which an episode is truncated"""
    fps: float
    """Agent steps per second"""
    render_modes: tuple[str, ...]

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Those of observations and of actions."""
        return self.obs_space, self.act_space


_PROBED: dict[tuple[str, str], EnvFacts] = {}


def make_real(spec: RealSpec, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Create the real environment of `spec`. Only `render_mode="human"` needs a display.

    Raises:
        RuntimeError: `render_mode="human"` without a display.
        ValueError: `spec` does not fit the environment, or its observations or actions are not supported.
    """
    if render_mode == "human":
        check_display()
    if "ALE/" not in spec.id:
        for name, why in (("lives_end", "which counts lives"), ("noops", "whose action 0 does nothing")):
            if getattr(spec, name):
                raise ValueError(f"{spec.id}: {name} needs an ALE game, {why}; remove it")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # Avoids a warning of SDL without a sound card.
    env = _make(spec, render_mode)
    try:
        if spec.noops:
            env = NoopStarts(env, spec.noops)
        env = _see(_act(env, spec), spec)
    except ValueError as error:
        env.close()
        raise ValueError(f"{spec.id}: {error}") from error
    if spec.max_episode_steps is not None:
        env = TimeLimit(env, spec.max_episode_steps)
    return _CheckedAction(env)


def spec_for(env: str | RealSpec) -> RealSpec:
    """An environment, by its id or with its arguments and wrapper, with the default preprocessing: images are resized
    to 64 pixels, other observations stay as they are."""
    if isinstance(env, str):
        env = RealSpec(env)
    with closing(_make(env, None)) as native:
        return replace(env, size=64 if is_resizable(native.observation_space) else None)


def limited(spec: RealSpec) -> RealSpec:
    """`spec` with an episode limit of 1,000 steps, which training needs, if the environment has none."""
    if probe(spec).limit is not None:
        return spec
    return replace(spec, max_episode_steps=NO_LIMIT)


def probe(spec: RealSpec) -> EnvFacts:
    """The facts of a real environment. It is created and checked once; later calls return the same facts.

    Raises:
        ValueError: as `check_spec`.
    """
    if (facts := _PROBED.get(_key(spec))) is None:
        facts = check_spec(spec)
        _PROBED[_key(spec)] = facts  # Its key may be another one now, because creating it imports its module.
    return facts


def own_limit(made: EnvSpec | None) -> int | None:
    """Steps after which an environment truncates, by its TimeLimit or by the ALE, or None."""
    if made is None:
        return None
    frames = made.kwargs.get("max_num_frames_per_episode")
    # With a random frame skip, the smallest skip gives the longest game.
    game = None
    if frames:
        game = math.ceil(frames / int(np.min(made.kwargs.get("frameskip", 1))))
    return min((steps for steps in (made.max_episode_steps, game) if steps is not None), default=None)


def check_spec(spec: RealSpec) -> EnvFacts:
    """Create the environment, and check its first observation and one step.

    Raises:
        ValueError: the environment is not supported, or violates its own spaces; the message names the part.
    """
    with closing(make_real(replace(spec, max_episode_steps=None))) as env:
        _check_contract(env.unwrapped, spec.id)
        space, actions = env.observation_space, deepcopy(env.action_space)
        actions.seed(0)
        for obs in (env.reset(seed=0)[0], env.step(actions.sample())[0]):
            got = np.asarray(obs)
            if got.shape != space.shape or got.dtype != space.dtype:
                raise ValueError(
                    f"{spec.id}: observations must be {space.shape} {space.dtype} as declared by its space, "
                    f"got {got.shape} {got.dtype}; correct the environment's observation_space"
                )
            if got.dtype.kind == "f" and not np.isfinite(got).all():
                raise ValueError(f"{spec.id}: observations must be finite, got NaN or infinity")
        limits = [spec.max_episode_steps]
        if (own := own_limit(env.spec)) is not None:
            limits.append(math.ceil(own / spec.action_repeat))
        limit = min((steps for steps in limits if steps is not None), default=None)
        modes = tuple(env.metadata.get("render_modes") or ())
        return EnvFacts(space, env.action_space, limit, float(env.metadata["render_fps"]), modes)


def _check_contract(env: gym.Env[Any, Any], name: str) -> None:
    """Check that the environment has Gymnasium's interface, not that of the old Gym.

    Raises:
        ValueError: `reset` or `step` take or return something else.
    """
    contract = (
        "reset(seed=, options=) must return (obs, info), and step(action) must return (obs, reward, terminated, "
        "truncated, info)"
    )
    taken = signature(env.reset).parameters
    if "seed" not in taken and not any(part.kind == part.VAR_KEYWORD for part in taken.values()):
        raise ValueError(f"{name}: reset does not take `seed`; {contract}")
    found = env.reset(seed=0)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise ValueError(f"{name}: reset returns {_kinds(found)}; {contract}")
    actions = deepcopy(env.action_space)
    actions.seed(0)
    stepped: Any = env.step(actions.sample())
    if not isinstance(stepped, tuple) or len(stepped) != 5:
        raise ValueError(f"{name}: step returns {_kinds(stepped)}; {contract}")


def _kinds(value: Any) -> str:
    """The types in a tuple, or the type of another value."""
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


def _key(spec: RealSpec) -> tuple[str, str]:
    """The environment of `spec` as it is registered now."""
    return repr(spec), repr(gym.registry.get(spec.id.rpartition(":")[2]))


def _make(spec: RealSpec, render_mode: str | None) -> gym.Env[Any, Any]:
    """The environment without preprocessing, with a correct `render_fps`."""
    is_game = "ALE/" in spec.id or "NoFrameskip" in spec.id
    if is_game or (spec.id not in gym.registry and ":" not in spec.id):
        _register_games(spec.id, is_game)
    # Not every env accepts the argument.
    rendering: dict[str, Any] = {}
    if render_mode is not None:
        rendering = {"render_mode": render_mode}
    try:
        env: gym.Env[Any, Any] = gym.make(spec.id, disable_env_checker=True, **rendering, **spec.kwargs)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise UnknownEnv(spec.id) from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise LackingEnv(spec.id, error) from error
    except TypeError as error:
        if rendering or ".__init__() " not in str(error):
            raise
        reason = str(error).partition(" was raised from the environment creator")[0]
        raise ValueError(
            f"cannot create {spec.id} with the arguments {spec.kwargs}: {reason}; give its arguments with "
            "--spec.kwargs '{\"name\": 5}', --env-kwargs of `wm init`, or env_kwargs of [data] in a wm.toml"
        ) from error
    if spec.wrapper is not None:
        env = _wrapped(env, spec.wrapper)
    fps = _fps(env)
    made = env.unwrapped.spec  # Wrappers would cache theirs, before `gym.make` sets the final one.
    if made is not None and str(made.entry_point).startswith("ale_py"):
        fps = ALE_FPS / _mean_skip(made.kwargs["frameskip"])  # The ALE assumes a frame skip of 2.
    env.metadata = {**env.metadata, "render_fps": fps / spec.action_repeat}
    return env


def _fps(env: gym.Env[Any, Any]) -> float:
    """`render_fps` of the environment, or 30 if it is missing or not a positive number."""
    fps = env.metadata.get("render_fps")
    if isinstance(fps, int | float | np.number) and 0 < fps < math.inf:
        return float(fps)
    return USUAL_FPS


def _wrapped(env: gym.Env[Any, Any], wrapper: str) -> gym.Env[Any, Any]:
    """`env` in the wrapper `module:function`.

    Raises:
        ValueError: there is no such function, or it does not return an environment.
    """
    module, _, name = wrapper.partition(":")
    try:
        wrap = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        env.close()
        raise ValueError(f"wrapper {wrapper}: {error}; give module:function, as in my_wrappers:only_image") from error
    wrapped = wrap(env)
    if not isinstance(wrapped, gym.Env):
        env.close()
        raise ValueError(f"wrapper {wrapper} must return a gymnasium.Env, got {type(wrapped).__name__}; return the env")
    return wrapped


def _mean_skip(skip: int | tuple[int, int]) -> float:
    """Frames per step of the ALE; a pair is a range without its end."""
    if isinstance(skip, int):
        return float(skip)
    return (skip[0] + skip[1] - 1) / 2


def _register_games(env_id: str, is_game: bool) -> None:
    """Register the games of the ALE, also those with old ids such as Pong-v4.

    Raises:
        LackingEnv: the id is that of a game, and the ALE is not installed.
    """
    try:
        import ale_py
    except ImportError as error:
        if is_game:
            raise LackingEnv(env_id, error) from error
        return
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # Suppresses the banner of each game.
    gym.register_envs(ale_py)


def _act(env: gym.Env[Any, Any], spec: RealSpec) -> gym.Env[Any, Any]:
    """Apply the action repeat and the subset of actions."""
    act_dim(env.action_space)  # Raises an error for unsupported spaces.
    if spec.max_frames and not is_resizable(env.observation_space):
        raise ValueError(f"max_frames needs uint8 pixels, got {env.observation_space}; remove it")
    if spec.action_repeat > 1 or spec.max_frames:
        env = ActionRepeat(env, spec.action_repeat, spec.max_frames)
    if spec.actions is None:
        return env
    return ChosenActions(env, spec.actions)


def _see(env: gym.Env[Any, Any], spec: RealSpec) -> gym.Env[Any, Any]:
    """Pixels (size, size, C) uint8 if a size is given, else native pixels or a vector."""
    space = env.observation_space
    if spec.size is None:
        if spec.crop is not None or spec.stack:
            what = "stack"
            if spec.crop is not None:
                what = "crop"
            raise ValueError(f"{what} needs a size for resized images; set one, such as size=64")
        if is_image(space):
            return env
        return _flatten(env)
    if not is_resizable(space):
        raise ValueError(
            f"observations must be (H, W), (H, W, 1) or (H, W, 3) uint8 pixels from 0 to 255 for size={spec.size}, "
            f"got {space}; {_as_pixels(space)}"
        )
    if spec.crop is not None:
        env = _cropped(env, spec.crop)
    env = ResizeObservation(env, (spec.size, spec.size))
    if spec.stack:
        return _stacked(env, spec.size)
    if is_image(env.observation_space):
        return env
    return ReshapeObservation(env, (spec.size, spec.size, 1))


def _stacked(env: gym.Env[Any, Any], size: int) -> gym.Env[Any, Any]:
    """The last three images, in grey, as channels. An episode starts with three copies of its first image."""
    in_colour = (env.observation_space.shape or ())[2:] == (3,)
    grey = GrayscaleObservation(env) if in_colour else ReshapeObservation(env, (size, size))
    three = FrameStackObservation(grey, 3)
    space = spaces.Box(0, 255, (size, size, 3), np.uint8)
    return TransformObservation(three, lambda obs: np.ascontiguousarray(np.moveaxis(obs, 0, -1)), space)


def _cropped(env: gym.Env[Any, Any], crop: tuple[int, int, int, int]) -> gym.Env[Any, Any]:
    top, bottom, left, right = crop
    height, width, *channels = env.observation_space.shape or ()
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"crop (top, bottom, left, right) must lie in {height} rows and {width} columns, got {crop}")
    part = spaces.Box(0, 255, (bottom - top, right - left, *channels), np.uint8)
    return TransformObservation(env, lambda obs: obs[top:bottom, left:right], part)


def _flatten(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    space = env.observation_space
    if refused := list(_not_numbers("observation", space)):
        raise ValueError(
            "observations must be made of Box, Discrete, MultiDiscrete and MultiBinary in Dict and Tuple, "
            f"got {', '.join(refused)}; drop or encode these parts with a wrapper"
        )
    width = spaces.flatdim(space)
    is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
    if width > MAX_VECTOR:
        hint = "select the relevant ones with TransformObservation"
        if not is_vector:
            hint = _as_pixels(space)
        raise ValueError(
            f"observations flatten to {width:,} values, but at most {MAX_VECTOR:,} are supported: {space}; {hint}"
        )
    if is_vector:
        return env
    return FlattenObservation(env)


def _as_pixels(space: gym.Space[Any]) -> str:
    """What to do with observations that are not images in a supported format."""
    if is_resizable(space):
        return "set size=64"
    if is_channels_first(space):
        return "move the channel axis from first to last with TransformObservation"
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return "keep only the image with TransformObservation, or drop large parts with FilterObservation"
    if isinstance(space, spaces.Box) and len(space.shape) in (2, 3):
        return "convert images to uint8 from 0 to 255 with 1 or 3 channels last, with TransformObservation"
    return "remove size for vectors, or wrap the env"


def _not_numbers(name: str, space: gym.Space[Any]) -> list[str]:
    """The parts that do not flatten to a fixed number of values, as "name is Space"."""
    if isinstance(space, spaces.Dict):
        return [part for key, inner in space.items() for part in _not_numbers(f"{name}[{key!r}]", inner)]
    if isinstance(space, spaces.Tuple):
        return [part for i, inner in enumerate(space) for part in _not_numbers(f"{name}[{i}]", inner)]
    plain = isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    if plain:
        return []
    return [f"{name} is {space}"]


class _CheckedAction(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Raises an error for invalid actions, such as NaN, before they reach the simulator."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        encode_action(self.action_space, np.asarray(action)[None])
        return self.env.step(action)


class LatentObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Replaces frames by the model's feat (F,) float32, and carries the latent through the episode."""

    def __init__(self, env: gym.Env[Any, Any], model: WorldModel) -> None:
        super().__init__(env)
        # Imported here, because plain real environments do not need torch.
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
