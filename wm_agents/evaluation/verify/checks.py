"""What a model must do better than nothing at all: each check holds its dreams against real episodes."""

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
"""Fewer say nothing about a horizon."""
DRAWS = 8
"""Dreams of every real step, whose mean is what the model expects of it."""
SLACK = 0.05
"""Share of a reward that never changes by which its prediction may be off."""
BIAS = 0.5
"""Standard deviations of what stretches really earn by which dreams of them may be off on average."""
FEW_ENDS = (3.0, 4.74, 6.3, 7.75, 9.15)
"""Ends that may be foreseen where 0 to 4 came: the 95 % bounds of a Poisson mean. Of 5 and more the error is judged."""
MARGIN = 0.25
"""Share of what the policy earns above random play, for real, by which its dreams may be off."""


class Check(NamedTuple):
    """One question put to a model."""

    name: str
    ok: bool | None
    """None: these episodes cannot tell."""
    found: str
    """In words."""
    numbers: dict[str, float | None] | None = None


class Tried(NamedTuple):
    """Real stretches, and two dreams of them under the real actions, each step the most likely one."""

    episodes: Sequence[Episode]
    windows: Windows
    horizons: list[int]
    dream: Dream
    untrained: Dream
    copied: dict[int, Floats]
    """By steps ahead: (S,) the error of who repeats the first frame."""


def try_out(
    subject: Subject,
    untrained: WorldModel,
    episodes: Sequence[Episode],
    *,
    horizons: Sequence[int] = HORIZONS,
    windows: int = 512,
    seed: int = 0,
) -> Tried:
    """Dream `windows` stretches of the episodes with the model and with one that has learned nothing."""
    longest = max(ep.num_steps for ep in episodes)
    reached = [h for h in sorted(horizons) if h <= longest] or [1]
    scale = obs_scale(episodes)

    def dreamed(model: WorldModel) -> tuple[Windows, Dream]:
        drawn = draw_windows(model, episodes, windows, reached[-1], np.random.default_rng(seed))
        return drawn, dream(model, drawn, episodes, reached, scale, temperature=0.0, cut_off=subject.cut_off)

    drawn, ours = dreamed(subject.model)
    _, theirs = dreamed(untrained)
    copied = {h: copy_error(drawn, episodes, h, scale) for h in reached}
    return Tried(episodes, drawn, list(horizons), ours, theirs, copied)


def check_frames(tried: Tried) -> list[Check]:
    """At each horizon the dream must be nearer to what came than the last frame, and than an untrained model's."""
    return [_frames(tried, steps) for steps in tried.horizons]


def _frames(tried: Tried, steps: int) -> Check:
    name = f"frames {steps} step{'s' if steps > 1 else ''} ahead"
    num = int((tried.windows.left >= steps).sum())
    if num < FEW_WINDOWS or steps not in tried.copied:
        return Check(name, None, f"{num} stretches of the held-out episodes go so far; {FEW_WINDOWS} are needed")
    ours, blank, copied = (_mean(error[steps]) for error in (tried.dream.error, tried.untrained.error, tried.copied))
    numbers = {"error": ours, "copy": copied, "untrained": blank, "stretches": float(num)}
    if copied == 0:
        return Check(name, None, "nothing that is seen has changed", _finite(numbers))
    ok = ours < copied and not ours >= blank
    return Check(name, ok, f"error {ours:.3g}; the last frame's {copied:.3g}, untrained {blank:.3g}", _finite(numbers))


class Expected(NamedTuple):
    """What is expected of every real step, from the moment before it and its real action, and what came; all (M,)."""

    rew: Floats
    end: Floats
    """Probability."""
    real_rew: Floats
    real_end: Floats
    """1 where the step ended the episode."""


@torch.inference_mode()
def expect(subject: Subject, episodes: Sequence[Episode], draws: int = DRAWS, seed: int = 0) -> Expected:
    """Dream every real step `draws` times: the mean is what a model expects that draws its ends and its futures."""
    model, parts = subject.model, []
    generator = torch.Generator(model.device).manual_seed(seed)
    for moment in walk(model, episodes):
        latent = {key: leaf.repeat_interleave(draws, 0) for key, leaf in moment.latent.items()}
        act = moment.act.repeat_interleave(draws, 0)
        out = model.step(latent, act, temperature=subject.temperature, generator=generator)
        rew, cont = (x.double().view(-1, draws).mean(1).cpu().numpy() for x in (out.rew, out.cont))
        parts.append((rew, 1 - cont, moment.rew, moment.term.astype(np.float64)))
    return Expected(*(np.concatenate(column) for column in zip(*parts)))


