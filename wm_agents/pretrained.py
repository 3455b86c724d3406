"""Saved models by name or path, and the environments made of them: what the registered ids call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from policies.actor_critic import ActorPolicy
from policies.latent import LatentPolicy
from policies.linear import LinearPolicy
from policies.mlp import MLPPolicy
from policies.mppi import MPPIPolicy
from wm_agents.checkpoint import Artifact, ArtifactError, load_artifact, load_weights, model_card, save_artifact
from wm_agents.errors import did_you_mean
from wm_agents.hub import is_repo_id, resolve
from wm_agents.models.families import build
from wm_agents.models.model import Model
from wm_agents.project.schema import FILE
from wm_agents.spaces import space_from_dict, space_to_dict
from wm_agents.system.hardware import has_bf16
from wm_agents.system.run_folder import versions
from wm_envs.dream import DreamEnv, DreamVectorEnv
from wm_envs.real import LatentObservation, make_real
from wm_envs.registry import TASKS, RealSpec
from wm_envs.world_model import Latent, WorldModel

STORE = Path(__file__).parent / "store"
Controller = LinearPolicy | MLPPolicy | MPPIPolicy | ActorPolicy
POLICIES: dict[str, Callable[[WorldModel, Mapping[str, Tensor], Mapping[str, str]], Controller]] = {
    "linear": lambda model, tensors, about: LinearPolicy.from_tensors(model.act_space, tensors, about),
    "mlp": lambda model, tensors, about: MLPPolicy.from_tensors(model.act_space, tensors, about),
    "actor": lambda model, tensors, about: ActorPolicy.from_tensors(model.act_space, tensors, about),
    "mppi": lambda model, tensors, about: MPPIPolicy.from_tensors(model, tensors, about, bf16=has_bf16(model.device)),
}
"""What reads controllers on latents, by kind; an artifact keeps one in `policy_<kind>.safetensors`."""
FIELDS = ("family", "model", "spaces")
"""What config.json must say of a model."""
DREAM_FIELDS = ("real", "temperature", "horizon", "fps")
"""What it must say besides of a model that can be dreamed in."""


class UnknownModel(FileNotFoundError):
    """No model that ships has this name, and nothing here has."""


def model_path(model: str) -> Path:
    """The directory of a model: a path, a shipped model or dream by name, or `org/name[@revision]` on the Hub.

    Raises:
        FileNotFoundError: there is no such model, or not yet.
    """
    shipped = {task.dream_id: task.model for task in TASKS.values()}
    for path in (Path(model), STORE / shipped.get(model, model)):
        if (path / "config.json").is_file():
            return path
    for task in TASKS.values():
        if model in (task.dream_id, task.model):
            raise FileNotFoundError(
                f"{task.dream_id} has no model yet: `wm improve --task {task.name}` trains one, to be given as a "
                f"directory to Dream-v0; {task.real_id} works without"
            )
    if found := _instead(Path(model)):
        raise FileNotFoundError(found)
    if is_repo_id(model):
        return resolve(model)
    if len(Path(model).parts) > 1:
        raise FileNotFoundError(f"model must be a directory with a config.json, and {model} does not exist")
    names = sorted(name for name in (*shipped.values(), *shipped) if (STORE / shipped.get(name, name)).is_dir())
    if near := did_you_mean(model, names):
        raise UnknownModel(
            f"model must be a directory with a config.json or the name of one that ships, got {model!r}{near}"
        )
    raise UnknownModel(f"model must be a directory with a config.json or one of {names}, got {model!r}")


def _instead(path: Path) -> str | None:
    """What is at `path`, which is no model, and where the model is; None if there is nothing."""
    for folder in (path, *path.parents[:2]):
        if (folder / FILE).is_file() and (told := _of_project(folder, path)):
            return told
    if not path.exists():
        return None
    near = next((folder for folder in (path / "model", path.parent) if (folder / "config.json").is_file()), None)
    what = "holds none" if path.is_dir() else "is a file"
    return f"model must be a directory with a config.json, and {path} {what}" + (f"; give {near}" if near else "")


def _of_project(folder: Path, path: Path) -> str | None:
    """Where the model of the project in `folder` is, if `path` is that folder or where the model will be."""
    from wm_agents.project.settings import ProjectError, load_project  # Those who load models need no wm.toml.

    try:
        project = load_project(folder)
    except ProjectError as error:
        return str(error) if path == folder else None
    model = project.checkpoint
    model = folder / model.relative_to(project.root) if model.is_relative_to(project.root) else model
    name = "this folder" if folder == Path() else folder
    if not (model / "config.json").is_file():
        untrained = f"{name} is a project that is not trained yet: run `wm train` in it; its model will be {model}"
        return untrained if path in (folder, folder / FILE, model, model.parent) else None
    return f"{name} is a project: its model is {model}; give that" if path in (folder, folder / FILE) else None


def load_model(model: str | Path, device: str = "cpu") -> tuple[Model, Artifact]:
    """Load a model in eval mode, and the artifact it came from.

    Raises:
        ArtifactError: it is corrupt, foreign or of a newer version.
    """
    artifact = load_artifact(model_path(str(model)))
    cfg = artifact.config
    if lacking := [name for name in FIELDS if name not in cfg]:
        raise ArtifactError(f"{artifact.path / 'config.json'} lacks {', '.join(map(repr, lacking))}; it is no model's")
    try:
        obs_space, act_space = (space_from_dict(cfg["spaces"][name]) for name in ("obs", "act"))
        net = build(cfg["family"], cfg["model"], obs_space, act_space)
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{artifact.path / 'config.json'} describes no model of this version: {error}; upgrade this package"
        ) from error
    load_weights(net, artifact.tensors)
    return net.to(device).eval(), artifact


def real_spec(artifact: Artifact) -> RealSpec:
    """How the real environment of a model is made and seen.

    Raises:
        ArtifactError: the model was saved without one.
    """
    check_dream(artifact)
    return RealSpec.from_dict(artifact.config["real"])


def check_dream(artifact: Artifact) -> None:
    """Refuse a model that cannot be dreamed in.

    Raises:
        ArtifactError: it was saved alone; what is missing.
    """
    lacking = [name for name in DREAM_FIELDS if name not in artifact.config]
    if lacking or not artifact.starts:
        missing = ", ".join(
            [*(f"{name!r} in config.json" for name in lacking), *([] if artifact.starts else ["starts"])]
        )
        raise ArtifactError(
            f"{artifact.path} holds a model alone and cannot be dreamed in, it lacks {missing}; save it with "
            "wm_agents.pretrained.save_model(path, model, RealSpec(env_id), starts, horizon=..., card=...), where "
            "starts are latents of real frames by bank, such as {'begin': model.encode(first_frames)}"
        )


def save_bare(path: Path, model: Model) -> Path:
    """Write a model alone, without what a dream needs.

    Raises:
        ArtifactError: a model that can be dreamed in is there; it would lose its starts and its policies.
    """
    if (path / "config.json").is_file() and "real" in load_artifact(path).config:
        raise ArtifactError(
            f"{path} holds a model that can be dreamed in; saving the model alone would lose its starts and policies. "
            "Give another directory, or use wm_agents.pretrained.save_model"
        )
    title = f"{model.family} model of {model.obs_space} and {model.act_space}"
    card = model_card(title, {"parameters": f"{model.num_parameters:,}"})
    return save_artifact(path, {**_facts(model), "versions": versions()}, model.state_dict(), {}, card)


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
    """Write a model, where its dreams start and, if there is one, the policy that learned in them.

    Args:
        horizon: steps after which dreams are truncated, None for never.
        cut_off: dreams end where the model's `cont` falls below this.
        rounds: what each round of training promised and what was earned, for the fidelity report.
    """
    config = {
        **_facts(model),
        "real": spec.to_dict(),
        "temperature": 1.0,
        "horizon": horizon,
        "cut_off": cut_off,
        "fps": _fps(spec),
        "versions": versions(),
        **({} if rounds is None else {"rounds": rounds}),
    }
    flat = {f"{bank}/{key}": leaf.cpu() for bank, latent in starts.items() for key, leaf in latent.items()}
    policies = {} if policy is None else {policy.about()["kind"]: (policy.tensors(), policy.about())}
    save_artifact(path, config, model.state_dict(), flat, card, policies, half=half)


def _facts(model: Model) -> dict[str, Any]:
    spaces = {"obs": space_to_dict(model.obs_space), "act": space_to_dict(model.act_space)}
    return {"family": model.family, "model": model.cfg.to_dict(), "spaces": spaces}


def _fps(spec: RealSpec) -> float:
    """Agent steps a second of the real environment."""
    env = make_real(spec)
    env.close()
    return float(env.metadata["render_fps"])


def cut_off_of(artifact: Artifact) -> float:
    """Where the artifact's dreams end; older ones do not say."""
    return float(artifact.config.get("cut_off", 0.5))


