"""Online training: what is played, counted, remembered and learned, and that a kill costs little."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from toy_env import Echo, is_aligned

from policies.policy import Array
from wm_agents.cli import app as cli
from wm_agents.cli import commands
from wm_agents.data.dataset import Dataset
from wm_agents.data.replay import Batch, ReplayBuffer
from wm_agents.data.vector_stream import Stream
from wm_agents.errors import ConfigurationError
from wm_agents.evaluation import starts
from wm_agents.factory import create_world_model
from wm_agents.loops import online as onlining
from wm_agents.loops.driver import Actor, play
from wm_agents.loops.online import Online, online
from wm_agents.loops.online_config import OnlineConfig, seen_by
from wm_agents.loops.online_config import online_recipe as recipe
from wm_agents.loops.recipes import RECIPES
from wm_agents.models.families import FAMILIES
from wm_agents.models.loss import LossOutput
from wm_agents.system.run_folder import read_metrics, start_run
from wm_agents.training import Trainer, TrainingConfig
from wm_agents.training.data import create_random_buffer
from wm_agents.training.dreamer_agent import DreamerLearner
from wm_envs.real import probe
from wm_envs.registry import TASKS, RealSpec
from wm_envs.world_model import Latent, Step

SPEC = RealSpec("toy_env:Echo-v0", max_episode_steps=12)
CFG = OnlineConfig(
    SPEC, out="", family="tdmpc2", size="ci", real_steps=300, prefill=60, ratio=3.2, batch_size=4, length=2,
    eval_every=80, eval_episodes=2, save_every=50, log_every=10, starts=8, seed=3, device="cpu",
    mixed_precision=False,
)  # fmt: skip


class Watched(Echo):
    """Tells of every reset and step."""

    resets: ClassVar[list[int]] = []
    steps: ClassVar[int] = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict]:
        assert seed is not None
        Watched.resets.append(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict]:
        Watched.steps += 1
        return super().step(action)


class StandIn(nn.Module):
    """A learner of one weight that remembers what it was asked and shown."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.weight = nn.Parameter(torch.zeros(()))
        self.latents: Latent | None = None
        self.acted: list[tuple[int, bool, bool]] = []
        self.batches: list[Batch] = []
        self.updates = 0

    def act(
        self, latent: Latent, *, explore: bool, generator: torch.Generator | None = None, first: Tensor | None = None
    ) -> Tensor:
        assert first is not None and not self.training and not torch.is_grad_enabled()
        self.acted.append((len(first), explore, bool(first.any())))
        return torch.rand(len(first), 1, generator=generator) * 2 - 1

    def loss(self, batch: Batch) -> LossOutput:
        assert self.training
        self.batches.append(batch)
        rows, steps = batch.rew.shape
        self.latents = {"z": torch.full((rows, steps, self.model.feat_dim), float(len(self.batches)))}
        loss = (self.weight - 1).square()
        return LossOutput(loss, {"part": loss}, {})

    def after_update(self) -> None:
        self.updates += 1

    def controller(self) -> Any:
        return self


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner is the stand-in, the environment is watched, and the end of a run has tests of its own."""
    probe(CFG.spec)  # It takes a step.
    monkeypatch.setattr("toy_env.Echo", Watched)
    Watched.resets, Watched.steps = [], 0
    monkeypatch.setitem(FAMILIES, "tdmpc2", FAMILIES["tdmpc2"]._replace(learner=StandIn))
    monkeypatch.setattr(onlining, "deliver", lambda run, candidate, story, **more: {"c": candidate, "s": story})


def run(out: Path, cfg: OnlineConfig = CFG) -> dict[str, Any]:
    return online(replace(cfg, out=str(out)), Console(file=io.StringIO()))


def begun(out: Path, cfg: OnlineConfig = CFG) -> tuple[Online, Any]:
    folder = start_run(str(out), cfg.to_dict(), {})
    return Online(replace(cfg, out=str(out)), folder, Console(file=io.StringIO())), folder


def trained(out: Path, cfg: OnlineConfig = CFG) -> Online:
    training, folder = begun(out, cfg)
    training.loop()
    folder.close()
    return training


# Playing


def test_a_stream_plays_on_with_the_seeds_in_their_order() -> None:
    rng = np.random.default_rng(0)
    seeds = iter(range(5, 100))
    episodes = []
    with Stream(SPEC, 3, seeds) as stream:
        for _ in range(40):
            obs, first = stream.obs.copy(), stream.first.copy()
            assert np.array_equal(obs[:, 0] == 0, first)
            episodes += stream.step(rng.uniform(-1, 1, (3, 1)).astype(np.float32))
    assert {row for row, _ in episodes} == {0, 1, 2}
    for _, ep in episodes:
        assert is_aligned(ep.obs, ep.act, ep.rew) and ep.term
        assert ep.num_steps == _length_of(ep.seed)
    assert Watched.resets == list(range(5, 5 + len(episodes) + 3)) and Watched.steps == 120


def _length_of(seed: int) -> int:
    env = Echo()
    env.reset(seed=seed)
    return env.length


def test_rows_without_a_seed_left_stop() -> None:
    with Stream(SPEC, 2, iter([1, 2, 3])) as stream:
        seen = []
        while stream.going.any():
            seen += [ep.seed for _, ep in stream.step(np.zeros((2, 1), np.float32))]
    assert sorted(seen) == [1, 2, 3]
    assert Watched.steps == sum(map(_length_of, (1, 2, 3)))


class Counting:
    """A world model whose latent counts the frames of its episode, and sums the actions that led to them."""

    device = torch.device("cpu")
    obs_space, act_space = Echo().observation_space, Echo().action_space
    actions = 1

    def __init__(self, draws: bool = False) -> None:
        self.draws = draws

    def initial(self, num: int) -> Latent:
        return {"n": torch.zeros(num, 2)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        assert first is not None
        before = torch.zeros(len(obs), 2) if latent is None else latent["n"] * ~first[:, None]
        led = torch.zeros(len(obs), 1) if act is None else act * ~first[:, None]
        return {"n": before + torch.cat([torch.ones(len(obs), 1), led], 1), "t": obs[:, 0]}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Any = None) -> Step:
        ends = torch.zeros(len(act), dtype=torch.bool) if self.draws else None
        return Step(latent, torch.zeros(len(act)), torch.ones(len(act)), ends)


class Follows:
    """Acts by how many frames it has seen."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def act(self, latent: Latent, *, explore: bool, generator: Any = None) -> Tensor:
        self.seen.append(latent["n"].clone())
        return (latent["n"][:, :1] / 20).clamp(-1, 1)


