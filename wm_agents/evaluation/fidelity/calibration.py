"""Whether the probability of an end, one step ahead, can be taken at its word."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import Foreseen, walk
from wm_agents.evaluation.termination import Bools, Calibration, at_cut_off, best_cut_off, of_ends
from wm_envs.world_model import WorldModel

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
    drawn: bool
    """The model draws its ends itself, so that no cut-off moves them."""
    now: Calibration
    """Of the ends that its dreams have: at its own cut-off, or as drawn."""
    best: Calibration | None
    """At the cut-off that would have been best on these very episodes; None where ends are drawn."""


@torch.inference_mode()
def drawn_ends(
    model: WorldModel, episodes: Iterable[Episode], *, temperature: float = 1.0, seed: int = 0, batch: int = 64
) -> Bools | None:
    """(M,) where the model draws an end, step by step as `foresee` goes; None for one that leaves it to a cut-off."""
    generator = torch.Generator(model.device).manual_seed(seed)
    parts = []
    for moment in walk(model, episodes, batch):
        end = model.step(moment.latent, moment.act, temperature=temperature, generator=generator).end
        if end is None:
            return None
        parts.append(end.cpu().numpy())
    return np.concatenate(parts)


def reliability(seen: Foreseen, cut_off: float, drawn: Bools | None = None) -> Reliability:
    """Measure it over all real steps; `drawn` (M,) are the ends of a model that draws them itself."""
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
        drawn is not None,
        at_cut_off(seen.cont, seen.real_term, cut_off)
        if drawn is None
        else of_ends(drawn, seen.real_term, cut_off, "the model draws its ends itself: no cut-off is used"),
        best_cut_off(seen.cont, seen.real_term) if drawn is None else None,
    )
