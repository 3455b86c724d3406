"""Checks before a long run: settings, environments, videos, disk, memory, device."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import gymnasium as gym
import numpy as np
import torch
from rich.console import Console

from policies.sb3 import check_actions
from wm_agents.loops.fit import new_model
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.system.hardware import find_device
from wm_agents.system.processes import check_one_process
from wm_agents.video import Frame, write_video
from wm_envs.frames import is_image
from wm_envs.real import check_spec, make_real, probe
from wm_envs.registry import RealSpec
from wm_envs.window import check_display
from wm_envs.world_model import can_disagree

GB = 1e9
LOOK_STEPS = 50
"""Random steps before a frame is checked, because some environments start with black frames."""


def check_training(cfg: ImproveConfig) -> None:
    """Check the settings before any work is done."""
    check_one_process("a family that learns in rounds")
    facts = probe(cfg.spec)
    model = new_model(cfg, *facts.spaces)
    if cfg.controller == "ppo":
        try:
            check_actions(facts.act_space)
        except ValueError as error:
            raise ValueError(
                f"{cfg.spec.id}: {error}, or use the linear controller (CMA-ES), which supports every action space: "
                '`wm improve --controller linear`, or kind = "linear" in [controller] of a wm.toml'
            ) from error
    if cfg.draw_actions and not (cfg.controller == "ppo" and isinstance(facts.act_space, gym.spaces.Discrete)):
        raise ValueError(
            f"draw_actions needs controller='ppo' and Discrete actions, got {cfg.controller!r} and {facts.act_space}; "
            "remove it"
        )
    if facts.limit is None:
        raise ValueError(
            f"{cfg.spec.id} has no episode limit; set one with --spec.max_episode_steps N, or max_episode_steps of "
            "the task in the file of a curriculum"
        )
    doubting = cfg.pessimism > 0 or cfg.max_disagreement is not None
    if doubting and not can_disagree(model):
        raise ValueError(
            f"pessimism and max_disagreement need an ensemble of at least 2 members, got {model.family} "
            f"with {getattr(model, 'members', 1)}; set family and ensemble.members"
        )


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    ok: bool
    found: str
    hint: str = ""
    """What to do about it."""


def look(what: str, check: Callable[[], str], hint: str) -> Finding:
    """The finding of `check`: the description that it returns, or the message of its error."""
    try:
        return Finding(what, True, check())
    except Exception as error:  # Drivers, codecs and simulators raise any type of error.
        return Finding(what, False, " ".join(f"{error or type(error).__name__}".split()), hint)


def check_env(spec: RealSpec, *, frames: bool = True, sizes: bool = True) -> str:
    """Create the environment, play a few random steps and check its observations.

    Args:
        frames: reject frames of one colour, non-finite vectors, and observations that never change.
        sizes: reject observations that do not have the declared shape and dtype.

    Raises:
        ValueError: a check failed.
    """
    if sizes:
        check_spec(spec)
    with closing(make_real(spec)) as env:
        env.action_space.seed(0)
        first = obs = np.asarray(env.reset(seed=0)[0])
        for _ in range(LOOK_STEPS):
            obs, _, term, trunc, _ = env.step(env.action_space.sample())
            if term or trunc:
                break
        if frames:
            _check_frame(spec.id, first, np.asarray(obs), is_image(env.observation_space))
    shape = "x".join(map(str, obs.shape))
    return f"{'frames' if is_image(env.observation_space) else 'vectors'} of {shape}, {env.action_space}"


def _check_frame(env_id: str, first: Any, last: Any, image: bool) -> None:
    if image and last.min() == last.max():
        raise ValueError(f"{env_id}: all pixels of the frame have the value {last.min()} after {LOOK_STEPS} steps")
    if not image and not np.isfinite(last).all():
        raise ValueError(f"{env_id}: an observation is not finite: {last}")
    if np.array_equal(first, last):
        raise ValueError(f"{env_id}: observations did not change in {LOOK_STEPS} random steps")


def check_video(folder: Path) -> str:
    """Write a video from dark to light, and read it again.

    Raises:
        ValueError: the frames differ from those that were written.
        OSError: the video could not be written.
    """
    path, levels = folder / "preflight.mp4", range(20, 240, 20)
    frames: list[Frame] = [np.full((64, 96, 3), level, np.uint8) for level in levels]
    write_video(path, iter(frames), fps=10)
    reader = cv2.VideoCapture(str(path))
    try:
        got = []
        while (read := reader.read())[0]:
            got.append(float(np.mean(read[1])))
    finally:
        reader.release()
        path.unlink()
    if len(got) != len(frames) or max(abs(a - b) for a, b in zip(got, levels)) > 12:
        raise ValueError(
            f"the test video was decoded wrongly: expected {len(frames)} frames, got {len(got)} with mean brightness "
            f"{[round(x) for x in got]}; reinstall moviepy and its ffmpeg"
        )
    return f"{len(got)} frames of mp4 written and read"


class _Needs(NamedTuple):
    """Upper estimate of the bytes that a task needs."""

    disk: int
    memory: int


def estimate(cfg: ImproveConfig, procs: int, films: int = 0) -> _Needs:
    """An upper estimate of the disk space and memory of a task.

    Measured sizes on disk (scripts/bench_data.py): 1,090 bytes per CarRacing frame of 64x64x3, 66 per Pong
    frame.
    """
    space = probe(cfg.spec).obs_space
    numbers = math.prod(space.shape or (1,))
    image = is_image(space)
    steps = cfg.random_steps + (cfg.rounds - 1) * cfg.round_steps
    frame, z, hidden = 4.0 * numbers, numbers, 0
    if image:
        frame, z, hidden = 0.12 * numbers, cfg.model.z_dim, cfg.model.hidden
    episodes = min(1.3 * steps * (frame + 32), cfg.max_gb * GB)
    feat = z + hidden
    starts = 2 * 4 * cfg.starts * (z + 2 * hidden)
    rounds = cfg.rounds * (50e6 + 2 * starts)
    if cfg.controller == "ppo":
        dream = 4 * feat * cfg.ppo.envs * (40 + 3 * cfg.ppo.steps)
    else:
        dream = 4 * feat * cfg.cma.population * cfg.cma.rollouts * 40
    latents = steps * (8 * z + 64) * 3
    processes = 0.7 * GB + 2 * procs * 0.4 * GB
    return _Needs(int(episodes + rounds + films * 5e6), int(processes + latents + dream))


def check_disk(folder: Path, needed: int) -> str:
    """Check that enough disk space is free.

    Raises:
        ValueError: there is too little.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.1f} GB free in {folder}, about {needed / GB:.1f} GB needed"
    if free < needed + GB:
        raise ValueError(text)
    return text


