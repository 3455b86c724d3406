"""Scores of Stable-Baselines3 trained in the real environment, with the real steps or the wall time of a dream.

python scripts/baselines.py --dream Dream-LunarLander-v0                # DQN and PPO, the same number of real steps
python scripts/baselines.py --dream Dream-LunarLander-v0 --minutes 25   # the given time, any number of steps
python scripts/baselines.py --dream Dream-Pong-v0                        # pixels: only random actions

The settings are the tuned ones of rl-baselines3-zoo. Real steps and minutes of the dream are read from its model card.
Scores are over held-out episodes, with seeds from 1,000,000, and compared with random actions. The output is one JSON
object per line.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from policies.policy import RandomPolicy
from policies.rollout import EVAL_SEED
from policies.sb3 import to_mlp
from wm_agents.evaluation.evaluate import Score, evaluate_real
from wm_agents.pretrained import load_model, real_spec
from wm_agents.system.hardware import describe
from wm_envs.real import make_real
from wm_envs.registry import TASKS, RealSpec

WIDE = {"net_arch": [256, 256]}
_SLOW = {"exploration_fraction": 0.12, "exploration_final_eps": 0.1, "target_update_interval": 250, "train_freq": 4}
_DQN = {"learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "gradient_steps": -1}
SETTINGS: dict[str, dict[str, tuple[type[BaseAlgorithm], int, dict[str, Any]]]] = {
    "CartPole": {
        "dqn": (
            DQN,
            1,
            {
                "learning_rate": 2.3e-3,
                "batch_size": 64,
                "buffer_size": 100_000,
                "learning_starts": 1000,
                "target_update_interval": 10,
                "train_freq": 256,
                "gradient_steps": 128,
                "exploration_fraction": 0.16,
                "exploration_final_eps": 0.04,
                "policy_kwargs": WIDE,
            },
        ),
        "ppo": (
            PPO,
            8,
            {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "learning_rate": 1e-3},
        ),
    },
    "Acrobot": {
        "dqn": (DQN, 1, {**_DQN, **_SLOW, "policy_kwargs": WIDE}),
        "ppo": (PPO, 16, {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0}),
    },
    "LunarLander": {
        "dqn": (DQN, 1, {**_DQN, **_SLOW, "policy_kwargs": WIDE}),
        "ppo": (
            PPO,
            16,
            {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01},
        ),
    },
}


class Clock(BaseCallback):
    """Stops training when the time is up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.until = time.perf_counter() + seconds

    def _on_step(self) -> bool:
        return time.perf_counter() < self.until


def train(
    name: str, algo: str, spec: RealSpec, steps: int, seconds: float | None, seed: int
) -> tuple[BaseAlgorithm, float]:
    """The trained model, and its training time in seconds."""
    kind, num, kwargs = SETTINGS[name][algo]
    envs = make_vec_env(lambda: make_real(spec), n_envs=num, seed=seed)
    model = kind("MlpPolicy", envs, seed=seed, device="cpu", **kwargs)
    began = time.perf_counter()
    # Schedules run to the end of what is asked for; by the clock that is the published number of steps.
    model.learn(steps if seconds is None else 1_000_000, callback=None if seconds is None else Clock(seconds))
    return model, time.perf_counter() - began


def used(path: Path) -> tuple[int, float]:
    """Real steps and wall time in seconds from the card of a dream."""
    card = (path / "README.md").read_text(encoding="utf-8")
    steps, seconds = re.search(r"\| data \| (\d+) agent steps", card), re.search(r"\| training \| (\d+) s", card)
    if steps is None or seconds is None:
        raise SystemExit(f"{path / 'README.md'} does not record the real steps of the dream; give --steps")
    return int(steps[1]), float(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dream", choices=[task.dream_id for task in TASKS.values()], required=True)
    parser.add_argument("--algos", nargs="*", choices=["dqn", "ppo"], help="those that there are settings for")
    parser.add_argument("--steps", type=int, help="real steps; default: those of the dream")
    parser.add_argument("--minutes", type=float, help="train for N minutes instead; 0: the wall time of the dream")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--procs", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(max(args.procs, 1))
    artifact = load_model(args.dream)[1]
    spec, name = real_spec(artifact), args.dream.split("-")[1]
    algos = list(SETTINGS.get(name, ())) if args.algos is None else args.algos
    if unknown := [algo for algo in algos if algo not in SETTINGS.get(name, ())]:
        raise SystemExit(
            f"there are no settings of {', '.join(unknown)} for {args.dream}: pixels want a network of their own"
        )
    steps, limit = args.steps, None if args.minutes is None else 60 * args.minutes
    if algos and (limit == 0 or not (steps or limit)):
        its_steps, its_seconds = used(artifact.path)
        steps, limit = steps or its_steps, its_seconds if limit == 0 else limit
    seeds = range(EVAL_SEED, EVAL_SEED + args.episodes)

    def tell(who: str, score: Score, **facts: Any) -> None:
        real = {key: value for key, value in score.to_dict().items() if key != "returns"}
        print(json.dumps({"env": spec.id, "policy": who, "real": real, "episodes": args.episodes, **facts}), flush=True)

    env = make_real(spec)
    tell("random", evaluate_real(spec, partial(RandomPolicy, env.action_space), seeds, 1))
    for algo in algos:
        model, took = train(name, algo, spec, steps, limit, args.seed)
        score = evaluate_real(spec, partial(deepcopy, to_mlp(model)), seeds, 1)
        tell(algo, score, real_steps=model.num_timesteps, train_s=round(took, 1), seed=args.seed, hardware=describe())


if __name__ == "__main__":
    main()
