"""What this machine is, for run records and for the choice of precision."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

import torch


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
