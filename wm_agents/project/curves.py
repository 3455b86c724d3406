"""What a run has logged, as one picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_agents.atomic import replacing
from wm_agents.runlog import read_metrics

SHOWN = {
    "train/loss": "training loss",
    "val/loss": "held-out loss",
    "dream/return": "return in the dream",
    "collect/return": "return while collecting",
    "judge/real": "real return of a round",
    "eval/real/return": "real return",
}
"""What is drawn, and what it is called."""


def draw_curves(out: Path, most: int) -> Path | None:
    """Draw outputs/curves.png from every metrics.jsonl of the run; None if there is nothing to draw.

    Args:
        most: points of a curve; where more were logged, neighbours are averaged.
    """
    from matplotlib.figure import Figure  # A second to import: only those who draw wait for it.

    curves = {name: thin(values, most) for name in SHOWN if len(values := _values(out, name)) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(4.5 * len(curves), 3.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        axes.plot(values, linewidth=1.2)
        axes.set_title(SHOWN[name], fontsize=10)
        axes.set_xlabel("logged")
        axes.grid(alpha=0.3)
    with replacing(out / "curves.png") as tmp:
        figure.savefig(tmp, format="png", dpi=100)
    return out / "curves.png"


def thin(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """At most `most` values: means of neighbours."""
    if len(values) <= most:
        return values
    return np.array([part.mean() for part in np.array_split(values, most)])


def _values(out: Path, name: str) -> NDArray[np.float64]:
    found = [row[name] for path in _files(out) for row in read_metrics(path) if name in row]
    return np.array([value for value in found if np.isfinite(value)], np.float64)


def _files(out: Path) -> Iterator[Path]:
    """The run's own log, and those of its rounds' trainings, in the order they were written."""
    yield from (path for path in [out / "metrics.jsonl"] if path.is_file())
    yield from sorted(out.glob("round-*/*/metrics.jsonl"))
