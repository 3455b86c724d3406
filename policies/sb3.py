"""Stable-Baselines3 in dreams: a VecEnv for any Gymnasium VectorEnv, and SB3 policies as `Policy`.

DreamVecEnv(gym.make_vec("Dream-CarRacing-v0", num_envs=64, obs="latent"))  an env for `PPO("MlpPolicy", env)`
unit_actions(envs)                                                          actions in [-1, 1], which PPO expects
to_mlp(model)                                                               its deterministic actor, without SB3
load_sb3("policy.zip", PPO, env)                                            loads a model without unpickling
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from policies.mlp import Layer, MLPPolicy
from policies.policy import check_box
from wm_envs.action import act_dim, decode_action

Array = NDArray[Any]
Info = dict[str, Any]
Rows = int | Iterable[int] | None
Algo = TypeVar("Algo", bound=BaseAlgorithm)


class DreamVecEnv(VecEnv):
    """An SB3 VecEnv for a Gymnasium VectorEnv.

    It works for batches of dreams, and for Gymnasium's SyncVectorEnv and AsyncVectorEnv. Observations are
    passed on unchanged. The last observation of an episode is in the info of its row, as
    `terminal_observation`.

    Args:
        envs: must reset ended rows in the same step (autoreset_mode SAME_STEP). This object takes ownership.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"SB3 needs envs that reset ended rows in the same step, got autoreset_mode={mode}; make them with "
                "autoreset_mode=AutoresetMode.SAME_STEP (in vector_kwargs for real environments)"
            )
        check_actions(envs.single_action_space)
        self.envs = envs
        self.spec = envs.spec
        self._rows = envs.unwrapped
        # Otherwise the next step overwrites arrays that SB3 has not stored yet.
        self._shared = not getattr(self._rows, "copy", True)
        self._start: Info | None = None
        self._actions: Array | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = {**self.metadata, "render_fps": envs.metadata.get("render_fps", 30)}

    def reset(self) -> Any:
        obs, info = self.envs.reset(seed=list(self._seeds), options=self._start)  # type: ignore[arg-type]
        self._reset_seeds()
        self._start = None
        self.reset_infos = _infos(info, self.num_envs)
        return self._own(obs)

    def _own(self, obs: Any) -> Any:
        """The observation, copied if the environment writes into it again."""
        if self._shared:
            return _copied(obs)
        return obs

    def set_options(self, options: list[Info] | Info | None = None) -> None:
        """Set the options of the next reset, the same for all rows."""
        if isinstance(options, list):
            raise ValueError("options must be one dict for all rows, got a list; vector environments take one")
        self._start = options

    def step_async(self, actions: Array) -> None:
        self._actions = np.asarray(actions).astype(self.action_space.dtype, copy=False)

    def step_wait(self) -> tuple[Any, Array, Array, list[Info]]:
        assert self._actions is not None, "step_async() first"
        obs, rew, term, trunc, info = self.envs.step(self._actions)
        done = term | trunc
        infos = self._infos(info, np.flatnonzero(done), trunc & ~term)
        # SB3 adds the bootstrapped value of truncated episodes to these rewards in place.
        return self._own(obs), np.array(rew, np.float32), done, infos

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[Array | None]:
        frames: Any = self.envs.render()
        if frames is not None:
            return list(frames)
        return [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Rows = None) -> list[Any]:
        """The attribute of each row; dreams of a batch share it."""
        rows = self._get_indices(indices)
        if isinstance(self._rows, SyncVectorEnv):
            return [self._rows.envs[row].get_wrapper_attr(attr_name) for row in rows]
        if isinstance(self._rows, AsyncVectorEnv):
            values = self._rows.get_attr(attr_name)
            return [values[row] for row in rows]
        return [getattr(self._rows, attr_name) for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: Rows = None) -> None:
        """Set an existing attribute, such as a dream's `temperature`; dreams of a batch share it."""
        rows = list(self._get_indices(indices))
        if isinstance(self._rows, SyncVectorEnv):
            for row in rows:
                self._rows.envs[row].set_wrapper_attr(attr_name, value)
            return
        self._check_all(rows, f"set_attr({attr_name!r})")
        if isinstance(self._rows, AsyncVectorEnv):
            self._rows.set_attr(attr_name, [value] * self.num_envs)
            return
        getattr(self._rows, attr_name)
        setattr(self._rows, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Rows = None, **method_kwargs: Any) -> list[Any]:
        """The results of the method for each row; for a batch of dreams it is called once."""
        rows = list(self._get_indices(indices))
        if isinstance(self._rows, SyncVectorEnv):
            return [self._rows.envs[r].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for r in rows]
        self._check_all(rows, f"env_method({method_name!r})")
        if isinstance(self._rows, AsyncVectorEnv):
            return list(self._rows.call(method_name, *method_args, **method_kwargs))
        return [getattr(self._rows, method_name)(*method_args, **method_kwargs)] * len(rows)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Rows = None) -> list[bool]:
        """Whether each row is wrapped; False for rows in other processes."""
        rows = self._get_indices(indices)
        if isinstance(self._rows, SyncVectorEnv):
            return [is_wrapped(self._rows.envs[row], wrapper_class) for row in rows]
        return [False for _ in rows]

    def _infos(self, info: Info, done: NDArray[np.int64], cut: Array) -> list[Info]:
        """SB3's list of infos. For a row that ended, the info of its last step; the reset info is kept
        separately."""
        final_obs, final_info = info.pop("final_obs", None), info.pop("final_info", {})
        infos = _infos(info, self.num_envs, {"TimeLimit.truncated": False})
        last = None
        if final_info:
            last = _infos(final_info, self.num_envs)
        for row in done:
            self.reset_infos[row] = infos[row]
            end = {"terminal_observation": final_obs[row], "TimeLimit.truncated": bool(cut[row])}
            infos[row] = {**infos[row], **(last[row] if last else {}), **end}
        return infos

    def _check_all(self, rows: list[int], what: str) -> None:
        if sorted(rows) != list(range(self.num_envs)):
            raise ValueError(f"{what} needs all {self.num_envs} rows of {self._rows}, got rows {rows[:8]}")


