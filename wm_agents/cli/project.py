"""`wm init`, `wm train` and `wm verify`: the commands, their flags and their exit codes."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from wm_agents.cli.printing import print_json
from wm_agents.cli.project_flags import TrainParser as TrainParser
from wm_agents.cli.web import dashboard_of
from wm_agents.project.schema import VerifySection
from wm_agents.project.settings import load_project
from wm_agents.system.files import PROJECT_FILE
from wm_agents.system.pulse import asking

if TYPE_CHECKING:
    from wm_agents.project.schema import Project

VERIFIED, NOT_VERIFIED = 0, 1
"""Exit codes of `wm verify`; an interruption or invalid flags give 2, an error 3."""
ASKED = {"environment": "CartPole-v1", "model": "the default for this environment"}


def init(
    path: str,
    env: str | None = None,
    model: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    wrapper: str | None = None,
    yes: bool = False,
    force: bool = False,
) -> int:
    """Create a project: wm.toml, train.py, inference.py, dataset.py and README.md.

    On a terminal, the command asks for missing values; in a pipe it never asks.

    Args:
        path: the project's folder.
        env: any Gymnasium id, or module:Id-v0.
        model: a preset (family:size), such as ensemble:default, vmc:small, dreamerv3:ci or tdmpc2:1m.
        env_kwargs: arguments of the environment, as in `'{"size": 5}'`.
        wrapper: module:function that wraps the environment; see docs/wrap.md.
        yes: do not ask, and use the defaults.
        force: write into a folder that is not empty; other files in it are kept.
    """
    from wm_agents.project.scaffold import write_project

    asking = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    if env is None and asking:
        env = ask("environment", ASKED["environment"])
    if env is None:
        raise ValueError("an environment is required; give it with --env ID, such as --env CartPole-v1")
    if model is None and asking:
        model = ask("model", ASKED["model"])
        model = None if model == ASKED["model"] else model
    say = partial(Console(stderr=True, highlight=False, markup=False).print, soft_wrap=True)
    names = write_project(Path(path), env, model, kwargs=env_kwargs, wrapper=wrapper, force=force, say=say)
    say(f"{path}: {', '.join(names)}")
    say(f"next: cd {path} && wm train")
    return 0


def ask(what: str, usual: str) -> str:
    """Return what the user types on the terminal, or the default `usual`."""
    print(f"{what} [{usual}]: ", end="", file=sys.stderr, flush=True)
    with asking():
        return sys.stdin.readline().strip() or usual


def train(
    settings: dict[str, Any], config: str, allow_degraded: bool, budget: str | None = None, quick: bool = False
) -> None:
    """Train the model of the project in `config`; `settings`, by dotted name, override those of the file."""
    from wm_agents.project.run import train as train_project

    project = load_project(config, settings)
    with dashboard_of(project.out, project.visualization):
        train_project(project, allow_degraded=allow_degraded, budget=budget, quick=quick)


def verify(
    target: str | None = None,
    mode: Literal["quick", "proof"] | None = None,
    episodes: int | None = None,
    proof_episodes: int | None = None,
    seed: int = 1_000_000,
    procs: int = 2,
    evidence_bundle: str | None = None,
    config: str = PROJECT_FILE,
    as_json: bool = False,
) -> int:
    """Compare a model with its real environment, on episodes that were not used for training.

    Exit codes: 0 verified, 1 not verified, 2 interrupted or invalid flags, 3 an error.

    Args:
        target: a model directory, the name of a shipped model or dream, or an evidence bundle to check again;
            by default the model of the project in this folder.
        mode: quick checks frames, rewards, termination and seeds; proof also compares the policy's returns in
            the dream and in the real environment.
        episodes: number of real episodes per policy, for each of four policies.
        proof_episodes: number of real episodes over which returns are compared.
        seed: first environment seed, at least 1,000,000.
        procs: number of processes that run real episodes.
        evidence_bundle: folder for the evidence bundle: all results and checksums; proof always writes one, by default
            to `evidence` next to the model.
        config: a project's wm.toml; its [verify] section gives values that flags do not.
        as_json: print one JSON object on stdout.
    """
    from wm_agents.evaluation.verify import evidence
    from wm_agents.evaluation.verify import verify as judging

    project = _project(config, needed=target is None)
    where = target or str(project.checkpoint if project else "")
    if evidence.is_evidence(Path(where)):
        found = evidence.read_evidence(Path(where))
        if as_json:
            print_json(found)
        else:
            print((Path(where) / "report.txt").read_text(encoding="utf-8").rstrip())
        return VERIFIED if found["verified"] else NOT_VERIFIED
    usual = project.verify if project else VerifySection()
    given: dict[str, Any] = {"mode": mode, "episodes": episodes, "proof_episodes": proof_episodes}
    usual = replace(usual, **{name: value for name, value in given.items() if value is not None})
    if usual.mode == "quick" and proof_episodes is not None:
        raise ValueError("proof_episodes applies to --mode proof only, got --mode quick; remove it")
    verification = judging.verify(
        where,
        mode=usual.mode,
        episodes=usual.episodes,
        proof_episodes=usual.proof_episodes,
        seed=seed,
        procs=procs,
        console=Console(stderr=True),
    )
    if as_json:
        print_json(verification.to_dict())
    else:
        print(judging.report(verification))
    if evidence_bundle or verification.mode == "proof":
        beside = Path(where).parent if Path(where).is_dir() else Path()
        bundle = Path(evidence_bundle or beside / "evidence")
        evidence.write_evidence(verification, bundle)
        print(f"evidence: {bundle}", file=sys.stderr)
    return VERIFIED if verification.verified else NOT_VERIFIED


def _project(config: str, needed: bool) -> Project | None:
    """Read the project in `config`; return None if no project is needed and the default file does not
    exist."""
    there = (Path(config) / PROJECT_FILE if Path(config).is_dir() else Path(config)).is_file()
    return load_project(config) if there or needed or config != PROJECT_FILE else None
