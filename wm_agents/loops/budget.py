"""Plans a run for a given time: measures speeds in a short trial, and scales all settings of the run together."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from rich.console import Console

from policies.pool import Procs
from wm_agents.errors import ConfigurationError
from wm_agents.system.hardware import num_cores
from wm_agents.system.run_folder import RunFolder

UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
QUICK_S = 180.0
"""The time of `--quick`."""
LEAST, MOST = 1e-3, 8.0
"""The settings of a run are scaled by a factor in this range."""
SLACK = 1.05
"""A round begins if it is expected to end before this multiple of the budget."""
WORKERS_S = 4.0
"""Seconds in which worker processes start."""
REPORT_SHARE = 0.1
"""Largest share of the budget for the fidelity report."""


class Budgeted(Protocol):
    """Settings of a run that may have a budget of time."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def budget(self) -> str | None: ...

    @property
    def quick(self) -> bool: ...

    @property
    def report_minutes(self) -> float: ...


C = TypeVar("C", bound=Budgeted)


def seconds_of(text: str) -> float:
    """The seconds of a duration such as 90s, 10min or 1.5h.

    Raises:
        ConfigurationError: the text is not a positive duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)", text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigurationError(f"budget must be a time such as 90s, 10min or 1.5h, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def time_of(budget: str | None, quick: bool) -> float | None:
    """The seconds of a run, or None if its time is not limited.

    Raises:
        ConfigurationError: both are given, or `budget` is not a duration.
    """
    if budget is not None and quick:
        raise ConfigurationError("budget and quick exclude each other; quick is a budget of 3min")
    if quick:
        return QUICK_S
    return None if budget is None else seconds_of(budget)


@dataclass(frozen=True)
class Forecast:
    """The expected seconds of each part of a run."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.parts.items() if seconds >= 1)
        return f"{duration(self.total)} ({shown})"


def duration(seconds: float) -> str:
    """Seconds as text: 40 s, 12 min or 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def fit_to(
    seconds: float,
    trial_s: float,
    scale: Callable[[float], C],
    forecast: Callable[[C], Forecast],
    *,
    at_least: bool,
) -> float:
    """The largest factor for which the forecast of the settings `scale(factor)` fits in `seconds`, after a trial.

    Args:
        at_least: use the smallest settings if they take longer, instead of raising an error.

    Raises:
        ConfigurationError: the smallest settings take longer.
    """
    left_s = seconds - trial_s
    if (shortest := forecast(scale(LEAST))).total > left_s:
        if at_least:
            return LEAST
        raise ConfigurationError(
            f"a budget of {duration(seconds)} is too short: after {duration(trial_s)} of measuring, the smallest run "
            f"takes about {shortest} on this machine; raise it, or use --quick"
        )
    low, high = LEAST, MOST
    for _ in range(30):
        middle = (low * high) ** 0.5
        fits = forecast(scale(middle)).total <= left_s
        low, high = (middle, high) if fits else (low, middle)
    return low


def workers_here(procs: Procs) -> int:
    """Processes that play real episodes at the same time; a cluster counts as the cores of this machine."""
    wanted = procs if isinstance(procs, int) else num_cores()
    return max(min(wanted, num_cores()), 1)


def scaled(value: int, factor: float, least: int) -> int:
    """`value` times `factor`, but not below `least`, unless `value` is."""
    return max(round(value * factor), min(value, least))


@dataclass(frozen=True)
class Plan:
    """What a run with a budget has decided; stored in its state, so that a resumed run has the same settings."""

    budget_s: float
    factor: float
    """By which all settings are scaled."""
    trial_s: float
    """Seconds of the trial that measured the speeds."""
    round_s: float
    """Expected seconds of a round, or of all training without rounds."""
    finish_s: float
    """Expected seconds of the score and the report at the end."""

    def left_s(self, done_s: list[float], to_go: int) -> float:
        """Seconds that the rest takes: `to_go` rounds at the pace of the finished ones, and the end of the run."""
        mean = sum(done_s) / len(done_s) if done_s else self.round_s
        return to_go * mean + self.finish_s * mean / max(self.round_s, 1e-9)

    def has_time(self, done_s: list[float]) -> bool:
        """Whether another round, and the end of the run, fit in the budget."""
        return self.trial_s + sum(done_s) + self.left_s(done_s, 1) <= self.budget_s * SLACK


def plan_run(
    cfg: C,
    run: RunFolder,
    console: Console,
    *,
    measure: Callable[[C], Callable[[C], Forecast]],
    scale: Callable[[C, float], C],
    rounds: Callable[[C], int],
    describe: Callable[[C], str],
) -> C:
    """The settings that fit in the budget of `cfg`; `cfg` itself without a budget. A resumed run keeps its plan.

    Args:
        measure: runs a short trial with the given settings, and returns the forecast for any others.
        scale: multiplies all amounts of work by a factor.
        rounds: the number of rounds; 1 for a run without rounds.
        describe: the amounts of work as text.

    Raises:
        ConfigurationError: the budget is too short for any run.
    """
    seconds = time_of(cfg.budget, cfg.quick)
    if seconds is None:
        return cfg
    cfg = replace(cfg, report_minutes=min(cfg.report_minutes, REPORT_SHARE * seconds / 60))
    if run.state.get("plan", {}).get("budget_s") == seconds:
        return scale(cfg, run.state["plan"]["factor"])
    console.print("measuring the speeds of this machine in a short trial")
    began = time.perf_counter()
    forecast = measure(cfg)
    trial_s = time.perf_counter() - began
    factor = fit_to(seconds, trial_s, partial(scale, cfg), forecast, at_least=cfg.quick)
    settings = scale(cfg, factor)
    expected = forecast(settings)
    end_s = expected.parts["end"]
    plan = Plan(seconds, factor, trial_s, (expected.total - end_s) / rounds(settings), end_s)
    run.update(plan=asdict(plan))
    console.print(f"plan: {describe(settings)}; forecast: {expected}", highlight=False, soft_wrap=True)
    return settings


def plan_of(cfg: Budgeted, run: RunFolder) -> Plan | None:
    """The plan of a run; None if `cfg` has no budget, even if an earlier start had one."""
    if time_of(cfg.budget, cfg.quick) is None:
        return None
    return Plan(**run.state["plan"])


def summary_of(plan: Plan | None) -> dict[str, Any]:
    """A plan as an entry of the summary of a run; empty without a plan."""
    return {} if plan is None else {"plan": asdict(plan)}
