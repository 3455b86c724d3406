"""What a loss returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """A loss, the parts it is made of, and what else is worth logging; all scalars."""

    loss: Tensor
    components: dict[str, Tensor]
    metrics: dict[str, Tensor]
