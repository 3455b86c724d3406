"""A curriculum: a list of tasks, each trained in dreams until evaluations in the real environment reach a
threshold.

    <run>/                     curriculum_results.json, run.json, state.json, preflight.json
    <run>/logs/                curriculum_progress.csv
    <run>/reports/             metrics_summary.csv of all tasks
    <run>/<env>/logs/          eval_progress.csv, metrics.jsonl and TensorBoard's events, train/ from the training
    <run>/<env>/eval_snapshots/   gen_0010.json ...
    <run>/<env>/report/        metrics_summary.csv, learning_curve.png, table_controller.tex, table_runtime.tex
    <run>/<env>/checkpoints/   best/ (of the best evaluation), final/ (the last controller, scored on held-out seeds)
    <run>/<env>/videos/        gen_0050.mp4 ...
    <run>/<env>/tmp/           the state for resuming

The same command resumes a killed run: `state.json` contains every evaluation.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.plan import Course
from wm_agents.curriculum.player import Stage
from wm_agents.curriculum.promotion import Promotion
from wm_agents.curriculum.record import Record
from wm_agents.curriculum.report import Runtime, as_json, curriculum_progress, metrics_summary, results
from wm_agents.curriculum.task_run import Hands, Places, TaskRun
from wm_agents.curriculum.tasks import Entry
from wm_agents.curriculum.warm_start import compare, find_source
from wm_agents.loops.rounds import improve
from wm_agents.system.files import write_text
from wm_agents.system.hardware import describe, find_device
from wm_agents.system.run_folder import start_run
from wm_agents.training.config import TrainingConfig
from wm_envs.precision import Kind, use_bf16

FIXED = {"tasks", "quick", "eval_every", "episodes_per_eval", "vae_img_size", "artifact_root"}
"""Settings that must not change when a run is resumed."""


class Curriculum:
    """The run of a list of tasks in a folder; close it, or use it in a `with` statement."""

    def __init__(
        self,
        cfg: CurriculumConfig,
        courses: list[Course],
        left_out: dict[str, str],
        console: Console,
        hands: Hands | None = None,
    ) -> None:
        self.cfg, self.courses, self.left_out, self.console = cfg, courses, left_out, console
        self.began = time.perf_counter()
        self.stage = Stage(cfg)
        self.hands = hands or Hands(improve, self.stage.play, self.stage.film, self.stage.show)
        tasks = [[c.entry.env_id, c.threshold, c.max_generations] for c in courses]
        settings = asdict(cfg) | {"tasks": tasks}
        self.folder = start_run(cfg.root, settings, {"seed": cfg.seed}, set(settings) - FIXED)
        self.earlier_s: float = self.folder.state.get("elapsed_s", 0.0)
        saved: dict[str, Any] = self.folder.state.get("tasks", {})
        self.records = [self._record(course, saved.get(course.entry.env_id)) for course in courses]

    def run(self) -> bool:
        """Train the remaining tasks one after another; return True if all are solved."""
        self.publish()
        for course, record in zip(self.courses, self.records, strict=True):
            if not record.done:
                self.take_on(course, record)
        self.publish()
        return all(record.solved for record in self.records)

    def take_on(self, course: Course, record: Record) -> None:
        """Train one task, measure its warm start, write its report and clean up."""
        places = self.places(course.entry)
        name = f"{course.entry.name} ({record.env_id})"
        self.console.rule(f"{name}: threshold {course.threshold:g}, at most {course.max_generations} generations")
        if record.warm_start is None:
            record.warm_start = self._warm_start(course)
            self.save()
        self.stage.begin(places.logs, record.evaluated_steps)
        task = TaskRun(course, record, places, self.hands, self.save, self.publish, self.elapsed_s, self.console)
        task.train()
        self.stage.leave()
        if record.warm_start.get("model") and "helped" not in record.warm_start:
            with task.clock("warm start measured"):
                source, tmp = Path(record.warm_start["model"]), places.tmp
                record.warm_start |= compare(course.cfg, source, tmp / "data", tmp / "warm_start")
        if self.cfg.keep_latents:
            task.keep_latents()
        task.report(self.runtime(course))
        task.clean_up(delete=self.cfg.clean_cache)
        record.done = True
        self.save()
        self.publish()
        final = record.final or {}
        text = f"{name}: {record.status} after {record.generations} generations"
        text += f"; {final['episodes']} held-out episodes: {final['real']:.1f} +- {final['std']:.1f}" if final else ""
        self.console.print(text, highlight=False, soft_wrap=True)

    def places(self, entry: Entry) -> Places:
        return Places(self.cfg.root / entry.folder, self.cfg.heavy_root / entry.folder)

    def save(self) -> None:
        """Write all records to disk."""
        tasks = {record.env_id: record.to_dict() for record in self.records}
        self.folder.update(tasks=tasks, elapsed_s=self.elapsed_s())

    def publish(self) -> None:
        """Write the files that depend on the records."""
        root, hours = self.cfg.root, self.elapsed_s() / 3600
        write_text(root / "logs" / "curriculum_progress.csv", curriculum_progress(self.records))
        write_text(root / "reports" / "metrics_summary.csv", metrics_summary(self.records))
        write_text(
            root / "curriculum_results.json", as_json(results(self.records, self.left_out, hours, self.cfg.quick))
        )

    def elapsed_s(self) -> float:
        """Seconds of the run, including those before it was resumed."""
        return self.earlier_s + time.perf_counter() - self.began

    def runtime(self, course: Course) -> Runtime:
        """The hardware and precision of measured times."""
        device, about = find_device(self.cfg.device), describe()
        parts: dict[Kind, TrainingConfig] = {"convolution": course.cfg.vision, "lstm": course.cfg.memory}
        if not course.cfg.spec.size:
            parts = {"product": course.cfg.dynamics}
        half = any(use_bf16(part.mixed_precision, {kind}, device, training=True) for kind, part in parts.items())
        full = "fp32"
        if self.cfg.tf32 and device.type == "cuda":
            full = "tf32"
        gpu = ""
        if device.type == "cuda":
            gpu = f", {about['gpu']}"
        return Runtime(device.type, f"bf16/{full}" if half else full, f"{about['cpu']}, {about['cores']} cores{gpu}")

    def close(self) -> None:
        self.stage.close()
        self.folder.close()

    def __enter__(self) -> Curriculum:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _record(self, course: Course, saved: dict[str, Any] | None) -> Record:
        """The record of the task, with the current patience."""
        entry, cfg = course.entry, self.cfg
        plateau = replace(course.plateau, patience=cfg.patience, min_delta=cfg.min_delta, early_stop=cfg.early_stop)
        if saved is None:
            return Record.new(entry.name, entry.env_id, entry.folder, Promotion(course.threshold), plateau)
        record = Record.from_dict(saved)
        then = record.standing.plateau
        record.standing.plateau = replace(plateau, best=then.best, num_bad=then.num_bad, extended_at=then.extended_at)
        return record

    def _warm_start(self, course: Course) -> dict[str, Any]:
        """The last task whose encoder V has matching shapes, or None."""
        models = {r.env_id: self.cfg.heavy_root / r.folder / "checkpoints" / "final" for r in self.records if r.done}
        source = None
        if models:
            source = find_source(course.cfg, [*models.values()])
        if source is None:
            return {"from": None}
        (env_id,) = (env_id for env_id, path in models.items() if path == source)
        self.console.print(f"  the encoder V is initialised with the weights of {env_id}")
        return {"from": env_id, "model": str(source)}
