"""Faster versions of `Objects.step` and `Objects.feat` on a CPU; `objects` contains the plain definitions with the same
results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_agents.models.made_of import MadeOf
from wm_agents.models.slots import LONGEST, Waves
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.models.objects import Objects

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class _Layer(NamedTuple):
    """Weights (I, O) and biases (O,)."""

    weight: Floats
    bias: Floats


class _Thing(NamedTuple):
    """The heads of one object, H units wide."""

    given: Floats
    """The weights (I, 2 H) of the objects before it, for its row and its column."""
    down: Floats
    """The weights (W, H) of its movement by rows, for its column."""
    row: _Layer
    """The logits of visibility (1) and of movements by rows."""
    column: _Layer
    new_row: _Layer
    new_column: _Layer


class ObjectsRows(MadeOf):
    """The step of N rows in few calls: with few rows, a call takes longer than its arithmetic.

    Waves are looked up in a table, so positions must be whole pixels. Slots without an object are left out, and heads
    with the same inputs share a product. The weights are copied for that.
    """

    @torch.no_grad()
    def __init__(self, model: Objects) -> None:
        cfg, heads, rewards = model.cfg, model.heads, model.rewards
        tensors = [*heads.parameters(), *rewards.buffers(), model.eye.used, model.eye.size, model.limit]
        super().__init__(heads.outcome._parameters, "weight", tensors)
        self.slots, self.head, self.reach, self.used = cfg.slots, cfg.head, cfg.reach, model.eye.count
        self.period, self.waves = _table(model.waves)
        self.spans, self.all_spans = _Spans(model, self.used), _Spans(model, self.slots)
        first, second = (part for part in heads.body if isinstance(part, nn.Linear))
        self.body = [_Layer(_input_weight(first.weight, model, self.spans.kept), _array(first.bias)), _layer(second)]
        parts = np.array([*(part for k in range(self.used) for part in (k, self.slots + k)), 2 * self.slots])
        self.shares = _layer(heads.shares, (parts[:, None] * self.head + np.arange(self.head)).ravel())
        self.things = [_thing(heads, k) for k in range(self.used)]
        self.end_given = _given_weight(heads.end_given.weight, self.used, model.waves.size)
        weights = rewards.weights.numpy()
        classes = int((weights > 0).sum())
        self.outcome = _layer(heads.outcome, np.append(np.arange(classes), -1))
        self.odds, self.values, self.limit = np.log(weights[:classes]), rewards.values.numpy(), model.limit.numpy()
        self.scored = np.stack([self.values < 0, self.values > 0], 1)
        self.half, self.frame = model.eye.size.numpy() / 2, np.array([model.eye.height, model.eye.width], np.float32)
        self.half_apart = self.half[model.later.numpy()] - self.half[model.earlier.numpy()]

    def step(self, latent: Latent, act: Tensor, chance: Tensor, temperature: float) -> Step:
        """Dream one step of N rows with encoded actions (N, A) and uniform noise (N, 3 K + 2)."""
        old: dict[str, Any] = {key: leaf.numpy() for key, leaf in latent.items()}
        # An event of probability sigmoid(logit / temperature) happens if `edge` is below its logit.
        did, dice, edge = act.numpy(), chance.numpy(), (chance.logit() * temperature).numpy()
        x = self._inputs(old, did)
        for layer in self.body:
            x = _silu(_product(x, *layer))
        shares, head = _product(x, *self.shares), self.head
        now, was = old["place"][:, -1], old["here"][:, -1]
        place, here = now.copy(), np.zeros_like(was)
        for k, thing in enumerate(self.things):
            both = shares[:, 2 * k * head : 2 * (k + 1) * head]
            if k:
                both = _product(self._look_up(place[:, :k] - now[:, k, None], here[:, :k, None]), thing.given, both)
            hidden = _silu(both[:, :head])
            logits = _product(hidden, *thing.row)
            here[:, k] = edge[:, 3 * k] < logits[:, 0]
            down = _pick(logits[:, 1:], dice[:, 3 * k + 1], temperature) - self.reach
            new = (here[:, k] > was[:, k]).nonzero()[0]
            if len(new):
                places = _pick(_product(hidden[new], *thing.new_row), dice[new, 3 * k + 1], temperature)
                down[new] = places - self.reach - now[new, k, 0].astype(np.int64)
            waves = self.waves.take(down & (self.period - 1), 0)
            hidden = _silu(_product(waves, thing.down, both[:, head:]))
            place[:, k, 0] += down
            place[:, k, 1] += _pick(_product(hidden, *thing.column), dice[:, 3 * k + 2], temperature) - self.reach
            if len(new):
                places = _pick(_product(hidden[new], *thing.new_column), dice[new, 3 * k + 2], temperature)
                place[new, k, 1] = places - self.reach
        place = np.where(here[..., None] > 0, place, now)  # Until here, `_look_up` ignores hidden objects.
        given = self._look_up((place - now)[:, : self.used], here[:, : self.used, None])
        hidden = _silu(_product(given, self.end_given, shares[:, -head:]))
        logits = _product(hidden, *self.outcome)
        rew = _pick(logits[:, :-1] - self.odds, dice[:, -2], temperature)
        return self._finish(old, did, place, here, rew, logits[:, -1], edge[:, -1] < logits[:, -1])

    def feat(self, latent: Latent) -> Tensor:
        """`Objects.feat` of N rows."""
        place, here, acts, age = (latent[key].numpy() for key in ("place", "here", "acts", "age"))
        spans, shown = self.all_spans(place, here)
        spans *= shown  # All functions below are odd, so hidden objects stay 0.
        pairs = -len(self.half_apart) or len(spans[0])
        now, moved, apart = spans[:, : self.slots], spans[:, self.slots : pairs], spans[:, pairs:]
        seen = shown[:, : self.slots]
        apart = apart + shown[:, pairs:] * self.half_apart
        parts = [
            here,
            (now + seen * self.half) * (2 / self.frame) - seen,
            np.tanh(now / 6),
            np.tanh((seen * (self.frame - 2 * self.half) - now) / 6),
            moved / 8,
            np.tanh(moved / 2),
            np.concatenate([apart / 80, np.tanh(apart / 16), np.tanh(apart / 4)], -1),
            age / LONGEST,
            np.tanh(age / 4),
            acts,
        ]
        return torch.from_numpy(np.concatenate([part.reshape(len(age), -1) for part in parts], 1))

    def _finish(
        self, old: dict[str, Any], did: Floats, place: Floats, here: Floats, rew: Ints, logit: Floats, end: Bools
    ) -> Step:
        scored = self.scored.take(rew, 0)
        after = {
            "place": np.concatenate([old["place"][:, 1:], place[:, None]], 1),
            "here": np.concatenate([old["here"][:, 1:], here[:, None]], 1),
            "acts": np.concatenate([old["acts"][:, 1:], did[:, None]], 1),
            "age": np.minimum(old["age"] + 1, LONGEST) * (here == old["here"][:, -1]),
            "score": old["score"] + scored,
        }
        over = ((after["score"] >= self.limit) & scored).any(1)
        cont = torch.from_numpy(~over) * torch.from_numpy(-logit).sigmoid()
        latent = {key: torch.from_numpy(leaf) for key, leaf in after.items()}
        return Step(latent, torch.from_numpy(self.values.take(rew)), cont, torch.from_numpy(over | end))

    def _inputs(self, old: dict[str, Any], did: Floats) -> Floats:
        num, age = len(did), old["age"]
        spans, shown = self.spans(old["place"], old["here"])
        others = old["here"].reshape(num, -1), age / LONGEST, np.tanh(age / 4), old["acts"].reshape(num, -1), did
        return np.concatenate([self._look_up(spans, shown), *others], 1)

    def _look_up(self, pixels: Floats, shown: Floats) -> Floats:
        """The waves (N, 2 S W) of distances (N, S, 2) between objects, if visible: (N, S, 1)."""
        which = np.where(shown > 0, pixels.astype(np.int64) & (self.period - 1), self.period)
        return self.waves.take(which, 0).reshape(len(which), -1)


class _Spans:
    """The distances (N, S, 2) between objects of the history, and 1 for those between visible objects, (N, S, 1).

    First the last positions, as distances from the corner; then the movements; then the last distances of all pairs.
    Only of the first `used` slots; `kept` (S of all,) selects them.
    """

    def __init__(self, model: Objects, used: int) -> None:
        steps, slots = model.cfg.history, model.cfg.slots
        objects = np.arange(steps * slots).reshape(steps, slots)
        later, earlier = objects[-1][model.later.numpy()], objects[-1][model.earlier.numpy()]
        to = np.concatenate([objects[-1], objects[1:].ravel(), later])
        since = np.concatenate([objects[-1], objects[:-1].ravel(), earlier])
        self.kept = to % slots < used
        self.to, self.since = to[self.kept], since[self.kept]
        one = np.eye(objects.size, dtype=np.float32)
        apart = one[self.to] - one[self.since] * (self.to != self.since)[:, None]
        weight = np.kron(apart.T, np.eye(2, dtype=np.float32))  # (2 T K, 2 S)
        self.matrix = _Layer(weight, np.zeros(weight.shape[1], np.float32))

    def __call__(self, place: Floats, here: Floats) -> tuple[Floats, Floats]:
        num, here = len(here), here.reshape(len(here), -1)
        spans = _product(place.reshape(num, -1), *self.matrix).reshape(num, -1, 2)
        return spans, (here.take(self.to, 1) * here.take(self.since, 1))[..., None]


def _table(waves: Waves) -> tuple[int, Floats]:
    """The longest period P, after which all waves repeat, and the waves (P + 1, W) of each distance.

    The last column is 1. The last entry, of hidden objects, is 0.
    """
    period = 2 ** (waves.size // 2)
    pixels = (torch.arange(period) + period // 2) % period - period // 2
    return period, F.pad(F.pad(waves(pixels[:, None].float()), (0, 1), value=1.0), (0, 0, 0, 1)).numpy()


def _thing(heads: Any, k: int) -> _Thing:
    size, column = heads.waves.size, heads.column_given[k].weight
    given = column[:, :-size]
    if k:
        given = torch.cat([heads.row_given[k - 1].weight, given])
    down = F.pad(column[:, -size:], (0, 1))
    row = (np.concatenate(pair, -1) for pair in zip(_layer(heads.here[k]), _layer(heads.move_row[k]), strict=True))
    others = (_layer(part[k]) for part in (heads.move_column, heads.new_row, heads.new_column))
    return _Thing(_given_weight(given, k, size), _array(down.T), _Layer(*row), *others)


def _input_weight(weight: Tensor, model: Objects, kept: Bools) -> Floats:
    """From the weights (O, I) of the inputs of `Objects` to those of `ObjectsRows`: the `kept` waves first."""
    shown, waves = model.cfg.history * model.cfg.slots, 2 * len(kept) * model.waves.size
    here, spans, others = weight.split([shown, waves, weight.shape[1] - shown - waves], 1)
    spans = spans.unflatten(1, (len(kept), 2, -1))[:, torch.from_numpy(kept)]
    return _array(torch.cat([F.pad(spans, (0, 1)).flatten(1), here, others], 1).T)


def _given_weight(weight: Tensor, objects: int, size: int) -> Floats:
    """From the weights (O, I) of `Heads._given` to those of the table's waves: both axes have half of `here`."""
    waves, here = weight.view(len(weight), -1, 2 * size + 1)[:, :objects].split([2 * size, 1], -1)
    halves = (here / 2)[..., None].expand(-1, -1, 2, -1)
    return _array(torch.cat([waves.unflatten(-1, (2, size)), halves], -1).flatten(1).T)


def _layer(linear: Any, units: Ints | slice = slice(None)) -> _Layer:
    """The layer of some units of `linear`."""
    return _Layer(_array(linear.weight[units].T), _array(linear.bias[units]))


def _array(weight: Tensor) -> Floats:
    return weight.detach().contiguous().numpy()


def _product(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """PyTorch's product is faster; calling it takes longer."""
    if len(x) == 1:
        return x @ weight + bias
    return torch.addmm(torch.from_numpy(bias), torch.from_numpy(x), torch.from_numpy(weight)).numpy()


def _silu(x: Floats) -> Floats:
    if len(x) == 1:
        half = np.multiply(x, 0.5)
        out: Floats = half + half * np.tanh(half)
        return out
    return F.silu(torch.from_numpy(x)).numpy()


def _pick(logits: Floats, chance: Floats, temperature: float) -> Ints:
    """The classes (N,) whose parts of the cumulative distributions contain `chance`, for logits (N, C)."""
    if temperature != 1:
        logits = logits / temperature
    shares = np.exp(logits - np.maximum.reduce(logits, 1, keepdims=True))
    np.add.accumulate(shares, 1, out=shares)
    picked: Ints = (shares < (chance * shares[:, -1])[:, None]).argmin(1)
    return picked
