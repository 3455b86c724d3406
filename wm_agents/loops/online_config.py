"""Settings of an online run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from policies.pool import Procs
from policies.ray_pool import workers_of
from wm_agents.errors import ConfigurationError
from wm_agents.loops.budget import time_of
from wm_agents.loops.seeds import JUDGE_SEED, first_env_seed
from wm_agents.models.families import FAMILIES, config_class, names
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import above, at_least, check_fields, fail
from wm_envs.real import limited, probe, spec_for
from wm_envs.registry import RealSpec


@dataclass(frozen=True)
class OnlineConfig:
    """Settings of one run of `wm improve` with DreamerV3 or TD-MPC2."""

    spec: RealSpec
    """The real environment and its preprocessing."""
    out: str
    """Run folder."""
    family: str
    """Model family."""
    size: str
    """A preset of the family, such as size1m or 5m."""
    overrides: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Fields of the model's config that differ from the preset, as in `--overrides.horizon 5`."""
    real_steps: int = field(default=20_000, metadata=at_least(1))
    """Budget of agent steps in the real environment, including evaluations during training."""
    num_envs: int = field(default=1, metadata=at_least(1))
    """Real environments that collect in parallel."""
    prefill: int = field(default=1000, metadata=at_least(1))
    """Exploration steps before the first update."""
    ratio: float = field(default=512.0, metadata=above(0))
    """Replayed steps per environment step (the train ratio)."""
    batch_size: int = field(default=16, metadata=at_least(1))
    """Windows per batch."""
    length: int = field(default=64, metadata=at_least(1))
    """Steps per window."""
    learning_rate: float = 1e-4
    """Learning rate after the warm-up."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "laprop"] = "adam"
    """Optimizer."""
    grad_clip: float | None = None
    """Maximum gradient norm; None: no clipping."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises."""
    mixed_precision: bool | Literal["auto"] = "auto"
    """Use bfloat16; `auto`: where a short trial finds it faster."""
    compile_model: bool = False
    """Apply `torch.compile` to the loss."""
    device: str = "auto"
    """Device of the model, such as cpu or cuda."""
    capacity: int = field(default=1_000_000, metadata=at_least(1))
    """Capacity of the replay buffer in steps."""
    max_gb: float = field(default=4.0, metadata=above(0))
    """Maximum memory of the replay buffer; the oldest episodes are dropped."""
    eval_every: int | None = field(default=None, metadata=at_least(1))
    """Real steps between evaluations; None: four evaluations in the run."""
    eval_episodes: int = field(default=3, metadata=at_least(0))
    """Real episodes per evaluation, on seeds reserved for model selection. The best weights are saved; with 0
    the last ones."""
    save_every: int = field(default=1000, metadata=at_least(1))
    """Real steps between checkpoints."""
    log_every: int = field(default=100, metadata=at_least(1))
    """Updates between rows of metrics."""
    final_episodes: int = field(default=100, metadata=at_least(1))
    """Held-out episodes for the final score."""
    report_minutes: float = field(default=2.0, metadata=at_least(0))
    """Time limit of the fidelity report at the end, in minutes; 0: no report."""
    budget: str | None = None
    """Time for the whole run, such as 90s, 10min or 1.5h. A short trial measures the speeds of this machine; then
    the numbers of steps, updates, rounds and episodes are scaled to fit."""
    quick: bool = False
    """A first result in about three minutes, or in the shortest time that a run takes on this machine."""
    starts: int = field(default=512, metadata=at_least(1))
    """Number of encoded real observations from which dreams start, of each kind (`begin`, `anywhere`)."""
    seed: int = field(default=1, metadata=at_least(0))
    """Random seed of the run: collection, initial weights, training and planning."""
    env_seed: int | None = field(default=None, metadata=at_least(0))
    """First environment seed of collection. null: derived from `seed`, so that runs with different seeds collect
    different episodes."""
    procs: int | None = field(default=None, metadata=at_least(0))
    """Worker processes for evaluation; default: 2, or all cores of the Ray cluster."""
    ray: str | None = None
    """Ray cluster whose cores are the workers: `auto`, `HOST:PORT` or `local`; default: processes of this machine."""
    live_fps: float = field(default=4.0, metadata=at_least(0))
    """Live frames per second that the dashboard shows while real episodes are collected; 0: none."""

    def __post_init__(self) -> None:
        check_fields(self)
        time_of(self.budget, self.quick)  # Raises an error for an invalid time.
        if self.family not in names("online"):
            fail(self, "family", f"one of {', '.join(names('online'))}")
        first, end = self.first_env_seed, self.first_env_seed + self.real_steps
        if end > JUDGE_SEED:
            raise ConfigurationError(
                f"a run of {self.real_steps:,} steps may use the environment seeds {first:,} to {end - 1:,}, one for "
                f"each episode, but seeds from {JUDGE_SEED:,} up are reserved for evaluation; use a lower env_seed"
            )
        config_class(self.family).from_size(self.size, **self.overrides)
        if self.spec.lives_end:
            raise ConfigurationError("online training does not support spec.lives_end; remove it")
        self.training()  # Checks the fields of TrainingConfig.

    @property
    def first_env_seed(self) -> int:
        """The environment seed of the first collected episode."""
        if self.env_seed is None:
            return first_env_seed(self.seed)
        return self.env_seed

    @property
    def workers(self) -> Procs:
        """The workers that `procs` and `ray` describe."""
        return workers_of(self.procs, self.ray)

    @property
    def period(self) -> int:
        """Real steps between evaluations."""
        return self.eval_every or max(self.real_steps // 4, 1)

    @property
    def updates_per_step(self) -> float:
        """Updates per real step."""
        return self.ratio / (self.batch_size * self.length)

    def training(self) -> TrainingConfig:
        """The settings for the trainer."""
        return TrainingConfig(
            total_steps=max(math.ceil(self.real_steps * self.updates_per_step), 1),
            batch_size=self.batch_size,
            sequence_length=self.length,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            grad_clip=self.grad_clip,
            warmup_steps=self.warmup_steps,
            mixed_precision=self.mixed_precision,
            compile_model=self.compile_model,
            device=self.device,
            seed=self.seed,
            log_interval=self.log_every,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values of the fields, except for the folder, the workers, the size limit and the report."""
        values = asdict(self) | {"spec": self.spec.to_dict()}
        for name in ("out", "procs", "ray", "max_gb", "live_fps", "report_minutes"):
            values.pop(name)
        return values


def seen_by(family: str, spec: RealSpec) -> RealSpec:
    """`spec` with the default preprocessing of online training with `family`.

    Episodes are whole games, because online collection does not count lives. Models without a memory get stacked
    frames.
    """
    return replace(spec, lives_end=False, stack=FAMILIES[family].stacks and spec.size is not None)


def online_recipe(family: str, env_id: str, spec: RealSpec | None = None) -> OnlineConfig:
    """Default settings for `env_id` (an installed id or `module:Id-v0`), preprocessed by `spec` if given.

    Raises:
        ValueError: the family is unknown, or the environment is not supported.
    """
    if family not in names("online"):
        raise ConfigurationError(f"family must be one of {', '.join(names('online'))}, got {family!r}")
    if spec is None:
        spec = seen_by(family, limited(spec_for(env_id)))
    pixels = spec.size is not None
    values = online_defaults(family, pixels)
    limit = probe(spec).limit
    if limit is None:
        raise ConfigurationError(f"{env_id} has no episode limit; set one with --spec.max_episode_steps N")
    if hasattr(config_class(family), "episode_length"):  # As published, where episodes have at most 1,000 steps.
        values |= {"overrides": {"episode_length": limit}, "prefill": min(max(1000, 5 * limit), 5000)}
    evals = 3 if limit <= 1000 else 1
    # At least half of the budget is for collection, however long an episode is.
    least = 2 * (values["prefill"] + limit * (1 + 2 * evals))
    values |= {"eval_episodes": evals, "real_steps": max(values["real_steps"], least)}
    name = env_id.rpartition(":")[2].replace("/", "-").lower()
    return OnlineConfig(spec, f"runs/{name}-{family}", family, FAMILIES[family].sizes[pixels], **values)


def online_defaults(family: str, pixels: bool) -> dict[str, Any]:
    """The default fields of `OnlineConfig` of a family: at least `prefill` and `real_steps`."""
    row = FAMILIES[family]
    values = {"prefill": OnlineConfig.prefill, "real_steps": OnlineConfig.real_steps, **row.online}
    if pixels:
        return {**values, **row.online_pixels}
    return values
