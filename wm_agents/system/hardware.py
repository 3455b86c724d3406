"""What this machine is, for run records and for the choice of precision."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from typing import Any

import torch

from wm_agents.errors import ConfigurationError


@cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices natively, where autocast is 3 to 6 times as fast as fp32."""
    flags = _proc_field("/proc/cpuinfo", "flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 autocast gains on `device`."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and cpu_has_bf16()


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name, "auto" being the best there is.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {name!r}") from None
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= here:
        raise ConfigurationError(f"device {name!r} is not on this machine; use 'cpu', or 'auto' for the best there is")
    return device


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
    """CPU model, cores this process may use, RAM, bf16, GPU: what stands beside every measured number."""
    ram_kb = _proc_field("/proc/meminfo", "MemTotal").split()
    return {
        "cpu": _proc_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gb": round(int(ram_kb[0]) / 2**20, 1) if ram_kb else None,
        "bf16": cpu_has_bf16(),
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
