"""A world model of objects: its latent contains object positions in whole pixels, and all its predictions are discrete.

The encoder (`Slots`) finds objects by their colour. The dynamics model (`Heads`) samples the slots of the next frame
from those of the last frames and actions, one object after another, the largest first. For each object it samples
whether it is visible, and by how many rows and columns it moves; or, for a new object, at which row and column it
appears. Each prediction is conditioned on the previous ones. Reward and termination come last. Positions stay exact, so
a dream of 10,000 steps is as sharp as its first frame.

The model can end an episode when the number of negative or positive rewards reaches a limit (21 in Pong). The numbers
are part of the latent, and the limits are inferred from the recorded episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from wm_agents.errors import strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.loss import LossOutput
from wm_agents.models.mdrnn_kernels import is_dream
from wm_agents.models.model import Model
from wm_agents.models.objects_heads import Dice, Heads
from wm_agents.models.objects_rows import ObjectsRows
from wm_agents.models.rewards import RewardClasses
from wm_agents.models.slots import LONGEST, Slots, Waves
from wm_envs.fields import at_least, at_most
from wm_envs.frames import frame_shape
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch


@strict(ELSEWHERE)
@dataclass(frozen=True)
class ObjectsConfig(WorldModelConfig):
    """Sizes of an object model."""

    family: ClassVar[str] = "objects"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ci": {"slots": 2, "hidden": 32, "head": 16, "dropout": 0.0},
        "default": {},
    }

    slots: int = field(default=4, metadata=at_least(1))
    """Maximum number of objects; each has its own colour."""
    history: int = field(default=4, metadata=at_least(2))
    """Number of frames on which the next one depends."""
    reach: int = field(default=32, metadata=at_least(1))
    """Maximum movement of an object per step and axis, in pixels; faster objects count as new ones."""
    hidden: int = field(default=256, metadata=at_least(1))
    """Width of the two layers that all heads share."""
    head: int = field(default=128, metadata=at_least(1))
    """Width of the hidden layer of each head."""
    dropout: float = field(default=0.5, metadata=at_least(0) | at_most(0.9))
    """Share of the shared layers' units that are dropped in training; without it, few contacts are learned by heart."""


class Transitions(NamedTuple):
    """Steps of real episodes: latent, act -> rew, and the objects of the next frame."""

    latent: Latent
    act: Tensor
    """(B, A), encoded"""
    rew: Tensor
    """(B,)"""
    term: Tensor
    """(B,), 1 if the step terminated the episode for another reason than a reward limit"""
    place: Tensor
    """(B, K, 2), positions; the last known ones for invisible objects"""
    here: Tensor
    """(B, K), 1 for visible objects"""


