"""Noise for dreams: one independent stream per row, so that a row of a batch repeats the same dream alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64] | slice
"""Selects rows of a batch."""
EVERYONE = slice(None)


class RowStreams:
    """Standard normal noise for N rows, with an independent stream per row.

    `restart` seeds the stream of a row with a number from `rngs[row]`. The noise of a row does not depend on other
    rows, so a row dreams the same alone as in a batch. `active` selects the rows that draw noise; default: all. Noise
    is drawn in blocks, which is faster.
    """

    def __init__(self, rngs: list[np.random.Generator], block: int = 2048) -> None:
        self.rngs = rngs
        self.block = block
        self._streams = [torch.Generator() for _ in rngs]
        self._ahead = torch.zeros(len(rngs), block)
        self._cursor = np.full(len(rngs), block)
        self.active: Rows = EVERYONE

    def restart(self, row: int) -> None:
        """Start a new stream in `row`, for a new episode."""
        self._streams[row].manual_seed(int(self.rngs[row].integers(2**63)))
        self._cursor[row] = self.block

    def normal(self, dim: int) -> Tensor:
        """The next `dim` values of each `active` row, (rows, dim) float32 on the CPU."""
        if dim > self.block:
            raise ValueError(f"dim must be at most {self.block}, got {dim}; make RowStreams with a larger block")
        if len(self.rngs) == 1:
            return self._of_one_row(dim)
        at = self._cursor[self.active]
        if (used_up := at + dim > self.block).any():
            for row in np.arange(len(self.rngs))[self.active][used_up]:
                self._ahead[row].normal_(generator=self._streams[row])  # Three times as fast as numpy.
                self._cursor[row] = 0
            at = self._cursor[self.active]
        if (at == at[0]).all():
            ahead = self._ahead[:, at[0] : at[0] + dim].clone()
        else:
            columns = self._cursor.clip(max=self.block - dim)  # Inactive rows may be past it.
            ahead = self._ahead.gather(1, torch.from_numpy(columns)[:, None] + torch.arange(dim))
        self._cursor[self.active] += dim
        return ahead[self.active]

    def _of_one_row(self, dim: int) -> Tensor:
        """`normal` where the only row is active, in a fifth of the time."""
        at = int(self._cursor[0])
        if at + dim > self.block:
            at = 0
            self._ahead[0].normal_(generator=self._streams[0])
        self._cursor[0] = at + dim
        return self._ahead[:, at : at + dim].clone()


Generator = torch.Generator | RowStreams | None


def draw_normal(num: int, dim: int, generator: Generator, device: torch.device) -> Tensor:
    """Standard normal noise (num, dim) from a generator; None is torch's global generator."""
    if isinstance(generator, RowStreams):
        return generator.normal(dim).to(device)
    return torch.randn(num, dim, generator=generator, device=device)