def test_latents_are_carried_along_each_row_and_forgotten_at_its_next_episode() -> None:
    learner = Follows()
    actor = Actor(learner, Counting(), explore=True, seed=0)  # type: ignore[arg-type]
    sums = np.zeros(2)
    with Stream(SPEC, 2, iter(range(100))) as stream:
        for _ in range(30):
            obs, first = stream.obs.copy(), stream.first.copy()
            sums = np.where(first, 0, sums + obs[:, 1])  # Echo shows the last action.
            stream.step(actor.act(obs, first))
            assert np.array_equal(learner.seen[-1][:, 0].numpy(), obs[:, 0] + 1)
            assert np.allclose(learner.seen[-1][:, 1].numpy(), sums, atol=1e-5)


def test_evaluations_play_each_seed_once_and_in_order() -> None:
    episodes = play(Follows(), Counting(), SPEC, range(900_000, 900_020))  # type: ignore[arg-type]
    assert [ep.seed for ep in episodes] == list(range(900_000, 900_020))
    assert sorted(Watched.resets) == list(range(900_000, 900_020))
    assert Watched.steps == sum(ep.num_steps for ep in episodes)


# The loop


def test_every_real_step_is_counted_and_none_too_many_taken(tmp_path: Path) -> None:
    training = trained(tmp_path)
    assert Watched.steps == training.now.real_steps <= CFG.real_steps
    assert CFG.real_steps - training.now.real_steps <= 2 * 12  # What the last evaluation did not need.
    assert training.now.judged == sum(ep.num_steps for ep in Dataset(tmp_path / "judged").iter_episodes())


