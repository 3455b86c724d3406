"""Callbacks of the training loop: logging, progress, snapshots, evaluation, early stopping."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wm_agents.system.files import write_tensors
from wm_agents.system.run_folder import MetricsLog

if TYPE_CHECKING:
    from wm_agents.training.trainer import Trainer


class Callback:
    """The hooks of the trainer; each does nothing by default."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first update; `trainer.update` is above 0 when a run is resumed."""

    def on_update(self, trainer: Trainer) -> None:
        """After every update; must be fast and must not read tensors."""

    def on_metrics(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Called with new metrics: every log_interval updates, after each validation, and from other callbacks."""

    def on_validation(self, trainer: Trainer, value: float) -> None:
        """After every validation; `trainer.stop(reason)` ends the run."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last update, also when the loop fails."""

    def state(self) -> dict[str, Any]:
        """The state for resuming, as JSON."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""


class LoggingCallback(Callback):
    """Appends metrics to metrics.jsonl and TensorBoard, by default in the run folder; `more` measures further ones."""

    def __init__(
        self, log_dir: str | Path | None = None, more: Callable[[], Mapping[str, float]] = dict[str, float]
    ) -> None:
        self.log_dir, self.more = log_dir, more
        self._log: MetricsLog | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._log = MetricsLog(Path(self.log_dir or trainer.run_dir), keep_until=trainer.update)

    def on_metrics(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.write(trainer.update, {**values, **self.more()})

    def on_end(self, trainer: Trainer) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


class CheckpointCallback(Callback):
    """Saves numbered snapshots of the weights, in addition to the trainer's last and best."""

    def __init__(self, save_dir: str | Path | None = None, save_every: int | None = None, keep: int = 3) -> None:
        """By default, save to the run folder every `save_interval` steps; keep the newest `keep`
        snapshots."""
        self.save_dir, self.save_every, self.keep = save_dir, save_every, keep

    def on_start(self, trainer: Trainer) -> None:
        for path in self._snapshots(trainer):  # From a replaced run, or from steps that are repeated.
            if int(path.stem.partition("_")[2]) > trainer.update:
                path.unlink()

    def on_update(self, trainer: Trainer) -> None:
        if trainer.update % (self.save_every or trainer.cfg.save_interval):
            return
        trainer.check_finite()
        write_tensors(self._folder(trainer) / f"update_{trainer.update:08d}.safetensors", trainer.weights())
        for old in self._snapshots(trainer)[: -self.keep]:
            old.unlink()

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.save_dir or trainer.run_dir)

    def _snapshots(self, trainer: Trainer) -> list[Path]:
        return sorted(self._folder(trainer).glob("update_*.safetensors"))


class EvalCallback(Callback):
    """Calls `evaluate()` periodically and logs the scalars it returns."""

    def __init__(self, evaluate: Callable[[], Mapping[str, float]], eval_every: int | None = None) -> None:
        """Evaluate every `eval_every` steps; default: `eval_interval`."""
        self.evaluate, self.eval_every = evaluate, eval_every

    def on_update(self, trainer: Trainer) -> None:
        if trainer.update % (self.eval_every or trainer.cfg.eval_interval) == 0:
            trainer.log(trainer.quietly(self.evaluate))


class EarlyStoppingCallback(Callback):
    """Stops training after `patience` consecutive validations without improvement."""

    def __init__(
        self,
        patience: int,
        mode: Literal["min", "max"] = "min",
        threshold: float = 0.0,
        threshold_mode: Literal["rel", "abs"] = "rel",
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        self.patience, self.mode = patience, mode
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad = 0
        self.num_validations = 0

    def on_validation(self, trainer: Trainer, value: float) -> None:
        if self.step(value):
            trainer.stop(f"no improvement in {self.patience} validations")

    def step(self, value: float) -> bool:
        """Add one validation and return True to stop."""
        self.num_validations += 1
        if self._improves(value):
            self.best, self.num_bad = value, 0
        else:
            self.num_bad += 1
        return self.num_bad >= self.patience

    def _improves(self, value: float) -> bool:
        if math.isinf(self.best):
            return math.isfinite(value)
        margin = self.threshold * (abs(self.best) if self.threshold_mode == "rel" else 1.0)
        if self.mode == "min":
            return value < self.best - margin
        return value > self.best + margin

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "num_bad": self.num_bad, "num_validations": self.num_validations}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self.num_bad, self.num_validations = (state["best"], state["num_bad"], state["num_validations"])


class ProgressCallback(Callback):
    """A progress bar on stderr with updates per second and remaining time; periodic lines without a
    terminal."""

    def __init__(self, title: str = "train", console: Console | None = None, line_every_s: float = 5.0) -> None:
        self.title, self.line_every_s = title, line_every_s
        self.console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._shown: dict[str, str] = {}
        self._next_line = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._shown = {}
        self._next_line = time.monotonic() + self.line_every_s
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(), console=self.console, refresh_per_second=2,
        )  # fmt: skip
        self._task = self._bar.add_task(self.title, total=trainer.target, completed=trainer.update, text="", start=True)
        self._bar.start()

    def on_metrics(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        for name, text in (("train/loss", "loss"), ("val/loss", "val"), ("speed/updates_per_s", "updates/s")):
            if name in values:
                self._shown[text] = f"{text} {values[name]:.4g}"
        text = "  ".join(self._shown.values())
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.update, text=text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.line_every_s
            self._line(trainer, text)

    def on_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.update)
            self._bar.stop()
            self._bar = None
        else:
            self._line(trainer, "  ".join(self._shown.values()))

    def _line(self, trainer: Trainer, text: str) -> None:
        left = (trainer.target - trainer.update) / max(trainer.speed, 1e-9)
        more = ""
        if trainer.update < trainer.target and trainer.speed:
            more = f"  {left:.0f} s left"
        self.console.print(
            f"{self.title} {trainer.update}/{trainer.target}  {text}{more}", highlight=False, soft_wrap=True
        )
