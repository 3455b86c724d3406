"""Offline training of a project, on a fixed set of real episodes or on random data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn

from policies.policy import explorer
from wm_agents.checkpoint import model_card
from wm_agents.data.collect import CollectConfig, collect
from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.data.episode import Episode
from wm_agents.data.live import LIVE, LiveView
from wm_agents.data.replay import ReplayBuffer
from wm_agents.degraded import MEANING
from wm_agents.errors import ConfigurationError
from wm_agents.evaluation.starts import find_cut_off, make_starts
from wm_agents.loops.driver import make_learner
from wm_agents.loops.finish import Candidate, Story, deliver
from wm_agents.models.model import Model
from wm_agents.models.saved import save_bare
from wm_agents.pretrained import save_model
from wm_agents.project.noise import write_noise
from wm_agents.project.schema import Project
from wm_agents.project.translate import (
    FINAL_EPISODES,
    Spaces,
    env_seed_of,
    live_fps_of,
    model_of,
    replay_of,
    seed_of,
    spec_of,
)
from wm_agents.strips import STRIPS, write_strips
from wm_agents.system.extras import extra
from wm_agents.system.hardware import memory_gb
from wm_agents.training.callbacks import LoggingCallback, ProgressCallback
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import act_dim
from wm_envs.real import probe
from wm_envs.registry import RealSpec

STARTS = 512
BEHAVIOUR = {"policy", "value", "repval"}
"""Components of a loss that do not belong to the world model."""


class _Learned(NamedTuple):
    """A trained model and its data."""

    learner: Any
    model: Model
    buffer: ReplayBuffer
    held_out: list[Episode]
    result: TrainingResult


def train_offline(project: Project, spaces: Spaces, console: Console) -> dict[str, Any]:
    """Collect real episodes by exploration, train on them, and save and score the model with its policy."""
    spec, seed, env_seed = spec_of(project), seed_of(project), env_seed_of(project)
    data, folder = project.data, project.out / "data"
    live = LiveView(project.out / LIVE, live_fps_of(project))
    cfg = CollectConfig(
        spec, str(folder), data.num_steps, env_seed, shard_episodes=2, max_steps=data.episode_length, live=live
    )
    summary = collect(cfg, explorer, console=console)
    if summary.stopped == "interrupted":
        raise KeyboardInterrupt
    if summary.stopped != "done":
        console.print(f"  collection stopped after {summary.steps} steps: {summary.stopped}")
    learned = _learn(project, spaces, Dataset(folder), console)
    model = learned.model.cpu().eval()
    with extra("the strips of a held-out episode", console):
        _write_strips(project, model, learned.held_out)
    candidate = Candidate(
        model,
        learned.learner.controller(),
        spec,
        make_starts(model, learned.buffer, STARTS, np.random.default_rng(seed)),
        find_cut_off(model, learned.held_out),
    )
    story = Story(
        data=f"by exploration; seeds from {env_seed}",
        training=f"{learned.result.updates} updates",
        text=f"{project.model} was trained offline.",
        real_steps=summary.taken,
        train_wall_s=learned.result.wall_s,
        result={"updates": learned.result.updates, "val": learned.result.best_val},
        summary={},
    )
    return deliver(
        project.out,
        candidate,
        story,
        episodes=FINAL_EPISODES,
        procs=2,
        console=console,
        report_minutes=project.visualization.report_minutes,
    )


def _write_strips(project: Project, model: Model, held_out: list[Episode]) -> None:
    """Dreams of the longest episode that the model was not trained on, for the dashboard."""
    if project.visualization.enabled and held_out:
        longest = max(held_out, key=lambda ep: ep.num_steps)
        write_strips(project.out / STRIPS, model, longest.obs, longest.act, env_id=spec_of(project).id)


def train_on_noise(
    project: Project, spaces: Spaces, spec: RealSpec | None, degraded: list[str], console: Console
) -> dict[str, Any]:
    """Train on random data, and save the model with a card that says so."""
    data, seed, out = project.data, seed_of(project), project.out / "model"
    numbers = write_noise(project.out / "data", spaces, data.num_steps, data.episode_length, seed)
    learned = _learn(project, spaces, numbers, console)
    model = learned.model.cpu().eval()
    if spec is None:
        save_bare(out, model)
    else:
        facts = {"data": f"{numbers.num_steps} random steps", "training": f"{learned.result.updates} updates"}
        card = model_card("DEGRADED", facts, "\n".join(MEANING[mode].capitalize() + "." for mode in degraded))
        starts = make_starts(model, learned.buffer, STARTS, np.random.default_rng(seed))
        save_model(out, model, spec, starts, horizon=probe(spec).limit, card=card)
    return {"updates": learned.result.updates, "val": learned.result.best_val, "train_wall_s": learned.result.wall_s}


def _learn(project: Project, spaces: Spaces, dataset: Dataset, console: Console) -> _Learned:
    """Train a new model on a dataset with 5 % held-out episodes; an interrupted run resumes."""
    torch.manual_seed(seed_of(project))
    cfg, model = replay_of(project), model_of(project, spaces)
    learner = make_learner(model) if project.is_online else model
    train, val = hold_out(dataset.num_episodes, cfg.seed)
    buffer, aside = (_buffer(project, spaces, dataset.iter_episodes(part)) for part in (train, val))
    watching = LoggingCallback(project.out, memory_gb), ProgressCallback("learn", console)
    trainer = Trainer(cast(nn.Module, learner), cfg, watching, run_dir=project.out / "learning")
    can_judge = aside.has_window(cfg.sequence_length, model.packs)
    if not can_judge and (cfg.patience is not None or cfg.scheduler == "plateau"):
        raise ConfigurationError(
            f"patience and plateau need held-out windows of {cfg.sequence_length} steps, but none of the "
            f"{len(val)} held-out episodes is long enough; lower training.sequence_length, raise data.num_steps, or "
            "remove patience and plateau"
        )

    def validate() -> float:
        return _loss_of_world(trainer.evaluate(aside))

    result = trainer.fit(buffer, validate if can_judge else None)
    trainer.load_best()
    return _Learned(learner, model, buffer, [*dataset.iter_episodes(val)], result)


def _loss_of_world(losses: dict[str, float]) -> float:
    """The components for validation: those of the world model, because an overestimating policy lowers its
    own loss."""
    if not losses.keys() & BEHAVIOUR:
        return losses["loss"]
    return sum(value for name, value in losses.items() if name not in {"loss", *BEHAVIOUR})


def _buffer(project: Project, spaces: Spaces, episodes: Iterator[Episode]) -> ReplayBuffer:
    obs_space, act_space = spaces
    capacity, dtype = project.data.buffer_capacity, obs_space.dtype or np.float32
    buffer = ReplayBuffer(capacity, obs_space.shape or (), act_dim(act_space), dtype)
    for episode in episodes:
        buffer.add(episode, act_space)
    return buffer