def check_rewards(seen: Expected) -> Check:
    """The reward expected of a real step must be nearer than the best constant."""
    error, spread = float(np.square(seen.rew - seen.real_rew).mean()), float(seen.real_rew.var())
    mean = float(seen.real_rew.mean())
    numbers = _finite({"error": error, "constant": spread, "mean": mean})
    if np.ptp(seen.real_rew) == 0:
        off, most = math.sqrt(error), SLACK * (abs(mean) or 1.0)
        return Check("rewards", off <= most, f"always {mean:g}, foreseen to ± {off:.3g} (at most {most:.3g})", numbers)
    return Check("rewards", error < spread, f"squared error {error:.3g}; the best constant's {spread:.3g}", numbers)


def check_bias(tried: Tried) -> Check:
    """What dreamed stretches earn must not be made up: on average it is what they earned."""
    steps = max(tried.copied)
    reach = tried.windows.left >= steps
    name = f"return over {steps} steps"
    if (num := int(reach.sum())) < FEW_WINDOWS:
        return Check(name, None, f"{num} stretches of the held-out episodes go so far; {FEW_WINDOWS} are needed")
    real, said = (rew[:steps, reach].sum(0) for rew in (tried.windows.rew, tried.dream.rew))
    mean, spread, bias = float(real.mean()), float(real.std()), float(said.mean() - real.mean())
    most = max(BIAS * spread, SLACK * (abs(mean) if mean or spread else steps))
    numbers = _finite({"real": mean, "dream": float(said.mean()), "spread": spread, "most": most})
    return Check(name, abs(bias) <= most, f"dreamed {said.mean():.4g}, real {mean:.4g} (± {most:.3g})", numbers)


def check_ends(seen: Expected) -> Check:
    """The end of a real episode, foreseen one step ahead, must be told better than by the share of ends."""
    said, came = seen.end, seen.real_end
    ends, share = int(came.sum()), float(came.mean())
    brier, base = float(np.square(said - came).mean()), share * (1 - share)
    numbers = _finite({"brier": brier, "constant": base, "foreseen": float(said.sum()), "ends": float(ends)})
    if ends < len(FEW_ENDS):
        most, total = FEW_ENDS[ends], float(said.sum())
        return Check("ends", total <= most, f"{ends} came in {len(came):,} steps, {total:.3g} foreseen", numbers)
    return Check("ends", brier < base, f"squared error {brier:.3g}; the best constant's {base:.3g}", numbers)


def check_repeats(subject: Subject) -> Check:
    """The same seed must give the same dream, alone or in a batch."""
    found = check_seeds(subject)
    same = "the same seed repeats" if found.repeats else "the same seed gives another dream"
    alone = "rows repeat alone" if found.rows_alone else f"a row alone is another dream (by {found.worst:.3g})"
    return Check("seeds", found.repeats and found.rows_alone, f"{same}, {alone}", _finite({"worst": found.worst}))


def check_gap(real: Score, dreamed: Score, chance: Score) -> Check:
    """The dream must promise what reality pays: the 95 % interval of the gap (Welch) lies within the margin."""
    gap, half = dreamed.mean - real.mean, welch95(real, dreamed)
    margin = MARGIN * abs(real.mean - chance.mean)
    ok = abs(gap) + half <= margin
    gaps = f"dream {dreamed.mean:.4g} - real {real.mean:.4g} = {gap:.3g} ± {half:.3g}"
    found = f"{gaps} (within ± {margin:.3g}: a quarter of what it earns above random play's {chance.mean:.4g})"
    numbers = {"gap": gap, "half": half, "margin": margin, "real": real.mean, "dream": dreamed.mean}
    return Check("return gap", ok, found, _finite({**numbers, "random": chance.mean}))


def welch95(a: Score, b: Score) -> float:
    """Half width of the 95 % interval of the difference of two means, their spreads being different."""
    parts = [(score.std**2 / len(score.returns), len(score.returns)) for score in (a, b)]
    total = sum(part for part, _ in parts)
    if total == 0:
        return 0.0
    dof = total**2 / sum(part**2 / (num - 1) for part, num in parts if part)
    return student95(max(int(dof), 1)) * math.sqrt(total)


def _mean(error: Floats) -> float:
    known = error[~np.isnan(error)]
    return float(known.mean()) if len(known) else math.nan


def _finite(numbers: dict[str, Any]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}
