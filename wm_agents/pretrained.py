"""Saved dreams, and the environments made from them; the entry points of the registered ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.actor_critic import ActorPolicy
from policies.latent import LatentPolicy
from policies.linear import LinearPolicy
from policies.mlp import DrawnPolicy, MLPPolicy
from policies.mppi import MPPIPolicy
from policies.policy import NoisyPolicy, Policy
from wm_agents.checkpoint import Artifact, ArtifactError, halved, load_artifact, save_artifact
from wm_agents.errors import did_you_mean
from wm_agents.models.model import Model
from wm_agents.models.saved import load_model as load_model
from wm_agents.models.saved import model_facts, model_path
from wm_agents.system.run_folder import versions
from wm_envs.dream import DreamConfig, DreamEnv, DreamVectorEnv
from wm_envs.env_id import only_here
from wm_envs.real import LatentObservation, make_real, probe
from wm_envs.registry import TASKS, RealSpec
from wm_envs.trust import check_trusted
from wm_envs.world_model import Latent, WorldModel

if TYPE_CHECKING:
    from wm_agents.models.onnx_model import OnnxModel

BACKENDS = ("torch", "onnx")
Controller = LinearPolicy | MLPPolicy | MPPIPolicy | ActorPolicy
POLICIES: dict[str, Callable[[WorldModel, Mapping[str, Tensor], Mapping[str, str]], Controller]] = {
    "linear": lambda model, tensors, about: LinearPolicy.from_tensors(model.act_space, tensors, about),
    "mlp": lambda model, tensors, about: MLPPolicy.from_tensors(model.act_space, tensors, about),
    "actor": lambda model, tensors, about: ActorPolicy.from_tensors(model.act_space, tensors, about),
    "mppi": lambda model, tensors, about: MPPIPolicy.from_tensors(model, tensors, about),
}
"""Readers of controllers, by kind; a saved model stores a controller in `policy_<kind>.safetensors`."""
DREAM_FIELDS = ("real", "temperature", "horizon", "fps")
"""Further required keys of config.json for a dream."""
HALF_SLACK = 0.01
"""Largest error of a feature that half precision may cause, relative to its size or to 1."""


def real_spec(artifact: Artifact) -> RealSpec:
    """The real environment of a saved model.

    Raises:
        ArtifactError: the model was saved without one, or `real` of config.json does not describe one.
        UntrustedModule: the environment id names a module that is not trusted.
    """
    check_dream(artifact)
    place = artifact.path / "config.json"
    try:
        spec = RealSpec.from_dict(artifact.config["real"])
    except (TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{place}: real must describe an environment: {error}") from error
    check_trusted(str(spec.id), place, spec.wrapper)
    return spec


def check_dream(artifact: Artifact) -> None:
    """Check that a saved model can be used as a dream environment.

    Raises:
        ArtifactError: only weights were saved; the message names the missing parts.
    """
    lacking = [name for name in DREAM_FIELDS if name not in artifact.config]
    if lacking or not artifact.starts:
        missing = ", ".join(
            [*(f"{name!r} in config.json" for name in lacking), *([] if artifact.starts else ["starts"])]
        )
        raise ArtifactError(
            f"{artifact.path} contains weights only; a dream environment also needs {missing}. Save it with "
            "wm_agents.pretrained.save_model(path, model, RealSpec(env_id), starts, horizon=..., card=...), where "
            "starts are initial latents, such as {'begin': model.encode(first_frames)}"
        )


def save_model(
    path: Path,
    model: Model,
    spec: RealSpec,
    starts: dict[str, Latent],
    *,
    horizon: int | None,
    card: str,
    policy: Controller | None = None,
    cut_off: float = 0.5,
    rounds: list[dict[str, float]] | None = None,
    half: bool = False,
) -> None:
    """Save a model as a dream, with its initial latents and optionally a policy.

    Args:
        starts: encoded real observations from which dreams start, by name, such as `begin` and `anywhere`.
        horizon: steps after which dreams are truncated, or None.
        cut_off: a dream terminates when the model's `cont` falls below this value; no effect in families that sample
            termination.
        rounds: dream return and real return of each training round, for the fidelity report.
        half: store weights and initial latents in half precision, where it is precise enough.

    Warns:
        UserWarning: other processes, such as `wm evaluate`, will not find the environment by its id.
    """
    if only_here(spec.id):
        warnings.warn(
            f"{spec.id} is registered in this process only, so commands will not find the environment of {path}; "
            f"register it in a module and save RealSpec('module:{spec.id}')",
            stacklevel=2,
        )
    config = {
        **model_facts(model),
        "real": spec.to_dict(),
        "temperature": 1.0,
        "horizon": horizon,
        "cut_off": cut_off,
        "fps": probe(spec).fps,
        "versions": versions(),
        **({} if rounds is None else {"rounds": rounds}),
    }
    banks = {name: _halved_start(model, latent) if half else latent for name, latent in starts.items()}
    flat = {f"{bank}/{key}": leaf.cpu() for bank, latent in banks.items() for key, leaf in latent.items()}
    policies = {}
    if policy is not None:
        policies = {policy.about()["kind"]: (policy.tensors(), policy.about())}
    save_artifact(path, config, model.state_dict(), flat, card, policies, half=half)


@torch.inference_mode()
def _halved_start(model: Model, latent: Latent) -> Latent:
    """`latent` in half precision, unless features change, as those of an ensemble with observations of 50,000 ± 10."""
    less = halved(latent)
    feat, near = (
        model.feat({key: leaf.float().to(model.device) for key, leaf in part.items()}) for part in (latent, less)
    )
    close = (near - feat).abs() <= HALF_SLACK * feat.abs().clamp(min=1)
    return less if bool(close.all()) else latent


class Saved(NamedTuple):
    """A saved dream: a model, its real environment, its initial latents and the settings of its dreams."""

    model: Model
    spec: RealSpec
    starts: dict[str, Latent]
    dream: DreamConfig
    artifact: Artifact

    @property
    def policy(self) -> Controller:
        """Its controller.

        Raises:
            ValueError: it has none.
        """
        return load_policy(self.model, self.artifact)

    @property
    def bounded(self) -> DreamConfig:
        """Its dreams, with the limit of the real environment if they have none."""
        if self.dream.horizon is not None:
            return self.dream
        return replace(self.dream, horizon=probe(self.spec).limit)


def load_dream(model: str | Path, device: str = "cpu") -> Saved:
    """Load a saved dream: a directory, the name of a shipped model or dream, or org/name on the Hub.

    Raises:
        FileNotFoundError: there is no such model.
        ArtifactError: it contains weights only, or is broken.
    """
    return saved_dream(*load_model(model, device))


def saved_dream(model: Model, artifact: Artifact) -> Saved:
    """The saved dream of a loaded model."""
    return Saved(model, real_spec(artifact), load_starts(artifact), dream_of(artifact), artifact)


def dream_of(artifact: Artifact) -> DreamConfig:
    """The settings of the dreams of a saved model; old artifacts have no `cut_off`."""
    stored = {name: artifact.config[name] for name in ("temperature", "horizon", "cut_off") if name in artifact.config}
    return DreamConfig(**stored)


def load_starts(artifact: Artifact) -> dict[str, Latent]:
    """The initial latents of the artifact, by name."""
    banks: dict[str, Latent] = {}
    for name, leaf in artifact.starts.items():
        bank, key = name.split("/", 1)
        banks.setdefault(bank, {})[key] = leaf.float()
    return banks


def load_policy(model: WorldModel, artifact: Artifact, kind: str | None = None) -> Controller:
    """The controller of a saved model, or the one of `kind`.

    Raises:
        ValueError: the model has no controller, or none of this kind.
    """
    kinds = sorted(artifact.policies.keys() & POLICIES.keys())
    if not kinds:
        raise ValueError(f"{artifact.path} has no controller; train one with `wm evolve`")
    kind = kind or kinds[0]
    if kind not in kinds:
        raise ValueError(f"{artifact.path}: policy must be one of {kinds}, got {kind!r}")
    tensors, about = artifact.policies[kind]
    return POLICIES[kind](model, tensors, about)


@lru_cache(maxsize=2)
def cached_model(model: str) -> tuple[Model, Artifact]:
    """`load_model` with a cache, because worker processes load the same model for every episode."""
    return load_model(model)


def frame_policy(
    model: str, weights: NDArray[np.float32] | None = None, squash: tuple[str, ...] | None = None
) -> LatentPolicy:
    """A policy on real frames: the encoder of the model, and `weights` or else the controller of the
    artifact."""
    net, artifact = cached_model(model)
    if weights is None:
        return LatentPolicy(net, load_policy(net, artifact))
    return LatentPolicy(net, LinearPolicy(net.act_space, weights, squash))


def explore_with(
    model: str,
    noise: tuple[float, ...],
    leave: float,
    leave_by: int,
    env: gym.Env[Any, Any],
    draw_actions: bool = False,
) -> Policy:
    """The collection policy of later rounds: a controller with noise; the latent is updated with the noisy
    actions.

    Args:
        draw_actions: sample actions from the probabilities of a PPO controller.
    """
    net, artifact = cached_model(model)
    policy: Policy = load_policy(net, artifact)
    if draw_actions:
        policy = DrawnPolicy(policy)
    return LatentPolicy(net, NoisyPolicy(policy, env.action_space, noise, leave, leave_by))


_DREAM_ARGUMENTS = sorted(
    {
        *signature(DreamVectorEnv).parameters,
        *(f.name for f in fields(DreamConfig)),
        "device",
        "backend",
        "max_episode_steps",
    }
    - {"dream", "starts", "changes"}
)
"""The keywords of `gym.make("Dream-...")`."""


def _check_arguments(kwargs: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Check the names of keywords.

    Raises:
        ValueError: one of them is unknown; the message has the nearest known one, or all.
    """
    for name in kwargs:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise ValueError(f"unknown argument {name!r} of {what}{hint}")


