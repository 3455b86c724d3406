"""A model of CarRacing that has learned nothing, saved as an artifact: small, quick, and the whole path real."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from policies import play
from policies.linear import LinearPolicy
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


class ArenaHere:
    """`policies.play.Arena` without its processes, which take seconds to start."""

    def __init__(self, spec: RealSpec, make_policy: play.MakePolicy, procs: int = 2) -> None:
        self.spec, self.make_policy = spec, make_policy

    def play(self, jobs: Iterable[play.Job]) -> Iterator[play.Played]:
        for i, job in enumerate(jobs):
            play._stage = play.Stage(self.spec, self.make_policy, _Never())  # type: ignore[arg-type]
            yield play.play_job(i, job)

    def __enter__(self) -> ArenaHere:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        play._stage = None


class _Never:
    def is_set(self) -> bool:
        return False


def play_here(
    spec: RealSpec, make_policy: play.MakePolicy, jobs: Iterable[play.Job], procs: int = 2
) -> Iterator[play.Played]:
    with ArenaHere(spec, make_policy, procs) as arena:
        yield from arena.play(jobs)
