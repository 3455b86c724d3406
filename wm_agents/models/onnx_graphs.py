"""A world model as graphs of ONNX operators, traced from PyTorch, and their execution in ONNX Runtime.

    encode  obs, the latent, act (B, A), first (B,) bool -> the next latent
    step    the latent, act, noise (B, noise_dim), temperature () -> the next latent, rew (B,), cont (B,), end (B,)
    decode  the latent -> obs
    feat    the latent -> feat (B, F)

The batch axis B is dynamic, except in graphs of the families in `STATIC`, which take one row.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_agents.models.ensemble import Ensemble
from wm_agents.models.model import Model
from wm_agents.models.vision import ConvVAE
from wm_agents.models.vmc import VMC
from wm_envs.noise import RowStreams
from wm_envs.world_model import Latent, Step

OPSET = 18
ROWS = 2
"""Rows of the batch that is traced; models treat one row in another way."""
LACKING = ("objects",)
"""Families without an ONNX form."""
STATIC = ("dreamerv3",)
"""Families whose code has the number of rows as a constant: their graphs take one row."""


class Graph(NamedTuple):
    """A function of tensors, with the names of its inputs and outputs."""

    run: Callable[..., tuple[Tensor, ...]]
    inputs: dict[str, Tensor]
    outputs: list[str]


def graphs_of(net: Model, starts: dict[str, Latent]) -> dict[str, Graph]:
    """The graphs `encode`, `step`, `decode` and `feat` of a model; its weights must not require gradients.

    Raises:
        ValueError: the family has no ONNX form.
    """
    if net.family in LACKING:
        raise ValueError(
            f"models of the family {net.family!r} cannot be exported to ONNX, because their lists of objects have "
            "operators that ONNX lacks; `wm export --web` writes them as a page, and backend='torch' computes them"
        )
    rows = 1 if net.family in STATIC else ROWS
    like = {key: leaf[:rows].float() for key, leaf in next(iter(starts.values())).items()}
    keys = list(like)
    act = torch.zeros(rows, net.actions)
    with torch.no_grad():
        obs = net.decode(like)
    noise = torch.zeros(rows, sum(randomness_of(net, like).draws))
    stepper = {"ensemble": _step_ensemble, "vmc": _step_vmc}.get(net.family, _step_any)

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        *leaves, act, noise, temperature = given
        done = stepper(net, dict(zip(keys, leaves)), act, noise, temperature)
        end = torch.zeros_like(done.cont, dtype=torch.bool) if done.end is None else done.end
        return (*(done.latent[key].float() for key in keys), done.rew.float(), done.cont.float(), end)

    def encode(obs: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        *leaves, act, first = given
        latent = net.encode(obs, dict(zip(keys, leaves)), act, first)
        return tuple(latent[key].float() for key in keys)

    latent = {f"latent_{key}": leaf for key, leaf in like.items()}
    after = [f"next_{key}" for key in keys]
    first = torch.zeros(rows, dtype=torch.bool)
    # Not 1, for which models have shorter code.
    step_inputs = {**latent, "act": act, "noise": noise, "temperature": torch.tensor(0.9)}
    return {
        "encode": Graph(encode, {"obs": obs, **latent, "act": act, "first": first}, after),
        "step": Graph(step, step_inputs, [*after, "rew", "cont", "end"]),
        "decode": Graph(lambda *leaves: (_decode(net, dict(zip(keys, leaves))),), latent, ["obs"]),
        "feat": Graph(lambda *leaves: (net.feat(dict(zip(keys, leaves))),), latent, ["feat"]),
    }


def _decode(net: Model, latent: Latent) -> Tensor:
    """`Model.decode` of all rows at once."""
    if not isinstance(net, VMC) or not isinstance(net.vision, ConvVAE):
        return net.decode(latent)
    obs = net.vision.decoder.draw(latent["z"], net.vision.still)
    if tuple(obs.shape[1:]) == net.obs_space.shape:
        return obs
    return obs.permute(0, 3, 1, 2)


def _step_any(net: Model, latent: Latent, act: Tensor, noise: Tensor, temperature: Tensor) -> Step:
    heat: Any = temperature
    done: Step = net.step(latent, act, temperature=heat, generator=GivenNoise(noise))
    return done


def _step_ensemble(net: Model, latent: Latent, act: Tensor, noise: Tensor, temperature: Tensor) -> Step:
    """`Ensemble.step` without sorting rows by member: all members predict, and each row takes one."""
    assert isinstance(net, Ensemble)
    scale, obs = net.scale, latent["obs"]
    uniform = torch.special.ndtr(noise[:, -2:])
    member = (uniform[:, 0] * net.members).long().clamp(max=net.members - 1)
    row = torch.arange(net.members)[:, None] == member  # (M, B)
    x = torch.cat([scale.normal(obs), act], dim=1)

    def of_member(outs: Tensor) -> Tensor:
        mine: Tensor = (outs * row[..., None]).sum(0)
        return mine

    mean, logvar = of_member(net.change(x)).chunk(2, dim=1)
    change = mean + torch.exp(0.5 * (-10 + 12 * torch.sigmoid(logvar))) * noise[:, :-2] * temperature**0.5
    ahead = scale.plausible(obs + change * scale.change_std)
    rew = of_member(net.reward(torch.cat([x, (ahead - obs) / scale.change_std], dim=1)))[:, 0]
    end, end_rew = of_member(net.end(x)).unbind(1)
    chance = torch.sigmoid(end - float(np.log(net.cfg.term_weight)))
    over = chance > uniform[:, 1]
    return Step({"obs": ahead}, torch.where(over, end_rew * scale.end_rew, rew * scale.rew), 1 - chance, over)


def _step_vmc(net: Model, latent: Latent, act: Tensor, noise: Tensor, temperature: Tensor) -> Step:
    """`VMC.step` without gathering by component: the parameters of all are summed with the drawn one at weight 1."""
    assert isinstance(net, VMC)
    memory = net.memory
    k, z, num = memory.gaussians, memory.latents, memory.choices
    h, c = memory.advance(latent["z"], act, latent["h"], latent["c"])
    head = memory.gmm_linear(h)
    mus, logsigmas = (head[:, i * k * z : (i + 1) * k * z].unflatten(1, (k, z)) for i in range(2))
    logits = head[:, 2 * k * z : memory.num_mixture].unflatten(1, (k, num))
    edges = (logits / temperature).softmax(1).cumsum(1)
    chance = torch.special.ndtr(noise[:, :num])[:, None]
    pick = (edges < chance).long().sum(1, keepdim=True).clamp(max=k - 1) == torch.arange(k)[None, :, None]
    mu, logsigma = ((part * pick).sum(1) for part in (mus, logsigmas))
    ahead = mu + logsigma.clamp(-7, 5).exp() * temperature**0.5 * noise[:, num:]
    rews, term = memory.ends(head[:, memory.num_mixture :])
    rew: Tensor = rews * net.rew_scale if net.classes is None else net.classes.expected(rews)
    return Step({"z": ahead, "h": h, "c": c}, rew, torch.sigmoid(-term))


class GivenNoise(RowStreams):
    """Noise that was drawn before: the columns of a tensor (B, D), in order."""

    def __init__(self, noise: Tensor) -> None:
        self.noise, self.used = noise, 0

    def normal(self, dim: int) -> Tensor:
        self.used += dim
        return self.noise[:, self.used - dim : self.used]


class _Counting(RowStreams):
    """Notes how much noise a step takes, by draw."""

    def __init__(self, rows: int) -> None:
        super().__init__([np.random.default_rng(0) for _ in range(rows)], block=1 << 15)
        for row in range(rows):
            self.restart(row)
        self.draws: list[int] = []

    def normal(self, dim: int) -> Tensor:
        self.draws.append(dim)
        return super().normal(dim)


class Randomness(NamedTuple):
    """What a step draws."""

    draws: list[int]
    """Standard normal values per row, draw by draw; the input `noise` of a graph has all of them."""
    ends: bool
    """It samples termination; else a threshold on `cont` decides."""


@torch.no_grad()
def randomness_of(net: Model, like: Latent) -> Randomness:
    """What a step of `net` draws, found by one step from `like`."""
    rows = len(next(iter(like.values())))
    counting = _Counting(rows)
    done = net.step(like, torch.zeros(rows, net.actions), temperature=1.0, generator=counting)
    return Randomness(counting.draws, done.end is not None)


class _Module(nn.Module):
    """A function with its weights as constants."""

    def __init__(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.run(*given)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """`torch.nn.functional.rms_norm` over the last axis."""
    if eps is None:
        eps = torch.finfo(x.dtype).eps
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return unit
    return unit * weight


def _diff(x: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> Tensor:
    """`torch.diff` of first order."""
    parts = [part for part in (prepend, x, append) if part is not None]
    dim = dim % x.ndim
    joined = torch.cat(parts, dim)
    return joined.narrow(dim, 1, joined.shape[dim] - 1) - joined.narrow(dim, 0, joined.shape[dim] - 1)


REPLACED: list[tuple[Any, str, Callable[..., Tensor]]] = [
    (torch.special, "ndtr", lambda x: 0.5 * (1 + torch.erf(x * 0.5**0.5))),
    (torch, "expm1", lambda x: x.exp() - 1),
    (torch.Tensor, "expm1", lambda x: x.exp() - 1),
    (torch, "diff", _diff),
    (F, "rms_norm", _rms_norm),
]
"""Functions that the exporter lacks or that fix the batch, and what replaces them."""


@contextmanager
def _exportable() -> Iterator[None]:
    """Within, the functions of `REPLACED` are replaced."""
    plain = [getattr(place, name) for place, name, _ in REPLACED]
    for place, name, made in REPLACED:
        setattr(place, name, made)
    try:
        yield
    finally:
        for (place, name, _), before in zip(REPLACED, plain):
            setattr(place, name, before)


def onnx_of(name: str, graph: Graph, net: Model) -> bytes:
    """The ONNX file of a graph.

    Raises:
        ValueError: an operator has no ONNX form.
    """
    made: Any = io.BytesIO()  # The annotation of `export` lacks files.
    named = [name for name, given in graph.inputs.items() if given.ndim] + graph.outputs
    axes = {}
    if net.family not in STATIC:
        axes = {name: {0: "B"} for name in named}
    names: dict[str, Any] = {"input_names": list(graph.inputs), "output_names": graph.outputs, "dynamic_axes": axes}
    try:
        # The tracer warns, and prints, wherever Python looks at a shape; the comparison afterwards is the check.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), _exportable(), torch.no_grad():
            warnings.simplefilter("ignore")
            inputs = tuple(graph.inputs.values())
            torch.onnx.export(_Module(graph.run), inputs, made, opset_version=OPSET, dynamo=False, **names)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} of {net.family} cannot be exported to ONNX: {str(error).splitlines()[0]}") from error
    return bytes(made.getvalue())


class Session:
    """A graph in ONNX Runtime, on one thread; values that it does not use are left out."""

    def __init__(self, graph: Path | bytes) -> None:
        file = graph if isinstance(graph, bytes) else str(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs: list[str] = [given.name for given in self.session.get_inputs()]
        self.outputs: list[str] = [made.name for made in self.session.get_outputs()]

    def __call__(self, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self.session.run(self.outputs, {name: given[name] for name in self.inputs})))
