"""A dream as ONNX graphs, checked against PyTorch. Noise is an input, so that any source of randomness can be used.

    encode.onnx  obs, the latent, act (B, A), first (B,) bool -> the next latent
    step.onnx    the latent, act, noise (B, noise_dim), temperature () -> the next latent, rew (B,), cont (B,), end (B,)
    decode.onnx  the latent -> obs
    feat.onnx    the latent -> feat (B, F)
    policy_<kind>.onnx  feat -> outputs (B, A): `wm_envs.action.decode_action` makes actions of them; the largest entry
                        is a discrete action, and continuous ones are clipped to [-1, 1]
    dream.json   names and sizes of all inputs, cut_off, horizon, temperature, frame rate
    starts.safetensors  initial latents

The batch axis B is dynamic; graphs of DreamerV3 take one row. Actions are encoded as in `wm_envs.action`.
"""

from __future__ import annotations

import io
import json
import shutil
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

from policies.actor_critic import ActorPolicy
from policies.linear import LinearPolicy
from policies.mlp import ACTIVATIONS, MLPPolicy
from policies.policy import sample_actions
from wm_agents.models.ensemble import Ensemble
from wm_agents.models.model import Model
from wm_agents.models.vision import ConvVAE
from wm_agents.models.vmc import VMC
from wm_agents.pretrained import check_dream, dream_of, load_model, load_policy, load_starts
from wm_agents.web.export_folder import MARK, export_folder
from wm_envs.action import encode_action
from wm_envs.noise import RowStreams
from wm_envs.world_model import Latent, Step

OPSET = 18
ROWS = 2
"""Rows of the batch that is traced; models treat one row in another way."""
STATIC = ("dreamerv3", "objects")
"""Families whose code has the number of rows as a constant: their graphs take one row."""
TOLERANCE = 1e-3
"""Largest difference from PyTorch, relative to the size of the values (at least 1)."""


class GivenNoise(RowStreams):
    """Noise that was drawn before: the columns of a tensor (B, D), in order."""

    def __init__(self, noise: Tensor) -> None:
        self.noise, self.used = noise, 0

    def normal(self, dim: int) -> Tensor:
        self.used += dim
        return self.noise[:, self.used - dim : self.used]


class _Counting(RowStreams):
    """Counts how much noise a step takes."""

    def __init__(self, rows: int) -> None:
        super().__init__([np.random.default_rng(0) for _ in range(rows)], block=1 << 15)
        for row in range(rows):
            self.restart(row)
        self.used = 0

    def normal(self, dim: int) -> Tensor:
        self.used += dim
        return super().normal(dim)


class Graph(NamedTuple):
    """A function of tensors, with the names of its inputs and outputs."""

    run: Callable[..., tuple[Tensor, ...]]
    inputs: dict[str, Tensor]
    outputs: list[str]


def export_onnx(model: str, out: Path, steps: int = 100) -> dict[str, Any]:
    """Write the graphs of a saved dream to `out` and check them over `steps` steps.

    Returns:
        `files`, `skipped` (by name, with the reason) and `difference`, the largest from PyTorch by graph.

    Raises:
        ValueError: a part of the model has no ONNX operator, or the graphs differ from PyTorch.
        FileExistsError: `out` contains other files.
    """
    net, artifact = load_model(model)
    check_dream(artifact)
    net.requires_grad_(False)  # Weights become constants.
    starts = load_starts(artifact)
    policies, skipped = _policies(net, artifact)
    graphs = {**_graphs(net, starts), **policies}
    with export_folder(out) as folder:
        for name, graph in graphs.items():
            _write(folder / f"{name}.onnx", graph, net)
        run = {name: Session(folder / f"{name}.onnx") for name in graphs}
        difference = compare(net, starts, graphs, run, steps)
        config = {
            "family": net.family,
            "real": artifact.config["real"],
            "temperature": artifact.config["temperature"],
            "horizon": artifact.config["horizon"],
            "cut_off": dream_of(artifact).cut_off,
            "fps": artifact.config["fps"],
            "graphs": {name: _signature(graph, net, run[name].inputs) for name, graph in graphs.items()},
        }
        shutil.copyfile(artifact.path / "starts.safetensors", folder / "starts.safetensors")
        (folder / MARK).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return {"files": sorted(path.name for path in out.iterdir()), "skipped": skipped, "difference": difference}


