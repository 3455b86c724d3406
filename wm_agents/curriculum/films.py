"""Which generations are filmed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Mode = Literal["triad", "none", "all"]
NEAR_END = 50
"""Generations of the first film and, counted from the end, of the last."""


def video_generations(
    max_generations: int,
    evaluated: Iterable[int],
    *,
    mode: Mode | None = None,
    every: int | None = None,
    explicit: Sequence[int] = (),
) -> list[int]:
    """The generations to film, in order, none twice. `explicit` goes before `every`, and that before `mode`.

    Args:
        max_generations: the last generation, unless the task ends before it.
        evaluated: those that are evaluated; `all` films these.
        mode: by default `triad` from 200 generations on, else `all`.
        every: film each multiple of it.

    Raises:
        ValueError: a generation below 1, or an unknown mode.
    """
    if mode not in (None, "triad", "none", "all"):
        raise ValueError(f"video schedule must be triad, none or all, got {mode!r}")
    if every is not None and every < 1:
        raise ValueError(f"films must be at least 1 generation apart, got {every}")
    if low := [g for g in explicit if g < 1]:
        raise ValueError(f"generations to film must be 1 or more, got {low}")
    if explicit:
        wanted: Iterable[int] = explicit
    elif every is not None:
        wanted = range(every, max_generations + 1, every)
    else:
        mode = mode or ("triad" if max_generations >= 200 else "all")
        wanted = {"triad": triad(max_generations), "none": [], "all": list(evaluated)}[mode]
    return sorted({g for g in wanted if g <= max_generations})


def triad(max_generations: int) -> list[int]:
    """Near the beginning, in the middle and near the end: 50, 500, 950 of 1,000; every one of up to 3."""
    if max_generations <= 3:
        return list(range(1, max_generations + 1))
    near = min(NEAR_END, max_generations // 4)
    return [near, max_generations // 2, max_generations - near]
