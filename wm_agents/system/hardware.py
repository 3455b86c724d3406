"""What this machine is and can do: devices, threads, the facts of run records."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from typing import Any

import torch

from wm_agents.errors import ConfigurationError
from wm_envs.precision import KINDS, use_bf16


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name, "auto" being the best there is.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    here = {"cpu": 1, "meta": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        device = torch.device(name)
        num = here[device.type]
    except (RuntimeError, KeyError):
        raise ConfigurationError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {str(name)!r}") from None
    if (device.index or 0) >= num:
        raise ConfigurationError(
            f"device {str(name)!r} is not on this machine; use 'cpu', or 'auto' for the best there is"
        )
    return device


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(num: int) -> int:
    """`num`, a number of threads for torch.

    Raises:
        ConfigurationError: this process has fewer cores, or it is below 1.
    """
    if not 1 <= num <= num_cores():
        raise ConfigurationError(f"threads must be from 1 to {num_cores()}, the cores of this process, got {num}")
    return num


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next tensor, up to two gigabytes; whether it could be told.

    It gives the memory back otherwise, and the kernel hands the same pages out again, one fault each: networks of a
    thousand rows spend as long on that as on their products. Large tensors, which would be mapped one by one, too.
    """
    trim_threshold, mmap_max = -1, -4  # As malloc.h names them.
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(trim_threshold, 2**31 - 1)) and bool(libc.mallopt(mmap_max, 0))
    except (OSError, AttributeError, TypeError):  # Not glibc.
        return False


def describe() -> dict[str, Any]:
    """CPU model, cores this process may use, RAM, what trains faster in bfloat16, GPU: the context of every number."""
    ram_kb = _proc_field("/proc/meminfo", "MemTotal").split()
    return {
        "cpu": _proc_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": num_cores(),
        "ram_gb": round(int(ram_kb[0]) / 2**20, 1) if ram_kb else None,
        "bf16": [kind for kind in KINDS if use_bf16("auto", {kind}, torch.device("cpu"), training=True)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _proc_field(path: str, name: str) -> str:
    """Value of the first `name : value` line of a Linux status file; empty elsewhere."""
    try:
        with open(path) as file:
            rows = (line.partition(":") for line in file)
            return next((value.strip() for key, _, value in rows if key.strip() == name), "")
    except OSError:
        return ""
