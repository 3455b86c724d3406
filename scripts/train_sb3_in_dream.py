"""Train a Stable-Baselines3 policy in a dream, evaluate it in the real environment, and record a video.

python scripts/train_sb3_in_dream.py --dream Dream-CartPole-v0 --algo ppo --timesteps 200000
python scripts/train_sb3_in_dream.py --dream runs/my_model --algo sac --obs latent --kwargs '{"gamma": 0.98}'

Writes to --out: policy.zip (for SB3; Box actions in units of their bounds), summary.json, a video of a real episode
and, for policies on latents, model/ (the dream with its new controller). Exit codes: 0 done, 1 an error, 2 interrupted
or invalid flags.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from rich.console import Console
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

from policies.policy import Policy, RandomPolicy
from policies.rollout import EVAL_SEED, check_seed, returns, rollout
from policies.sb3 import DreamVecEnv, SB3Policy, to_mlp, unit_actions
from wm_agents.checkpoint import Artifact, model_card, save_artifact
from wm_agents.cli.flags import Parser
from wm_agents.evaluation.evaluate import Score, evaluate_real
from wm_agents.models.model import Model
from wm_agents.pretrained import (
    dream_of,
    frame_policy,
    load_model,
    load_starts,
    make_dream_vec_env,
    real_spec,
    saved_dream,
)
from wm_agents.system.files import write_json
from wm_agents.system.hardware import describe
from wm_agents.system.progress import Bar
from wm_agents.system.run_folder import provenance, versions
from wm_agents.video import record, record_real
from wm_envs.action import act_dim
from wm_envs.frames import is_image
from wm_envs.real import check_spec
from wm_envs.registry import protocol_of, task_of


class Recipe(NamedTuple):
    """Default settings of the algorithms."""

    algo: type[BaseAlgorithm]
    num_envs: int
    kwargs: Callable[[int], dict[str, Any]]
    """Settings that depend on the number of dreams, such as updates per step and batch size."""
    acts: tuple[type[spaces.Space[Any]], ...]


ANY = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def ppo(num: int) -> dict[str, Any]:
    return {"n_steps": 64, "batch_size": 8 * num, "n_epochs": 10, "learning_rate": LinearSchedule(1e-3, 0, 1)}


def a2c(num: int) -> dict[str, Any]:
    schedule = LinearSchedule(2e-3, 0, 1)
    return {"n_steps": 8, "learning_rate": schedule, "gae_lambda": 0.95, "normalize_advantage": True}


def off_policy(num: int) -> dict[str, Any]:
    return {
        "learning_rate": 1e-3,
        "batch_size": 256,
        "buffer_size": 100_000,
        "learning_starts": 2000,
        "train_freq": 1,
        "gradient_steps": max(num // 4, 1),
        "policy_kwargs": {"net_arch": [128, 128]},
    }


def dqn(num: int) -> dict[str, Any]:
    return {
        **off_policy(num),
        "target_update_interval": 500,
        "exploration_fraction": 0.2,
        "exploration_final_eps": 0.04,
    }


RECIPES = {
    "ppo": Recipe(PPO, 64, ppo, ANY),
    "a2c": Recipe(A2C, 16, a2c, ANY),
    "sac": Recipe(SAC, 16, off_policy, (spaces.Box,)),
    "td3": Recipe(TD3, 16, off_policy, (spaces.Box,)),
    "dqn": Recipe(DQN, 16, dqn, (spaces.Discrete,)),
}
SMALLEST = 36
PIXEL_BUFFER = 20_000  # Replayed frames of 64x64x3 take 24 kB a step.


class Progress(BaseCallback):
    """Shows the progress of training and the mean return of the last 100 dreams."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.bar = bar
        self.curve: list[tuple[int, float]] = []
        """(steps, mean return of the last 100 dreams), about 100 points at most."""
        self._began = time.perf_counter()

    def _on_step(self) -> bool:
        done, total = self.num_timesteps, self.bar.total
        ended = [info["r"] for info in self.model.ep_info_buffer or ()]
        if ended and (not self.curve or done - self.curve[-1][0] >= total / 100):
            self.curve.append((done, round(float(np.mean(ended)), 3)))
        if done - self.training_env.num_envs < total:  # The last rollout may go on beyond.
            speed = done / (time.perf_counter() - self._began)
            mean = f"{np.mean(ended):.1f}" if ended else "not known yet"
            self.bar.update(min(done, total), f"dream return {mean}, {speed:,.0f} steps/s")
        return True


class Trained(NamedTuple):
    """A policy trained in a dream."""

    model: BaseAlgorithm
    curve: list[tuple[int, float]]
    wall_s: float
    settings: dict[str, Any]
    space: gym.Space[Any]
    """The real environment's actions; the model acts in units of their bounds."""