def _infos(info: Info, num: int, start: Info | None = None) -> list[Info]:
    """Convert Gymnasium's dict of arrays and masks to one dict per row."""
    rows = [dict(start or {}) for _ in range(num)]
    for key, values in info.items():
        if f"_{key}" not in info:
            continue  # A mask, or not about a row.
        cells = values
        if isinstance(values, dict):
            cells = _infos(values, num)
        for row in np.flatnonzero(info[f"_{key}"]):
            rows[row][key] = cells[row]
    return rows


def _copied(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: part.copy() for key, part in obs.items()}
    return obs.copy()


def check_actions(space: gym.Space[Any]) -> None:
    """Check that SB3 supports an action space.

    Raises:
        ValueError: a discrete space does not start at 0, or MultiDiscrete or MultiBinary has several axes.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise ValueError(f"SB3 needs discrete actions that start at 0, got {space}; wrap the env in TransformAction")
    many = isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1
    if many or (isinstance(space, spaces.MultiBinary) and not isinstance(space.n, int)):
        raise ValueError(
            "SB3 needs one row of discrete actions, such as MultiDiscrete([2, 3]) or MultiBinary(4), "
            f"got {space}; flatten them with TransformAction"
        )


class _UnitActions(VectorWrapper):
    """Box actions in units of their bounds: -1 is the lower bound, 1 the upper one, shape (A,).

    PPO and A2C of SB3 start with a standard deviation of 1 around 0 in the units of the action space, and so never
    reach most of Box(0, 1000), and only the lower bound of Box(5, 35).
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(envs)
        self._own = check_box(envs.single_action_space)
        self.single_action_space = spaces.Box(-1, 1, (act_dim(self._own),), np.float32)
        self.action_space = batch_space(self.single_action_space, envs.num_envs)

    def step(self, actions: Array) -> tuple[Any, Any, Any, Any, Info]:
        return self.env.step(decode_action(self._own, actions))


