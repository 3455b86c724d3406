"""Published scores of model-free agents, to compare a new score with."""

from __future__ import annotations

from typing import NamedTuple


class Reference(NamedTuple):
    """The score of an agent of Stable-Baselines3 in the real environment."""

    agent: str
    mean: float
    std: float
    steps: int
    """Environment steps of its training."""
    env: str
    """The version of the environment that it was trained in."""

    def __str__(self) -> str:
        return f"{self.agent}, {self.steps:,} steps of {self.env} (RL Zoo, one run)"


_ROWS = {
    "CartPole": Reference("SB3 DQN", 500.0, 0.0, 50_000, "CartPole-v1"),
    "Acrobot": Reference("SB3 QR-DQN", -69.1, 10.0, 100_000, "Acrobot-v1"),
    "Pendulum": Reference("SB3 TD3", -151.9, 90.2, 20_000, "Pendulum-v1"),
    "MountainCar": Reference("SB3 DQN", -100.8, 9.9, 120_000, "MountainCar-v0"),
    "MountainCarContinuous": Reference("SB3 SAC", 94.7, 1.1, 50_000, "MountainCarContinuous-v0"),
    "LunarLander": Reference("SB3 PPO", 242.1, 31.8, 1_000_000, "LunarLander-v2"),
    "LunarLanderContinuous": Reference("SB3 TQC", 278.0, 25.5, 500_000, "LunarLanderContinuous-v2"),
    "BipedalWalker": Reference("SB3 TQC", 329.8, 45.1, 500_000, "BipedalWalker-v3"),
    "BipedalWalkerHardcore": Reference("SB3 TQC", 235.2, 110.6, 2_000_000, "BipedalWalkerHardcore-v3"),
    "HalfCheetah": Reference("SB3 TQC", 12_089.9, 127.4, 1_000_000, "HalfCheetah-v3"),
    "Hopper": Reference("SB3 TQC", 3_754.2, 8.3, 1_000_000, "Hopper-v3"),
    "Ant": Reference("SB3 TD3", 5_813.3, 589.8, 1_000_000, "Ant-v3"),
    "Swimmer": Reference("SB3 TD3", 359.1, 1.2, 1_000_000, "Swimmer-v3"),
    "Walker2d": Reference("SB3 TD3", 4_717.8, 46.3, 1_000_000, "Walker2d-v3"),
    "Humanoid": Reference("SB3 TQC", 7_239.3, 1_647.5, 2_000_000, "Humanoid-v3"),
    "ALE/Pong": Reference("SB3 PPO", 21.0, 0.1, 10_000_000, "PongNoFrameskip-v4"),
    "ALE/Breakout": Reference("SB3 PPO", 398.0, 33.3, 10_000_000, "BreakoutNoFrameskip-v4"),
}
"""One of the best agents of each environment in benchmark.md of DLR-RM/rl-baselines3-zoo (commit 0088472)."""


def reference_of(env_id: str) -> Reference | None:
    """The published score for an environment, in any version of it, or None if none is listed.

    Args:
        env_id: a Gymnasium id, with or without its module.
    """
    return _ROWS.get(env_id.rpartition(":")[2].rpartition("-v")[0])
