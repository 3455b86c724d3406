"""Processes that open and time doors with the code of a checkout, and processes that keep the cores busy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wm_agents.cli import doors
from wm_agents.cli.doors import Door


class DoorFailed(RuntimeError):
    """A door that cannot be opened, or fails while it is timed."""


class Worker:
    """A process that opens and times doors with the code in `root`, one door at a time.

    Args:
        root: absolute path of a checkout.
        threads: number of torch threads; default: torch's own.
    """

    def __init__(self, root: Path, threads: int | None = None) -> None:
        serve = f"import runpy; runpy.run_path({doors.__file__!r})['serve']()"
        env = {**os.environ, "PYTHONPATH": str(root)}
        env |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  Closed with the process.
        # With -c, the folder that it runs in is first on its path.
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", serve], cwd=root, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.is_open = False
        package = Path(self.answer())
        assert package.parents[1] == root, package

    def ask(self, question: str) -> None:
        """Send a request; `answer` waits for the reply."""
        assert self.process.stdin is not None
        print(question, file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """The reply to the last request.

        Raises:
            DoorFailed: the process could not open or step the door.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise DoorFailed(f"the process ended with {self.process.wait()}: {self.log.read()[-2000:]}")
        [(name, value)] = json.loads(line).items()
        if name == "failed":
            self.is_open = False
            raise DoorFailed(value)
        return value

    @contextmanager
    def opened(self, door: Door) -> Iterator[None]:
        """Open a door within this context."""
        self.ask(json.dumps(door))
        self.is_open = True
        self.answer()
        try:
            yield
        finally:
            if self.is_open:
                self.ask("close")

    def spell(self, seconds: float) -> float:
        """Steps per second through the open door."""
        self.ask(f"spell {seconds}")
        return float(self.answer())

    def gymnasium_figure(self, seconds: float) -> float | None:
        """Steps per second through the open door with Gymnasium's own benchmark, if it has one."""
        self.ask(f"gymnasium_figure {seconds}")
        figure: float | None = self.answer()
        return figure

    def close(self) -> None:
        """Stop the process."""
        self.process.communicate()
        self.log.close()


class Busy:
    """One busy process per core, paused except within `beside`."""

    def __init__(self, cores: int) -> None:
        self.processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
        self._send(signal.SIGSTOP)

    def beside(self, spell: Callable[[], float]) -> float:
        """Call `spell` while the cores are busy."""
        self._send(signal.SIGCONT)
        try:
            return spell()
        finally:
            self._send(signal.SIGSTOP)

    def close(self) -> None:
        """Stop the processes."""
        for process in self.processes:
            process.kill()
            process.wait()

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(number)
