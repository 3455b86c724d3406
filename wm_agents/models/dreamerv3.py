"""DreamerV3 (Hafner et al. 2023, "Mastering Diverse Domains through World Models"), after the authors'
current code.

A recurrent state-space model: `deter` is the state of a block GRU; `stoch` is a group of one-hot vectors with
the information of the frame. The posterior is computed from the frame, the prior without it; dreams sample
from the prior. `policies.actor_critic` is the actor-critic for these dreams, and
`wm_agents.training.dreamer_agent` joins the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.dists import TwoHot, draw_one_hot, entropy, likeliest, mixed, straight_through, tempered
from policies.nets import MLP, BlockLinear, Layer, Linear, NormSiLU
from wm_agents.errors import strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.dreamerv3_codecs import make_codec
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_agents.models.scan_layers import ScanBlocks, ScanLinear
from wm_envs.fields import above, at_least, at_most, fail, share
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch


def _size(deter: int, hidden: int, classes: int, depth: int, **more: int) -> dict[str, int]:
    return {
        "deter_dim": deter,
        "hidden_dim": hidden,
        "stoch_classes": classes,
        "cnn_depth": depth,
        "units": hidden,
        **more,
    }


@strict(ELSEWHERE)
@dataclass(frozen=True, kw_only=True)
class DreamerV3Config(WorldModelConfig):
    """Sizes and loss weights; the defaults are those of `size12m`."""

    family: ClassVar[str] = "dreamerv3"
    SIZES: ClassVar = {
        "ci": _size(64, 32, 4, 4, stoch_discrete=4),
        "size1m": _size(512, 64, 4, 4),
        "size12m": _size(2048, 256, 16, 16),
        "size25m": _size(3072, 384, 24, 24),
        "size50m": _size(4096, 512, 32, 32),
        "size100m": _size(6144, 768, 48, 48),
        "size200m": _size(8192, 1024, 64, 64),
        "size400m": _size(12288, 1536, 96, 96),
    }
    """The published sizes, and a tiny one for tests."""

    deter_dim: int = field(default=2048, metadata=at_least(1))
    """Width of the GRU state."""
    stoch_discrete: int = field(default=32, metadata=at_least(1))
    """Number of one-hot groups."""
    stoch_classes: int = field(default=16, metadata=at_least(2))
    """Classes per group."""
    hidden_dim: int = field(default=256, metadata=at_least(1))
    """Width inside the recurrent model."""
    units: int = field(default=256, metadata=at_least(1))
    """Width of encoders, decoders and heads."""
    cnn_depth: int = field(default=16, metadata=at_least(1))
    """The convolutions have 2, 3, 4 and 4 times as many channels."""
    blocks: int = field(default=8, metadata=at_least(1))
    """Independent blocks of the GRU."""
    unimix: float = field(default=0.01, metadata=above(0) | at_most(1))
    """Share of the uniform distribution in every categorical."""
    kl_free: float = field(default=1.0, metadata=at_least(0))
    """Free nats of KL per step, summed over all groups."""
    kl_scale: float = field(default=1.1, metadata=at_least(0))
    """Weight of both KL terms together."""
    kl_balance: float = field(default=1 / 1.1, metadata=share())
    """Share of `kl_scale` that trains the prior; the rest trains the posterior."""
    discount_horizon: int = field(default=333, metadata=at_least(2))
    """The target of the continue head is 1 - 1 / discount_horizon for steps without termination."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deter_dim % self.blocks:
            fail(self, "deter_dim", f"divisible by blocks ({self.blocks})")


