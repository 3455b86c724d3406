"""Stable-Baselines3 in dreams: a VecEnv view of any Gymnasium VectorEnv, and SB3 policies as ours.

DreamVecEnv(gym.make_vec("Dream-CarRacing-v0", num_envs=64, obs="latent"))  what `PPO("MlpPolicy", envs)` trains in
to_mlp(model)                                                               its deterministic actor, without SB3
load_sb3("policy.zip", PPO, env)                                            a saved one, without unpickling
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
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
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

Array = NDArray[Any]
Info = dict[str, Any]
Rows = int | Iterable[int] | None
Algo = TypeVar("Algo", bound=BaseAlgorithm)


class DreamVecEnv(VecEnv):
    """A Gymnasium VectorEnv as SB3 sees vector environments.

    For batches of dreams first of all, and for Gymnasium's own SyncVectorEnv and AsyncVectorEnv. Observations are
    handed on as they come; a row's last observation is in its info as `terminal_observation`.

    Args:
        envs: resets ended rows in the same step (autoreset_mode SAME_STEP); it belongs to this view from now on.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"SB3 needs envs that reset ended rows in the same step, got autoreset_mode={mode}; make them with "
                "autoreset_mode=AutoresetMode.SAME_STEP (in vector_kwargs where gym.make_vec makes the rows)"
            )
        check_actions(envs.single_action_space)
        self.envs = envs
        self.spec = envs.spec
        self._rows = envs.unwrapped
        # Else the next step writes in what SB3 still has to store.
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
        return _copied(obs) if self._shared else obs

    def set_options(self, options: list[Info] | Info | None = None) -> None:
        """Options of the next reset, the same for every row."""
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
        # SB3 adds the value of what was cut off to these rewards, so they must be its own.
        return _copied(obs) if self._shared else obs, np.array(rew, np.float32), done, infos

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[Array | None]:
        frames: Any = self.envs.render()
        return list(frames) if frames is not None else [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Rows = None) -> list[Any]:
        """The attribute in each row; dreams of a batch share theirs."""
        rows = self._get_indices(indices)
        if isinstance(self._rows, SyncVectorEnv):
            return [self._rows.envs[row].get_wrapper_attr(attr_name) for row in rows]
        if isinstance(self._rows, AsyncVectorEnv):
            values = self._rows.get_attr(attr_name)
            return [values[row] for row in rows]
        return [getattr(self._rows, attr_name) for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: Rows = None) -> None:
        """Change an attribute that is there, such as a dream's `temperature`; dreams of a batch share theirs."""
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
        """What the method gives in each row; of a batch of dreams it is called once, for all."""
        rows = list(self._get_indices(indices))
        if isinstance(self._rows, SyncVectorEnv):
            return [self._rows.envs[r].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for r in rows]
        self._check_all(rows, f"env_method({method_name!r})")
        if isinstance(self._rows, AsyncVectorEnv):
            return list(self._rows.call(method_name, *method_args, **method_kwargs))
        return [getattr(self._rows, method_name)(*method_args, **method_kwargs)] * len(rows)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Rows = None) -> list[bool]:
        """Whether each row is wrapped; rows in other processes cannot be asked and say no."""
        rows = self._get_indices(indices)
        if isinstance(self._rows, SyncVectorEnv):
            return [is_wrapped(self._rows.envs[row], wrapper_class) for row in rows]
        return [False for _ in rows]

    def _infos(self, info: Info, done: NDArray[np.int64], cut: Array) -> list[Info]:
        """SB3's list of infos: of a row that ended, what its last step said; what its reset said is kept aside."""
        final_obs, final_info = info.pop("final_obs", None), info.pop("final_info", {})
        infos = _infos(info, self.num_envs, {"TimeLimit.truncated": False})
        last = _infos(final_info, self.num_envs) if final_info else None
        for row in done:
            self.reset_infos[row] = infos[row]
            end = {"terminal_observation": final_obs[row], "TimeLimit.truncated": bool(cut[row])}
            infos[row] = {**infos[row], **(last[row] if last else {}), **end}
        return infos

    def _check_all(self, rows: list[int], what: str) -> None:
        if sorted(rows) != list(range(self.num_envs)):
            raise ValueError(f"{what} must be for all {self.num_envs} rows of {self._rows}, got rows {rows[:8]}")


def _infos(info: Info, num: int, start: Info | None = None) -> list[Info]:
    """Gymnasium's dict of arrays and masks as one dict a row."""
    rows = [dict(start or {}) for _ in range(num)]
    for key, values in info.items():
        if f"_{key}" not in info:
            continue  # A mask, or about no row.
        cells = _infos(values, num) if isinstance(values, dict) else values
        for row in np.flatnonzero(info[f"_{key}"]):
            rows[row][key] = cells[row]
    return rows


def _copied(obs: Any) -> Any:
    return {key: part.copy() for key, part in obs.items()} if isinstance(obs, dict) else obs.copy()