@pytest.mark.parametrize("num_envs", [1, 3])
def test_updates_follow_the_ratio(tmp_path: Path, num_envs: int) -> None:
    training = trained(tmp_path, replace(CFG, num_envs=num_envs))
    learner = training.learner
    assert isinstance(learner, StandIn)
    # 3.2 steps replayed for each played, 4 x 2 in an update.
    assert training.trainer.update == learner.updates == int(training.now.played * 0.4)
    assert all(batch.rew.shape == (4, 2) for batch in learner.batches)


def test_a_run_follows_from_its_seed(tmp_path: Path) -> None:
    first, again, other = (
        trained(tmp_path / name, replace(CFG, seed=seed)) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    seen = [[batch.rew for batch in training.learner.batches] for training in (first, again, other)]  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], seen[2]))


def test_seeds_of_collection_and_of_evaluation_are_kept_apart(tmp_path: Path) -> None:
    trained(tmp_path)
    low = [seed for seed in Watched.resets if seed < 900_000]
    high = [seed for seed in Watched.resets if seed >= 900_000]
    assert low == list(range(CFG.first_env_seed, CFG.first_env_seed + len(low)))
    assert len(high) % 2 == 0 and set(high) == {900_000, 900_001}


def test_the_first_steps_are_random_and_nothing_is_learned_from_them_alone(tmp_path: Path) -> None:
    training = trained(tmp_path, replace(CFG, real_steps=60, eval_episodes=0))
    assert isinstance(training.learner, StandIn)
    assert training.learner.acted == [] and training.now.played == 60
    assert training.trainer.update == 24  # Those of all the steps before, at once.


def test_the_first_steps_hold_still_within_an_episode_and_differ_between_them(tmp_path: Path) -> None:
    trained(tmp_path, replace(CFG, num_envs=3, real_steps=120, prefill=120, eval_episodes=0))
    acts = [ep.act[:, 0] for ep in Dataset(tmp_path / "data").iter_episodes()]
    jumps = np.concatenate([np.abs(np.diff(act)) for act in acts])
    assert len({tuple(act[:3].tolist()) for act in acts}) == len(acts) > 3
    assert np.median(jumps) < 0.5  # Two even draws from -1 to 1 are 0.59 apart in the middle.


def test_actions_are_explored_with_and_evaluated_without(tmp_path: Path) -> None:
    training = trained(tmp_path)
    assert isinstance(training.learner, StandIn)
    explored = [rows for rows, explore, _ in training.learner.acted if explore]
    judged = [rows for rows, explore, _ in training.learner.acted if not explore]
    assert len(explored) == training.now.played - CFG.prefill and set(explored) == {1} and set(judged) == {2}
    assert training.learner.acted[0] == (1, True, True)  # The model's first frame opens an episode to it.


def test_what_is_remembered_is_what_was_played_and_is_on_disk(tmp_path: Path) -> None:
    training = trained(tmp_path)
    stored = list(Dataset(tmp_path / "data").iter_episodes())
    assert [ep.seed for ep in stored] == list(range(CFG.first_env_seed, CFG.first_env_seed + len(stored)))
    assert training.buffer.num_episodes == len(stored) and len(training.buffer) == sum(e.num_steps for e in stored)
    begins, lengths = training.buffer.episodes()
    assert lengths.tolist() == [ep.num_steps for ep in stored]
    assert all(np.array_equal(training.buffer.frames(np.array([b]))[0][0], e.obs[0]) for b, e in zip(begins, stored))


