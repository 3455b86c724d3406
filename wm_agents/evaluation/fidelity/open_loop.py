"""Open-loop predictions by horizon: frames, rewards and termination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import Floats
from wm_agents.evaluation.statistics import pearson, spearman
from wm_agents.evaluation.windows import Dream, Windows, copy_error, draw_windows, dream, frame_error, obs_scale, within
from wm_envs.world_model import WorldModel


class _Foresight(NamedTuple):
    """Errors of dreams at one horizon; None where undefined."""

    obs_mse: float | None
    rew_corr: float | None
    """Correlation of the reward of this step."""
    rew_mse: float | None
    sum_corr: float | None
    """Correlation of the summed rewards up to this step, over the windows that reach it."""
    sum_mean: float | None
    end_precision: float | None
    """Share of first dreamed terminations since the previous horizon with a real termination nearby."""
    end_recall: float | None
    """Share of real terminations since the previous horizon with the first dreamed termination nearby."""
    num_ends: int
    """Number of first dreamed terminations there that can be evaluated."""
    doubt_corr: float | None
    """Rank correlation of the ensemble's disagreement at this step with the frame error."""


class Ahead(NamedTuple):
    """One horizon: real values, trivial baselines, and both kinds of dreams."""

    steps: int
    windows: int
    """Windows that reach this horizon."""
    copy_mse: float | None
    """Error of copying the first frame."""
    rew_var: float | None
    """Error of the mean reward."""
    sum_mean: float | None
    num_ends: int
    """Real terminations since the previous horizon."""
    likely: _Foresight
    """Dreams of the most likely future, temperature 0."""
    sampled: _Foresight
    """Sampled dreams."""


class OpenLoop(NamedTuple):
    """Dreams from real latents with real actions, compared with reality."""

    windows: int
    tolerance: int
    """Tolerance in steps for predicted terminations."""
    rec_mse: float | None
    """Error of encoded and decoded real frames: the floor of all errors."""
    horizons: list[Ahead]


@torch.inference_mode()
def open_loop(
    model: WorldModel,
    episodes: Sequence[Episode],
    *,
    horizons: Sequence[int],
    windows: int,
    temperature: float,
    cut_off: float,
    tolerance: int = 2,
    seed: int = 0,
) -> OpenLoop:
    """Dream `windows` windows of the episodes, sampled uniformly over all steps, with both kinds of
    dreams."""
    horizons = within(horizons, episodes)
    drawn = draw_windows(model, episodes, windows, horizons[-1] + tolerance, np.random.default_rng(seed))
    scale = obs_scale(episodes)
    generator = torch.Generator(model.device).manual_seed(seed)
    dreams = [
        dream(model, drawn, episodes, horizons, scale, temperature=tau, cut_off=cut_off, generator=generator)
        for tau in (0.0, temperature)
    ]
    rows = []
    for low, high in zip([0, *horizons], horizons):
        copied = copy_error(drawn, episodes, high, scale)
        rows.append(_ahead(drawn, copied, dreams[0], dreams[1], low, high, tolerance))
    floor = frame_error(model, drawn.latent, drawn, episodes, 0, scale)
    return OpenLoop(drawn.num, tolerance, _mean(floor), rows)


def _ahead(
    windows: Windows, copied: Floats, likely: Dream, sampled: Dream, low: int, high: int, tolerance: int
) -> Ahead:
    reach = windows.left >= high
    real_end = np.where(windows.term, windows.left, np.inf)
    return Ahead(
        high,
        int(reach.sum()),
        _mean(copied),
        float(windows.rew[high - 1, reach].var()) if reach.any() else None,
        _mean(windows.rew[:high, reach].sum(0)),
        int(((real_end > low) & (real_end <= high)).sum()),
        _foresight(windows, likely, low, high, tolerance),
        _foresight(windows, sampled, low, high, tolerance),
    )


def _foresight(windows: Windows, dreamed: Dream, low: int, high: int, tolerance: int) -> _Foresight:
    reach = windows.left >= high
    real, said = windows.rew[:high, reach], dreamed.rew[:high, reach]
    error = dreamed.error[high]
    precision, recall, ends = _match_ends(
        np.where(windows.term, windows.left, np.inf), windows.left, _first_end(dreamed.over), low, high, tolerance
    )
    return _Foresight(
        _mean(error),
        pearson(real[-1], said[-1]),
        _mean(np.square(real[-1] - said[-1])),
        pearson(real.sum(0), said.sum(0)),
        _mean(said.sum(0)),
        precision,
        recall,
        ends,
        None if dreamed.disagreement is None else spearman(dreamed.disagreement[high - 1, reach], error[reach]),
    )


def _first_end(over: NDArray[np.bool_]) -> Floats:
    """(S,) the step, from 1, of the first True of each column in `over` (H, S), or infinity."""
    return np.where(over.any(0), over.argmax(0) + 1, np.inf)


def _match_ends(
    real: Floats, known: NDArray[np.int64], dreamed: Floats, low: int, high: int, tolerance: int
) -> tuple[float | None, float | None, int]:
    """Precision, recall and number of dreamed terminations in steps low + 1 to high, within `tolerance`
    steps.

    Args:
        real: (S,) the step at which the real episode terminated, or infinity.
        known: (S,) recorded steps; later steps of a truncated episode are unknown.
        dreamed: (S,) the step of the first dreamed termination, or infinity.
    """
    both = np.isfinite(real) & np.isfinite(dreamed)
    close = np.zeros(len(real), bool)
    close[both] = np.abs(real[both] - dreamed[both]) <= tolerance
    came = (real > low) & (real <= high)
    # After a real termination there are no real actions, and after a truncation the outcome is unknown.
    last = np.where(np.isfinite(real), real + tolerance, known - tolerance)
    said = (dreamed > low) & (dreamed <= high) & (dreamed <= last)
    return _mean(close[said]), _mean(close[came]), int(said.sum())


def _mean(values: NDArray[np.generic]) -> float | None:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if len(known):
        return float(known.mean())
    return None
