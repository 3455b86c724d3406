"""Times one function in its own process, on requests of the parent process over pipes.

The parent writes numbers of seconds, one per line, and reads JSON objects, one per line: first a description of what is
timed, then the results. This file needs only torch, so that the interpreter of a port can run it.
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
"""The error messages of torch if the memory is full."""


class Job(NamedTuple):
    """A request to time something."""

    sizes: dict[str, Any]
    """Fields of the model's config in this project."""
    path: str = ""
    """The checkout of a port, whose modules take precedence."""
    part: str = ""
    """What is trained, for this project."""
    plan: bool = False
    """Time a plan instead of an update."""
    batch: int = 1
    length: int = 1
    """Steps per window."""
    obs_shape: tuple[int, ...] = ()
    """(H, W, C) for frames, (D,) for vectors."""
    actions: int = 1
    precision: str = "fp32"
    compiled: bool = False
    device: str = "cpu"
    threads: int = 1


class Timed(NamedTuple):
    """The functions that a builder creates for a job."""

    call: Callable[[], Any]
    """May return the loss."""
    params: int


def main(build: Callable[[Job], Timed], text: str) -> None:
    """Build the function for a job in JSON, describe it, and time it as often as the parent requests."""
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
    """Milliseconds of each call: wall time, and CPU time of all threads."""
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
    """Limit the memory of the process, to protect other processes; Linux only."""
    free, hard = int(0.9 * _status("/proc/meminfo", "MemAvailable")), resource.getrlimit(resource.RLIMIT_DATA)[1]
    if free and not device.startswith("cuda") and hard == resource.RLIM_INFINITY:
        most = _status("/proc/self/status", "VmData") + free
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


class Memory:
    """Measures memory: on a CPU parameters and growth of the process, on CUDA all tensors."""

    def __init__(self, device: str, params: int) -> None:
        self.cuda = device.startswith("cuda")
        self.base = _resident("VmRSS") - 4 * params

    def peaks(self) -> dict[str, float]:
        """Memory of the calls, and peak memory of the process, in MB."""
        whole = _resident("VmHWM")
        grown = torch.cuda.max_memory_allocated() if self.cuda else whole - self.base
        return {"peak_mb": grown / 2**20, "process_mb": whole / 2**20}


def _resident(field: str) -> int:
    """Memory of the process in bytes; its peak if there is no /proc."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("/proc/self/status", field) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(path: str, field: str) -> int:
    """Bytes of a `field: n kB` line of Linux; 0 on other systems."""
    try:
        with open(path, encoding="utf-8") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:")), 0)
    except OSError:
        return 0
