"""`wm verify`: checks a saved model on held-out real episodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console

from policies.play import EpisodeTask
from policies.pool import Procs
from policies.rollout import EVAL_SEED
from wm_agents.checkpoint import Artifact, ArtifactError, sha256
from wm_agents.data.episode import Episode
from wm_agents.degraded import degraded_of
from wm_agents.evaluation.evaluate import Score, evaluate_real
from wm_agents.evaluation.fidelity.report import plain
from wm_agents.evaluation.held_out import record
from wm_agents.evaluation.subject import Subject, dream_score, subject_of
from wm_agents.evaluation.variants import RANDOM, SAVED, Contender, contenders, drive
from wm_agents.evaluation.verify.checks import (
    Check,
    check_bias,
    check_ends,
    check_frames,
    check_gap,
    check_repeats,
    check_rewards,
    expect,
    try_out,
)
from wm_agents.models.families import build
from wm_agents.models.model import Model
from wm_agents.models.saved import load_model, model_path
from wm_agents.pretrained import cached_model, saved_dream
from wm_agents.system.hardware import describe
from wm_agents.system.progress import Bar
from wm_agents.system.run_folder import versions
from wm_envs.registry import RealSpec

Mode = Literal["quick", "proof"]
POLICIES = 4
"""Number of policies that play the held-out episodes: the model's own, random actions, and two mixtures."""
MAX_GB = 1.0
"""Maximum memory of frames; no more episodes are played beyond that."""
PROOF_EPISODES = 100


@dataclass(frozen=True)
class Verification:
    """The result of a verification, with all details."""

    verified: bool
    mode: Mode
    model: str
    family: str | None
    env: str | None
    checks: list[Check]
    episodes: int
    """Number of held-out real episodes."""
    steps: int
    seed: int
    """The first environment seed."""
    degraded_modes: list[str]
    """Degraded modes of the training; a model with any is never verified."""
    model_sha256: str
    """sha256 of config.json, which contains those of all other files."""
    returns: dict[str, list[float]] = field(default_factory=dict)
    """In proof mode: returns of all real, dreamed and random episodes."""
    wall_s: float = 0.0
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        values: dict[str, Any] = plain({**asdict(self), "checks": [check._asdict() for check in self.checks]})
        return values


def verify(
    target: str,
    *,
    mode: Mode = "quick",
    episodes: int = 5,
    proof_episodes: int = PROOF_EPISODES,
    seed: int = EVAL_SEED,
    procs: Procs = 2,
    console: Console | None = None,
) -> Verification:
    """Check a saved model on held-out real episodes, which are played now.

    Args:
        target: a model directory, or the name of a shipped model or dream.
        mode: `quick` checks frames, rewards, termination and seeds; `proof` also the gap of dream and real return.
        episodes: real episodes of each policy: the saved one, random actions, and two with noise.
        proof_episodes: number of real, dreamed and random episodes for the return gap.
        seed: first environment seed, at least 1,000,000.

    Raises:
        FileNotFoundError: there is no such model.
        ArtifactError: it cannot be used as a dream environment.
    """
    _check_counts(episodes, proof_episodes, seed)
    began, path = time.perf_counter(), model_path(target)
    facts: dict[str, Any] = {"mode": mode, "model": target, "seed": seed, "model_sha256": sha256(path / "config.json")}
    try:
        net, artifact = load_model(target)
    except ArtifactError as error:
        broken = Check("artifact", False, str(error))
        return Verification(
            False, family=None, env=None, checks=[broken], episodes=0, steps=0, degraded_modes=[], **facts
        )
    saved, degraded = saved_dream(net, artifact), degraded_of(artifact)
    spec, subject = saved.spec, subject_of(saved)
    cached_model.cache_clear()  # The directory may have changed since this process last loaded it.
    checks = [_check_files(artifact), _check_data(spec, degraded)]
    held_out = list(_play(target, spec, subject, episodes, seed, procs, console))
    longest = max(ep.num_steps for ep in held_out)
    subject = subject._replace(dream=replace(subject.dream, horizon=subject.dream.horizon or longest))
    checks += _judge(subject, _untrained(net), held_out)
    returns: dict[str, list[float]] = {}
    if mode == "proof":
        gap, returns = _prove(target, spec, subject, range(seed, seed + proof_episodes), procs, console)
        checks.append(gap)
    return Verification(
        all(check.ok is not False for check in checks) and any(check.ok for check in checks[2:]),
        family=net.family,
        env=spec.id,
        checks=checks,
        episodes=len(held_out),
        steps=sum(ep.num_steps for ep in held_out),
        degraded_modes=degraded,
        returns=returns,
        wall_s=round(time.perf_counter() - began, 1),
        versions=versions(),
        hardware=describe(),
        **facts,
    )


