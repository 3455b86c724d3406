"""One task of a curriculum, from its first generation to its report.

Every step can be killed: finished evaluations are in the record, a resumed training repeats an interrupted
evaluation, and all files are written again from the record.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console

from policies.rollout import EVAL_SEED
from wm_agents.curriculum.plan import Course
from wm_agents.curriculum.record import Evaluation, Record
from wm_agents.curriculum.report import Runtime, as_json, eval_progress, snapshot, write_report
from wm_agents.data.dataset import Dataset
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.loops.rounds import Check, OnCheck, Rounds
from wm_agents.models.saved import load_model
from wm_agents.models.vmc import VMC
from wm_agents.system.extras import extra
from wm_agents.system.files import read_json, write_text
from wm_agents.system.replace import replacing
from wm_agents.system.run_folder import MetricsLog
from wm_agents.system.state import read_state
from wm_agents.training.fit_vmc import encode_dataset
from wm_envs.registry import RealSpec

EVALUATION_SEED = 910_000
"""The seed of the first evaluation episode; every evaluation has its own seeds, below the held-out ones."""


class _Train(Protocol):
    """The function that trains a task: `wm_agents.loops.rounds.improve`."""

    def __call__(
        self,
        cfg: ImproveConfig,
        console: Console | None = None,
        on_check: OnCheck | None = None,
        looks: Callable[[], Rounds] | None = None,
    ) -> dict[str, Any]:
        """Train until done or until `on_check` returns True, report on `looks()`, and return the final
        scores."""


class Played(NamedTuple):
    """The result of an evaluation."""

    returns: list[float]
    steps: int
    """Total agent steps of all episodes, and of earlier ones that were killed before they were recorded."""


class Hands(NamedTuple):
    """The functions that a task run calls; tests replace them."""

    train: _Train
    play: Callable[[RealSpec, Path, range], Played]
    """Plays one real episode per seed with the controller of a model directory."""
    film: Callable[[Path, Path, int], int]
    """Records a video of a model's controller for a seed and returns its agent steps."""
    show: Callable[[Path, int, Path], int]
    """Shows an episode and returns its agent steps; the path is used without a window."""


class Places(NamedTuple):
    """The folders of one task."""

    light: Path
    heavy: Path
    """Folder for episodes, models and videos; may be on another disk."""

    @property
    def logs(self) -> Path:
        return self.light / "logs"

    @property
    def snapshots(self) -> Path:
        return self.light / "eval_snapshots"

    @property
    def report(self) -> Path:
        return self.light / "report"

    @property
    def checkpoints(self) -> Path:
        return self.heavy / "checkpoints"

    @property
    def videos(self) -> Path:
        return self.heavy / "videos"

    @property
    def tmp(self) -> Path:
        return self.heavy / "tmp"


