"""`wm bench`: the speed of dreams, training and data on this machine, measured through the public API."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console

from wm_agents.checkpoint import load_artifact
from wm_agents.cli.doors import Door, OpenDoor, by_turns
from wm_agents.cli.printing import print_json, say, table
from wm_agents.data.dataset import Dataset, write_shard
from wm_agents.data.episode import Episode
from wm_agents.data.replay import ReplayBuffer
from wm_agents.factory import create_world_model
from wm_agents.models.saved import model_path
from wm_agents.pretrained import real_spec
from wm_agents.system.hardware import check_threads, describe, find_device
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.data import create_random_buffer
from wm_agents.training.trainer import Trainer
from wm_envs.registry import TASKS

Precision = Literal["fp32", "bf16", "auto"]
Part = Literal["dream", "train", "data"]
PARTS: tuple[Part, ...] = ("dream", "train", "data")
TRAINED = ("vmc:small", "ensemble:default", "dreamerv3:ci", "tdmpc2:ci")
OBS_DIM, ACTION_DIM = 8, 2
ROWS = (8, 64, 1024)
"""Numbers of environments in the native vector environment."""
FEW, MANY = 8, (64, 1024)
"""Number of environments in Gymnasium's vector environments and in Stable-Baselines3's."""
DEFAULTS = {"device": "cpu", "precision": "fp32"}
"""Default options of every dream."""
SPELLS = 5
"""Each interface is timed in this many parts; the median is reported."""
BATCH, LENGTH = 16, 32
"""Batch size and sequence length in training and in reading."""
WARM_UP = 3


class Speed(NamedTuple):
    """One measurement."""

    what: str
    per_s: float
    unit: str
    how: str
    """The call that was timed, in enough detail to run it again."""
    times_real: float | None = None
    """Speed relative to the real environment on one core; dreams only."""


def bench(
    only: tuple[Part, ...] = PARTS,
    model: str = "Dream-CarRacing-v0",
    rows: tuple[int, ...] = ROWS,
    seconds: float = 2.0,
    threads: int | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    as_json: bool = False,
) -> None:
    """Measure the speed of dreams (through every interface), of training and of reading data.

    A checkout of the repository has more benchmarks: scripts/bench_*.py.

    Args:
        only: which benchmarks to run, such as `'["dream"]'`; by default dream, train and data.
        model: the dream to step: a model directory, or the name of a shipped model or dream.
        rows: numbers of environments in the native vector environment, such as `[8,1024]`.
        seconds: duration of each measurement.
        threads: number of torch threads; by default one per core.
        device: cpu, cuda, or auto for the best device available.
        precision: precision of dreams: fp32, bf16, or auto for the faster of the two.
        as_json: print one JSON object on stdout.
    """
    if seconds <= 0 or min(rows) < 1:
        raise ValueError(f"seconds must be above 0 and rows at least 1, got {seconds:g} and {list(rows)}")
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else check_threads(threads))
    try:
        place = str(find_device(device))
        options = {"device": place, "precision": precision}
        runs: dict[Part, Callable[[], Iterator[Speed]]] = {
            "dream": lambda: dream_speeds(model, rows, seconds, options),
            "train": lambda: train_speeds(seconds, place),
            "data": lambda: data_speeds(seconds),
        }
        console = Console(stderr=True)
        speeds = []
        for part in only:
            for speed in runs[part]():
                console.print(f"{speed.what}: {speed.per_s:,.0f} {speed.unit}/s", highlight=False, soft_wrap=True)
                speeds.append(speed)
        machine = {**describe(), "threads": torch.get_num_threads(), "torch": torch.__version__, "device": place}
    finally:
        torch.set_num_threads(before)
    if as_json:
        print_json({"machine": machine, "seconds": seconds, "speeds": [speed._asdict() for speed in speeds]})
        return
    table(("benchmark", "per second", "x real", "call"), map(cells, speeds))
    say(f"{machine['cpu']}, {machine['threads']} thread(s), {place}, torch {torch.__version__}")


def cells(speed: Speed) -> tuple[str, str, str, str]:
    """One row of the table."""
    ratio = "" if speed.times_real is None else f"{speed.times_real:,.3g}"
    return speed.what, f"{speed.per_s:,.0f} {speed.unit}", ratio, speed.how


def dream_speeds(model: str, rows: tuple[int, ...], seconds: float, options: dict[str, str]) -> Iterator[Speed]:
    """Time the real environment, alone and in processes, then its dream through every interface."""
    one_core = None
    for door in (*real_doors(model, torch.get_num_threads())[:2], *dream_doors(model, rows, options)):
        with closing(OpenDoor(door)) as opened:
            [rates] = by_turns({"": partial(opened.spell, seconds / SPELLS)}, seconds).values()
        per_s = median(rates)
        one_core = one_core or per_s
        what = ", ".join(filter(None, (door.way, f"{door.rows:,} row(s)", door.kwargs.get("obs"))))
        if door.whole_episodes:
            yield Speed(f"real, {what}", per_s, "steps", door.call)
        else:
            yield Speed(f"dream, {what}", per_s, "steps", door.call, per_s / one_core)


def dream_doors(model: str, rows: tuple[int, ...] = ROWS, options: Mapping[str, str] = DEFAULTS) -> list[Door]:
    """List every interface of a dream. A dream of images is listed twice, with latents and with images as
    observations.

    Args:
        rows: numbers of environments in the native vector environment.
        options: `device` and `precision` of the dream; defaults are left out of the printed call of `gym.make`.
    """
    dream_id, _, kwargs = ids_of(model)
    kwargs = {**kwargs, **{name: value for name, value in options.items() if value != DEFAULTS[name]}}
    shows_pixels = real_spec(load_artifact(model_path(model))).size is not None
    views = [{**kwargs, "obs": obs} for obs in ("latent", "pixels")] if shows_pixels else [kwargs]
    doors = []
    for view in views:
        doors += [Door("gym.make", dream_id, 1, view), Door("SyncVectorEnv", dream_id, FEW, view)]
        doors += [Door("native vector", dream_id, num, view) for num in rows]
        doors += [Door("make_vec_env", dream_id, FEW, view)]
    # Controllers learn from latents.
    return doors + [Door("DreamVecEnv", dream_id, num, views[0]) for num in MANY]


def real_doors(model: str, cores: int) -> list[Door]:
    """List the real environment with the model's preprocessing, on one core and on `cores`, and without
    it."""
    _, real_id, kwargs = ids_of(model)
    plain = real_spec(load_artifact(model_path(model))).id
    plain = f"ale_py:{plain}" if plain.startswith("ALE/") else plain
    return [
        Door("gym.make", real_id, 1, kwargs, whole_episodes=True),
        Door("AsyncVectorEnv", real_id, cores, kwargs, whole_episodes=True),
        Door("gym.make", plain, whole_episodes=True),
    ]


def ids_of(model: str) -> tuple[str, str, dict[str, Any]]:
    """Return the ids of a model's dream and of its real environment, and their common arguments."""
    for task in TASKS.values():
        if model in (task.dream_id, task.model):
            return task.dream_id, task.real_id, {}
    return "Dream-v0", "Real-v0", {"model": str(model_path(model).resolve())}


