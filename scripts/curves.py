"""Draws the learning curves of a task: real return by real steps and by wall time, and the exploit gap by round."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Record

from wm_agents.system.files import write_text

MARK = 100_000
"""Real steps of the Atari-100k benchmark, marked in every figure."""


def write_curves(path: Path, task: str, runs: Sequence[Record], references: Sequence[Record]) -> bool:
    """Draw the figure if its data have changed since it was drawn; return whether they have.

    The figure contains the digest of its data, because versions of Matplotlib draw different bytes.
    """
    digest = digest_of(runs, references)
    if path.exists() and digest in path.read_text(encoding="utf-8"):
        return False
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": task, "font.size": 8}):
        draw(task, runs, references).savefig(text, format="svg", metadata={"Date": None, "Description": digest})
    write_text(path, text.getvalue())
    return True


def digest_of(runs: Sequence[Record], references: Sequence[Record]) -> str:
    """The sha256 of all data of the figure."""
    drawn = [[run.agent, run.budget, run.seed, run.curve] for run in (*runs, *references)]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def draw(task: str, runs: Sequence[Record], references: Sequence[Record]) -> Figure:
    """Three panels; a colour per run, references dashed, returns during collection dotted."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    by_steps, by_time, gaps = figure.subplots(1, 3)
    for number, run in enumerate((*runs, *references)):
        style: dict[str, Any] = {"color": f"C{number}", "linestyle": "--" if run.budget else "-", "markersize": 3}
        label = " ".join(filter(None, (run.agent, run.budget, f"seed {run.seed}")))
        for axes, x in ((by_steps, "real_steps"), (by_time, "wall_s")):
            plot(axes, run, x, "collected", **{**style, "linestyle": ":", "linewidth": 0.7})
            plot(axes, run, x, "real", **style, marker="o", label=label)
        plot(gaps, run, "round", "gap", **style, marker="o")
    by_steps.axvline(MARK, color="grey", linewidth=0.8)
    by_steps.set(xscale="log", xlabel="real steps (grey: 100,000)", ylabel="real return", title=task)
    by_time.set(xlabel="wall time in s (dotted: during collection)")
    gaps.axhline(0, color="grey", linewidth=0.8)
    gaps.set(xlabel="round", ylabel="dream return minus real return")
    if runs or references:
        by_steps.legend(fontsize=5)
    return figure


def plot(axes: Axes, run: Record, x: str, y: str, **style: Any) -> None:
    """Plot the points of the curve that have both values."""
    points = [point for point in run.curve if x in point and y in point]
    axes.plot([point[x] for point in points], [point[y] for point in points], **style)
