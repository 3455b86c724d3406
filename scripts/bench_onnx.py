"""A dreamed step, decoding, and dreams of `gym.make` with `backend="onnx"`, by PyTorch and ONNX Runtime on one thread.

python scripts/bench_onnx.py                                             two dreams, 1 and 64 rows
python scripts/bench_onnx.py --models Dream-Breakout-v0 --rows 1 8 --repeats 9

Both are timed alternately, and the shortest time counts. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from wm_agents.models.onnx_graphs import Session
from wm_agents.pretrained import load_dream
from wm_agents.system.files import read_json
from wm_agents.web.export_folder import MARK
from wm_agents.web.onnx_export import export_onnx
from wm_envs.noise import RowStreams

MODELS = ("Dream-CarRacing-v0", "Dream-LunarLander-v0")
ENOUGH_S = 0.2
"""Seconds per measurement."""


def seconds(run: Callable[[], object]) -> float:
    """Mean time of a call."""
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < ENOUGH_S:
        run()
        calls += 1
    return spent / calls


def calls_of(model: str, rows: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Step and decoding of `rows` rows, by PyTorch and by the graphs in `folder`."""
    saved = load_dream(model)
    like = {key: leaf[:1].float().repeat_interleave(rows, 0) for key, leaf in saved.starts["begin"].items()}
    act = torch.zeros(rows, saved.model.actions)
    streams = RowStreams([np.random.default_rng(row) for row in range(rows)])
    for row in range(rows):
        streams.restart(row)
    inputs = read_json(folder / MARK, "an export")["graphs"]["step"]["inputs"]
    noise = torch.randn(rows, inputs["noise"]["shape"][1])
    latent = {f"latent_{key}": leaf.numpy() for key, leaf in like.items()}
    step_in = {**latent, "act": act.numpy(), "noise": noise.numpy(), "temperature": np.array(1.0, np.float32)}
    step, decode = (Session(folder / f"{name}.onnx") for name in ("step", "decode"))
    return {
        "step, PyTorch": lambda: saved.model.step(like, act, temperature=1.0, generator=streams),
        "step, ONNX": lambda: step(step_in),
        "decode, PyTorch": lambda: saved.model.decode(like),
        "decode, ONNX": lambda: decode(latent),
        "env, PyTorch": stepping(model, rows, "torch"),
        "env, ONNX": stepping(model, rows, "onnx"),
    }


def stepping(model: str, rows: int, backend: str) -> Callable[[], object]:
    """A step of the dream that `gym.make` gives for one row, and `gym.make_vec` for several."""
    act: Any
    if rows == 1:
        env = gym.make(model, backend=backend, horizon=None)
        act = env.action_space.sample()
        env.reset(seed=0)

        def step() -> None:
            *_, term, trunc, _ = env.step(act)
            if term or trunc:
                env.reset()

        return step
    envs = gym.make_vec(model, num_envs=rows, backend=backend)
    act = envs.action_space.sample()
    envs.reset(seed=0)
    return lambda: envs.step(act)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="ids of shipped dreams, or directories")
    parser.add_argument("--rows", nargs="+", type=int, default=(1, 64))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ("step, PyTorch", "step, ONNX", "decode, PyTorch", "decode, ONNX", "env, PyTorch", "env, ONNX")
    table = Table("dream", "rows", *names, title="microseconds on one thread; env: steps/s of all rows")
    for model in args.models:
        with tempfile.TemporaryDirectory() as tmp, torch.inference_mode():
            folder = Path(tmp) / "graphs"
            with torch.inference_mode(False):
                export_onnx(model, folder)
            for rows in args.rows:
                calls = calls_of(model, rows, folder)
                best: dict[str, Any] = dict.fromkeys(calls, float("inf"))
                for _ in range(args.repeats):
                    best = {name: min(best[name], seconds(run)) for name, run in calls.items()}
                times = [f"{1e6 * best[name]:,.0f}" for name in names[:4]]
                rates = [f"{rows / best[name]:,.0f}" for name in names[4:]]
                table.add_row(model, str(rows), *times, *rates)
    Console().print(table)


if __name__ == "__main__":
    main()
