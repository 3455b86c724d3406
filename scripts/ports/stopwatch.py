"""Times one function in a process of its own, a spell at a time, as its parent asks over pipes.

The parent writes seconds, a number a line, and reads JSON, an object a line: first what is timed, then every spell.
Needs torch and nothing of this project, so that the interpreter of a public port can run it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

WARM_UP = 2
FULL = ("can't allocate memory", "out of memory")
"""What torch says where memory ends."""


class Job(NamedTuple):
    """What a process is to time."""

    sizes: dict[str, Any]
    """Fields of this project's config of the model."""
    path: str = ""
    """A port's checkout; its modules come before all others."""
    part: str = ""
    """Of this project: what is trained."""
    plan: bool = False
    """Time a plan, not an update."""
    batch: int = 1
    length: int = 1
    """Steps of a window."""
    obs_shape: tuple[int, ...] = ()
    """(H, W, C) of frames, (D,) of vectors."""
    actions: int = 1
    precision: str = "fp32"
    compiled: bool = False
    device: str = "cpu"
    threads: int = 1


class Timed(NamedTuple):
    """What a builder makes of a job."""

    call: Callable[[], Any]
    """May return the loss."""
    params: int


def main(build: Callable[[Job], Timed], text: str) -> None:
    """Build what the job in JSON asks for, tell of it, and time it as long as the parent asks."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # What else is printed is not for the parent.
    job = Job(**json.loads(text))
    torch.set_num_threads(job.threads)
    if job.path:
        sys.path.insert(0, job.path)
    try:
        _limit(job.device)
        timed = build(job)
        memory = Memory(job.device, timed.params)
        print(json.dumps(_warm_up(timed, job.device)), file=answers)
        for line in sys.stdin:
            print(json.dumps({**_spell(timed.call, float(line), job.device), **memory.peaks()}), file=answers)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or any(word in str(error) for word in FULL)):
            raise
        print(json.dumps({"failed": "does not fit"}), file=answers)


def _warm_up(timed: Timed, device: str) -> dict[str, Any]:
    began = time.perf_counter()
    loss = timed.call()
    loss = None if loss is None else float(loss)
    _wait(device)
    first_s = time.perf_counter() - began
    for _ in range(WARM_UP - 1 if first_s < 20 or timed.params < 1e7 else 0):
        timed.call()
    _wait(device)
    return {"params": timed.params, "loss": loss, "first_s": first_s}


def _spell(call: Callable[[], Any], seconds: float, device: str) -> dict[str, list[float]]:
    """Milliseconds of each call, on the clock and of the processor, all threads together."""
    ms: list[float] = []
    cpu_ms: list[float] = []
    end = time.perf_counter() + seconds
    while not ms or time.perf_counter() < end:
        began, cpu_began = time.perf_counter(), time.process_time()
        call()
        _wait(device)
        ms.append(1e3 * (time.perf_counter() - began))
        cpu_ms.append(1e3 * (time.process_time() - cpu_began))
    return {"ms": ms, "cpu_ms": cpu_ms}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _limit(device: str) -> None:
    """Keep the process from taking the memory of whoever else is at work on this machine; Linux only."""
    free, hard = int(0.9 * _status("/proc/meminfo", "MemAvailable")), resource.getrlimit(resource.RLIMIT_DATA)[1]
    if free and not device.startswith("cuda") and hard == resource.RLIM_INFINITY:
        most = _status("/proc/self/status", "VmData") + free
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


class Memory:
    """What the calls take: on a CPU parameters and by how much the process grows, on CUDA all tensors."""

    def __init__(self, device: str, params: int) -> None:
        self.cuda = device.startswith("cuda")
        self.base = _resident("VmRSS") - 4 * params

    def peaks(self) -> dict[str, float]:
        """In MB: what was taken, and the whole process at its largest."""
        whole = _resident("VmHWM")
        grown = torch.cuda.max_memory_allocated() if self.cuda else whole - self.base
        return {"peak_mb": grown / 2**20, "process_mb": whole / 2**20}


def _resident(field: str) -> int:
    """Bytes; where there is no /proc, the most that ever were."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("/proc/self/status", field) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(path: str, field: str) -> int:
    """Bytes of a `field: n kB` line of Linux; 0 elsewhere."""
    try:
        with open(path, encoding="utf-8") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:")), 0)
    except OSError:
        return 0
