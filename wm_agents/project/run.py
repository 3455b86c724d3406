"""`wm train`: trains the model of a wm.toml in its output folder; an interrupted run resumes.

outputs/
  model/              the saved model, for Dream-v0, `wm verify` and `wm evaluate`
  run_manifest.json   settings, versions, data, scores, and whether the run was degraded
  metrics.jsonl       scalars by step, and events.* for TensorBoard
  data/               all training episodes
  curves.png          learning curves, if [visualization] is enabled
  gameplay.mp4        a real episode beside its dream, if [gameplay] is enabled
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

from rich.console import Console

from wm_agents.data.dataset import Dataset
from wm_agents.degraded import NO_ENV, RANDOM_DATA, mark_degraded
from wm_agents.errors import ConfigurationError
from wm_agents.loops.online import check_budget
from wm_agents.loops.online import start as start_online
from wm_agents.loops.online_config import OnlineConfig
from wm_agents.loops.preflight import check_training
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.loops.rounds import STAGES, start
from wm_agents.loops.seeds import JUDGE_SEED
from wm_agents.pretrained import load_dream
from wm_agents.project.curves import draw_curves
from wm_agents.project.finished import check_more, digest, flatten, tell, warn
from wm_agents.project.manifest import NAME, Manifest, artifact_facts, data_facts
from wm_agents.project.offline import train_offline, train_on_noise
from wm_agents.project.schema import Project
from wm_agents.project.translate import (
    Spaces,
    env_seed_of,
    model_of,
    online_of,
    replay_of,
    rounds_of,
    seed_of,
    spaces_of,
    spec_of,
)
from wm_agents.system.extras import extra
from wm_agents.system.files import read_json
from wm_agents.system.processes import check_one_process, rank
from wm_agents.system.run_folder import RunFolder, start_run
from wm_agents.training.config import TrainingConfig
from wm_agents.video import record
from wm_envs.env_id import LackingEnv, UnknownEnv
from wm_envs.real import probe
from wm_envs.registry import RealSpec

Plan = TrainingConfig | OnlineConfig | ImproveConfig

MAY_CHANGE = (
    "project_name", "data.num_steps", "data.buffer_capacity", "online_collection.rounds", "controller.iterations",
    "controller.horizon", "training.", "gameplay.", "visualization.", "inference.", "verify.",
)  # fmt: skip
"""Settings that may change when a run is resumed; a running stage also checks its own settings."""


class _Degraded(ConfigurationError):
    """The run would be degraded, which was not allowed."""


class _Source(NamedTuple):
    """The data source of a run."""

    spec: RealSpec | None
    """The real environment, or None."""
    degraded: list[str]


def train(
    project: Project,
    *,
    allow_degraded: bool = False,
    budget: str | None = None,
    quick: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train or resume the model of a project, and return the content of run_manifest.json.

    Args:
        allow_degraded: train on generated noise, which describes no environment, if the settings ask for it or the
            environment cannot be created.
        budget, quick: the time of the run: see `ImproveConfig`.

    Raises:
        ConfigurationError: the settings contradict the environment, each other, or the existing run.
        Degraded: `allow_degraded` is False, and the run would train on noise.
        FolderInUse: another process uses the output folder.
        KeyboardInterrupt: the run was interrupted; finished work is kept.
    """
    console = console or Console(stderr=True)
    if str(project.root) not in sys.path:
        sys.path.append(str(project.root))  # A module with an environment may be beside wm.toml.
    source = _find_source(project, allow_degraded)
    spaces = spaces_of(project, source.spec)
    if source.spec is not None and probe(source.spec).limit is None:
        raise ConfigurationError(f"{project.environment} has no episode limit; set max_episode_steps in [data]")
    if not (project.is_online and project.online_collection.enabled):
        check_one_process("wm train without online collection")
    # Report contradictions before any work is done.
    model, plan = model_of(project, spaces), _in_time(_make_plan(project, source, spaces), budget, quick)
    # All settings of the model, because a newly added key is also a change.
    settings = flatten({**project.to_dict(), "architecture": model.cfg.to_dict()})
    settings |= {name: value for name, value in (("training.budget", budget), ("training.quick", quick)) if value}
    seeds = {"run": seed_of(project), "collect": env_seed_of(project), "judge": JUDGE_SEED}
    if rank() > 0 and isinstance(plan, OnlineConfig):  # Under torchrun, the first process writes.
        with RunFolder(project.out) as follower:
            start_online(plan, follower, Console(quiet=True)).loop()
        return {}
    changeable = {name for name in settings if name.startswith(MAY_CHANGE) and name != "training.seed"}
    changeable |= {"training.budget", "training.quick"}  # A resumed run may have none.
    with start_run(project.out, settings, seeds, may_change=changeable) as folder:
        before: dict[str, Any] = {}
        if (project.out / NAME).exists():
            before = read_json(project.out / NAME, "the manifest of a run")
        if folder.state.get("trained") == digest(settings):
            tell(project, before, console, again=True)
            return before
        if before:
            check_more(project, before["config"], folder)
        warn(source.degraded, console)
        manifest, began = Manifest(project, seeds, source.degraded), time.perf_counter()
        try:
            manifest.write("running", plan=plan.to_dict())
            result = _learn(project, plan, source, spaces, folder, console)
            _finish(project, source, result, console)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            manifest.write("interrupted" if stopped else "failed", **_facts(project, source, folder, {}, began))
            if stopped:
                console.print(f"saved: {_saved(project, folder)}", soft_wrap=True, highlight=False)
            raise
        values = manifest.write("done", **_facts(project, source, folder, result, began))
        folder.update(trained=digest(settings))
    tell(project, values, console)
    return values


