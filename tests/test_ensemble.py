"""The ensemble: what it learns of systems that are known exactly, and where it says that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.cmaes import CMAConfig
from policies.rollout import returns, rollout
from wm_agents.control.evolve import evolve_in_dream
from wm_agents.data.dataset import Dataset
from wm_agents.data.episode import Episode
from wm_agents.data.replay import Batch
from wm_agents.data.shard import write_shard
from wm_agents.models.ensemble import Ensemble, EnsembleConfig, Moves
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_ensemble import _MoveSet, fit_ensemble, make_starts, read_moves
from wm_envs.dream import DreamConfig, DreamVectorEnv
from wm_envs.noise import RowStreams

SMALL = EnsembleConfig(members=3, hidden=32)
ACT = spaces.Box(-1, 1, (1,), np.float32)
TRAINING = TrainingConfig(
    total_steps=300,
    batch_size=64,
    learning_rate=1e-2,
    scheduler="onecycle",
    mixed_precision=False,
    eval_interval=100,
    save_interval=300,
)
Floats = np.ndarray[Any, np.dtype[np.float32]]


def space(dim: int) -> spaces.Box:
    return spaces.Box(-10, 10, (dim,), np.float32)


def moves(obs: Floats, act: Floats, rew: Floats, term: Floats, next_obs: Floats) -> _MoveSet:
    """Steps that stand alone, ten an episode, so that some are held out."""
    as_tensors = [torch.from_numpy(np.asarray(part, np.float32)) for part in (obs, act, rew, term, next_obs)]
    episode = np.arange(len(obs)) // 10
    return _MoveSet(*as_tensors, episode, np.arange(0, len(obs), 10))


def fitted(data: _MoveSet, path: Path, seed: int, cfg: EnsembleConfig = SMALL, updates: int = 300) -> Ensemble:
    torch.manual_seed(seed)
    model = Ensemble(cfg, space(data.obs.shape[1]), ACT)
    fit_ensemble(model, data, TRAINING.replace(total_steps=updates, seed=seed), path / "fit", first=True)
    return model.eval()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, learning_seed: int) -> Ensemble:
    """x' = x + 0.2 act, which earns act, and ends, earning 5, where x' would be above 1."""
    rng = np.random.default_rng(learning_seed)
    obs, act = rng.uniform(-1, 1, (2000, 1)), rng.uniform(-1, 1, (2000, 1))
    next_obs = obs + 0.2 * act
    term = (next_obs > 1)[:, 0]
    data = moves(obs, act, np.where(term, 5, act[:, 0]), term, next_obs)
    return fitted(data, tmp_path_factory.mktemp("line"), learning_seed, updates=600)


@torch.no_grad()
def test_it_learns_change_reward_and_end(line: Ensemble) -> None:
    obs, act = torch.meshgrid(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 11), indexing="ij")
    obs, act = obs.reshape(-1, 1), act.reshape(-1, 1)
    out = line.step({"obs": obs}, act, temperature=0)
    moved = obs + 0.2 * act
    clear = ((moved - 1).abs() > 0.03)[:, 0]
    ends = (moved > 1)[:, 0]
    assert out.end is not None and ends.sum() > 5
    assert torch.equal(out.end[clear], ends[clear])
    on = clear & ~ends
    torch.testing.assert_close(out.latent["obs"][on], moved[on], atol=0.03, rtol=0)
    torch.testing.assert_close(out.rew[on], act[on, 0], atol=0.15, rtol=0)  # A shift by one would be off by 0.9.
    torch.testing.assert_close(out.rew[clear & ends], torch.full_like(out.rew[clear & ends], 5.0), atol=0.3, rtol=0)
    assert out.cont[clear & ends].max() < 0.5 < out.cont[on].min()


def test_ends_come_as_often_as_they_did_whatever_their_weight_in_the_loss(tmp_path: Path, learning_seed: int) -> None:
    rng = np.random.default_rng(learning_seed)
    obs, act = rng.uniform(-1, 1, (4000, 1)), rng.uniform(-1, 1, (4000, 1))
    data = moves(obs, act, np.ones(4000), rng.random(4000) < 0.1, obs)
    model = fitted(data, tmp_path, learning_seed, EnsembleConfig(members=2, hidden=16, term_weight=20.0))
    with torch.no_grad():
        out = model.step({"obs": data.obs}, data.act, generator=torch.Generator().manual_seed(0))
    assert out.end is not None
    assert float(1 - out.cont.mean()) == pytest.approx(0.1, abs=0.03)
    assert float(out.end.float().mean()) == pytest.approx(0.1, abs=0.03)


@torch.no_grad()
def test_temperature_multiplies_the_variance() -> None:
    obs, act = torch.zeros(4000, 1), torch.zeros(4000, 1)
    one = Ensemble(EnsembleConfig(members=1, hidden=8), space(1), ACT).eval()  # Untrained, it is unsure.

    def spread(tau: float) -> float:
        out = one.step({"obs": obs}, act, temperature=tau, generator=torch.Generator().manual_seed(0))
        return float(out.latent["obs"].std())

    assert spread(1.0) == pytest.approx(2 * spread(0.25), rel=1e-3) and spread(1.0) > 0
    assert spread(0) < 1e-6


@torch.no_grad()
def test_a_row_dreams_the_same_in_a_batch_and_alone(line: Ensemble) -> None:
    obs, act = torch.linspace(-1, 1, 6)[:, None], torch.linspace(1, -1, 6)[:, None]

    def dream(rows: list[int]) -> torch.Tensor:
        streams = RowStreams([np.random.default_rng(row) for row in rows])
        for i in range(len(rows)):
            streams.restart(i)
        latent = {"obs": obs[rows]}
        for _ in range(4):
            latent = line.step(latent, act[rows], generator=streams).latent
        return latent["obs"]

    torch.testing.assert_close(dream([0, 1, 2, 3, 4, 5])[3:4], dream([3]), atol=1e-5, rtol=0)


def test_what_has_two_values_keeps_them(tmp_path: Path, learning_seed: int) -> None:
    rng = np.random.default_rng(learning_seed)
    obs = np.stack([rng.uniform(-1, 1, 2000), rng.integers(0, 2, 2000)], 1)
    act = rng.uniform(-1, 1, (2000, 1))
    next_obs = np.stack([obs[:, 0], act[:, 0] > 0], 1)  # A switch.
    model = fitted(moves(obs, act, np.zeros(2000), np.zeros(2000), next_obs), tmp_path, learning_seed)
    assert model.scale.two_valued.tolist() == [0, 1]
    pressed = torch.tensor([[0.8], [-0.8], [0.6], [-0.6]])
    obs = torch.tensor([[0.0, 1.0]] * 4)
    with torch.no_grad():
        switch = model.step({"obs": obs}, pressed, temperature=0).latent["obs"][:, 1]
        unsure = model.step({"obs": obs}, 0 * pressed, generator=torch.Generator().manual_seed(0)).latent["obs"][:, 1]
    assert switch.tolist() == [1, 0, 1, 0] and set(unsure.tolist()) <= {0, 1}


@torch.no_grad()
def test_dreams_stay_near_what_was_seen(line: Ensemble) -> None:
    latent = {"obs": torch.zeros(8, 1)}
    for _ in range(50):
        latent = line.step(latent, -torch.ones(8, 1), generator=torch.Generator().manual_seed(0)).latent
    low, high = float(line.scale.seen_low), float(line.scale.seen_high)
    assert float(latent["obs"].min()) >= low - (high - low) - 1e-5


def opposed(hidden: int = 8) -> Ensemble:
    """The first member moves by +1, which earns 1, and goes on; the second moves by -1 and ends, which earns 5."""
    model = Ensemble(EnsembleConfig(members=2, hidden=hidden), space(1), ACT).eval()
    says = {"change": [[1, -50], [-1, -50]], "reward": [[1], [3]], "end": [[-50, 7], [50, 5]]}
    with torch.no_grad():
        for name, values in says.items():
            net = getattr(model, name)
            net.weights[-1].zero_()
            net.biases[-1].copy_(torch.tensor(values)[:, None].float())
    return model


@torch.no_grad()
def test_each_row_follows_one_member_in_all_it_does() -> None:
    obs, act = torch.linspace(-1, 1, 4000)[:, None], torch.zeros(4000, 1)
    out = opposed().step({"obs": obs}, act, temperature=1e-9, generator=torch.Generator().manual_seed(0))
    first = out.latent["obs"][:, 0] > obs[:, 0]
    torch.testing.assert_close(out.latent["obs"], torch.where(first[:, None], obs + 1, obs - 1))
    torch.testing.assert_close(out.rew, torch.where(first, 1.0, 5.0))
    assert out.end is not None and torch.equal(out.end, ~first) and torch.equal(out.cont > 0.5, first)
    assert float(first.float().mean()) == pytest.approx(0.5, abs=0.03)


@torch.no_grad()
def test_at_temperature_0_the_mean_of_all_members_is_followed() -> None:
    model = opposed()
    out = model.step({"obs": torch.ones(3, 1)}, torch.zeros(3, 1), temperature=0)
    torch.testing.assert_close(out.latent["obs"], torch.ones(3, 1))
    torch.testing.assert_close(out.cont, torch.full((3,), 0.5))
    with torch.no_grad():
        model.end.biases[-1][1, 0, 0] = -50
    out = model.step({"obs": torch.ones(3, 1)}, torch.zeros(3, 1), temperature=0)
    torch.testing.assert_close(out.rew, torch.full((3,), 2.0))


@torch.no_grad()
def test_disagreement_is_the_spread_of_mean_changes_and_rewards() -> None:
    latent = {"obs": torch.zeros(3, 1)}
    # Both are 1 apart from their mean: (1, -1) and (1, 3).
    torch.testing.assert_close(opposed().disagreement(latent, torch.zeros(3, 1), latent), torch.ones(3))


@pytest.mark.parametrize("num", [1, 16])
def test_a_step_follows_weights_that_change_in_place_and_that_move(num: int) -> None:
    obs, act = {"obs": torch.zeros(num, 1)}, torch.zeros(num, 1)

    def moves_by(model: Ensemble) -> set[float]:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            outs = [model.step(obs, act, temperature=1e-9, generator=generator) for _ in range(16 // num)]
        return {round(float(x), 3) for out in outs for x in out.latent["obs"]}

    model, other = opposed(), opposed()
    assert moves_by(model) == {1, -1}
    with torch.no_grad():
        model.change.biases[-1][:, 0, 0] *= 2  # As an optimizer does.
    twin = deepcopy(model)
    assert moves_by(model) == moves_by(twin) == {2, -2}
    with torch.no_grad():
        twin.change.biases[-1][:, 0, 0] *= 2
    assert moves_by(twin) == {4, -4} and moves_by(model) == {2, -2}
    model.load_state_dict(other.state_dict())
    assert moves_by(model) == {1, -1}
    model.double().float()  # Weights in other memory.
    with torch.no_grad():
        model.change.biases[-1][:, 0, 0] *= 3
    assert moves_by(model) == {3, -3}
    model.scale.change_std.fill_(2)
    assert moves_by(model) == {6, -6}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_step_of_one_row_is_the_plain_step(temperature: float) -> None:
    torch.manual_seed(0)
    model = Ensemble(EnsembleConfig(members=3, hidden=16), space(3), ACT).eval()
    obs, next_obs = (torch.randn(50, 3) for _ in range(2))
    obs[:, 1], next_obs[:, 1] = (torch.randint(0, 2, (2, 50)) - 0.5).unbind()  # Two-valued.
    obs[0, 1], obs[1, 1] = -0.5, 0.5
    model.scale.fit(obs, next_obs, torch.randn(50), torch.arange(50) % 2.0, first=True)
    ends = []
    for i in range(50):
        latent, act = {"obs": 2 * obs[i : i + 1]}, torch.rand(1, 1) * 2 - 1  # Some go beyond the walls.
        with torch.no_grad():
            row = model.step(latent, act, temperature=temperature, generator=torch.Generator().manual_seed(i))
        plain = model.step(latent, act, temperature=temperature, generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(row.latent["obs"], plain.latent["obs"].detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close((row.rew, row.cont), (plain.rew.detach(), plain.cont.detach()), atol=1e-5, rtol=1e-5)
        assert row.end is not None and plain.end is not None and torch.equal(row.end, plain.end)
        ends.append(bool(row.end))
    assert 0 < sum(ends) < 50


def test_gradients_of_a_step_reach_the_weights() -> None:
    model, obs, act = opposed(), {"obs": torch.zeros(16, 1)}, torch.zeros(16, 1)
    with torch.no_grad():
        model.step(obs, act)  # Views without gradients are kept from here on.
    out = model.step(obs, act, generator=torch.Generator().manual_seed(3))
    (out.latent["obs"].sum() + out.rew.sum() + out.cont.sum()).backward()
    for net in (model.change, model.reward, model.end):
        assert net.biases[-1].grad is not None and net.biases[-1].grad.any()


def test_members_learn_from_data_of_their_own(line: Ensemble) -> None:
    with torch.no_grad():
        ahead = line.predict(torch.zeros(1, 2)).mean
    assert float(ahead.std(0).max()) > 0


def test_the_only_episode_of_far_states_is_not_held_out_whole(tmp_path: Path) -> None:
    """Otherwise its loss, which no training lowers, selects the weights of an early update."""
    near, far = (np.full((100, 1), at, np.float32) for at in (0.0, 1.0))
    obs, still = np.concatenate([near, far]), np.zeros((200, 1), np.float32)
    data = moves(obs, still, still[:, 0], still[:, 0], obs)._replace(
        episode=np.repeat([0, 1], 100), first=np.array([0, 100])
    )
    for seed in range(4):
        model = fitted(data, tmp_path / str(seed), seed, updates=1)
        assert 0.4 < model.scale.obs_mean.item() < 0.6


def test_the_reported_loss_of_termination_has_no_weight() -> None:
    model = Ensemble(replace(SMALL, term_weight=5.0), space(1), ACT)
    obs, act, term = torch.randn(1, 8, 1), torch.zeros(1, 8, 1), torch.tensor([[1.0] + [0.0] * 7])
    steps = Moves(obs, act, torch.zeros(1, 8), term, obs)
    chance = model.predict(torch.cat([model.scale.normal(obs), act], -1)).end.sigmoid()
    plain = -torch.where(term > 0, chance, 1 - chance).log()
    weighted = (plain * torch.where(term > 0, 5.0, 1.0)).mean()
    even = Ensemble(replace(SMALL, term_weight=1.0), space(1), ACT)
    even.load_state_dict(model.state_dict())
    lost, evenly = model.moves_loss(steps), even.moves_loss(steps)
    torch.testing.assert_close(lost.components["term"], plain.mean())
    torch.testing.assert_close(lost.loss - evenly.loss, weighted - plain.mean(), rtol=1e-3, atol=1e-4)


def test_feat_keeps_its_units_when_data_change(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def some(size: float) -> _MoveSet:
        obs = rng.uniform(-size, size, (100, 1))
        return moves(obs, np.zeros((100, 1)), np.ones(100), np.zeros(100), obs)

    model = Ensemble(SMALL, space(1), ACT)
    cfg = TRAINING.replace(total_steps=2)
    fit_ensemble(model, some(1.0), cfg, tmp_path / "a", first=True)
    before, narrow = model.feat({"obs": torch.ones(1, 1)}), float(model.scale.obs_std)
    fit_ensemble(model, some(5.0), cfg, tmp_path / "b", first=False)
    torch.testing.assert_close(model.feat({"obs": torch.ones(1, 1)}), before)
    assert float(model.scale.obs_std) > 3 * narrow


class Line(gym.vector.VectorEnv[Any, Any, Any]):
    """A line with two banks: the right one pays more and turns moves round; the pit between them costs 20 and ends."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # noqa: RUF012
    num_envs = 1
    single_action_space = ACT

    def reset(self, **kwargs: Any) -> tuple[Floats, dict[str, Any]]:
        self.x, self.age = 0.0, 0
        return self._obs(), {}

    def step(self, actions: Floats) -> tuple[Any, ...]:
        self.x, self.age = float(move(self.x, float(actions[0, 0]))), self.age + 1
        return self._obs(), np.array([earn(self.x)]), np.array([in_pit(self.x)]), np.array([self.age >= 30]), {}

    def _obs(self) -> Floats:
        return np.array([[self.x]], np.float32)


