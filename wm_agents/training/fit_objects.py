"""Fits an object model to a dataset of images, and computes initial latents.

Every frame is encoded once. The slots are cached beside the data, one file per shard.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.models.objects import Objects, Transitions
from wm_agents.models.slots import LONGEST
from wm_agents.system.state import DamagedState, read_state_tensors, write_state_tensors
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import encode_action
from wm_envs.world_model import Latent

Ints = NDArray[np.int64]

FITTED = 1000
"""Number of frames in which objects are searched."""
AT_ONCE = 64
"""Number of frames that are encoded together."""
NEAR = 24.0
"""Maximum distance in pixels, along both axes, of the centres of two objects that count as near each other."""
VALIDATED = 4096
"""Maximum number of held-out steps for validation."""
FEW_ENDS = 2
"""Minimum number of episodes that ended at a count of rewards, for the count to be a limit."""


class _SlotSet(NamedTuple):
    """The slots of every frame of a dataset, and the step from each frame; the last frame of an episode has no step."""

    place: Tensor
    """(F, K, 2), positions; the last known ones for invisible objects"""
    here: Tensor
    """(F, K)"""
    age: Tensor
    """(F, K), steps since the object appeared or disappeared, as in `Objects`"""
    score: Tensor
    """(F, 2), number of negative and positive rewards since the episode started"""
    act: Tensor
    """(F, A), encoded"""
    rew: Tensor
    """(F,)"""
    term: Tensor
    """(F,)"""
    first: Ints
    """(F,), the first frame of the same episode"""
    leaving: Ints
    """(N,), the frames with a step, in order"""
    near: Ints
    """The frames of `leaving` in which two objects are near each other"""
    episode: Ints
    """(F,)"""

    def latent(self, frame: Ints, history: int) -> Latent:
        """The latent of the model at the frames (B,)."""
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
        """The transitions that start at the frames (B,), each of which must have a step, as those of `leaving`."""
        now = torch.from_numpy(frame)
        seen = self.place[now + 1], self.here[now + 1]
        return Transitions(self.latent(frame, history), self.act[now], self.rew[now], self.term[now], *seen)

    def pick(self, num: int, rng: np.random.Generator) -> Ints:
        """Sample `num` frames for training.

        Half of them are from the newest quarter of the data, the others from all data. In each half, every second frame
        has two objects near each other. Frames are selected only by their own state: a selection by what happens next
        would bias the learned probabilities.
        """
        recent, near = rng.random((2, num)) < 0.5
        since = self.leaving[len(self.leaving) * 3 // 4]
        frames = _draw(self.leaving, since, recent, rng)
        if len(self.near):
            return np.where(near, _draw(self.near, since, recent, rng), frames)
        return frames


def read_slots(model: Objects, dataset: Dataset, cache: Path) -> _SlotSet:
    """Encode all frames of `dataset`. The slots of each shard are cached in the folder `cache`.

    Raises:
        ValueError: the dataset has no episodes.
    """
    if not dataset.num_episodes:
        raise ValueError(f"no readable episodes in {dataset.root}; skipped files: {dataset.skipped or 'none'}")
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
    return _SlotSet(place, here, age, score, act, rew, term, begins[episode], leaving, near, episode)


def fit_eye(model: Objects, dataset: Dataset, rng: np.random.Generator) -> None:
    """Find background and objects in frames of all episodes."""
    frames = torch.from_numpy(dataset.frames(min(FITTED, dataset.num_frames), rng))
    model.eye.fit(frames.movedim(1, -1) if model.channels_first else frames)


def fit_limits(model: Objects, data: _SlotSet) -> _SlotSet:
    """Set the reward limits at which episodes end, and return the data without the terminations that they explain.

    A limit of one sign is taken for the other, too, if no episode has come so far: most games are symmetric, and
    without a limit a dream could not be won.
    """
    counts = torch.stack([data.rew < 0, data.rew > 0], 1).float()
    after, steps = data.score + counts, torch.from_numpy(data.leaving)
    ends = data.term[steps] > 0
    limits = torch.tensor([_limit(after[steps, side], counts[steps, side] > 0, ends) for side in (0, 1)])
    unseen = limits.isinf() & (after[steps].amax(0) < limits.min())
    model.limit.copy_(torch.where(unseen, limits.min(), limits))
    told = ((after >= model.limit) & (counts > 0)).any(1)
    return data._replace(term=data.term * ~told)


def fit_objects(
    model: Objects, data: _SlotSet, cfg: TrainingConfig, run_dir: Path, callbacks: tuple[Callback, ...] = ()
) -> TrainingResult:
    """Train the dynamics model on the slots, starting from its current weights."""
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


def make_starts(data: _SlotSet, history: int, num: int, rng: np.random.Generator, recent: Ints) -> dict[str, Latent]:
    """Initial latents from real episodes: "begin" (first frames), and "anywhere" (half from `recent` episodes)."""
    newest = data.leaving[np.isin(data.episode[data.leaving], recent)]
    anywhere = np.concatenate([rng.choice(newest, num // 2), rng.choice(data.leaving, num - num // 2)])
    begin = rng.choice(np.unique(data.first), num)
    return {name: data.latent(frames, history) for name, frames in (("begin", begin), ("anywhere", anywhere))}


def _draw(frames: Ints, since: np.int64, recent: NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """Sample one of the sorted `frames` for each entry of `recent`; for True entries, one from the frame `since` on."""
    low = min(int(np.searchsorted(frames, since)), len(frames) - 1)
    return frames[rng.integers(np.where(recent, low, 0), len(frames))]


def _limit(after: Tensor, counted: Tensor, ends: Tensor) -> float:
    """The count at which every episode that reached it ended, if there are enough of them; else infinite."""
    reached = after[ends & counted]
    if len(reached) < FEW_ENDS or (reached != reached[0]).any() or (after[~ends] >= reached[0]).any():
        return float("inf")
    return float(reached[0])


def _see_shard(
    model: Objects, dataset: Dataset, name: str, episodes: list[int], cache: Path
) -> list[tuple[Tensor, Tensor]]:
    """`place` and `here` of all frames of each episode of a shard."""
    path, vision = cache / f"{name}.safetensors", _fingerprint(model)
    lengths = (dataset.lengths[episodes] + 1).tolist()
    with suppress(FileNotFoundError, DamagedState):
        tensors, about = read_state_tensors(path)
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
    write_state_tensors(path, {"place": place.to(torch.int16), "here": here.bool()}, {"vision": vision})
    return [(place, here) for place, here in seen]


def _fingerprint(model: Objects) -> str:
    """A hash that is equal for two models with the same encoder."""
    eye = model.eye
    parts = (eye.background, eye.colour, eye.size.to(torch.int64), eye.used.to(torch.int64))
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


def _episode(model: Objects, dataset: Dataset, i: int, place: Tensor, here: Tensor) -> tuple[Tensor, ...]:
    """`place`, `here`, `age`, `score`, `act`, `rew` and `term` of an episode's frames; 0 for the missing last step."""
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
    """For each frame, the latest frame so far in which `flag` (F, K) is set; 0 if there is none."""
    latest: Tensor = (torch.arange(len(flag))[:, None] * (flag > 0)).cummax(0).values
    return latest


def _near(model: Objects, place: Tensor, here: Tensor) -> NDArray[np.bool_]:
    """(F,), whether two visible objects are near each other."""
    centre = place + model.eye.size / 2
    later, earlier = torch.tril_indices(here.shape[1], here.shape[1], -1)
    apart = (centre[:, later] - centre[:, earlier]).abs().amax(-1)
    both = here[:, later] * here[:, earlier] > 0
    close: NDArray[np.bool_] = (both & (apart <= NEAR)).any(1).numpy()
    return close
