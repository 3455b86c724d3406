"""The one loop that takes gradients.

A run that is killed and resumed ends with the same weights, bit for bit on a CPU, as one that was not: batches
are a function of the update's number, and a checkpoint carries module, optimizer, scheduler, random state and counts.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from wm_agents.atomic import write_tensors
from wm_agents.checkpoint import load_weights, plain_names
from wm_agents.hardware import has_bf16
from wm_agents.training.callbacks import Callback, EarlyStoppingCallback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.loss import LossOutput

T = TypeVar("T")

# What a resumed run may change: where it runs, how often it looks, when it stops.
MAY_CHANGE = {"total_steps", "log_interval", "eval_interval", "save_interval", "patience", "device"}


class NonFiniteLoss(ArithmeticError):
    """The loss or the weights became nan or inf; `update` is the first such batch's number."""

    def __init__(self, message: str, update: int) -> None:
        super().__init__(message)
        self.update = update


class TrainingResult(NamedTuple):
    """How a run ended. `updates` and `wall_s` count from its very start, resumed or not."""

    updates: int
    best_val: float | None
    wall_s: float
    stopped: str
    """`done`, or why it ended early."""


class Trainer:
    """Trains `module` on batches; `last.safetensors` and `best.safetensors` in `run_dir` are always whole."""

    def __init__(
        self,
        module: nn.Module,
        cfg: TrainingConfig,
        run_dir: str | Path,
        *,
        loss: Callable[[Any], LossOutput],
        callbacks: Iterable[Callback] = (),
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        """`params` are what the optimizer takes (tensors or groups), all that require gradients unless given."""
        self.cfg, self.run_dir, self.loss = cfg, Path(run_dir), loss
        self.fabric = make_fabric(cfg)
        self.module = self.fabric.to_device(module)
        self.optimizer = make_optimizer(cfg, params or [p for p in module.parameters() if p.requires_grad])
        self.scheduler = make_scheduler(cfg, self.optimizer)
        self.callbacks = [*callbacks]
        if cfg.patience is not None:
            self.callbacks.append(EarlyStoppingCallback(cfg.patience))
        self.update = 0
        self.best_val = math.inf
        self.speed = 0.0
        self.stopped = ""
        self._wall_s = 0.0
        self._since = time.perf_counter()
        self._window: list[tuple[LossOutput, Tensor | None]] = []

    def fit(
        self,
        batches: Callable[[int], Any],
        validate: Callable[[], float] | None = None,
        *,
        resume: bool = True,
    ) -> TrainingResult:
        """Train until `cfg.total_steps`.

        Args:
            batches: gives the batch of an update; draw it with `cfg.rng(update)` and resuming is exact.
            validate: gives the value that should fall. Called in eval mode, without gradients, from the same
                random state every time.
            resume: go on from `last.safetensors` where there is one; False refuses a folder that has one.
        """
        self._begin(resume)
        try:
            for callback in self.callbacks:
                callback.on_start(self)
            self._loop(batches, validate)
        except NonFiniteLoss:
            self._restore()
            raise
        finally:
            for callback in self.callbacks:
                callback.on_end(self)
        best = self.best_val if math.isfinite(self.best_val) else None
        return TrainingResult(self.update, best, self._wall_s, self.stopped)

    def _loop(self, batches: Callable[[int], Any], validate: Callable[[], float] | None) -> None:
        cfg, params, clock = self.cfg, self._params(), time.perf_counter()
        self.module.train()
        while not self.stopped:
            batch = self.fabric.to_device(batches(self.update))
            with self.fabric.autocast():
                out = self.loss(batch)
            self.optimizer.zero_grad()
            self.fabric.backward(out.loss)
            norm = None
            if cfg.grad_clip is not None:
                norm = nn.utils.clip_grad_norm_(params, cfg.grad_clip)
            self.optimizer.step()
            if isinstance(self.scheduler, torch.optim.lr_scheduler.OneCycleLR):
                self.scheduler.step()
            self._window.append((_detached(out), norm))
            self.update += 1

            at_end = self.update >= cfg.total_steps
            if self.update % cfg.log_interval == 0 or at_end:
                self._log_window(time.perf_counter() - clock)
                clock = time.perf_counter()
            for callback in self.callbacks:
                callback.on_update(self)
            if validate is not None and (self.update % cfg.eval_interval == 0 or at_end):
                self._validate(validate)
            if at_end:
                self.stop("done")
            if self.update % cfg.save_interval == 0 or self.stopped:
                self.save()

    def stop(self, reason: str) -> None:
        """End after this update; the first reason given stands."""
        self.stopped = self.stopped or reason

    def log(self, values: Mapping[str, float]) -> None:
        """Hand scalars to every callback."""
        for callback in self.callbacks:
            callback.on_metrics(self, values)

    def quietly(self, function: Callable[[], T]) -> T:
        """Call with the module in eval mode, no gradients, and random numbers that training does not notice."""
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        numpy_state = np.random.get_state()
        self.module.eval()
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                _seed(self.cfg.seed)
                return function()
        finally:
            np.random.set_state(numpy_state)
            self.module.train()

    def _validate(self, validate: Callable[[], float]) -> None:
        self.check_finite()
        with self.fabric.autocast():
            value = float(self.quietly(validate))
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(value)
        if value < self.best_val:
            self.best_val = value
            facts = {"update": str(self.update), "val": repr(value)}
            write_tensors(self.run_dir / "best.safetensors", plain_names(self.module.state_dict()), facts)
        self.log({"val/loss": value, "val/best": self.best_val})
        for callback in self.callbacks:
            callback.on_validation(self, value)

    def _log_window(self, wall_s: float) -> None:
        """Log the means since the last time; this is where an accelerator is waited for."""
        self._check_losses()
        outs = [out for out, _ in self._window]
        values = {"train/loss": _mean([out.loss for out in outs])}
        values |= {f"train/loss/{k}": _mean([o.components[k] for o in outs]) for k in outs[0].components}
        values |= {f"train/{k}": _mean([o.metrics[k] for o in outs]) for k in outs[0].metrics}
        if norms := [norm for _, norm in self._window if norm is not None]:
            values["train/grad_norm"] = _mean(norms)
        self.speed = len(outs) / wall_s
        values["train/lr"] = float(self.optimizer.param_groups[0]["lr"])
        values["speed/updates_per_s"] = self.speed
        self._window.clear()
        self.log(values)

    def check_finite(self) -> None:
        """Raise NonFiniteLoss if a loss since the last look, or a weight, is nan or inf. Called before every write."""
        self._check_losses()
        if not all(bool(p.isfinite().all()) for p in self._params()):
            batch = self.update - 1
            raise NonFiniteLoss(f"a weight is nan or inf after the update on batch {batch}; {self._advice()}", batch)

    def _check_losses(self) -> None:
        if not self._window:
            return
        finite = torch.stack([out.loss for out, _ in self._window]).isfinite()
        if bool(finite.all()):
            return
        i = int(finite.int().argmin())
        batch, out = self.update - len(self._window) + i, self._window[i][0]
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in out.components.items())
        raise NonFiniteLoss(f"the loss is {float(out.loss)} on batch {batch} ({parts}); {self._advice()}", batch)

    def _advice(self) -> str:
        return (
            f"the last good checkpoint is kept in {self.run_dir / 'last.safetensors'}; look at that batch, "
            f"lower learning_rate ({self.cfg.learning_rate:g}) or set grad_clip ({self.cfg.grad_clip})"
        )

    def save(self) -> None:
        """Write `last.safetensors`: everything a resumed run needs, in one file and one move."""
        self.check_finite()
        now = time.perf_counter()
        self._wall_s, self._since = self._wall_s + now - self._since, now
        optimizer = self.optimizer.state_dict()
        tensors = {f"module/{name}": t for name, t in plain_names(self.module.state_dict()).items()}
        numbers: dict[str, dict[str, Any]] = {}
        for i, slots in optimizer["state"].items():
            for name, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{i}/{name}"] = value
                else:
                    numbers.setdefault(str(i), {})[name] = value
        rng, numpy_rng = _random_state(self.fabric.device)
        state = {
            "update": self.update,
            "best_val": self.best_val,
            "stopped": self.stopped,
            "wall_s": self._wall_s,
            "cfg": self.cfg.to_dict(),
            "optimizer": {"param_groups": optimizer["param_groups"], "numbers": numbers},
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "callbacks": {name: callback.state() for name, callback in self._named_callbacks()},
            "numpy_rng": numpy_rng,
        }
        write_tensors(self.run_dir / "last.safetensors", tensors | rng, {"state": json.dumps(state)})

    def load_best(self) -> None:
        """Put the weights of the best validation into the module; without any validation, leave it as it is."""
        path = self.run_dir / "best.safetensors"
        if path.exists():
            load_weights(self.module, load_file(path))

    def _begin(self, resume: bool) -> None:
        self._since = time.perf_counter()
        last = self.run_dir / "last.safetensors"
        if not last.exists():
            _seed(self.cfg.seed)
            self.save()
        elif resume:
            self._restore()
        else:
            raise FileExistsError(f"{last} is there already; pass resume=True to go on, or use another folder")
        if self.update >= self.cfg.total_steps:
            self.stop("done")

    def _restore(self) -> None:
        """Go back to what `save` wrote, to the bit."""
        with safe_open(self.run_dir / "last.safetensors", "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._check_same_run(state["cfg"])
        load_weights(self.module, _under(tensors, "module/"))
        self.optimizer.load_state_dict(_optimizer_state(self._params(), state["optimizer"], tensors))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for name, callback in self._named_callbacks():
            if name in state["callbacks"]:
                callback.load_state(state["callbacks"][name])
        self.update, self.best_val, self._wall_s = state["update"], state["best_val"], state["wall_s"]
        more = self.update < self.cfg.total_steps and state["stopped"] == "done"
        self.stopped = "" if more or self.cfg.patience != state["cfg"]["patience"] else state["stopped"]
        self._window.clear()
        _set_random_state(self.fabric.device, tensors, state["numpy_rng"])

    def _check_same_run(self, saved: dict[str, Any]) -> None:
        fixed = {"total_steps"} if self.cfg.scheduler == "onecycle" else set()
        now = self.cfg.to_dict()
        changed = [k for k in now if now[k] != saved.get(k) and k not in MAY_CHANGE - fixed]
        if changed:
            what = ", ".join(f"{k} was {saved.get(k)!r}, is {now[k]!r}" for k in changed)
            raise ValueError(f"cannot resume {self.run_dir} with other settings: {what}; use another folder")

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _named_callbacks(self) -> list[tuple[str, Callback]]:
        """Callbacks by class and count, so that one that is added or moved does not take another's state."""
        kinds = [type(c).__name__ for c in self.callbacks]
        return [(f"{kind}/{kinds[:i].count(kind)}", c) for i, (kind, c) in enumerate(zip(kinds, self.callbacks))]


def make_fabric(cfg: TrainingConfig) -> Any:
    """Device and precision. Fabric takes a second to import: only those who train wait for it."""
    from lightning_fabric import Fabric

    # It would announce the precision on stderr, in the middle of the progress.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

    kind, _, index = cfg.device.partition(":")
    devices: Any = [int(index)] if index else 1
    mixed = cfg.mixed_precision
    if mixed == "auto":
        mixed = has_bf16(Fabric(accelerator=kind, devices=devices).device)
    name: Any = "bf16-mixed" if mixed else "32-true"
    return Fabric(accelerator=kind, devices=devices, precision=name)


def make_optimizer(cfg: TrainingConfig, params: Any) -> torch.optim.Optimizer:
    """The optimizer that `cfg` names over tensors or groups of them; Adam's in one fused pass."""
    if cfg.optimizer == "rmsprop":
        return torch.optim.RMSprop(params, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    adam = torch.optim.AdamW if cfg.optimizer == "adamw" else torch.optim.Adam
    return adam(params, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)


def make_scheduler(
    cfg: TrainingConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.OneCycleLR | torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    """One-cycle steps with every update, plateau with every validation."""
    if cfg.scheduler == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=max(cfg.total_steps, 2))
    if cfg.scheduler == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=cfg.plateau_factor, patience=cfg.plateau_patience, min_lr=cfg.min_lr
        )
    return None


def _detached(out: LossOutput) -> LossOutput:
    return LossOutput(
        out.loss.detach(),
        {k: v.detach() for k, v in out.components.items()},
        {k: v.detach() for k, v in out.metrics.items()},
    )


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).float().mean())


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _optimizer_state(params: list[Tensor], saved: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict again, tuples as tuples, moments in the memory layout of their parameters."""
    state: dict[int, dict[str, Any]] = {int(i): dict(slots) for i, slots in saved["numbers"].items()}
    for name, value in _under(tensors, "optimizer/").items():
        i, _, slot = name.partition("/")
        like = params[int(i)]
        same = value.shape == like.shape and value.ndim > 0
        state.setdefault(int(i), {})[slot] = torch.empty_like(like, dtype=value.dtype).copy_(value) if same else value
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in saved["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def _random_state(device: torch.device) -> tuple[dict[str, Tensor], list[Any]]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"rng/torch": torch.get_rng_state(), "rng/numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return tensors, [kind, *rest]


def _set_random_state(device: torch.device, tensors: Mapping[str, Tensor], numpy_rng: list[Any]) -> None:
    torch.set_rng_state(tensors["rng/torch"])
    kind, *rest = numpy_rng
    np.random.set_state((kind, tensors["rng/numpy"].numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
