"""Every key of a wm.toml as a flag; flags override the file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from wm_agents.cli.flags import Parser, value_of
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.models.families import config_class, resolve
from wm_agents.project.schema import SECTIONS
from wm_agents.system.files import PROJECT_FILE, read_toml
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import field_docs, fields_of


class Key(NamedTuple):
    """A key of a wm.toml."""

    name: str
    """Dotted."""
    hint: Any
    about: str


READ = ("data", "online_collection", "controller", "gameplay", "visualization")
"""Sections that training reads in addition to [training] and [architecture]."""


ALLOW_DEGRADED = "train on random numbers if no real data is available; the run is marked as degraded"


def keys_of(family: str | None) -> Iterator[Key]:
    """Yield all keys that training reads; those of [architecture] depend on the family."""
    kinds: dict[str, type] = {"training": TrainingConfig, **{name: SECTIONS[name] for name in READ}}
    if family is not None:
        kinds["architecture"] = config_class(family)
    for section, kind in kinds.items():
        docs = field_docs(kind)
        for name, (_, hint) in fields_of(kind).items():
            yield Key(f"{section}.{name}", hint, docs[name])


class TrainParser(Parser):
    """Parser of `wm train`: --config, --model, --environment and one flag for each key of the file."""

    def __init__(self, args: list[str], prog: str) -> None:
        super().__init__(
            prog=prog,
            description="Train the model of a project with the settings in its wm.toml; running it again "
            "resumes. Flags override the file; [architecture] has the fields of the model's own config.",
        )
        self.add_argument("--config", default=PROJECT_FILE, help="the project's wm.toml or its folder")
        self.add_argument("--model", default=argparse.SUPPRESS, help="a preset (family:size)")
        self.add_argument("--environment", default=argparse.SUPPRESS, help="a Gymnasium id, or module:Id-v0")
        self.add_argument("--allow_degraded", type=bool, default=False, help=ALLOW_DEGRADED)
        docs = field_docs(ImproveConfig)
        self.add_argument("--budget", type=str, default=argparse.SUPPRESS, help=docs["budget"])
        self.add_argument("--quick", type=bool, default=False, help=docs["quick"])
        for key in keys_of(_family(args)):
            about = key.about.replace("%", "%%")
            self.add_argument(f"--{key.name}", type=key.hint, default=argparse.SUPPRESS, help=about, metavar="VALUE")
        self.also = {"training.seed": "--seed", "visualization.dashboard": "--dashboard"}

    def arguments(self, args: list[str]) -> dict[str, Any]:
        """Return the settings given by flags, by dotted name, and the other arguments of `train`."""
        values = self.parse_args(args, defaults=False).as_dict()
        config, allowed = values.get("config", PROJECT_FILE), values.get("allow_degraded", False)
        time = {"budget": values.get("budget"), "quick": values.get("quick", False)}
        return {"settings": said(values), "config": config, "allow_degraded": allowed, **time}


def said(values: dict[str, Any]) -> dict[str, Any]:
    """Return the given values of the file's keys, by dotted name."""
    given: dict[str, Any] = {name: values[name] for name in ("model", "environment") if name in values}
    for section in ("training", "architecture", *READ):
        given |= {f"{section}.{key}": value for key, value in values.get(section, {}).items()}
    return given


def _family(args: list[str]) -> str | None:
    """Return the family that the flags or the file name; None if they cannot be read, which is reported
    later."""
    path = Path(value_of("--config", args) or PROJECT_FILE)
    path = path / PROJECT_FILE if path.is_dir() else path
    model = value_of("--model", args)
    with suppress(OSError, ValueError):
        model = model or read_toml(path).get("model")
        found = resolve(model) if isinstance(model, str) else None
        return found[0] if found else None
    return None
