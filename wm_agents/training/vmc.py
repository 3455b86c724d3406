"""How V and M are fitted to a dataset, and where dreams start from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from wm_agents.checkpoint import load_weights
from wm_agents.data.dataset import Dataset, split_episodes
from wm_agents.hardware import has_bf16
from wm_agents.models.vmc import VMC, Identity, to_input
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import encode_action
from wm_envs.world_model import Latent

VAL_FRACTION = 0.05


class LatentSet(NamedTuple):
    """A dataset through V's eyes, small enough for memory: 150 bytes a frame at z = 32.

    Episode e owns frames offset[e] .. offset[e] + length[e], its terminal frame included; act, rew and term at a frame
    are those of the step that leaves it, and 0 at the last.
    """

    mu: Tensor
    """(frames, Z) float16"""
    logsigma: Tensor
    act: Tensor
    """(frames, A) float32, encoded"""
    rew: Tensor
    """(frames,)"""
    term: Tensor
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    """Steps of each episode."""


@torch.inference_mode()
def encode_dataset(model: VMC, dataset: Dataset, batch_size: int = 512) -> LatentSet:
    """See every frame once."""
    mus, sigmas, acts, rews, terms, lengths = [], [], [], [], [], []
    for ep in dataset.iter_episodes():
        steps = len(ep.rew)
        for at in range(0, steps + 1, batch_size):
            frames = torch.from_numpy(ep.obs[at : at + batch_size]).to(model.device)
            with _casting(model):
                mu, logsigma = model.vision.encode(to_input(frames))
            mus.append(mu.half().cpu())
            sigmas.append(logsigma.half().cpu())
        act = encode_action(model.act_space, ep.act)
        acts.append(np.concatenate([act, np.zeros_like(act[:1])]))
        rews.append(np.append(ep.rew, 0.0))
        terms.append(np.append(np.zeros(steps), 0.0))
        terms[-1][steps - 1] = float(ep.term)
        lengths.append(steps)
    length = np.array(lengths, np.int64)
    offset = np.concatenate([[0], np.cumsum(length + 1)[:-1]])

    def join(parts: list[NDArray[np.float64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).float()

    return LatentSet(torch.cat(mus), torch.cat(sigmas), join(acts), join(rews), join(terms), offset, length)


class Windows(NamedTuple):
    """Arguments of `VMC.memory_loss`."""

    mu: Tensor
    logsigma: Tensor
    act: Tensor
    rew: Tensor
    term: Tensor
    mask: Tensor


def sample_windows(
    data: LatentSet, num: int, length: int, rng: np.random.Generator, episodes: NDArray[np.int64]
) -> Windows:
    """Windows of `length` steps inside `episodes`, every step as likely as any other; short episodes are masked out
    behind their end."""
    weight = data.length[episodes] / data.length[episodes].sum()
    picks = episodes[rng.choice(len(episodes), num, p=weight)]
    room = np.maximum(data.length[picks] - length, 0)
    start = (rng.random(num) * (room + 1)).astype(np.int64)
    steps = np.arange(length + 1)
    inside = start[:, None] + steps <= data.length[picks, None]
    index = torch.from_numpy(data.offset[picks, None] + np.minimum(start[:, None] + steps, data.length[picks, None]))
    mask = torch.from_numpy(inside[:, 1:].astype(np.float32))
    at = index[:, :-1]
    return Windows(
        data.mu[index].float(), data.logsigma[index].float(), data.act[at], data.rew[at], data.term[at], mask
    )


def fit_vision(
    model: VMC, dataset: Dataset, cfg: TrainingConfig, run_dir: Path, callbacks: tuple[Callback, ...] = ()
) -> TrainingResult:
    """Train V on random frames; vectors only need their mean and spread."""
    train, val = split_episodes(dataset.num_episodes, VAL_FRACTION, cfg.seed)
    if isinstance(model.vision, Identity):
        return _fit_normaliser(model.vision, dataset, train)

    def batches(update: int) -> Tensor:
        frames = dataset.frames(cfg.batch_size, cfg.rng(update), train)
        return torch.from_numpy(frames)

    held_out = torch.from_numpy(dataset.frames(512, np.random.default_rng(cfg.seed), val))
    trainer = Trainer(model.vision, cfg, run_dir, loss=model.vision_loss, callbacks=callbacks)
    result = trainer.fit(batches, lambda: float(model.vision_loss(held_out.to(model.device)).loss), resume=True)
    load_weights(model.vision, load_file(run_dir / "best.safetensors"))
    return result


def fit_memory(
    model: VMC,
    data: LatentSet,
    cfg: TrainingConfig,
    run_dir: Path,
    window: int = 64,
    callbacks: tuple[Callback, ...] = (),
) -> TrainingResult:
    """Train M on windows of latents, z drawn anew each time."""
    train, val = split_episodes(len(data.length), VAL_FRACTION, cfg.seed)
    held_out = sample_windows(data, 256, window, np.random.default_rng(cfg.seed), val)

    def batches(update: int) -> Windows:
        return sample_windows(data, cfg.batch_size, window, cfg.rng(update), train)

    trainer = Trainer(model.memory, cfg, run_dir, loss=lambda w: model.memory_loss(*w), callbacks=callbacks)
    result = trainer.fit(batches, lambda: float(model.memory_loss(*held_out).loss), resume=True)
    load_weights(model.memory, load_file(run_dir / "best.safetensors"))
    return result


@torch.inference_mode()
def make_starts(
    model: VMC, data: LatentSet, num: int, rng: np.random.Generator, burn_in: int = 16
) -> dict[str, Latent]:
    """Banks of latents of real moments: "begin" (first frames) and "anywhere" (`burn_in` frames taken in)."""
    begin = data.offset[rng.choice(len(data.offset), num)]
    empty = model.initial(num)
    long = np.flatnonzero(data.length > burn_in)
    if not len(long):
        raise ValueError(f"no episode is longer than {burn_in} steps; collect longer ones or lower burn_in")
    picks = rng.choice(long, num, p=data.length[long] / data.length[long].sum())
    at = data.offset[picks] + (rng.random(num) * (data.length[picks] - burn_in)).astype(np.int64)
    latent = empty
    for t in range(burn_in):
        z = data.mu[at + t].float().to(model.device)
        h, c = model.memory.advance(z, data.act[at + t].to(model.device), latent["h"], latent["c"])
        latent = {"z": z, "h": h, "c": c}
    latent["z"] = data.mu[at + burn_in].float().to(model.device)
    return {"begin": {**empty, "z": data.mu[begin].float().to(model.device)}, "anywhere": latent}


def set_reward_scale(model: VMC, data: LatentSet) -> None:
    """Rewards are learned in units of their spread; set once, before M's first fit."""
    model.rew_scale.fill_(max(float(data.rew.std()), 1e-3))


def _fit_normaliser(vision: Identity, dataset: Dataset, train: NDArray[np.int64]) -> TrainingResult:
    frames = dataset.frames(min(50_000, dataset.num_frames), np.random.default_rng(0), train)
    vision.mean.copy_(torch.from_numpy(frames.mean(0)))
    vision.std.copy_(torch.from_numpy(frames.std(0)).clamp(min=1e-3))
    return TrainingResult(0, 0.0, 0.0, "done")


def _casting(model: VMC) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=has_bf16(model.device))
