"""How well a model foresees, by the number of steps ahead: frames, rewards and ends."""

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


class Foresight(NamedTuple):
    """How one way of dreaming does so many steps ahead; None where there was nothing to judge by."""

    obs_mse: float | None
    rew_corr: float | None
    """Of the reward of this very step."""
    rew_mse: float | None
    sum_corr: float | None
    """Of the rewards summed from the start to here, over the windows that reach here."""
    sum_mean: float | None
    end_precision: float | None
    """Share of the dream's first ends, between the horizon before and this one, that have a real end close by."""
    end_recall: float | None
    """Share of the real ends in that stretch that have the dream's first end close by."""
    num_ends: int
    """First ends the dream had there, of those that can be judged."""
    doubt_corr: float | None
    """Rank correlation of an ensemble's disagreement at this step with the error of its frame."""


class Ahead(NamedTuple):
    """One horizon: what came, what costs nothing to say, and what the two ways of dreaming say."""

    steps: int
    windows: int
    """That reach so far."""
    copy_mse: float | None
    """Of who takes the first frame for this one."""
    rew_var: float | None
    """Error of who always says the mean reward."""
    sum_mean: float | None
    num_ends: int
    """Real ends between the horizon before and this one."""
    likely: Foresight
    """The most likely future, temperature 0."""
    sampled: Foresight
    """Drawn, as dreams are."""


class OpenLoop(NamedTuple):
    """Dreams from real moments under real actions, against what really came."""

    windows: int
    tolerance: int
    """Steps that a foreseen end may be off."""
    rec_mse: float | None
    """Of frames that the model has just seen: the floor of its errors."""
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
    """Dream `windows` stretches of the episodes, drawn evenly from all their steps, both ways."""
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


def _foresight(windows: Windows, dreamed: Dream, low: int, high: int, tolerance: int) -> Foresight:
    reach = windows.left >= high
    real, said = windows.rew[:high, reach], dreamed.rew[:high, reach]
    error = dreamed.error[high]
    precision, recall, ends = match_ends(
        np.where(windows.term, windows.left, np.inf), windows.left, first_end(dreamed.over), low, high, tolerance
    )
    return Foresight(
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


def first_end(over: NDArray[np.bool_]) -> Floats:
    """(S,) the step, from 1, of each row's first end in `over` (H, S); infinity where there is none."""
    return np.where(over.any(0), over.argmax(0) + 1, np.inf)


def match_ends(
    real: Floats, known: NDArray[np.int64], dreamed: Floats, low: int, high: int, tolerance: int
) -> tuple[float | None, float | None, int]:
    """Precision, recall and number of the dreams' ends in steps low + 1 to high, `tolerance` steps being no matter.

    Args:
        real: (S,) the step at which the real episode ended by itself, else infinity.
        known: (S,) steps that are on record; where the episode was cut nothing is known of later ones.
        dreamed: (S,) the step of the dream's first end, or infinity.
    """
    both = np.isfinite(real) & np.isfinite(dreamed)
    close = np.zeros(len(real), bool)
    close[both] = np.abs(real[both] - dreamed[both]) <= tolerance
    came = (real > low) & (real <= high)
    # Behind a real end the dream is led by no real action, and behind a cut nobody knows.
    last = np.where(np.isfinite(real), real + tolerance, known - tolerance)
    said = (dreamed > low) & (dreamed <= high) & (dreamed <= last)
    return _mean(close[said]), _mean(close[came]), int(said.sum())


def _mean(values: NDArray[np.generic]) -> float | None:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None
