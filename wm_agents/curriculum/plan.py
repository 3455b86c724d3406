"""The training plan of each task: combines recipe, flags and `--quick` to one `ImproveConfig`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.films import video_generations
from wm_agents.curriculum.promotion import Plateau
from wm_agents.curriculum.tasks import Entry
from wm_agents.loops.recipes import RECIPES, ImproveConfig, recipe_for, seeded
from wm_agents.training.config import TrainingConfig
from wm_envs.registry import RealSpec

MOST_SEEDS = 800_000
"""Maximum number of environment seeds of all rounds; more would include seeds that are reserved for evaluation."""
EVALUATIONS = 12
"""Evaluations of a task whose episodes are so long that its recipe does not evaluate every round."""
SPREAD = 4
"""Minimum number of rounds (if the recipe has as many), however few the generations, because a dream needs
data beyond random actions."""


class Course(NamedTuple):
    """The plan of one task."""

    entry: Entry
    cfg: ImproveConfig
    """Settings of its training; `out` and `warm_start` are set when it starts."""
    threshold: float
    max_generations: int
    period: int
    """Generations between evaluations."""
    episodes: int
    """Real episodes per evaluation."""
    films: tuple[int, ...]
    """Generations to record."""

    @property
    def last_generation(self) -> int:
        """The last possible generation."""
        return self.cfg.rounds * self.cfg.generations

    @property
    def plateau(self) -> Plateau:
        return Plateau(self.threshold, self.max_generations, period=self.period)


def plan(entry: Entry, cfg: CurriculumConfig) -> Course:
    """Plan one task.

    Raises:
        ValueError: the environment is not supported, or there are too few generations for a promotion.
    """
    base = _recipe(entry)
    if cfg.quick:
        base = _quick(base)
    threshold = entry.threshold.quick if cfg.quick else entry.threshold.full
    most = entry.max_generations or cfg.max_generations or base.rounds * base.generations
    period = cfg.period(most)
    if cfg.eval_every is None and base.judge_every > 1:
        period = max(period, most // EVALUATIONS // base.generations * base.generations)
    course = Course(entry, base, threshold, most, period, cfg.episodes_per_eval, _films(cfg, most, period))
    return course._replace(cfg=_stretch(_with_flags(base, cfg), course))


def _recipe(entry: Entry) -> ImproveConfig:
    """The recipe of a known task, or default settings for its environment."""
    base = recipe_for(RealSpec(entry.env_id, wrapper=entry.wrapper)) if entry.task is None else RECIPES[entry.task]
    steps = entry.max_episode_steps or base.spec.max_episode_steps
    return replace(base, spec=replace(base.spec, max_episode_steps=steps))


_QUICK_ROUNDS = {"objects": 25}
"""Rounds in a quick run of families with short rounds; else 3 for images and 5 for vectors, which are faster."""


def _quick(cfg: ImproveConfig) -> ImproveConfig:
    """Shorten the training for a quick run."""
    return replace(
        cfg,
        rounds=min(cfg.rounds, _QUICK_ROUNDS.get(cfg.family, 3 if cfg.spec.size else 5)),
        random_steps=min(cfg.random_steps, 10_000),
        round_steps=min(cfg.round_steps, 5000),
        vision=_short(cfg.vision, 3000),
        vision_rounds=1,
        memory=_short(cfg.memory, 1500),
        dynamics=_short(cfg.dynamics, 2500),
        cma=replace(cfg.cma, rollouts=8, generations=40),
        ppo=replace(cfg.ppo, iterations=min(cfg.ppo.iterations, 50)),
        shard_episodes=min(cfg.shard_episodes, 2),
        starts=min(cfg.starts, 1024),
        final_episodes=5,
    )


def _films(cfg: CurriculumConfig, most: int, period: int) -> tuple[int, ...]:
    """The generations to record."""
    if not cfg.record_video:
        return ()
    evaluated = [*range(period, most + 1, period)]
    mode = cfg.video_schedule or ("triad" if cfg.quick else None)
    how = {"mode": mode, "every": cfg.video_every_n_gens, "explicit": cfg.video_gens}
    return tuple(video_generations(most, evaluated, **how))  # type: ignore[arg-type]


def _short(cfg: TrainingConfig, steps: int) -> TrainingConfig:
    steps = min(cfg.total_steps, steps)
    return cfg.replace(total_steps=steps, eval_interval=max(1, steps // 4), save_interval=max(1, steps // 2))


def _with_flags(base: ImproveConfig, cfg: CurriculumConfig) -> ImproveConfig:
    """Apply the flags to `base`."""

    def training(part: TrainingConfig) -> TrainingConfig:
        part = part.replace(device=cfg.device, tf32=cfg.tf32, gradient_accumulation_steps=cfg.grad_accum)
        if not cfg.amp:
            part = part.replace(mixed_precision=False)
        return part

    vision = training(base.vision)
    if cfg.vae_batch is not None:
        vision = vision.replace(batch_size=cfg.vae_batch)
    size = base.spec.size if base.spec.size is None else cfg.vae_img_size or base.spec.size
    flagged = replace(
        base,
        spec=replace(base.spec, size=size),
        vision=vision,
        memory=training(base.memory),
        dynamics=training(base.dynamics),
        procs=cfg.procs,
        ray=cfg.ray,
        max_gb=cfg.max_gb,
        judge_episodes=0,  # The curriculum evaluates instead.
    )
    return seeded(flagged, cfg.seed)


def _stretch(base: ImproveConfig, course: Course) -> ImproveConfig:
    """Distribute the maximum number of generations, including an extension, over rounds."""
    most, ext = course.max_generations, course.plateau.extension
    each = min(base.generations, math.ceil(most / min(base.rounds, SPREAD)))
    each = max(each, math.ceil((most + ext) / (MOST_SEEDS // base.round_seeds)))
    return replace(
        base,
        rounds=math.ceil((most + ext) / each),
        cma=replace(base.cma, generations=each),
        ppo=replace(base.ppo, iterations=each),
        check_every=math.gcd(course.period, most, *course.films),
    )
