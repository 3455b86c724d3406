"""The checks of `wm verify`: each compares the dreams of a model with real episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from wm_agents.data.episode import Episode
from wm_agents.evaluation.determinism import check_seeds
from wm_agents.evaluation.evaluate import Score, student95
from wm_agents.evaluation.posterior import Floats, walk
from wm_agents.evaluation.subject import Subject
from wm_agents.evaluation.windows import Dream, Windows, copy_error, draw_windows, dream, obs_scale
from wm_envs.world_model import WorldModel

HORIZONS = (1, 5, 15)
FEW_WINDOWS = 20
"""Minimum number of windows at a horizon."""
DRAWS = 8
"""Dreams per real step; their mean is the expected step."""
SLACK = 0.05
"""Relative tolerance for the prediction of a constant reward."""
BIAS = 0.5
"""Tolerance for the mean return of dreamed windows, in standard deviations of the real ones."""
FEW_ENDS = (3.0, 4.74, 6.3, 7.75, 9.15)
"""Maximum predicted terminations for 0 to 4 real ones: the 95 % bounds of a Poisson mean. From 5 on, the
squared error is checked."""
MARGIN = 0.25
"""Tolerance for the return gap, relative to the policy's real advantage over random actions."""


class Check(NamedTuple):
    """The result of one check."""

    name: str
    ok: bool | None
    """None: not enough data."""
    found: str
    """Description of the result."""
    numbers: dict[str, float | None] | None = None


class _Tried(NamedTuple):
    """Real windows, and their dreams by the model and by an untrained model, at temperature 0."""

    episodes: Sequence[Episode]
    windows: Windows
    horizons: list[int]
    dream: Dream
    untrained: Dream
    copied: dict[int, Floats]
    """By steps ahead: (S,) the error of copying the first frame."""


def try_out(
    subject: Subject,
    untrained: WorldModel,
    episodes: Sequence[Episode],
    *,
    horizons: Sequence[int] = HORIZONS,
    windows: int = 512,
    seed: int = 0,
) -> _Tried:
    """Roll out the model, and an untrained copy, along `windows` recorded windows."""
    longest = max(ep.num_steps for ep in episodes)
    reached = [h for h in sorted(horizons) if h <= longest] or [1]
    scale = obs_scale(episodes)

    def dreamed(model: WorldModel) -> tuple[Windows, Dream]:
        drawn = draw_windows(model, episodes, windows, reached[-1], np.random.default_rng(seed))
        return drawn, dream(model, drawn, episodes, reached, scale, temperature=0.0, cut_off=subject.dream.cut_off)

    drawn, ours = dreamed(subject.model)
    _, theirs = dreamed(untrained)
    copied = {h: copy_error(drawn, episodes, h, scale) for h in reached}
    return _Tried(episodes, drawn, list(horizons), ours, theirs, copied)


def check_frames(tried: _Tried) -> list[Check]:
    """At each horizon, the dreamed frame must have a smaller error than two others: a copy of the last encoded frame,
    and the dream of an untrained model."""
    return [_frames(tried, steps) for steps in tried.horizons]


def _frames(tried: _Tried, steps: int) -> Check:
    name = f"frames {steps} step{'s' if steps > 1 else ''} ahead"
    num = int((tried.windows.left >= steps).sum())
    if num < FEW_WINDOWS or steps not in tried.copied:
        return Check(name, None, f"only {num} held-out windows reach this horizon; {FEW_WINDOWS} are needed")
    ours, blank, copied = (_mean(error[steps]) for error in (tried.dream.error, tried.untrained.error, tried.copied))
    numbers = {"error": ours, "copy": copied, "untrained": blank, "stretches": float(num)}
    if copied == 0:
        return Check(name, None, "the observations do not change", _finite(numbers))
    ok = ours < copied and not ours >= blank
    text = f"error {ours:.3g} (last frame {copied:.3g}, untrained model {blank:.3g})"
    return Check(name, ok, text, _finite(numbers))


class _Expected(NamedTuple):
    """Predictions for every real step, from the latent before it and its real action, and the real values;
    all (M,)."""

    rew: Floats
    end: Floats
    """Probability."""
    real_rew: Floats
    real_end: Floats
    """1 if the step terminated the episode."""


@torch.inference_mode()
def expect(subject: Subject, episodes: Sequence[Episode], draws: int = DRAWS, seed: int = 0) -> _Expected:
    """Dream every real step `draws` times and average, because a model may sample futures and termination."""
    model, parts = subject.model, []
    generator = torch.Generator(model.device).manual_seed(seed)
    for moment in walk(model, episodes):
        latent = {key: leaf.repeat_interleave(draws, 0) for key, leaf in moment.latent.items()}
        act = moment.act.repeat_interleave(draws, 0)
        out = model.step(latent, act, temperature=subject.dream.temperature, generator=generator)
        rew, cont = (x.double().view(-1, draws).mean(1).cpu().numpy() for x in (out.rew, out.cont))
        parts.append((rew, 1 - cont, moment.rew, moment.term.astype(np.float64)))
    return _Expected(*(np.concatenate(column) for column in zip(*parts)))


