"""Video of a real episode beside the dream of it, streamed to mp4."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from numpy.typing import NDArray

from policies.latent import LatentPolicy
from policies.policy import Policy
from policies.rollout import rollout
from wm_agents.atomic import replacing
from wm_envs.action import encode_action
from wm_envs.real import is_image, make_real, to_rgb
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, WorldModel

Frame = NDArray[np.uint8]
SIDE = 384
"""Frames are enlarged by a whole number to about this many pixels."""
BAR = 28


class Pair(NamedTuple):
    """A real frame, what was dreamed for the same moment, and what each has earned so far."""

    real: Frame
    dream: Frame
    real_return: float
    dream_return: float
    age: int
    """Steps since the dream last saw a real frame."""
    over: bool
    """The dream has come to an end of its own; it is dreamed on, but earns nothing."""


def real_and_dream(
    envs: VectorEnv[Any, Any, Any],
    model: WorldModel,
    controller: Policy,
    *,
    seed: int,
    resync_every: int | None = None,
    temperature: float = 1.0,
    cut_off: float = 0.5,
) -> Iterator[Pair]:
    """Play a real episode, and dream it: from the same frame, fed the same actions. T steps give T + 1 pairs.

    Args:
        envs: the real environment, as a vector of one row.
        controller: a policy on the model's latents.
        resync_every: steps after which the dream starts again from the real moment; None dreams the whole episode.
    """
    policy = LatentPolicy(model, controller)
    generator = torch.Generator(model.device).manual_seed(seed)
    dream: Latent | None = None
    earned, dreamed, age, over = 0.0, 0.0, 0, False
    for step in rollout(envs, policy, seed=seed, policy_seed=seed):
        if dream is None or age == resync_every:
            # The policy has just acted on step.obs, so its latent is that of this very frame.
            assert policy.observer.latent is not None
            dream, dreamed, age, over = policy.observer.latent, earned, 0, False
        yield Pair(step.obs[0], _draw(model, dream), earned, dreamed, age, over)
        act = torch.from_numpy(encode_action(model.act_space, step.act)).to(model.device)
        with torch.inference_mode():
            out = model.step(dream, act, temperature=temperature, generator=generator)
        dream = out.latent
        earned += float(step.rew[0])
        dreamed += 0.0 if over else float(out.rew[0])
        age, over = age + 1, over or bool(out.over(cut_off)[0])
    assert dream is not None
    yield Pair(step.next_obs[0], _draw(model, dream), earned, dreamed, age, over)


@torch.inference_mode()
def _draw(model: WorldModel, latent: Latent) -> Frame:
    frame: Frame = model.decode(latent)[0].cpu().numpy()
    return frame


def compose(pair: Pair) -> Frame:
    """Both frames, enlarged, side by side over a line of text."""
    height, width = pair.real.shape[:2]
    scale = max(SIDE // max(height, width) // 2 * 2, 2)  # Even, as mp4 wants its sides.
    texts = [
        f"real {pair.real_return:.0f}",
        f"dream {pair.dream_return:.0f}{' (over)' if pair.over else ''}, {pair.age} steps from a real frame",
    ]
    panels = []
    for frame, text in zip((pair.real, pair.dream), texts, strict=True):
        big = cv2.resize(to_rgb(frame), (scale * width, scale * height), interpolation=cv2.INTER_NEAREST)
        bar: Any = np.zeros((BAR, scale * width, 3), np.uint8)
        cv2.putText(bar, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        panels.append(np.concatenate([big, bar]))
    both: Frame = np.concatenate(panels, axis=1)
    return both


def write_video(path: Path, frames: Iterator[Frame], fps: float) -> int:
    """Write frames (H, W, 3) to an mp4 as they come, one in memory at a time; returns how many.

    The file appears whole under its name, or not at all. Sides should be even, or not every player shows it.

    Raises:
        ValueError: there is no frame, or one of another shape.
        OSError: ffmpeg failed.
    """
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: there must be at least one frame to write, got none")
    height, width, _ = first.shape
    count = 0
    with replacing(path) as temporary:
        out = FFMPEG_VideoWriter(
            str(temporary), (width, height), fps=fps, preset="veryfast", ffmpeg_params=["-f", "mp4"]
        )
        ffmpeg = out.proc
        try:
            with out:
                for frame in chain([first], frames):
                    if frame.shape != first.shape:
                        raise ValueError(f"{path}: frame {count} must be {first.shape} as before, got {frame.shape}")
                    out.write_frame(frame)
                    count += 1
        except OSError as error:
            ffmpeg.stderr.close()
            if ffmpeg.wait() == 0:  # Not its fault.
                raise
            raise OSError(f"{path}: ffmpeg failed at frame {count}: {' '.join(str(error).split())}") from error
        if ffmpeg.returncode != 0:  # Closing does not look at it.
            raise OSError(f"{path}: ffmpeg ended with status {ffmpeg.returncode}; is the disk full?")
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
    cut_off: float = 0.5,
) -> int:
    """Write `real | dream` of one episode, at the real environment's speed; returns the number of frames.

    Raises:
        ValueError: the model does not see pixels.
    """
    if not is_image(model.obs_space):
        raise ValueError(f"a video needs a model of (H, W, 3) uint8 pixels, got {model.obs_space} of {spec.id}")
    if resync_every is not None and resync_every < 1:
        raise ValueError(f"resync_every must be at least 1 step, or None, got {resync_every}")
    with closing(SyncVectorEnv([partial(make_real, spec)], autoreset_mode=AutoresetMode.DISABLED)) as envs:
        how: dict[str, Any] = {"resync_every": resync_every, "temperature": temperature, "cut_off": cut_off}
        pairs = real_and_dream(envs, model, controller, seed=seed, **how)
        fps = envs.metadata["render_fps"]
        return write_video(path, map(compose, pairs), fps)
