"""The dynamics network of `Objects`: it predicts the slots of the next frame, one object after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.models.rewards import MAX_CLASSES
from wm_agents.models.slots import Waves
from wm_envs.world_model import Latent

if TYPE_CHECKING:
    from wm_agents.models.objects import ObjectsConfig


class Dice(NamedTuple):
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


class Drawn(NamedTuple):
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


class Taught(NamedTuple):
    """The losses of the object heads, and the logits of reward and termination."""

    parts: dict[str, Tensor]
    rew: Tensor
    """(B, 16) logits"""
    end: Tensor
    """(B,) logit"""


class Heads(nn.Module):
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
        self, feat: Tensor, act: Tensor, latent: Latent, used: int, odds: Callable[[Tensor], Tensor], dice: Dice
    ) -> Drawn:
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
        return Drawn(place, here, dice.pick(odds(rew), last), dice.flip(end, last + 1) > 0, torch.sigmoid(end.float()))

    def teach(self, feat: Tensor, act: Tensor, latent: Latent, used: int, place: Tensor, here: Tensor) -> Taught:
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
        return Taught(parts, *self._outcome(shares, place, here, now))

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


def _lost(logits: Tensor, want: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), want, reduction="none")
