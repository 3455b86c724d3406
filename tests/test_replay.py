"""The replay buffer: nothing is shifted by one, nothing is cut in half, and what was saved comes back to the bit."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_env import Echo, is_aligned, make_random

from policies.rollout import rollout
from wm_agents.data.episode import Episode, collect_episode
from wm_agents.data.replay import Batch, ReplayBuffer
from wm_agents.training.data import create_random_buffer

BOX = spaces.Box(-1, 1, (1,), np.float32)


def echo(seed: int, length: int | None = None, end: str = "term") -> Episode:
    envs = SyncVectorEnv([lambda: Echo(length, end)], autoreset_mode=AutoresetMode.DISABLED)
    return collect_episode(rollout(envs, make_random(envs.envs[0]), seed=seed, policy_seed=seed), seed)


def filled(num: int = 30, capacity: int = 10_000, **kwargs) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, (2,), 1, **kwargs)
    for seed in range(num):
        buffer.add(echo(seed), BOX)
    return buffer


def arrays(batch: Batch) -> dict[str, np.ndarray]:
    named = {name: getattr(batch, name) for name in ("obs", "act", "rew", "term", "first", "last", "index")}
    return {name: t.numpy() for name, t in (named | (batch.latent or {})).items()}


def same(a: Batch, b: Batch) -> bool:
    left, right = arrays(a), arrays(b)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps_with_owner(batch: Batch) -> np.ndarray:
    """(B, T) bool: the steps of packed windows that belong to an episode."""
    return ~batch.first[:, 1:].numpy()


def test_a_step_earns_the_reward_of_its_own_action_and_leads_to_its_own_frame():
    batch = filled().sample(64, 3, generator=seeded())
    assert is_aligned(batch.obs.numpy(), batch.act.numpy(), batch.rew.numpy())


def test_packed_windows_are_aligned_too_and_steps_between_episodes_are_nothing():
    batch = filled().sample(64, 20, pack=True, generator=seeded())
    real = steps_with_owner(batch)
    assert 0.05 < 1 - real.mean() < 0.2  # Episodes have 3 to 12 steps.
    assert np.array_equal(batch.rew.numpy()[real], batch.act.numpy()[real][:, 0])
    assert np.array_equal(batch.obs.numpy()[:, 1:, 1][real], batch.act.numpy()[real][:, 0])
    for name in ("act", "rew", "term"):
        assert not batch[name].numpy()[~real].any(), name


def test_packed_windows_say_which_frames_open_and_close_an_episode():
    batch = filled().sample(64, 20, pack=True, generator=seeded())
    number = batch.obs[..., 0]  # Echo counts its frames.
    assert torch.equal(batch.first, number == 0)
    assert torch.equal(batch.first[:, 1:], batch.last[:, :-1])
    opened = batch.term & ~batch.last[:, 1:]
    assert batch.last.any()
    assert not opened.any()
    assert torch.equal(batch.term, batch.last[:, 1:])  # All of them terminate.


def test_truncated_episodes_have_a_last_frame_and_no_termination():
    buffer = ReplayBuffer(100, (2,), 1)
    for seed in range(5):
        buffer.add(echo(seed, 4, "trunc"), BOX)
    batch = buffer.sample(32, 4, generator=seeded())
    assert batch.last[:, -1].all()
    assert not batch.term.any()


def test_windows_never_cross_an_episode_unless_packed():
    batch = filled().sample(256, 3, generator=seeded())
    assert not batch.first[:, 1:].any()
    assert not batch.last[:, :-1].any()
    assert batch.first[:, 0].any()
    assert batch.last[:, -1].any()


def test_an_env_that_ends_on_its_first_step_is_kept():
    buffer = ReplayBuffer(10, (2,), 1)
    buffer.add(echo(0, 1), BOX)
    batch = buffer.sample(4, 1)
    assert batch.term.all()
    assert batch.first[:, 0].all() and batch.last[:, 1].all()
    assert is_aligned(batch.obs.numpy(), batch.act.numpy(), batch.rew.numpy())


def test_the_last_step_is_met_as_often_as_one_in_the_middle():
    buffer = ReplayBuffer(100, (2,), 1)
    for length in (3, 4, 10):
        buffer.add(echo(length, length), BOX)
    index = buffer.sample(8000, 3, generator=seeded()).index
    begins = index[:, 0].bincount(minlength=20)
    # Frames 0-3, 4-8, 9-19; 5 + 6 + 12 places, those that stick out of their episode pushed back inside.
    assert (begins > 0).nonzero().flatten().tolist() == [0, 4, 5, *range(9, 17)]
    want = 8000 / 23 * torch.tensor([5.0, 3, 3, 3, 1, 1, 1, 1, 1, 1, 3])
    torch.testing.assert_close(begins[begins > 0].float(), want, atol=60, rtol=0)
    met = index[:, 1:].flatten().bincount(minlength=20)
    assert int(met[19]) == pytest.approx(int(met[14]), rel=0.1)


def test_full_buffers_drop_whole_episodes_and_keep_the_newest():
    buffer = ReplayBuffer(50, (2,), 1)
    added = []
    for seed in range(200):
        episode = echo(seed)
        buffer.add(episode, BOX)
        added.append(episode.num_steps)
        before = [50, *added[: -buffer.num_episodes]][-1]
        assert len(buffer) == sum(added[-buffer.num_episodes :]) <= 50
        assert len(buffer) + before > 50  # No more was dropped than had to be.
        frames = len(buffer) + buffer.num_episodes
        if frames > 2:
            whole = buffer.sample(1, frames - 1, pack=True)  # Everything there is, in order.
            assert whole.first[0, 0] and whole.last[0, -1]
            assert torch.equal(whole.obs[0, :, 0] == 0, whole.first[0])
            assert is_split_well(whole)


def is_split_well(whole: Batch) -> bool:
    """Echo's count goes up by one inside every episode, and its rewards are its actions."""
    real = steps_with_owner(whole)
    up = np.diff(whole.obs[..., 0].numpy())[real]
    return bool((up == 1).all()) and np.array_equal(whole.rew.numpy()[real], whole.act.numpy()[real][:, 0])


