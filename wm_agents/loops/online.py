"""Online training: act in the real environment, and train on a replay buffer between steps.

One run folder:

    data/                 training episodes, in shards
    judged/               episodes of evaluations, which are not used for training
    last.safetensors      the state for resuming: weights, optimizer, random state, progress
    best.safetensors      the weights of the best evaluation
    metrics.jsonl         scalars by real steps
    model/, summary.json  the results: see `finish`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from policies.policy import Policy, explorer
from policies.rollout import check_seed
from policies.step_count import StepCount
from wm_agents.checkpoint import load_weights
from wm_agents.data.dataset import Dataset, write_shard
from wm_agents.data.episode import Episode
from wm_agents.data.live import LIVE, LiveFrames, LiveView
from wm_agents.data.replay import ReplayBuffer
from wm_agents.data.vector_stream import Stream
from wm_agents.errors import ConfigurationError
from wm_agents.evaluation.starts import find_cut_off, make_starts
from wm_agents.loops.budget import SLACK, plan_of, summary_of
from wm_agents.loops.driver import Actor, make_learner, play
from wm_agents.loops.finish import Candidate, Story, deliver
from wm_agents.loops.online_config import OnlineConfig
from wm_agents.loops.seeds import JUDGE_SEED, kept_env_seed
from wm_agents.models.families import build, config_class
from wm_agents.models.model import Model
from wm_agents.strips import STRIPS, write_strips
from wm_agents.system.extras import extra
from wm_agents.system.hardware import memory_gb
from wm_agents.system.interrupt import deferred_interrupt
from wm_agents.system.processes import rank
from wm_agents.system.run_folder import STEPS, MetricsLog, RunFolder, start_run
from wm_agents.system.state import RETRAIN, read_state_tensors, write_state_tensors
from wm_agents.training.callbacks import Callback
from wm_agents.training.trainer import Trainer
from wm_envs.action import act_dim
from wm_envs.real import probe
from wm_envs.world_model import Latent

Array = NDArray[Any]

# All other settings may change when a run is resumed; the trainer checks its own.
FIXED = {"spec", "family", "size", "overrides", "num_envs", "seed"}
NO_EPISODES: list[tuple[Episode, list[Latent]]] | None = None
RECENT = 20
"""Number of episodes for the mean return of the progress line."""


@dataclass
class _Standing:
    """The progress of a run, stored in the checkpoints of the trainer."""

    next_seed: int
    played: int = 0
    """Agent steps of collection."""
    judged: int = 0
    """Agent steps of evaluations."""
    lost: int = 0
    """Agent steps that were taken since the last checkpoint of a killed run."""
    shards: int = 0
    best: float | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def real_steps(self) -> int:
        """All agent steps in the real environment."""
        return self.played + self.judged + self.lost


class Online:
    """The loop: act, store, train."""

    def __init__(self, cfg: OnlineConfig, run: RunFolder, console: Console) -> None:
        self.cfg, self.run, self.console = cfg, run, console
        self.data_dir, self.judged_dir = run.path / "data", run.path / "judged"
        facts = probe(cfg.spec)
        obs_space, act_space = facts.spaces
        torch.manual_seed(cfg.seed)
        model = build(cfg.family, config_class(cfg.family).from_size(cfg.size, **cfg.overrides), obs_space, act_space)
        self.learner = make_learner(model)
        self.model: Model = getattr(self.learner, "model", model)
        self.trainer = Trainer(cast(nn.Module, self.learner), cfg.training(), (_Ledger(self),), run_dir=run.path)
        self.buffer = ReplayBuffer(
            cfg.capacity, obs_space.shape or (), act_dim(act_space), obs_space.dtype or np.float32, max_gb=cfg.max_gb
        )
        self.limit = facts.limit or 0
        self.now = _Standing(next_seed=cfg.first_env_seed)
        self.count = StepCount(run.path / STEPS, start=run.state.get("real_steps", 0))
        self.plan = plan_of(cfg, run)
        self.fresh: list[Episode] = []
        """Episodes that are not yet on disk."""
        self.explorers: list[Policy] = []
        self.returns: list[float] = []
        self.log: MetricsLog | None = None
        self._resume()
        self._since = self._shown = time.perf_counter()
        self._began = (self._since, self.now.real_steps)

    def loop(self) -> None:
        """Play and train until the real steps are used."""
        began = time.perf_counter() - self.now.wall_s
        self.log = MetricsLog(self.run.path) if self.trainer.leads else None
        try:
            with self.trainer.running(), deferred_interrupt() as asked:

                def interrupted() -> bool:
                    return self.trainer.compute.agree(asked())

                for _ in self._play() if self.trainer.leads else self._follow():
                    self._learn(interrupted)
                    self.now.wall_s = time.perf_counter() - began
                    self._show()
                    if self._due(self.cfg.period):
                        self._judge()
                    interrupt = interrupted()
                    if self._due(self.cfg.save_every) or interrupt:
                        self._save()
                    if interrupt:
                        raise KeyboardInterrupt
                self._check_learned()
                self._judge()
                self.now.wall_s = time.perf_counter() - began
                self._save()
                if interrupted():
                    raise KeyboardInterrupt
        finally:
            if self.log is not None:
                self.log.close()
                self.log = None

    def _follow(self) -> Iterator[int]:
        """Store the episodes that the first process of torchrun plays, and yield after each of its steps."""
        while (ended := self.trainer.compute.agree(NO_EPISODES)) is not None:
            for episode, latents in ended:
                self._remember(episode, latents)
            self.now.played += self.cfg.num_envs
            yield self.now.played

    def _play(self) -> Iterator[int]:
        """Step all rows while the budget lasts, store the episodes that end, and yield the number of
        steps."""
        cfg, keeps_latents = self.cfg, hasattr(self.learner, "latents")
        view = LiveView(self.run.path / LIVE, cfg.live_fps)
        live = LiveFrames(view, self.model.obs_space, cfg.spec.id)
        with Stream(cfg.spec, cfg.num_envs, self._seeds(), self.count) as stream:
            actor = Actor(self.learner, self.model, explore=True, seed=self.now.next_seed)
            seen: list[list[Latent]] = [[] for _ in range(cfg.num_envs)]
            while self.now.real_steps + self._reserve() <= cfg.real_steps and not self._is_late():
                live.show(stream.obs[0])
                ended = stream.step(self._act(actor, stream))
                for row, latents in enumerate(seen):
                    if keeps_latents and actor.latent is not None:
                        latents.append({key: leaf[row].half().cpu() for key, leaf in actor.latent.items()})
                self.trainer.compute.agree([(episode, seen[row]) for row, episode in ended])
                for row, episode in ended:
                    self._remember(episode, seen[row])
                    seen[row] = []
                self.now.played += cfg.num_envs
                yield self.now.played
        self.trainer.compute.agree(None)

    def _check_learned(self) -> None:
        """Check that interruptions have not used up the steps for training."""
        if self.trainer.update == 0 and self.now.lost > 0:
            raise ConfigurationError(
                f"{self.run.path}: {self.now.lost:,} of {self.cfg.real_steps:,} real steps were lost when the run was "
                "killed, and the rest is too few to train on; raise real_steps, or lower save_every"
            )

    def _reserve(self) -> int:
        """Steps reserved in the budget: the next one in all rows, and those of the last evaluation."""
        return self.cfg.num_envs + self.cfg.eval_episodes * self.limit

    def _is_late(self) -> bool:
        """Whether the budget of time is used up, apart from the end of the run."""
        plan, done = self.plan, self.now.real_steps / self.cfg.real_steps
        if plan is None or self.trainer.update == 0 or self.now.wall_s < plan.round_s:
            return False
        return plan.trial_s + self.now.wall_s + plan.left_s([self.now.wall_s / done], 0) > plan.budget_s * SLACK

    def _seeds(self) -> Iterator[int]:
        while True:
            check_seed(self.now.next_seed)
            self.now.next_seed += 1
            yield self.now.next_seed - 1

    def _act(self, actor: Actor, stream: Stream) -> Array:
        """Actions of the exploration policy during the prefill, then those of the model."""
        if self.now.played < self.cfg.prefill:
            self.explorers = self.explorers or [explorer(env) for env in stream.envs]
            for row in map(int, np.flatnonzero(stream.first)):
                self.explorers[row].reset(1, self.now.next_seed * self.cfg.num_envs + row)
            return np.concatenate([p.act(stream.obs[row : row + 1]) for row, p in enumerate(self.explorers)])
        self.trainer.model.eval()
        try:
            return actor.act(stream.obs, stream.first)
        finally:
            self.trainer.model.train()

    def _remember(self, episode: Episode, latents: list[Latent]) -> None:
        """Store an episode, with the latents of its frames if the model played all of it."""
        known = None
        if len(latents) == episode.num_steps:
            # The last frame was not encoded, and no window that starts with it needs a latent.
            known = {key: torch.stack([*(of[key] for of in latents), torch.zeros_like(leaf)])
                     for key, leaf in latents[0].items()}  # fmt: skip
        self.buffer.add(episode, self.model.act_space, known)
        if self.trainer.leads:
            self.fresh.append(episode)
        self.returns = [*self.returns[1 - RECENT :], float(episode.rew.sum())]

    def _learn(self, interrupted: Callable[[], bool]) -> None:
        """Take the updates that are due after the steps so far, once there is a window."""
        cfg, trainer, pack = self.cfg, self.trainer, self.model.packs
        if self.now.played < cfg.prefill or not self.buffer.has_window(cfg.length, pack):
            return
        while trainer.update < int(self.now.played * cfg.updates_per_step) and not interrupted():
            generator = trainer.cfg.generator(trainer.update)
            batch = self.buffer.sample(cfg.batch_size, cfg.length, pack=pack, generator=generator)
            trainer.step(trainer.compute.part(batch))
            if (latents := getattr(self.learner, "latents", None)) is not None and batch.index is not None:
                self.buffer.write_latents(batch.index[:, 1:], trainer.compute.whole(latents))
            if trainer.update % cfg.log_every == 0:
                trainer.log_window(self._clock())
            self._show()  # After the prefill, many updates are due at once.

    def _judge(self) -> None:
        """Evaluate without exploration on the seeds for model selection, and keep the best weights."""
        num, then = self.cfg.eval_episodes, self.now.evaluations
        if not self.trainer.leads or num == 0 or (then and then[-1]["update"] == self.trainer.update):
            return
        self.trainer.check_finite()
        seeds = range(JUDGE_SEED, JUDGE_SEED + num)
        episodes = self.trainer.quietly(lambda: play(self.learner, self.model, self.cfg.spec, seeds, self.count))
        write_shard(self.judged_dir, f"eval-{len(then):04d}", episodes, self.cfg.spec.to_dict())
        self.now.judged += sum(ep.num_steps for ep in episodes)
        mean = float(np.mean([ep.rew.sum() for ep in episodes]))
        then.append({"real_steps": self.now.real_steps, "update": self.trainer.update, "real": mean})
        self._log({"eval/real/return": mean})
        longest = max(episodes, key=lambda ep: ep.num_steps)
        with extra("the strips of this evaluation", self.console):
            self.trainer.quietly(lambda: self._write_strips(len(then) - 1, longest))
        self.console.print(f"  {self.now.real_steps:,} real steps: return {mean:.1f} over {num} episodes")
        if self.now.best is None or mean >= self.now.best:
            self.now.best = mean
            write_state_tensors(self.run.path / "best.safetensors", self.trainer.weights(), {"real": repr(mean)})

    def _write_strips(self, number: int, episode: Episode) -> None:
        folder = self.run.path / "evaluations" / f"{number:04d}" / STRIPS
        write_strips(folder, self.model, episode.obs, episode.act, env_id=self.cfg.spec.id)

    def _due(self, period: int) -> bool:
        return self.now.played // period > (self.now.played - self.cfg.num_envs) // period

    def _clock(self) -> float:
        """Seconds since the last call."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def _log(self, values: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.write(self.now.real_steps, {**values, **memory_gb()})
        self.run.update(real_steps=self.now.real_steps)

    def _show(self, every_s: float = 5.0) -> None:
        """Print a progress line periodically."""
        at, done, total = time.perf_counter(), self.now.real_steps, self.cfg.real_steps
        if at - self._shown < every_s:
            return
        self._shown = at
        left = (total - done) * (at - self._began[0]) / max(done - self._began[1], 1)
        recent = "no episode yet"
        if self.returns:
            recent = f"return {np.mean(self.returns):.1f} (last {len(self.returns)})"
        text = f"  {done:,}/{total:,} real steps  {recent}  {self.trainer.update:,} updates  {left / 60:.0f} min left"
        self.console.print(text, highlight=False, soft_wrap=True)
        values = {}
        if self.returns:
            values = {"collect/return": float(np.mean(self.returns))}
        self._log(values)

    def _save(self) -> None:
        """Write the new episodes, and then the state with the number of valid shards."""
        if self.fresh:
            write_shard(self.data_dir, f"part-{self.now.shards:06d}", self.fresh, self.cfg.spec.to_dict())
            self.now.shards, self.fresh = self.now.shards + 1, []
        self.trainer.save_checkpoint()
        self.run.update(real_steps=self.now.real_steps)

    def _resume(self) -> None:
        """Resume from the last checkpoint, if there is one, and remove what was written after it."""
        if (self.run.path / "last.safetensors").exists():
            self.trainer.load_checkpoint()
        if self.trainer.leads:
            for path in sorted(self.data_dir.glob("part-*.h5"))[self.now.shards :]:
                path.unlink()
        self.trainer.fabric.barrier()
        self.now.lost = self.count.value - self.now.played - self.now.judged
        if self.now.shards:
            for episode in Dataset(self.data_dir).iter_episodes():
                self.buffer.add(episode, self.model.act_space)
                self.returns = [*self.returns[1 - RECENT :], float(episode.rew.sum())]

    def finish(self) -> dict[str, Any]:
        """Save and score the best weights: see `finish.deliver`."""
        cfg, best = self.cfg, self.run.path / "best.safetensors"
        if best.exists():
            load_weights(self.trainer.model, read_state_tensors(best, RETRAIN)[0])
        self.trainer.model.cpu().eval()
        torch.manual_seed(cfg.seed)
        starts = make_starts(self.model, self.buffer, cfg.starts, np.random.default_rng(cfg.seed))
        judged = []
        if self.now.evaluations:
            judged = [*Dataset(self.judged_dir).iter_episodes()]
        policy = self.learner.controller()
        candidate = Candidate(self.model, policy, cfg.spec, starts, find_cut_off(self.model, judged))
        chosen = "the last weights"
        if best.exists():
            chosen = f"the best of {len(self.now.evaluations)} evaluations"
        story = Story(
            data=f"including evaluations; seeds from {cfg.first_env_seed}, for evaluation from {JUDGE_SEED}",
            training=f"{self.trainer.update} updates; {chosen}",
            text=f"{cfg.family}:{cfg.size} was trained online, with {cfg.ratio:g} replayed steps per real step.",
            real_steps=self.now.real_steps,
            train_wall_s=self.now.wall_s,
            result={"family": cfg.family, "size": cfg.size, "updates": self.trainer.update},
            summary={"evaluations": self.now.evaluations, **summary_of(self.plan)},
        )
        return deliver(
            self.run.path,
            candidate,
            story,
            episodes=cfg.final_episodes,
            procs=cfg.workers,
            console=self.console,
            report_minutes=cfg.report_minutes,
        )