def _graphs(net: Model, starts: dict[str, Latent]) -> dict[str, Graph]:
    rows = 1 if net.family in STATIC else ROWS
    like = {key: leaf[:rows].float() for key, leaf in next(iter(starts.values())).items()}
    keys = list(like)
    act = torch.zeros(rows, net.actions)
    counting = _Counting(rows)
    with torch.no_grad():
        obs = net.decode(like)
        net.step(like, act, temperature=1.0, generator=counting)
    noise = torch.zeros(rows, counting.used)
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
    return obs if tuple(obs.shape[1:]) == net.obs_space.shape else obs.permute(0, 3, 1, 2)


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


def _policies(net: Model, artifact: Any) -> tuple[dict[str, Graph], dict[str, str]]:
    """The graphs of the policies, and the reason why others have none."""
    graphs, skipped = {}, {}
    feat = torch.zeros(1 if net.family in STATIC else ROWS, net.feat_dim)
    for kind in sorted(artifact.policies):
        policy: Any = load_policy(net, artifact, kind)
        if isinstance(policy, LinearPolicy):
            run = _linear(policy)
        elif isinstance(policy, MLPPolicy):
            run = _mlp(policy)
        elif isinstance(policy, ActorPolicy):
            run = _actor(policy)
        else:
            skipped[f"policy_{kind}"] = f"{kind} searches with the model at every step, which is not a graph"
            continue
        graphs[f"policy_{kind}"] = Graph(run, {"feat": feat}, ["outputs"])
    return graphs, skipped


def _linear(policy: LinearPolicy) -> Callable[[Tensor], tuple[Tensor]]:
    weights = torch.from_numpy(policy.weights.reshape(-1, policy.weights.shape[-1]))
    clips = torch.tensor([name == "clip" for name in policy.squash])

    def run(feat: Tensor) -> tuple[Tensor]:
        outs = F.linear(feat, weights[:, :-1], weights[:, -1])
        if not policy.squash:
            return (outs,)
        units = torch.tanh(outs)
        return (torch.where(clips, 2 * units.clamp(min=0) - 1, units),)

    return run


def _mlp(policy: MLPPolicy) -> Callable[[Tensor], tuple[Tensor]]:
    bounds = [
        torch.from_numpy(np.ravel(getattr(policy.space, name, 0.0)).astype(np.float32)) for name in ("low", "high")
    ]

    def run(x: Tensor) -> tuple[Tensor]:
        *hidden, (weight, bias) = policy.layers
        for w, b in hidden:
            x = ACTIVATIONS[policy.activation](F.linear(x, w, b))
        outs = F.linear(x, weight, bias)
        if policy.squash == "clip":  # In the environment's own units.
            low, high = bounds
            return ((2 * (outs - low) / (high - low) - 1).clamp(-1, 1),)
        return (torch.tanh(outs) if policy.squash == "tanh" else outs,)

    return run


def _actor(policy: ActorPolicy) -> Callable[[Tensor], tuple[Tensor]]:
    return lambda feat: (policy.actor(feat).mode(),)


class _Module(nn.Module):
    """A function with its weights as constants."""

    def __init__(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.run(*given)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """`torch.nn.functional.rms_norm` over the last axis."""
    small = torch.finfo(x.dtype).eps if eps is None else eps
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + small)
    return unit if weight is None else unit * weight


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


def _write(path: Path, graph: Graph, net: Model) -> None:
    named = [name for name, given in graph.inputs.items() if given.ndim] + graph.outputs
    axes = {} if net.family in STATIC else {name: {0: "B"} for name in named}
    names: dict[str, Any] = {"input_names": list(graph.inputs), "output_names": graph.outputs, "dynamic_axes": axes}
    try:
        # The tracer warns, and prints, wherever Python looks at a shape; the comparison afterwards is the check.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), _exportable(), torch.no_grad():
            warnings.simplefilter("ignore")
            inputs = tuple(graph.inputs.values())
            torch.onnx.export(_Module(graph.run), inputs, str(path), opset_version=OPSET, dynamo=False, **names)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.stem} of {net.family} cannot be exported to ONNX: {str(error).splitlines()[0]}"
        ) from error


