"""Where a dream should end: the threshold on `cont`, chosen on episodes that the model was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import Floats, foresee
from wm_envs.world_model import WorldModel

Bools = NDArray[np.bool_]
CALIBRATED = 200
"""Held-out episodes that the cut-off is chosen on, at most."""
FEW_ENDS = 10
"""Fewer of them say nothing about a cut-off."""
CUT_OFF = 0.5  # As `DreamVectorEnv` has it where it is not told.
MOST_ENDS = 2
"""Dreams end at most so many times as often as reality: the best F1 of a poor model would cut all of them short."""


class Calibration(NamedTuple):
    """A threshold on `cont`, and how well it tells the real ends, one step ahead."""

    cut_off: float
    """An episode ends where cont falls below this; between 0 and 1."""
    precision: float | None
    """Share of the foreseen ends that came; None if none was foreseen."""
    recall: float | None
    """Share of the real ends that were foreseen; None if there was none."""
    f1: float | None
    ends: int
    """Real ends that this was learned from."""
    note: str = ""
    """Why the threshold is the default one, where it is."""


def calibrate_cut_off(
    model: WorldModel, episodes: Iterable[Episode], *, temperature: float = 1.0, seed: int = 0, batch: int = 64
) -> Calibration:
    """Choose the cut-off with the best F1 over every step of `episodes`, foreseen from the real moment before it.

    It stays at 0.5, and `note` says why, where no episode ended by itself or `cont` says nothing of ends.

    Args:
        episodes: held out from training; an iterator is read `batch` at a time and never held whole.
        temperature: at which `cont` is dreamed, for models whose end depends on what they drew.
    """
    seen = foresee(model, episodes, temperature=temperature, seed=seed, batch=batch)
    return best_cut_off(seen.cont, seen.real_term)


def best_cut_off(cont: Floats, term: Bools) -> Calibration:
    """The cut-off with the best F1; of equals the one nearest 0.5, which stays where nothing can be learned."""
    ends = int(term.sum())
    if not ends:
        return at_cut_off(cont, term, CUT_OFF, f"no episode ended by itself: the cut-off stays {CUT_OFF}")
    values, which = np.unique(cont, return_inverse=True)
    # Steps at or below each value: what a cut just above it takes for ends.
    alarms = np.cumsum(np.bincount(which))[:-1]
    hits = np.cumsum(np.bincount(which, weights=term))[:-1]
    cuts = _between(values[:-1], values[1:])
    allowed = (cuts < 1) & (alarms <= MOST_ENDS * ends)
    f1 = np.where(allowed, 2 * hits / (ends + alarms), 0.0)
    # Ending at every step has an F1 as well; what does no better has learned nothing.
    if f1.max(initial=0.0) <= 2 * ends / (len(term) + ends):
        return at_cut_off(cont, term, CUT_OFF, f"cont does not tell ends from other steps: the cut-off stays {CUT_OFF}")
    best = np.lexsort((np.abs(cuts - CUT_OFF), -f1))[0]
    return at_cut_off(cont, term, float(cuts[best]))


def at_cut_off(cont: Floats, term: Bools, cut_off: float, note: str = "") -> Calibration:
    """How a given cut-off does."""
    return of_ends(cont < cut_off, term, cut_off, note)


def of_ends(said: Bools, term: Bools, cut_off: float, note: str = "") -> Calibration:
    """How the ends `said` of every step do, wherever they come from."""
    ends, hits, alarms = int(term.sum()), int((said & term).sum()), int(said.sum())
    f1 = 2 * hits / (ends + alarms) if ends else None
    return Calibration(cut_off, hits / alarms if alarms else None, hits / ends if ends else None, f1, ends, note)


def _between(low: Floats, high: Floats) -> Floats:
    """A float32 above `low` and not above `high`, for models answer in float32: half way where there is room."""
    middle = ((low + high) / 2).astype(np.float32).astype(np.float64)
    return np.where((low < middle) & (middle <= high), middle, high)
