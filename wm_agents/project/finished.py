"""What a finished run says of itself, and what would make it go on."""

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
from wm_agents.project.schema import ACTS, Project
from wm_agents.system.run_folder import RunFolder

UNREAD = ("project_name", "inference.", "verify.")
"""What a training does not read: a finished one stays finished, whatever these say."""
LATER = ("data.stack",)
"""Keys that came later: off, they say what is not said in runs from before."""
LEARNED_BY = ("data.num_steps", "online_collection.rounds", "controller.", "training.")
"""Of what may be otherwise, what is learned by."""


def tell(project: Project, values: dict[str, Any], console: Console, again: bool = False) -> None:
    """The last lines: what the run may be called and what to do next, after the scores that `deliver` has told.

    Args:
        again: it was trained before, and the scores are told here once more.
    """
    say = partial(console.print, soft_wrap=True, highlight=False)
    where, scores = shown(project.out / "model"), values["scores"]
    if again:
        say(f"{shown(project.out)} is trained already; {more(project)}")
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
    """Say on the console what a run does without."""
    for mode in degraded:
        console.print(f"DEGRADED: {mode}: {MEANING[mode]}", style="bold red", soft_wrap=True, highlight=False)


def check_more(project: Project, before: dict[str, Any], folder: RunFolder) -> None:
    """Refuse settings that a finished run was not learned by and would not be: its rounds are over.

    Raises:
        ConfigurationError: which, and what to do.
    """
    then, now = flatten(before), flatten(strict(project.to_dict()))
    if project.family in ACTS or project.data.source == "random" or folder.state.get("round", 0) < _rounds(project):
        return
    told = [
        f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if name.startswith(LEARNED_BY) and then.get(name) != now.get(name)
    ]
    if told:
        raise ConfigurationError(
            f"{shown(project.out)} is trained already, and not so: {'; '.join(told)}; {more(project)}"
        )


def more(project: Project) -> str:
    """How a finished run goes on, in words."""
    online = project.online_collection.enabled
    if project.family not in ACTS:
        what = "online_collection.rounds" if online else ""
    else:
        what = "data.num_steps" if online else "training.total_steps"
    elsewhere = "another training.output_dir"
    return f"it goes on with more {what}, and anything else needs {elsewhere}" if what else f"give {elsewhere}"


def _rounds(project: Project) -> int:
    return project.online_collection.rounds if project.online_collection.enabled else 1


def shown(path: Path) -> str:
    """A path to be typed where the user is."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, a level deep."""
    flat: dict[str, Any] = {}
    for name, part in values.items():
        if isinstance(part, dict):
            flat |= {f"{name}.{key}": value for key, value in part.items()}
        else:
            flat[name] = part
    return flat


def digest(settings: dict[str, Any]) -> str:
    """A name for settings that changes with any that a training reads."""
    unsaid = {name for name in LATER if not settings.get(name)}
    read = {k: value for k, value in settings.items() if not k.startswith(UNREAD) and k not in unsaid}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