def _signature(graph: Graph, net: Model, used: list[str]) -> dict[str, Any]:
    """Inputs and outputs of a graph; the exporter drops inputs that nothing depends on."""
    rows: Any = 1 if net.family in STATIC else "B"
    given = {name: graph.inputs[name] for name in used}
    shapes = {name: [rows, *like.shape[1:]] if like.ndim else [] for name, like in given.items()}
    inputs = {name: {"shape": shapes[name], "dtype": str(like.dtype)[6:]} for name, like in given.items()}
    return {"inputs": inputs, "outputs": graph.outputs}


def compare(
    net: Model, starts: dict[str, Latent], graphs: dict[str, Graph], run: dict[str, Session], steps: int
) -> dict[str, float]:
    """The largest difference between written graphs and PyTorch, by graph, over `steps` steps of up to 4 rows.

    Both follow their own latents, with the same noise and random actions.

    Raises:
        ValueError: one is above `TOLERANCE`.
    """
    rng = np.random.default_rng(0)
    bank = next(iter(starts.values()))
    rows = 1 if net.family in STATIC else 4
    mine = {key: leaf[:rows].float() for key, leaf in bank.items()}
    theirs = {f"latent_{key}": leaf.numpy() for key, leaf in mine.items()}
    worst = dict.fromkeys(graphs, 0.0)
    noise_dim = graphs["step"].inputs["noise"].shape[1]
    for t in range(steps):
        heat = (1.0, 0.6)[t % 2]
        acts = encode_action(net.act_space, sample_actions(net.act_space, len(next(iter(mine.values()))), rng))
        noise = rng.standard_normal((len(acts), noise_dim)).astype(np.float32)
        with torch.no_grad():
            given = GivenNoise(torch.from_numpy(noise))
            done = net.step(mine, torch.from_numpy(acts), temperature=heat, generator=given)
        out = run["step"]({**theirs, "act": acts, "noise": noise, "temperature": np.array(heat, np.float32)})
        mine = done.latent
        theirs = {f"latent_{key}": out[f"next_{key}"] for key in mine}
        pairs = {"step": [(out["rew"], done.rew), (out["cont"], done.cont)]}
        pairs["step"] += [(out[f"next_{key}"], leaf) for key, leaf in mine.items()]
        if done.end is not None:
            pairs["step"].append((out["end"].astype(np.float32), done.end.float()))
        with torch.no_grad():
            obs, feat = net.decode(mine), net.feat(mine)
            pairs["decode"] = [(run["decode"](theirs)["obs"], obs)]
            pairs["feat"] = [(run["feat"](theirs)["feat"], feat)]
            first = torch.tensor([True, *[False] * (len(acts) - 1)])
            seen = net.encode(obs, mine, torch.from_numpy(acts), first)
            coded = run["encode"]({"obs": obs.numpy(), **theirs, "act": acts, "first": first.numpy()})
            pairs["encode"] = [(coded[f"next_{key}"], leaf) for key, leaf in seen.items()]
            for name in graphs.keys() - pairs.keys():
                pairs[name] = [(run[name]({"feat": feat.numpy()})["outputs"], graphs[name].run(feat)[0])]
        for name, compared in pairs.items():
            worst[name] = max(worst[name], *(_difference(name, net, got, want.numpy()) for got, want in compared))
    if wrong := {name: value for name, value in worst.items() if not value <= TOLERANCE}:
        raise ValueError(
            f"the ONNX graphs of {net.family} differ from PyTorch by {wrong}; at most {TOLERANCE} is allowed"
        )
    return worst


def _difference(name: str, net: Model, got: NDArray[Any], want: NDArray[Any]) -> float:
    """The largest difference relative to the size of the values; levels of images may round to a neighbour."""
    off = float(np.max(np.abs(got.astype(np.float64) - want), initial=0))
    if want.dtype == np.uint8:
        return 0.0 if off <= 1 else off
    return off / max(1.0, float(np.max(np.abs(want), initial=0)))


class Session:
    """A graph in ONNX Runtime, on one thread; values that it does not use are left out."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs: list[str] = [given.name for given in self.session.get_inputs()]
        self.outputs: list[str] = [made.name for made in self.session.get_outputs()]

    def __call__(self, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self.session.run(self.outputs, {name: given[name] for name in self.inputs})))
