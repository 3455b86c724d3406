"""What an online run is told, and how each family learns online."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

from wm_agents.errors import ConfigurationError
from wm_agents.loops.driver import Learner
from wm_agents.loops.recipes import JUDGE_SEED
from wm_agents.models.families import config_class
from wm_agents.models.model import Model
from wm_agents.pretrained import Controller
from wm_agents.training.config import TrainingConfig
from wm_envs.real import check_spec, episode_limit, spec_for
from wm_envs.registry import RealSpec


class LearnerKind(NamedTuple):
    """How a family learns online."""

    learner: Callable[[Model], Learner]
    controller: Callable[[Learner], Controller]
    """What an artifact carries of it."""
    sizes: tuple[str, str]
    """For vectors, and for pixels."""
    defaults: dict[str, Any]
    """Fields of `OnlineConfig`."""
    pixels: dict[str, Any]
    """What is otherwise for pixels."""


def _dreamer(model: Model) -> Learner:
    from wm_agents.models.dreamerv3 import DreamerV3
    from wm_agents.training.dreamer_agent import DreamerLearner

    return DreamerLearner(cast(DreamerV3, model))


def _actor(learner: Any) -> Controller:
    from policies.actor_critic import ActorPolicy

    return ActorPolicy(learner.model.act_space, learner.behaviour.actor)


def _planner(learner: Any) -> Controller:
    from policies.mppi import MPPIPolicy

    return MPPIPolicy(learner.planner())


LEARNERS = {
    "dreamerv3": LearnerKind(
        _dreamer, _actor, ("size1m", "size12m"),
        # The authors' rate and warm-up, kept for pixels, are for millions of steps.
        {"batch_size": 16, "length": 32, "ratio": 256.0, "optimizer": "laprop", "learning_rate": 3e-4,
         "grad_clip": None, "warmup_steps": 100, "real_steps": 10_000, "prefill": 500},
        {"length": 64, "ratio": 128.0, "learning_rate": 4e-5, "warmup_steps": 1000, "real_steps": 100_000,
         "prefill": 2000},
    ),
    "tdmpc2": LearnerKind(
        lambda model: cast(Learner, model), _planner, ("1m", "5m"),
        {"batch_size": 256, "length": 3, "ratio": 768.0, "optimizer": "adam", "learning_rate": 3e-4,
         "grad_clip": 20.0, "warmup_steps": 0, "real_steps": 10_000, "prefill": 1000},
        {"real_steps": 100_000},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class OnlineConfig:
    """One online run."""

    spec: RealSpec
    out: str
    family: Literal["dreamerv3", "tdmpc2"]
    size: str
    """A preset of the family, such as size1m or 5m."""
    overrides: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Fields of the model's config that are to be other than the size has them, `--overrides.horizon 5`."""
    real_steps: int = 20_000
    """Agent steps in the real environment, those of evaluations among them; the run never takes more before its end."""
    num_envs: int = 1
    prefill: int = 1000
    """Of these steps, so many are played by `policies.policy.explorer`, before anything is learned."""
    ratio: float = 512.0
    """Steps that are replayed for each one that is played."""
    batch_size: int = 16
    length: int = 64
    """Steps of the windows that are replayed."""
    learning_rate: float = 1e-4
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "laprop"] = "adam"
    grad_clip: float | None = None
    warmup_steps: int = 0
    """Updates over which the learning rate rises."""
    mixed_precision: bool | Literal["auto"] = "auto"
    compile_model: bool = False
    device: str = "auto"
    capacity: int = 1_000_000
    """Steps that are remembered."""
    max_gb: float = 4.0
    """Memory that they may take; the oldest episodes make room."""
    eval_every: int | None = None
    """Real steps between evaluations; None for four in the run."""
    eval_episodes: int = 3
    """Of each evaluation, on seeds kept for choosing; the best weights are delivered. 0 keeps the last ones."""
    save_every: int = 1000
    """Real steps between checkpoints."""
    log_every: int = 100
    """Updates between rows of metrics."""
    final_episodes: int = 100
    """Held-out episodes that the delivered policy is scored on."""
    starts: int = 512
    """Latents in each bank that dreams start from."""
    seed: int = 1
    procs: int = 2

    def __post_init__(self) -> None:
        least = {"real_steps": 1, "num_envs": 1, "prefill": 1, "batch_size": 1, "length": 1, "capacity": 1,
                 "eval_episodes": 0, "save_every": 1, "log_every": 1, "final_episodes": 1, "starts": 1, "seed": 0,
                 "procs": 1}  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                self._fail(name, f"at least {low}")
        for name in ("ratio", "max_gb"):
            if not getattr(self, name) > 0:
                self._fail(name, "above 0")
        if self.eval_every is not None and self.eval_every < 1:
            self._fail("eval_every", "at least 1, or None for four evaluations")
        if self.family not in LEARNERS:
            self._fail("family", f"one of {', '.join(LEARNERS)}")
        if self.seed + self.real_steps > JUDGE_SEED:
            raise ConfigurationError(
                f"{self.real_steps:,} steps from seed {self.seed:,} might collect up to seed "
                f"{self.seed + self.real_steps:,}; those from {JUDGE_SEED:,} up are for judging. Use a lower seed"
            )
        config_class(self.family).from_size(self.size, **self.overrides)
        if self.spec.lives_end:
            raise ConfigurationError("online training plays whole games; leave spec.lives_end out")
        self.training()  # Its own fields are checked there.

    def _fail(self, name: str, expected: str) -> None:
        raise ConfigurationError(f"OnlineConfig.{name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def period(self) -> int:
        """Real steps between evaluations."""
        return self.eval_every or max(self.real_steps // 4, 1)

    @property
    def updates_per_step(self) -> float:
        """Updates for each real step."""
        return self.ratio / (self.batch_size * self.length)

    def training(self) -> TrainingConfig:
        """What the trainer is told."""
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
        values = asdict(self) | {"spec": self.spec.to_dict()}
        for machine_only in ("out", "procs", "max_gb"):
            values.pop(machine_only)
        return values


def seen_by(family: str, spec: RealSpec) -> RealSpec:
    """`spec` as a family sees it that learns online, unless said otherwise.

    Whole games, since a stream counts no lives; pictures in threes for TD-MPC2, which has no memory.
    """
    return replace(spec, lives_end=False, stack=family == "tdmpc2" and spec.size is not None)


def online_recipe(family: str, env_id: str, spec: RealSpec | None = None) -> OnlineConfig:
    """Settings to begin with for `env_id` (installed, or `module:Id-v0`), seen as `spec` says, or as is usual.

    Raises:
        ValueError: there is no such family, or the environment cannot be modelled.
    """
    if family not in LEARNERS:
        raise ConfigurationError(f"family must be one of {', '.join(LEARNERS)}, got {family!r}")
    spec = seen_by(family, spec_for(env_id)) if spec is None else spec
    check_spec(spec)
    pixels = spec.size is not None
    facts = LEARNERS[family]
    values = facts.defaults | (facts.pixels if pixels else {})
    limit = episode_limit(spec)
    if limit is None:
        raise ConfigurationError(f"{env_id} sets no limit to its episodes; give one, --spec.max_episode_steps N")
    if family == "tdmpc2":  # As its authors have it, whose episodes have 1,000 steps at most.
        values |= {"overrides": {"episode_length": limit}, "prefill": min(max(1000, 5 * limit), 5000)}
    evals = 3 if limit <= 1000 else 1
    # Half of the steps at least are for learning from, whatever an episode takes.
    least = 2 * (values["prefill"] + limit * (1 + 2 * evals))
    values |= {"eval_episodes": evals, "real_steps": max(values["real_steps"], least)}
    name = env_id.rpartition(":")[2].replace("/", "-").lower()
    return OnlineConfig(spec, f"runs/{name}-{family}", family, facts.sizes[pixels], **values)  # type: ignore[arg-type]
