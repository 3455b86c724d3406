"""Settings of the improvement loop, and the recipes of the shipped dreams."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import gymnasium as gym

from policies.cmaes import CMAConfig
from policies.pool import Procs
from policies.ray_pool import workers_of
from policies.sb3 import check_actions
from wm_agents.control.ppo import PPOConfig
from wm_agents.errors import ConfigurationError
from wm_agents.loops.budget import time_of
from wm_agents.loops.seeds import JUDGE_SEED, SEEDS_A_ROUND, first_env_seed
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.ensemble import EnsembleConfig
from wm_agents.models.families import FAMILIES, config_class, default_family, names
from wm_agents.models.objects import ObjectsConfig
from wm_agents.models.vmc import VMCConfig
from wm_agents.training.config import TrainingConfig
from wm_envs.dream import DreamConfig
from wm_envs.fields import above, at_least, check_fields, fail, share
from wm_envs.frames import is_image
from wm_envs.real import limited, probe, spec_for
from wm_envs.registry import TASKS, RealSpec

FIT = TrainingConfig(
    optimizer="adam", scheduler="onecycle", grad_clip=None, mixed_precision="auto",
    log_interval=50, eval_interval=500, save_interval=500,
)  # fmt: skip
VISION = FIT.replace(total_steps=4000, batch_size=64, learning_rate=2e-3)
MEMORY = FIT.replace(total_steps=3000, batch_size=64, learning_rate=1e-3, grad_clip=1.0)
DYNAMICS = FIT.replace(total_steps=4000, batch_size=256, learning_rate=1e-3, mixed_precision=False, log_interval=100)


@dataclass(frozen=True)
class ImproveConfig:
    """Settings of one run of `wm improve` with V-M-C, an ensemble or an object model."""

    spec: RealSpec
    """The real environment and its preprocessing."""
    out: str
    """Folder for data, checkpoints and results; the same command resumes in it."""
    rounds: int = field(default=8, metadata=at_least(1))
    """Number of rounds. A round collects real episodes, trains the model, trains a controller and evaluates it."""
    random_steps: int = field(default=60_000, metadata=at_least(1))
    """Real agent steps of exploration in the first round."""
    round_steps: int = field(default=30_000, metadata=at_least(1))
    """Real agent steps with the current controller in each later round."""
    round_seeds: int = field(default=SEEDS_A_ROUND, metadata=at_least(1))
    """Environment seeds reserved for each round; `rounds` times this must stay below 900,000."""
    shard_episodes: int = field(default=8, metadata=at_least(1))
    """Episodes per data file. Collection stops only at the end of a file, so larger files exceed `round_steps` by
    more."""
    stall: int | None = field(default=None, metadata=at_least(1))
    """Truncate collected episodes after N steps without a positive reward."""
    max_steps: int | None = field(default=None, metadata=at_least(1))
    """Truncate collected episodes after N steps."""
    noise: tuple[float, ...] = field(default=(0.0, 0.3, 0.6), metadata=at_least(0))
    """Levels of exploration noise; each episode uses one. Continuous actions: standard deviation, relative to half of
    the range. Discrete actions: share of random steps."""
    leave: float = field(default=0.0, metadata=share())
    """Share of collected episodes in which random actions replace the controller from a random step on."""
    draw_actions: bool = False
    """Collect with actions sampled from the probabilities of a PPO controller, instead of its most likely actions."""
    family: str = "auto"
    """Model family. `vmc`: for images and partially observed tasks. `ensemble`: for fully observed vectors. `objects`:
    for images of objects on a static background. `auto`: `vmc` for images, `ensemble` for vectors. Families added from
    outside have their own names."""
    size: str | None = None
    """Size of the model, for families added from outside."""
    overrides: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Fields of the model's config that differ from the size, for families added from outside."""
    model: VMCConfig = field(default_factory=VMCConfig)
    """Settings of V-M-C."""
    vision: TrainingConfig = VISION
    """Training of the encoder of V-M-C."""
    vision_rounds: int = field(default=3, metadata=at_least(0))
    """Train the encoder of V-M-C only in the first N rounds, so that latents stay the same afterwards. Rounds after the
    first take half the updates."""
    warm_start: str | None = None
    """Initialise the encoder of V-M-C from this saved model, if the shapes match."""
    memory: TrainingConfig = MEMORY
    """Training of the dynamics model of V-M-C."""
    window: int = field(default=64, metadata=at_least(1))
    """Steps per training window of the dynamics model of V-M-C, or of a family added from outside."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """Settings of an ensemble."""
    objects: ObjectsConfig = field(default_factory=ObjectsConfig)
    """Settings of an object model."""
    dynamics: TrainingConfig = DYNAMICS
    """Training of an ensemble (from scratch in every round), of an object model (continued in every round), or of a
    family added from outside."""
    controller: Literal["linear", "ppo"] = "linear"
    """`linear`: a linear controller trained by CMA-ES, as in Ha & Schmidhuber 2018. `ppo`: a small network trained by
    PPO of Stable-Baselines3."""
    cma: CMAConfig = field(default_factory=CMAConfig)
    """Settings of CMA-ES."""
    squash: tuple[str, ...] | None = None
    """How a linear controller maps its outputs to the action bounds: tanh, sigmoid or clip for each dimension."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of PPO."""
    mean_rounds: int = field(default=1, metadata=at_least(1))
    """Evaluate and save the mean of the weights that PPO trained in the last N rounds; collect with the last ones."""
    horizon: int = field(default=150, metadata=at_least(1))
    """Maximum steps of the dreams in which the controller is trained; never more than the limit of the environment."""
    temperature: float = field(default=1.0, metadata=at_least(0))
    """Randomness of the dreams in which the controller is trained; 1 is that of the model, 0 the most likely future."""
    pessimism: float = field(default=0.0, metadata=at_least(0))
    """Ensembles only: subtract this factor times the disagreement of the members from the reward."""
    max_disagreement: float | None = field(default=None, metadata=above(0))
    """Ensembles only: terminate a dream when the disagreement of the members exceeds this value."""
    dream_stall: int | None = field(default=None, metadata=at_least(1))
    """Truncate dreams after N steps without a positive reward, when a linear controller is trained."""
    judge_episodes: int = field(default=24, metadata=at_least(0))
    """Real episodes per evaluation of a round. The round with the best evaluation is saved; 0: the last round."""
    judge_every: int = field(default=1, metadata=at_least(1))
    """Rounds between evaluations; the last round is always evaluated."""
    final_episodes: int = field(default=100, metadata=at_least(1))
    """Held-out real episodes for the final score."""
    report_minutes: float = field(default=2.0, metadata=at_least(0))
    """Time limit of the fidelity report at the end, in minutes; 0: no report."""
    budget: str | None = None
    """Time for the whole run, such as 90s, 10min or 1.5h. A short trial measures the speeds of this machine; then
    the numbers of steps, updates, rounds and episodes are scaled to fit."""
    quick: bool = False
    """A first result in about three minutes, or in the shortest time that a run takes on this machine."""
    check_every: int | None = field(default=None, metadata=at_least(1))
    """In a curriculum: generations of CMA-ES, or iterations of PPO, between checks of the controller."""
    starts: int = field(default=512, metadata=at_least(1))
    """Number of stored latents of each kind from which dreams start: `begin` (first frames of episodes) and `anywhere`
    (any frames). A saved model keeps at most 512."""
    start_rounds: int = field(default=4, metadata=at_least(1))
    """Store latents only from the episodes of the last N rounds."""
    seed: int = field(default=1, metadata=at_least(0))
    """Random seed of all parts of the run. A flag such as `--ppo.seed` sets the seed of one part."""
    env_seed: int | None = field(default=None, metadata=at_least(0))
    """First environment seed of collection; default: derived from `seed`, so that runs with different seeds collect
    different episodes."""
    procs: int | None = field(default=None, metadata=at_least(0))
    """Worker processes; 0: play episodes in this process; default: 2, or all cores of the Ray cluster."""
    ray: str | None = None
    """Ray cluster whose cores are the workers: `auto`, `HOST:PORT` or `local`; default: processes of this machine."""
    max_gb: float = field(default=5.0, metadata=above(0))
    """Maximum size of the collected data on disk."""
    live_fps: float = field(default=4.0, metadata=at_least(0))
    """Live frames per second that the dashboard shows while real episodes are collected; 0: none."""

    def __post_init__(self) -> None:
        check_fields(self)
        time_of(self.budget, self.quick)  # Raises an error for an invalid time.
        if self.family not in ("auto", *names("rounds")):
            fail(self, "family", f"one of auto, {', '.join(names('rounds'))}")
        if not self.noise:
            fail(self, "noise", "one or more levels")
        if self.mean_rounds > 1 and self.controller != "ppo":
            fail(self, "mean_rounds", "1 unless controller is ppo")
        end = self.first_env_seed + self.rounds * self.round_seeds
        if end > JUDGE_SEED:
            raise ConfigurationError(
                f"{self.rounds} rounds from environment seed {self.first_env_seed:,} collect up to seed {end:,}, but "
                f"seeds from {JUDGE_SEED:,} up are reserved for evaluation; use a lower env_seed or fewer rounds"
            )

    @property
    def first_env_seed(self) -> int:
        """The environment seed of the first collected episode."""
        if self.env_seed is None:
            return first_env_seed(self.seed, self.round_seeds)
        return self.env_seed

    @property
    def workers(self) -> Procs:
        """The workers that `procs` and `ray` describe."""
        return workers_of(self.procs, self.ray)

    def is_judged(self, number: int) -> bool:
        """Whether the controller of round `number`, counted from 0, is evaluated in the real environment."""
        if self.judge_episodes == 0:
            return False
        return (number + 1) % self.judge_every == 0 or number == self.rounds - 1

    @property
    def generations(self) -> int:
        """Generations of controller training in one round."""
        if self.controller == "ppo":
            return self.ppo.iterations
        return self.cma.generations

    def model_config(self, obs_space: gym.Space[Any]) -> WorldModelConfig:
        """The config of the model, adapted to the observation space."""
        image = is_image(obs_space)
        family = default_family(image) if self.family == "auto" else self.family
        row = FAMILIES[family]
        if row.settings:
            cfg: WorldModelConfig = getattr(self, row.settings)
        else:
            cfg = config_class(family).from_size(self.size or row.sizes[image], **self.overrides)
        return cfg.fitting(obs_space)

    def dream(self, saved: DreamConfig) -> DreamConfig:
        """How the controller is trained: in the dreams of a saved model, with the settings of the run.

        Dreams are never longer than an episode of the real environment, which is the horizon of the saved model.
        """
        return replace(
            saved,
            temperature=self.temperature,
            horizon=min(self.horizon, saved.horizon or self.horizon),
            stall=self.dream_stall if self.controller == "linear" else None,
            pessimism=self.pessimism,
            max_disagreement=self.max_disagreement,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without those of machine and report; `size` and `overrides` if they are set."""
        values = asdict(self) | {"spec": self.spec.to_dict()}
        later = [name for name in ("size", "overrides") if not values[name]]
        for name in ("out", "procs", "ray", "rounds", "max_gb", "live_fps", "report_minutes", *later):
            values.pop(name)
        return values


SEEDED = ("vision", "memory", "dynamics", "cma", "ppo")
"""The parts of `ImproveConfig` with a seed of their own."""


def seeded(cfg: ImproveConfig, seed: int) -> ImproveConfig:
    """`cfg` with `seed` as the seed of the run and of every part that is trained."""
    trained: dict[str, Any] = {name: replace(getattr(cfg, name), seed=seed) for name in SEEDED}
    return replace(cfg, seed=seed, **trained)


# For games with a ball of two pixels and rare rewards.
SMALL_THINGS = VMCConfig(motion_weight=31.0, kl_weight=0.005, rew_head="classes")

PONG_IN_PICTURES = ImproveConfig(
    replace(TASKS["Pong"].real, size=64, max_frames=True),
    out="runs/pong",
    rounds=8,
    random_steps=60_000,
    round_steps=25_000,
    shard_episodes=2,
    max_steps=2000,
    noise=(0.0, 0.1, 0.3),
    model=replace(SMALL_THINGS, hidden=384),
    vision=replace(VISION, total_steps=6000, learning_rate=1e-3),
    vision_rounds=2,
    memory=replace(MEMORY, total_steps=5000),
    controller="ppo",
    ppo=PPOConfig(iterations=150, envs=256, steps=64, batch_size=1024, net=(256, 256), activation="relu", whiten=True),
    horizon=100,
    temperature=0.5,
    judge_episodes=2,
    starts=4096,
)
"""Pong by V-M-C."""

RECIPES = {
    "CarRacing": ImproveConfig(
        TASKS["CarRacing"].real,
        out="runs/carracing",
        rounds=12,
        round_steps=25_000,
        stall=150,
        memory=replace(MEMORY, total_steps=2000, batch_size=32),
        window=128,
        cma=CMAConfig(rollouts=32, generations=130),
        squash=("tanh", "sigmoid", "clip"),
        horizon=250,
        dream_stall=8,
        starts=4096,
    ),
    "Pong": ImproveConfig(
        TASKS["Pong"].real,
        out="runs/pong",
        rounds=70,
        random_steps=10_000,
        round_steps=2_000,
        round_seeds=4_000,
        shard_episodes=1,
        max_steps=2_000,
        noise=(0.08,),
        draw_actions=True,
        family="objects",
        dynamics=FIT.replace(
            optimizer="adamw",
            total_steps=250,
            batch_size=768,
            learning_rate=1e-3,
            weight_decay=1e-3,
            grad_clip=10.0,
        ),
        controller="ppo",
        ppo=PPOConfig(
            iterations=30,
            envs=512,
            steps=32,
            batch_size=1024,
            epochs=3,
            lr=1e-3,
            gae_lambda=0.8,
            ent_coef=0.002,
            net=(192, 192),
            activation="silu",
        ),
        horizon=64,
        mean_rounds=5,
        judge_episodes=4,
        judge_every=70,  # A game between equally strong players takes 15,000 steps.
        starts=4096,
        start_rounds=2,
        procs=0,
    ),
    "CartPole": ImproveConfig(
        TASKS["CartPole"].real,
        out="runs/cartpole",
        rounds=3,
        random_steps=600,
        round_steps=400,
        shard_episodes=1,
        noise=(0.0, 0.1),
        ensemble=EnsembleConfig(hidden=64),
        controller="ppo",
        ppo=PPOConfig(iterations=40),
        horizon=200,
        judge_episodes=0,
        starts=4096,
        procs=1,
    ),
    "Acrobot": ImproveConfig(
        TASKS["Acrobot"].real,
        out="runs/acrobot",
        rounds=3,
        random_steps=5000,
        round_steps=4000,
        shard_episodes=2,
        noise=(0.0, 0.1),
        controller="ppo",
        horizon=200,
        judge_episodes=10,
        starts=4096,
    ),
    "LunarLander": ImproveConfig(
        TASKS["LunarLander"].real,
        out="runs/lunarlander",
        rounds=13,
        random_steps=15_000,
        round_steps=8_000,
        max_steps=400,
        noise=(0.0, 0.1, 0.3),
        leave=0.4,
        controller="ppo",
        ppo=PPOConfig(iterations=250, envs=128, steps=128, batch_size=1024, epochs=6, lr=3e-4, ent_coef=0.003),
        horizon=300,
        judge_episodes=24,
        starts=4096,
    ),
}
RECIPES["Breakout"] = replace(
    PONG_IN_PICTURES,
    spec=TASKS["Breakout"].real,
    out="runs/breakout",
    rounds=4,
    round_steps=40_000,
    stall=300,
    judge_episodes=8,
)
RECIPES = {name: seeded(recipe, recipe.seed) for name, recipe in RECIPES.items()}
"""Training settings of each task, as in the last rounds of the shipped dreams. scripts/reference/ has the
complete history."""
PROJECT_RECIPES = {**RECIPES, "Pong": PONG_IN_PICTURES}
"""The same by the families that a wm.toml supports."""


def recipe_for(env: str | RealSpec) -> ImproveConfig:
    """Default settings for any environment: an installed id, `module:Id-v0`, or an id with its arguments.

    An environment without an episode limit gets one: see `limited`.

    Raises:
        ValueError: the environment is not supported; the message names the reason.
    """
    spec = limited(spec_for(env))
    controller = _controller_for(probe(spec).act_space)
    first, more = (10_000, 8_000) if spec.size is None else (20_000, 20_000)
    recipe = ImproveConfig(
        spec,
        out=f"runs/{spec.id.rpartition(':')[2].replace('/', '-').lower()}",
        rounds=6,
        random_steps=first,
        round_steps=more,
        shard_episodes=2,
        noise=(0.0, 0.1, 0.3),
        leave=0.2,
        controller=controller,
        ppo=PPOConfig(iterations=100, envs=128, steps=128, batch_size=1024, epochs=6),
        horizon=200,
        judge_episodes=10,
        starts=4096,
    )
    return seeded(recipe, recipe.seed)


def _controller_for(actions: gym.Space[Any]) -> Literal["linear", "ppo"]:
    """PPO if SB3 supports these actions, else linear."""
    try:
        check_actions(actions)
    except ValueError:
        return "linear"
    return "ppo"
