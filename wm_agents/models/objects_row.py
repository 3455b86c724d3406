"""A faster version of `Objects.step` for one row on a CPU; `objects` contains the plain definition with the same
results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_agents.models.slots import LONGEST
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.models.objects import Objects

Floats = NDArray[np.float32]


class _Layer(NamedTuple):
    """Weights (O, I) and biases (O,), as views."""

    weight: Floats
    bias: Floats | float

    def __call__(self, x: Floats) -> Floats:
        out: Floats = self.weight @ x + self.bias
        return out


class ObjectsRow:
    """The step of one row, with NumPy: the overhead of an operation of PyTorch exceeds the arithmetic of one row.

    The weights are views, so changes by training or loading apply here. `fits` checks that they are at the same place
    and that objects, rewards and limits are still the same.
    """

    @classmethod
    def of(cls, model: Objects) -> ObjectsRow:
        """The `ObjectsRow` of `model`, made again if it does not fit any more."""
        row = _ROWS.get(model)
        if row is None or not row.fits():
            row = _ROWS[model] = cls(model)
        return row

    def __init__(self, model: Objects) -> None:
        self._weights = model.heads.outcome._parameters
        self._buffers = [buffer for buffer in model.buffers() if not buffer.is_inference()]
        self._made_of = self._state()
        cfg, heads = model.cfg, model.heads
        self.slots, self.head, self.reach, self.used = cfg.slots, cfg.head, cfg.reach, model.eye.count
        self.later, self.earlier = model.later.numpy(), model.earlier.numpy()
        self.frequency = model.waves.frequency.numpy()
        self.body = [_layer(part) for part in heads.body if isinstance(part, nn.Linear)]
        self.shares, self.outcome, self.end_given = map(_layer, (heads.shares, heads.outcome, heads.end_given))
        self.row_given, self.column_given = _layers(heads.row_given), _layers(heads.column_given)
        self.here = _layers(heads.here)
        self.move, self.new = (
            list(zip(_layers(row), _layers(column), strict=True))
            for row, column in ((heads.move_row, heads.move_column), (heads.new_row, heads.new_column))
        )
        weights = model.rewards.weights.numpy()
        self.classes = int((weights > 0).sum())
        self.odds, self.values = np.log(weights[: self.classes]), model.rewards.values.numpy()
        self.limit = model.limit.numpy()

    def fits(self) -> bool:
        """Whether the weights and the buffers of the model are still the same."""
        return self._made_of == self._state()

    def _state(self) -> list[int]:
        weight = self._weights["weight"]
        assert weight is not None
        return [weight.data_ptr(), *[buffer._version for buffer in self._buffers]]

    def step(self, latent: Latent, act: Tensor, chance: Tensor, temperature: float) -> Step:
        """Dream one step of a latent of one row with the encoded action (1, A) and uniform noise (1, 3 K + 2)."""
        dice = chance[0].tolist()
        old = {key: leaf[0].numpy() for key, leaf in latent.items()}
        did = act[0].numpy()
        x = np.concatenate([self._inputs(old), did])
        for layer in self.body:
            x = _silu(layer(x))
        shares = self.shares(x).reshape(-1, self.head)
        now, was = old["place"][-1], old["here"][-1]
        place, here = now.copy(), np.zeros_like(was)
        for k in range(self.used):
            given = self._given(place[:k] - now[k], here[:k])
            x = shares[k]
            if k:
                x = x + self.row_given[k - 1](given)
            x = _silu(x)
            if dice[3 * k] >= _sigmoid(float(self.here[k](x)[0]) / temperature):
                continue
            here[k] = 1
            heads, origin = self.move[k], (0.0, 0.0)
            if not was[k]:
                heads, origin = self.new[k], now[k]
            down = _pick(heads[0](x) / temperature, dice[3 * k + 1]) - self.reach - origin[0]
            x = shares[self.slots + k] + self.column_given[k](np.concatenate([given, self._waves(np.array([down]))]))
            right = _pick(heads[1](_silu(x)) / temperature, dice[3 * k + 2]) - self.reach - origin[1]
            place[k] += (down, right)
        logits = self.outcome(_silu(shares[-1] + self.end_given(self._given(place - now, here))))
        rew = float(self.values[_pick((logits[: self.classes] - self.odds) / temperature, dice[-2])])
        return self._finish(
            old, did, place, here, rew, float(logits[-1]), dice[-1] < _sigmoid(logits[-1] / temperature)
        )

    def _finish(
        self, old: dict[str, Any], did: Floats, place: Floats, here: Floats, rew: float, logit: float, end: bool
    ) -> Step:
        counts = np.array([rew < 0, rew > 0], np.float32)
        score = old["score"] + counts
        over = bool(((score >= self.limit) & (counts > 0)).any())
        age = np.minimum((old["age"] + 1) * (here == old["here"][-1]), LONGEST)
        after = {
            "place": np.concatenate([old["place"][1:], place[None]]),
            "here": np.concatenate([old["here"][1:], here[None]]),
            "acts": np.concatenate([old["acts"][1:], did[None]]),
            "age": age.astype(np.float32),
            "score": score,
        }
        cont = 0.0 if over else 1 - _sigmoid(logit)
        return Step(
            {key: torch.from_numpy(leaf)[None] for key, leaf in after.items()},
            torch.tensor([rew]),
            torch.tensor([cont]),
            torch.tensor([over or end]),
        )

    def _inputs(self, latent: dict[str, Any]) -> Floats:
        place, here, age = latent["place"], latent["here"], latent["age"]
        now, seen = place[-1], here[-1]
        pair = seen[self.later] * seen[self.earlier]
        spans = np.concatenate([now, (place[1:] - place[:-1]).reshape(-1, 2), now[self.later] - now[self.earlier]])
        shown = np.concatenate([seen, (here[1:] * here[:-1]).ravel(), pair])
        waves = self._waves(spans) * shown[:, None]
        return np.concatenate([here.ravel(), waves.ravel(), age / LONGEST, np.tanh(age / 4), latent["acts"].ravel()])

    def _given(self, offset: Floats, here: Floats) -> Floats:
        if not len(here):
            return here
        return np.concatenate([self._waves(offset) * here[:, None], here[:, None]], 1).ravel()

    def _waves(self, pixels: Floats) -> Floats:
        """(..., N) -> (..., N * size), as `Waves`."""
        angle = pixels[..., None] * self.frequency
        waves = np.concatenate([np.sin(angle), np.cos(angle)], -1)
        return waves.reshape(*pixels.shape[:-1], -1)


_ROWS: WeakKeyDictionary[Any, ObjectsRow] = WeakKeyDictionary()


def _layer(linear: nn.Linear) -> _Layer:
    bias = 0.0 if linear.bias is None else linear.bias.detach().numpy()
    return _Layer(linear.weight.detach().numpy(), bias)


def _layers(linears: nn.ModuleList) -> list[_Layer]:
    return [_layer(linear) for linear in linears if isinstance(linear, nn.Linear)]


def _pick(logits: Floats, chance: float) -> int:
    """The class whose part of the cumulative distribution contains `chance`."""
    shares = np.exp(logits - logits.max()).cumsum()
    return min(int(shares.searchsorted(chance * shares[-1])), len(shares) - 1)


def _silu(x: Floats) -> Floats:
    out: Floats = x / (1 + np.exp(-x))
    return out


def _sigmoid(x: float) -> float:
    return 0.5 + 0.5 * math.tanh(0.5 * x)
