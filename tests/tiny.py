"""A model of CarRacing that has learned nothing, saved as an artifact: small, quick, and the whole path real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from policies.linear import LinearPolicy
from policies.pool import WorkerPool
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import save_model
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

SPEC = RealSpec("CarRacing-v3", size=32, action_repeat=4, max_episode_steps=6)
SQUASH = ("tanh", "sigmoid", "clip")


def save_tiny(path: Path, spec: RealSpec = SPEC, *, horizon: int | None = 6, controller: bool = True) -> str:
    """Save one to `path`; every call makes the same."""
    env = make_real(spec)
    vision = "small" if len(env.observation_space.shape) == 3 else "identity"
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = VMC(VMCConfig(vision, z_dim=4, hidden=8, mixtures=2), env.observation_space, env.action_space).eval()
    env.close()
    with torch.no_grad():
        model.memory.gmm_linear.bias[-1] = -5.0  # Its dreams go on to their horizon.
    starts = {
        bank: {key: torch.randn(8, leaf.shape[1], generator=rng) for key, leaf in model.initial(1).items()}
        for bank in ("begin", "anywhere")
    }
    squash = SQUASH if spec.id == SPEC.id else None
    outs = model.memory.actions
    weights = np.random.default_rng(0).normal(size=(outs, model.feat_dim + 1))
    policy = LinearPolicy(model.act_space, weights, squash) if controller else None
    save_model(path, model, spec, starts, horizon=horizon, card="# tiny\n", policy=policy)
    return str(path)


def work_here(patch: pytest.MonkeyPatch) -> None:
    """Run the tasks of every pool in this process: workers take seconds to start."""
    plain = WorkerPool.__init__
    patch.setattr(WorkerPool, "__init__", lambda self, shared, procs: plain(self, shared, 0))
