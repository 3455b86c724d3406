"""The training loop: its settings, what it leaves on disk, when it stops, and that a kill changes nothing."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from wm_agents.runlog import read_metrics
from wm_agents.training import LossOutput, NonFiniteLoss, Trainer, TrainingConfig, TrainingResult
from wm_agents.training.callbacks import (
    Callback,
    CheckpointCallback,
    EarlyStoppingCallback,
    EvalCallback,
    LoggingCallback,
    ProgressCallback,
)
from wm_agents.training.trainer import make_optimizer, make_scheduler

FAST = TrainingConfig(
    total_steps=12, batch_size=8, log_interval=4, eval_interval=4, save_interval=4, device="cpu", mixed_precision=False
)


class Toy(nn.Module):
    """Convolution, dropout and numpy noise: everything that could make a resumed run differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        layers = [nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 16, 4)]
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def loss(self, batch: Tensor) -> LossOutput:
        out = self.net(batch).float()
        rec = (out - 1 + 0.1 * float(np.random.standard_normal())).square().mean()
        return LossOutput(rec, {"rec": rec}, {"out": out.mean()})


def batches(cfg: TrainingConfig) -> Any:
    return lambda update: torch.from_numpy(cfg.rng(update).standard_normal((cfg.batch_size, 3, 8, 8), np.float32))


def train(
    path: Path, cfg: TrainingConfig = FAST, callbacks: tuple[Callback, ...] = (), validate: Any = None
) -> tuple[Trainer, TrainingResult]:
    module = Toy()
    trainer = Trainer(module, cfg, path, loss=module.loss, callbacks=callbacks)
    held_out = batches(cfg)(10**6)
    return trainer, trainer.fit(batches(cfg), validate or (lambda: float(module.loss(held_out).loss)))


class KillAt(Callback):
    def __init__(self, update: int) -> None:
        self.at = update

    def on_update(self, trainer: Trainer) -> None:
        if trainer.update == self.at:
            raise KeyboardInterrupt


def scripted(values: list[float]) -> Any:
    """A validation that returns `values` in turn."""
    rest = iter(values)
    return lambda: next(rest)


# Settings


def test_config_survives_save_and_load(tmp_path: Path) -> None:
    cfg = TrainingConfig(total_steps=7, learning_rate=0.1, grad_clip=None, scheduler="plateau", patience=3)
    cfg.save(tmp_path / "training.json")
    assert TrainingConfig.load(tmp_path / "training.json") == cfg


def test_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"bach_size": 3}')
    with pytest.raises(ValueError, match=r"unknown field 'bach_size' of TrainingConfig; did you mean 'batch_size'"):
        TrainingConfig.load(tmp_path / "c.json")
    with pytest.raises(ValueError, match="did you mean 'eval_interval'"):
        FAST.replace(eval_intervall=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("total_steps", 0, "total_steps must be a whole number from 1 up, got 0"),
        ("total_steps", True, "got True"),
        ("batch_size", 2.5, "batch_size must be a whole number from 1 up, got 2.5"),
        ("batch_size", "64", "got '64'"),
        ("learning_rate", 0.0, "learning_rate must be above 0"),
        ("learning_rate", math.nan, "learning_rate must be a number from 0 up, got nan"),
        ("grad_clip", 0, "None for no clipping"),
        ("optimizer", "sgd", "optimizer must be one of adam, adamw, rmsprop, got 'sgd'"),
        ("scheduler", "cosine", "one of constant, onecycle, plateau"),
        ("mixed_precision", "fp16", "one of auto, True, False"),
        ("patience", 0, "patience must be a whole number from 1 up"),
        ("plateau_factor", 1.0, "plateau_factor must be between 0 and 1"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{field: value})


# What a run leaves


def test_training_lowers_the_loss_and_leaves_last_best_and_metrics(tmp_path: Path) -> None:
    trainer, result = train(tmp_path, FAST.replace(total_steps=40, learning_rate=0.03), (LoggingCallback(),))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert {"train/loss/rec", "train/out", "train/lr", "speed/updates_per_s"} <= rows[0].keys()
    assert result[:2] == (40, min(row["val/loss"] for row in rows if "val/loss" in row)) and result.stopped == "done"
    assert (tmp_path / "last.safetensors").exists() and list(tmp_path.glob("events.*"))
    trainer.load_best()
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[name], t) for name, t in trainer.module.state_dict().items())


