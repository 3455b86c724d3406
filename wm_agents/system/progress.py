"""Progress of long tasks: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """Shows how many of `total` items are done, and a text. Use it in a `with` statement. Silent without a console."""

    def __init__(self, title: str, total: int, console: Console | None, line_every_s: float = 5.0) -> None:
        self.title, self.total, self.console, self.line_every_s = title, total, console, line_every_s
        self._bar = _progress(console, MofNCompleteColumn())
        self._task = self._bar.add_task(title, total=total, text="")
        self._next_line = time.monotonic() + line_every_s

    def update(self, done: int, text: str = "") -> None:
        self._bar.update(self._task, completed=done, text=text)
        if self.console is None or self.console.is_terminal:
            return
        if time.monotonic() >= self._next_line or done == self.total:
            self._next_line = time.monotonic() + self.line_every_s
            self.console.print(f"{self.title} {done:,}/{self.total:,}  {text}", highlight=False, soft_wrap=True)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


class StageBar:
    """One bar over several stages, with the remaining time. Use it in a `with` statement.

    Without a terminal, it prints a line when a stage starts and every `line_every_s` seconds, even without new
    progress, so that missing lines show a hanging process.

    Args:
        shares: expected share of the total time of each stage, in order; they sum to 1.
    """

    def __init__(self, shares: Mapping[str, float], console: Console, line_every_s: float = 5.0) -> None:
        self.shares, self.console, self.line_every_s = dict(shares), console, line_every_s
        self._bar = _progress(console, TaskProgressColumn(), TimeElapsedColumn())
        self._task = self._bar.add_task("", total=1.0, text="")
        self.began = time.monotonic()
        self._stage, self._done, self._text = "", 0.0, ""
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._print_lines, daemon=True)

    def update(self, stage: str, done: float, text: str = "") -> None:
        """Show that the share `done`, from 0 to 1, of `stage` is done."""
        begins, names = stage != self._stage, list(self.shares)
        before = sum(self.shares[name] for name in names[: names.index(stage)])
        self._stage, self._done, self._text = stage, before + done * self.shares[stage], text
        self._bar.update(self._task, description=stage, completed=self._done, text=text)
        if begins and not self.console.is_terminal:
            self._print_line()

    def line(self, now: float) -> str:
        """The progress at time `now` (of `time.monotonic`) as a line of text."""
        passed = now - self.began
        left = ""
        if self._done > 0:
            left = f", about {_clock(passed / self._done - passed)} left"
        return f"{self._done:4.0%} {_clock(passed)}{left}  {self._stage} {self._text}".rstrip()

    def _print_line(self) -> None:
        self.console.print(self.line(time.monotonic()), highlight=False, soft_wrap=True)

    def _print_lines(self) -> None:
        while not self._over.wait(self.line_every_s):
            self._print_line()

    def __enter__(self) -> StageBar:
        self._bar.start()
        if not self.console.is_terminal:
            self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._beat.is_alive():
            self._beat.join()
        self._bar.stop()


def _progress(console: Console | None, *columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
