"""Fits a model to all data so far, in one round of the loop; the table of families names the function of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm_agents.checkpoint import load_weights
from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.data.replay import ReplayBuffer
from wm_agents.evaluation.starts import find_cut_off
from wm_agents.evaluation.starts import make_starts as make_initial_latents
from wm_agents.evaluation.termination import CALIBRATED, CUT_OFF, FEW_ENDS, calibrate_cut_off
from wm_agents.factory import Model
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.models import ensemble, objects, vision, vmc
from wm_agents.models.families import FAMILIES, build, load
from wm_agents.models.saved import load_model
from wm_agents.system.state import RETRAIN, read_state_tensors
from wm_agents.training import fit_ensemble as members
from wm_agents.training import fit_objects as things
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_vmc import encode_dataset, fit_memory, fit_vision, make_starts, set_reward_scale
from wm_agents.training.trainer import Trainer
from wm_envs.fields import differing
from wm_envs.world_model import Latent


class _Fitted(NamedTuple):
    """The initial latents, the termination threshold, and the best validation loss of each part."""

    starts: dict[str, Latent]
    val: dict[str, float]
    cut_off: float = CUT_OFF
    """A dream terminates when `cont` falls below this; 0.5 if the model samples termination itself."""


class RoundData(NamedTuple):
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

    def training(self, model: Model) -> TrainingConfig:
        """The training settings of the dynamics of `model` in this round."""
        family = FAMILIES[model.family]
        settings: TrainingConfig = getattr(self.cfg, family.training)
        if self.round > 0:
            return settings
        return settings.replace(total_steps=settings.total_steps * family.first_fit)


def new_model(cfg: ImproveConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> Model:
    """An untrained model of the right family, with V from `cfg.warm_start` if its shapes match."""
    torch.manual_seed(cfg.seed)
    model_cfg = cfg.model_config(obs_space)
    model = build(model_cfg.family, model_cfg, obs_space, act_space)
    if cfg.warm_start is not None and isinstance(model, vmc.VMC):
        take_vision(model, cfg.warm_start)
    return model


def take_vision(model: vmc.VMC, source: str) -> bool:
    """Load the weights of V from the model `source` if its V has the same shapes; return whether it has."""
    other, _ = load_model(source)
    if not isinstance(other, vmc.VMC) or isinstance(model.vision, vision.Identity):
        return False
    own, given = model.vision.state_dict(), other.vision.state_dict()
    if {name: w.shape for name, w in own.items()} != {name: w.shape for name, w in given.items()}:
        return False
    # The background differs between environments.
    still = {name: w for name, w in own.items() if name == "still"}
    load_weights(model.vision, given | still)
    return True


def fit(model: Model, round_data: RoundData) -> _Fitted:
    """Fit `model` to the data; an interrupted fit resumes."""
    fitted: _Fitted = load(FAMILIES[model.family].learner)(model, round_data)
    return fitted


def _held_out_loss(trainer: Trainer, aside: ReplayBuffer) -> float:
    return trainer.evaluate(aside)["loss"]


def fit_windows(model: Model, round_data: RoundData) -> _Fitted:
    """Fit a model by its own loss on windows of the episodes; for families without a function of their own."""
    cfg, dataset = round_data.cfg, round_data.dataset
    training = round_data.training(model).replace(sequence_length=cfg.window)
    train, held_out = hold_out(dataset.num_episodes, cfg.seed)
    buffer, aside = (_buffer(model, dataset, part) for part in (train, held_out))
    trainer = Trainer(model, training, round_data.callbacks("dynamics"), run_dir=round_data.run_dir / "dynamics")
    validate = None
    if aside.has_window(cfg.window, model.packs):
        validate = partial(_held_out_loss, trainer, aside)
    result = trainer.fit(buffer, validate)
    trainer.load_best()
    model.eval()
    starts = make_initial_latents(model, buffer, cfg.starts, round_data.rng)
    cut_off = find_cut_off(model, [*dataset.iter_episodes(held_out[-CALIBRATED:])])
    return _Fitted(starts, {"dynamics": result.best_val or 0.0}, cut_off)


def _buffer(model: Model, dataset: Dataset, episodes: NDArray[np.int64]) -> ReplayBuffer:
    space = model.obs_space
    buffer = ReplayBuffer(dataset.num_steps, space.shape or (), model.actions, space.dtype or np.float32)
    for episode in dataset.iter_episodes(episodes):
        buffer.add(episode, model.act_space)
    return buffer


def fit_vmc(model: vmc.VMC, round_data: RoundData) -> _Fitted:
    """Fit V on frames in the first rounds, then M on all data encoded by the current V."""
    cfg, val = round_data.cfg, {}
    wanted = cfg.model.fitting(model.obs_space)
    changes = differing(vmc.sizes(model.cfg), vmc.sizes(wanted))
    if changes:
        raise ValueError(f"the sizes of the model cannot change during a run: {changes}; use another folder")
    model.cfg = wanted
    if round_data.round < cfg.vision_rounds:
        training = cfg.vision
        if round_data.round != 0:
            training = _half(cfg.vision)
        run_dir = round_data.run_dir / "vision"
        result = fit_vision(model, round_data.dataset, training, run_dir, round_data.callbacks("vision"))
        load_weights(model.vision, read_state_tensors(run_dir / "best.safetensors", RETRAIN)[0])
        val["vision"] = result.best_val or 0.0
    data = encode_dataset(model, round_data.dataset)
    if round_data.round == 0:
        set_reward_scale(model, data)
    training, run_dir = round_data.training(model), round_data.run_dir / "memory"
    memory = fit_memory(model, data, training, run_dir, cfg.window, round_data.callbacks("memory"))
    val["memory"] = memory.best_val or 0.0
    starts = make_starts(model, data, cfg.starts, round_data.rng, round_data.recent)
    held_out = hold_out(len(data.length), cfg.memory.seed)[1][-CALIBRATED:]
    calibration = calibrate_cut_off(model, round_data.dataset.iter_episodes(held_out))
    few = calibration.ends < FEW_ENDS
    return _Fitted(starts, val, CUT_OFF if few else calibration.cut_off)


def fit_members(model: ensemble.Ensemble, round_data: RoundData) -> _Fitted:
    """Fit all members from scratch, because earlier weights would be biased to the first data."""
    cfg, scale = round_data.cfg, model.scale
    torch.manual_seed(cfg.seed + round_data.round)
    fresh = ensemble.Ensemble(cfg.ensemble, model.obs_space, model.act_space)
    fresh.scale.load_state_dict(scale.state_dict())
    model.load_state_dict(fresh.state_dict())
    data = members.read_moves(model, round_data.dataset)
    first, callbacks = round_data.round == 0, round_data.callbacks("dynamics")
    run_dir = round_data.run_dir / "dynamics"
    result = members.fit_ensemble(model, data, round_data.training(model), run_dir, first=first, callbacks=callbacks)
    starts = members.make_starts(data, cfg.starts, round_data.rng, round_data.recent)
    return _Fitted(starts, {"dynamics": result.best_val or 0.0})


def fit_objects(model: objects.Objects, round_data: RoundData) -> _Fitted:
    """Fit V once on the first data; M continues in each round, so that small rounds take few updates."""
    cfg, dataset = round_data.cfg, round_data.dataset
    if round_data.round == 0:
        things.fit_eye(model, dataset, round_data.rng)
    data = things.read_slots(model, dataset, dataset.root.with_name("slots"))
    data = things.fit_limits(model, data)
    run_dir = round_data.run_dir / "dynamics"
    result = things.fit_objects(model, data, round_data.training(model), run_dir, round_data.callbacks("dynamics"))
    starts = things.make_starts(data, model.cfg.history, cfg.starts, round_data.rng, round_data.recent)
    return _Fitted(starts, {"dynamics": result.best_val or 0.0})


def _half(cfg: TrainingConfig) -> TrainingConfig:
    return cfg.replace(total_steps=max(cfg.total_steps // 2, 1), learning_rate=cfg.learning_rate / 2)
