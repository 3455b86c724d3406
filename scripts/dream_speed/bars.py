"""What a dream's doors must reach: against the code of another checkout, and against the real environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from wm_agents.cli.doors import Door


class Timed(NamedTuple):
    """What was measured of one door."""

    model: str
    family: str
    """Of the dream; "real" for the real environment."""
    way: str
    door: Door
    per_s: float
    """Steps a second of all rows together: the median of the spells."""
    old_per_s: float | None = None
    """The same with the other checkout's code."""
    new_over_old: float | None = None
    """The median over pairs of spells."""
    times_real: float | None = None
    """As many times the steps of the real environment on one core."""
    times_real_all: float | None = None
    """The same, of the real environment in processes of its own, one for each core."""
    busy_loss: float | None = None
    """How many times slower it is beside a busy process on every core."""
    old_busy_loss: float | None = None
    gymnasium: float | None = None
    """What Gymnasium's own benchmark says."""

    @property
    def name(self) -> str:
        """The way, or the plain id of a real environment."""
        is_plain = self.family == "real" and self.way == "gym.make" and not self.door.id.startswith("Real-")
        return self.door.id if is_plain else self.way

    @property
    def sees(self) -> str:
        """What observations are: those of a dream, or those of the real environment."""
        return "real" if self.family == "real" else str(self.door.kwargs.get("obs", "vector"))


class Bar(NamedTuple):
    """A limit for some doors of every dream."""

    what: str
    doors: Callable[[Timed], bool]
    value: Callable[[Timed], float | None]
    least: float = -inf
    most: float = inf


class Verdict(NamedTuple):
    """A bar, and the door of a dream that comes off worst."""

    model: str
    bar: str
    door: str
    value: float
    passed: bool


def _native(rows: int) -> Callable[[Timed], bool]:
    return lambda timed: timed.way == "native vector" and timed.door.rows == rows


def _is(family: str, sees: str, of: Callable[[Timed], bool]) -> Callable[[Timed], bool]:
    return lambda timed: timed.family == family and timed.sees == sees and of(timed)


def _one(timed: Timed) -> bool:
    return timed.way == "gym.make"


def _new_over_old(timed: Timed) -> float | None:
    return timed.new_over_old


BARS = (
    Bar("ensemble, 1,024 rows: new / old at least 6", _is("ensemble", "vector", _native(1024)), _new_over_old, 6),
    Bar("ensemble, gym.make: new / old at least 8", _is("ensemble", "vector", _one), _new_over_old, 8),
    Bar("V-M-C latents, 1,024 rows: new / old at least 1.3", _is("vmc", "latent", _native(1024)), _new_over_old, 1.3),
    Bar("V-M-C latents, gym.make: new / old at least 3", _is("vmc", "latent", _one), _new_over_old, 3),
    Bar(
        "pixels, every door: new / old at least 2.5",
        _is("vmc", "pixels", lambda timed: True),
        _new_over_old,
        2.5,
    ),
    Bar(
        "beside busy processes at most 3 times slower",
        lambda timed: True,
        lambda timed: timed.busy_loss,
        most=3,
    ),
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


def judge(results: Iterable[Timed]) -> list[Verdict]:
    """Every bar for every dream that has a door it is about; bars without a measurement are left out."""
    results = list(results)
    verdicts = []
    for bar in BARS:
        for model in dict.fromkeys(timed.model for timed in results):
            of_model = (timed for timed in results if timed.model == model and bar.doors(timed))
            values = [(value, timed) for timed in of_model if (value := bar.value(timed)) is not None]
            if values:
                value, timed = (max if bar.most < inf else min)(values, key=lambda pair: pair[0])
                verdicts.append(Verdict(model, bar.what, timed.door.call, value, bar.least <= value <= bar.most))
    return verdicts
