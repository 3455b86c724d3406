"""A model whose dreams are computed by ONNX Runtime: the backend "onnx" of `gym.make("Dream-...")`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_agents.models.model import Model
from wm_agents.models.onnx_graphs import STATIC, Session, graphs_of, onnx_of, randomness_of
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, Step

GRAPHS = ("step", "decode")
"""What ONNX Runtime computes; everything else is as fast in PyTorch."""


class OnnxModel:
    """A world model like `model`, whose steps and frames come from ONNX Runtime, on one thread.

    Latents, noise and results are those of `model`, up to rounding. `encode` and dreams of the most likely future
    (temperature 0) are computed by `model`.

    Args:
        model: the model, on the CPU; its weights are copied into the graphs.
        starts: initial latents, by name; one of them is traced.

    Raises:
        ValueError: an operator of the model has no ONNX form.
    """

    def __init__(self, model: Model, starts: dict[str, Latent]) -> None:
        self.model = model.requires_grad_(False)
        self.obs_space, self.act_space, self.feat_dim = model.obs_space, model.act_space, model.feat_dim
        graphs = graphs_of(model, starts)
        self.randomness = randomness_of(
            model, {key: leaf[:1].float() for key, leaf in next(iter(starts.values())).items()}
        )
        self._files = {name: onnx_of(name, graphs[name], model) for name in GRAPHS}
        self._open()

    def _open(self) -> None:
        self._step, self._decode = (Session(self._files[name]) for name in GRAPHS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_step", "_decode")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def initial(self, num: int) -> Latent:
        return self.model.initial(num)

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        return self.model.encode(obs, latent, act, first)

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        if temperature == 0:
            return self.model.step(latent, act, temperature=0, generator=generator)
        self._check_rows(len(act))
        drawn = [draw_normal(len(act), dim, generator, self.device) for dim in self.randomness.draws]
        noise = drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=1)
        given = {"act": act.numpy(), "noise": noise.numpy(), "temperature": np.array(temperature, np.float32)}
        out = self._step(_inputs(latent) | given)
        rew, cont, end = (torch.from_numpy(out.pop(name)) for name in ("rew", "cont", "end"))
        ahead = {name.removeprefix("next_"): torch.from_numpy(leaf) for name, leaf in out.items()}
        return Step(ahead, rew, cont, end if self.randomness.ends else None)

    def decode(self, latent: Latent) -> Tensor:
        self._check_rows(len(next(iter(latent.values()))))
        return torch.from_numpy(self._decode(_inputs(latent))["obs"])

    def feat(self, latent: Latent) -> Tensor:
        return self.model.feat(latent)

    def _check_rows(self, rows: int) -> None:
        if rows != 1 and self.model.family in STATIC:
            raise ValueError(
                f"backend='onnx' supports {self.model.family} with one row only, got {rows}; "
                "use num_envs=1 or backend='torch'"
            )


def _inputs(latent: Latent) -> dict[str, Any]:
    return {f"latent_{key}": leaf.numpy() for key, leaf in latent.items()}