def check_memory(needed: int) -> str:
    """Check that enough memory is free.

    Raises:
        ValueError: there is too little.
    """
    free = free_memory()
    if free is None:
        return f"about {needed / GB:.1f} GB needed; the free memory of this system is unknown"
    text = f"{free / GB:.1f} GB free, about {needed / GB:.1f} GB needed"
    if free < needed:
        raise ValueError(text)
    return text


def free_memory(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still allocate, within the limit of its container; None if unknown."""
    found = []
    with suppress(OSError, KeyError, ValueError):
        rows = dict(line.split(":", 1) for line in proc.read_text(encoding="utf-8").splitlines())
        found.append(1024 * int(rows["MemAvailable"].split()[0]))
    with suppress(OSError, ValueError):  # No container, or one without a limit ("max").
        found.append(
            int((group / "memory.max").read_text(encoding="utf-8"))
            - int((group / "memory.current").read_text(encoding="utf-8"))
        )
    return min(found) if found else None


def check_device(device: str) -> str:
    """Compute a known sum on the device.

    Raises:
        ConfigurationError: the device does not exist.
        ValueError: the result is wrong.
    """
    place = find_device(device)
    x = torch.ones(64, 64, device=place)
    total = float((x @ x).sum())
    if total != 64**3:
        raise ValueError(f"{place} computes 64 x 64 x 64 = {total}; use another device")
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return str(place)


def display_error() -> str | None:
    """The reason why no window can be opened, or None."""
    try:
        check_display()
    except RuntimeError as error:
        return str(error)
    return None


def show(findings: Iterable[Finding], console: Console) -> bool:
    """Print the findings and what to do about them; return True if all checks passed."""
    well = True
    for finding in findings:
        well &= finding.ok
        mark = "ok  " if finding.ok else "FAIL"
        text = f"  {mark} {finding.what}: {finding.found}" + (f"\n       -> {finding.hint}" if finding.hint else "")
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    return well


def timed(run: Callable[[], str]) -> str:
    """The result of `run` and its duration."""
    began = time.perf_counter()
    text = run()
    return f"{text} in {time.perf_counter() - began:.0f} s"
