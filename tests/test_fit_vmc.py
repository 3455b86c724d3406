"""Fitting V and M to a dataset: what is read, what is drawn, what is left behind."""

from __future__ import annotations

from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors.torch import load_file
from toy_env import Echo

from policies.policy import RandomPolicy
from policies.rollout import rollout
from wm_agents.data.dataset import Dataset, write_shard
from wm_agents.data.episode import Episode, collect_episode
from wm_agents.models.vision import to_input
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_vmc import (
    LatentSet,
    _FramePool,
    _rare_steps,
    encode_dataset,
    fit_memory,
    fit_vision,
    make_starts,
    sample_windows,
    set_reward_scale,
)
from wm_agents.training.trainer import Trainer

ACT = gym.spaces.Box(-1, 1, (1,), np.float32)
PIXELS = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
FP32 = TrainingConfig(
    total_steps=20, batch_size=16, learning_rate=1e-3, mixed_precision=False, eval_interval=10, save_interval=10
)


def echo_data(root: Path, num: int = 12, length: int | None = 30, end: str = "trunc", seed: int = 0) -> Dataset:
    """Episodes of Echo: obs = (step, last action), reward = action, all actions drawn independently."""
    envs = SyncVectorEnv([lambda: Echo(length, end)], autoreset_mode=AutoresetMode.DISABLED)
    policy = RandomPolicy(envs.single_action_space)
    seeds = range(num * seed, num * (seed + 1))
    episodes = [collect_episode(rollout(envs, policy, seed=[i], policy_seed=i), i) for i in seeds]
    write_shard(root, "seed-0000000", episodes, {})
    return Dataset(root)


def pixel_data(root: Path, num: int = 6, steps: int = 40, seed: int = 0) -> Dataset:
    """A bright square that drifts over a dark ground."""
    rng = np.random.default_rng(seed)
    episodes = []
    for i in range(num):
        obs = np.full((steps + 1, 32, 32, 3), 40, np.uint8)
        y, x = rng.integers(0, 24, 2)
        for t in range(steps + 1):
            obs[t, y : y + 8, (x + t) % 24 : (x + t) % 24 + 8, i % 3] = 220
        act = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
        episodes.append(Episode(obs, act, act[:, 0], False, True, i, {}))
    write_shard(root, "seed-0000000", episodes, {})
    return Dataset(root)


def echo_model(seed: int = 0, **fields: object) -> VMC:
    torch.manual_seed(seed)
    cfg = VMCConfig(**{"vision": "identity", "hidden": 32, **fields})  # type: ignore[arg-type]
    return VMC(cfg, gym.spaces.Box(-100, 100, (2,), np.float32), ACT)


def pixel_model(seed: int = 0) -> VMC:
    torch.manual_seed(seed)
    return VMC(VMCConfig(z_dim=8, hidden=16), PIXELS, ACT)


def counting(lengths: list[int]) -> LatentSet:
    """Latents that say where they come from: mu = (episode, t), act = rew = t, term at the last step of even ones."""
    length = np.array(lengths)
    offset = np.concatenate([[0], np.cumsum(length + 1)[:-1]])
    where = torch.tensor([[e, t] for e, n in enumerate(lengths) for t in range(n + 1)], dtype=torch.float32)
    t = where[:, 1]
    term = torch.cat([torch.eye(n + 1)[n - 1] * (e % 2 == 0) for e, n in enumerate(lengths)])
    return LatentSet(where, torch.zeros_like(where), t[:, None], t, term, offset, length)


# Seeing


def test_every_frame_is_seen_and_every_step_kept_in_its_place(tmp_path: Path) -> None:
    data = echo_data(tmp_path, length=None, end="term")
    model = echo_model()
    seen = encode_dataset(model, data, batch_size=5)
    assert seen.length.tolist() == data.lengths.tolist() and len(seen.mu) == data.num_frames
    for e, ep in enumerate(data.iter_episodes()):
        frames = slice(seen.offset[e], seen.offset[e] + len(ep.obs))
        steps = slice(frames.start, frames.stop - 1)
        assert torch.equal(seen.mu[frames], torch.from_numpy(ep.obs))
        assert np.array_equal(seen.act[steps].numpy(), ep.act) and np.array_equal(seen.rew[steps].numpy(), ep.rew)
        assert seen.term[steps].tolist() == [0.0] * (ep.num_steps - 1) + [1.0]
        last = frames.stop - 1
        assert seen.act[last] == seen.rew[last] == seen.term[last] == 0