def test_posteriors_are_written_back_to_the_frames_that_they_are_of(tmp_path: Path) -> None:
    training = trained(tmp_path)
    assert isinstance(training.learner, StandIn)
    last, num = training.learner.batches[-1], len(training.learner.batches)
    assert last.index is not None
    for batch in (training.buffer.sample(200, 2) for _ in range(5)):
        assert batch.index is not None and batch.latent is not None
        rows = torch.isin(batch.index[:, 0].clone(), last.index[:, 1:].clone())
        assert (batch.latent["z"][rows] == num).all()
    assert rows.any()


def test_latents_of_acting_are_remembered_with_whole_episodes(tmp_path: Path) -> None:
    training = trained(tmp_path, replace(CFG, ratio=1e-9))  # Nothing is written back.
    batch = training.buffer.sample(500, 2)
    assert batch.latent is not None
    known = batch.latent["z"].ne(0).any(-1)
    frames = training.model.encode(batch.obs[:, 0])["z"]
    assert torch.allclose(batch.latent["z"][known], frames[known], atol=1e-3)
    assert 0.5 < known.float().mean() < 1  # Those of the random steps have none.


def test_the_best_weights_are_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 5.0, 5.0, 2.0, 0.0, 0.0, 0.0])
    weights: list[tuple[float, float]] = []

    def scored(learner: StandIn, model: Any, spec: RealSpec, seeds: Any, count: Any) -> Any:
        score = next(scores)
        weights.append((score, learner.weight.item()))
        episodes = play(learner, model, spec, seeds, count)
        return [ep._replace(rew=np.eye(1, ep.num_steps, dtype=np.float32)[0] * np.float32(score)) for ep in episodes]

    monkeypatch.setattr(onlining, "play", scored)
    told = run(tmp_path, replace(CFG, eval_every=50))
    kept = [weight for score, weight in weights if score == 5.0]
    assert len(weights) > 3 and kept[0] != kept[1]
    assert told["c"].policy.weight.item() == kept[1]  # Of equals the later ones.
    assert [e["real"] for e in told["s"].summary["evaluations"]] == [score for score, _ in weights]
    assert told["s"].real_steps == Watched.steps


def test_without_evaluations_the_last_weights_are_delivered(tmp_path: Path) -> None:
    told = run(tmp_path, replace(CFG, eval_episodes=0))
    assert Watched.steps == CFG.real_steps and max(Watched.resets) < 900_000
    assert "the last weights" in told["s"].training and told["c"].policy.weight > 0


