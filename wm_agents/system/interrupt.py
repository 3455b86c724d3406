"""Ctrl-C between two steps and not within one, so that what is saved then is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(says: str = "stopping after this step") -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether SIGINT or SIGTERM has come: they wait to be asked for, a second one does not.

    Handlers of the user's own stay in place, and outside of the main thread there are none.
    """
    came: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        os.write(2, f"\n{says}; once more stops at once\n".encode())  # print() must not be met within itself.

    main = threading.current_thread() is threading.main_thread()
    usual = (signal.default_int_handler, signal.SIG_DFL)
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)} if main else {}
    before = {sig: handler for sig, handler in before.items() if handler in usual}
    for sig in before:
        signal.signal(sig, wait)
    try:
        yield lambda: bool(came)
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