def test_a_batch_of_frames_holds_few_neighbours_and_is_the_same_again(tmp_path: Path) -> None:
    data = echo_data(tmp_path, num=4, length=1000)  # A frame says which step it is.
    pool = _FramePool(data, FP32, np.arange(3))
    batches = [pool.batch(update)[:, 0].sort().values for update in range(50)]
    neighbours = sum(int((batch.diff() == 1).sum()) for batch in batches) / (50 * (FP32.batch_size - 1))
    assert neighbours < 0.1  # 16 of 1,001 steps, in 3 episodes, drawn alone: 4 %.
    again = _FramePool(data, FP32, np.arange(3))
    assert all(torch.equal(again.batch(update)[:, 0].sort().values, batches[update]) for update in (49, 3))
    assert not torch.equal(pool.batch(pool.deals)[:, 0], pool.batch(0)[:, 0])


def test_images_are_kept_in_half_precision_and_vectors_whole(tmp_path: Path) -> None:
    seen = encode_dataset(pixel_model(), pixel_data(tmp_path / "a"))
    assert seen.mu.dtype == seen.logsigma.dtype == torch.float16
    assert encode_dataset(echo_model(), echo_data(tmp_path / "b")).mu.dtype == torch.float32


def test_a_dataset_without_episodes_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "seed-0000000.h5").write_bytes(b"no shard")
    with pytest.raises(ValueError, match=r"no episodes in .*skipped: .*seed-0000000.h5.*collect episodes first"):
        encode_dataset(echo_model(), Dataset(tmp_path))


def test_seeing_twice_gives_the_same_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    data = pixel_data(tmp_path / "data")
    files = sorted((tmp_path / "data").iterdir())
    model = pixel_model()
    fit_vision(model, data, FP32, tmp_path / "run")
    first = encode_dataset(model, data)
    second = encode_dataset(model, Dataset(tmp_path / "data"))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first, second))
    assert sorted((tmp_path / "data").iterdir()) == files


# Drawing


def test_windows_stay_in_their_episode_and_know_where_it_ends() -> None:
    data = counting([9, 3, 20, 1, 5])
    w = sample_windows(data, 400, 5, np.random.default_rng(0), np.array([0, 1, 2, 3]))
    assert w.mu.shape == w.logsigma.shape == (400, 6, 2) and w.act.shape == (400, 5, 1)
    assert w.rew.shape == w.term.shape == w.mask.shape == (400, 5)
    episode, t = w.mu[..., 0], w.mu[..., 1]
    assert (episode == episode[:, :1]).all() and set(episode[:, 0].tolist()) == {0, 1, 2, 3}
    on = w.mask.bool()
    length = torch.from_numpy(data.length)[episode[:, 0].long()][:, None]
    assert torch.equal(on, t[:, :1] + torch.arange(1, 6) <= length)
    assert (t[:, 1:] - t[:, :-1] == 1)[on].all()
    assert torch.equal(w.act[..., 0][on], t[:, :-1][on]) and torch.equal(w.rew[on], t[:, :-1][on])
    assert torch.equal(w.term[on], ((t[:, 1:] == length) & (episode[:, 1:] % 2 == 0)).float()[on])
    assert on.all(1)[(length >= 5)[:, 0]].all()  # Only short episodes are masked.


def test_first_and_last_steps_are_drawn_no_less_often_than_those_between() -> None:
    data = counting([40, 15, 3])
    w = sample_windows(data, 20_000, 8, np.random.default_rng(0), np.arange(3))
    seen = np.zeros((3, 40))
    episode, t = w.mu[:, :-1, 0].long(), w.mu[:, :-1, 1].long()
    np.add.at(seen, (episode[w.mask.bool()], t[w.mask.bool()]), 1)
    middle = seen[0, 15:25].mean()
    for e, n in enumerate([40, 15, 3]):
        share = seen[e, :n] / middle
        assert share.min() > 0.9 and share.max() < 3.1, share
    assert seen[0, 39] == pytest.approx(middle, rel=0.1)


def test_windows_are_a_function_of_their_generator() -> None:
    data, among = counting([9, 30]), np.arange(2)
    a, b, other = (sample_windows(data, 8, 5, np.random.default_rng(s), among) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a.mu, other.mu)


