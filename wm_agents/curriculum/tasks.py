"""The tasks of a curriculum and their thresholds: known tasks, or a list in a TOML file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from wm_agents.system.files import read_toml
from wm_envs.registry import TASKS


class _Threshold(NamedTuple):
    """Mean returns that count as solved."""

    full: float
    quick: float
    """For a quick run, which only shows that something is learned."""


THRESHOLDS = {
    "Pong": _Threshold(18.0, 5.0),
    "LunarLander": _Threshold(200.0, 50.0),
    "Breakout": _Threshold(50.0, 10.0),
    "CarRacing": _Threshold(800.0, 100.0),
    "CartPole": _Threshold(475.0, 195.0),
    "Acrobot": _Threshold(-100.0, -200.0),
}
CURRICULA = {
    "core": ("Pong", "LunarLander", "CarRacing"),
    "full": ("Pong", "LunarLander", "Breakout", "CarRacing"),
    "classic": ("Pong", "Breakout", "CartPole", "Acrobot"),
}


@dataclass(frozen=True)
class Entry:
    """One task of a curriculum."""

    env_id: str
    threshold: _Threshold
    task: str | None = None
    """The known task with a recipe; None for any other environment."""
    max_generations: int | None = None
    """Maximum generations of this task, if different from those of the run."""
    max_episode_steps: int | None = None
    """Episode limit in agent steps, if the environment has none or a higher one."""
    wrapper: str | None = None
    """`module:function` that wraps the environment."""

    @property
    def name(self) -> str:
        return self.task or self.env_id

    @property
    def folder(self) -> str:
        """The folder name, such as `ALE_Pong-v5` for `ALE/Pong-v5`."""
        return self.env_id.replace("/", "_").replace(":", "_")


def _known(task: str, max_generations: int | None = None) -> Entry:
    """The entry of a known task."""
    return Entry(TASKS[task].real.id, THRESHOLDS[task], task, max_generations)


def read_curriculum(name: str) -> list[Entry]:
    """The tasks of `core`, `full` or `classic`, or those of a TOML file.

    A file has one table per task, in order:

        [[task]]
        name = "CartPole"         # a known task, or else env = "Pendulum-v1"
        threshold = 475.0         # required with env
        quick_threshold = 195.0   # default: threshold
        max_generations = 100     # default: those of the run
        max_episode_steps = 200   # default: the limit of the environment
        wrapper = "my_wrappers:only_image"   # only with env; default: none

    Raises:
        ValueError: unknown curriculum, or an invalid file.
        FileNotFoundError: the file does not exist.
    """
    if name in CURRICULA:
        return [_known(task) for task in CURRICULA[name]]
    path = Path(name)
    if path.suffix != ".toml":
        raise ValueError(_unknown("curriculum", name, [*CURRICULA]) + ", or the path of a .toml file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a curriculum is {', '.join(CURRICULA)} or a TOML file")
    values = read_toml(path)
    _check_names(path, "field", values, ["task"])
    tables = values.get("task")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path} must contain a [[task]] table for each task, got {tables!r}")
    entries = [_read_entry(f"{path}, task {i}", table) for i, table in enumerate(tables, 1)]
    ids = [entry.env_id for entry in entries]
    if twice := sorted({env_id for env_id in ids if ids.count(env_id) > 1}):
        raise ValueError(f"{path} lists {', '.join(twice)} more than once; each environment has one folder of results")
    return entries


FIELDS = {
    "name": str,
    "env": str,
    "threshold": float,
    "quick_threshold": float,
    "max_generations": int,
    "max_episode_steps": int,
    "wrapper": str,
}


def _read_entry(where: str, table: dict[str, Any]) -> Entry:
    _check_names(where, "field", table, [*FIELDS])
    for field, kind in FIELDS.items():
        if field in table:
            _check_value(where, field, table[field], kind)
    name, env_id = table.get("name"), table.get("env")
    if (name is None) == (env_id is None):
        raise ValueError(f"{where}: a task must have either name or env, got {table}")
    if name is not None and name not in THRESHOLDS:
        raise ValueError(f"{where}: {_unknown('name', name, [*THRESHOLDS])}; for other environments use env")
    if env_id is not None and "threshold" not in table:
        raise ValueError(f"{where}: {env_id} needs a threshold, the mean return that counts as solved")
    usual = _Threshold(table.get("threshold", math.nan), table.get("threshold", math.nan))
    if name is not None and "threshold" not in table:
        usual = THRESHOLDS[name]
    full, quick = float(usual.full), float(table.get("quick_threshold", usual.quick))
    limits = {limit: table.get(limit) for limit in ("max_generations", "max_episode_steps")}
    wrapper = table.get("wrapper")
    if name is not None:
        if wrapper is not None:
            raise ValueError(f"{where}: a known task takes no wrapper; give its environment as env")
        return Entry(TASKS[name].real.id, _Threshold(full, quick), name, **limits)
    assert env_id is not None
    task = next((task.name for task in TASKS.values() if task.real.id == env_id and wrapper is None), None)
    return Entry(env_id, _Threshold(full, quick), task, wrapper=wrapper, **limits)


def _check_names(where: object, what: str, values: Iterable[str], names: list[str]) -> None:
    for name in values:
        if name not in names:
            raise ValueError(f"{where}: {_unknown(what, name, names)}")


def _check_value(where: str, name: str, value: Any, kind: type) -> None:
    good = type(value) in ((int, float) if kind is float else (kind,))
    if good and kind is not str:
        good = math.isfinite(value) and (kind is float or value >= 1)
    if not good:
        words = {str: "a text", float: "a finite number", int: "a whole number of at least 1"}
        raise ValueError(f"{where}: {name} must be {words[kind]}, got {value!r}")


def _unknown(what: str, name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
    return f"unknown {what} {name!r}; {hint}"


EXTRAS = {"gymnasium.envs.box2d": ("Box2D", "box2d"), "gymnasium.envs.mujoco": ("mujoco", "mujoco")}
"""Gymnasium registers these ids even without their dependencies: module of the env -> (package, extra)."""


def installed(entries: Iterable[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """The tasks whose environments are installed, and how to install the others, by name.

    Raises:
        ValueError: an unknown id.
    """
    missing = {entry.name: why for entry in entries if (why := _what_is_missing(entry.env_id)) is not None}
    return [entry for entry in entries if entry.name not in missing], missing


def _what_is_missing(env_id: str) -> str | None:
    """What must be installed for `env_id`, or None.

    Raises:
        ValueError: an unknown id.
    """
    module, _, name = env_id.rpartition(":")
    if module and find_spec(module.split(".")[0]) is None:
        return f"the module {module} is not installed"
    if name.startswith("ALE/"):
        if find_spec("ale_py") is None:
            return 'pip install "gymnasium[atari]"'
        gym.register_envs(import_module("ale_py"))
    try:
        if module:
            import_module(module)
        spec = gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"{env_id} is not an installed environment: {error}") from error
    for prefix, (package, extra) in EXTRAS.items():
        if str(spec.entry_point).startswith(prefix) and find_spec(package) is None:
            return f'pip install "gymnasium[{extra}]"'
    return None
