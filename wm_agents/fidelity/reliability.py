"""Whether the probability of an end, one step ahead, can be taken at its word."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from wm_agents.along import Foreseen
from wm_agents.calibrate import Calibration, at_cut_off, best_cut_off

BINS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Edges for the probability of an end: close together where nearly all steps lie."""


class Bin(NamedTuple):
    """Steps whose foreseen probability of an end lies between two edges."""

    low: float
    high: float
    steps: int
    said: float
    """Mean foreseen probability."""
    came: float
    """Share of the steps that were ends."""


class Reliability(NamedTuple):
    """Foreseen probabilities of an end beside how often it came."""

    steps: int
    ends: int
    brier: float
    """Mean squared error of the probability."""
    brier_base: float
    """Of who always says the share of ends."""
    ece: float
    """Expected calibration error: mean distance between said and came, weighted by steps."""
    bins: list[Bin]
    now: Calibration
    """At the model's own cut-off."""
    best: Calibration
    """At the cut-off that would have been best on these very episodes."""


def reliability(seen: Foreseen, cut_off: float) -> Reliability:
    """Measure it over all real steps."""
    said, came = 1 - seen.cont, seen.real_term.astype(np.float64)
    place = np.clip(np.digitize(said, BINS) - 1, 0, len(BINS) - 2)  # 1 itself belongs to the last.
    bins = [
        Bin(low, high, int(here.sum()), float(said[here].mean()), float(came[here].mean()))
        for i, (low, high) in enumerate(pairwise(BINS))
        if (here := place == i).any()
    ]
    share = float(came.mean())
    return Reliability(
        len(came),
        int(came.sum()),
        float(np.square(said - came).mean()),
        share * (1 - share),
        sum(b.steps * abs(b.said - b.came) for b in bins) / len(came),
        bins,
        at_cut_off(seen.cont, seen.real_term, cut_off),
        best_cut_off(seen.cont, seen.real_term),
    )
