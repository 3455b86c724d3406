"""The training loop: its settings, what it leaves on disk, when it stops, and that a kill changes nothing."""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from wm_agents.data.replay import Batch, ReplayBuffer
from wm_agents.errors import ConfigurationError
from wm_agents.factory import Model, create_world_model
from wm_agents.system.files import write_tensors
from wm_agents.system.run_folder import read_metrics
from wm_agents.training import LossOutput, NonFiniteLoss, Trainer, TrainingConfig, TrainingResult
from wm_agents.training import train as train_model
from wm_agents.training.batches import make_feed
from wm_agents.training.callbacks import (
    Callback,
    CheckpointCallback,
    EarlyStoppingCallback,
    EvalCallback,
    LoggingCallback,
    ProgressCallback,
)
from wm_agents.training.compute import _fast_math
from wm_agents.training.data import create_random_buffer
from wm_agents.training.dreamer_agent import DreamerLearner
from wm_agents.training.optim import LearningRate, make_optimizer

FAST = TrainingConfig(
    total_steps=12, batch_size=8, log_interval=4, eval_interval=4, save_interval=4, device="cpu", mixed_precision=False
)


class Toy(nn.Module):
    """Convolution, dropout and numpy noise: everything that could make a resumed run differ."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
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
    module = Toy(7 + cfg.seed)
    trainer = Trainer(module, cfg, callbacks, run_dir=path)
    held_out = batches(cfg)(10**6)
    return trainer, trainer.fit(batches(cfg), validate or (lambda: float(module.loss(held_out).loss)))


class Rates(Callback):
    """The learning rates of every group at every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_update(self, trainer: Trainer) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizer.param_groups])


class KillAt(Callback):
    def __init__(self, update: int) -> None:
        self.at = update

    def on_update(self, trainer: Trainer) -> None:
        if trainer.update == self.at:
            raise KeyboardInterrupt


class PressCtrlC(Callback):
    def __init__(self, update: int, times: int = 1) -> None:
        self.at, self.times = update, times

    def on_update(self, trainer: Trainer) -> None:
        for _ in range(self.times if trainer.update == self.at else 0):
            os.kill(os.getpid(), signal.SIGINT)


class Started(Callback):
    """The update that a training began or went on with."""

    def on_start(self, trainer: Trainer) -> None:
        self.at = trainer.update


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


def test_an_unknown_field_of_the_constructor_names_the_nearest_too() -> None:
    with pytest.raises(ConfigurationError, match="'warmup_step' of TrainingConfig; did you mean 'warmup_steps'"):
        TrainingConfig(warmup_step=3)  # type: ignore[call-arg]
    assert list(inspect.signature(TrainingConfig).parameters) == [f.name for f in fields(TrainingConfig)]
    assert pickle.loads(pickle.dumps(FAST)) == FAST == TrainingConfig(*vars(FAST).values())


@pytest.mark.parametrize(("text", "message"), [("[1]", "got a list"), ('{"a": ', "is not valid JSON")])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigurationError, match=f"c.json .*{message}.*; give a file of TrainingConfig.save"):
        TrainingConfig.load(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="none.json does not exist; give a file of TrainingConfig.save"):
        TrainingConfig.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("total_steps", 0, "total_steps must be a whole number of at least 1, got 0"),
        ("total_steps", True, "got True"),
        ("batch_size", 2.5, "batch_size must be a whole number of at least 1, got 2.5"),
        ("batch_size", "64", "got '64'"),
        ("learning_rate", 0.0, "learning_rate must be a number above 0"),
        ("learning_rate", math.nan, "learning_rate must be a finite number, got nan"),
        ("grad_clip", 0, "grad_clip must be a number above 0, or None, got 0"),
        ("optimizer", "lion", "optimizer must be one of 'adamw', 'adam', 'sgd', 'rmsprop', 'laprop', got 'lion'"),
        ("scheduler", "cosin", "one of 'none', 'constant', 'linear', 'cosine', 'onecycle', 'plateau'"),
        ("mixed_precision", "fp16", "must be true or false or 'auto', got 'fp16'"),
        ("mixed_precision", 1, "must be true or false or 'auto', got 1"),
        ("mixed_precision_dtype", "half", "one of 'bfloat16', 'float16'"),
        ("min_lr", 1.0, r"min_lr must be at most learning_rate \(0.0003\), got 1.0"),
        ("ema_decay", 1.0, "ema_decay must be a number above 0 and below 1, or None"),
        ("output_dir", "", "output_dir must be the name of a folder"),
        ("patience", 0, "patience must be a whole number of at least 1"),
        ("plateau_factor", 1.0, "plateau_factor must be a number above 0 and below 1"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{field: value})


# What a run leaves


