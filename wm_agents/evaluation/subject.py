"""The subject of a measurement: a model, its dream settings and its policy."""

from __future__ import annotations

from typing import NamedTuple

from policies.policy import Policy
from wm_agents.checkpoint import Artifact
from wm_agents.evaluation.evaluate import Score, dream_horizon, evaluate_dream
from wm_agents.evaluation.termination import CUT_OFF
from wm_agents.pretrained import POLICIES, load_policy, load_starts
from wm_envs.world_model import Latent, WorldModel


class Subject(NamedTuple):
    """A model with its dream settings and its policy."""

    model: WorldModel
    starts: dict[str, Latent]
    policy: Policy | None
    """The policy on latents, or None."""
    temperature: float = 1.0
    cut_off: float = CUT_OFF
    horizon: int | None = None
    """The horizon of dreams; None: the length of the longest real episode."""


def subject_of(model: WorldModel, artifact: Artifact) -> Subject:
    """A saved model with the dream settings of its artifact."""
    return Subject(
        model,
        load_starts(artifact),
        saved_policy(model, artifact),
        artifact.config["temperature"],
        artifact.config.get("cut_off", CUT_OFF),
        dream_horizon(artifact),
    )


def saved_policy(model: WorldModel, artifact: Artifact) -> Policy | None:
    """The controller of the artifact, or None."""
    return load_policy(model, artifact) if artifact.policies.keys() & POLICIES.keys() else None


def dream_score(
    subject: Subject, policy: Policy, *, episodes: int, seed: int, temperature: float | None = None
) -> Score:
    """Dream returns of a policy on latents, all at once, from first frames of real episodes."""
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