def load_starts(artifact: Artifact) -> dict[str, Latent]:
    """The artifact's banks of latents, by name."""
    banks: dict[str, Latent] = {}
    for name, leaf in artifact.starts.items():
        bank, key = name.split("/", 1)
        banks.setdefault(bank, {})[key] = leaf.float()
    return banks


def load_policy(model: WorldModel, artifact: Artifact, kind: str | None = None) -> Controller:
    """The controller on latents that the artifact carries, or the one of `kind`.

    Raises:
        ValueError: it carries none.
    """
    kinds = sorted(artifact.policies.keys() & POLICIES.keys())
    if not kinds:
        raise ValueError(f"{artifact.path} carries no controller; `wm evolve` gives it one")
    kind = kind or kinds[0]
    if kind not in kinds:
        raise ValueError(f"{artifact.path}: policy must be one of {kinds}, got {kind!r}")
    tensors, about = artifact.policies[kind]
    return POLICIES[kind](model, tensors, about)


@lru_cache(maxsize=2)
def cached_model(model: str) -> tuple[Model, Artifact]:
    """`load_model`, kept: worker processes ask for the same model at every episode."""
    return load_model(model)


def frame_policy(
    model: str, weights: NDArray[np.float32] | None = None, squash: tuple[str, ...] | None = None
) -> LatentPolicy:
    """A policy on real frames: the model's encoder and memory, and `weights` or else the artifact's own controller."""
    net, artifact = cached_model(model)
    if weights is None:
        return LatentPolicy(net, load_policy(net, artifact))
    return LatentPolicy(net, LinearPolicy(net.act_space, weights, squash))