def test_training_lowers_the_loss_and_leaves_last_best_and_metrics(tmp_path: Path, learning_seed: int) -> None:
    cfg = FAST.replace(total_steps=40, learning_rate=0.03, seed=learning_seed)
    trainer, result = train(tmp_path, cfg, (LoggingCallback(),))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert {"train/loss/rec", "train/out", "train/lr", "speed/updates_per_s"} <= rows[0].keys()
    assert result[:2] == (40, min(row["val/loss"] for row in rows if "val/loss" in row)) and result.stopped == "done"
    assert (tmp_path / "last.safetensors").exists() and list(tmp_path.glob("events.*"))
    trainer.load_best()
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[name], t) for name, t in trainer.model.state_dict().items())


def test_best_is_the_lowest_validation_not_the_last(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Keep(Callback):
        def on_validation(self, trainer: Trainer, value: float) -> None:
            seen.append(trainer.model.state_dict()["net.4.bias"].clone())

    _, result = train(tmp_path, callbacks=(Keep(),), validate=scripted([3.0, 1.0, 2.0]))
    assert result.best_val == 1.0
    assert torch.equal(load_file(tmp_path / "best.safetensors")["net.4.bias"], seen[1])


def test_without_validation_there_is_not_a_best(tmp_path: Path) -> None:
    module = Toy()
    result = Trainer(module, FAST, run_dir=tmp_path, loss=module.loss).fit(batches(FAST))
    assert result.best_val is None and not (tmp_path / "best.safetensors").exists()


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    often, _ = train(tmp_path / "a", FAST.replace(eval_interval=1))
    once, _ = train(tmp_path / "b", FAST.replace(eval_interval=12))
    assert _same(often, once)


class Grouped(Toy):
    """The first layer at half the rate, its gradients clipped apart."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        first, last = self.net[0].parameters(), self.net[4].parameters()
        return [{"params": first, "lr": lr / 2, "clip": "first"}, {"params": last, "clip": "last"}]


@pytest.mark.parametrize("scheduler", ["none", "linear", "cosine", "onecycle", "plateau"])
def test_parameter_groups_keep_their_own_rates_under_every_schedule(tmp_path: Path, scheduler: str) -> None:
    module, seen = Grouped(), Rates()
    norm = module.net[1].weight.detach().clone()
    cfg = FAST.replace(scheduler=scheduler, warmup_steps=0 if scheduler == "onecycle" else 3)
    Trainer(module, cfg, (seen,), run_dir=tmp_path).fit(batches(FAST), scripted([1.0, 2.0, 3.0]))
    assert len(seen.rates) == FAST.total_steps
    assert all(first == pytest.approx(last / 2) for first, last in seen.rates)
    assert torch.equal(module.net[1].weight, norm)  # In no group.


def test_clip_groups_are_clipped_apart_and_their_norms_reported(tmp_path: Path) -> None:
    module = Grouped()
    norms: dict[str, float] = {}

    class Norms(Callback):
        def on_metrics(self, trainer: Trainer, values: Mapping[str, float]) -> None:
            norms.update(values)

        def on_update(self, trainer: Trainer) -> None:
            for layer in (0, 4):
                grads = [p.grad.flatten() for p in module.net[layer].parameters()]
                assert float(torch.cat(grads).norm()) == pytest.approx(1e-3, rel=1e-2)

    Trainer(module, FAST.replace(grad_clip=1e-3, log_interval=1), (Norms(),), run_dir=tmp_path).fit(batches(FAST))
    assert norms["train/grad_norm/first"] > 1e-3 and norms["train/grad_norm/last"] > 1e-3


def test_a_given_optimizer_is_the_one_that_steps(tmp_path: Path) -> None:
    module = Toy()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.net[4].parameters(), lr=0.1)
    Trainer(module, FAST, run_dir=tmp_path, optimizer=optimizer).train(batches(FAST))
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"net.4.weight", "net.4.bias"} and optimizer.param_groups[0]["lr"] == 0.1


def test_after_update_follows_every_step(tmp_path: Path) -> None:
    class Slow(Toy):
        calls = 0

        def after_update(self) -> None:
            self.calls += 1

    module = Slow()
    Trainer(module, FAST, run_dir=tmp_path).train(batches(FAST))
    assert module.calls == FAST.total_steps


# Resume


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "scheduler": "onecycle"},
        {"optimizer": "adamw", "scheduler": "plateau", "warmup_steps": 5, "weight_decay": 0.1},
        {"optimizer": "rmsprop", "scheduler": "plateau"},
        {"optimizer": "sgd", "scheduler": "linear", "warmup_steps": 9},
        {"optimizer": "laprop", "scheduler": "cosine", "ema_decay": 0.8},
        {"optimizer": "adam", "gradient_accumulation_steps": 3, "ema_decay": 0.5},
    ],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, settings: dict[str, Any]) -> None:
    cfg = FAST.replace(grad_clip=1.0, patience=5, plateau_patience=0, **settings)
    whole, result = train(tmp_path / "whole", cfg, (LoggingCallback(),))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", cfg, (LoggingCallback(), KillAt(7)))
    resumed, again = train(tmp_path / "killed", cfg, (LoggingCallback(),))
    assert _same(whole, resumed) and result.best_val == again.best_val
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "killed")


def test_ctrl_c_waits_for_the_step_to_end_and_loses_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", callbacks=(PressCtrlC(7),))
    assert "stopping after this step" in capfd.readouterr().err
    resumed = Started()
    again, _ = train(tmp_path / "stopped", callbacks=(resumed,))
    assert resumed.at == 7 and _same(whole, again)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=(PressCtrlC(7, times=2),))
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"])["update"] == 4


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    trainer, result = train(tmp_path)
    again, second = train(tmp_path, callbacks=(KillAt(1),), validate=scripted([]))
    assert second == result and _same(trainer, again)


def test_a_finished_run_continues_when_given_more_updates(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", FAST.replace(total_steps=16))
    train(tmp_path / "parts", FAST)
    parts, result = train(tmp_path / "parts", FAST.replace(total_steps=16))
    assert result.updates == 16 and _same(whole, parts)


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume .*: learning_rate was 0.0003, now 0.5; use another folder"):
        train(tmp_path, FAST.replace(learning_rate=0.5))


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "onecycle"])
def test_a_schedule_is_not_stretched_by_a_resume(tmp_path: Path, scheduler: str) -> None:
    train(tmp_path, FAST.replace(scheduler=scheduler))
    with pytest.raises(ValueError, match="cannot resume .*: total_steps was 12, now 16"):
        train(tmp_path, FAST.replace(scheduler=scheduler, total_steps=16))


def test_a_run_of_other_names_is_rejected_in_words(tmp_path: Path) -> None:
    trainer, _ = train(tmp_path)
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        state = json.loads(file.metadata()["state"])
    state["cfg"]["num_updates"] = state["cfg"].pop("total_steps")
    write_tensors(tmp_path / "last.safetensors", {}, {"state": json.dumps(state)})
    with pytest.raises(
        ValueError, match=r"was written by another version of this package \(its setting num_updates is unknown\)"
    ):
        trainer.fit(batches(FAST))
    write_tensors(tmp_path / "last.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="is not a training checkpoint; give a file that a Trainer wrote"):
        trainer.load_checkpoint()


def test_training_again_replaces_what_the_folder_held(tmp_path: Path) -> None:
    keep = CheckpointCallback(save_every=4)
    train(tmp_path, FAST.replace(total_steps=40), callbacks=(LoggingCallback(), keep))
    again = Toy()
    Trainer(again, FAST, (LoggingCallback(), keep), run_dir=tmp_path).train(batches(FAST))
    fresh, _ = train(tmp_path / "fresh", validate=scripted([1.0, 2.0, 3.0]))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), fresh.model.parameters()))
    assert not (tmp_path / "best.safetensors").exists()  # Nothing was validated.
    assert max(row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")) == 12
    assert sorted(p.name for p in tmp_path.glob("update_*"))[-1] == "update_00000012.safetensors"


@pytest.mark.parametrize("scheduler", ["none", "cosine", "onecycle"])
def test_training_in_parts_equals_training_at_once(tmp_path: Path, scheduler: str) -> None:
    cfg = FAST.replace(scheduler=scheduler, ema_decay=0.9)
    whole = Toy()
    Trainer(whole, cfg, run_dir=tmp_path / "whole").train(batches(cfg))
    parts = Toy()
    trainer = Trainer(parts, cfg, run_dir=tmp_path / "parts")
    assert trainer.train(batches(cfg), num_steps=5) is parts and trainer.update == 5
    trainer.train(batches(cfg), num_steps=4)
    assert trainer.update == 9
    # The weights that training goes on with, and not the average that the model was left with.
    path = trainer.save_checkpoint(tmp_path / "nine.safetensors")
    other = Trainer(Toy(), cfg, run_dir=tmp_path / "other")
    other.load_checkpoint(path)
    parts = other.train(batches(cfg))
    assert other.update == 12
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))


def test_a_checkpoint_of_any_name_is_gone_on_from(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", validate=scripted([1.0, 1.0, 1.0]))
    first = Trainer(Toy(), FAST, run_dir=tmp_path / "a")
    first.train(batches(FAST), num_steps=6)
    path = first.save_checkpoint(tmp_path / "six.safetensors")
    second = Trainer(Toy(), FAST, run_dir=tmp_path / "b")
    second.load_checkpoint(path)
    assert second.update == 6
    second.train(batches(FAST))
    assert _same(whole, second)


# Not a number


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_names_its_batch_and_keeps_the_last_good_checkpoint(tmp_path: Path, bad: float) -> None:
    module = Toy()

    def loss(batch: Tensor) -> LossOutput:
        out = module.loss(batch)
        return out._replace(loss=out.loss + bad) if trainer.update == 9 else out

    trainer = Trainer(module, FAST.replace(total_steps=100, save_interval=3), run_dir=tmp_path, loss=loss)
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

    trainer = Trainer(module, FAST.replace(log_interval=100), run_dir=tmp_path, loss=loss)
    with pytest.raises(NonFiniteLoss, match="a weight is NaN or infinite after the update on batch 3"):
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


def test_early_stopping_state_survives_json_and_counts_automatically() -> None:
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
    rate = LearningRate(cfg.replace(scheduler="plateau"), optimizer)
    for value in values:
        rate.after_validation(1, value)
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


def test_plateau_does_not_look_while_the_rate_still_rises() -> None:
    optimizer = make_optimizer(FAST, [nn.Parameter(torch.zeros(1))])
    rate = LearningRate(FAST.replace(scheduler="plateau", plateau_patience=0, warmup_steps=5), optimizer)
    for step, value, expected in ((3, 1.0, 1.0), (4, 2.0, 1.0), (6, 3.0, 1.0), (7, 4.0, 0.5)):
        rate.after_validation(step, value)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected * FAST.learning_rate)


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


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("none", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.775, 0.55, 0.325]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.1 + 0.45 * (1 + 2**-0.5), 0.55, 0.1 + 0.45 * (1 - 2**-0.5)]),
        ("plateau", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    ],
)
def test_the_rate_rises_and_falls_as_the_schedule_says(tmp_path: Path, scheduler: str, expected: list[float]) -> None:
    seen = Rates()
    cfg = FAST.replace(total_steps=8, warmup_steps=4, learning_rate=0.02, min_lr=0.002, scheduler=scheduler)
    Trainer(Toy(), cfg, (seen,), run_dir=tmp_path).train(batches(cfg), eval_data=batches(cfg))
    assert [rate / 0.02 for (rate,) in seen.rates] == pytest.approx(expected)


# Every field does what it says


def outcome(tmp_path: Path, **settings: Any) -> dict[str, Tensor]:
    """The weights that a training ends with."""
    module = Toy()
    cfg = FAST.replace(**settings)
    Trainer(module, cfg, run_dir=tmp_path / str(len(list(tmp_path.iterdir())))).train(batches(cfg))
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def moves(**change: Any) -> Any:
    """The field changes what training ends with."""
    return lambda path: differ(outcome(path), outcome(path, **change))


def steps_told(tmp_path: Path, name: str, cfg: TrainingConfig) -> list[int]:
    path = tmp_path / str(len(list(tmp_path.iterdir())))
    train(path, cfg, (LoggingCallback(),))
    return [row["step"] for row in read_metrics(path / "metrics.jsonl") if name in row]


def window_shape(tmp_path: Path, **settings: Any) -> tuple[int, ...]:
    """Of the windows that are drawn from a replay buffer."""
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=5, episode_length=20, seed=0)
    model, shapes = nn.Linear(1, 1), []

    def loss(batch: Batch) -> LossOutput:
        shapes.append(tuple(batch.rew.shape))
        return LossOutput(model(batch.rew[..., None]).square().mean(), {}, {})

    Trainer(model, FAST.replace(total_steps=1, **settings), loss=loss, run_dir=tmp_path).train(buffer)
    return shapes[0]


def saves(tmp_path: Path, cfg: TrainingConfig) -> list[int]:
    """The steps at which last.safetensors is written."""
    seen: list[int] = []

    class Look(Trainer):
        def save_checkpoint(self, path: str | Path | None = None) -> Path:
            seen.append(self.update)
            return super().save_checkpoint(path)

    Look(Toy(), cfg, run_dir=tmp_path).train(batches(cfg))
    return seen


def heavy_calls(tmp_path: Path, on: bool) -> int:
    """How often the encoder is computed in one step."""
    calls = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    model = nn.ModuleDict({"encoder": Counted(3, 3)})

    def loss(batch: Tensor) -> LossOutput:
        return LossOutput(model["encoder"](batch).square().mean(), {}, {})

    cfg = FAST.replace(total_steps=1, use_gradient_checkpointing=on)
    Trainer(model, cfg, loss=loss, run_dir=tmp_path / str(on)).train(lambda i: torch.ones(2, 3))
    return len(calls)


def optimizers(tmp_path: Path) -> bool:
    """All of them differ, Adam's two by how weights decay."""
    ends = [outcome(tmp_path, optimizer=name) for name in ("adam", "sgd", "rmsprop", "laprop")]
    ends += [outcome(tmp_path, optimizer=name, weight_decay=0.1) for name in ("adam", "adamw")]
    return all(differ(a, b) for i, a in enumerate(ends) for b in ends[:i])


def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """What the trainer calls is what came back from torch.compile, given the model's loss."""
    module, calls = Toy(), []
    monkeypatch.setattr(torch, "compile", lambda f: lambda batch: calls.append(f) or f(batch))
    Trainer(module, FAST.replace(compile_model=True), run_dir=tmp_path).train(batches(FAST))
    return calls == [module.loss] * FAST.total_steps


def plateau_rate(tmp_path: Path, **settings: Any) -> float:
    cfg = FAST.replace(**({"scheduler": "plateau", "plateau_patience": 1} | settings))
    trainer, _ = train(tmp_path / str(settings), cfg, validate=scripted([1.0, 2.0, 3.0]))
    return float(trainer.optimizer.param_groups[0]["lr"] / cfg.learning_rate)


EFFECTS: dict[str, Any] = {
    "total_steps": lambda path: train(path, FAST.replace(total_steps=5))[1].updates == 5,
    "batch_size": lambda path: window_shape(path, batch_size=3, sequence_length=4) == (3, 4),
    "sequence_length": lambda path: window_shape(path, batch_size=3, sequence_length=7) == (3, 7),
    "learning_rate": moves(learning_rate=0.01),
    "optimizer": optimizers,
    "weight_decay": moves(weight_decay=0.5),
    "grad_clip": moves(grad_clip=1e-5),
    "gradient_accumulation_steps": moves(gradient_accumulation_steps=2),
    "warmup_steps": moves(warmup_steps=6),
    "scheduler": moves(scheduler="linear"),
    "min_lr": lambda path: differ(outcome(path, scheduler="linear"), outcome(path, scheduler="linear", min_lr=1e-4)),
    "plateau_patience": lambda path: (plateau_rate(path), plateau_rate(path, plateau_patience=0)) == (0.5, 0.25),
    "plateau_factor": lambda path: plateau_rate(path, plateau_factor=0.2) == pytest.approx(0.2),
    "ema_decay": moves(ema_decay=0.9),
    "mixed_precision": moves(mixed_precision=True),
    "mixed_precision_dtype": lambda path: "float16 needs CUDA" in refused(mixed_precision_dtype="float16"),
    "use_gradient_checkpointing": lambda path: (
        (heavy_calls(path / "a", False), heavy_calls(path / "b", True)) == (1, 2)
    ),
    "device": lambda path: "device must be auto, cpu, mps, cuda or cuda:N, got 'gpu'" in refused(device="gpu"),
    "seed": moves(seed=1),
    "output_dir": lambda path: Trainer(Toy(), FAST.replace(output_dir=str(path))).save_checkpoint().parent == path,
    "log_interval": lambda path: steps_told(path, "train/loss", FAST.replace(log_interval=5)) == [5, 10, 12],
    "eval_interval": lambda path: steps_told(path, "val/loss", FAST.replace(eval_interval=5)) == [5, 10, 12],
    "save_interval": lambda path: saves(path, FAST.replace(save_interval=5)) == [0, 5, 10, 12],
    "patience": lambda path: train(path, FAST.replace(patience=1), validate=scripted([1.0, 2.0]))[1].updates == 8,
}


def refused(**settings: Any) -> str:
    with pytest.raises(ValueError) as error:
        Trainer(Toy(), FAST.replace(**({"mixed_precision": True} | settings)))
    return str(error.value)


@pytest.mark.parametrize("field", [f.name for f in fields(TrainingConfig) if f.name not in ("compile_model", "tf32")])
def test_every_field_has_its_effect(tmp_path: Path, native_bf16: None, field: str) -> None:
    assert EFFECTS[field](tmp_path)


def test_compile_model_compiles_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled(tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler meets warnings of its own.
def test_a_compiled_loss_trains_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)  # A compiled one draws other numbers.
    plain, fast = outcome(tmp_path), outcome(tmp_path, compile_model=True)
    del plain["net.0.bias"]  # Batch norm takes it out again: its gradient is rounding, and Adam makes steps of that.
    assert all(torch.allclose(plain[name], fast[name], atol=1e-4) for name in plain)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_set_for_the_training_and_put_back(monkeypatch: pytest.MonkeyPatch, tf32: bool) -> None:
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    with _fast_math(FAST.replace(tf32=tf32), torch.device("cuda")):
        assert [place.allow_tf32 for place in places] == [tf32, tf32]
    assert [place.allow_tf32 for place in places] == before


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Path) -> None:
    def run(name: str, cfg: TrainingConfig, rows: int) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)
        data = torch.arange(72.0).reshape(24, 3) / 72

        def loss(batch: Tensor) -> LossOutput:
            return LossOutput(layer(batch).square().mean(), {}, {})

        trainer = Trainer(layer, cfg, loss=loss, run_dir=tmp_path / name)
        trainer.train(lambda i: data[rows * i : rows * (i + 1)])
        return layer.weight.detach()

    sums = FAST.replace(total_steps=3, optimizer="sgd", learning_rate=0.1)  # Adam does not mind the scale.
    once = run("a", sums, 8)
    parts = run("b", sums.replace(gradient_accumulation_steps=4), 2)
    assert torch.allclose(once, parts, atol=1e-6)


