"""A progress bar, or periodic lines if stderr is not a terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Shows how many of `total` are done, and a text; use it in a `with` statement. Silent without a
    console."""

    def __init__(self, title: str, total: int, console: Console | None, line_every_s: float = 10.0) -> None:
        self.title, self.total, self.console, self.line_every_s = title, total, console, line_every_s
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, text="")
        self._next_line = time.monotonic() + line_every_s

    def update(self, done: int, text: str = "") -> None:
        self._bar.update(self._task, completed=done, text=text)
        if self.console is None or self.console.is_terminal:
            return
        if time.monotonic() >= self._next_line or done == self.total:
            self._next_line = time.monotonic() + self.line_every_s
            self.console.print(f"{self.title} {done}/{self.total}  {text}", highlight=False, soft_wrap=True)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
