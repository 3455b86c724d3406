"""`wm curriculum`: flags in, exit code out; nothing is ever asked."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

import torch
from docstring_parser import parse_from_object
from rich.console import Console

from wm_agents.cli.flags import Parser
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.films import parse_generations
from wm_agents.curriculum.plan import Course, plan
from wm_agents.curriculum.preflight import look_around
from wm_agents.curriculum.run import Curriculum
from wm_agents.curriculum.tasks import installed, read_curriculum
from wm_agents.errors import describe
from wm_agents.loops.preflight import check_device, display_error
from wm_agents.loops.rounds import check_training
from wm_agents.system.run_folder import RunFolder

SOLVED, NOT_ALL_SOLVED, INTERRUPTED, ERROR = range(4)
"""Exit codes."""


TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
ALIASES = {"episodes_per_eval": ("--eval-episodes",)}
"""Other spellings in use."""

ABOUT = """Take a curriculum from nothing to promoted, one task after the other, in dreams. The same command goes on
where it was stopped, and asks nothing. Exit: 0 all tasks solved, 1 not all, 2 interrupted, 3 an error."""


def main(args: list[str] | None = None, prog: str = "wm curriculum") -> int:
    """Run a curriculum by its flags; the exit code comes back, and nothing is ever asked."""
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args
    try:
        cfg = parse([arg for arg in args if arg != "--debug"], prog)
    except SystemExit as stop:
        return ERROR if stop.code else SOLVED
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return carry_out(cfg, Console(stderr=True))
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command goes on from what was done", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"{prog}: {describe(error)}", file=sys.stderr)
        return ERROR
    finally:
        signal.signal(signal.SIGTERM, before)


def carry_out(cfg: CurriculumConfig, console: Console) -> int:
    """Look around, then take the tasks on; the exit code."""
    courses, left_out = courses_of(cfg)
    for name, how in left_out.items():
        console.print(f"left out: {name}; to have it: {how}", highlight=False, soft_wrap=True, markup=False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.tf32
    check_window(cfg, console)
    if not cfg.visualize:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # Else SDL complains where there is no display.
    if cfg.smoke_test:
        return SOLVED if look_around(cfg, courses, console) else NOT_ALL_SOLVED
    check_device(cfg.device)
    begun = (cfg.root / "run.json").exists()
    if cfg.preflight and not begun:
        # Before flags are written down that a run, once begun, does not change: what is found may want others.
        with RunFolder(cfg.root):
            ready = look_around(cfg, courses, console)
        if not ready:
            raise RuntimeError("the preflight found what is in the way; --preflight False tries all the same")
    with Curriculum(cfg, courses, left_out, console) as run:
        solved = run.run()
        num = sum(record.solved for record in run.records)
        console.print(
            f"{num} of {len(run.records)} tasks solved: {cfg.root / 'curriculum_results.json'}", soft_wrap=True
        )
    return SOLVED if solved else NOT_ALL_SOLVED


def courses_of(cfg: CurriculumConfig) -> tuple[list[Course], dict[str, str]]:
    """What can be run here, and what is left out and how to have it.

    Raises:
        ValueError: nothing of it can be run here, or something cannot be dreamed of; the message names it.
    """
    name = cfg.curriculum or ("core" if cfg.prefer_box2d else "classic")
    entries, left_out = installed(read_curriculum(name))
    if not entries:
        raise ValueError(f"no task of {name} can be played here: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    courses = [plan(entry, cfg) for entry in entries]
    for course in courses:
        check_training(course.cfg)
    return courses, left_out


def check_window(cfg: CurriculumConfig, console: Console) -> None:
    """Say that a film takes the place of the window that cannot be opened.

    Raises:
        RuntimeError: it must not.
    """
    if not cfg.visualize or cfg.render_mode != "human" or (why := display_error()) is None:
        return
    if not cfg.fallback_rgb:
        raise RuntimeError(f"--visualize True with --no-fallback-rgb: {why}")
    console.print(
        f"there is no display: videos/watch.mp4 of each task takes the window's place ({why})", soft_wrap=True
    )


def parse(args: list[str], prog: str) -> CurriculumConfig:
    """Read the flags; `--config FILE` reads them from a TOML file, where their names have underscores.

    Raises:
        SystemExit: wrong flags, which are named on stderr, or `--help`.
    """
    parser = Parser(prog=prog, description=ABOUT)
    parser.add_argument("--config", action="config", help="a TOML file with the same names, underscores for dashes")
    hints = get_type_hints(CurriculumConfig)
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in _docs()}
    truths = [field.name for field in fields(CurriculumConfig) if hints[field.name] is bool]
    for field in fields(CurriculumConfig):
        flags, name = [f"--{_dashed(field.name)}", *ALIASES.get(field.name, ())], field.name
        more: dict[str, Any] = {"type": hints[name], "default": field.default}
        if name in truths:  # Read below: what a type says of itself in --help is no help.
            more = {"nargs": "?", "const": True, "metavar": "True|False", "default": field.default}
        elif name == "video_gens":
            more = {"metavar": "G,G,...", "default": field.default}
        parser.add_argument(*flags, dest=name, help=helps[name], **more)
    negated = {f"--no-{_dashed(name)}" for name in truths}
    values = vars(parser.parse_args([_plain(arg, negated) for arg in args]))
    values.pop("config")
    try:
        for name in truths:
            values[name] = truth(name, values[name])
        films = values["video_gens"]
        values["video_gens"] = parse_generations(films) if isinstance(films, str) else tuple(films)
        return CurriculumConfig(**values)
    except ValueError as error:
        parser.error(str(error))


def truth(name: str, text: str | bool) -> bool:
    """`True`, `false`, `1`, `yes` ... as a truth."""
    word = str(text).lower()
    if word not in (*TRUE, *FALSE):
        raise ValueError(f"--{_dashed(name)} must be True or False, got {text!r}")
    return word in TRUE


def _plain(arg: str, negated: set[str]) -> str:
    """`--no-window-reuse` as `--window-reuse=False`, `--max_generations` as `--max-generations`."""
    if not arg.startswith("--"):
        return arg
    flag, given, value = arg.partition("=")
    flag = flag.replace("_", "-")
    if flag in negated and not given:
        return f"--{flag[5:]}=False"
    return flag + given + value


@cache
def _docs() -> list[Any]:
    return parse_from_object(CurriculumConfig).params


def _dashed(name: str) -> str:
    return name.replace("_", "-")