def move(x: Any, act: Any) -> Any:
    return np.clip(x + np.where(x > 1, -0.2, 0.2) * act, -1, 3)


def in_pit(x: Any) -> Any:
    return (x > 0.5) & (x < 1.5)


def earn(x: Any) -> Any:
    return np.where(in_pit(x), -20.0, np.where(x > 1, 2.0, 0.5 * x))


@pytest.fixture(scope="module")
def beside_the_pit(tmp_path_factory: pytest.TempPathFactory, learning_seed: int) -> Ensemble:
    """A model of the line that has seen both banks of the pit, and never the pit."""
    rng = np.random.default_rng(learning_seed)
    x, act = rng.uniform(-1, 3, 4000), rng.uniform(-1, 1, 4000)
    known = ~in_pit(x) & ~in_pit(move(x, act))
    x, act = x[known], act[known]
    to = move(x, act)
    data = moves(x[:, None], act[:, None], earn(to), np.zeros(len(x)), to[:, None])
    return fitted(data, tmp_path_factory.mktemp("pit"), learning_seed, EnsembleConfig(members=5, hidden=64), 1000)


@torch.no_grad()
def test_members_disagree_where_there_were_no_data(beside_the_pit: Ensemble) -> None:
    x = torch.tensor([[-0.5], [0.0], [2.2], [1.2]])
    latent, act = {"obs": x}, torch.ones(4, 1)
    doubt = beside_the_pit.disagreement(latent, act, beside_the_pit.step(latent, act).latent)
    assert float(doubt[3]) > 1.5 * float(doubt[:3].max())


