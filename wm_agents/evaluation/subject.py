"""The subject of a measurement: a model, its dream settings and its policy."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from policies.policy import Policy
from wm_agents.checkpoint import Artifact
from wm_agents.evaluation.evaluate import Score, evaluate_dream
from wm_agents.pretrained import POLICIES, Saved, load_policy
from wm_envs.dream import DreamConfig
from wm_envs.world_model import Latent, WorldModel


class Subject(NamedTuple):
    """A model with its dream settings and its policy."""

    model: WorldModel
    starts: dict[str, Latent]
    policy: Policy | None
    """The policy on latents, or None."""
    dream: DreamConfig = DreamConfig()
    """Without a horizon, dreams are as long as the longest real episode."""


def subject_of(saved: Saved) -> Subject:
    """A saved dream, with the limit of its real environment if it has none."""
    return Subject(saved.model, saved.starts, saved_policy(saved.model, saved.artifact), saved.bounded)


def saved_policy(model: WorldModel, artifact: Artifact) -> Policy | None:
    """The controller of the artifact, or None."""
    if artifact.policies.keys() & POLICIES.keys():
        return load_policy(model, artifact)
    return None


def dream_score(
    subject: Subject, policy: Policy, *, episodes: int, seed: int, temperature: float | None = None
) -> Score:
    """Play a policy that observes latents in a batch of dreams, which start from first frames of real episodes."""
    return evaluate_dream(
        subject.model,
        subject.starts,
        policy,
        subject.dream if temperature is None else replace(subject.dream, temperature=temperature),
        episodes=episodes,
        seed=seed,
    )
