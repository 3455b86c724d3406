"""`wm bench`: how fast dreams, training and data are on this machine, through the same calls that everyone uses."""

from __future__ import annotations

import json
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
from wm_agents.cli.printing import say, table
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
"""Of the native vector environment."""
FEW, MANY = 8, (64, 1024)
"""Rows of the doors that step one environment after another, and of Stable-Baselines3's."""
DEFAULTS = {"device": "cpu", "precision": "fp32"}
"""Of every dream."""
SPELLS = 5
"""Into which the time of a door is cut; the median counts."""
BATCH, LENGTH = 16, 32
"""Windows a batch and their steps, of training and of reading."""
WARM_UP = 3


class Speed(NamedTuple):
    """One measurement."""

    what: str
    per_s: float
    unit: str
    how: str
    """What was run, in enough words to run it again."""
    times_real: float | None = None
    """Of a dream: as many times the steps of its real environment on one core."""


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
    """Measure dream steps through every interface, training updates and the reading of data, each for a few seconds.

    scripts/bench_*.py measure more, in a checkout.

    Args:
        only: what is measured, `'["dream"]'`; dream, train and data unless given.
        model: whose dream is stepped: a model directory, or the name of a shipped model or dream.
        rows: of the native vector environment, `[8,1024]`.
        seconds: for each measurement.
        threads: of torch; all cores unless given.
        device: cpu, cuda, or auto for the best there is.
        precision: of dreams: fp32, bf16, or auto for the faster of the two.
        as_json: one JSON object on stdout.
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
        print(json.dumps({"machine": machine, "seconds": seconds, "speeds": [speed._asdict() for speed in speeds]}))
        return
    table(("what", "a second", "x real", "how"), map(cells, speeds))
    say(f"{machine['cpu']}, {machine['threads']} thread(s), {place}, torch {torch.__version__}")


def cells(speed: Speed) -> tuple[str, str, str, str]:
    """A row of the table."""
    ratio = "" if speed.times_real is None else f"{speed.times_real:,.3g}"
    return speed.what, f"{speed.per_s:,.0f} {speed.unit}", ratio, speed.how


def dream_speeds(model: str, rows: tuple[int, ...], seconds: float, options: dict[str, str]) -> Iterator[Speed]:
    """Steps of the real environment, alone and in processes, then of its dream through every door."""
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
    """Every door of a dream; for a dream of pixels, once with latents and once with pixels.

    Args:
        rows: of the native vector environment.
        options: `device` and `precision` of the dream; those at their defaults are left out.
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
    """The real environment of a dream as the model sees it, alone and on `cores` cores, and its plain id alone."""
    _, real_id, kwargs = ids_of(model)
    plain = real_spec(load_artifact(model_path(model))).id
    plain = f"ale_py:{plain}" if plain.startswith("ALE/") else plain
    return [
        Door("gym.make", real_id, 1, kwargs, whole_episodes=True),
        Door("AsyncVectorEnv", real_id, cores, kwargs, whole_episodes=True),
        Door("gym.make", plain, whole_episodes=True),
    ]


def ids_of(model: str) -> tuple[str, str, dict[str, Any]]:
    """The ids of a model's dream and of its real environment, and the arguments that both take."""
    for task in TASKS.values():
        if model in (task.dream_id, task.model):
            return task.dream_id, task.real_id, {}
    return "Dream-v0", "Real-v0", {"model": str(model_path(model).resolve())}


def train_speeds(seconds: float, device: str) -> Iterator[Speed]:
    """Updates of the trainer on a replay buffer of vectors, each family by a small preset."""
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
    """Stops a training after so many seconds; the first updates do not count."""

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
    """Random windows of frames, from shards on disk and from a replay buffer in memory."""
    frames = BATCH * (LENGTH + 1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        episodes = [_moving_square(seed, 150) for seed in range(4)]
        write_shard(folder, "bench", episodes)
        data = Dataset(folder)
        size = f"{data.num_bytes / data.num_frames:,.0f} B a frame on disk"
        speed = frames * _rate(lambda: data.windows(BATCH, LENGTH, rng), seconds)
        yield Speed("read shards", speed, "frames", f"Dataset.windows({BATCH}, {LENGTH}), 64x64x3, {size}")
        data.close()
    buffer = ReplayBuffer(5000, (64, 64, 3), ACTION_DIM, np.uint8)
    for episode in episodes:
        buffer.add_episode(episode.obs, episode.act, episode.rew, terminated=True)
    speed = frames * _rate(lambda: buffer.sample(BATCH, LENGTH), seconds)
    yield Speed("sample replay", speed, "frames", f"ReplayBuffer.sample({BATCH}, {LENGTH}), 64x64x3")


def _moving_square(seed: int, steps: int) -> Episode:
    """Frames that compress about as those of a game do: a square on a still ground."""
    rng = np.random.default_rng(seed)
    obs = np.broadcast_to(rng.integers(0, 256, (64, 64, 3), np.uint8), (steps + 1, 64, 64, 3)).copy()
    for t, (top, left) in enumerate(rng.integers(0, 56, (steps + 1, 2))):
        obs[t, top : top + 8, left : left + 8] = 255
    act = rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32)
    return Episode(obs, act, rng.normal(size=steps).astype(np.float32), True, False, seed, {})


def _rate(call: Callable[[], object], seconds: float) -> float:
    """Calls a second."""
    for _ in range(WARM_UP):
        call()
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        call()
        calls += 1
    return calls / spent