def check_rewards(seen: _Expected) -> Check:
    """The expected reward of a real step must have a smaller error than the best constant."""
    error, spread = float(np.square(seen.rew - seen.real_rew).mean()), float(seen.real_rew.var())
    mean = float(seen.real_rew.mean())
    numbers = _finite({"error": error, "constant": spread, "mean": mean})
    if np.ptp(seen.real_rew) == 0:
        off, most = math.sqrt(error), SLACK * (abs(mean) or 1.0)
        text = f"the real reward is always {mean:g}, predicted within ± {off:.3g} (limit {most:.3g})"
        return Check("rewards", off <= most, text, numbers)
    return Check("rewards", error < spread, f"squared error {error:.3g} (best constant {spread:.3g})", numbers)


def check_bias(tried: _Tried) -> Check:
    """The mean return of dreamed windows must match the real mean."""
    steps = max(tried.copied)
    reach = tried.windows.left >= steps
    name = f"return over {steps} steps"
    if (num := int(reach.sum())) < FEW_WINDOWS:
        return Check(name, None, f"only {num} held-out windows reach this horizon; {FEW_WINDOWS} are needed")
    real, said = (rew[:steps, reach].sum(0) for rew in (tried.windows.rew, tried.dream.rew))
    mean, spread, bias = float(real.mean()), float(real.std()), float(said.mean() - real.mean())
    most = max(BIAS * spread, SLACK * (abs(mean) if mean or spread else steps))
    numbers = _finite({"real": mean, "dream": float(said.mean()), "spread": spread, "most": most})
    return Check(name, abs(bias) <= most, f"dream {said.mean():.4g}, real {mean:.4g} (tolerance ± {most:.3g})", numbers)


def check_ends(seen: _Expected) -> Check:
    """The probability of termination, one step ahead, must have a smaller error than the base rate."""
    said, came = seen.end, seen.real_end
    ends, share = int(came.sum()), float(came.mean())
    brier, base = float(np.square(said - came).mean()), share * (1 - share)
    numbers = _finite({"brier": brier, "constant": base, "foreseen": float(said.sum()), "ends": float(ends)})
    if ends < len(FEW_ENDS):
        most, total = FEW_ENDS[ends], float(said.sum())
        text = f"{ends} real terminations in {len(came):,} steps, {total:.3g} predicted (limit {most:.3g})"
        return Check("termination", total <= most, text, numbers)
    return Check("termination", brier < base, f"squared error {brier:.3g} (base rate {base:.3g})", numbers)


def check_repeats(subject: Subject) -> Check:
    """The same seed must give the same dream, alone or in a batch."""
    found = check_seeds(subject)
    same = "the same seed gives another dream"
    if found.repeats:
        same = "the same seed repeats the dream"
    alone = "each row equals its single dream"
    if not found.rows_alone:
        alone = f"a row differs from its single dream by {found.worst:.3g}"
    numbers = _finite({"worst": found.worst, "parted": found.parted})
    return Check("seeds", found.repeats and found.rows_alone, f"{same}, {alone}", numbers)


def check_gap(real: Score, dreamed: Score, chance: Score) -> Check:
    """The 95 % CI (Welch) of the gap between dream and real return must be within the margin."""
    gap, half = dreamed.mean - real.mean, _welch95(real, dreamed)
    margin = MARGIN * abs(real.mean - chance.mean)
    ok = abs(gap) + half <= margin
    gaps = f"dream {dreamed.mean:.4g} - real {real.mean:.4g} = {gap:.3g} ± {half:.3g}"
    found = f"{gaps} (tolerance ± {margin:.3g}, a quarter of its advantage over random actions, {chance.mean:.4g})"
    numbers = {"gap": gap, "half": half, "margin": margin, "real": real.mean, "dream": dreamed.mean}
    return Check("return gap", ok, found, _finite({**numbers, "random": chance.mean}))


def _welch95(a: Score, b: Score) -> float:
    """Half width of the 95 % CI of the difference of two means with different variances."""
    parts = [(score.std**2 / len(score.returns), len(score.returns)) for score in (a, b)]
    total = sum(part for part, _ in parts)
    if total == 0:
        return 0.0
    dof = total**2 / sum(part**2 / (num - 1) for part, num in parts if part)
    return student95(max(int(dof), 1)) * math.sqrt(total)


def _mean(error: Floats) -> float:
    known = error[~np.isnan(error)]
    if len(known):
        return float(known.mean())
    return math.nan


def _finite(numbers: dict[str, Any]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}