def test_memory_stays_within_its_budget():
    buffer = ReplayBuffer(10**6, (16, 16, 3), 1, np.uint8, max_gb=1e-4)
    for _ in range(30):
        buffer.add_episode(np.zeros((11, 16, 16, 3), np.uint8), np.zeros((10, 1)), np.zeros(10))
        assert buffer.nbytes <= 1e5
    assert buffer.num_episodes == 11  # 100,000 bytes are 128 frames of 768 bytes and a little more.
    batch = buffer.sample(2, 4, pack=True)
    buffer.sample(2, 10)
    buffer.write_latents(batch.index, {"h": torch.ones(2, 5, 500)})
    assert buffer.nbytes <= 1e5
    assert 0 < buffer.num_episodes < 11
    assert buffer.sample(200, 10).index.min() == 11 * (30 - buffer.num_episodes)  # What left is not drawn.


def test_images_stay_uint8_and_are_not_widened_unasked():
    buffer = ReplayBuffer(100, (8, 8, 3), 1, np.uint8)
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    buffer.add_episode(frames, np.zeros((5, 1)), np.zeros(5))
    batch = buffer.sample(1, 5)
    assert batch.obs.dtype == torch.uint8
    assert np.array_equal(batch.obs[0].numpy(), frames)
    with pytest.raises(
        ValueError, match="obs are uint8, but the buffer stores float32; create it with obs_dtype=np.uint8"
    ):
        ReplayBuffer(100, (8, 8, 3), 1).add_episode(frames, np.zeros((5, 1)), np.zeros(5))


def test_a_buffer_grows_with_what_it_holds():
    buffer = ReplayBuffer(10**9, (64, 64, 3), 1, np.uint8)
    assert buffer.nbytes < 1000
    buffer.add_episode(np.zeros((3, 64, 64, 3), np.uint8), np.zeros((2, 1)), np.zeros(2))
    assert buffer.nbytes < 2e7


