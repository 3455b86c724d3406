"""The report of a curriculum: snapshots, tables, curves. It depends only on the records, so it can be
repeated."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wm_agents.curriculum.latex import latex_table
from wm_agents.curriculum.record import Evaluation, Record
from wm_agents.system.files import write_text
from wm_agents.system.replace import replacing


def snapshot(record: Record, e: Evaluation) -> dict[str, Any]:
    """One evaluation as JSON; null for missing values."""
    return {
        "generation": e.generation,
        "env_id": record.env_id,
        "mean_reward": round(e.mean, 3),
        "std_reward": round(e.std, 3),
        "min_reward": min(e.returns),
        "max_reward": max(e.returns),
        "best_reward": round(e.best, 3),
        "threshold": record.threshold,
        "solved": e.solved,
        "rolling_mean": _rounded(e.rolling),
        "no_improvement_count": e.num_bad,
        "episodes": [{"seed": e.seed + i, "reward": reward} for i, reward in enumerate(e.returns)],
        "dream_reward": _rounded(e.dream_return),
        "real_steps": e.real_steps,
        "timestamp": e.timestamp,
    }


EVAL_PROGRESS = [
    "generation", "mean_reward", "std_reward", "best_reward", "threshold", "solved", "rolling_mean",
    "no_improvement_count",
]  # fmt: skip


def eval_progress(record: Record) -> str:
    """`logs/eval_progress.csv` of one task: a row per evaluation."""
    return _as_csv([snapshot(record, e) for e in record.evaluations], EVAL_PROGRESS)


PROGRESS = ["timestamp", "env_id", "generation", "mean_score", "best_score", "threshold", "solved", "time_elapsed"]


def curriculum_progress(records: Iterable[Record]) -> str:
    """`logs/curriculum_progress.csv`: a row per evaluation, of all tasks in order."""
    rows = [
        {
            "timestamp": e.timestamp,
            "env_id": record.env_id,
            "generation": e.generation,
            "mean_score": round(e.mean, 3),
            "best_score": round(e.best, 3),
            "threshold": record.threshold,
            "solved": e.solved,
            "time_elapsed": round(e.elapsed_s, 1),
        }
        for record in records
        for e in record.evaluations
    ]
    return _as_csv(rows, PROGRESS)


def metrics_summary(records: Iterable[Record]) -> str:
    """`report/metrics_summary.csv`: a row per task; "final" is the last evaluation."""
    return _as_csv([_summary(record) for record in records], SUMMARY)


SUMMARY = [
    "env_id", "best_reward", "mean_final_reward", "std_final_reward", "solved_generation", "patience_used", "threshold",
    "final_rolling_mean", "plateau_stopped", "total_generations", "completion_status", "extension_generations",
    "real_steps", "held_out_mean", "warm_start_from", "warm_start_val_loss", "cold_start_val_loss",
]  # fmt: skip
WARM_START = {"warm_start_from": "from", "warm_start_val_loss": "val_warm", "cold_start_val_loss": "val_cold"}
"""Loss of the encoder V after the same number of updates from the weights of an earlier task and from scratch."""


def _summary(record: Record) -> dict[str, Any]:
    """One task as a row."""
    last, plateau = record.last, record.standing.plateau
    reached = {name: _rounded(getattr(last, name, None)) for name in ("best", "mean", "std", "rolling")}
    return {
        "env_id": record.env_id,
        "best_reward": reached["best"],
        "mean_final_reward": reached["mean"],
        "std_final_reward": reached["std"],
        "solved_generation": record.solved_generation,
        "patience_used": plateau.num_bad,
        "threshold": record.threshold,
        "final_rolling_mean": reached["rolling"],
        "plateau_stopped": record.standing.verdict == "plateau",
        "total_generations": record.generations,
        "completion_status": record.status,
        "extension_generations": 0 if plateau.extended_at is None else plateau.extension,
        "real_steps": getattr(last, "real_steps", 0),
        "held_out_mean": (record.final or {}).get("real"),
        **{name: (record.warm_start or {}).get(key) for name, key in WARM_START.items()},
    }


def results(records: Sequence[Record], left_out: dict[str, str], hours: float, quick: bool) -> dict[str, Any]:
    """`curriculum_results.json`; null for missing values."""
    solved = sum(record.solved for record in records)
    return {
        "total_time_hours": round(hours, 6),
        "tasks_completed": solved,
        "total_tasks": len(records),
        "success_rate": solved / len(records),
        "quick": quick,
        "left_out": left_out,
        "tasks": [
            {
                "env_id": record.env_id,
                "solved": record.solved,
                "best_score": _rounded(record.best),
                "threshold_score": record.threshold,
                "generations_trained": record.generations,
                "status": record.status,
                "rolling_mean": _rounded(getattr(record.last, "rolling", None)),
                "extension_generations": _summary(record)["extension_generations"],
                "real_steps": getattr(record.last, "real_steps", 0),
                "held_out": record.final,
                "warm_start": record.warm_start,
                "wall_s": {phase: round(seconds, 2) for phase, seconds in record.phases.items()},
            }
            for record in records
        ],
    }


def _as_csv(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> str:
    """CSV with a header; empty cells for missing values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(values: Any) -> str:
    """Strict, indented JSON.

    Raises:
        ValueError: NaN or infinity, which JSON does not support.
    """
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def write_report(record: Record, out: Path, runtime: Runtime) -> None:
    """Write `metrics_summary.csv`, `learning_curve.png` and both tables of one task into `out`."""
    write_text(out / "metrics_summary.csv", metrics_summary([record]))
    write_text(out / "table_controller.tex", _table_controller(record))
    write_text(out / "table_runtime.tex", _table_runtime(record, runtime))
    _draw_curve(record, out / "learning_curve.png")


