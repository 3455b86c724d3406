"""Calibration of the predicted probability of termination, one step ahead."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import OneStep, walk
from wm_agents.evaluation.termination import Bools, Calibration, at_cut_off, best_cut_off, of_ends
from wm_envs.world_model import WorldModel

BINS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bin edges for the probability of termination, dense near 0 where most steps are."""


class _Bin(NamedTuple):
    """The steps with a predicted probability of termination between two edges."""

    low: float
    high: float
    steps: int
    said: float
    """Mean predicted probability."""
    came: float
    """Share of the steps that terminated."""


class Reliability(NamedTuple):
    """Predicted probabilities of termination, and observed frequencies."""

    steps: int
    ends: int
    brier: float
    """Mean squared error of the probability."""
    brier_base: float
    """Mean squared error of the constant base rate."""
    ece: float
    """Expected calibration error: mean distance of predicted and observed share, weighted by steps."""
    bins: list[_Bin]
    drawn: bool
    """The model samples termination itself and uses no threshold."""
    now: Calibration
    """Precision and recall of its terminations: at its threshold, or as sampled."""
    best: Calibration | None
    """At the best threshold for these episodes; None if terminations are sampled."""


@torch.inference_mode()
def drawn_ends(
    model: WorldModel, episodes: Iterable[Episode], *, temperature: float = 1.0, seed: int = 0, batch: int = 64
) -> Bools | None:
    """(M,) sampled terminations of all steps, in the order of `predict_steps`; None for a model with a
    threshold."""
    generator = torch.Generator(model.device).manual_seed(seed)
    parts = []
    for moment in walk(model, episodes, batch):
        end = model.step(moment.latent, moment.act, temperature=temperature, generator=generator).end
        if end is None:
            return None
        parts.append(end.cpu().numpy())
    return np.concatenate(parts)


def reliability(seen: OneStep, cut_off: float, drawn: Bools | None = None) -> Reliability:
    """Measure calibration over all real steps; `drawn` (M,) are sampled terminations, if the model samples
    them."""
    said, came = 1 - seen.cont, seen.real_term.astype(np.float64)
    place = np.clip(np.digitize(said, BINS) - 1, 0, len(BINS) - 2)  # The last bin includes 1.
    bins = [
        _Bin(low, high, int(here.sum()), float(said[here].mean()), float(came[here].mean()))
        for i, (low, high) in enumerate(pairwise(BINS))
        if (here := place == i).any()
    ]
    share = float(came.mean())
    if drawn is None:
        now = at_cut_off(seen.cont, seen.real_term, cut_off)
    else:
        note = "the model samples termination itself, without a threshold"
        now = of_ends(drawn, seen.real_term, cut_off, note)
    return Reliability(
        len(came),
        int(came.sum()),
        float(np.square(said - came).mean()),
        share * (1 - share),
        sum(b.steps * abs(b.said - b.came) for b in bins) / len(came),
        bins,
        drawn is not None,
        now,
        best_cut_off(seen.cont, seen.real_term) if drawn is None else None,
    )
