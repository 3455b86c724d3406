"""Threads of a dream: one for few rows, all of PyTorch's for many.

PyTorch splits single operations, and its threads wait for each other at the end of each. Beside a process that keeps a
core busy, each of these waits takes as long as the scheduler lets that process run: a step of one row takes twenty
times as long (docs/log.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

ROWS = 256
"""Rows from which a step takes less time on two threads than on one, unless the model sets `threaded_from`."""
FRAMES = 32
"""The same for decoded images."""


def few_threads(model: object, rows: int, images: bool) -> AbstractContextManager[object]:
    """A reusable context for the steps of a dream. In it, PyTorch uses one thread for few rows and all for many.

    Args:
        model: its attribute `threaded_from`, if it has one, is the number of rows from which all threads are used.
        rows: number of rows of the dream.
        images: every row is decoded to an image.
    """
    threaded_from: int = FRAMES
    if not images:
        threaded_from = getattr(model, "threaded_from", ROWS)
    if rows >= threaded_from:
        return nullcontext()
    return _OneThread()


class _OneThread:  # `contextlib.contextmanager` takes three times as long to enter and leave.
    """Within, PyTorch computes on one thread what this thread of Python asks for."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before)
