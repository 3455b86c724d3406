"""Where the gap opens: returns of the policy in dreams that start within its own real episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from policies.policy import Policy
from wm_agents.data.episode import Episode
from wm_agents.evaluation.posterior import Floats
from wm_agents.evaluation.statistics import pearson
from wm_agents.evaluation.subject import Subject
from wm_agents.evaluation.windows import Windows, draw_windows, within
from wm_envs.action import encode_action


class Closed(NamedTuple):
    """The returns N steps after a real latent."""

    steps: int
    windows: int
    real: float
    """Mean real return up to this step."""
    dream: float
    corr: float | None


def closed_loop(
    subject: Subject, episodes: Sequence[Episode], *, horizons: Sequence[int], windows: int, seed: int = 0
) -> list[Closed]:
    """Dream from latents within `episodes`, which the saved policy played without noise."""
    assert subject.policy is not None
    horizons = within(horizons, episodes)
    drawn = draw_windows(subject.model, episodes, windows, horizons[-1], np.random.default_rng(seed))
    dreamed = _earned(subject, subject.policy, drawn, seed)
    rows = []
    for steps in horizons:
        # After termination the return is constant; after truncation it is unknown.
        known = drawn.term | (drawn.left >= steps)
        if known.any():
            real, said = drawn.rew[:steps, known].sum(0), dreamed[:steps, known].sum(0)
            rows.append(Closed(steps, int(known.sum()), float(real.mean()), float(said.mean()), pearson(real, said)))
    return rows


@torch.inference_mode()
def _earned(subject: Subject, policy: Policy, windows: Windows, seed: int) -> Floats:
    """(H, S) rewards of the dreams, 0 after termination."""
    model, latent = subject.model, windows.latent
    generator = torch.Generator(model.device).manual_seed(seed)
    policy.reset(windows.num, seed)
    alive, rews = np.ones(windows.num, bool), []
    for _ in range(len(windows.rew)):
        act = encode_action(model.act_space, policy.act(model.feat(latent).float().cpu().numpy().copy()))
        out = model.step(
            latent, torch.from_numpy(act).to(model.device), temperature=subject.dream.temperature, generator=generator
        )
        latent = out.latent
        rews.append(np.where(alive, out.rew.double().cpu().numpy(), 0.0))
        alive &= ~out.over(subject.dream.cut_off).cpu().numpy()
    return np.stack(rews)
