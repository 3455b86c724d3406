"""`wm sweep`: the command and its flags."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from wm_agents.cli.commands import ImproveParser
from wm_agents.cli.flags import Parser, about
from wm_agents.cli.printing import say, table
from wm_agents.loops.sweep import HEADS, SweepConfig, failed_of, rows_of
from wm_agents.loops.sweep import sweep as run_sweep


def sweep(cfg: SweepConfig) -> int:
    """Run `wm improve` with several seeds, tasks and settings, and summarise the scores in a table and a plot.

    Each run is a normal run folder. Runs use the cores of this machine, or those of a Ray cluster (`--ray`), whose
    nodes must share the folder. The same command resumes. Exit code 1: a run failed; the same command tries it
    again.
    """
    result = run_sweep(cfg, Console(stderr=True))
    table(HEADS, rows_of(result))
    for row in failed_of(result):
        say(f"FAILED: {row['group']}, seed {row['seed']}: {row['failed']}")
    say(f"table and plot: {cfg.out}/table.md, {cfg.out}/returns.png")
    return 1 if failed_of(result) else 0


class SweepParser(Parser):
    """The flags of `wm sweep`: the fields of its config."""

    def __init__(self, args: list[str], prog: str) -> None:
        super().__init__(SweepConfig, prog=prog, description=about(sweep))

    def arguments(self, args: list[str]) -> dict[str, Any]:
        """The config that the flags describe. Invalid flags and settings that `wm improve` rejects end the program."""
        cfg: SweepConfig = self.build(super().arguments(args))
        for run in cfg.runs():
            ImproveParser(run.command[4:], self.prog).arguments(run.command[4:])
        return {"cfg": cfg}