def test_growing_keeps_everything_in_its_place():
    buffer = ReplayBuffer(1500, (1,), 1)
    begin = 0
    for steps in [*[100] * 40, *[1] * 1200]:  # Full and round the ring; then many more frames for the same steps.
        count = np.arange(begin, begin + steps + 1, dtype=np.float32)[:, None]
        buffer.add_episode(count, count[1:], count[1:, 0])
        begin += steps + 1
        if steps == 100 or begin > 6400:
            drawn = buffer.sample(300, steps, generator=seeded())
            assert steps == 1 or drawn.index.max() == begin - 1  # What is new is drawn at once.
            assert torch.equal(drawn.obs[..., 0], drawn.index.float())
            assert torch.equal(drawn.rew, drawn.obs[:, 1:, 0])
    assert len(buffer) == 1500
    assert drawn.index.min() < 4200 and drawn.index.max() > 6400


def test_save_then_load_draws_the_same_batches_for_ever(tmp_path):
    buffer = filled(40, capacity=100, latent_dtype="float32")
    for seed in range(4):
        buffer.add(echo(seed, end="trunc"), BOX)
    batch = buffer.sample(8, 10, pack=True, generator=seeded())
    buffer.write_latents(batch.index, {"h": torch.randn(8, 11, 4), "z": torch.randn(8, 11, 2, 3)})
    buffer.save(tmp_path / "replay.npz")
    again = ReplayBuffer.load(tmp_path / "replay.npz")
    assert (len(again), again.num_episodes, again.capacity) == (len(buffer), buffer.num_episodes, 100)
    for seed in range(40, 60):
        for pack in (False, True):
            draws = [b.sample(16, 4, pack=pack, generator=seeded(seed)) for b in (buffer, again)]
            assert same(*draws)
            assert draws[0].latent is not None
        for b in (buffer, again):
            b.add(echo(seed), BOX)


def test_the_npz_is_plain_and_has_the_documented_keys(tmp_path):
    filled(5).save(tmp_path / "replay.npz")
    with np.load(tmp_path / "replay.npz", allow_pickle=False) as file:
        assert {"obs", "actions", "rewards", "dones", "obs_shape", "action_dim", "capacity"} <= set(file.files)
        assert np.array_equal(np.flatnonzero(file["dones"]) + 1, np.flatnonzero(file["last"]))


def test_what_was_saved_is_looked_at_again(tmp_path):
    buffer = ReplayBuffer(100, (2,), 1)
    buffer.add_episode(np.zeros((5, 2)), np.zeros((4, 1)), np.zeros(4), terminated=True)
    buffer.save(tmp_path / "a.npz")
    stored = dict(np.load(tmp_path / "a.npz"))
    stored["obs"][3] = np.nan
    np.savez(tmp_path / "b.npz", **stored)
    with pytest.raises(ValueError, match="obs must be finite, got NaN or infinity in frame 3"):
        ReplayBuffer.load(tmp_path / "b.npz")


def test_a_foreign_npz_is_cut_at_its_dones(tmp_path):
    facts = {"obs_shape": np.array([2]), "action_dim": np.array(1), "capacity": np.array(100)}
    obs = np.arange(20, dtype=np.float32).reshape(10, 2)
    dones = np.arange(10) % 4 == 3  # Two whole episodes, and one that was still going.
    np.savez(tmp_path / "a.npz", obs=obs, actions=np.zeros((10, 1)), rewards=np.arange(10.0), dones=dones, **facts)
    buffer = ReplayBuffer.load(tmp_path / "a.npz")
    assert (len(buffer), buffer.num_episodes) == (10, 3)
    whole = buffer.sample(1, 12, pack=True)
    assert whole.term[0].nonzero().flatten().tolist() == [3, 8]


def filled_npz(tmp_path):
    filled(3).save(tmp_path / "whole.npz")
    return (tmp_path / "whole.npz").read_bytes()


