"""The state of optimizers and random generators as tensors, from which a training run resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def optimizer_state(params: list[Tensor], saved: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The optimizer state dict, with tuples restored and moments in the memory layout of their parameters."""
    state: dict[int, dict[str, Any]] = {int(i): dict(slots) for i, slots in saved["numbers"].items()}
    for name, value in under(tensors, "optimizer/").items():
        i, _, slot = name.partition("/")
        like = params[int(i)]
        same = value.shape == like.shape and value.ndim > 0
        state.setdefault(int(i), {})[slot] = torch.empty_like(like, dtype=value.dtype).copy_(value) if same else value
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in saved["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def set_seeds(seed: int) -> None:
    """Seed the global generators of PyTorch and NumPy."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def random_state(device: torch.device) -> tuple[dict[str, Tensor], list[Any]]:
    """The state of the global generators: tensors, and the plain values of NumPy's."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"rng/torch": torch.get_rng_state(), "rng/numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return tensors, [kind, *rest]


def set_random_state(device: torch.device, tensors: Mapping[str, Tensor], numpy_rng: list[Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(tensors["rng/torch"])
    kind, *rest = numpy_rng
    np.random.set_state((kind, tensors["rng/numpy"].numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
