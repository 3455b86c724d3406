"""Shows that a command is alive: prints a line when nothing was printed for some seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

SILENCE_S = 5.0
_asking = threading.Event()


@contextmanager
def asking() -> Iterator[None]:
    """A block that waits for the user, so that no line is printed."""
    _asking.set()
    try:
        yield
    finally:
        _asking.clear()


class Pulse:
    """Passes a stream through, and prints `line()` on it after `every_s` seconds without output.

    In a `with` statement it replaces `sys.stderr`, and a thread watches the time.
    """

    def __init__(
        self,
        name: str,
        stream: TextIO,
        every_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.stream, self.every_s, self.clock = name, stream, every_s, clock
        self.began = self.last = clock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def write(self, text: str) -> int:
        """Write to the stream, and note the time."""
        self.last = self.clock()
        return self.stream.write(text)

    def beat(self) -> None:
        """Print a line if the stream was silent for too long, unless the user is asked."""
        if (now := self.clock()) - self.last >= self.every_s and not _asking.is_set():
            self.write(f"{self.name}: still working, {now - self.began:.0f} s\n")
            self.stream.flush()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.beat()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> Pulse:
        sys.stderr = self
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        sys.stderr = self.stream
