"""The base class of all model families: dreaming, losses, saving and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self  # A dependency of torch; in `typing` from Python 3.11 on.

from wm_agents.data.batch import Batch
from wm_agents.errors import ConfigurationError
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.loss import LossOutput
from wm_agents.system.hardware import keep_freed_memory
from wm_envs.action import act_dim, decode_action, encode_action
from wm_envs.frames import frame_shape
from wm_envs.noise import Generator
from wm_envs.world_model import Latent, Step, Trajectory, imagine

Array = NDArray[np.generic]


FAR = 16.0
"""Float frames above this value are probably in 0 to 255."""


class Model(nn.Module, ABC):
    """A `WorldModel` that can be trained on a `Batch`. Each family is a subclass."""

    family: ClassVar[str]
    packs: ClassVar[bool] = False
    """Whether `loss` needs windows over packed episodes (True), or windows inside one episode (False)."""
    feat_dim: int

    def __init__(self, cfg: WorldModelConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__()
        keep_freed_memory()  # On a CPU, allocating memory takes 20 % of the time.
        self.cfg: Any = cfg
        self.obs_space: gym.Space[Any] = obs_space
        self.act_space: gym.Space[Any] = act_space
        self.actions = act_dim(act_space)
        self._here: Tensor
        # Cached, because every dreamed step reads it.
        self.register_buffer("_here", torch.empty(0), persistent=False)
        _check_asked(cfg, obs_space, act_space, self.actions)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._here.device

    @property
    def num_parameters(self) -> int:
        """Number of trained weights."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @abstractmethod
    def initial(self, num: int) -> Latent:
        """The latent before the first frame."""

    @abstractmethod
    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Update the latent with one real frame: see `WorldModel.encode`."""

    @abstractmethod
    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step: see `WorldModel.step`."""

    @abstractmethod
    def decode(self, latent: Latent) -> Tensor:
        """The observation (B, *obs_shape) in the dtype of `obs_space`."""

    @abstractmethod
    def feat(self, latent: Latent) -> Tensor:
        """The features for controllers, (B, feat_dim) float32."""

    @abstractmethod
    def loss(self, batch: Batch) -> LossOutput:
        """The training loss. In eval mode it does not change the model."""

    def imagine(
        self, state: Latent, actions: Tensor, *, temperature: float = 1.0, generator: Generator = None
    ) -> Trajectory:
        """Dream from `state` under encoded actions (H, B, A): rewards and continues (probabilities) are (H, B)."""
        want = f"(H, {len(next(iter(state.values())))}, {self.actions})"
        if actions.ndim != 3 or tuple(actions.shape[1:]) != (len(next(iter(state.values()))), self.actions):
            raise ValueError(f"actions must be {want}, time-first, got {tuple(actions.shape)}")
        return imagine(self, state, actions, temperature=temperature, generator=generator)

    def rollout(
        self, state: Latent, actions: Tensor, *, temperature: float = 1.0, generator: Generator = None
    ) -> Trajectory:
        """The same as `imagine`."""
        return self.imagine(state, actions, temperature=temperature, generator=generator)

    def compute_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss as a dict of scalars: `total` and its components.

        Raises:
            ValueError: see `check_batch`.
        """
        self.check_batch(batch)
        out = self.loss(batch)
        return {"total": out.loss, **out.components}

    def save_pretrained(self, path: str | Path) -> Path:
        """Save only the model to the directory `path`; load it with `create_world_model` or
        `from_pretrained`.

        A dream environment also needs a real environment and initial latents: see
        `wm_agents.pretrained.save_model`.
        """
        from wm_agents.models.saved import save_bare

        return save_bare(Path(path), self)

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool = False, commit_message: str | None = None
    ) -> str:
        """Upload only the model to the Hugging Face Hub as `org/name` and return the URL of its page.

        To upload a dream with initial latents and policies, use `wm_agents.hub.push_to_hub(folder, repo_id)`.
        """
        from wm_agents.hub import push_to_hub

        with TemporaryDirectory() as tmp:
            folder = self.save_pretrained(Path(tmp) / "model")
            return push_to_hub(folder, repo_id, token=token, private=private, commit_message=commit_message)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Self:
        """Load a saved model in eval mode: a directory, the name of a shipped model, or `org/name` on the
        Hub.

        Raises:
            ArtifactError: the model is corrupt, not a saved model, or of a newer version.
            ConfigurationError: the model belongs to another family.
        """
        from wm_agents.models.saved import load_model

        model: Model = load_model(path, device)[0]
        if not isinstance(model, cls):
            raise ConfigurationError(
                f"{path} is a model of the family {model.family!r}, not a {cls.__name__}; "
                f"load it with {type(model).__name__}.from_pretrained or create_world_model"
            )
        return model

    def take_obs(self, obs: Tensor | Array) -> Tensor:
        """Check observations (B, *obs_shape) and move them to the model's device; `encode` of each family
        calls it.

        Raises:
            ValueError: wrong shape, or frames that are neither uint8 nor float in [0, 1].
        """
        if isinstance(obs, np.ndarray):
            obs = torch.from_numpy(np.ascontiguousarray(obs))
        shape = tuple(self.obs_space.shape or ())
        frames = frame_shape(self.obs_space) is not None
        if tuple(obs.shape[1:]) != shape or (frames and not (obs.dtype == torch.uint8 or obs.is_floating_point())):
            kind = ""
            if frames:
                kind = " uint8, or float in [0, 1]"
            hint = ""
            if tuple(obs.shape) == shape:
                hint = "; one observation needs a batch axis, obs[None]"
            if frames and _turned(tuple(obs.shape[1:])) == shape:
                hint = "; the channel axis is at the other end; move it with obs.movedim"
            want = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"obs must be ({want}){kind}, got {tuple(obs.shape)} {obs.dtype}{hint}")
        if frames and obs.is_floating_point() and obs.numel() and obs.max() > FAR:
            raise ValueError(
                f"float frames must be in [0, 1], got values up to {float(obs.max()):g}; pass uint8 or divide by 255"
            )
        return obs.to(self.device)

    def check_batch(self, batch: Batch) -> None:
        """Check that a batch matches the spaces of the model.

        Raises:
            ValueError: wrong shapes, or actions of a discrete model that are not one-hot vectors.
        """
        if not isinstance(batch, Batch):  # A custom batch for a custom loss.
            return
        shape = tuple(self.obs_space.shape or ())
        seen, done = tuple(batch.obs.shape[2:]), tuple(batch.act.shape[2:])
        if (seen, done) != (shape, (self.actions,)):
            turned = ""
            if _turned(seen) == shape:
                turned = "; the channel axis is at the other end; move it with movedim"
            raise ValueError(
                f"the data have observations {seen} and encoded actions {done}, but the model has {shape} and "
                f"({self.actions},); create it with the obs_shape and action_dim of the data, or use other data{turned}"
            )
        self.take_obs(batch.obs[:, 0])
        if isinstance(self.act_space, gym.spaces.Box):
            return
        act = batch.act[~batch.first[:, 1:].bool()].float().cpu().numpy()  # Padding steps are zeros.
        off = (encode_action(self.act_space, decode_action(self.act_space, act)) != act).any(1)
        if off.any():
            raise ValueError(
                f"act must be one-hot vectors of {self.act_space}, got {act[off][0]}; use encode_action() for "
                "the env's own actions, or action_type='continuous' for continuous actions"
            )

    def check_act(self, act: Tensor, num: int) -> None:
        """Check that actions are encoded, with shape (num, A)."""
        want = (num, self.actions)
        if tuple(act.shape) != want:
            raise ValueError(
                f"act must be {want} for {self.act_space}, got {tuple(act.shape)}; "
                "use encode_action() for the env's own actions"
            )


def _turned(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """(H, W, C) for (C, H, W) and vice versa."""
    if len(shape) != 3:
        return None
    if shape[0] in (1, 3):
        return (shape[1], shape[2], shape[0])
    return (shape[2], shape[0], shape[1])


def _check_asked(cfg: WorldModelConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any], width: int) -> None:
    """Check that the optional shapes of the config match the spaces."""
    if cfg.obs_shape is not None and cfg.obs_shape != obs_space.shape:
        raise ConfigurationError(f"obs_shape is {cfg.obs_shape} in the config, but {obs_space.shape} in {obs_space}")
    if cfg.action_dim is not None and cfg.action_dim != width:
        raise ConfigurationError(f"action_dim is {cfg.action_dim} in the config, but {width} in {act_space}")
    kind = "discrete"
    if isinstance(act_space, gym.spaces.Box):
        kind = "continuous"
    if cfg.action_type is not None and cfg.action_type != kind:
        raise ConfigurationError(f"action_type is {cfg.action_type!r} in the config, but {kind!r} in {act_space}")
