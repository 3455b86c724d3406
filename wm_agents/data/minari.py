"""Minari import and export: frames, actions, rewards, termination and seeds are preserved exactly.

The infos of single steps are not imported (an `Episode` has one info). Images are exported without JPEG
compression, which is Minari's default.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from wm_agents.data.dataset import Dataset, write_manifest
from wm_agents.data.episode import UNKNOWN_SEED, Episode
from wm_agents.data.shard import write_shard
from wm_envs.real import probe
from wm_envs.registry import RealSpec
from wm_envs.trust import check_trusted

Space = spaces.Space[Any]
SPEC_KEY, INFO_KEY = "wm_spec", "wm_info"


def import_minari(source: str, root: Path | str, *, shard_episodes: int = 8, download: bool = False) -> Dataset:
    """Copy a Minari dataset into shards under `root`; a second import overwrites the same shards.

    Args:
        source: a dataset id, or the directory that contains its `data`.
        download: download the dataset if it is not available locally.
    """
    minari = _minari()
    path = Path(source) / "data"
    theirs = minari.MinariDataset(path) if path.is_dir() else minari.load_dataset(source, download=download)
    name = re.sub(r"[^\w-]+", "-", theirs.id)
    spec = json.loads(theirs.storage.metadata.get(SPEC_KEY, "{}"))
    indices = theirs.episode_indices
    for begin in range(0, len(indices), shard_episodes):
        part = indices[begin : begin + shard_episodes]
        write_shard(root, f"minari-{name}-{begin:06d}", _episodes(theirs, part), spec)
    write_manifest(root)
    return Dataset(root)


def export_minari(
    root: Path | str,
    dataset_id: str,
    *,
    observation_space: Space | None = None,
    action_space: Space | None = None,
    **metadata: Any,
) -> Any:
    """Write all episodes under `root` as the new Minari dataset `dataset_id`, uncompressed, and return it.

    Args:
        observation_space, action_space: required if the shards do not name their environment.
        metadata: passed to Minari: author, description, algorithm_name, ...
    """
    minari = _minari()
    data = Dataset(root)
    if data.spec and (observation_space is None or action_space is None):
        check_trusted(str(data.spec.get("id")), data.root, data.spec.get("wrapper"))
        observation_space, action_space = probe(RealSpec.from_dict(data.spec)).spaces
    if observation_space is None or action_space is None:
        raise ValueError(f"the shards in {root} do not name an environment; pass observation_space and action_space")
    if dataset_id in minari.list_local_datasets():
        raise ValueError(f"Minari dataset {dataset_id} already exists; choose a new id, such as the next version")
    infos: list[dict[str, str]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # It warns about missing optional fields.
            # An EnvSpec cannot describe an action repeat; wm_spec below can.
            theirs = minari.create_dataset_from_buffers(
                dataset_id,
                _buffers(minari, data, infos),
                observation_space=observation_space,
                action_space=action_space,
                env=_env_spec(data.spec),
                jpeg_encoding=False,
                **metadata,
            )
    except BaseException:
        shutil.rmtree(minari.storage.local.get_dataset_path(dataset_id), ignore_errors=True)
        raise
    finally:
        data.close()
    theirs.storage.update_episode_metadata(infos)
    theirs.storage.update_metadata({SPEC_KEY: json.dumps(data.spec)})
    return theirs


def _env_spec(values: Mapping[str, Any]) -> EnvSpec | None:
    """The environment as `gym.make` creates it, without our preprocessing; None if its id is not registered, or its
    arguments cannot be stored as JSON."""
    env_id = str(values.get("id", "")).rpartition(":")[2]
    if env_id not in gym.registry:
        return None
    spec = deepcopy(gym.registry[env_id])
    spec.kwargs.update(values["kwargs"])
    if values["action_repeat"] == 1:
        spec.max_episode_steps = values["max_episode_steps"] or spec.max_episode_steps
    try:
        spec.to_json()
    except (TypeError, ValueError):
        return None
    return spec


def _minari() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise ImportError(
            "importing and exporting Minari datasets requires Minari: pip install 'minari[hdf5]' pillow "
            "(the extra `minari` of this package)"
        ) from error
    assert isinstance(minari, ModuleType)
    return minari


def _episodes(theirs: Any, indices: Any) -> Iterator[Episode]:
    described = theirs.storage.get_episode_metadata(indices)
    for ep, meta in zip(theirs.iterate_episodes(indices), described, strict=True):
        if not (isinstance(ep.observations, np.ndarray) and isinstance(ep.actions, np.ndarray)):
            raise ValueError(
                f"{theirs.id} has observations {theirs.observation_space} and actions {theirs.action_space}; "
                "only plain arrays are supported"
            )
        ends = ep.terminations | ep.truncations
        if ends[:-1].any():
            raise ValueError(f"{theirs.id}: episode {ep.id} continues after its end at step {int(ends.argmax())}")
        info = json.loads(meta.get(INFO_KEY, "{}"))
        if not ends[-1]:
            info["cut"] = True
        yield Episode(
            ep.observations,
            ep.actions,
            ep.rewards,
            bool(ep.terminations[-1]),
            bool(ep.truncations[-1]) or not ends[-1],
            int(meta.get("seed", UNKNOWN_SEED)),
            info,
        )


def _buffers(minari: ModuleType, data: Dataset, infos: list[dict[str, str]]) -> Iterator[Any]:
    for ep in data.iter_episodes():
        infos.append({INFO_KEY: json.dumps(ep.info)})
        last = np.arange(ep.num_steps) == ep.num_steps - 1
        yield minari.data_collector.EpisodeBuffer(
            seed=None if ep.seed == UNKNOWN_SEED else ep.seed,
            observations=ep.obs,
            actions=ep.act,
            rewards=ep.rew,
            terminations=last & ep.term,
            truncations=last & ep.trunc,
        )
