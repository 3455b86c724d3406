"""How an object model is fitted to a dataset of pictures, and where its dreams start from.

Every frame is looked at once; what the slots held is kept beside the data, a file a shard.
"""

from __future__ import annotations

import hashlib
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.checkpoint import read_tensors
from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.models.objects import LONGEST, Objects, Transitions
from wm_agents.system.files import write_tensors
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import encode_action
from wm_envs.world_model import Latent

Ints = NDArray[np.int64]

FITTED = 1000
"""Frames that things are found in."""
AT_ONCE = 64
"""Frames looked at side by side."""
NEAR = 24.0
"""Pixels along both axes within which two things' centres are near each other: what touches next is among them."""
VALIDATED = 4096
"""Held-out steps for a validation, at most."""
FEW_ENDS = 2
"""Episodes that must have ended at one count of rewards before it is a limit."""


class SlotSet(NamedTuple):
    """Every frame of a dataset as the slots saw it, and the step that leaves it; an episode's last frame has none."""

    place: Tensor
    """(F, K, 2), the last known one where a thing is not seen"""
    here: Tensor
    """(F, K)"""
    age: Tensor
    """(F, K) steps since the thing came or went, as `Objects` counts them"""
    score: Tensor
    """(F, 2) rewards below and above 0 since the episode began"""
    act: Tensor
    """(F, A), encoded"""
    rew: Tensor
    """(F,)"""
    term: Tensor
    """(F,)"""
    first: Ints
    """(F,) the first frame of the same episode."""
    leaving: Ints
    """(N,) the frames that a step leaves, in the order they were played."""
    near: Ints
    """Those of `leaving` in which two things are near each other."""
    episode: Ints
    """(F,)"""

    def latent(self, frame: Ints, history: int) -> Latent:
        """What the model's latent was at the frames (B,)."""
        back = frame[:, None] - np.arange(history)[::-1]
        at = torch.from_numpy(np.maximum(back, self.first[frame][:, None]))
        acted = torch.from_numpy(back[:, :-1] >= self.first[frame][:, None]).float()[..., None]
        now = torch.from_numpy(frame)
        return {
            "place": self.place[at],
            "here": self.here[at],
            "acts": self.act[at[:, :-1]] * acted,
            "age": self.age[now],
            "score": self.score[now],
        }

    def transitions(self, frame: Ints, history: int) -> Transitions:
        """The steps that leave the frames (B,), all of `leaving`."""
        now = torch.from_numpy(frame)
        seen = self.place[now + 1], self.here[now + 1]
        return Transitions(self.latent(frame, history), self.act[now], self.rew[now], self.term[now], *seen)

    def pick(self, num: int, rng: np.random.Generator) -> Ints:
        """Frames to learn from: half of the newest quarter and half of all, half of each near and half any.

        What is near is drawn by the state alone. By its outcome it would not be the world's own chances that are
        learned.
        """
        recent, near = rng.random((2, num)) < 0.5
        since = self.leaving[len(self.leaving) * 3 // 4]
        frames = _draw(self.leaving, since, recent, rng)
        return np.where(near, _draw(self.near, since, recent, rng), frames) if len(self.near) else frames


def read_slots(model: Objects, dataset: Dataset, cache: Path) -> SlotSet:
    """All frames of `dataset` as `model` sees them; those of shards seen before come from the folder `cache`.

    Raises:
        ValueError: there is no episode.
    """
    if not dataset.num_episodes:
        raise ValueError(f"no episodes in {dataset.root} (skipped: {dataset.skipped}); collect some first")
    seen: list[tuple[Tensor, Tensor]] = []
    for name, part in groupby(range(dataset.num_episodes), dataset.shard_name):
        seen += _see_shard(model, dataset, name, list(part), cache)
    episodes = [_episode(model, dataset, i, *part) for i, part in enumerate(seen)]
    place, here, age, score, act, rew, term = (torch.cat(parts) for parts in zip(*episodes, strict=True))
    lengths = dataset.lengths + 1
    begins = np.cumsum(lengths) - lengths
    leaving = np.delete(np.arange(lengths.sum()), begins + lengths - 1)
    near = leaving[_near(model, place, here)[leaving]]
    episode = np.repeat(np.arange(len(lengths)), lengths)
    return SlotSet(place, here, age, score, act, rew, term, begins[episode], leaving, near, episode)


def fit_eye(model: Objects, dataset: Dataset, rng: np.random.Generator) -> None:
    """Find background and things in frames of all episodes."""
    frames = torch.from_numpy(dataset.frames(min(FITTED, dataset.num_frames), rng))
    model.eye.fit(frames.movedim(1, -1) if model.channels_first else frames)


def fit_limits(model: Objects, data: SlotSet) -> SlotSet:
    """Take in at which counts of rewards episodes end; ends that these explain are none of M's in what comes back."""
    counts = torch.stack([data.rew < 0, data.rew > 0], 1).float()
    after, steps = data.score + counts, torch.from_numpy(data.leaving)
    ends = data.term[steps] > 0
    limits = [_limit(after[steps, side], counts[steps, side] > 0, ends) for side in (0, 1)]
    model.limit.copy_(torch.tensor(limits))
    told = ((after >= model.limit) & (counts > 0)).any(1)
    return data._replace(term=data.term * ~told)


def fit_objects(
    model: Objects, data: SlotSet, cfg: TrainingConfig, run_dir: Path, callbacks: tuple[Callback, ...] = ()
) -> TrainingResult:
    """Train M on what the slots held, on from the weights it has."""
    model.rewards.learn(data.rew[torch.from_numpy(data.leaving)])
    history = model.cfg.history
    train, val = hold_out(int(data.episode[-1]) + 1, cfg.seed)
    learned = data._replace(
        leaving=data.leaving[np.isin(data.episode[data.leaving], train)],
        near=data.near[np.isin(data.episode[data.near], train)],
    )
    among = data.leaving[np.isin(data.episode[data.leaving], val)]
    some = np.random.default_rng(cfg.seed).choice(among, min(len(among), VALIDATED), replace=False)
    held_out = data.transitions(some, history)

    def batches(update: int) -> Transitions:
        return learned.transitions(learned.pick(cfg.batch_size, cfg.rng(update)), history)

    trainer = Trainer(model, cfg, callbacks, loss=model.transitions_loss, run_dir=run_dir)
    result = trainer.fit(batches, lambda: float(model.transitions_loss(trainer.fabric.to_device(held_out)).loss))
    trainer.load_best()
    return result


def make_starts(data: SlotSet, history: int, num: int, rng: np.random.Generator, recent: Ints) -> dict[str, Latent]:
    """Banks of latents of real moments: "begin" of all episodes, "anywhere" half of the episodes `recent`."""
    newest = data.leaving[np.isin(data.episode[data.leaving], recent)]
    anywhere = np.concatenate([rng.choice(newest, num // 2), rng.choice(data.leaving, num - num // 2)])
    begin = rng.choice(np.unique(data.first), num)
    return {name: data.latent(frames, history) for name, frames in (("begin", begin), ("anywhere", anywhere))}


def _draw(frames: Ints, since: np.int64, recent: NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """One of `frames` (sorted) for each entry of `recent`, from the frame `since` on where it is set."""
    low = min(int(np.searchsorted(frames, since)), len(frames) - 1)
    return frames[rng.integers(np.where(recent, low, 0), len(frames))]


def _limit(after: Tensor, counted: Tensor, ends: Tensor) -> float:
    """The count that ended every episode which came to it, and at which several did; infinite if there is none."""
    reached = after[ends & counted]
    if len(reached) < FEW_ENDS or (reached != reached[0]).any() or (after[~ends] >= reached[0]).any():
        return float("inf")
    return float(reached[0])


def _see_shard(
    model: Objects, dataset: Dataset, name: str, episodes: list[int], cache: Path
) -> list[tuple[Tensor, Tensor]]:
    """Place and here of every frame of a shard's episodes."""
    path, vision = cache / f"{name}.safetensors", _fingerprint(model)
    lengths = (dataset.lengths[episodes] + 1).tolist()
    if path.exists():
        tensors, about = read_tensors(path)
        if about.get("vision") == vision and len(tensors["here"]) == sum(lengths):
            places, heres = tensors["place"].float().split(lengths), tensors["here"].float().split(lengths)
            return list(zip(places, heres, strict=True))
    seen = []
    for i in episodes:
        frames = torch.from_numpy(dataset.episode(i).obs)
        looks = [model.eye.see(model.pixels(part)) for part in frames.split(AT_ONCE)]
        seen.append((torch.cat([look.place for look in looks]), torch.cat([look.here for look in looks])))
    place, here = (torch.cat(parts) for parts in zip(*seen, strict=True))
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"place": place.to(torch.int16), "here": here.bool()}, {"vision": vision})
    return [(place, here) for place, here in seen]


def _fingerprint(model: Objects) -> str:
    """Says whether two models see alike."""
    eye = model.eye
    parts = (eye.background, eye.colour, eye.size.to(torch.int64), eye.used.to(torch.int64))
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


def _episode(model: Objects, dataset: Dataset, i: int, place: Tensor, here: Tensor) -> tuple[Tensor, ...]:
    """Place, here, age, score, act, rew and term of an episode's frames, the step of the last one zero."""
    act, rew = dataset.steps(i)
    encoded = torch.from_numpy(encode_action(model.act_space, np.concatenate([act, act[-1:]])))
    rews = torch.from_numpy(np.append(rew, 0).astype(np.float32))
    changed = torch.cat([torch.zeros_like(here[:1]), (here[1:] != here[:-1]).float()])
    age = torch.arange(len(here))[:, None] - _latest(changed)
    earned = torch.stack([rews < 0, rews > 0], 1).float().cumsum(0)
    score = torch.cat([torch.zeros(1, 2), earned[:-1]])
    term = torch.zeros(len(rews))
    term[-2] = float(dataset.term[i])
    place = place.gather(0, _latest(here)[..., None].expand(-1, -1, 2))
    return place, here, age.float().clamp(max=LONGEST), score, encoded, rews, term


def _latest(flag: Tensor) -> Tensor:
    """The last frame up to each one where `flag` (F, K) is set; 0 before there is one."""
    latest: Tensor = (torch.arange(len(flag))[:, None] * (flag > 0)).cummax(0).values
    return latest


def _near(model: Objects, place: Tensor, here: Tensor) -> NDArray[np.bool_]:
    """(F,) whether two things that are seen are near each other."""
    centre = place + model.eye.size / 2
    later, earlier = torch.tril_indices(here.shape[1], here.shape[1], -1)
    apart = (centre[:, later] - centre[:, earlier]).abs().amax(-1)
    both = here[:, later] * here[:, earlier] > 0
    close: NDArray[np.bool_] = (both & (apart <= NEAR)).any(1).numpy()
    return close
