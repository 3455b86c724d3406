"""Checks that the same seed gives the same dream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import nn

from policies.dists import TwoHot
from policies.policy import sample_actions
from wm_agents.evaluation.subject import Subject
from wm_envs.dream import DreamVectorEnv


class Determinism(NamedTuple):
    """The results of the seed checks."""

    repeats: bool
    """The same seed repeats the same dream exactly."""
    rows_alone: bool
    """Row i with seed s equals the single dream with seed s + i, up to rounding."""
    worst: float
    """Largest difference between a row and its single dream."""


def check_seeds(subject: Subject, rows: int = 4, steps: int = 20, seed: int = 7) -> Determinism:
    """Dream twice with the same seed, and each row alone, with the same random actions."""
    rng = np.random.default_rng(seed)
    acts = [sample_actions(subject.model.act_space, rows, rng) for _ in range(steps)]
    first, again = (_trace(subject, acts, seed) for _ in range(2))
    alone = np.concatenate([_trace(subject, [act[i : i + 1] for act in acts], seed + i) for i in range(rows)], 1)
    off, slack = np.abs(alone - first), np.full(first.shape[-1], 1e-3)
    if isinstance(subject.model, nn.Module) and any(isinstance(part, TwoHot) for part in subject.model.modules()):
        slack[-3] = 1e-2  # With bins up to e^20, rounding of a logit changes a reward by thousandths.
    near = bool((off <= slack + 1e-3 * np.abs(first)).all())
    return Determinism(bool(np.array_equal(first, again)), near, float(off.max()))


def _trace(subject: Subject, acts: Sequence[NDArray[Any]], seed: int) -> NDArray[np.float64]:
    """(steps + 1, rows, F + 3): feat, reward, term and trunc."""
    envs = DreamVectorEnv(
        subject.model,
        subject.starts,
        len(acts[0]),
        subject.dream,
        obs="latent",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    obs, _ = envs.reset(seed=seed)
    trace = [np.concatenate([obs, np.zeros((len(obs), 3))], 1)]
    for act in acts:
        obs, rew, term, trunc, _ = envs.step(act)
        trace.append(np.concatenate([obs, rew[:, None], term[:, None], trunc[:, None]], 1))
    return np.stack(trace)