class TaskRun:
    """Trains one task, evaluates it during training, and keeps the best and the last controller."""

    def __init__(
        self,
        course: Course,
        record: Record,
        places: Places,
        hands: Hands,
        save: Callable[[], None],
        publish: Callable[[], None],
        elapsed_s: Callable[[], float],
        console: Console,
    ) -> None:
        """Create the run of one task.

        Args:
            save: writes all records of the run to disk.
            publish: writes the files that depend on all records.
            elapsed_s: returns the seconds of the run.
        """
        self.course, self.record, self.places, self.hands = course, record, places, hands
        self.save, self.publish, self.elapsed_s, self.console = save, publish, elapsed_s, console
        self._log: MetricsLog | None = None
        self._looked_last: float | None = None

    def train(self) -> None:
        """Train until the task ends; finished parts are skipped."""
        record, places = self.record, self.places
        if record.final is not None:
            return
        _forget_what_is_redone(record, places.tmp)
        try:
            self.write()
            source = (record.warm_start or {}).get("model")
            cfg = replace(self.course.cfg, out=str(places.tmp), warm_start=source)
            result = self.hands.train(cfg, self.console, self.look, self.looks)
            record.phases["held-out score"] = result["wall_s"]
            if self._looked_last is not None:
                record.phases["fidelity"] = max(time.perf_counter() - self._looked_last - result["wall_s"], 0.0)
            self.conclude(result)
        finally:
            self.close()

    def look(self, check: Check) -> bool:
        """The `on_check` of training: record and evaluate when due; True ends the training."""
        began, record = time.perf_counter(), self.record
        if record.standing.verdict is None and check.generation > record.looked_at:
            self._note_times(check.wall_s)
            if self._is_due(check.generation) or check.generation in self.course.films:
                self.take(check)
        looked = record.looked.get(str(check.round), 0.0) + time.perf_counter() - began
        record.looked[str(check.round)] = looked
        self._looked_last = time.perf_counter()
        return record.standing.verdict is not None

    def looks(self) -> Rounds:
        """Dream and real return of each evaluated controller, for the fidelity report."""
        return [
            {"round": e.generation, "dream": e.dream_return, "real": e.mean, "std": e.std, "real_steps": e.real_steps}
            for e in self.record.evaluations
            if e.dream_return is not None
        ]

    def take(self, check: Check) -> None:
        """Record and evaluate one controller; after an interruption, a call with the same check repeats
        it."""
        record, generation = self.record, check.generation
        model = self.places.checkpoints / f"gen_{generation:04d}"
        _copy_whole(check.model, model)
        if generation in self.course.films:
            self.film(model, generation)
        if self._is_due(generation):
            self.evaluate(check, model)
        record.looked_at = generation
        self.save()
        self._prune(record.best_model)
        self.write()
        self.publish()

    def evaluate(self, check: Check, model: Path) -> None:
        """Evaluate the controller on real episodes and update the state of the task."""
        record = self.record
        num = self.course.episodes
        seed = EVALUATION_SEED + num * len(record.evaluations)
        if seed + num > EVAL_SEED:
            raise ValueError(
                f"{len(record.evaluations)} evaluations of {num} episodes have used all seeds from "
                f"{EVALUATION_SEED:,} to {EVAL_SEED:,}; lower --episodes-per-eval or raise --eval-every"
            )
        with self.clock("evaluation"):
            played = self.hands.play(self.course.cfg.spec, model, range(seed, seed + num))
        mean = float(np.mean(played.returns))
        best = mean
        if record.best is not None:
            best = max(mean, record.best)
        if best != record.best:
            record.best_model = model.name
        record.looked_steps += played.steps
        record.evaluated_steps += played.steps
        record.standing.add(check.generation, mean)
        record.evaluations.append(
            Evaluation(
                generation=check.generation,
                returns=played.returns,
                seed=seed,
                best=best,
                rolling=record.standing.promotion.rolling,
                num_bad=record.standing.plateau.num_bad,
                solved=record.solved,
                dream_return=check.dream_return if np.isfinite(check.dream_return) else None,
                real_steps=check.real_steps + record.looked_steps + sum(record.films.values()),
                elapsed_s=round(self.elapsed_s(), 1),
                timestamp=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
        )
        self._tell()
        with self.filming(check.generation):
            record.looked_steps += self.hands.show(model, seed, self.places.videos / "watch.mp4")

    def film(self, model: Path, generation: int) -> None:
        """Record an episode, once per generation."""
        path, films = self.places.videos / f"gen_{generation:04d}.mp4", self.record.films
        if str(generation) not in films:
            with self.filming(generation):
                films[str(generation)] = self.hands.film(model, path, EVALUATION_SEED)

    @contextmanager
    def filming(self, generation: int) -> Iterator[None]:
        """In this context an error of a video or window is printed and does not end the training."""
        with self.clock("films"), extra(f"the video of generation {generation}", self.console):
            yield

    def conclude(self, result: dict[str, Any]) -> None:
        """Keep the best and the last controller, score the last on held-out seeds, and record it."""
        record, places, model = self.record, self.places, self.places.tmp / "model"
        if record.standing.verdict is None:  # Training ended between two evaluations.
            last, steps = self.course.last_generation, int(result["real_steps"])
            if record.looked_at < last:
                self.take(Check(last, self.course.cfg.rounds - 1, model, math.nan, steps, {}))
            record.standing.verdict = record.standing.verdict or "max_generations"
        summary = places.tmp / "summary.json"
        if summary.exists():
            rounds = read_json(summary, "the summary of a run")["rounds"]
            stages = [stage for stages in rounds.values() for stage in stages.items()]
            names = dict.fromkeys(name for name, _ in stages)
            self._note_times({name: sum(s["wall_s"] for other, s in stages if other == name) for name in names})
        _copy_whole(model, places.checkpoints / "final")
        if (places.tmp / "fidelity").exists():
            _copy_whole(places.tmp / "fidelity", places.report / "fidelity")
        if record.best_model is not None and (places.checkpoints / record.best_model).exists():
            _copy_whole(places.checkpoints / record.best_model, places.checkpoints / "best")
        self._prune(None)
        if self.course.films:
            self.film(places.checkpoints / "final", record.generations)
        scores = {where: result[where]["mean"] for where in ("real", "dream")}
        about = {name: result["real"][name] for name in ("std", "ci95", "episodes", "seed")}
        record.final = {**scores, **about, "gap": result["gap"], "protocol": result["protocol"]}
        self.write()
        self.save()

    def write(self) -> None:
        """Write snapshots and `eval_progress.csv` from the record."""
        record, places = self.record, self.places
        for e in record.evaluations:
            path = places.snapshots / f"gen_{e.generation:04d}.json"
            if not path.exists():
                write_text(path, as_json(snapshot(record, e)))
        write_text(places.logs / "eval_progress.csv", eval_progress(record))

    def report(self, runtime: Runtime) -> None:
        """Write the report, including its own duration."""
        began = time.perf_counter()
        write_report(self.record, self.places.report, runtime)
        self.record.phases["report"] = time.perf_counter() - began
        write_report(self.record, self.places.report, runtime)

    def keep_latents(self) -> None:
        """Encode the episodes with the last model and save them as checkpoints/latent_episodes.npz."""
        model, _ = load_model(self.places.checkpoints / "final")
        path = self.places.checkpoints / "latent_episodes.npz"
        if path.exists():
            return
        if not isinstance(model, VMC):
            self.console.print(
                f"  no latents to keep for {self.record.env_id}: the latents of its model are the observations"
            )
            return
        latents = encode_dataset(model, Dataset(self.places.tmp / "data"))
        with replacing(path) as tmp, tmp.open("wb") as file:
            arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in latents._asdict().items()}
            np.savez_compressed(file, **arrays)

    def clean_up(self, delete: bool) -> None:
        """Keep the training logs and delete the rest of tmp/."""
        places = self.places
        kept = [file for pattern in LOGS for file in places.tmp.rglob(pattern)]
        for file in kept:
            if file.is_relative_to(places.tmp / "fidelity"):  # It is already in the report.
                continue
            target = places.logs / "train" / file.relative_to(places.tmp)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        if delete:
            shutil.rmtree(places.tmp, ignore_errors=True)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the duration of a context to a phase."""
        began = time.perf_counter()
        yield
        self.record.phases[phase] = self.record.phases.get(phase, 0.0) + time.perf_counter() - began

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _prune(self, best: str | None) -> None:
        """Delete the evaluated controllers except the best, and incomplete copies."""
        for pattern in ("gen_*", ".*.tmp"):
            for old in self.places.checkpoints.glob(pattern):
                if old.name != best:
                    shutil.rmtree(old)

    def _is_due(self, generation: int) -> bool:
        return generation % self.course.period == 0 or generation >= self.record.standing.plateau.limit

    def _note_times(self, wall_s: dict[str, float]) -> None:
        """Seconds of each training stage, without evaluations and videos."""
        record = self.record
        busy = {name: seconds for name, seconds in wall_s.items() if seconds > 1e-3}
        record.phases |= busy  # Other stages were not used.
        if "control" in wall_s:
            record.phases["control"] = max(wall_s["control"] - sum(record.looked.values()), 0.0)

    def _tell(self) -> None:
        """Print and log the last evaluation."""
        record = self.record
        e, standing = record.evaluations[-1], record.standing
        rolling = "mean of 5 pending"
        if e.rolling is not None:
            rolling = f"mean of 5 {e.rolling:.1f}"
        text = f"{record.env_id} generation {e.generation}/{standing.plateau.limit}: real return {e.mean:.1f}"
        text += f" +- {e.std:.1f} (best {e.best:.1f}, {rolling}, threshold {record.threshold:g})"
        if standing.verdict is not None:
            text += f": {record.status}"
        elif standing.plateau.extended_at == e.generation:
            text += f": extended by {standing.plateau.extension} generations, because it is near the threshold"
        self.console.print(text, highlight=False, soft_wrap=True)
        values = {
            "eval/real/mean": e.mean,
            "eval/real/std": e.std,
            "eval/real/best": e.best,
            "eval/real/steps": e.real_steps,
        }
        values |= {"progress": e.generation / standing.plateau.limit}
        for name, value in (("eval/real/mean_of_5", e.rolling), ("eval/dream/return", e.dream_return)):
            if value is not None:
                values[name] = value
        if self._log is None:
            before = 0
            if len(record.evaluations) > 1:
                before = record.evaluations[-2].generation
            self._log = MetricsLog(self.places.logs, keep_until=before)
        self._log.write(e.generation, values)


LOGS = ("metrics.jsonl", "events.out.*", "run.json", "summary.json", "*.png")


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a directory completely or not at all; an existing target is kept."""
    if target.exists() or source == target:
        return
    tmp = target.with_name(f".{target.name}.tmp")
    tmp.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tmp, ignore_errors=True)
    shutil.copytree(source, tmp)
    tmp.rename(target)


def _forget_what_is_redone(record: Record, tmp: Path) -> None:
    """Reset the time of evaluations in a stage that was killed, because the stage is timed again."""
    try:
        state = read_state(tmp / "state.json")
    except FileNotFoundError:
        return
    if state.get("stage") == "control":
        record.looked.pop(str(state.get("round")), None)
