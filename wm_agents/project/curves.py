"""Plots the metrics of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wm_agents.system.replace import replacing
from wm_agents.system.run_folder import read_metrics

Floats = NDArray[np.float64]
SHOWN = {
    "train/loss": ("training loss", "updates"),
    "val/loss": ("held-out loss", "updates"),
    "dream/return": ("dream return", "iterations of the controller"),
    "collect/return": ("return during collection", "round"),
    "judge/real": ("real return of a round", "round"),
    "eval/real/return": ("real return", "real steps"),
}
"""The plotted metrics, their titles, and their default x axes."""
MOST_NAMED = 8
"""Plots with more curves have no legend, because it would hide them."""


class _Curve(NamedTuple):
    """Values over steps; one curve per round if the steps of each round start at 0."""

    label: str
    x: Floats
    y: Floats


def draw_curves(out: Path, most: int) -> Path | None:
    """Plot outputs/curves.png from every metrics.jsonl of the run, and return its path; None if there are no metrics.

    Args:
        most: maximum number of points per curve; neighbours are averaged.
    """
    from matplotlib.figure import Figure  # Takes a second to import.

    logs = {path.relative_to(out): read_metrics(path) for path in _files(out)}
    found = {name: [*_curves(logs, name)] for name in SHOWN}
    found = {name: curves for name, curves in found.items() if sum(len(curve.y) for curve in curves) > 1}
    if not found:
        return None
    online = any("train/updates" in row for rows in logs.values() for row in rows)  # Online runs log by real steps.
    figure = Figure(figsize=(4.5 * len(found), 3.2), layout="constrained")
    for axes, (name, curves) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        for label, x, y in curves:
            x, y = (_thin(values, max(most // len(curves), 2)) for values in (x, y))
            axes.plot(x, y, linewidth=1.2, marker="." if len(y) == 1 else "", label=label)
        title, unit = SHOWN[name]
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("real steps" if online else unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if 1 < len(curves) <= MOST_NAMED:
            axes.legend(fontsize=7)
    with replacing(out / "curves.png") as tmp:
        figure.savefig(tmp, format="png", dpi=100)
    return out / "curves.png"


def _thin(values: Floats, most: int) -> Floats:
    """At most `most` values, as means of neighbours."""
    if len(values) <= most:
        return values
    return np.array([part.mean() for part in np.array_split(values, most)])


def _curves(logs: dict[Path, list[dict[str, Any]]], name: str) -> Iterator[_Curve]:
    """One curve per log, and one per round for the controller."""
    for path, rows in logs.items():
        # round-00/dynamics/metrics.jsonl -> round 0 dynamics
        label = ""
        if len(path.parts) == 3:
            label = f"round {int(path.parts[0][6:])} {path.parts[1]}"
        parts = _rounds(rows) if name == "dream/return" else [rows]
        for index, part in enumerate(parts):
            points = [(row["step"], row[name]) for row in part if name in row and np.isfinite(row[name])]
            if points:
                x, y = np.array(points, np.float64).T
                yield _Curve(label or f"round {index}", x, y)


def _rounds(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each round, which starts with its collection."""
    parts: list[list[dict[str, Any]]] = [[]]
    for row in rows:
        if "collect/return" in row and any("dream/return" in earlier for earlier in parts[-1]):
            parts.append([])
        parts[-1].append(row)
    return parts


def _files(out: Path) -> Iterator[Path]:
    """The log of the run and those of the fits in its rounds, in order of time."""
    yield from (path for path in [out / "metrics.jsonl"] if path.is_file())
    yield from sorted(out.glob("round-*/*/metrics.jsonl"))