def test_the_average_is_validated_kept_as_best_and_left_in_the_model(tmp_path: Path) -> None:
    module = Toy()
    cfg = FAST.replace(ema_decay=0.75, learning_rate=0.01)
    mine = [p.detach().clone() for p in module.parameters()]
    seen: list[list[Tensor]] = []

    class Follow(Callback):
        def on_update(self, trainer: Trainer) -> None:
            for i, p in enumerate(module.parameters()):
                mine[i] = 0.75 * mine[i] + 0.25 * p.detach()

    def validate() -> float:
        seen.append([p.detach().clone() for p in module.parameters()])
        return 1.0 / len(seen)

    Trainer(module, cfg, (Follow(),), run_dir=tmp_path).fit(batches(cfg), validate)
    best = load_file(tmp_path / "best.safetensors")
    for i, (name, p) in enumerate(module.named_parameters()):
        assert torch.allclose(p, mine[i], atol=1e-6) and torch.equal(p, seen[-1][i]) and torch.equal(p, best[name])
    saved = load_file(tmp_path / "last.safetensors")
    assert torch.allclose(saved["average/net.4.bias"], module.net[4].bias)
    assert not torch.allclose(saved["module/net.4.bias"], module.net[4].bias)


def test_checkpointed_parts_give_the_same_gradients_and_are_themselves_again(tmp_path: Path) -> None:
    def run(name: str, on: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Module()
        model.encoder = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))

        def loss(batch: Tensor) -> LossOutput:
            return LossOutput(model.encoder(batch).square().mean(), {}, {})

        cfg = FAST.replace(use_gradient_checkpointing=on, optimizer="sgd")
        Trainer(model, cfg, loss=loss, run_dir=tmp_path / name).train(lambda i: torch.ones(4, 3) * i)
        return model

    plain, twice = run("a", False), run("b", True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), twice.parameters()))
    assert not any("forward" in vars(part) for part in twice.modules())
    with pytest.raises(
        ConfigurationError, match="needs a part named encoder or decoder or ups, but Toy has none; disable it"
    ):
        Trainer(Toy(), FAST.replace(use_gradient_checkpointing=True), run_dir=tmp_path)


