"""The generations that are recorded as videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Mode = Literal["triad", "none", "all"]
NEAR_END = 50
"""Generation of the first video, and distance of the last one from the end."""


def video_generations(
    max_generations: int,
    evaluated: Iterable[int],
    *,
    mode: Mode | None = None,
    every: int | None = None,
    explicit: Sequence[int] = (),
) -> list[int]:
    """The sorted generations to record. `explicit` takes precedence over `every`, and `every` over `mode`.

    Args:
        max_generations: the last generation, unless the task ends earlier.
        evaluated: the evaluated generations, which `all` records.
        mode: default: `triad` from 200 generations on, else `all`.
        every: record each multiple of it.

    Raises:
        ValueError: a generation below 1, or an unknown mode.
    """
    if mode not in (None, "triad", "none", "all"):
        raise ValueError(f"video schedule must be triad, none or all, got {mode!r}")
    if every is not None and every < 1:
        raise ValueError(f"videos must be at least 1 generation apart, got {every}")
    if low := [g for g in explicit if g < 1]:
        raise ValueError(f"generations to record must be at least 1, got {low}")
    if explicit:
        wanted: Iterable[int] = explicit
    elif every is not None:
        wanted = range(every, max_generations + 1, every)
    else:
        mode = mode or ("triad" if max_generations >= 200 else "all")
        wanted = {"triad": _triad(max_generations), "none": [], "all": list(evaluated)}[mode]
    return sorted({g for g in wanted if g <= max_generations})


def _triad(max_generations: int) -> list[int]:
    """Near the start, in the middle and near the end: 50, 500, 950 of 1,000; all of up to 3."""
    if max_generations <= 3:
        return list(range(1, max_generations + 1))
    near = min(NEAR_END, max_generations // 4)
    return [near, max_generations // 2, max_generations - near]
