"""Faster versions of the dreamed step of `MDRNN` for CPUs; `mdrnn` contains the plain definitions with the
same results."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wm_envs.noise import Generator, draw_normal

if TYPE_CHECKING:
    from wm_agents.models.mdrnn import MDRNN, _MDRNNBase

MANY = 128
"""Minimum number of rows for which one product per component is faster than the whole head."""


def is_dream(h: Tensor) -> bool:
    """Whether `h` is on the CPU and no gradients are recorded, as in dreams that are played."""
    return h.is_cpu and not torch.is_grad_enabled()


def gains_by_component(h: Tensor) -> bool:
    """Whether `draw_by_component` is faster; never in bfloat16, in which the whole head is cheap."""
    return len(h) >= MANY and is_dream(h) and not torch.is_autocast_enabled("cpu")


def draw_by_component(memory: _MDRNNBase, h: Tensor, temperature: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """`MDRNN.draw` with one matrix product per component, of the rows that chose it: 1/K of the work of the head."""
    k, z, head = memory.gaussians, memory.latents, memory.gmm_linear
    tail = F.linear(h, head.weight[2 * k * z :], head.bias[2 * k * z :]).float()
    noise = memory.noise(len(h), temperature, generator, h.device)
    pick = memory.choose(tail[:, :k, None], noise, temperature)[:, 0]
    order = pick.argsort()
    parts = h.index_select(0, order).split(pick.bincount(minlength=k).tolist())
    weights = head.weight[: 2 * k * z].view(2, k, z, -1).transpose(0, 1).flatten(1, 2)  # (K, 2Z, H)
    biases = head.bias[: 2 * k * z].view(2, k, z).transpose(0, 1).flatten(1, 2)
    drawn = torch.cat([F.linear(*layer) for layer in zip(parts, weights, biases, strict=True)]).float()
    mus, logsigmas = torch.empty_like(drawn).index_copy_(0, order, drawn).chunk(2, dim=1)
    return memory.spread(mus, logsigmas, noise, temperature), tail[:, k:]


class RowStep:
    """`MDRNN.advance` and `MDRNN.draw` for one row, with NumPy and five matrix-vector products.

    The overhead of a torch operation exceeds the arithmetic of one row. The weights are views, so changes by training
    or loading apply here. If the weights moved to other memory, `of` makes a new object.
    """

    def __init__(self, memory: MDRNN) -> None:
        k, z, H = memory.gaussians, memory.latents, memory.hiddens
        self.where = _where(memory)
        self.gaussians, self.latents, self.hiddens = k, z, H
        weight_ih, self.recurrent, bias_ih, bias_hh = (p.detach() for p in memory.rnn.parameters())
        self.inputs = bias_ih, weight_ih
        self.bias: NDArray[np.float32] = bias_hh.numpy()
        weight, bias = memory.gmm_linear.weight.detach(), memory.gmm_linear.bias.detach()
        rows = list(zip(bias.split(z), weight.split(z)))
        self.mus, self.logsigmas = rows[:k], rows[k : 2 * k]
        self.tail = bias[2 * k * z :], weight[2 * k * z :]
        # The sigmoid is (1 + tanh(x / 2)) / 2, which cannot overflow.
        self.halves = np.repeat(np.array([0.5, 0.5, 1, 0.5], np.float32), H)

    @classmethod
    def of(cls, memory: MDRNN) -> RowStep:
        """The `RowStep` of `memory`, rebuilt if its weights are at other addresses."""
        step = _STEPS.get(memory)
        if step is None or step.where != _where(memory):
            step = _STEPS[memory] = cls(memory)
        return step

    def advance(self, z: Tensor, act: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the LSTM; all arrays are (1, ...)."""
        gates = torch.addmv(*self.inputs, torch.cat([act, z], dim=1)[0]).addmv_(self.recurrent, h[0]).numpy()
        gates += self.bias
        gates *= self.halves
        gates = np.tanh(gates, out=gates).reshape(4, self.hiddens)
        double = gates + 1  # Twice the sigmoid of i, f and o.
        new_c = double[1] * c.numpy()
        new_c += double[0] * gates[2]
        new_c *= 0.5
        new_h = np.tanh(new_c)
        new_h *= double[3]
        new_h *= 0.5
        return torch.from_numpy(new_h), torch.from_numpy(new_c)

    def draw(self, h: Tensor, temperature: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """z' (1, Z), and the outputs of the head for reward and termination (1, R + 1)."""
        tail = torch.addmv(*self.tail, h[0])
        logits, ends = tail.tolist()[: self.gaussians], tail[None, self.gaussians :]
        if temperature == 0:
            return torch.addmv(*self.mus[logits.index(max(logits))], h[0])[None], ends
        noise = draw_normal(1, 1 + self.latents, generator, h.device).numpy()
        pick = _choose(logits, float(noise[0, 0]), temperature)
        z = torch.addmv(*self.logsigmas[pick], h[0])[None].numpy()
        np.minimum(np.maximum(z, -7, out=z), 5, out=z)
        np.exp(z, out=z)
        z *= temperature**0.5
        z *= noise[:, 1:]
        z += torch.addmv(*self.mus[pick], h[0]).numpy()
        return torch.from_numpy(z), ends


_STEPS: WeakKeyDictionary[Any, RowStep] = WeakKeyDictionary()


def _where(memory: MDRNN) -> tuple[int, ...]:
    rnn, head = memory.rnn, memory.gmm_linear
    params = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0, head.weight, head.bias
    return tuple(cast(Tensor, p).data_ptr() for p in params)


def _choose(logits: list[float], normal: float, temperature: float) -> int:
    """The component chosen by inverse transform sampling, as in `MDRNN.choose`, for one row."""
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    chance = 0.5 * math.erfc(-normal * math.sqrt(0.5)) * sum(weights)
    return min(sum(edge < chance for edge in accumulate(weights)), len(weights) - 1)
