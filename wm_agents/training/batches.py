"""Data in any form as numbered batches, so that a resumed run continues with the right batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from wm_agents.data.replay import ReplayBuffer
from wm_agents.training.config import TrainingConfig

Feed = Callable[[int], Any]
"""Maps a batch number, from 0, to a batch."""


def make_feed(data: Any, cfg: TrainingConfig, pack: bool = False, device: str = "cpu", held_out: bool = False) -> Feed:
    """Batches of `data`: a replay buffer, a function of the batch number, an object with `sample`, or an
    iterable.

    Args:
        pack: if `data` is a replay buffer, a window may contain several episodes, one after the other.
        held_out: if `data` is a replay buffer, use other random numbers than training.

    Raises:
        TypeError: unsupported type of data.
    """
    if isinstance(data, ReplayBuffer):
        begin = 2**40 if held_out else 0
        return lambda i: data.sample(cfg.batch_size, cfg.sequence_length, pack=pack, generator=cfg.generator(begin + i))
    if hasattr(data, "sample"):
        return lambda i: data.sample(cfg.batch_size, cfg.sequence_length, device)
    if callable(data):
        feed: Feed = data
        return feed
    if isinstance(data, Iterable):
        return _InOrder(data)
    raise TypeError(
        f"data must be a ReplayBuffer, a function of the batch number, an object with a sample method, or an "
        f"iterable of batches, got {type(data).__name__}"
    )


def checked(feed: Feed, check: Callable[[Any], None]) -> Feed:
    """`feed` with a `check` of the first batch."""
    seen = False

    def draw(number: int) -> Any:
        nonlocal seen
        batch = feed(number)
        if not seen:
            check(batch)
            seen = True
        return batch

    return draw


class _InOrder:
    """Batches of an iterable in order, repeated; a resumed run skips the batches that were already used."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.once = iter(data) is data
        self.rest: Iterator[Any] = iter(data)
        self.next = 0

    def __call__(self, number: int) -> Any:
        if number < self.next and not self.once:
            self.rest, self.next = iter(self.data), 0
        while True:
            batch = self._draw()
            self.next += 1
            if self.once or self.next > number:
                return batch

    def _draw(self) -> Any:
        for batch in self.rest:
            return batch
        if self.once:
            raise ValueError(f"data ended after {self.next} batches; give an iterable that can be restarted")
        self.rest = iter(self.data)
        for batch in self.rest:
            return batch
        raise ValueError("data has no batches; give at least one")
