"""The training loop.

On a CPU, a killed and resumed run ends with exactly the same weights as an uninterrupted one: batches are a
function of the step, and a checkpoint contains weights, optimizer, schedule, random state and counters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
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
from wm_agents.training.compute import Compute, Precision
from wm_agents.training.config import TrainingConfig
from wm_agents.training.loss_window import LossWindow, NonFiniteLoss, detached, mean_losses
from wm_agents.training.optim import Average, LearningRate, make_optimizer
from wm_agents.training.parallel import SEEDS_APART
from wm_agents.training.run_state import restore_run, save_run, set_seeds

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


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

    Under torchrun, each process trains on its part of every batch, and gradients are averaged (DDP). The first process
    calls the callbacks, validates and writes files.
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
        self.compute = Compute(cfg, model)
        self.model: nn.Module = self.fabric.to_device(model)
        self.loss: Callable[[Any], LossOutput] = loss or model.loss  # type: ignore[assignment]
        self._check: Callable[[Any], None] | None = None
        if loss is None:
            self._check = getattr(model, "check_batch", None)
        if cfg.compile_model:
            self.loss = torch.compile(self.loss)
        self.optimizer = optimizer or make_optimizer(cfg, _groups(model, cfg.learning_rate))
        self.rate = LearningRate(cfg, self.optimizer)
        self.average: Average | None = None
        if cfg.ema_decay is not None:
            self.average = Average(model, cfg.ema_decay)
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
        self.wall_s = 0.0
        """Seconds of training up to the last checkpoint, including those before it was resumed."""
        self._since = time.perf_counter()
        self._window = LossWindow()

    @property
    def fabric(self) -> Any:
        """The Fabric for device and precision; it changes when the first batch decides the precision."""
        return self.compute.fabric

    @property
    def precision(self) -> Precision:
        """The dtype of products, convolutions and LSTMs."""
        return self.compute.precision

    @property
    def leads(self) -> bool:
        """Whether this process calls callbacks, validates and writes files; true unless torchrun started several."""
        return self.compute.leads

    @property
    def _called(self) -> list[Callback]:
        """The callbacks that this process calls."""
        return self.callbacks if self.leads else []

    @property
    def own_seed(self) -> int:
        """The seed of random numbers of the loss in this process."""
        return self.cfg.seed + SEEDS_APART * self.compute.rank

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
        validate = None
        if eval_data is not None:
            validate = partial(self._held_out_loss, self._feed(eval_data, held_out=True))
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
            self.load_checkpoint()
            raise
        if self.average is not None and not self.average.inside:
            self.average.swap()
        best = None
        if math.isfinite(self.best_val):
            best = self.best_val
        return TrainingResult(self.update, best, self.wall_s, self.stopped)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context for steps: starts and ends callbacks, and applies the precision settings.

        `fit` uses it. Use it around your own loop that calls `step`.
        """
        self.model.train()
        try:
            with self.compute.running():
                for callback in self._called:
                    callback.on_start(self)
                yield
        finally:
            for callback in self._called:
                callback.on_end(self)

    def _loop(self, feed: Feed, validate: Callable[[], float] | None, interrupted: Callable[[], bool]) -> None:
        cfg, clock = self.cfg, time.perf_counter()
        each = range(cfg.gradient_accumulation_steps)
        while not self.stopped:
            self.step(*(self.compute.part(feed(self.update * len(each) + i)) for i in each))
            at_end = self.update >= self.target
            if self.update % cfg.log_interval == 0 or at_end:
                self.log_window(time.perf_counter() - clock)
                clock = time.perf_counter()
            for callback in self._called:
                callback.on_update(self)
            if validate is not None and (self.update % cfg.eval_interval == 0 or at_end):
                self._validate(validate)
            if at_end:
                self.stop("done")
            self.stopped, interrupt = self.compute.agree((self.stopped, interrupted()))
            if self.update % cfg.save_interval == 0 or self.stopped or interrupt:
                self.save_checkpoint()
            if interrupt:
                raise KeyboardInterrupt

    def step(self, *batches: Any) -> LossOutput:
        """Take one optimizer step with the mean gradient of `batches` and return the loss of the last
        batch."""
        if self.compute.undecided:
            first = self.fabric.to_device(batches[0])
            self.compute.decide(lambda: self._compute_gradients(first))
        loss = self.compute.averaged(self.loss)
        self.rate.before_step(self.update)
        self.optimizer.zero_grad()
        for batch in batches:
            batch = self.fabric.to_device(batch)
            with self.fabric.autocast():
                out = loss(batch)
            self.fabric.backward(out.loss / len(batches))
            out = self._window.add(out)
        self._window.add_norms(self.compute.clip(self.optimizer, self.cfg.grad_clip))
        self.compute.step(self.optimizer)
        self.rate.after_step()
        if (after_update := getattr(self.model, "after_update", None)) is not None:
            after_update()
        if self.average is not None:
            self.average.update()
        self.update += 1
        return out

    def _compute_gradients(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).loss.backward()

    def stop(self, reason: str) -> None:
        """Stop after this update; the first reason is kept."""
        self.stopped = self.stopped or reason

    def log(self, values: Mapping[str, float]) -> None:
        """Pass scalars to every callback."""
        for callback in self._called:
            callback.on_metrics(self, values)

    def quietly(self, function: Callable[[], T]) -> T:
        """Call a function in eval mode, without gradients, and with a separate random state.

        The call uses the moving average of the weights, if there is one.
        """
        devices = []
        if self.fabric.device.type == "cuda":
            devices = [self.fabric.device]
        numpy_state, training = np.random.get_state(), self.model.training
        self.model.eval()
        try:
            with self.averaged(), torch.random.fork_rng(devices), torch.no_grad():
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

    def _held_out_loss(self, feed: Feed) -> float:
        return self._mean_loss(feed, 10)["loss"]

    def _mean_loss(self, feed: Feed, num_batches: int) -> dict[str, float]:
        if num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, got {num_batches}")
        outs = []
        for i in range(num_batches):
            batch = self.fabric.to_device(feed(i))
            with self.fabric.autocast():
                outs.append(detached(self.loss(batch)))
        return mean_losses(outs)

    def _validate(self, validate: Callable[[], float]) -> None:
        self.check_finite()
        with self.fabric.autocast():
            value = self.compute.agree(float(self.quietly(validate)) if self.leads else math.nan)
        self.rate.after_validation(self.update, value)
        if value < self.best_val:
            self.best_val = value
            if self.leads:
                facts = {"update": str(self.update), "val": repr(value)}
                write_state_tensors(self.run_dir / "best.safetensors", self.weights(), facts)
        self.log({"val/loss": value, "val/best": self.best_val})
        for callback in self._called:
            callback.on_validation(self, value)

    def averaged(self, inside: bool = True) -> AbstractContextManager[None]:
        """The context in which the model holds the moving average of its weights, or with False the trained ones."""
        if self.average is None:
            return nullcontext()
        return self.average.shown(inside)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights that a finished run returns: the moving average if there is one."""
        with self.averaged():
            return {name: t.detach().clone() for name, t in plain_names(self.model.state_dict()).items()}

    def log_window(self, wall_s: float) -> None:
        """Log the means since the last call; this synchronises with an accelerator."""
        self._window.check_finite(self.update, self.cfg.gradient_accumulation_steps, self._advice())
        values = self._window.means()
        self.speed = len(self._window) / self.cfg.gradient_accumulation_steps / wall_s
        values["train/lr"] = float(self.optimizer.param_groups[0]["lr"])
        values["speed/updates_per_s"] = self.speed
        self._window.clear()
        self.log(values)

    def check_finite(self) -> None:
        """Raise NonFiniteLoss if a loss since the last check, or a weight, is not finite. Called before every
        write."""
        self._window.check_finite(self.update, self.cfg.gradient_accumulation_steps, self._advice())
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        if not all(bool(p.isfinite().all()) for p in params):
            batch = self.update - 1
            raise NonFiniteLoss(
                f"a weight is NaN or infinite after the update on batch {batch}; {self._advice()}", batch
            )

    def _advice(self) -> str:
        return (
            f"the last good checkpoint is {self.run_dir / 'last.safetensors'}; inspect that batch (`wm data verify` "
            f"finds NaN in recorded episodes), or lower learning_rate ({self.cfg.learning_rate:g}) or grad_clip "
            f"({self.cfg.grad_clip})"
        )

    def save_checkpoint(self, path: str | Path | None = None) -> Path:
        """Write the state for resuming to one file atomically; default: `last.safetensors`."""
        self.check_finite()
        path = Path(path or self.run_dir / "last.safetensors")
        if not self.leads:
            return path
        now = time.perf_counter()
        self.wall_s, self._since = self.wall_s + now - self._since, now
        save_run(self, path)
        return path

    def load_checkpoint(self, path: str | Path | None = None) -> None:
        """Restore a file of `save_checkpoint`, by default `last.safetensors`; `train` then continues from it.

        Raises:
            ValueError: the file belongs to a run with other settings.
        """
        restore_run(self, Path(path or self.run_dir / "last.safetensors"))
        self._window.clear()

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
        if self._check is None:
            return feed
        return checked(feed, self._check)

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
        if self.compute.agree(resume and last.exists()):
            self.load_checkpoint()
        else:
            if self.update == 0:
                set_seeds(self.own_seed)
                if self.leads:
                    (self.run_dir / "best.safetensors").unlink(missing_ok=True)
            self.save_checkpoint()
        if self.average is not None and self.average.inside:
            self.average.swap()
        self.target = self.cfg.total_steps
        if num_steps is not None:
            self.target = self.update + num_steps
        if self.update < self.target and self.stopped == "done":
            self.stopped = ""
        if self.update >= self.target:
            self.stop("done")


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
    if own is not None:
        return own(lr)
    return [p for p in model.parameters() if p.requires_grad]
