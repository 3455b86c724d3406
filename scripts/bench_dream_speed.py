"""Steps per second of every shipped dream through every interface, and of its real environment.

    python scripts/bench_dream_speed.py                        all dreams
    python scripts/bench_dream_speed.py --quick                less precise, takes about a minute
    python scripts/bench_dream_speed.py --against ../before    alternates with the code of another checkout
    python scripts/bench_dream_speed.py --busy                 few rows also while every core is busy

A door is one interface through which an environment is stepped: gym.make, SyncVectorEnv, the native vector environment,
SB3's make_vec_env, or DreamVecEnv, each with its defaults. The real environment is timed in one process, as
AsyncVectorEnv, and in one process per core with one environment each, which is the fastest way to take real steps. A
step is an agent step: four frames in CarRacing and the games. Only the plain id (`CarRacing-v3`) steps single frames.
Real environments are timed over whole episodes, including resets.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from dream_speed.bars import Checked, Timed, check_bars
from dream_speed.worker import Busy, DoorFailed, Worker
from rich.console import Console
from rich.table import Table

import wm_agents
from wm_agents.checkpoint import load_artifact
from wm_agents.cli.bench import SPELLS, dream_doors, real_doors
from wm_agents.cli.doors import Door, by_turns
from wm_agents.errors import ConfigurationError
from wm_agents.models.saved import STORE, model_path
from wm_agents.system.hardware import check_threads, describe
from wm_envs.registry import TASKS

HERE = Path(wm_agents.__file__).parents[1]
SHIPPED = [task.dream_id for task in TASKS.values() if (STORE / task.model).is_dir()]
PROCESSES = "processes"
"""Name of the measurement with one process per core."""
FEW = 8
"""Maximum rows of doors that are also timed on busy cores."""


class Crew(NamedTuple):
    """The measuring processes."""

    workers: list[Worker]
    """Processes with the code of this checkout, one per core; the first one times the dreams."""
    old: Worker | None
    """The process with the code of the other checkout."""
    busy: Busy | None


def start(stack: ExitStack, args: argparse.Namespace) -> Crew:
    """Start the processes; `stack` stops them."""
    workers = [stack.enter_context(closing(Worker(HERE, args.threads))) for _ in range(cores_of(args))]
    old = stack.enter_context(closing(Worker(args.against, args.threads))) if args.against else None
    busy = stack.enter_context(closing(Busy(describe()["cores"]))) if args.busy else None
    return Crew(workers, old, busy)


def cores_of(args: argparse.Namespace) -> int:
    """Number of cores that a dream may use."""
    return int(args.threads or torch.get_num_threads())


def time_real(model: str, crew: Crew, seconds: float) -> Iterator[Timed]:
    """Time the real environment: alone, as AsyncVectorEnv, in one process per core, and alone with its plain id."""
    alone, vector, plain = real_doors(model, len(crew.workers))
    first = crew.workers[0]
    for door in (alone, vector):
        yield Timed(model, "real", door.way, door, time_door(door, first, seconds))
    together = time_processes(alone, crew.workers, seconds)
    yield Timed(model, "real", PROCESSES, alone._replace(rows=len(crew.workers)), together)
    yield Timed(model, "real", plain.way, plain, time_door(plain, first, seconds))


def time_processes(door: Door, workers: list[Worker], seconds: float) -> float:
    """Steps per second of all processes together, with one environment each."""

    def spell() -> float:
        for worker in workers:
            worker.ask(f"spell {seconds / SPELLS}")
        return sum(worker.answer() for worker in workers)

    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker.opened(door))
        return median(by_turns({"": spell}, seconds)[""])


def time_door(door: Door, worker: Worker, seconds: float) -> float:
    """Steps per second through a door: the median of several measurements."""
    with worker.opened(door):
        return median(by_turns({"": partial(worker.spell, seconds / SPELLS)}, seconds)[""])


def time_dream(model: str, door: Door, crew: Crew, seconds: float, with_gymnasium: bool) -> Timed:
    """Time a door of a dream, alternately with the other code and with busy cores."""
    workers = {"new": crew.workers[0], **({"old": crew.old} if crew.old else {})}
    with ExitStack() as stack:
        for worker in workers.values():
            stack.enter_context(worker.opened(door))
        spells: dict[str, Callable[[], float]] = {
            name: partial(worker.spell, seconds / SPELLS) for name, worker in workers.items()
        }
        if crew.busy is not None and door.rows <= FEW:
            spells |= {f"{name} busy": partial(crew.busy.beside, spell) for name, spell in spells.items()}
        rates = by_turns(spells, seconds)
        figure = workers["new"].gymnasium_figure(seconds / 2) if with_gymnasium else None
    return Timed(
        model,
        load_artifact(model_path(model)).config["family"],
        door.way,
        door,
        median(rates["new"]),
        old_per_s=median(rates["old"]) if "old" in rates else None,
        new_over_old=ratio(rates, "new", "old"),
        busy_loss=ratio(rates, "new", "new busy"),
        old_busy_loss=ratio(rates, "old", "old busy"),
        gymnasium=figure,
    )


def ratio(rates: dict[str, list[float]], above: str, below: str) -> float | None:
    """The median of the ratios of two rates over all rounds, if both were measured."""
    if not {above, below} <= rates.keys():
        return None
    return median(a / b for a, b in zip(rates[above], rates[below]))


def time_both(model: str, crew: Crew, args: argparse.Namespace) -> Iterator[Timed]:
    """Time the real environment, then every door of its dream."""
    real = []
    for timed in time_real(model, crew, args.seconds):
        real.append(timed.per_s)
        yield timed
    alone, _, together, _ = real
    for door in dream_doors(model, options={"precision": args.precision}):
        timed = time_dream(model, door, crew, args.seconds, not args.quick)
        yield timed._replace(times_real=timed.per_s / alone, times_real_all=timed.per_s / together)


def speed_table(results: list[Timed]) -> Table:
    """A table with a row per door, without empty columns."""
    columns: dict[str, Callable[[Timed], str]] = {
        "dream": lambda timed: timed.model,
        "door": lambda timed: timed.name,
        "rows": lambda timed: f"{timed.door.rows:,}",
        "sees": lambda timed: timed.sees,
        "steps/s": lambda timed: shown(timed.per_s),
        "x real, one core": lambda timed: shown(timed.times_real),
        "x real, all cores": lambda timed: shown(timed.times_real_all),
        "old steps/s": lambda timed: shown(timed.old_per_s),
        "new / old": lambda timed: shown(timed.new_over_old),
        "busy loss": lambda timed: shown(timed.busy_loss),
        "old busy loss": lambda timed: shown(timed.old_busy_loss),
        "Gymnasium's benchmark": lambda timed: shown(timed.gymnasium),
    }
    cells = {name: [cell(timed) for timed in results] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    table = Table(*cells)
    for i, row in enumerate(zip(*cells.values())):
        last_of_dream = i + 1 < len(results) and results[i + 1].model != results[i].model
        table.add_row(*row, end_section=last_of_dream)
    return table


def bar_table(bars: list[Checked]) -> Table:
    """The result of every goal for every dream."""
    table = Table("bar", "dream", "slowest door", "value", "")
    for bar in bars:
        table.add_row(bar.bar, bar.model, bar.door, shown(bar.value), "pass" if bar.passed else "FAIL")
    return table


def shown(number: float | None) -> str:
    """Three digits or more; empty for None."""
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dreams", nargs="+", default=SHIPPED, help="ids of dreams, or directories of models")
    parser.add_argument("--seconds", type=float, help="for each measurement; 1 unless given, 0.15 with --quick")
    parser.add_argument("--quick", action="store_true", help="short measurements, without Gymnasium's benchmark")
    parser.add_argument("--against", type=checkout, metavar="CHECKOUT", help="measure the code of this folder too")
    parser.add_argument("--busy", action="store_true", help="time few rows also while every core is busy")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32", help="of the dreams")
    parser.add_argument("--threads", type=int, help="of torch, and processes of the real environment; all cores")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    args = parser.parse_args()
    try:
        if args.threads is not None:
            check_threads(args.threads)
    except ConfigurationError as error:
        parser.error(str(error))
    args.seconds = args.seconds or (0.15 if args.quick else 1.0)
    return args


def checkout(text: str) -> Path:
    """The path of a folder that contains the packages."""
    path = Path(text).resolve()
    if not (path / "wm_envs" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} must be a checkout of this project, but has no folder wm_envs")
    return path


def main() -> int:
    args, console = parse(), Console(stderr=True, width=180)
    machine = {
        **describe(),
        "threads": cores_of(args),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
    }
    console.print(machine)
    began, results, failed = time.perf_counter(), [], None
    with ExitStack() as stack:
        crew = start(stack, args)
        try:
            for model in args.dreams:
                for timed in time_both(model, crew, args):
                    results.append(timed)
                    spent = f"{time.perf_counter() - began:4.0f} s"
                    console.print(f"{spent}, {model}: {timed.door.call}: {timed.per_s:,.0f} steps/s", highlight=False)
        except DoorFailed as error:
            failed = str(error)
    bars = check_bars(results)
    console.print(speed_table(results), bar_table(bars))
    console.print(f"{len(results)} doors in {time.perf_counter() - began:.0f} s, {args.seconds:g} s each")
    if failed:
        console.print(f"stopped: {failed}")
    if args.json:
        settings = {"seconds": args.seconds, "precision": args.precision}
        report = {"machine": machine, **settings, "against": args.against and str(args.against)}
        doors = [{**timed._asdict(), "door": timed.door._asdict()} for timed in results]
        print(json.dumps({**report, "doors": doors, "bars": [bar._asdict() for bar in bars]}))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
