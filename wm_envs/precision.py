"""Float32 or bfloat16, chosen by short trials on this machine.

CPU flags are not enough. A CPU without bfloat16 emulates it, many times slower than float32, or fails (the LSTM of
oneDNN). Environment variables and builds of torch can disable what the CPU supports. So each kind of layer is tried
once per process. If bfloat16 works, the caller's own computation is timed too, because narrow layers and small batches
are slower in it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wm_envs.action import act_dim
from wm_envs.world_model import WorldModel

Kind = Literal["product", "convolution", "lstm"]
KINDS: tuple[Kind, ...] = ("product", "convolution", "lstm")
PRODUCTS: frozenset[Kind] = frozenset({"product"})
GAIN = 1.15
"""bfloat16 is chosen if it is this many times as fast as float32."""
EMULATED = 0.5
"""Below this speed relative to float32, the device does not support bfloat16 natively."""
REPEATS = 3
"""Timed runs in each precision, fewer if they take long, more if they are short."""
SHORT_S, ENOUGH_S = 0.02, 0.2
"""Least and most CPU time of a trial: the shortest of three runs of 0.1 ms is noise on a busy machine."""
CLOSE = 0.05
"""Largest relative error of a correct result in bfloat16."""

log = logging.getLogger(__name__)


def use_bf16(
    asked: bool | Literal["auto"], kinds: Collection[Kind], device: torch.device, *, training: bool = False
) -> bool:
    """Whether layers of `kinds` compute in bfloat16 on `device`.

    Args:
        asked: "auto": yes if all kinds are faster in bfloat16. True: yes if the device supports it for all kinds, else
            one line is logged. False: no.
        training: include backward passes.
    """
    if asked is False:
        return False
    speeds = {kind: bf16_speedup(kind, device.type, training) for kind in sorted(kinds)}
    if asked == "auto":
        return all(speed >= GAIN for speed in speeds.values())
    missing = [f"{kind} {_verdict(speed)}" for kind, speed in speeds.items() if speed < EMULATED]
    if missing:
        _report_once(f"bfloat16 is not supported on this {device.type} ({', '.join(missing)}); float32 is used instead")
    return not missing


def bf16_runs(kinds: Collection[Kind], device: torch.device, *, training: bool = False) -> bool:
    """Whether `device` supports bfloat16 for layers of all `kinds`, even if it is slower than float32."""
    return all(bf16_speedup(kind, device.type, training) >= EMULATED for kind in kinds)


def kinds_of(module: object) -> set[Kind]:
    """The kinds of layers in `module`; products only if it is not a torch module."""
    kinds: set[Kind] = {"product"}
    if not isinstance(module, nn.Module):
        return kinds
    if any(isinstance(layer, nn.LSTM) for layer in module.modules()):
        kinds.add("lstm")
    if any(weight.ndim == 4 for weight in module.parameters()):  # (out, in, high, wide)
        kinds.add("convolution")
    return kinds


@cache
def bf16_speedup(kind: Kind, device: str = "cpu", training: bool = False) -> float:
    """The speed of a small network in bfloat16 relative to float32; 0 if it fails.

    A trial takes less than 0.1 s of CPU time. Only CPUs are timed, because small networks on a GPU wait for kernel
    launches: on "cuda" the speed is infinite if the GPU supports bfloat16, elsewhere 1 if the network runs.

    Args:
        training: time forward and backward passes instead of forward passes only.
    """
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return math.inf
        return 0.0
    try:
        with _undisturbed(training):
            run = partial(_gradient if training else _output, *_example(kind, device))
            full, half = run(False), run(True)
            if not float((half - full).norm()) <= CLOSE * float(full.norm()):  # Nan is not close.
                return 0.0
            if device == "cpu":
                return _speedup(run)
            return 1.0
    except Exception:  # Kernels raise what they like.
        return 0.0


def step_in_bf16(asked: bool | Literal["auto"], model: WorldModel, rows: int, pixels: bool = False) -> bool:
    """Whether dreamed steps of `rows` rows compute in bfloat16.

    Args:
        asked: "auto": yes if a step of `model` is faster in bfloat16. True: yes if the device supports it, else one
            line is logged. False: no.
        pixels: include decoding.
    """
    kinds, see = set(PRODUCTS), model.feat
    if pixels:
        kinds, see = kinds_of(model) - {"lstm"}, model.decode  # A single step of an LSTM is made of products.
    if asked != "auto":
        return use_bf16(asked, kinds, model.device)
    latent = model.initial(rows)
    act = torch.zeros(rows, act_dim(model.act_space), device=model.device)
    return faster_in_bf16(lambda: see(model.step(latent, act).latent), kinds, model.device)


def faster_in_bf16(
    run: Callable[[], object], kinds: Collection[Kind], device: torch.device, *, training: bool = False
) -> bool:
    """Whether `run`, which consists of layers of `kinds`, is faster in bfloat16.

    On a CPU, `run` is called up to eight times. On CUDA bfloat16 is assumed to be faster if it is supported, and on
    other devices float32.
    """
    if not bf16_runs(kinds, device, training=training):
        return False
    if device.type != "cpu":
        return device.type == "cuda"

    def cast(bf16: bool) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return run()

    try:
        with _undisturbed(training):
            cast(False), cast(True)
            return _speedup(cast) >= GAIN
    except Exception:  # Kernels raise what they like.
        return False


def _speedup(run: Callable[[bool], object]) -> float:
    """The speed of `run(True)` relative to `run(False)`: the ratio of their shortest times, measured alternately."""
    best, first = [math.inf, math.inf], time.thread_time()
    for repeat in count(1):
        for bf16 in (False, True):
            # The CPU time of this thread hardly depends on other processes.
            began = time.thread_time()
            run(bf16)
            best[bf16] = min(best[bf16], time.thread_time() - began)
        spent = time.thread_time() - first
        if best[False] < EMULATED / 2 * best[True] or spent > ENOUGH_S or (repeat >= REPEATS and spent > SHORT_S):
            break
    return best[False] / best[True]


def _output(net: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        out = net(x)
    result: Tensor = out[0] if isinstance(out, tuple) else out  # An LSTM returns its state too.
    return result.float()


def _gradient(net: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    loss = _output(net, x, bf16).square().mean()
    return torch.autograd.grad(loss, list(net.parameters()))[0].float()


def _example(kind: Kind, device: str) -> tuple[nn.Module, Tensor]:
    """A network of one kind, with the size of those in small models, and its input."""
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
    """In this context torch uses one thread, has gradients only for training, and keeps the caller's random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.set_grad_enabled(training):
            yield
    finally:
        torch.set_num_threads(threads)


def _verdict(speed: float) -> str:
    if speed:
        return f"{1 / speed:.0f} times as slow"
    return "fails"


@cache
def _report_once(line: str) -> None:
    log.warning(line)