def check(args: Any, model: Model, artifact: Artifact) -> None:
    """Check the settings before any work.

    Raises:
        ValueError: the algorithm does not support the actions or observations of the dream, or a number is out of
            range.
    """
    check_spec(real_spec(artifact))
    recipe, space, seen = RECIPES[args.algo], model.act_space, model.obs_space
    if not isinstance(space, recipe.acts):
        fit = [name for name, other in RECIPES.items() if isinstance(space, other.acts)]
        kinds = " or ".join(kind.__name__ for kind in recipe.acts)
        raise ValueError(f"--algo {args.algo} needs {kinds} actions, {args.dream} has {space}; use {', '.join(fit)}")
    if args.obs == "pixels" and is_image(seen) and min((seen.shape or ())[:2]) < SMALLEST:
        raise ValueError(
            f"--obs pixels needs {SMALLEST}x{SMALLEST} or more for SB3's CnnPolicy, {args.dream} has {seen}"
        )
    for name in ("timesteps", "episodes", "procs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_seed(args.seed)
    if args.horizon is None and saved_dream(model, artifact).bounded.horizon is None:
        raise ValueError(f"--horizon must be given: neither {args.dream} nor its real environment has a limit of steps")


def train(args: Any, model: Model, artifact: Artifact, console: Console) -> Trained:
    """Train in a batch of dreams."""
    recipe = RECIPES[args.algo]
    num = recipe.num_envs if args.num_envs is None else args.num_envs
    pixels = args.obs == "pixels" and is_image(model.obs_space)
    kwargs: dict[str, Any] = recipe.kwargs(num)
    if pixels and "buffer_size" in kwargs:
        kwargs["buffer_size"] = PIXEL_BUFFER
    if args.algo == "td3":
        width = act_dim(model.act_space)
        kwargs["action_noise"] = NormalActionNoise(np.zeros(width), np.full(width, 0.1))
    kwargs |= args.kwargs
    dream = dream_arguments(args, model, artifact)
    dream["start"] = "anywhere" if "anywhere" in load_starts(artifact) else "begin"
    envs = make_dream_vec_env(args.dream, num, obs=args.obs, **dream, precision="auto")
    dream["precision"] = envs.precision
    settings = {"num_envs": num, **dream, **{name: str(value) for name, value in kwargs.items()}}
    console.print(f"{args.algo} in {args.dream}, obs={args.obs}: {settings}", highlight=False)
    policy, dreams = "CnnPolicy" if pixels else "MlpPolicy", VecMonitor(DreamVecEnv(unit_actions(envs)))
    try:
        learner = recipe.algo(policy, dreams, seed=args.seed, device="cpu", **kwargs)
    except TypeError as error:
        if not args.kwargs:
            raise
        raise ValueError(f"--kwargs: {error}; SB3's documentation of {recipe.algo.__name__} lists them") from error
    began = time.perf_counter()
    with Bar(f"{args.algo} in {args.dream}", args.timesteps, console) as bar:
        progress = Progress(bar)
        learner.learn(args.timesteps, progress)
    return Trained(learner, progress.curve, time.perf_counter() - began, settings, model.act_space)


def dream_arguments(args: Any, model: Model, artifact: Artifact) -> dict[str, Any]:
    """The settings of the dream that differ from its defaults; a dream without a horizon gets the limit of the real
    environment."""
    given = {name: getattr(args, name) for name in ("horizon", "temperature", "pessimism")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"horizon": saved_dream(model, artifact).bounded.horizon, **chosen}


def judge(args: Any, trained: Trained, model: Model, artifact: Artifact, console: Console) -> dict[str, Score]:
    """Scores of the policy in its dream and in the real environment, and of random actions there."""
    seeds = range(EVAL_SEED, EVAL_SEED + args.episodes)
    how: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}
    how["horizon"] = saved_dream(model, artifact).bounded.horizon or args.horizon
    dreams = make_dream_vec_env(args.dream, args.episodes, obs=args.obs, **how)
    dreamed = returns(rollout(dreams, SB3Policy(trained.model, trained.space), seed=EVAL_SEED))
    spec, procs = real_spec(artifact), args.procs
    mine: Callable[[], Policy] = partial(SB3Policy, trained.model.policy, trained.space)
    if args.obs == "latent":
        mine = partial(frame_policy, str(Path(args.out) / "model"))
    return {
        "dream": Score([round(float(value), 3) for value in dreamed]),
        "real": evaluate_real(spec, mine, seeds, procs, console),
        "random": evaluate_real(spec, partial(RandomPolicy, model.act_space), seeds, procs, console),
    }


