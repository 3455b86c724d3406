"""Gives a saved V-M-C dream the fast narrow decoder, trained on the images that its own decoder draws.

    python scripts/fit_decoder.py Dream-CarRacing-v0 runs/carracing-narrow

The latents are the initial latents of the dream, and those of dreamed steps with random actions at temperatures 1.0 and
1.3. Encoder, M, initial latents and controllers are copied unchanged, so scores on latents do not change. The script
prints the difference of new and old images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from wm_agents.checkpoint import Artifact, save_artifact
from wm_agents.models.vmc import VMC
from wm_agents.pretrained import load_model, load_starts
from wm_agents.training.config import TrainingConfig
from wm_agents.training.fit_decoder import HELD_OUT, fit_decoder, with_narrow_decoder
from wm_envs.dream import DreamVectorEnv


def dreamed_latents(model: VMC, artifact: Artifact, rows: int = 256, steps: int = 75) -> Tensor:
    """Latents z of the initial latents and of dreams with random actions, shuffled: (N, Z)."""
    starts = load_starts(artifact)
    parts = [bank["z"] for bank in starts.values()]
    for seed, temperature in enumerate((1.0, 1.3)):
        envs = DreamVectorEnv(model, starts, rows, obs="latent", start="anywhere", temperature=temperature)
        envs.reset(seed=seed * rows)
        envs.action_space.seed(seed)
        for _ in range(steps):
            parts.append(torch.from_numpy(envs.step(envs.action_space.sample())[0][:, : model.z_dim].copy()))
    z = torch.cat(parts)
    return z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))]


def difference(model: VMC, teacher: VMC, z: Tensor) -> str:
    """The difference of the images of `model` and `teacher`, in grey levels."""
    with torch.inference_mode():
        off = (model.vision.decode_obs(z).int() - teacher.vision.decode_obs(z).int()).abs().float()
    return f"mean {off.mean():.2f}, rms {off.square().mean().sqrt():.2f}, more than 8: {(off > 8).float().mean():.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="id of a shipped dream, or a directory")
    parser.add_argument("out", type=Path, help="directory of the new model; the state of the fit is in OUT.fit")
    parser.add_argument("--steps", type=int, default=12_000, help="updates")
    parser.add_argument("--dreamed", type=int, default=75, help="number of dreamed steps for the latents")
    args = parser.parse_args()
    teacher, artifact = load_model(args.model, "cpu")
    if not isinstance(teacher, VMC):
        raise SystemExit(f"{args.model} is a model of the family {teacher.family!r}; only vmc has this decoder")
    z = dreamed_latents(teacher, artifact, steps=args.dreamed)
    model = with_narrow_decoder(teacher)
    every = max(args.steps // 10, 1)
    cfg = TrainingConfig(
        total_steps=args.steps, batch_size=64, learning_rate=2e-3, scheduler="cosine", warmup_steps=min(200, every),
        eval_interval=every, save_interval=every, device="cpu",
    )  # fmt: skip
    fit_decoder(model, teacher, z, cfg, args.out.with_suffix(".fit"))
    config = {name: value for name, value in artifact.config.items() if name not in ("files", "format_version")}
    config["model"] = model.cfg.to_dict()
    card = (artifact.path / "README.md").read_text(encoding="utf-8")
    save_artifact(args.out, config, model.state_dict(), artifact.starts, card, artifact.policies, half=True)
    print(f"{args.out}: from {args.model}, in grey levels: {difference(model, teacher, z[:HELD_OUT])}")


if __name__ == "__main__":
    main()
