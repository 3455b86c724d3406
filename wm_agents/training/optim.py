"""The optimizer, its learning rate schedule, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wm_agents.training.config import TrainingConfig


def make_optimizer(cfg: TrainingConfig, params: Any) -> torch.optim.Optimizer:
    """Create the optimizer of `cfg` for tensors or parameter groups; Adam is fused."""
    lr, decay = cfg.learning_rate, cfg.weight_decay
    if cfg.optimizer == "rmsprop":
        return torch.optim.RMSprop(params, lr, weight_decay=decay)
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(params, lr, momentum=0.9, weight_decay=decay)
    if cfg.optimizer == "laprop":
        from wm_agents.training.laprop import LaProp

        return LaProp(params, lr)
    adam = torch.optim.AdamW if cfg.optimizer == "adamw" else torch.optim.Adam
    return adam(params, lr, weight_decay=decay, fused=True)


class LearningRate:
    """Sets the learning rate of every parameter group: its own rate times the schedule."""

    def __init__(self, cfg: TrainingConfig, optimizer: torch.optim.Optimizer) -> None:
        self.cfg, self.optimizer = cfg, optimizer
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.onecycle: torch.optim.lr_scheduler.OneCycleLR | None = None
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        if cfg.scheduler == "onecycle":
            self.onecycle = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.peaks, total_steps=max(cfg.total_steps, 2)
            )
        if cfg.scheduler == "plateau":
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=cfg.plateau_factor, patience=cfg.plateau_patience, min_lr=cfg.min_lr
            )

    def before_step(self, step: int) -> None:
        """Set the learning rates for step `step` (from 0)."""
        warming = step < self.cfg.warmup_steps
        shaped = self.cfg.scheduler in ("linear", "cosine")
        if warming or shaped:
            factor = (step + 1) / self.cfg.warmup_steps if warming else self._shape(step)
            for group, peak in zip(self.optimizer.param_groups, self.peaks):
                group["lr"] = peak * factor

    def after_step(self) -> None:
        if self.onecycle is not None and self.onecycle.last_epoch < self.onecycle.total_steps:
            self.onecycle.step()

    def after_validation(self, step: int, value: float) -> None:
        """Update `plateau` with the validation loss, unless the warm-up is still running."""
        if self.plateau is not None and step > self.cfg.warmup_steps:
            self.plateau.step(value)

    def state(self) -> dict[str, Any] | None:
        """The state for resuming, as JSON."""
        scheduler = self.onecycle or self.plateau
        if scheduler is not None:
            return scheduler.state_dict()
        return None

    def load_state(self, state: dict[str, Any] | None) -> None:
        scheduler = self.onecycle or self.plateau
        if scheduler is not None and state is not None:
            scheduler.load_state_dict(state)

    def _shape(self, step: int) -> float:
        """From 1 at the end of the warm-up to `min_lr` at `total_steps`."""
        cfg = self.cfg
        done = min((step - cfg.warmup_steps) / max(cfg.total_steps - cfg.warmup_steps, 1), 1.0)
        left = 1 - done if cfg.scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2
        floor = cfg.min_lr / cfg.learning_rate
        return floor + (1 - floor) * left


class Average:
    """An exponential moving average of a module's weights, which can be swapped with them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.names, self.params = zip(*[(n, p) for n, p in module.named_parameters() if p.requires_grad])
        self.decay = decay
        self.inside = False
        """Whether the module currently holds the average, and this object the trained weights."""
        self.kept: list[Tensor] = []
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Restart from the weights of the module."""
        self.kept, self.inside = [p.detach().clone() for p in self.params], False

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step."""
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.params], 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the trained weights."""
        for kept, param in zip(self.kept, self.params):
            old = param.detach().clone()
            param.copy_(kept)
            kept.copy_(old)
        self.inside = not self.inside

    @contextmanager
    def shown(self, inside: bool = True) -> Iterator[None]:
        """In this context the module holds the average (with False: the trained weights)."""
        other = self.inside != inside
        if other:
            self.swap()
        try:
            yield
        finally:
            if other:
                self.swap()

    def tensors(self) -> dict[str, Tensor]:
        """The average, by parameter name."""
        return dict(zip(self.names, self.kept))

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for kept, name in zip(self.kept, self.names):
            kept.copy_(tensors[name])
