"""Damages what is on disk, in forked processes: `python drill_files.py kill|fuzz TRIES FOLDER SEED`.

`kill` ends a writer with SIGKILL at random moments; what it left must be whole every time. `fuzz` damages files; their
reader must find them intact, or name the file. It prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from policies.cmaes import CMAConfig, Evolution
from wm_agents import create_world_model
from wm_agents.data.dataset import Dataset, write_manifest, write_shard
from wm_agents.data.episode import Episode
from wm_agents.data.replay import ReplayBuffer
from wm_agents.models.saved import load_model, save_bare
from wm_agents.system.run_folder import read_metrics, start_run
from wm_agents.training import Trainer, TrainingConfig

torch.set_num_threads(1)
SPACES = {"obs_shape": (4,), "action_dim": 2, "action_type": "discrete"}
CMA = CMAConfig(population=4, rollouts=1, generations=9)
LIMIT_S, LIMIT_BYTES = 60, 4 << 30
RNG = np.random.default_rng(0)


class Target(NamedTuple):
    """Something on disk: how it is written (over itself), and how it is read in full."""

    write: Callable[[Path, int], object]
    """Writes into a folder; the number differs from call to call."""
    read: Callable[[Path], object]


def episodes(seed: int) -> list[Episode]:
    made = []
    for i in range(4):
        obs, act = RNG.normal(size=(41, 4)).astype(np.float32), RNG.integers(0, 2, 40)
        made.append(Episode(obs, act, np.ones(40, np.float32), True, False, seed + i, {}))
    return made


def write_shards(folder: Path, number: int) -> None:
    write_shard(folder, f"seed-{number % 3:07d}", episodes(10 * number), {"id": "CartPole-v1"})
    write_manifest(folder)


def read_shards(folder: Path) -> None:
    data = Dataset(folder)
    if list(data.iter_episodes()) == [] or data.skipped:
        raise ValueError(str(data.skipped))


def write_run(folder: Path, number: int) -> None:
    with start_run(folder, {"lr": 0.1}, {"collect": 1}) as run:
        run.metrics(number, {"x": 1.0})
        run.update(round=number)


def read_run(folder: Path) -> None:
    start_run(folder, {"lr": 0.1}, {"collect": 1}).close()
    read_metrics(folder / "metrics.jsonl")


def write_evolution(folder: Path, number: int) -> None:
    evolution = Evolution(np.zeros(6), CMA)
    for _ in range(number % 3 + 1):
        evolution.ask()
        evolution.tell(RNG.normal(size=4))
    evolution.save(folder / "evolution.json")


def trainer(folder: Path) -> Trainer:
    cfg = TrainingConfig(total_steps=2, batch_size=4, sequence_length=5, device="cpu", output_dir=str(folder))
    return Trainer(create_world_model("ensemble:default", **SPACES), cfg)


def write_buffer(folder: Path, number: int) -> None:
    buffer = ReplayBuffer(1000, (4,), 2)
    for ep in episodes(0):
        buffer.add_episode(ep.obs, ep.act, ep.rew, terminated=True)
    buffer.save(folder / "pole.npz")


TARGETS = {
    "model": Target(
        lambda folder, number: save_bare(
            folder / "m", create_world_model("ensemble:default", **SPACES, hidden=8 << number % 4)
        ),
        lambda folder: load_model(folder / "m"),
    ),
    "checkpoint": Target(
        lambda folder, number: trainer(folder).save_checkpoint(), lambda folder: trainer(folder).load_checkpoint()
    ),
    "shards": Target(write_shards, read_shards),
    "run folder": Target(write_run, read_run),
    "evolution": Target(write_evolution, lambda folder: Evolution.load(folder / "evolution.json", CMA)),
    "replay buffer": Target(write_buffer, lambda folder: ReplayBuffer.load(folder / "pole.npz").sample(2, 3)),
}


def fork(act: Callable[[], object]) -> int:
    """Run `act` in a fork with limits; its exit status is 0, or 1 after an error."""
    pid = os.fork()
    if pid:
        return pid
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(LIMIT_S)
        act()
        os._exit(0)
    except BaseException as error:
        Path(os.environ["ERROR_FILE"]).write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def kill(target: Target, tries: int, folder: Path, rng: random.Random) -> dict[str, object]:
    def forever() -> None:
        for number in range(10**6):
            target.write(folder, number)

    broken = []
    target.write(folder, 0)
    began = time.monotonic()
    target.write(folder, 1)
    once = time.monotonic() - began
    for _ in range(tries):
        pid = fork(forever)
        time.sleep(rng.uniform(0, 4 * once))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            target.read(folder)
        except Exception as error:
            broken.append(f"{type(error).__name__}: {error}")
    for number in range(3):  # A new save removes what a killed one of the same file has left; there are three shards.
        target.write(folder, number)
    left = [path.name for path in folder.rglob(".*") if path.suffix in (".tmp", ".old")]
    return {"kills": tries, "broken": broken, "left": left}


def damage(data: bytes, rng: random.Random) -> bytes:
    """`data` with one of several kinds of damage."""
    raw, at = bytearray(data), rng.randrange(len(data))
    kind = rng.choice(["bit", "bits", "cut", "longer", "zeros", "empty"])
    if kind == "bit":
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == "bits":
        for _ in range(8):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        raw = raw[:at]
    elif kind == "longer":
        raw += rng.randbytes(rng.randrange(1, 2000))
    elif kind == "zeros":
        raw[at : at + 300] = bytes(len(raw[at : at + 300]))
    elif kind == "empty":
        raw = bytearray()
    return bytes(raw)


def fuzz(target: Target, tries: int, folder: Path, rng: random.Random) -> dict[str, object]:
    target.write(folder / "whole", 0)
    files = [path.name for path in (folder / "whole").rglob("*") if path.suffix in SUFFIXES]
    found, unnamed = Counter[str](), []
    for _ in range(tries):
        shutil.rmtree(folder / "try", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "try")
        file = next((folder / "try").rglob(rng.choice(files)))
        file.write_bytes(damage(file.read_bytes(), rng))
        _, status = os.waitpid(fork(lambda: target.read(folder / "try")), 0)
        text = Path(os.environ["ERROR_FILE"]).read_text() if status else ""
        found["read" if status == 0 else "named" if file.name in text else "other"] += 1
        if status and file.name not in text:
            unnamed.append(f"{file.name}: {text or f'signal {status}'}"[:200])
    return {"tries": tries, **found, "unnamed": unnamed}


SUFFIXES = (".json", ".safetensors", ".h5", ".npz")


if __name__ == "__main__":
    what, tries, place, seed = sys.argv[1:]
    drill, rng, results = {"kill": kill, "fuzz": fuzz}[what], random.Random(seed), {}
    for name, target in TARGETS.items():
        folder = Path(place) / name.replace(" ", "-")
        (folder / "whole").mkdir(parents=True)
        os.environ["ERROR_FILE"] = str(Path(place) / "error")
        results[name] = drill(target, int(tries), folder, rng)
    print(json.dumps(results))
