"""Fits a model of each family to all data so far, in one round of the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm_agents.checkpoint import load_weights
from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.evaluation.termination import CALIBRATED, CUT_OFF, FEW_ENDS, calibrate_cut_off
from wm_agents.factory import Model
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.models import ensemble, objects, vmc
from wm_agents.models.saved import load_model
from wm_agents.system.state import RETRAIN, read_state_tensors
from wm_agents.training import fit_ensemble as fit_members
from wm_agents.training import fit_objects as fit_things
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_vmc import encode_dataset, fit_memory, fit_vision, make_starts, set_reward_scale
from wm_envs.frames import is_image
from wm_envs.world_model import Latent

FIRST_FIT = 4
"""The first round of an object model takes this multiple of its updates: it starts from scratch."""


class Learned(NamedTuple):
    """The initial latents, the termination threshold, and the best validation loss of each part."""

    starts: dict[str, Latent]
    val: dict[str, float]
    cut_off: float = CUT_OFF
    """A dream terminates when `cont` falls below this; 0.5 if the model samples termination itself."""


class Lesson(NamedTuple):
    """The data and settings of the fit in one round."""

    cfg: ImproveConfig
    dataset: Dataset
    round: int
    run_dir: Path
    """Folder for the training state of this round."""
    callbacks: Callable[[str], tuple[Callback, ...]]
    """Callbacks for the training of a part, by its name."""

    @property
    def recent(self) -> NDArray[np.int64]:
        """Episodes of the last rounds, for the initial latents."""
        since = self.cfg.first_env_seed + (self.round - self.cfg.start_rounds + 1) * self.cfg.round_seeds
        return np.flatnonzero(np.array(self.dataset.seeds) >= since)

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.cfg.seed, self.round])


def new_model(cfg: ImproveConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> Model:
    """An untrained model of the right family, with V from `cfg.warm_start` if its shapes match."""
    torch.manual_seed(cfg.seed)
    family = cfg.family if cfg.family != "auto" else ("vmc" if is_image(obs_space) else "ensemble")
    if family == "ensemble":
        return ensemble.Ensemble(cfg.ensemble, obs_space, act_space)
    if family == "objects":
        return objects.Objects(cfg.objects, obs_space, act_space)
    model = vmc.VMC(cfg.model if is_image(obs_space) else _for_vectors(cfg.model), obs_space, act_space)
    if cfg.warm_start is not None:
        take_vision(model, cfg.warm_start)
    return model


def take_vision(model: vmc.VMC, source: str) -> bool:
    """Load the weights of V from the model `source` if its V has the same shapes; return whether it has."""
    other, _ = load_model(source)
    if not isinstance(other, vmc.VMC) or isinstance(model.vision, vmc.Identity):
        return False
    own, given = model.vision.state_dict(), other.vision.state_dict()
    if {name: w.shape for name, w in own.items()} != {name: w.shape for name, w in given.items()}:
        return False
    # The background differs between environments.
    still = {name: w for name, w in own.items() if name == "still"}
    load_weights(model.vision, given | still)
    return True


def learn(model: Model, lesson: Lesson) -> Learned:
    """Fit `model` to the data; an interrupted fit resumes."""
    if isinstance(model, ensemble.Ensemble):
        return _learn_ensemble(model, lesson)
    if isinstance(model, objects.Objects):
        return _learn_objects(model, lesson)
    assert isinstance(model, vmc.VMC), model.family
    return _learn_vmc(model, lesson)


def _learn_vmc(model: vmc.VMC, lesson: Lesson) -> Learned:
    """Fit V on frames in the first rounds, then M on all data encoded by the current V."""
    cfg, val = lesson.cfg, {}
    if lesson.round < cfg.vision_rounds:
        training = cfg.vision if lesson.round == 0 else _half(cfg.vision)
        run_dir = lesson.run_dir / "vision"
        result = fit_vision(model, lesson.dataset, training, run_dir, lesson.callbacks("vision"))
        load_weights(model.vision, read_state_tensors(run_dir / "best.safetensors", RETRAIN)[0])
        val["vision"] = result.best_val or 0.0
    data = encode_dataset(model, lesson.dataset)
    if lesson.round == 0:
        set_reward_scale(model, data)
    memory = fit_memory(model, data, cfg.memory, lesson.run_dir / "memory", cfg.window, lesson.callbacks("memory"))
    val["memory"] = memory.best_val or 0.0
    starts = make_starts(model, data, cfg.starts, lesson.rng, lesson.recent)
    held_out = hold_out(len(data.length), cfg.memory.seed)[1][-CALIBRATED:]
    calibration = calibrate_cut_off(model, lesson.dataset.iter_episodes(held_out))
    few = calibration.ends < FEW_ENDS
    return Learned(starts, val, CUT_OFF if few else calibration.cut_off)


def _learn_ensemble(model: ensemble.Ensemble, lesson: Lesson) -> Learned:
    """Fit all members from scratch, because earlier weights would be biased to the first data."""
    cfg, scale = lesson.cfg, model.scale
    torch.manual_seed(cfg.seed + lesson.round)
    fresh = ensemble.Ensemble(cfg.ensemble, model.obs_space, model.act_space)
    fresh.scale.load_state_dict(scale.state_dict())
    model.load_state_dict(fresh.state_dict())
    data = fit_members.read_moves(model, lesson.dataset)
    first, callbacks = lesson.round == 0, lesson.callbacks("dynamics")
    run_dir = lesson.run_dir / "dynamics"
    result = fit_members.fit_ensemble(model, data, cfg.dynamics, run_dir, first=first, callbacks=callbacks)
    starts = fit_members.make_starts(data, cfg.starts, lesson.rng, lesson.recent)
    return Learned(starts, {"dynamics": result.best_val or 0.0})


def _learn_objects(model: objects.Objects, lesson: Lesson) -> Learned:
    """Fit V once on the first data; M continues in each round, so that small rounds take few updates."""
    cfg, dataset, first = lesson.cfg, lesson.dataset, lesson.round == 0
    if first:
        fit_things.fit_eye(model, dataset, lesson.rng)
    data = fit_things.read_slots(model, dataset, dataset.root.with_name("slots"))
    data = fit_things.fit_limits(model, data)
    training = cfg.dynamics.replace(total_steps=cfg.dynamics.total_steps * (FIRST_FIT if first else 1))
    run_dir = lesson.run_dir / "dynamics"
    result = fit_things.fit_objects(model, data, training, run_dir, lesson.callbacks("dynamics"))
    starts = fit_things.make_starts(data, model.cfg.history, cfg.starts, lesson.rng, lesson.recent)
    return Learned(starts, {"dynamics": result.best_val or 0.0})


def _for_vectors(cfg: vmc.VMCConfig) -> vmc.VMCConfig:
    return replace(cfg, vision="identity")


def _half(cfg: TrainingConfig) -> TrainingConfig:
    return cfg.replace(total_steps=max(cfg.total_steps // 2, 1), learning_rate=cfg.learning_rate / 2)
