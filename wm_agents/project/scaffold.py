"""`wm init`: the files of a new project, written beside their place and moved there when all of them are whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wm_agents.errors import ConfigurationError
from wm_agents.project.defaults import recipe_of, usual
from wm_agents.project.settings import Review
from wm_agents.project.template import files, toml_text


def write_project(
    path: Path,
    environment: str,
    model: str | None = None,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write a project into `path`, all of its files or none; their names come back.

    Args:
        model: a preset, family:size; unless given, what suits what the environment shows.
        force: write into a folder that is not empty: files of a project are replaced, others stay.
        say: is told what was settled that is the user's to change.

    Raises:
        UnknownEnv, LackingEnv: there is no such environment here.
        ConfigurationError: there is no such model.
        ValueError: the environment cannot be modelled.
        FileExistsError: the folder is not empty.
    """
    if not force and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not an empty folder; give another, or --force to write into it")
    values = usual(environment, model, path.resolve().name)
    if problems := Review(values).problems:  # Of the model, which is what a user chose.
        raise ConfigurationError("; ".join(f"{problem.key} {problem.text}" for problem in problems))
    notes = notes_of(values)
    texts = {"wm.toml": toml_text(values, notes), **files(values)}
    _place(path, texts)
    for name, text in notes.items():
        section, key = name.split(".")
        say(f"{text} [{section}] {key} = {values[section][key]}")
    return list(texts)


def notes_of(values: Mapping[str, Any]) -> dict[str, str]:
    """What is to be noted of settings that nobody asked for, by dotted name."""
    cut = values["data"].get("max_episode_steps")
    if cut is None or cut == recipe_of(values["environment"]).spec.max_episode_steps:
        return {}
    return {"data.max_episode_steps": f"{values['environment']} sets no limit to its episodes, so they are cut here."}


def _place(path: Path, texts: Mapping[str, str]) -> None:
    """Stage the files beside `path` and rename; into a folder that is there they go one by one, when all are whole."""
    fresh = not path.exists()
    home = path.resolve().parent if fresh else path
    home.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.resolve().name}.", dir=home))
    try:
        for name, text in texts.items():
            (stage / name).write_text(text)
        stage.chmod(0o755)
        if fresh:
            stage.rename(path)
            return
        for name in texts:
            os.replace(stage / name, path / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