def test_progress_is_logged_by_real_steps(tmp_path: Path) -> None:
    training = trained(tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {"train/loss", "train/loss/part", "train/updates", "eval/real/return"} <= {
        key for row in rows for key in row
    }
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["step"] <= training.now.real_steps


# Kills


class Killed(Exception):
    pass


def test_a_killed_run_continues_and_counts_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Online._remember

    def dies(self: Online, episode: Any, latents: Any) -> None:
        if self.now.played > 130:
            raise Killed
        real(self, episode, latents)

    with monkeypatch.context() as patch:
        patch.setattr(Online, "_remember", dies)
        with pytest.raises(Killed):
            run(tmp_path)
    before = Watched.steps
    assert before > 130
    training, folder = begun_again(tmp_path)
    assert training.now.played == 100 and training.trainer.update == 40
    assert training.now.real_steps == before
    assert [ep.seed for ep in Dataset(tmp_path / "data").iter_episodes()] == seeds_of(training.buffer, tmp_path)
    training.loop()
    folder.close()
    assert Watched.steps == training.now.real_steps <= CFG.real_steps
    assert training.trainer.update == int(training.now.played * 0.4)


def test_steps_of_evaluations_that_were_killed_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: Any) -> None:
        play(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(onlining, "play", dies)
        with pytest.raises(Killed):
            run(tmp_path)
    training, folder = begun_again(tmp_path)
    assert training.now.judged == 0 and training.now.real_steps == Watched.steps > 80
    folder.close()


def test_a_budget_that_kills_used_up_is_named(tmp_path: Path) -> None:
    (tmp_path / "real_steps").write_bytes(b"." * 290)
    with pytest.raises(ConfigurationError, match="290 of 300 real steps were lost when the run was killed, .* raise"):
        run(tmp_path)
    assert Watched.steps == 0


def test_a_run_of_an_earlier_version_keeps_its_count(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"real_steps": 7}')
    training, folder = begun_again(tmp_path)
    assert training.now.real_steps == 7
    folder.close()


def test_ctrl_c_saves_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Online._learn

    def pressed(self: Online, *args: Any) -> None:
        if self.now.played == 73:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Online, "_learn", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    training, folder = begun_again(tmp_path)
    assert training.now.played == 73 and training.buffer.num_episodes > 0
    folder.close()


def begun_again(out: Path) -> tuple[Online, Any]:
    folder = start_run(str(out), CFG.to_dict(), {"run": CFG.seed, "collect": CFG.first_env_seed, "judge": 900_000})
    return Online(replace(CFG, out=str(out)), folder, Console(file=io.StringIO())), folder


def seeds_of(buffer: ReplayBuffer, out: Path) -> list[int]:
    """Of the episodes that the buffer holds, by their lengths and first actions."""
    begins, lengths = buffer.episodes()
    stored = {(e.num_steps, float(e.act[0, 0])): e.seed for e in Dataset(out / "data").iter_episodes()}
    return [stored[int(n), float(buffer.frames(np.array([b]))[1][0, 0])] for b, n in zip(begins, lengths)]


def test_a_finished_run_is_only_delivered_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    steps = Watched.steps
    again = run(tmp_path)
    assert Watched.steps == steps and again["s"].real_steps == first["s"].real_steps
    assert torch.equal(again["c"].policy.weight, first["c"].policy.weight)
    with pytest.raises(ValueError, match="contains a run with other settings: config.size was 'ci', now '1m'"):
        run(tmp_path, replace(CFG, size="1m"))


def test_a_finished_run_continues_when_it_is_given_more_steps(tmp_path: Path) -> None:
    first = run(tmp_path)["s"]
    more = run(tmp_path, replace(CFG, real_steps=2 * CFG.real_steps))["s"]
    assert Watched.steps == more.real_steps > first.real_steps + CFG.real_steps / 2
    assert more.summary["evaluations"][: len(first.summary["evaluations"])] == first.summary["evaluations"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(onlining.Trainer, "save_checkpoint", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tmp_path)
    assert list((tmp_path / "data").glob("part-*.h5"))
    training, folder = begun_again(tmp_path)
    assert training.buffer.num_episodes == 0 and not list((tmp_path / "data").glob("part-*.h5"))
    folder.close()


# Where dreams begin and end


def remembered() -> ReplayBuffer:
    """Thirty episodes of Echo."""
    buffer = ReplayBuffer(10_000, (2,), 1)
    with Stream(SPEC, 1, iter(range(30))) as stream:
        rng = np.random.default_rng(0)
        while stream.going.any():
            for _, ep in stream.step(rng.uniform(-1, 1, (1, 1)).astype(np.float32)):
                buffer.add(ep, Counting.act_space)
    return buffer


@pytest.mark.parametrize("burn_in", [32, 3])
def test_starts_are_latents_of_real_moments_with_their_past(monkeypatch: pytest.MonkeyPatch, burn_in: int) -> None:
    monkeypatch.setattr(starts, "BURN_IN", burn_in)
    banks = starts.make_starts(Counting(), remembered(), 400, np.random.default_rng(0))  # type: ignore[arg-type]
    assert torch.equal(banks["begin"]["n"], torch.tensor([[1.0, 0.0]]).expand(400, -1))
    counts = banks["anywhere"]["n"][:, 0]
    assert counts.min() == 1 and counts.max() == min(12, burn_in + 1)
    assert not banks["begin"]["t"].any()  # Echo counts its frames.
    assert torch.equal(counts, banks["anywhere"]["t"].clamp(max=burn_in) + 1)
    again = starts.make_starts(Counting(), remembered(), 400, np.random.default_rng(0))  # type: ignore[arg-type]
    assert torch.equal(banks["anywhere"]["n"], again["anywhere"]["n"])


def test_dreams_cannot_start_without_an_episode() -> None:
    with pytest.raises(ValueError, match="the replay buffer has no episodes; collect more steps"):
        starts.make_starts(Counting(), ReplayBuffer(5, (2,), 1), 4, np.random.default_rng(0))  # type: ignore[arg-type]


def test_the_cut_off_is_calibrated_only_where_it_is_used_and_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        def __init__(self, ends: int) -> None:
            self.ends, self.cut_off = ends, 0.8

    found = Found(40)
    monkeypatch.setattr(starts, "calibrate_cut_off", lambda model, episodes: found)
    episodes = [None] * 3
    assert starts.find_cut_off(Counting(), episodes) == 0.8  # type: ignore[arg-type]
    assert starts.find_cut_off(Counting(draws=True), episodes) == 0.5  # type: ignore[arg-type]
    assert starts.find_cut_off(Counting(), []) == 0.5  # type: ignore[arg-type]
    found = Found(3)
    assert starts.find_cut_off(Counting(), episodes) == 0.5  # type: ignore[arg-type]


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real_steps": 0}, "OnlineConfig.real_steps must be a whole number of at least 1, got 0"),
        ({"ratio": 0.0}, "OnlineConfig.ratio must be a number above 0"),
        ({"eval_every": 0}, "eval_every must be a whole number of at least 1, or None"),
        ({"family": "vmc"}, "family must be one of dreamerv3, tdmpc2, got 'vmc'"),
        ({"size": "5"}, "size of TDMPC2Config must be one of ci, 1m.*, got '5'"),
        ({"overrides": {"horizn": 3}}, "unknown field 'horizn' of TDMPC2Config; did you mean 'horizon'"),
        ({"env_seed": 899_900}, "a run of 300 steps may use the environment seeds 899,900 to 900,199"),
        ({"learning_rate": -1.0}, "learning_rate must be a number above 0"),
    ],
)
def test_wrong_settings_are_named(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CFG, **change)


