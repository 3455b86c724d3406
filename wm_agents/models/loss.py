"""The result of a loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """A loss, its components, and further metrics; all scalars."""

    loss: Tensor
    components: dict[str, Tensor]
    metrics: dict[str, Tensor]