def check_actions(space: gym.Space[Any]) -> None:
    """Refuse a space that models take and SB3 cannot choose from.

    Raises:
        ValueError: its choices do not count from 0, or choices or bits come in an array where SB3 wants a row.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise ValueError(f"SB3 chooses from 0 up only, got actions {space}; wrap the env in TransformAction")
    many = isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1
    if many or (isinstance(space, spaces.MultiBinary) and not isinstance(space.n, int)):
        raise ValueError(
            "SB3 takes choices and bits in a row only, as MultiDiscrete([2, 3]) or MultiBinary(4), "
            f"got actions {space}; flatten them with TransformAction"
        )


class SB3Policy:
    """Any SB3 model as a Policy of ours: `predict(deterministic=True)`, pixels and VecNormalize included.

    Args:
        model: the algorithm, or its `policy` alone, which can be sent to other processes.
    """

    def __init__(self, model: BaseAlgorithm | BasePolicy) -> None:
        self.model = model

    def reset(self, num: int, seed: int) -> None:
        """Nothing is carried between steps."""

    def act(self, obs: Array) -> Array:
        """Observations (N, ...) as the env gives them to the env's own actions."""
        normalizer = self.model.get_vec_normalize_env() if isinstance(self.model, BaseAlgorithm) else None
        seen: Any = obs if normalizer is None else normalizer.normalize_obs(obs)
        act: Array = self.model.predict(seen, deterministic=True)[0]
        return act.astype(self.model.action_space.dtype, copy=False)


def to_mlp(model: BaseAlgorithm) -> MLPPolicy:
    """The deterministic actor of an MlpPolicy of PPO, A2C, SAC, TD3 or DQN; acts as `predict(deterministic=True)`.

    Raises:
        ValueError: it is no plain MLP on vectors; `SB3Policy` takes any.
    """
    policy = model.policy
    if model.get_vec_normalize_env() is not None:
        raise ValueError("the policy sees observations that VecNormalize has changed; SB3Policy(model) keeps it")
    space = model.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"to_mlp needs observations that are vectors, got {space}; use SB3Policy(model)")
    extractor, modules, squash = _actor(policy, model.action_space)
    if not isinstance(extractor, FlattenExtractor):
        raise ValueError(f"to_mlp needs an MlpPolicy, got features from {type(extractor).__name__}; use SB3Policy")
    layers, activation = _layers(modules)
    if isinstance(extractor, Whitened):
        layers[0] = extractor.absorbed(*layers[0])
    return MLPPolicy(model.action_space, layers, activation, squash)


class Whitened(FlattenExtractor):
    """Vectors in units of their spread, for networks that learn faster so; goes with the policy's weights.

    Args:
        mean: (F,) of the vectors.
        std: (F,) their standard deviation, above 0.
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
        """The layer that does to plain vectors what (weight, bias) does to whitened ones."""
        scaled = weight / self.std
        return scaled, bias - scaled @ self.mean


def _actor(policy: Any, space: gym.Space[Any]) -> tuple[nn.Module, list[nn.Module], str]:
    """What extracts the features, the modules from there to the action, and what is done to their output."""
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
    raise ValueError(f"to_mlp knows PPO, A2C, SAC, TD3 and DQN, got {type(policy).__name__}; use SB3Policy(model)")


NAMES: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.SiLU: "silu"}


def _layers(modules: Iterable[nn.Module]) -> tuple[list[Layer], str]:
    """The linear layers in their order, and the one activation between them."""
    flat = list(_leaves(modules))
    linear, between = flat[::2], flat[1::2]
    kinds = {type(module) for module in between} or {nn.Tanh}
    plain = all(isinstance(m, nn.Linear) for m in linear) and len(linear) == len(between) + 1
    if not plain or len(kinds) != 1 or not kinds <= NAMES.keys():
        names = [type(module).__name__ for module in flat]
        raise ValueError(f"to_mlp knows Linear layers with Tanh, ReLU or SiLU between, got {names}; use SB3Policy")
    return [(module.weight, _bias(module)) for module in linear if isinstance(module, nn.Linear)], NAMES[kinds.pop()]


def _leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _leaves(module)
        else:
            yield module


def _bias(module: nn.Linear) -> Tensor:
    none: Tensor | None = module.bias
    return torch.zeros(len(module.weight)) if none is None else none


def load_sb3(
    path: str | Path,
    algo: Callable[..., Algo],
    env: Any,
    policy: str = "MlpPolicy",
    **kwargs: Any,
) -> Algo:
    """A model of SB3 with the policy of the zip that `model.save(path)` wrote.

    SB3's own `load` unpickles the zip's `data`, which can run any code. This one builds a fresh `algo(policy, env,
    **kwargs)` and takes over the policy's weights alone; settings and optimizer are those of the fresh one.

    Args:
        env: whatever SB3 takes, or a VectorEnv.
        kwargs: of the algorithm; sizes as they were saved (`policy_kwargs=dict(net_arch=[...])`).

    Raises:
        ValueError: it is no zip of SB3, holds more than weights, or they do not fit; both shapes are named.
    """
    weights = read_weights(Path(path))
    kwargs["policy_kwargs"] = dict(kwargs.get("policy_kwargs") or {})  # SB3 writes in it.
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
            f"{path} does not fit {type(model).__name__}({policy!r}) in this env; pass the algorithm, policy and "
            f"policy_kwargs it was saved with:\n  {shown}"
        )
    model.policy.load_state_dict(weights)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """`policy.pth` of SB3's zip, by PyTorch's reader that takes tensors only.

    Raises:
        ValueError: it is no zip of SB3, or holds more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} must be a zip that SB3 saved, with a policy.pth: {error}") from error
    except Exception as error:  # PyTorch raises what the file makes it raise.
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path}: policy.pth must hold tensors and nothing else: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: policy.pth must hold named tensors, got {type(weights).__name__}")
    return dict(weights)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "nothing" if tensor is None else tuple(tensor.shape)