class Objects(Model):
    """The world model of K objects.

    Its latent contains the last T frames: `place` (B, T, K, 2), positions in pixels; `here` (B, T, K), 1 for visible
    objects; `acts` (B, T-1, A), the actions between the frames; `age` (B, K), steps since each object appeared or
    disappeared; `score` (B, 2), the number of negative and positive rewards since the episode started, if known.
    """

    family: ClassVar[str] = "objects"
    threaded_from: ClassVar[int] = 4096  # As in `Ensemble`: many short operations.
    cfg: ObjectsConfig

    def __init__(self, cfg: ObjectsConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        frame = frame_shape(obs_space)
        if frame is None:
            raise ValueError(
                f"the family 'objects' needs (H, W, C) uint8 pixels, got {obs_space}; use 'ensemble' for vectors"
            )
        channels, height, width = frame
        self.channels_first = tuple(obs_space.shape or ()) == frame
        self.eye = Slots(cfg.slots, height, width, channels)
        self.waves = Waves(max(height, width))
        self.limit: Tensor
        # Numbers of negative and of positive rewards at which an episode terminates; infinite if there is no limit.
        self.register_buffer("limit", torch.full((2,), torch.inf))
        later, earlier = torch.tril_indices(cfg.slots, cfg.slots, -1)
        self.later: Tensor
        self.earlier: Tensor
        self.register_buffer("later", later, persistent=False)
        self.register_buffer("earlier", earlier, persistent=False)
        self.feat_dim = self.feat(self.initial(1)).shape[1]
        in_dim = self.inputs(self.initial(1)).shape[1] + self.actions
        self.heads = Heads(cfg, in_dim, (height, width), self.waves)
        self.rewards = RewardClasses()

    def initial(self, num: int) -> Latent:
        cfg, zeros = self.cfg, torch.zeros
        return {
            "place": zeros(num, cfg.history, cfg.slots, 2, device=self.device),
            "here": zeros(num, cfg.history, cfg.slots, device=self.device),
            "acts": zeros(num, cfg.history - 1, self.actions, device=self.device),
            "age": zeros(num, cfg.slots, device=self.device),
            "score": zeros(num, 2, device=self.device),
        }

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Update the latent with a frame. The first frame of an episode fills the whole history; `score` is kept."""
        place, here = self.eye.see(self.pixels(obs))
        if latent is None or act is None:
            return self._opening(place, here)
        after = self.advance(latent, act, place, here)
        if first is None:
            return after
        opening = self._opening(place, here)
        return {key: torch.where(_like(first, leaf), opening[key], leaf) for key, leaf in after.items()}

    def _opening(self, place: Tensor, here: Tensor) -> Latent:
        """The latent of the first frame of an episode."""
        return {
            **self.initial(len(here)),
            "place": place[:, None].repeat(1, self.cfg.history, 1, 1),
            "here": here[:, None].repeat(1, self.cfg.history, 1),
        }

    def advance(self, latent: Latent, act: Tensor, place: Tensor, here: Tensor) -> Latent:
        """The latent after action `act` and the next frame. `score` does not change.

        Args:
            place: positions (B, K, 2) of the objects in the frame.
            here: (B, K), 1 for objects that are in the frame, else 0.
        """
        place = torch.where(here[..., None] > 0, place, latent["place"][:, -1])
        same = (here == latent["here"][:, -1]).float()
        return {
            "place": torch.cat([latent["place"][:, 1:], place[:, None]], 1),
            "here": torch.cat([latent["here"][:, 1:], here[:, None]], 1),
            "acts": torch.cat([latent["acts"][:, 1:], act[:, None].to(latent["acts"].dtype)], 1),
            "age": ((latent["age"] + 1) * same).clamp(max=LONGEST),
            "score": latent["score"],
        }

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step. The temperature divides the logits of every head; 0 takes the most likely classes."""
        num = len(latent["age"])
        self.check_act(act, num)
        chance = None
        if temperature > 0:
            # The CDF of a normal sample is uniform.
            chance = torch.special.ndtr(draw_normal(num, 3 * self.cfg.slots + 2, generator, self.device))
            if self._in_rows(latent):
                return ObjectsRows.of(self).step(latent, act, chance, temperature)
        drawn = self.heads.draw(self.inputs(latent), act, latent, self.eye.count, self._odds, Dice(chance, temperature))
        after = self.advance(latent, act, drawn.place, drawn.here)
        rew = self.rewards.values[drawn.rew]
        counts = torch.stack([rew < 0, rew > 0], 1).float()
        after["score"] = latent["score"] + counts
        # An unknown score may exceed a limit at once, so only a step that changes the count terminates.
        over = ((after["score"] >= self.limit) & (counts > 0)).any(1)
        return Step(after, rew, torch.where(over, 0.0, 1 - drawn.end_chance), over | drawn.end)

    def _in_rows(self, latent: Latent) -> bool:
        """Whether `ObjectsRows` computes `step` and `feat`."""
        return is_dream(latent["age"]) and not (self.training or torch.is_autocast_enabled("cpu"))

    def decode(self, latent: Latent) -> Tensor:
        frames = self.eye.paint(latent["place"][:, -1], latent["here"][:, -1])
        if self.channels_first:
            return frames.movedim(-1, 1).contiguous()
        return frames

    def feat(self, latent: Latent) -> Tensor:
        """Positions and movements of the objects, their distances to each other and to the borders, and the actions."""
        if self._in_rows(latent):
            return ObjectsRows.of(self).feat(latent)
        here, age, now = latent["here"], latent["age"], latent["place"][:, -1]
        both, seen, pair = self._visible(here)
        centre = now + self.eye.size / 2
        frame = centre.new_tensor([self.eye.height, self.eye.width])
        moved, room = _moved(latent) * both, frame - self.eye.size - now
        parts = [
            here,
            (2 * centre / frame - 1) * seen,
            torch.tanh(now / 6) * seen,
            torch.tanh(room / 6) * seen,
            moved / 8,
            torch.tanh(moved / 2),
            _scaled(self._apart(centre)) * pair,
            age / LONGEST,
            torch.tanh(age / 4),
            latent["acts"],
        ]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def inputs(self, latent: Latent) -> Tensor:
        """The inputs of the dynamics, which have to predict single pixels: as `feat`, but positions, movements and
        distances as waves.
        """
        here, age, now = latent["here"], latent["age"], latent["place"][:, -1]
        both, seen, pair = self._visible(here)
        parts = [
            here,
            self.waves(now) * seen,
            self.waves(_moved(latent)) * both,
            self.waves(self._apart(now)) * pair,
            age / LONGEST,
            torch.tanh(age / 4),
            latent["acts"],
        ]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def _visible(self, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1 for objects (B, T-1, K, 1) that are visible before and after a step, objects (B, K, 1) that are visible
        now, and pairs (B, P, 1) of them."""
        seen = here[:, -1, :, None]
        return (here[:, 1:] * here[:, :-1])[..., None], seen, seen[:, self.later] * seen[:, self.earlier]

    def _apart(self, points: Tensor) -> Tensor:
        """The distances (B, P, 2) of all pairs of points (B, K, 2)."""
        return points[:, self.later] - points[:, self.earlier]

    def loss(self, batch: Batch) -> LossOutput:
        """`transitions_loss` of all steps of the windows, without reward limits and without frames before a window.

        In training mode the first batch defines the objects, and every batch adds the rewards that occur.
        """
        if self.training:
            if not self.eye.count:
                self.eye.fit(self.pixels(batch.obs.flatten(0, 1)))
            self.rewards.learn(batch.rew)
        latents = [self.encode(batch.obs[:, 0])]
        for t in range(batch.act.shape[1]):
            latents.append(self.encode(batch.obs[:, t + 1], latents[-1], batch.act[:, t], batch.first[:, t + 1]))
        mine = ~batch.first[:, 1:]
        before, after = (
            {key: torch.stack([latent[key] for latent in part], 1)[mine] for key in latents[0]}
            for part in (latents[:-1], latents[1:])
        )
        seen = after["place"][:, -1], after["here"][:, -1]
        outcome = batch.act[mine], batch.rew[mine], batch.term[mine].float()
        return self.transitions_loss(Transitions(before, *outcome, *seen))

    def transitions_loss(self, transitions: Transitions) -> LossOutput:
        """The sum of the cross-entropies of all predictions of a step, each conditioned on the real previous ones."""
        latent, seen = transitions.latent, (transitions.place, transitions.here)
        taught = self.heads.teach(self.inputs(latent), transitions.act, latent, self.eye.count, *seen)
        parts = {
            **taught.parts,
            "rew": self.rewards.loss(taught.rew, transitions.rew).mean(),
            "end": F.binary_cross_entropy_with_logits(taught.end, transitions.term),
        }
        return LossOutput(torch.stack(list(parts.values())).sum(), parts, {})

    def _odds(self, logits: Tensor) -> Tensor:
        """Logits of the rewards that occur, corrected for the weights of the loss."""
        weights = self.rewards.weights
        return (logits - weights.log()).where(weights > 0, -torch.inf)

    def pixels(self, obs: Tensor) -> Tensor:
        """Observations as uint8 frames (B, H, W, C)."""
        obs = self.take_obs(obs)
        frames = obs
        if obs.is_floating_point():
            frames = (obs * 255).round().to(torch.uint8)
        if self.channels_first:
            return frames.movedim(1, -1)
        return frames


def _moved(latent: Latent) -> Tensor:
    """The movements (B, T-1, K, 2) of the objects in the last steps."""
    place = latent["place"]
    return place[:, 1:] - place[:, :-1]


def _scaled(pixels: Tensor) -> Tensor:
    """Distances at three scales, which triple the last axis: fine for close objects, coarse for distant ones."""
    return torch.cat([pixels / 80, torch.tanh(pixels / 16), torch.tanh(pixels / 4)], -1)


def _like(mask: Tensor, leaf: Tensor) -> Tensor:
    """Reshape a mask (B,) to the number of axes of `leaf`."""
    return mask.bool().view(-1, *[1] * (leaf.ndim - 1))
