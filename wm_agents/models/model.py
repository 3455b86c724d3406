"""What every family shares: it dreams, tells its loss by name, and is saved as a directory."""

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
from typing_extensions import Self  # Comes with torch; `typing` has it from Python 3.11 on.

from wm_agents.data.replay import Batch
from wm_agents.errors import ConfigurationError
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.loss import LossOutput
from wm_agents.system.hardware import keep_freed_memory
from wm_envs.action import act_dim, decode_action, encode_action
from wm_envs.frames import frame_shape
from wm_envs.world_model import Generator, Latent, Step, Trajectory, imagine

Array = NDArray[np.generic]


FAR = 16.0
"""Float frames that go further than noise would are 0 to 255, cast."""


class Model(nn.Module, ABC):
    """A `WorldModel` that learns from a `Batch`. A family says what its latent is and how it moves."""

    family: ClassVar[str]
    packs: ClassVar[bool] = False
    """Whether `loss` wants windows over episodes laid end to end, or windows inside one."""
    feat_dim: int

    def __init__(self, cfg: WorldModelConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__()
        keep_freed_memory()  # On a CPU a fifth of a dream's steps and of an update goes into asking for it anew.
        self.cfg: Any = cfg
        self.obs_space: gym.Space[Any] = obs_space
        self.act_space: gym.Space[Any] = act_space
        self.actions = act_dim(act_space)
        self._here: Tensor
        # Asked for in every step of a dream, where looking for the first parameter would be felt.
        self.register_buffer("_here", torch.empty(0), persistent=False)
        _check_asked(cfg, obs_space, act_space, self.actions)

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self._here.device

    @property
    def num_parameters(self) -> int:
        """Weights that are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @abstractmethod
    def initial(self, num: int) -> Latent:
        """The latent before any frame was seen."""

    @abstractmethod
    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Take in one real frame: see `WorldModel.encode`."""

    @abstractmethod
    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step: see `WorldModel.step`."""

    @abstractmethod
    def decode(self, latent: Latent) -> Tensor:
        """The observation (B, *obs_shape) in the dtype of `obs_space`."""

    @abstractmethod
    def feat(self, latent: Latent) -> Tensor:
        """What a controller sees, (B, feat_dim) float32."""

    @abstractmethod
    def loss(self, batch: Batch) -> LossOutput:
        """What training lowers; in eval mode nothing in the model moves."""

    def imagine(
        self, state: Latent, actions: Tensor, *, temperature: float = 1.0, generator: Generator = None
    ) -> Trajectory:
        """Dream from `state` under encoded actions (H, B, A): rewards and continues (probabilities) are (H, B)."""
        want = f"(H, {len(next(iter(state.values())))}, {self.actions})"
        if actions.ndim != 3 or tuple(actions.shape[1:]) != (len(next(iter(state.values()))), self.actions):
            raise ValueError(f"actions must be {want}, time first, got {tuple(actions.shape)}")
        return imagine(self, state, actions, temperature=temperature, generator=generator)

    def rollout(
        self, state: Latent, actions: Tensor, *, temperature: float = 1.0, generator: Generator = None
    ) -> Trajectory:
        """`imagine` by its other name."""
        return self.imagine(state, actions, temperature=temperature, generator=generator)

    def compute_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss as a dict of scalars: `total`, and the parts it is made of.

        Raises:
            ValueError: see `check_batch`.
        """
        self.check_batch(batch)
        out = self.loss(batch)
        return {"total": out.loss, **out.components}

    def save_pretrained(self, path: str | Path) -> Path:
        """Write the model alone into the directory `path`; `create_world_model(path)` and `from_pretrained` load it.

        To be dreamed in, a model needs a real environment and starts as well: see `wm_agents.pretrained.save_model`.
        """
        from wm_agents.models.saved import save_bare

        return save_bare(Path(path), self)

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool = False, commit_message: str | None = None
    ) -> str:
        """Upload the model alone to the Hugging Face Hub as `org/name`; the URL of its page comes back.

        A dream that was saved goes up with its starts and policies by `wm_agents.hub.push_to_hub(folder, repo_id)`.
        """
        from wm_agents.hub import push_to_hub

        with TemporaryDirectory() as tmp:
            folder = self.save_pretrained(Path(tmp) / "model")
            return push_to_hub(folder, repo_id, token=token, private=private, commit_message=commit_message)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Self:
        """Load a saved model, by directory, by the name of a shipped one, or as `org/name` on the Hub, in eval mode.

        Raises:
            ArtifactError: it is corrupt, foreign or of a newer version.
            ConfigurationError: it is of another family.
        """
        from wm_agents.models.saved import load_model

        model: Model = load_model(path, device)[0]
        if not isinstance(model, cls):
            raise ConfigurationError(
                f"{path} holds a model of the family {model.family!r}, not a {cls.__name__}; "
                f"load it with {type(model).__name__}.from_pretrained or create_world_model"
            )
        return model

    def take_obs(self, obs: Tensor | Array) -> Tensor:
        """Observations (B, *obs_shape) on the model's device; for families to open `encode` with.

        Raises:
            ValueError: another shape, or frames that are neither uint8 nor float.
        """
        obs = torch.from_numpy(np.ascontiguousarray(obs)) if isinstance(obs, np.ndarray) else obs
        shape = tuple(self.obs_space.shape or ())
        frames = frame_shape(self.obs_space) is not None
        if tuple(obs.shape[1:]) != shape or (frames and not (obs.dtype == torch.uint8 or obs.is_floating_point())):
            kind = " uint8, or float in [0, 1]" if frames else ""
            hint = "; one observation needs a batch axis, obs[None]" if tuple(obs.shape) == shape else ""
            if frames and _turned(tuple(obs.shape[1:])) == shape:
                hint = "; the channels of this model are on the other side, use obs.movedim"
            want = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"obs must be ({want}){kind}, got {tuple(obs.shape)} {obs.dtype}{hint}")
        if frames and obs.is_floating_point() and obs.numel() and obs.max() > FAR:
            raise ValueError(
                f"float frames must be in [0, 1], got up to {float(obs.max()):g}; pass uint8, or divide by 255"
            )
        return obs.to(self.device)

    def check_batch(self, batch: Batch) -> None:
        """Refuse windows of what this model neither sees nor does.

        Raises:
            ValueError: observations or actions of other shapes, or actions that should be choices and are none.
        """
        if not isinstance(batch, Batch):  # What a loss of one's own takes.
            return
        shape = tuple(self.obs_space.shape or ())
        seen, done = tuple(batch.obs.shape[2:]), tuple(batch.act.shape[2:])
        if (seen, done) != (shape, (self.actions,)):
            turned = "; the channels are on the other side, use movedim" if _turned(seen) == shape else ""
            raise ValueError(
                f"the data have observations {seen} and encoded actions {done}, the model has {shape} and "
                f"({self.actions},); make it with the obs_shape and action_dim of the data, or give other data{turned}"
            )
        self.take_obs(batch.obs[:, 0])
        if isinstance(self.act_space, gym.spaces.Box):
            return
        act = batch.act[~batch.first[:, 1:].bool()].float().cpu().numpy()  # The others are nobody's: zeros.
        off = (encode_action(self.act_space, decode_action(self.act_space, act)) != act).any(1)
        if off.any():
            raise ValueError(
                f"act must be choices of {self.act_space}, as one-hots, got {act[off][0]}; encode_action() turns the "
                "env's own actions into it, and a model of numbers has action_type='continuous'"
            )

    def check_act(self, act: Tensor, num: int) -> None:
        """Refuse actions that are not encoded ones, (num, A)."""
        want = (num, self.actions)
        if tuple(act.shape) != want:
            raise ValueError(
                f"act must be {want} for {self.act_space}, got {tuple(act.shape)}; "
                "encode_action() turns the env's own actions into it"
            )


def _turned(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """(H, W, C) for (C, H, W) and the other way round."""
    if len(shape) != 3:
        return None
    return (shape[1], shape[2], shape[0]) if shape[0] in (1, 3) else (shape[2], shape[0], shape[1])


def _check_asked(cfg: WorldModelConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any], width: int) -> None:
    """The config may say what the model sees and does; then it says the same as the spaces."""
    if cfg.obs_shape is not None and cfg.obs_shape != obs_space.shape:
        raise ConfigurationError(f"obs_shape is {cfg.obs_shape} in the config, {obs_space.shape} in {obs_space}")
    if cfg.action_dim is not None and cfg.action_dim != width:
        raise ConfigurationError(f"action_dim is {cfg.action_dim} in the config, {width} in {act_space}")
    kind = "continuous" if isinstance(act_space, gym.spaces.Box) else "discrete"
    if cfg.action_type is not None and cfg.action_type != kind:
        raise ConfigurationError(f"action_type is {cfg.action_type!r} in the config, {kind!r} in {act_space}")
