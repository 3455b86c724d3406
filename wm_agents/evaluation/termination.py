"""The termination threshold on `cont`, chosen on held-out episodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import Floats, predict_steps
from wm_envs.world_model import WorldModel

Bools = NDArray[np.bool_]
CALIBRATED = 200
"""Maximum number of held-out episodes for the choice of the threshold."""
FEW_ENDS = 10
"""Minimum number of terminations for the choice of a threshold."""
CUT_OFF = 0.5  # The default of `DreamVectorEnv`.
MOST_ENDS = 2
"""Maximum ratio of dreamed to real terminations, because the best F1 of a poor model may end all dreams
early."""


class Calibration(NamedTuple):
    """A threshold on `cont`, and how well it predicts real terminations one step ahead."""

    cut_off: float
    """A dream terminates when cont falls below this; between 0 and 1."""
    precision: float | None
    """Share of predicted terminations that are real; None if none was predicted."""
    recall: float | None
    """Share of real terminations that were predicted; None if there was none."""
    f1: float | None
    ends: int
    """Number of real terminations in the data."""
    note: str = ""
    """The reason if the threshold is the default."""


def calibrate_cut_off(
    model: WorldModel, episodes: Iterable[Episode], *, temperature: float = 1.0, seed: int = 0, batch: int = 64
) -> Calibration:
    """Choose the threshold with the best F1 over all steps of `episodes`, predicted from the real latent.

    It stays at 0.5 if no episode terminated or `cont` has no information about termination; `note` gives the
    reason.

    Args:
        episodes: held-out episodes; an iterator is read `batch` at a time.
        temperature: the temperature for `cont`, for models whose termination depends on samples.
    """
    seen = predict_steps(model, episodes, temperature=temperature, seed=seed, batch=batch)
    return best_cut_off(seen.cont, seen.real_term)


def best_cut_off(cont: Floats, term: Bools) -> Calibration:
    """The threshold with the best F1, the one nearest 0.5 among equals, or 0.5 if nothing can be learned."""
    ends = int(term.sum())
    if not ends:
        return at_cut_off(cont, term, CUT_OFF, f"no episode terminated: the cut_off stays {CUT_OFF}")
    values, which = np.unique(cont, return_inverse=True)
    # Steps at or below each value: the predicted terminations for a threshold just above it.
    alarms = np.cumsum(np.bincount(which))[:-1]
    hits = np.cumsum(np.bincount(which, weights=term))[:-1]
    cuts = _between(values[:-1], values[1:])
    allowed = (cuts < 1) & (alarms <= MOST_ENDS * ends)
    f1 = np.where(allowed, 2 * hits / (ends + alarms), 0.0)
    # Compare with the F1 of terminating at every step.
    if f1.max(initial=0.0) <= 2 * ends / (len(term) + ends):
        return at_cut_off(
            cont, term, CUT_OFF, f"cont has no information about termination: the cut_off stays {CUT_OFF}"
        )
    best = np.lexsort((np.abs(cuts - CUT_OFF), -f1))[0]
    return at_cut_off(cont, term, float(cuts[best]))


def at_cut_off(cont: Floats, term: Bools, cut_off: float, note: str = "") -> Calibration:
    """Precision, recall and F1 of a given threshold."""
    return of_ends(cont < cut_off, term, cut_off, note)


def of_ends(said: Bools, term: Bools, cut_off: float, note: str = "") -> Calibration:
    """Precision, recall and F1 of predicted terminations `said` of every step."""
    ends, hits, alarms = int(term.sum()), int((said & term).sum()), int(said.sum())
    f1 = None
    if ends:
        f1 = _ratio(2 * hits, ends + alarms)
    return Calibration(cut_off, _ratio(hits, alarms), _ratio(hits, ends), f1, ends, note)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _between(low: Floats, high: Floats) -> Floats:
    """A float32 above `low` and at most `high`, in the middle if possible; models compute in float32."""
    middle = ((low + high) / 2).astype(np.float32).astype(np.float64)
    return np.where((low < middle) & (middle <= high), middle, high)