def unit_actions(envs: VectorEnv[Any, Any, Any]) -> VectorEnv[Any, Any, Any]:
    """`envs` with actions in units of the bounds if they are a Box; otherwise `envs` itself."""
    if isinstance(envs.single_action_space, spaces.Box):
        return _UnitActions(envs)
    return envs


class SB3Policy:
    """Any SB3 model as a `Policy`: `predict(deterministic=True)`, including pixels, VecNormalize and memory.

    Args:
        model: the algorithm, or only its `policy`, which can be pickled for other processes.
        space: the action space of the environment, if the model was trained with `unit_actions`.
    """

    def __init__(self, model: BaseAlgorithm | BasePolicy, space: gym.Space[Any] | None = None) -> None:
        self.model, self.space = model, space
        self._state: Any = None

    def reset(self, num: int, seed: int) -> None:
        """Start `num` episodes: a recurrent model forgets."""
        self._state = None

    def act(self, obs: Array) -> Array:
        """Map observations (N, ...) of the env to its own actions."""
        normalizer = None
        if isinstance(self.model, BaseAlgorithm):
            normalizer = self.model.get_vec_normalize_env()
        seen: Any = obs
        if normalizer is not None:
            seen = normalizer.normalize_obs(obs)
        first = np.full(len(obs), self._state is None)
        act, self._state = self.model.predict(seen, state=self._state, episode_start=first, deterministic=True)
        if isinstance(self.space, spaces.Box):
            return decode_action(self.space, act)
        return act.astype(self.model.action_space.dtype, copy=False)


def to_mlp(model: BaseAlgorithm, space: gym.Space[Any] | None = None) -> MLPPolicy:
    """Convert the actor of an MlpPolicy (PPO, A2C, SAC, TD3 or DQN); acts as `predict(deterministic=True)`.

    Args:
        space: the action space of the environment, if the model was trained with `unit_actions`.

    Raises:
        ValueError: the actor is not a plain MLP on vectors. `SB3Policy` supports any model.
    """
    policy = model.policy
    scaled = model.get_vec_normalize_env()
    if scaled is not None and scaled.norm_obs:
        raise ValueError("to_mlp does not support VecNormalize with norm_obs; use SB3Policy(model)")
    seen = model.observation_space
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        raise ValueError(f"to_mlp needs vector observations, got {seen}; use SB3Policy(model)")
    extractor, modules, squash = _actor(policy, model.action_space)
    if not isinstance(extractor, FlattenExtractor):
        raise ValueError(f"to_mlp needs an MlpPolicy, got features from {type(extractor).__name__}; use SB3Policy")
    layers, activation = _layers(modules)
    if isinstance(extractor, Whitened):
        layers[0] = extractor.absorbed(*layers[0])
    if isinstance(space, spaces.Box) and squash == "clip":
        squash = "unit"
    return MLPPolicy(space or model.action_space, layers, activation, squash)


class Whitened(FlattenExtractor):
    """Normalises vectors to zero mean and unit variance, which speeds up training; part of the policy's
    weights.

    Args:
        mean: (F,) mean of the vectors.
        std: (F,) standard deviation, above 0.
    """

    def __init__(self, observation_space: gym.Space[Any], mean: Tensor, std: Tensor) -> None:
        super().__init__(observation_space)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, observations: Tensor) -> Tensor:
        return (super().forward(observations) - self.mean) / self.std

    def absorbed(self, weight: Tensor, bias: Tensor) -> Layer:
        """The layer for plain vectors that is equivalent to (weight, bias) for normalised ones."""
        scaled = weight / self.std
        return scaled, bias - scaled @ self.mean


