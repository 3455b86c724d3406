"""Measures with known answers: an exact model is perfect in all of them, a bent one worse in the one it is bent in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import BOX, Toy
from toy_line import END, LINE, Backwards, Doubtful, Drifting, Hot, constant, playing, subject
from toy_policy import Always, Raises

from policies.cmaes import CMAConfig
from policies.linear import LinearPolicy
from policies.play import EpisodeTask
from wm_agents.control.evolve import evolve_in_dream
from wm_agents.data.episode import Episode
from wm_agents.evaluation.determinism import check_seeds
from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.fidelity import temperature as sweep
from wm_agents.evaluation.fidelity.calibration import drawn_ends, reliability
from wm_agents.evaluation.fidelity.closed_loop import closed_loop
from wm_agents.evaluation.fidelity.history import History, _Round, find_run, read_history, told_history
from wm_agents.evaluation.fidelity.measure import Fidelity, FidelityConfig, measure
from wm_agents.evaluation.fidelity.open_loop import OpenLoop, _match_ends, open_loop
from wm_agents.evaluation.held_out import record
from wm_agents.evaluation.posterior import OneStep, predict_steps
from wm_agents.evaluation.statistics import pearson, spearman
from wm_agents.evaluation.variants import RANDOM, SAVED, Contender, contenders, controller
from wm_agents.evaluation.windows import copy_error, draw_windows, obs_scale
from wm_agents.loops.rounds import STAGES
from wm_envs.dream import DreamConfig
from wm_envs.registry import RealSpec

EXACT = Toy(end=END)
CFG = FidelityConfig(episodes=4, dream_episodes=4, windows=200, horizons=(1, 2, 5, 10), temperatures=(0.5, 1.0))
AMONG = [
    Contender(SAVED),
    Contender(RANDOM),
    *(Contender(f"{move}", weights=constant(move).weights) for move in (0.1, 0.3, 0.9, -0.5)),
]


class Draws(Toy):
    """Draws its ends, always right, and says nothing of them in cont."""

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        return out._replace(end=out.cont < 0.5, cont=out.cont * 0 + 1)


class Faint(Toy):
    """cont is 0.3 at the end, else 1."""

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        return out._replace(cont=0.3 + 0.7 * out.cont)


@pytest.fixture(scope="module")
def exact() -> Fidelity:
    return measured(EXACT)


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    jobs = [
        EpisodeTask(1_000_000 + i, (who,)) for i in range(8) for who in (Contender(SAVED, noise=0.5), Contender(RANDOM))
    ]
    return list(playing(EXACT, constant(0.45))(jobs))


def measured(model: Toy, cfg: FidelityConfig = CFG) -> Fidelity:
    like = subject(model)
    return measure(like, playing(EXACT, like.policy), cfg, among=AMONG)


def looked_ahead(model: Toy, episodes: list[Episode], **kwargs) -> OpenLoop:
    how = {"horizons": (1, 2, 5, 10), "windows": 10_000, "temperature": 1.0, "cut_off": 0.5}
    return open_loop(model, episodes, **{**how, **kwargs})


def test_an_exact_model_predicts_all(exact: Fidelity) -> None:
    loop = exact.open_loop
    assert [h.steps for h in loop.horizons] == [1, 2, 5, 10]
    assert loop.rec_mse == pytest.approx(0, abs=1e-9)
    for h in loop.horizons:
        assert 0 < h.windows <= loop.windows
        for way in (h.likely, h.sampled):
            assert way.obs_mse == pytest.approx(0, abs=1e-9)
            assert way.rew_mse == pytest.approx(0, abs=1e-9)
            assert way.rew_corr == pytest.approx(1) and way.sum_corr == pytest.approx(1)
            assert way.sum_mean == pytest.approx(h.sum_mean)
            assert (way.end_precision, way.end_recall, way.num_ends) == (1, 1, h.num_ends)
            assert way.doubt_corr is None
        assert h.copy_mse > 0.01 and h.num_ends > 0


def test_an_exact_model_has_no_gap_and_orders_all_policies(exact: Fidelity) -> None:
    assert exact.real_episodes == 24
    assert exact.gap.real == pytest.approx(9 * 0.45, abs=1e-5)
    assert exact.gap.gap == pytest.approx(0, abs=1e-5)
    assert exact.ranking.spearman == 1
    assert exact.ranking.pearson > 0.99
    assert [p.name for p in exact.ranking.policies] == [who.name for who in AMONG]
    for row in exact.closed_loop:
        assert row.dream == pytest.approx(row.real, abs=1e-5)


def test_an_exact_model_s_probabilities_can_be_taken_at_their_word(exact: Fidelity) -> None:
    r = exact.reliability
    assert (r.brier, r.ece) == (0, 0)
    assert r.brier_base == pytest.approx(r.ends / r.steps * (1 - r.ends / r.steps))
    assert r.steps == exact.real_steps
    assert [(b.low, b.high, b.said, b.came) for b in r.bins] == [(0, 0.01, 0, 0), (0.9, 1, 1, 1)]
    assert sum(b.steps for b in r.bins) == r.steps
    assert r.now.f1 == r.best.f1 == 1 and not r.drawn


def test_every_end_counts_at_one_horizon(episodes: list[Episode]) -> None:
    loop = looked_ahead(EXACT, episodes)
    near = sum(min(ep.num_steps, 10) for ep in episodes if ep.term)  # Steps that have the end within 10.
    assert near > 0
    assert sum(h.num_ends for h in loop.horizons) == sum(h.sampled.num_ends for h in loop.horizons) == near


def test_steps_too_far_add_up(episodes: list[Episode]) -> None:
    scale = obs_scale(episodes)[0]
    for h in looked_ahead(Drifting(end=END), episodes).horizons:
        assert h.likely.obs_mse == pytest.approx((h.steps * 0.1 * scale) ** 2 / 2, rel=1e-3)  # Mean of x and move.
        assert h.likely.rew_corr == pytest.approx(1)


def test_a_model_that_pays_the_opposite_is_found_out(episodes: list[Episode]) -> None:
    for h in looked_ahead(Backwards(end=END), episodes).horizons:
        assert h.likely.rew_corr == h.sampled.rew_corr == pytest.approx(-1)
        assert h.likely.sum_corr == pytest.approx(-1)
        assert h.likely.sum_mean == pytest.approx(-h.sum_mean)
        assert h.likely.rew_mse > h.rew_var
    assert measured(Backwards(end=END)).gap.gap == pytest.approx(-2 * 9 * 0.45, abs=1e-5)
    assert measured(Backwards(end=END)).ranking.spearman < -0.8


def test_ends_a_few_steps_off_count_only_within_the_tolerance() -> None:
    jobs = [EpisodeTask(1_000_000, (Contender(SAVED),))]
    walks = list(playing(EXACT, constant(0.45))(jobs))  # 9 steps of 0.45: x = 4.05.
    for late in (-3, -2, 2, 3):
        loop = looked_ahead(Toy(end=END + 0.45 * late), walks, horizons=(9,), tolerance=2)
        (row,) = loop.horizons
        assert row.num_ends == 9
        if abs(late) == 2:
            assert row.sampled.end_recall == 1 and row.sampled.end_precision == 1
        else:
            # Starts of dreams that lie beyond the dream's end end at once: they may be near the real end by chance.
            assert row.sampled.end_recall < 0.5


def test_matching_of_ends() -> None:
    inf = np.inf
    real = np.array([3, 3, 3, inf, inf, inf, 9])
    known = np.array([3, 3, 3, 8, 8, 4, 9])
    said = np.array([4, 6, inf, 5, 7, 5, inf])
    # 4 is close to 3; 6 lies behind a real end, 7 and the second 5 too near a cut; the first 5 is a false alarm.
    assert _match_ends(real, known, said, 0, 8, tolerance=2) == (0.5, pytest.approx(1 / 3), 2)
    assert _match_ends(real, known, said, 8, 20, tolerance=2) == (None, 0.0, 0)
    assert _match_ends(real[3:6], known[3:6], said[3:6], 0, 3, tolerance=2) == (None, None, 0)


def test_a_copied_frame_is_off_by_what_was_walked() -> None:
    (walked,) = playing(EXACT, constant(0.45))([EpisodeTask(1_000_000, (Contender(SAVED),))])
    windows = draw_windows(EXACT, [walked], 100, 4, np.random.default_rng(0))
    assert list(windows.start) == list(range(9)) and list(windows.left) == list(range(9, 0, -1))
    error = copy_error(windows, [walked], 3, 2.0)
    assert np.isnan(error[7:]).all() and not np.isnan(error[:7]).any()
    assert error[1:7] == pytest.approx((2 * 3 * 0.45) ** 2 / 2, rel=1e-4)


def test_windows_hold_what_was_done_and_earned(episodes: list[Episode]) -> None:
    windows = draw_windows(EXACT, episodes, 50, 6, np.random.default_rng(0))
    assert windows.num == 50
    for s, (e, t) in enumerate(zip(windows.episode, windows.start)):
        ep = episodes[e]
        left = min(6, ep.num_steps - t)
        assert windows.latent["x"][s].numpy() == pytest.approx(ep.obs[t])
        assert windows.act[:left, s, 0].numpy() == pytest.approx(ep.act[t : t + left, 0], abs=1e-6)
        assert (windows.act[left:, s, 0].numpy() == pytest.approx(ep.act[-1, 0], abs=1e-6)) or left == 6
        assert windows.rew[:left, s] == pytest.approx(ep.rew[t : t + left]) and not windows.rew[left:, s].any()
        assert (windows.left[s], windows.term[s]) == (ep.num_steps - t, ep.term)


def test_pixels_are_measured_from_0_to_1() -> None:
    frames = np.zeros((3, 40, 40, 3), np.uint8)
    frames[1], frames[2] = 100, 151
    act, rew = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    ep = Episode(frames, act, rew, False, True, 1_000_000, {})
    loop = looked_ahead(Toy(pixels=True), [ep], horizons=(1, 2))
    assert loop.horizons[1].copy_mse == pytest.approx((151 / 255) ** 2)
    # The model believes that nothing moves when nothing is done.
    assert loop.horizons[0].likely.obs_mse == pytest.approx(((100 / 255) ** 2 + (51 / 255) ** 2) / 2)
    assert loop.rec_mse == 0


def test_disagreement_is_compared_with_the_error(episodes: list[Episode]) -> None:
    first, *_, last = looked_ahead(Doubtful(end=END), episodes).horizons
    assert first.likely.doubt_corr == pytest.approx(1, abs=1e-4)
    assert last.likely.doubt_corr < 0.9  # The last step's doubt is but a part of the way's error.


def test_what_a_dream_draws_as_its_end_is_its_end(episodes: list[Episode]) -> None:
    for h in looked_ahead(Draws(end=END), episodes).horizons:
        assert h.num_ends == 0 or h.sampled.end_recall == 1


def test_ends_that_a_model_draws_are_evaluated_as_drawn_and_no_cut_off_is() -> None:
    r = measured(Draws(end=END)).reliability
    assert r.drawn and r.best is None
    assert (r.now.precision, r.now.recall, r.now.ends) == (1, 1, r.ends)
    assert r.now.note == "the model samples termination itself, without a threshold"
    assert r.brier == pytest.approx(r.ends / r.steps)  # Of its cont, which never moves from 1.


def test_drawn_ends_follow_the_order_of_what_is_predicted(episodes: list[Episode]) -> None:
    drawn, seen = drawn_ends(Draws(end=END), episodes, batch=5), predict_steps(EXACT, episodes, batch=5)
    assert np.array_equal(drawn, seen.real_term) and drawn.any()
    assert drawn_ends(EXACT, episodes) is None


def test_drawn_ends_follow_seed_and_temperature(episodes: list[Episode]) -> None:
    class Coin(Toy):
        def step(self, latent, act, *, temperature=1.0, generator=None):
            drawn = torch.rand(len(act), generator=generator) < 0.3 * temperature
            return super().step(latent, act)._replace(end=drawn)

    once, again, other = (drawn_ends(Coin(), episodes, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert not drawn_ends(Coin(), episodes, temperature=0.0).any()


def test_horizons_longer_than_any_episode_are_left_out(episodes: list[Episode]) -> None:
    assert [h.steps for h in looked_ahead(EXACT, episodes, horizons=(500, 2)).horizons] == [2]
    assert [h.steps for h in looked_ahead(EXACT, episodes, horizons=(500,)).horizons] == [500]
    with pytest.raises(ValueError, match="horizons must contain one or more .* got \\[0\\]"):
        looked_ahead(EXACT, episodes, horizons=(0,))


def test_a_dream_on_from_real_moments_stops_earning_at_its_end() -> None:
    (walked,) = playing(EXACT, constant(0.45))([EpisodeTask(1_000_000, (Contender(SAVED),))])
    (row,) = closed_loop(subject(EXACT), [walked], horizons=(9,), windows=100)
    assert row.windows == 9  # All are known to the end, as the episode ended by itself.
    assert row.real == row.dream == pytest.approx(0.45 * np.mean(range(1, 10)), abs=1e-5)
    assert row.corr == pytest.approx(1)
    (row,) = closed_loop(subject(Toy(end=1e9)), [walked], horizons=(9,), windows=100)
    assert row.dream == pytest.approx(9 * 0.45, abs=1e-5)
    cut = walked._replace(term=False, trunc=True)
    (row,) = closed_loop(subject(EXACT), [cut], horizons=(4,), windows=100)
    assert row.windows == 6


def test_the_sweep_dreams_at_every_temperature() -> None:
    found = measured(Hot(end=1e9), replace(CFG, temperatures=(1.5, 0.5, 0.5)))
    assert [(row.tau, row.dream) for row in found.temperatures] == [(0.5, 10.0), (1.5, 30.0)]  # 20 steps each.
    assert all(row.trained_real is None for row in found.temperatures)


def test_controllers_trained_at_a_temperature_are_evaluated_in_reality() -> None:
    cfg = replace(CFG, temperatures=(1.0,), train_temperatures=(0.5,), cma=CMAConfig(8, 2, 8, sigma=0.5))
    cold, usual = measured(EXACT, cfg).temperatures
    assert (cold.tau, usual.tau) == (0.5, 1.0)
    assert usual.trained_real is None
    assert cold.trained_dream == pytest.approx(cold.trained_real, abs=1e-3)
    assert cold.trained_real > 4  # It has learned to walk to the end; one that stays earns 0.


def test_controllers_are_trained_in_dreams_that_end_where_they_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*args, **kwargs):
        seen.append(args[3])
        return evolve_in_dream(*args, **kwargs)

    monkeypatch.setattr(sweep, "evolve_in_dream", watched)
    like, row = (
        subject(Faint(end=END))._replace(dream=DreamConfig(horizon=20, cut_off=0.35)),
        sweep.Warmth(0.7, 0.0, 0.0, None),
    )
    sweep.train_at(row, like, CMAConfig(8, 1, 2), lambda who: Score([1.0]), episodes=4, seed=1_000_000)
    assert seen == [DreamConfig(horizon=20, cut_off=0.35, temperature=0.7)]


def test_seeds_do_what_they_promise() -> None:
    noisy = subject(Toy(noise=0.3, end=END))
    found = check_seeds(noisy)
    assert found.repeats and found.rows_alone and found.worst < 1e-5 and found.parted == 0

    class Forgetful(Toy):
        def step(self, latent, act, *, temperature=1.0, generator=None):
            return super().step(latent, act, temperature=temperature, generator=None)

    found = check_seeds(noisy._replace(model=Forgetful(noise=0.3, end=END)))
    assert not found.repeats and not found.rows_alone

    class Crowded(Toy):
        def step(self, latent, act, *, temperature=1.0, generator=None):
            ahead = super().step(latent, act, temperature=temperature, generator=generator)
            return ahead._replace(rew=ahead.rew + 0.009 * (len(act) > 1))

    found = check_seeds(noisy._replace(model=Crowded(noise=0.3, end=END)))
    assert not found.rows_alone and found.parted == pytest.approx(sum(min(n, 3) for n in (2, 7, 64, 1024)) / 12)
    assert found.worst == pytest.approx(0.009, abs=1e-4)


def test_a_model_without_a_policy_is_measured_on_random_play() -> None:
    like = subject(EXACT)._replace(policy=None)
    found = measure(like, playing(EXACT, None), CFG)
    assert (found.gap, found.temperatures, found.closed_loop) == (None, [], [])
    assert [p.name for p in found.ranking.policies] == [RANDOM]
    assert found.ranking.spearman is None
    assert found.open_loop.horizons[0].likely.obs_mse == pytest.approx(0, abs=1e-9)


def test_memory_is_bounded_and_returns_are_not_lost() -> None:
    found = measured(EXACT, replace(CFG, max_gb=1e-12))
    assert found.real_episodes == 24
    assert found.reliability.steps == 9  # The first episode alone: that of the saved policy.
    assert found.ranking.spearman == 1


def test_a_full_memory_leaves_out_seeds_and_no_policy() -> None:
    steps = measured(EXACT, replace(CFG, episodes=1)).reliability.steps
    once_round = measured(EXACT, replace(CFG, max_gb=(steps + len(AMONG)) * 8e-9))  # Frames of two float32 each.
    assert once_round.reliability.steps == steps < once_round.real_steps


def test_dreams_end_at_the_subject_s_cut_off() -> None:
    like = subject(Faint(end=END))
    found = [
        measure(
            like._replace(dream=DreamConfig(horizon=20, cut_off=cut_off)), playing(EXACT, like.policy), CFG, among=AMONG
        )
        for cut_off in (0.25, 0.35)
    ]
    assert [f.gap.gap for f in found] == [pytest.approx(11 * 0.45, abs=1e-3), pytest.approx(0, abs=1e-3)]
    assert [f.open_loop.horizons[0].sampled.end_recall for f in found] == [0, 1]
    assert [f.closed_loop[-1].dream > f.closed_loop[-1].real + 0.1 for f in found] == [True, False]
    assert [f.reliability.now.recall for f in found] == [0, 1]


def test_a_dream_without_a_horizon_lasts_as_long_as_the_longest_real_episode() -> None:
    like = subject(EXACT)._replace(dream=DreamConfig())
    assert measure(like, playing(EXACT, like.policy), CFG, among=AMONG).gap.horizon == 20
    game = like._replace(
        dream=DreamConfig(horizon=27_000)
    )  # No dream lasts as long as that where no real episode does.
    for longest, cut in ((50, 50), (5, 20)):
        found = measure(game, playing(EXACT, like.policy), replace(CFG, longest_dream=longest), among=AMONG)
        assert found.gap.horizon == cut


def test_reliability_bins_and_errors() -> None:
    cont = np.array([1.0, 0.93, 0.93, 0.0, 0.4])
    term = np.array([False, False, True, True, False])
    found = reliability(OneStep(cont, cont, cont, term), 0.5)
    assert [(b.low, b.high, b.steps, b.came) for b in found.bins] == [
        (0.0, 0.01, 1, 0.0),
        (0.05, 0.1, 2, 0.5),
        (0.6, 0.7, 1, 0.0),
        (0.9, 1.0, 1, 1.0),
    ]
    assert found.ece == pytest.approx((0 + 2 * (0.5 - 0.07) + 0.6 + 0) / 5)
    assert found.brier == pytest.approx((0 + 0.07**2 + 0.93**2 + 0 + 0.6**2) / 5)
    assert found.brier_base == pytest.approx(0.4 * 0.6)
    assert (found.now.precision, found.now.recall) == (0.5, 0.5)


def test_correlations() -> None:
    assert pearson([1, 2, 3], [2, 4, 6.5]) == pytest.approx(np.corrcoef([1, 2, 3], [2, 4, 6.5])[0, 1])
    assert spearman([1, 2, 30], [-4, 5, 6]) == 1
    assert spearman([1, 2, 3, 4], [10, 20, 20, 30]) == pytest.approx(4.5 / np.sqrt(5 * 4.5))  # Ranks 1, 2.5, 2.5, 4.
    assert pearson([1, 2], [3, 3]) is None and pearson([1], [1]) is None and spearman([], []) is None
    assert pearson([0.1] * 3, [1, 2, 3]) is None


def test_there_are_at_least_eight_policies_around_any() -> None:
    class Other:
        def reset(self, num: int, seed: int) -> None: ...

        def act(self, obs):
            return np.zeros((len(obs), 1), np.float32)

    assert len(contenders(Other(), BOX, 99)) == 8
    linear = contenders(constant(0.3), BOX, 99)
    assert len(linear) == len({who.name for who in linear}) == 12
    assert [who.name for who in linear[:2]] == [SAVED, RANDOM]
    assert len(contenders(constant(0.3), BOX, 9)) == 9
    half = next(who for who in linear if who.name == "weights x 0.5")
    acting = controller(constant(0.3), BOX, half)
    assert isinstance(acting, LinearPolicy)
    assert acting.weights == pytest.approx(0.5 * constant(0.3).weights)
    with pytest.raises(ValueError, match="the variant 'as saved' changes the saved policy of the model, got none"):
        controller(None, BOX, Contender(SAVED))


def test_seeds_that_training_may_have_used_are_rejected() -> None:
    with pytest.raises(ValueError, match="seed must be at least 1,000,000, .* got 999999"):
        FidelityConfig(seed=999_999)
    with pytest.raises(ValueError, match="seeds must be at least 1,000,000, .* got 5"):
        list(record(LINE, lambda: None, [EpisodeTask(1_000_000), EpisodeTask(5)], procs=0))
    for wrong in ({"episodes": 0}, {"windows": 0}):
        with pytest.raises(ValueError, match="must be a whole number of at least 1, got 0"):
            FidelityConfig(**wrong)
    with pytest.raises(ValueError, match="temperatures must be a list of numbers above 0, got"):
        FidelityConfig(train_temperatures=(0.0,))


def test_processes_give_the_same_episodes_in_the_order_of_the_jobs() -> None:
    spec = RealSpec("toy_env:Echo-v0")
    jobs = [EpisodeTask(1_000_000 + i, (0.1 * i,)) for i in range(6)]
    here, there = (list(record(spec, Always, jobs, procs)) for procs in (1, 2))
    assert [ep.seed for ep in there] == [job.seed for job in jobs]
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(a.obs, b.obs) and np.array_equal(a.rew, b.rew) and a.term == b.term


@pytest.mark.slow
def test_a_worker_s_error_arrives_and_ends_the_recording() -> None:
    with pytest.raises(ArithmeticError, match="the policy broke at step 2"):
        list(
            record(RealSpec("toy_env:Echo-v0"), Raises, [EpisodeTask(1_000_000 + i, (0.0,)) for i in range(4)], procs=2)
        )


def stages(collected: int, dream: float, *, control: str = STAGES[2], **judged: float) -> dict[str, dict[str, float]]:
    """What a run notes of a round, under the names that its stages have."""
    collect, learn, _, judge = STAGES
    return {collect: {"steps": collected}, learn: {"cut_off": 0.5}, control: {"dream": dream}, judge: judged}


def test_a_run_s_rounds_are_read(tmp_path: Path) -> None:
    assert read_history(tmp_path) is None and find_run(tmp_path / "model") is None
    rounds = {"0": stages(100, 5.0, real=2.0, std=1.0, steps=10), "10": stages(50, 7.0, real=8.0), "2": stages(50, 6.0)}
    (tmp_path / "state.json").write_text(json.dumps({"history": rounds}))
    (tmp_path / "run.json").write_text(json.dumps({"config": {"horizon": 150}}))
    going = read_history(tmp_path)
    assert going.rounds == [_Round(0, 5.0, 2.0, 1.0, 110), _Round(10, 7.0, 8.0, None, 210)]
    assert (going.horizon, going.final_dream, going.final_real) == (150, None, None)
    (tmp_path / "summary.json").write_text(
        json.dumps({"rounds": rounds, "dream": {"mean": 9.0}, "real": {"mean": 8.5}})
    )
    assert read_history(tmp_path)[3:] == (9.0, 8.5)
    for inside in ("model", "round-10/model"):
        assert find_run(tmp_path / inside) == tmp_path.resolve()


def test_runs_that_called_the_stage_evolve_are_read_too(tmp_path: Path) -> None:
    rounds = {"0": stages(100, 5.0, control="evolve", real=2.0)}
    (tmp_path / "state.json").write_text(json.dumps({"history": rounds}))
    assert read_history(tmp_path).rounds == [_Round(0, 5.0, 2.0, None, 100)]


def test_a_model_s_config_describes_its_rounds(tmp_path: Path) -> None:
    def told(config: dict) -> History | None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return told_history(tmp_path)

    assert told_history(tmp_path) is told({}) is told({"rounds": []}) is None
    rounds = [{"round": 0, "dream": 5, "real": 2.5}, {"round": 1, "dream": 6.0, "real": 4.0, "std": 1.0}]
    assert told({"rounds": rounds}).rounds == [_Round(0, 5.0, 2.5, None, None), _Round(1, 6.0, 4.0, 1.0, None)]
    for wrong in ([{"round": 0, "dream": 5.0}], [{"round": 0, "dream": None, "real": 1.0}], [3], 3, {"0": {}}):
        with pytest.raises(ValueError, match=r'config.json: "rounds" must be a list of .* got'):
            told({"rounds": wrong})