def _judge(subject: Subject, blank: Model, held_out: list[Episode]) -> list[Check]:
    """All checks that need only recorded episodes."""
    tried, seen = try_out(subject, blank, held_out), expect(subject, held_out)
    return [
        *check_frames(tried),
        check_rewards(seen),
        check_bias(tried),
        check_ends(seen),
        check_repeats(subject),
    ]


def _untrained(model: Model, seed: int = 0) -> Model:
    """An untrained model of the same family, settings and spaces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(model.family, model.cfg, model.obs_space, model.act_space).to(model.device).eval()


def _check_files(artifact: Artifact) -> Check:
    """Check that config.json lists all tensor files; loading has already compared their sha256."""
    listed = artifact.config.get("files", {})
    apart = sorted(file.name for file in artifact.path.glob("*.safetensors") if file.name not in listed)
    if apart:
        return Check("artifact", False, f"config.json lists no sha256 of {', '.join(apart)}; save the model again")
    return Check("artifact", True, f"{len(listed)} files match their sha256")


def _check_data(spec: RealSpec, degraded: list[str]) -> Check:
    """A model that was not trained on the real environment fails."""
    if degraded:
        return Check("data", False, f"trained without the real environment: {', '.join(degraded)}")
    return Check("data", True, f"trained on real data (no degraded mode recorded); checked on {spec.id}")


def report(found: Verification) -> str:
    """The result as lines for a terminal."""
    marks = {True: "ok  ", False: "FAIL", None: "-   "}
    width = max(len(check.name) for check in found.checks)
    lines = [f"  {marks[check.ok]} {check.name:<{width}}  {check.found}" for check in found.checks]
    if found.degraded_modes:
        lines.append(f"  DEGRADED: {', '.join(found.degraded_modes)}")
    verdict = "NOT verified"
    if found.verified:
        verdict = "verified"
    where = f"{found.episodes} held-out episodes of {found.env} ({found.steps:,} steps, seeds from {found.seed:,})"
    return "\n".join([*lines, f"{found.model}: {verdict} ({found.mode}), on {where}, {found.wall_s} s"])


def _play(
    target: str, spec: RealSpec, subject: Subject, num: int, seed: int, procs: Procs, console: Console | None
) -> Iterator[Episode]:
    """Play held-out episodes, seed by seed, so that a full memory drops seeds and not policies."""
    among = contenders(subject.policy, subject.model.act_space, POLICIES)
    jobs = [EpisodeTask(seed + i, (who,)) for i in range(num * POLICIES // len(among)) for who in among]
    room = MAX_GB * 1e9
    with Bar("real episodes", len(jobs), console) as bar:
        for i, ep in enumerate(record(spec, partial(drive, target), jobs, procs), 1):
            room -= ep.obs.nbytes
            if room < 0 and i > len(among):
                return
            yield ep
            bar.update(i)


def _prove(
    target: str, spec: RealSpec, subject: Subject, seeds: range, procs: Procs, console: Console | None
) -> tuple[Check, dict[str, list[float]]]:
    """Dream and real returns of the model's policy, and real returns of random actions."""
    if subject.policy is None:
        return Check("return gap", False, "the model has no controller; train one with `wm evolve`"), {}
    dreamed = dream_score(subject, subject.policy, episodes=len(seeds), seed=seeds[0])
    real, chance = (_real(target, spec, Contender(who), seeds, procs, console) for who in (SAVED, RANDOM))
    scores = {"real": real, "dream": dreamed, "random": chance}
    return check_gap(real, dreamed, chance), {name: score.returns for name, score in scores.items()}


def _real(target: str, spec: RealSpec, who: Contender, seeds: range, procs: Procs, console: Console | None) -> Score:
    return evaluate_real(spec, partial(drive, target, who), seeds, procs, console)


def _check_counts(episodes: int, proof_episodes: int, seed: int) -> None:
    for name, value, low in (
        ("episodes", episodes, 1),
        ("proof_episodes", proof_episodes, 2),
        ("seed", seed, EVAL_SEED),
    ):
        if value < low:
            why = ""
            if name == "seed":
                why = ", because lower seeds are for training"
            raise ValueError(f"{name} must be at least {low:,}{why}; got {value:,}")
