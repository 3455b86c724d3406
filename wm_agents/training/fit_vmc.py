"""Fits V (the VAE) and M (the MDN-RNN) of V-M-C to a dataset, and computes initial latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.models.loss import LossOutput
from wm_agents.models.vision import ConvVAE, Identity, to_input
from wm_agents.models.vmc import VMC
from wm_agents.system.replace import replacing
from wm_agents.system.state import write_state_tensors
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import encode_action
from wm_envs.precision import kinds_of, use_bf16
from wm_envs.world_model import Latent

WATCHED = 16_384
"""Number of frames from which the background and the frequency of motion are computed."""
POOL = 8192
"""Size of the shuffled pool of frames from which batches for V are drawn."""
RARE_SHARE = 8
"""With rewards as classes, one of N windows contains a rare step."""


class LatentSet(NamedTuple):
    """A dataset encoded by V, small enough for memory: 150 bytes per frame for z = 32.

    Episode e has frames offset[e] .. offset[e] + length[e], including the last; act, rew and term of a frame
    belong to the step that starts at it, and are 0 for the last.
    """

    mu: Tensor
    """(frames, Z): float16 for images, float32 for vectors."""
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
    """Encode every frame.

    Raises:
        ValueError: there are no episodes.
    """
    dtype = torch.float16
    if isinstance(model.vision, Identity):
        dtype = torch.float32
    mus, sigmas, acts, rews, terms, lengths = [], [], [], [], [], []
    for ep in dataset.iter_episodes():
        steps = len(ep.rew)
        for at in range(0, steps + 1, batch_size):
            frames = torch.from_numpy(ep.obs[at : at + batch_size]).to(model.device)
            with _casting(model):
                mu, logsigma = model.vision.encode(to_input(frames))
            mus.append(mu.to("cpu", dtype))
            sigmas.append(logsigma.to("cpu", dtype))
        act = encode_action(model.act_space, ep.act)
        acts.append(np.concatenate([act, np.zeros_like(act[:1])]))
        rews.append(np.append(ep.rew, 0.0))
        terms.append(np.zeros(steps + 1))
        terms[-1][steps - 1] = float(ep.term)
        lengths.append(steps)
    if not lengths:
        raise ValueError(f"no episodes in {dataset.root}{dataset.skipped_note}; collect episodes first")
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


class _RareSteps(NamedTuple):
    """Rare steps that windows should contain; each kind is sampled equally often."""

    episode: NDArray[np.int64]
    t: NDArray[np.int64]
    chance: NDArray[np.float64]


def _rare_steps(data: LatentSet, episodes: NDArray[np.int64]) -> _RareSteps | None:
    """The steps of `episodes` with a reward other than the most common, and terminal steps; None if there are
    none."""
    episode = np.repeat(episodes, data.length[episodes])
    t = np.concatenate([np.arange(length) for length in data.length[episodes]])
    at = torch.from_numpy(data.offset[episode] + t)
    rew, term = data.rew[at].numpy(), data.term[at].numpy()
    values, kind, counts = np.unique(rew, return_inverse=True, return_counts=True)
    kind = np.where(term > 0, len(values), np.where(kind == counts.argmax(), -1, kind))
    rare = np.flatnonzero(kind >= 0)
    if not len(rare):
        return None
    share = 1 / np.bincount(kind[rare])[kind[rare]]
    return _RareSteps(episode[rare], t[rare], share / share.sum())


def sample_windows(
    data: LatentSet,
    num: int,
    length: int,
    rng: np.random.Generator,
    episodes: NDArray[np.int64],
    rare: _RareSteps | None = None,
) -> Windows:
    """Sample windows of `length` steps inside `episodes`; steps after the end of a short episode are masked.

    Windows beyond either end of an episode are shifted inside, so that its first and last steps are sampled
    as often as the others. One window in eight contains a `rare` step.
    """
    places = data.length[episodes] + length - 1
    picks = episodes[rng.choice(len(episodes), num, p=places / places.sum())]
    begin = rng.integers(1 - length, data.length[picks])
    if rare is not None:
        which = rng.choice(len(rare.t), num // RARE_SHARE, p=rare.chance)
        picks[: len(which)] = rare.episode[which]
        begin[: len(which)] = rare.t[which] - rng.integers(0, length, len(which))
    steps = data.length[picks]
    start = np.clip(begin, 0, np.maximum(steps - length, 0))
    t = start[:, None] + np.arange(length + 1)
    inside = t <= steps[:, None]
    index = torch.from_numpy(data.offset[picks, None] + np.minimum(t, steps[:, None]))
    mask = torch.from_numpy(inside[:, 1:].astype(np.float32))
    at = index[:, :-1]
    return Windows(
        data.mu[index].float(), data.logsigma[index].float(), data.act[at], data.rew[at], data.term[at], mask
    )


def fit_vision(
    model: VMC, dataset: Dataset, cfg: TrainingConfig, run_dir: Path, callbacks: tuple[Callback, ...] = ()
) -> TrainingResult:
    """Train V on random frames; for vectors, compute only mean and standard deviation.

    With a motion weight, the background is set once, to the median of training frames. Images of held-out
    frames above their reconstructions are written to `run_dir`/samples.
    """
    train, val = hold_out(dataset.num_episodes, cfg.seed)
    if isinstance(model.vision, Identity):
        return _fit_normaliser(model.vision, dataset, train, run_dir)

    if model.vision.still is not None:
        some = dataset.frames(WATCHED, np.random.default_rng(cfg.seed), train)
        model.vision.watch(torch.from_numpy(some).to(model.device))

    pool = _FramePool(dataset, cfg, train)

    held_out = torch.from_numpy(dataset.frames(512, np.random.default_rng(cfg.seed), val))
    samples = SampleCallback(model.vision, held_out[:: len(held_out) // 8])
    trainer = Trainer(model.vision, cfg, (*callbacks, samples), loss=model.vision_loss, run_dir=run_dir)
    return _fit(model, trainer, pool.batch, lambda: model.vision_loss(trainer.fabric.to_device(held_out)))


class _FramePool:
    """Random frames for V from a shuffled pool. Adjacent frames are cheap to read together, but are too
    similar for a batch.

    With eight adjacent frames per run, a batch of 64 is worth about a dozen frames, and V misses Pong's ball.
    """

    def __init__(self, dataset: Dataset, cfg: TrainingConfig, episodes: NDArray[np.int64]) -> None:
        self.dataset, self.cfg, self.episodes = dataset, cfg, episodes
        self.deals = max(POOL // cfg.batch_size, 1)
        self._pool, self._number = np.zeros(0), -1

    def batch(self, update: int) -> Tensor:
        """The frames (batch_size, S, S, C) of an update, the same in every call."""
        number, deal = divmod(update, self.deals)
        if number != self._number:
            size = self.deals * self.cfg.batch_size
            self._pool = self.dataset.frames(size, self.cfg.rng(number * self.deals), self.episodes)
            self._number = number
        return torch.from_numpy(self._pool[deal :: self.deals])


def fit_memory(
    model: VMC,
    data: LatentSet,
    cfg: TrainingConfig,
    run_dir: Path,
    window: int = 64,
    callbacks: tuple[Callback, ...] = (),
) -> TrainingResult:
    """Train M on windows of latents, with z sampled in every batch; classes of rewards are collected
    first."""
    train, val = hold_out(len(data.length), cfg.seed)
    held_out = sample_windows(data, 256, window, np.random.default_rng(cfg.seed), val)
    rare = None
    if model.classes is not None:
        model.classes.learn(data.rew[_steps(data)])
        rare = _rare_steps(data, train)

    def batches(update: int) -> Windows:
        return sample_windows(data, cfg.batch_size, window, cfg.rng(update), train, rare)

    trainer = Trainer(model.memory, cfg, callbacks, loss=lambda w: model.memory_loss(*w), run_dir=run_dir)
    return _fit(model, trainer, batches, lambda: model.memory_loss(*trainer.fabric.to_device(held_out)))


def _fit(
    model: VMC, trainer: Trainer, batches: Callable[[int], Tensor | Windows], validate: Callable[[], LossOutput]
) -> TrainingResult:
    """Fit one part of `model` and load its best weights; the other parts move to the same device."""
    model.to(trainer.fabric.device)
    result = trainer.fit(batches, lambda: float(validate().loss))
    trainer.load_best()
    return result


class SampleCallback(Callback):
    """Writes frames above their reconstructions to samples/update_<n>.png, every few validations and at the
    end."""

    def __init__(self, vision: ConvVAE, frames: Tensor, every: int = 2) -> None:
        """`frames` are (N, S, S, 3) uint8; each is a column of the image."""
        self.vision, self.frames, self.every = vision, frames, every

    def on_validation(self, trainer: Trainer, value: float) -> None:
        at_end = trainer.update >= trainer.target
        if at_end or (trainer.update // trainer.cfg.eval_interval) % self.every == 0:
            frames = trainer.fabric.to_device(self.frames)
            recon = trainer.quietly(lambda: self.vision.decode_obs(self.vision.encode(to_input(frames))[0]))
            columns = torch.cat([frames, recon], dim=1)  # (N, 2 S, S, 3)
            picture = torch.cat(list(columns), dim=1).cpu().numpy()
            with replacing(trainer.run_dir / "samples" / f"update_{trainer.update:08d}.png") as tmp:
                tmp.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


@torch.inference_mode()
def make_starts(
    model: VMC,
    data: LatentSet,
    num: int,
    rng: np.random.Generator,
    episodes: NDArray[np.int64] | None = None,
    burn_in: int = 16,
) -> dict[str, Latent]:
    """Initial latents from real episodes: "begin" (first frames) and "anywhere" (after `burn_in` frames).

    `episodes` limits the episodes; default: all. If all are short, `burn_in` is at most half of the longest.
    """
    if episodes is None:
        episodes = np.arange(len(data.offset))
    # A longer burn-in would leave few initial latents, all close to the end of an episode.
    burn_in = min(burn_in, int(data.length[episodes].max()) // 2)
    begin = data.offset[rng.choice(episodes, num)]
    empty = model.initial(num)
    long = episodes[data.length[episodes] > burn_in]
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
    """Set the scale of rewards from all rewards, once before the first fit of M."""
    model.rew_scale.fill_(1.0)
    model.scale_rewards(data.rew[_steps(data)].to(model.device))


def _steps(data: LatentSet) -> Tensor:
    """(frames,) bool: a step starts at the frame, which is not the last of its episode."""
    steps = torch.ones(len(data.rew), dtype=torch.bool)
    steps[torch.from_numpy(data.offset + data.length)] = False
    return steps


def _fit_normaliser(vision: Identity, dataset: Dataset, train: NDArray[np.int64], run_dir: Path) -> TrainingResult:
    frames = dataset.frames(min(50_000, dataset.num_frames), np.random.default_rng(0), train)
    vision.fit(torch.from_numpy(frames))
    write_state_tensors(run_dir / "best.safetensors", vision.state_dict(), {})
    return TrainingResult(0, None, 0.0, "done")


def _casting(model: VMC) -> torch.autocast:
    bf16 = use_bf16("auto", kinds_of(model.vision), model.device)
    return torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)