@pytest.mark.parametrize(("pessimism", "falls"), [(0.0, True), (500.0, False)])
def test_a_controller_exploits_the_plain_dream_and_not_the_pessimistic_one(
    beside_the_pit: Ensemble, pessimism: float, falls: bool, learning_seed: int
) -> None:
    model, zero = beside_the_pit, {"obs": torch.zeros(1, 1)}
    starts = {"begin": zero, "anywhere": zero}
    cfg = CMAConfig(population=8, rollouts=2, generations=20, sigma=1.0, seed=learning_seed)
    evolved = evolve_in_dream(model, starts, cfg, DreamConfig(horizon=30, pessimism=pessimism))

    class OnFeat:
        """The controller sees feat, the line gives x."""

        def reset(self, num: int, seed: int) -> None: ...

        def act(self, obs: Floats) -> Any:
            return evolved.policy.act(model.feat({"obs": torch.from_numpy(obs)}).numpy())

    plain = DreamVectorEnv(model, starts, 1, obs="latent", horizon=30, autoreset_mode="disabled")
    dreamed = float(returns(rollout(plain, evolved.policy, seed=0))[0])
    line = Line()
    returns(rollout(line, OnFeat(), seed=0))
    assert bool(in_pit(line.x)) == falls and (dreamed > 20) == falls


