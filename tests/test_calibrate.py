"""The cut-off on `cont`: exact on exact models, unmoved where nothing can be learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import Toy
from toy_line import END, LINE, playing

from policies.play import EpisodeTask
from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import predict_steps, walk
from wm_agents.evaluation.termination import best_cut_off, calibrate_cut_off
from wm_agents.evaluation.variants import RANDOM, Contender
from wm_envs.registry import RealSpec

EXACT = Toy(end=END)


def random_episodes(num: int, spec: RealSpec = LINE) -> list[Episode]:
    return list(playing(EXACT, None, spec)([EpisodeTask(1_000_000 + i, (Contender(RANDOM),)) for i in range(num)]))


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    found = random_episodes(40, RealSpec("Line-v0", {"end": 1.5}, max_episode_steps=12))
    assert 5 < sum(ep.term for ep in found) < 35  # Some end by themselves, some are cut, at all kinds of lengths.
    return found


class Blurred(Toy):
    """cont is 0.3 at every end and 0.35 elsewhere, or what `conts` say."""

    conts = (0.3, 0.35)

    def step(self, *args, **kwargs):
        out = super().step(*args, **kwargs)
        end, other = self.conts
        return out._replace(cont=torch.where(out.cont < 0.5, end, other))


def test_every_step_is_predicted_from_the_moment_before_it(episodes: list[Episode]) -> None:
    seen = predict_steps(Toy(end=1.5), episodes)
    np.testing.assert_allclose(seen.rew, seen.real_rew, atol=1e-6)
    np.testing.assert_array_equal(seen.cont < 0.5, seen.real_term)
    assert len(seen.rew) == sum(ep.num_steps for ep in episodes)
    assert seen.real_term.sum() == sum(ep.term for ep in episodes)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_rows_of_a_walk_are_the_episodes_that_still_continue(episodes: list[Episode], batch: int) -> None:
    steps = np.zeros(len(episodes), int)
    for moment in walk(EXACT, iter(episodes), batch):
        assert len(set(moment.episode)) == len(moment.episode) <= batch
        for r, e in enumerate(moment.episode):
            ep, t = episodes[e], moment.t
            assert t == steps[e]
            assert moment.latent["x"][r].numpy() == pytest.approx(ep.obs[t])  # The move that led there, too.
            assert float(moment.act[r, 0]) == pytest.approx(float(ep.act[t, 0]))
            assert moment.rew[r] == ep.rew[t] and moment.term[r] == (ep.term and t + 1 == ep.num_steps)
            steps[e] += 1
    assert list(steps) == [ep.num_steps for ep in episodes]


def test_an_exact_model_is_calibrated_perfectly(episodes: list[Episode]) -> None:
    found = calibrate_cut_off(Toy(end=1.5), iter(episodes))
    assert found == (0.5, 1.0, 1.0, 1.0, sum(ep.term for ep in episodes), "")


@pytest.mark.parametrize("shift", [-1, 1])
def test_ends_a_step_off_are_not_predicted(episodes: list[Episode], shift: int) -> None:
    def moved(ep: Episode) -> Episode:
        act = np.roll(ep.act, shift, axis=0)
        return ep._replace(act=act)

    found = calibrate_cut_off(Toy(end=1.5), [moved(ep) for ep in episodes])
    assert found.f1 is None or found.f1 < 0.9


def test_the_cut_off_goes_where_the_model_s_probabilities_are(episodes: list[Episode]) -> None:
    model = Blurred(end=1.5)
    found = calibrate_cut_off(model, episodes)
    assert 0.3 < found.cut_off < 0.35
    assert (found.precision, found.recall, found.f1) == (1.0, 1.0, 1.0)
    cont = torch.tensor([0.3, 0.35])
    assert (cont < found.cut_off).tolist() == [True, False]


def test_it_is_the_best_of_all_cut_offs() -> None:
    rng = np.random.default_rng(0)
    term = rng.random(500) < 0.1
    cont = np.clip(rng.normal(0.8 - 0.4 * term, 0.2), 0, 1).astype(np.float32).astype(np.float64)
    found = best_cut_off(cont, term)

    def f1(cut: float) -> float:
        return 2 * ((cont < cut) & term).sum() / ((cont < cut).sum() + term.sum())

    assert found.f1 == pytest.approx(max(map(f1, np.linspace(0, 1, 5001))), abs=1e-9) == f1(found.cut_off)
    assert found.precision == ((cont < found.cut_off) & term).sum() / (cont < found.cut_off).sum()
    assert found.recall == ((cont < found.cut_off) & term).sum() / term.sum()


def test_a_dream_does_not_end_much_more_often_than_reality() -> None:
    cont = np.array([0.6, 0.7, 0.75, 0.8, 0.9, 0.9])
    late = best_cut_off(cont, np.array([False, False, False, True, False, False]))  # It would take four for the one.
    assert (late.cut_off, late.f1) == (0.5, 0.0) and "no information" in late.note
    early = best_cut_off(cont, np.array([False, True, False, False, False, False]))
    assert 0.7 < early.cut_off < 0.75 and early.f1 == pytest.approx(2 / 3) and not early.note


def test_neighbouring_floats_are_distinguished_by_a_float32() -> None:
    low = np.float32(0.25)
    high = np.nextafter(low, np.float32(1))
    cont = np.array([low, high, high], np.float64)
    found = best_cut_off(cont, np.array([True, False, False]))
    assert (torch.from_numpy(cont).float() < found.cut_off).tolist() == [True, False, False]


def test_without_ends_the_cut_off_stays_and_reports_it() -> None:
    found = best_cut_off(np.array([0.1, 0.9]), np.zeros(2, bool))
    assert (found.cut_off, found.precision, found.recall, found.f1) == (0.5, 0.0, None, None)
    assert found.note == "no episode terminated: the cut_off stays 0.5"


@pytest.mark.parametrize("cont", [[0.9, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.9], [1.0, 1.0, 1.0, 1.0]])
def test_a_cont_that_reports_nothing_leaves_the_cut_off(cont: list[float]) -> None:
    found = best_cut_off(np.array(cont), np.array([False, False, False, True]))
    assert found.cut_off == 0.5
    assert "no information about termination" in found.note


def test_no_episode_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one episode is needed, got none"):
        calibrate_cut_off(EXACT, [])
