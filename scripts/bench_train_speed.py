"""How fast V and M train, through the real trainer, on synthetic data held in memory.

    python scripts/bench_train_speed.py [--seconds 10] [--repeats 5] [--threads 2]

V in its small and its paper's size: images a second. M (LSTM 256, 64 windows of 64 steps): frames a second. In fp32,
and in bf16 where the CPU multiplies it natively, with the loss of one and the same batch in both. Each measurement runs
in a process of its own and gives the median over its repeats. Bars on two free cores: small V 2,000 images/s, M 60,000
frames/s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from wm_agents.hardware import describe, has_bf16
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.training.config import TrainingConfig
from wm_agents.training.loss import LossOutput
from wm_agents.training.trainer import Trainer
from wm_agents.training.vmc import LatentSet, Windows, sample_windows

OBS = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
ACT = gym.spaces.Box(-1, 1, (3,), np.float32)
BATCH = 64
WINDOW = 64
EPISODES = 200
WARM_UP = 3
BARS = {"V small": 2_000, "M": 60_000}


class Part(NamedTuple):
    """What is trained, on which batches, and how much one batch counts."""

    module: nn.Module
    loss: Callable[[Any], LossOutput]
    batches: Callable[[int], Any]
    size: int
    grad_clip: float | None


class Speed(NamedTuple):
    """One measurement."""

    per_s: float
    spread: tuple[float, float]
    """Slowest and fastest repeat."""
    peak_mb: float
    loss: float
    """Of the first batch, before any update."""


def make_part(name: str) -> Part:
    torch.manual_seed(0)
    model = VMC(VMCConfig(vision="paper" if name == "V paper" else "small"), OBS, ACT)
    if name == "M":
        data, among = make_latents(), np.arange(EPISODES)

        def windows(i: int) -> Windows:
            return sample_windows(data, BATCH, WINDOW, np.random.default_rng(i), among)

        return Part(model.memory, lambda w: model.memory_loss(*w), windows, BATCH * WINDOW, 1.0)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2048, 64, 64, 3), np.uint8))

    def images(i: int) -> Tensor:
        return frames[torch.from_numpy(np.random.default_rng(i).integers(0, len(frames), BATCH))]

    return Part(model.vision, model.vision_loss, images, BATCH, None)


def make_latents(steps: int = 250) -> LatentSet:
    """Episodes as an encoder gives them."""
    num = EPISODES * (steps + 1)
    mu, zeros = torch.randn(num, 32).half(), torch.zeros(num)
    offset = np.arange(EPISODES) * (steps + 1)
    sigma = torch.full_like(mu, -2.0)
    return LatentSet(mu, sigma, torch.rand(num, 3) * 2 - 1, torch.randn(num), zeros, offset, np.full(EPISODES, steps))


def measure(name: str, precision: str, seconds: float, repeats: int, threads: int) -> Speed:
    """Train for `repeats` spells of about `seconds` / `repeats` each; runs in a process of its own."""
    torch.set_num_threads(threads)
    part = make_part(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = float(part.loss(part.batches(0)).loss.detach())
    stamps: list[float] = []

    def batches(i: int) -> Any:
        stamps.append(time.perf_counter())
        if len(stamps) > WARM_UP + 1 and stamps[-1] - stamps[WARM_UP] > seconds:
            trainer.stop("time is up")
        return part.batches(i)

    quiet = 10**9  # Neither logs nor checkpoints are what is measured.
    cfg = TrainingConfig(
        total_steps=quiet,
        batch_size=BATCH,
        mixed_precision=precision == "bf16",
        grad_clip=part.grad_clip,
        device="cpu",
        log_interval=quiet,
        save_interval=quiet,
        eval_interval=quiet,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(part.module, cfg, loss=part.loss, run_dir=folder)
        trainer.fit(batches)
    spells = [spell for spell in np.array_split(stamps[WARM_UP:], repeats) if len(spell) > 1]
    speeds = [part.size * (len(spell) - 1) / (spell[-1] - spell[0]) for spell in spells]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Speed(statistics.median(speeds), (min(speeds), max(speeds)), peak, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--repeats", type=int, default=5, help="spells that the median is taken over")
    parser.add_argument("--threads", type=int, default=describe()["cores"])
    args = parser.parse_args()
    precisions = ["fp32", "bf16"] if has_bf16(torch.device("cpu")) else ["fp32"]
    table = Table("V, M", "precision", "per second", "slowest", "fastest", "bar", "peak MB", "loss")
    results = []
    for name in ("V small", "V paper", "M"):
        for precision in precisions:
            with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
                speed = pool.submit(measure, name, precision, args.seconds, args.repeats, args.threads).result()
            bar = BARS.get(name)
            unit = "frames" if name == "M" else "images"
            table.add_row(
                name,
                precision,
                f"{speed.per_s:,.0f} {unit}",
                f"{speed.spread[0]:,.0f}",
                f"{speed.spread[1]:,.0f}",
                f"{bar:,}" if bar else "",
                f"{speed.peak_mb:,.0f}",
                f"{speed.loss:.4f}",
            )
            results.append({"part": name, "precision": precision, **speed._asdict()})
    hardware = describe()
    Console(stderr=True, width=110).print(
        f"{hardware['cpu']}, {args.threads} thread(s) on {hardware['cores']} core(s), torch {torch.__version__}", table
    )
    print(json.dumps({"hardware": hardware, "threads": args.threads, "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
