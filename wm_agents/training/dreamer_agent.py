"""DreamerV3's world model and actor-critic as one module with one loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from policies.actor_critic import ActorCritic, ActorCriticConfig, ActorPolicy
from wm_agents.models.dreamerv3 import DreamerV3
from wm_agents.models.loss import LossOutput
from wm_envs.noise import Generator
from wm_envs.world_model import Latent

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch


class DreamerLearner(nn.Module):
    """Trains the model on replayed windows, and the actor-critic in dreams that start at every frame of the
    batch.

    Args:
        cfg: settings of the actor-critic; default: the authors' settings, with the width of the model.

    Raises:
        ValueError: the action space is neither Box nor Discrete.
    """

    packs: ClassVar[bool] = True
    """Its windows may span several episodes."""

    REPLAY_VALUE = 0.3
    """Weight of the critic's loss on replayed episodes."""

    def __init__(self, model: DreamerV3, cfg: ActorCriticConfig | None = None) -> None:
        super().__init__()
        cfg = cfg or ActorCriticConfig(units=model.cfg.units, discount=1 - 1 / model.cfg.discount_horizon)
        self.model = model
        self.behaviour = ActorCritic(cfg, model.act_space, model.feat_dim).to(model.device)
        self.latents: Latent | None = None
        """Posteriors of frames 1 to T of the last batch, leaves (B, T, ...), for the replay buffer."""

    def act(self, latent: Latent, *, explore: bool, generator: Generator = None) -> Tensor:
        """Encoded actions (N, A) in posterior latents: sampled, or the mode."""
        return self.behaviour.act(self.model.feat(latent), explore=explore, generator=generator)

    def loss(self, batch: Batch) -> LossOutput:
        """The losses of model, actor and critic on one batch."""
        out, post = self.model.learn(batch)
        self.latents = {key: leaf.detach() for key, leaf in post.items()}
        feat = self.model.feat(post).transpose(0, 1)  # (T, B, F)
        steps, rows = feat.shape[:2]
        start = {key: leaf.transpose(0, 1).flatten(0, 1) for key, leaf in self.latents.items()}
        cont = self.model.continues(self.model.feat(start)).detach()
        judged = self.behaviour.judge(self.behaviour.dream(self.model, start, cont))
        boot = judged.returns[0].view(steps, rows)
        last = batch.last[:, 1:].t()
        repval = self.behaviour.judge_replay(feat, batch.rew.t(), batch.term.t(), last, boot)
        parts = {**out.components, "policy": judged.policy, "value": judged.value, "repval": repval}
        loss = out.loss + judged.policy + judged.value + self.REPLAY_VALUE * repval
        return LossOutput(loss, parts, {**out.metrics, **judged.metrics})

    def check_batch(self, batch: Batch) -> None:
        """Check a batch; see `Model.check_batch`."""
        self.model.check_batch(batch)

    def controller(self) -> ActorPolicy:
        """The policy that is saved with the model: the actor's mode."""
        return ActorPolicy(self.model.act_space, self.behaviour.actor)

    @torch.no_grad()
    def after_update(self) -> None:
        """Update the slow critic."""
        self.behaviour.after_update()
