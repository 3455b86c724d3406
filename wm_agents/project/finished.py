"""The summary of a finished run, and how to extend it."""

from __future__ import annotations

import hashlib
import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from wm_agents.degraded import MEANING
from wm_agents.errors import ConfigurationError
from wm_agents.project.manifest import strict
from wm_agents.project.schema import Project
from wm_agents.system.run_folder import RunFolder
from wm_envs.fields import differing

UNREAD = ("project_name", "inference.", "verify.", "visualization.report_minutes")
"""Settings that training does not use; changes of them do not extend a finished run."""
LATER = ("data.stack", "data.wrapper")
"""Newer keys; runs of older versions behave as if these were off."""
LEARNED_BY = ("data.num_steps", "online_collection.rounds", "controller.", "training.")
"""Changeable settings that affect training."""


def tell(project: Project, values: dict[str, Any], console: Console, again: bool = False) -> None:
    """Print the last lines: the classification of the run and the next commands, after the scores of
    `deliver`.

    Args:
        again: the run was finished before, so print its scores again.
    """
    say = partial(console.print, soft_wrap=True, highlight=False)
    where, scores = _shown(project.out / "model"), values["scores"]
    if again:
        say(f"{_shown(project.out)} is already trained; {_more(project)}")
    if again and scores is not None:
        real, dream = scores["real"], scores["dream"]
        score = f"real {real['mean']:.1f} ± {real['std']:.1f} over {real['episodes']} held-out episodes"
        say(f"{score}, dream {dream['mean']:.1f}")
    warn(values["degraded_modes"], console)
    say(f"{values['run_classification']}: {where}")
    say(f"next: wm verify --target {where}")
    if scores is not None:
        say(f"      wm evaluate {where}")


def warn(degraded: list[str], console: Console) -> None:
    """Print the degraded modes of a run."""
    for mode in degraded:
        console.print(f"DEGRADED: {mode}: {MEANING[mode]}", style="bold red", soft_wrap=True, highlight=False)


def check_more(project: Project, before: dict[str, Any], folder: RunFolder) -> None:
    """Check that no training setting of a finished run was changed: no round is left that would use it.

    Raises:
        ConfigurationError: a setting changed; the message says what to do.
    """
    then, now = flatten(before), flatten(strict(project.to_dict()))
    if project.is_online or project.data.source == "random" or folder.state.get("round", 0) < _rounds(project):
        return
    names = [name for name in sorted(then.keys() | now.keys()) if name.startswith(LEARNED_BY)]
    changes = differing({name: then.get(name) for name in names}, {name: now.get(name) for name in names})
    if changes:
        raise ConfigurationError(
            f"{_shown(project.out)} is already trained with other settings: {changes}; {_more(project)}"
        )


def _more(project: Project) -> str:
    """How to extend a finished run, as text."""
    online = project.online_collection.enabled
    if not project.is_online:
        what = ""
        if online:
            what = "online_collection.rounds"
    else:
        what = "training.total_steps"
        if online:
            what = "data.num_steps"
    elsewhere = "another training.output_dir"
    if what:
        return f"raise {what} to continue; for any other change use {elsewhere}"
    return f"use {elsewhere}"


def _rounds(project: Project) -> int:
    if project.online_collection.enabled:
        return project.online_collection.rounds
    return 1


def _shown(path: Path) -> str:
    """A path for a command in the current folder."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, one level deep."""
    flat: dict[str, Any] = {}
    for name, part in values.items():
        if isinstance(part, dict):
            flat |= {f"{name}.{key}": value for key, value in part.items()}
        else:
            flat[name] = part
    return flat


def digest(settings: dict[str, Any]) -> str:
    """A hash of all settings that training uses."""
    unsaid = {name for name in LATER if not settings.get(name)}
    read = {k: value for k, value in settings.items() if not k.startswith(UNREAD) and k not in unsaid}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
