"""Video of a real episode beside the dream of it, streamed to mp4."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from numpy.typing import NDArray

from policies.latent import LatentPolicy
from policies.policy import Policy
from policies.rollout import rollout
from wm_envs.action import encode_action
from wm_envs.real import make_real
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, WorldModel

Frame = NDArray[np.uint8]
FPS = 50
BAR = 28


class Pair(NamedTuple):
    """A real frame, what was dreamed for the same moment, and what each has earned so far."""

    real: Frame
    dream: Frame
    real_return: float
    dream_return: float
    age: int
    """Steps since the dream last saw a real frame."""


def real_and_dream(
    spec: RealSpec,
    model: WorldModel,
    controller: Policy,
    *,
    seed: int,
    resync_every: int | None = None,
    temperature: float = 1.0,
) -> Iterator[Pair]:
    """Play a real episode, and dream it: from the same frame, fed the same actions.

    Args:
        controller: a policy on the model's latents.
        resync_every: steps after which the dream starts again from the real moment; None dreams the whole episode.
    """
    policy = LatentPolicy(model, controller)
    envs = SyncVectorEnv([partial(make_real, spec)], autoreset_mode=AutoresetMode.DISABLED)
    generator = torch.Generator(model.device).manual_seed(seed)
    latent: Latent = {}
    earned = dreamed = 0.0
    age = 0
    for step in rollout(envs, policy, seed=seed, policy_seed=seed):
        if not latent or (resync_every is not None and age >= resync_every):
            assert policy.observer.latent is not None
            latent, age, dreamed = policy.observer.latent, 0, earned
        with torch.inference_mode():
            yield Pair(step.obs[0], model.decode(latent)[0].cpu().numpy(), earned, dreamed, age)
            act = torch.from_numpy(encode_action(model.act_space, step.act)).to(model.device)
            latent, rew, _ = model.step(latent, act, temperature=temperature, generator=generator)
        earned, dreamed, age = earned + float(step.rew[0]), dreamed + float(rew[0]), age + 1
    envs.close()


def compose(pair: Pair, side: int = 384) -> Frame:
    """Both frames enlarged side by side over a line of text, (side + bar, 2 side, 3)."""
    frames = [cv2.resize(f, (side, side), interpolation=cv2.INTER_NEAREST) for f in (pair.real, pair.dream)]
    texts = [
        f"real  return {pair.real_return:.0f}",
        f"dream  return {pair.dream_return:.0f}  {pair.age} steps from a real frame",
    ]
    panels = []
    for frame, text in zip(frames, texts, strict=True):
        bar: Any = np.zeros((BAR, side, 3), np.uint8)
        cv2.putText(bar, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        panels.append(np.concatenate([frame, bar]))
    both: Frame = np.concatenate(panels, axis=1)
    return both


def write_video(path: Path, frames: Iterator[Frame], fps: float) -> int:
    """Write frames to an mp4 as they come, one in memory at a time; returns how many.

    The file appears whole under its name, or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.mp4")
    first = next(frames)
    height, width = first.shape[:2]
    count = 1
    with FFMPEG_VideoWriter(str(temporary), (width, height), fps=fps, preset="veryfast", pixel_format="rgb24") as out:
        out.write_frame(first)
        for frame in frames:
            out.write_frame(frame)
            count += 1
    temporary.replace(path)
    return count


def record(
    path: Path,
    spec: RealSpec,
    model: WorldModel,
    controller: Policy,
    *,
    seed: int,
    resync_every: int | None = 50,
    temperature: float = 1.0,
) -> int:
    """Write `real | dream` of one episode, at the real environment's speed; returns the number of frames."""
    pairs = real_and_dream(spec, model, controller, seed=seed, resync_every=resync_every, temperature=temperature)
    return write_video(path, (compose(pair) for pair in pairs), FPS / spec.action_repeat)