def test_settings_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match="warmup_steps must be 0 with onecycle, which includes a warm-up, got 3"):
        TrainingConfig(scheduler="onecycle", warmup_steps=3)
    with pytest.raises(ValueError, match="weight_decay must be 0 with laprop, which does not support it, got 0.1"):
        TrainingConfig(optimizer="laprop", weight_decay=0.1)


# Data in any form


def data_of(kind: str) -> Any:
    rows = [torch.full((2, 1), float(i)) for i in range(5)]

    class Sampler:
        def sample(self, batch_size: int, seq_len: int, device: str) -> Tensor:
            assert (batch_size, seq_len, device) == (8, 50, "cpu")
            return torch.rand(2, 1)

    kinds = {"function": lambda i: rows[i % 5], "list": rows, "iterator": iter(rows * 3), "sample": Sampler()}
    return kinds[kind]


def fed(tmp_path: Path, data: Any, **kwargs: Any) -> list[float]:
    """The first number of every batch that a training sees."""
    layer, seen = nn.Linear(1, 1), []

    def loss(batch: Tensor) -> LossOutput:
        seen.append(float(batch[0, 0]))
        return LossOutput(layer(batch).square().mean(), {}, {})

    Trainer(layer, FAST, kwargs.pop("callbacks", ()), loss=loss, run_dir=tmp_path).train(data, **kwargs)
    return seen


