"""How well the encoder V of a model of Pong or Breakout reconstructs the ball, which has two pixels.

    python scripts/bench_ball.py --model runs/pong/model

Frames come from new episodes on held-out seeds, cropped to the region in which only the ball moves: between the paddles
of Pong, or between bricks and paddle of Breakout. A ball counts as found if the brightest change of the reconstruction
is within 2 pixels of it.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from policies.policy import explorer
from policies.rollout import EVAL_SEED
from wm_agents.models.vision import ConvVAE, to_input
from wm_agents.models.vmc import VMC
from wm_agents.pretrained import load_model, real_spec
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

FIELDS = {"Pong": (slice(0, 64), slice(9, 55)), "Breakout": (slice(25, 60), slice(0, 64))}
SEEN = 25
"""Minimum brightness of a ball, of 255; noise of a reconstruction is rarely stronger."""


class Ball(NamedTuple):
    """The position of the brightest change of each frame."""

    there: NDArray[np.bool_]
    """(N,)"""
    place: NDArray[np.float64]
    """(N, 2), the centre of mass"""


def find_ball(frames: NDArray[np.uint8], still: NDArray[np.uint8]) -> Ball:
    """Compare frames (N, H, W) with the background (H, W)."""
    change = np.clip(frames.astype(np.int64) - still, 0, None)
    num, _, width = change.shape
    at = change.reshape(num, -1).argmax(1)
    y, x = at // width, at % width
    around = np.arange(-2, 3)
    rows, cols = y[:, None, None] + around[:, None], x[:, None, None] + around  # (N, 5, 1), (N, 1, 5)
    mass = np.pad(change, ((0, 0), (2, 2), (2, 2)))[np.arange(num)[:, None, None], rows + 2, cols + 2]
    total = mass.sum((1, 2)).clip(1)
    place = np.stack([(mass * rows).sum((1, 2)) / total, (mass * cols).sum((1, 2)) / total], axis=1)
    return Ball(change.reshape(num, -1).max(1) > SEEN, place)


def play(spec: RealSpec, episodes: int) -> NDArray[np.uint8]:
    """Frames (N, S, S, C) of exploration episodes on held-out seeds."""
    env = make_real(spec)
    policy, frames = explorer(env), []
    for seed in range(EVAL_SEED, EVAL_SEED + episodes):
        obs, over = env.reset(seed=seed)[0], False
        policy.reset(1, seed)
        while not over:
            frames.append(obs)
            obs, _, term, trunc, _ = env.step(policy.act(obs[None])[0])
            over = term or trunc
    env.close()
    return np.stack(frames)


@torch.inference_mode()
def score(model: VMC, frames: NDArray[np.uint8], name: str) -> dict[str, float]:
    """Shares: of frames with a ball; of these, of frames in which it is found; of the others, of frames with a false
    ball."""
    assert isinstance(model.vision, ConvVAE)
    recon = [model.vision.decode_obs(model.vision.encode(to_input(x))[0]) for x in torch.from_numpy(frames).split(512)]
    rows, cols = FIELDS[name]
    still = np.median(frames, axis=0).astype(np.uint8)[rows, cols].mean(-1).astype(np.uint8)
    real, drawn = (
        find_ball(x[:, rows, cols].mean(-1).astype(np.uint8), still) for x in (frames, torch.cat(recon).numpy())
    )
    off = np.linalg.norm(real.place - drawn.place, axis=1)
    return {
        "frames": len(frames),
        "with ball": real.there.mean(),
        "within 2": ((off <= 2) & drawn.there)[real.there].mean(),
        "within 1": ((off <= 1) & drawn.there)[real.there].mean(),
        "false": drawn.there[~real.there].mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model directory, or the name of a shipped model or dream")
    parser.add_argument("--episodes", type=int, default=5)
    args = parser.parse_args()
    model, artifact = load_model(args.model)
    spec = real_spec(artifact)
    name = next((name for name in FIELDS if name in spec.id), None)
    if name is None or not isinstance(model, VMC):
        parser.error(f"needs a V-M-C model of {' or '.join(FIELDS)}, got {artifact.config['family']} of {spec.id}")
    for what, value in score(model, play(spec, args.episodes), name).items():
        print(f"{what:<10} {value:,.0f}" if what == "frames" else f"{what:<10} {100 * value:.1f} %")


if __name__ == "__main__":
    main()
