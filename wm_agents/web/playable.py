"""A saved dream as all its games share it: model, initial latents, policies, and the real environment if it exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from policies.policy import Policy, RandomPolicy
from wm_agents.checkpoint import Artifact, read_tensors
from wm_agents.errors import did_you_mean
from wm_agents.models.model import Model
from wm_agents.pretrained import POLICIES, check_dream, dream_of, load_model, load_policy, load_starts, real_spec
from wm_agents.web.controls import controls_of
from wm_envs.dream import DreamConfig, DreamVectorEnv
from wm_envs.env_id import LackingEnv, UnknownEnv
from wm_envs.frames import is_channels_first, is_image
from wm_envs.real import make_real, probe
from wm_envs.registry import RealSpec, task_of
from wm_envs.trust import UntrustedModule
from wm_envs.world_model import Latent, can_disagree

Array = NDArray[Any]
PERSON, RANDOM = "person", "random"
"""Pilots that every dream has."""
ROWS = 512
"""Initial latents, at most, from which the spread of vector observations is taken."""


@dataclass(frozen=True)
class Playable:
    """What the games of one dream share; games only read it."""

    name: str
    model: Model
    starts: dict[str, Latent]
    config: dict[str, Any]
    """config.json of the saved model."""
    settings: DreamConfig
    """Of its dreams."""
    pilots: dict[str, Callable[[], Policy]]
    """Makers of policies on feat, by name; a person is none of them."""
    spec: RealSpec | None
    """The real environment, or None if it cannot be made here."""
    no_real: str
    """Why there is no real environment; empty if there is one."""
    spread: Array
    """The unit of differences between observations, by dimension; 255 for images."""
    controls: dict[str, Any]

    @property
    def env_id(self) -> str:
        """The id of the real environment."""
        return str(self.config["real"]["id"])

    @property
    def fps(self) -> float:
        """Agent steps per second of the real environment."""
        return float(self.config["fps"])

    def dream(self) -> DreamVectorEnv:
        """A dream of one row, with the artifact's settings."""
        return DreamVectorEnv(self.model, self.starts, 1, self.settings, autoreset_mode="disabled", drawing=self.env_id)

    def facts(self) -> dict[str, Any]:
        """What a page shows of the dream, as JSON."""
        task, members = None, 1
        if self.spec is not None:
            task = task_of(self.spec)
        if can_disagree(self.model):
            members = self.model.members
        return {
            "name": self.name,
            "env": self.env_id,
            "family": self.model.family,
            "parameters": self.model.num_parameters,
            "fps": self.fps,
            "temperature": self.settings.temperature,
            "horizon": self.settings.horizon,
            "starts": sorted(self.starts, key=lambda bank: bank != "begin"),
            "pilots": [PERSON, *self.pilots],
            "controls": self.controls,
            **_view(self.model.obs_space),
            "feat": self.model.feat_dim,
            "members": members,
            "threshold": getattr(task, "threshold", None),
            "real": self.spec is not None,
            "no_real": self.no_real,
        }


def load_playable(model: str, policies: Sequence[str] = (), *, real: bool = True) -> Playable:
    """Load a saved dream for playing.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        policies: further controllers, each a `policy_<kind>.safetensors` or a model directory that contains one.
        real: whether to show the real environment beside the dream.

    Raises:
        FileNotFoundError: there is no such model or policy.
        ValueError: the model is not a dream, or a policy does not fit it.
    """
    net, artifact = load_model(model)
    check_dream(artifact)
    spec, why = _real(artifact) if real else (None, "switched off by --no-real")
    pilots: dict[str, Callable[[], Policy]] = {
        f"policy ({kind})": partial(load_policy, net, artifact, kind)
        for kind in sorted(artifact.policies.keys() & POLICIES.keys())
    }
    pilots |= {name: maker for place in policies for name, maker in _policies_of(net, Path(place)).items()}
    pilots[RANDOM] = partial(RandomPolicy, net.act_space)
    starts = load_starts(artifact)
    return Playable(
        name=Path(model).name or model,
        model=net,
        starts=starts,
        config=artifact.config,
        settings=dream_of(artifact),
        pilots=pilots,
        spec=spec,
        no_real=why,
        spread=_spread(net, starts),
        controls=controls_of(net.act_space, str(artifact.config["real"]["id"]), _meanings(spec)),
    )


def _view(space: gym.Space[Any]) -> dict[str, Any]:
    """How the bytes of an observation are shown: the shape of an image and its layout, or the bounds of a vector."""
    shape = list(space.shape or ())
    if is_image(space) or is_channels_first(space):
        return {"shape": shape, "image": "last" if is_image(space) else "first"}
    bounds = (np.ravel(getattr(space, name, np.inf)).astype(np.float64) for name in ("low", "high"))
    low, high = ([x if abs(x) < 1e6 else None for x in bound.tolist()] for bound in bounds)
    return {"shape": shape, "image": None, "low": low, "high": high}


def _real(artifact: Artifact) -> tuple[RealSpec | None, str]:
    """The real environment, or None and the reason why it cannot be made here."""
    try:
        spec = real_spec(artifact)
        probe(spec)
    except (UnknownEnv, LackingEnv, UntrustedModule, ImportError) as error:
        return None, str(error)
    return spec, ""


def _policies_of(model: Model, place: Path) -> dict[str, Callable[[], Policy]]:
    """The policies in a file or a model directory, by a name that says where each is from.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is not a policy, or does not fit the model.
    """
    files = [place] if place.is_file() else sorted(place.glob("policy_*.safetensors"))
    if not files:
        near = did_you_mean(place.name, [other.name for other in place.parent.glob("*")])
        raise FileNotFoundError(
            f"--policies must be policy_<kind>.safetensors or a model directory that contains one, got {place}{near}"
        )
    return {f"{file.parent.name} ({_kind(file)})": _checked(model, file) for file in files}


def _kind(file: Path) -> str:
    return file.stem.removeprefix("policy_")


def _checked(model: Model, file: Path) -> Callable[[], Policy]:
    tensors, about = read_tensors(file)
    kind = about.get("kind", _kind(file))
    if kind not in POLICIES:
        raise ValueError(f"{file}: the kind of a policy must be one of {sorted(POLICIES)}, got {kind!r}")
    make: Callable[[], Policy] = partial(POLICIES[kind], model, tensors, about)
    feat = np.zeros((1, model.feat_dim), np.float32)
    try:
        policy = make()
        policy.reset(1, 0)
        policy.act(feat)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{file} does not fit {model.family} with {model.feat_dim} features: {error}") from error
    return make


def _meanings(spec: RealSpec | None) -> list[str] | None:
    """The ALE's names of the actions in use."""
    if spec is None or "ALE/" not in spec.id:
        return None
    env: gym.Env[Any, Any] = make_real(spec)
    inner: Any = env.unwrapped
    names = list(inner.get_action_meanings())
    env.close()
    if spec.actions is None:
        return names
    return [names[i] for i in spec.actions]


@torch.inference_mode()
def _spread(model: Model, starts: dict[str, Latent]) -> Array:
    """The standard deviation of vector observations over the initial latents, by dimension; 255 for images."""
    if len(model.obs_space.shape or ()) > 1:
        return np.array(255.0)
    bank = starts.get("anywhere") or next(iter(starts.values()))
    obs = model.decode({key: leaf[:ROWS] for key, leaf in bank.items()}).double().numpy()
    std: Array = obs.std(0)
    return np.where(std > 1e-6, std, 1.0)
