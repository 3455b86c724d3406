"""Models on disk by name or path: shipped ones, directories and the Hub; loaded whole or not at all."""

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
from wm_agents.system.run_folder import versions
from wm_envs.registry import TASKS

STORE = Path(__file__).parents[1] / "store"
"""The models that ship."""
FIELDS = ("family", "model", "spaces")
"""What config.json must say of a model."""


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
    """What is at `path`, which is not a model, and where the model is; None if nothing is there."""
    for folder in (path, *path.parents[:2]):
        if (folder / PROJECT_FILE).is_file() and (answer := _of_project(folder, path)):
            return answer
    if not path.exists():
        return None
    near = next((folder for folder in (path / "model", path.parent) if (folder / "config.json").is_file()), None)
    what = "holds none" if path.is_dir() else "is a file"
    return f"model must be a directory with a config.json, and {path} {what}" + (f"; give {near}" if near else "")


def _of_project(folder: Path, path: Path) -> str | None:
    """Where the model of the project in `folder` is, if `path` is that folder or where the model will be."""
    try:
        model = _project_model(folder)
    except ConfigurationError as error:
        return str(error) if path == folder else None
    name = "this folder" if folder == Path() else folder
    if not (model / "config.json").is_file():
        untrained = f"{name} is a project that is not trained yet: run `wm train` in it; its model will be {model}"
        return untrained if path in (folder, folder / PROJECT_FILE, model, model.parent) else None
    return f"{name} is a project: its model is {model}; give that" if path in (folder, folder / PROJECT_FILE) else None


def _project_model(folder: Path) -> Path:
    """The model directory of the project in `folder`, by the two keys of its file that set it."""
    values = read_toml(folder / PROJECT_FILE)
    sections = [values.get(name) for name in ("training", "inference")]
    training, inference = (section if isinstance(section, dict) else {} for section in sections)
    if checkpoint := inference.get("checkpoint"):
        return folder / str(checkpoint)
    return folder / str(training.get("output_dir", "outputs")) / "model"


def load_model(model: str | Path, device: str = "cpu") -> tuple[Model, Artifact]:
    """Load a model in eval mode, and the artifact it came from.

    Raises:
        ArtifactError: it is corrupt, foreign or of a newer version.
        ConfigurationError: there is no such device here.
    """
    place = find_device(device)
    artifact = load_artifact(model_path(str(model)))
    cfg = artifact.config
    if lacking := [name for name in FIELDS if name not in cfg]:
        raise ArtifactError(f"{artifact.path / 'config.json'} lacks {', '.join(map(repr, lacking))}; it is no model's")
    try:
        obs_space, act_space = (space_from_dict(cfg["spaces"][name]) for name in ("obs", "act"))
        _check_size(cfg, obs_space, act_space, artifact)
        net = build(cfg["family"], cfg["model"], obs_space, act_space)
    except ArtifactError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ArtifactError(
            f"{artifact.path / 'config.json'} describes no model of this version: {error}; upgrade this package"
        ) from error
    load_weights(net, artifact.tensors)
    return net.to(place).eval(), artifact


def _check_size(cfg: dict[str, Any], obs_space: gym.Space[Any], act_space: gym.Space[Any], artifact: Artifact) -> None:
    """Build the model without memory, and stop as soon as it has more weights than the file holds.

    Raises:
        ArtifactError: config.json claims a larger model than the weights are of.
    """
    held = sum(tensor.numel() for tensor in artifact.tensors.values())
    built = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal built
        built += 0 if parameter is None else max(parameter.numel(), 1)
        if built > held:
            raise ArtifactError(
                f"{artifact.path / 'config.json'} claims a model of more than {built:,} weights, but "
                f"model.safetensors holds {held:,}; download or save the model again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build(cfg["family"], cfg["model"], obs_space, act_space)
    finally:
        hook.remove()


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
    return save_artifact(path, {**model_facts(model), "versions": versions()}, model.state_dict(), {}, card)


def model_facts(model: Model) -> dict[str, Any]:
    """What config.json says of any model: family, settings, spaces."""
    spaces = {"obs": space_to_dict(model.obs_space), "act": space_to_dict(model.act_space)}
    return {"family": model.family, "model": model.cfg.to_dict(), "spaces": spaces}