def test_real_steps_that_cannot_do_are_rejected_before_any_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"real_steps must be at least 120 with prefill=60, .* got 119; raise it"):
        run(tmp_path, replace(CFG, real_steps=119))
    assert Watched.steps == 0
    run(tmp_path, replace(CFG, real_steps=120))


def test_recipes_follow_family_and_observation() -> None:
    pole, pendulum = recipe("dreamerv3", "CartPole-v1"), recipe("tdmpc2", "Pendulum-v1")
    assert (pole.out, pole.size, pole.updates_per_step) == ("runs/cartpole-v1-dreamerv3", "size1m", 0.5)
    assert pendulum.overrides == {"episode_length": 200} and pendulum.prefill == 1000
    assert pendulum.updates_per_step == 1.0 and pendulum.optimizer == "adam"
    car = recipe("dreamerv3", "CarRacing-v3", RECIPES["CarRacing"].spec)
    assert car.spec == RECIPES["CarRacing"].spec and car.size == "size12m" and car.ratio != pole.ratio
    assert not seen_by("dreamerv3", RECIPES["Breakout"].spec).lives_end
    assert recipe("tdmpc2", "CarRacing-v3").spec.stack and not pendulum.spec.stack
    assert not recipe("tdmpc2", "CarRacing-v3", RECIPES["CarRacing"].spec).spec.stack  # As it is said.
    with pytest.raises(ValueError, match="family must be one of dreamerv3, tdmpc2, got 'dreamer3'"):
        recipe("dreamer3", "CartPole-v1")


def test_the_limit_of_an_episode_is_counted_in_the_agents_steps() -> None:
    assert probe(RealSpec("Pendulum-v1")).limit == 200
    assert probe(RealSpec("Pendulum-v1", action_repeat=3)).limit == 67
    assert probe(RealSpec("Pendulum-v1", max_episode_steps=50)).limit == 50
    assert probe(RealSpec("Pendulum-v1", max_episode_steps=50, action_repeat=4)).limit == 50
    assert probe(replace(SPEC, max_episode_steps=None)).limit is None


