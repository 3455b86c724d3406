"""Ctrl-C between two steps and not within one, so that what is saved then is whole."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether a Ctrl-C has come, which waits to be asked for; a second one does not wait.

    A signal that raises KeyboardInterrupt otherwise is treated so; outside of the main thread there is none.
    """
    came: list[int] = []
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}

    def wait(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    ours = [sig for sig, handler in before.items() if handler is signal.default_int_handler]
    ours = ours if threading.current_thread() is threading.main_thread() else []
    for sig in ours:
        signal.signal(sig, wait)
    try:
        yield lambda: bool(came)
    finally:
        for sig in ours:
            signal.signal(sig, before[sig])
