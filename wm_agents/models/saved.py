"""Saved models by name or path: shipped models, directories and the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from wm_agents.checkpoint import Artifact, ArtifactError, load_artifact, load_weights, model_card, save_artifact
from wm_agents.errors import ConfigurationError, did_you_mean
from wm_agents.hub import is_repo_id, resolve
from wm_agents.models.families import build
from wm_agents.models.model import Model
from wm_agents.spaces import space_from_dict, space_to_dict
from wm_agents.system.files import PROJECT_FILE, read_toml
from wm_agents.system.hardware import find_device
from wm_agents.system.replace import restore
from wm_agents.system.run_folder import versions
from wm_envs.registry import TASKS

STORE = Path(__file__).parents[1] / "store"
"""The shipped models."""
FIELDS = ("family", "model", "spaces")
"""Required keys of config.json."""


class UnknownModel(FileNotFoundError):
    """There is no shipped model and no directory of this name."""


def model_path(model: str) -> Path:
    """The directory of a model: a path, the name of a shipped model or dream, or `org/name[@revision]` on the
    Hub.

    Raises:
        FileNotFoundError: there is no such model, or it is not trained yet.
    """
    shipped = {task.dream_id: task.model for task in TASKS.values()}
    restore(Path(model))
    for path in (Path(model), STORE / shipped.get(model, model)):
        if (path / "config.json").is_file():
            return path
    for task in TASKS.values():
        if model in (task.dream_id, task.model):
            raise FileNotFoundError(
                f"{task.dream_id} has no shipped model; train one with `wm improve --task {task.name}` and pass its "
                f"directory to Dream-v0. {task.real_id} needs no model"
            )
    if found := _instead(Path(model)):
        raise FileNotFoundError(found)
    if is_repo_id(model):
        return resolve(model)
    if len(Path(model).parts) > 1:
        raise FileNotFoundError(f"model must be a directory with a config.json, but {model} does not exist")
    names = sorted(name for name in (*shipped.values(), *shipped) if (STORE / shipped.get(name, name)).is_dir())
    if near := did_you_mean(model, names):
        raise UnknownModel(
            f"model must be a directory with a config.json or the name of a shipped model, got {model!r}{near}"
        )
    raise UnknownModel(f"model must be a directory with a config.json or one of {names}, got {model!r}")


def _instead(path: Path) -> str | None:
    """A description of `path`, which is not a model, and where the model is; None if `path` does not
    exist."""
    for folder in (path, *path.parents[:2]):
        if (folder / PROJECT_FILE).is_file() and (answer := _of_project(folder, path)):
            return answer
    if not path.exists():
        return None
    near = next((folder for folder in (path / "model", path.parent) if (folder / "config.json").is_file()), None)
    what = "is a file"
    if path.is_dir():
        what = "has none"
    return f"model must be a directory with a config.json, but {path} {what}" + (f"; give {near}" if near else "")


def _of_project(folder: Path, path: Path) -> str | None:
    """Where the model of the project in `folder` is, if `path` is that folder or the future model
    directory."""
    try:
        model = _project_model(folder)
    except ConfigurationError as error:
        if path == folder:
            return str(error)
        return None
    name = "this folder" if folder == Path() else folder
    if not (model / "config.json").is_file():
        untrained = f"{name} is an untrained project: run `wm train` in it; its model will be {model}"
        if path in (folder, folder / PROJECT_FILE, model, model.parent):
            return untrained
        return None
    if path in (folder, folder / PROJECT_FILE):
        return f"{name} is a project; give its model, {model}"
    return None


def _project_model(folder: Path) -> Path:
    """The model directory of the project in `folder`, from the two keys of its file that define it."""
    values = read_toml(folder / PROJECT_FILE)
    sections = [values.get(name) for name in ("training", "inference")]
    training, inference = (section if isinstance(section, dict) else {} for section in sections)
    if checkpoint := inference.get("checkpoint"):
        return folder / str(checkpoint)
    return folder / str(training.get("output_dir", "outputs")) / "model"


def load_model(model: str | Path, device: str = "cpu") -> tuple[Model, Artifact]:
    """Load a model in eval mode, and its artifact.

    Raises:
        ArtifactError: the model is corrupt, not a saved model, or of a newer version.
        ConfigurationError: the device does not exist.
    """
    place = find_device(device)
    artifact = load_artifact(model_path(str(model)))
    cfg = artifact.config
    if lacking := [name for name in FIELDS if name not in cfg]:
        raise ArtifactError(
            f"{artifact.path / 'config.json'} has no {', '.join(map(repr, lacking))}; this is not a saved model"
        )
    try:
        obs_space, act_space = (space_from_dict(cfg["spaces"][name]) for name in ("obs", "act"))
        _check_size(cfg, obs_space, act_space, artifact)
        net = build(cfg["family"], cfg["model"], obs_space, act_space)
    except ArtifactError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ArtifactError(
            f"{artifact.path / 'config.json'} does not describe a model of this version: {error}; upgrade the package"
        ) from error
    load_weights(net, artifact.tensors)
    return net.to(place).eval(), artifact


def _check_size(cfg: dict[str, Any], obs_space: gym.Space[Any], act_space: gym.Space[Any], artifact: Artifact) -> None:
    """Build the model without allocating memory, and stop if it has more weights than the file.

    Raises:
        ArtifactError: config.json describes a larger model than the weights.
    """
    held = sum(tensor.numel() for tensor in artifact.tensors.values())
    built = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal built
        if parameter is not None:
            built += max(parameter.numel(), 1)
        if built > held:
            raise ArtifactError(
                f"{artifact.path / 'config.json'} describes a model of more than {built:,} weights, but "
                f"model.safetensors contains {held:,}; download or save the model again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build(cfg["family"], cfg["model"], obs_space, act_space)
    finally:
        hook.remove()


def save_bare(path: Path, model: Model) -> Path:
    """Save only a model, without the other parts of a dream.

    Raises:
        ArtifactError: the directory contains a dream, which would lose its initial latents and policies.
    """
    if (path / "config.json").is_file() and "real" in load_artifact(path).config:
        raise ArtifactError(
            f"{path} contains a dream; saving only the model would lose its initial latents and policies. "
            "Give another directory, or use wm_agents.pretrained.save_model"
        )
    title = f"{model.family} model of {model.obs_space} and {model.act_space}"
    card = model_card(title, {"parameters": f"{model.num_parameters:,}"})
    return save_artifact(path, {**model_facts(model), "versions": versions()}, model.state_dict(), {}, card)


def model_facts(model: Model) -> dict[str, Any]:
    """The entries of config.json for any model: family, settings, spaces."""
    spaces = {"obs": space_to_dict(model.obs_space), "act": space_to_dict(model.act_space)}
    return {"family": model.family, "model": model.cfg.to_dict(), "spaces": spaces}