def test_flags_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OnlineConfig] = []
    monkeypatch.setattr(commands, "learn_online", lambda cfg, console: seen.append(cfg))
    assert (
        cli.main(["improve", "--family", "tdmpc2", "--env", "Pendulum-v1", "--overrides.horizon", "5", "--seed=9"]) == 0
    )
    assert cli.main(["improve", "--family=dreamerv3", "--task", "CartPole", "--size", "ci", "--out", "x"]) == 0
    assert seen[0] == replace(recipe("tdmpc2", "Pendulum-v1"), overrides={"episode_length": 200, "horizon": 5}, seed=9)
    assert seen[1].spec == RECIPES["CartPole"].spec and (seen[1].size, seen[1].out) == ("ci", "x")


def test_a_family_that_does_not_exist_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["improve", "--family", "dreamer3", "--env", "CartPole-v1"]) == 2
    told = capsys.readouterr().err
    assert "one of auto, vmc, ensemble, objects, dreamerv3, tdmpc2, got 'dreamer3'; did you mean 'dreamerv3'?" in told


@pytest.fixture
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.undo()
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("as_they_are")
@pytest.mark.parametrize(("family", "env"), [("dreamerv3", "CartPole-v1"), ("tdmpc2", "Pendulum-v1")])
def test_a_run_of_each_family_ends_with_a_dream_that_can_be_played(tmp_path: Path, family: str, env: str) -> None:
    cfg = recipe(family, env)
    overrides = {"num_samples": 16, "num_elites": 4, "num_prior_plans": 4} if family == "tdmpc2" else {}
    cfg = replace(
        cfg, out=str(tmp_path), size="ci", real_steps=2000, prefill=300, ratio=cfg.ratio / 100, eval_episodes=1,
        final_episodes=2, starts=16, save_every=300, overrides=cfg.overrides | overrides, procs=1, device="cpu",
    )  # fmt: skip
    result = online(cfg, Console(file=io.StringIO()))
    assert result["family"] == family and result["real_steps"] <= 2000 and len(result["real"]["returns"]) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["evaluations"]
    from wm_agents.pretrained import make_dream_vec_env

    envs = make_dream_vec_env(str(tmp_path / "model"), num_envs=3)
    obs, _ = envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[0].shape == obs.shape


def test_what_never_ends_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="has no episode limit"):
        online(replace(CFG, out="nowhere", spec=replace(SPEC, max_episode_steps=None)))
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("family", ["dreamerv3", "tdmpc2"])
def test_every_task_has_steps_enough_to_begin_with(name: str, family: str) -> None:
    spec = seen_by(family, TASKS[name].real)
    cfg = recipe(family, spec.id, spec)
    limit = probe(cfg.spec).limit or 0
    onlining.check_budget(cfg)
    assert limit is not None and cfg.real_steps >= 2 * (cfg.prefill + limit)


def test_lives_are_no_ends_online() -> None:
    with pytest.raises(ConfigurationError, match="online training does not support spec.lives_end; remove it"):
        replace(CFG, spec=replace(SPEC, id="ALE/Breakout-v5", lives_end=True))


def test_ctrl_c_in_the_last_evaluation_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Online._judge

    def pressed(self: Online) -> None:
        real(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Online, "_judge", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(CFG, eval_every=CFG.real_steps))


def test_dreamerv3_learns_offline_from_episodes_shorter_than_its_windows(tmp_path: Path) -> None:
    buffer = create_random_buffer(1000, (4,), 2, num_episodes=20, episode_length=7, seed=0)
    learner = DreamerLearner(create_world_model("dreamerv3:ci", obs_shape=(4,), action_dim=2))  # type: ignore[arg-type]
    cfg = TrainingConfig(total_steps=1, batch_size=2, sequence_length=16, device="cpu", output_dir=str(tmp_path))
    assert Trainer(learner, cfg).fit(buffer).updates == 1