def test_rare_steps_are_ends_and_rewards_but_the_commonest_of_each_kind_as_many() -> None:
    data = counting([9, 3, 20, 6])
    rew = torch.zeros(len(data.rew))
    rew[data.offset[2] + 4] = 5.0
    rew[data.offset[2] + 7] = rew[data.offset[0] + 1] = -1.0
    rew[data.offset[1] + 1] = 5.0  # Of an episode that is not asked for.
    rew[data.offset + data.length] = 9.0  # No step leaves the last frame.
    rare = _rare_steps(data._replace(rew=rew), np.array([0, 2, 3]))
    found = {(int(e), int(t)): round(float(p), 6) for e, t, p in zip(*rare, strict=True)}
    third, sixth = round(1 / 3, 6), round(1 / 6, 6)
    assert found == {(0, 1): sixth, (2, 7): sixth, (2, 4): third, (0, 8): sixth, (2, 19): sixth}
    assert _rare_steps(data._replace(rew=rew * 0, term=rew * 0), np.arange(4)) is None


def test_one_window_in_eight_holds_a_rare_step_anywhere_in_it() -> None:
    data = counting([400, 300])
    rew = torch.zeros(len(data.rew))
    rew[200] = 1.0
    data, among = data._replace(rew=rew, term=rew * 0), np.arange(2)
    rare = _rare_steps(data, among)
    w = sample_windows(data, 800, 8, np.random.default_rng(0), among, rare)
    holds = (w.rew > 0).any(1)
    assert holds[:100].all() and holds[100:].sum() < 50
    where = np.bincount(w.rew[:100].argmax(1), minlength=8)
    assert where.min() > 2  # It is not always the window's middle.
    plain = sample_windows(data, 800, 8, np.random.default_rng(0), among)
    assert torch.equal(plain.mu[100:], w.mu[100:])  # The others are drawn as ever.


# Alignment


@pytest.mark.parametrize("by, learns", [(0, True), (1, False), (-1, False)])
def test_memory_predicts_the_next_latent_from_the_action_that_leads_to_it(
    tmp_path: Path, by: int, learns: bool, learning_seed: int
) -> None:
    """Actions are drawn independently, so that one from a step before or after explains nothing."""
    data, model = echo_data(tmp_path / "data", seed=learning_seed), echo_model(learning_seed)
    fit_vision(model, data, FP32, tmp_path / "vision")  # The normaliser of vectors.
    seen = encode_dataset(model, data)
    set_reward_scale(model, seen)
    seen = seen._replace(act=seen.act.roll(by, 0))
    among = np.arange(len(seen.length))
    cfg = FP32.replace(total_steps=120, batch_size=64, learning_rate=1e-2, seed=learning_seed)
    trainer = Trainer(model.memory, cfg, loss=lambda w: model.memory_loss(*w), run_dir=tmp_path / "memory")
    # Windows of one step: with more, M could remember an action that came too early.
    trainer.fit(lambda i: sample_windows(seen, cfg.batch_size, 1, cfg.rng(i), among))
    w = sample_windows(seen, 256, 1, np.random.default_rng(1), among)
    with torch.no_grad():
        mus, _, logpi, rew, _ = model.memory(w.act.transpose(0, 1), w.mu[:, :-1].transpose(0, 1))
    echo, want = (logpi.exp()[..., None] * mus).sum(2)[0, :, 1], w.mu[:, 1, 1]
    unexplained = float((echo - want).square().mean() / want.var())
    rew_error = float((rew[0] * model.rew_scale - w.rew[:, 0]).square().mean() / w.rew.var())
    assert (unexplained < 0.1 and rew_error < 0.1) if learns else (unexplained > 0.7 and rew_error > 0.7)


# Fitting


def test_vision_learns_and_leaves_its_best_weights_and_images(tmp_path: Path, learning_seed: int) -> None:
    data, model = pixel_data(tmp_path / "data", seed=learning_seed), pixel_model(learning_seed)
    frames = torch.from_numpy(data.frames(64, np.random.default_rng(5)))
    before = float(model.vision_loss(frames).loss.detach())
    cfg = FP32.replace(total_steps=40, learning_rate=5e-3, eval_interval=20, seed=learning_seed)
    result = fit_vision(model, data, cfg, tmp_path / "run")
    assert result.updates == 40 and result.best_val is not None
    after = float(model.vision_loss(frames).loss.detach())
    assert after < before / 3 and result.best_val < before / 3
    pictures = sorted((tmp_path / "run" / "samples").iterdir())
    assert [p.name for p in pictures] == ["update_00000040.png"]  # Every second validation.
    picture = cv2.imread(str(pictures[-1]))
    assert picture.shape == (64, 8 * 32, 3)
    real, recon = picture[:32], picture[32:]
    assert real.max() == 220 and np.abs(real.astype(int) - recon).mean() < 40