class _Ledger(Callback):
    """Stores the progress of the run in the trainer's checkpoints, and its metrics in the run log."""

    def __init__(self, online: Online) -> None:
        self.online = online

    def on_metrics(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self.online._log({**values, "train/updates": trainer.update})

    def state(self) -> dict[str, Any]:
        return asdict(self.online.now)

    def load_state(self, state: dict[str, Any]) -> None:
        self.online.now = _Standing(**state)


def online(cfg: OnlineConfig, console: Console | None = None) -> dict[str, Any]:
    """Run or resume online training in the folder `cfg.out` and return the final scores."""
    console = console or Console(stderr=True)
    check_budget(cfg)  # Before the folder is created.
    if cfg.env_seed is None:
        cfg = replace(cfg, env_seed=kept_env_seed(Path(cfg.out), cfg.seed))
    settings = cfg.to_dict()
    seeds = {"run": cfg.seed, "collect": cfg.first_env_seed, "judge": JUDGE_SEED}
    with start_run(cfg.out, settings, seeds, may_change=set(settings) - FIXED) as run:
        training = start(cfg, run, console if rank() == 0 else Console(quiet=True))
        training.loop()
        return training.finish() if training.trainer.leads else {}


def start(cfg: OnlineConfig, run: RunFolder, console: Console) -> Online:
    """The loop in an open run folder, with the settings that fit in the budget of `cfg`."""
    from wm_agents.loops.budget_online import planned  # Its trial uses this loop.

    count = StepCount(run.path / STEPS, start=run.state.get("real_steps", 0))
    return Online(planned(cfg, run, count, console), run, console)


def least_steps(cfg: OnlineConfig) -> int:
    """The smallest budget of real steps: the prefill, an episode in each row, and two evaluations."""
    return cfg.prefill + (probe(cfg.spec).limit or 0) * (cfg.num_envs + 2 * cfg.eval_episodes)


def check_budget(cfg: OnlineConfig) -> None:
    """Check the budget of real steps.

    Raises:
        ConfigurationError: the budget is too small for one training episode, or episodes have no limit.
    """
    limit = probe(cfg.spec).limit
    if limit is None:
        raise ConfigurationError(f"{cfg.spec.id} has no episode limit; set one with --spec.max_episode_steps N")
    least = least_steps(cfg)
    if cfg.real_steps < least:
        raise ConfigurationError(
            f"real_steps must be at least {least:,} with prefill={cfg.prefill:,}, num_envs={cfg.num_envs}, "
            f"eval_episodes={cfg.eval_episodes} and episodes of up to {limit:,} steps, got {cfg.real_steps:,}; raise it"
        )