def test_what_cannot_be_loaded_says_why(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, obs=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="is not a replay buffer: actions, rewards, dones, .* missing"):
        ReplayBuffer.load(path)
    np.savez(path, obs=np.array([{}], object))
    with pytest.raises(ValueError, match="contains Python objects, which are never loaded"):
        ReplayBuffer.load(path)
    for broken in (b"", b"no zip at all", filled_npz(tmp_path)[:-40]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="a.npz is not a valid npz .*; give a file of ReplayBuffer.save") as info:
            ReplayBuffer.load(path)
        assert "pickle" not in str(info.value)
    filled(3).save(path)
    with np.load(path) as file:
        stored = dict(file)
    np.savez(path, **(stored | {"actions": stored["actions"][:-1]}))
    with pytest.raises(ValueError, match=r"actions must have the shape \(.*, 1\), got"):
        ReplayBuffer.load(path)
    halves = {k: v[1:] if v.ndim and k != "obs_shape" else v for k, v in stored.items()}
    np.savez(path, **halves)
    with pytest.raises(ValueError, match="contains an incomplete episode"):
        ReplayBuffer.load(path)
    np.savez(path, **(stored | {"format_version": np.array(99)}))
    with pytest.raises(ValueError, match="has format version 99, but"):
        ReplayBuffer.load(path)


def test_latents_are_given_back_with_frame_zero_and_forgotten_with_their_frames():
    buffer = ReplayBuffer(20, (2,), 1)
    assert (buffer.add(echo(0, 5), BOX), buffer.sample(1, 5).latent) == (None, None)
    batch = buffer.sample(1, 5)
    values = torch.arange(6.0)[None, :, None]
    buffer.write_latents(batch.index, {"h": values})
    assert buffer.sample(1, 5).latent["h"].tolist() == [[0.0]]
    later = buffer.sample(50, 1, generator=seeded())
    assert torch.equal(later.latent["h"][:, 0], later.index[:, 0].float())
    for seed in range(8):
        buffer.add(echo(seed, 5), BOX)  # The first episode left, and its slots have new owners.
    buffer.write_latents(batch.index, {"h": values + 7})
    assert not buffer.sample(100, 1, pack=True, generator=seeded()).latent["h"].any()


def test_latents_come_with_an_episode_as_well():
    buffer = ReplayBuffer(20, (2,), 1)
    buffer.add(echo(0, 4), BOX, latents={"h": torch.arange(5.0)[:, None]})
    drawn = buffer.sample(20, 1, generator=seeded())
    assert torch.equal(drawn.latent["h"][:, 0], drawn.index[:, 0].float())
    with pytest.raises(ValueError, match="latents must cover all 5 frames, got 4 of 'h'"):
        buffer.add(echo(0, 4), BOX, latents={"h": torch.zeros(4, 1)})
    with pytest.raises(ValueError, match=r"latents must have the same shapes as those stored before, \{'h': \(1,\)\}"):
        buffer.add(echo(0, 4), BOX, latents={"z": torch.zeros(5, 1)})


def test_batches_can_be_subscripted_and_moved():
    batch = filled(5).sample(2, 3)
    assert batch["obs"] is batch.obs
    assert batch["actions"] is batch.act
    assert batch["rewards"] is batch.rew
    assert batch["terminations"] is batch.term
    assert batch.to("meta")["obs"].device.type == "meta"
    with pytest.raises(KeyError, match="a batch has no 'reward'; did you mean 'rewards'"):
        batch["reward"]


