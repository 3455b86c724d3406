"""Waiting for what another process does. Deadlines only keep a hang from lasting: nothing passes or fails by speed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

HANG_S = 1800
"""Seconds after which what takes a few on a free machine has hung."""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Poll until `condition()`; fail where `process` ends before, or where it hangs."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        if process is not None and time.monotonic() > deadline:
            process.kill()
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"nothing happened in {HANG_S} s"
        time.sleep(0.01)


def wait_until_gone(group: int) -> None:
    """Wait until no process of the group is left."""

    def is_gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone)
