"""What runs on the machines of a Ray cluster: actors, each a worker with a core, and the check of a machine."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from policies.pool import portable, use_one_core
from policies.step_count import count_away, steps_away


class _Halt:
    """The halt of a worker, which knows when its task last looked at it."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self.looked: float | None = None
        """None between tasks."""

    def is_set(self) -> bool:
        self.looked = time.monotonic()
        return self._set.is_set()

    def set(self) -> None:
        self._set.set()

    @property
    def idle_s(self) -> float:
        """Seconds since the running task last looked."""
        looked = self.looked
        return 0.0 if looked is None else time.monotonic() - looked


class Outcome(NamedTuple):
    """What a task returned or raised, and the real steps it counted."""

    result: Any
    error: Exception | None
    steps: Mapping[Path, int]


class Actor:
    """A worker; the group `control` answers while a task runs."""

    def __init__(self, stage: bytes, place: Place) -> None:
        self.stage, self.place = stage, place
        self.shared: Any = None
        self.halt = _Halt()

    def ready(self) -> tuple[str, int]:
        """Load what tasks share, check this machine, and return its name and the process."""
        self.shared, self.stage = _settle(self.stage, self.place), b""
        count_away()
        return socket.gethostname(), os.getpid()

    def run(self, function: Callable[..., Any], args: Sequence[Any]) -> Outcome:
        """Run one task."""
        self.halt.is_set()
        try:
            return Outcome(function(self.shared, self.halt, *args), None, steps_away())
        except BaseException as error:
            return Outcome(None, portable(error), steps_away())
        finally:
            self.halt.looked = None

    def idle_s(self) -> float:
        return self.halt.idle_s

    def stop(self) -> None:
        self.halt.set()


class Place(NamedTuple):
    """Where the calling process works and imports from."""

    folder: str
    path: list[str]


def _settle(stage: bytes, place: Place) -> Any:
    """Work as the calling process does, as far as this machine has its folders; return what tasks share, checked."""
    from ray import cloudpickle

    use_one_core()
    if os.path.isdir(place.folder):
        os.chdir(place.folder)
    sys.path += [folder for folder in place.path if folder not in sys.path]
    shared, check = cloudpickle.loads(stage)
    if check is not None:
        check(shared)
    return shared


def look_around(stage: bytes, place: Place) -> None:
    """Check a machine."""
    _settle(stage, place)


def reason(error: Exception) -> str:
    """The last line of an error of Ray, which contains the traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception) and str(cause):
        kind = "" if isinstance(cause, ValueError | RuntimeError) else f"{type(cause).__name__}: "
        return kind + " ".join(str(cause).split())
    return str(error).strip().splitlines()[-1]
