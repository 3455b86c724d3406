"""Check the arguments of dream environments, and read or replace rows of latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from wm_envs.noise import Rows
from wm_envs.world_model import EnsembleModel, Latent, WorldModel, can_disagree


def check_arguments(num_envs: int, obs: str, precision: str) -> None:
    """Check the plain arguments of a batch of dreams."""
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if obs not in ("pixels", "latent"):
        raise ValueError(f"obs must be 'pixels' or 'latent', got {obs!r}")
    if precision not in ("fp32", "bf16", "auto"):
        raise ValueError(f"precision must be 'fp32', 'bf16' or 'auto', got {precision!r}")


def as_ensemble(model: WorldModel) -> EnsembleModel:
    """`model` as an ensemble; raises ValueError if it is a single model."""
    if can_disagree(model):
        return model
    raise ValueError(
        f"pessimism, max_disagreement and disagreement need an ensemble of at least 2 members, {type(model).__name__} "
        "is a single model; omit them, or train an ensemble"
    )


def check_render_mode(mode: str | None, modes: list[str]) -> None:
    """Check that an environment has this render mode."""
    if mode is not None and mode not in modes:
        raise ValueError(f"render_mode must be None or one of {modes}, got {mode!r}")


def find_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The autoreset mode with this name or value, in any case."""
    names = {str(m.value).lower(): m for m in AutoresetMode} | {m.name.lower(): m for m in AutoresetMode}
    if isinstance(mode, AutoresetMode):
        return mode
    if mode.lower() not in names:
        raise ValueError(f"autoreset_mode must be one of {[m.name for m in AutoresetMode]}, got {mode!r}")
    return names[mode.lower()]


def check_reset_mask(given: Any, num: int) -> NDArray[np.bool_]:
    """The mask (num,) of the rows to reset; None: all rows."""
    if given is None:
        return np.ones(num, bool)
    mask: NDArray[np.bool_] = np.asarray(given)
    if mask.shape != (num,) or mask.dtype != np.bool_:
        raise ValueError(f"reset_mask must be ({num},) bool, got {mask.shape} {mask.dtype}")
    if not mask.any():
        raise ValueError("reset_mask selects no row; at least one must be reset")
    return mask


def check_latent(name: str, latent: Any, model: WorldModel, num: int | None = None) -> Latent:
    """Return the leaves of the model's latents from `latent`, and check that they have `num` rows, or equal numbers
    of rows."""
    like = model.initial(1)
    if not isinstance(latent, Mapping) or not all(isinstance(latent.get(key), Tensor) for key in like):
        keys = sorted(latent) if isinstance(latent, Mapping) else repr(latent)
        raise ValueError(f"{name} must be a latent, a dict of tensors {sorted(like)}, got {keys}")
    if num is None:
        num = len(latent[next(iter(like))])
    for key, leaf in like.items():
        want, got = (num, *leaf.shape[1:]), tuple(latent[key].shape)
        if got != want or num == 0:
            raise ValueError(f"{name}[{key!r}] must be {want} with at least one row, got {got}")
    return {key: latent[key] for key in like}


def take_rows(latent: Latent, rows: Rows) -> Latent:
    """Some rows of a latent."""
    return {key: leaf[rows] for key, leaf in latent.items()}


def put_rows(latent: Latent, rows: NDArray[np.int64], new: Latent) -> Latent:
    """A copy of `latent` with `new` in `rows`."""
    index = torch.from_numpy(rows).to(next(iter(latent.values())).device)
    return {key: leaf.index_copy(0, index, new[key].to(leaf.dtype)) for key, leaf in latent.items()}
