"""The object family on a court whose every frame is known: what it sees, what it learns, when its dreams end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from toy_court import BALL, BAT, REACH, SIZE, Court

from wm_agents.data.dataset import Dataset
from wm_agents.data.episode import Episode
from wm_agents.data.shard import write_shard
from wm_agents.models import objects
from wm_agents.models.objects import Objects, ObjectsConfig
from wm_agents.models.slots import Slots, Waves
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_objects import _SlotSet, fit_eye, fit_limits, fit_objects, make_starts, read_slots
from wm_envs.dream import DreamVectorEnv
from wm_envs.world_model import Step

GAMES = 20
SMALL = ObjectsConfig(slots=3, hidden=64, head=32, reach=16, dropout=0.0)
FIT = TrainingConfig(
    total_steps=700, batch_size=128, learning_rate=4e-3, scheduler="onecycle", grad_clip=10.0,
    eval_interval=700, save_interval=700,
)  # fmt: skip


def played(seed: int, longest: int = 200, careless: float = 0.5) -> Episode:
    """A game by a bat that follows the ball, but for a share of random actions."""
    env, rng = Court(), np.random.default_rng(seed)
    obs, acts, rews, term = [env.reset(seed=seed)[0]], [], [], False
    while not term and len(acts) < longest:
        follow = 1 if env.row < env.bat + REACH // 2 else 2
        acts.append(int(rng.integers(3)) if rng.random() < careless else follow)
        frame, rew, term, _, _ = env.step(acts[-1])
        obs.append(frame)
        rews.append(rew)
    return Episode(np.stack(obs), np.array(acts), np.array(rews, np.float32), term, not term, seed, {})


def court(seed: int = 0, **changes: int) -> Objects:
    torch.manual_seed(seed)
    return Objects(SMALL.replace(**changes), Court().observation_space, Court().action_space).eval()


def written(root: Path, *seeds: int) -> Dataset:
    for seed in seeds:
        write_shard(root, f"seed-{seed:07d}", iter([played(seed)]), {})
    return Dataset(root)


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return written(tmp_path_factory.mktemp("court") / "data", *range(GAMES))


@pytest.fixture(scope="session")
def learned(games: Dataset, tmp_path_factory: pytest.TempPathFactory, learning_seed: int) -> tuple[Objects, _SlotSet]:
    """A model that has learned the court, and what it was taught with."""
    model, folder = court(learning_seed), tmp_path_factory.mktemp("fit")
    fit_eye(model, games, np.random.default_rng(learning_seed))
    data = fit_limits(model, read_slots(model, games, folder / "slots"))
    fit_objects(model, data, FIT.replace(seed=learning_seed), folder)
    return model.eval(), data


# What the slots see


def test_slots_find_each_thing_to_the_pixel_and_paint_the_same_frame(games: Dataset) -> None:
    eye = Slots(4, SIZE, SIZE, 1)
    frames = torch.from_numpy(np.concatenate([episode.obs for episode in games.iter_episodes()]))
    eye.fit(frames)
    assert eye.count == 2
    assert eye.colour[:2, 0].tolist() == [BAT, BALL] and eye.size[:2].tolist() == [[REACH, 2], [2, 2]]
    env = Court()
    env.reset(seed=99)
    for step in range(60):
        frame = torch.from_numpy(env.step(step % 3)[0])[None]
        place, here = eye.see(frame)
        assert place[0, 0].tolist() == [env.bat, 1] and here[0, 0] == 1
        assert here[0, 1] == (not env.away)
        if not env.away:
            assert place[0, 1].tolist() == [env.row, env.column]
        assert torch.equal(eye.paint(place, here), frame)


def test_a_thing_cut_off_by_the_border_keeps_its_size() -> None:
    frames = torch.zeros(20, 12, 12, 1, dtype=torch.uint8)
    for i in range(20):
        frames[i, max(i % 11 - 2, 0) : i % 11 + 2, 5:7] = 9
    eye = Slots(2, 12, 12, 1)
    eye.fit(frames)
    place, _ = eye.see(frames[:4])
    assert place[:, 0, 0].tolist() == [-2, -1, 0, 1]
    assert torch.equal(eye.paint(*eye.see(frames)), frames)


def test_an_eye_that_was_never_fitted_sees_nothing() -> None:
    model = court()
    assert not model.encode(torch.from_numpy(Court().reset(seed=0)[0])[None])["here"].any()


# What is kept of the data


def test_any_two_distances_within_a_frame_have_different_waves() -> None:
    waves = Waves(24)
    pixels = torch.arange(-24, 25.0)
    periods = np.array([2, 4, 8, 16, 32, 64])
    angle = 2 * np.pi * pixels.numpy()[:, None] / periods
    np.testing.assert_allclose(waves(pixels[:, None]), np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-5)
    gaps = torch.cdist(waves(pixels[:, None]), waves(pixels[:, None]))
    assert (gaps + 9 * torch.eye(len(pixels))).min() > 1


def test_stored_slots_are_the_latents_that_encoding_in_order_gives(learned: tuple[Objects, _SlotSet]) -> None:
    model, data = learned
    episode, begin = played(3), int(np.flatnonzero(data.episode == 3)[0])
    latent = model.encode(torch.from_numpy(episode.obs[:1]))
    for t in range(80):
        act = torch.eye(3)[[episode.act[t]]]
        latent = model.encode(torch.from_numpy(episode.obs[t + 1][None]), latent, act)
        stored = data.latent(np.array([begin + t + 1]), model.cfg.history)
        for key in ("place", "here", "acts", "age"):
            assert torch.equal(stored[key], latent[key]), (t, key)
        assert stored["score"][0, 0] == (episode.rew[: t + 1] < 0).sum()


def test_frames_seen_before_are_not_looked_at_again_until_the_eye_changes(
    games: Dataset, learned: tuple[Objects, _SlotSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = court()
    model.load_state_dict(learned[0].state_dict())
    want, looked = read_slots(model, games, tmp_path), []
    see = Slots.see
    monkeypatch.setattr(Slots, "see", lambda eye, frames: looked.append(len(frames)) or see(eye, frames))
    again = read_slots(model, games, tmp_path)
    assert not looked and all(torch.equal(getattr(again, name), getattr(want, name)) for name in ("place", "here"))
    model.eye.size[0, 0] += 1
    read_slots(model, games, tmp_path)
    assert sum(looked) == games.num_frames


def test_half_of_what_is_learned_from_is_near_a_contact(learned: tuple[Objects, _SlotSet]) -> None:
    near = np.arange(500, 550)
    data = learned[1]._replace(leaving=np.arange(1000), near=near)
    picked = data.pick(20_000, np.random.default_rng(0))
    assert np.isin(picked, near).mean() == pytest.approx(0.5 + 0.5 * (0.5 * 0.05), abs=0.02)
    data = data._replace(near=np.zeros(0, np.int64))
    assert (data.pick(20_000, np.random.default_rng(0)) >= 750).mean() == pytest.approx(0.5 + 0.5 * 0.25, abs=0.02)


def test_half_of_the_starts_are_of_the_newest_episodes(learned: tuple[Objects, _SlotSet]) -> None:
    _, data = learned
    starts = make_starts(data, 4, 400, np.random.default_rng(0), np.array([GAMES - 1]))
    assert starts["anywhere"]["here"].shape == (400, 4, 3)
    newest = data.latent(data.leaving[data.episode[data.leaving] == GAMES - 1], 4)["place"].flatten(1)
    match = (starts["anywhere"]["place"].flatten(1)[:, None] == newest).all(-1).any(-1)
    assert match[:200].all() and not match[200:].all()
    begin = starts["begin"]
    assert not begin["age"].any() and not begin["score"].any() and not begin["acts"].any()


# What is learned


@torch.inference_mode()
def test_a_dream_is_the_court_pixel_for_pixel_through_its_bounces(learned: tuple[Objects, _SlotSet]) -> None:
    model, _ = learned
    exact = 0
    for seed in range(50, 55):
        game = played(seed, longest=43, careless=0.0)
        assert not game.rew.any(), "a serve is drawn, and no dream could know it"
        real, acts = torch.from_numpy(game.obs), torch.eye(3)[game.act]
        latent = model.encode(real[:1])
        for t in range(3):
            latent = model.encode(real[t + 1 : t + 2], latent, acts[t : t + 1])
        for t in range(3, 43):
            latent = model.step(latent, acts[t : t + 1], temperature=0).latent
            exact += bool(torch.equal(model.decode(latent), real[t + 1 : t + 2]))
    assert exact >= 160, f"{exact} of 200 frames"


def test_a_game_ends_at_the_point_that_ended_those_it_was_learned_from(learned: tuple[Objects, _SlotSet]) -> None:
    model, data = learned
    assert model.limit.tolist() == [3, 3], "no game was won, so the limit of losses holds for wins"
    assert not data.term.any(), "the limit explains every end"
    starts = make_starts(data, model.cfg.history, 64, np.random.default_rng(0), np.arange(GAMES))
    envs = DreamVectorEnv(model, starts, 16, horizon=3000, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    total, over = np.zeros(16), np.zeros(16, bool)
    for _ in range(3000):
        _, rew, term, trunc, _ = envs.step(np.zeros(16, np.int64))
        total, over = total + rew * ~over, over | term
        assert not trunc.any() or over.all()
        if over.all():
            break
    assert (total == -3).all()


def test_ends_at_different_counts_are_no_limit(learned: tuple[Objects, _SlotSet]) -> None:
    model, data = court(), learned[1]
    last = data.leaving[np.append(np.diff(data.episode[data.leaving]) > 0, True)]
    term = torch.zeros(len(data.term))
    term[last] = 1
    for changed in (last[:1], last):  # One end alone; ends that do not agree.
        score = data.score.clone()
        score[last, 0] = torch.arange(len(last)).float()
        some = torch.zeros_like(term)
        some[changed] = 1
        kept = fit_limits(model, data._replace(term=some, score=score))
        assert model.limit.isinf().all() and torch.equal(kept.term, some)


def test_a_limit_of_losses_does_not_hold_for_wins_that_went_further(learned: tuple[Objects, _SlotSet]) -> None:
    model, data = court(), learned[1]
    last = data.leaving[np.append(np.diff(data.episode[data.leaving]) > 0, True)]
    term, score = torch.zeros(len(data.term)), data.score.clone()
    term[last] = 1
    for most, limit in ((2, 3), (3, np.inf)):
        score[:, 1] = most
        fit_limits(model, data._replace(term=term, score=score))
        assert model.limit.tolist() == [3, limit]


def test_row_i_seeded_s_is_the_single_dream_seeded_s_plus_i(learned: tuple[Objects, _SlotSet]) -> None:
    model, data = learned
    starts = make_starts(data, model.cfg.history, 32, np.random.default_rng(0), np.arange(GAMES))
    many = DreamVectorEnv(model, starts, 4, start="anywhere")
    frames = [many.reset(seed=7)[0]] + [many.step(np.full(4, t % 3))[0] for t in range(30)]
    for row in range(4):
        one = DreamVectorEnv(model, starts, 1, start="anywhere")
        alone = [one.reset(seed=7 + row)[0]] + [one.step(np.full(1, t % 3))[0] for t in range(30)]
        assert np.array_equal(np.stack(alone)[:, 0], np.stack(frames)[:, row])


@pytest.mark.parametrize(("num", "temperature"), [(1, 1.0), (8, 1.0), (8, 0.7)])
def test_rows_step_as_the_plain_definition(
    learned: tuple[Objects, _SlotSet], monkeypatch: pytest.MonkeyPatch, num: int, temperature: float
) -> None:
    """Rounding may turn a sample, but not in these."""
    model, data = learned
    frames = np.random.default_rng(0).choice(data.leaving, 200, replace=False)
    latents = data.latent(frames, model.cfg.history)
    rows = [{key: leaf[i : i + num] for key, leaf in latents.items()} for i in range(0, len(frames), num)]
    acts = torch.eye(3)[torch.arange(num) % 3]

    def steps() -> list[tuple[Step, Tensor]]:
        rng = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            taken = [model.step(row, acts, temperature=temperature, generator=rng) for row in rows]
            return [(step, model.feat(step.latent)) for step in taken]

    fast = steps()
    monkeypatch.setattr(objects, "is_dream", lambda leaf: False)
    plain = steps()
    for (ours, our_feat), (theirs, their_feat) in zip(fast, plain, strict=True):
        assert ours.latent.keys() == theirs.latent.keys()
        for key, leaf in theirs.latent.items():
            torch.testing.assert_close(ours.latent[key], leaf, msg=key)
        torch.testing.assert_close(ours[1:], theirs[1:])
        torch.testing.assert_close(our_feat, their_feat)
    assert any((step.rew != 0).any() for step, _ in plain)
    assert any((step.latent["age"][:, :2] == 0).any() for step, _ in plain), "no object appeared or disappeared"


def test_a_change_of_weights_changes_the_next_dreamed_step(learned: tuple[Objects, _SlotSet]) -> None:
    model, data = court(), learned[1]
    model.load_state_dict(learned[0].state_dict())
    latent, act = data.latent(data.leaving[:64], model.cfg.history), torch.eye(3)[torch.arange(64) % 3]

    def share_here() -> float:
        with torch.inference_mode():
            after = model.step(latent, act, generator=torch.Generator().manual_seed(0)).latent
        return float(after["here"][:, -1, 0].mean())

    assert share_here() == 1
    with torch.no_grad():
        model.heads.here[0].bias.sub_(100)
    assert share_here() == 0
    changed = {key: leaf.clone() for key, leaf in model.state_dict().items()}
    model.load_state_dict(learned[0].state_dict())
    assert share_here() == 1
    model.load_state_dict(changed, assign=True)
    assert share_here() == 0


def test_vectors_are_rejected() -> None:
    from gymnasium import spaces

    with pytest.raises(ValueError, match=r"'objects' needs \(H, W, C\) uint8 pixels.*use 'ensemble'"):
        Objects(SMALL, spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
