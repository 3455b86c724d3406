"""Flags and recipes become the settings that a task is trained with: no flag is without effect."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from wm_agents.curriculum import plan as planning
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.plan import MOST_SEEDS, plan
from wm_agents.curriculum.tasks import Entry, _known, _Threshold
from wm_agents.loops.recipes import RECIPES

CAR, POLE, PONG = _known("CarRacing"), _known("CartPole"), _known("Pong")


def planned(entry: Entry = CAR, **flags: Any) -> planning.Course:
    return plan(entry, CurriculumConfig(**flags))


def test_a_task_is_trained_by_its_recipe_but_evaluated_by_the_evaluations() -> None:
    course, known_ = planned(), RECIPES["CarRacing"]
    assert course.threshold == 800 and course.max_generations == known_.rounds * known_.generations
    for name in ("spec", "random_steps", "round_steps", "model", "horizon", "dream_stall", "squash"):
        assert getattr(course.cfg, name) == getattr(known_, name), name
    assert course.cfg.judge_episodes == 0 and course.cfg.final_episodes == 100


@pytest.mark.parametrize(
    "flags, read, wanted",
    [
        ({"device": "cuda:1"}, lambda c: {c.vision.device, c.memory.device, c.dynamics.device}, {"cuda:1"}),
        (
            {"amp": False},
            lambda c: {c.vision.mixed_precision, c.memory.mixed_precision, c.dynamics.mixed_precision},
            {False},
        ),
        ({"amp": True}, lambda c: {c.vision.mixed_precision, c.memory.mixed_precision}, {"auto"}),
        ({"vae_batch": 16}, lambda c: c.vision.batch_size, 16),
        ({"vae_img_size": 32}, lambda c: c.spec.size, 32),
        ({"seed": 7}, lambda c: {c.seed, *(p.seed for p in (c.vision, c.memory, c.dynamics, c.cma, c.ppo))}, {7}),
        ({"grad_accum": 4}, lambda c: {p.gradient_accumulation_steps for p in (c.vision, c.memory, c.dynamics)}, {4}),
        ({"procs": 3}, lambda c: c.procs, 3),
        ({"max_gb": 0.5}, lambda c: c.max_gb, 0.5),
    ],
)
def test_flags_reach_the_training(flags: dict[str, Any], read: Any, wanted: Any) -> None:
    assert read(planned(**flags).cfg) == wanted


def test_what_no_flag_changes_stays_the_recipes() -> None:
    cfg, known_ = planned().cfg, RECIPES["CarRacing"]
    assert cfg.vision.batch_size == known_.vision.batch_size and cfg.spec == known_.spec
    assert planned(POLE, vae_img_size=32).cfg.spec.size is None  # Vectors have no size.


@pytest.mark.parametrize("most", [5, 20, 100, 200, 1000, 3000])
@pytest.mark.parametrize("entry", [CAR, POLE])
def test_rounds_cover_all_generations_and_an_extension(entry: Entry, most: int) -> None:
    course = planned(entry, max_generations=most)
    last = course.cfg.rounds * course.cfg.generations
    assert course.last_generation == last >= most + course.plateau.extension
    assert course.cfg.rounds * course.cfg.round_seeds <= MOST_SEEDS
    for generation in (course.period, most):
        assert generation % (course.cfg.check_every or math.nan) == 0
    assert course.plateau.extension % course.period == 0


def test_pong_keeps_its_many_small_rounds_and_is_evaluated_about_twelve_times() -> None:
    for quick, rounds in ((False, 70), (True, 25)):
        course = planned(PONG, quick=quick)
        assert course.cfg.generations == RECIPES["Pong"].generations and course.max_generations == rounds * 30
        assert 12 <= course.max_generations / course.period < 16 and course.period % course.cfg.generations == 0
    assert planned(PONG, eval_every=10).period == 10


def test_few_generations_are_spread_over_rounds() -> None:
    assert planned(CAR, max_generations=100).cfg.generations == 25
    assert planned(CAR).cfg.generations == RECIPES["CarRacing"].generations
    assert planned(POLE).cfg.generations == RECIPES["CartPole"].generations  # A recipe of a single round.


def test_a_tasks_own_generations_go_before_those_of_the_run() -> None:
    assert planned(replace(CAR, max_generations=60), max_generations=500).max_generations == 60


def test_quick_has_thresholds_of_its_own_and_less_of_everything() -> None:
    full, short = planned().cfg, planned(quick=True)
    assert short.threshold == 100
    for name in ("random_steps", "round_steps", "starts", "final_episodes"):
        assert getattr(short.cfg, name) < getattr(full, name), name
    for name in ("vision", "memory", "dynamics"):
        assert getattr(short.cfg, name).total_steps < getattr(full, name).total_steps, name
    assert short.max_generations // short.period >= 10
    assert planned(quick=True, max_generations=100).max_generations == 100


def test_videos_are_planned_only_where_they_are_asked_for() -> None:
    assert planned(max_generations=40).films == ()
    assert planned(max_generations=40, record_video=True).films == (4, 8, 12, 16, 20, 24, 28, 32, 36, 40)
    assert planned(max_generations=40, record_video=True, quick=True).films == (10, 20, 30)
    assert planned(max_generations=400, record_video=True).films == (50, 200, 350)
    course = planned(max_generations=40, record_video=True, video_gens=(7, 21))
    assert course.films == (7, 21) and course.cfg.check_every == 1
    assert planned(max_generations=40, record_video=True, video_every_n_gens=20).films == (20, 40)
    assert planned(max_generations=40, record_video=True, video_schedule="none").films == ()


def test_too_few_generations_for_a_promotion_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="4 generations, evaluated every 1, give 4 evaluations, but at least 5 are needed"
    ):
        planned(replace(CAR, max_generations=4))


def test_any_environment_is_trained_by_what_it_shows() -> None:
    course = plan(Entry("Pendulum-v1", _Threshold(-200, -900)), CurriculumConfig())
    assert course.cfg.spec.id == "Pendulum-v1" and course.cfg.spec.size is None
    assert plan(Entry("CarRacing-v3", _Threshold(1, 1)), CurriculumConfig()).cfg.spec.size == 64


def test_a_limit_of_steps_goes_before_the_environments_own() -> None:
    assert planned(replace(POLE, max_episode_steps=90)).cfg.spec.max_episode_steps == 90
    assert planned(POLE).cfg.spec.max_episode_steps == 500
