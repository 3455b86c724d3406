"""The training loop.

On a CPU, a killed and resumed run ends with exactly the same weights as an uninterrupted one: batches are a
function of the step, and a checkpoint contains weights, optimizer, schedule, random state and counters.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wm_agents.checkpoint import load_weights, plain_names
from wm_agents.errors import ConfigurationError
from wm_agents.models.loss import LossOutput
from wm_agents.system.interrupt import deferred_interrupt
from wm_agents.system.state import RETRAIN, read_state_tensors, write_state_tensors
from wm_agents.training.batches import Feed, checked, make_feed
from wm_agents.training.callbacks import Callback, EarlyStoppingCallback
from wm_agents.training.compute import (
    Precision,
    choose_precision,
    fast_math,
    heavy_parts,
    make_fabric,
    recomputed,
)
from wm_agents.training.config import TrainingConfig
from wm_agents.training.optim import Average, LearningRate, make_optimizer
from wm_agents.training.run_state import optimizer_state, random_state, set_random_state, set_seeds, under
from wm_envs.precision import bf16_runs, faster_in_bf16, kinds_of

log = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# Settings that may change when a run is resumed.
MAY_CHANGE = {
    "total_steps", "log_interval", "eval_interval", "save_interval", "patience", "device", "output_dir", "tf32",
    "compile_model", "use_gradient_checkpointing",
}  # fmt: skip


class NonFiniteLoss(ArithmeticError):
    """The loss or the weights became NaN or infinite; `update` is the number of the first such batch."""

    def __init__(self, message: str, update: int) -> None:
        super().__init__(message)
        self.update = update


class TrainingResult(NamedTuple):
    """The result of a run. `updates` and `wall_s` include the time before it was resumed."""

    updates: int
    best_val: float | None
    wall_s: float
    stopped: str
    """`done`, or the reason for an early stop."""


class Trainer:
    """Trains a model; `last.safetensors` and `best.safetensors` in `run_dir` are always complete.

    The model needs `loss(batch) -> LossOutput`, unless a loss is given. It may also define `after_update()`,
    called after every step; `param_groups(lr)`, parameter groups whose key `clip` names groups that are
    clipped together; `packs`, whether its loss needs windows over several episodes; and `check_batch(batch)`,
    which raises an error for an invalid first batch.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig | None = None,
        callbacks: Iterable[Callback] = (),
        *,
        loss: Callable[[Any], LossOutput] | None = None,
        run_dir: str | Path | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Folder and optimizer default to those of the config. All parameters that require gradients are
        trained."""
        self.cfg = cfg = config or TrainingConfig()
        self.run_dir = Path(run_dir or cfg.output_dir)
        precision = choose_precision(cfg, model)
        self._compute_in(precision or "float32")
        self._undecided = precision is None
        """Whether the first batch decides the precision."""
        self.model: nn.Module = self.fabric.to_device(model)
        self.loss: Callable[[Any], LossOutput] = loss or model.loss  # type: ignore[assignment]
        self._check: Callable[[Any], None] | None = getattr(model, "check_batch", None) if loss is None else None
        if cfg.compile_model:
            self.loss = torch.compile(self.loss)
        self.optimizer = optimizer or make_optimizer(cfg, _groups(model, cfg.learning_rate))
        self.rate = LearningRate(cfg, self.optimizer)
        self.average = Average(model, cfg.ema_decay) if cfg.ema_decay is not None else None
        self.callbacks = [*callbacks]
        if cfg.patience is not None:
            self.callbacks.append(EarlyStoppingCallback(cfg.patience))
        self.update = 0
        """Optimizer steps so far."""
        self.target = cfg.total_steps
        """The last step of the current run."""
        self.best_val = math.inf
        self.speed = 0.0
        """Recent updates per second."""
        self.stopped = ""
        self._wall_s = 0.0
        self._since = time.perf_counter()
        self._window: list[tuple[LossOutput, dict[str, Tensor]]] = []
        self._heavy = heavy_parts(model) if cfg.use_gradient_checkpointing else []

    def _compute_in(self, precision: Precision) -> None:
        """Set the dtype of products, convolutions and LSTMs."""
        self.precision = precision
        self.scaler = torch.amp.GradScaler("cuda") if precision == "float16" else None
        self.fabric = make_fabric(self.cfg, precision, self.scaler)

    def add_callback(self, callback: Callback) -> None:
        """Add a callback."""
        self.callbacks.append(callback)

    def train(self, data: Any, num_steps: int | None = None, *, eval_data: Any = None, resume: bool = False) -> Any:
        """Train on `data` and return the model, on the training device.

        Args:
            data: a replay buffer, a function of the batch number, an object with `sample(batch_size, seq_len,
                device)`, or an iterable of batches.
            num_steps: train for N more steps; default: until `total_steps`.
            eval_data: validation data, used every `eval_interval` steps; the best weights are saved as best.
            resume: resume the run in the folder. Otherwise it is replaced.

        Raises:
            ConfigurationError: a setting needs `eval_data`.
            ValueError: the first batch does not fit the model.
        """
        feed = None if eval_data is None else self._feed(eval_data, held_out=True)
        validate = None if feed is None else lambda: self._mean_loss(feed, 10)["loss"]
        self.fit(data, validate, resume=resume, num_steps=num_steps)
        return self.model

    def fit(
        self,
        data: Any,
        validate: Callable[[], float] | None = None,
        *,
        resume: bool = True,
        num_steps: int | None = None,
    ) -> TrainingResult:
        """Train as `train`, with any validation function, and return the result.

        Args:
            data: see `train`; a function that samples with `cfg.rng(number)` makes resuming exact.
            validate: returns the value to minimise. Called in eval mode, without gradients, and always with
                the same random state.

        Raises:
            ConfigurationError: a setting needs a validation.
            ValueError: the first batch does not fit the model.
        """
        feed = self._feed(data)
        if validate is None:
            self._check_validated()
        self._begin(resume, num_steps)
        try:
            with self.running(), deferred_interrupt() as interrupted:
                self._loop(feed, validate, interrupted)
        except NonFiniteLoss:
            self._restore(self.run_dir / "last.safetensors")
            raise
        if self.average is not None and not self.average.inside:
            self.average.swap()
        best = self.best_val if math.isfinite(self.best_val) else None
        return TrainingResult(self.update, best, self._wall_s, self.stopped)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context for steps: starts and ends callbacks, and applies the precision settings.

        `fit` uses it. Use it around your own loop that calls `step`.
        """
        self.model.train()
        try:
            with fast_math(self.cfg, self.fabric.device), recomputed(self._heavy):
                for callback in self.callbacks:
                    callback.on_start(self)
                yield
        finally:
            for callback in self.callbacks:
                callback.on_end(self)

    def _loop(self, feed: Feed, validate: Callable[[], float] | None, interrupted: Callable[[], bool]) -> None:
        cfg, clock = self.cfg, time.perf_counter()
        each = range(cfg.gradient_accumulation_steps)
        while not self.stopped:
            self.step(*(feed(self.update * len(each) + i) for i in each))
            at_end = self.update >= self.target
            if self.update % cfg.log_interval == 0 or at_end:
                self.log_window(time.perf_counter() - clock)
                clock = time.perf_counter()
            for callback in self.callbacks:
                callback.on_update(self)
            if validate is not None and (self.update % cfg.eval_interval == 0 or at_end):
                self._validate(validate)
            if at_end:
                self.stop("done")
            if self.update % cfg.save_interval == 0 or self.stopped or interrupted():
                self.save_checkpoint()
            if interrupted():
                raise KeyboardInterrupt

    def step(self, *batches: Any) -> LossOutput:
        """Take one optimizer step with the mean gradient of `batches` and return the loss of the last
        batch."""
        if self._undecided:
            self._decide_precision(batches[0])
        self.rate.before_step(self.update)
        self.optimizer.zero_grad()
        for batch in batches:
            batch = self.fabric.to_device(batch)
            with self.fabric.autocast():
                out = self.loss(batch)
            self.fabric.backward(out.loss / len(batches) if len(batches) > 1 else out.loss)
            out = _detached(out)
            self._window.append((out, {}))
        self._window[-1][1].update(self._clip())
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.rate.after_step()
        if (after_update := getattr(self.model, "after_update", None)) is not None:
            after_update()
        if self.average is not None:
            self.average.update()
        self.update += 1
        return out

    def _decide_precision(self, batch: Any) -> None:
        """Train in bfloat16 if gradients of the loss of `batch` are faster in it. The trial changes nothing else."""
        self._undecided = False
        batch = self.fabric.to_device(batch)

        def run() -> None:
            self.optimizer.zero_grad()
            self.loss(batch).loss.backward()

        numpy_state, buffers = np.random.get_state(), [buffer.clone() for buffer in self.model.buffers()]
        if faster_in_bf16(run, kinds_of(self.model), self.fabric.device, training=True):
            self._compute_in("bfloat16")
        np.random.set_state(numpy_state)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _clip(self) -> dict[str, Tensor]:
        """Clip the gradients of every clip group and return their norms before clipping, by name."""
        if self.cfg.grad_clip is None:
            return {}
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        together: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            together.setdefault(group.get("clip", ""), []).extend(group["params"])
        names = {name: f"grad_norm/{name}" if len(together) > 1 and name else "grad_norm" for name in together}
        return {names[n]: nn.utils.clip_grad_norm_(params, self.cfg.grad_clip) for n, params in together.items()}

    def stop(self, reason: str) -> None:
        """Stop after this update; the first reason is kept."""
        self.stopped = self.stopped or reason

    def log(self, values: Mapping[str, float]) -> None:
        """Pass scalars to every callback."""
        for callback in self.callbacks:
            callback.on_metrics(self, values)

    def quietly(self, function: Callable[[], T]) -> T:
        """Call a function in eval mode, without gradients, and with a separate random state.

        The call uses the moving average of the weights, if there is one.
        """
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        numpy_state, training = np.random.get_state(), self.model.training
        average = nullcontext() if self.average is None else self.average.shown()
        self.model.eval()
        try:
            with average, torch.random.fork_rng(devices), torch.no_grad():
                set_seeds(self.cfg.seed)
                return function()
        finally:
            np.random.set_state(numpy_state)
            self.model.train(training)

    def evaluate(self, data: Any, num_batches: int = 10) -> dict[str, float]:
        """The mean loss and its components over batches of `data`; the same batches in every call for a
        replay buffer."""
        feed = self._feed(data, held_out=True)
        return self.quietly(lambda: self._mean_loss(feed, num_batches))

    def _mean_loss(self, feed: Feed, num_batches: int) -> dict[str, float]:
        if num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, got {num_batches}")
        outs = []
        for i in range(num_batches):
            batch = self.fabric.to_device(feed(i))
            with self.fabric.autocast():
                outs.append(_detached(self.loss(batch)))
        parts = {name: _mean([out.components[name] for out in outs]) for name in outs[0].components}
        return {"loss": _mean([out.loss for out in outs])} | parts

    def _validate(self, validate: Callable[[], float]) -> None:
        self.check_finite()
        with self.fabric.autocast():
            value = float(self.quietly(validate))
        self.rate.after_validation(self.update, value)
        if value < self.best_val:
            self.best_val = value
            facts = {"update": str(self.update), "val": repr(value)}
            write_state_tensors(self.run_dir / "best.safetensors", self.weights(), facts)
        self.log({"val/loss": value, "val/best": self.best_val})
        for callback in self.callbacks:
            callback.on_validation(self, value)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights that a finished run returns: the moving average if there is one."""
        with nullcontext() if self.average is None else self.average.shown():
            return {name: t.detach().clone() for name, t in plain_names(self.model.state_dict()).items()}

    def log_window(self, wall_s: float) -> None:
        """Log the means since the last call; this synchronises with an accelerator."""
        self._check_losses()
        outs = [out for out, _ in self._window]
        values = {"train/loss": _mean([out.loss for out in outs])}
        values |= {f"train/loss/{k}": _mean([o.components[k] for o in outs]) for k in outs[0].components}
        values |= {f"train/{k}": _mean([o.metrics[k] for o in outs]) for k in outs[0].metrics}
        norms = [norm for _, norm in self._window if norm]
        values |= {f"train/{k}": _mean([norm[k] for norm in norms]) for k in (norms[0] if norms else ())}
        self.speed = len(outs) / self.cfg.gradient_accumulation_steps / wall_s
        values["train/lr"] = float(self.optimizer.param_groups[0]["lr"])
        values["speed/updates_per_s"] = self.speed
        self._window.clear()
        self.log(values)

    def check_finite(self) -> None:
        """Raise NonFiniteLoss if a loss since the last check, or a weight, is not finite. Called before every
        write."""
        self._check_losses()
        if not all(bool(p.isfinite().all()) for p in self._params()):
            batch = self.update - 1
            raise NonFiniteLoss(
                f"a weight is NaN or infinite after the update on batch {batch}; {self._advice()}", batch
            )

    def _check_losses(self) -> None:
        if not self._window:
            return
        finite = torch.stack([out.loss for out, _ in self._window]).isfinite()
        if bool(finite.all()):
            return
        i, each = int(finite.int().argmin()), self.cfg.gradient_accumulation_steps
        batch, out = self.update - len(self._window) // each + i // each, self._window[i][0]
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in out.components.items())
        raise NonFiniteLoss(f"the loss is {float(out.loss)} on batch {batch} ({parts}); {self._advice()}", batch)

    def _advice(self) -> str:
        return (
            f"the last good checkpoint is {self.run_dir / 'last.safetensors'}; inspect that batch (`wm data verify` "
            f"finds NaN in recorded episodes), or lower learning_rate ({self.cfg.learning_rate:g}) or grad_clip "
            f"({self.cfg.grad_clip})"
        )

    def save_checkpoint(self, path: str | Path | None = None) -> Path:
        """Write the state for resuming to one file atomically; default: `last.safetensors`."""
        self.check_finite()
        path = Path(path) if path is not None else self.run_dir / "last.safetensors"
        now = time.perf_counter()
        self._wall_s, self._since = self._wall_s + now - self._since, now
        optimizer = self.optimizer.state_dict()
        with nullcontext() if self.average is None else self.average.shown(False):
            tensors = {f"module/{name}": t.clone() for name, t in plain_names(self.model.state_dict()).items()}
            if self.average is not None:
                tensors |= {f"average/{name}": t.clone() for name, t in self.average.tensors().items()}
        numbers: dict[str, dict[str, Any]] = {}
        for i, slots in optimizer["state"].items():
            for name, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{i}/{name}"] = value
                else:
                    numbers.setdefault(str(i), {})[name] = value
        rng, numpy_rng = random_state(self.fabric.device)
        state = {
            "update": self.update,
            "best_val": self.best_val,
            "stopped": self.stopped,
            "wall_s": self._wall_s,
            "cfg": self.cfg.to_dict(),
            "precision": None if self._undecided else self.precision,
            "optimizer": {"param_groups": optimizer["param_groups"], "numbers": numbers},
            "scheduler": self.rate.state(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "callbacks": {name: callback.state() for name, callback in self._named_callbacks()},
            "numpy_rng": numpy_rng,
        }
        write_state_tensors(path, tensors | rng, {"state": json.dumps(state)})
        return path

    def load_checkpoint(self, path: str | Path | None = None) -> None:
        """Restore a file of `save_checkpoint`, by default `last.safetensors`; `train` then continues from it.

        Raises:
            ValueError: the file belongs to a run with other settings.
        """
        self._restore(Path(path) if path is not None else self.run_dir / "last.safetensors")

    def load_best(self) -> None:
        """Load the weights of the best validation into the model, if there was a validation."""
        path = self.run_dir / "best.safetensors"
        if path.exists():
            load_weights(self.model, read_state_tensors(path, RETRAIN)[0])
            if self.average is not None:
                self.average.restart()

    def _feed(self, data: Any, held_out: bool = False) -> Feed:
        pack = bool(getattr(self.model, "packs", False))
        feed = make_feed(data, self.cfg, pack, str(self.fabric.device), held_out)
        return feed if self._check is None else checked(feed, self._check)

    def _check_validated(self) -> None:
        """Check that settings which need validations have eval_data."""
        cfg = self.cfg
        waiting = {
            "patience": cfg.patience is not None,
            "scheduler='plateau'": cfg.scheduler == "plateau",
            "EarlyStoppingCallback": any(type(c) is EarlyStoppingCallback for c in self.callbacks),
        }
        if name := next((name for name, waits in waiting.items() if waits), None):
            raise ConfigurationError(
                f"{name} needs eval_data: without validation it has no effect; pass train(data, eval_data=...), or "
                "remove it"
            )

    def _begin(self, resume: bool, num_steps: int | None) -> None:
        """Start from scratch, resume from the folder, or continue the previous run of this trainer."""
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, or None, got {num_steps}")
        self._since = time.perf_counter()
        last = self.run_dir / "last.safetensors"
        if resume and last.exists():
            self._restore(last)
        else:
            if self.update == 0:
                set_seeds(self.cfg.seed)
                (self.run_dir / "best.safetensors").unlink(missing_ok=True)
            self.save_checkpoint()
        if self.average is not None and self.average.inside:
            self.average.swap()
        self.target = self.cfg.total_steps if num_steps is None else self.update + num_steps
        if self.update < self.target and self.stopped == "done":
            self.stopped = ""
        if self.update >= self.target:
            self.stop("done")

    def _restore(self, path: Path) -> None:
        """Restore the exact state that `save_checkpoint` wrote."""
        tensors, metadata = read_state_tensors(path)
        try:
            state = json.loads(metadata["state"])
        except KeyError as error:
            raise ValueError(f"{path} is not a training checkpoint; give a file that a Trainer wrote") from error
        self._check_same_run(path, state["cfg"])
        self._resume_precision(state.get("precision"))
        load_weights(self.model, under(tensors, "module/"))
        if self.average is not None:
            self.average.load(under(tensors, "average/"))
            self.average.inside = False
        self.optimizer.load_state_dict(optimizer_state(self._params(), state["optimizer"], tensors))
        self.rate.load_state(state["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for name, callback in self._named_callbacks():
            if name in state["callbacks"]:
                callback.load_state(state["callbacks"][name])
        self.update, self.best_val, self._wall_s = state["update"], state["best_val"], state["wall_s"]
        self.stopped = "" if self.cfg.patience != state["cfg"]["patience"] else state["stopped"]
        self._window.clear()
        set_random_state(self.fabric.device, tensors, state["numpy_rng"])

    def _check_same_run(self, path: Path, saved: dict[str, Any]) -> None:
        now = self.cfg.to_dict()
        if strange := [name for name in saved if name not in now]:
            raise ValueError(
                f"{path} was written by another version (it has the setting {', '.join(strange)}); finish the run with "
                "that version, or delete the file to restart this stage"
            )
        fixed = {"total_steps"} if self.cfg.scheduler in ("linear", "cosine", "onecycle") else set()
        changed = [k for k in now if now[k] != saved.get(k) and k not in MAY_CHANGE - fixed]
        if changed:
            what = ", ".join(f"{k} was {saved.get(k)!r}, now {now[k]!r}" for k in changed)
            raise ValueError(f"cannot resume {path.parent} with other settings: {what}; use another folder")

    def _resume_precision(self, began: Precision | None) -> None:
        """Keep the precision that the run began with; log one line if the device, or a new run, requires another."""
        if began is None:
            return
        undecided, self._undecided = self._undecided, False
        if began == self.precision:
            return
        device = self.fabric.device
        runs = {
            "float32": True,
            "bfloat16": bf16_runs(kinds_of(self.model), device, training=True),
            "float16": device.type == "cuda",
        }
        if runs[began]:
            self._compute_in(began)
        if not undecided:
            log.warning(f"{self.run_dir} began in {began} and resumes in {self.precision}")

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _named_callbacks(self) -> list[tuple[str, Callback]]:
        """Callbacks with names of class and count, so that their states are not mixed up."""
        kinds = [type(c).__name__ for c in self.callbacks]
        return [(f"{kind}/{kinds[:i].count(kind)}", c) for i, (kind, c) in enumerate(zip(kinds, self.callbacks))]


def train(
    model: M,
    data: Any,
    total_steps: int = 100_000,
    *,
    callbacks: Iterable[Callback] = (),
    eval_data: Any = None,
    resume: bool = False,
    **settings: Any,
) -> M:
    """Train `model` on `data`, see `Trainer.train`; `settings` are fields of `TrainingConfig`."""
    cfg = TrainingConfig.from_dict({"total_steps": total_steps, **settings})
    Trainer(model, cfg, callbacks).train(data, eval_data=eval_data, resume=resume)
    return model


def _groups(model: nn.Module, lr: float) -> Any:
    """The parameter groups of the model, or all parameters that require gradients."""
    own: Callable[[float], list[dict[str, Any]]] | None = getattr(model, "param_groups", None)
    return own(lr) if own is not None else [p for p in model.parameters() if p.requires_grad]


def _detached(out: LossOutput) -> LossOutput:
    return LossOutput(
        out.loss.detach(),
        {k: v.detach() for k, v in out.components.items()},
        {k: v.detach() for k, v in out.metrics.items()},
    )


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).float().mean())
