"""What is measured: a model, how it is dreamed in, and who acts in it."""

from __future__ import annotations

from typing import NamedTuple

from policies.policy import Policy
from wm_agents.checkpoint import Artifact
from wm_agents.evaluation.evaluate import Score, dream_horizon, evaluate_dream
from wm_agents.evaluation.termination import CUT_OFF
from wm_agents.pretrained import POLICIES, load_policy, load_starts
from wm_envs.world_model import Latent, WorldModel


class Subject(NamedTuple):
    """A model and how it is dreamed in."""

    model: WorldModel
    starts: dict[str, Latent]
    policy: Policy | None
    """On latents; None if the model carries none."""
    temperature: float = 1.0
    cut_off: float = CUT_OFF
    horizon: int | None = None
    """Steps after which a dream is cut; None: the length of the longest real episode."""


def subject_of(model: WorldModel, artifact: Artifact) -> Subject:
    """A saved model as its artifact says that it is dreamed in."""
    return Subject(
        model,
        load_starts(artifact),
        saved_policy(model, artifact),
        artifact.config["temperature"],
        artifact.config.get("cut_off", CUT_OFF),
        dream_horizon(artifact),
    )


def saved_policy(model: WorldModel, artifact: Artifact) -> Policy | None:
    """The controller on latents that the artifact carries, if it carries one."""
    return load_policy(model, artifact) if artifact.policies.keys() & POLICIES.keys() else None


def dream_score(
    subject: Subject, policy: Policy, *, episodes: int, seed: int, temperature: float | None = None
) -> Score:
    """Dreamed returns of a policy on latents, all at once, from first frames of real episodes."""
    return evaluate_dream(
        subject.model,
        subject.starts,
        policy,
        episodes=episodes,
        seed=seed,
        horizon=subject.horizon,
        temperature=subject.temperature if temperature is None else temperature,
        cut_off=subject.cut_off,
    )
