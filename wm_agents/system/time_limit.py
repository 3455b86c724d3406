"""A time limit for a block of code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeUp(RuntimeError):
    """A block of code has reached its time limit."""


@contextmanager
def time_limit(seconds: float, advice: str) -> Iterator[None]:
    """Raise `TimeUp`, with the `advice`, in the block after `seconds` of wall time.

    Outside the main thread there is no limit, because only the main thread receives signals. Limits cannot be nested.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeUp(f"not finished after {seconds / 60:g} minutes; {advice}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
