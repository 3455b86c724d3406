"""Handles Ctrl-C between two steps, so that the saved state is consistent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(says: str = "stopping after this step") -> Iterator[Callable[[], bool]]:
    """Defer SIGINT and SIGTERM: yields a function that returns whether one arrived. A second signal is not
    deferred.

    User-defined handlers stay in place. Outside the main thread, nothing is deferred.
    """
    came: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        os.write(2, f"\n{says}; press again to stop at once\n".encode())  # print() is not reentrant.

    main = threading.current_thread() is threading.main_thread()
    usual = (signal.default_int_handler, signal.SIG_DFL)
    before = {}
    if main:
        before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
    before = {sig: handler for sig, handler in before.items() if handler in usual}
    for sig in before:
        signal.signal(sig, wait)
    try:
        yield lambda: bool(came)
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
