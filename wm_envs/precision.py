"""Whether to compute in bfloat16: each kind of layer is tried once a process, as CPU flags promise more than is there.

A CPU without bfloat16 emulates it, many times slower than float32, or has no kernel at all (oneDNN's LSTM); environment
variables and builds of torch can take away what the CPU has.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["product", "convolution", "lstm"]
KINDS: tuple[Kind, ...] = ("product", "convolution", "lstm")
PRODUCTS: frozenset[Kind] = frozenset({"product"})
GAIN = 1.15
"""bfloat16 is chosen where it is this many times as fast as float32."""
EMULATED = 0.5
"""Where it is slower than this, the device has no bfloat16 of its own."""
REPEATS = 3
CLOSE = 0.05
"""Largest relative error of what is right in bfloat16."""

log = logging.getLogger(__name__)


def use_bf16(
    asked: bool | Literal["auto"], kinds: Collection[Kind], device: torch.device, *, training: bool = False
) -> bool:
    """Whether layers of `kinds` compute in bfloat16 on `device`.

    Args:
        asked: "auto" for where all of them are faster in it; True for wherever the device has it for all of them, with
            one line in the log where it has not; False for never.
        training: whether there are backward passes.
    """
    if asked is False:
        return False
    speeds = {kind: bf16_speedup(kind, device.type, training) for kind in sorted(kinds)}
    if asked == "auto":
        return all(speed >= GAIN for speed in speeds.values())
    missing = [f"{kind} {_verdict(speed)}" for kind, speed in speeds.items() if speed < EMULATED]
    if missing:
        _report_once(
            f"bfloat16 was asked for, but this {device.type} has none ({', '.join(missing)}); float32 is used instead"
        )
    return not missing


def bf16_runs(kinds: Collection[Kind], device: torch.device, *, training: bool = False) -> bool:
    """Whether `device` has bfloat16 for `kinds`, be it faster or not."""
    return all(bf16_speedup(kind, device.type, training) >= EMULATED for kind in kinds)


def kinds_of(module: object) -> set[Kind]:
    """The kinds of layers in `module`; whatever is not a torch module counts as products."""
    layers = list(module.modules()) if isinstance(module, nn.Module) else []
    kinds: set[Kind] = {"product"}
    if any(isinstance(layer, nn.LSTM) for layer in layers):
        kinds.add("lstm")
    if any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers):
        kinds.add("convolution")
    return kinds


@cache
def bf16_speedup(kind: Kind, device: str = "cpu", training: bool = False) -> float:
    """How many times as fast as in float32 a small network of one kind is in bfloat16; 0 where it fails.

    Takes a few hundredths of a second. On "cuda" nothing is timed, as what is small waits for launches: infinity where
    the GPU has bfloat16.

    Args:
        training: forward and backward, not forward alone.
    """
    if device == "cuda":
        return math.inf if torch.cuda.is_bf16_supported(including_emulation=False) else 0.0
    try:
        with _undisturbed(training):
            run = partial(_gradient if training else _output, *_example(kind, device))
            full, half = run(False), run(True)
            if not float((half - full).norm()) <= CLOSE * float(full.norm()):  # Nan is not close.
                return 0.0
            return _speedup(run)
    except Exception:  # Kernels raise what they like.
        return 0.0


def faster_in_bf16(device: torch.device, run: Callable[[], object]) -> bool:
    """Whether `run`, which takes no gradients, is faster in bfloat16 on `device`; it is called some ten times.

    For what `use_bf16` allows: networks that are small, or see few rows, may lose by it all the same. On CUDA, where
    nothing is timed, they are taken to gain.
    """
    if device.type == "cuda":
        return True

    def cast(bf16: bool) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return run()

    try:
        with _undisturbed(False):
            cast(False), cast(True)
            return _speedup(cast) >= GAIN
    except Exception:  # Kernels raise what they like.
        return False


def _speedup(run: Callable[[bool], object]) -> float:
    """How many times as fast `run(True)` is as `run(False)`: the ratio of the shortest times, taken by turns."""
    best = [math.inf, math.inf]
    for _ in range(REPEATS):
        for bf16 in (False, True):
            # The processor's time of this thread, which other work on the machine hardly changes.
            began = time.thread_time()
            run(bf16)
            best[bf16] = min(best[bf16], time.thread_time() - began)
        if best[False] < EMULATED / 2 * best[True]:
            break
    return best[False] / best[True]


def _output(net: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        out = net(x)
    result: Tensor = out[0] if isinstance(out, tuple) else out  # An LSTM gives its state besides.
    return result.float()


def _gradient(net: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    loss = _output(net, x, bf16).square().mean()
    return torch.autograd.grad(loss, list(net.parameters()))[0].float()


def _example(kind: Kind, device: str) -> tuple[nn.Module, Tensor]:
    """A network of one kind, about as large as those of the smaller models, and what it sees."""
    if kind == "product":
        net: nn.Module = nn.Sequential(nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256))
        return net.to(device), torch.randn(512, 256).to(device)
    if kind == "lstm":
        return nn.LSTM(32, 256).to(device), torch.randn(8, 64, 32).to(device)
    net = nn.Sequential(nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1))
    layout: Any = {"device": device, "memory_format": torch.channels_last}
    return net.to(**layout), torch.randn(4, 32, 32, 32).to(**layout)


@contextmanager
def _undisturbed(training: bool) -> Iterator[None]:
    """One thread, with gradients where they are asked for, and random numbers that nobody else notices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.set_grad_enabled(training):
            yield
    finally:
        torch.set_num_threads(threads)


def _verdict(speed: float) -> str:
    return f"{1 / speed:.0f} times as slow" if speed else "fails"


@cache
def _report_once(line: str) -> None:
    log.warning(line)