def _actor(policy: Any, space: gym.Space[Any]) -> tuple[nn.Module, list[nn.Module], str]:
    """The feature extractor, the modules from the features to the action, and the squashing of their
    output."""
    choice = {spaces.MultiBinary: "sign", spaces.Discrete: "argmax", spaces.MultiDiscrete: "argmax"}
    squash = choice.get(type(space), "tanh" if policy.squash_output else "clip")
    if isinstance(policy, ActorCriticPolicy):
        return policy.pi_features_extractor, [policy.mlp_extractor.policy_net, policy.action_net], squash
    if isinstance(policy, SACPolicy):
        return policy.actor.features_extractor, [policy.actor.latent_pi, policy.actor.mu], squash
    if isinstance(policy, TD3Policy):
        return policy.actor.features_extractor, [policy.actor.mu[:-1]], squash
    if isinstance(policy, DQNPolicy):
        return policy.q_net.features_extractor, [policy.q_net.q_net], squash
    raise ValueError(f"to_mlp supports PPO, A2C, SAC, TD3 and DQN, got {type(policy).__name__}; use SB3Policy(model)")


NAMES: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.SiLU: "silu"}


def _layers(modules: Iterable[nn.Module]) -> tuple[list[Layer], str]:
    """The linear layers in order, and the activation between them."""
    flat = list(_leaves(modules))
    linear, between = flat[::2], flat[1::2]
    kinds = {type(module) for module in between} or {nn.Tanh}
    plain = all(isinstance(m, nn.Linear) for m in linear) and len(linear) == len(between) + 1
    if not plain or len(kinds) != 1 or not kinds <= NAMES.keys():
        names = [type(module).__name__ for module in flat]
        raise ValueError(f"to_mlp supports Linear layers with Tanh, ReLU or SiLU, got {names}; use SB3Policy(model)")
    return [(module.weight, _bias(module)) for module in linear if isinstance(module, nn.Linear)], NAMES[kinds.pop()]


def _leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _leaves(module)
        else:
            yield module


def _bias(module: nn.Linear) -> Tensor:
    none: Tensor | None = module.bias
    if none is None:
        return torch.zeros(len(module.weight))
    return none


def load_sb3(
    path: str | Path,
    algo: Callable[..., Algo],
    env: Any,
    policy: str = "MlpPolicy",
    **kwargs: Any,
) -> Algo:
    """Load the policy of a zip file that `model.save(path)` of SB3 wrote, without unpickling.

    SB3's own `load` unpickles the `data` of the zip, which can run any code. This function creates a new
    `algo(policy, env, **kwargs)` and loads only the weights of the policy. Settings and optimizer are new.

    Args:
        env: any environment that SB3 supports, or a VectorEnv.
        kwargs: arguments of the algorithm, with the saved layer sizes (`policy_kwargs=dict(net_arch=[...])`).

    Raises:
        ValueError: it is not a zip of SB3, contains more than weights, or the shapes do not match.
    """
    path = Path(path)
    if not path.exists() and path.with_name(path.name + ".zip").exists():
        path = path.with_name(path.name + ".zip")  # SB3 appends it, too.
    weights = read_weights(path)
    kwargs["policy_kwargs"] = dict(kwargs.get("policy_kwargs") or {})  # SB3 modifies it.
    model = algo(policy, DreamVecEnv(env) if isinstance(env, VectorEnv) else env, **kwargs)
    own = model.policy.state_dict()
    problems = [
        f"{name}: {_shape(own.get(name))} in the model, {_shape(weights.get(name))} in the file"
        for name in sorted(own.keys() | weights.keys())
        if _shape(own.get(name)) != _shape(weights.get(name))
    ]
    if problems:
        shown = "\n  ".join(problems[:10])
        raise ValueError(
            f"{path} does not fit {type(model).__name__}({policy!r}) in this env; pass the saved algorithm, policy "
            f"and policy_kwargs:\n  {shown}"
        )
    model.policy.load_state_dict(weights)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read `policy.pth` of a zip of SB3 with PyTorch's tensors-only reader.

    Raises:
        ValueError: it is not a zip of SB3, or contains more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} must be a zip saved by SB3 with a policy.pth: {error}") from error
    except Exception as error:  # A crafted file can make PyTorch raise anything.
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path}: policy.pth must contain only tensors: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: policy.pth must contain named tensors, got {type(weights).__name__}")
    return dict(weights)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    if tensor is None:
        return "nothing"
    return tuple(tensor.shape)
