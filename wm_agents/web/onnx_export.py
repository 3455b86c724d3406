"""A dream as ONNX graphs in a folder, checked against PyTorch. Noise is an input, so that any generator can be used.

    encode.onnx, step.onnx, decode.onnx, feat.onnx      see `wm_agents.models.onnx_graphs`
    policy_<kind>.onnx  feat -> outputs (B, A): `wm_envs.action.decode_action` makes actions of them; the largest entry
                        is a discrete action, and continuous ones are clipped to [-1, 1]
    dream.json   names and sizes of all inputs, cut_off, horizon, temperature, frame rate
    starts.safetensors  initial latents

Actions are encoded as in `wm_envs.action`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from policies.actor_critic import ActorPolicy
from policies.linear import LinearPolicy
from policies.mlp import ACTIVATIONS, MLPPolicy
from policies.policy import sample_actions
from wm_agents.models.model import Model
from wm_agents.models.onnx_graphs import ROWS, STATIC, GivenNoise, Graph, Session, graphs_of, onnx_of
from wm_agents.pretrained import check_dream, dream_of, load_model, load_policy, load_starts
from wm_agents.web.export_folder import MARK, export_folder
from wm_envs.action import encode_action
from wm_envs.world_model import Latent

TOLERANCE = 1e-3
"""Largest difference from PyTorch, relative to the size of the values (at least 1)."""


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
    graphs = {**graphs_of(net, starts), **policies}
    with export_folder(out) as folder:
        for name, graph in graphs.items():
            (folder / f"{name}.onnx").write_bytes(onnx_of(name, graph, net))
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

    Each continues from its own previous latents; both get the same noise and the same random actions.

    Raises:
        ValueError: a difference is above `TOLERANCE`.
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
            f"the ONNX graphs of {net.family} differ from PyTorch by {wrong}; at most {TOLERANCE} is allowed. Rounding "
            "alone can do that to DreamerV3 models after few updates, whose rewards average values up to 5e8"
        )
    return worst


def _difference(name: str, net: Model, got: NDArray[Any], want: NDArray[Any]) -> float:
    """The largest difference relative to the size of the values; levels of images may round to a neighbour."""
    off = float(np.max(np.abs(got.astype(np.float64) - want), initial=0))
    if want.dtype == np.uint8:
        return 0.0 if off <= 1 else off
    return off / max(1.0, float(np.max(np.abs(want), initial=0)))
