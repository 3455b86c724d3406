"""The measurement of a door, and the goals: ratios to the code of another checkout and to the real environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from wm_agents.cli.doors import Door


class Timed(NamedTuple):
    """The measurements of one door."""

    model: str
    family: str
    """The observations of the dream; "real" for the real environment."""
    way: str
    door: Door
    per_s: float
    """Steps per second of all rows together: the median of the measurements."""
    old_per_s: float | None = None
    """The same with the other checkout's code."""
    new_over_old: float | None = None
    """The median over pairs of measurements."""
    times_real: float | None = None
    """Speed relative to the real environment on one core."""
    times_real_all: float | None = None
    """Speed relative to the real environment in one process per core."""
    busy_loss: float | None = None
    """Factor by which it is slower while another process is busy on every core."""
    old_busy_loss: float | None = None
    gymnasium: float | None = None
    """Steps per second by Gymnasium's own benchmark."""

    @property
    def name(self) -> str:
        """The interface, or the plain id of a real environment."""
        is_plain = self.family == "real" and self.way == "gym.make" and not self.door.id.startswith("Real-")
        return self.door.id if is_plain else self.way

    @property
    def sees(self) -> str:
        """The observations."""
        return "real" if self.family == "real" else str(self.door.kwargs.get("obs", "vector"))


class Bar(NamedTuple):
    """A goal for some doors of every dream."""

    what: str
    doors: Callable[[Timed], bool]
    value: Callable[[Timed], float | None]
    least: float = -inf
    most: float = inf


class Checked(NamedTuple):
    """A goal and the slowest door of a dream to which it applies."""

    model: str
    bar: str
    door: str
    value: float
    passed: bool


def _native(rows: int) -> Callable[[Timed], bool]:
    return lambda timed: timed.way == "native vector" and timed.door.rows == rows


def _is(family: str, sees: str, of: Callable[[Timed], bool]) -> Callable[[Timed], bool]:
    return lambda timed: timed.family == family and timed.sees == sees and of(timed)


def _any(timed: Timed) -> bool:
    return True


def _one(timed: Timed) -> bool:
    return timed.way == "gym.make"


def _new_over_old(timed: Timed) -> float | None:
    return timed.new_over_old


BARS = (
    Bar("ensemble, 1,024 rows: new / old at least 6", _is("ensemble", "vector", _native(1024)), _new_over_old, 6),
    Bar("ensemble, gym.make: new / old at least 8", _is("ensemble", "vector", _one), _new_over_old, 8),
    Bar("V-M-C latents, 1,024 rows: new / old at least 1.3", _is("vmc", "latent", _native(1024)), _new_over_old, 1.3),
    Bar("V-M-C latents, gym.make: new / old at least 3", _is("vmc", "latent", _one), _new_over_old, 3),
    Bar("V-M-C pixels, every door: new / old at least 2.5", _is("vmc", "pixels", _any), _new_over_old, 2.5),
    Bar("at most 3 times slower while every core is busy", _any, lambda timed: timed.busy_loss, most=3),
    Bar(
        "1,024 rows faster than the real environment on as many cores",
        _native(1024),
        lambda timed: timed.times_real_all,
        1,
    ),
    Bar(
        "V-M-C latents, 1,024 rows: 100 times the real environment on as many cores",
        _is("vmc", "latent", _native(1024)),
        lambda timed: timed.times_real_all,
        100,
    ),
)


def check_bars(results: Iterable[Timed]) -> list[Checked]:
    """Check every goal for every dream; goals without measurements are omitted."""
    results = list(results)
    checked = []
    for bar in BARS:
        for model in dict.fromkeys(timed.model for timed in results):
            of_model = (timed for timed in results if timed.model == model and bar.doors(timed))
            values = [(value, timed) for timed in of_model if (value := bar.value(timed)) is not None]
            if values:
                value, timed = (max if bar.most < inf else min)(values, key=lambda pair: pair[0])
                checked.append(Checked(model, bar.what, timed.door.call, value, bar.least <= value <= bar.most))
    return checked
