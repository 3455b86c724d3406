"""Episodes: actions, rewards and frames line up, and each test notices a shift by one."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_env import Echo, is_aligned

from policies.policy import RandomPolicy
from policies.rollout import Transition, rollout
from wm_agents.data.episode import (
    UNKNOWN_SEED,
    Episode,
    check_episode,
    collect_episode,
    drop_autoreset_rows,
    split_episode,
)


def play(seed: int = 0, stall: int | None = None, **kwargs: object) -> Episode:
    envs = SyncVectorEnv([partial(Echo, **kwargs)], autoreset_mode=AutoresetMode.DISABLED)
    policy = RandomPolicy(envs.single_action_space)
    return collect_episode(rollout(envs, policy, seed=[seed], policy_seed=seed), seed, stall=stall)


def make_episode(steps: int = 4, **changes: object) -> Episode:
    ep = Episode(np.zeros((steps + 1, 2)), np.zeros((steps, 1)), np.zeros(steps, np.float32), True, False, 0, {})
    return ep._replace(**changes)


def test_an_action_lines_up_with_its_reward_and_the_frame_it_leads_to() -> None:
    ep = play(length=9)
    assert ep.num_steps == 9 and len(ep.obs) == 10
    assert is_aligned(ep.obs, ep.act, ep.rew)
    for shift in (-1, 1):  # The test sees a shift of any one part.
        assert not is_aligned(np.roll(ep.obs, shift, 0), ep.act, ep.rew)
        assert not is_aligned(ep.obs, np.roll(ep.act, shift, 0), ep.rew)
        assert not is_aligned(ep.obs, ep.act, np.roll(ep.rew, shift))


def test_the_last_frame_is_kept_and_the_end_distinguished() -> None:
    terminated, truncated = play(length=3), play(length=3, end="trunc")
    assert terminated.obs[-1, 0] == truncated.obs[-1, 0] == 3
    assert (terminated.term, terminated.trunc) == (True, False)
    assert (truncated.term, truncated.trunc) == (False, True)


def test_an_env_that_ends_on_its_first_step_gives_one_step_and_two_frames() -> None:
    ep = play(length=1)
    assert ep.num_steps == 1 and list(ep.obs[:, 0]) == [0, 1] and ep.term
    assert is_aligned(ep.obs, ep.act, ep.rew)


def test_an_episode_is_split_behind_the_steps_that_end_it() -> None:
    ep = play(length=9, end="trunc")
    parts = split_episode(ep, np.array([2, 5]))
    assert [part.num_steps for part in parts] == [3, 3, 3] and all(is_aligned(p.obs, p.act, p.rew) for p in parts)
    assert [(part.term, part.trunc) for part in parts] == [(True, False), (True, False), (False, True)]
    assert [part.obs[0, 0] for part in parts] == [0, 3, 6] and [part.obs[-1, 0] for part in parts] == [3, 6, 9]
    assert [(part.num_steps, part.term) for part in split_episode(ep, np.array([8]))] == [(9, True)]
    whole = split_episode(ep, np.array([], np.int64))
    assert len(whole) == 1 and whole[0].trunc and whole[0].num_steps == 9


def test_an_episode_without_reward_is_cut_as_a_truncation() -> None:
    ep = play(length=1000, stall=3)
    assert ep.trunc and not ep.term
    assert (ep.rew[-3:] <= 0).all() and not any((ep.rew[i : i + 3] <= 0).all() for i in range(ep.num_steps - 3))


def test_a_stall_at_a_real_end_stays_that_end() -> None:
    seed = next(s for s in range(100) if (play(s, length=2).rew <= 0).all())
    ep = play(seed, length=2, stall=2)
    assert ep.term and not ep.trunc


def test_frames_are_copied_out_of_the_envs_buffers() -> None:
    envs = SyncVectorEnv([partial(Echo, length=5)], copy=False, autoreset_mode=AutoresetMode.DISABLED)
    ep = collect_episode(rollout(envs, RandomPolicy(envs.single_action_space), seed=[0]), 0)
    assert list(ep.obs[1:, 0]) == [1, 2, 3, 4, 5]


def test_more_than_one_row_is_rejected() -> None:
    two, no = np.zeros((2, 1)), np.zeros(2, bool)
    step = Transition(two, two, two[:, 0], no, no, two, ~no)
    with pytest.raises(ValueError, match="rollout of 1 row, got 2 rows"):
        collect_episode([step], 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"obs": np.zeros((4, 2))}, "4 rewards needs 5 obs and 4 act, got 4 and 4"),
        ({"act": np.zeros((5, 1))}, "got 5 and 5"),
        ({"term": False}, "must end with term or trunc, got neither"),
        (
            {"rew": np.array([0, 0, np.nan, 0])},
            "the reward of step 3 is nan .*; it must be finite",
        ),
        ({"obs": np.array([[0, 0]] * 3 + [[0, np.inf]] * 2)}, r"the observation of step 3 is inf at index \[1\] "),
        ({"rew": np.zeros((4, 1))}, r"rew must be floats \(T,\), got float64 \(4, 1\)"),
        ({"rew": np.zeros(0, np.float32)}, "at least one step, got none"),
        ({"obs": np.array([{}] * 5)}, "plain arrays, got object"),
    ],
)
def test_parts_that_do_not_fit_are_rejected(changes: dict[str, object], message: str) -> None:
    check_episode(make_episode())
    with pytest.raises(ValueError, match=message):
        check_episode(make_episode(**changes))


def record(envs: gym.vector.VectorEnv, steps: int) -> tuple[np.ndarray, ...]:
    """What a naive recorder gets from a vector env: (T+1, N, ...) frames and (T, N) of the rest."""
    obs, rows = [envs.reset(seed=0)[0]], []
    envs.action_space.seed(0)
    for _ in range(steps):
        act = envs.action_space.sample()
        nxt, *rest, _ = envs.step(act)
        obs.append(nxt)
        rows.append((act, *rest))
    return np.stack(obs), *(np.stack(part) for part in zip(*rows))


@pytest.mark.parametrize("length", [1, 4, None])
def test_the_fake_rows_of_next_step_autoreset_are_dropped(length: int | None) -> None:
    envs = SyncVectorEnv([partial(Echo, length)] * 3, autoreset_mode=AutoresetMode.NEXT_STEP)
    stream = record(envs, 40)
    fakes = 0
    for n in range(3):
        obs, act, rew, term, trunc = (part[:, n] for part in stream)
        assert not is_aligned(obs, act, rew)  # The raw stream teleports.
        episodes = drop_autoreset_rows(obs, act, rew, term, trunc, seed=n)
        assert all(is_aligned(ep.obs, ep.act, ep.rew) for ep in episodes)
        assert all(ep.obs[0, 0] == 0 for ep in episodes)
        assert [ep.seed for ep in episodes] == [n] + [UNKNOWN_SEED] * (len(episodes) - 1)
        kept = sum(ep.num_steps for ep in episodes)
        fakes = int((term | trunc)[:-1].sum())
        assert kept == 40 - fakes  # Nothing else is lost.


def test_a_stream_that_stops_in_mid_episode_keeps_the_rest_as_cut() -> None:
    envs = SyncVectorEnv([partial(Echo, 4)], autoreset_mode=AutoresetMode.NEXT_STEP)
    *_, whole, cut = drop_autoreset_rows(*(part[:, 0] for part in record(envs, 12)))
    assert (whole.num_steps, whole.term, whole.trunc, whole.info) == (4, True, False, {})
    assert (cut.num_steps, cut.term, cut.trunc, cut.info) == (2, False, True, {"cut": True})


def test_a_stream_without_its_last_frame_is_rejected() -> None:
    with pytest.raises(ValueError, match="3 steps needs 4 obs, got 3"):
        drop_autoreset_rows(np.zeros((3, 2)), np.zeros((3, 1)), *np.zeros((3, 3)))


def test_a_long_episode_is_cut_and_reports_it() -> None:
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")], autoreset_mode=AutoresetMode.DISABLED)
    ep = collect_episode(rollout(envs, RandomPolicy(envs.single_action_space), seed=0), 0, max_steps=3)
    assert len(ep.rew) == 3 and len(ep.obs) == 4 and ep.trunc and not ep.term
