"""Acts in real environments with the policy of a model that is being trained."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.step_count import StepCount
from wm_agents.data.batch import Batch
from wm_agents.data.episode import Episode
from wm_agents.data.vector_stream import Stream
from wm_agents.models.families import FAMILIES, load
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_agents.pretrained import Controller
from wm_envs.action import decode_action, encode_action
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent

Array = NDArray[Any]

ROWS = 16
"""Maximum number of episodes in lockstep."""


class _Learner(Protocol):
    """A trainable model with a policy on its latents; also an `nn.Module`.

    It may provide the posteriors of frames 1 to T of the last batch in `latents`, leaves (B, T, ...). They
    are written to the replay buffer as initial latents of later windows.
    """

    def act(self, latent: Latent, *, explore: bool, generator: torch.Generator | None = None) -> Tensor:
        """Encoded actions (N, A) for posterior latents. An optional argument `first` (N,) bool marks episode
        starts."""

    def loss(self, batch: Batch) -> LossOutput: ...

    def after_update(self) -> None: ...

    def controller(self) -> Controller:
        """The policy that is saved with the model."""


def make_learner(model: Model) -> _Learner:
    """The learner of a model whose family learns online."""
    place = FAMILIES[model.family].learner
    return cast(_Learner, load(place)(model) if place else model)


class Actor:
    """Acts in N rows at once, with a latent per row."""

    def __init__(self, learner: _Learner, model: Model, explore: bool, seed: int) -> None:
        self.learner, self.model, self.explore = learner, model, explore
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.tells_first = "first" in inspect.signature(learner.act).parameters
        self.latent: Latent | None = None
        self._last: Tensor | None = None

    @torch.no_grad()
    def act(self, obs: Array, first: NDArray[np.bool_]) -> Array:
        """Map frames (N, ...) to the env's own actions; `first` resets the latents of rows."""
        device = self.model.device
        frames = torch.from_numpy(np.array(obs)).to(device)
        begins = torch.from_numpy(first | (self.latent is None)).to(device)
        self.latent = self.model.encode(frames, self.latent, self._last, begins)
        told = {}
        if self.tells_first:
            told = {"first": begins}
        act = self.learner.act(self.latent, explore=self.explore, generator=self.generator, **told)
        own: Array = decode_action(self.model.act_space, act.float().cpu().numpy())
        # Use the decoded action, as stored in the replay buffer, for the next latent.
        self._last = torch.from_numpy(encode_action(self.model.act_space, own)).to(device)
        return own


def play(
    learner: _Learner, model: Model, spec: RealSpec, seeds: Sequence[int], count: StepCount | None = None
) -> list[Episode]:
    """Play one episode without exploration per seed, in their order."""
    episodes: list[Episode] = []
    with Stream(spec, min(len(seeds), ROWS), iter(seeds), count) as stream:
        actor = Actor(learner, model, explore=False, seed=seeds[0])
        while stream.going.any():
            episodes += [episode for _, episode in stream.step(actor.act(stream.obs, stream.first))]
    return sorted(episodes, key=lambda ep: ep.seed)
