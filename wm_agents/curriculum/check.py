"""The preflight of a curriculum: every part is looked at, and a tiny curriculum is run from nothing to its report."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from policies.cmaes import CMAConfig
from wm_agents.atomic import write_json
from wm_agents.curriculum.flags import CurriculumConfig
from wm_agents.curriculum.plan import Course, with_flags
from wm_agents.curriculum.run import Curriculum
from wm_agents.curriculum.tasks import Entry, Threshold
from wm_agents.models.vmc import VMCConfig
from wm_agents.preflight import (
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
from wm_agents.recipe import ImproveConfig
from wm_agents.training.config import TrainingConfig
from wm_envs.registry import RealSpec

MICRO = ImproveConfig(
    RealSpec("CartPole-v1", max_episode_steps=100),
    out="",
    rounds=1,
    random_steps=300,
    family="vmc",
    model=VMCConfig(hidden=16),
    memory=TrainingConfig(total_steps=20, batch_size=16, eval_interval=10, save_interval=10),
    window=16,
    cma=CMAConfig(population=8, rollouts=4, generations=5),
    horizon=30,
    check_every=1,
    starts=64,
    final_episodes=2,
)
"""Every part of a task, as small as can be."""
MICRO_FILES = (
    "curriculum_results.json", "logs/curriculum_progress.csv", "CartPole-v1/logs/eval_progress.csv",
    "CartPole-v1/eval_snapshots/gen_0005.json", "CartPole-v1/report/metrics_summary.csv",
    "CartPole-v1/report/learning_curve.png", "CartPole-v1/report/table_controller.tex",
    "CartPole-v1/report/table_runtime.tex", "CartPole-v1/checkpoints/best/config.json",
    "CartPole-v1/checkpoints/final/config.json", "CartPole-v1/videos/gen_0005.mp4",
)  # fmt: skip


def micro_run(cfg: CurriculumConfig, folder: Path) -> str:
    """Take a tiny curriculum from nothing to its report in `folder`, which is gone afterwards.

    Raises:
        RuntimeError: something that should be there is not.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tiny = CurriculumConfig(checkpoint_dir=str(folder), device=cfg.device, amp=cfg.amp, procs=1, episodes_per_eval=1)
    entry = Entry("CartPole-v1", Threshold(1e6, 1e6), "CartPole")
    course = Course(entry, with_flags(MICRO, tiny), 1e6, 5, 1, 1, (5,))
    try:
        with Curriculum(tiny, [course], {}, Console(file=io.StringIO())) as run:
            run.run()
        if missing := [name for name in MICRO_FILES if not (folder / name).exists()]:
            raise RuntimeError(f"it left no {', '.join(missing)}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "a whole curriculum on CartPole"


def look_around(cfg: CurriculumConfig, courses: list[Course], console: Console) -> bool:
    """The preflight; what it found is printed and left in preflight.json."""
    console.rule("preflight")
    findings: list[Finding] = []

    def add(what: str, check: Callable[[], str], hint: str) -> None:
        findings.append(look(what, check, hint))
        show(findings[-1:], console)

    tmp = cfg.heavy_root / "tmp" / "preflight"
    add("device", partial(check_device, cfg.device), "choose one that is here with --device, such as --device cpu")
    for course in courses:
        check = partial(check_env, course.cfg.spec, frames=cfg.validate_rgb, sizes=cfg.validate_sizes)
        add(course.entry.env_id, check, "install or repair the environment, or leave it out with --curriculum FILE")
    add("films", partial(check_video, tmp), "pip install --force-reinstall moviepy imageio-ffmpeg; is the disk full?")
    try:
        needs = [estimate(course.cfg, cfg.procs, len(course.films)) for course in courses]
    except Exception:  # Said above of its environment.
        needs = []
    if needs:
        each = [need.disk for need in needs]
        disk = (max(each) if cfg.clean_cache else sum(each)) + int(0.05 * GB) * len(courses)
        hint = "free some, or set --artifact-root to a larger disk, --max-gb lower, or --vae-img-size 32"
        add("disk", partial(check_disk, cfg.heavy_root, disk), hint)
        memory = max(need.memory for need in needs)
        add("memory", partial(check_memory, memory), "close other programs, or set --procs 1 or --quick True")
    hint = "run it again with --debug to see where it failed"
    add("a small run of everything", partial(timed, partial(micro_run, cfg, tmp)), hint)
    with suppress(OSError):  # There may be more in it.
        tmp.rmdir()
        tmp.parent.rmdir()
    write_json(cfg.root / "preflight.json", [finding._asdict() for finding in findings])
    return all(finding.ok for finding in findings)