def save(args: Any, trained: Trained, artifact: Artifact) -> None:
    """Write policy.zip for SB3, and the saved dream with the network as its controller."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    trained.model.save(out / "policy.zip")
    if args.obs != "latent":
        return
    policy = to_mlp(trained.model, trained.space)
    facts = {
        "controller": f"SB3 {args.algo}, {args.timesteps:,} steps in {args.dream}, {trained.wall_s:.0f} s",
        "scores": "summary.json beside this folder; again by `wm evaluate`",
        "command": provenance()["command"],
        "hardware": describe()["cpu"],
    }
    card = model_card(f"{artifact.config['family']} dream of {artifact.config['real']['id']}", facts)
    policies = {"mlp": (policy.tensors(), policy.about())}
    save_artifact(out / "model", artifact.config, artifact.tensors, artifact.starts, card, policies)


def film(args: Any, trained: Trained, model: Model, artifact: Artifact) -> Path:
    """Record a real episode, beside its dream if the policy uses latents."""
    spec, seed = real_spec(artifact), EVAL_SEED
    if args.obs == "latent":
        path = Path(args.out) / "real_vs_dream.mp4"
        policy = to_mlp(trained.model, trained.space)
        record(path, spec, model, policy, dream_of(artifact), seed=seed)
    else:
        path = Path(args.out) / "real.mp4"
        record_real(path, spec, SB3Policy(trained.model, trained.space), seed=seed)
    return path


def summarise(args: Any, trained: Trained, scores: dict[str, Score], artifact: Artifact) -> dict[str, Any]:
    task = task_of(real_spec(artifact))
    return {
        "dream_id": args.dream,
        "algo": args.algo,
        "obs": args.obs,
        "timesteps": trained.model.num_timesteps,
        "seed": args.seed,
        "settings": trained.settings,
        "env": artifact.config["real"]["id"],
        "episodes": args.episodes,
        "first_eval_seed": EVAL_SEED,
        **{where: score.to_dict() for where, score in scores.items()},
        "gap": round(scores["dream"].mean - scores["real"].mean, 3),
        "threshold": task.threshold if task else None,
        "protocol": protocol_of(real_spec(artifact)),
        "curve": trained.curve,
        "train_wall_s": round(trained.wall_s, 1),
        "dream_sps": round(trained.model.num_timesteps / trained.wall_s),
        "hardware": describe(),
        "command": provenance()["command"],
        "versions": versions(),
    }


def show(summary: dict[str, Any], scores: dict[str, Score]) -> None:
    names = {"real": f"{summary['algo']}, real {summary['env']}", "random": "random, real", "dream": "the same, dream"}
    for where in ("real", "dream", "random"):
        print(f"{names[where]:<32} {scores[where]}")
    print(f"gap {summary['gap']}; trained in {summary['train_wall_s']} s at {summary['dream_sps']:,} dream steps/s")
    if summary["threshold"] is not None:
        verdict = "reached" if summary["real"]["mean"] >= summary["threshold"] else "not reached"
        print(f"threshold {summary['threshold']:g} {verdict}")
    print(f"protocol: {summary['protocol']}")


def parse(argv: list[str] | None) -> Any:
    parser = Parser(prog="train_sb3_in_dream.py", description=__doc__)
    parser.add_argument("--dream", required=True, help="id of a dream, or the directory of a model")
    parser.add_argument("--algo", choices=sorted(RECIPES), default="ppo")
    parser.add_argument("--timesteps", type=int, default=200_000, help="total agent steps of all dreams")
    parser.add_argument(
        "--obs",
        choices=["latent", "pixels"],
        default="latent",
        help="pixels: observations of the real environment, also vectors",
    )
    parser.add_argument(
        "--num-envs", type=int | None, default=None, help="number of parallel dreams; default: that of the algorithm"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=str | None, default=None, help="runs/sb3/<dream>-<algo> by default")
    parser.add_argument("--episodes", type=int, default=100, help="real held-out episodes of the final score")
    parser.add_argument("--record-video", type=bool, default=True)
    parser.add_argument("--horizon", type=int | None, default=None, help="steps of a dream; by default its own")
    parser.add_argument("--temperature", type=float | None, default=None, help="randomness of the dream")
    parser.add_argument(
        "--pessimism",
        type=float | None,
        default=None,
        help="subtract this factor times the disagreement from the reward",
    )
    parser.add_argument(
        "--kwargs", type=dict[str, Any], default={}, help="further arguments of the SB3 algorithm, as JSON"
    )
    parser.add_argument("--procs", type=int, default=2, help="processes for real episodes")
    args = parser.parse_args(argv)
    args.out = args.out or f"runs/sb3/{Path(args.dream).name}-{args.algo}"
    return args


def run(args: Any, console: Console) -> None:
    model, artifact = load_model(args.dream)
    check(args, model, artifact)
    trained = train(args, model, artifact, console)
    save(args, trained, artifact)
    scores = judge(args, trained, model, artifact, console)
    summary = summarise(args, trained, scores, artifact)
    write_json(Path(args.out) / "summary.json", summary)
    show(summary, scores)
    if args.record_video:
        print(film(args, trained, model, artifact))
    print(json.dumps({"out": args.out, "real": summary["real"]["mean"], "dream": summary["dream"]["mean"]}))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        run(args, Console(stderr=True))
    except KeyboardInterrupt:
        print("train_sb3_in_dream.py: interrupted; run the same command to start over", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        print(f"train_sb3_in_dream.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