def _dream_arguments(model: str | None, device: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    net, artifact = load_model(_given(model), device)
    check_dream(artifact)
    limit = kwargs.pop("max_episode_steps", None)
    defaults = {
        "temperature": artifact.config["temperature"],
        "horizon": limit if limit is not None else artifact.config["horizon"],
        "cut_off": cut_off_of(artifact),
        "fps": artifact.config["fps"],
        "drawing": artifact.config["real"]["id"],
    }
    return {"model": net, "starts": load_starts(artifact), **defaults, **kwargs}


def _given(model: str | None) -> str:
    """The model that a dream was asked for with.

    Raises:
        ValueError: none was.
    """
    if model is None:
        raise ValueError(
            "Dream-v0 needs to know of which model: give a directory, a shipped dream or org/name on the Hub, such as "
            'model="runs/my_model", model="Dream-CartPole-v0" or model="org/name"'
        )
    return model


def make_dream_env(model: str | None = None, device: str = "cpu", **kwargs: Any) -> DreamEnv:
    """`gym.make("Dream-...")`: see `DreamVectorEnv` for the arguments."""
    return DreamEnv(**_dream_arguments(model, device, kwargs))


def make_dream_vec_env(
    model: str | None = None, num_envs: int = 1, device: str = "cpu", **kwargs: Any
) -> DreamVectorEnv:
    """`gym.make_vec("Dream-...", num_envs=N)`: one forward pass a step; see `DreamVectorEnv` for the arguments."""
    return DreamVectorEnv(num_envs=num_envs, **_dream_arguments(model, device, kwargs))


def make_real_env(model: str, obs: str = "pixels", render_mode: str | None = None) -> gym.Env[Any, Any]:
    """`gym.make("Real-...")`: the real environment in the same spaces as its dream.

    Args:
        obs: "pixels" (or the native vector), or "latent": feat of the model carried along.
    """
    if obs not in ("pixels", "latent"):
        raise ValueError(f"obs must be 'pixels' or 'latent', got {obs!r}")
    if obs == "pixels":
        spec = next((t.real for t in TASKS.values() if t.model == model), None)
        return make_real(spec or real_spec(load_artifact(model_path(model))), render_mode)
    net, artifact = load_model(model)
    return LatentObservation(make_real(real_spec(artifact), render_mode), net)