def test_images_show_the_colours_of_the_frames(tmp_path: Path) -> None:
    data = pixel_data(tmp_path / "data", num=1)  # Its square is red.
    fit_vision(pixel_model(), data, FP32.replace(total_steps=1), tmp_path / "run")
    picture = cv2.imread(str(tmp_path / "run" / "samples" / "update_00000001.png"))[..., ::-1]
    assert picture[:32].max((0, 1)).tolist() == [220, 40, 40]


def dots(num: int, steps: int = 150, seed: int = 0) -> tuple[list[Episode], np.ndarray]:
    """A bar of two grey pixels at one of five places, over a ground that never changes."""
    rng = np.random.default_rng((seed, num))
    ground = np.random.default_rng(seed).integers(60, 120, (32, 32, 1)).astype(np.uint8)
    act = np.zeros((steps, 1), np.float32)
    episodes = []
    for i in range(num):
        obs = np.broadcast_to(ground, (steps + 1, 32, 32, 1)).copy()
        for frame, x in zip(obs, rng.choice([4, 10, 16, 22, 28], steps + 1)):
            frame[14:16, x] = 240
        episodes.append(Episode(obs, act, act[:, 0], False, True, i, {}))
    return episodes, ground


@pytest.mark.slow
@pytest.mark.parametrize("motion_weight, sees", [(31.0, True), (0.0, False)])
def test_a_dot_that_moves_is_drawn_where_it_is(
    tmp_path: Path, motion_weight: float, sees: bool, learning_seed: int
) -> None:
    """Without the weight V draws the ground alone: two of 1,024 pixels are not worth a latent."""
    episodes, ground = dots(6, seed=learning_seed)
    write_shard(tmp_path / "data", "seed-0000000", episodes, {})
    torch.manual_seed(learning_seed)
    cfg = VMCConfig(z_dim=4, hidden=8, motion_weight=motion_weight, kl_weight=0.005)
    model = VMC(cfg, gym.spaces.Box(0, 255, (32, 32, 1), np.uint8), ACT)
    training = FP32.replace(total_steps=200, learning_rate=2e-3, batch_size=32, eval_interval=200, seed=learning_seed)
    fit_vision(model, Dataset(tmp_path / "data"), training, tmp_path / "run")
    obs = dots(1, seed=learning_seed)[0][0].obs
    with torch.no_grad():
        recon = model.vision.decode_obs(model.vision.encode(to_input(torch.from_numpy(obs)))[0]).numpy()
    change = recon.astype(int) - ground
    place = [np.stack(np.unravel_index(x.reshape(len(x), -1).argmax(1), (32, 32)), 1) for x in (obs - ground, change)]
    hits = (np.abs(place[0] - place[1]).max(1) <= 2) & (change.max((1, 2, 3)) > 40)
    assert hits.mean() >= 0.95 if sees else hits.mean() < 0.5


def test_the_still_frame_is_the_median_of_the_data_and_set_once(tmp_path: Path) -> None:
    episodes, ground = dots(6)
    write_shard(tmp_path / "data", "seed-0000000", episodes, {})
    cfg = VMCConfig(z_dim=4, hidden=8, motion_weight=31.0)
    model = VMC(cfg, gym.spaces.Box(0, 255, (32, 32, 1), np.uint8), ACT)
    one = FP32.replace(total_steps=1)
    fit_vision(model, Dataset(tmp_path / "data"), one, tmp_path / "run")
    assert np.array_equal((model.vision.still * 255).round().numpy(), ground.transpose(2, 0, 1))  # type: ignore[union-attr]
    model.vision.still.fill_(0.5)  # type: ignore[union-attr]
    fit_vision(model, Dataset(tmp_path / "data"), one, tmp_path / "again")
    assert (model.vision.still == 0.5).all()  # type: ignore[union-attr]