def _draw_curve(record: Record, path: Path) -> None:
    """Plot mean return by generation with one standard deviation, the rolling mean and the threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = [e.generation for e in record.evaluations]
    mean, std = (np.array([getattr(e, name) for e in record.evaluations], float) for name in ("mean", "std"))
    few = len(at) < 40
    axes.plot(at, mean, color="C0", marker="o" if few else None, ms=4, label="mean return")
    axes.fill_between(at, mean - std, mean + std, color="C0", alpha=0.2, lw=0, label="1 std of the episodes")
    rolling = [(e.generation, e.rolling) for e in record.evaluations if e.rolling is not None]
    if rolling:
        axes.plot(*zip(*rolling), color="C1", lw=2, label="mean of 5 evaluations")
    axes.axhline(record.threshold, color="C3", ls="--", label=f"threshold {record.threshold:g}")
    if (solved := record.solved_generation) is not None:
        axes.axvline(solved, color="C2", ls=":", label=f"solved at {solved}")
    axes.set(xlabel="generation", ylabel="return in the real environment", title=f"{record.env_id}: {record.status}")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as tmp:
        figure.savefig(tmp, dpi=150, format="png")


@dataclass(frozen=True)
class Runtime:
    """The hardware and precision of measured times."""

    device: str
    """cpu, cuda ..."""
    precision: str
    """bf16, fp32, tf32."""
    hardware: str


ROWS = 5
"""Maximum number of generations in the controller table."""


def _table_controller(record: Record) -> str:
    """The table `Generation | Mean | Best | Solved? | Notes` with evaluations spread over the run."""
    num = len(record.evaluations)
    picks = []
    if num:
        picks = sorted({round(i) for i in np.linspace(0, num - 1, min(ROWS, num))})
    rows = []
    for i in picks:
        e = record.evaluations[i]
        notes = []
        if e.mean == record.best:
            notes.append("best evaluation")
        if e.solved:
            notes.append("promoted")
        elif i == num - 1:
            notes.append(record.status.lower().replace("_", " "))
        if e.rolling is not None:
            notes.append(f"mean of 5: {e.rolling:.1f}")
        rows.append(
            [str(e.generation), f"{e.mean:.1f}", f"{e.best:.1f}", "yes" if e.solved else "no", ", ".join(notes)]
        )
    episodes = 0
    if num:
        episodes = len(record.evaluations[0].returns)
    caption = f"Controller on {record.env_id}: {episodes} real episodes per evaluation, threshold {record.threshold:g}."
    return latex_table(("Generation", "Mean", "Best", "Solved?", "Notes"), rows, caption, f"controller-{record.folder}")


ON_DEVICE = ("learn", "warm start measured")
"""Phases that compute on the device of the run; the others use the CPU."""


def _table_runtime(record: Record, runtime: Runtime) -> str:
    """The table `Phase | Wallclock | Device | Precision` with measured times."""
    rows = []
    for phase, seconds in record.phases.items():
        there = phase in ON_DEVICE
        where = [runtime.device, runtime.precision] if there else ["cpu", "-"]
        rows.append([phase, _clock(seconds), *where])
    rows.append(["all", _clock(sum(record.phases.values())), "", ""])
    caption = f"Measured wall-clock time of {record.env_id} on {runtime.hardware}."
    return latex_table(("Phase", "Wallclock", "Device", "Precision"), rows, caption, f"runtime-{record.folder}")


def _clock(seconds: float) -> str:
    """`1 h 02 min`, `3 min 05 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
