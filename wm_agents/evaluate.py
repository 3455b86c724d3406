"""What a policy scores in the real environment and in the dream, and the gap between the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from policies.play import Job, play
from policies.policy import Policy
from wm_envs.registry import RealSpec


class Score(NamedTuple):
    """Undiscounted returns of single episodes."""

    returns: list[float]
    steps: int
    """Agent steps taken in all."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Spread of single episodes (sample standard deviation)."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def ci95(self) -> float:
        """Half width of the 95 % interval of the mean."""
        return 1.96 * self.std / math.sqrt(len(self.returns))


def evaluate_real(spec: RealSpec, make_policy: Callable[[], Policy], seeds: Sequence[int], procs: int = 2) -> Score:
    """Play one real episode a seed; returns are in the order of `seeds`."""
    played = sorted(play(spec, make_policy, [Job(seed) for seed in seeds], procs))
    return Score([p.ret for p in played], sum(p.steps for p in played))