def test_windows_that_do_not_exist_are_rejected_in_words():
    buffer = filled(5)
    with pytest.raises(
        ValueError, match="no episode has 50 steps or more, the longest of the 5 episodes has .* pack=True"
    ):
        buffer.sample(2, 50)
    with pytest.raises(ValueError, match="windows of 500 steps need 501 frames, the buffer has"):
        buffer.sample(2, 500, pack=True)
    with pytest.raises(ValueError, match="no episode has 3 steps or more, the longest of the 0 episodes has 0"):
        ReplayBuffer(5, (2,), 1).sample(1, 3)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "device must be auto, .*got 'gpu'"), ("cuda:99", "'cuda:99' is not on this machine; use 'cpu'")],
)
def test_a_device_that_is_not_there_is_named(device, message):
    with pytest.raises(ValueError, match=message):
        filled(5).sample(2, 3, device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((5, 3))}, r"obs must be \(T\+1, 2\), got \(5, 3\)"),
        ({"obs": np.zeros((3, 2))}, "obs must have 4 or 5 frames for 4 rewards, got 3"),
        ({"actions": np.zeros((4, 2))}, r"actions must be \(4, 1\) for 4 rewards, got \(4, 2\)"),
        ({"actions": np.full((4, 1), np.nan)}, "actions must be finite"),
        ({"rewards": np.array([0, np.inf, 0, 0])}, "rewards must be finite, got inf"),
        ({"rewards": np.zeros((4, 1))}, r"rewards must be \(T,\)"),
        ({"dones": np.array([0, 1, 0, 0])}, "dones may be True only at the last step, got True at index 1 of 4"),
        ({"dones": np.zeros(3)}, r"dones must be \(4,\)"),
        ({"dones": np.zeros(4), "terminated": True}, "give dones or terminated, not both"),
        ({"obs": np.zeros((5, 2), complex)}, "obs must be float32, got complex128"),
        ({"obs": np.array([[0, 0]] * 3 + [[0, np.nan]] * 2)}, "obs must be finite, got NaN or infinity in frame 3"),
        ({"obs": np.full((5, 2), -np.inf, np.float32)}, "obs must be finite, got NaN or infinity in frame 0; end"),
    ],
)
def test_bad_episodes_are_rejected_with_both_sides(change, message):
    good = {"obs": np.zeros((5, 2)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(100, (2,), 1).add_episode(**(good | change))


def test_an_episode_that_cannot_fit_is_rejected():
    with pytest.raises(ValueError, match="an episode of 8 steps does not fit into a buffer of 5 steps"):
        ReplayBuffer(5, (2,), 1).add(echo(0, 8), BOX)


def test_bad_settings_of_a_buffer_are_rejected():
    with pytest.raises(ValueError, match="capacity must be a whole number of at least 1, got 0"):
        ReplayBuffer(0, (2,), 1)
    with pytest.raises(ValueError, match="max_gb must be above 0, or None, got 0"):
        ReplayBuffer(5, (2,), 1, max_gb=0)
    with pytest.raises(ValueError, match="actions must be 1 wide, got 2 for Discrete"):
        ReplayBuffer(5, (2,), 1).add(echo(0, 3), spaces.Discrete(2))


def test_episodes_of_t_obs_and_t_dones_keep_every_reward_and_the_end():
    buffer = ReplayBuffer(100_000, (4,), 2)
    env = gym.make("CartPole-v1")
    env.action_space.seed(0)
    total = 0
    for episode in range(3):
        obs_list, action_list, reward_list, done_list = [], [], [], []
        obs, _ = env.reset(seed=episode)
        done = False
        while not done:
            action = env.action_space.sample()
            next_obs, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            obs_list.append(obs)
            action_list.append([action])
            reward_list.append(reward)
            done_list.append(done)
            obs = next_obs
        buffer.add_episode(
            obs=np.array(obs_list),
            actions=np.array(action_list),
            rewards=np.array(reward_list),
            dones=np.array(done_list),
        )
        total += len(obs_list)
    env.close()
    whole = buffer.sample(1, total + 2, pack=True)
    assert len(buffer) == whole.rew.sum() == total
    assert whole.term.sum() == 3
    assert torch.equal(whole.act.sum(-1)[0] == 1, ~whole.first[0, 1:])  # One-hots.


def test_random_buffers_are_full_and_repeat():
    made = [create_random_buffer(1000, (4,), 2, num_episodes=20, episode_length=50, seed=s) for s in (3, 3, 4)]
    assert (len(made[0]), made[0].num_episodes) == (1000, 20)
    draws = [b.sample(4, 50, generator=seeded()) for b in made]
    assert draws[0].obs.shape == (4, 51, 4)
    assert same(draws[0], draws[1])
    assert not same(draws[0], draws[2])


def test_random_choices_are_one_hots_and_all_occur():
    buffer = create_random_buffer(1000, (4,), 3, num_episodes=5, episode_length=50, seed=3, action_type="discrete")
    act = buffer.sample(20, 10).act
    assert set(act.unique().tolist()) == {0, 1} and bool((act.sum(-1) == 1).all()) and bool(act.any(0).any(0).all())
    with pytest.raises(ValueError, match="action_type must be 'continuous' or 'discrete', got 'discret'"):
        create_random_buffer(action_type="discret")


def test_paths_may_be_strings(tmp_path: Path):
    filled(3).save(str(tmp_path / "replay.npz"))
    assert ReplayBuffer.load(str(tmp_path / "replay.npz")).num_episodes == 3
