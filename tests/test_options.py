"""No option is parsed and ignored: each flag of each command, and each setting of each config, is read by some code."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

import pytest
from reading import Source, unread

from wm_agents.cli import app as cli
from wm_agents.cli.project_flags import READ
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.loops.sweep import SweepConfig
from wm_agents.models.dreamerv3 import DreamerV3Config
from wm_agents.project.schema import SECTIONS, Project
from wm_agents.training.config import TrainingConfig

OF_THE_PARSER = {"help", "config", "print_config", "print_shtab"}
ALLOWED = {
    "PPOConfig.batch_size": "ppo.py hands what it does not read itself to SB3's PPO, as keywords",
    "PPOConfig.epochs": "the same",
    "PPOConfig.gae_lambda": "the same",
    "PPOConfig.ent_coef": "the same",
    "PPOConfig.seed": "the same",
    "ImproveConfig.objects": "`model_config` reads the field that the row of the family names",
    "InferenceSection.horizon": "inference.py, which `wm init` writes, reads it",
}
"""What the source does not show, and why it is right."""


@cache
def source() -> Source:
    return Source()


@cache
def ignored() -> frozenset[str]:
    return frozenset(unread(source())) - ALLOWED.keys()


def functions_of(name: str) -> dict[str, Callable[..., Any]]:
    """The functions of a command by what is typed: one, or one for each verb."""
    module, target = cli.COMMANDS[name].target.split(":")
    found = getattr(import_module(f"wm_agents.cli.{module}"), target)
    return {f"{name} {verb}": found[verb] for verb in found} if isinstance(found, dict) else {name: found}


def options_of(command: str) -> list[str]:
    """Every option of a command as its parser knows it, dotted."""
    name, *rest = command.split()
    model = ["--model", "dreamerv3:ci"] if name == "train" else []
    _, parser, _ = cli.parser_of(name, [*rest, *model])
    return [action.dest for action in parser._actions if action.dest not in OF_THE_PARSER]


COMMANDS = [typed for name in cli.COMMANDS for typed in functions_of(name)]


def readers(command: str) -> Iterator[tuple[str, str]]:
    """(option, what of it no code reads) of a command."""
    name = command.split()[0]
    roots: dict[str, Any] = {}
    body: set[str] = set()
    if name == "improve":
        roots = {"": ImproveConfig}
        body = {"task", "env"} | names_in(functions_of(name)[command])
    elif name in ("curriculum", "sweep"):
        roots = {"": CurriculumConfig if name == "curriculum" else SweepConfig}
        body = names_in(functions_of(name)[command])
    elif name == "train":
        roots = {"training": TrainingConfig, **{part: SECTIONS[part] for part in READ}, "": Project}
        roots["architecture"] = DreamerV3Config
        body = {"allow_degraded", "config"} | names_in(functions_of(name)[command])
    else:
        function = functions_of(name)[command]
        roots = {key: hint for key, hint in get_type_hints(function).items() if inspect.isclass(hint)}
        body = names_in(function)
    for option in options_of(command):
        first, _, deeper = option.partition(".")
        if first in body and not deeper:
            continue
        kind, path = (roots[first], deeper) if first in roots and deeper else (roots.get(""), option)
        yield option, unread_in(kind, path) if kind else option


def names_in(function: Callable[..., Any]) -> set[str]:
    """Names that the body of a function reads, and words that it looks things up by."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    nodes = [node for part in tree.body for node in ast.walk(part)]
    words = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} | words


def unread_in(kind: type, path: str) -> str:
    """The field along a dotted path that no code reads; empty if all are."""
    for name in path.split("."):
        if not hasattr(kind, "__dataclass_fields__"):
            return ""  # Free-form, as the arguments of an environment are.
        owner = next((c for c in kind.__mro__ if name in vars(c).get("__annotations__", {})), None)
        if owner is None:
            return f"{kind.__name__} has no {name}"
        if f"{owner.__name__}.{name}" in ignored():
            return f"{owner.__name__}.{name}"
        kind = get_type_hints(kind)[name]
    return ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_command_is_read(command: str) -> None:
    assert {option: what for option, what in readers(command) if what} == {}


def test_every_setting_of_every_config_is_read() -> None:
    assert ignored() == frozenset()
    assert {
        "TrainingConfig",
        "ImproveConfig",
        "DreamerV3Config",
        "TDMPC2Config",
        "RealSpec",
    } <= source().configs().keys()


def test_what_is_allowed_is_still_there() -> None:
    assert ALLOWED.keys() <= set(unread(source()))
    text = inspect.getsource(import_module("wm_agents.control.ppo")._make)
    assert "values = asdict(cfg)" in text and "**kwargs" in text
    assert "project.inference.horizon" in import_module("wm_agents.project.template").INFERENCE


TEXT = """
from dataclasses import dataclass

@dataclass(frozen=True)
class InnerConfig:
    used: int = 1
    ignored: int = 2

@dataclass(frozen=True)
class OuterConfig:
    inner: InnerConfig
    checked: int = 3
    away: int = 4
    later: int = 5

    def __post_init__(self) -> None:
        if self.checked < 0: raise ValueError

class Other:
    def __init__(self, cfg: OuterConfig, ignored: int) -> None:
        self.cfg, self.ignored = cfg, ignored

    def run(self, other: "Other | None") -> int:
        cfg = self.cfg
        return cfg.inner.used + other.ignored + other.cfg.later
"""


def test_what_nobody_reads_is_found() -> None:
    assert unread(Source({"a.py": TEXT})) == ["InnerConfig.ignored", "OuterConfig.checked", "OuterConfig.away"]
    known = Source({"a.py": TEXT + "\ndef go(x: OuterConfig) -> None:\n    print(x.away, x.inner.ignored)\n"})
    assert unread(known) == ["OuterConfig.checked"]


def test_an_argument_that_a_function_does_not_read_is_found() -> None:
    def verb(used: int, ignored: int) -> None:
        """Do it."""
        print(used)

    assert "used" in names_in(verb) and "ignored" not in names_in(verb)


def test_every_command_of_the_usage_has_options_here() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(cli.COMMANDS)
    assert {"models list", "data verify", "config diff", "doctor", "bench", "init", "verify", "train"} <= set(COMMANDS)
    assert all(re.fullmatch(r"[\w.]+", option) for command in ("improve", "collect") for option in options_of(command))
    assert {"cma.population", "memory.total_steps", "spec.id"} <= set(options_of("improve"))