class DreamerV3(Model):
    """The world model: latent {deter (B, D), stoch (B, K G)}; feat is their concatenation."""

    family: ClassVar[str] = "dreamerv3"
    packs: ClassVar[bool] = True

    def __init__(self, cfg: DreamerV3Config, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        self.stoch_dim = cfg.stoch_discrete * cfg.stoch_classes
        self.feat_dim = cfg.deter_dim + self.stoch_dim
        self.eye = make_codec(cfg, obs_space, self.stoch_dim)
        self.rssm = RSSM(cfg, self.actions, self.eye.token_dim)
        self.rew_bins = TwoHot()
        self.rew = MLP(self.feat_dim, cfg.units, 1, self.rew_bins.num, scale=0.0)
        self.cont = MLP(self.feat_dim, cfg.units, 1, 1)

    def initial(self, num: int) -> Latent:
        like = self.rew_bins.grid
        return {"deter": like.new_zeros(num, self.cfg.deter_dim), "stoch": like.new_zeros(num, self.stoch_dim)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Update the latent with a frame. `stoch` is the mode of the posterior, so that encoding is
        deterministic.

        The authors' agent samples it, also in evaluation.
        """
        obs = self.take_obs(obs)
        num = len(obs)
        if latent is None:
            latent = self.initial(num)
        elif act is None:
            raise ValueError("encode needs the act that led from latent to obs, got None")
        if act is None:
            act = latent["deter"].new_zeros(num, self.actions)
        self.check_act(act, num)
        if first is None:
            first = torch.zeros(num, dtype=torch.bool, device=obs.device)
        seen = self.rssm.observe(latent, self.eye.encode(obs)[None], act[None], first[None])
        return {"deter": seen.deter[0], "stoch": seen.stoch[0]}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step. The temperature divides the logits of the prior; at 0 its mode is used.

        `cont` does not include the learned discount, because dreams would terminate too early.
        """
        self.check_act(act, len(latent["deter"]))
        deter, probs = self.rssm.prior_step(latent, act)
        if temperature > 0:
            noise = draw_normal(len(deter), self.cfg.stoch_discrete, generator, deter.device)
            # The CDF of a normal sample is uniform.
            stoch = draw_one_hot(tempered(probs, temperature, -2), torch.special.ndtr(noise), -2)
        else:
            stoch = likeliest(probs, -2)
        ahead = {"deter": deter, "stoch": stoch.flatten(1).to(deter.dtype)}
        feat = self.feat(ahead)
        return Step(ahead, self.rew_bins.mean(self.rew(feat)), self.continues(feat))

    def decode(self, latent: Latent) -> Tensor:
        obs: Tensor = self.eye.decode(self.eye.predict(latent["deter"], latent["stoch"]))
        return obs

    def feat(self, latent: Latent) -> Tensor:
        return torch.cat([latent["deter"], latent["stoch"]], dim=-1).float()

    def latent_of(self, feat: Tensor) -> Latent:
        """The latent of `feat`."""
        deter, stoch = feat.split([self.cfg.deter_dim, self.stoch_dim], dim=-1)
        return {"deter": deter, "stoch": stoch}

    def continues(self, feat: Tensor) -> Tensor:
        """Probability (...) that the episode continues from feat (..., F), without the learned discount."""
        prob = torch.sigmoid(self.cont(feat)[..., 0].float())
        discount: float = 1 - 1 / self.cfg.discount_horizon
        return (prob / discount).clamp(max=1)

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of frames 1 to T of each window; frame 0 is the context."""
        return self.learn(batch)[0]

    def learn(self, batch: Batch) -> tuple[LossOutput, Latent]:
        """The loss, and the posterior latents of the frames 1 to T, leaves (B, T, ...), with their gradients."""
        cfg, (rows, steps) = self.cfg, batch.rew.shape
        tokens = self.eye.encode(batch.obs.flatten(0, 1)).unflatten(0, (rows, steps + 1)).transpose(0, 1)
        start = self._context(batch, tokens[:1].detach())
        act, first = batch.act.transpose(0, 1), batch.first[:, 1:].t()
        uniform = torch.rand(steps, rows, cfg.stoch_discrete, device=tokens.device)
        seen = self.rssm.observe(start, tokens[1:], act, first, uniform)
        deter, stoch, post = (x.transpose(0, 1) for x in seen)  # (B, T, ...)
        prior = self.rssm.prior_probs(deter)
        feat = torch.cat([deter, stoch], dim=-1)

        dyn, rep = _kls(post, prior)
        on = (1 - 1 / cfg.discount_horizon) * (~batch.term).float()
        predicted = self.eye.predict(deter.flatten(0, 1), stoch.flatten(0, 1))
        parts = {
            "rec": self.eye.loss(predicted, batch.obs[:, 1:].flatten(0, 1)).mean(),
            "rew": self.rew_bins.loss(self.rew(feat), batch.rew).mean(),
            "con": F.binary_cross_entropy_with_logits(self.cont(feat)[..., 0].float(), on),
            "dyn": dyn.clamp(min=cfg.kl_free).mean(),
            "rep": rep.clamp(min=cfg.kl_free).mean(),
        }
        kl_loss = cfg.kl_balance * parts["dyn"] + (1 - cfg.kl_balance) * parts["rep"]
        loss = parts["rec"] + parts["rew"] + parts["con"] + cfg.kl_scale * kl_loss
        metrics = {
            "kl": dyn.detach().mean(),
            "post_entropy": entropy(post.detach(), -2).sum(-1).mean(),
            "prior_entropy": entropy(prior.detach(), -2).sum(-1).mean(),
        }
        return LossOutput(loss, parts, metrics), {"deter": deter, "stoch": stoch}

    def _context(self, batch: Batch, tokens: Tensor) -> Latent:
        """Latents of frame 0: the stored ones, or those of the frame without history."""
        rows = len(batch.rew)
        first = torch.ones(1, rows, dtype=torch.bool, device=tokens.device)
        # Not under no_grad: autocast of older PyTorch would cache weights without gradients (pytorch
        # #112583).
        fresh = self.rssm.observe(self.initial(rows), tokens, tokens.new_zeros(1, rows, self.actions), first)
        latent = {"deter": fresh.deter[0].detach(), "stoch": fresh.stoch[0].detach()}
        if batch.latent is None:
            return latent
        known = batch.latent["deter"].ne(0).any(-1, keepdim=True)
        return {key: torch.where(known, batch.latent[key].to(leaf.dtype), leaf) for key, leaf in latent.items()}


def _kls(post: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """KL(post || prior) of probabilities (..., K, G), summed; once with gradients for the prior, once for the
    posterior."""
    log_post, log_prior = post.log(), prior.log()
    dyn = post.detach() * (log_post.detach() - log_prior)
    rep = post * (log_post - log_prior.detach())
    return dyn.sum((-2, -1)), rep.sum((-2, -1))


class _Posteriors(NamedTuple):
    """Posteriors of a window, time-first."""

    deter: Tensor
    """(T, B, D)"""
    stoch: Tensor
    """(T, B, K G)"""
    probs: Tensor
    """(T, B, K, G) probabilities, including unimix"""


class RSSM(nn.Module):
    """The recurrent state-space model with a block GRU."""

    def __init__(self, cfg: DreamerV3Config, actions: int, token_dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        deter, hidden, stoch = cfg.deter_dim, cfg.hidden_dim, cfg.stoch_discrete * cfg.stoch_classes
        self.in_deter, self.in_stoch, self.in_act = (Layer(dim, hidden) for dim in (deter, stoch, actions))
        self.mix = BlockLinear(deter, deter, cfg.blocks, shared_dim=3 * hidden)
        self.mix_norm = NormSiLU(deter)
        self.gates = BlockLinear(deter, 3 * deter, cfg.blocks)
        self.prior = MLP(deter, hidden, 2, stoch)
        self.post = Layer(deter + token_dim, hidden)
        self.post_out = Linear(hidden, stoch)

    # The gradients of its weights are collected manually, which torch.compile does not support.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def observe(
        self, latent: Latent, tokens: Tensor, act: Tensor, first: Tensor, uniform: Tensor | None = None
    ) -> _Posteriors:
        """Update a latent with frames (T, B, ...); `act[t]` leads to frame t, and `first` resets rows.

        `uniform` (T, B, G) samples the one-hot posteriors; None uses their modes. Everything that does not
        depend on the previous step is computed for all steps at once.
        """
        cfg, (steps, rows) = self.cfg, first.shape
        dtype = self.gates.weight.dtype
        keep = (~first[..., None]).to(dtype)
        acts = self.embed_act((act.to(dtype) * keep).flatten(0, 1)).unflatten(0, (steps, rows)).unbind()
        split = cfg.deter_dim
        from_tokens = F.linear(tokens, self.post.linear.weight[:, split:], self.post.linear.bias)
        layers = _Layers(
            ScanLinear(self.in_deter.linear, steps, rows),
            ScanLinear(self.in_stoch.linear, steps, rows),
            ScanBlocks(self.mix, steps, rows),
            ScanBlocks(self.gates, steps, rows),
        )
        post = ScanLinear(self.post.linear, steps, rows, bias=from_tokens, columns=split)
        post_out = ScanLinear(self.post_out, steps, rows)
        deter, stoch = latent["deter"].to(dtype), latent["stoch"].to(dtype)
        out: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(steps):
            deter = self.advance(deter * keep[t], stoch * keep[t], acts[t], layers)
            probs = self._probs(post_out(self.post.norm(post(deter))))
            hot = likeliest(probs, -2) if uniform is None else draw_one_hot(probs, uniform[t], -2)
            stoch = straight_through(hot, probs).flatten(1).to(dtype)
            out.append((deter, stoch, probs))
        return _Posteriors(*(torch.stack(x) for x in zip(*out, strict=True)))

    def prior_step(self, latent: Latent, act: Tensor) -> tuple[Tensor, Tensor]:
        """The next deter (B, D) and the probabilities of the prior (B, K, G)."""
        dtype = self.gates.weight.dtype
        layers = _Layers(self.in_deter.linear, self.in_stoch.linear, self.mix.by_block, self.gates.by_block)
        deter, stoch = latent["deter"].to(dtype), latent["stoch"].to(dtype)
        deter = self.advance(deter, stoch, self.embed_act(act.to(dtype)), layers)
        return deter, self.prior_probs(deter)

    def prior_probs(self, deter: Tensor) -> Tensor:
        """The probabilities of the prior (..., K, G) for deter (..., D)."""
        return self._probs(self.prior(deter))

    def embed_act(self, act: Tensor) -> Tensor:
        """Embed actions; actions outside [-1, 1] are rescaled into it."""
        return cast(Tensor, self.in_act(act / act.abs().clamp(min=1).detach()))

    def advance(self, deter: Tensor, stoch: Tensor, act: Tensor, layers: _Layers) -> Tensor:
        """One GRU step: (B, D), (B, K G) and an embedded action to the next deter; `layers` computes the
        products."""
        x0 = self.in_deter.norm(layers.in_deter(deter))
        x1 = self.in_stoch.norm(layers.in_stoch(stoch))
        x = layers.mix(deter, torch.cat([x0, x1, act], dim=-1)).transpose(0, 1).flatten(1)
        gates = layers.gates(self.mix_norm(x))  # (blocks, B, 3 D / blocks)
        rows = 128 if deter.device.type == "cpu" else len(deter)  # Fits into a CPU cache.
        parts = zip(deter.split(rows), gates.split(rows, dim=1), strict=True)
        if len(deter) > rows:
            return torch.cat([_update(*part) for part in parts])
        return _update(deter, gates)

    def _probs(self, logits: Tensor) -> Tensor:
        # Classes before groups: sums over a last axis of four are slow on CPUs.
        return mixed(logits.unflatten(-1, (self.cfg.stoch_classes, -1)), self.cfg.unimix, dim=-2)


def _update(deter: Tensor, gates: Tensor) -> Tensor:
    """Update deter (B, blocks O) with the gates (blocks, B, 3 O)."""
    reset, candidate, update = gates.to(deter.dtype).chunk(3, dim=-1)
    # tanh(x) as 2 sigmoid(2 x) - 1, which is six times faster on a CPU.
    candidate = 2 * torch.sigmoid(2 * torch.sigmoid(reset) * candidate) - 1
    old = deter.unflatten(-1, (len(gates), -1)).transpose(0, 1)
    # The shift makes the initial update gate keep most of the state.
    return torch.lerp(old, candidate, torch.sigmoid(update - 1)).transpose(0, 1).flatten(1)


class _Layers(NamedTuple):
    """The functions for the matrix products of one GRU step."""

    in_deter: Callable[[Tensor], Tensor]
    in_stoch: Callable[[Tensor], Tensor]
    mix: Callable[[Tensor, Tensor], Tensor]
    gates: Callable[[Tensor], Tensor]