@pytest.mark.parametrize("kind", ["function", "list", "iterator", "sample"])
def test_data_of_any_form_is_trained_on(tmp_path: Path, kind: str) -> None:
    seen = fed(tmp_path, data_of(kind))
    assert len(seen) == 12
    assert kind == "sample" or seen == [float(i % 5) for i in range(12)]


@pytest.mark.parametrize("kind", ["function", "list", "sample"])
def test_a_killed_run_continues_with_the_batch_that_is_due(tmp_path: Path, kind: str) -> None:
    whole = fed(tmp_path / "whole", data_of(kind))
    with pytest.raises(KeyboardInterrupt):
        fed(tmp_path / "killed", data_of(kind), callbacks=(KillAt(7),))
    assert fed(tmp_path / "killed", data_of(kind), resume=True) == whole[4:]


def test_a_list_of_batches_is_gone_through_again_from_its_start() -> None:
    feed = make_feed([10, 20, 30], FAST)
    assert [feed(i) for i in (0, 1, 0, 2, 3, 1)] == [10, 20, 10, 30, 10, 20]


def test_data_that_cannot_be_used_is_rejected_in_words(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="data must be a ReplayBuffer, a function .*, got int"):
        fed(tmp_path, 3)
    with pytest.raises(ValueError, match="data ended after 5 batches; give an iterable"):
        fed(tmp_path, iter([torch.ones(2, 1)] * 5))
    with pytest.raises(ValueError, match="data has no batches"):
        fed(tmp_path, [])
    with pytest.raises(ValueError, match="num_steps must be at least 1, or None, got 0"):
        fed(tmp_path, data_of("list"), num_steps=0)