def _find_source(project: Project, allow_degraded: bool) -> _Source:
    """The environment, or the degraded modes of the run.

    Raises:
        UnknownEnv, LackingEnv: the environment is missing, but required.
        Degraded: the settings require random data, which was not allowed.
    """
    missing: Exception | None = None
    try:
        probe(spec_of(project))
    except (UnknownEnv, LackingEnv) as error:
        if not allow_degraded:
            raise
        missing = error
    degraded = [NO_ENV] if missing else []
    if missing or project.data.source == "random":
        degraded.append(RANDOM_DATA)
    if degraded and not allow_degraded:
        raise _Degraded(
            'source = "random" in [data] trains on random data, so the model will be meaningless; use source = "gym", '
            "or pass `wm train --allow-degraded` to do it anyway"
        )
    if missing and project.online_collection.enabled:
        raise _Degraded(f"online collection is not possible: {missing}; set enabled = false in [online_collection]")
    return _Source(None if missing else spec_of(project), degraded)


def _make_plan(project: Project, source: _Source, spaces: Spaces) -> Plan:
    """The complete settings of the run, for the loop of the family."""
    if RANDOM_DATA in source.degraded or (project.is_online and not project.online_collection.enabled):
        return replay_of(project)
    if project.is_online:
        online = online_of(project)
        check_budget(online)
        return online
    cfg = rounds_of(project, spaces)
    check_training(cfg)
    return cfg


def _in_time(plan: Plan, budget: str | None, quick: bool) -> Plan:
    """`plan` with a budget of time.

    Raises:
        ConfigurationError: the plan trains on data that do not depend on the time.
    """
    if not isinstance(plan, TrainingConfig):
        return replace(plan, budget=budget, quick=quick)
    if budget is not None or quick:
        raise ConfigurationError(
            "budget and quick need a run that collects while it trains; set enabled = true in [online_collection], or "
            "lower training.total_steps and data.num_steps instead"
        )
    return plan


def _learn(
    project: Project, plan: Plan, source: _Source, spaces: Spaces, folder: RunFolder, console: Console
) -> dict[str, Any]:
    if RANDOM_DATA in source.degraded:
        return train_on_noise(project, spaces, source.spec, source.degraded, console)
    if isinstance(plan, TrainingConfig):
        return train_offline(project, spaces, console)
    training = start_online(plan, folder, console) if isinstance(plan, OnlineConfig) else start(plan, folder, console)
    training.loop()
    return training.finish()


def _finish(project: Project, source: _Source, result: dict[str, Any], console: Console) -> None:
    """Record the degraded modes in the model, and write curves and videos if enabled."""
    mark_degraded(project.out / "model", source.degraded)
    if project.gameplay.enabled:
        with extra("the video", console):
            result["film_steps"] = _film(project, source, console)
    if project.visualization.enabled:
        with extra("the plot of the curves", console):
            draw_curves(project.out, project.visualization.history_max_points)


def _film(project: Project, source: _Source, console: Console) -> int:
    """Record a video of a real episode beside its dream, and return its real steps."""
    if source.spec is None or source.degraded:
        console.print("no video: the model has no policy")
        return 0
    saved = load_dream(project.out / "model")
    frames = record(
        project.out / "gameplay.mp4",
        source.spec,
        saved.model,
        saved.policy,
        saved.dream,
        seed=JUDGE_SEED,
        max_frames=project.gameplay.max_frames,
        fps=project.gameplay.fps,
    )
    return frames - 1


def _saved(project: Project, folder: RunFolder) -> str:
    """A description of the saved state of an interrupted run."""
    state, found = folder.state, []
    if (data := project.out / "data").is_dir() and (steps := Dataset(data).num_steps):
        found.append(f"{steps:,} steps of data")
    done = state.get("round", 0) * len(STAGES) + STAGES.index(state.get("stage", STAGES[0]))
    if done:
        found.append(f"round {state['round']} up to {state['stage']!r}")
    if any(project.out.glob("**/last.safetensors")):
        found.append("the last training checkpoint")
    return f"{', '.join(found) or 'nothing yet'}, in {project.out}"


def _facts(
    project: Project, source: _Source, folder: RunFolder, result: dict[str, Any], began: float
) -> dict[str, Any]:
    """The entries of the manifest for a finished or unfinished run."""
    mode = "offline"
    if project.online_collection.enabled:
        mode = "online"
    if RANDOM_DATA in source.degraded:
        mode = "random"
    stages: dict[str, float] = {}
    for part in folder.state.get("history", {}).values():
        for name, facts in part.items():
            stages[f"{name}_s"] = round(stages.get(f"{name}_s", 0.0) + facts["wall_s"], 1)
    timings = {**stages, "train_s": result.get("train_wall_s"), "this_start_s": round(time.perf_counter() - began, 1)}
    judged = {name: result[name] for name in ("real", "dream", "gap", "protocol") if name in result}
    others = {name: result[name] for name in ("val", "updates", "round", "real_steps", "film_steps") if name in result}
    return {
        "timings": timings,
        "scores": judged or None,
        "training": others,
        "data": data_facts(project.out / "data", mode),
        "artifact": artifact_facts(project.out / "model"),
    }
