"""Size on disk, read speed and collection speed of the data, compared with the goals of the project.

python scripts/bench_data.py                  CarRacing-v3 and ALE/Pong-v5 at 64x64x3
python scripts/bench_data.py --steps 2000     a shorter measurement
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

from policies.policy import HeldActions, OrnsteinUhlenbeck, Policy
from wm_agents.data.collect import CollectConfig, collect
from wm_agents.data.dataset import Dataset
from wm_envs.registry import TASKS, RealSpec

LENGTH = 32
BARS = {"CarRacing-v3": 1200, "ale_py:ALE/Pong-v5": 120}
SPECS = [TASKS["CarRacing"].real, RealSpec("ale_py:ALE/Pong-v5", size=64)]


def make_explorer(env: gym.Env) -> Policy:
    space = env.action_space
    return OrnsteinUhlenbeck(space) if isinstance(space, gym.spaces.Box) else HeldActions(space)


def read_speed(data: Dataset, length: int, seconds: float) -> float:
    """Frames per second of random windows of `length` frames, in batches of 64, on one thread."""
    rng, frames = np.random.default_rng(0), 0
    data.windows(64, length - 1, rng)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        frames += data.windows(64, length - 1, rng).obs.shape[0] * length
    return frames / (time.perf_counter() - began)


def draw_speed(data: Dataset, seconds: float) -> float:
    """Single frames per second, in batches of 256."""
    rng, frames = np.random.default_rng(0), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        frames += len(data.frames(256, rng))
    return frames / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8000, help="agent steps to collect of each environment")
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each read measurement")
    parser.add_argument("--seed", type=int, default=0, help="first environment seed")
    args = parser.parse_args()
    table = Table("environment", "stored frames", "B/frame", "bar", "windows f/s", "bar", "frames f/s", "collected f/s")
    for spec in SPECS:
        with tempfile.TemporaryDirectory() as out:
            stall = 40 if spec.id.startswith("CarRacing") else None
            cfg = CollectConfig(spec, out, args.steps, args.seed, procs=args.procs, stall=stall)
            got = collect(cfg, make_explorer)
            data = Dataset(out)
            cells = [
                f"{data.num_frames:,}",
                f"{data.num_bytes / data.num_frames:,.0f}",
                f"<= {BARS[spec.id]:,}",
                f"{read_speed(data, LENGTH, args.seconds):,.0f}",
                ">= 20,000",
                f"{draw_speed(data, args.seconds):,.0f}",
                f"{got.frames / got.wall_s:,.0f}",
            ]
            table.add_row(spec.id, *cells)
    Console(width=120).print(table)
    cores = len(os.sched_getaffinity(0))
    print(
        f"windows of {LENGTH} frames, one thread; collected f/s counts environment frames over {args.procs} processes "
        f"on {cores} cores ({platform.processor() or platform.machine()}); seeds from {args.seed}; "
        f"gymnasium {gym.__version__}"
    )


if __name__ == "__main__":
    main()
