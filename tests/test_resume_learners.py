"""The real learners, stopped and resumed on a CPU, end as if they had not been: to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.actor_critic import ActorCriticConfig
from wm_agents.factory import create_world_model
from wm_agents.models.dreamerv3 import DreamerV3
from wm_agents.models.model import Model
from wm_agents.training import Trainer, TrainingConfig
from wm_agents.training.data import create_random_buffer
from wm_agents.training.dreamer_agent import DreamerLearner

# What online training tells each, in little.
SMALL = TrainingConfig(total_steps=6, batch_size=4, sequence_length=8, log_interval=1, device="cpu")
CFGS = {
    "dreamerv3": SMALL.replace(optimizer="laprop", grad_clip=None, warmup_steps=5),
    "tdmpc2": SMALL.replace(optimizer="adam", grad_clip=20.0, batch_size=64, sequence_length=3),
}
FOLLOWS = {"dreamerv3": ("behaviour.slow.", "behaviour.scale."), "tdmpc2": ("slow_qs.", "value_scale")}
"""What no optimizer moves."""


def make(family: str, seed: int) -> Model | DreamerLearner:
    """A learner, its weights stirred, most of all those at zero: values must differ by more than 1 to have a scale."""
    torch.manual_seed(seed)
    model = create_world_model(f"{family}:ci", obs_shape=(4,), action_dim=2)
    learner: Model | DreamerLearner = model
    if isinstance(model, DreamerV3):
        learner = DreamerLearner(model, ActorCriticConfig(units=16, layers=1, horizon=3, return_rate=0.5))
    with torch.no_grad():
        for p in learner.parameters():
            p.add_((0.1 if p.any() else 1.0) * torch.randn_like(p))
    return learner


def trainer_of(family: str, seed: int, precise: bool, path: Path) -> Trainer:
    """A trainer in a process of its own, as far as random numbers can tell."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return Trainer(make(family, seed), CFGS[family].replace(mixed_precision=not precise), run_dir=path)


def everything(trainer: Trainer) -> dict[str, Any]:
    """Weights and buffers, the optimizer's numbers, and what random numbers come next."""
    found: dict[str, Any] = dict(trainer.model.state_dict())
    optimizer = trainer.optimizer.state_dict()
    for i, slots in optimizer["state"].items():
        found |= {f"optimizer/{i}/{name}": value for name, value in slots.items()}
    rates = [group["lr"] for group in optimizer["param_groups"]]
    return {**found, "rates": rates, "torch": torch.get_rng_state(), "numpy": np.random.random(3).tolist()}


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("precise", [True, False], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", CFGS)
def test_a_resumed_learner_is_the_one_that_continued(
    tmp_path: Path, native_bf16: None, family: str, precise: bool
) -> None:
    buffer = create_random_buffer(1000, (4,), 2, num_episodes=20, episode_length=12, seed=0)
    whole = trainer_of(family, 1, precise, tmp_path / "whole")
    begun = {name: t.clone() for name, t in whole.model.state_dict().items()}
    whole.train(buffer)
    want = everything(whole)
    trainer_of(family, 1, precise, tmp_path / "parts").train(buffer, num_steps=3)
    again = trainer_of(family, 2, precise, tmp_path / "parts")
    again.train(buffer, num_steps=3, resume=True)
    got = everything(again)
    assert whole.update == again.update == 6 and got.keys() == want.keys()
    assert not [name for name in want if not same(got[name], want[name])]
    moved = {name for name in begun if not torch.equal(begun[name], want[name])}
    assert all(any(name.startswith(part) for name in moved) for part in FOLLOWS[family])
