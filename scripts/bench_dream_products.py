"""Dream steps per second of the public `step`, compared with the matrix products of the same model alone.

python scripts/bench_dream_products.py                       the shipped CarRacing dream, on all cores
python scripts/bench_dream_products.py --threads 1 --seconds 1 --rows 1024
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table

from wm_agents.errors import ConfigurationError
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import load_model, load_starts
from wm_agents.system.hardware import check_threads, describe
from wm_envs.dream import DreamVectorEnv
from wm_envs.precision import PRODUCTS, use_bf16
from wm_envs.world_model import Latent

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BARS = {"fp32": 150_000, "bf16": 400_000}  # Steps a second of 1,024 rows on two free cores.
DRIFT_AFTER = (1, 10, 50)


def load(name: str) -> tuple[str, VMC, dict[str, Latent]]:
    """The model `name`, or an untrained one of the same size if it is not stored."""
    try:
        model, artifact = load_model(name)
        return name, model, load_starts(artifact)
    except FileNotFoundError as error:
        print(f"{error}; measuring an untrained model of the default sizes instead", file=sys.stderr)
    torch.manual_seed(0)
    low, high = np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)
    model = VMC(VMCConfig(), spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Box(low, high)).eval()
    with torch.no_grad():
        model.memory.gmm_linear.bias[-1] = -8  # Its dreams do not end by chance.
    return (
        "untrained",
        model,
        {"begin": {key: torch.randn(512, leaf.shape[1]) for key, leaf in model.initial(1).items()}},
    )


def make_dreams(model: VMC, starts: dict[str, Latent], num: int, precision: str) -> DreamVectorEnv:
    return DreamVectorEnv(model, starts, num, obs="latent", precision=precision, autoreset_mode=AutoresetMode.SAME_STEP)


def rates(first: Callable[[], object], second: Callable[[], object], num: int, seconds: float) -> list[float]:
    """Rows per second of two functions that process `num` rows, called alternately, so that other processes slow
    both equally."""
    calls, spent = [0, 0], [0.0, 0.0]
    first(), second()  # The first calls are slow and not counted.
    while min(spent) < seconds:
        for i, function in enumerate([first, second]):
            began = time.perf_counter()
            while time.perf_counter() - began < 0.1:
                function()
                calls[i] += 1
            spent[i] += time.perf_counter() - began
    return [num * n / s for n, s in zip(calls, spent)]


def dream_step(model: VMC, starts: dict[str, Latent], num: int, precision: str) -> Callable[[], object]:
    envs = make_dreams(model, starts, num, precision)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = envs.action_space.sample()
    return lambda: envs.step(actions)


def bare_step(model: VMC, num: int, precision: str) -> Callable[[], object]:
    """The minimum work of a dream step: its linear layers alone, with weights and inputs in the right dtype."""
    memory, dtype = model.memory, DTYPES[precision]
    joined = torch.cat([memory.rnn.weight_ih_l0, memory.rnn.weight_hh_l0], dim=1)
    gates, gates_bias = joined.to(dtype), memory.rnn.bias_ih_l0.to(dtype)
    head, head_bias = memory.gmm_linear.weight.to(dtype), memory.gmm_linear.bias.to(dtype)
    x, h = torch.randn(num, joined.shape[1]).to(dtype), torch.randn(num, head.shape[1]).to(dtype)
    return torch.inference_mode()(lambda: (F.linear(x, gates, gates_bias), F.linear(h, head, head_bias)))


def drift(model: VMC, starts: dict[str, Latent], num: int) -> Table:
    """The difference of bf16 and fp32 dreams with the same seed and actions."""
    runs = []
    for precision in DTYPES:
        envs = make_dreams(model, starts, num, precision)
        envs.reset(seed=0)
        envs.action_space.seed(0)
        steps = [envs.step(envs.action_space.sample())[:2] for _ in range(max(DRIFT_AFTER))]
        runs.append([np.stack(part) for part in zip(*steps)])
    (feat, rew), (feat_bf16, rew_bf16) = runs
    table = Table("after", "feat max", "feat mean", "reward max", "reward mean", "summed reward, relative")
    for t in DRIFT_AFTER:
        far, off = np.abs(feat[t - 1] - feat_bf16[t - 1]), np.abs(rew[t - 1] - rew_bf16[t - 1])
        total, other = rew[:t].sum(0).mean(), rew_bf16[:t].sum(0).mean()
        relative = abs(other - total) / max(abs(total), 1e-9)
        table.add_row(f"{t}", *(f"{x:.2g}" for x in (far.max(), far.mean(), off.max(), off.mean())), f"{relative:.2%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Dream-CarRacing-v0", help="id of a shipped dream, or a directory")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; all cores by default")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    args = parser.parse_args()
    try:
        torch.set_num_threads(torch.get_num_threads() if args.threads is None else check_threads(args.threads))
    except ConfigurationError as error:
        parser.error(str(error))
    console = Console(stderr=args.json)
    name, model, starts = load(args.model)
    machine = {**describe(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    console.print(machine)
    console.print(f"{name}: feat {model.feat_dim}, obs='latent', seed 0, {args.seconds:g} s each")

    precisions = [p for p in DTYPES if p == "fp32" or use_bf16("auto", PRODUCTS, model.device)]
    table = Table("rows", "type", "dream steps/s", "bare products/s", "ratio", "bar (two free cores)")
    results = []
    for num in args.rows:
        for precision in precisions:
            steps = dream_step(model, starts, num, precision), bare_step(model, num, precision)
            dream, bare = rates(*steps, num, args.seconds)
            results.append({"rows": num, "type": precision, "dream_sps": dream, "bare_sps": bare})
            bar = f"{BARS[precision]:,}" if num == 1024 else ""
            table.add_row(f"{num:,}", precision, f"{dream:,.0f}", f"{bare:,.0f}", f"{dream / bare:.0%}", bar)
    console.print(table)
    if "bf16" in precisions:
        console.print("bf16 against fp32, 1,024 dreams of the same seeds and actions:")
        console.print(drift(model, starts, 1024))
    if args.json:
        print(json.dumps({"model": name, "machine": machine, "seconds": args.seconds, "results": results}))


if __name__ == "__main__":
    main()