def test_best_is_the_lowest_validation_not_the_last(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Keep(Callback):
        def on_validation(self, trainer: Trainer, value: float) -> None:
            seen.append(trainer.module.state_dict()["net.4.bias"].clone())

    _, result = train(tmp_path, callbacks=(Keep(),), validate=scripted([3.0, 1.0, 2.0]))
    assert result.best_val == 1.0
    assert torch.equal(load_file(tmp_path / "best.safetensors")["net.4.bias"], seen[1])


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    module = Toy()
    result = Trainer(module, FAST, tmp_path, loss=module.loss).fit(batches(FAST))
    assert result.best_val is None and not (tmp_path / "best.safetensors").exists()


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    often, _ = train(tmp_path / "a", FAST.replace(eval_interval=1))
    once, _ = train(tmp_path / "b", FAST.replace(eval_interval=12))
    assert _same(often, once)


def test_parameter_groups_keep_their_own_rates(tmp_path: Path) -> None:
    module = Toy()
    groups = [{"params": module.net[0].parameters(), "lr": 0.5}, {"params": module.net[4].parameters()}]
    trainer = Trainer(module, FAST, tmp_path, loss=module.loss, params=groups)
    norm = module.net[1].weight.detach().clone()
    trainer.fit(batches(FAST))
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.5, FAST.learning_rate]
    assert torch.equal(module.net[1].weight, norm)


# Resume


@pytest.mark.parametrize("schedule", ["constant", "onecycle", "plateau"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, optimizer: str, schedule: str) -> None:
    cfg = FAST.replace(optimizer=optimizer, scheduler=schedule, grad_clip=1.0, patience=5, plateau_patience=0)
    whole, result = train(tmp_path / "whole", cfg, (LoggingCallback(),))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", cfg, (LoggingCallback(), KillAt(7)))
    resumed, again = train(tmp_path / "killed", cfg, (LoggingCallback(),))
    assert _same(whole, resumed) and result.best_val == again.best_val
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "killed")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    trainer, result = train(tmp_path)
    again, second = train(tmp_path, callbacks=(KillAt(1),), validate=scripted([]))
    assert second == result and _same(trainer, again)


