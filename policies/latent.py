"""A policy on latents in a real environment."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from policies.policy import Policy
from wm_envs.world_model import Observer, WorldModel

Array = NDArray[Any]


class LatentPolicy:
    """Encodes frames with a model, and lets `controller` act on feat."""

    def __init__(self, model: WorldModel, controller: Policy) -> None:
        self.observer = Observer(model)
        self.controller = controller
        self._last: Array | None = None

    def reset(self, num: int, seed: int) -> None:
        self.observer.reset()
        self._last = None
        self.controller.reset(num, seed)

    def act(self, obs: Array) -> Array:
        act = self.controller.act(self.observer.observe(obs, self._last))
        self._last = act
        return act