def test_every_step_of_a_dataset_is_read_and_no_other(tmp_path: Path) -> None:
    def episode(start: float, steps: int, term: bool) -> Episode:
        obs = (start + np.arange(steps + 1, dtype=np.float32))[:, None]
        act = np.linspace(-1, 1, steps, dtype=np.float32)[:, None]
        return Episode(obs, act, obs[:-1, 0] * 10, term, not term, int(start), {})

    write_shard(tmp_path, "seed-0000000", [episode(0, 3, True), episode(100, 2, False)])
    data = read_moves(Ensemble(SMALL, space(1), ACT), Dataset(tmp_path))
    assert data.obs[:, 0].tolist() == [0, 1, 2, 100, 101] and data.next_obs[:, 0].tolist() == [1, 2, 3, 101, 102]
    assert data.rew.tolist() == [0, 10, 20, 1000, 1010] and data.term.tolist() == [0, 0, 1, 0, 0]
    assert data.act[:, 0].tolist() == [-1, 0, 1, -1, 1]
    assert data.episode.tolist() == [0, 0, 0, 1, 1] and data.first.tolist() == [0, 3]
    starts = make_starts(data, 50, np.random.default_rng(0), np.array([1]))
    begun, anywhere = ({*starts[bank]["obs"][:, 0].tolist()} for bank in ("begin", "anywhere"))
    assert begun == {100} and anywhere == {100, 101}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble(SMALL, spaces.Box(0, 255, (8, 8, 3), np.uint8), ACT), "needs a Box of vectors"),
        (lambda: EnsembleConfig(members=0), "EnsembleConfig.members must be a whole number of at least 1, got 0"),
        (lambda: EnsembleConfig(members=1.5), "members must be a whole number of at least 1, got 1.5"),
        (lambda: EnsembleConfig(hidden=1.5), "hidden must be a whole number of at least 1, got 1.5"),
        (lambda: EnsembleConfig(layers=1.5), "layers must be a whole number of at least 1, got 1.5"),
        (lambda: EnsembleConfig(term_weight=0.0), "term_weight must be a number above 0, got 0.0"),
        (lambda: Ensemble(SMALL, space(2), ACT).encode(torch.zeros(3, 4)), r"obs must be \(B, 2\), got \(3, 4\)"),
        (
            lambda: Ensemble(SMALL, space(2), ACT).step({"obs": torch.zeros(3, 2)}, torch.zeros(3, 2)),
            r"act must be \(3, 1\) .*got \(3, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_rejected(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# One loss over windows of a replay buffer


def windows(obs: Floats, rew: Floats | None = None) -> Batch:
    """One window of frames (T + 1, D) whose last step ends the episode."""
    steps = len(obs) - 1
    act = torch.linspace(-1, 1, steps)[None, :, None]
    term = torch.zeros(1, steps, dtype=torch.bool)
    term[0, -1] = True
    rew = np.ones(steps, np.float32) if rew is None else rew
    none = torch.zeros(1, steps + 1, dtype=torch.bool)
    return Batch(torch.from_numpy(obs)[None], act, torch.from_numpy(rew)[None], term, none, none)


WALK = np.array([[0, 0], [1, 1], [2, 0], [4, 1], [5, 0]], np.float32)


def test_the_loss_of_windows_is_that_of_their_steps() -> None:
    model, batch = Ensemble(SMALL, space(2), ACT).eval(), windows(WALK, np.array([1, 2, 3, 4], np.float32))
    obs, next_obs = (torch.from_numpy(x)[None] for x in (WALK[:-1], WALK[1:]))
    want = model.moves_loss(Moves(obs, batch.act, batch.rew, batch.term.float(), next_obs))
    assert torch.equal(model.loss(batch).loss, want.loss)
    cut = batch.first.clone()
    cut[0, 2] = True  # The second step belongs to nobody.
    kept = torch.tensor([0, 2, 3])
    steps = (obs, batch.act, batch.rew, batch.term.float(), next_obs)
    want = model.moves_loss(Moves(*(x[:, kept] for x in steps)))
    torch.testing.assert_close(model.loss(replace(batch, first=cut)).loss, want.loss)


def test_training_takes_its_units_from_the_first_batch_and_its_bounds_from_all() -> None:
    model = Ensemble(SMALL, space(2), ACT)
    scale = model.scale
    model.loss(windows(WALK, np.array([3, 3, 3, 7], np.float32)))
    torch.testing.assert_close(scale.obs_mean, torch.from_numpy(WALK[:-1].mean(0)))
    torch.testing.assert_close(scale.feat_mean, scale.obs_mean)
    assert (float(scale.rew), float(scale.end_rew)) == (3, 7)
    assert scale.seen_low.tolist() == [0, 0] and scale.seen_high.tolist() == [5, 1]
    assert scale.two_valued.tolist() == [0, 1]
    mean = scale.obs_mean.clone()
    for inside in ([[0, 0], [5, 1]], [[1, 0], [2, 0]]):  # What was seen between the bounds is not forgotten.
        model.loss(windows(np.array(inside, np.float32)))
        assert scale.seen_low.tolist() == [0, 0] and scale.seen_high.tolist() == [5, 1]
        assert scale.two_valued.tolist() == [0, 1]
    model.loss(windows(np.array([[-2, 1], [9, 0]], np.float32)))
    assert torch.equal(scale.obs_mean, mean)
    assert scale.seen_low.tolist() == [-2, 0] and scale.seen_high.tolist() == [9, 1]
    assert scale.two_valued.tolist() == [0, 1]


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_a_third_value_is_the_end_of_having_two(value: float) -> None:
    model = Ensemble(SMALL, space(2), ACT)
    model.loss(windows(WALK))
    model.loss(windows(np.array([[0, value], [1, value]], np.float32)))
    assert model.scale.two_valued.tolist() == [0, 0]


def test_a_dimension_that_was_constant_may_come_to_have_two_values() -> None:
    model = Ensemble(SMALL, space(2), ACT)
    model.loss(windows(WALK * np.array([1, 0], np.float32)))
    assert model.scale.two_valued.tolist() == [0, 0]
    model.loss(windows(WALK))
    assert model.scale.two_valued.tolist() == [0, 1]