def test_the_normaliser_has_the_moments_of_the_data(tmp_path: Path) -> None:
    data, model = echo_data(tmp_path / "data", num=40), echo_model()
    result = fit_vision(model, data, FP32, tmp_path / "run")
    frames = np.concatenate([ep.obs for ep in data.iter_episodes()])
    assert result.updates == 0
    kept = load_file(tmp_path / "run" / "best.safetensors")  # Where the weights of an image model lie too.
    assert all(torch.equal(kept[name], leaf) for name, leaf in model.vision.state_dict().items())
    assert np.allclose(model.vision.mean, frames.mean(0), rtol=0.15, atol=0.15)  # type: ignore[union-attr]
    assert np.allclose(model.vision.std, frames.std(0), rtol=0.15)  # type: ignore[union-attr]


def test_memory_learns_and_the_best_weights_stay(tmp_path: Path, learning_seed: int) -> None:
    data, model = echo_data(tmp_path / "data", seed=learning_seed), echo_model(learning_seed)
    fit_vision(model, data, FP32, tmp_path / "vision")
    latents = encode_dataset(model, data)
    torch.manual_seed(learning_seed)
    held_out = sample_windows(latents, 64, 8, np.random.default_rng(9), np.arange(12))
    before = float(model.memory_loss(*held_out).loss.detach())
    cfg = FP32.replace(total_steps=60, learning_rate=1e-2, seed=learning_seed)
    result = fit_memory(model, latents, cfg, tmp_path / "memory", window=8)
    after = float(model.memory_loss(*held_out).loss.detach())
    assert result.updates == 60 and result.best_val is not None and result.best_val < before / 2
    assert after == pytest.approx(result.best_val, abs=0.3)


def test_rare_rewards_are_named_one_step_ahead(tmp_path: Path, learning_seed: int) -> None:
    """One step in 50 earns 1, always after z = 1; a mean over all steps would say 0.02 everywhere."""
    rng = np.random.default_rng(learning_seed)
    data = counting([400] * 4)
    hit = torch.from_numpy(rng.random(len(data.rew)) < 0.02).float()
    hit[data.offset + data.length] = 0
    mu = torch.stack([hit, torch.randn(len(hit), generator=torch.Generator().manual_seed(0))], 1)
    data = data._replace(mu=mu, logsigma=torch.full_like(mu, -2), rew=hit, term=hit * 0, act=data.act * 0)
    model = echo_model(learning_seed, rew_head="classes", rew_weight=10.0)
    cfg = FP32.replace(total_steps=150, learning_rate=1e-2, seed=learning_seed)
    fit_memory(model, data, cfg, tmp_path, window=16)
    assert model.classes.values[:2].tolist() == [0, 1] and model.classes.weights[:3].tolist() == [1, 3, 0]
    w = sample_windows(data, 64, 16, np.random.default_rng(1), np.arange(4))
    with torch.no_grad():
        logits = model.memory(w.act.transpose(0, 1), w.mu[:, :-1].transpose(0, 1))[3]
    dreamed = model.classes.expected(logits).T
    assert dreamed[w.rew == 1].mean() > 0.9 and dreamed[w.rew == 0].mean() < 0.02