class Reader(nn.Module):
    """Its loss says what the windows hold."""

    def __init__(self, packs: bool) -> None:
        super().__init__()
        self.packs, self.seen = packs, []
        self.layer = nn.Linear(1, 1)

    def loss(self, batch: Batch) -> LossOutput:
        self.seen.append(batch)
        assert self.training == torch.is_grad_enabled()
        loss = self.layer(batch.rew[..., None]).square().mean()
        return LossOutput(loss, {"part": loss / 2}, {})


@pytest.mark.parametrize("packs", [True, False])
def test_a_replay_buffer_gives_the_windows_that_the_model_wants(tmp_path: Path, packs: bool) -> None:
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=20, episode_length=6, seed=0)
    model = Reader(packs)
    Trainer(model, FAST.replace(sequence_length=5), run_dir=tmp_path).train(buffer)
    assert any(batch.first[:, 1:].any() for batch in model.seen) == packs
    assert len({float(batch.rew.sum()) for batch in model.seen}) == 12


def test_a_killed_run_on_a_replay_buffer_ends_with_the_same_bits(tmp_path: Path) -> None:
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=20, episode_length=60, seed=0)

    def run(name: str, callbacks: tuple[Callback, ...] = (), resume: bool = False) -> Reader:
        torch.manual_seed(0)
        reader: Reader = Trainer(Reader(False), FAST, callbacks, run_dir=tmp_path / name).train(buffer, resume=resume)
        return reader

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", (KillAt(7),))
    buffer.save(tmp_path / "replay.npz")
    buffer = ReplayBuffer.load(tmp_path / "replay.npz")
    again = run("killed", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    assert [float(b.rew.sum()) for b in again.seen] == [float(b.rew.sum()) for b in whole.seen[4:]]


def test_evaluations_of_a_buffer_repeat_and_are_none_of_the_batches_of_training(tmp_path: Path) -> None:
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=20, episode_length=60, seed=0)
    model = Reader(False)
    trainer = Trainer(model, FAST, run_dir=tmp_path)
    before = trainer.evaluate(buffer)["loss"]
    model.seen.clear()
    first = trainer.evaluate(buffer, num_batches=3)
    assert first == trainer.evaluate(buffer, num_batches=3)
    assert first["part"] == pytest.approx(first["loss"] / 2)
    looked = {float(batch.rew.sum()) for batch in model.seen}
    model.seen.clear()
    trainer.train(buffer)
    assert len(looked) == 3 and not looked & {float(batch.rew.sum()) for batch in model.seen}
    assert trainer.evaluate(buffer)["loss"] < before and model.training
    trainer.model.eval()
    trainer.evaluate(buffer)
    assert not model.training
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        trainer.evaluate(buffer, 0)


