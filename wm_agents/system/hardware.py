"""The hardware of this machine: devices, threads, memory, and a description for run records."""

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
    """The device with this name; "auto" is the best available one.

    Raises:
        ConfigurationError: this machine does not have the device.
    """
    if name == "auto":
        name = "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
        if torch.cuda.is_available():
            name = "cuda"
    here = {"cpu": 1, "meta": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        device = torch.device(name)
        num = here[device.type]
    except (RuntimeError, KeyError):
        raise ConfigurationError(f"device must be auto, cpu, mps, cuda or cuda:N, got {str(name)!r}") from None
    if (device.index or 0) >= num:
        raise ConfigurationError(
            f"device {str(name)!r} is not on this machine; use 'cpu', or 'auto' for the best device available"
        )
    return device


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(num: int) -> int:
    """Check a number of threads for torch, and return it.

    Raises:
        ConfigurationError: `num` is below 1, or above the number of cores of this process.
    """
    if not 1 <= num <= num_cores():
        raise ConfigurationError(f"threads must be from 1 to {num_cores()}, the cores of this process, got {num}")
    return num


@cache
def keep_freed_memory() -> bool:
    """Make glibc keep up to 2 GB of freed memory for new tensors, and return whether it supports this.

    By default glibc returns freed memory to the kernel, and every new tensor then causes page faults. Networks with
    batches of 1,000 rows spend as much time on these faults as on matrix products.
    """
    trim_threshold, mmap_max = -1, -4  # As malloc.h names them.
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(trim_threshold, 2**31 - 1)) and bool(libc.mallopt(mmap_max, 0))
    except (OSError, AttributeError, TypeError):  # Not glibc.
        return False


def memory_gb() -> dict[str, float]:
    """The memory of this process in GB, as the metric `memory/process_gb`; empty where Linux does not report it."""
    kb = _proc_field("/proc/self/status", "VmRSS").split()
    return {"memory/process_gb": round(int(kb[0]) / 1e6, 3)} if kb else {}


def describe() -> dict[str, Any]:
    """CPU model, cores of this process, RAM, kinds of layers that train faster in bfloat16, GPU, and system."""
    ram_kb = _proc_field("/proc/meminfo", "MemTotal").split()
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
    return {
        "cpu": _proc_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": num_cores(),
        "ram_gb": round(int(ram_kb[0]) / 2**20, 1) if ram_kb else None,
        "bf16": [kind for kind in KINDS if use_bf16("auto", {kind}, torch.device("cpu"), training=True)],
        "gpu": gpu,
        "system": platform.platform(),
    }


def _proc_field(path: str, name: str) -> str:
    """Value of the first `name : value` line of a Linux status file; empty elsewhere."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = (line.partition(":") for line in file)
            return next((value.strip() for key, _, value in rows if key.strip() == name), "")
    except OSError:
        return ""
