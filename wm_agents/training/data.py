"""Random training data, for tests without an environment."""

from __future__ import annotations

import numpy as np

from wm_agents.data.replay import ReplayBuffer
from wm_agents.spaces import action_space_of
from wm_envs.action import decode_action, encode_action

__all__ = ["ReplayBuffer", "create_random_buffer"]


def create_random_buffer(
    capacity: int = 10_000,
    obs_shape: tuple[int, ...] = (4,),
    action_dim: int = 2,
    num_episodes: int = 100,
    episode_length: int = 100,
    seed: int | None = None,
    action_type: str = "continuous",
) -> ReplayBuffer:
    """A buffer of random episodes: observations, actions and rewards are standard normal; all episodes
    terminate.

    With `action_type="discrete"`, actions are one-hot vectors.

    Raises:
        ConfigurationError: unknown action type, or invalid `action_dim`.
    """
    act_space = action_space_of(action_dim, action_type)
    rng = np.random.default_rng(seed)
    buffer = ReplayBuffer(capacity, obs_shape, action_dim)
    for _ in range(num_episodes):
        obs, act, rew = (
            rng.standard_normal((episode_length + more, *shape), np.float32)
            for more, shape in ((1, obs_shape), (0, (action_dim,)), (0, ()))
        )
        if action_type == "discrete":
            act = encode_action(act_space, decode_action(act_space, act))
        buffer.add_episode(obs, act, rew, terminated=True)
    return buffer
