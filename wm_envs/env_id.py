"""Errors for environments that are not installed: the nearest ids, and the package to install."""

from __future__ import annotations

import re
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from typing import Any

import gymnasium as gym

EXTRAS = {
    "gymnasium.envs.classic_control": "gymnasium[classic-control]",
    "gymnasium.envs.box2d": "gymnasium[box2d]",
    "gymnasium.envs.toy_text": "gymnasium[toy-text]",
    "gymnasium.envs.mujoco": "gymnasium[mujoco]",
    "gymnasium.envs.phys2d": "gymnasium[jax]",
    "gymnasium.envs.tabular": "gymnasium[jax]",
    "ale_py": "gymnasium[atari]",
}
"""The pip requirement of an environment, by the module of its entry point."""
PACKAGES = {
    r"ALE/|.*NoFrameskip-v\d": ("gymnasium[atari]", "ale_py"),
    r"MiniGrid-|BabyAI-": ("minigrid", "minigrid"),
    r"MiniWorld-": ("miniworld", "miniworld"),
    r"highway-|merge-|roundabout-|parking-|intersection-|racetrack-": ("highway-env", "highway_env"),
    r"Fetch|HandManipulate|HandReach|AntMaze|PointMaze|Adroit|FrankaKitchen": (
        "gymnasium-robotics",
        "gymnasium_robotics",
    ),
    r"dm_control/": ("shimmy[dm-control]", "shimmy"),
    r"Meta-World/": ("metaworld", "metaworld"),
    r"mo-": ("mo-gymnasium", "mo_gymnasium"),
}
"""The pip requirement and the module that registers an id, by the beginning of the id."""
NEAREST = 3
# A dream is not suggested as a real environment.
OURS = re.compile(r"(Dream|Real)-")


class _Told:
    """An error that is pickled as its type and text."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _told, (type(self), str(self))


def _told(kind: type[Exception], text: str) -> Exception:
    error = kind.__new__(kind)
    error.args = (text,)
    return error


class UnknownEnv(_Told, gym.error.UnregisteredEnv, ValueError):
    """No installed environment has this id. The message names the nearest ids and the packages to install."""

    def __init__(self, env_id: str) -> None:
        module, _, plain = env_id.rpartition(":")
        if module and (own := _ids_of(module)):
            near = get_close_matches(plain, own, n=NEAREST, cutoff=0.0)
            super().__init__(f"the module {module} registers no environment {plain!r}; the nearest are {_listed(near)}")
            return
        text = f"no environment {env_id!r} is installed; the nearest are {_listed(_nearest(env_id))}"
        package, brought_by = _brings(env_id)
        if package and find_spec(brought_by) is None:
            text += f"; {env_id} is provided by {package}: {_pip(package)}, then use the id {brought_by}:{env_id}"
        elif not module:
            text += f"; for an id that a module registers write module:{env_id}"
        super().__init__(text)


class LackingEnv(_Told, gym.error.DependencyNotInstalled, ImportError, ValueError):
    """The environment needs a package that is not installed. The message names it."""

    def __init__(self, env_id: str, error: Exception) -> None:
        module, _, plain = env_id.rpartition(":")
        # Remove Gymnasium's own hint; ours follows.
        reason = " ".join(str(error).split()).partition(", run `pip")[0].rstrip(".")
        package = _provider(plain) or _brings(plain)[0]
        if module and find_spec(module.split(".")[0]) is None:
            reason = f"the module {module} is not installed"
        super().__init__(f"cannot create {env_id}: {reason}" + (f"; {_pip(package)}" if package else ""))


def _ids_of(module: str) -> list[str]:
    """The registered ids whose environments are defined in `module` or in its package."""
    package = module.partition(".")[0]
    return [name for name, spec in gym.registry.items() if _home(spec.entry_point).partition(".")[0] == package]


def only_here(env_id: str) -> bool:
    """Whether only this process knows the id: a script has registered it, or a module that the id does not name."""
    if env_id not in gym.registry:  # With its module, or unknown.
        return False
    home = _home(gym.registry[env_id].entry_point).partition(".")[0]
    return home not in packages_distributions()


def _home(entry_point: Any) -> str:
    """The module of an entry point, which is a text `module:name` or a callable."""
    if isinstance(entry_point, str):
        return entry_point.partition(":")[0]
    return str(getattr(entry_point, "__module__", ""))


def _listed(ids: list[str]) -> str:
    """The ids as text, each with the pip requirement that provides it."""
    return ", ".join(f"{name} ({found})" if (found := _provider(name)) else name for name in ids)


def _nearest(env_id: str, num: int = NEAREST) -> list[str]:
    """The registered ids most similar to `env_id`, best first."""
    with suppress(ImportError):
        gym.register_envs(import_module("ale_py"))
    ids = {name.lower(): name for name in gym.registry if not OURS.match(name)}
    return [ids[name] for name in get_close_matches(env_id.rpartition(":")[2].lower(), ids, n=num, cutoff=0.0)]


def _provider(env_id: str) -> str | None:
    """The pip requirement of a registered id, or None if it is unknown."""
    spec = gym.registry.get(env_id)
    entry = str(spec.entry_point if spec is not None else None)
    return next((extra for module, extra in EXTRAS.items() if entry.startswith(module)), None)


def _pip(package: str) -> str:
    """The command that installs `package`."""
    if "[" in package:
        return f"pip install '{package}'"
    return f"pip install {package}"


def _brings(env_id: str) -> tuple[str, str]:
    """The package and the module of an unregistered id, by its beginning."""
    return next((found for start, found in PACKAGES.items() if re.match(start, env_id)), ("", ""))
