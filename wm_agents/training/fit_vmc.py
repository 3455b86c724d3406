"""How V and M are fitted to a dataset, and where dreams start from."""

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
from wm_agents.models.vmc import VMC, ConvVAE, Identity, to_input
from wm_agents.system.files import replacing, write_tensors
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import encode_action
from wm_envs.precision import kinds_of, use_bf16
from wm_envs.world_model import Latent

WATCHED = 16_384
"""Frames that say what stands still and what moves how often."""
POOL = 8192
"""Frames that V's batches are dealt from, then the next are drawn."""
RARE_SHARE = 8
"""With rewards as classes, one window in so many is drawn around a rare step."""


class LatentSet(NamedTuple):
    """A dataset through V's eyes, small enough for memory: 150 bytes a frame at z = 32.

    Episode e owns frames offset[e] .. offset[e] + length[e], its terminal frame included; act, rew and term at a frame
    are those of the step that leaves it, and 0 at the last.
    """

    mu: Tensor
    """(frames, Z): float16 for images, float32 for vectors, which are to lose nothing."""
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
    """See every frame once.

    Raises:
        ValueError: there is no episode to see.
    """
    dtype = torch.float32 if isinstance(model.vision, Identity) else torch.float16
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
        raise ValueError(f"no episodes in {dataset.root} (skipped: {dataset.skipped}); collect some first")
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


class RareSteps(NamedTuple):
    """Steps that windows are to be drawn around, each kind of them equally often."""

    episode: NDArray[np.int64]
    t: NDArray[np.int64]
    chance: NDArray[np.float64]


def rare_steps(data: LatentSet, episodes: NDArray[np.int64]) -> RareSteps | None:
    """The steps of `episodes` with any reward but the commonest, and those that end one; None if there are none."""
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
    return RareSteps(episode[rare], t[rare], share / share.sum())


def sample_windows(
    data: LatentSet,
    num: int,
    length: int,
    rng: np.random.Generator,
    episodes: NDArray[np.int64],
    rare: RareSteps | None = None,
) -> Windows:
    """Windows of `length` steps inside `episodes`; short episodes are masked out behind their end.

    A window may be drawn to stick out at either end and is then pushed back inside, so that the first and last steps
    of an episode, its end among them, are seen no less often than those between. One in eight holds a `rare` step.
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
    """Train V on random frames; vectors only need their mean and spread.

    A V that sees what moves gets its still frame here, once: the median of training frames. Pictures of held-out
    frames above their reconstructions go into `run_dir`/samples.
    """
    train, val = hold_out(dataset.num_episodes, cfg.seed)
    if isinstance(model.vision, Identity):
        return _fit_normaliser(model.vision, dataset, train, run_dir)

    if model.vision.still is not None:
        some = dataset.frames(WATCHED, np.random.default_rng(cfg.seed), train)
        model.vision.watch(torch.from_numpy(some).to(model.device))

    pool = FramePool(dataset, cfg, train)

    held_out = torch.from_numpy(dataset.frames(512, np.random.default_rng(cfg.seed), val))
    samples = SampleCallback(model.vision, held_out[:: len(held_out) // 8])
    trainer = Trainer(model.vision, cfg, (*callbacks, samples), loss=model.vision_loss, run_dir=run_dir)
    return _fit(model, trainer, pool.batch, lambda: model.vision_loss(trainer.fabric.to_device(held_out)))


class FramePool:
    """Random frames for V, dealt out of a pool: neighbours are cheap to read together and must not be learned together.

    With eight neighbours to a batch, 64 frames tell as much as a dozen, and V never found Pong's ball.
    """

    def __init__(self, dataset: Dataset, cfg: TrainingConfig, episodes: NDArray[np.int64]) -> None:
        self.dataset, self.cfg, self.episodes = dataset, cfg, episodes
        self.deals = max(POOL // cfg.batch_size, 1)
        self._pool, self._number = np.zeros(0), -1

    def batch(self, update: int) -> Tensor:
        """The frames (batch_size, S, S, C) of an update, the same whenever they are asked for."""
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
    """Train M on windows of latents, z drawn anew each time; rewards as classes are taken in first."""
    train, val = hold_out(len(data.length), cfg.seed)
    held_out = sample_windows(data, 256, window, np.random.default_rng(cfg.seed), val)
    rare = None
    if model.classes is not None:
        model.classes.learn(data.rew[_steps(data)])
        rare = rare_steps(data, train)

    def batches(update: int) -> Windows:
        return sample_windows(data, cfg.batch_size, window, cfg.rng(update), train, rare)

    trainer = Trainer(model.memory, cfg, callbacks, loss=lambda w: model.memory_loss(*w), run_dir=run_dir)
    return _fit(model, trainer, batches, lambda: model.memory_loss(*trainer.fabric.to_device(held_out)))


def _fit(
    model: VMC, trainer: Trainer, batches: Callable[[int], Tensor | Windows], validate: Callable[[], LossOutput]
) -> TrainingResult:
    """Fit one part of `model` and leave it with its best weights; the rest of it moves to the same device."""
    model.to(trainer.fabric.device)
    result = trainer.fit(batches, lambda: float(validate().loss))
    trainer.load_best()
    return result


class SampleCallback(Callback):
    """Draws frames above their reconstructions into samples/update_<n>.png, every few validations and at the end."""

    def __init__(self, vision: ConvVAE, frames: Tensor, every: int = 2) -> None:
        """`frames` are (N, S, S, 3) uint8, a column each."""
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
    """Banks of latents of real moments: "begin" (first frames) and "anywhere" (`burn_in` frames taken in).

    `episodes` are those to draw from; all unless given. Where all are short, half of the longest is taken in at most.
    """
    among = np.arange(len(data.offset)) if episodes is None else episodes
    # More would leave few moments to start from, all of them just before an end.
    burn_in = min(burn_in, int(data.length[among].max()) // 2)
    begin = data.offset[rng.choice(among, num)]
    empty = model.initial(num)
    long = among[data.length[among] > burn_in]
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
    """Take the unit of rewards from all of them; once, before M's first fit."""
    model.rew_scale.fill_(1.0)
    model.scale_rewards(data.rew[_steps(data)].to(model.device))


def _steps(data: LatentSet) -> Tensor:
    """(frames,) bool: a step leaves the frame; none leaves the last of an episode."""
    steps = torch.ones(len(data.rew), dtype=torch.bool)
    steps[torch.from_numpy(data.offset + data.length)] = False
    return steps


def _fit_normaliser(vision: Identity, dataset: Dataset, train: NDArray[np.int64], run_dir: Path) -> TrainingResult:
    frames = dataset.frames(min(50_000, dataset.num_frames), np.random.default_rng(0), train)
    vision.fit(torch.from_numpy(frames))
    write_tensors(run_dir / "best.safetensors", vision.state_dict())
    return TrainingResult(0, None, 0.0, "done")


def _casting(model: VMC) -> torch.autocast:
    bf16 = use_bf16("auto", kinds_of(model.vision), model.device)
    return torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)
