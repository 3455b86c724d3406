"""Datasets: whole windows, exact round trips, and damaged files skipped by name."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from toy_env import is_aligned

from wm_agents.data import dataset, shard
from wm_agents.data.dataset import Dataset, _split_episodes, write_manifest, write_shard
from wm_agents.data.episode import Episode

RNG = np.random.default_rng


def make_episode(number: int, steps: int, term: bool = True, pixels: bool = False) -> Episode:
    """Step t of episode `number` is 1000 * number + t in every frame; reward and echo as in the toy env."""
    rng = RNG(number)
    act = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
    if pixels:
        obs = rng.integers(0, 256, (steps + 1, 16, 16, 3), np.uint8)
        obs[:, 0, 0, 0], obs[:, 0, 0, 1] = number, np.arange(steps + 1)
    else:
        obs = np.zeros((steps + 1, 2), np.float32)
        obs[:, 0] = 1000 * number + np.arange(steps + 1)
        obs[1:, 1] = act[:, 0]
    return Episode(obs, act, act[:, 0].copy(), term, not term, 7 * number, {"number": number, "note": "ä"})


def fill(root: Path, lengths: list[list[int]], pixels: bool = False) -> list[Episode]:
    """One shard for each list; every other episode is truncated."""
    episodes: list[Episode] = []
    for k, part in enumerate(lengths):
        new = [make_episode(len(episodes) + i, n, i % 2 == 0, pixels) for i, n in enumerate(part)]
        write_shard(root, f"seed-{k:07d}", new, {"id": "Echo-v0"})
        episodes += new
    return episodes


def same(a: Episode, b: Episode) -> bool:
    arrays = all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a[:3], b[:3]))
    return arrays and a[3:] == b[3:]


@pytest.mark.parametrize("pixels", [False, True])
def test_what_was_written_is_read(tmp_path: Path, pixels: bool) -> None:
    written = fill(tmp_path, [[5, 40, 1], [70, 3]], pixels)
    data = Dataset(tmp_path)
    assert all(same(data.episode(i), ep) for i, ep in enumerate(written))
    assert all(same(a, b) for a, b in zip(data.iter_episodes(), written, strict=True))
    assert list(data.lengths) == [5, 40, 1, 70, 3]
    assert (data.num_episodes, data.num_steps, data.num_frames) == (5, 119, 124)
    assert data.obs_shape == written[0].obs.shape[1:] and data.act_shape == (1,)
    assert data.seeds == [0, 7, 14, 21, 28] and data.spec == {"id": "Echo-v0"}
    np.testing.assert_allclose(data.returns, [ep.rew.sum() for ep in written], rtol=1e-5)
    for i, ep in enumerate(written):
        act, rew = data.steps(i)
        assert np.array_equal(act, ep.act) and np.array_equal(rew, ep.rew)


def test_windows_never_cross_an_episode_and_stay_aligned(tmp_path: Path) -> None:
    episodes = fill(tmp_path, [[8, 20, 3], [15, 8]])
    w = Dataset(tmp_path).windows(300, 8, RNG(0))
    assert w.obs.shape == (300, 9, 2) and w.act.shape == (300, 8, 1)
    assert w.rew.shape == w.term.shape == w.first.shape == (300, 8)
    assert is_aligned(w.obs, w.act, w.rew)  # Steps count up by one all through, so no boundary is crossed.
    number, at = np.divmod(w.obs[:, :-1, 0].astype(int), 1000)
    assert set(number.ravel()) == {0, 1, 3, 4}  # Episode 2 is too short.
    lengths, terms = (np.array([getattr(ep, name) for ep in episodes]) for name in ("num_steps", "term"))
    np.testing.assert_array_equal(w.first, at == 0)
    np.testing.assert_array_equal(w.term, (at == lengths[number] - 1) & terms[number])
    for shift in (-1, 1):
        assert not is_aligned(w.obs, np.roll(w.act, shift, 1), w.rew)


def test_every_place_is_drawn_evenly(tmp_path: Path) -> None:
    fill(tmp_path, [[4, 10], [6]])
    data = Dataset(tmp_path)
    i, start = data.draw_windows(15000, 4, RNG(0))
    places, counts = np.unique(np.stack([i, start]), axis=1, return_counts=True)
    assert places.shape[1] == 1 + 7 + 3
    assert counts.min() > 0.9 * 15000 / 11 and counts.max() < 1.1 * 15000 / 11


def test_the_same_generator_draws_the_same_windows(tmp_path: Path) -> None:
    fill(tmp_path, [[30, 30]])
    data = Dataset(tmp_path)
    a, b, c = (data.windows(8, 5, RNG(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.obs, b.obs)
    assert not np.array_equal(a.obs, c.obs)


def test_windows_and_frames_come_from_the_episodes_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, [[9, 9, 9], [9, 9]], pixels=True)
    data = Dataset(tmp_path)
    assert set(data.windows(50, 4, RNG(0), np.array([1, 4])).obs[..., 0, 0, 0].ravel()) == {1, 4}
    assert set(data.frames(50, RNG(0), np.array([0, 3]))[:, 0, 0, 0]) == {0, 3}


def test_a_window_as_long_as_the_episode_is_the_episode(tmp_path: Path) -> None:
    (ep,) = fill(tmp_path, [[6]])
    w = Dataset(tmp_path).windows(1, 6, RNG(0))
    np.testing.assert_array_equal(w.obs[0], ep.obs)
    assert w.first[0].tolist() == [True] + [False] * 5 and w.term[0].tolist() == [False] * 5 + [True]


def test_windows_longer_than_every_episode_are_rejected(tmp_path: Path) -> None:
    fill(tmp_path, [[5, 8]])
    data = Dataset(tmp_path)
    with pytest.raises(ValueError, match="no window of 9 steps .* 2 episodes, .* the longest has 8 steps"):
        data.windows(1, 9, RNG(0))
    with pytest.raises(ValueError, match="0 episodes"):
        data.windows(1, 2, RNG(0), np.arange(0))
    with pytest.raises(ValueError, match="steps 4 to 9 are not in episode 1 of 8 steps"):
        data.read_windows(np.array([1]), np.array([4]), 5)


def test_frames_cover_the_data_and_are_shuffled(tmp_path: Path) -> None:
    fill(tmp_path, [[40, 25], [50]], pixels=True)
    frames = Dataset(tmp_path).frames(4000, RNG(0))
    assert frames.shape == (4000, 16, 16, 3) and frames.dtype == np.uint8
    seen = frames[:, 0, 0, 0].astype(int) * 1000 + frames[:, 0, 0, 1]
    assert len(np.unique(seen)) == 41 + 26 + 51
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.1


def test_a_truncated_shard_is_skipped_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, [[20], [30], [40]])
    damaged = tmp_path / "seed-0000001.h5"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        data = Dataset(tmp_path)
    assert list(data.skipped) == ["seed-0000001.h5"] and "truncated" in data.skipped["seed-0000001.h5"]
    assert "skipped 1 file(s)" in caplog.text and "seed-0000001.h5" in caplog.text
    assert list(data.lengths) == [20, 40]
    assert is_aligned(*data.windows(20, 10, RNG(0))[:3])


def test_what_is_not_a_shard_is_skipped_with_its_reason(tmp_path: Path) -> None:
    fill(tmp_path, [[20]])
    (tmp_path / "empty.h5").touch()
    (tmp_path / "notes.txt").write_text("not looked at")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["observations"] = np.zeros(3)
    write_shard(tmp_path, "newer", [make_episode(0, 5)])
    with h5py.File(tmp_path / "newer.h5", "a") as file:
        file.attrs["format_version"] = 99
    write_shard(tmp_path, "short", [make_episode(0, 5)])
    with h5py.File(tmp_path / "short.h5", "a") as file:
        file["obs"].resize(5, axis=0)
    write_shard(tmp_path, "tall", [make_episode(0, 5, pixels=True)])
    reasons = Dataset(tmp_path).skipped
    assert sorted(reasons) == ["empty.h5", "foreign.h5", "newer.h5", "short.h5", "tall.h5"]
    assert "not a shard" in reasons["foreign.h5"]
    assert "version 99 is newer than 1" in reasons["newer.h5"]
    assert "need 6 obs" in reasons["short.h5"] and "got 5" in reasons["short.h5"]
    assert "obs_shape (16, 16, 3), but seed-0000000.h5 has (2,)" in reasons["tall.h5"]


def test_frames_that_turn_out_corrupt_take_their_shard_out_of_the_draw(tmp_path: Path) -> None:
    fill(tmp_path, [[90, 90], [90]], pixels=True)
    path = tmp_path / "seed-0000000.h5"
    with h5py.File(path) as file:
        chunk = file["obs"].id.get_chunk_info(1)
    image = bytearray(path.read_bytes())
    image[chunk.byte_offset + 1000] ^= 0x55
    path.write_bytes(image)
    data = Dataset(tmp_path)
    assert data.num_episodes == 3 and not data.skipped  # The scan does not read frames.
    assert set(data.windows(64, 40, RNG(0)).obs[..., 0, 0, 0].ravel()) == {2}
    assert list(data.skipped) == ["seed-0000000.h5"] and data.num_episodes == 3
    assert [ep.info["number"] for ep in data.iter_episodes()] == [2]
    assert set(data.frames(30, RNG(0))[:, 0, 0, 0]) == {2}
    with pytest.raises(ValueError, match="2 of them in corrupt shards"):
        data.windows(4, 40, RNG(0), np.array([0, 1]))


def test_refresh_appends_and_known_episodes_keep_their_number(tmp_path: Path) -> None:
    write_shard(tmp_path, "b", [make_episode(0, 5)])
    data = Dataset(tmp_path)
    write_shard(tmp_path, "a", [make_episode(1, 6), make_episode(2, 7)])
    assert data.refresh() == 1 and data.refresh() == 0
    assert list(data.lengths) == [5, 6, 7]
    assert [data.episode(i).info["number"] for i in range(3)] == [0, 1, 2]


def test_a_second_use_of_the_directory_does_not_pick_up_its_own_files(tmp_path: Path) -> None:
    fill(tmp_path, [[5], [6]])
    (tmp_path / ".seed-0000002.h5.123.part").write_bytes(b"half a shard")
    (tmp_path / "latents").mkdir()
    write_shard(tmp_path / "latents", "seed-0000000", [make_episode(0, 5)])
    for _ in range(2):
        write_manifest(tmp_path)
        data = Dataset(tmp_path)
        assert data.num_episodes == 2 and not data.skipped


def test_the_manifest_reports_what_is_there_and_what_went_missing(tmp_path: Path) -> None:
    fill(tmp_path, [[5, 5], [6]])
    manifest = write_manifest(tmp_path)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["episodes"], manifest["steps"]) == (3, 16) and len(manifest["shards"]) == 2
    (tmp_path / "seed-0000001.h5").unlink()
    assert Dataset(tmp_path).skipped == {"seed-0000001.h5": "missing, but listed in manifest.json"}
    assert write_manifest(tmp_path)["skipped"] == {} and not Dataset(tmp_path).skipped
    (tmp_path / "manifest.json").write_text("{broken")
    assert Dataset(tmp_path).num_episodes == 2


def test_a_dataset_survives_pickling_and_closing(tmp_path: Path) -> None:
    fill(tmp_path, [[12, 12]])
    data = Dataset(tmp_path)
    want = data.windows(5, 4, RNG(0)).obs
    copy = pickle.loads(pickle.dumps(data))
    data.close()
    np.testing.assert_array_equal(copy.windows(5, 4, RNG(0)).obs, want)
    np.testing.assert_array_equal(data.windows(5, 4, RNG(0)).obs, want)


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MAX_OPEN", 2)
    fill(tmp_path, [[5]] * 6)
    data = Dataset(tmp_path)
    assert is_aligned(*data.windows(50, 3, RNG(0))[:3])
    assert len(data._open) == 2


def test_an_empty_directory_and_none_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episodes in"):
        _ = Dataset(tmp_path).obs_shape
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        Dataset(tmp_path / "nowhere")


def test_a_shard_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs 6 obs"):
        write_shard(tmp_path, "a", [make_episode(0, 5), make_episode(1, 5)._replace(obs=np.zeros((5, 2)))])
    with pytest.raises(ValueError, match="at least one episode"):
        write_shard(tmp_path, "a", [])
    with pytest.raises(ValueError, match="obs of one shard must all be"):
        write_shard(tmp_path, "a", [make_episode(0, 5), make_episode(1, 5, pixels=True)])

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    write_shard(tmp_path, "a", [make_episode(0, 5)])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(shard.os, "fsync", fail)
        write_shard(tmp_path, "a", [make_episode(1, 9)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert list(Dataset(tmp_path).lengths) == [5]


def test_gzip_stands_in_where_zstd_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "hdf5plugin", None)
    (ep,) = fill(tmp_path, [[40]], pixels=True)
    with h5py.File(tmp_path / "seed-0000000.h5") as file:
        assert file["obs"].compression == "gzip"
    assert same(Dataset(tmp_path).episode(0), ep)


def test_a_zstd_shard_without_zstd_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [[4]])
    monkeypatch.setattr(shard.h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(ImportError, match="pip install hdf5plugin"):
        Dataset(tmp_path)


def test_seeds_of_any_size_come_back(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [make_episode(0, 5)._replace(seed=2**64 - 1), make_episode(1, 5)._replace(seed=-1)])
    assert Dataset(tmp_path).seeds == [2**64 - 1, -1]


@pytest.mark.parametrize("num, fraction", [(2, 0.01), (2, 0.99), (3, 0.1), (50, 0.1), (1000, 0.2)])
def test_a_split_has_both_sides_and_loses_nobody(num: int, fraction: float) -> None:
    train, val = _split_episodes(num, fraction)
    assert len(train) >= 1 and len(val) >= 1
    assert sorted([*train, *val]) == list(range(num))
    assert abs(len(val) - num * fraction) <= max(1, 0.1 * num)


def test_a_split_of_nothing_keeps_all_in_training() -> None:
    for num, fraction in [(1, 0.5), (10, 0.0)]:
        train, val = _split_episodes(num, fraction)
        assert len(train) == num and len(val) == 0
    with pytest.raises(ValueError, match="val_fraction"):
        _split_episodes(10, 1.0)


def test_a_split_stays_as_the_dataset_grows() -> None:
    small, large = _split_episodes(100, 0.1, seed=3)[1], _split_episodes(500, 0.1, seed=3)[1]
    assert set(small) == {i for i in large if i < 100}