def train_speeds(seconds: float, device: str) -> Iterator[Speed]:
    """Time training updates of one small preset per family, on a replay buffer of vector observations."""
    buffer = create_random_buffer(10_000, (OBS_DIM,), ACTION_DIM, 100, 100, seed=0)
    for preset in TRAINED:
        net = create_world_model(preset, obs_shape=(OBS_DIM,), action_dim=ACTION_DIM)
        cfg = TrainingConfig(batch_size=BATCH, sequence_length=LENGTH, device=device, grad_clip=None)
        with tempfile.TemporaryDirectory() as folder:
            watch = _Stopwatch(seconds)
            Trainer(net, cfg, [watch], run_dir=folder).train(buffer)
        how = f"Trainer, {BATCH} windows of {LENGTH} steps, observations of {OBS_DIM}"
        yield Speed(f"train {preset}", watch.rate(), "updates", how)


class _Stopwatch(Callback):
    """Stop training after `seconds`; the first updates are not timed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stamps: list[float] = []

    def on_update(self, trainer: Trainer) -> None:
        self.stamps.append(time.perf_counter())
        if len(self.stamps) > WARM_UP + 1 and self.stamps[-1] - self.stamps[WARM_UP] >= self.seconds:
            trainer.stop("time is up")

    def rate(self) -> float:
        return (len(self.stamps) - 1 - WARM_UP) / (self.stamps[-1] - self.stamps[WARM_UP])


def data_speeds(seconds: float) -> Iterator[Speed]:
    """Time random windows of frames, from shards on disk and from a replay buffer in memory."""
    frames = BATCH * (LENGTH + 1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        episodes = [_moving_square(seed, 150) for seed in range(4)]
        write_shard(folder, "bench", episodes)
        data = Dataset(folder)
        size = f"{data.num_bytes / data.num_frames:,.0f} B per frame on disk"
        speed = frames * _rate(lambda: data.windows(BATCH, LENGTH, rng), seconds)
        yield Speed("read shards", speed, "frames", f"Dataset.windows({BATCH}, {LENGTH}), 64x64x3, {size}")
        data.close()
    buffer = ReplayBuffer(5000, (64, 64, 3), ACTION_DIM, np.uint8)
    for episode in episodes:
        buffer.add_episode(episode.obs, episode.act, episode.rew, terminated=True)
    speed = frames * _rate(lambda: buffer.sample(BATCH, LENGTH), seconds)
    yield Speed("sample replay", speed, "frames", f"ReplayBuffer.sample({BATCH}, {LENGTH}), 64x64x3")


def _moving_square(seed: int, steps: int) -> Episode:
    """Make frames that compress about as well as those of a game: a moving square on a still background."""
    rng = np.random.default_rng(seed)
    obs = np.broadcast_to(rng.integers(0, 256, (64, 64, 3), np.uint8), (steps + 1, 64, 64, 3)).copy()
    for t, (top, left) in enumerate(rng.integers(0, 56, (steps + 1, 2))):
        obs[t, top : top + 8, left : left + 8] = 255
    act = rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32)
    return Episode(obs, act, rng.normal(size=steps).astype(np.float32), True, False, seed, {})


def _rate(call: Callable[[], object], seconds: float) -> float:
    """Return calls per second."""
    for _ in range(WARM_UP):
        call()
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        call()
        calls += 1
    return calls / spent
