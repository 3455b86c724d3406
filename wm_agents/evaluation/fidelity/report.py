"""`wm fidelity`: measure a model, and write an HTML page and a JSON file."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from policies.pool import Procs
from policies.rollout import EVAL_SEED
from wm_agents.degraded import degraded_of
from wm_agents.evaluation.fidelity.history import find_run, read_history, told_history
from wm_agents.evaluation.fidelity.measure import QUICK, Fidelity, FidelityConfig, measure
from wm_agents.evaluation.fidelity.page import render
from wm_agents.evaluation.fidelity.sections import Section, sections
from wm_agents.evaluation.held_out import record
from wm_agents.evaluation.subject import subject_of
from wm_agents.evaluation.variants import drive
from wm_agents.pretrained import cached_model, load_dream
from wm_agents.system.files import write_json, write_text
from wm_agents.system.hardware import describe
from wm_agents.system.run_folder import versions
from wm_envs.real import probe
from wm_envs.registry import RealSpec

PAGE, DATA = "fidelity.html", "fidelity.json"


def fidelity_report(
    model: str,
    out: Path,
    *,
    episodes: int | None = None,
    procs: Procs = 2,
    quick: bool = False,
    seed: int = EVAL_SEED,
    train_temperatures: tuple[float, ...] = (),
    generations: int = 60,
    run: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a saved model, write `fidelity.html` and `fidelity.json` to `out`, and return the content of
    the JSON.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        episodes: real episodes per policy; default: 8, or 1 with `quick`.
        quick: eight policies, fewer dreams, and at most 1,000 steps per episode.
        train_temperatures: also train controllers at these temperatures for `generations`, and score them in
            the real environment.
        run: the run folder with the history of rounds; default: the folder that contains the model. If that is not a
            run folder, the history in the config.json of the model is used.
    """
    began = time.perf_counter()
    cfg = QUICK if quick else FidelityConfig()
    cfg = replace(
        cfg,
        episodes=cfg.episodes if episodes is None else episodes,
        seed=seed,
        train_temperatures=train_temperatures,
        cma=replace(cfg.cma, generations=generations),
    )
    cached_model.cache_clear()  # The directory may have changed since this process last loaded it.
    saved = load_dream(model)
    spec, artifact = saved.spec, saved.artifact
    folder = run or find_run(artifact.path)
    history = None
    if folder is not None:
        history = read_history(folder)
    if run is not None and history is None:
        raise ValueError(f"run must be a folder of `wm improve` with an evaluated round, got {run}")
    history = history or told_history(artifact.path)
    found = measure(
        subject_of(saved),
        lambda jobs: record(_shortened(spec, cfg.longest_episode), partial(drive, model), jobs, procs),
        cfg,
        history=history,
        console=console,
    )
    facts = {
        "model": model,
        "env": spec.id,
        "degraded_modes": degraded_of(artifact),
        "config": asdict(cfg),
        "wall_s": round(time.perf_counter() - began, 1),
        "versions": versions(),
        "hardware": describe(),
    }
    result = _write_report(found, out, facts)
    if console is not None:
        console.print(_summary(sections(found)))
    return result


def _shortened(spec: RealSpec, steps: int | None) -> RealSpec:
    """`spec` with episodes of at most `steps` steps."""
    limits = [limit for limit in (steps, probe(spec).limit) if limit is not None]
    return replace(spec, max_episode_steps=min(limits)) if limits else spec


def _write_report(found: Fidelity, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write both files atomically; `facts` describe the measurement."""
    parts = sections(found)
    verdicts = {part.key: part.verdict for part in parts}
    result: dict[str, Any] = plain({**facts, "verdicts": verdicts, **found._asdict()})
    title = f"Fidelity of {facts['model']}"
    degraded = ""
    if facts.get("degraded_modes"):
        degraded = f"DEGRADED: {', '.join(facts['degraded_modes'])}. "
    about = (
        f"{degraded}The dream of {facts['env']} compared with {found.real_episodes} held-out real episodes "
        f"({found.real_steps:,} steps)."
    )
    write_text(out / PAGE, render(title, about, parts, _lines(facts)))
    write_json(out / DATA, result)
    return result


def _summary(parts: list[Section]) -> Table:
    """The summaries of all sections, for a terminal."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for part in parts:
        table.add_row(f"[bold]{part.title}[/bold]", part.verdict)
    return table


def plain(value: Any) -> Any:
    """`value` as strict JSON: named tuples become objects, non-finite numbers null."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isfinite(value):
            return float(f"{value:.6g}")
        return None
    return value


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    """A fact as text, for the end of the page."""
    return {name: _words(value) for name, value in facts.items()}


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
