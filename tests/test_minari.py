"""Minari: there and back again without a bit lost."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from wm_agents.data.dataset import Dataset, write_shard
from wm_agents.data.episode import Episode
from wm_agents.data.minari import export_minari, import_minari

BOX = spaces.Box(-1, 1, (2,), np.float32)
PIXELS = spaces.Box(0, 255, (32, 32, 3), np.uint8)  # Anything smaller is no picture to Minari.


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


def make_episode(seed: int, steps: int, term: bool, rew: type = np.float32) -> Episode:
    rng = np.random.default_rng(abs(seed))
    obs = rng.integers(0, 256, (steps + 1, 32, 32, 3), np.uint8)
    act = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    return Episode(obs, act, rng.normal(size=steps).astype(rew), term, not term, seed, {"level": 0.3, "tag": "é"})


def same(a: Episode, b: Episode) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a[:3], b[:3])) and a[3:] == b[3:]


def test_export_then_import_is_identity(tmp_path: Path, minari) -> None:
    episodes = [make_episode(seed, 3 + i, i % 2 == 0) for i, seed in enumerate([5, -1, 2**64 - 1, 8, 9])]
    write_shard(tmp_path / "ours", "a", episodes[:2])
    write_shard(tmp_path / "ours", "b", episodes[2:])
    theirs = export_minari(tmp_path / "ours", "wm/toy-v0", observation_space=PIXELS, action_space=BOX)
    assert theirs.total_steps == sum(ep.num_steps for ep in episodes)
    np.testing.assert_array_equal(theirs[1].observations, episodes[1].obs)  # Not a JPEG of it.
    for source in ("wm/toy-v0", str(tmp_path / "minari/wm/toy-v0")):
        back = import_minari(source, tmp_path / "back", shard_episodes=2)
        assert [info.num_episodes for info in back.shards] == [2, 2, 1]
        assert all(same(a, b) for a, b in zip(back.iter_episodes(), episodes, strict=True))


def test_the_shards_own_environment_gives_the_spaces(tmp_path: Path, minari) -> None:
    spec = {"id": "CartPole-v1", "kwargs": {}, "size": None, "action_repeat": 1, "max_episode_steps": 30}
    obs, act = np.zeros((3, 4), np.float32), np.array([0, 1])
    write_shard(tmp_path / "ours", "a", [Episode(obs, act, np.ones(2, np.float32), True, False, 3, {})], spec)
    theirs = export_minari(tmp_path / "ours", "cart-v0")
    assert theirs.action_space == spaces.Discrete(2) and theirs.observation_space.shape == (4,)
    assert import_minari("cart-v0", tmp_path / "back").spec == spec
    assert theirs.env_spec.id == "CartPole-v1" and theirs.env_spec.max_episode_steps == 30
    assert theirs.recover_environment().action_space == spaces.Discrete(2)


@pytest.mark.parametrize("spec", [{}, {"id": "gone:Gone-v0", "kwargs": {}, "action_repeat": 1}])
def test_an_environment_that_is_not_registered_is_left_out(tmp_path: Path, minari, spec: dict[str, Any]) -> None:
    write_shard(tmp_path / "ours", "a", [make_episode(1, 3, True)], spec)
    theirs = export_minari(tmp_path / "ours", "gone-v0", observation_space=PIXELS, action_space=BOX)
    assert theirs.env_spec is None


def test_rewards_of_double_precision_and_both_ends_come_through(tmp_path: Path, minari) -> None:
    ep = make_episode(1, 4, True, np.float64)._replace(trunc=True, info={})
    last = np.arange(4) == 3
    buffer = minari.data_collector.EpisodeBuffer(
        seed=1, observations=ep.obs, actions=ep.act, rewards=ep.rew, terminations=last, truncations=last
    )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "raw-v0", [buffer], observation_space=PIXELS, action_space=BOX, jpeg_encoding=False
        )
    assert same(import_minari("raw-v0", tmp_path / "back").episode(0), ep)


def test_an_unfinished_episode_is_imported_as_cut(tmp_path: Path, minari) -> None:
    ep = make_episode(1, 4, True)
    none = np.zeros(4, bool)
    buffer = minari.data_collector.EpisodeBuffer(
        observations=ep.obs, actions=ep.act, rewards=ep.rew, terminations=none, truncations=none
    )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "raw-v0", [buffer], observation_space=PIXELS, action_space=BOX, jpeg_encoding=False
        )
    got = import_minari("raw-v0", tmp_path / "back").episode(0)
    assert (got.term, got.trunc, got.seed, got.info) == (False, True, -1, {"cut": True})


def test_an_id_that_is_taken_and_spaces_that_are_not_known_are_rejected(tmp_path: Path, minari) -> None:
    write_shard(tmp_path / "ours", "a", [make_episode(0, 3, True)])
    with pytest.raises(ValueError, match="pass observation_space and action_space"):
        export_minari(tmp_path / "ours", "toy-v0")
    export_minari(tmp_path / "ours", "toy-v0", observation_space=PIXELS, action_space=BOX)
    with pytest.raises(ValueError, match="toy-v0 already exists"):
        export_minari(tmp_path / "ours", "toy-v0", observation_space=PIXELS, action_space=BOX)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, minari, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "ours", "a", [make_episode(0, 3, True)])

    def fail(self: Dataset, episodes: object = None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "iter_episodes", fail)
    with pytest.raises(OSError, match="No space"):
        export_minari(tmp_path / "ours", "toy-v0", observation_space=PIXELS, action_space=BOX)
    assert not os.path.exists(tmp_path / "minari/toy-v0")


def test_without_minari_the_error_reports_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    for call in (lambda: import_minari("toy-v0", tmp_path), lambda: export_minari(tmp_path, "toy-v0")):
        with pytest.raises(ImportError, match=r"pip install 'minari\[hdf5\]' pillow"):
            call()
