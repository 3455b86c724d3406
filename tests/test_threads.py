"""Few rows are dreamed on one thread, many on all of PyTorch's; the caller's number of threads stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from toy import Toy, toy_starts

from wm_envs.dream import DreamEnv, DreamVectorEnv
from wm_envs.threads import FRAMES, ROWS, few_threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


class Watched(Toy):
    """Records the threads that each step and each decoding may use."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.used: list[int] = []

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self.used.append(torch.get_num_threads())
        return super().step(*args, **kwargs)

    def decode(self, latent: Any) -> Any:
        self.used.append(torch.get_num_threads())
        return super().decode(latent)


@pytest.mark.parametrize(
    ("pixels", "num", "threads"),
    [(False, 3, 1), (False, ROWS - 1, 1), (False, ROWS, 2), (True, FRAMES - 1, 1), (True, FRAMES, 2)],
)
def test_few_rows_are_stepped_and_decoded_on_one_thread(pixels: bool, num: int, threads: int) -> None:
    model = Watched(pixels=pixels)
    envs = DreamVectorEnv(model, toy_starts(), num)
    envs.reset(seed=0)
    envs.step(np.zeros((num, 1), np.float32))
    envs.frames()
    assert model.used == [threads] * 4


def test_a_single_dream_uses_one_thread() -> None:
    model = Watched(pixels=True)
    env = DreamEnv(model, toy_starts())
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    assert model.used == [1] * 3


def test_a_model_sets_from_how_many_rows_it_gains_from_threads() -> None:
    class Short(Toy):
        threaded_from = 4

    with few_threads(Short(), 3, images=False):
        assert torch.get_num_threads() == 1
    with few_threads(Short(), 4, images=False):
        assert torch.get_num_threads() == 2


def test_the_callers_threads_are_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="broken"), few_threads(Toy(), 1, images=False):
        raise RuntimeError("broken")
