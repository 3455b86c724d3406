"""The fastest way to train a small world model: real CartPole episodes, on a CPU, in less than a minute.

    python scripts/quickstart_cpu_success.py --quick

Collects episodes of CartPole-v1, some of them held out, trains DreamerV3's smallest preset, and imagines one held-out
episode. Exits with 0 if the held-out loss is finite and has fallen, the imagined episode has the requested length and
all files were written, else with 1.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from policies.play import EpisodeTask
from policies.policy import explorer
from policies.rollout import EVAL_SEED
from wm_agents import create_world_model
from wm_agents.data.episode import Episode
from wm_agents.data.replay import ReplayBuffer
from wm_agents.evaluation.held_out import _play_episode
from wm_agents.models.model import Model
from wm_agents.system.files import write_json
from wm_agents.system.replace import replacing
from wm_agents.training import NonFiniteLoss, Trainer, TrainingConfig
from wm_envs.action import act_dim, encode_action
from wm_envs.drawing import draw
from wm_envs.real import make_real
from wm_envs.registry import TASKS

SPEC = TASKS["CartPole"].real
MODEL = "dreamerv3:ci"
Frame = NDArray[np.uint8]
TILE, STRIP, LABEL = (120, 80), 24, 84
"""Sizes in the image, in pixels: width and height of an observation, height of the reward strip, width of the
labels."""


@dataclass(frozen=True)
class Size:
    """The amount of data, training and imagination."""

    transitions: int
    held_out: int
    """Episodes."""
    updates: int
    horizon: int
    batch_size: int = 16
    seq_len: int = 10


QUICK, FULL = Size(2000, 10, 150, 10), Size(8000, 20, 1000, 20)


def collect(num_steps: int, seed: int, most: int | None = None) -> list[Episode]:
    """Collect exploration episodes with at least `num_steps` agent steps, or `most` episodes."""
    with closing(make_real(SPEC)) as env:
        policy = explorer(env)
    episodes: list[Episode] = []
    while sum(ep.num_steps for ep in episodes) < num_steps and len(episodes) != most:
        episodes.append(_play_episode(SPEC, lambda: policy, EpisodeTask(seed + len(episodes))))
    return episodes


def fill(model: Model, episodes: list[Episode]) -> ReplayBuffer:
    """A replay buffer of the episodes."""
    steps = sum(ep.num_steps for ep in episodes)
    buffer = ReplayBuffer(steps, model.obs_space.shape or (), act_dim(model.act_space))
    for episode in episodes:
        buffer.add(episode, model.act_space)
    return buffer


@torch.no_grad()
def imagine(model: Model, episode: Episode, horizon: int) -> tuple[NDArray[np.float32], Frame, Frame]:
    """Imagined rewards (H,), and real and imagined observations (H + 1, D), with the real actions of the episode."""
    acts = torch.from_numpy(encode_action(model.act_space, episode.act[:horizon]))[:, None]
    generator = torch.Generator().manual_seed(0)
    dream = model.rollout(model.encode(torch.from_numpy(episode.obs[:1])), acts, temperature=0.0, generator=generator)
    seen = torch.cat([model.decode(latent) for latent in dream.latents])
    return dream.rewards[:, 0].numpy(), episode.obs[: horizon + 1], seen.numpy()


def heat(rewards: NDArray[np.float32], width: int = STRIP) -> Frame:
    """Draw rewards (H,) as a strip (STRIP, H * width, 3) from blue (0 or less) to red (1 or more)."""
    share = np.clip(np.nan_to_num(rewards), 0, 1)[:, None]
    colors = np.array([[40, 70, 200]]) * (1 - share) + np.array([[210, 40, 40]]) * share
    strip: Frame = np.repeat(np.repeat(colors[None].round().astype(np.uint8), STRIP, 0), width, 1)
    return strip


def write_ppm(path: Path, picture: Frame) -> None:
    """Write an image (H, W, 3) as binary PPM."""
    height, width, _ = picture.shape
    with replacing(path) as tmp:
        tmp.write_bytes(f"P6\n{width} {height}\n255\n".encode() + picture.tobytes())


def write_picture(path: Path, rewards: NDArray[np.float32], real: Frame, imagined: Frame, space: Any) -> None:
    """Write a PNG with imagined rewards, real observations and imagined observations; one column per step."""

    def row(observations: Frame) -> Frame:
        drawn = draw(SPEC.id, space, observations[1:])
        return np.concatenate([cv2.resize(frame, TILE, interpolation=cv2.INTER_AREA) for frame in drawn], 1)

    rows = {"rewards": heat(rewards, TILE[0]), "real": row(real), "imagined": row(imagined)}
    picture = np.concatenate([np.concatenate([label(name, len(part)), part], 1) for name, part in rows.items()])
    with replacing(path) as tmp:
        tmp.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def label(text: str, height: int) -> Frame:
    """A label on white."""
    words: Frame = np.full((height, LABEL, 3), 255, np.uint8)
    cv2.putText(words, text, (4, height // 2 + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return words


def run(size: Size, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Run everything and return the content of summary.json."""
    began = time.perf_counter()
    episodes = collect(size.transitions, seed)
    held_out = collect(sys.maxsize, EVAL_SEED + seed, size.held_out)
    torch.manual_seed(seed)
    model = create_world_model(MODEL, env=SPEC.id)
    cfg = TrainingConfig(
        total_steps=size.updates, batch_size=size.batch_size, sequence_length=size.seq_len, learning_rate=1e-3,
        seed=seed, device="cpu", log_interval=max(size.updates // 10, 1), output_dir=str(out / "training"),
    )  # fmt: skip
    trainer = Trainer(model, cfg)
    buffer, aside = fill(model, episodes), fill(model, held_out)
    initial = trainer.evaluate(aside)["loss"]
    try:
        trainer.train(buffer)
        final = trainer.evaluate(aside)["loss"]
    except NonFiniteLoss as error:
        print(error, file=sys.stderr)
        final = math.nan
    model.eval()
    longest = max(held_out, key=lambda ep: ep.num_steps)
    rewards, real, imagined = imagine(model, longest, size.horizon)
    paths = {
        "summary": out / "summary.json",
        "imagination": out / "imagination.ppm",
        "picture": out / "imagination.png",
    }
    write_ppm(paths["imagination"], heat(rewards))
    write_picture(paths["picture"], rewards, real, imagined, model.obs_space)
    finite = math.isfinite(initial) and math.isfinite(final) and bool(np.isfinite(rewards).all())
    written = all(path.is_file() for name, path in paths.items() if name != "summary")
    summary = {
        "scenario": "quickstart_cpu",
        "run_id": f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}",
        "seed": seed,
        "quick": quick,
        "initial_loss": round(initial, 4) if math.isfinite(initial) else None,
        "final_loss": round(final, 4) if math.isfinite(final) else None,
        "loss_improved": final < initial,
        "finite": finite,
        "horizon": size.horizon,
        "rollout_horizon": len(rewards),
        "artifacts": {name: str(path) for name, path in paths.items()},
        "success": finite and final < initial and len(rewards) == size.horizon and written,
        "environment": SPEC.id,
        "model": MODEL,
        "updates": trainer.update,
        "real_steps": len(buffer),
        "held_out_steps": len(aside),
        "foreseen_reward": round(float(rewards.mean()), 4) if finite else None,
        "wall_s": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    write_json(paths["summary"], summary)
    return summary


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if everything succeeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="less data and training; takes less than a minute")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/quickstart_cpu"))
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    result = run(QUICK if args.quick else FULL, args.output_dir, args.seed, args.quick)
    mark = "OK" if result["success"] else "FAILED"
    print(
        f"{mark}  loss {result['initial_loss']} -> {result['final_loss']}  horizon {result['rollout_horizon']}  "
        f"artifacts {args.output_dir}/  {result['wall_s']} s, {result['peak_memory_mb']} MB"
    )
    return 0 if result["success"] else 1


if __name__ == "__main__":
    sys.exit(main())
