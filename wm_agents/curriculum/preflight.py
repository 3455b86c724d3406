"""The preflight check of a curriculum: checks every part, and runs a tiny curriculum up to its report."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from policies.cmaes import CMAConfig
from policies.ray_pool import processes_of
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.plan import Course
from wm_agents.curriculum.run import Curriculum
from wm_agents.loops.preflight import (
    GB,
    Finding,
    check_device,
    check_disk,
    check_env,
    check_memory,
    check_video,
    estimate,
    look,
    show,
    timed,
)
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.system.files import write_json
from wm_agents.training.config import TrainingConfig

MICRO_FILES = (
    "logs/eval_progress.csv", "eval_snapshots/gen_0005.json", "report/metrics_summary.csv", "report/learning_curve.png",
    "report/table_controller.tex", "report/table_runtime.tex", "checkpoints/best/config.json",
    "checkpoints/final/config.json", "videos/gen_0005.mp4",
)  # fmt: skip
"""Files that every task must write."""


def _micro(cfg: ImproveConfig) -> ImproveConfig:
    """The smallest possible training of a task, with its own environment, model and controller."""

    def brief(training: TrainingConfig) -> TrainingConfig:
        return training.replace(total_steps=20, batch_size=16, eval_interval=10, save_interval=10)

    steps = min(cfg.spec.max_episode_steps or 100, 100)
    return replace(
        cfg,
        spec=replace(cfg.spec, max_episode_steps=steps),
        rounds=1,
        random_steps=300,
        shard_episodes=1,
        vision=brief(cfg.vision),
        memory=brief(cfg.memory),
        dynamics=brief(cfg.dynamics),
        window=16,
        cma=CMAConfig(population=8, rollouts=4, generations=5),
        ppo=replace(cfg.ppo, iterations=5, envs=8, steps=16, batch_size=64, epochs=1),
        horizon=30,
        check_every=1,
        starts=64,
        judge_episodes=0,
        final_episodes=2,
    )


def _kinds(courses: list[Course]) -> list[Course]:
    """The first task of each kind of observation, model and controller."""
    first: dict[tuple[bool, str, str], Course] = {}
    for course in courses:
        kind = (course.cfg.spec.size is not None, course.cfg.family, course.cfg.controller)
        first.setdefault(kind, course)
    return list(first.values())


def micro_run(cfg: CurriculumConfig, courses: list[Course], folder: Path) -> str:
    """Run a tiny curriculum with every kind of task up to its report in `folder`, which is deleted
    afterwards.

    Raises:
        RuntimeError: an expected file is missing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tiny = replace(cfg, checkpoint_dir=str(folder), artifact_root=None, procs=1, ray=None, episodes_per_eval=1)
    some = [Course(course.entry, _micro(course.cfg), 1e6, 5, 1, 1, (5,)) for course in _kinds(courses)]
    wanted = ["curriculum_results.json", "logs/curriculum_progress.csv"]
    wanted += [f"{course.entry.folder}/{name}" for course in some for name in MICRO_FILES]
    try:
        with Curriculum(tiny, some, {}, Console(file=io.StringIO())) as run:
            run.run()
        if missing := [name for name in wanted if not (folder / name).exists()]:
            raise RuntimeError(f"the run did not write {', '.join(missing)}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"a whole curriculum on {', '.join(course.entry.env_id for course in some)}"


def look_around(cfg: CurriculumConfig, courses: list[Course], console: Console) -> bool:
    """Run the preflight check, print its findings and write preflight.json."""
    console.rule("preflight")
    findings: list[Finding] = []

    def add(what: str, check: Callable[[], str], hint: str) -> None:
        findings.append(look(what, check, hint))
        show(findings[-1:], console)

    tmp = cfg.heavy_root / "tmp" / "preflight"
    add("device", partial(check_device, cfg.device), "choose an available device, such as --device cpu")
    for course in courses:
        check = partial(check_env, course.cfg.spec, frames=cfg.validate_rgb, sizes=cfg.validate_sizes)
        add(course.entry.env_id, check, "install or repair the environment, or omit it with --curriculum FILE")
    hint = "pip install --force-reinstall moviepy imageio-ffmpeg, and check whether the disk is full"
    add("videos", partial(check_video, tmp), hint)
    try:
        procs = processes_of(cfg.procs, cfg.ray)
        needs = [estimate(course.cfg, procs, len(course.films)) for course in courses]
    except Exception:  # Already reported for its environment.
        needs = []
    if needs:
        each = [need.disk for need in needs]
        disk = (max(each) if cfg.clean_cache else sum(each)) + int(0.05 * GB) * len(courses)
        hint = "free disk space, set --artifact-root to a larger disk, lower --max-gb, or use --vae-img-size 32"
        add("disk", partial(check_disk, cfg.heavy_root, disk), hint)
        memory = max(need.memory for need in needs)
        add("memory", partial(check_memory, memory), "close other programs, or use --procs 1 or --quick")
    hint = "run again with --debug for the traceback"
    add("a small run of everything", partial(timed, partial(micro_run, cfg, courses, tmp)), hint)
    with suppress(OSError):  # It may contain other files.
        tmp.rmdir()
        tmp.parent.rmdir()
    write_json(cfg.root / "preflight.json", [finding._asdict() for finding in findings])
    return all(finding.ok for finding in findings)
