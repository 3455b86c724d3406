"""Videos of a real episode, beside its dream or alone, streamed to mp4."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from numpy.typing import NDArray

from policies.latent import LatentPolicy
from policies.policy import Policy
from policies.rollout import Transition, rollout
from policies.step_count import StepCount
from wm_agents.strips import FRAMES, write_strips
from wm_agents.system.replace import replacing
from wm_envs.action import encode_action
from wm_envs.drawing import draw
from wm_envs.dream import DEFAULT, DreamConfig
from wm_envs.frames import is_image
from wm_envs.real import make_real, probe
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, WorldModel

Frame = NDArray[np.uint8]
SIDE = 384
"""Frames are enlarged by an integer factor to about this many pixels; larger ones are not resized."""
BAR = 28


class Pair(NamedTuple):
    """A real frame, the dreamed frame of the same step, and the returns so far."""

    real: Frame
    dream: Frame
    real_return: float
    dream_return: float
    age: int
    """Steps since the dream was synchronised with a real frame."""
    over: bool
    """The dream has terminated; it still runs, but its return does not change."""
    drawn: bool = False
    """The dream has vector observations, and its frame is a drawing."""


def real_and_dream(
    envs: VectorEnv[Any, Any, Any],
    model: WorldModel,
    controller: Policy,
    config: DreamConfig = DEFAULT,
    *,
    seed: int,
    resync_every: int | None = None,
    drawing: str | None = None,
    count: StepCount | None = None,
    watch: Callable[[Transition], None] | None = None,
) -> Iterator[Pair]:
    """Play a real episode and its dream, from the same frame and with the same actions. T steps give T + 1
    pairs.

    Args:
        envs: the real environment, as a vector environment of one row. With `render_mode` "rgb_array" its
            rendering is shown, else its observations.
        controller: a policy on the model's latents.
        resync_every: synchronise the dream with the real frame every N steps; None: never.
        drawing: id of the real environment, for dreams of vectors (`wm_envs.drawing`).
        count: counts the real steps before they are taken.
        watch: called with every real transition.
    """
    policy = LatentPolicy(model, controller)
    watched = _Watched(envs, policy, drawing)
    drawn = not is_image(model.obs_space)
    generator = torch.Generator(model.device).manual_seed(seed)
    dream: Latent | None = None
    earned, dreamed, age, over = 0.0, 0.0, 0, False
    for step in rollout(envs, watched, seed=seed, policy_seed=seed, count=count):
        if dream is None or age == resync_every:
            # The policy has just acted on step.obs, so its latent and watched.frame belong to that step.
            assert policy.observer.latent is not None
            dream, dreamed, age, over = policy.observer.latent, earned, 0, False
        yield Pair(watched.frame, _dreamed(model, dream, drawing), earned, dreamed, age, over, drawn)
        if watch is not None:
            watch(step)
        act = torch.from_numpy(encode_action(model.act_space, step.act)).to(model.device)
        with torch.inference_mode():
            out = model.step(dream, act, temperature=config.temperature, generator=generator)
        dream = out.latent
        earned += float(step.rew[0])
        dreamed += 0.0 if over else float(out.rew[0])
        age, over = age + 1, over or bool(out.over(config.cut_off)[0])
    assert dream is not None
    yield Pair(watched.look(step.next_obs), _dreamed(model, dream, drawing), earned, dreamed, age, over, drawn)


def _real_alone(
    envs: VectorEnv[Any, Any, Any], policy: Policy, *, seed: int, drawing: str | None = None
) -> Iterator[tuple[Frame, float]]:
    """Play a real episode: T steps give T + 1 frames, each with the return so far. `envs` as above."""
    watched = _Watched(envs, policy, drawing)
    earned = 0.0
    for step in rollout(envs, watched, seed=seed, policy_seed=seed):
        yield watched.frame, earned
        earned += float(step.rew[0])
    yield watched.look(step.next_obs), earned


class _Watched:
    """A policy, and the frame on which it last acted."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], policy: Policy, drawing: str | None) -> None:
        self.envs, self.policy, self.drawing = envs, policy, drawing
        self._size: tuple[int, int] | None = None

    def reset(self, num: int, seed: int) -> None:
        self.policy.reset(num, seed)

    def act(self, obs: NDArray[Any]) -> NDArray[Any]:
        self.frame = self.look(obs)
        return self.policy.act(obs)

    def look(self, obs: NDArray[Any]) -> Frame:
        """The current frame of the environment, whose observation is `obs` (1, ...)."""
        if self.envs.render_mode != "rgb_array":
            return draw(self.drawing, self.envs.single_observation_space, obs[0])
        frames: Any = self.envs.render()
        frame = np.array(frames[0])  # Some renderers reuse the array of the last frame.
        height, width = self._size = self._size or frame.shape[:2]  # Plots may change their size.
        return frame if frame.shape[:2] == self._size else np.asarray(cv2.resize(frame, (width, height)))


@torch.inference_mode()
def _dreamed(model: WorldModel, latent: Latent, drawing: str | None) -> Frame:
    return draw(drawing, model.obs_space, model.decode(latent)[0].cpu().numpy())


