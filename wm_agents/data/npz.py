"""Converts between shards and the npz file of a replay buffer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from wm_agents.data.dataset import Dataset, write_manifest, write_shard
from wm_agents.data.episode import UNKNOWN_SEED, Episode
from wm_agents.data.replay import ReplayBuffer
from wm_agents.spaces import spaces_of
from wm_envs.action import act_dim, decode_action
from wm_envs.real import probe
from wm_envs.registry import RealSpec
from wm_envs.trust import check_trusted

SHARD_EPISODES = 32


def shards_to_npz(root: Path, path: Path, env_id: str | None = None) -> ReplayBuffer:
    """Write all episodes under `root` to one npz for `ReplayBuffer.load`, with encoded actions.

    Raises:
        ValueError: the shards do not name their environment, and `env_id` is not given.
    """
    data = Dataset(root)
    act_space = _action_space(data.spec, env_id, root)
    buffer = ReplayBuffer(data.num_steps, data.obs_shape, act_dim(act_space), data.shards[0].obs_dtype)
    for episode in data.iter_episodes():
        buffer.add(episode, act_space)
    data.close()
    buffer.save(path)
    return buffer


def npz_to_shards(path: Path, root: Path, env_id: str) -> Dataset:
    """Write the episodes of a replay buffer's npz to shards under `root`, with actions decoded for `env_id`.

    A buffer stores no seeds and no infos. An episode that is not terminated counts as truncated.

    Raises:
        ValueError: the spaces of the environment do not match the npz.
    """
    obs_space, act_space = spaces_of(env_id)
    buffer = ReplayBuffer.load(path)
    if buffer.obs_shape != obs_space.shape or buffer.action_dim != act_dim(act_space):
        raise ValueError(
            f"{path} contains observations {buffer.obs_shape} and actions of width {buffer.action_dim}, but "
            f"{env_id} has {obs_space.shape} and width {act_dim(act_space)}; name the environment of the data"
        )
    episodes = _episodes(buffer, act_space)
    spec: dict[str, Any] = {}
    if len(obs_space.shape or ()) <= 1:
        spec = RealSpec(env_id).to_dict()
    number = 0
    while part := list(islice(episodes, SHARD_EPISODES)):
        write_shard(root, f"npz-{number:06d}", part, spec)
        number += len(part)
    write_manifest(root)
    return Dataset(root)


def _action_space(spec: dict[str, Any], env_id: str | None, root: Path) -> gym.Space[Any]:
    """The action space of the shards under `root`: that of `env_id`, or of the environment that they name.

    Raises:
        ValueError: neither is known.
    """
    if env_id is not None:
        return spaces_of(env_id)[1]
    if not spec:
        raise ValueError(f"the shards in {root} do not name their environment; give it with --env ID")
    check_trusted(str(spec.get("id")), root, spec.get("wrapper"))
    return probe(RealSpec.from_dict(spec)).act_space


def _episodes(buffer: ReplayBuffer, act_space: gym.Space[Any]) -> Iterator[Episode]:
    """The episodes of the buffer, from its saved arrays, which have one row per frame."""
    with tempfile.TemporaryDirectory() as tmp:
        buffer.save(Path(tmp) / "all.npz")
        with np.load(Path(tmp) / "all.npz", allow_pickle=False) as file:
            rows = {name: file[name] for name in ("obs", "actions", "rewards", "terminated", "first", "last")}
    for begin, end in zip(np.flatnonzero(rows["first"]), np.flatnonzero(rows["last"])):
        term = bool(rows["terminated"][end - 1])
        act = decode_action(act_space, rows["actions"][begin:end])
        yield Episode(rows["obs"][begin : end + 1], act, rows["rewards"][begin:end], term, not term, UNKNOWN_SEED, {})