def test_held_out_data_choose_the_best_weights(tmp_path: Path) -> None:
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=20, episode_length=60, seed=0)
    trainer = Trainer(Reader(False), FAST, (LoggingCallback(),), run_dir=tmp_path)
    trainer.train(buffer, eval_data=buffer)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "val/loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["val/loss"] == pytest.approx(trainer.evaluate(buffer)["loss"])
    assert (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "callbacks", "name"),
    [
        ({"patience": 2}, (), "patience"),
        ({"scheduler": "plateau"}, (), "scheduler='plateau'"),
        ({}, (EarlyStoppingCallback(2),), "EarlyStoppingCallback"),
    ],
)
def test_what_waits_for_validations_needs_data_for_them(
    tmp_path: Path, settings: dict[str, Any], callbacks: tuple[Callback, ...], name: str
) -> None:
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=20, episode_length=60, seed=0)
    trainer = Trainer(Reader(False), FAST.replace(**settings), callbacks, run_dir=tmp_path / "run")
    with pytest.raises(ConfigurationError, match=f"{name} needs eval_data.*no effect.*or remove it"):
        trainer.train(buffer)
    assert trainer.update == 0 and not (tmp_path / "run").exists()
    trainer.train(buffer, eval_data=buffer, num_steps=1)
    assert trainer.update == 1


def learns_from(tmp_path: Path, model: Model, data: Any, eval_data: Any = None) -> None:
    cfg = FAST.replace(total_steps=1, sequence_length=5)
    Trainer(model, cfg, run_dir=tmp_path).train(data, eval_data=eval_data)


@pytest.mark.parametrize("preset", ["vmc:ci", "ensemble:ci", "dreamerv3:ci", "tdmpc2:ci"])
@pytest.mark.parametrize(("shape", "width"), [((5,), 2), ((4,), 3)], ids=["other observations", "other actions"])
def test_data_of_other_shapes_are_rejected_with_both_sides(
    tmp_path: Path, preset: str, shape: tuple[int, ...], width: int
) -> None:
    right, wrong = (
        create_random_buffer(500, *of, num_episodes=5, episode_length=20, seed=0) for of in (((4,), 2), (shape, width))
    )
    model = create_world_model(preset, obs_shape=(4,), action_dim=2)
    said = rf"observations \({shape[0]},\) and encoded actions \({width},\), but the model has \(4,\) and \(2,\)"
    for data, held_out in ((wrong, None), (right, wrong), ([wrong.sample(2, 5)], None)):
        with pytest.raises(ValueError, match=said):
            learns_from(tmp_path, model, data, held_out)
    with pytest.raises(ValueError, match=said):
        model.compute_loss(wrong.sample(2, 5))
    learns_from(tmp_path, model, right, right)


