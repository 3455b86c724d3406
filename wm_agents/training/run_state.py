"""The state of a training run on disk, from which it resumes exactly."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wm_agents.checkpoint import load_weights, plain_names
from wm_agents.system.state import read_state_tensors, write_state_tensors
from wm_envs.fields import differing

if TYPE_CHECKING:
    from wm_agents.training.callbacks import Callback
    from wm_agents.training.trainer import Trainer

log = logging.getLogger(__name__)

# Settings that may change when a run is resumed.
MAY_CHANGE = {
    "total_steps", "log_interval", "eval_interval", "save_interval", "patience", "device", "output_dir", "tf32",
    "compile_model", "use_gradient_checkpointing",
}  # fmt: skip


def save_run(trainer: Trainer, path: Path) -> None:
    """Write weights, optimizer, schedule, random state and counters to one file, atomically."""
    optimizer, average, scaler = trainer.optimizer.state_dict(), trainer.average, trainer.compute.scaler
    with trainer.averaged(False):
        tensors = {f"module/{name}": t.clone() for name, t in plain_names(trainer.model.state_dict()).items()}
        if average is not None:
            tensors |= {f"average/{name}": t.clone() for name, t in average.tensors().items()}
    numbers: dict[str, dict[str, Any]] = {}
    for i, slots in optimizer["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{i}/{name}"] = value
            else:
                numbers.setdefault(str(i), {})[name] = value
    rng, numpy_rng = _random_state(trainer.fabric.device)
    decided = not trainer.compute.undecided
    state = {
        "update": trainer.update,
        "best_val": trainer.best_val,
        "stopped": trainer.stopped,
        "wall_s": trainer.wall_s,
        "cfg": trainer.cfg.to_dict(),
        "processes": trainer.compute.processes,
        "precision": trainer.precision if decided else None,
        "optimizer": {"param_groups": optimizer["param_groups"], "numbers": numbers},
        "scheduler": trainer.rate.state(),
        "scaler": scaler and scaler.state_dict(),
        "callbacks": {name: callback.state() for name, callback in _named(trainer.callbacks)},
        "numpy_rng": numpy_rng,
    }
    write_state_tensors(path, tensors | rng, {"state": json.dumps(state)})


def restore_run(trainer: Trainer, path: Path) -> None:
    """Restore the exact state that `save_run` wrote.

    Raises:
        ValueError: the file is not a training checkpoint, or belongs to a run with other settings.
    """
    tensors, metadata = read_state_tensors(path)
    try:
        state = json.loads(metadata["state"])
    except KeyError as error:
        raise ValueError(f"{path} is not a training checkpoint; give a file that a Trainer wrote") from error
    _check_same_run(trainer, path, state["cfg"])
    trainer.compute.resume(state.get("precision"), trainer.run_dir)
    load_weights(trainer.model, _under(tensors, "module/"))
    if trainer.average is not None:
        trainer.average.load(_under(tensors, "average/"))
        trainer.average.inside = False
    params = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    trainer.optimizer.load_state_dict(_optimizer_state(params, state["optimizer"], tensors))
    trainer.rate.load_state(state["scheduler"])
    if trainer.compute.scaler is not None:
        trainer.compute.scaler.load_state_dict(state["scaler"])
    for name, callback in _named(trainer.callbacks):
        if name in state["callbacks"]:
            callback.load_state(state["callbacks"][name])
    trainer.update, trainer.best_val, trainer.wall_s = state["update"], state["best_val"], state["wall_s"]
    trainer.stopped = "" if trainer.cfg.patience != state["cfg"]["patience"] else state["stopped"]
    _set_random_state(trainer.fabric.device, tensors, state["numpy_rng"])
    if not trainer.leads:  # The file has the random state of the first process.
        set_seeds(trainer.own_seed + trainer.update)
    _compare_processes(trainer, state.get("processes", 1))


def _compare_processes(trainer: Trainer, before: int) -> None:
    """Log what changes if a run resumes with another number of processes."""
    now = trainer.compute.processes
    if now != before and trainer.leads:
        log.warning(
            f"{trainer.run_dir} was trained by {before} processes and resumes with {now}: batches and averaged "
            "gradients stay the same up to rounding; random numbers of the loss change"
        )


def _check_same_run(trainer: Trainer, path: Path, saved: dict[str, Any]) -> None:
    now = trainer.cfg.to_dict()
    if strange := [name for name in saved if name not in now]:
        raise ValueError(
            f"{path} was written by another version of this package (its setting {', '.join(strange)} is unknown); "
            "finish the run with that version, or delete the file to restart this stage"
        )
    fixed = {"total_steps"} if trainer.cfg.scheduler in ("linear", "cosine", "onecycle") else set()
    compared = now.keys() - (MAY_CHANGE - fixed)
    changes = differing({k: saved.get(k) for k in now if k in compared}, now)
    if changes:
        raise ValueError(f"cannot resume {path.parent} with other settings: {changes}; use another folder")


def _named(callbacks: list[Callback]) -> list[tuple[str, Callback]]:
    """Callbacks with names of class and count, so that their states are not mixed up."""
    kinds = [type(c).__name__ for c in callbacks]
    return [(f"{kind}/{kinds[:i].count(kind)}", c) for i, (kind, c) in enumerate(zip(kinds, callbacks))]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _optimizer_state(params: list[Tensor], saved: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The optimizer state dict, with tuples restored and moments in the memory layout of their parameters."""
    state: dict[int, dict[str, Any]] = {int(i): dict(slots) for i, slots in saved["numbers"].items()}
    for name, value in _under(tensors, "optimizer/").items():
        i, _, slot = name.partition("/")
        like = params[int(i)]
        if value.shape == like.shape and value.ndim > 0:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(i), {})[slot] = value
    groups = [dict(group) for group in saved["param_groups"]]
    for group in groups:
        group |= {k: tuple(v) for k, v in group.items() if isinstance(v, list) and k != "params"}
    return {"state": state, "param_groups": groups}


def set_seeds(seed: int) -> None:
    """Seed the global generators of PyTorch and NumPy."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def _random_state(device: torch.device) -> tuple[dict[str, Tensor], list[Any]]:
    """The state of the global generators: tensors, and the plain values of NumPy's."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"rng/torch": torch.get_rng_state(), "rng/numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return tensors, [kind, *rest]


def _set_random_state(device: torch.device, tensors: Mapping[str, Tensor], numpy_rng: list[Any]) -> None:
    """Restore what `_random_state` returned."""
    torch.set_rng_state(tensors["rng/torch"])
    kind, *rest = numpy_rng
    np.random.set_state((kind, tensors["rng/numpy"].numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
