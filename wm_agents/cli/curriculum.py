"""`wm curriculum`: the command, its flags and its exit codes."""

from __future__ import annotations

import os
from typing import Any

import torch
from rich.console import Console

from wm_agents.cli.flags import Parser, about
from wm_agents.cli.web import SHOW_DASHBOARD, dashboard_of
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.plan import Course, plan
from wm_agents.curriculum.preflight import look_around
from wm_agents.curriculum.run import Curriculum
from wm_agents.curriculum.tasks import installed, read_curriculum
from wm_agents.loops.preflight import check_device, check_training, display_error
from wm_agents.project.schema import VisualizationSection
from wm_agents.system.run_folder import RunFolder

SOLVED, NOT_ALL_SOLVED = 0, 1
"""Exit codes of `wm curriculum`."""


def curriculum(cfg: CurriculumConfig, dashboard: bool = False) -> int:
    """Train on a list of tasks from scratch, one after another, each until it reaches its threshold.

    The command never prompts, and running it again resumes. Exit codes: 0 all tasks solved, 1 not all,
    2 interrupted, 3 an error or invalid flags.
    """
    console = Console(stderr=True)
    courses, left_out = courses_of(cfg)
    for name, how in left_out.items():
        console.print(f"skipping {name}; to include it: {how}", highlight=False, soft_wrap=True, markup=False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.tf32
    check_window(cfg, console)
    if not cfg.visualize:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # Else SDL complains where there is no display.
    if cfg.smoke_test:
        return SOLVED if look_around(cfg, courses, console) else NOT_ALL_SOLVED
    check_device(cfg.device)
    begun = (cfg.root / "run.json").exists()
    if cfg.preflight and not begun:
        # Check before the settings are saved: a run that has begun cannot change them, and a problem may
        # require it.
        with RunFolder(cfg.root):
            ready = look_around(cfg, courses, console)
        if not ready:
            raise RuntimeError("the preflight check failed; --no-preflight starts anyway")
    shown = dashboard_of(cfg.root, VisualizationSection(dashboard=dashboard))
    with shown, Curriculum(cfg, courses, left_out, console) as run:
        solved = run.run()
        num = sum(record.solved for record in run.records)
        console.print(
            f"{num} of {len(run.records)} tasks solved: {cfg.root / 'curriculum_results.json'}", soft_wrap=True
        )
    return SOLVED if solved else NOT_ALL_SOLVED


def courses_of(cfg: CurriculumConfig) -> tuple[list[Course], dict[str, str]]:
    """Return the tasks that can run on this machine, and for each skipped task how to install it.

    Raises:
        ValueError: no task can run on this machine, or a task is unsuited to world models; the message names
            it.
    """
    name = cfg.curriculum or ("core" if cfg.prefer_box2d else "classic")
    entries, left_out = installed(read_curriculum(name))
    if not entries:
        reasons = "; ".join(f"{task}: {how}" for task, how in left_out.items())
        raise ValueError(f"no environment of the curriculum {name!r} is installed: {reasons}")
    courses = [plan(entry, cfg) for entry in entries]
    for course in courses:
        check_training(course.cfg)
    return courses, left_out


def check_window(cfg: CurriculumConfig, console: Console) -> None:
    """Announce that a video replaces the window if no window can be opened.

    Raises:
        RuntimeError: no window can be opened, and `cfg.fallback_rgb` is off.
    """
    if not cfg.visualize or cfg.render_mode != "human" or (why := display_error()) is None:
        return
    if not cfg.fallback_rgb:
        raise RuntimeError(f"--visualize with --no-fallback-rgb needs a display: {why}")
    console.print(f"no display: videos/watch.mp4 of each task replaces the window ({why})", soft_wrap=True)


class CurriculumParser(Parser):
    """Parser of `wm curriculum`: one flag per field of its config."""

    def __init__(self, args: list[str], prog: str) -> None:
        super().__init__(CurriculumConfig, prog=prog, description=about(curriculum))
        self.add_argument("--dashboard", type=bool, default=False, help=SHOW_DASHBOARD)
        self.also = {"episodes_per_eval": "--eval-episodes"}

    def arguments(self, args: list[str]) -> dict[str, Any]:
        """Return the config that the flags describe."""
        values = super().arguments(args)
        return {"dashboard": values.pop("dashboard"), "cfg": self.build(values)}
