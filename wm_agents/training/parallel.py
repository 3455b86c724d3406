"""One training run in several processes, by Fabric's DDP: each has a part of every batch and the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from wm_agents.models.loss import LossOutput

SEEDS_APART = 1_000_003
"""Process k has the seed of the run plus k times this number, for random numbers of the loss."""


def part_of(batch: Any, rank: int, size: int) -> Any:
    """The rows of a batch that process `rank` of `size` trains on: of every tensor in it, along the first dimension.

    Raises:
        ValueError: the rows cannot be divided equally.
        TypeError: the batch contains something other than tensors, mappings, sequences and dataclasses of them.
    """
    if size == 1 or batch is None:
        return batch
    if isinstance(batch, Tensor):
        rows, rest = divmod(len(batch), size)
        if rest:
            raise ValueError(
                f"a batch of {len(batch)} rows cannot be divided equally among {size} processes; use a batch_size that "
                f"is a multiple of {size}"
            )
        return batch[rank * rows : (rank + 1) * rows]
    if isinstance(batch, Mapping):
        return {key: part_of(value, rank, size) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [part_of(value, rank, size) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: part_of(getattr(batch, f.name), rank, size) for f in fields(batch)})
    raise TypeError(f"a batch of type {type(batch).__name__} cannot be divided among {size} processes; use tensors")


class _Held(NamedTuple):
    """A batch that DDP passes on as it is."""

    get: Callable[[], Any]


class _Loss(nn.Module):
    """A loss as a module with the parameters of its model, because DDP averages the gradients of a module."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], LossOutput]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, held: _Held) -> LossOutput:
        out = self.loss(held.get())
        details = ({name: value.detach() for name, value in part.items()} for part in (out.components, out.metrics))
        return LossOutput(out.loss, *details)


def spread(fabric: Any, model: nn.Module, loss: Callable[[Any], LossOutput]) -> Callable[[Any], LossOutput]:
    """`loss` with gradients that are averaged over all processes; `loss` itself in a single process."""
    if fabric.world_size == 1:
        return loss
    module = fabric.setup_module(_Loss(model, loss), move_to_device=False)

    def averaged(batch: Any) -> LossOutput:
        out: LossOutput = module(_Held(lambda: batch))
        return out

    return averaged
