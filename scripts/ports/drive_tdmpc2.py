"""One update, or one plan, of the official TD-MPC2 (github.com/nicklashansen/tdmpc2) with given sizes, on any device.

It is compiled unless its config disables this.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from stopwatch import Job, Timed, main

ON_CPU = {b"cuda:0": b"cpu", b"capturable=True": b"capturable=False"}
"""The names of devices in its source, and options of Adam that need a GPU."""


class OnCPU(SourceFileLoader):
    """Loads a module with replacements for the words that prevent it from running on a CPU."""

    def get_data(self, path: str) -> bytes:
        if not path.endswith(".py"):
            raise OSError(f"no bytecode is read, got {path}")
        data = super().get_data(path)
        for its, ours in ON_CPU.items():
            data = data.replace(its, ours)
        return data

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write no bytecode of it."""


class Finder(PathFinder):
    """Finds the modules of the port, for `OnCPU` to load."""

    root = ""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        spec = super().find_spec(fullname, path, target)
        if spec is None or not (spec.origin or "").startswith(cls.root) or spec.origin is None:
            return None
        spec.loader = OnCPU(fullname, spec.origin)
        return spec


def build(job: Job) -> Timed:
    """The agent of its own config for one task with vectors, with the given sizes."""
    root = str(Path(job.path) / "tdmpc2")
    sys.path.insert(0, root)
    if job.device == "cpu":
        Finder.root = root
        sys.meta_path.insert(0, Finder)
    torch.set_float32_matmul_precision("high")
    agent = import_module("tdmpc2").TDMPC2(make_cfg(job, root))
    params = sum(p.numel() for p in agent.model.parameters() if p.requires_grad)
    if job.plan:
        obs = torch.randn(job.obs_shape)

        def plan() -> None:
            agent.act(obs, eval_mode=True)

        return Timed(plan, params)
    batch = make_batch(job)
    buffer = SimpleNamespace(sample=lambda: batch)
    return Timed(lambda: agent.update(buffer)["total_loss"], params)


def make_cfg(job: Job, root: str) -> Any:
    parser, omegaconf = import_module("common.parser"), import_module("omegaconf")
    cfg, sizes = omegaconf.OmegaConf.load(Path(root) / "config.yaml"), job.sizes
    cfg.update(
        {
            "num_enc_layers": sizes["num_hidden_layers"],
            "enc_dim": sizes["enc_dim"],
            "mlp_dim": sizes["hidden_dim"],
            "latent_dim": sizes["latent_dim"],
            "num_q": sizes["num_q_networks"],
            "batch_size": job.batch,
            "horizon": job.length,
            "episodic": sizes["episodic"],
            "episode_length": sizes["episode_length"],
            "obs_shape": {"state": list(job.obs_shape)},
            "action_dim": job.actions,
            "multitask": False,
            "task_dim": 0,
            "bin_size": (cfg.vmax - cfg.vmin) / (cfg.num_bins - 1),
            "compile": job.compiled,
        }
    )
    return parser.cfg_to_dataclass(cfg)


def make_batch(job: Job) -> tuple[Any, ...]:
    """Time first: obs, action, reward, terminated, task."""
    T, B, device = job.length, job.batch, job.device
    obs, act = torch.randn(T + 1, B, *job.obs_shape, device=device), torch.rand(T, B, job.actions, device=device)
    return obs, 2 * act - 1, torch.randn(T, B, 1, device=device), torch.zeros(T, B, 1, device=device), None


if __name__ == "__main__":
    main(build, sys.argv[1])