def test_a_finished_run_goes_on_when_given_more_updates(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", FAST.replace(total_steps=16))
    train(tmp_path / "parts", FAST)
    parts, result = train(tmp_path / "parts", FAST.replace(total_steps=16))
    assert result.updates == 16 and _same(whole, parts)


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume .*: learning_rate was 0.001, is 0.5; use another folder"):
        train(tmp_path, FAST.replace(learning_rate=0.5))


def test_a_folder_in_use_is_refused_when_not_resuming(tmp_path: Path) -> None:
    trainer, _ = train(tmp_path)
    with pytest.raises(FileExistsError, match="pass resume=True"):
        trainer.fit(batches(FAST), resume=False)


# Not a number


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_names_its_batch_and_keeps_the_last_good_checkpoint(tmp_path: Path, bad: float) -> None:
    module = Toy()

    def loss(batch: Tensor) -> LossOutput:
        out = module.loss(batch)
        return out._replace(loss=out.loss + bad) if trainer.update == 9 else out

    trainer = Trainer(module, FAST.replace(total_steps=100, save_interval=3), tmp_path, loss=loss)
    with pytest.raises(NonFiniteLoss, match=rf"the loss is {bad} on batch 9 \(rec .*last good checkpoint") as error:
        trainer.fit(batches(FAST))
    assert error.value.update == 9 and trainer.update == 9
    saved = load_file(tmp_path / "last.safetensors")
    for name, tensor in module.state_dict().items():
        assert tensor.isfinite().all() and torch.equal(saved[f"module/{name}"], tensor)


def test_bad_gradients_are_found_before_anything_is_written(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)

    def loss(batch: Tensor) -> LossOutput:
        zero = module(batch).mean() * 0
        # The square root's slope at 0 is infinite, and 0 times that is no number; the loss itself stays 0.
        return LossOutput(zero.sqrt() if trainer.update == 3 else module(batch).square().mean(), {}, {})

    trainer = Trainer(module, FAST.replace(log_interval=100), tmp_path, loss=loss)
    with pytest.raises(NonFiniteLoss, match="a weight is nan or inf after the update on batch 3"):
        trainer.fit(lambda update: torch.ones(2, 1))
    assert all(t.isfinite().all() for t in load_file(tmp_path / "last.safetensors").values())


# Stopping early


def test_min_mode_stops_after_patience_bad_validations() -> None:
    stopper = EarlyStoppingCallback(patience=2)
    assert [stopper.step(v) for v in (1.0, 0.5, 0.6, 0.5)] == [False, False, False, True]
    stopper = EarlyStoppingCallback(patience=2)
    assert not any(stopper.step(1.0 / (i + 1)) for i in range(20))


def test_max_mode_stops_after_patience_bad_validations() -> None:
    stopper = EarlyStoppingCallback(patience=2, mode="max")
    assert [stopper.step(v) for v in (1.0, 2.0, 1.5, 2.0)] == [False, False, False, True]
    stopper = EarlyStoppingCallback(patience=2, mode="max")
    assert not any(stopper.step(float(i)) for i in range(20))


def test_the_threshold_is_relative_or_absolute() -> None:
    relative = EarlyStoppingCallback(patience=1, threshold=0.1)
    assert [relative.step(v) for v in (10.0, 8.9, 8.1)] == [False, False, True]
    absolute = EarlyStoppingCallback(patience=1, threshold=0.1, threshold_mode="abs")
    assert [absolute.step(v) for v in (10.0, 9.8, 9.75)] == [False, False, True]


def test_a_wrong_mode_is_named() -> None:
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'mid'"):
        EarlyStoppingCallback(1, mode="mid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold_mode must be 'rel' or 'abs', got 'x'"):
        EarlyStoppingCallback(1, threshold_mode="x")  # type: ignore[arg-type]


def test_early_stopping_state_survives_json_and_counts_by_itself() -> None:
    stopper, other = EarlyStoppingCallback(patience=3), EarlyStoppingCallback(patience=3)
    other.load_state(json.loads(json.dumps(stopper.state())))
    assert other.state() == stopper.state()
    for value in (2.0, 1.0, 1.5):
        stopper.step(value)
    other.load_state(json.loads(json.dumps(stopper.state())))
    assert other.state() == {"best": 1.0, "num_bad": 1, "num_validations": 3}
    assert [other.step(2.0), other.step(2.0)] == [False, True]


def test_patience_ends_a_run_and_a_resume_leaves_it_ended(tmp_path: Path) -> None:
    cfg = FAST.replace(total_steps=1000, patience=2)
    _, result = train(tmp_path, cfg, validate=scripted([2.0, 1.0, 1.5, 1.2]))
    assert result.updates == 16 and result.stopped == "no improvement in 2 validations"
    assert train(tmp_path, cfg, validate=scripted([]))[1] == result


def test_patience_counts_on_after_a_kill(tmp_path: Path) -> None:
    cfg = FAST.replace(total_steps=1000, patience=2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, cfg, (KillAt(10),), validate=scripted([1.0, 2.0]))
    assert train(tmp_path, cfg, validate=scripted([3.0]))[1].updates == 12


# Learning rate


def plateau(cfg: TrainingConfig, values: list[float]) -> torch.optim.Optimizer:
    optimizer = make_optimizer(cfg.replace(scheduler="plateau"), [nn.Parameter(torch.zeros(1))])
    scheduler = make_scheduler(cfg.replace(scheduler="plateau"), optimizer)
    assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    for value in values:
        scheduler.step(value)
    return optimizer


@pytest.mark.parametrize(
    ("patience", "min_lr", "values", "expected"),
    [
        (2, 0.0, [1.0] * 4, 0.05),
        (2, 0.0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 0.1),
        (1, 0.0, [1.0] * 10, 0.1 * 0.5 ** (9 // 2)),
        (0, 0.04, [1.0] * 10, 0.04),
    ],
)
def test_plateau_lowers_the_rate(patience: int, min_lr: float, values: list[float], expected: float) -> None:
    cfg = FAST.replace(learning_rate=0.1, plateau_patience=patience, plateau_factor=0.5, min_lr=min_lr)
    assert plateau(cfg, values).param_groups[0]["lr"] == pytest.approx(expected)


def test_plateau_acts_at_validations(tmp_path: Path) -> None:
    cfg = FAST.replace(scheduler="plateau", plateau_patience=0, plateau_factor=0.1, learning_rate=0.1)
    trainer, _ = train(tmp_path, cfg, validate=scripted([1.0, 2.0, 0.5]))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_onecycle_peaks_at_lr_and_ends_near_zero(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_metrics(self, trainer: Trainer, values: Mapping[str, float]) -> None:
            rates.extend([values["train/lr"]] if "train/lr" in values else [])

    train(tmp_path, FAST.replace(total_steps=40, scheduler="onecycle", log_interval=1, learning_rate=0.01), (Rates(),))
    assert max(rates) == pytest.approx(0.01, rel=0.05) and rates[0] < 0.002 and rates[-2] < 1e-4


# Precision


def test_bf16_autocast_learns_like_fp32(tmp_path: Path) -> None:
    cfg = FAST.replace(total_steps=40, learning_rate=0.03)
    low, low_result = train(tmp_path / "bf16", cfg.replace(mixed_precision=True))
    full, full_result = train(tmp_path / "fp32", cfg)
    assert not _same(low, full) and all(p.dtype == torch.float32 for p in low.module.parameters())
    assert low_result.best_val == pytest.approx(full_result.best_val, rel=0.1)


# The other callbacks


def test_numbered_snapshots_keep_the_newest(tmp_path: Path) -> None:
    train(tmp_path, callbacks=(CheckpointCallback(save_every=3, keep=2),))
    names = sorted(p.name for p in tmp_path.glob("update_*"))
    assert names == ["update_00000009.safetensors", "update_00000012.safetensors"]
    assert load_file(tmp_path / names[0]).keys() == Toy().state_dict().keys()


def test_evaluations_are_logged_and_leave_training_alone(tmp_path: Path) -> None:
    def evaluate() -> dict[str, float]:
        assert not torch.is_grad_enabled()
        return {"eval/x": float(torch.rand(()) + np.random.rand())}

    plain, _ = train(tmp_path / "a")
    watched, _ = train(tmp_path / "b", callbacks=(LoggingCallback(), EvalCallback(evaluate, eval_every=5)))
    assert [row["step"] for row in read_metrics(tmp_path / "b" / "metrics.jsonl") if "eval/x" in row] == [5, 10]
    assert _same(plain, watched)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_count_speed_and_loss(tmp_path: Path, terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    train(tmp_path, callbacks=(ProgressCallback("vision", console, line_every_s=0),))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(text in shown for text in ("vision", "12/12", "updates/s", "loss"))


def _same(a: Trainer, b: Trainer) -> bool:
    pairs = zip(a.module.state_dict().items(), b.module.state_dict().items())
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


def _rows(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "speed" not in k} for row in read_metrics(path / "metrics.jsonl")]


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)
