"""Losses, gradients and values of plans of the official TD-MPC2 (github.com/nicklashansen/tdmpc2, e9f5932), for given
weights: the numbers of tests/test_golden.py.

    python scripts/ports/golden_tdmpc2.py CHECKOUT     # needs tensordict
"""

from __future__ import annotations

import json
import sys
import zlib
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

OBS, ACT, HIDDEN, LATENT, QS = 3, 2, 24, 16, 3
ROWS, STEPS, PLANS = 4, 3, 6
NETS = {
    "encoder": (OBS, HIDDEN, LATENT),
    "dynamics": (LATENT + ACT, HIDDEN, HIDDEN, LATENT),
    "reward": (LATENT + ACT, HIDDEN, HIDDEN, 101),
    "termination": (LATENT, HIDDEN, HIDDEN, 1),
    "pi": (LATENT, HIDDEN, HIDDEN, 2 * ACT),
    "qs": (LATENT + ACT, HIDDEN, HIDDEN, 101),
    "slow_qs": (LATENT + ACT, HIDDEN, HIDDEN, 101),
}
"""Widths of the layers of each network."""
NORMED = ("encoder", "dynamics")
"""Networks whose last layer has a norm too."""


def fill(name: str, *shape: int) -> Tensor:
    """Normal numbers that depend only on `name`."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def weights(net: str) -> list[dict[str, Tensor]]:
    """The layers of a network: weight (out, in), bias, and gain and shift of the norm; of Q functions, one of each."""
    dims, layers = NETS[net], []
    many = [QS] if "qs" in net else []
    for i, (wide, high) in enumerate(pairwise(dims)):
        layer = {
            "weight": fill(f"{net}.{i}.weight", *many, high, wide) / wide**0.5,
            "bias": 0.1 * fill(f"{net}.{i}.bias", *many, high),
        }
        if i < len(dims) - 2 or net in NORMED:
            layer["gain"] = 1 + 0.1 * fill(f"{net}.{i}.gain", *many, high)
            layer["shift"] = 0.1 * fill(f"{net}.{i}.shift", *many, high)
        layers.append(layer)
    return layers


def batch() -> dict[str, Tensor]:
    """Windows, rows first."""
    term = torch.zeros(ROWS, STEPS)
    term[0, -1] = 1
    return {
        "obs": fill("obs", ROWS, STEPS + 1, OBS),
        "act": torch.tanh(fill("act", ROWS, STEPS, ACT)),
        "rew": fill("rew", ROWS, STEPS),
        "term": term,
        "plans": torch.tanh(fill("plans", PLANS, STEPS, ACT)),
    }


def settings() -> SimpleNamespace:
    """The published settings, with small networks; a learning rate of 0 leaves the weights as they are."""
    return SimpleNamespace(
        obs="state", obs_shape={"state": (OBS,)}, action_dim=ACT, task_dim=0, multitask=False, num_enc_layers=2,
        enc_dim=HIDDEN, mlp_dim=HIDDEN, latent_dim=LATENT, num_q=QS, num_bins=101, vmin=-10, vmax=10, bin_size=0.2,
        simnorm_dim=8, dropout=0.0, log_std_min=-10, log_std_max=2, episodic=True, horizon=STEPS, batch_size=ROWS,
        num_samples=PLANS, iterations=6, lr=0.0, enc_lr_scale=0.3, grad_clip_norm=20.0, tau=0.01, rho=0.7,
        discount_denom=5, discount_min=0.95, discount_max=0.99, episode_length=200, entropy_coef=1e-4,
        consistency_coef=20, reward_coef=0.1, value_coef=0.1, termination_coef=1, compile=False,
    )  # fmt: skip


def take(params: Any, net: str) -> None:
    """Copy the weights of a network to parameters that are found by (layer, part...)."""
    names = {"weight": ("weight",), "bias": ("bias",), "gain": ("ln", "weight"), "shift": ("ln", "bias")}
    for i, layer in enumerate(weights(net)):
        for part, value in layer.items():
            params(i, *names[part]).data.copy_(value)


def main(checkout: str) -> None:
    """Print the numbers as JSON."""
    from drive_tdmpc2 import Finder

    Finder.root = str(Path(checkout) / "tdmpc2")
    sys.path.insert(0, Finder.root)
    sys.meta_path.insert(0, Finder)
    import_module("common.world_model").WorldModel.to = lambda self, device: self  # It is on the CPU.
    agent = import_module("tdmpc2").TDMPC2(settings())
    model = agent.model

    def of_modules(net: Any) -> Any:
        def find(layer: int, *names: str) -> Tensor:
            found = net[layer]
            for name in names:
                found = getattr(found, name)
            return found

        return find

    take(of_modules(model._encoder["state"]), "encoder")
    for net in ("dynamics", "reward", "termination", "pi"):
        take(of_modules(getattr(model, f"_{net}")), net)
    take(lambda i, *names: model._Qs.params[(str(i), *names)], "qs")
    take(lambda i, *names: model._target_Qs_params[(str(i), *names)], "slow_qs")
    # No noise, and the first two Q functions.
    torch.randn_like, torch.randperm = torch.zeros_like, torch.arange
    data = batch()
    z = model.encode(data["obs"][:1, 0], None).repeat(PLANS, 1)
    values = agent._estimate_value(z, data["plans"].transpose(0, 1), None)[:, 0]
    obs, act, rew, term = (data[name].transpose(0, 1) for name in ("obs", "act", "rew", "term"))
    info = agent._update(obs, act, rew[..., None], term[..., None])
    names = (
        "consistency_loss", "reward_loss", "value_loss", "termination_loss", "total_loss", "pi_loss", "grad_norm",
        "pi_grad_norm", "pi_scale",
    )  # fmt: skip
    print(json.dumps({**{name: float(info[name]) for name in names}, "plans": values.tolist()}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
