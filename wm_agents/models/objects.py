"""A world model of objects: its latent contains object positions in whole pixels, and all its predictions are discrete.

The encoder (`Slots`) finds objects by their colour. The dynamics model (`_Heads`) samples the slots of the next frame
from those of the last frames and actions, one object after another, the largest first. For each object it samples
whether it is visible, and by how many rows and columns it moves; or, for a new object, at which row and column it
appears. Each prediction is conditioned on the previous ones. Reward and termination come last. Positions stay exact, so
a dream of 10,000 steps is as sharp as its first frame.

The model can end an episode when the number of negative or positive rewards reaches a limit (21 in Pong). The numbers
are part of the latent, and the limits are inferred from the recorded episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.errors import strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.loss import LossOutput
from wm_agents.models.mdrnn_kernels import is_dream
from wm_agents.models.model import Model
from wm_agents.models.objects_rows import ObjectsRows
from wm_agents.models.rewards import MAX_CLASSES, RewardClasses
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
        self.heads = _Heads(cfg, in_dim, (height, width), self.waves)
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
        drawn = self.heads.draw(
            self.inputs(latent), act, latent, self.eye.count, self._odds, _Dice(chance, temperature)
        )
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


class _Dice(NamedTuple):
    """Samples classes with uniform noise (B, N), one column per prediction; without noise it takes
    the most likely classes."""

    chance: Tensor | None
    temperature: float

    def pick(self, logits: Tensor, guess: int, rows: Tensor | None = None) -> Tensor:
        """Classes (B,) for logits (B, C), sampled with noise column `guess`; `rows` selects rows of the noise."""
        if self.chance is None:
            return logits.argmax(-1)
        chance = self.chance[:, guess] if rows is None else self.chance[rows, guess]
        shares = (logits.float() / self.temperature).softmax(-1).cumsum(-1)
        return torch.searchsorted(shares, chance[:, None].contiguous())[:, 0].clamp(max=logits.shape[-1] - 1)

    def flip(self, logit: Tensor, guess: int) -> Tensor:
        """1.0 or 0.0 (B,) for logits (B,)."""
        if self.chance is None:
            return (logit > 0).float()
        return (self.chance[:, guess] < torch.sigmoid(logit.float() / self.temperature)).float()


class _Drawn(NamedTuple):
    """The sampled next frame, reward and termination."""

    place: Tensor
    """(B, K, 2)"""
    here: Tensor
    """(B, K)"""
    rew: Tensor
    """(B,) classes of the rewards"""
    end: Tensor
    """(B,) bool"""
    end_chance: Tensor
    """(B,) probability of termination"""


class _Taught(NamedTuple):
    """The losses of the object heads, and the logits of reward and termination."""

    parts: dict[str, Tensor]
    rew: Tensor
    """(B, 16) logits"""
    end: Tensor
    """(B,) logit"""


class _Heads(nn.Module):
    """The dynamics model: two shared layers, and heads that also get the previous predictions of the step.

    Prediction 3k is whether object k is visible, 3k + 1 its row, 3k + 2 its column. The last two predictions are reward
    and termination.
    """

    def __init__(self, cfg: ObjectsConfig, in_dim: int, frame: tuple[int, int], waves: Waves) -> None:
        super().__init__()
        self.slots, self.reach, self.head, self.waves = cfg.slots, cfg.reach, cfg.head, waves
        given = 2 * waves.size + 1
        moves = 2 * cfg.reach + 1
        self.body = nn.Sequential(*_hidden(in_dim, cfg), *_hidden(cfg.hidden, cfg))
        self.shares = nn.Linear(cfg.hidden, (2 * cfg.slots + 1) * cfg.head)
        things = range(cfg.slots)
        self.row_given = nn.ModuleList(nn.Linear(given * k, cfg.head, bias=False) for k in things[1:])
        self.column_given = nn.ModuleList(nn.Linear(given * k + waves.size, cfg.head, bias=False) for k in things)
        self.end_given = nn.Linear(given * cfg.slots, cfg.head, bias=False)
        self.here = nn.ModuleList(nn.Linear(cfg.head, 1) for _ in things)
        self.move_row = nn.ModuleList(nn.Linear(cfg.head, moves) for _ in things)
        self.move_column = nn.ModuleList(nn.Linear(cfg.head, moves) for _ in things)
        self.new_row = nn.ModuleList(nn.Linear(cfg.head, frame[0] + cfg.reach) for _ in things)
        self.new_column = nn.ModuleList(nn.Linear(cfg.head, frame[1] + cfg.reach) for _ in things)
        self.outcome = nn.Linear(cfg.head, MAX_CLASSES + 1)

    def draw(
        self, feat: Tensor, act: Tensor, latent: Latent, used: int, odds: Callable[[Tensor], Tensor], dice: _Dice
    ) -> _Drawn:
        """Sample the next slots of every element of the batch. The first `used` slots contain objects."""
        shares = self._shares(feat, act)
        now, was = latent["place"][:, -1], latent["here"][:, -1]
        place, here = now.clone(), torch.zeros_like(was)
        for k in range(used):
            given = self._given(place[:, :k] - now[:, k, None], here[:, :k])
            x = self._row(shares, k, given)
            here[:, k] = dice.flip(self.here[k](x)[:, 0], 3 * k)
            new = torch.nonzero(here[:, k] > was[:, k])[:, 0]
            down = (dice.pick(self.move_row[k](x), 3 * k + 1) - self.reach).to(now.dtype)
            if len(new):
                down[new] = dice.pick(self.new_row[k](x[new]), 3 * k + 1, new) - self.reach - now[new, k, 0]
            x = self._column(shares, k, given, down)
            right = (dice.pick(self.move_column[k](x), 3 * k + 2) - self.reach).to(now.dtype)
            if len(new):
                right[new] = dice.pick(self.new_column[k](x[new]), 3 * k + 2, new) - self.reach - now[new, k, 1]
            place[:, k] = now[:, k] + torch.stack([down, right], 1) * here[:, k, None]
        rew, end = self._outcome(shares, place, here, now)
        last = 3 * self.slots
        return _Drawn(place, here, dice.pick(odds(rew), last), dice.flip(end, last + 1) > 0, torch.sigmoid(end.float()))

    def teach(self, feat: Tensor, act: Tensor, latent: Latent, used: int, place: Tensor, here: Tensor) -> _Taught:
        """The losses for the next frame's `place` and `here`; each prediction gets the real previous ones."""
        shares = self._shares(feat, act)
        now, was = latent["place"][:, -1], latent["here"][:, -1]
        parts = {name: feat.new_zeros(()) for name in ("here", "move", "new")}
        for k in range(used):
            given = self._given(place[:, :k] - now[:, k, None], here[:, :k])
            x = self._row(shares, k, given)
            step = place[:, k] - now[:, k]
            y = self._column(shares, k, given, step[:, 0])
            flag = self.here[k](x)[:, 0].float()
            parts["here"] = parts["here"] + F.binary_cross_entropy_with_logits(flag, here[:, k])
            moves = (step.clamp(-self.reach, self.reach) + self.reach).long()
            lost = _lost(self.move_row[k](x), moves[:, 0]) + _lost(self.move_column[k](y), moves[:, 1])
            parts["move"] = parts["move"] + (lost * here[:, k] * was[:, k]).mean()
            new = torch.nonzero(here[:, k] > was[:, k])[:, 0]
            if len(new):
                at = (place[new, k] + self.reach).long().clamp(min=0)
                lost = _lost(self.new_row[k](x[new]), at[:, 0]) + _lost(self.new_column[k](y[new]), at[:, 1])
                parts["new"] = parts["new"] + lost.sum() / len(feat)
        return _Taught(parts, *self._outcome(shares, place, here, now))

    def _shares(self, feat: Tensor, act: Tensor) -> tuple[Tensor, ...]:
        return self.shares(self.body(torch.cat([feat, act], 1))).split(self.head, 1)  # type: ignore[no-any-return]

    def _row(self, shares: tuple[Tensor, ...], k: int, given: Tensor) -> Tensor:
        if k == 0:
            return F.silu(shares[0])
        return F.silu(shares[k] + self.row_given[k - 1](given))

    def _column(self, shares: tuple[Tensor, ...], k: int, given: Tensor, down: Tensor) -> Tensor:
        inputs = torch.cat([given, self.waves(down[:, None])], 1)
        return F.silu(shares[self.slots + k] + self.column_given[k](inputs))

    def _given(self, offset: Tensor, here: Tensor) -> Tensor:
        """The inputs of a head: offsets (B, K, 2) of other objects, and `here` (B, K)."""
        if not here.shape[1]:
            return here
        seen = here[..., None]
        return torch.cat([self.waves(offset) * seen, seen], -1).flatten(1)

    def _outcome(self, shares: tuple[Tensor, ...], place: Tensor, here: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the reward (B, 16) and of termination (B,)."""
        given = self._given(place - now, here)
        out = self.outcome(F.silu(shares[-1] + self.end_given(given)))
        return out[:, :-1].float(), out[:, -1].float()


def _hidden(in_dim: int, cfg: ObjectsConfig) -> tuple[nn.Module, ...]:
    return nn.Linear(in_dim, cfg.hidden), nn.SiLU(), nn.Dropout(cfg.dropout)


def _moved(latent: Latent) -> Tensor:
    """The movements (B, T-1, K, 2) of the objects in the last steps."""
    place = latent["place"]
    return place[:, 1:] - place[:, :-1]


def _scaled(pixels: Tensor) -> Tensor:
    """Distances at three scales, which triple the last axis: fine for close objects, coarse for distant ones."""
    return torch.cat([pixels / 80, torch.tanh(pixels / 16), torch.tanh(pixels / 4)], -1)


def _lost(logits: Tensor, want: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), want, reduction="none")


def _like(mask: Tensor, leaf: Tensor) -> Tensor:
    """Reshape a mask (B,) to the number of axes of `leaf`."""
    return mask.bool().view(-1, *[1] * (leaf.ndim - 1))