class Stop(Callback):
    """Ends training as a kill would, at an update."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_update(self, trainer: Trainer) -> None:
        if trainer.update == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("part", ["vision", "memory"])
def test_a_killed_fit_resumes_to_the_same_weights(tmp_path: Path, part: str) -> None:
    data = pixel_data(tmp_path / "data")
    weights = []
    for name, stops in [("whole", []), ("killed", [Stop(13)])]:
        for callbacks in [stops, []]:
            model = pixel_model()  # What a new process would build.
            latents = encode_dataset(model, data) if part == "memory" else None
            try:
                if latents is None:
                    fit_vision(model, data, FP32, tmp_path / name, tuple(callbacks))
                else:
                    fit_memory(model, latents, FP32, tmp_path / name, 8, tuple(callbacks))
            except KeyboardInterrupt:
                assert name == "killed"
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert (
        not torch.equal(weights[0]["memory.gmm_linear.bias"], pixel_model().memory.gmm_linear.bias) or part != "memory"
    )


@pytest.mark.parametrize("part", ["vision", "memory"])
def test_plateaus_lower_the_learning_rate_and_patience_ends_the_fit(tmp_path: Path, part: str) -> None:
    data, model, lrs = pixel_data(tmp_path / "data"), pixel_model(), []

    class Watch(Callback):
        def on_validation(self, trainer: Trainer, value: float) -> None:
            lrs.append(trainer.optimizer.param_groups[0]["lr"])

    cfg = FP32.replace(
        total_steps=500, scheduler="plateau", plateau_patience=1, eval_interval=1, patience=4, learning_rate=1.0
    )
    run = tmp_path / "run"
    if part == "vision":
        result = fit_vision(model, data, cfg, run, (Watch(),))
    else:
        result = fit_memory(model, encode_dataset(model, data), cfg, run, 8, (Watch(),))
    assert result.stopped == "no improvement in 4 validations" and result.updates < 500
    assert lrs[-1] < lrs[0] / 2
    best, last = load_file(run / "best.safetensors"), load_file(run / "last.safetensors")
    kept = getattr(model, part).state_dict()
    assert all(torch.equal(kept[name], leaf) for name, leaf in best.items())
    assert not all(torch.equal(last[f"module/{name}"], leaf) for name, leaf in best.items())


def test_a_lone_episode_trains_and_validates(tmp_path: Path) -> None:
    data, model = echo_data(tmp_path / "data", num=1), echo_model()
    fit_vision(model, data, FP32, tmp_path / "vision")
    assert fit_memory(model, encode_dataset(model, data), FP32, tmp_path / "memory", 8).best_val is not None


# Rewards and starts


def test_rewards_are_scaled_by_their_root_mean_square() -> None:
    model = echo_model()
    data = counting([3, 2])
    for rew, want in [([3, -3, 3, 0, 4, -4, 0], (59 / 5) ** 0.5), ([1, 1, 1, 0, 1, 1, 0], 1.0), ([0] * 7, 1.0)]:
        set_reward_scale(model, data._replace(rew=torch.tensor(rew, dtype=torch.float32)))
        assert float(model.rew_scale) == pytest.approx(want)


def test_starts_are_posteriors_with_the_memory_of_the_frames_before_them() -> None:
    model = echo_model()
    data = counting([9, 30, 25])
    starts = make_starts(model, data, 50, np.random.default_rng(0), burn_in=10)
    begin, anywhere = starts["begin"], starts["anywhere"]
    for bank in (begin, anywhere):
        assert {key: tuple(leaf.shape) for key, leaf in bank.items()} == {"z": (50, 2), "h": (50, 32), "c": (50, 32)}
    assert (begin["z"][:, 1] == 0).all() and not begin["h"].any() and not begin["c"].any()
    assert set(begin["z"][:, 0].tolist()) == {0, 1, 2}
    assert set(anywhere["z"][:, 0].tolist()) == {1, 2}  # The first is too short to have taken in 10 frames.
    for i in range(50):
        e, t = (int(x) for x in anywhere["z"][i])
        assert 10 <= t < data.length[e]
        past = slice(int(data.offset[e]) + t - 10, int(data.offset[e]) + t)
        with torch.no_grad():
            _, (h, c) = model.memory.rnn(torch.cat([data.act[past], data.mu[past]], 1)[:, None])
        assert torch.allclose(anywhere["h"][i], h[0, 0], atol=1e-5)
        assert torch.allclose(anywhere["c"][i], c[0, 0], atol=1e-5)


def test_starts_come_from_the_episodes_that_are_named() -> None:
    model, data = echo_model(), counting([30, 30, 30])
    starts = make_starts(model, data, 50, np.random.default_rng(0), np.array([2]), burn_in=10)
    assert set(starts["begin"]["z"][:, 0].tolist()) == set(starts["anywhere"]["z"][:, 0].tolist()) == {2}


@pytest.mark.parametrize(("lengths", "moments"), [([9, 3], {4, 5, 6, 7, 8}), ([2, 2], {1}), ([1], {0})])
def test_where_all_episodes_are_short_starts_have_taken_in_half_of_the_longest(
    lengths: list[int], moments: set[int]
) -> None:
    model, data = echo_model(), counting(lengths)
    starts = make_starts(model, data, 50, np.random.default_rng(0), burn_in=16)["anywhere"]
    assert set(starts["z"][:, 1].tolist()) == moments  # A step leaves each of them.
    assert bool(starts["h"].any()) == (max(lengths) > 1)


def test_vectors_and_images_reach_vision_as_floats() -> None:
    assert to_input(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).shape == (2, 3, 8, 8)
    assert to_input(torch.full((2, 128), 7, dtype=torch.uint8)).tolist() == [[7.0] * 128] * 2