def test_frames_of_another_size_or_order_are_rejected(tmp_path: Path) -> None:
    model = create_world_model("tdmpc2:ci", obs_shape=(64, 64, 3), action_dim=2)
    for shape, message in (
        ((32, 32, 3), r"observations \(32, 32, 3\)"),
        ((3, 64, 64), "channel axis is at the other end"),
    ):
        buffer = ReplayBuffer(100, shape, 2, np.uint8)
        buffer.add_episode(np.zeros((11, *shape), np.uint8), np.zeros((10, 2)), np.zeros(10), terminated=True)
        with pytest.raises(ValueError, match=message):
            learns_from(tmp_path, model, buffer)


def test_choices_are_not_learned_from_numbers(tmp_path: Path) -> None:
    given: dict[str, Any] = {"num_episodes": 8, "episode_length": 7, "seed": 0}
    numbers, choices = (
        create_random_buffer(500, (4,), 2, **given, action_type=kind) for kind in ("continuous", "discrete")
    )
    for preset in ("ensemble:ci", "tdmpc2:ci"):  # One inside episodes, one over steps that are nobody's.
        model = create_world_model(preset, obs_shape=(4,), action_dim=2, action_type="discrete")
        with pytest.raises(ValueError, match=r"act must be one-hot vectors of Discrete\(2\), got \[.*encode_action"):
            learns_from(tmp_path, model, numbers)
        learns_from(tmp_path, model, choices)
        learns_from(tmp_path, create_world_model(preset, obs_shape=(4,), action_dim=2), numbers)


def test_batches_of_ones_own_are_left_to_the_loss() -> None:
    model = create_world_model("ensemble:ci", obs_shape=(4,), action_dim=2)
    model.check_batch({"obs": torch.zeros(2, 3, 5)})  # type: ignore[arg-type]


def test_a_learner_looks_at_data_as_its_model_does(tmp_path: Path) -> None:
    buffer = create_random_buffer(500, (5,), 2, num_episodes=5, episode_length=20, seed=0)
    model = create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2)
    with pytest.raises(ValueError, match="the data have observations"):
        Trainer(DreamerLearner(model), FAST, run_dir=tmp_path).train(buffer)


def test_one_line_trains(tmp_path: Path) -> None:
    buffer = create_random_buffer(1000, (2,), 1, num_episodes=20, episode_length=60, seed=0)
    model = Reader(False)
    assert train_model(model, buffer, total_steps=3, output_dir=str(tmp_path), batch_size=2) is model
    assert len(model.seen) == 3 and model.seen[0].rew.shape == (2, 50)
    with pytest.raises(ValueError, match="unknown field 'lerning_rate' .*; did you mean 'learning_rate'"):
        train_model(model, buffer, lerning_rate=1)


def test_names_are_found_where_users_look_for_them() -> None:
    import wm_agents.training as training

    assert training.ReplayBuffer is ReplayBuffer and training.train is train_model
    with pytest.raises(AttributeError, match="has no attribute 'Trainr'"):
        _ = training.Trainr


# Precision


def test_bf16_autocast_learns_like_fp32(tmp_path: Path, native_bf16: None, learning_seed: int) -> None:
    cfg = FAST.replace(total_steps=40, learning_rate=0.03, seed=learning_seed)
    low, low_result = train(tmp_path / "bf16", cfg.replace(mixed_precision=True))
    full, full_result = train(tmp_path / "fp32", cfg)
    assert not _same(low, full) and all(p.dtype == torch.float32 for p in low.model.parameters())
    assert low_result.best_val == pytest.approx(full_result.best_val, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs CUDA")
def test_float16_scales_the_loss_and_resumes(tmp_path: Path) -> None:
    cfg = FAST.replace(total_steps=40, learning_rate=0.03, device="cuda", mixed_precision=True)
    low, result = train(tmp_path / "fp16", cfg.replace(mixed_precision_dtype="float16"))
    full, _ = train(tmp_path / "fp32", cfg.replace(mixed_precision=False))
    assert low.scaler is not None and low.scaler.get_scale() > 1
    assert result.best_val == pytest.approx(full.best_val, rel=0.2)
    again, _ = train(tmp_path / "fp16", cfg.replace(mixed_precision_dtype="float16", total_steps=44))
    assert again.update == 44


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


# The page


def test_the_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
    assert names["trained"] is names["model"] and names["trainer"].update == 6
    assert (tmp_path / "runs" / "offline" / "best.safetensors").exists()
    assert names["cfg"].real_steps == 50_000


def test_the_page_names_every_setting() -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    table = page.split("### Settings")[1].split("## Online")[0]
    assert all(f"`{f.name}`" in table for f in fields(TrainingConfig))


def _same(a: Trainer, b: Trainer) -> bool:
    pairs = zip(a.model.state_dict().items(), b.model.state_dict().items())
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


def _rows(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "speed" not in k} for row in read_metrics(path / "metrics.jsonl")]


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)