def _dream_arguments(model: str | None, device: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    backend = kwargs.pop("backend", "torch")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    _check_arguments(kwargs, _DREAM_ARGUMENTS, "a dream")
    loaded, artifact = load_model(_given(model, "Dream-v0"), device)
    check_dream(artifact)
    net = loaded if backend == "torch" else _in_onnx(loaded, artifact, kwargs)
    if (limit := kwargs.pop("max_episode_steps", None)) is not None:
        kwargs.setdefault("horizon", limit)
    shown = {"fps": artifact.config["fps"], "drawing": artifact.config["real"]["id"]}
    return {"model": net, "starts": load_starts(artifact), "dream": dream_of(artifact), **shown, **kwargs}


def _in_onnx(model: Model, artifact: Artifact, kwargs: dict[str, Any]) -> OnnxModel:
    """The model in ONNX Runtime.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: an argument or the model needs PyTorch.
    """
    if model.device.type != "cpu" or kwargs.get("precision", "fp32") != "fp32":
        raise ValueError(
            f"backend='onnx' computes on the CPU in fp32, got device={str(model.device)!r} and "
            f"precision={kwargs.get('precision', 'fp32')!r}; remove them, or use backend='torch'"
        )
    if kwargs.get("disagreement") or kwargs.get("pessimism") or kwargs.get("max_disagreement"):
        raise ValueError(
            "backend='onnx' does not compute the disagreement of ensembles; remove disagreement, pessimism and "
            "max_disagreement, or use backend='torch'"
        )
    try:
        from wm_agents.models.onnx_model import OnnxModel
    except ImportError as error:
        raise ImportError(
            "backend='onnx' needs onnx and onnxruntime: pip install 'dreams-as-envs[export]', or in a checkout "
            "pip install '.[export]'"
        ) from error
    return OnnxModel(model, load_starts(artifact))


def _given(model: str | None, env_id: str) -> str:
    """The `model` argument of an environment.

    Raises:
        ValueError: it is None.
    """
    if model is None:
        raise ValueError(
            f"{env_id} needs `model=`: a directory, a shipped dream or org/name on the Hub, such as "
            'model="runs/my_model", model="Dream-CartPole-v0" or model="org/name"'
        )
    return model


def make_dream_env(model: str | None = None, device: str = "cpu", **kwargs: Any) -> DreamEnv:
    """`gym.make("Dream-...")`: see `DreamVectorEnv` for the arguments.

    `backend="onnx"` computes steps and frames in ONNX Runtime, which is faster for single dreams of V-M-C; it needs the
    extra `export`. The same seed gives the same dream, up to rounding.
    """
    return DreamEnv(**_dream_arguments(model, device, kwargs))


def make_dream_vec_env(
    model: str | None = None, num_envs: int = 1, device: str = "cpu", **kwargs: Any
) -> DreamVectorEnv:
    """`gym.make_vec("Dream-...", num_envs=N)`; see `DreamVectorEnv` for the arguments."""
    return DreamVectorEnv(num_envs=num_envs, **_dream_arguments(model, device, kwargs))


# Gymnasium reads the render modes of an entry point, for modes that it adds itself, such as "rgb_array_list".
make_dream_env.metadata = DreamEnv.metadata  # type: ignore[attr-defined]


def make_real_env(
    model: str | None = None, obs: str = "pixels", render_mode: str | None = None, **others: Any
) -> gym.Env[Any, Any]:
    """`gym.make("Real-...")`: the real environment with the spaces of its dream.

    Args:
        obs: "pixels" (or the native vector), or "latent": the feat of the model.
    """
    _check_arguments(others, ("model", "obs", "render_mode"), "a real environment")
    if obs not in ("pixels", "latent"):
        raise ValueError(f"obs must be 'pixels' or 'latent', got {obs!r}")
    model = _given(model, "Real-v0")
    if obs == "pixels":
        spec = next((t.real for t in TASKS.values() if t.model == model), None)
        return make_real(spec or real_spec(load_artifact(model_path(model))), render_mode)
    net, artifact = load_model(model)
    return LatentObservation(make_real(real_spec(artifact), render_mode), net)