def compose(pair: Pair) -> Frame:
    """Both frames side by side over a line of text, enlarged to the same height."""
    real, (height, width, _) = pair.real, pair.dream.shape
    if real.shape[0] != height:
        width = max(2 * round(real.shape[1] * height / real.shape[0] / 2), 2)
        real = np.asarray(cv2.resize(real, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    how = ", drawn" * pair.drawn + ", over" * pair.over
    text = f"dream {pair.dream_return:.0f}{how}, {pair.age} steps from a real frame"
    both: Frame = np.concatenate([_panel(real, f"real {pair.real_return:.0f}"), _panel(pair.dream, text)], axis=1)
    return both


def _panel(frame: Frame, text: str) -> Frame:
    """An enlarged frame over a line of text, with even side lengths for mp4."""
    height, width = frame.shape[:2]
    scale = SIDE // max(height, width) // 2 * 2
    if scale == 0:
        scale = 2
        if max(height, width) >= SIDE and height % 2 == width % 2 == 0:
            scale = 1
    big = cv2.resize(frame, (scale * width, scale * height), interpolation=cv2.INTER_NEAREST)
    bar: Any = np.zeros((BAR, scale * width, 3), np.uint8)
    cv2.putText(bar, text, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    panel: Frame = np.concatenate([big, bar])
    return panel


def write_video(path: Path, frames: Iterator[Frame], fps: float) -> int:
    """Stream frames (H, W, 3) to an mp4, with one frame in memory at a time, and return their number.

    The file appears completely or not at all. Side lengths should be even, because some players need it.

    Raises:
        ValueError: there is no frame, or the shape changes.
        OSError: ffmpeg failed.
    """
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame, got none")
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
            if ffmpeg.wait() == 0:  # Not an error of ffmpeg.
                raise
            raise OSError(f"{path}: ffmpeg failed at frame {count}: {' '.join(str(error).split())}") from error
        if ffmpeg.returncode != 0:  # close() does not check it.
            raise OSError(f"{path}: ffmpeg exited with status {ffmpeg.returncode}; check whether the disk is full")
    return count


def record(
    path: Path,
    spec: RealSpec,
    model: WorldModel,
    controller: Policy,
    dream: DreamConfig = DEFAULT,
    *,
    seed: int,
    resync_every: int | None = 50,
    max_frames: int | None = None,
    fps: float | None = None,
    count: StepCount | None = None,
    strips: Path | None = None,
) -> int:
    """Write a video of one real episode beside its dream and return the number of frames.

    The video has at most `max_frames` frames, and plays at the speed of the real environment unless `fps` is
    given.

    A dream of images is shown beside the preprocessed frames. A dream of vectors is drawn beside the rendering of the
    environment or, if it cannot render, beside a drawing of the real vectors. `count` counts the real steps.
    `strips` is a folder for pictures of the same episode: rows of real frames, reconstructions and dreamed frames
    (`wm_agents.strips`).
    """
    if resync_every is not None and resync_every < 1:
        raise ValueError(f"resync_every must be at least 1 step, or None, got {resync_every}")
    kept: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def keep(step: Transition) -> None:
        if strips is not None and len(kept) < FRAMES:
            kept.append((step.obs, step.act))

    with closing(one_env(spec, rendered=not is_image(model.obs_space))) as envs:
        pairs = real_and_dream(
            envs,
            model,
            controller,
            dream,
            seed=seed,
            resync_every=resync_every,
            drawing=spec.id,
            count=count,
            watch=keep,
        )
        if fps is None:
            fps = cast(float, envs.metadata["render_fps"])
        frames = write_video(path, map(compose, islice(pairs, max_frames)), fps)
    if strips is not None and kept:
        obs, act = map(np.concatenate, zip(*kept, strict=True))
        write_strips(strips, model, obs, act, env_id=spec.id, temperature=dream.temperature, seed=seed)
    return frames


def record_real(path: Path, spec: RealSpec, policy: Policy, *, seed: int) -> int:
    """Write a video of one real episode, rendered or drawn, and return the number of frames.

    Args:
        policy: a policy on real observations, such as that of `pretrained.frame_policy`.
    """
    with closing(one_env(spec, rendered=True)) as envs:
        moments = _real_alone(envs, policy, seed=seed, drawing=spec.id)
        frames = (_panel(frame, f"real {earned:.0f}") for frame, earned in moments)
        return write_video(path, frames, envs.metadata["render_fps"])


def one_env(spec: RealSpec, rendered: bool) -> SyncVectorEnv:
    """The real environment as a vector environment of one row, with rendering if `rendered` and possible."""
    mode = None
    if rendered and _can_render(spec):
        mode = "rgb_array"
    return SyncVectorEnv([partial(make_real, spec, mode)], autoreset_mode=AutoresetMode.DISABLED)


def _can_render(spec: RealSpec) -> bool:
    if "rgb_array" not in probe(spec).render_modes:
        return False
    try:
        with closing(make_real(spec, "rgb_array")) as env:
            env.reset(seed=0)
            frame: Any = env.render()
            return np.shape(frame)[2:] == (3,) and bool(frame.dtype == np.uint8)
    except Exception as error:  # A library or a display may be missing; each renderer raises its own error.
        warnings.warn(f"cannot render {spec.id}, so the video shows drawings instead: {error}", stacklevel=2)
        return False
