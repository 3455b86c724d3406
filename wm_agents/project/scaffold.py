"""`wm init`: creates the files of a new project, all or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wm_agents.errors import ConfigurationError
from wm_agents.project.defaults import recipe_of, usual
from wm_agents.project.settings import Review
from wm_agents.project.template import files, toml_text
from wm_envs.real import probe


def write_project(
    path: Path,
    environment: str,
    model: str | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    wrapper: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Create a project in `path` completely or not at all, and return the names of its files.

    Args:
        model: a preset, family:size; default: one that fits the observations.
        kwargs: arguments of the environment.
        wrapper: see `RealSpec.wrapper`.
        force: write into a folder that is not empty: files of a project are replaced, other files stay.
        say: called with notes about settings that the user may want to change.

    Raises:
        UnknownEnv, LackingEnv: the environment is not installed.
        ConfigurationError: the model is unknown.
        ValueError: the environment is not supported.
        FileExistsError: the folder is not empty.
    """
    if not force and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not an empty folder; give another folder, or use --force")
    values = usual(environment, model, path.resolve().name, kwargs, wrapper)
    if problems := Review(values).problems:  # Errors in the chosen model.
        raise ConfigurationError("; ".join(f"{problem.key} {problem.text}" for problem in problems))
    notes = _notes_of(values)
    texts = {"wm.toml": toml_text(values, notes), **files(values)}
    _place(path, texts)
    for name, text in notes.items():
        section, key = name.split(".")
        say(f"{text} [{section}] {key} = {values[section][key]}")
    return list(texts)


def _notes_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Notes about automatic settings, by dotted name."""
    data = values["data"]
    recipe = recipe_of(values["environment"], data.get("env_kwargs"), data.get("wrapper"))
    own_limit = probe(replace(recipe.spec, max_episode_steps=None)).limit
    if "max_episode_steps" not in data or own_limit is not None:
        return {}
    return {"data.max_episode_steps": f"{values['environment']} has no episode limit, so this sets one."}


def _place(path: Path, texts: Mapping[str, str]) -> None:
    """Write the files to a temporary folder and rename it; in an existing folder, move them one by one."""
    fresh = not path.exists()
    home = path.resolve().parent if fresh else path
    home.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.resolve().name}.", dir=home))
    try:
        for name, text in texts.items():
            (stage / name).write_text(text, encoding="utf-8")
        stage.chmod(0o755)
        if fresh:
            stage.rename(path)
            return
        for name in texts:
            os.replace(stage / name, path / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
