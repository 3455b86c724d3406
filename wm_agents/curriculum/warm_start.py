"""Initialises the encoder V of a task with the weights of an earlier task, and measures the effect."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from wm_agents.data.dataset import Dataset
from wm_agents.factory import Model
from wm_agents.loops.fit import new_model, take_vision
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.models.vision import Identity
from wm_agents.models.vmc import VMC
from wm_agents.training.callbacks import Callback
from wm_agents.training.fit_vmc import fit_vision
from wm_agents.training.trainer import Trainer
from wm_envs.real import probe

UPDATES = 200
"""Updates of each of the two compared fits."""


def find_source(cfg: ImproveConfig, models: list[Path]) -> Path | None:
    """The last of the models whose encoder V has the same shapes as that of `cfg`, or None."""
    model = _fresh(cfg)
    if not isinstance(model, VMC) or isinstance(model.vision, Identity):
        return None
    return next((path for path in reversed(models) if take_vision(model, str(path))), None)


def compare(cfg: ImproveConfig, source: Path, data: Path, run_dir: Path, updates: int = UPDATES) -> dict[str, Any]:
    """Fit V for a few updates, once from `source` and once from scratch, on the same frames in the same
    order.

    Returns:
        `updates`, the number of updates; `first_warm` and `first_cold`, the held-out losses after 10 % of the updates,
        from `source` and from scratch; `val_warm` and `val_cold`, the lowest held-out losses; and `helped`, whether
        `val_warm` is below `val_cold`.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    updates = min(updates, cfg.vision.total_steps)
    training = cfg.vision.replace(
        total_steps=updates,
        scheduler="constant",
        eval_interval=max(1, updates // 10),
        save_interval=updates,
        patience=None,
    )
    found: dict[str, Any] = {"updates": updates}
    for name, warm in (("warm", str(source)), ("cold", None)):
        model = _fresh(replace(cfg, warm_start=warm))
        assert isinstance(model, VMC), type(model)
        heard = _Validations()
        fit_vision(model, Dataset(data), training, run_dir / name, (heard,))
        found |= {f"first_{name}": round(heard.losses[0], 4), f"val_{name}": round(min(heard.losses), 4)}
    return found | {"helped": found["val_warm"] < found["val_cold"]}


class _Validations(Callback):
    """Stores the results of all validations."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_validation(self, trainer: Trainer, value: float) -> None:
        self.losses.append(value)


def _fresh(cfg: ImproveConfig) -> Model:
    """The initial model for training with `cfg`."""
    return new_model(cfg, *probe(cfg.spec).spaces)
