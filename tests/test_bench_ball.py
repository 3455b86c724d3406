"""The judge of V's ball: it finds what is there, and misses what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from bench_ball import find_ball, play, score

from wm_agents.models.vmc import VMC
from wm_agents.pretrained import load_model, real_spec

STILL = np.random.default_rng(0).integers(60, 90, (64, 46)).astype(np.uint8)


def frames_with(places: list[tuple[int, int]], light: int = 100) -> np.ndarray:
    frames = np.repeat(STILL[None], len(places), 0)
    for frame, (y, x) in zip(frames, places):
        frame[y : y + 2, x] += light
    return frames


def test_a_ball_is_found_where_it_is_to_a_part_of_a_pixel() -> None:
    ball = find_ball(frames_with([(10, 20), (0, 0), (62, 45)]), STILL)
    assert ball.there.all()
    np.testing.assert_allclose(ball.place, [[10.5, 20], [0.5, 0], [62.5, 45]])


def test_a_frame_without_a_ball_has_none() -> None:
    assert not find_ball(frames_with([(10, 20), (5, 5)], light=20), STILL).there.any()


class Eyes:
    """A vision whose reconstruction is the frame, shifted by so many columns."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def encode(self, x):  # type: ignore[no-untyped-def]
        return x, x

    def decode_obs(self, z):  # type: ignore[no-untyped-def]
        return (z * 255).round().byte().permute(0, 2, 3, 1).roll(self.shift, 2)


@pytest.mark.parametrize("shift, within_2, within_1", [(0, 1, 1), (2, 1, 0), (3, 0, 0)])
def test_shares_count_what_is_drawn_near_enough(
    monkeypatch: pytest.MonkeyPatch, shift: int, within_2: float, within_1: float
) -> None:
    monkeypatch.setattr("bench_ball.ConvVAE", Eyes)
    field = np.full((40, 64, 64, 1), 80, np.uint8)
    for t in range(30):
        field[t, t + 5 : t + 7, t + 12] = 200
    model = type("Model", (), {"vision": Eyes(shift)})()
    got = score(model, field, "Pong")
    assert (got["frames"], got["with ball"]) == (40, 0.75)
    assert (got["within 2"], got["within 1"], got["false"]) == (within_2, within_1, 0)


@pytest.mark.slow
def test_the_shipped_dream_of_breakout_draws_the_ball_where_it_is() -> None:
    model, artifact = load_model("Dream-Breakout-v0")
    assert isinstance(model, VMC)
    got = score(model, play(real_spec(artifact), 5), "Breakout")
    assert got["with ball"] * got["frames"] > 500 and got["within 2"] >= 0.95, got
